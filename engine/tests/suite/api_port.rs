//! What the internal port bears: idle connections, half requests, bodies and answers without an end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::common::{PATIENCE, TestServer, wait_until};
use serde_json::{Value, json};

const HALF_HEAD: &[u8] = b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nContent-";

pub(super) fn connect(server: &TestServer) -> TcpStream {
    let stream = TcpStream::connect(server.internal).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What the server still says before it ends the connection.
pub(super) fn rest(mut stream: &TcpStream) -> String {
    let mut said = Vec::new();
    if let Err(e) = stream.read_to_end(&mut said) {
        let open = matches!(e.kind(), std::io::ErrorKind::WouldBlock);
        assert!(
            !open,
            "the connection is still open; it said {:?}",
            String::from_utf8_lossy(&said)
        );
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Reads up to this text.
pub(super) fn read_to(mut stream: &TcpStream, end: &str) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(end.as_bytes()) {
        stream.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

/// A request that has sent only its head, and was asked to go on.
fn begun(server: &TestServer, content_length: usize) -> TcpStream {
    let mut stream = connect(server);
    write!(
        stream,
        "POST /api/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {content_length}\r\n\
         Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    read_to(&stream, "HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// Waits until a figure of the API itself satisfies a condition.
fn wait_api(server: &TestServer, name: &str, what: impl Fn(u64) -> bool) {
    let figure = || server.get("/api/stats")["api"][name].as_u64().unwrap();
    wait_until(name, figure, |&figure| what(figure));
}

#[test]
fn idle_connections_and_half_heads_shut_nobody_out() {
    let server = TestServer::open(&["api.connections_max=16", "api.idle_timeout_ms=600000"]);
    let held: Vec<_> = (0..80)
        .map(|i| {
            let mut stream = connect(&server);
            if i % 2 == 1 {
                stream.write_all(HALF_HEAD).unwrap();
            }
            stream
        })
        .collect();
    for offset in 1..=20 {
        assert_eq!(server.publish("a", json!(1))["offset"], offset);
    }
    server.client().subscribe("open.a");
    for stream in &held[..64] {
        assert_eq!(rest(stream), "");
    }
}

#[test]
fn a_connection_that_was_served_is_not_closed_for_those_that_never_asked() {
    let server = TestServer::open(&["api.connections_max=8", "api.idle_timeout_ms=600000"]);
    let mut honest = connect(&server);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(read_to(stream, "}").starts_with("HTTP/1.1 200"));
    };
    ask(&mut honest);
    let held: Vec<_> = (0..40).map(|_| connect(&server)).collect();
    for stream in &held[..32] {
        assert_eq!(rest(stream), "");
    }
    ask(&mut honest);
}

#[test]
fn connections_without_a_request_end() {
    let server = TestServer::open(&["api.idle_timeout_ms=1000"]);
    let silent = connect(&server);
    let mut half = connect(&server);
    half.write_all(HALF_HEAD).unwrap();
    let mut kept = connect(&server);
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(read_to(&kept, "}").starts_with("HTTP/1.1 200"));
    for stream in [&silent, &half, &kept] {
        assert_eq!(rest(stream), "");
    }
}

#[test]
fn a_body_that_does_not_go_on_is_answered_with_408() {
    let server = TestServer::open(&["api.body_idle_timeout_ms=200"]);
    let mut stream = begun(&server, 100);
    stream.write_all(b"{\"channel\":").unwrap();
    let answer = rest(&stream);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"error\":\"timeout\""), "{answer}");
}

#[test]
fn a_body_that_trickles_is_answered_with_408() {
    let flags = ["api.body_idle_timeout_ms=600000", "api.body_timeout_ms=300"];
    let server = TestServer::open(&flags);
    let mut stream = begun(&server, 1 << 20);
    // Reading with a short limit is what paces the trickle.
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut answer = [0; 13];
    while let Err(e) = stream.read_exact(&mut answer) {
        assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{e}");
        assert!(Instant::now() < deadline, "the body may trickle for ever");
        stream.write_all(b" ").unwrap();
    }
    assert_eq!(&answer, b"HTTP/1.1 408 ");
}

#[test]
fn unfinished_bodies_take_no_more_memory_than_allowed() {
    let server = TestServer::open(&[
        "api.body_bytes_max=1048576",
        "api.bodies_bytes_max=3145728",
        "api.body_idle_timeout_ms=600000",
        "api.body_timeout_ms=600000",
        "api.timeout_ms=200",
    ]);
    let part = vec![b' '; 900 << 10];
    let held: Vec<_> = (0..24)
        .map(|_| {
            let mut stream = begun(&server, 1 << 20);
            // The server may have answered and closed before all is written.
            let _ = stream.write_all(&part);
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let mut answers = vec![String::new(); held.len()];
    let deadline = Instant::now() + PATIENCE;
    let refused = |answers: &[String]| answers.iter().filter(|a| !a.is_empty()).count();
    while refused(&answers) < 21 {
        for (mut stream, answer) in held.iter().zip(&mut answers) {
            let mut bytes = [0; 1024];
            match stream.read(&mut bytes) {
                Ok(count) => answer.push_str(&String::from_utf8_lossy(&bytes[..count])),
                // Closed with much unread: the answer may be lost on the way.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => answer.push('!'),
                Err(_) => {}
            }
        }
        assert!(Instant::now() < deadline, "{} were refused", refused(&answers));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        answers.iter().any(|a| a.starts_with("HTTP/1.1 503 ")
            && a.to_lowercase().contains("retry-after: ")
            && a.contains("\"error\":\"busy\"")),
        "{answers:?}"
    );
    drop(held);
    wait_api(&server, "body_bytes", |n| n == 0);
    server.publish("a", json!("x".repeat(500_000)));
}

#[test]
fn a_batch_whose_answer_finds_no_room_is_not_published() {
    let server = TestServer::open(&[
        "api.body_bytes_max=1048576",
        "api.bodies_bytes_max=1048576",
        "api.body_idle_timeout_ms=600000",
        "api.body_timeout_ms=600000",
    ]);
    let mut holder = begun(&server, 1 << 20);
    holder.write_all(&vec![b' '; 900 << 10]).unwrap();
    wait_api(&server, "body_bytes", |n| n >= 900 << 10);
    let entries = vec!["{\"channel\":\"a\",\"data\":1}"; 2000];
    let body = format!("{{\"publications\":[{}]}}", entries.join(","));
    let (status, answer) = server.http("POST", "/api/batch", &body);
    assert_eq!(status, 503, "{answer}");
    assert_eq!(server.publish("a", json!(1))["offset"], 1);
    drop(holder);
    wait_api(&server, "body_bytes", |n| n == 0);
    let (status, answer) = server.http("POST", "/api/batch", &body);
    assert_eq!(status, 200, "{answer}");
    assert!(answer.len() > 124 << 10, "{} bytes would have fitted", answer.len());
    assert_eq!(server.publish("a", json!(1))["offset"], 2002);
}

#[test]
fn when_all_connections_have_a_request_the_next_is_told_to_come_back() {
    let server = TestServer::open(&["api.connections_max=4", "api.body_idle_timeout_ms=600000"]);
    let body = br#"{"channel":"a","data":1}"#;
    let mut busy: Vec<_> = (0..4).map(|_| begun(&server, body.len())).collect();
    let answer = rest(&connect(&server));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("Retry-After: ") && answer.contains("\"error\":\"busy\""), "{answer}");
    // The public port does not care.
    server.client().subscribe("open.a");
    for stream in &mut busy {
        stream.write_all(body).unwrap();
        assert!(rest(stream).starts_with("HTTP/1.1 200 "));
    }
    server.publish("a", json!(2));
}

#[test]
fn an_answer_that_is_not_read_is_not_kept_for_ever() {
    let flags = ["api.body_bytes_max=33554432", "api.idle_timeout_ms=1000"];
    let server = TestServer::open(&flags);
    for _ in 0..24 {
        server.publish("open.big", json!("x".repeat(1 << 20)));
    }
    let mut deaf = connect(&server);
    socket2::SockRef::from(&deaf).set_recv_buffer_size(1 << 12).unwrap();
    write!(deaf, "GET /api/history?channel=open.big HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let head = read_to(&deaf, "\r\n\r\n").to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let length: usize = length.parse().unwrap();
    assert!(length > 8 << 20, "more than the kernel holds: {head}");
    // Only the connection that asks is left.
    wait_api(&server, "connections", |n| n == 1);
    wait_api(&server, "body_bytes", |n| n == 0);
    assert!(rest(&deaf).len() < length, "it is cut off");
}

#[test]
fn requests_beyond_the_head_limit_are_refused() {
    let server = TestServer::open(&[]);
    let mut stream = connect(&server);
    let head = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(1 << 20));
    let _ = stream.write_all(head.as_bytes());
    let answer = rest(&stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let (status, body) = server.http("GET", "/health", "");
    assert_eq!(
        (status, serde_json::from_str::<Value>(&body).unwrap()),
        (200, json!({"status":"ok"}))
    );
}
