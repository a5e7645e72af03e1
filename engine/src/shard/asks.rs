//! Questions of one shard that are under way to the control thread: who waits for each, and until when.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use ringfeed_protocol::{ChannelName, Position};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::callers::KeyHash;
use crate::ids::{SessionId, ShardId, Ticket};
use crate::message::{Answer, Asked, CALLS_MAX, QUESTIONS_MAX, Question, Questions};
use crate::slab::Slab;

/// How long the control thread may take beyond the time that it gives the application: then something is wrong with
/// it, and the shard goes on without an answer.
const GRACE: Duration = Duration::from_secs(1);

/// Who waits for an answer.
#[derive(Debug)]
pub(super) enum Awaiting {
    /// A handshake. It waits on the shard's own thread, so nobody wakes its executor from another one.
    Door(oneshot::Sender<Answer>),
    /// A session, whose input is held until then.
    Session(SessionId, Then),
    /// A session has called a method, and goes on meanwhile.
    Call(SessionId, Calling),
    /// A publication that stands at its place in the queue of its channel.
    Publication(ChannelName),
    /// What is to be told next of who comes and goes.
    News,
    /// Nobody: it was only to be told.
    Nobody,
}

/// How a method was called, and so how its result is told.
#[derive(Debug)]
pub(super) enum Calling {
    /// By its name, under an id.
    Named(Box<str>),
    /// By a message of its type, which may have an id.
    Typed(Option<Box<str>>),
}

impl Calling {
    /// The client's id.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Calling::Named(id) => Some(id),
            Calling::Typed(id) => id.as_deref(),
        }
    }
}

/// How somebody wants to subscribe, whoever lets them.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// The last position seen.
    pub(super) recover: Option<Position>,
    /// Of the password that came with it.
    pub(super) password: Option<Box<KeyHash>>,
}

impl Terms {
    pub(super) fn new(recover: Option<Position>, password: Option<&str>) -> Terms {
        let hash = |password: &str| Box::new(KeyHash::of(password.as_bytes()));
        Terms { recover, password: password.map(hash) }
    }
}

/// What a session goes on with.
#[derive(Debug)]
pub(super) enum Then {
    /// It subscribes, if it may.
    Subscribe { id: Option<Box<str>>, channel: ChannelName, terms: Terms },
    /// The keys for its channel's token were asked for: it tries again, once.
    ChannelToken { id: Option<Box<str>>, channel: ChannelName, terms: Terms, token: Box<str> },
    /// The keys for its token were asked for: it tries again, once.
    Auth { id: Option<Box<str>>, token: Box<str> },
    /// Its subscription was ended before it began: it is refused.
    Ended { id: Option<Box<str>>, channel: ChannelName },
    /// It is told what the application says.
    Message { id: Option<Box<str>> },
}

/// See the module's description. Shared by the shard and its door, on one thread.
#[derive(Debug, Default)]
pub(super) struct Asks(RefCell<Table>);

#[derive(Debug, Default)]
struct Table {
    waiting: Slab<Awaiting>,
    /// Those that are calls.
    calls: usize,
    /// When each is given up, the next one first; also of some that were answered.
    due: BinaryHeap<Reverse<Due>>,
}

/// When a question is given up, then by generation and slot of its ticket: of those with the same time, the first that was
/// asked comes first.
type Due = (Instant, u32, u32);

/// Times of so many answered questions may stay besides as many as there are questions.
const ANSWERED_MAX: usize = 1024;

