//! Connections that nobody uses: no subscription, and nothing but pings for long.

use ringfeed_wire::Wire;

use super::CLOSING;
use crate::counters::CloseReason;
use crate::ids::{SessionId, SessionSlot};
use crate::shard::Shard;
use crate::shard::timers::{Purpose, Timer};

/// A moment in parts of `limits.idle_timeout_ms`, in two bytes for each connection: it comes round after 256 such
/// timeouts, and is looked at, or set, once in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::shard) struct UsedAt(u16);

impl UsedAt {
    /// Parts of a timeout.
    const PARTS: u64 = 256;

    fn part_ms(timeout_ms: u32) -> u64 {
        u64::from(timeout_ms).div_ceil(UsedAt::PARTS).max(1)
    }

    fn at(now_ms: u64, timeout_ms: u32) -> UsedAt {
        let part = now_ms / UsedAt::part_ms(timeout_ms);
        #[allow(clippy::cast_possible_truncation)] // it comes round
        UsedAt(part as u16)
    }

    pub(in crate::shard) fn set(&mut self, now_ms: u64, timeout_ms: u32) {
        *self = UsedAt::at(now_ms, timeout_ms);
    }

    /// Milliseconds since then, at most a part too few.
    fn since_ms(self, now_ms: u64, timeout_ms: u32) -> u64 {
        let parts = UsedAt::at(now_ms, timeout_ms).0.wrapping_sub(self.0);
        u64::from(parts.saturating_sub(1)) * UsedAt::part_ms(timeout_ms)
    }
}

impl<W: Wire> Shard<W> {
    /// Begins to look whether a new session is used, if it has to be.
    pub(super) fn begin_idle(&mut self, session: SessionId) {
        let timeout_ms = self.config.limits.idle_timeout_ms;
        if timeout_ms > 0 {
            let due_ms = self.now_ms + u64::from(timeout_ms);
            self.wheel.add(Timer { due_ms, session, purpose: Purpose::Idle });
            if let Some(session) = self.sessions.get_mut(session.slot) {
                session.used.set(self.now_ms, timeout_ms);
            }
        }
    }

    /// Closes a session that was not used for long. One that was is looked at again when it can be due.
    pub(in crate::shard) fn check_idle(&mut self, slot: SessionSlot, timer: Timer) {
        if self.sessions.has(slot, CLOSING) {
            return;
        }
        let now_ms = self.now_ms;
        let timeout_ms = self.config.limits.idle_timeout_ms;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        // Who is owed answers, is not read from, or is in the middle of a message, says something; who unsubscribes is
        // idle from then on.
        let waits = session.owed > 0 || !session.holds.is_empty() || !session.held.is_empty();
        let waits = waits || session.message_since_ms.is_some();
        if waits || !session.subscriptions.is_empty() {
            session.used.set(now_ms, timeout_ms);
        }
        let left_ms =
            u64::from(timeout_ms).saturating_sub(session.used.since_ms(now_ms, timeout_ms));
        if left_ms > 0 {
            return self.wheel.add(Timer { due_ms: now_ms + left_ms, ..timer });
        }
        let reason = "no subscription, and nothing but pings for limits.idle_timeout_ms";
        self.close_session(slot, CloseReason::Idle, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_known_to_a_part_of_the_timeout_and_never_too_early() {
        for timeout_ms in [100, 1000, 60_000, 86_400_000] {
            let part_ms = UsedAt::part_ms(timeout_ms);
            for began_ms in [0, 7, u64::from(timeout_ms) * 255 + 99, 1 << 40] {
                let used = UsedAt::at(began_ms, timeout_ms);
                for passed_ms in [0, 1, part_ms, u64::from(timeout_ms), u64::from(timeout_ms) * 100]
                {
                    let since_ms = used.since_ms(began_ms + passed_ms, timeout_ms);
                    let told = since_ms..=since_ms + 2 * part_ms;
                    assert!(told.contains(&passed_ms), "{timeout_ms} {began_ms} {passed_ms}");
                }
            }
        }
    }
}
