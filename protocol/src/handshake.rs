//! The opening handshake (RFC 6455 section 4), both sides, over bytes.
//!
//! Every refusal is a proper HTTP answer with a status, a text that says what was wrong and what is
//! allowed, and `Connection: close`.

use base64::Engine as _;
use tungstenite::handshake::derive_accept_key;

/// Longest request or response head in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header fields in a head.
pub const HEADERS_MAX: usize = 64;

/// A request head, borrowed from the bytes it was parsed from.
#[derive(Debug)]
pub struct Request<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// The target up to `?`.
    pub path: &'a str,
    /// The target behind `?`, empty where there is none.
    pub query: &'a str,
    headers: Vec<(&'a str, &'a [u8])>,
}

/// Why a head was not accepted: one HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Further header lines, each ending in CRLF.
    pub headers: &'static str,
    /// What was wrong, for a person.
    pub text: String,
}

/// A request that asks for a WebSocket, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Accept` of the answer.
    pub accept: String,
    /// The subprotocols offered, in the client's order.
    pub protocols: Vec<&'a str>,
}

impl Refusal {
    /// A refusal with no further headers.
    pub fn new(status: u16, text: impl Into<String>) -> Refusal {
        Refusal { status, headers: "", text: text.into() }
    }

    /// Appends the whole HTTP answer.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_response(out, self.status, self.headers, "text/plain; charset=utf-8", &self.text);
    }
}

/// Appends a whole HTTP/1.1 answer that closes the connection.
pub fn write_response(out: &mut Vec<u8>, status: u16, headers: &str, kind: &str, body: &str) {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    };
    let length = body.len();
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n{headers}\r\n{body}"
        )
        .as_bytes(),
    );
}

impl<'a> Request<'a> {
    /// Parses the head at the start of `bytes`. Returns it and its length, or `None` while the
    /// empty line has not come.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Request<'a>, usize)>, Refusal> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Request::new(&mut fields);
        let parsed = head.parse(bytes).map_err(|e| match e {
            httparse::Error::TooManyHeaders => Refusal::new(
                431,
                format!("the request has more than {HEADERS_MAX} header fields\n"),
            ),
            httparse::Error::Version => Refusal::new(505, "only HTTP/1.1 is spoken here\n"),
            other => Refusal::new(400, format!("this is not an HTTP/1.1 request: {other}\n")),
        })?;
        let too_large = || {
            Refusal::new(431, format!("the request head is limited to {HEAD_BYTES_MAX} bytes\n"))
        };
        let httparse::Status::Complete(len) = parsed else {
            return if bytes.len() >= HEAD_BYTES_MAX { Err(too_large()) } else { Ok(None) };
        };
        if len > HEAD_BYTES_MAX {
            return Err(too_large());
        }
        if head.version != Some(1) {
            return Err(Refusal::new(505, "only HTTP/1.1 is spoken here\n"));
        }
        let target = head.path.unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            method: head.method.unwrap_or_default(),
            path,
            query,
            headers: head.headers.iter().map(|h| (h.name, h.value)).collect(),
        };
        // A body, or two readings of where the head ends, has no place here: refuse, never guess.
        if request.header("transfer-encoding").is_some()
            || request.header("content-length").is_some_and(|v| v != b"0")
        {
            return Err(Refusal::new(400, "a request with a body is not accepted on this port\n"));
        }
        if request.all("host").count() != 1 {
            return Err(Refusal::new(400, "exactly one Host header is needed\n"));
        }
        Ok(Some((request, len)))
    }

    /// The first value of a header field, name in any case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The value of a query parameter, as it stands (no percent-decoding).
    pub fn query_value(&self, name: &str) -> Option<&'a str> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }

    /// Whether the client asks for any upgrade at all.
    pub fn wants_upgrade(&self) -> bool {
        self.header("upgrade").is_some() || self.header("sec-websocket-key").is_some()
    }

    /// Checks everything that RFC 6455 section 4.2.1 demands of the client.
    pub fn upgrade(&self) -> Result<Upgrade<'a>, Refusal> {
        if self.method != "GET" {
            return Err(Refusal {
                status: 405,
                headers: "Allow: GET\r\n",
                text: format!("a WebSocket is opened with GET, not {}\n", printable(self.method)),
            });
        }
        if !self.has_token("upgrade", "websocket") || !self.has_token("connection", "upgrade") {
            return Err(Refusal {
                status: 426,
                headers: "Upgrade: websocket\r\n",
                text: "this path speaks WebSocket: send Upgrade: websocket and Connection: \
                       Upgrade\n"
                    .into(),
            });
        }
        if self.header("sec-websocket-version") != Some(b"13") {
            return Err(Refusal {
                status: 426,
                headers: "Sec-WebSocket-Version: 13\r\n",
                text: "only version 13 of the WebSocket protocol is spoken here\n".into(),
            });
        }
        let mut keys = self.all("sec-websocket-key");
        let key = match (keys.next(), keys.next()) {
            (Some(key), None) => key.trim_ascii(),
            _ => return Err(Refusal::new(400, "exactly one Sec-WebSocket-Key is needed\n")),
        };
        let nonce = base64::engine::general_purpose::STANDARD.decode(key);
        if !nonce.is_ok_and(|nonce| nonce.len() == 16) {
            return Err(Refusal::new(400, "Sec-WebSocket-Key must be 16 bytes in base64\n"));
        }
        let protocols = self.tokens("sec-websocket-protocol").collect();
        Ok(Upgrade { accept: derive_accept_key(key), protocols })
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|&(_, v)| v)
    }

    fn tokens(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.all(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|token| !token.is_empty())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.tokens(name).any(|t| t.eq_ignore_ascii_case(token))
    }
}

