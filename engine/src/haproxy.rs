//! HAProxy's configuration from a registry's nodes: all of it, or the `backend` section of a file that somebody else keeps.
//!
//! What comes from the registry is outside input. It reaches the configuration only as ids, addresses and numbers that were
//! checked, and a configuration that HAProxy itself does not accept never takes the place of one that it did.

mod apply;
mod follow;
mod render;
mod section;

pub use apply::{ApplyError, Reload, Target};
pub use follow::{Follow, FollowError, Outcome};
pub use render::{BadSetting, Section, Server, Sticky, Template, check_bind, check_path};
pub use section::{NoSection, replace_backend};
