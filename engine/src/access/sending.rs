//! Stub, until the configuration says who may send to whom.

use ringfeed_protocol::UserId;

use super::{Identity, Permissions};

/// Who has it may send to every user.
const SENDER: &str = "role:sender";

impl Permissions {
    /// Whether somebody may send to a user.
    pub fn may_send(&self, identity: &Identity, _: &UserId) -> bool {
        identity.attributes.iter().any(|attribute| attribute == SENDER)
    }
}
