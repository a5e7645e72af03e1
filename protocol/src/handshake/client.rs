//! The client's side.

use base64::Engine as _;
use tungstenite::handshake::derive_accept_key;

use super::head::{HEAD_BYTES_MAX, HEADERS_MAX};

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
