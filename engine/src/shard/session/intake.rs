//! What arrives from a session: bytes, messages, control frames.

use bytes::Bytes;
use ringfeed_protocol::command::{Action, Command, CommandError};
use ringfeed_protocol::frame::{self, Opcode};
use ringfeed_protocol::{CloseCode, Connection, Incoming, Rated, Refused, Role};
use ringfeed_wire::Wire;

use super::CLOSING;
use crate::config::Limits;
use crate::counters::CloseReason;
use crate::ids::SessionSlot;
use crate::shard::Shard;
use crate::shard::rate::{Allowance, Rate, check_command};
use crate::shard::timers::{Purpose, Timer};

/// An unfinished message up to this size never counts as what filled the budget.
const PARTIAL_BYTES_FAIR: usize = 16 * 1024;

/// Whether one message more is too many, and what is said then.
fn rate_message(rate: &mut Rate, limits: &Limits, now_ms: u64) -> (Allowance, Refused) {
    let (per_second, burst) = (limits.messages_per_second_max, limits.messages_burst);
    let allowance = rate.take(now_ms, per_second, burst);
    (allowance, Refused::RateLimited { what: Rated::Messages, per_second })
}

impl<W: Wire> Shard<W> {
    /// Takes what a session's socket has received. While the session is held, it waits.
    pub(in crate::shard) fn handle_received(&mut self, slot: SessionSlot, bytes: &mut [u8]) {
        let now_ms = self.now_ms;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.heard_ms = now_ms;
        session.pinged = false;
        if session.failed {
            // Where a frame begins is not known any more, but an answer to our close frame mostly
            // comes by itself; else the linger ends it.
            let mut fresh = Connection::new(Role::Server, 0);
            if let Ok((_, Some(Incoming::Close(_)))) = fresh.receive(bytes) {
                session.peer_closed = true;
                self.end_if_closed(slot);
            }
            return;
        }
        let waits =
            !session.held.is_empty() || session.deferred.is_some() || session.has_more_to_do();
        if session.holds.is_empty() && !waits {
            self.read(slot, bytes);
        } else {
            // At most what was under way when receiving stopped.
            session.held.extend_from_slice(bytes);
        }
    }

