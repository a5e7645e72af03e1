//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::templates::Templates;

/// Opens connections, publishes, and verifies what every subscriber gets.
///
/// Exit status: 0 when everything arrived, once, in order and unchanged; 1 when not; 2 when the run
/// could not be made.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) scenario: Option<Scenario>,
    #[command(flatten)]
    pub(crate) constant: Constant,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// Replay recordings (`<ns since epoch> <JSON>` lines, gzip or plain), one channel per stream.
    Replay(Replay),
    /// Publish a simulated feed and show live rates until Ctrl-C.
    Demo(Demo),
    /// A connect storm: open everything as fast as it goes, subscribe, close.
    Storm(Hold),
    /// Hold connections on which nothing happens, and see what they cost.
    Idle(Hold),
}

/// Publish made-up messages at a constant open-loop rate (without a subcommand).
#[derive(Debug, ClapArgs)]
pub(crate) struct Constant {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Channels to publish to; see --interest.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) channels: u32,
    /// Messages published a second, over all channels; 0 is as fast as the server takes them.
    #[arg(long, default_value_t = 100)]
    pub(crate) rate: u32,
    /// Bytes in each message.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(40..=16_777_216))]
    pub(crate) size: u32,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) duration: f64,
    /// Messages published at once at each point in time; the rate stays.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) burst: u32,
}

/// Connections without publications.
#[derive(Debug, ClapArgs)]
pub(crate) struct Hold {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Seconds to hold them; by default none in a storm, 30 otherwise.
    #[arg(long)]
    pub(crate) duration: Option<f64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Replay {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Recordings. Files of one instrument (same name up to a date) are joined in order.
    #[arg(long = "file", required = true, num_args = 1.., value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Multiple of real time; 0 is as fast as the server takes them.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) speed: f64,
    /// Times each instrument is published, under new names from the second on.
    #[arg(long = "clone", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) clones: u32,
    /// Stop after so many seconds of the recording.
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Simulated instruments.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) instruments: u32,
    /// Simulated ticks a second, over all instruments.
    #[arg(long, default_value_t = 200)]
    pub(crate) rate: u32,
    /// Stop after so many seconds instead of waiting for Ctrl-C.
    #[arg(long)]
    pub(crate) duration: Option<f64>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Common {
    /// WebSocket address of the server.
    #[arg(long, default_value = "ws://127.0.0.1:9800/ws")]
    pub(crate) url: String,
    /// Its HTTP API; by default the same host on the next port.
    #[arg(long)]
    pub(crate) api: Option<String>,
    /// API key.
    #[arg(long, env = "RINGFEED_API_KEY", hide_env_values = true, default_value = "bench")]
    pub(crate) api_key: String,
    /// Connections to open.
    #[arg(long, default_value_t = 1000)]
    pub(crate) conns: u32,
    /// Channels that each connection subscribes to; 0 is all of them.
    #[arg(long, default_value_t = 1)]
    pub(crate) subscriptions: u32,
    /// How each connection chooses its channels, and, for made-up messages, to which channel each
    /// goes.
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) interest: InterestArg,
    /// The same seed draws the same channels.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Connections that stop reading once they are subscribed; they are not waited for.
    #[arg(long, default_value_t = 0)]
    pub(crate) stalled: u32,
    /// Connections replaced, or subscriptions renewed, each second while it is published.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) churn: f64,
    /// Seconds of publishing after which latencies begin to count.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) settle: f64,
    /// What sockets are served with; auto is io_uring where the kernel offers it.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) io: IoArg,
    /// What the connections speak; `both` is half and half.
    #[arg(long, value_enum)]
    pub(crate) dialect: Option<DialectArg>,
    /// How to publish: over the HTTP API, or over a WebSocket where the channels allow it.
    #[arg(long, value_enum, default_value = "api")]
    pub(crate) publish: PublishArg,
    /// Put in front of every channel name.
    #[arg(long, default_value = "bench.")]
    pub(crate) prefix: String,
    /// Threads for the connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: u16,
    /// Pin the connection threads to cores, from this one on.
    #[arg(long)]
    pub(crate) core: Option<u16>,
    /// Handshakes under way at once, for each thread.
    #[arg(long, default_value_t = 400)]
    pub(crate) pace: u32,
    /// Local addresses to connect from, in turn; by default enough of 127.0.0.0/8 for a loopback
    /// server.
    #[arg(long, num_args = 1..)]
    pub(crate) from: Vec<IpAddr>,
    /// Seconds without any progress after which what is missing counts as lost.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) grace: f64,
    /// Write the report as JSON to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// No progress display.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) templates: Templates,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoArg {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Epoll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InterestArg {
    /// Uniformly at random.
    Random,
    /// Log-uniformly: the first channels by many, the last by few.
    Popular,
    /// In turn: connection n the block of channels that begins at n times --subscriptions.
    Blocks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DialectArg {
    Ringfeed,
    Raw,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PublishArg {
    Api,
    Ws,
}
