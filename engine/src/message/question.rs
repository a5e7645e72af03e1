//! What a shard asks the control thread, which asks the application, and what comes back.
//!
//! A question has a ticket, with which its answer comes back through the shard's inbox, and a deadline, after which
//! the shard goes on without one: an answer may come late, twice or never.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfeed_protocol::printable::Detail;
use ringfeed_protocol::{CallError, ChannelName};
use tokio::sync::mpsc;

use super::delivery::StoredPayload;
use super::presence::News;
use crate::access::{Admitted, Identity};
use crate::ids::{ConnectionId, ShardId, Ticket};

/// Questions of one shard that may be under way.
pub const QUESTIONS_MAX: usize = 8192;
/// Of these, calls of methods: whatever is behind them, there is room for what authentication has to ask.
pub(crate) const CALLS_MAX: usize = QUESTIONS_MAX / 2;

/// Who a question is about.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The connection.
    pub connection: ConnectionId,
    /// Who it is.
    pub identity: Arc<Identity>,
}

/// A request for a WebSocket, as the application is shown it.
#[derive(Clone)]
pub struct ConnectRequest {
    /// The client, or what its proxy says it is.
    pub address: IpAddr,
    /// Path of the target.
    pub path: Box<str>,
    /// Query of the target, as it came.
    pub query: Box<str>,
    /// The header fields that are forwarded, names in lower case, in the order in which they came.
    pub headers: Vec<(Box<str>, Box<[u8]>)>,
}

impl fmt::Debug for ConnectRequest {
    /// Without the query and the values of fields: they hold tokens and cookies.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| &**name).collect();
        f.debug_struct("ConnectRequest")
            .field("address", &self.address)
            .field("path", &self.path)
            .field("headers", &names)
            .finish_non_exhaustive()
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Question {
    /// Whether a request may become a connection, and whose. Answered with [`Answer::Connect`].
    Connect {
        /// Who asks; has the identity of its token where it has shown one.
        caller: Caller,
        /// What was asked for.
        request: Box<ConnectRequest>,
    },
    /// Whether a session may subscribe. Answered with [`Answer::Subscribe`].
    Subscribe {
        /// Who asks.
        caller: Caller,
        /// The channel.
        channel: ChannelName,
    },
    /// Whether a session may publish, and what. Answered with [`Answer::Publish`].
    Publish {
        /// Who asks.
        caller: Caller,
        /// The channel.
        channel: ChannelName,
        /// What it wants to publish.
        payload: StoredPayload,
    },
    /// What to say to a message of a type that the engine does not know. Answered with [`Answer::Message`].
    Message {
        /// Who has sent it.
        caller: Caller,
        /// Its type.
        kind: Box<str>,
        /// The whole message, a JSON object.
        message: Bytes,
    },
    /// A method is called. Answered with [`Answer::Rpc`].
    Rpc {
        /// Who calls.
        caller: Caller,
        /// What stands in front of channels' names that the caller knows nothing of.
        prefix: Box<str>,
        /// Name of the method.
        method: Box<str>,
        /// A JSON object, where there are any.
        params: Option<Box<str>>,
        /// How long the caller waits.
        timeout: Duration,
    },
    /// A connection has ended. Answered with [`Answer::Noted`] once it is no more the shard's to remember.
    Disconnect {
        /// Who it was.
        caller: Caller,
        /// Code of the close frame that ended it; 1006 where there was none.
        code: u16,
        /// Why.
        reason: Box<str>,
    },
    /// Users have come to channels and left them. Answered with [`Answer::Heard`].
    Presence(Arc<News>),
    /// The key `kid` of an issuer is not known. Answered with [`Answer::Noted`] when its keys were asked for, or
    /// were asked for a moment ago.
    Keys {
        /// Where its keys are, as the configuration has it.
        url: Box<str>,
        /// The key that is missing.
        kid: Box<str>,
    },
}

/// Why the answer is no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// The application refuses.
    Refused {
        /// HTTP status for who has no connection yet: 401 or 403; 500 and 502 where a page that is asked with GET has failed.
        status: u16,
        /// For the client; empty where the application says nothing.
        text: Detail,
    },
    /// The application could not be asked: what failed, for the client, without a word about where it is.
    Unavailable(&'static str),
}

/// A session may subscribe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscribeAllowed {
    /// Seconds since 1970 after which it may not; `None` for as long as the session lasts.
    pub expires_at: Option<u64>,
}

/// What has become of something that the application was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It knows.
    Yes,
    /// It could not be told, and can be told again.
    NotYet,
    /// It will not hear it.
    Never,
}

/// What comes back.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Question::Connect`].
    Connect(Result<Box<Admitted>, Denied>),
    /// To [`Question::Subscribe`].
    Subscribe(Result<SubscribeAllowed, Denied>),
    /// To [`Question::Publish`]: what to publish instead, where it is not what was asked.
    Publish(Result<Option<StoredPayload>, Denied>),
    /// To [`Question::Presence`].
    Heard(Heard),
    /// To [`Question::Message`]: JSON for the client, where there is any.
    Message(Result<Option<Box<str>>, Denied>),
    /// To [`Question::Rpc`]: JSON.
    Rpc(Result<Box<str>, CallError>),
    /// It was done, and there is nothing to say.
    Noted,
}

impl Answer {
    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        size_of::<Answer>()
            + match self {
                Answer::Publish(Ok(Some(payload))) => payload.bytes.len(),
                Answer::Message(Ok(Some(reply))) | Answer::Rpc(Ok(reply)) => reply.len(),
                _ => 0,
            }
    }
}

/// A question under way.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who asks.
    pub shard: ShardId,
    /// Comes back with the answer.
    pub ticket: Ticket,
    /// What.
    pub question: Question,
}

/// The shards' end of the way up.
#[derive(Debug, Clone)]
pub struct Questions(mpsc::Sender<Asked>);

impl Questions {
    /// Both ends, for so many shards. Each has at most [`QUESTIONS_MAX`] under way, which is the queue's capacity.
    pub fn new(shards: u16) -> (Questions, mpsc::Receiver<Asked>) {
        let (sender, receiver) = mpsc::channel(usize::from(shards.max(1)) * QUESTIONS_MAX);
        (Questions(sender), receiver)
    }

    /// Hands a question to the control thread and wakes it. `false` where it takes none any more.
    pub fn ask(&self, asked: Asked) -> bool {
        self.0.try_send(asked).is_ok()
    }
}
