//! The epoll body of [`Wire`], for kernels and containers that refuse io_uring.
//!
//! Sends go out when they are staged, one system call each; nothing is referenced afterwards, and
//! `submit` only reports what was short and fetches events. Sockets are ordinary descriptors, so
//! `RLIMIT_NOFILE` bounds how many there can be.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use bytes::Bytes;
use socket2::{Domain, Socket, Type};

use crate::limits::{INT_BYTES, new_event_fd};
use crate::{Event, ShortSend, SocketId, Usage, VECTORED_RUNS_MAX, Wire, WireConfig, WireError};

/// Events fetched from the kernel at once.
const EVENTS_AT_ONCE: u16 = 512;
/// There is one receive buffer, so it may be large: what a busy sender has sent comes in one turn.
const BUFFER_BYTES: usize = 64 * 1024;
/// Key of the event descriptor among the sockets' keys.
const EVENT_FD_KEY: u64 = u64::MAX;

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
const IN: u32 = libc::EPOLLIN.unsigned_abs();
const OUT: u32 = libc::EPOLLOUT.unsigned_abs();

/// The socket layer over epoll. See [`Wire`].
pub struct EpollWire {
    epoll: OwnedFd,
    event_fd: OwnedFd,
    sockets_max: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
    short: Vec<ShortSend>,
    ready: VecDeque<Ready>,
    fetched: Vec<libc::epoll_event>,
    buffer: Vec<u8>,
    usage: Usage,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    socket: Option<Socket>,
    connecting: bool,
    paused: bool,
    /// The peer's end was reported: there is nothing more to read.
    ended: bool,
    watching: bool,
    /// What epoll was told to look for; 0 is not registered.
    interest: u32,
}

#[derive(Debug)]
struct Ready {
    slot: u32,
    generation: u32,
    what: What,
}

#[derive(Debug)]
enum What {
    Readable,
    Writable,
    Failed(io::Error),
}

