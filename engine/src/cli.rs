//! The command line.

mod configuration;
mod haproxy;
mod output;
mod publish;
mod registry;
mod token;

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use ringfeed_engine::config::{self, Config, DEFAULT_TOML, Level};
use ringfeed_engine::{control, server};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::configuration::{ConfigArgs, load, settings, sources, warn_of_strays};
use self::output::say;

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
    /// Publish to a channel of a running server, over its HTTP API; as a file for it where it cannot be reached.
    Publish(publish::PublishArgs),
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
        Command::Publish(args) => publish::run(&args),
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

#[cfg(test)]
mod tests {
    use super::*;

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
