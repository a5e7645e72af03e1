//! Sessions whose dialect remembers something of them: what it says is to be done is done here, step by step.

use std::collections::VecDeque;

use bytes::Bytes;
use ringfeed_protocol::dialect::{Deed, Opening, Step, Talk};
use ringfeed_protocol::{Command, Event, UserId};
use ringfeed_wire::Wire;

use super::{CLOSING, Session};
use crate::counters::CloseReason;
use crate::ids::SessionSlot;
use crate::message::StoredPayload;
use crate::shard::Shard;
use crate::shard::timers::{Purpose, Timer};

/// A dialect's side of a session.
#[derive(Debug)]
pub(in crate::shard) struct Conversation {
    talk: Box<dyn Talk>,
    /// What waits until the session is held no more.
    waiting: VecDeque<Step>,
}

impl Conversation {
    pub(in crate::shard) fn new(talk: Box<dyn Talk>) -> Conversation {
        Conversation { talk, waiting: VecDeque::new() }
    }

    /// Nothing of what waits is done any more.
    pub(super) fn give_up(&mut self) {
        self.waiting = VecDeque::new();
    }
}

impl Session {
    /// Whether something of an earlier message comes before the next one.
    pub(super) fn has_more_to_do(&self) -> bool {
        let steps = self.talk.as_ref().is_some_and(|talk| !talk.waiting.is_empty());
        steps || self.commands.is_some()
    }
}

impl<W: Wire> Shard<W> {
    /// Tells the dialect of a session that it is open.
    pub(in crate::shard) fn open_talk(&mut self, slot: SessionSlot) {
        if self.sessions.get(slot).is_none_or(|session| session.talk.is_none()) {
            return;
        }
        let (number, connection) = (self.number(slot), self.connection_id(slot).to_string());
        let identity = self.identity(slot).clone();
        let opening = Opening { number, connection: &connection, user: identity.user.as_ref() };
        self.talk(slot, |talk, now_ms| talk.open(&opening, now_ms));
    }

    /// Tells the dialect of a session something, and does what it says then.
    pub(super) fn talk(
        &mut self,
        slot: SessionSlot,
        tell: impl FnOnce(&mut dyn Talk, u64) -> Vec<Step>,
    ) {
        let now_ms = self.clock.unix_ms();
        if self.sessions.has(slot, CLOSING) {
            return;
        }
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let Some(Conversation { talk, waiting }) = session.talk.as_deref_mut() else { return };
        let mut steps = tell(&mut **talk, now_ms);
        if !waiting.is_empty() {
            // What is said before anything is done is about what was done before, and what its channels send does not wait.
            let at = steps.iter().position(|step| matches!(step, Step::Do(_)));
            waiting.extend(steps.split_off(at.unwrap_or(steps.len())));
        }
        self.take_steps(slot, steps.into());
    }

    /// A session's dialect wanted to be told that some time is over.
    pub(in crate::shard) fn remind(&mut self, slot: SessionSlot) {
        self.talk(slot, |talk, now_ms| talk.tick(now_ms));
    }

    /// Goes on where a session was held.
    pub(super) fn go_on_talking(&mut self, slot: SessionSlot) {
        let talk = self.sessions.get_mut(slot).and_then(|session| session.talk.as_deref_mut());
        if let Some(Conversation { waiting, .. }) = talk {
            let steps = std::mem::take(waiting);
            self.take_steps(slot, steps);
        }
    }

    /// Takes steps in order. Where one of them holds the session, those behind it wait, but for what is said before the next
    /// command.
    fn take_steps(&mut self, slot: SessionSlot, mut steps: VecDeque<Step>) {
        let id = self.sessions.id(slot);
        while let Some(step) = steps.pop_front() {
            let there = self.sessions.current(id).is_some() && !self.sessions.has(slot, CLOSING);
            let Some(session) = self.sessions.get_mut(slot).filter(|_| there) else { return };
            let holds = !session.holds.is_empty();
            match step {
                Step::Say(frames) => self.push_outbox(slot, Bytes::from(frames)),
                Step::Do(deed) if holds => {
                    steps.push_front(Step::Do(deed));
                    if let Some(Conversation { waiting, .. }) = session.talk.as_deref_mut() {
                        // What a step has led to comes before those behind it.
                        waiting.extend(steps);
                    }
                    return;
                }
                Step::Do(Deed { id, action }) => {
                    self.handle_rated(slot, Command { id: id.as_deref(), action });
                }
                Step::Remind(in_ms) => {
                    let due_ms = self.now_ms + u64::from(in_ms);
                    self.wheel.add(Timer { due_ms, session: id, purpose: Purpose::Talk });
                }
                Step::Close(code, reason) => {
                    self.close_with(slot, CloseReason::Refused, code, reason);
                }
            }
        }
    }

    /// Tells a session what somebody has sent to its user.
    pub(super) fn tell_direct(
        &mut self,
        slot: SessionSlot,
        from: Option<&UserId>,
        StoredPayload { kind, bytes }: &StoredPayload,
    ) {
        let direct = Event::Direct { from, kind: *kind, bytes };
        self.reply(slot, &direct);
    }
}
