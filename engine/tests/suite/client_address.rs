//! For whom a connection is counted: the peer, or whom a listed proxy names, and nobody else's word.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use super::common::{TestServer, wait_until};
use super::slow_handshakes::{UPGRADE, connect, status, upgrade};

const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const LISTED: &str = "server.proxies=127.0.0.9/32,192.0.2.0/24";
const ONE_EACH: &str = "server.connections_per_address_max=1";
const SERVED: &str = "HTTP/1.1 101";
const TOO_MANY: &str = "HTTP/1.1 503";
const BAD: &str = "HTTP/1.1 400";

fn behind_proxy_protocol() -> TestServer {
    TestServer::open(&[LISTED, ONE_EACH, "server.proxy_protocol=required"])
}

fn behind_forwarding() -> TestServer {
    TestServer::open(&[LISTED, ONE_EACH, "server.forwarded_header=x-forwarded-for"])
}

/// A connection with these bytes in front of its upgrade, and the beginning of the answer.
fn opened(server: &TestServer, from: Ipv4Addr, before: &[u8]) -> (TcpStream, String) {
    let mut stream = connect(from, server.public);
    // Who is refused at once may be so before all was sent.
    let _ = stream.write_all(&[before, UPGRADE].concat());
    let status = status(&mut stream);
    (stream, status)
}

/// An upgrade with further header lines.
fn forwarded(server: &TestServer, from: Ipv4Addr, headers: &str) -> (TcpStream, String) {
    let text =
        String::from_utf8_lossy(UPGRADE).replace("Host: a\r\n", &format!("Host: a\r\n{headers}"));
    let mut stream = connect(from, server.public);
    stream.write_all(text.as_bytes()).unwrap();
    let status = status(&mut stream);
    (stream, status)
}

fn v1(client: &str) -> Vec<u8> {
    let family = if client.contains(':') { ("TCP6", "::1") } else { ("TCP4", "127.0.0.1") };
    format!("PROXY {} {client} {} 5000 9800\r\n", family.0, family.1).into_bytes()
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family]);
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend(body);
    header
}

fn v2_ipv4(client: [u8; 4]) -> Vec<u8> {
    v2(1, 0x11, &[&client[..], &[127, 0, 0, 1, 0, 80, 1, 187]].concat())
}

fn v2_ipv6(client: &str) -> Vec<u8> {
    let client: std::net::Ipv6Addr = client.parse().unwrap();
    v2(1, 0x21, &[&client.octets()[..], &[0; 16], &[0, 80, 1, 187]].concat())
}

#[test]
fn clients_behind_the_proxy_protocol_are_counted_each_for_itself() {
    let server = behind_proxy_protocol();
    let mut held = Vec::new();
    for (header, expected) in [
        (v1("198.51.100.1"), SERVED),
        (v1("198.51.100.1"), TOO_MANY),
        (v2_ipv4([198, 51, 100, 1]), TOO_MANY),
        (v2_ipv4([198, 51, 100, 2]), SERVED),
        (v1("::ffff:198.51.100.2"), TOO_MANY),
        (v1("2001:db8::1"), SERVED),
        (v2_ipv6("2001:db8::ffff"), TOO_MANY),
        (v2_ipv6("2001:db8:0:1::1"), SERVED),
    ] {
        let (stream, status) = opened(&server, PROXY, &header);
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&header));
        held.push(stream);
    }
    drop(held);
    server.wait_total("connections", |n| n == 0);
    let again = || opened(&server, PROXY, &v1("198.51.100.1")).1;
    wait_until("who left may come back", again, |status| status == SERVED);
}

#[test]
fn a_proxy_that_connects_for_itself_is_counted_for_nobody() {
    let server = behind_proxy_protocol();
    let headers = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ::1 ::1 1 2\r\n".to_vec(),
        v2(0, 0, &[]),
        v2(0, 0x11, &[198, 51, 100, 1, 127, 0, 0, 1, 0, 80, 1, 187]),
        v2(1, 0x31, &[b'/'; 216]),
        // Another proxy of the list.
        v1("192.0.2.1"),
        v1("192.0.2.1"),
    ];
    let held: Vec<_> = headers.iter().map(|header| opened(&server, PROXY, header)).collect();
    assert!(held.iter().all(|(_, status)| status == SERVED), "{held:?}");
}

