//! Handshakes that never end, or are refused again and again, keep nobody else out.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use super::common::{Client, PATIENCE, TestServer};

pub(super) const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A connection from a chosen loopback address.
pub(super) fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from.into(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The status line of the answer to an upgrade; empty if there is none.
pub(super) fn upgrade(stream: &mut TcpStream) -> String {
    stream.write_all(UPGRADE).unwrap();
    status(stream)
}

/// The beginning of an answer; empty if there is none.
pub(super) fn status(stream: &mut TcpStream) -> String {
    let mut answer = [0; 12];
    let read = stream.read_exact(&mut answer);
    if read.is_ok() { String::from_utf8_lossy(&answer).into_owned() } else { String::new() }
}

/// Sends a byte; whether the server still holds the connection.
fn trickle(stream: &mut TcpStream) -> bool {
    let open = matches!(stream.read(&mut [0; 512]), Err(e) if e.kind() == ErrorKind::WouldBlock);
    open && stream.write_all(b"x").is_ok()
}

/// `RINGFEED_SLOW_HANDSHAKES=9000` tries with so many, and the default limits.
#[test]
fn heads_that_never_end_keep_nobody_out() {
    const HONEST: usize = 200;
    let wanted = std::env::var("RINGFEED_SLOW_HANDSHAKES").ok().and_then(|n| n.parse().ok());
    let slow_count: usize = wanted.unwrap_or(1500);
    let honest_count = HONEST.max(slow_count / 9);
    let flags = match wanted {
        None => &["server.handshakes_max=256", "server.handshake_timeout_ms=60000"][..],
        Some(_) => &[],
    };
    let server = TestServer::open(flags);
    let slow = || {
        let mut stream = connect(Ipv4Addr::new(127, 0, 0, 9), server.public);
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nX-Slow: ").unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut held: Vec<TcpStream> = (0..slow_count).map(|_| slow()).collect();
    let mut reopened = 0;
    let mut took = Vec::new();
    for honest in 0..honest_count {
        // Some come from the very address that holds the door.
        let from = Ipv4Addr::new(127, 0, 0, if honest % 2 == 0 { 9 } else { 1 });
        let start = Instant::now();
        let status = upgrade(&mut connect(from, server.public));
        took.push(start.elapsed());
        assert_eq!(status, "HTTP/1.1 101", "the {honest}th honest one, from {from}");
        for at in 0..slow_count / 50 {
            let stream = &mut held[(honest * (slow_count / 50) + at) % slow_count];
            if !trickle(stream) {
                *stream = slow();
                reopened += 1;
            }
        }
    }
    took.sort_unstable();
    let (half, most) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("{honest_count} honest: p50 {half:?}, p99 {most:?}; {reopened} slow ones came again");
    assert!(reopened > 0, "the door held {slow_count} heads: nothing was tried");
}

#[test]
fn an_address_that_is_refused_again_and_again_keeps_nobody_out() {
    let flags = [
        "server.handshakes_max=64",
        "server.connections_per_address_max=10",
        "server.handshake_timeout_ms=60000",
    ];
    let server = TestServer::open(&flags);
    let greedy = Ipv4Addr::new(127, 0, 0, 9);
    // They send nothing and read nothing: each refusal lasts as long as the server lets it.
    let _held: Vec<TcpStream> = (0..500).map(|_| connect(greedy, server.public)).collect();
    for honest in 0..100 {
        let from = Ipv4Addr::new(127, 0, 1, honest);
        assert_eq!(upgrade(&mut connect(from, server.public)), "HTTP/1.1 101", "from {from}");
    }
    let status = upgrade(&mut connect(greedy, server.public));
    assert_eq!(status, "HTTP/1.1 503", "the limit for each address holds");
}

/// One byte at a time is a bad way to send a head, and no reason to refuse it.
#[test]
fn a_head_that_comes_byte_by_byte_is_served() {
    let server = TestServer::open(&[]);
    let mut stream = connect(Ipv4Addr::LOCALHOST, server.public);
    stream.set_nodelay(true).unwrap();
    let (last, first) = UPGRADE.split_last().unwrap();
    first.iter().for_each(|&byte| stream.write_all(&[byte]).unwrap());
    // What follows the head in the same segment is the first frame: a ping.
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    stream.write_all(&[&[*last][..], &ping].concat()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(&[0x8a, 0]) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    drop(Client::connect(server.public, "/ws"));
}
