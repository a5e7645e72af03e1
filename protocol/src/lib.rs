//! The bytes of ringfeed, and nothing but the bytes.
//!
//! Owns RFC 6455 framing and handshake ([`frame`], [`connection`], [`handshake`]), the dialects
//! spoken inside the frames ([`dialect`]), and the commands and events that every dialect is
//! translated to and from ([`command`], [`event`], [`refused`]), and what programs of existing systems tell each
//! other ([`foreign`]). It refuses sockets, clocks and threads: the
//! caller owns every buffer, hands bytes in and takes bytes out.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]
// Bytes from outside pass through here: nothing may panic on them.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod any_name;
pub mod call;
pub mod channel_name;
pub mod close;
pub mod command;
pub mod connection;
pub mod date;
pub mod dialect;
pub mod error;
pub mod event;
pub mod foreign;
pub mod frame;
pub mod handshake;
pub mod idempotency_key;
mod json;
pub mod lane;
pub mod mask;
pub mod node;
pub mod position;
pub mod printable;
pub mod refused;
pub mod user_id;
pub mod utf8;

pub use call::CallError;
pub use channel_name::ChannelName;
pub use close::CloseCode;
pub use command::Command;
pub use connection::{Connection, Incoming, Role};
pub use dialect::Dialect;
pub use error::{ErrorCode, ProtocolError};
pub use event::Event;
pub use frame::Opcode;
pub use idempotency_key::IdempotencyKey;
pub use lane::Lane;
pub use position::{Epoch, Offset, Position};
pub use refused::{Limit, Operation, Rated, Refused};
pub use user_id::UserId;
