//! The command line.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use ringfeed_engine::config::{Config, DEFAULT_TOML, Level, Sources};
use ringfeed_engine::{control, server};
use tracing_subscriber::filter::LevelFilter;

/// A WebSocket publish/subscribe engine for market and live feeds on Linux.
#[derive(Debug, Parser)]
#[command(name = "ringfeed", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or Ctrl-C; a second one ends it at once.
    Serve(ServeArgs),
    /// Validate a configuration and say everything that is wrong with it.
    CheckConfig(ConfigArgs),
    /// Print every configuration key with its default and what it means.
    DefaultConfig,
    /// Publish to a channel of a running server, over its HTTP API.
    Publish(PublishArgs),
    /// Print the version and what this machine's kernel offers.
    Version,
    /// Print the OpenAPI description of the HTTP API.
    Openapi,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// TOML file; `ringfeed default-config` prints one. Without it the built-in defaults hold.
    #[arg(long, env = "RINGFEED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address that clients connect to: the host of server.listen.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Port that clients connect to: the port of server.listen.
    #[arg(short, long)]
    port: Option<u16>,
    /// Set a key, as in --set server.shards=2. May be repeated; stronger than file and environment.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Log more: -v info, -vv debug, -vvv trace.
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Args)]
struct PublishArgs {
    /// The channel.
    channel: String,
    /// The payload: JSON, or text if it is not JSON. `-` reads it from standard input.
    data: String,
    /// Publish as text even if it is JSON.
    #[arg(long)]
    text: bool,
    /// Address of the HTTP API.
    #[arg(long, default_value = "127.0.0.1:9801")]
    api: SocketAddr,
    /// API key.
    #[arg(long, env = "RINGFEED_API_KEY", hide_env_values = true, default_value = "")]
    api_key: String,
}

/// Runs a command.
pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => serve(&args),
        Command::CheckConfig(args) => {
            load(&args)?;
            println!("the configuration is valid");
            Ok(())
        }
        Command::DefaultConfig => {
            print!("{DEFAULT_TOML}");
            Ok(())
        }
        Command::Publish(args) => publish(&args),
        Command::Version => {
            println!("ringfeed {}", env!("CARGO_PKG_VERSION"));
            let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease");
            println!("Linux {}", kernel.unwrap_or_default().trim());
            match ringfeed_wire::probe() {
                Ok(()) => println!("io_uring: everything needed is there"),
                Err(e) => println!("{e}"),
            }
            Ok(())
        }
        Command::Openapi => {
            println!("{}", control::openapi().to_pretty_json()?);
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ringfeed", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn load(args: &ConfigArgs) -> anyhow::Result<Config> {
    let mut flags = args.sets.clone();
    if args.host.is_some() || args.port.is_some() {
        let base = Sources {
            file: args.config.as_deref(),
            environment: std::env::vars().collect(),
            flags: flags.clone(),
        };
        // What is configured otherwise fills in the half that was not given.
        let listen = match Config::load(&base) {
            Ok(config) => config.server.listen,
            Err(_) => SocketAddr::from(([127, 0, 0, 1], 9800)),
        };
        let host = args.host.unwrap_or(listen.ip());
        let port = args.port.unwrap_or(listen.port());
        flags.push(format!("server.listen={}", SocketAddr::new(host, port)));
    }
    let sources =
        Sources { file: args.config.as_deref(), environment: std::env::vars().collect(), flags };
    Config::load(&sources).map_err(|e| {
        let count = e.0.len();
        anyhow::anyhow!("the configuration has {count} problem(s):\n{e}")
    })
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let level = match (args.verbose, config.log.level) {
        (1, _) | (0, Level::Info) => LevelFilter::INFO,
        (2, _) | (0, Level::Debug) => LevelFilter::DEBUG,
        (3.., _) | (0, Level::Trace) => LevelFilter::TRACE,
        (0, Level::Warn) => LevelFilter::WARN,
        (0, Level::Error) => LevelFilter::ERROR,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        // A log that cannot be written (a closed pipe, a full disk) must not end the server.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    let files = ringfeed_wire::raise_open_files_limit().context("reading RLIMIT_NOFILE")?;
    let endpoints: Vec<String> = config.endpoints.iter().map(|e| e.path.clone()).collect();
    let (connections, anonymous) = (config.server.connections_max, config.auth.anonymous);
    let server = server::start(config)?;
    if anonymous {
        tracing::warn!("auth.anonymous = true: anybody who reaches {} is served", server.public);
    }
    tracing::info!("up to {connections} connections; RLIMIT_NOFILE is {files}");
    for path in endpoints {
        tracing::info!("clients connect to ws://{}{path}", server.public);
    }
    tracing::info!("HTTP API and metrics at http://{}", server.internal);
    server.wait()?;
    tracing::info!("drained");
    Ok(())
}

/// One request, one answer: not worth an HTTP client library on the server's side.
fn publish(args: &PublishArgs) -> anyhow::Result<()> {
    let mut data = args.data.clone();
    if data == "-" {
        data.clear();
        std::io::stdin().read_to_string(&mut data).context("reading standard input")?;
    }
    let channel = serde_json::to_string(&args.channel)?;
    let body = match serde_json::from_str::<&serde_json::value::RawValue>(&data) {
        Ok(json) if !args.text => format!("{{\"channel\":{channel},\"data\":{}}}", json.get()),
        _ => format!("{{\"channel\":{channel},\"text\":{}}}", serde_json::to_string(&data)?),
    };
    let PublishArgs { api, api_key, .. } = args;
    let timeout = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(api, timeout)
        .with_context(|| format!("no server answers at http://{api}"))?;
    stream.set_read_timeout(Some(timeout))?;
    write!(
        stream,
        "POST /api/publish HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {api_key}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{}: {body}", head.lines().next().unwrap_or_default());
    }
    println!("{body}");
    Ok(())
}
