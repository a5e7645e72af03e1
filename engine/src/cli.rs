//! The command line.

mod configuration;
mod haproxy;
mod output;
mod registry;
mod token;

use std::env::VarError;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use ringfeed_engine::config::{self, Config, DEFAULT_TOML, Level};
use ringfeed_engine::{control, server};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::configuration::{ConfigArgs, load, settings, sources, warn_of_strays};
use self::output::say;

/// Longest API key.
const API_KEY_BYTES_MAX: u64 = 4096;
/// Longest answer that is read from an HTTP API.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// How long `publish` waits for a connection, and then for each part of the answer.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

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
    DefaultConfig {
        /// As docs/CONFIG.md has it: also what each key may be.
        #[arg(long)]
        markdown: bool,
    },
    /// Publish to a channel of a running server, over its HTTP API.
    Publish(PublishArgs),
    /// Make and inspect the tokens (JWT) that clients authenticate with.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Run a registry for a fleet of nodes without a broker, and ask one.
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// Write HAProxy's configuration from a registry's nodes, once or whenever they change.
    Haproxy(Box<haproxy::HaproxyArgs>),
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
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Log more than log.level says: -v debug, -vv trace, -vvv trace of the libraries, too.
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
    /// Where the HTTP API is: HOST:PORT or http://HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:9801", value_name = "ADDRESS", value_parser = authority)]
    api: String,
    /// File with the API key. Without it the key is what RINGFEED_API_KEY in the environment holds.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// Runs a command.
