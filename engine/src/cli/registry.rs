//! `ringfeed registry`: running a registry, and asking one.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use ringfeed_engine::registry::api::{ChannelEntry, ChannelPut, ChannelsChanged, NodeEntry};
use ringfeed_engine::registry::client::{Client, check_url};
use ringfeed_engine::registry::keys::KeySources;
use ringfeed_engine::registry::{self, Options};
use serde_json::{Map, Value};

use super::output::{log_to_stderr, say};

/// How long the registry has for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Largest file with a rule in bytes.
const RULE_FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum RegistryCommand {
    /// Run a registry until SIGTERM or Ctrl-C. SIGHUP reads the keys again.
    Serve(Box<ServeArgs>),
    /// Write a consistent copy of a registry's file to a new one, also while the registry runs.
    Backup(BackupArgs),
    /// List the nodes that a registry knows.
    Nodes(NodesArgs),
    /// List, change and remove the channels that nodes fetch from a registry.
    #[command(subcommand)]
    Channels(ChannelsCommand),
    /// Print the OpenAPI description of the registry's HTTP API.
    Openapi,
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Where it listens. It speaks no TLS: beyond loopback put it into a private network or behind a proxy.
    #[arg(long, default_value = "127.0.0.1:9810", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Its file (SQLite); made if it is not there.
    #[arg(long, default_value = "registry.db", value_name = "FILE")]
    db: PathBuf,
    /// File with a key on each line. May be repeated; all of them hold. Without it the keys are what
    /// RINGFEED_REGISTRY_KEY in the environment holds, with commas between them.
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// File with the key that nodes are shown by GET /cluster/metrics. Without it, the first key of the registry.
    #[arg(long, value_name = "FILE")]
    node_key_file: Option<PathBuf>,
    /// Directory for the copies that POST /v1/backup makes. Without it, it makes none.
    #[arg(long, value_name = "DIR")]
    backup_dir: Option<PathBuf>,
    /// Copies that are kept there, the newest ones; 0 keeps all.
    #[arg(long, default_value_t = 48, value_name = "COUNT")]
    backups_kept: usize,
    /// Milliseconds without a word after which a node counts as gone: three heartbeats or more.
    #[arg(long, default_value_t = 6_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    node_timeout_ms: u64,
    /// Seconds without a word after which a node is forgotten.
    #[arg(long, default_value_t = 86_400, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    forget_after_s: u64,
    /// Nodes that it remembers at most; more are refused.
    #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    nodes_max: u32,
    /// Channels that it keeps at most; more are refused.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    channels_max: u32,
    /// Connections at a time; more are told to come back.
    #[arg(long, default_value_t = 1024, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connections_max: u32,
    /// Log more: -v debug, -vv trace, -vvv trace of the libraries, too.
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The registry's file.
    #[arg(long, default_value = "registry.db", value_name = "FILE")]
    db: PathBuf,
    /// Where the copy goes: a file that is not there yet.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// Which registry is asked.
#[derive(Debug, Args)]
pub(super) struct AskArgs {
    /// The registry.
    #[arg(
        long,
        env = "RINGFEED_REGISTRY",
        default_value = "http://127.0.0.1:9810",
        value_name = "URL",
        value_parser = |url: &str| check_url(url)
    )]
    registry: String,
    /// File with the key. Without it the key is what RINGFEED_REGISTRY_KEY in the environment holds.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl AskArgs {
    /// With the key, which is there.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let keys = KeySources::new(self.key_file.iter().cloned().collect())?.read()?;
        let Some(key) = keys.first() else {
            bail!("the registry's key is needed: --key-file FILE, or RINGFEED_REGISTRY_KEY");
        };
        Ok(Client::new(&self.registry, Some(key), ANSWER_TIME)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct NodesArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Also those that have not been heard of for long.
    #[arg(long)]
    all: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ChannelsCommand {
    /// List the channels.
    List {
        #[command(flatten)]
        ask: AskArgs,
        /// Only those that this node serves.
        #[arg(long, value_name = "ID")]
        node: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Add a channel, or change what is there under its name.
    Set {
        #[command(flatten)]
        ask: AskArgs,
        /// Its name, or a pattern of names.
        name: String,
        /// Ids of the nodes that serve it, with commas between them; * stands for any run of characters.
        #[arg(long, default_value = "*", value_delimiter = ',', value_name = "IDS")]
        nodes: Vec<String>,
        /// Its rule: a TOML file with keys of a [[channels]] entry.
        #[arg(long, value_name = "FILE")]
        rule_file: Option<PathBuf>,
    },
    /// Remove a channel from the list.
    Remove {
        #[command(flatten)]
        ask: AskArgs,
        /// Its name as it is in the list.
        name: String,
    },
}

pub(super) fn run(command: RegistryCommand) -> anyhow::Result<()> {
    match command {
        RegistryCommand::Serve(args) => serve(*args),
        RegistryCommand::Backup(BackupArgs { db, to }) => {
            if !db.is_file() {
                bail!("--db {}: there is no such file", db.display());
            }
            let bytes = block_on(registry::copy(&db, &to))??;
            say(&format!("{}: {bytes} bytes", to.display()))
        }
        RegistryCommand::Nodes(NodesArgs { ask, all, json }) => {
            let client = ask.client()?;
            let list = block_on(client.nodes(all, None))??.unwrap_or_default();
            let text = if json { serde_json::to_string_pretty(&list)? } else { table(&list.nodes) };
            say(text.trim_end())
        }
        RegistryCommand::Channels(command) => channels(command),
        RegistryCommand::Openapi => say(&registry::openapi().to_pretty_json()?),
    }
}

/// Runs to its end what is asked of somebody else.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("the runtime")?.block_on(work))
}

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    log_to_stderr(args.verbose);
    let keys = KeySources::new(args.key_file)?;
    let first = match &args.node_key_file {
        Some(file) => KeySources { files: vec![file.clone()], variable: None }.read()?,
        None => keys.read()?,
    };
    let mut options = Options::new(args.listen, args.db, first.first())?;
    options.backup_dir = args.backup_dir;
    options.backups_kept = args.backups_kept;
    options.node_timeout = Duration::from_millis(args.node_timeout_ms);
    options.forget_after = Duration::from_secs(args.forget_after_s).max(options.node_timeout);
    options.nodes_max = args.nodes_max as usize;
    options.channels_max = args.channels_max as usize;
    options.connections_max = args.connections_max as usize;
    let db = options.db.display().to_string();
    registry::run(options, keys, |address| {
        tracing::info!("the registry of {db} listens at http://{address}");
    })?;
    Ok(())
}

