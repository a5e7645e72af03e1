//! The floor: the same prebuilt bytes to the same number of sockets, batched, and nothing else.
//!
//! No WebSocket handshake, no commands, no logs, no shards: what is left is what the kernel takes for
//! the sends. The sockets are drained by a second thread, as the load generator does it; the clock
//! stops when it has read everything, as there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::event::Publication;
use ringfeed_protocol::{Lane, Offset};
use ringfeed_wire::{Event, Io, SocketId, Wire, WireConfig, thread_cpu_split};

/// Most bytes in one send, as in the engine.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// Sends staged before they are handed to the kernel, as in the engine.
const SENDS_PER_SUBMIT: usize = 256;
/// Connections from one address: see the load generator.
const CONNECTIONS_PER_ADDRESS: usize = 10_000;

/// Sends prebuilt bytes to many sockets and reports the CPU time of the sending thread as JSON.
#[derive(Debug, Parser)]
#[command(name = "floor", version)]
struct Args {
    /// Sockets.
    #[arg(long, default_value_t = 2000)]
    conns: usize,
    /// Messages a second to each; 0 is as fast as they are drained.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Messages sent at once; the rate stays.
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// Bytes of payload in each message; the frame around it is the engine's in that dialect.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// What each message is framed as: what the servers beside it send.
    #[arg(long, value_enum, default_value = "ringfeed")]
    dialect: DialectArg,
    /// Seconds of sending.
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
    /// Core of the sending thread; the draining one takes the next.
    #[arg(long)]
    core: Option<usize>,
    /// What the sockets are served with.
    #[arg(long, value_enum, default_value = "io_uring")]
    io: IoArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IoArg {
    #[value(name = "io_uring")]
    IoUring,
    Epoll,
}

/// As the load generator has it, and with its default.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum DialectArg {
    Ringfeed,
    Raw,
}

