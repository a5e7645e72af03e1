//! Whatever arrives, the answer is a clear error, and nobody else notices.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::common::{Client, PATIENCE, TestServer};
use ringfeed_engine::config::{Config, Sources};
use ringfeed_engine::server;
use ringfeed_engine::settings::Settings;
use ringfeed_protocol::frame::{Header, Opcode, write_client, write_server};
use serde_json::json;

/// An upgraded connection of which each byte can be chosen.
fn raw_socket(server: &TestServer) -> TcpStream {
    let client = server.client();
    client.socket.get_ref().try_clone().unwrap()
}

/// Status line of the answer to a request head.
fn answer(to: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may answer before it has read everything.
    let _ = stream.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// What the server says and does after these bytes: its close code, once it has ended.
fn close_code(server: &TestServer, bytes: &[u8]) -> u16 {
    let mut stream = raw_socket(server);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut got = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        if let Ok(Some((header, len))) = Header::parse(&got)
            && header.opcode == Opcode::Close
            && got.len() >= len + 2
        {
            let mut reply = Vec::new();
            write_client(&mut reply, Opcode::Close, &got[len..len + 2], [1; 4]);
            let _ = stream.write_all(&reply);
            // Then it ends the connection.
            let _ = stream.read_to_end(&mut Vec::new());
            return u16::from_be_bytes([got[len], got[len + 1]]);
        }
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "the connection ended without a close frame");
        got.extend_from_slice(&chunk[..count]);
    }
}

#[test]
fn broken_frames_end_one_connection_with_the_right_code() {
    let server = TestServer::open(&["limits.message_bytes_max=1000"]);
    let mut witness = server.client();
    witness.subscribe("open.w");
    let masked = |opcode, payload: &[u8]| {
        let mut out = Vec::new();
        write_client(&mut out, opcode, payload, [5, 6, 7, 8]);
        out
    };
    let mut unmasked = Vec::new();
    write_server(&mut unmasked, Opcode::Text, b"x");
    let mut huge = Vec::new();
    Header { fin: true, opcode: Opcode::Text, mask: Some([0; 4]), len: 1 << 62 }.write(&mut huge);
    for (bytes, code) in [
        (unmasked, 1002),
        (vec![0xf1, 0x80], 1002),
        (vec![0x83, 0x80], 1002),
        (vec![0x80, 0x80, 0, 0, 0, 0], 1002),
        (huge, 1009),
        (masked(Opcode::Text, &[b' '; 1001]), 1009),
        (masked(Opcode::Text, b"\xff"), 1007),
        (masked(Opcode::Close, &[3]), 1002),
        (masked(Opcode::Close, &4000u16.to_be_bytes()), 4000),
    ] {
        assert_eq!(close_code(&server, &bytes), code, "{bytes:?}");
        server.publish("open.w", json!("still there"));
        assert_eq!(witness.receive()["data"], "still there");
    }
    server.wait_total("sockets", |n| n == 1);
}