impl Table {
    fn is_current(&self, ticket: Ticket) -> bool {
        self.waiting.generation(ticket.slot) == Some(ticket.generation)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Awaiting> {
        let waiting = self.waiting.remove(ticket.slot)?;
        self.calls -= usize::from(matches!(waiting, Awaiting::Call(..)));
        Some(waiting)
    }

    fn note_due(&mut self, due: Instant, ticket: Ticket) {
        if self.due.len() > 2 * self.waiting.len() + ANSWERED_MAX {
            let mut due = std::mem::take(&mut self.due);
            due.retain(|&Reverse((_, generation, slot))| {
                self.is_current(Ticket { slot, generation })
            });
            self.due = due;
        }
        self.due.push(Reverse((due, ticket.generation, ticket.slot)));
    }
}

impl Asks {
    /// Asks, for an answer within `time`. Who waits comes back where too much is asked already.
    pub(super) fn ask(
        &self,
        questions: &Questions,
        (shard, now): (ShardId, Instant),
        time: Duration,
        question: Question,
        waiting: Awaiting,
    ) -> Result<Ticket, Awaiting> {
        let mut table = self.0.borrow_mut();
        let is_call = matches!(waiting, Awaiting::Call(..));
        if table.waiting.len() >= QUESTIONS_MAX || is_call && table.calls >= CALLS_MAX {
            return Err(waiting);
        }
        let (slot, generation) = table.waiting.insert(waiting);
        table.calls += usize::from(is_call);
        let ticket = Ticket { slot, generation };
        if !questions.ask(Asked { shard, ticket, question }) {
            return Err(table.remove(ticket).expect("it was put there"));
        }
        table.note_due(now + time + GRACE, ticket);
        Ok(ticket)
    }

    /// Whatever is asked about a session's subscription to a channel, it comes to nothing.
    pub(super) fn end_subscription(&self, session: SessionId, channel: &ChannelName) {
        let mut table = self.0.borrow_mut();
        let is_meant = |waiting: &Awaiting| match waiting {
            Awaiting::Session(
                own,
                Then::Subscribe { channel: asked, .. } | Then::ChannelToken { channel: asked, .. },
            ) => *own == session && asked == channel,
            _ => false,
        };
        // One, as a session's input is held; more where its token names the channel, too.
        let meant = table.waiting.iter().filter(|(_, waiting)| is_meant(waiting));
        let meant: SmallVec<[u32; 2]> = meant.map(|(slot, _)| slot).collect();
        for slot in meant {
            if let Some(Awaiting::Session(_, then)) = table.waiting.get_mut(slot)
                && let Then::Subscribe { id, .. } | Then::ChannelToken { id, .. } = then
            {
                *then = Then::Ended { id: id.take(), channel: channel.clone() };
            }
        }
    }

    /// Who waits for this answer; nobody any more where it comes late, or a second time.
    pub(super) fn take(&self, ticket: Ticket) -> Option<Awaiting> {
        let mut table = self.0.borrow_mut();
        if table.is_current(ticket) { table.remove(ticket) } else { None }
    }

    /// One that has waited for too long.
    pub(super) fn take_overdue(&self, now: Instant) -> Option<(Ticket, Awaiting)> {
        loop {
            let mut table = self.0.borrow_mut();
            let Reverse((due, generation, slot)) = *table.due.peek()?;
            let ticket = Ticket { slot, generation };
            let answered = !table.is_current(ticket);
            if due > now && !answered {
                return None;
            }
            table.due.pop();
            if !answered {
                return table.remove(ticket).map(|waiting| (ticket, waiting));
            }
        }
    }

    /// Calls under way of a session.
    pub(super) fn calls_of(&self, session: SessionId) -> usize {
        let table = self.0.borrow();
        let own = |waiting: &Awaiting| matches!(waiting, Awaiting::Call(of, _) if *of == session);
        table.waiting.iter().filter(|(_, waiting)| own(waiting)).count()
    }

