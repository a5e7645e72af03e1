//! Time as a shard sees it: the machine's, or one that a simulation moves.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

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
