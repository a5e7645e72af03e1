//! What a shard's thread does before it serves: its ring, its executor, and the wait for the others.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringfeed_wire::{Wire, WireError};

use super::ServeError;
use super::threads::Voice;
use crate::ids::ShardId;
use crate::message::{QUEUE_BATCHES, ShardEnd, Waker, queues};
use crate::plan;
use crate::shard::door;
use crate::shard::{Environment, Local, Shard, Shared};

/// Entries of each executor's own ring: accepts, handshakes and timers only.
const EXECUTOR_ENTRIES: u32 = 4096;

/// Runs a shard until it ends.
pub(super) type Executor = Box<dyn FnOnce(LocalBoxFuture<'_, io::Result<()>>) -> io::Result<()>>;

/// What a shard's thread begins with.
pub(super) struct Berth<'a> {
    pub(super) id: ShardId,
    pub(super) listener: TcpListener,
    pub(super) voice: &'a Voice<ShardEnd>,
    pub(super) released: crossbeam_channel::Receiver<Arc<Shared>>,
}

impl Berth<'_> {
    /// Makes the executor, tells that the shard is ready, waits for the others, and runs it.
    pub(super) fn run<W: Wire>(
        self,
        wire: Result<W, WireError>,
        executor: fn() -> io::Result<Executor>,
    ) -> Result<(), ServeError> {
        let Berth { id, listener, voice, released } = self;
        let wire = wire?;
        let execute = executor().map_err(|cause| {
            let hint = plan::shortage_hint(&cause);
            ServeError::Executor { shard: id, cause, hint }
        })?;
        let event_fd = wire.event_fd().try_clone_to_owned().map_err(ServeError::Thread)?;
        let (end, inbox) = queues(Waker::new(event_fd.into()), QUEUE_BATCHES);
        voice.ready(end);
        // Closed without a word when another shard could not start.
        let Ok(shared) = released.recv() else { return Ok(()) };
        let run = async move {
            let local = Rc::new(Local::new(Some(listener.try_clone()?.into())));
            let listener = monoio::net::TcpListener::from_std(listener)?;
            monoio::spawn(door::accept(listener, id, shared.clone(), local.clone()));
            monoio::spawn(local.clone().tick(id, shared.clone()));
            // Ends with `Ok` only when it was told to drain and has.
            Shard::new(id, wire, shared, inbox, local, Environment::machine()).run().await
        };
        execute(Box::pin(run)).map_err(|e| ServeError::Shard(id, e.to_string()))
    }
}

pub(super) fn uring_executor() -> io::Result<Executor> {
    let builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(EXECUTOR_ENTRIES);
    let mut runtime = builder.enable_timer().build()?;
    Ok(Box::new(move |shard| runtime.block_on(shard)))
}

pub(super) fn epoll_executor() -> io::Result<Executor> {
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    Ok(Box::new(move |shard| runtime.block_on(shard)))
}
