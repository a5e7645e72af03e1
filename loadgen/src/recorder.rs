//! Latencies, from the intended send time to the receipt.

use hdrhistogram::Histogram;
use serde::Serialize;

/// A run of more messages than this is sampled evenly, each sample counting for its share.
const SAMPLES_PER_RUN: u64 = 8;
/// Ten minutes in nanoseconds: longer ones count as this.
const NANOS_MAX: u64 = 600_000_000_000;

/// A histogram of nanoseconds with three significant digits.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    histogram: Histogram<u64>,
    counts_from_ns: u64,
}

/// What is reported, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

impl Default for Recorder {
    fn default() -> Recorder {
        let histogram = Histogram::new_with_bounds(1, NANOS_MAX, 3);
        Recorder { histogram: histogram.expect("the bounds are valid"), counts_from_ns: 0 }
    }
}

impl Recorder {
    /// What arrives earlier, on the run's clock, does not count.
    pub(crate) fn count_from(&mut self, now_ns: u64) {
        self.counts_from_ns = now_ns;
    }

    /// Records a run of messages that arrived at once: `intended(i)` for `i` in `0..count`.
    pub(crate) fn run(&mut self, now_ns: u64, count: u64, intended: impl Fn(u64) -> u64) {
        if now_ns < self.counts_from_ns {
            return;
        }
        let (step, weight) = match count {
            0..=SAMPLES_PER_RUN => (1, 1),
            _ => (count / SAMPLES_PER_RUN, count / SAMPLES_PER_RUN),
        };
        let mut left = count;
        for i in (0..count).step_by(step as usize) {
            let weight = weight.min(left);
            left -= weight;
            let nanos = now_ns.saturating_sub(intended(i)).clamp(1, NANOS_MAX);
            self.histogram.record_n(nanos, weight).expect("the value is within the bounds");
        }
    }

    pub(crate) fn add(&mut self, other: &Recorder) {
        self.histogram.add(&other.histogram).expect("all histograms have the same bounds");
    }

    pub(crate) fn latency(&self) -> Latency {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| micros(self.histogram.value_at_quantile(quantile));
        Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(self.histogram.max()),
            mean: self.histogram.mean() / 1000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_count_for_the_whole_run() {
        for count in [1, 8, 9, 100, 1003] {
            let mut recorder = Recorder::default();
            recorder.run(5_000_000, count, |i| i * 1000);
            assert_eq!(recorder.histogram.len(), count);
        }
    }
}
