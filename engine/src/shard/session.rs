//! The connections of a shard, by slot. What fan-out touches for each delivery is kept apart from
//! the rest, so that serving the subscribers of a channel touches little memory.

mod answers;
mod calls;
mod closing;
mod commands;
mod heartbeat;
mod holds;
mod idle;
mod intake;
pub(super) mod outbox;
mod replies;
mod standing;
mod talking;

use bytes::Bytes;
use ringfeed_protocol::{ChannelName, CloseCode, Connection, Dialect, Lane, Refused, Role};
use ringfeed_wire::{SocketId, SocketOwners};
use smallvec::SmallVec;

use super::asks::Terms;
use super::door::Permit;
use super::feed::List;
use crate::counters::CloseReason;
use crate::ids::{LaneId, SessionId, SessionSlot};
use crate::shard::rate::{CommandRates, Rate};
use crate::slab::{Slab, place_bytes};
pub(super) use commands::TOO_MANY_QUESTIONS;
pub(super) use holds::{HISTORY_PARTS, Holds};
use idle::UsedAt;
use outbox::Outbox;
pub use standing::Credentials;
use standing::Standing;
pub(super) use talking::Conversation;

/// What fan-out needs of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hot {
    pub(super) socket: SocketId,
    generation: u32,
    /// Place in the list of staged vectored sends, `NOT_STAGED` if none.
    pub(super) staged: u32,
    pub(super) flags: u8,
}

pub(super) const NOT_STAGED: u32 = u32::MAX;

// The flags of a session. Which go together is what `Sessions::check` says.

/// Nothing may be sent until the socket takes bytes again.
pub(super) const BLOCKED: u8 = 1;
/// It is in the queue of sessions to be served.
pub(super) const QUEUED: u8 = 2;
/// It has had several subscriptions: it is served as a whole, never by walks over a lane.
pub(super) const MULTI: u8 = 4;
/// Its outbox holds something.
pub(super) const OUTBOX: u8 = 8;
/// A close frame is queued: nothing of any channel follows.
pub(super) const CLOSING: u8 = 16;
/// Its socket was said to take bytes again, and it has not been sent any since.
pub(super) const WOKEN: u8 = 32;
/// Of a `MULTI` session: what it was not sent stands in cursors, not in a list of chunks.
pub(super) const CURSORS: u8 = 64;
/// It is to be told of a gap.
pub(super) const GAPS: u8 = 128;

/// One channel of one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subscription {
    pub(super) lane: LaneId,
    /// Place in the lane's list of subscribers; `None` while the home has not answered.
    pub(super) index: Option<u32>,
    /// Tells the answer to this subscribe from one to an earlier one.
    pub(super) attempt: u32,
}

/// A reader whose socket has taken something within this reads: it may stop for a moment to work.
const ATTENTION_MS: u64 = 500;

/// An answer that is given here, and waits until the homes have answered what was asked before it.
#[derive(Debug)]
pub(super) enum Deferred {
    /// To what was subscribed to before, without an answer so far: that may be refused.
    Subscribe {
        id: Option<Box<str>>,
        channel: ChannelName,
        terms: Terms,
        token: Option<Box<str>>,
    },
    Unsubscribe {
        id: Option<Box<str>>,
        channel: ChannelName,
    },
    Refuse {
        id: Option<Box<str>>,
        refused: Refused,
    },
}

/// Everything else about a session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) dialect: Dialect,
    /// Where its subscriptions are; `None` where the dialect has none.
    pub(super) lane: Option<Lane>,
    /// What its dialect remembers of it; most remember nothing.
    pub(super) talk: Option<Box<Conversation>>,
    /// Number in the configuration's list.
    pub(super) endpoint: u8,
    /// How its end began, and with which code.
    pub(super) closed: Option<(CloseReason, CloseCode)>,
    /// The peer has sent its close frame.
    pub(super) peer_closed: bool,
    /// A frame is half sent and cannot be completed: nothing more is sent, and it is cut in this turn.
    pub(super) cut: bool,
    /// The peer broke the protocol: nothing more of it is looked at.
    pub(super) failed: bool,
    pub(super) pinged: bool,
    /// A timer looks after its outbox.
    pub(super) outbox_timed: bool,
    /// A timer looks after its unfinished message.
    pub(super) message_timed: bool,
    /// When anything but pings came last.
    pub(super) used: UsedAt,
    /// Why it is not read from for now; what had arrived already waits in `held`.
    pub(super) holds: Holds,
    /// Questions about it that are under way: it is held until the last of them is answered.
    pub(super) asked: u16,
    /// One of them is about a publication that is on its way to its home, which asks.
    pub(super) posted: bool,
    /// Its calls of methods that are under way: it is not held for them.
    pub(super) calls: u16,
    pub(super) held: Vec<u8>,
    /// Answers under way to it from the homes of its channels; a large one counts as many.
    pub(super) owed: u32,
    /// In a box: most sessions never have any.
    pub(super) deferred: Option<Box<Deferred>>,
    /// The commands of its last message that wait until it is held no more: they come before `held`.
    #[allow(clippy::box_collection)] // most sessions never have any
    pub(super) commands: Option<Box<Vec<Box<str>>>>,
    /// The lane of which a frame is half sent: it goes on before anything else.
    pub(super) half_sent: Option<LaneId>,
    pub(super) subscriptions: Vec<Subscription>,
    /// Place in `subscriptions` where the next send begins.
    pub(super) next_served: usize,
    pub(super) outbox: Option<Box<Outbox>>,
    /// When something was received last.
    pub(super) heard_ms: u64,
    /// When its socket last took any of what had to wait.
    pub(super) progress_ms: u64,
    /// When the unfinished message began that is being received.
    pub(super) message_since_ms: Option<u64>,
    /// Memory of that message, as it is counted for the shard.
    pub(super) partial_bytes: usize,
    pub(super) rate: Rate,
    /// `None` for a stranger who may stay one.
    pub(super) standing: Option<Box<Standing>>,
    /// Of single commands, where they have limits and were used.
    pub(super) command_rates: Option<Box<CommandRates>>,
    /// Counts the connection until it ends.
    _permit: Permit,
}

