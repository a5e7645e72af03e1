//! The name of this server among others, which some dialects tell.

use std::sync::OnceLock;

static NODE: OnceLock<Box<str>> = OnceLock::new();

/// Says what it is: once, when the server starts. A later word counts nothing: what was encoded with the first one is there.
pub fn set(name: &str) {
    let _ = NODE.set(name.into());
}

/// What it is.
pub fn name() -> &'static str {
    NODE.get().map_or("ringfeed", |name| name)
}
