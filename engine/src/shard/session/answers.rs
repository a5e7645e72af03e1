//! What comes back of questions that were asked outside.

use ringfeed_protocol::{Operation, Refused};
use ringfeed_wire::Wire;

use super::calls::NOTHING;
use super::{CLOSING, Holds};
use crate::ids::{ConnectionId, SessionSlot, Ticket};
use crate::message::{Answer, Denied, Heard, Request};
use crate::shard::Shard;
use crate::shard::asks::{Awaiting, Then};

/// Answers taken in one turn.
const ANSWERS_PER_TURN: usize = 256;
/// What is told where the control thread has said nothing.
const NO_ANSWER: Denied = Denied::Unavailable("the application did not answer in time");

impl<W: Wire> Shard<W> {
    /// Takes what the control thread has answered. Returns whether there was anything.
    pub(in crate::shard) fn take_answers(&mut self) -> bool {
        for taken in 0..ANSWERS_PER_TURN {
            let Some(batch) = self.inbox.answers.take() else { return taken > 0 };
            for (ticket, answer) in batch {
                match self.local.asks.take(ticket) {
                    Some(waiting) => self.handle_answer(ticket, waiting, Some(answer)),
                    // It came late, or a second time.
                    None => self.counters.answers_unwanted.add(1),
                }
            }
        }
        true
    }

    /// Goes on without an answer where none has come in time.
    pub(in crate::shard) fn give_up_questions(&mut self) {
        while let Some((ticket, waiting)) = self.local.asks.take_overdue(self.now) {
            self.counters.questions_given_up.add(1);
            self.handle_answer(ticket, waiting, None);
        }
    }

    fn handle_answer(&mut self, ticket: Ticket, waiting: Awaiting, answer: Option<Answer>) {
        match waiting {
            Awaiting::Nobody => {}
            Awaiting::News => self.heard_news(match answer {
                Some(Answer::Heard(heard)) => heard,
                _ => Heard::NotYet,
            }),
            // A handshake whose client has gone waits no more.
            Awaiting::Door(reply) => drop(answer.map(|answer| reply.send(answer))),
            Awaiting::Publication(channel) => {
                let publish = match answer {
                    Some(Answer::Publish(Ok(instead))) => Ok(instead),
                    Some(Answer::Publish(Err(denied))) => Err(refusal(denied)),
                    _ => Err(refusal(NO_ANSWER)),
                };
                self.settle_asked(&channel, ticket, publish);
            }
            Awaiting::Call(session, calling) => self.handle_result(session, &calling, answer),
            Awaiting::Session(session, then) => {
                let Some(slot) = self.sessions.current(session) else { return };
                if self.sessions.has(slot, CLOSING) {
                    return;
                }
                self.waited_for(slot);
                self.go_on(slot, then, answer);
            }
        }
    }

    /// The home of a publication has asked about it.
    pub(super) fn handle_asked(&mut self, connection: ConnectionId) {
        match self.session_named(connection) {
            Some(slot) => {
                if let Some(session) = self.sessions.get_mut(slot) {
                    session.posted = false;
                }
                self.waited_for(slot);
            }
            None => {
                if let Some(farewell) = self.farewells.remove(&connection) {
                    self.tell_application(farewell);
                }
            }
        }
    }

    /// The home of its user has counted a room that a session wants to enter, or has not.
    pub(super) fn handle_entering(&mut self, subscribe: Request, counted: Result<(), Refused>) {
        let Request::Subscribe { origin, attempt, channel, .. } = &subscribe else { return };
        let Some(slot) = self.sessions.current(origin.session) else { return };
        if self.sessions.has(slot, CLOSING) {
            return;
        }
        self.waited_for(slot);
        let subscriptions = self.sessions.get(slot).map(|session| &session.subscriptions);
        let goes_on =
            subscriptions.is_some_and(|all| all.iter().any(|own| own.attempt == *attempt));
        let refused = match counted {
            Ok(()) if goes_on => return self.request(subscribe),
            Err(refused) if goes_on => refused,
            // It was ended before it began.
            _ => {
                let (operation, channel) = (Operation::Subscribe, channel.clone());
                Refused::Forbidden { operation, channel, hint: "no more" }
            }
        };
        self.settle_owed(slot, 1);
        self.forget_attempt(slot, *attempt);
        // Behind what homes of channels have not answered yet.
        self.refuse(slot, origin.id.as_deref(), refused);
    }

    /// Holds a session's input until one thing more that is asked about it is there.
    pub(super) fn wait_for_answer(&mut self, slot: SessionSlot) {
        self.hold(slot, Holds::ASKED);
        if let Some(session) = self.sessions.get_mut(slot) {
            // One for each channel of its token, and one for its command: no more than a message holds.
            session.asked = session.asked.saturating_add(1);
        }
    }

    /// One of the things that a session waits for is there.
    fn waited_for(&mut self, slot: SessionSlot) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.asked = session.asked.saturating_sub(1);
        if session.asked == 0 {
            self.lift(slot, Holds::ASKED);
        }
    }

    /// Goes on with what a session has asked for.
    pub(super) fn go_on(&mut self, slot: SessionSlot, then: Then, answer: Option<Answer>) {
        match then {
            Then::Auth { id, token } => self.authenticate(slot, id.as_deref(), Some(&token), true),
            Then::ChannelToken { id, channel, terms, token } => {
                self.subscribe_with_token(slot, id.as_deref(), channel, terms, &token, true);
            }
            Then::Subscribe { id, channel, terms } => {
                let id = id.as_deref();
                match answer {
                    Some(Answer::Subscribe(Ok(allowed))) => {
                        self.give_pass(slot, &channel, allowed.expires_at, None);
                        self.subscribe_allowed(slot, id, channel, terms);
                    }
                    Some(Answer::Subscribe(Err(denied))) => self.refuse(slot, id, refusal(denied)),
                    _ => self.refuse(slot, id, refusal(NO_ANSWER)),
                }
            }
            Then::Ended { id, channel } => {
                let (operation, hint) = (Operation::Subscribe, "no more");
                self.refuse(slot, id.as_deref(), Refused::Forbidden { operation, channel, hint });
            }
            Then::Message { id } => {
                let id = id.as_deref();
                match answer {
                    Some(Answer::Message(Ok(data))) => {
                        self.reply_to_message(slot, id, data.as_deref().unwrap_or(NOTHING));
                    }
                    Some(Answer::Message(Err(denied))) => self.refuse(slot, id, refusal(denied)),
                    _ => self.refuse(slot, id, refusal(NO_ANSWER)),
                }
            }
        }
    }
}

/// What a client is told.
fn refusal(denied: Denied) -> Refused {
    match denied {
        Denied::Refused { text, .. } if !text.to_string().is_empty() => {
            Refused::Denied { detail: text }
        }
        Denied::Refused { .. } => Refused::Denied { detail: "the application refuses it".into() },
        Denied::Unavailable(detail) => Refused::Unavailable { detail },
    }
}
