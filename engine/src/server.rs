//! Starting and stopping: ports, shards, the control thread.
//!
//! A shard that cannot start, that fails or that panics ends the server with the reason: the others would go on
//! without it, with a part of the channels that answers nothing.

mod berth;
mod ports;
mod threads;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ringfeed_wire::{EpollWire, Io, UringWire, WireConfig, WireError};

use crate::bridge::BridgeThread;
use crate::config::{ConfigErrors, IoChoice};
use crate::control::{self, Fetched, Reload};
use crate::ids::ShardId;
use crate::mesh::MeshThread;
use crate::message::{ShardEnd, Shards};
use crate::plan;
use crate::settings::Settings;
use crate::shard::Shared;
use crate::shard::door::Admission;
use berth::Berth;
use threads::Threads;

/// Why the server could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port could not be opened.
    #[error("{key} = {address}: {cause}{hint}")]
    Bind {
        /// The key in the configuration.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The kernel's answer.
        cause: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// The configuration does not go with so many shards.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The socket layer could not be made.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A shard's executor could not be made.
    #[error("shard {shard} cannot make its executor: {cause}{hint}")]
    Executor {
        /// The shard.
        shard: ShardId,
        /// The kernel's answer.
        cause: io::Error,
        /// What may help.
        hint: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A shard ended with an error.
    #[error("shard {0} ended: {1}")]
    Shard(ShardId, String),
    /// The control thread ended with an error.
    #[error("the control thread ended: {0}")]
    Control(io::Error),
}

/// A server that listens. Dropping it does not stop it; [`Server::wait`] does once it is told to.
pub struct Server {
    /// Where WebSocket clients connect.
    pub public: SocketAddr,
    /// Where the HTTP API is served.
    pub internal: SocketAddr,
    shards: Threads<ShardEnd>,
    control: control::Control,
    /// Where there is a Redis.
    bridge: Option<BridgeThread>,
    mesh: Option<MeshThread>,
}

/// Opens the ports, starts the threads and returns once everything runs.
pub fn start(settings: Settings, reload: Option<Reload>) -> Result<Server, ServeError> {
    let config = settings.config.clone();
    ringfeed_protocol::node::set(&config.server.node_id);
    let io = choose_io(config.server.io)?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let count = match config.server.shards {
        0 => u16::try_from(cores.len().max(1)).unwrap_or(u16::MAX),
        count => count,
    };
    config.check_shares(count)?;
    let internal = ports::bind_internal(config.api.listen)?;
    let mut public = config.server.listen;
    ports::check_free(public)?;
    let mut listeners = Vec::new();
    for _ in 0..count {
        let listener = ports::bind_public(public, &config)?;
        // With port 0 the first one chooses and the others share it.
        public =
            listener.local_addr().map_err(|e| ports::bind_error("server.listen", public, e))?;
        listeners.push(listener);
    }
    for consumer in plan::memory(&config, io, count) {
        tracing::info!("memory: {consumer}");
    }
    for limit in plan::limits(&config, io, count) {
        tracing::warn!("{limit}");
    }

    // Each thread makes its own ring and executor, then waits to be told of all others.
    let mut threads = Threads::new(count);
    let mut releases = Vec::new();
    for (id, listener) in (0..).map(ShardId).zip(listeners) {
        let (release, released) = crossbeam_channel::bounded::<Arc<Shared>>(1);
        releases.push(release);
        let core = config.server.pin.then(|| cores.get(id.index() % cores.len().max(1)));
        let core = core.flatten().copied();
        let config = config.clone();
        threads.spawn(id, move |voice| {
            if let Some(core) = core {
                core_affinity::set_for_current(core);
            }
            let berth = Berth { id, listener, voice, released };
            let size =
                WireConfig { sockets_max: config.server.connections_max, ..WireConfig::default() };
            match io {
                Io::IoUring => berth.run(UringWire::new(size), berth::uring_executor),
                Io::Epoll => {
                    berth.listener.set_nonblocking(true).map_err(ServeError::Thread)?;
                    berth.run(EpollWire::new(&size), berth::epoll_executor)
                }
            }
        })?;
    }
    let ends = threads.all_ready()?;
    let admission =
        Admission::new(config.server.connections_max, config.server.connections_per_address_max);
    let admission = admission.with_handshake_rate(
        config.server.handshakes_per_address_per_second_max,
        config.server.handshakes_burst,
    );
    let (shared, asked) = Shared::new(settings, Shards::new(ends, rand::random()), admission);
    let mesh = match config.cluster.is_used() {
        true => Some(MeshThread::start(shared.clone(), public).map_err(ServeError::Thread)?),
        false => None,
    };
    // Before anybody is served.
    let fetched = mesh.as_ref().map(|mesh| Fetched::begin(&shared, mesh.channels()));
    for release in releases {
        let _ = release.send(shared.clone());
    }
    let internal_address = internal
        .local_addr()
        .map_err(|e| ports::bind_error("api.listen", shared.config().api.listen, e))?;
    let bridge = match config.redis.is_used() {
        true => Some(BridgeThread::start(shared.clone()).map_err(ServeError::Thread)?),
        false => None,
    };
    let control = control::Control::start(internal, shared, asked, reload, fetched)
        .map_err(ServeError::Control)?;
    Ok(Server { public, internal: internal_address, shards: threads, control, bridge, mesh })
}

impl Server {
    /// Begins the graceful drain, as SIGTERM does.
    pub fn drain(&self) {
        self.control.drain();
    }

    /// Waits until every shard has drained, or until the first one fails: then the process is to end, since what
    /// that shard held is gone and the others wait for it.
    pub fn wait(self) -> Result<(), ServeError> {
        self.shards.wait()?;
        if let Some(bridge) = self.bridge {
            bridge.stop();
        }
        if let Some(mesh) = self.mesh {
            mesh.stop();
        }
        self.control.stop();
        Ok(())
    }
}

/// What the sockets are served with.
fn choose_io(choice: IoChoice) -> Result<Io, ServeError> {
    if choice == IoChoice::Epoll {
        return Ok(Io::Epoll);
    }
    match ringfeed_wire::probe() {
        Ok(()) => Ok(Io::IoUring),
        Err(e) if choice == IoChoice::Auto => {
            tracing::warn!(
                "{e}. Serving with epoll instead: slower, and bounded by ulimit -n. server.io = \
                 \"epoll\" chooses it without this warning"
            );
            Ok(Io::Epoll)
        }
        Err(e) => Err(e.into()),
    }
}
