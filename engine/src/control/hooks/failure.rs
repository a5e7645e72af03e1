//! Why there is no answer.

use ringfeed_protocol::printable::Detail;

use super::figures::Outcome;
use crate::message::Denied;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) enum Failure {
    /// There is no connection: nothing was sent.
    NoConnection,
    /// The host's name resolves to no address that may be asked: nothing was sent.
    NotPublic,
    /// The connection broke while something was under way, or what came is no HTTP.
    Broken,
    /// Nothing was heard in time.
    Timeout,
    /// An answer began and did not end in time.
    Slow,
    /// A status that says that the application has failed.
    Status(u16),
    /// The answer means nothing.
    BadAnswer(Detail),
    /// The answer is beyond the limit.
    TooLarge,
    /// Too many wait.
    Busy,
    /// The time was over before it was its turn.
    Late,
    /// The breaker is open.
    BreakerOpen {
        /// Whether all that opened it may allow.
        may_allow: bool,
    },
    /// There is nobody to ask.
    NotConfigured,
}

impl Failure {
    /// What is counted.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Failure::NoConnection | Failure::NotPublic | Failure::Broken => Outcome::Unreachable,
            Failure::Timeout | Failure::Slow => Outcome::Timeout,
            Failure::Status(_) => Outcome::Failed,
            Failure::BadAnswer(_) => Outcome::BadAnswer,
            Failure::TooLarge => Outcome::TooLarge,
            Failure::Busy => Outcome::Busy,
            Failure::Late => Outcome::Late,
            Failure::BreakerOpen { .. } | Failure::NotConfigured => Outcome::Broken,
        }
    }

    /// Whether the same may be asked again, by somebody whose question does no harm twice or not.
    pub(super) fn may_retry(&self, idempotent: bool) -> bool {
        match self {
            Failure::NoConnection => true,
            Failure::Broken | Failure::Timeout | Failure::Slow | Failure::Status(_) => idempotent,
            _ => false,
        }
    }

    /// Whether the application could not be reached, or has said nothing at all. Whatever it has said may have been a no,
    /// also what broke off; and what is the fault of those who ask could be brought about by whoever wants a yes.
    pub(super) fn may_allow(&self) -> bool {
        match self {
            Failure::NoConnection | Failure::NotPublic | Failure::Timeout => true,
            Failure::BreakerOpen { may_allow } => *may_allow,
            _ => false,
        }
    }

    /// Whether it says that the next one will fail, too. A wrong answer does not: what it is the answer to may have been
    /// chosen by a client.
    pub(super) fn opens_breaker(&self) -> bool {
        matches!(
            self,
            Failure::NoConnection
                | Failure::NotPublic
                | Failure::Broken
                | Failure::Timeout
                | Failure::Slow
                | Failure::Status(_)
        )
    }

    /// For the client.
    pub(super) fn denied(&self) -> Denied {
        Denied::Unavailable(match self {
            Failure::Timeout | Failure::Slow | Failure::Late => {
                "the application did not answer in time"
            }
            Failure::BadAnswer(_) | Failure::TooLarge => "the application answered something wrong",
            Failure::Busy => "too many questions wait for the application",
            _ => "the application could not be asked",
        })
    }
}

impl std::fmt::Display for Failure {
    /// For the log: without a word of what was sent, and of where to.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NoConnection => f.write_str("no connection"),
            Failure::NotPublic => f.write_str("its name resolves to no public address"),
            Failure::Broken => f.write_str("the connection broke"),
            Failure::Timeout => f.write_str("no answer in time"),
            Failure::Slow => f.write_str("an answer that did not end in time"),
            Failure::Status(status) => write!(f, "status {status}"),
            Failure::BadAnswer(why) => write!(f, "a wrong answer: {why}"),
            Failure::TooLarge => f.write_str("the answer is too large"),
            Failure::Busy => f.write_str("too many questions wait"),
            Failure::Late => f.write_str("the time was over while it waited for others"),
            Failure::BreakerOpen { .. } => f.write_str("it has failed before"),
            Failure::NotConfigured => f.write_str("it has no URL"),
        }
    }
}
