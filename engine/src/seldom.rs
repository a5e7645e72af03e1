//! Complaints that may come thousands of times a second, told once a second.

use std::time::{Duration, Instant};

/// Between two complaints that are told.
const EVERY: Duration = Duration::from_secs(1);

/// Counts what happens again and again.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// It has happened. How often it has since it was told last, if it is to be told; the first
    /// time it always is.
    pub(crate) fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_times_in_a_second_are_told_twice() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let told: Vec<u64> =
            (0..=1000).filter_map(|i| seldom.count(start + Duration::from_millis(i))).collect();
        assert_eq!(told, [1, 1000]);
    }
}
