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

/// What the application has said of a connection, beside what its token says. It stays when the connection shows a
/// newer token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statement {
    /// Of whom it was said: the user of the token, where one was shown.
    pub of: Option<UserId>,
    /// The user, where it names one: in the place of the token's.
    pub user: Option<UserId>,
    /// Roles, as in [`Identity::attributes`], beside the token's.
    pub attributes: Box<[SmolStr]>,
    /// Permissions beside the token's.
    pub grants: Grants,
    /// Seconds since 1970 after which it counts no more; the earlier end of the two counts.
    pub expires_at: Option<u64>,
    /// What others are shown of it, in the place of what the token has.
    pub info: Option<Box<str>>,
}

impl Statement {
    /// Who it is by this and by its token, or by this alone.
    pub fn onto(&self, token: Identity) -> Identity {
        let mut identity = token;
        if self.user.is_some() {
            identity.user.clone_from(&self.user);
        }
        let mut attributes = identity.attributes.into_vec();
        for attribute in &self.attributes {
            if !attributes.contains(attribute) {
                attributes.push(attribute.clone());
            }
        }
        identity.attributes = attributes.into();
        if !(self.grants.allow.is_empty() && self.grants.deny.is_empty()) {
            let own = identity.grants.get_or_insert_default();
            own.allow.extend(self.grants.allow.iter().cloned());
            own.deny.extend(self.grants.deny.iter().cloned());
        }
        identity.expires_at = match (identity.expires_at, self.expires_at) {
            (Some(token), Some(own)) => Some(token.min(own)),
            (token, own) => token.or(own),
        };
        if self.info.is_some() {
            identity.info.clone_from(&self.info);
        }
        identity
    }

    /// Whether it holds for the bearer of a newer token, too: who is `now` known by it.
    pub fn is_about(&self, bearer: Option<&UserId>, now: Option<&UserId>) -> bool {
        bearer == self.of.as_ref().or(now)
    }
}

/// What came of authenticating.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Admitted {
    /// Who it is.
    pub identity: Identity,
    /// Channels to subscribe to at once.
    pub channels: Vec<ChannelName>,
    /// What of it the application has said, where it was asked.
    pub stated: Option<Box<Statement>>,
}
