//! Why a command was refused: one type from the parser to the reply, with what is needed to say it
//! in any dialect.

use std::fmt;

use crate::call::CallError;
use crate::channel_name::{ChannelName, ChannelNameError};
use crate::error::ErrorCode;
use crate::printable::{Detail, Printable};
use crate::user_id::{UserId, UserIdError};

/// Of the reason why a message does not fit: beside the channel's name, which is not always short.
const WHY_BYTES_MAX: usize = 110;

/// A refused command or publication. [`Refused::code`] is the word for programs; `Display` is the
/// sentence for people: it names what is allowed, and whatever came it has a few hundred bytes at
/// most and no control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not JSON, or not the JSON that is needed.
    #[error("{detail}")]
    BadJson {
        /// What is wrong and what is allowed.
        detail: Detail,
    },
    /// A field is missing or wrong.
    #[error("{detail}")]
    BadCommand {
        /// What is wrong and what is allowed.
        detail: Detail,
    },
    /// A command that the dialect does not have.
    #[error("{dialect} has no command '{given}'; allowed are {allowed}")]
    UnknownCommand {
        /// What was asked for.
        given: Detail,
        /// The commands there are.
        allowed: &'static str,
        /// Name of the dialect.
        dialect: &'static str,
    },
    /// The channel's name breaks the rules.
    #[error(transparent)]
    BadChannel(#[from] ChannelNameError),
    /// Nobody has subscribed or published to the channel for a while.
    #[error("there is no channel {} at present", Printable::name(channel))]
    NoSuchChannel {
        /// The full name.
        channel: ChannelName,
    },
    /// The configuration does not allow it.
    #[error("{}", Forbidding(*operation, channel, hint))]
    Forbidden {
        /// What was asked.
        operation: Operation,
        /// The full name.
        channel: ChannelName,
        /// Who may: ends the sentence "… may be published to".
        hint: &'static str,
    },
    /// The connection already has the channel.
    #[error("this connection has subscribed to {} before", Printable::name(channel))]
    AlreadySubscribed {
        /// The full name.
        channel: ChannelName,
    },
    /// The connection does not have the channel.
    #[error("this connection has not subscribed to {}", Printable::name(channel))]
    NotSubscribed {
        /// The full name.
        channel: ChannelName,
    },
    /// There are as many as there may be.
    #[error("at most {most} {limit} are allowed")]
    LimitReached {
        /// Of what.
        limit: Limit,
        /// How many may be.
        most: u64,
    },
    /// The channel has as many members as it may.
    #[error("{} has as many members as it may have, {most}", Printable::name(channel))]
    ChannelFull {
        /// The full name.
        channel: ChannelName,
        /// How many may be.
        most: u32,
    },
    /// The room has a password.
    #[error("{} has a password, and this is not it", Printable::name(channel))]
    WrongPassword {
        /// The full name.
        channel: ChannelName,
    },
    /// The room is for its members, or for those who are invited.
    #[error("{} is for its members", Printable::name(channel))]
    MembersOnly {
        /// The full name.
        channel: ChannelName,
    },
    /// In the room only moderators speak.
    #[error("in {} only moderators speak", Printable::name(channel))]
    Moderated {
        /// The full name.
        channel: ChannelName,
    },
    /// Receivers are not asked to confirm what is published there.
    #[error("{} is not a channel whose receivers are asked to confirm", Printable::name(channel))]
    NotConfirmed {
        /// The full name.
        channel: ChannelName,
    },
    /// Rooms like this one are there only once they were made.
    #[error("there is no room {}", Printable::name(channel))]
    NoSuchRoom {
        /// The full name.
        channel: ChannelName,
    },
    /// More a second than this connection may send.
    #[error("at most {per_second} {what} a second are allowed")]
    RateLimited {
        /// Of what.
        what: Rated,
        /// How many may come in a second.
        per_second: u32,
    },
    /// More a second than all clients together may publish to a channel.
    #[error("at most {per_second} messages a second are allowed on {}", Printable::name(channel))]
    ChannelRateLimited {
        /// The full name.
        channel: ChannelName,
        /// How many may come in a second.
        per_second: u32,
    },
    /// What is published is longer than the channel takes.
    #[error("{} takes at most {most} bytes; these are {bytes}", Printable::name(channel))]
    MessageTooLong {
        /// The full name.
        channel: ChannelName,
        /// Bytes of it.
        bytes: usize,
        /// How many may be.
        most: u32,
    },
    /// What is published does not fit the schema of the channel.
    #[error("{} does not take this: {why}", Printable::name(channel))]
    InvalidMessage {
        /// The full name.
        channel: ChannelName,
        /// Where and why it does not fit.
        why: Detail,
    },
    /// Nobody has vouched for the client, or not so that it was believed.
    #[error("{detail}")]
    Unauthenticated {
        /// What is wrong and what is needed.
        detail: Detail,
    },
    /// The application has said no.
    #[error("{detail}")]
    Denied {
        /// What it has said.
        detail: Detail,
    },
    /// The application could not be asked; later it may be.
    #[error("{detail}; try again later")]
    Unavailable {
        /// What failed.
        detail: &'static str,
    },
    /// Not an id that a user can have.
    #[error(transparent)]
    BadUser(#[from] UserIdError),
    /// Only those whom a permission names may send to users.
    #[error("no permission lets you send to {}", Printable::name(user))]
    SendForbidden {
        /// To whom.
        user: UserId,
    },
    /// A call has no result.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The server takes nothing new.
    #[error("the server is shutting down")]
    Draining,
}

/// What one may be allowed to do with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Receive what is published.
    Subscribe,
    /// Publish.
    Publish,
    /// Read what is kept.
    History,
    /// See who is there.
    Presence,
    /// Send to a user.
    Send,
    /// Moderate a room: speak where only moderators do, and enter without its password.
    Moderate,
}

