//! Request heads.

use super::response::Refusal;

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

    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
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
