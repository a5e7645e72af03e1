//! Time as a shard sees it: the machine's, or one that a simulation moves.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

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
    },
}

impl Clock {
    /// Monotonic time.
    pub fn now(&self) -> Instant {
        match self {
            Clock::Machine => Instant::now(),
            Clock::Simulated { start, elapsed } => *start + elapsed.get(),
        }
    }

    /// CPU time of this thread.
    pub fn thread_cpu(&self) -> Duration {
        match self {
            Clock::Machine => ringfeed_wire::thread_cpu_time(),
            Clock::Simulated { .. } => Duration::ZERO,
        }
    }
}