#[test]
fn raw_clients_are_told_by_the_close_reason() {
    let server = TestServer::open(&[]);
    for (command, reason) in [
        ("nonsense", "bad_json"),
        (r#"{"action":"publish","channel":"a"}"#, "unknown_command: raw.v1 has no command"),
        (r#"{"action":"subscribe","channel":"closed.a"}"#, "forbidden"),
    ] {
        let mut client = server.client_of("raw.v1");
        client.send_text(command);
        let (code, text) = client.closed();
        assert_eq!(code, 4500);
        assert!(text.starts_with(reason), "{text}");
    }
    // What is so already is no error.
    let mut client = server.client_of("raw.v1");
    for action in ["unsubscribe", "subscribe", "subscribe"] {
        client.send_text(&format!("{{\"action\":\"{action}\",\"channel\":\"open.a\"}}"));
    }
    server.wait_total("subscriptions", |n| n == 1);
    server.wait_total("messages_in", |n| n == 6);
    server.publish("open.a", json!(1));
    assert_eq!(client.message(), tungstenite::Message::text("1"));
}

#[test]
fn the_door_answers_every_wrong_request_with_a_status() {
    let flags = [
        "server.handshake_timeout_ms=1500",
        "server.connections_per_address_max=3",
        "server.demo_page=true",
        "server.origins=https://example.org",
    ];
    let server = TestServer::open(&flags);
    let to = server.public;
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (head, status) in [
        (format!("GET /ws HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"), "101"),
        ("GET /health HTTP/1.1\r\nHost: a\r\n\r\n".into(), "200"),
        ("HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n".into(), "200"),
        ("POST /health HTTP/1.1\r\nHost: a\r\n\r\n".into(), "405"),
        ("GET http://a/health HTTP/1.1\r\nHost: a\r\n\r\n".into(), "200"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "200"),
        (
            format!("GET /ws HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.test\r\n{upgrade}\r\n"),
            "403",
        ),
        (format!("GET /ws HTTP/1.1\r\nHost: a\r\nOrigin: null\r\n{upgrade}\r\n"), "403"),
        (format!("GET /nowhere HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"), "404"),
        ("GET /ws HTTP/1.1\r\nHost: a\r\n\r\n".into(), "426"),
        (format!("POST /ws HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"), "405"),
        (format!("GET /ws?protocol=x HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"), "400"),
        (format!("GET /ws?protocol=echo HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"), "400"),
        (
            format!("GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Protocol: x\r\n{upgrade}\r\n"),
            "400",
        ),
        (
            // A browser would fail the answer that opens it.
            format!(
                "GET /ws?protocol=raw.v1 HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Protocol: ringfeed.v1\r\n{upgrade}\r\n"
            ),
            "400",
        ),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000)), "431"),
        ("\u{16}\u{3}\u{1} a TLS hello, say\r\n\r\n".into(), "400"),
        ("GET /ws HTTP/1.1\r\nHost: a\r\nX: never ends".into(), "408"),
    ] {
        // A completed upgrade stays open: its own test is elsewhere.
        let got = if status == "101" {
            drop(Client::connect(to, "/ws"));
            "HTTP/1.1 101".into()
        } else {
            answer(to, &head)
        };
        assert!(
            got.starts_with(&format!("HTTP/1.1 {status} ")) || status == "101",
            "{head}: {got}"
        );
    }
    let page = answer(to, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(page.contains("Content-Length: ") && page.ends_with("\r\n\r\n"), "{page}");
    server.wait_total("connections", |n| n == 0);
    let held: Vec<_> = (0..3).map(|_| server.client()).collect();
    let got = answer(to, "GET /ws HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("Retry-After"), "{got}");
    drop(held);
    server.wait_total("connections", |n| n == 0);
    server.client();
}

#[test]
fn a_server_that_is_not_told_to_serves_no_page() {
    let server = TestServer::open(&[]);
    let got = answer(server.public, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 404 ") && got.contains("WebSocket is at /ws"), "{got}");
}

#[test]
fn only_pages_of_listed_origins_may_connect() {
    let server = TestServer::open(&["server.origins=https://example.org"]);
    let upgrade = |origin: &str| {
        let mut stream = TcpStream::connect(server.public).unwrap();
        write!(
            stream,
            "GET /ws HTTP/1.1\r\nHost: a\r\n{origin}Upgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        String::from_utf8_lossy(&status).into_owned()
    };
    assert_eq!(upgrade("Origin: https://example.org\r\n"), "HTTP/1.1 101");
    assert_eq!(upgrade("Origin: https://example.org.evil.test\r\n"), "HTTP/1.1 403");
    assert_eq!(upgrade(""), "HTTP/1.1 101", "who sends none is no browser");
}

#[test]
fn a_message_rate_is_refused_then_ended() {
    let server = TestServer::open(&["limits.messages_per_second_max=1", "limits.messages_burst=5"]);
    let mut client = server.client();
    let mut codes = Vec::new();
    for id in 0..11 {
        client.send(json!({"type":"ping","id":id}));
    }
    for _ in 0..10 {
        let reply = client.receive();
        codes.push(reply["code"].as_str().unwrap_or("ok").to_owned());
    }
    assert_eq!(codes[..5], ["ok"; 5]);
    assert_eq!(codes[5..], ["rate_limited"; 5]);
    assert_eq!(client.closed().0, 4501);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let server = TestServer::open(&[]);
    let load = |flags: &[String]| {
        let sources = Sources { flags: flags.to_vec(), ..Sources::default() };
        Config::load(&sources).unwrap()
    };
    let public =
        load(&[format!("server.listen={}", server.public), "api.listen=127.0.0.1:0".into()]);
    let error =
        server::start(Settings::new(public).unwrap(), None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("server.listen") && error.contains("another process"), "{error}");
    let internal =
        load(&["server.listen=127.0.0.1:0".into(), format!("api.listen={}", server.internal)]);
    let error =
        server::start(Settings::new(internal).unwrap(), None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("api.listen") && error.contains("another process"), "{error}");
}

#[test]
fn a_silent_peer_is_pinged_then_closed() {
    let server = TestServer::open(&["heartbeat.interval_ms=200", "heartbeat.timeout_ms=2000"]);
    let mut lively = server.client();
    let silent = raw_socket(&server);
    server.wait_total("connections", |n| n == 2);
    // Reading answers pings; the other connection has nobody to answer them.
    lively.socket.get_mut().set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while server.total("heartbeat_timeouts") == 0 {
        let _ = lively.socket.read();
        assert!(std::time::Instant::now() < deadline);
    }
    let _ = lively.socket.flush();
    assert_eq!(server.total("heartbeat_timeouts"), 1);
    drop(silent);
    server.wait_total("connections", |n| n == 1);
}
