//! Time as a shard sees it: the machine's, or one that a simulation moves.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

/// A moment in milliseconds since 1970 as `2026-01-31T23:59:59.999Z`.
pub fn iso8601(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Where a shard reads the time. All its timers are monotonic.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's clocks.
    #[default]
    Machine,
    /// Stands still until its owner moves it; no turn takes any CPU time.
    Simulated {
        /// Time zero.
        start: Instant,
        /// Since then.
        elapsed: Rc<Cell<Duration>>,
        /// What a clock on the wall shows, in milliseconds since 1970: its owner may set it back.
        unix_ms: Rc<Cell<u64>>,
    },
}

impl Clock {
    /// Monotonic time.
    pub fn now(&self) -> Instant {
        match self {
            Clock::Machine => Instant::now(),
            Clock::Simulated { start, elapsed, .. } => *start + elapsed.get(),
        }
    }

    /// Milliseconds since 1970, which may go back: good for comparing with what others say, never for timers.
    pub fn unix_ms(&self) -> u64 {
        match self {
            Clock::Machine => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
            Clock::Simulated { unix_ms, .. } => unix_ms.get(),
        }
    }

    /// The same in seconds.
    pub fn unix_s(&self) -> u64 {
        self.unix_ms() / 1000
    }

    /// CPU time of this thread.
    pub fn thread_cpu(&self) -> Duration {
        match self {
            Clock::Machine => ringfeed_wire::thread_cpu_time(),
            Clock::Simulated { .. } => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_the_calendar_has_them() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(iso8601(unix_ms), text);
        }
    }
}
