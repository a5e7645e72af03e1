//! The receiving half beside tungstenite, an independent implementation. The fuzz target `frames`
//! uses it, too.
#![allow(unreachable_pub)] // included where it is used

use std::io::{self, Read, Write};

use ringfeed_protocol::{Connection, Incoming, ProtocolError, Role};
use tungstenite::protocol::{Role as OracleRole, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

/// Longest message that both take.
pub const LIMIT: usize = 200;

/// Bytes to be read; what is written is dropped.
struct Script {
    input: Vec<u8>,
    at: usize,
    step: usize,
}

impl Read for Script {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.step.min(out.len()).min(self.input.len() - self.at);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        out[..count].copy_from_slice(&self.input[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was received up to the end, the close or the error; and the error.
pub type Seen<E> = (Vec<String>, E);

pub fn oracle(input: &[u8], step: usize) -> Seen<bool> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    let script = Script { input: input.to_vec(), at: 0, step };
    let mut socket = WebSocket::from_raw_socket(script, OracleRole::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => seen.push(format!("text {:?}", text.as_bytes())),
            Ok(Message::Binary(bytes)) => seen.push(format!("binary {:?}", &bytes[..])),
            Ok(Message::Ping(bytes)) => seen.push(format!("ping {:?}", &bytes[..])),
            Ok(Message::Pong(bytes)) => seen.push(format!("pong {:?}", &bytes[..])),
            Ok(Message::Close(frame)) => {
                seen.push(format!("close {:?}", frame.map(|f| u16::from(f.code))));
                return (seen, false);
            }
            Ok(Message::Frame(_)) => {}
            Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return (seen, false),
            Err(_) => return (seen, true),
        }
    }
}

pub fn ours(input: &[u8], step: usize) -> Seen<Option<ProtocolError>> {
    let mut connection = Connection::new(Role::Server, LIMIT as u32);
    let mut seen = Vec::new();
    for piece in input.chunks(step) {
        let mut piece = piece.to_vec();
        let mut at = 0;
        while at < piece.len() {
            match connection.receive(&mut piece[at..]) {
                Err(e) => return (seen, Some(e)),
                Ok((used, incoming)) => {
                    at += used;
                    match incoming {
                        None => {}
                        Some(Incoming::Text(t)) => seen.push(format!("text {:?}", t.as_bytes())),
                        Some(Incoming::Binary(b)) => seen.push(format!("binary {b:?}")),
                        Some(Incoming::Ping(b)) => seen.push(format!("ping {b:?}")),
                        Some(Incoming::Pong(b)) => seen.push(format!("pong {b:?}")),
                        Some(Incoming::Close(code)) => {
                            seen.push(format!("close {:?}", code.map(|c| c.0)));
                            return (seen, None);
                        }
                    }
                }
            }
        }
        connection.settle();
    }
    (seen, None)
}

/// What is wrong if one of the two understands `input` otherwise than the other.
pub fn disagreement(input: &[u8], step: usize) -> Option<String> {
    let (expected, expected_error) = oracle(input, step);
    let (mut seen, error) = ours(input, step);
    // IANA has registered it since the oracle was written, which calls it a protocol error.
    if let Some(last) = seen.last_mut().filter(|last| *last == "close Some(1014)") {
        *last = "close Some(1002)".into();
    }
    let agreed = match error {
        // The oracle takes lengths in more bytes than needed, which RFC 6455 section 5.2 forbids.
        Some(ProtocolError::BadLength | ProtocolError::BadControlFrame) => {
            expected.starts_with(&seen)
        }
        // Fail fast: the oracle would see the same error with more input. It reports a close code that
        // may not travel as a close.
        Some(_) if !expected_error => expected.starts_with(&seen),
        _ => error.is_some() == expected_error && seen == expected,
    };
    (!agreed).then(|| format!("seen {seen:?} {error:?}, expected {expected:?} {expected_error}"))
}
