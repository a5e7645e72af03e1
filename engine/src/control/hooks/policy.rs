//! What counts where the application could not be asked.

use super::failure::Failure;
use super::reply::denial;
use crate::access::{Admitted, Word};
use crate::config::{Config, OnFailure};
use crate::message::{Answer, Question, SubscribeAllowed};

/// Of one configuration.
#[derive(Debug)]
pub(super) struct Policy {
    allow: bool,
    anonymous: bool,
}

impl Policy {
    pub(super) fn new(config: &Config) -> Policy {
        Policy {
            allow: config.hooks.on_failure == OnFailure::Allow,
            anonymous: config.auth.anonymous,
        }
    }

    /// The answer to a question that has none.
    pub(super) fn failed(&self, question: &Question, failure: &Failure) -> Answer {
        let no = || denial(question, failure.denied());
        if !self.allow || !failure.may_allow() {
            return no();
        }
        match question {
            // A user is one whose token says so: that was looked at before.
            Question::Connect { caller, .. }
                if caller.identity.user.is_some() || self.anonymous =>
            {
                let identity = (*caller.identity).clone();
                // It has said nothing, of this one.
                let word = Word { of: identity.user.clone(), ..Word::default() };
                let (channels, word) = (Vec::new(), Some(word.into()));
                Answer::Connect(Ok(Box::new(Admitted { identity, channels, word })))
            }
            Question::Subscribe { .. } => Answer::Subscribe(Ok(SubscribeAllowed::default())),
            Question::Publish { .. } => Answer::Publish(Ok(None)),
            // There is nothing that could be replied.
            _ => no(),
        }
    }
}