impl Operation {
    /// All there are.
    pub const ALL: [Operation; 6] = [
        Operation::Subscribe,
        Operation::Publish,
        Operation::History,
        Operation::Presence,
        Operation::Send,
        Operation::Moderate,
    ];

    /// The word for it in a configuration and in a token.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Subscribe => "subscribe",
            Operation::Publish => "publish",
            Operation::History => "history",
            Operation::Presence => "presence",
            Operation::Send => "send",
            Operation::Moderate => "moderate",
        }
    }

    /// The operation of that name.
    pub fn from_name(name: &str) -> Option<Operation> {
        Operation::ALL.into_iter().find(|operation| operation.name() == name)
    }
}

/// What there may be only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Channels that one connection has subscribed to.
    SubscriptionsPerConnection,
    /// Channels of the whole server.
    Channels,
    /// Rooms that were made over the HTTP API.
    Rooms,
    /// Rooms that one user is in.
    RoomsPerUser,
    /// Calls of one connection that are not answered yet.
    CallsPerConnection,
    /// Those who are asked to confirm one publication.
    Receivers,
    /// Publications of one connection to a channel that are not confirmed yet.
    Unconfirmed,
}

/// What may come only so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rated {
    /// Messages of any kind.
    Messages,
    /// Commands that subscribe.
    Subscribes,
    /// Commands that publish.
    Publications,
    /// Commands that ask for history, or for who is there.
    Histories,
}

impl Refused {
    /// The word for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Refused::BadJson { .. } => ErrorCode::BadJson,
            Refused::BadCommand { .. } => ErrorCode::BadCommand,
            Refused::UnknownCommand { .. } => ErrorCode::UnknownCommand,
            Refused::BadChannel(_) | Refused::NoSuchChannel { .. } => ErrorCode::BadChannel,
            Refused::Forbidden { .. }
            | Refused::Denied { .. }
            | Refused::SendForbidden { .. }
            | Refused::NotConfirmed { .. } => ErrorCode::Forbidden,
            Refused::Unauthenticated { .. } => ErrorCode::Unauthenticated,
            Refused::Unavailable { .. } => ErrorCode::Busy,
            Refused::BadUser(_) => ErrorCode::BadCommand,
            Refused::AlreadySubscribed { .. } => ErrorCode::AlreadySubscribed,
            Refused::NotSubscribed { .. } => ErrorCode::NotSubscribed,
            Refused::LimitReached { .. } => ErrorCode::LimitReached,
            Refused::ChannelFull { .. } => ErrorCode::ChannelFull,
            Refused::WrongPassword { .. } => ErrorCode::WrongPassword,
            Refused::MembersOnly { .. } => ErrorCode::MembersOnly,
            Refused::Moderated { .. } => ErrorCode::Moderated,
            Refused::RateLimited { .. } | Refused::ChannelRateLimited { .. } => {
                ErrorCode::RateLimited
            }
            Refused::MessageTooLong { .. } => ErrorCode::MessageTooLong,
            Refused::InvalidMessage { .. } => ErrorCode::InvalidMessage,
            Refused::NoSuchRoom { .. } => ErrorCode::NoSuchRoom,
            Refused::Call(error) => error.code(),
            Refused::Draining => ErrorCode::Draining,
        }
    }

    /// The same for clients of existing systems, who know channels by what stands behind the first `hidden` bytes of their names.
    pub fn shown(mut self, hidden: u8) -> Refused {
        if let Refused::NoSuchChannel { channel }
        | Refused::Forbidden { channel, .. }
        | Refused::AlreadySubscribed { channel }
        | Refused::NotSubscribed { channel }
        | Refused::ChannelFull { channel, .. }
        | Refused::WrongPassword { channel }
        | Refused::MembersOnly { channel }
        | Refused::Moderated { channel }
        | Refused::NoSuchRoom { channel }
        | Refused::NotConfirmed { channel }
        | Refused::MessageTooLong { channel, .. }
        | Refused::InvalidMessage { channel, .. }
        | Refused::ChannelRateLimited { channel, .. } = &mut self
            && let Some(Ok(shown)) = channel.get(usize::from(hidden)..).map(ChannelName::new)
        {
            *channel = shown;
        }
        self
    }

    /// [`Refused::BadJson`], cut to a bounded length.
    pub fn bad_json(detail: impl fmt::Display) -> Refused {
        Refused::BadJson { detail: Detail::new(detail) }
    }

    /// [`Refused::BadCommand`], cut to a bounded length.
    pub fn bad_command(detail: impl fmt::Display) -> Refused {
        Refused::BadCommand { detail: Detail::new(detail) }
    }

    /// [`Refused::InvalidMessage`], cut to a bounded length.
    pub fn invalid_message(channel: &ChannelName, why: impl fmt::Display) -> Refused {
        let why = Detail::new(Printable::new(why, WHY_BYTES_MAX));
        Refused::InvalidMessage { channel: channel.clone(), why }
    }

    /// What serde has against a text: [`Refused::BadJson`] where it is not JSON, else
    /// [`Refused::BadCommand`].
    pub fn from_json_error(error: &serde_json::Error) -> Refused {
        match error.classify() {
            serde_json::error::Category::Data => Refused::bad_command(error),
            _ => Refused::bad_json(error),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::SubscriptionsPerConnection => "channels for each connection",
            Limit::Channels => "channels on this server",
            Limit::Rooms => "rooms made over the HTTP API",
            Limit::RoomsPerUser => "rooms for each user",
            Limit::CallsPerConnection => "calls under way for each connection",
            Limit::Receivers => "receivers who are asked to confirm",
            Limit::Unconfirmed => {
                "publications of one connection to a channel that are not confirmed yet"
            }
        })
    }
}