impl DialectArg {
    fn lane(self) -> Lane {
        match self {
            DialectArg::Ringfeed => Lane::RINGFEED,
            DialectArg::Raw => Lane::RAW,
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let io = match args.io {
        IoArg::IoUring => Io::IoUring,
        IoArg::Epoll => Io::Epoll,
    };
    let mut wire =
        io.open(WireConfig { sockets_max: u32::try_from(args.conns)?, ..WireConfig::default() })?;
    let drained = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let (seen, ended, core) = (drained.clone(), stop.clone(), args.core.map(|core| core + 1));
    let conns = args.conns;
    let (far_ends, coming) = std::sync::mpsc::channel();
    let drain = std::thread::spawn(move || drain(core, conns, &coming, &seen, &ended));
    // Later than the other thread, which would inherit it.
    pin(args.core)?;
    let mut sockets = Vec::with_capacity(conns);
    for number in 0..conns {
        let far = connect(to, number).context("connecting")?;
        let (near, _) = listener.accept()?;
        near.set_nodelay(true)?;
        socket2::SockRef::from(&near).set_send_buffer_size(SEND_BYTES_MAX)?;
        sockets.push(wire.adopt(near.into())?);
        far_ends.send(far).context("the draining thread has ended")?;
    }
    wire.submit(&mut Vec::new())?;

    let frame = frame(args.dialect.lane(), args.size);
    let mut sender = Sender {
        wire,
        sockets,
        short: Vec::new(),
        bytes: Bytes::from(frame.repeat((SEND_BYTES_MAX / frame.len()).max(args.burst as usize))),
        frame_len: frame.len(),
    };
    let before = thread_cpu_split();
    let began = Instant::now();
    let sent = match args.rate {
        0 => sender.saturate(args.duration)?,
        rate => sender.pace(rate, args.burst, args.duration)?,
    };
    let after = thread_cpu_split();
    // What the sockets hold is sent, and not delivered.
    while drained.load(Ordering::Relaxed) < sent {
        if drain.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    match drain.join() {
        Ok(ended) => ended?,
        Err(_) => bail!("the draining thread panicked"),
    }
    let deliveries = sent as f64 / frame.len() as f64;
    let usage = sender.wire.usage();
    let nanos = |time: Duration| time.as_secs_f64() * 1e9 / deliveries;
    println!(
        "{}",
        serde_json::json!({
            "connections": args.conns,
            "delivered": deliveries,
            "delivered_per_second": deliveries / seconds,
            "cpu_user_ns_per_delivery": nanos(after.0 - before.0),
            "cpu_system_ns_per_delivery": nanos(after.1 - before.1),
            "bytes_per_send": usage.bytes_out as f64 / usage.sends.max(1) as f64,
        })
    );
    Ok(())
}

fn pin(core: Option<usize>) -> anyhow::Result<()> {
    let Some(core) = core else { return Ok(()) };
    let known = core_affinity::get_core_ids().unwrap_or_default();
    let id = known.into_iter().find(|id| id.id == core).context("there is no such core")?;
    if !core_affinity::set_for_current(id) {
        bail!("the thread could not be pinned to core {core}");
    }
    Ok(())
}

/// One message as a subscriber of the engine gets it.
fn frame(lane: Lane, size: usize) -> Vec<u8> {
    let payload = format!("{{\"pad\":\"{}\"}}", "x".repeat(size.saturating_sub(10)));
    let publication = Publication {
        offset: Offset(1000),
        kind: PayloadKind::Json,
        bytes: payload.as_bytes(),
        meta: None,
    };
    let mut frame = Vec::new();
    lane.write_publication(&mut frame, "bench.c0", &publication);
    frame
}

fn connect(to: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    let [_, _, c, d] = (number / CONNECTIONS_PER_ADDRESS + 2)
        .to_be_bytes()
        .last_chunk()
        .copied()
        .unwrap_or_default();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, c, d), 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Reads everything from all sockets until told to stop.
fn drain(
    core: Option<usize>,
    conns: usize,
    coming: &std::sync::mpsc::Receiver<TcpStream>,
    seen: &AtomicU64,
    ended: &AtomicBool,
) -> anyhow::Result<()> {
    pin(core)?;
    let mut wire = Io::IoUring.open(WireConfig {
        sockets_max: u32::try_from(conns)?,
        receive_buffers: 256,
        receive_buffer_bytes: 64 * 1024,
        ..WireConfig::default()
    })?;
    let mut short = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        while let Ok(far) = coming.try_recv() {
            wire.adopt(far.into())?;
        }
        wire.submit(&mut short)?;
        let mut bytes = 0;
        while let Some(event) = wire.next_event() {
            if let Event::Received(_, received) = event {
                bytes += received.len() as u64;
            }
        }
        seen.fetch_add(bytes, Ordering::Relaxed);
        if bytes == 0 {
            wire.wait(Duration::from_millis(20))?;
        }
    }
    Ok(())
}

struct Sender {
    wire: Box<dyn Wire>,
    sockets: Vec<SocketId>,
    short: Vec<ringfeed_wire::ShortSend>,
    /// As many frames as fit in the largest send.
    bytes: Bytes,
    frame_len: usize,
}

impl Sender {
    /// A burst to everybody at each point in time. Returns the bytes sent.
    fn pace(&mut self, rate: u32, burst: u32, seconds: f64) -> anyhow::Result<u64> {
        let run = self.bytes.slice(..self.frame_len * burst as usize);
        let rounds = (f64::from(rate) * seconds / f64::from(burst)) as u32;
        let every = Duration::from_secs_f64(f64::from(burst) / f64::from(rate));
        let began = Instant::now();
        for round in 0..rounds {
            let due = began + every * round;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            for batch in self.sockets.chunks(SENDS_PER_SUBMIT) {
                for &socket in batch {
                    self.wire.send(socket, 0, &run);
                }
                self.wire.submit(&mut self.short)?;
            }
            if !self.short.is_empty() {
                bail!("a socket is full: the draining thread does not keep up");
            }
            while self.wire.next_event().is_some() {}
        }
        Ok(u64::from(rounds) * run.len() as u64 * self.sockets.len() as u64)
    }

    /// The largest sends to everybody who takes them, until the time is over.
    fn saturate(&mut self, seconds: f64) -> anyhow::Result<u64> {
        let run = self.bytes.slice(
            ..self
                .bytes
                .len()
                .min(SEND_BYTES_MAX / self.frame_len * self.frame_len)
                .max(self.frame_len),
        );
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let mut open: Vec<usize> = (0..self.sockets.len()).collect();
        // Where in the run each socket is: a short send goes on where it stopped.
        let mut at = vec![0usize; self.sockets.len()];
        let mut blocked = vec![false; self.sockets.len()];
        let mut sent = 0;
        let places: std::collections::HashMap<SocketId, usize> =
            self.sockets.iter().enumerate().map(|(place, &socket)| (socket, place)).collect();
        while Instant::now() < end {
            for batch in open.chunks(SENDS_PER_SUBMIT) {
                for &place in batch {
                    let part = run.slice(at[place]..);
                    sent += part.len() as u64;
                    self.wire.send(self.sockets[place], u32::try_from(place)?, &part);
                }
                self.wire.submit(&mut self.short)?;
                for &place in batch {
                    if !self.short.iter().any(|short| short.tag as usize == place) {
                        at[place] = 0;
                    }
                }
                for short in self.short.drain(..) {
                    let place = short.tag as usize;
                    if short.broken {
                        bail!("a connection is broken");
                    }
                    sent -= (run.len() - at[place]) as u64 - u64::from(short.sent);
                    at[place] += short.sent as usize;
                    blocked[place] = true;
                    self.wire.watch_writable(self.sockets[place]);
                }
            }
            while let Some(event) = self.wire.next_event() {
                if let Event::Writable(socket) = event {
                    blocked[places[&socket]] = false;
                }
            }
            open.clear();
            open.extend((0..self.sockets.len()).filter(|&place| !blocked[place]));
            if open.is_empty() {
                self.wire.wait(Duration::from_millis(20))?;
                self.wire.submit(&mut self.short)?;
            }
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_long_as_those_of_the_servers_beside_it() {
        assert_eq!(frame(Lane::RAW, 128).len(), 128 + 4);
        assert!(frame(Lane::RINGFEED, 128).len() > 128 + 4);
    }
}
