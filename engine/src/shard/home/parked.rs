//! What a home holds back while readers who read are behind, or while somebody is asked whether a publication may
//! be, or while what numbers the channel elsewhere has not said where it stands: publications, and what their publishers ask
//! behind them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use ringfeed_protocol::Refused;

use super::{Asker, Publisher};
use crate::ids::{SessionId, ShardId, Ticket};
use crate::message::{Request, Stored, StoredPayload, key_bytes};

/// What is held back.
#[derive(Debug)]
pub(super) enum Parked {
    Publication(StoredPayload, Publisher),
    /// A publication of which it is not known yet whether it may be: it keeps its place.
    Asked(Ticket, StoredPayload, Publisher),
    /// A publication that is on its way to what numbers it, under this number and so long; and by which it is waited for that it
    /// is confirmed, if it is.
    Sent(u64, usize, Asker, Option<u64>),
    /// One that was, and what has become of it.
    Stored(Result<Stored, Refused>, Asker, Option<u64>),
    /// A publication that may not be: whoever published it is told behind its earlier ones.
    Refused(Refused, Asker),
    /// Something that a session has asked behind a publication of its own.
    Request(Request),
}

impl Parked {
    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Parked>()
            + self.session().map_or(0, |_| size_of::<((ShardId, SessionId), u32)>())
            + match self {
                Parked::Publication(payload, publisher) | Parked::Asked(_, payload, publisher) => {
                    payload.bytes.len() + key_bytes(&publisher.by)
                }
                Parked::Sent(_, bytes, ..) => *bytes,
                Parked::Refused(..) | Parked::Stored(..) => 0,
                Parked::Request(request) => request.cost(),
            }
    }

    /// Whether it is nothing that has to be sent to what numbers the channel before what is behind it.
    fn is_settled(&self) -> bool {
        matches!(self, Parked::Sent(..) | Parked::Stored(..) | Parked::Refused(..))
    }

    /// The session that it is from.
    fn session(&self) -> Option<(ShardId, SessionId)> {
        let asker = match self {
            Parked::Publication(_, publisher) | Parked::Asked(_, _, publisher) => &publisher.asker,
            Parked::Refused(_, asker)
            | Parked::Stored(_, asker, _)
            | Parked::Sent(_, _, asker, _) => asker,
            Parked::Request(request) => return request.session(),
        };
        let Asker::Session(origin) = asker else { return None };
        Some((origin.shard, origin.session))
    }
}

/// All that one home holds back, in order. A home has it only while there is anything: most never do.
#[derive(Debug, Default)]
pub(super) struct Parking {
    queue: VecDeque<Parked>,
    /// Of these, so many, the first, are sent to what numbers them, or are nothing that is.
    sent: usize,
    /// How much of it is of which session.
    of: HashMap<(ShardId, SessionId), u32>,
    bytes: usize,
}

impl Parking {
    /// Behind everything else.
    pub(super) fn push_back(&mut self, parked: Parked) {
        self.count_in(&parked);
        self.queue.push_back(parked);
    }

    /// Before everything else.
    pub(super) fn push_front(&mut self, parked: Parked) {
        self.count_in(&parked);
        self.queue.push_front(parked);
        // Nothing behind it goes before it.
        self.sent = 0;
    }

