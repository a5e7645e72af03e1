//! RFC 6455 as a client needs it, written without a look at the engine's own framing.

/// A whole frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) fin: bool,
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// Cuts a stream into frames and refuses everything that a server must not send.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    at: usize,
    /// Bytes of the stream before the buffer.
    before: u64,
}

impl Parser {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 && self.at == self.buffer.len() {
            self.before += self.at as u64;
            self.buffer.clear();
            self.at = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes of the stream before the next frame.
    pub(crate) fn position(&self) -> u64 {
        self.before + self.at as u64
    }

    /// Bytes of a frame that is not whole.
    pub(crate) fn pending(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// The next whole frame; an error says why no server frame begins here.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, String> {
        let rest = &self.buffer[self.at..];
        let &[first, second, ..] = rest else { return Ok(None) };
        let (fin, opcode, short) = (first & 0x80 != 0, first & 0x0f, usize::from(second & 0x7f));
        let problem = if first & 0x70 != 0 {
            Some("a reserved bit is set")
        } else if !matches!(opcode, 0..=2 | 8..=10) {
            Some("no such opcode")
        } else if second & 0x80 != 0 {
            Some("it is masked")
        } else if opcode >= 8 && (!fin || short > 125) {
            Some("a control frame that is fragmented or too long")
        } else {
            None
        };
        if let Some(problem) = problem {
            let start = super::trace::shown(&rest[..rest.len().min(40)]);
            return Err(format!("no frame begins here: {problem}: {start}"));
        }
        let (head, len) = match short {
            126 if rest.len() >= 4 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
            127 if rest.len() >= 10 => {
                let mut eight = [0; 8];
                eight.copy_from_slice(&rest[2..10]);
                (10, u64::from_be_bytes(eight) as usize)
            }
            126 | 127 => return Ok(None),
            len => (2, len),
        };
        if (head == 4 && len < 126) || (head == 10 && len <= 0xffff) || len > 1 << 30 {
            return Err(format!("a length of {len} in {head} bytes of header"));
        }
        if rest.len() < head + len {
            return Ok(None);
        }
        let payload = rest[head..head + len].to_vec();
        self.at += head + len;
        Ok(Some(Frame { fin, opcode, payload }))
    }
}

/// Appends a frame as a client sends it.
pub(crate) fn write(out: &mut Vec<u8>, fin: bool, opcode: u8, payload: &[u8], key: [u8; 4]) {
    out.push(if fin { 0x80 } else { 0 } | opcode);
    let len = payload.len();
    match len {
        0..=125 => out.push(0x80 | len as u8),
        126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

pub(crate) fn close_body(code: u16) -> Vec<u8> {
    code.to_be_bytes().to_vec()
}
