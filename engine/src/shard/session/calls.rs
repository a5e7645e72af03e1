//! Calls of methods, by their names or by messages of their types. They are no part of the order of a session's commands: each is
//! answered when its result is there, and what the session asks meanwhile does not wait for it. What is no method's is the
//! application's, which is asked in order.

use std::time::Duration;

use bytes::Bytes;
use ringfeed_protocol::command::{Action, Command};
use ringfeed_protocol::{CallError, Event, Limit, Refused};
use ringfeed_wire::Wire;

use super::CLOSING;
use super::commands::TOO_MANY_QUESTIONS;
use crate::ids::{SessionId, SessionSlot};
use crate::message::{Answer, Question};
use crate::shard::Shard;
use crate::shard::asks::{Awaiting, Calling, Then};

/// Why a call was not begun.
const TOO_MANY_CALLS: &str = "too many calls are under way";
/// What was said where nothing was.
pub(super) const NOTHING: &str = "null";

impl<W: Wire> Shard<W> {
    /// Hands a message of a type that is not ours to whoever knows it.
    pub(super) fn handle_other(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        kind: &str,
        message: &str,
        otherwise: Result<Box<Action>, Refused>,
    ) {
        let settings = self.shared.settings.load();
        if let Some(method) = settings.methods.of_type(kind) {
            let calling = Calling::Typed(id.map(Box::from));
            return self.call(slot, calling, method, Some(message), None);
        }
        if !self.config.hooks.message_url.0.is_empty() {
            return self.ask_about_message(slot, id, kind, message);
        }
        match otherwise {
            Ok(action) => self.handle_rated(slot, Command { id: None, action: *action }),
            Err(refused) => self.refuse(slot, id, refused),
        }
    }

    /// Has the application say something to a message.
    fn ask_about_message(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        kind: &str,
        message: &str,
    ) {
        let (caller, kind) = (self.caller(slot), kind.into());
        let message = Bytes::copy_from_slice(message.as_bytes());
        let then = Then::Message { id: id.map(Box::from) };
        if self.ask_for(slot, Question::Message { caller, kind, message }, then).is_err() {
            self.refuse(slot, id, Refused::Unavailable { detail: TOO_MANY_QUESTIONS });
        }
    }

    /// Tells what was said to a message, JSON. Nothing is an answer where somebody waits for one.
    pub(super) fn reply_to_message(&mut self, slot: SessionSlot, id: Option<&str>, data: &str) {
        if id.is_some() || data != NOTHING {
            self.reply(slot, &Event::Reply { id, data });
        }
    }

    /// Begins a call.
    pub(super) fn call(
        &mut self,
        slot: SessionSlot,
        calling: Calling,
        method: &str,
        params: Option<&str>,
        timeout_ms: Option<u32>,
    ) {
        let most = self.config.limits.rpc_calls_per_connection_max;
        let Some(calls) = self.sessions.get(slot).map(|session| session.calls) else { return };
        let refused = if self.draining {
            Some(Refused::Draining)
        } else if u32::from(calls) >= most {
            let (limit, most) = (Limit::CallsPerConnection, most.into());
            Some(Refused::LimitReached { limit, most })
        } else {
            None
        };
        if let Some(refused) = refused {
            return self.tell_refused(slot, calling.id(), &refused);
        }
        let longest = self.config.rpc.timeout_ms_max;
        let timeout = timeout_ms.map_or(longest, |asked| asked.min(longest));
        let timeout = Duration::from_millis(timeout.into());
        let (caller, method) = (self.caller(slot), method.into());
        let (prefix, params) = (self.hidden_prefix(slot).into(), params.map(Box::from));
        let question = Question::Rpc { caller, prefix, method, params, timeout };
        let waiting = Awaiting::Call(self.sessions.id(slot), calling);
        if let Err(Awaiting::Call(_, calling)) = self.ask_within(timeout, question, waiting) {
            let refused = CallError::Unavailable { detail: TOO_MANY_CALLS }.into();
            return self.tell_refused(slot, calling.id(), &refused);
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.calls += 1;
        }
    }

    /// What stands in front of channels' names that a client knows nothing of.
    fn hidden_prefix(&self, slot: SessionSlot) -> &str {
        let hides = self.sessions.get(slot).is_some_and(|own| own.dialect.has_any_names());
        if hides { self.prefix(slot) } else { "" }
    }

    /// A call has its result, or is waited for no more. Of a session that has gone it is nobody's.
    pub(super) fn handle_result(
        &mut self,
        session: SessionId,
        calling: &Calling,
        answer: Option<Answer>,
    ) {
        let Some(slot) = self.sessions.current(session) else { return };
        if let Some(session) = self.sessions.get_mut(slot) {
            session.calls = session.calls.saturating_sub(1);
        }
        if self.sessions.has(slot, CLOSING) {
            return;
        }
        match answer {
            Some(Answer::Rpc(Ok(data))) => match calling {
                Calling::Named(id) => self.reply(slot, &Event::Result { id, data: &data }),
                Calling::Typed(id) => self.reply_to_message(slot, id.as_deref(), &data),
            },
            Some(Answer::Rpc(Err(error))) => {
                self.tell_refused(slot, calling.id(), &error.into());
            }
            _ => self.tell_refused(slot, calling.id(), &CallError::TimedOut.into()),
        }
    }
}