impl Upgrade<'_> {
    /// Appends the answer that completes the handshake.
    pub fn write_response(&self, out: &mut Vec<u8>, protocol: Option<&str>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: ",
        );
        out.extend_from_slice(self.accept.as_bytes());
        if let Some(protocol) = protocol {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(protocol.as_bytes());
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// The client's side: one request, and what its answer must hold.
#[derive(Debug)]
pub struct ClientHandshake {
    accept: String,
    request: Vec<u8>,
}

/// Why a server's answer did not open a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientHandshakeError {
    /// Not an HTTP answer, or longer than [`HEAD_BYTES_MAX`].
    #[error("the answer is not an HTTP/1.1 response head")]
    NotHttp,
    /// A status other than 101.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// A wrong or missing `Sec-WebSocket-Accept`.
    #[error("the server's Sec-WebSocket-Accept is missing or wrong")]
    Accept,
}

impl ClientHandshake {
    /// `target` is path and query; `nonce` 16 random bytes.
    pub fn new(host: &str, target: &str, protocol: Option<&str>, nonce: [u8; 16]) -> Self {
        let key = base64::engine::general_purpose::STANDARD.encode(nonce);
        let protocol =
            protocol.map(|p| format!("Sec-WebSocket-Protocol: {p}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{protocol}\r\n"
        );
        Self { accept: derive_accept_key(key.as_bytes()), request: request.into_bytes() }
    }

    /// The bytes to send.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Checks the answer at the start of `bytes`; returns its length, `None` while it is not whole.
    pub fn receive(&self, bytes: &[u8]) -> Result<Option<usize>, ClientHandshakeError> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let parsed = head.parse(bytes).map_err(|_| ClientHandshakeError::NotHttp)?;
        let httparse::Status::Complete(len) = parsed else {
            let too_long = bytes.len() >= HEAD_BYTES_MAX;
            return if too_long { Err(ClientHandshakeError::NotHttp) } else { Ok(None) };
        };
        match head.code {
            Some(101) => {}
            status => return Err(ClientHandshakeError::Status(status.unwrap_or(0))),
        }
        let accept =
            head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("sec-websocket-accept"));
        if accept.is_none_or(|h| h.value != self.accept.as_bytes()) {
            return Err(ClientHandshakeError::Accept);
        }
        Ok(Some(len))
    }
}

fn printable(text: &str) -> String {
    text.chars().take(20).map(|c| if c.is_control() { '?' } else { c }).collect()
}

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
        assert_eq!(status("\u{1}\u{2} what\r\n\r\n"), 400);
        assert_eq!(status(&GOOD.replace("Host: a", &format!("Host: {}", "x".repeat(17_000)))), 431);
        let many = (0..70).map(|i| format!("x{i}: y\r\n")).collect::<String>();
        assert_eq!(status(&GOOD.replace("Host: a\r\n", &format!("Host: a\r\n{many}"))), 431);
        assert_eq!(status(&format!("GET /{}", "x".repeat(17_000))), 431);
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
