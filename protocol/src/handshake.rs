//! The opening handshake (RFC 6455 section 4), both sides, over bytes.
//!
//! Every refusal is a proper HTTP answer with a status, a text that says what was wrong and what is
//! allowed, and `Connection: close`.

mod client;
mod head;
mod response;
mod upgrade;

pub use client::{ClientHandshake, ClientHandshakeError};
pub use head::{HEAD_BYTES_MAX, HEADERS_MAX, HeadEnd, Request, bearer};
pub use response::{Refusal, write_response};
pub use upgrade::Upgrade;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /ws?protocol=raw.v1&x HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: a, raw.v1\r\nSec-WebSocket-Protocol: b\r\n\r\n";

    fn status(head: &str) -> u16 {
        match Request::parse(head.as_bytes()) {
            Err(refusal) => refusal.status,
            Ok(None) => 0,
            Ok(Some((request, _))) => request.upgrade().map_or_else(|r| r.status, |_| 101),
        }
    }

    #[test]
    fn the_example_of_rfc_6455_section_1_3() {
        let (request, len) = Request::parse(GOOD.as_bytes()).unwrap().unwrap();
        assert_eq!(len, GOOD.len());
        assert_eq!((request.path, request.query), ("/ws", "protocol=raw.v1&x"));
        assert_eq!(request.query_value("protocol"), Some("raw.v1"));
        let upgrade = request.upgrade().unwrap();
        assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(upgrade.protocols, ["a", "raw.v1", "b"]);
    }

    #[test]
    fn every_refusal_has_its_status() {
        assert_eq!(status(GOOD), 101);
        assert_eq!(status(&GOOD[..40]), 0);
        assert_eq!(status(&GOOD.replace("GET", "POST")), 405);
        assert_eq!(status(&GOOD.replace("HTTP/1.1", "HTTP/1.0")), 505);
        assert_eq!(status(&GOOD.replace("Version: 13", "Version: 8")), 426);
        assert_eq!(status(&GOOD.replace("Upgrade: WebSocket\r\n", "")), 426);
        assert_eq!(status(&GOOD.replace("keep-alive, Upgrade", "close")), 426);
        assert_eq!(status(&GOOD.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")), 400);
        assert_eq!(status(&GOOD.replace("Host: a\r\n", "")), 400);
        assert_eq!(status(&GOOD.replace("Host: a\r\n", "Host: a\r\nHost: b\r\n")), 400);
        assert_eq!(status(&GOOD.replace("Host: a", "Host: a\r\nContent-Length: 5")), 400);
        assert_eq!(status(&GOOD.replace("Host: a", "Host: a\r\nTransfer-Encoding: chunked")), 400);
        let host = |with: &str| status(&GOOD.replace("Host: a\r\n", with));
        assert_eq!(host("Host: a\r\nContent-Length: 0\r\nContent-Length: 10\r\n"), 400);
        assert_eq!(host("Host: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n"), 101);
        assert_eq!(host("Host: a\r\nSec-WebSocket-Version: 8\r\n"), 400);
        assert_eq!(host("Sec-WebSocket-Version: 13\r\nHost: a\r\n"), 400);
        assert_eq!(host("Host: a\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"), 400);
        assert_eq!(host("Host: a\r\nOrigin: http://a\r\nOrigin: http://b\r\n"), 400);
        assert_eq!(host("Host: a\r\nAuthorization: Bearer a\r\nauthorization: Bearer b\r\n"), 400);
        assert_eq!(host("Host: a\n"), 400);
        assert_eq!(status(&GOOD.replace("\r\n", "\n")), 400);
        assert_eq!(status("\u{1}\u{2} what\r\n\r\n"), 400);
        assert_eq!(status(&GOOD.replace("Host: a", &format!("Host: {}", "x".repeat(17_000)))), 431);
        let many = (0..70).map(|i| format!("x{i}: y\r\n")).collect::<String>();
        assert_eq!(status(&GOOD.replace("Host: a\r\n", &format!("Host: a\r\n{many}"))), 431);
        assert_eq!(status(&format!("GET /{}", "x".repeat(17_000))), 431);
    }

    #[test]
    fn a_request_with_a_body_is_told_by_its_path_and_refused_only_before_a_websocket() {
        for (version, field) in
            [("1.1", "Content-Length: 5"), ("1.0", "Transfer-Encoding: chunked")]
        {
            let text = format!("POST /broadcast?x HTTP/{version}\r\n{field}\r\n\r\n");
            let request = Request::parse_any(text.as_bytes()).unwrap();
            assert_eq!((request.method, request.path), ("POST", "/broadcast"));
            request.bare().unwrap_err();
        }
    }

    #[test]
    fn a_head_in_pieces_ends_where_a_whole_one_ends() {
        let text = format!("\r\n{GOOD}behind it");
        for step in 1..text.len() {
            let (mut end, mut came) = (HeadEnd::default(), 0);
            let found = loop {
                came = (came + step).min(text.len());
                if let Some(len) = end.find(&text.as_bytes()[..came]).unwrap() {
                    break len;
                }
            };
            assert_eq!(found, 2 + GOOD.len());
        }
    }

    #[test]
    fn what_is_no_head_is_refused_from_its_first_bytes() {
        let find = |bytes: &[u8]| HeadEnd::default().find(bytes).map_err(|refusal| refusal.status);
        assert_eq!(find(b""), Ok(None));
        assert_eq!(find(b"\r\n"), Ok(None));
        assert_eq!(find(b"G"), Ok(None));
        assert_eq!(find(b"\x16\x03\x01"), Err(400));
        assert_eq!(find(b"\n"), Err(400));
        assert_eq!(find(b"\r\n\0"), Err(400));
        assert_eq!(find(b"GET / HTTP/1.1\n"), Err(400));
        assert_eq!(find(&[b'x'; HEAD_BYTES_MAX]), Err(431));
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer(b"bEARER  k"), Some(&b"  k"[..]));
        assert_eq!(bearer(b"Bearer"), None);
        assert_eq!(bearer(b"Basic k"), None);
        assert_eq!(bearer(b" Bearer k"), None);
    }

    #[test]
    fn targets_in_absolute_form_are_served() {
        for (target, path, query) in [
            ("http://example.org/ws?protocol=raw.v1", "/ws", "protocol=raw.v1"),
            ("HTTPS://example.org:8443/ws", "/ws", ""),
            ("ws://[::1]:9800/a/b", "/a/b", ""),
            ("http://example.org", "/", ""),
            ("http://example.org?x", "/", "x"),
            ("/http://example.org/ws", "/http://example.org/ws", ""),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            let (request, _) = Request::parse(text.as_bytes()).unwrap().unwrap();
            assert_eq!((request.path, request.query), (path, query), "{target}");
        }
        for target in [
            "http://",
            "http:///ws",
            "ftp://a/ws",
            "example.org/ws",
            "*",
            "http://a@b/",
            "/ws#x",
            "http://a#b/ws",
        ] {
            assert_eq!(
                status(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")),
                400,
                "{target}"
            );
        }
    }

    #[test]
    fn both_sides_agree() {
        let client = ClientHandshake::new("h:1", "/ws", Some("raw.v1"), [7; 16]);
        let (request, _) = Request::parse(client.request()).unwrap().unwrap();
        let mut answer = Vec::new();
        request.upgrade().unwrap().write_response(&mut answer, Some("raw.v1"));
        for cut in 0..answer.len() {
            assert_eq!(client.receive(&answer[..cut]), Ok(None));
        }
        assert_eq!(client.receive(&answer), Ok(Some(answer.len())));
        let other = ClientHandshake::new("h:1", "/ws", None, [8; 16]);
        assert_eq!(other.receive(&answer), Err(ClientHandshakeError::Accept));
        let mut refused = Vec::new();
        Refusal::new(503, "full\n").write(&mut refused);
        assert_eq!(client.receive(&refused), Err(ClientHandshakeError::Status(503)));
    }
}
