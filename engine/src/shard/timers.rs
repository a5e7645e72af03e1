//! One wheel of timers for all connections of a shard.

use crate::ids::SessionId;

/// Milliseconds per bucket.
pub(super) const TICK_MS: u64 = 100;
/// Buckets; what lies further ahead than `BUCKETS * TICK_MS` is looked at early and put back.
const BUCKETS: u64 = 1024;

/// What a due timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// See whether the peer is still there.
    Heartbeat,
    /// Cut the connection if its closing handshake has not ended.
    Close,
    /// See whether a message that has begun has ended.
    Message,
    /// See whether the socket has taken any of what waits for it alone.
    Outbox,
    /// See whether it has said who it is.
    Authentication,
    /// See whether what it may do has ended; counted in the shard's own time.
    Expiry,
    /// See whether anything but pings has come.
    Idle,
    /// Its dialect wants to be told.
    Talk,
}

/// A timer of a session that may be gone by then: the session's generation tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timer {
    pub(super) due_ms: u64,
    pub(super) session: SessionId,
    pub(super) purpose: Purpose,
}

/// Timers by due time, coarse.
#[derive(Debug)]
pub(super) struct Wheel {
    buckets: Vec<Vec<Timer>>,
    /// The next bucket to be looked at, counted since the start.
    next: u64,
}

impl Wheel {
    pub(super) fn new() -> Wheel {
        Wheel { buckets: (0..BUCKETS).map(|_| Vec::new()).collect(), next: 0 }
    }

    pub(super) fn add(&mut self, timer: Timer) {
        let bucket = (timer.due_ms / TICK_MS + 1).clamp(self.next, self.next + BUCKETS - 1);
        self.buckets[(bucket % BUCKETS) as usize].push(timer);
    }

    /// Takes what is due at `now_ms` out of the wheel, and on the way what is of sessions that are not there
    /// any more.
    pub(super) fn due(&mut self, now_ms: u64, is_there: impl Fn(SessionId) -> bool) -> Vec<Timer> {
        let mut due = Vec::new();
        while self.next <= now_ms / TICK_MS {
            let bucket = std::mem::take(&mut self.buckets[(self.next % BUCKETS) as usize]);
            self.next += 1;
            for timer in bucket {
                if timer.due_ms <= now_ms {
                    due.push(timer);
                } else if is_there(timer.session) {
                    self.add(timer);
                }
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionSlot;

    #[test]
    fn timers_come_once_and_not_early_however_far_ahead() {
        let mut wheel = Wheel::new();
        let session = SessionId { slot: SessionSlot(0), generation: 0 };
        for due_ms in [0, 50, 99, 100, 5_000, 102_400, 500_000] {
            wheel.add(Timer { due_ms, session, purpose: Purpose::Close });
        }
        let mut seen = Vec::new();
        for now_ms in (0..600_000).step_by(70) {
            for timer in wheel.due(now_ms, |_| true) {
                assert!(timer.due_ms <= now_ms && now_ms < timer.due_ms + 3 * TICK_MS);
                seen.push(timer.due_ms);
            }
        }
        assert_eq!(seen, [0, 50, 99, 100, 5_000, 102_400, 500_000]);
    }

    #[test]
    fn timers_far_ahead_do_not_outlive_their_sessions_for_long() {
        let mut wheel = Wheel::new();
        for slot in 0..100 {
            let session = SessionId { slot: SessionSlot(slot), generation: 0 };
            wheel.add(Timer { due_ms: 3_600_000, session, purpose: Purpose::Heartbeat });
        }
        let is_there = |session: SessionId| session.slot.0 == 7;
        assert!(wheel.due(BUCKETS * TICK_MS, is_there).is_empty());
        assert_eq!(wheel.buckets.iter().map(Vec::len).sum::<usize>(), 1);
    }
}
