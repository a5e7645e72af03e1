//! Request heads and PROXY protocol headers, whole and in pieces, and the answers of servers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfeed_engine::origins::Origins;
use ringfeed_engine::proxies::{Proxies, read_proxy_header};
use ringfeed_protocol::handshake::{ClientHandshake, HEAD_BYTES_MAX, HeadEnd, Request};

fuzz_target!(|input: (usize, &[u8])| {
    let (step, bytes) = input;
    let whole = HeadEnd::default().find(bytes);
    let (mut end, mut came) = (HeadEnd::default(), 0usize);
    let in_pieces = loop {
        came = came.saturating_add(1 + step % 100).min(bytes.len());
        match end.find(&bytes[..came]) {
            Ok(None) if came < bytes.len() => {}
            found => break found,
        }
    };
    assert_eq!(whole, in_pieces, "pieces of {}", 1 + step % 100);
    see_proxy_header(step, bytes);
    let _ = ClientHandshake::new("a", "/ws", None, [7; 16]).receive(bytes);
    let Ok(Some(len)) = whole else { return };
    assert!(len <= HEAD_BYTES_MAX && bytes[..len].ends_with(b"\r\n\r\n"));
    let Ok(request) = Request::parse_whole(&bytes[..len]) else { return };
    assert!(request.path.starts_with('/') && !request.path.contains('?'));
    let listed = ["https://*.example.org", "http://localhost:*"].map(str::to_owned);
    let listed = Origins::parse(&listed).expect("valid patterns");
    let host = request.header("host");
    let allowed = |&origin: &&[u8]| listed.allow(Some(origin), host);
    if let Some(origin) = request.header("origin").filter(allowed) {
        let origin = origin.to_ascii_lowercase();
        let begins = |with: &[u8]| origin.starts_with(with);
        assert!(begins(b"https://") || begins(b"http://localhost"));
    }
    let proxies = Proxies::parse(&["10.0.0.0/8".to_owned()]).expect("a network");
    let proxy = std::net::IpAddr::from([10, 0, 0, 1]);
    let client = proxies.x_forwarded_for(proxy, request.all("x-forwarded-for"));
    assert!(client == client.to_canonical());
    if let Ok(client) = proxies.forwarded(proxy, request.all("forwarded")) {
        assert!(client == client.to_canonical());
    }
    let Ok(upgrade) = request.upgrade() else { return };
    let mut answer = Vec::new();
    upgrade.write_response(&mut answer, upgrade.protocols.first().copied());
    let lines = answer.iter().filter(|&&b| b == b'\n').count();
    assert!((5..=6).contains(&lines), "nothing of the request may add a line to the answer");
});

/// What comes in pieces is what comes at once, and nothing is waited for beyond the longest header.
fn see_proxy_header(step: usize, bytes: &[u8]) {
    let whole = read_proxy_header(bytes);
    let mut came = 0usize;
    let in_pieces = loop {
        came = came.saturating_add(1 + step % 100).min(bytes.len());
        match read_proxy_header(&bytes[..came]) {
            Ok(None) if came < bytes.len() => {}
            found => break found,
        }
    };
    assert_eq!(whole, in_pieces, "pieces of {}", 1 + step % 100);
    match whole {
        Ok(Some(header)) => assert!((13..=2048).contains(&header.len) && header.len <= bytes.len()),
        Ok(None) => assert!(bytes.len() < 2048),
        Err(refusal) => assert_eq!(refusal.status, 400),
    }
}
