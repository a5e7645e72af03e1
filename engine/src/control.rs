//! The control thread: the HTTP API, metrics and signals, on tokio, where well-kept libraries do the
//! work and nothing can stall a shard.

mod api;
#[cfg(fuzzing)]
pub mod fuzzing;
mod ingest;
mod metrics;
mod publish;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::message::Request;
use crate::shard::Shared;

pub use api::openapi;

/// Exit status after a second signal.
const ABORTED: i32 = 130;

/// What every request handler sees.
#[derive(Debug)]
struct State {
    shared: Arc<Shared>,
    started: Instant,
    draining: AtomicBool,
    stop: Notify,
}

/// The running control thread.
pub struct Control {
    state: Arc<State>,
    thread: JoinHandle<()>,
}

impl Control {
    /// Starts the thread on a listener that is open already.
    pub fn start(listener: TcpListener, shared: Arc<Shared>) -> io::Result<Control> {
        listener.set_nonblocking(true)?;
        let state = Arc::new(State {
            shared,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            stop: Notify::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Caught before anybody is told that the server runs.
        let (term, int) = {
            let _context = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let shared_state = state.clone();
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            if let Err(e) = runtime.block_on(serve(listener, shared_state, term, int)) {
                tracing::error!("the control thread ended: {e}");
            }
        })?;
        Ok(Control { state, thread })
    }

    /// Begins the graceful drain.
    pub fn drain(&self) {
        self.state.drain();
    }

    /// Ends the thread, once the shards have ended.
    pub fn stop(self) {
        self.state.stop.notify_one();
        if self.thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

impl State {
    fn drain(&self) {
        if self.draining.swap(true, Ordering::SeqCst) {
            return;
        }
        tracing::info!("draining: no new connections, clients are told to come back later");
        for shard in self.shared.shards.ids() {
            // A shard takes requests in bounded time; it must be told.
            let mut request = Request::Drain;
            while let Err(back) = self.shared.shards.request(shard, request) {
                request = back;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}

async fn serve(
    listener: TcpListener,
    state: Arc<State>,
    term: Signal,
    int: Signal,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let signals = tokio::spawn(signals(state.clone(), term, int));
    let router = api::router(state.clone());
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        () = state.stop.notified() => {}
    }
    signals.abort();
    Ok(())
}

/// The first SIGTERM or SIGINT drains, the second ends the process at once.
async fn signals(state: Arc<State>, mut term: Signal, mut int: Signal) {
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        if state.draining.load(Ordering::SeqCst) {
            std::process::exit(ABORTED);
        }
        state.drain();
    }
}
