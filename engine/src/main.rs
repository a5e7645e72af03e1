//! The `ringfeed` binary.

mod cli;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

// Shards allocate and free small things from one thread each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Where the kernel does not know the option there is nothing to switch off.
    let _ = ringfeed_wire::disable_huge_pages();
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Not with println's macro: a closed stderr must not turn an error into a panic.
            let _ = writeln!(std::io::stderr(), "ringfeed: {}", told(&e));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes; a cause that the error tells itself is not told twice.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
