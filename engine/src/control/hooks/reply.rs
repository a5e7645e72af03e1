//! The answer that is owed to a shard.

use std::rc::Rc;

use ringfeed_protocol::CallError;

use crate::ids::{ShardId, Ticket};
use crate::message::{Answer, Denied, Heard, Question};

/// Takes answers.
pub(in crate::control) type Send = Rc<dyn Fn(ShardId, Ticket, Answer)>;

/// Owed to one question. Dropped, it says that nobody could be asked: there is an answer in any case, and only one.
pub(in crate::control) struct Reply {
    send: Send,
    shard: ShardId,
    ticket: Ticket,
    /// What is said where nothing else is.
    otherwise: Option<Answer>,
}

impl Reply {
    pub(in crate::control) fn new(
        send: Send,
        shard: ShardId,
        ticket: Ticket,
        question: &Question,
    ) -> Reply {
        let denied = Denied::Unavailable("the server is shutting down");
        Reply { send, shard, ticket, otherwise: Some(denial(question, denied)) }
    }

    /// Sends the answer.
    pub(in crate::control) fn send(mut self, answer: Answer) {
        self.otherwise = None;
        (self.send)(self.shard, self.ticket, answer);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(answer) = self.otherwise.take() {
            (self.send)(self.shard, self.ticket, answer);
        }
    }
}

/// A no to a question.
pub(super) fn denial(question: &Question, denied: Denied) -> Answer {
    match question {
        Question::Connect { .. } => Answer::Connect(Err(denied)),
        Question::Subscribe { .. } => Answer::Subscribe(Err(denied)),
        Question::Publish { .. } => Answer::Publish(Err(denied)),
        Question::Message { .. } => Answer::Message(Err(denied)),
        Question::Rpc { .. } => {
            Answer::Rpc(Err(CallError::Unavailable { detail: "the server is shutting down" }))
        }
        Question::Presence(_) => Answer::Heard(Heard::NotYet),
        Question::Disconnect { .. } | Question::Keys { .. } => Answer::Noted,
    }
}
