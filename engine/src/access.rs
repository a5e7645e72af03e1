//! Who a connection is, and what it may do.
//!
//! Everything here is pure: it is handed a configuration, bytes and the time, and decides. Who has to be asked
//! outside is asked by the control thread (`control::hooks`); what comes back is an [`Identity`] like any other.

mod identity;
mod permissions;
mod sending;
mod token;
mod who;

pub use identity::{Admitted, Grant, Grants, Identity};
pub use permissions::{BadPermission, Permissions, Verdict};
pub use token::{Issuers, RemoteKeys, TokenError};
pub(crate) use who::Who;

use crate::config::{Config, ConfigErrors};

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
    /// Compiles what a configuration says.
    pub fn new(config: &Config) -> Result<Access, ConfigErrors> {
        let issuers = Issuers::from_config(config)?;
        let asks_on_connect = false;
        // Where nothing is configured by which anybody could be known, everybody is a stranger; the validation
        // has seen to it that this is on loopback, or is what the configuration says.
        let nobody_is_known = issuers.is_empty() && !asks_on_connect;
        Ok(Access {
            permissions: Permissions::new(&config.permissions)
                .map_err(|e| ConfigErrors(vec![e.to_string()]))?,
            issuers,
            asks_on_connect,
            takes_anonymous: config.auth.anonymous || nobody_is_known,
        })
    }
}