    /// Feeds bytes to a session's connection, and its messages to the session.
    pub(super) fn read(&mut self, slot: SessionSlot, bytes: &mut [u8]) {
        let id = self.sessions.id(slot);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        // Taken out, because what it hands out borrows from it.
        let idle = Connection::new(Role::Server, 0);
        let mut connection = std::mem::replace(&mut session.connection, idle);
        let mut finished = false;
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match connection.receive(rest) {
                Ok((used, incoming)) => {
                    at += used;
                    if let Some(incoming) = incoming {
                        // Control frames between the fragments of a message do not end it.
                        finished |= matches!(incoming, Incoming::Text(_) | Incoming::Binary(_));
                        self.handle_incoming(slot, &incoming);
                    }
                }
                Err(e) => {
                    self.counters.protocol_errors.add(1);
                    self.fail_session(slot, &e);
                    break;
                }
            }
            match self.sessions.current(id).and_then(|slot| self.sessions.get_mut(slot)) {
                None => return,
                Some(session) if !session.holds.is_empty() => {
                    session.held.extend_from_slice(bytes.get(at..).unwrap_or_default());
                    break;
                }
                Some(_) => {}
            }
        }
        connection.settle();
        if let Some(session) = self.sessions.get_mut(slot).filter(|session| !session.failed) {
            session.connection = connection;
        }
        self.see_to_unfinished(slot, finished);
    }

    /// Keeps count of a message that has begun and not ended, and of its time.
    fn see_to_unfinished(&mut self, slot: SessionSlot, finished: bool) {
        let id = self.sessions.id(slot);
        let now_ms = self.now_ms;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let bytes = if session.failed { 0 } else { session.connection.pending_bytes() };
        self.partial_bytes = self.partial_bytes + bytes - session.partial_bytes;
        session.partial_bytes = bytes;
        if session.failed || !session.connection.is_unfinished() {
            session.message_since_ms = None;
            return;
        }
        if session.message_since_ms.is_none() || finished {
            session.message_since_ms = Some(now_ms);
        }
        if !std::mem::replace(&mut session.message_timed, true) {
            let due_ms = now_ms + u64::from(self.config.limits.message_timeout_ms);
            self.wheel.add(Timer { due_ms, session: id, purpose: Purpose::Message });
        }
        let most = self.share_of(self.config.limits.partial_bytes_max);
        if self.partial_bytes > most && bytes > PARTIAL_BYTES_FAIR {
            let reason = "unfinished messages take too much memory; come back later";
            self.close_session(slot, CloseReason::Overload, reason);
            self.stop_listening(slot);
        }
    }

    /// A message was begun and was not finished for a while: perhaps it is another one by now.
    pub(in crate::shard) fn check_message(&mut self, slot: SessionSlot, timer: Timer) {
        let timeout = u64::from(self.config.limits.message_timeout_ms);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.message_timed = false;
        let Some(since_ms) = session.message_since_ms else { return };
        // What we did not read could not end.
        let held = !session.holds.is_empty() || !session.held.is_empty();
        if self.now_ms < since_ms + timeout || held {
            session.message_timed = true;
            let due_ms = (since_ms + timeout).max(self.now_ms + 1000);
            self.wheel.add(Timer { due_ms, ..timer });
            return;
        }
        let reason = "a message was begun and not finished in time";
        self.close_session(slot, CloseReason::MessageTimeout, reason);
        self.stop_listening(slot);
    }

    fn handle_incoming(&mut self, slot: SessionSlot, incoming: &Incoming) {
        let closing = self.sessions.has(slot, CLOSING);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        match incoming {
            Incoming::Close(code) => {
                session.peer_closed = true;
                if closing {
                    // Our close frame was sent or waits; this was the peer's answer.
                    self.end_if_closed(slot);
                } else {
                    let code = code.unwrap_or(CloseCode::NORMAL);
                    self.close_with(slot, CloseReason::Normal, code, "");
                }
            }
            _ if closing => {}
            Incoming::Pong(_) => {}
            Incoming::Ping(body) => {
                let mut pong = Vec::with_capacity(body.len() + 2);
                frame::write_server(&mut pong, Opcode::Pong, body);
                self.push_pong(slot, Bytes::from(pong));
            }
            Incoming::Text(_) | Incoming::Binary(_) => {
                self.counters.messages_in.add(1);
                if session.talk.is_some() {
                    return self.handle_talk(slot, incoming);
                }
                match session.dialect.split(incoming) {
                    None => self.handle_message(slot, incoming),
                    Some(Ok(commands)) => self.handle_several(slot, commands.into_iter()),
                    Some(Err(CommandError { id, refused })) => self.refuse(slot, id, refused),
                }
            }
        }
    }

    /// Handles a message that is one command.
    fn handle_message(&mut self, slot: SessionSlot, message: &Incoming) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let limits = &self.config.limits;
        let (allowance, often) = rate_message(&mut session.rate, limits, self.work_ms);
        let command = session.dialect.parse(message);
        if !matches!(command, Ok(Command { action: Action::Ping, .. })) {
            session.used.set(self.now_ms, limits.idle_timeout_ms);
        }
        match (allowance, command) {
            (Allowance::Within, Ok(command)) => self.handle_rated(slot, command),
            (Allowance::Within, Err(CommandError { id, refused })) => {
                self.refuse(slot, id, refused);
            }
            (Allowance::Above, command) => {
                let id = command.map_or_else(|e| e.id, |command| command.id);
                self.refuse(slot, id, often);
            }
            (Allowance::FarAbove, _) => {
                self.close_session(slot, CloseReason::RateLimited, &often.to_string());
            }
        }
    }

    /// Handles a command, if it is not one of too many of its kind.
    pub(super) fn handle_rated(&mut self, slot: SessionSlot, command: Command) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let (rates, limits) = (&mut session.command_rates, &self.config.limits);
        match check_command(rates, &command.action, limits, self.work_ms) {
            Ok(()) => self.handle_command(slot, command),
            Err(refused) => self.refuse(slot, command.id, refused),
        }
    }

    /// Hands a message to a dialect that decides itself what is to be done.
    fn handle_talk(&mut self, slot: SessionSlot, message: &Incoming) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let limits = &self.config.limits;
        let (allowance, often) = rate_message(&mut session.rate, limits, self.work_ms);
        session.used.set(self.now_ms, limits.idle_timeout_ms);
        match allowance {
            Allowance::Within => self.talk(slot, |talk, now_ms| talk.message(message, now_ms)),
            Allowance::Above => self.refuse(slot, None, often),
            Allowance::FarAbove => {
                self.close_session(slot, CloseReason::RateLimited, &often.to_string());
            }
        }
    }

    /// Handles the commands of one message. Where one of them holds the session, the others wait.
    fn handle_several<'a>(
        &mut self,
        slot: SessionSlot,
        mut commands: impl Iterator<Item = &'a str>,
    ) {
        let id = self.sessions.id(slot);
        while let Some(command) = commands.next() {
            self.handle_message(slot, &Incoming::Text(command));
            let there = self.sessions.current(id).is_some() && !self.sessions.has(slot, CLOSING);
            let Some(session) = self.sessions.get_mut(slot).filter(|_| there) else { return };
            if !session.holds.is_empty() {
                let rest: Vec<Box<str>> = commands.map(Box::from).collect();
                session.commands = (!rest.is_empty()).then(|| Box::new(rest));
                return;
            }
        }
    }

    /// Goes on with the commands of a message of which one held the session.
    pub(super) fn handle_rest(&mut self, slot: SessionSlot) {
        let rest = self.sessions.get_mut(slot).and_then(|session| session.commands.take());
        if let Some(rest) = rest {
            self.handle_several(slot, rest.iter().map(|command| &**command));
        }
        self.go_on_talking(slot);
    }
}