impl EpollWire {
    /// A wire without sockets.
    pub fn new(config: &WireConfig) -> Result<EpollWire, WireError> {
        let failed = |step| move |source| WireError::Unsupported { step, source, hint: "" };
        // SAFETY: no preconditions; the result is checked before it is owned.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(failed("epoll_create1")(io::Error::last_os_error()));
        }
        // SAFETY: just made, owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let event_fd = new_event_fd().map_err(failed("eventfd"))?;
        control(&epoll, libc::EPOLL_CTL_ADD, event_fd.as_fd(), IN, EVENT_FD_KEY)
            .map_err(failed("epoll_ctl"))?;
        Ok(EpollWire {
            epoll,
            event_fd,
            sockets_max: config.sockets_max,
            slots: Vec::new(),
            free: Vec::new(),
            short: Vec::new(),
            ready: VecDeque::new(),
            fetched: vec![libc::epoll_event { events: 0, u64: 0 }; usize::from(EVENTS_AT_ONCE)],
            buffer: vec![0; BUFFER_BYTES.max(config.receive_buffer_bytes as usize)],
            usage: Usage { rings: 1, ..Usage::default() },
        })
    }

    fn add(&mut self, socket: Socket, connecting: bool) -> Result<SocketId, WireError> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
                if slot >= self.sockets_max {
                    return Err(WireError::Full(self.sockets_max));
                }
                self.slots.push(Slot {
                    generation: 0,
                    socket: None,
                    connecting: false,
                    paused: false,
                    ended: false,
                    watching: false,
                    interest: 0,
                });
                slot
            }
        };
        let place = &mut self.slots[slot as usize];
        place.socket = Some(socket);
        place.connecting = connecting;
        (place.paused, place.ended, place.watching) = (false, false, false);
        let id = SocketId { index: slot, generation: place.generation };
        self.usage.sockets += 1;
        if let Err(e) = self.update(slot) {
            self.close(id);
            return Err(WireError::Adopt(e));
        }
        Ok(id)
    }

    /// Tells epoll what to look for on a socket, if that has changed.
    fn update(&mut self, slot: u32) -> io::Result<()> {
        let place = &mut self.slots[slot as usize];
        let Some(socket) = &place.socket else { return Ok(()) };
        let read = !place.connecting && !place.paused && !place.ended;
        let write = place.connecting || place.watching;
        let wanted = if read { IN } else { 0 } | if write { OUT } else { 0 };
        let operation = match (place.interest, wanted) {
            (before, after) if before == after => return Ok(()),
            (0, _) => libc::EPOLL_CTL_ADD,
            // Hang-ups are reported whether asked for or not: one that was told must not come again.
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        place.interest = wanted;
        control(&self.epoll, operation, socket.as_fd(), wanted, key(slot, place.generation))
    }

    fn updated(&mut self, slot: u32) {
        if let Err(error) = self.update(slot) {
            let generation = self.slots[slot as usize].generation;
            self.ready.push_back(Ready { slot, generation, what: What::Failed(error) });
        }
    }

    /// The slot of an id that is not stale.
    fn find(&mut self, id: SocketId) -> Option<(u32, &mut Slot)> {
        let place = self.slots.get_mut(id.index as usize)?;
        let current = place.generation == id.generation && place.socket.is_some();
        current.then_some((id.index, place))
    }

    fn fd_of(&mut self, id: SocketId) -> Option<RawFd> {
        self.find(id)?.1.socket.as_ref().map(|socket| socket.as_raw_fd())
    }

    /// Books a send that was tried.
    fn sent(&mut self, tag: u32, len: usize, result: isize) {
        self.usage.sends += 1;
        self.usage.enters += 1;
        self.usage.bytes_out += len as u64;
        if result.unsigned_abs() == len && result >= 0 {
            return;
        }
        let full = io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
        let broken = result < 0 && !full;
        self.usage.short_sends += 1;
        self.short.push(ShortSend { tag, sent: u32::try_from(result).unwrap_or(0), broken });
    }

    /// Asks the kernel for events, without waiting.
    fn fetch(&mut self) -> io::Result<()> {
        self.usage.enters += 1;
        // SAFETY: `fetched` holds EVENTS_AT_ONCE events.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.fetched.as_mut_ptr(),
                i32::from(EVENTS_AT_ONCE),
                0,
            )
        };
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => 0,
                e => return Err(e),
            },
        };
        for event in &self.fetched[..count] {
            let (flags, key) = (event.events, event.u64);
            if key == EVENT_FD_KEY {
                continue;
            }
            let (slot, generation) = parts(key);
            let Some(place) = self.slots.get(slot as usize) else { continue };
            // Errors and hang-ups come with what was asked for, so that the call that follows tells.
            let both = flags & (libc::EPOLLERR | libc::EPOLLHUP).unsigned_abs() != 0;
            if place.interest & OUT != 0 && (both || flags & OUT != 0) {
                self.ready.push_back(Ready { slot, generation, what: What::Writable });
            }
            if place.interest & IN != 0 && (both || flags & IN != 0) {
                self.ready.push_back(Ready { slot, generation, what: What::Readable });
            }
        }
        Ok(())
    }

    /// What became of a connect that has ended.
    fn connected(&mut self, slot: u32) -> Option<io::Error> {
        let place = &mut self.slots[slot as usize];
        place.connecting = false;
        let error = place.socket.as_ref().and_then(|s| s.take_error().unwrap_or_else(Some));
        place.ended = error.is_some();
        self.updated(slot);
        error
    }
}

/// Has `bind` leave the choice of the port to `connect`.
fn bind_without_port(socket: &Socket) -> io::Result<()> {
    let one: libc::c_int = 1;
    let result =
        // SAFETY: an open socket and an option value of the length that is said.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const one).cast(),
                INT_BYTES,
            )
        };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn key(slot: u32, generation: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(generation)
}