impl Session {
    pub(super) fn new(
        dialect: Dialect,
        endpoint: u8,
        message_bytes_max: u32,
        now_ms: u64,
        permit: Permit,
    ) -> Session {
        Session {
            connection: Connection::new(Role::Server, message_bytes_max),
            dialect,
            lane: None,
            talk: None,
            endpoint,
            closed: None,
            peer_closed: false,
            cut: false,
            failed: false,
            pinged: false,
            outbox_timed: false,
            message_timed: false,
            used: UsedAt::default(),
            holds: Holds::default(),
            asked: 0,
            calls: 0,
            posted: false,
            held: Vec::new(),
            owed: 0,
            deferred: None,
            commands: None,
            half_sent: None,
            subscriptions: Vec::new(),
            next_served: 0,
            outbox: None,
            heard_ms: now_ms,
            progress_ms: now_ms,
            message_since_ms: None,
            partial_bytes: 0,
            rate: Rate::default(),
            standing: None,
            command_rates: None,
            _permit: permit,
        }
    }

    /// Its place in a lane's list of subscribers.
    pub(super) fn index_in(&self, lane: LaneId) -> Option<u32> {
        self.subscriptions.iter().find(|own| own.lane == lane)?.index
    }
}

/// Chunks that a session was not sent yet, by number, in the order in which they came.
pub(super) type Waiting = SmallVec<[u32; 4]>;

/// What one session takes in the table.
pub(super) const SESSION_BYTES: usize =
    place_bytes::<Session>() + size_of::<Hot>() + size_of::<Waiting>();

/// What the rates of single commands take besides, of a session that uses any.
pub(super) const COMMAND_RATES_BYTES: usize = size_of::<CommandRates>();

/// The table of sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    hot: Vec<Hot>,
    waiting: Vec<Waiting>,
    cold: Slab<Session>,
    owners: SocketOwners,
    attempts: u32,
    outbox_bytes: usize,
}

impl Sessions {
    pub(super) fn add(&mut self, socket: SocketId, session: Session) -> SessionId {
        let (slot, generation) = self.cold.insert(session);
        let hot = Hot { socket, generation, staged: NOT_STAGED, flags: 0 };
        let index = slot as usize;
        if self.hot.len() <= index {
            self.hot.resize(index + 1, hot);
            self.waiting.resize(index + 1, Waiting::new());
        }
        self.hot[index] = hot;
        self.owners.set(socket, slot);
        SessionId { slot: SessionSlot(slot), generation }
    }

    /// Takes a session out. It has no subscriptions any more.
    pub(super) fn remove(&mut self, slot: SessionSlot) -> Option<Session> {
        let session = self.cold.remove(slot.0)?;
        assert!(session.subscriptions.is_empty(), "subscriptions end before their session");
        self.outbox_bytes -= session.outbox.as_ref().map_or(0, |outbox| outbox.own_bytes());
        self.hot_mut(slot).flags = 0;
        self.waiting[slot.index()] = Waiting::new();
        Some(session)
    }

    /// Sessions there are.
    pub(super) fn len(&self) -> usize {
        self.cold.len()
    }

    /// Memory of all outboxes that is nobody else's.
    pub(super) fn outbox_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// The session that owns a socket.
    pub(super) fn slot_of(&self, socket: SocketId) -> Option<SessionSlot> {
        let slot = SessionSlot(self.owners.get(socket)?);
        (self.hot.get(slot.index())?.socket == socket && self.get(slot).is_some()).then_some(slot)
    }

    /// The slot of an id that is not stale.
    pub(super) fn current(&self, id: SessionId) -> Option<SessionSlot> {
        let generation = self.cold.generation(id.slot.0)?;
        (generation == id.generation).then_some(id.slot)
    }

    pub(super) fn id(&self, slot: SessionSlot) -> SessionId {
        SessionId { slot, generation: self.hot(slot).generation }
    }

    pub(super) fn get(&self, slot: SessionSlot) -> Option<&Session> {
        self.cold.get(slot.0)
    }

