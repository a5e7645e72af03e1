//! Why a session is not read from for now. Whoever sets a reason lifts it again; when the last one is
//! lifted, what had arrived already is looked at first.

use ringfeed_wire::Wire;

use super::Deferred;
use crate::ids::SessionSlot;
use crate::shard::{STEP_TIME_MAX, Shard};

/// Answers under way to one session, above which it is held, …
const OWED_MAX: u32 = 256;
/// … and half of what its outbox may hold, when each is as long as this: so that replies alone never fill
/// it.
const REPLY_BYTES: u32 = 512;
/// An answer to a history request has up to this part of what an outbox may hold.
pub(in crate::shard) const HISTORY_PARTS: u32 = 16;

/// Reasons to hold a session's input, as a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::shard) struct Holds(u8);

impl Holds {
    /// Replies wait that it does not read.
    pub(in crate::shard) const OUTBOX: Holds = Holds(1);
    /// It publishes, and the shard or one that it publishes to is behind.
    pub(in crate::shard) const CONGESTED: Holds = Holds(2);
    /// Many answers are under way to it.
    pub(in crate::shard) const OWED: Holds = Holds(4);
    /// Its last command is answered here, behind answers that are under way.
    pub(in crate::shard) const DEFERRED: Holds = Holds(8);
    /// Something is asked outside about its last command.
    pub(in crate::shard) const ASKED: Holds = Holds(16);

    pub(in crate::shard) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(in crate::shard) fn has(self, reason: Holds) -> bool {
        self.0 & reason.0 != 0
    }
}

impl<W: Wire> Shard<W> {
    /// Stops reading from a session.
    pub(in crate::shard) fn hold(&mut self, slot: SessionSlot, reason: Holds) {
        let socket = self.sessions.hot(slot).socket;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.holds.is_empty() {
            self.wire.receive(socket, false);
        }
        session.holds.0 |= reason.0;
    }

    /// A reason is gone. Where it was the last one, the session is read from again in the next turn.
    pub(in crate::shard) fn lift(&mut self, slot: SessionSlot, reason: Holds) {
        let id = self.sessions.id(slot);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.holds.has(reason) {
            session.holds.0 &= !reason.0;
            if session.holds.is_empty() {
                self.released.push_back(id);
            }
        }
    }

    fn owed_max(&self) -> u32 {
        (self.config.limits.outbox_bytes_max / 2 / REPLY_BYTES).clamp(1, OWED_MAX)
    }

    /// How many answers the answer to a history request counts as: it may hold one publication of any
    /// size, so nothing else is asked until it has come.
    pub(super) fn owed_by_history(&self) -> u32 {
        self.owed_max()
    }

    /// An answer is under way to a session, which counts as so many.
    pub(in crate::shard) fn owe(&mut self, slot: SessionSlot, weight: u32) {
        let most = self.owed_max();
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.owed = session.owed.saturating_add(weight);
        if session.owed >= most {
            self.hold(slot, Holds::OWED);
        }
    }

    /// Has the answer to a command, which is given here, wait until all answers that are under way have
    /// come: replies are in the order of commands. `false` where none is under way.
    pub(super) fn defer(&mut self, slot: SessionSlot, deferred: Deferred) -> bool {
        let Some(session) = self.sessions.get_mut(slot).filter(|s| s.owed > 0) else {
            return false;
        };
        session.deferred = Some(Box::new(deferred));
        self.hold(slot, Holds::DEFERRED);
        true
    }

    /// An answer has come.
    pub(in crate::shard) fn settle_owed(&mut self, slot: SessionSlot, weight: u32) {
        let most = self.owed_max();
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.owed = session.owed.saturating_sub(weight);
        let owed = session.owed;
        if owed <= most / 2 {
            self.lift(slot, Holds::OWED);
        }
        if owed == 0 {
            self.lift(slot, Holds::DEFERRED);
        }
    }

    /// Reads again from sessions that are held no more. Returns whether there were any.
    pub(in crate::shard) fn resume_released(&mut self) -> bool {
        if !self.is_congested() {
            for id in std::mem::take(&mut self.congested) {
                if let Some(slot) = self.sessions.current(id) {
                    self.lift(slot, Holds::CONGESTED);
                }
            }
        }
        let count = self.released.len().min(self.limits.events);
        for taken in 0..count {
            if taken % 8 == 7 && self.clock.now() - self.now > STEP_TIME_MAX {
                break;
            }
            let Some(id) = self.released.pop_front() else { break };
            let Some(slot) = self.sessions.current(id) else { continue };
            let socket = self.sessions.hot(slot).socket;
            let Some(session) = self.sessions.get_mut(slot).filter(|s| s.holds.is_empty()) else {
                continue;
            };
            match session.deferred.take().map(|deferred| *deferred) {
                None => {}
                Some(Deferred::Refuse { id, refused }) => {
                    self.tell_refused(slot, id.as_deref(), &refused);
                }
                Some(Deferred::Subscribe { id, channel, terms, token }) => {
                    self.subscribe(slot, id.as_deref(), channel, terms, token.as_deref());
                }
                Some(Deferred::Unsubscribe { id, channel }) => {
                    self.unsubscribe(slot, id.as_deref(), channel);
                }
            }
            // It may have to wait again.
            if self.sessions.get(slot).is_none_or(|session| !session.holds.is_empty()) {
                continue;
            }
            self.handle_rest(slot);
            let again = self.sessions.current(id).and_then(|slot| self.sessions.get_mut(slot));
            let Some(session) = again.filter(|session| session.holds.is_empty()) else { continue };
            let mut held = std::mem::take(&mut session.held);
            self.read(slot, &mut held);
            let again = self.sessions.current(id).and_then(|slot| self.sessions.get(slot));
            if again.is_some_and(|session| session.holds.is_empty()) {
                self.wire.receive(socket, true);
            }
        }
        count > 0
    }
}
