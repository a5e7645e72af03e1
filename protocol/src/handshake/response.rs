//! HTTP answers: each says what was wrong and what is allowed, and ends the connection.

use std::borrow::Cow;

/// Why a head was not accepted: one HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Further header lines, each ending in CRLF.
    pub headers: Cow<'static, str>,
    /// What was wrong, for a person.
    pub text: String,
}

impl Refusal {
    /// A refusal with no further headers.
    pub fn new(status: u16, text: impl Into<String>) -> Refusal {
        Refusal { status, headers: "".into(), text: text.into() }
    }

    /// Appends the whole HTTP answer.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_response(out, self.status, &self.headers, "text/plain; charset=utf-8", &self.text);
    }
}

/// Appends a whole HTTP/1.1 answer that closes the connection.
pub fn write_response(out: &mut Vec<u8>, status: u16, headers: &str, kind: &str, body: &str) {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
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
