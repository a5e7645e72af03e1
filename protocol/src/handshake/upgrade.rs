//! The request for a WebSocket (RFC 6455 section 4.2.1) and the answer that opens it.

use base64::Engine as _;
use tungstenite::handshake::derive_accept_key;

use super::head::Request;
use super::response::Refusal;

/// A request that asks for a WebSocket, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Accept` of the answer.
    pub accept: String,
    /// The subprotocols offered, in the client's order.
    pub protocols: Vec<&'a str>,
}

impl<'a> Request<'a> {
    /// Checks everything that RFC 6455 section 4.2.1 demands of the client.
    pub fn upgrade(&self) -> Result<Upgrade<'a>, Refusal> {
        if self.method != "GET" {
            return Err(Refusal {
                status: 405,
                headers: "Allow: GET\r\n".into(),
                text: format!("a WebSocket is opened with GET, not {}\n", printable(self.method)),
            });
        }
        if !self.has_token("upgrade", "websocket") || !self.has_token("connection", "upgrade") {
            return Err(Refusal {
                status: 426,
                headers: "Upgrade: websocket\r\n".into(),
                text: "this path speaks WebSocket: send Upgrade: websocket and Connection: \
                       Upgrade\n"
                    .into(),
            });
        }
        let mut versions = self.all("sec-websocket-version");
        let version = versions.next();
        if versions.next().is_some() {
            return Err(Refusal::new(400, "at most one Sec-WebSocket-Version is allowed\n"));
        }
        if version != Some(b"13") {
            return Err(Refusal {
                status: 426,
                headers: "Sec-WebSocket-Version: 13\r\n".into(),
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

fn printable(text: &str) -> String {
    text.chars().take(20).map(|c| if c.is_control() { '?' } else { c }).collect()
}