#[test]
fn a_proxy_header_may_come_byte_by_byte() {
    let server = behind_proxy_protocol();
    let mut held = Vec::new();
    for header in [v1("198.51.100.1"), v2_ipv6("2001:db8::1")] {
        let mut stream = connect(PROXY, server.public);
        stream.set_nodelay(true).unwrap();
        for byte in [&header[..], UPGRADE].concat() {
            stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(status(&mut stream), SERVED);
        held.push(stream);
    }
    assert_eq!(opened(&server, PROXY, &v2_ipv4([198, 51, 100, 1])).1, TOO_MANY);
    // In one piece with the head and the first frame, behind 500 bytes of what proxies add.
    let body =
        [&[198, 51, 100, 7, 127, 0, 0, 1, 0, 80, 1, 187][..], &[4, 1, 0xf4], &[0; 500]].concat();
    let mut stream = connect(PROXY, server.public);
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    stream.write_all(&[&v2(1, 0x11, &body)[..], UPGRADE, &ping].concat()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(&[0x8a, 0]) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(SERVED.as_bytes()));
}

#[test]
fn what_is_no_proxy_header_is_refused_and_so_is_one_from_a_stranger() {
    // Who is refused counts until the refusal has arrived: no limit for each address here.
    let server = TestServer::open(&[LISTED, "server.proxy_protocol=required"]);
    for (from, before) in [
        (PROXY, Vec::new()),
        (PROXY, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        (PROXY, b"PROXY TCP4 300.1.1.1 127.0.0.1 1 2\r\n".to_vec()),
        (PROXY, format!("PROXY TCP4 {}", "1".repeat(200)).into_bytes()),
        (PROXY, v2(1, 0x11, &[0; 4])),
        (PROXY, v2(1, 0x11, &[0; 4000])),
        (PROXY, v2(7, 0x11, &[0; 12])),
        (PROXY, [v1("198.51.100.1"), v1("198.51.100.2")].concat()),
        (STRANGER, v1("198.51.100.1")),
        (STRANGER, v2_ipv4([198, 51, 100, 1])),
        (STRANGER, b"\x16\x03\x01\x02\x00\x01".to_vec()),
    ] {
        assert_eq!(opened(&server, from, &before).1, BAD, "{}", String::from_utf8_lossy(&before));
    }
    let mut honest = connect(STRANGER, server.public);
    assert_eq!(upgrade(&mut honest), SERVED, "who is no proxy needs no header");
    let refused = server.get("/api/stats")["refused"]["proxy_header"].as_u64().unwrap();
    assert!(refused >= 9, "{refused}");
    // Where it is switched off nobody's is taken.
    let off = TestServer::open(&[LISTED]);
    for from in [PROXY, STRANGER] {
        assert_eq!(opened(&off, from, &v1("198.51.100.1")).1, BAD);
        assert_eq!(opened(&off, from, &v2_ipv4([198, 51, 100, 1])).1, BAD);
    }
}

#[test]
fn a_proxy_header_that_never_ends_is_closed_at_the_deadline() {
    let flags = [LISTED, "server.proxy_protocol=required", "server.handshake_timeout_ms=200"];
    let server = TestServer::open(&flags);
    let mut stream = connect(PROXY, server.public);
    stream.write_all(b"PROXY TCP4 1.2").unwrap();
    assert_eq!(status(&mut stream), "HTTP/1.1 408");
}

#[test]
fn a_forged_chain_is_believed_up_to_the_last_proxy() {
    let server = behind_forwarding();
    let mut held = Vec::new();
    for (from, headers, expected) in [
        (PROXY, "X-Forwarded-For: 198.51.100.1\r\n", SERVED),
        (PROXY, "X-Forwarded-For: 198.51.100.1\r\n", TOO_MANY),
        (PROXY, "X-Forwarded-For: 9.9.9.1, 198.51.100.1\r\n", TOO_MANY),
        (PROXY, "X-Forwarded-For: 9.9.9.2\r\nX-Forwarded-For: 198.51.100.1\r\n", TOO_MANY),
        (PROXY, "X-FORWARDED-FOR: 9.9.9.3, 198.51.100.1,192.0.2.5\r\nX-A: b\r\n", TOO_MANY),
        (PROXY, "X-Forwarded-For: 198.51.100.1:4711, 192.0.2.5\r\n", TOO_MANY),
        (PROXY, "X-Forwarded-For: 198.51.100.1, 198.51.100.2\r\n", SERVED),
        // What cannot be read names nobody: the proxy alone is known, and is not counted.
        (PROXY, "X-Forwarded-For: 198.51.100.1, unknown\r\n", SERVED),
        (PROXY, "X-Forwarded-For: 198.51.100.1, \r\n", SERVED),
        (PROXY, "", SERVED),
        (PROXY, "Forwarded: for=198.51.100.1\r\n", SERVED),
        // Who is no proxy is who he is.
        (STRANGER, "X-Forwarded-For: 198.51.100.3\r\n", SERVED),
        (STRANGER, "X-Forwarded-For: 198.51.100.4\r\n", TOO_MANY),
        (STRANGER, "X-Forwarded-For: 127.0.0.9\r\n", TOO_MANY),
    ] {
        let (stream, status) = forwarded(&server, from, headers);
        assert_eq!(status, expected, "{from} {headers:?}");
        held.push(stream);
    }
}

#[test]
fn behind_both_the_header_is_believed_of_a_proxy_alone() {
    let flags = [
        LISTED,
        ONE_EACH,
        "server.proxy_protocol=required",
        "server.forwarded_header=x-forwarded-for",
    ];
    let server = TestServer::open(&flags);
    let ask = |header: Vec<u8>| {
        let text = String::from_utf8_lossy(UPGRADE)
            .replace("Host: a\r\n", "Host: a\r\nX-Forwarded-For: 198.51.100.1\r\n");
        let mut stream = connect(PROXY, server.public);
        stream.write_all(&[&header[..], text.as_bytes()].concat()).unwrap();
        let status = status(&mut stream);
        (stream, status)
    };
    let _first = ask(v1("192.0.2.1"));
    assert_eq!(_first.1, SERVED);
    assert_eq!(ask(v1("192.0.2.2")).1, TOO_MANY, "the same client over another proxy");
    let _client = ask(v1("198.51.100.9"));
    assert_eq!(_client.1, SERVED, "who is no proxy is who it is");
    let _check = ask(v2(0, 0, &[]));
    assert_eq!(_check.1, SERVED, "a check of the proxy's own is for nobody");
}

#[test]
fn one_address_does_not_starve_the_others() {
    const MOST: usize = 20;
    let most = format!("server.connections_per_address_max={MOST}");
    let server = TestServer::open(&[&most, "server.handshakes_max=64"]);
    let greedy = Ipv4Addr::new(127, 0, 0, 2);
    let tried: Vec<_> = (0..300).map(|_| opened(&server, greedy, b"")).collect();
    let served = tried.iter().filter(|(_, status)| status == SERVED).count();
    assert_eq!(served, MOST);
    for honest in 10..60 {
        let from = Ipv4Addr::new(127, 0, 2, honest);
        assert_eq!(upgrade(&mut connect(from, server.public)), SERVED, "{from}");
    }
    assert!(server.get("/api/stats")["refused"]["per_address_max"].as_u64().unwrap() >= 280);
}

#[test]
fn one_client_behind_a_proxy_does_not_starve_the_others() {
    let server = TestServer::open(&[
        LISTED,
        "server.proxy_protocol=required",
        "server.connections_per_address_max=5",
        "server.handshakes_max=32",
        "server.handshake_timeout_ms=60000",
    ]);
    // They say who they are, and then no request.
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = connect(PROXY, server.public);
            let _ = stream.write_all(&v1("198.51.100.1"));
            stream
        })
        .collect();
    for honest in 1..=50 {
        let client = format!("203.0.113.{honest}");
        assert_eq!(opened(&server, PROXY, &v1(&client)).1, SERVED, "{client}");
    }
    drop(slow);
}

