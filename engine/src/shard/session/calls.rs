//! Calls of methods. They are no part of the order of a session's commands: each is answered when its result is there, and
//! what the session asks meanwhile does not wait for it.

use std::time::Duration;

use ringfeed_protocol::{CallError, Event, Limit, Refused};
use ringfeed_wire::Wire;

use super::CLOSING;
use crate::ids::{SessionId, SessionSlot};
use crate::message::{Answer, Question};
use crate::shard::Shard;
use crate::shard::asks::Awaiting;

/// Why a call was not begun.
const TOO_MANY_CALLS: &str = "too many calls are under way";

impl<W: Wire> Shard<W> {
    /// Begins a call.
    pub(super) fn call(
        &mut self,
        slot: SessionSlot,
        id: &str,
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
            return self.tell_refused(slot, Some(id), &refused);
        }
        let longest = self.config.rpc.timeout_ms_max;
        let timeout = timeout_ms.map_or(longest, |asked| asked.min(longest));
        let timeout = Duration::from_millis(timeout.into());
        let (caller, method) = (self.caller(slot), method.into());
        let question = Question::Rpc { caller, method, params: params.map(Box::from), timeout };
        let waiting = Awaiting::Call(self.sessions.id(slot), id.into());
        if self.ask_within(timeout, question, waiting).is_err() {
            let refused = CallError::Unavailable { detail: TOO_MANY_CALLS }.into();
            return self.tell_refused(slot, Some(id), &refused);
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.calls += 1;
        }
    }

    /// A call has its result, or is waited for no more. Of a session that has gone it is nobody's.
    pub(super) fn handle_result(&mut self, session: SessionId, id: &str, answer: Option<Answer>) {
        let Some(slot) = self.sessions.current(session) else { return };
        if let Some(session) = self.sessions.get_mut(slot) {
            session.calls = session.calls.saturating_sub(1);
        }
        if self.sessions.has(slot, CLOSING) {
            return;
        }
        match answer {
            Some(Answer::Rpc(Ok(data))) => self.reply(slot, &Event::Result { id, data: &data }),
            Some(Answer::Rpc(Err(error))) => self.tell_refused(slot, Some(id), &error.into()),
            _ => self.tell_refused(slot, Some(id), &CallError::TimedOut.into()),
        }
    }
}
