//! Who a connection is, and what it may do.
//!
//! Everything here is pure: it is handed a configuration, bytes and the time, and decides. Who has to be asked
//! outside is asked by the control thread (`control::hooks`); what comes back is an [`Identity`] like any other.

pub mod fuzzing;
mod grants;
mod identity;
mod permissions;
mod room;
pub mod token;
mod unique;
mod who;

pub use grants::{Grant, Grants};
pub use identity::{Admitted, Identity, Statement};
pub use permissions::{Permissions, Verdict};
pub use room::{Barred, Entry, Guest, MadeRoom, Room, RoomChange};
pub use who::Nobody;
pub(crate) use who::{Who, role};

use crate::config::{Config, ConfigErrors};
use token::Issuers;

/// What a configuration says about access.
#[derive(Debug)]
pub struct Access {
    /// Who may do what.
    pub permissions: Permissions,
    /// Who vouches for whom with tokens.
    pub issuers: Issuers,
    /// The application is asked about each request for a connection.
    pub asks_on_connect: bool,
    /// Who has shown nothing is let in.
    pub takes_anonymous: bool,
}

impl Access {
    /// Compiles what a configuration says, with the public keys that it leads to.
    pub fn new(config: &Config) -> Result<Access, ConfigErrors> {
        let issuers = Issuers::from_config(config)?;
        let permissions = Permissions::new(&config.permissions)
            .map_err(|nobody| ConfigErrors(vec![format!("permissions.who: {nobody}")]))?;
        let asks_on_connect = !config.hooks.connect_url.0.is_empty();
        // Where nobody could be known everybody is a stranger: on loopback, or where the configuration says so, to which
        // the validation has seen.
        let takes_anonymous = config.auth.anonymous || !config.somebody_vouches();
        Ok(Access { permissions, issuers, asks_on_connect, takes_anonymous })
    }
}