#[test]
fn an_address_that_connects_too_often_is_answered_429() {
    let rate =
        ["server.handshakes_per_address_per_second_max=1", "server.handshakes_burst=5", LISTED];
    let server =
        TestServer::open(&[&rate[..], &["server.forwarded_header=x-forwarded-for"]].concat());
    let greedy = Ipv4Addr::new(127, 0, 0, 2);
    let mut refused = String::new();
    for attempt in 0.. {
        let mut stream = connect(greedy, server.public);
        let _ = stream.write_all(UPGRADE);
        let status = status(&mut stream);
        if status != SERVED {
            stream.read_to_string(&mut refused).unwrap();
            assert_eq!(status, "HTTP/1.1 429");
            assert!(attempt >= 5, "the burst is {attempt}");
            break;
        }
    }
    assert!(refused.contains("Retry-After: 1\r\n"), "{refused}");
    assert_eq!(upgrade(&mut connect(STRANGER, server.public)), SERVED, "others are not held to it");
    // A proxy is not held to it for itself, its clients are.
    assert!((0..30).all(|_| forwarded(&server, PROXY, "").1 == SERVED));
    let behind = |_| forwarded(&server, PROXY, "X-Forwarded-For: 198.51.100.1\r\n").1;
    assert!((0..1000).map(behind).any(|status| status == "HTTP/1.1 429"));
    let counted = server.get("/api/stats")["refused"]["handshake_rate"].as_u64().unwrap();
    assert!(counted >= 2, "{counted}");
}

#[test]
fn of_two_headers_the_one_that_is_configured_counts() {
    let server = TestServer::open(&[LISTED, ONE_EACH, "server.forwarded_header=forwarded"]);
    let mut held = Vec::new();
    for (from, headers, expected) in [
        (PROXY, "Forwarded: for=198.51.100.1;proto=https\r\n", SERVED),
        (
            PROXY,
            "Forwarded: for=\"198.51.100.1:80\"\r\nX-Forwarded-For: 198.51.100.2\r\n",
            TOO_MANY,
        ),
        (PROXY, "X-Forwarded-For: 198.51.100.1\r\n", SERVED),
        (PROXY, "Forwarded: for=198.51.100.9\r\nForwarded: for=\"[2001:db8::1]\"\r\n", SERVED),
        (PROXY, "Forwarded: for=\"[2001:db8::2]:_p\"\r\n", TOO_MANY),
        (PROXY, "Forwarded: for=198.51.100.3;x=\", for=198.51.100.1\r\n", BAD),
        (STRANGER, "Forwarded: for=\"\r\n", SERVED),
        (STRANGER, "Forwarded: for=198.51.100.4\r\n", TOO_MANY),
    ] {
        let (stream, status) = forwarded(&server, from, headers);
        assert_eq!(status, expected, "{from} {headers:?}");
        held.push(stream);
    }
}
