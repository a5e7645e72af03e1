//! Who a connection is, and what it may do.
//!
//! Everything here is pure: it is handed a configuration, bytes and the time, and decides. Who has to be asked
//! outside is asked by the control thread (`control::hooks`); what comes back is an [`Identity`] like any other.

pub mod fuzzing;
mod identity;
mod permissions;
pub mod token;
mod who;

pub use identity::{Admitted, Grant, Grants, Identity};
pub use permissions::{BadPermission, Permissions, Verdict};

pub(crate) use who::Who;
