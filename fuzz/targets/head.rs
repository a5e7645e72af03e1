//! Request heads, whole and in pieces, and the answers of servers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfeed_engine::origins::Origins;
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
    let _ = ClientHandshake::new("a", "/ws", None, [7; 16]).receive(bytes);
    let Ok(Some(len)) = whole else { return };
    assert!(len <= HEAD_BYTES_MAX && bytes[..len].ends_with(b"\r\n\r\n"));
    let Ok(request) = Request::parse_whole(&bytes[..len]) else { return };
    assert!(request.path.starts_with('/') && !request.path.contains('?'));
    let listed = ["https://*.example.org", "http://localhost:*"].map(str::to_owned);
    let listed = Origins::parse(&listed).expect("valid patterns");
    if let Some(origin) = request.header("origin").filter(|&origin| listed.allow(Some(origin))) {
        let origin = origin.to_ascii_lowercase();
        let begins = |with: &[u8]| origin.starts_with(with);
        assert!(begins(b"https://") || begins(b"http://localhost"));
    }
    let Ok(upgrade) = request.upgrade() else { return };
    let mut answer = Vec::new();
    upgrade.write_response(&mut answer, upgrade.protocols.first().copied());
    let lines = answer.iter().filter(|&&b| b == b'\n').count();
    assert!((5..=6).contains(&lines), "nothing of the request may add a line to the answer");
});
