//! What can be wrong with what a peer sent: [`ProtocolError`] for broken WebSocket framing, which
//! ends the connection, and [`ErrorCode`] for a refused command, which does not.

use crate::close::CloseCode;

/// A violation of RFC 6455 by the peer. Always fatal for the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A reserved bit is set although no extension was negotiated (RFC 6455 section 5.2).
    #[error("reserved bits are set but no extension was negotiated")]
    ReservedBits,
    /// An opcode in 3..=7 or 11..=15.
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    /// A control frame that is fragmented or longer than 125 bytes.
    #[error("control frames must be whole and carry at most 125 bytes")]
    BadControlFrame,
    /// The length is not encoded in the fewest bytes, or has its top bit set.
    #[error("frame length is not encoded in the fewest bytes")]
    BadLength,
    /// A client's frame came unmasked.
    #[error("frames from a client must be masked")]
    Unmasked,
    /// A server's frame came masked.
    #[error("frames from a server must not be masked")]
    Masked,
    /// A continuation frame with nothing to continue.
    #[error("continuation frame without a message to continue")]
    UnexpectedContinuation,
    /// A new data frame while a fragmented message is unfinished.
    #[error("new message begun before the fragmented one ended")]
    ExpectedContinuation,
    /// A close frame with a one-byte body or a code that must not travel.
    #[error("close frame with an invalid body or code")]
    BadClose,
    /// Text, or a close reason, that is not UTF-8.
    #[error("text is not valid UTF-8")]
    InvalidUtf8,
    /// A message beyond the limit, refused before memory is taken for it.
    #[error("message of {size} bytes or more; the limit is {limit} bytes")]
    TooLarge {
        /// Bytes announced so far.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

impl ProtocolError {
    /// The close code that tells the peer what it did (RFC 6455 section 7.4.1).
    pub fn close_code(&self) -> CloseCode {
        match self {
            ProtocolError::InvalidUtf8 => CloseCode::INVALID_DATA,
            ProtocolError::TooLarge { .. } => CloseCode::TOO_LARGE,
            _ => CloseCode::PROTOCOL,
        }
    }
}

/// The kind of a [`crate::Refused`]. The text form is part of the protocol (`code` of an `error`
/// reply).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The message is not JSON, or not a JSON object.
    BadJson,
    /// A field is missing or has the wrong type.
    BadCommand,
    /// No such command in this dialect.
    UnknownCommand,
    /// The channel name breaks the rules of [`crate::ChannelName`].
    BadChannel,
    /// The configuration does not allow this client to do this on this channel.
    Forbidden,
    /// Subscribe to a channel that this connection already has.
    AlreadySubscribed,
    /// Unsubscribe from a channel that this connection does not have.
    NotSubscribed,
    /// A limit on channels, names or sizes is reached.
    LimitReached,
    /// The channel has as many members as it may.
    ChannelFull,
    /// The room has a password, and this is not it.
    WrongPassword,
    /// The room is for its members, or for those who are invited.
    MembersOnly,
    /// In the room only moderators speak.
    Moderated,
    /// There are only rooms that were made, and this is none of them.
    NoSuchRoom,
    /// Too many messages a second.
    RateLimited,
    /// What is published is longer than the channel takes.
    MessageTooLong,
    /// What is published is not what the channel takes.
    InvalidMessage,
    /// The client has not said who it is, or not so that it was believed.
    Unauthenticated,
    /// The server is shutting down and takes nothing new.
    Draining,
    /// No answer came in time; whether it was done is not known.
    Busy,
    /// No method has this name.
    UnknownMethod,
    /// Parameters of a call are missing, are too many or have a wrong value.
    BadParams,
    /// A call has no result in time; whether it was done is not known.
    TimedOut,
    /// What is behind a method cannot be asked at present.
    Unavailable,
    /// A call was tried and went wrong.
    Failed,
}

impl ErrorCode {
    /// The word that travels.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadJson => "bad_json",
            ErrorCode::BadCommand => "bad_command",
            ErrorCode::UnknownCommand => "unknown_command",
            ErrorCode::BadChannel => "bad_channel",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::AlreadySubscribed => "already_subscribed",
            ErrorCode::NotSubscribed => "not_subscribed",
            ErrorCode::LimitReached => "limit_reached",
            ErrorCode::ChannelFull => "channel_full",
            ErrorCode::WrongPassword => "wrong_password",
            ErrorCode::MembersOnly => "members_only",
            ErrorCode::Moderated => "moderated",
            ErrorCode::NoSuchRoom => "no_such_room",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::MessageTooLong => "message_too_long",
            ErrorCode::InvalidMessage => "invalid_message",
            ErrorCode::Unauthenticated => "unauthenticated",
            ErrorCode::Draining => "draining",
            ErrorCode::Busy => "busy",
            ErrorCode::UnknownMethod => "unknown_method",
            ErrorCode::BadParams => "bad_params",
            ErrorCode::TimedOut => "timed_out",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Failed => "failed",
        }
    }
}
