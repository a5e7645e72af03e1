//! A server that has run out of descriptors.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

const HEAD: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const DESCRIPTORS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);

/// Killed when dropped.
struct Server {
    child: Child,
    public: String,
    log: BufReader<ChildStderr>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(io: &str) -> Server {
    let mut started = Command::new("sh")
        .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$@\""), "sh"])
        .args([env!("CARGO_BIN_EXE_ringfeed"), "serve", "--port", "0"])
        .args(["--set", "api.listen=127.0.0.1:0", "--set", &format!("server.io={io}")])
        .args(["--set", "server.shards=1", "--set", "server.pin=false"])
        .args(["--set", "server.handshake_timeout_ms=60000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(started.stderr.take().unwrap());
    let mut server = Server { child: started, public: String::new(), log };
    while server.public.is_empty() {
        let mut line = String::new();
        assert!(server.log.read_line(&mut line).unwrap() > 0, "the server ended");
        if let Some((_, address)) = line.trim().split_once("connect to ws://") {
            server.public = address.trim_end_matches("/ws").to_owned();
        }
    }
    server
}

impl Server {
    fn begin(&self) -> TcpStream {
        let mut stream = TcpStream::connect(&self.public).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(HEAD.as_bytes()).unwrap();
        stream
    }

    /// Status of the answer; empty if there is none.
    fn finish(stream: &mut TcpStream) -> String {
        let _ = stream.write_all(b"\r\n");
        let mut status = [0; 12];
        match stream.read_exact(&mut status) {
            Ok(()) => String::from_utf8_lossy(&status).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// What it has logged, once it has ended.
    fn end(mut self) -> String {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        log
    }
}

#[test]
fn who_holds_all_descriptors_with_slow_heads_gives_some_up_and_the_log_stays_short() {
    for io in ["epoll", "io_uring"] {
        let server = serve(io);
        let start = Instant::now();
        let slow: Vec<_> = (0..3 * DESCRIPTORS).map(|_| server.begin()).collect();
        for _ in 0..10 {
            assert_eq!(Server::finish(&mut server.begin()), "HTTP/1.1 101", "over {io}");
        }
        drop(slow);
        let log = server.end();
        let told = log.lines().filter(|line| line.contains("accept failed")).count();
        let seconds = start.elapsed().as_secs() as usize;
        assert!((1..=seconds + 2).contains(&told), "{told} lines in {seconds} s: {log}");
    }
}

#[test]
fn nobody_is_told_of_a_websocket_for_which_there_is_no_place() {
    let server = serve("io_uring");
    // A ring's table has as many places as there may be descriptors; the next ring needs one.
    let held: Vec<_> = (0..DESCRIPTORS)
        .map(|at| {
            let mut stream = server.begin();
            assert_eq!(Server::finish(&mut stream), "HTTP/1.1 101", "number {at}");
            stream
        })
        .collect();
    let mut slow: Vec<_> = (0..3 * DESCRIPTORS).map(|_| server.begin()).collect();
    // The newest is one that the server has not sent away.
    let answer = slow.last_mut().map(Server::finish).unwrap();
    assert_eq!(answer, "");
    drop((held, slow));
    let log = server.end();
    assert!(log.contains("connections got no answer: "), "{log}");
}
