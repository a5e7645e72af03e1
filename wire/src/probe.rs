//! Whether io_uring does here what the wire relies on: every feature is tried, none is looked up.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, SockRef, Socket, Type};

use crate::{Event, ShortSend, SocketId, UringWire, Wire, WireConfig, WireError};

/// Longest wait for what the kernel does at once.
const PATIENCE: Duration = Duration::from_secs(1);
/// Socket buffers of the pair that is filled; the kernel doubles them.
const SOCKET_BUFFER_BYTES: usize = 32 * 1024;
/// The first sends fit whole; those that follow are larger than what the buffers hold.
const WHOLE_SENDS: usize = 4;
const WHOLE_BYTES: usize = 1009;
const SHORT_BYTES: usize = 1 << 20;
/// Sends after which any pair of sockets is full.
const SENDS_MAX: usize = 1000;

/// Tries everything the wire needs over real sockets, and says what is missing.
pub fn probe() -> Result<(), WireError> {
    // On a thread of its own: taking a ring down interrupts system calls of the thread that made it.
    std::thread::spawn(probe_here).join().unwrap_or_else(|_| {
        let source = io::Error::other("it panicked");
        Err(WireError::Unsupported { step: "the probe", source, hint: "" })
    })
}

fn probe_here() -> Result<(), WireError> {
    let failed = |step| move |source| WireError::Unsupported { step, source, hint: "" };
    let mut wire = UringWire::new(WireConfig {
        sockets_max: 4,
        sockets_per_ring_max: 4,
        submission_entries: 8,
        receive_buffers: 2,
        receive_buffer_bytes: 64,
    })?;
    receives(&mut wire).map_err(failed("multishot receive into provided buffers (Linux 6.0)"))?;
    for runs in [1, 2] {
        let step = "reporting a short send to the byte";
        reports_short_sends(&mut wire, runs).map_err(failed(step))?;
    }
    Ok(())
}

/// A small send arrives, and so does what comes back.
fn receives(wire: &mut dyn Wire) -> io::Result<()> {
    let (near, mut far) = UnixStream::pair()?;
    let id = wire.adopt(near.into()).map_err(io::Error::other)?;
    wire.send(id, 1, &Bytes::from_static(b"there"));
    wire.submit(&mut Vec::new())?;
    far.set_read_timeout(Some(PATIENCE))?;
    far.read_exact(&mut [0; 5])?;
    far.write_all(b"back")?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        wire.submit(&mut Vec::new())?;
        match wire.next_event() {
            Some(Event::Received(_, bytes)) if bytes == b"back" => {
                return close(wire, id);
            }
            Some(Event::Closed(_, error)) => {
                return Err(error.unwrap_or(io::ErrorKind::UnexpectedEof.into()));
            }
            _ => wire.wait(PATIENCE)?,
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// What "nothing is lost" rests on: fills a TCP connection in sends of `runs` runs until one is
/// refused, adds up what was reported as taken, and compares it with what arrives.
fn reports_short_sends(wire: &mut dyn Wire, runs: usize) -> io::Result<()> {
    let (near, far) = tcp_pair()?;
    SockRef::from(&near).set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    let id = wire.adopt(near.into()).map_err(io::Error::other)?;
    // 251 is a prime: no block, and no part of one, looks like another.
    let pattern: Vec<u8> = (0..=250).cycle().take(251 + SHORT_BYTES).collect();
    let pattern = Bytes::from(pattern);
    let mut taken = 0;
    let mut short: Vec<ShortSend> = Vec::new();
    for number in 0..SENDS_MAX {
        let len = if number < WHOLE_SENDS { WHOLE_BYTES } else { SHORT_BYTES };
        let start = taken % 251;
        let block = pattern.slice(start..start + len);
        let pieces = [block.slice(..len / runs), block.slice(len / runs..)];
        wire.send_vectored(id, 7, pieces.get(..runs).unwrap_or_default());
        wire.submit(&mut short)?;
        match short.pop() {
            None => taken += len,
            Some(ShortSend { tag: 7, sent, broken: false }) => {
                taken += sent as usize;
                if sent == 0 {
                    close(wire, id)?;
                    return arrives(far, taken);
                }
            }
            Some(other) => return Err(io::Error::other(format!("{other:?} was reported"))),
        }
    }
    Err(io::Error::other("a connection that nobody reads took all sends"))
}

/// Closes the only socket of a wire, and sees that it happens.
fn close(wire: &mut dyn Wire, id: SocketId) -> io::Result<()> {
    wire.close(id);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        wire.submit(&mut Vec::new())?;
        while wire.next_event().is_some() {}
        if wire.usage().sockets == 0 {
            return Ok(());
        }
        wire.wait(PATIENCE)?;
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "a socket that was closed stays"))
}

