//! What commands print.

use std::io::{self, Write as _};

use anyhow::Context as _;

/// Prints lines. Who stops reading (`| head`) has enough.
pub(super) fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("writing the output"),
        _ => Ok(()),
    }
}
