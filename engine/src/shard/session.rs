//! The connections of a shard, by slot. What fan-out touches for each delivery is kept apart from
//! the rest, so that walking the subscribers of a channel touches little memory.

mod commands;
pub(super) mod outbox;

use ringfeed_protocol::{Connection, Dialect};
use ringfeed_wire::{SocketId, SocketOwners};

use crate::shard::door::Permit;
use crate::shard::feed::LaneId;
use crate::shard::session::outbox::Outbox;

/// A connection of this shard; stale after it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// Place in the shard's table.
    pub slot: u32,
    /// How often the place was given away before.
    pub generation: u32,
}

/// What fan-out needs of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hot {
    pub(super) socket: SocketId,
    /// Place in the list of staged vectored sends, `NOT_STAGED` if none.
    pub(super) staged: u32,
    pub(super) flags: u8,
}

pub(super) const NOT_STAGED: u32 = u32::MAX;

/// Nothing may be sent until the socket takes bytes again.
pub(super) const BLOCKED: u8 = 1;
/// It has more to send than fitted in the last send; it is on the resume list.
pub(super) const BACKLOG: u8 = 2;
/// It may have several things to send in one turn: several subscriptions, or an outbox.
pub(super) const MULTI: u8 = 4;
/// Its outbox holds something.
pub(super) const OUTBOX: u8 = 8;
/// A close frame is queued: nothing of any channel follows.
pub(super) const CLOSING: u8 = 16;
/// Its socket was said to take bytes again, and it has not been sent any since.
pub(super) const WOKEN: u8 = 32;

/// One channel of one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subscription {
    pub(super) lane: LaneId,
    /// Place in the lane's list of subscribers; `None` while the home has not answered.
    pub(super) index: Option<u32>,
    /// Tells the answer to this subscribe from one to an earlier one.
    pub(super) attempt: u32,
}

/// A message rate as a bucket of tokens, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rate {
    spent: u64,
    at_ms: u64,
}

/// Whether one more message is within the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowance {
    Within,
    Above,
    /// So far above for so long that the peer does not react.
    FarAbove,
}

impl Rate {
    /// Counts a message. Refused messages count too, up to a second full burst.
    pub(super) fn take(&mut self, now_ms: u64, per_second: u32, burst: u32) -> Allowance {
        if per_second == 0 {
            return Allowance::Within;
        }
        let back = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(per_second));
        self.at_ms = now_ms;
        self.spent = self.spent.saturating_sub(back) + 1000;
        let burst = u64::from(burst) * 1000;
        match self.spent {
            spent if spent <= burst => Allowance::Within,
            spent if spent <= burst * 2 => Allowance::Above,
            _ => Allowance::FarAbove,
        }
    }
}

/// Everything else about a session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) dialect: Dialect,
    /// Number in the configuration's list.
    pub(super) endpoint: u8,
    /// The peer has sent its close frame, or the handshake is over for another reason.
    pub(super) peer_closed: bool,
    /// The peer broke the protocol: nothing more of it is looked at.
    pub(super) failed: bool,
    pub(super) pinged: bool,
    /// Not read from for now; what had arrived already waits in `held`.
    pub(super) paused: bool,
    pub(super) held: Vec<u8>,
    /// History requests that were not answered yet.
    pub(super) histories: u8,
    /// The lane of which a frame is half sent: it goes on before anything else.
    pub(super) half_sent: Option<LaneId>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) outbox: Option<Box<Outbox>>,
    pub(super) heard_ms: u64,
    pub(super) rate: Rate,
    /// Counts the connection until it ends.
    pub(super) _permit: Permit,
}

/// Sessions in one page of the table.
const PAGE_SESSIONS: usize = 1024;

/// Generation of a place, and the session in it.
type Place = (u32, Option<Session>);

/// What one session takes in the table.
pub(super) const SESSION_BYTES: usize = size_of::<Place>() + size_of::<Hot>();

/// The table of sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    hot: Vec<Hot>,
    /// In pages, so that no connection has to wait while all others move to a larger table.
    cold: Vec<Vec<Place>>,
    free: Vec<u32>,
    owners: SocketOwners,
    attempts: u32,
}

impl Sessions {
    pub(super) fn add(&mut self, socket: SocketId, session: Session) -> SessionId {
        let hot = Hot { socket, staged: NOT_STAGED, flags: 0 };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.hot[slot as usize] = hot;
                self.place_mut(slot).expect("a free place is in the table").1 = Some(session);
                slot
            }
            None => {
                self.hot.push(hot);
                if self.cold.last().is_none_or(|page| page.len() == PAGE_SESSIONS) {
                    self.cold.push(Vec::with_capacity(PAGE_SESSIONS));
                }
                let page = self.cold.last_mut().expect("there is one with room");
                page.push((0, Some(session)));
                u32::try_from(self.hot.len() - 1).expect("sockets have 32-bit ids")
            }
        };
        self.owners.set(socket, slot);
        self.id(slot)
    }

    fn place(&self, slot: u32) -> Option<&Place> {
        self.cold.get(slot as usize / PAGE_SESSIONS)?.get(slot as usize % PAGE_SESSIONS)
    }

    fn place_mut(&mut self, slot: u32) -> Option<&mut Place> {
        self.cold.get_mut(slot as usize / PAGE_SESSIONS)?.get_mut(slot as usize % PAGE_SESSIONS)
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Session> {
        let (generation, session) = self.place_mut(slot)?;
        let session = session.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(slot);
        Some(session)
    }

    /// The session that owns a socket.
    pub(super) fn slot_of(&self, socket: SocketId) -> Option<u32> {
        let slot = self.owners.get(socket)?;
        (self.hot.get(slot as usize)?.socket == socket && self.get(slot).is_some()).then_some(slot)
    }

    /// The slot of an id that is not stale.
    pub(super) fn current(&self, id: SessionId) -> Option<u32> {
        let (generation, session) = self.place(id.slot)?;
        (*generation == id.generation && session.is_some()).then_some(id.slot)
    }

    pub(super) fn id(&self, slot: u32) -> SessionId {
        SessionId { slot, generation: self.place(slot).map_or(0, |place| place.0) }
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Session> {
        self.place(slot)?.1.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Session> {
        self.place_mut(slot)?.1.as_mut()
    }

    pub(super) fn hot(&self, slot: u32) -> &Hot {
        &self.hot[slot as usize]
    }

    pub(super) fn hot_mut(&mut self, slot: u32) -> &mut Hot {
        &mut self.hot[slot as usize]
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = u32> + use<> {
        let count = u32::try_from(self.hot.len()).expect("sockets have 32-bit ids");
        0..count
    }

    pub(super) fn next_attempt(&mut self) -> u32 {
        self.attempts = self.attempts.wrapping_add(1);
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_allows_a_burst_then_the_rate_then_gives_up() {
        let mut rate = Rate::default();
        let mut take = |now| rate.take(now, 10, 5);
        assert!((0..5).all(|_| take(1000) == Allowance::Within));
        assert_eq!(take(1000), Allowance::Above);
        assert_eq!(take(1300), Allowance::Within, "three came back, one over was owed");
        for _ in 0..6 {
            take(1300);
        }
        assert_eq!(take(1300), Allowance::FarAbove);
        assert_eq!(rate.take(u64::MAX, 0, 1), Allowance::Within);
    }
}