    /// Questions under way.
    pub(super) fn count(&self) -> usize {
        self.0.borrow().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionSlot;

    #[test]
    fn an_answer_that_comes_late_or_twice_is_nobodys() {
        let (questions, mut control) = Questions::new(1);
        let asks = Asks::default();
        let (now, time) = (Instant::now(), Duration::from_secs(5));
        let ask = |now: Instant| {
            let question = Question::Keys { url: "u".into(), kid: "k".into() };
            asks.ask(&questions, (ShardId(0), now), time, question, Awaiting::Nobody).unwrap()
        };
        let (first, second) = (ask(now), ask(now + time));
        assert_eq!(control.try_recv().unwrap().ticket, first);
        assert!(asks.take(first).is_some() && asks.take(first).is_none());
        // In the same place.
        let third = ask(now + time);
        assert!(asks.take(first).is_none(), "it was answered");
        assert!(asks.take_overdue(now + time + GRACE).is_none());
        let late = now + time + GRACE + time;
        assert_eq!(asks.take_overdue(late).map(|(ticket, _)| ticket), Some(second));
        assert_eq!(asks.take_overdue(late).map(|(ticket, _)| ticket), Some(third));
        assert!(asks.take(third).is_none() && asks.count() == 0);
    }

    #[test]
    fn a_subscription_that_is_ended_comes_to_nothing_and_no_other() {
        let (questions, _control) = Questions::new(1);
        let asks = Asks::default();
        let session = |slot| SessionId { slot: SessionSlot(slot), generation: 1 };
        let name = |name| ChannelName::new(name).unwrap();
        let ask = |slot, channel| {
            let question = Question::Keys { url: "u".into(), kid: "k".into() };
            let then = Then::Subscribe {
                id: Some("7".into()),
                channel: name(channel),
                terms: Terms::default(),
            };
            let (at, waiting) =
                ((ShardId(0), Instant::now()), Awaiting::Session(session(slot), then));
            asks.ask(&questions, at, Duration::ZERO, question, waiting).unwrap()
        };
        let [ended, again, channel, other] = [ask(1, "a"), ask(1, "a"), ask(1, "b"), ask(2, "a")];
        asks.end_subscription(session(1), &name("a"));
        for ticket in [ended, again] {
            let waiting = asks.take(ticket);
            let Some(Awaiting::Session(_, Then::Ended { id, channel })) = waiting else {
                panic!("{waiting:?}")
            };
            assert_eq!((id.as_deref(), channel), (Some("7"), name("a")));
        }
        for ticket in [channel, other] {
            let waiting = asks.take(ticket);
            assert!(matches!(waiting, Some(Awaiting::Session(_, Then::Subscribe { .. }))));
        }
    }

    #[test]
    fn who_asks_too_much_is_told_so_at_once() {
        let (questions, _control) = Questions::new(1);
        let asks = Asks::default();
        let ask = || {
            let question = Question::Keys { url: "u".into(), kid: "k".into() };
            let at = (ShardId(0), Instant::now());
            asks.ask(&questions, at, Duration::ZERO, question, Awaiting::Nobody)
        };
        assert!((0..QUESTIONS_MAX).all(|_| ask().is_ok()));
        assert!(ask().is_err());
        assert_eq!(asks.count(), QUESTIONS_MAX);
    }

    #[test]
    fn calls_leave_room_for_other_questions_and_each_has_its_own_time() {
        let (questions, mut control) = Questions::new(1);
        let asks = Asks::default();
        let now = Instant::now();
        let session = SessionId { slot: SessionSlot(1), generation: 1 };
        let ask = |waiting, time| {
            let question = Question::Keys { url: "u".into(), kid: "k".into() };
            asks.ask(&questions, (ShardId(0), now), time, question, waiting)
        };
        let call = |seconds| {
            let waiting = Awaiting::Call(session, Calling::Named("1".into()));
            ask(waiting, Duration::from_secs(seconds)).map_err(|_| ())
        };
        let [long, short] = [60, 1].map(|seconds| call(seconds).unwrap());
        while asks.count() < CALLS_MAX {
            call(30).unwrap();
        }
        assert!(call(30).is_err() && ask(Awaiting::Nobody, Duration::from_secs(30)).is_ok());
        assert_eq!(asks.calls_of(session), CALLS_MAX);
        let second = now + Duration::from_secs(1) + GRACE;
        assert_eq!(asks.take_overdue(second).map(|(ticket, _)| ticket), Some(short));
        assert!(asks.take_overdue(second).is_none());
        assert!(asks.take(long).is_some() && call(30).is_ok() && call(30).is_ok());
        // What was answered leaves little behind, however late the next one is due.
        for _ in 0..10 * QUESTIONS_MAX {
            let ticket = ask(Awaiting::Nobody, Duration::from_secs(600)).unwrap();
            assert!(asks.take(ticket).is_some());
            while control.try_recv().is_ok() {}
        }
        assert!(asks.0.borrow().due.len() <= 2 * QUESTIONS_MAX + ANSWERED_MAX);
    }
}
