//! The load generator of ringfeed: an independent client that opens connections, publishes, and
//! checks on every subscriber that nothing is missing, doubled, out of order or changed.

mod args;
mod crew;
mod expect;
mod feed;
mod fleet;
#[cfg(fuzzing)]
pub mod fuzzing;
mod interest;
mod machine;
mod payloads;
mod plans;
mod plot;
mod publisher;
mod recorder;
mod recording;
mod report;
mod run;
mod server;
mod signals;
mod target;
mod templates;
mod tokens;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Something was lost, doubled, reordered or changed.
const EXIT_LOSS: u8 = 1;
/// The run could not be made.
const EXIT_ERROR: u8 = 2;

fn main() -> ExitCode {
    match start(&args::Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_LOSS),
        Err(e) => {
            eprintln!("loadgen: {e:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn start(args: &args::Args) -> anyhow::Result<bool> {
    if let Some(args::Scenario::Completions { shell }) = args.scenario {
        let mut command = args::Args::command();
        clap_complete::generate(shell, &mut command, "loadgen", &mut std::io::stdout());
    }
    plot::Plot::new(args)?.map_or(Ok(true), run::run)
}