/// Reads to the end: the pattern, and so many bytes of it.
fn arrives(mut far: TcpStream, expected: usize) -> io::Result<()> {
    far.set_read_timeout(Some(PATIENCE))?;
    let mut arrived = Vec::new();
    far.read_to_end(&mut arrived)?;
    let in_order = arrived.iter().zip((0..=250).cycle()).all(|(&byte, expected)| byte == expected);
    if arrived.len() != expected || !in_order {
        let (came, whole) = (arrived.len(), if in_order { "in order" } else { "torn" });
        let told = format!("{expected} bytes were reported as taken, {came} arrived, {whole}");
        return Err(io::Error::other(told));
    }
    Ok(())
}

/// A connection to this machine itself. On one that proxies to itself all ports of the usual address may
/// be taken: then from another of its 16 million.
fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    let [.., a, b, c] = std::process::id().to_be_bytes();
    tcp_pair_at(Ipv4Addr::LOCALHOST).or_else(|_| tcp_pair_at(Ipv4Addr::new(127, a | 1, b, c | 1)))
}

fn tcp_pair_at(address: Ipv4Addr) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((address, 0))?;
    SockRef::from(&listener).set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    let near = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    near.bind(&SocketAddr::from((address, 0)).into())?;
    near.connect(&listener.local_addr()?.into())?;
    let near = TcpStream::from(near);
    // Somebody else may have been faster.
    loop {
        let (far, peer) = listener.accept()?;
        if peer == near.local_addr()? {
            return Ok((near, far));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::os::fd::{BorrowedFd, OwnedFd};

    use super::*;
    use crate::{EpollWire, Usage};

    /// A wire whose kernel reports short sends as `lie` says.
    struct Lying {
        wire: EpollWire,
        lie: fn(ShortSend) -> Option<ShortSend>,
    }

    impl Wire for Lying {
        fn submit(&mut self, short: &mut Vec<ShortSend>) -> io::Result<()> {
            let mut told = Vec::new();
            self.wire.submit(&mut told)?;
            short.extend(told.into_iter().filter_map(self.lie));
            Ok(())
        }
        fn adopt(&mut self, socket: OwnedFd) -> Result<SocketId, WireError> {
            self.wire.adopt(socket)
        }
        fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<SocketId, WireError> {
            self.wire.connect(to, from)
        }
        fn send(&mut self, id: SocketId, tag: u32, bytes: &Bytes) {
            self.wire.send(id, tag, bytes);
        }
        fn send_vectored(&mut self, id: SocketId, tag: u32, runs: &[Bytes]) {
            self.wire.send_vectored(id, tag, runs);
        }
        fn next_event(&mut self) -> Option<Event<'_>> {
            self.wire.next_event()
        }
        fn watch_writable(&mut self, id: SocketId) {
            self.wire.watch_writable(id);
        }
        fn receive(&mut self, id: SocketId, on: bool) {
            self.wire.receive(id, on);
        }
        fn close(&mut self, id: SocketId) {
            self.wire.close(id);
        }
        fn arm(&mut self) -> io::Result<bool> {
            self.wire.arm()
        }
        fn event_fd(&self) -> BorrowedFd<'_> {
            self.wire.event_fd()
        }
        fn wait_fd(&self) -> BorrowedFd<'_> {
            self.wire.wait_fd()
        }
        fn usage(&self) -> Usage {
            self.wire.usage()
        }
    }

    fn proven(lie: fn(ShortSend) -> Option<ShortSend>) -> io::Result<()> {
        let config = WireConfig { sockets_max: 10, ..WireConfig::default() };
        let mut wire = Lying { wire: EpollWire::new(&config).unwrap(), lie };
        receives(&mut wire)?;
        (1..=2).try_for_each(|runs| reports_short_sends(&mut wire, runs))
    }

    #[test]
    fn a_kernel_that_hides_or_miscounts_short_sends_is_found() {
        proven(Some).unwrap();
        // What CQE_SKIP without WAITALL does.
        let hidden = proven(|send| Some(send).filter(|send| send.sent == 0));
        assert!(hidden.unwrap_err().to_string().contains("were reported as taken"));
        let less = proven(|send| Some(ShortSend { sent: send.sent.saturating_sub(1), ..send }));
        assert!(less.unwrap_err().to_string().contains("were reported as taken"));
        let never = proven(|_| None);
        assert!(never.unwrap_err().to_string().contains("took all sends"));
    }
}
