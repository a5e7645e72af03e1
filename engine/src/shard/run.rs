//! A shard's life on its thread: turns, sleep, and letting the executor run.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use monoio::net::UnixStream;
use ringfeed_wire::{Wire, drain_event_fd};

use super::Shard;

/// How long a busy shard keeps the executor (accepts, handshakes, timers) waiting.
const YIELD_EVERY: Duration = Duration::from_millis(1);

impl<W: Wire> Shard<W> {
    /// Runs until the shard has drained.
    pub async fn run(mut self) -> std::io::Result<()> {
        let wake = waitable(self.wire.wait_fd())?;
        let round = Round::new()?;
        let mut yielded = Instant::now();
        loop {
            let busy = self.turn()?;
            if self.is_drained() {
                return Ok(());
            }
            if !busy {
                // Asleep first, then one more look: who queues something later will wake us.
                self.shared.shards.waker(self.id).set_sleeping(true);
                if self.wire.arm()? && !self.has_mail() {
                    self.counters.sleeps.add(1);
                    wake.readable(false).await?;
                    drain_event_fd(self.wire.event_fd());
                    yielded = Instant::now();
                }
                self.shared.shards.waker(self.id).set_sleeping(false);
            }
            // Also where there was nothing to do and no reason to sleep.
            if yielded.elapsed() >= YIELD_EVERY {
                round.pass().await?;
                yielded = Instant::now();
            }
        }
    }
}

/// A descriptor for the executor to wait on. It waits for readiness only and never treats it as a
/// socket.
fn waitable(fd: BorrowedFd<'_>) -> std::io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(fd.try_clone_to_owned()?))
}

/// Lets the executor do one round of its work. A self-waking task would starve it, and `sleep(0)`
/// takes a millisecond; a descriptor that becomes readable while it is waited for takes one round.
struct Round {
    near: UnixStream,
    far: std::os::unix::net::UnixStream,
    near_end: std::os::unix::net::UnixStream,
}

impl Round {
    fn new() -> std::io::Result<Round> {
        let (near, far) = std::os::unix::net::UnixStream::pair()?;
        near.set_nonblocking(true)?;
        Ok(Round { near: waitable(near.as_fd())?, near_end: near, far })
    }

    async fn pass(&self) -> std::io::Result<()> {
        use std::io::{Read as _, Write as _};
        let mut readable = std::pin::pin!(self.near.readable(false));
        // Waited for first: what is readable already would be no wait for the epoll executor.
        if futures_util::poll!(readable.as_mut()).is_pending() {
            (&self.far).write_all(b"!")?;
            readable.await?;
        }
        // What there is to read does not matter, nor whether there is anything.
        let _ = (&self.near_end).read(&mut [0; 8]);
        Ok(())
    }
}
