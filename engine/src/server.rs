//! Starting and stopping: ports, shards, the control thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures_util::future::LocalBoxFuture;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringfeed_wire::{EpollWire, Io, UringWire, Wire, WireConfig, WireError};
use socket2::{Domain, Socket, Type};

use crate::config::{Config, IoChoice};
use crate::control;
use crate::counters::Counters;
use crate::ids::ShardId;
use crate::message::{QUEUE_BATCHES, ShardEnd, Shards, Waker, queues};
use crate::plan;
use crate::shard::door::{self, Admission};
use crate::shard::{Environment, Local, Shard, Shared};

/// Entries of each executor's own ring: accepts, handshakes and timers only.
const EXECUTOR_ENTRIES: u32 = 4096;

/// Why the server could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port could not be opened.
    #[error("{key} = {address}: {source}{hint}")]
    Bind {
        /// The key in the configuration.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// The socket layer could not be made.
    #[error(transparent)]
    Wire(#[from] WireError),
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
    shards: Vec<JoinHandle<Result<(), ServeError>>>,
    control: control::Control,
}

/// Opens the ports, starts the threads and returns once everything runs.
pub fn start(config: Config) -> Result<Server, ServeError> {
    let io = choose_io(config.server.io)?;
    let config = Arc::new(config);
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let count = match config.server.shards {
        0 => u16::try_from(cores.len().max(1)).unwrap_or(u16::MAX),
        count => count,
    };
    for consumer in plan::memory(&config, io, count) {
        tracing::info!("memory: {consumer}");
    }
    for limit in plan::limits(&config, io, count) {
        tracing::warn!("{limit}");
    }
    let internal = bind_internal(config.api.listen)?;
    let mut public = config.server.listen;
    check_free(public)?;
    let mut listeners = Vec::new();
    for _ in 0..count {
        let listener = bind_public(public, &config)?;
        // With port 0 the first one chooses and the others share it.
        public = listener.local_addr().map_err(|e| bind_error("server.listen", public, e))?;
        listeners.push(listener);
    }

    // Each thread makes its own ring, then waits to be told of all others.
    let (ready, started) = crossbeam_channel::bounded::<Result<(ShardId, ShardEnd), ServeError>>(1);
    let mut threads = Vec::new();
    let mut releases = Vec::new();
    for (id, listener) in (0..).map(ShardId).zip(listeners) {
        let (release, released) = crossbeam_channel::bounded::<Arc<Shared>>(1);
        releases.push(release);
        let core = config.server.pin.then(|| cores.get(id.index() % cores.len().max(1)));
        let core = core.flatten().copied();
        let (ready, config) = (ready.clone(), config.clone());
        let run = move || {
            if let Some(core) = core {
                core_affinity::set_for_current(core);
            }
            let berth = Berth { id, listener, ready, released };
            let size =
                WireConfig { sockets_max: config.server.connections_max, ..WireConfig::default() };
            match io {
                Io::IoUring => berth.run(UringWire::new(size), uring_executor),
                Io::Epoll => {
                    berth.listener.set_nonblocking(true).map_err(ServeError::Thread)?;
                    berth.run(EpollWire::new(&size), epoll_executor)
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("shard-{id}"));
        threads.push(thread.spawn(run).map_err(ServeError::Thread)?);
    }
    let mut ends = Vec::new();
    for _ in 0..count {
        ends.push(started.recv().map_err(|e| ServeError::Thread(io::Error::other(e)))??);
    }
    ends.sort_by_key(|(id, _)| *id);
    let admission =
        Admission::new(config.server.connections_max, config.server.connections_per_address_max);
    let shared = Arc::new(Shared {
        config,
        shards: Shards::new(ends.into_iter().map(|(_, end)| end).collect(), rand::random()),
        counters: (0..count).map(|_| Arc::new(Counters::default())).collect(),
        admission: Arc::new(admission),
    });
    for release in releases {
        let _ = release.send(shared.clone());
    }
    let internal_address =
        internal.local_addr().map_err(|e| bind_error("api.listen", shared.config.api.listen, e))?;
    let control = control::Control::start(internal, shared).map_err(ServeError::Control)?;
    Ok(Server { public, internal: internal_address, shards: threads, control })
}

impl Server {
    /// Begins the graceful drain, as SIGTERM does.
    pub fn drain(&self) {
        self.control.drain();
    }

    /// Waits until every shard has drained.
    pub fn wait(self) -> Result<(), ServeError> {
        for (id, thread) in (0..).map(ShardId).zip(self.shards) {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => return Err(ServeError::Shard(id, "it panicked".into())),
            }
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

/// What a shard's thread begins with.
struct Berth {
    id: ShardId,
    listener: TcpListener,
    ready: crossbeam_channel::Sender<Result<(ShardId, ShardEnd), ServeError>>,
    released: crossbeam_channel::Receiver<Arc<Shared>>,
}

impl Berth {
    /// Tells that the shard is ready, waits for the others, and runs it on an executor.
    fn run<W: Wire>(
        self,
        wire: Result<W, WireError>,
        execute: fn(LocalBoxFuture<'_, io::Result<()>>) -> io::Result<()>,
    ) -> Result<(), ServeError> {
        let Berth { id, listener, ready, released } = self;
        let made = wire.map_err(ServeError::from).and_then(|wire| {
            let event_fd = wire.event_fd().try_clone_to_owned().map_err(ServeError::Thread)?;
            Ok((wire, queues(Waker::new(event_fd.into()), QUEUE_BATCHES)))
        });
        let (wire, inbox) = match made {
            Ok((wire, (end, inbox))) => {
                let _ = ready.send(Ok((id, end)));
                (wire, inbox)
            }
            Err(e) => {
                let _ = ready.send(Err(e));
                return Ok(());
            }
        };
        // Closed without a word when another shard could not start.
        let Ok(shared) = released.recv() else { return Ok(()) };
        let run = async move {
            let local = Rc::new(Local::new(Some(listener.try_clone()?.into())));
            let listener = monoio::net::TcpListener::from_std(listener)?;
            monoio::spawn(door::accept(listener, id, shared.clone(), local.clone()));
            monoio::spawn(local.clone().tick(id, shared.clone()));
            Shard::new(id, wire, shared, inbox, local, Environment::machine()).run().await
        };
        execute(Box::pin(run)).map_err(|e| ServeError::Shard(id, e.to_string()))
    }
}

fn uring_executor(shard: LocalBoxFuture<'_, io::Result<()>>) -> io::Result<()> {
    RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(EXECUTOR_ENTRIES)
        .enable_timer()
        .build()?
        .block_on(shard)
}

fn epoll_executor(shard: LocalBoxFuture<'_, io::Result<()>>) -> io::Result<()> {
    RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(shard)
}

/// One listener of several on the same port: the kernel spreads connections over them.
fn bind_public(address: SocketAddr, config: &Config) -> Result<TcpListener, ServeError> {
    let bind = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit both.
        socket.set_tcp_nodelay(true)?;
        if config.server.send_buffer_bytes > 0 {
            socket.set_send_buffer_size(config.server.send_buffer_bytes as usize)?;
        }
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(config.server.backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    };
    bind().map_err(|e| bind_error("server.listen", address, e))
}

/// With SO_REUSEPORT a second server of the same user would silently share the port with the first:
/// a bind without it tells.
fn check_free(address: SocketAddr) -> Result<(), ServeError> {
    let bind = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    bind().map_err(|e| bind_error("server.listen", address, e))
}

fn bind_internal(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).map_err(|e| bind_error("api.listen", address, e))
}

fn bind_error(key: &'static str, address: SocketAddr, source: io::Error) -> ServeError {
    let hint = match source.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    };
    ServeError::Bind { key, address, source, hint }
}