fn table(nodes: &[NodeEntry]) -> String {
    let mut text = String::new();
    for node in nodes {
        let live = if node.live { node.state.word() } else { "gone" };
        let (seconds, weight) = (node.age_ms / 1000, node.weight.number());
        let peer = node.peer.as_ref().map_or("-", |peer| peer.as_str());
        let (id, url) = (&node.id, &node.url);
        // Writing into a string does not fail.
        let _ = writeln!(
            text,
            "{id:<24} {live:<9} {seconds:>6} s ago  weight {weight:<4} {url}  {peer}"
        );
    }
    if text.is_empty() { "no nodes".into() } else { text }
}

fn channels(command: ChannelsCommand) -> anyhow::Result<()> {
    match command {
        ChannelsCommand::List { ask, node, json } => {
            let client = ask.client()?;
            let node = node.map(|node| node.parse()).transpose().context("--node")?;
            let list = block_on(client.channels(node.as_ref(), None))??.unwrap_or_default();
            if json {
                return say(&serde_json::to_string_pretty(&list)?);
            }
            let mut text = format!("version {}\n", list.version);
            for ChannelEntry { name, allowed_nodes, rule } in &list.channels {
                let rule = rule.as_ref().map(serde_json::to_string).transpose()?;
                let nodes = allowed_nodes.join(",");
                let _ = writeln!(text, "{name:<32} {nodes}  {}", rule.unwrap_or_default());
            }
            say(text.trim_end())
        }
        ChannelsCommand::Set { ask, name, nodes, rule_file } => {
            let rule = rule_file.map(|file| rule(&file)).transpose()?;
            let put = ChannelPut { name, allowed_nodes: nodes, rule };
            let client = ask.client()?;
            told(&block_on(client.put_channel(&put))??)
        }
        ChannelsCommand::Remove { ask, name } => {
            let client = ask.client()?;
            told(&block_on(client.remove_channel(&name))??)
        }
    }
}

fn told(changed: &ChannelsChanged) -> anyhow::Result<()> {
    let what = if changed.changed { "changed" } else { "nothing to change" };
    say(&format!("{what}: version {}", changed.version))
}

/// The keys of a TOML file, as the registry keeps them.
fn rule(file: &std::path::Path) -> anyhow::Result<Map<String, Value>> {
    let at = || format!("--rule-file {}", file.display());
    let text = super::output::read_text(file, RULE_FILE_BYTES_MAX).with_context(at)?;
    let table: toml::Table = toml::from_str(&text).with_context(at)?;
    match serde_json::to_value(table).with_context(at)? {
        Value::Object(rule) => Ok(rule),
        _ => bail!("{}: it is no table", at()),
    }
}