    pub(super) fn get_mut(&mut self, slot: SessionSlot) -> Option<&mut Session> {
        self.cold.get_mut(slot.0)
    }

    fn standing(&self, slot: SessionSlot) -> Option<&Standing> {
        self.get(slot)?.standing.as_deref()
    }

    fn standing_mut(&mut self, slot: SessionSlot) -> Option<&mut Standing> {
        self.get_mut(slot)?.standing.as_deref_mut()
    }

    pub(super) fn hot(&self, slot: SessionSlot) -> &Hot {
        &self.hot[slot.index()]
    }

    pub(super) fn hot_mut(&mut self, slot: SessionSlot) -> &mut Hot {
        &mut self.hot[slot.index()]
    }

    pub(super) fn waiting_mut(&mut self, slot: SessionSlot) -> &mut Waiting {
        &mut self.waiting[slot.index()]
    }

    /// What the marking of followers touches: flags and list of one session.
    pub(super) fn follower(&mut self, slot: SessionSlot) -> (&mut Hot, &mut Waiting) {
        (&mut self.hot[slot.index()], &mut self.waiting[slot.index()])
    }

    pub(super) fn has(&self, slot: SessionSlot, flags: u8) -> bool {
        self.hot(slot).flags & flags != 0
    }

    /// Whether the socket of a session, which is blocked, has taken something a moment ago.
    pub(super) fn is_reading(&self, slot: SessionSlot, now_ms: u64) -> bool {
        let session = self.get(slot);
        session.is_some_and(|session| now_ms.saturating_sub(session.progress_ms) <= ATTENTION_MS)
    }

    /// In which of its lanes' lists a session stands.
    pub(super) fn list(&self, slot: SessionSlot) -> List {
        if self.has(slot, MULTI) { List::Served } else { List::Walked }
    }

    /// Changes an outbox, and keeps count of all of them.
    pub(super) fn with_outbox(&mut self, slot: SessionSlot, change: impl FnOnce(&mut Outbox)) {
        let Some(session) = self.cold.get_mut(slot.0) else { return };
        let outbox = session.outbox.get_or_insert_default();
        let before = outbox.own_bytes();
        change(outbox);
        self.outbox_bytes = self.outbox_bytes + outbox.own_bytes() - before;
        let hot = &mut self.hot[slot.index()];
        if outbox.is_empty() {
            session.outbox = None;
            hot.flags &= !OUTBOX;
        } else {
            hot.flags |= OUTBOX;
        }
    }

    /// Puts the rest of a half-sent frame before everything else that one session is to get.
    pub(super) fn push_rest(&mut self, slot: SessionSlot, rest: Bytes, shared: bool) {
        self.with_outbox(slot, |outbox| outbox.push_rest(rest, shared));
    }

    /// All slots in use are below this.
    pub(super) fn places(&self) -> u32 {
        self.cold.slots()
    }

    /// All sessions.
    pub(super) fn slots(&self) -> impl Iterator<Item = SessionSlot> {
        self.cold.iter().map(|(slot, _)| SessionSlot(slot))
    }

    pub(super) fn next_attempt(&mut self) -> u32 {
        self.attempts = self.attempts.wrapping_add(1);
        self.attempts
    }

    /// Panics if flags and what they stand for disagree.
    pub(super) fn check(&self) {
        let mut outbox_bytes = 0;
        for slot in self.slots() {
            let (hot, waiting) = (self.hot(slot), &self.waiting[slot.index()]);
            let Some(session) = self.get(slot) else { continue };
            let has = |flag: u8| hot.flags & flag != 0;
            assert_eq!(hot.staged, NOT_STAGED, "{slot:?} is staged between turns");
            assert_eq!(has(OUTBOX), session.outbox.is_some(), "{slot:?} OUTBOX");
            assert!(
                !has(OUTBOX) || has(QUEUED | BLOCKED),
                "{slot:?} has an outbox nobody looks at"
            );
            assert!(!has(CURSORS) || has(MULTI), "{slot:?} CURSORS without MULTI");
            assert!(
                !(has(MULTI) && has(BLOCKED)) || has(CURSORS),
                "{slot:?} follows and is blocked"
            );
            assert!(
                waiting.is_empty() || has(MULTI) && !has(CURSORS) && has(QUEUED),
                "{slot:?} waits"
            );
            assert!(!has(GAPS) || has(QUEUED | BLOCKED), "{slot:?} has a gap nobody tells");
            assert!(
                !has(CLOSING) || session.subscriptions.is_empty(),
                "{slot:?} closes with channels"
            );
            assert!(!has(WOKEN) || !has(BLOCKED), "{slot:?} is woken and blocked");
            assert!(has(MULTI) || session.subscriptions.len() <= 1, "{slot:?} MULTI");
            assert!(session.half_sent.is_none_or(|lane| session.index_in(lane).is_some()));
            outbox_bytes += session.outbox.as_ref().map_or(0, |outbox| outbox.own_bytes());
        }
        assert_eq!(outbox_bytes, self.outbox_bytes, "outbox bytes");
    }
}
