//! What counts where the application could not be asked.

use super::failure::Failure;
use super::plain;
use super::reply::denial;
use crate::access::{Admitted, Statement};
use crate::config::{Config, ConnectMethod, OnFailure};
use crate::message::{Answer, Question, SubscribeAllowed};

/// Of one configuration.
#[derive(Debug)]
pub(super) struct Policy {
    allow: bool,
    anonymous: bool,
    connect_method: ConnectMethod,
}

impl Policy {
    pub(super) fn new(config: &Config) -> Policy {
        Policy {
            allow: config.hooks.on_failure == OnFailure::Allow,
            anonymous: config.auth.anonymous,
            connect_method: config.hooks.connect_method,
        }
    }

    /// The answer to a question that has none.
    pub(super) fn failed(&self, question: &Question, failure: &Failure) -> Answer {
        let plain = matches!(question, Question::Connect { .. })
            && self.connect_method == ConnectMethod::Get;
        let denied = || if plain { plain::denied(failure) } else { failure.denied() };
        let no = || denial(question, denied());
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
                let stated = Statement { of: identity.user.clone(), ..Statement::default() };
                let (channels, stated) = (Vec::new(), Some(stated.into()));
                Answer::Connect(Ok(Box::new(Admitted { identity, channels, stated })))
            }
            Question::Subscribe { .. } => Answer::Subscribe(Ok(SubscribeAllowed::default())),
            Question::Publish { .. } => Answer::Publish(Ok(None)),
            // There is nothing that could be replied.
            _ => no(),
        }
    }
}
