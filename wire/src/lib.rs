//! The socket layer of ringfeed: everything that touches a promoted connection's socket.
//!
//! [`Wire`] is the API: completion-shaped, so that different bodies can stand behind it. [`UringWire`]
//! is the one over io_uring; [`EpollWire`] stands in where io_uring is not to be had. This crate
//! holds all the `unsafe` code of ringfeed and knows neither WebSocket nor channels.
#![warn(clippy::cast_possible_truncation)]

mod epoll;
mod limits;
mod probe;
mod segment;
mod uring;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;

pub use epoll::EpollWire;
pub use limits::{
    disable_huge_pages, drain_event_fd, into_owned_fd, memory_bytes, open_files_limit,
    process_cpu_time, raise_open_files_limit, resident_bytes, thread_cpu_split, thread_cpu_time,
};
pub use probe::probe;
pub use segment::Segment;
pub use uring::UringWire;

/// A socket in the wire. Stale ids (of a closed socket whose slot is in use again) are recognised
/// by their generation and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Ring number in the upper 12 bits, slot in that ring's table in the lower 20.
    index: u32,
    generation: u32,
}

impl SocketId {
    /// For bodies of [`Wire`]: `index` is ring number × 2^20 + slot, `generation` how often that slot
    /// was used before.
    pub fn new(index: u32, generation: u32) -> SocketId {
        SocketId { index, generation }
    }

    /// Dense enough to index a table by: ring number × 2^20 + slot.
    pub fn index(self) -> u32 {
        self.index
    }
}

/// Who owns a socket: a dense table from socket to a number of the caller's, four bytes a slot.
/// Entries are overwritten, not removed; the caller compares the generation.
#[derive(Debug, Default)]
pub struct SocketOwners(Vec<Vec<u32>>);

impl SocketOwners {
    fn place(socket: SocketId) -> (usize, usize) {
        ((socket.index >> uring::SLOT_BITS) as usize, (socket.index & uring::SLOT_MASK) as usize)
    }

    /// Notes the owner of a socket.
    pub fn set(&mut self, socket: SocketId, owner: u32) {
        let (ring, slot) = Self::place(socket);
        if self.0.len() <= ring {
            self.0.resize_with(ring + 1, Vec::new);
        }
        let ring = &mut self.0[ring];
        if ring.len() <= slot {
            ring.resize(slot + 1, u32::MAX);
        }
        ring[slot] = owner;
    }

    /// The last owner noted for the socket's slot, perhaps of an earlier socket in it.
    pub fn get(&self, socket: SocketId) -> Option<u32> {
        let (ring, slot) = Self::place(socket);
        self.0.get(ring)?.get(slot).copied()
    }
}

/// What happened to a socket.
#[derive(Debug)]
pub enum Event<'a> {
    /// A socket made by [`Wire::connect`] is open.
    Connected(SocketId),
    /// Bytes arrived; the slice is valid until the next call into the wire.
    Received(SocketId, &'a mut [u8]),
    /// A socket watched by [`Wire::watch_writable`] takes bytes again.
    Writable(SocketId),
    /// The peer is gone, or connecting failed (`Some` error number). The owner must still
    /// [`Wire::close`] it.
    Closed(SocketId, Option<io::Error>),
}

/// A send that was not taken whole. Sends taken whole are not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortSend {
    /// As given to [`Wire::send`].
    pub tag: u32,
    /// Bytes taken, possibly 0.
    pub sent: u32,
    /// Whether the socket is broken rather than full.
    pub broken: bool,
}

/// Sizes of a wire.
#[derive(Debug, Clone)]
pub struct WireConfig {
    /// Most sockets, over all rings.
    pub sockets_max: u32,
    /// Most sockets in one ring; the kernel allows no more than `RLIMIT_NOFILE` in each.
    pub sockets_per_ring_max: u32,
    /// Submission queue entries per ring; a power of two.
    pub submission_entries: u32,
    /// Receive buffers per ring; a power of two, at most 32,768.
    pub receive_buffers: u16,
    /// Bytes per receive buffer.
    pub receive_buffer_bytes: u32,
}

impl Default for WireConfig {
    fn default() -> Self {
        WireConfig {
            sockets_max: 20_000,
            sockets_per_ring_max: u32::MAX,
            submission_entries: 1024,
            receive_buffers: 256,
            receive_buffer_bytes: 4096,
        }
    }
}

