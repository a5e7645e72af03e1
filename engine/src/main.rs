//! The `ringfeed` binary.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

// Shards allocate and free small things from one thread each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ringfeed: {e:#}");
            ExitCode::FAILURE
        }
    }
}
