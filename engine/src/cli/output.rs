//! What commands print and log, and what they read.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use ringfeed_engine::config::Level;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Prints lines. Who stops reading (`| head`) has enough.
pub(super) fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("writing the output"),
        _ => Ok(()),
    }
}

/// Logs to stderr, as much as `-v` says, for a command that has no configuration.
pub(super) fn log_to_stderr(verbose: u8) {
    let lines = tracing_subscriber::fmt::layer()
        // A log that cannot be written (a closed pipe, a full disk) must not end the process.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose >= 3)
        .with_writer(io::stderr);
    let filter = super::log_filter(verbose, Level::Info);
    tracing_subscriber::registry().with(filter).with(lines).init();
}

/// The text of a file that has no more than so many bytes.
pub(super) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
    }
    Ok(text)
}