/// Counters of a wire since it was made, and what it holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sockets open, opening or closing now.
    pub sockets: u64,
    /// Rings made.
    pub rings: u64,
    /// Entries into the kernel.
    pub enters: u64,
    /// Sends handed to the kernel.
    pub sends: u64,
    /// Bytes handed to the kernel.
    pub bytes_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Sends not taken whole.
    pub short_sends: u64,
    /// Times a receive found no buffer and was armed again.
    pub buffer_shortages: u64,
    /// Times the completion queue overflowed and was fetched from the kernel's list.
    pub completion_overflows: u64,
}

/// Why a wire could not be made or grown.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel refuses something the wire cannot do without.
    #[error("io_uring is not usable here: {step} failed: {source}{hint}")]
    Unsupported {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// What may be the cause.
        hint: &'static str,
    },
    /// All slots are taken.
    #[error("all {0} socket slots are taken")]
    Full(u32),
    /// The kernel did not take the socket.
    #[error("the kernel did not take the socket: {0}")]
    Adopt(io::Error),
}

/// The socket layer. One thread owns it.
///
/// Order within a turn: stage any number of [`send`](Wire::send)s, **at most one for each socket**,
/// then [`submit`](Wire::submit). When `submit` returns, each of them was taken whole or is
/// reported, and no buffer is referenced any more. Events are fetched by
/// [`next_event`](Wire::next_event) until there are none. Before sleeping, [`arm`](Wire::arm);
/// [`wait_fd`](Wire::wait_fd) becomes readable when there is something to do.
pub trait Wire {
    /// Takes over a connected socket and starts receiving from it.
    fn adopt(&mut self, socket: OwnedFd) -> Result<SocketId, WireError>;
    /// Makes a TCP socket and connects it, from the given local address if one is given.
    fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<SocketId, WireError>;
    /// Stages a send. `tag` comes back in a [`ShortSend`].
    fn send(&mut self, id: SocketId, tag: u32, bytes: &Bytes);
    /// Stages one send of several runs; at most [`VECTORED_RUNS_MAX`] of them are taken.
    fn send_vectored(&mut self, id: SocketId, tag: u32, runs: &[Bytes]);
    /// Hands everything staged to the kernel and appends what was not taken whole to `short`.
    fn submit(&mut self, short: &mut Vec<ShortSend>) -> io::Result<()>;
    /// The next event, if there is one without waiting.
    fn next_event(&mut self) -> Option<Event<'_>>;
    /// Asks for one [`Event::Writable`].
    fn watch_writable(&mut self, id: SocketId);
    /// Pauses (`false`) or resumes receiving. Bytes under way may still arrive after a pause; the end is told
    /// when receiving is resumed.
    fn receive(&mut self, id: SocketId, on: bool);
    /// Closes the socket; its slot is used again once the kernel has let go of it.
    fn close(&mut self, id: SocketId);
    /// Arms the event descriptor. Returns `false` if there is something to do already.
    fn arm(&mut self) -> io::Result<bool>;
    /// An eventfd: anybody may write to it to wake the owner, who reads it empty.
    fn event_fd(&self) -> BorrowedFd<'_>;
    /// A descriptor that becomes readable when an armed wire has something to do, or when somebody
    /// has written to `event_fd`.
    fn wait_fd(&self) -> BorrowedFd<'_>;
    /// Counters and what is held.
    fn usage(&self) -> Usage;

    /// Waits until there is something to do, or for so long. For owners with no executor.
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if self.arm()? {
            let mut poll =
                libc::pollfd { fd: self.wait_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let time = libc::timespec {
                tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            };
            // SAFETY: one valid pollfd and a valid timespec.
            unsafe { libc::ppoll(&mut poll, 1, &time, std::ptr::null()) };
            drain_event_fd(self.event_fd());
        }
        Ok(())
    }
}

/// The body that stands behind a [`Wire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// [`UringWire`].
    IoUring,
    /// [`EpollWire`].
    Epoll,
}

impl std::fmt::Display for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Io::IoUring => "io_uring",
            Io::Epoll => "epoll",
        })
    }
}

impl Io {
    /// A wire with this body.
    pub fn open(self, config: WireConfig) -> Result<Box<dyn Wire>, WireError> {
        Ok(match self {
            Io::IoUring => Box::new(UringWire::new(config)?),
            Io::Epoll => Box::new(EpollWire::new(&config)?),
        })
    }
}

/// What a wire and [`SocketOwners`] keep for one socket, in bytes.
pub const SOCKET_BYTES: usize = uring::SLOT_BYTES + size_of::<u32>();

/// Most runs in one vectored send.
pub const VECTORED_RUNS_MAX: usize = 64;
