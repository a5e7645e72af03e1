//! The process: what it is started with, what it does by itself, and how it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::api::BackedUp;
use super::client::{Http, HttpError};
use super::error::{ApiError, Code};
use super::fleet::Limits;
use super::guard::Guard;
use super::hold::Registry;
use super::keys::{Key, KeyError, KeySources};
use super::store::{Store, StoreError, copy};
use super::{port, routes};
use crate::clock::Clock;

/// How often the file learns what it may learn late.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Names of copies: this, the time, `-`, six characters, `.db`.
const COPY_PREFIX: &str = "registry-";

/// What a registry is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its file.
    pub db: PathBuf,
    /// The directory for copies, if there are to be any.
    pub backup_dir: Option<PathBuf>,
    /// Copies that are kept there, the newest ones; 0 keeps all.
    pub backups_kept: usize,
    /// A node not heard of for longer is not live.
    pub node_timeout: Duration,
    /// A node not heard of for longer is forgotten.
    pub forget_after: Duration,
    /// Nodes that it remembers.
    pub nodes_max: usize,
    /// Channels that it keeps.
    pub channels_max: usize,
    /// Connections at a time.
    pub connections_max: usize,
    /// How `/cluster/metrics` asks nodes.
    pub(super) nodes_http: Http,
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Its keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Its file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its port, its directory, its threads.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
    /// How it asks nodes.
    #[error("asking nodes: {0}")]
    Http(#[from] HttpError),
}

impl Options {
    /// With what is usual. `node_key` is what `/cluster/metrics` shows to nodes.
    pub fn new(
        listen: SocketAddr,
        db: PathBuf,
        node_key: Option<&Key>,
    ) -> Result<Options, OptionsError> {
        Ok(Options {
            listen,
            db,
            backup_dir: None,
            backups_kept: 48,
            node_timeout: Duration::from_secs(6),
            forget_after: Duration::from_secs(86_400),
            nodes_max: 1000,
            channels_max: 10_000,
            connections_max: 1024,
            nodes_http: Http::new(node_key)?,
        })
    }

    pub(super) fn limits(&self) -> Limits {
        let Options { node_timeout, forget_after, nodes_max, channels_max, .. } = *self;
        Limits { node_timeout, forget_after, nodes_max, channels_max }
    }
}

/// Runs a registry until SIGTERM or SIGINT. `ready` is told where it listens.
pub fn run(
    options: Options,
    keys: KeySources,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), OptionsError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |e| OptionsError::Io(what, e)
    };
    let callers = keys.callers(options.listen.ip().is_loopback())?;
    if let Some(directory) = &options.backup_dir {
        let made = tempfile::Builder::new().prefix(".backup-").tempdir_in(directory);
        made.map_err(io(&format!("--backup-dir {}", directory.display())))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(io("the runtime"))?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
        let mut hangup = signal(SignalKind::hangup()).map_err(io("SIGHUP"))?;
        // The file first: what cannot be kept is not to be asked for.
        let (store, contents) = Store::open(&options.db).await?;
        let listen = options.listen;
        let listener =
            TcpListener::bind(listen).await.map_err(io(&format!("--listen {listen}")))?;
        let address = listener.local_addr().map_err(io("--listen"))?;
        let registry = Arc::new(Registry::new(options, store, contents));
        let callers = Arc::new(ArcSwap::from_pointee(callers));
        let guard = Arc::new(Guard::new(registry.clone(), callers.clone()));
        let (end, ending) = watch::channel(false);
        let served = port::serve(listener, routes::router(guard), registry.clone(), ending);
        let flushing = tokio::spawn(flush_now_and_then(registry.clone()));
        ready(address);
        let signals = async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = hangup.recv() => match keys.callers(listen.ip().is_loopback()) {
                        Ok(read) => {
                            callers.store(Arc::new(read));
                            tracing::info!("the keys were read again");
                        }
                        Err(e) => tracing::error!("the keys stay as they were: {e}"),
                    },
                }
            }
            tracing::info!("the registry ends");
            end.send_replace(true);
        };
        tokio::join!(served, signals);
        flushing.abort();
        let _ = flushing.await;
        // Connections that were given up may still hold it for a moment.
        match Arc::try_unwrap(registry) {
            Ok(registry) => registry.close().await,
            Err(registry) => registry.flush().await,
        }
        Ok(())
    })
}

async fn flush_now_and_then(registry: Arc<Registry>) {
    let mut ticks = interval(FLUSH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        registry.flush().await;
    }
}

/// Makes a copy under a name that nobody else chooses.
pub(super) async fn backup(registry: &Registry) -> Result<BackedUp, ApiError> {
    let Some(directory) = &registry.options.backup_dir else {
        let message = "the registry was started without a directory for copies (--backup-dir)";
        return Err(ApiError::new(Code::NotConfigured, message));
    };
    let busy = || ApiError::new(Code::Busy, "another copy is being made");
    let _turn = registry.copying.try_acquire().map_err(|_| busy())?;
    registry.flush().await;
    let time = super::foreign::iso(Clock::Machine.unix_ms() / 1000 * 1000);
    let time: String = time.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let file = format!("{COPY_PREFIX}{time}-{:06x}.db", rand::random::<u32>() >> 8);
    let bytes = match copy(registry.path(), &directory.join(&file)).await {
        Ok(bytes) => bytes,
        Err(e) => {
            registry.figures.store_failures.inc();
            tracing::error!("no copy was made: {e}");
            return Err(ApiError::new(Code::Storage, format!("no copy was made: {}", e.told())));
        }
    };
    registry.figures.backups.inc();
    tracing::info!("a copy of {bytes} bytes is {file}");
    if let Err(e) = remove_old(directory, registry.options.backups_kept) {
        tracing::warn!("old copies in {} stay: {e}", directory.display());
    }
    Ok(BackedUp { file, bytes })
}

/// Removes all copies but the newest ones. Their names begin with when they were made.
fn remove_old(directory: &Path, kept: usize) -> std::io::Result<()> {
    if kept == 0 {
        return Ok(());
    }
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_copy = name.to_str().is_some_and(|name| {
            let middle = name.strip_prefix(COPY_PREFIX).and_then(|name| name.strip_suffix(".db"));
            middle.is_some_and(|middle| {
                middle.len() == "20260101T000000Z-abcdef".len()
                    && middle.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
        });
        if is_copy && entry.file_type()?.is_file() {
            copies.push(name);
        }
    }
    copies.sort();
    let old = copies.len().saturating_sub(kept);
    for name in copies.into_iter().take(old) {
        tracing::info!("the copy {} is old and removed", name.display());
        std::fs::remove_file(directory.join(name))?;
    }
    Ok(())
}
