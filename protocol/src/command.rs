//! What a client may ask for, whatever the dialect.

use std::borrow::Cow;

use base64::Engine as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::idempotency_key::IdempotencyKey;
use crate::json::has_lone_surrogate;
use crate::position::{Epoch, Offset, Position};
use crate::refused::Refused;

/// Longest type of a message that the application may know.
pub const KIND_BYTES_MAX: usize = 64;

/// How published bytes are to be understood. Decides the frame's opcode and how a JSON dialect
/// embeds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// Valid JSON text.
    Json,
    /// UTF-8 text that is not JSON.
    Text,
    /// Any bytes.
    Binary,
}

/// What is published: bytes and their kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload<'a> {
    /// How to understand the bytes.
    pub kind: PayloadKind,
    /// The bytes, exactly as delivered to a `raw.v1` subscriber.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Payload<'a> {
    /// From the three fields of which a publication has exactly one: `data` (any JSON value), `text`
    /// and `base64`. The error says what is wrong and what is allowed.
    pub fn from_fields(
        data: Option<&'a RawValue>,
        text: Option<Cow<'a, str>>,
        base64: Option<Cow<'a, str>>,
    ) -> Result<Payload<'a>, Refused> {
        match (data, text, base64) {
            (Some(data), None, None) => {
                if has_lone_surrogate(data.get()) {
                    return Err(Refused::bad_json(
                        "'data' escapes half a character: \\ud800 to \\udfff stand in pairs only",
                    ));
                }
                let bytes = Cow::Borrowed(data.get().as_bytes());
                Ok(Payload { kind: PayloadKind::Json, bytes })
            }
            (None, Some(text), None) => {
                let bytes = match text {
                    Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                    Cow::Owned(text) => Cow::Owned(text.into_bytes()),
                };
                Ok(Payload { kind: PayloadKind::Text, bytes })
            }
            (None, None, Some(encoded)) => {
                match base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes()) {
                    Ok(bytes) => {
                        Ok(Payload { kind: PayloadKind::Binary, bytes: Cow::Owned(bytes) })
                    }
                    Err(e) => Err(Refused::bad_command(format_args!(
                        "'base64' is not padded base64: {e}"
                    ))),
                }
            }
            _ => Err(Refused::bad_command("exactly one of 'data', 'text' and 'base64' is needed")),
        }
    }
}

/// For serde's `deserialize_with`: `null` is a value, and only an absent field is `None`.
pub fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// One command. `id` is the JSON text of the client's id (a number or a string), returned in the
/// one reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Command<'a> {
    /// The client's id, where it gave one.
    pub id: Option<&'a str>,
    /// What is asked.
    pub action: Action<'a>,
}

impl<'a> Action<'a> {
    /// To receive a channel from now on, with nothing to show for it.
    pub fn subscribe(channel: impl Into<Cow<'a, str>>) -> Action<'a> {
        let channel = channel.into();
        Action::Subscribe { channel, recover: None, token: None, password: None }
    }

    /// To publish what nobody is asked to confirm, and what is new whenever it comes.
    pub fn publish(
        channel: impl Into<Cow<'a, str>>,
        payload: Payload<'a>,
        echo: bool,
    ) -> Action<'a> {
        let channel = channel.into();
        Action::Publish { channel, payload, echo, confirm_ms: None, key: None }
    }
}

impl<'a> Command<'a> {
    /// The same where nobody else is asked about what the dialect does not have.
    pub fn or_refused(self) -> Result<Command<'a>, CommandError<'a>> {
        match self.action {
            Action::Other { otherwise, .. } => match otherwise {
                Ok(action) => Ok(Command { id: None, action: *action }),
                Err(refused) => Err(CommandError { id: self.id, refused }),
            },
            action => Ok(Command { id: self.id, action }),
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Action<'a> {
    /// Receive a channel from now on, or from `recover` if its log still reaches back that far.
    Subscribe {
        /// Channel name, unchecked.
        channel: Cow<'a, str>,
        /// The last position the client has seen.
        recover: Option<Position>,
        /// What lets it in where the channel asks for a token of its own.
        token: Option<Cow<'a, str>>,
        /// What lets it in where the channel is a room with a password.
        password: Option<Cow<'a, str>>,
    },
    /// Receive a channel no more.
    Unsubscribe {
        /// Channel name, unchecked.
        channel: Cow<'a, str>,
    },
    /// Publish to a channel.
    Publish {
        /// Channel name, unchecked.
        channel: Cow<'a, str>,
        /// What to publish.
        payload: Payload<'a>,
        /// Whether the client gets it, too, where it is subscribed.
        echo: bool,
        /// Ask those who get it to confirm it within so long, and tell who has.
        confirm_ms: Option<u32>,
        /// By which it is known again where it is sent twice.
        key: Option<IdempotencyKey>,
    },
    /// Say that a publication has come, to whoever wants to know.
    Confirm {
        /// Channel name, unchecked.
        channel: Cow<'a, str>,
        /// The life of the channel that the publication is of; that which the channel has by then, where it is not said.
        epoch: Option<Epoch>,
        /// The publication.
        offset: Offset,
    },
    /// Read a channel's log.
    History {
        /// Channel name, unchecked.
        channel: Cow<'a, str>,
        /// Return publications behind this offset; from the oldest where absent.
        after: Option<Offset>,
        /// Return at most so many.
        limit: Option<u32>,
    },
    /// See who is on a channel.
    Presence {
        /// Channel name, unchecked.
        channel: Cow<'a, str>,
        /// Name those behind this one, as an answer before has said it; from the first where absent.
        after: Option<Cow<'a, str>>,
        /// Name at most so many.
        limit: Option<u32>,
    },
    /// Show a token: the first one, or a newer one before the last one expires.
    Auth {
        /// The token; without one the reply says who the client is.
        token: Option<Cow<'a, str>>,
    },
    /// Send to all connections of a user.
    Send {
        /// User id, unchecked.
        user: Cow<'a, str>,
        /// What to send.
        payload: Payload<'a>,
    },
    /// Call a method. There is an id: a result without one would be nobody's.
    Rpc {
        /// Name of the method, unchecked but for its length.
        method: Cow<'a, str>,
        /// A JSON object, as it came.
        params: Option<Cow<'a, str>>,
        /// How long the caller waits; as long as the server lets it where absent.
        timeout_ms: Option<u32>,
    },
    /// A message of a type that the dialect does not have: the application may know it.
    Other {
        /// Its type.
        kind: Cow<'a, str>,
        /// All of it, a JSON object.
        message: Cow<'a, str>,
        /// What is done where the application is not asked, without an answer; or what is wrong then.
        otherwise: Result<Box<Action<'a>>, Refused>,
    },
    /// Asks for a `pong`.
    Ping,
    /// For the echo dialect: send this back.
    Echo {
        /// Whether it came as text.
        text: bool,
        /// The message.
        bytes: &'a [u8],
    },
}

/// A refused command and whom to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError<'a> {
    /// The client's id, where it could be read.
    pub id: Option<&'a str>,
    /// What was wrong and what is allowed.
    pub refused: Refused,
}
