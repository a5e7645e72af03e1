//! Whether a peer is still there.

use bytes::Bytes;
use ringfeed_protocol::frame::{self, Opcode};
use ringfeed_wire::Wire;

use super::CLOSING;
use crate::counters::CloseReason;
use crate::ids::{SessionId, SessionSlot};
use crate::shard::Shard;
use crate::shard::timers::{Purpose, Timer};

impl<W: Wire> Shard<W> {
    /// Begins to look after a new session.
    pub(in crate::shard) fn begin_heartbeat(&mut self, session: SessionId) {
        use rand::Rng as _;
        let interval = self.config.heartbeat.interval_ms;
        if interval > 0 {
            // Spread, so that connections that came together are not pinged together.
            let jitter = self.rng.random_range(0..=interval / 4);
            let due_ms = self.now_ms + u64::from(interval - jitter);
            self.wheel.add(Timer { due_ms, session, purpose: Purpose::Heartbeat });
        }
        self.begin_idle(session);
    }

    /// Pings who was silent, and closes who does not answer.
    pub(in crate::shard) fn check_heartbeat(&mut self, slot: SessionSlot, timer: Timer) {
        if self.sessions.has(slot, CLOSING) {
            return;
        }
        let interval = u64::from(self.config.heartbeat.interval_ms);
        let timeout = u64::from(self.config.heartbeat.timeout_ms);
        let now_ms = self.now_ms;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        // Whose socket takes what waits for it is there, even if our ping is still behind all that.
        let alive_ms = session.heard_ms.max(session.progress_ms);
        let silent = now_ms.saturating_sub(alive_ms);
        let due_ms = if !session.holds.is_empty() || silent < interval {
            // While we do not read, silence is ours.
            session.pinged = false;
            (alive_ms + interval).max(now_ms + 1000)
        } else if !session.pinged {
            session.pinged = true;
            let mut ping = Vec::new();
            frame::write_server(&mut ping, Opcode::Ping, b"");
            self.push_outbox(slot, Bytes::from(ping));
            now_ms + timeout
        } else {
            self.counters.heartbeat_timeouts.add(1);
            let reason = "nothing was heard within the heartbeat's timeout";
            return self.close_session(slot, CloseReason::NoHeartbeat, reason);
        };
        self.wheel.add(Timer { due_ms, ..timer });
    }
}
