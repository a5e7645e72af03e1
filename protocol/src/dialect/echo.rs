//! `echo`: every message comes back as it is. Served only where an endpoint is configured for it;
//! conformance suites drive the production path through it.

use crate::command::{Action, Command};

pub(super) fn command(text: bool, bytes: &[u8]) -> Command<'_> {
    Command { id: None, action: Action::Echo { text, bytes } }
}