pub(crate) fn run(mut cli: Cli) -> anyhow::Result<()> {
    match &mut cli.command {
        Command::Serve(args) => args.config.find()?,
        Command::CheckConfig(args) => args.find()?,
        Command::Token(command) => command.config_args().find()?,
        _ => {}
    }
    match cli.command {
        Command::Serve(args) => serve(&args),
        Command::CheckConfig(args) => {
            let sources = sources(&args);
            let settings = settings(load(&sources)?)?;
            let warn = |warning| eprintln!("ringfeed: {warning}");
            warn_of_strays(&sources, warn);
            settings.config.hazards().into_iter().for_each(warn);
            match &args.config {
                Some(file) => say(&format!("{}: the configuration is valid", file.display())),
                None => {
                    say("the built-in defaults, with the environment and the flags, are valid; \
                             --config FILE checks a file")
                }
            }
        }
        Command::DefaultConfig { markdown: false } => say(DEFAULT_TOML.trim_end()),
        Command::DefaultConfig { markdown: true } => say(config::reference().trim_end()),
        Command::Publish(args) => publish(&args),
        Command::Token(command) => token::run(&command),
        Command::Registry(command) => registry::run(command),
        Command::Haproxy(args) => haproxy::run(*args),
        Command::Version => {
            let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            let io_uring = match ringfeed_wire::probe() {
                Ok(()) => "io_uring: everything needed is there".to_owned(),
                Err(e) => e.to_string(),
            };
            let version = env!("CARGO_PKG_VERSION");
            say(&format!("ringfeed {version}\nLinux {}\n{io_uring}", kernel.trim()))
        }
        Command::Openapi => say(&control::openapi().to_pretty_json()?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ringfeed", &mut script);
            say(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

/// `HOST:PORT` of an address or a URL.
fn authority(api: &str) -> Result<String, String> {
    let rest = match api.split_once("://") {
        None => api,
        Some(("http", rest)) => rest,
        Some(_) => return Err("only http:// is spoken; for another, put curl in its place".into()),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, ""));
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || !host.chars().all(fits) || port.parse::<u16>().is_err() {
        return Err("allowed are HOST:PORT and http://HOST:PORT, as in localhost:9801".into());
    }
    Ok(rest.to_owned())
}

/// Our own messages at what was asked for, those of libraries only where they are asked for, too.
fn log_filter(verbose: u8, level: Level) -> Targets {
    let configured = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let (ours, others) = match verbose {
        0 => (configured, configured.min(LevelFilter::WARN)),
        1 => (configured.max(LevelFilter::DEBUG), LevelFilter::WARN),
        2 => (LevelFilter::TRACE, LevelFilter::WARN),
        3.. => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    // All crates of ours begin with this.
    Targets::new().with_default(others).with_target("ringfeed", ours)
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let sources = sources(&args.config);
    // Keys that cannot be read are told like all that is wrong, before any port is opened.
    let settings = settings(load(&sources)?)?;
    let config = settings.config.clone();
    let lines = tracing_subscriber::fmt::layer()
        // A log that cannot be written (a closed pipe, a full disk) must not end the server.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(args.verbose >= 3)
        .with_writer(io::stderr);
    let filter = log_filter(args.verbose, config.log.level);
    let (filter, level) = tracing_subscriber::reload::Layer::new(filter);
    tracing_subscriber::registry().with(filter).with(lines).init();
    let warn = |warning| tracing::warn!("{warning}");
    warn_of_strays(&sources, warn);
    config.hazards().into_iter().for_each(warn);
    ringfeed_wire::raise_open_files_limit().context("reading RLIMIT_NOFILE")?;
    let endpoints: Vec<String> = config.endpoints.iter().map(|e| e.path.clone()).collect();
    let (connections, anonymous) = (config.server.connections_max, config.auth.anonymous);
    let server = server::start(settings, Some(reload(args, level)))?;
    if anonymous {
        tracing::warn!("auth.anonymous = true: anybody who reaches {} is served", server.public);
    }
    tracing::info!("room for {connections} connections (server.connections_max)");
    for path in endpoints {
        tracing::info!("clients connect to ws://{}{path}", server.public);
    }
    tracing::info!("HTTP API and metrics at http://{}", server.internal);
    server.wait()?;
    tracing::info!("drained");
    Ok(())
}

/// How the configuration is read again: from where this command line says it is.
fn reload(
    args: &ServeArgs,
    level: tracing_subscriber::reload::Handle<Targets, tracing_subscriber::Registry>,
) -> control::Reload {
    let (args, verbose) = (args.config.clone(), args.verbose);
    control::Reload {
        read: Box::new(move |holds| Config::load_over(&sources(&args), holds)),
        apply: Box::new(move |config| {
            // It fails only where there is no subscriber any more.
            let _ = level.reload(log_filter(verbose, config.log.level));
        }),
    }
}

/// One request, one answer: not worth an HTTP client library on the server's side.
fn publish(args: &PublishArgs) -> anyhow::Result<()> {
    let PublishArgs { api, api_key_file, .. } = args;
    let api_key = api_key(api_key_file.as_deref())?;
    let authorization = match api_key.as_str() {
        "" => String::new(),
        key => format!("Authorization: Bearer {key}\r\n"),
    };
    let mut data = args.data.clone();
    if data == "-" {
        data.clear();
        io::stdin().read_to_string(&mut data).context("reading standard input")?;
    }
    let channel = serde_json::to_string(&args.channel)?;
    let body = match serde_json::from_str::<&serde_json::value::RawValue>(&data) {
        Ok(json) if !args.text => format!("{{\"channel\":{channel},\"data\":{}}}", json.get()),
        _ => format!("{{\"channel\":{channel},\"text\":{}}}", serde_json::to_string(&data)?),
    };
    let mut stream = connect(api).with_context(|| format!("no server answers at http://{api}"))?;
    stream.set_read_timeout(Some(PUBLISH_TIMEOUT))?;
    stream.set_write_timeout(Some(PUBLISH_TIMEOUT))?;
    let head = format!(
        "POST /api/publish HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).context("sending the request")?;
    // A server that refuses the body may close before it has read all of it; its answer says why.
    let sent = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        sent.context("sending the request")?;
        read.context("reading the answer")?;
        bail!("the answer of http://{api} is not HTTP");
    };
    let body = body.trim_end();
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{}: {body}", head.lines().next().unwrap_or_default());
    }
    say(body)
}

/// The key to publish with; empty where there is none. Never an argument: everybody on this machine can read those.
fn api_key(file: Option<&Path>) -> anyhow::Result<String> {
    let key = match file {
        Some(file) => {
            let mut key = String::new();
            let text = File::open(file)
                .and_then(|opened| opened.take(API_KEY_BYTES_MAX + 1).read_to_string(&mut key));
            text.with_context(|| format!("--api-key-file {}", file.display()))?;
            if key.trim_end_matches(['\r', '\n']).is_empty() {
                bail!("--api-key-file {}: it is empty", file.display());
            }
            key
        }
        None => match std::env::var("RINGFEED_API_KEY") {
            Err(VarError::NotPresent) => String::new(),
            key => key.map_err(|_| anyhow!("RINGFEED_API_KEY: its value is not UTF-8"))?,
        },
    };
    let key = key.trim_end_matches(['\r', '\n']);
    if key.len() as u64 > API_KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "the API key is none that a header could carry; allowed are visible ASCII characters, at most \
             {API_KEY_BYTES_MAX}"
        );
    }
    Ok(key.to_owned())
}

/// Connects to the first address of a name that answers.
fn connect(api: &str) -> anyhow::Result<TcpStream> {
    let mut failed = anyhow::anyhow!("this name has no address");
    for address in api.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PUBLISH_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(e) => failed = e.into(),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_may_be_an_address_a_name_or_a_url() {
        for (given, taken) in [
            ("127.0.0.1:9801", "127.0.0.1:9801"),
            ("localhost:9801", "localhost:9801"),
            ("http://localhost:9801", "localhost:9801"),
            ("http://[::1]:9801/", "[::1]:9801"),
        ] {
            assert_eq!(authority(given).unwrap(), taken);
        }
        for bad in
            ["", "localhost", ":9801", "http://a:b", "a:1/api", "a b:1", "a\r\n:1", "a:70000"]
        {
            assert!(authority(bad).unwrap_err().contains("allowed are HOST:PORT"), "{bad}");
        }
        assert!(authority("https://a:1").unwrap_err().contains("only http://"));
    }

    #[test]
    fn each_v_logs_more() {
        use tracing_subscriber::filter::LevelFilter as F;
        for (verbose, level, ours, others) in [
            (0, Level::Info, F::INFO, F::WARN),
            (0, Level::Error, F::ERROR, F::ERROR),
            (1, Level::Info, F::DEBUG, F::WARN),
            (1, Level::Trace, F::TRACE, F::WARN),
            (2, Level::Info, F::TRACE, F::WARN),
            (3, Level::Error, F::TRACE, F::TRACE),
        ] {
            let filter = log_filter(verbose, level);
            let most = |target: &str| {
                let all = [
                    tracing::Level::TRACE,
                    tracing::Level::DEBUG,
                    tracing::Level::INFO,
                    tracing::Level::WARN,
                    tracing::Level::ERROR,
                ];
                all.into_iter().find(|level| filter.would_enable(target, level)).map(F::from_level)
            };
            assert_eq!(most("ringfeed_engine::shard"), Some(ours), "{verbose} {level:?}");
            assert_eq!(most("hyper::proto"), Some(others), "{verbose} {level:?}");
        }
    }
}
