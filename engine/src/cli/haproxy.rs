//! `ringfeed haproxy`: HAProxy's configuration from a registry's nodes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use ringfeed_engine::haproxy::{
    Follow, Outcome, Reload, Section, Sticky, Target, Template, check_bind, check_path,
};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{log_to_stderr, say};
use super::registry::{AskArgs, block_on};

#[derive(Debug, Args)]
pub(super) struct HaproxyArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Write once and end. This is so without --watch, too.
    #[arg(long, conflicts_with = "watch")]
    once: bool,
    /// Look again and again until SIGTERM or Ctrl-C, and write when the nodes have changed.
    #[arg(long, requires = "output")]
    watch: bool,
    /// The configuration file. Without it, the configuration is printed.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace only the `backend` section of the file, which is there; everything else in it stays.
    #[arg(long, requires = "output")]
    section: bool,
    /// Milliseconds between two looks at the registry, more or less a tenth.
    #[arg(long, default_value_t = 2000, value_name = "MS", value_parser = clap::value_parser!(u64).range(50..=3_600_000))]
    interval_ms: u64,
    /// Command for the shell that has HAProxy read its configuration again, such as 'systemctl reload haproxy'.
    #[arg(long, value_name = "COMMAND", conflicts_with = "pid_file", requires = "output")]
    reload: Option<String>,
    /// File with the number of HAProxy's master process (haproxy -W -p FILE), which is sent SIGUSR2 to have it read its
    /// configuration again.
    #[arg(long, value_name = "FILE", requires = "output")]
    pid_file: Option<PathBuf>,
    /// HAProxy, which has to accept a configuration before it is used.
    #[arg(long, default_value = "haproxy", value_name = "PROGRAM")]
    haproxy: PathBuf,
    /// Name of the backend.
    #[arg(long, default_value = "ringfeed_nodes", value_name = "NAME")]
    backend: Section,
    /// Where clients come in; may be repeated. :80 without it, or :443 with --tls-cert.
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| check_bind(text))]
    bind: Vec<String>,
    /// PEM file with certificate and key: clients speak TLS.
    #[arg(long, value_name = "FILE", value_parser = |text: &str| check_path(text))]
    tls_cert: Option<String>,
    /// Tell nodes with the PROXY protocol for whom a connection is: server.proxy_protocol = "required" there. Without it, with
    /// X-Forwarded-For.
    #[arg(long)]
    proxy_protocol: bool,
    /// How a client comes back to the node that it had.
    #[arg(long, value_enum, default_value_t = StickyBy::Cookie)]
    sticky: StickyBy,
    /// What nodes are asked to see whether they live.
    #[arg(long, default_value = "/health", value_name = "PATH", value_parser = |text: &str| check_path(text))]
    check_path: String,
    /// Connections of clients at a time; HAProxy needs two descriptors for each. Without it, as many as its `ulimit -n` allows.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    connections_max: Option<u32>,
    /// Seconds that a WebSocket may be silent: more than the nodes' heartbeat.interval_ms.
    #[arg(long, default_value_t = 3600, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    tunnel_timeout_s: u32,
    /// Seconds that connections of before a reload may live on.
    #[arg(long, default_value_t = 43_200, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    reload_timeout_s: u32,
    /// Show HAProxy's statistics here, on loopback.
    #[arg(long, value_name = "ADDRESS:PORT")]
    stats: Option<SocketAddr>,
    /// Log more: -v debug, -vv trace, -vvv trace of the libraries, too.
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StickyBy {
    /// By a cookie.
    Cookie,
    /// By its address.
    Source,
    /// Not at all.
    None,
}

impl HaproxyArgs {
    fn template(&self) -> anyhow::Result<Template> {
        if let Some(stats) = self.stats.filter(|stats| !stats.ip().is_loopback()) {
            bail!("--stats {stats}: allowed are addresses of loopback, as it asks for no password");
        }
        let usual = if self.tls_cert.is_some() { ":443" } else { ":80" };
        let binds = match self.bind.is_empty() {
            true => vec![usual.to_owned()],
            false => self.bind.clone(),
        };
        Ok(Template {
            backend: self.backend.clone(),
            binds,
            tls_cert: self.tls_cert.clone(),
            proxy_protocol: self.proxy_protocol,
            sticky: match self.sticky {
                StickyBy::Cookie => Sticky::Cookie,
                StickyBy::Source => Sticky::Source,
                StickyBy::None => Sticky::None,
            },
            check_path: self.check_path.clone(),
            connections_max: self.connections_max,
            tunnel_timeout_s: self.tunnel_timeout_s,
            reload_timeout_s: self.reload_timeout_s,
            stats: self.stats,
        })
    }

    fn reload(&self) -> Reload {
        match (&self.reload, &self.pid_file) {
            (Some(command), _) => Reload::Command(command.clone()),
            (None, Some(file)) => Reload::PidFile(file.clone()),
            (None, None) => Reload::None,
        }
    }
}

pub(super) fn run(args: HaproxyArgs) -> anyhow::Result<()> {
    log_to_stderr(args.verbose);
    let (template, client, reload) = (args.template()?, args.ask.client()?, args.reload());
    let Some(file) = args.output else {
        let nowhere = Target { file: PathBuf::new(), haproxy: args.haproxy, reload };
        let text = block_on(Follow::new(client, template, false, nowhere).show())??;
        return say(text.trim_end());
    };
    if args.section && !file.is_file() {
        bail!("--section: {}: there is no such file", file.display());
    }
    let target = Target { file: file.clone(), haproxy: args.haproxy, reload };
    let mut follow = Follow::new(client, template, args.section, target);
    if !args.watch {
        let told = match block_on(follow.look(false))?? {
            Outcome::Written(taking, draining) => {
                format!("written, with {taking} nodes that take clients and {draining} that drain")
            }
            Outcome::Unchanged => "as it has to be".into(),
            Outcome::NoNodes => "left alone: there are no nodes".into(),
            Outcome::NotSettled => "left alone: the registry has just begun".into(),
        };
        return say(&format!("{}: {told}", file.display()));
    }
    let interval = Duration::from_millis(args.interval_ms);
    block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        tokio::select! {
            never = follow.watch(interval) => match never {},
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })?
}
