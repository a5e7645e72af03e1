//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::templates::Templates;

const SERVER: &str = "Server";
const CONNECTIONS: &str = "Connections";
const MESSAGES: &str = "Messages";
const TRAFFIC: &str = "Traffic";
const REPORT: &str = "Verification and report";

/// Opens connections, publishes, and verifies what every subscriber gets.
///
/// Without a command it publishes made-up messages at a constant open-loop rate.
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
    /// Replay recordings, each stream to a channel of its own.
    ///
    /// A recording is lines of `<time> <JSON object>`, gzip or plain: nanoseconds, one space, and
    /// the object exactly as it is to be published. Its field "stream" names the channel, behind
    /// --prefix; a line without one goes to the channel `<symbol>@<its field "channel", or
    /// snapshot>`, where the symbol is the file's name without its date. Everything is read and
    /// checked before anything is published.
    Replay(Replay),
    /// Publish a simulated feed and show live rates until Ctrl-C.
    Demo(Demo),
    /// A connect storm: open everything as fast as it goes, subscribe, close.
    Storm(Hold),
    /// Hold connections on which nothing happens, and see what they cost.
    Idle(Hold),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

// Structs that are flattened have no documentation: it would replace that of the command.

#[derive(Debug, ClapArgs)]
pub(crate) struct Constant {
    /// Channels to publish to; see --interest.
    #[arg(long, help_heading = MESSAGES, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) channels: u32,
    /// Messages published a second, over all channels; 0 is as fast as the server takes them.
    #[arg(long, help_heading = MESSAGES, default_value_t = 100)]
    pub(crate) rate: u32,
    /// Bytes in each message.
    #[arg(long, help_heading = MESSAGES, default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(40..=16_777_216))]
    pub(crate) size: u32,
    /// Seconds of publishing.
    #[arg(long, help_heading = MESSAGES, default_value = "10", value_parser = seconds)]
    pub(crate) duration: f64,
    /// Messages published at once at each point in time; the rate stays.
    #[arg(long, help_heading = MESSAGES, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) burst: u32,
    #[command(flatten)]
    pub(crate) traffic: Traffic,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Hold {
    /// Seconds to hold them; by default none in a storm, 30 otherwise.
    #[arg(long, help_heading = CONNECTIONS, value_parser = seconds)]
    pub(crate) duration: Option<f64>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Replay {
    /// Recordings. Files of one instrument (same name up to a date) are joined in order.
    #[arg(long = "file", help_heading = MESSAGES, required = true, num_args = 1..)]
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Multiple of real time; 0 is as fast as the server takes them.
    #[arg(long, help_heading = MESSAGES, default_value_t = 1.0)]
    pub(crate) speed: f64,
    /// Times each instrument is published, under new names from the second on.
    #[arg(long = "clone", help_heading = MESSAGES, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) clones: u32,
    /// Stop after so many seconds of the recording.
    #[arg(long, help_heading = MESSAGES, value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Seconds of waiting to which longer pauses are shortened; `inf` waits them out.
    #[arg(long, help_heading = MESSAGES, default_value = "60", value_name = "SECONDS")]
    pub(crate) max_pause: f64,
    /// What the times of the recording count; without it nanoseconds, and times that look like
    /// something else are refused.
    #[arg(long, help_heading = MESSAGES, value_enum)]
    pub(crate) time_unit: Option<TimeUnit>,
    #[command(flatten)]
    pub(crate) traffic: Traffic,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    /// Simulated instruments.
    #[arg(long, help_heading = MESSAGES, default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) instruments: u32,
    /// Simulated ticks a second, over all instruments.
    #[arg(long, help_heading = MESSAGES, default_value_t = 200)]
    pub(crate) rate: u32,
    /// Stop after so many seconds instead of waiting for Ctrl-C.
    #[arg(long, help_heading = MESSAGES, value_parser = seconds)]
    pub(crate) duration: Option<f64>,
    #[command(flatten)]
    pub(crate) traffic: Traffic,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Common {
    /// WebSocket address of the server.
    #[arg(long, help_heading = SERVER, default_value = "ws://127.0.0.1:9800/ws")]
    pub(crate) url: String,
    /// Its HTTP API; by default the same host on the next port.
    #[arg(long, help_heading = SERVER, value_name = "HOST:PORT")]
    pub(crate) api: Option<String>,
    /// API key.
    #[arg(long, help_heading = SERVER, env = "RINGFEED_API_KEY", hide_env_values = true)]
    #[arg(default_value = "bench", value_name = "KEY")]
    pub(crate) api_key: String,
    /// What the connections speak; `both` is half and half. [default: both for replay, else
    /// ringfeed]
    #[arg(long, help_heading = SERVER, value_enum)]
    pub(crate) dialect: Option<DialectArg>,
    /// Put in front of every channel name.
    #[arg(long, help_heading = SERVER, default_value = "bench.")]
    pub(crate) prefix: String,
    /// Connections to open.
    #[arg(long, help_heading = CONNECTIONS, default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) conns: u32,
    /// Channels that each connection subscribes to; 0 is all of them.
    #[arg(long, help_heading = CONNECTIONS, default_value_t = 1)]
    pub(crate) subscriptions: u32,
    /// What connections show of who they are: line n of the file is for connection n. First the
    /// token that it connects with, as ?token=; behind spaces what it shows later with the command
    /// auth, as SECONDS:TOKEN, the seconds counted from when it was open.
    #[arg(long, help_heading = CONNECTIONS, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
    /// What sockets are served with; auto is io_uring where the kernel offers it.
    #[arg(long, help_heading = CONNECTIONS, value_enum, default_value = "auto")]
    pub(crate) io: IoArg,
    /// Threads for the connections.
    #[arg(long, help_heading = CONNECTIONS, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: u16,
    /// Pin the connection threads to cores, from this one on.
    #[arg(long, help_heading = CONNECTIONS)]
    pub(crate) core: Option<u16>,
    /// Handshakes under way at once, for each thread.
    #[arg(long, help_heading = CONNECTIONS, default_value_t = 400)]
    pub(crate) pace: u32,
    /// Local addresses to connect from, in turn; by default enough of 127.0.0.0/8 for a loopback
    /// server.
    #[arg(long, help_heading = CONNECTIONS, num_args = 1.., value_name = "ADDRESS")]
    pub(crate) from: Vec<IpAddr>,
    /// Seconds without any progress after which what is missing counts as lost.
    #[arg(long, help_heading = REPORT, default_value = "10", value_parser = seconds)]
    pub(crate) grace: f64,
    /// Write the report as JSON to this file.
    #[arg(long, help_heading = REPORT, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// The server is to end connections: each is written to this file, as a line of JSON with
    /// `connection`, `at` (seconds since 1970), `code` and `reason`, and was to get what it got.
    #[arg(long, help_heading = REPORT, value_name = "FILE")]
    pub(crate) endings: Option<PathBuf>,
    /// No progress display.
    #[arg(long, short, help_heading = REPORT)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) templates: Templates,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Traffic {
    /// How each connection chooses its channels, and, for made-up messages, to which channel each
    /// goes.
    #[arg(long, help_heading = TRAFFIC, value_enum, default_value = "random")]
    pub(crate) interest: InterestArg,
    /// The same seed draws the same channels.
    #[arg(long, help_heading = TRAFFIC, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How to publish: over the HTTP API, or over a WebSocket where the channels allow it.
    #[arg(long, help_heading = TRAFFIC, value_enum, default_value = "api")]
    pub(crate) publish: PublishArg,
    /// Send to users in the place of publishing to channels: each connection is one of the user that
    /// is called as its only channel would be (its token in --tokens must say so), and does not
    /// subscribe. Needs --dialect raw.
    #[arg(long, help_heading = TRAFFIC, requires = "tokens")]
    pub(crate) send: bool,
    /// Token of who publishes over a WebSocket.
    #[arg(long, help_heading = TRAFFIC, value_name = "TOKEN")]
    pub(crate) publisher_token: Option<String>,
    /// Connections that stop reading once they are subscribed; they are not waited for.
    #[arg(long, help_heading = TRAFFIC, default_value_t = 0)]
    pub(crate) stalled: u32,
    /// Connections replaced, or subscriptions renewed, each second while it is published.
    #[arg(long, help_heading = TRAFFIC, default_value = "0", value_parser = seconds)]
    pub(crate) churn: f64,
    /// Publish nothing but the messages. Otherwise, where subscriptions are not acknowledged (raw,
    /// other servers), each channel gets messages like {"warmup":0,"round":1} first, which show
    /// that they stand.
    #[arg(long, help_heading = TRAFFIC)]
    pub(crate) no_warm_up: bool,
    /// Seconds of publishing after which latencies begin to count.
    #[arg(long, help_heading = REPORT, default_value = "0", value_parser = seconds)]
    pub(crate) settle: f64,
}

impl Default for Traffic {
    fn default() -> Traffic {
        Traffic {
            interest: InterestArg::Random,
            seed: 1,
            publish: PublishArg::Api,
            send: false,
            publisher_token: None,
            stalled: 0,
            churn: 0.0,
            no_warm_up: false,
            settle: 0.0,
        }
    }
}

/// A number that is a time, or a rate, and not below 0.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1e9).contains(&number) => Ok(number),
        _ => Err("allowed are numbers from 0 to 1000000000".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TimeUnit {
    Ns,
    Us,
    Ms,
    S,
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

impl InterestArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            InterestArg::Random => "random",
            InterestArg::Popular => "popular",
            InterestArg::Blocks => "blocks",
        }
    }
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