/// What [`key`] was made of.
#[expect(clippy::cast_possible_truncation, reason = "the halves are cut out")]
fn parts(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

fn control(
    epoll: &OwnedFd,
    operation: i32,
    fd: BorrowedFd<'_>,
    events: u32,
    key: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: key };
    // SAFETY: both descriptors are open, and `event` is a valid event.
    match unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Wire for EpollWire {
    fn adopt(&mut self, socket: OwnedFd) -> Result<SocketId, WireError> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true).map_err(WireError::Adopt)?;
        self.add(socket, false)
    }

    fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<SocketId, WireError> {
        let begin = || -> io::Result<(Socket, Option<io::Error>)> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
            socket.set_tcp_nodelay(true)?;
            if let Some(from) = from {
                // The port is chosen by connect, which knows the destination.
                bind_without_port(&socket)?;
                socket.bind(&SocketAddr::new(from, 0).into())?;
            }
            match socket.connect(&to.into()) {
                Ok(()) => Ok((socket, None)),
                Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok((socket, None)),
                Err(e) => Ok((socket, Some(e))),
            }
        };
        let (socket, failed) = begin().map_err(WireError::Adopt)?;
        let id = self.add(socket, failed.is_none())?;
        if let Some(error) = failed {
            let (slot, generation) = (id.index, id.generation);
            self.slots[slot as usize].ended = true;
            self.updated(slot);
            self.ready.push_back(Ready { slot, generation, what: What::Failed(error) });
        }
        Ok(id)
    }

    fn send(&mut self, id: SocketId, tag: u32, bytes: &Bytes) {
        let Some(fd) = self.fd_of(id) else { return };
        // SAFETY: an open socket, and as many readable bytes as said.
        let result = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS) };
        self.sent(tag, bytes.len(), result);
    }

    fn send_vectored(&mut self, id: SocketId, tag: u32, runs: &[Bytes]) {
        let Some(fd) = self.fd_of(id) else { return };
        let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; VECTORED_RUNS_MAX];
        let mut len = 0;
        for (vector, run) in vectors.iter_mut().zip(runs) {
            let iov_base = run.as_ptr().cast_mut().cast();
            vector.write(libc::iovec { iov_base, iov_len: run.len() });
            len += run.len();
        }
        // SAFETY: an all-zero msghdr is valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = vectors.as_mut_ptr().cast();
        header.msg_iovlen = runs.len().min(VECTORED_RUNS_MAX) as _;
        // SAFETY: an open socket; the header points to that many vectors, each to readable bytes.
        let result = unsafe { libc::sendmsg(fd, &header, SEND_FLAGS) };
        self.sent(tag, len, result);
    }

    fn submit(&mut self, short: &mut Vec<ShortSend>) -> io::Result<()> {
        short.append(&mut self.short);
        if self.ready.is_empty() { self.fetch() } else { Ok(()) }
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        let (id, len) = loop {
            let Ready { slot, generation, what } = self.ready.pop_front()?;
            let id = SocketId { index: slot, generation };
            let Some((_, place)) = self.find(id) else { continue };
            match what {
                What::Failed(error) => return Some(Event::Closed(id, Some(error))),
                What::Writable if place.connecting => {
                    return Some(match self.connected(slot) {
                        None => Event::Connected(id),
                        error => Event::Closed(id, error),
                    });
                }
                What::Writable if place.watching => {
                    place.watching = false;
                    self.updated(slot);
                    return Some(Event::Writable(id));
                }
                What::Writable => {}
                What::Readable if place.paused || place.ended => {}
                What::Readable => {
                    let Some(mut socket) = self.slots[slot as usize].socket.as_ref() else {
                        continue;
                    };
                    let closed = match socket.read(&mut self.buffer) {
                        Ok(0) => None,
                        Ok(len) => break (id, len),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                        Err(e) => Some(e),
                    };
                    self.slots[slot as usize].ended = true;
                    self.updated(slot);
                    return Some(Event::Closed(id, closed));
                }
            }
        };
        self.usage.bytes_in += len as u64;
        Some(Event::Received(id, &mut self.buffer[..len]))
    }

    fn watch_writable(&mut self, id: SocketId) {
        if let Some((slot, place)) = self.find(id) {
            place.watching = true;
            self.updated(slot);
        }
    }

    fn receive(&mut self, id: SocketId, on: bool) {
        if let Some((slot, place)) = self.find(id) {
            place.paused = !on;
            self.updated(slot);
        }
    }

    fn close(&mut self, id: SocketId) {
        let Some((slot, place)) = self.find(id) else { return };
        // Dropped: the kernel takes it out of the epoll, too.
        place.socket = None;
        place.interest = 0;
        place.generation = place.generation.wrapping_add(1);
        self.usage.sockets -= 1;
        self.free.push(slot);
    }

    fn arm(&mut self) -> io::Result<bool> {
        // The epoll is readable while it has events: nothing can be missed by waiting for it.
        Ok(self.ready.is_empty() && self.short.is_empty())
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn usage(&self) -> Usage {
        self.usage
    }
}
