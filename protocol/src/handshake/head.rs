//! Request heads.

use super::response::Refusal;

/// Longest request or response head in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header fields in a head.
pub const HEADERS_MAX: usize = 64;
/// First byte of a TLS connection (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// A request head, borrowed from the bytes it was parsed from.
#[derive(Debug)]
pub struct Request<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// The target up to `?`.
    pub path: &'a str,
    /// The target behind `?`, empty where there is none.
    pub query: &'a str,
    /// Of HTTP/1.
    minor_version: u8,
    headers: Vec<(&'a str, &'a [u8])>,
}

/// Finds the end of a head that comes in pieces, looking at each byte once.
#[derive(Debug, Default)]
pub struct HeadEnd {
    /// Bytes looked at.
    scanned: usize,
    /// Where the line under way begins.
    line: usize,
    /// The request line has begun: empty lines before it are skipped (RFC 9112 section 2.2).
    begun: bool,
}

impl HeadEnd {
    /// `bytes` is all that has come: what the call before was given, and more. Returns how many of
    /// them are the head once its empty line has come. What can never become a head of HTTP/1.1 is
    /// refused as soon as it shows.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        loop {
            if let (false, Some(&first)) = (self.begun, bytes.get(self.line)) {
                match first {
                    b'\r' => {}
                    first if first.is_ascii_alphabetic() => self.begun = true,
                    TLS_HANDSHAKE => {
                        return Err(Refusal::new(400, "HTTP is spoken here, without TLS\n"));
                    }
                    _ => return Err(Refusal::new(400, "this is not an HTTP/1.1 request\n")),
                }
            }
            let rest = bytes.get(self.scanned..HEAD_BYTES_MAX.min(bytes.len())).unwrap_or_default();
            let Some(at) = rest.iter().position(|&b| b == b'\n') else {
                self.scanned += rest.len();
                if self.scanned >= HEAD_BYTES_MAX {
                    let text = format!("the request head is limited to {HEAD_BYTES_MAX} bytes\n");
                    return Err(Refusal::new(431, text));
                }
                return Ok(None);
            };
            let line = bytes.get(self.line..self.scanned + at).unwrap_or_default();
            if line.last() != Some(&b'\r') {
                return Err(Refusal::new(400, "lines of a request head end in CR LF\n"));
            }
            self.scanned += at + 1;
            self.line = self.scanned;
            if self.begun && line.len() == 1 {
                return Ok(Some(self.scanned));
            }
        }
    }
}

/// Path and query of a target in origin-form or in absolute-form (RFC 9112 section 3.2). A user name
/// before the host is refused, as RFC 9110 section 4.2.4 advises, and a fragment, which is never sent.
fn split_target(target: &str) -> Option<(&str, &str)> {
    if target.contains('#') {
        return None;
    }
    let local = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://")?;
        if !["http", "https", "ws", "wss"].iter().any(|s| s.eq_ignore_ascii_case(scheme)) {
            return None;
        }
        let (authority, local) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || authority.contains('@') {
            return None;
        }
        local
    };
    let (path, query) = local.split_once('?').unwrap_or((local, ""));
    Some((if path.is_empty() { "/" } else { path }, query))
}

impl<'a> Request<'a> {
    /// Parses the head at the start of `bytes`. Returns it and its length, or `None` while the
    /// empty line has not come. A head that comes in pieces is looked for with [`HeadEnd`], so
    /// that it is parsed once.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Request<'a>, usize)>, Refusal> {
        let Some(len) = HeadEnd::default().find(bytes)? else { return Ok(None) };
        Request::parse_whole(bytes.get(..len).unwrap_or_default()).map(|head| Some((head, len)))
    }

    /// Parses a head of which [`HeadEnd::find`] has found the end: of a request that is answered here, by a WebSocket or a
    /// few bytes.
    pub fn parse_whole(bytes: &'a [u8]) -> Result<Request<'a>, Refusal> {
        Request::parse_any(bytes)?.bare()
    }

    /// The same of a request that may have a body and be of HTTP/1.0: method, path and fields can be looked at, and who
    /// serves it has to parse it again.
    pub fn parse_any(bytes: &'a [u8]) -> Result<Request<'a>, Refusal> {
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
        if parsed.is_partial() {
            return Err(Refusal::new(400, "this is not an HTTP/1.1 request\n"));
        }
        let (path, query) = split_target(head.path.unwrap_or_default()).ok_or_else(|| {
            Refusal::new(
                400,
                "the target must begin with '/' or be a URL with a host, and have no '#'\n",
            )
        })?;
        Ok(Request {
            method: head.method.unwrap_or_default(),
            path,
            query,
            minor_version: head.version.unwrap_or_default(),
            headers: head.headers.iter().map(|h| (h.name, h.value)).collect(),
        })
    }

    /// Refuses what has no place before a WebSocket.
    pub fn bare(self) -> Result<Request<'a>, Refusal> {
        let request = self;
        if request.minor_version != 1 {
            return Err(Refusal::new(505, "only HTTP/1.1 is spoken here\n"));
        }
        // A body, or two readings of where the head ends, has no place here: refuse, never guess.
        if request.header("transfer-encoding").is_some()
            || request.all("content-length").any(|length| length != b"0")
        {
            return Err(Refusal::new(400, "a request with a body is not accepted on this port\n"));
        }
        if request.all("host").count() != 1 {
            return Err(Refusal::new(400, "exactly one Host header is needed\n"));
        }
        if request.all("origin").count() > 1 {
            return Err(Refusal::new(400, "at most one Origin header is allowed\n"));
        }
        // One program would go by the first, another one by both, joined.
        if request.all("authorization").count() > 1 {
            return Err(Refusal::new(400, "at most one Authorization header is allowed\n"));
        }
        Ok(request)
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

    /// All values of a header field in their order, name in any case.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|&(_, v)| v)
    }

    pub(super) fn tokens(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.all(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|token| !token.is_empty())
    }

    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        self.tokens(name).any(|t| t.eq_ignore_ascii_case(token))
    }
}

/// What follows the scheme `Bearer` in the value of `Authorization`; its case does not matter (RFC 9110 section 11.1).
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(value.iter().position(|&b| b == b' ')?)?;
    scheme.eq_ignore_ascii_case(b"bearer").then_some(token)
}
