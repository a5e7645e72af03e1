//! Who a connection is.

use ringfeed_protocol::{ChannelName, UserId};
use smol_str::SmolStr;

use super::Grants;

/// Who a connection is, as a token or the application has said. Immutable: whoever authenticates again gets another
/// one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identity {
    /// The user; `None` for who has not said who they are.
    pub user: Option<UserId>,
    /// What permissions can be bound to, as they are written there: `role:NAME` and `claim:NAME=VALUE`.
    pub attributes: Box<[SmolStr]>,
    /// What whoever vouches for it allows and denies beside the configuration's permissions.
    pub grants: Option<Box<Grants>>,
    /// Of the token (`jti`), where it has one.
    pub token: Option<SmolStr>,
    /// Seconds since 1970 in which it was vouched for.
    pub issued_at: u64,
    /// Seconds since 1970 after which it counts no more; `None` for never.
    pub expires_at: Option<u64>,
    /// JSON that others are shown of it.
    pub info: Option<Box<str>>,
}

/// What came of authenticating.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Admitted {
    /// Who it is.
    pub identity: Identity,
    /// Channels to subscribe to at once.
    pub channels: Vec<ChannelName>,
}