    fn count_in(&mut self, parked: &Parked) {
        self.bytes += parked.bytes();
        if let Some(session) = parked.session() {
            *self.of.entry(session).or_default() += 1;
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Parked> {
        let parked = self.queue.pop_front()?;
        self.count_out(&parked);
        self.sent = self.sent.saturating_sub(1);
        Some(parked)
    }

    /// What comes next.
    pub(super) fn front(&self) -> Option<&Parked> {
        self.queue.front()
    }

    /// Whether a publication can be sent to what numbers it, where `most` may be under way.
    pub(super) fn has_unsent(&self, most: usize) -> bool {
        let next = self.queue.iter().skip(self.sent);
        let mut next = next.skip_while(|next| next.is_settled());
        self.sent < most && matches!(next.next(), Some(Parked::Publication(..)))
    }

    /// Takes the next publication that is to be sent, which is to be put back at the place that stands beside it.
    pub(super) fn take_unsent(&mut self, most: usize) -> Option<(usize, StoredPayload, Publisher)> {
        while self.queue.get(self.sent).is_some_and(Parked::is_settled) {
            self.sent += 1;
        }
        let at = self.sent;
        if at >= most || !matches!(self.queue.get(at), Some(Parked::Publication(..))) {
            return None;
        }
        let taken = self.queue.remove(at)?;
        self.count_out(&taken);
        let Parked::Publication(payload, publisher) = taken else { return None };
        Some((at, payload, publisher))
    }

    /// Puts something in the place of what was taken.
    pub(super) fn put(&mut self, at: usize, parked: Parked) {
        self.count_in(&parked);
        self.queue.insert(at, parked);
    }

    /// What was sent under this number stands there, or is refused.
    pub(super) fn stored(&mut self, ticket: u64, stored: Result<Stored, Refused>) {
        // They are answered in order, but where the first ones were answered before.
        let is_it = |parked: &Parked| matches!(parked, Parked::Sent(of, ..) if *of == ticket);
        let Some(at) = self.queue.iter().position(is_it) else { return };
        let Some(sent) = self.queue.remove(at) else { return };
        self.count_out(&sent);
        if let Parked::Sent(_, _, asker, wanted) = sent {
            self.put(at, Parked::Stored(stored, asker, wanted));
        }
    }

    /// What numbered the channel does so no more: whoever waits for its word is told this instead. Returns the
    /// numbers of those that were to be confirmed.
    pub(super) fn abandon(&mut self, why: &Refused) -> Vec<u64> {
        let mut ended = Vec::new();
        for parked in std::mem::take(self).queue {
            self.push_back(match parked {
                Parked::Sent(_, _, asker, wanted) => {
                    ended.extend(wanted);
                    Parked::Refused(why.clone(), asker)
                }
                other => other,
            });
        }
        ended
    }

    fn count_out(&mut self, parked: &Parked) {
        self.bytes -= parked.bytes();
        if let Some(session) = parked.session()
            && let Entry::Occupied(mut count) = self.of.entry(session)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Whether what comes next waits to be answered.
    pub(super) fn awaits_answer(&self) -> bool {
        matches!(self.queue.front(), Some(Parked::Asked(..)))
    }

    /// Whether anything waits to be answered.
    pub(super) fn has_asked(&self) -> bool {
        self.queue.iter().any(|parked| matches!(parked, Parked::Asked(..)))
    }

    /// Goes on with a publication that was asked about: it may be, perhaps as something else, or it may not and
    /// whoever wants to know comes back.
    pub(super) fn answered(
        &mut self,
        ticket: Ticket,
        publish: Result<Option<StoredPayload>, Refused>,
    ) -> Option<(Asker, Refused)> {
        let is_it = |parked: &Parked| matches!(parked, Parked::Asked(of, ..) if *of == ticket);
        let at = self.queue.iter().position(is_it)?;
        let asked = self.queue.remove(at)?;
        self.count_out(&asked);
        let session = asked.session();
        let mut before = self.queue.iter().take(at);
        let is_behind_own = session.is_some() && before.any(|other| other.session() == session);
        let Parked::Asked(_, payload, publisher) = asked else { return None };
        match publish {
            Ok(instead) => {
                let parked = Parked::Publication(instead.unwrap_or(payload), publisher);
                self.count_in(&parked);
                self.queue.insert(at, parked);
                None
            }
            Err(refused) if is_behind_own => {
                let parked = Parked::Refused(refused, publisher.asker);
                self.count_in(&parked);
                self.queue.insert(at, parked);
                None
            }
            Err(refused) => Some((publisher.asker, refused)),
        }
    }

    /// What of it somebody outside has to answer first: all, where the channel is numbered elsewhere.
    pub(super) fn awaiting_bytes(&self, follows: bool) -> usize {
        if follows || self.awaits_answer() { self.bytes } else { 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Memory of all of it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether anything of a session is in it.
    pub(super) fn has_of(&self, shard: ShardId, session: SessionId) -> bool {
        self.of.contains_key(&(shard, session))
    }

    /// Panics if what is counted is not what is there.
    pub(super) fn check(&self) {
        assert!(!self.queue.is_empty(), "there only while there is anything");
        assert_eq!(self.queue.iter().map(Parked::bytes).sum::<usize>(), self.bytes);
        let of_sessions = self.queue.iter().filter(|parked| parked.session().is_some()).count();
        assert_eq!(of_sessions, self.of.values().sum::<u32>() as usize);
    }
}