impl fmt::Display for Rated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rated::Messages => "messages",
            Rated::Subscribes => "subscribes",
            Rated::Publications => "publications",
            Rated::Histories => "requests for history and presence",
        })
    }
}

/// The sentence of [`Refused::Forbidden`].
struct Forbidding<'a>(Operation, &'a ChannelName, &'static str);

impl fmt::Display for Forbidding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forbidding(operation, channel, hint) = self;
        let channel = Printable::name(channel);
        match operation {
            Operation::Subscribe => write!(f, "{channel} may be subscribed to {hint}"),
            Operation::Publish => write!(f, "{channel} may be published to {hint}"),
            Operation::History => write!(f, "the history of {channel} may be read {hint}"),
            Operation::Presence => write!(f, "who is on {channel} may be seen {hint}"),
            // Refused with a sentence of its own: it is about a user.
            Operation::Send => write!(f, "{channel} may be sent to {hint}"),
            Operation::Moderate => write!(f, "{channel} may be moderated {hint}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest() -> ChannelName {
        ChannelName::new(&"x".repeat(255)).unwrap()
    }

    #[test]
    fn who_is_not_shown_a_prefix_is_not_told_of_it() {
        let channel = ChannelName::new("rooms.lounge").unwrap();
        let full = Refused::ChannelFull { channel, most: 2 }.shown(6);
        assert_eq!(full.to_string(), "lounge has as many members as it may have, 2");
        let channel = ChannelName::new("rooms.").unwrap();
        let nothing = Refused::NotSubscribed { channel };
        assert_eq!(nothing.clone().shown(6), nothing, "there is nothing else to call it");
    }

    #[test]
    fn a_sentence_names_what_is_allowed_and_stays_short() {
        let channel = ChannelName::new("chat").unwrap();
        let hint = "over the HTTP API only";
        let forbidden = Refused::Forbidden { operation: Operation::Publish, channel, hint };
        assert_eq!(forbidden.to_string(), "chat may be published to over the HTTP API only");
        let limit = Limit::SubscriptionsPerConnection;
        let limited = Refused::LimitReached { limit, most: 128 };
        assert_eq!(limited.to_string(), "at most 128 channels for each connection are allowed");
        let often = Refused::RateLimited { what: Rated::Histories, per_second: 2 };
        assert_eq!(
            often.to_string(),
            "at most 2 requests for history and presence a second are allowed"
        );
        for refused in [
            Refused::bad_json("\u{7f}".repeat(64_000)),
            Refused::NotSubscribed { channel: longest() },
            Refused::MessageTooLong { channel: longest(), bytes: usize::MAX, most: u32::MAX },
            Refused::ChannelRateLimited { channel: longest(), per_second: u32::MAX },
            Refused::invalid_message(&longest(), "\u{1b}".repeat(64_000)),
            Refused::Forbidden { operation: Operation::History, channel: longest(), hint },
        ] {
            let text = refused.to_string();
            assert!(text.len() <= 210, "{} bytes: {text}", text.len());
            assert!(!text.chars().any(char::is_control), "{text}");
        }
    }
}
