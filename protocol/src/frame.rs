//! Frame headers (RFC 6455 section 5.2): parsing one, writing one.

use crate::error::ProtocolError;

/// Longest header: two bytes, eight of length, four of mask.
pub const HEADER_BYTES_MAX: usize = 14;
/// Longest body of a control frame.
pub const CONTROL_BYTES_MAX: usize = 125;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of the message before.
    Continuation = 0,
    /// UTF-8 text.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// The closing handshake.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping.
    Pong = 10,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Opcode, ProtocolError> {
        Ok(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            other => return Err(ProtocolError::ReservedOpcode(other)),
        })
    }

    /// Close, ping or pong.
    pub fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// A parsed frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Last frame of its message.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// The masking key, where the sender is a client.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload.
    pub len: u64,
}

impl Header {
    /// Parses the header at the start of `bytes`. Returns the header and its own length in bytes,
    /// or `None` while it is not all there. Errors are told at the first byte that shows them.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProtocolError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let fin = first & 0x80 != 0;
        let opcode = Opcode::from_bits(first & 0x0f)?;
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let short = second & 0x7f;
        if opcode.is_control() && (!fin || usize::from(short) > CONTROL_BYTES_MAX) {
            return Err(ProtocolError::BadControlFrame);
        }
        let (len, mut at) = match short {
            126 => {
                let Some(&[a, b]) = bytes.get(2..).and_then(|b| b.first_chunk::<2>()) else {
                    return Ok(None);
                };
                (u64::from(u16::from_be_bytes([a, b])), 4)
            }
            127 => {
                let Some(eight) = bytes.get(2..).and_then(|b| b.first_chunk::<8>()) else {
                    return Ok(None);
                };
                (u64::from_be_bytes(*eight), 10)
            }
            short => (u64::from(short), 2),
        };
        let fewest = match len {
            0..=125 => 2,
            126..=0xffff => 4,
            _ => 10,
        };
        if at != fewest || len >> 63 != 0 {
            return Err(ProtocolError::BadLength);
        }
        let mut mask = None;
        if second & 0x80 != 0 {
            let Some(key) = bytes.get(at..).and_then(|b| b.first_chunk::<4>()) else {
                return Ok(None);
            };
            mask = Some(*key);
            at += 4;
        }
        Ok(Some((Header { fin, opcode, mask, len }, at)))
    }

    /// Appends the header to `out`, in the fewest bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let fin = if self.fin { 0x80 } else { 0 };
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        out.push(fin | self.opcode as u8);
        match self.len {
            0..=125 => out.push(masked | self.len.to_le_bytes()[0]),
            126..=0xffff => {
                out.push(masked | 126);
                out.extend_from_slice(&self.len.to_be_bytes()[6..]);
            }
            _ => {
                out.push(masked | 127);
                out.extend_from_slice(&self.len.to_be_bytes());
            }
        }
        if let Some(key) = self.mask {
            out.extend_from_slice(&key);
        }
    }
}

/// Appends one whole unmasked frame, as a server sends it.
pub fn write_server(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    out.reserve(payload.len() + HEADER_BYTES_MAX);
    write_server_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the header of one whole unmasked frame; the caller appends `len` bytes of payload.
pub fn write_server_header(out: &mut Vec<u8>, opcode: Opcode, len: usize) {
    Header { fin: true, opcode, mask: None, len: len as u64 }.write(out);
}

/// Appends one whole masked frame, as a client sends it.
pub fn write_client(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], key: [u8; 4]) {
    Header { fin: true, opcode, mask: Some(key), len: payload.len() as u64 }.write(out);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(body) = out.get_mut(start..) {
        crate::mask::apply(body, key, 0);
    }
}

/// The body of a close frame: code, then as much of the reason as 125 bytes hold.
pub fn close_body(code: crate::CloseCode, reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut body = code.0.to_be_bytes().to_vec();
    body.extend_from_slice(reason.get(..end).unwrap_or_default().as_bytes());
    body
}

/// Walks a run of whole unmasked server frames and returns the byte position where each ends.
/// Stops at the first byte that is not part of a whole frame.
pub fn server_frame_ends(run: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let (header, header_len) = Header::parse(run.get(at..)?).ok()??;
        let len = usize::try_from(header.len).ok()?;
        at = at.checked_add(header_len)?.checked_add(len)?;
        (at <= run.len()).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reserved_and_overlong_headers_are_refused_at_once() {
        assert_eq!(Header::parse(&[0xc1]), Err(ProtocolError::ReservedBits));
        assert_eq!(Header::parse(&[0x83]), Err(ProtocolError::ReservedOpcode(3)));
        assert_eq!(Header::parse(&[0x09, 0x80]), Err(ProtocolError::BadControlFrame));
        assert_eq!(Header::parse(&[0x89, 0xfe]), Err(ProtocolError::BadControlFrame));
        assert_eq!(Header::parse(&[0x82, 0x7e, 0, 125]), Err(ProtocolError::BadLength));
        let top = [0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Header::parse(&top), Err(ProtocolError::BadLength));
    }

    #[test]
    fn a_long_close_reason_is_cut_between_characters() {
        let body = close_body(crate::CloseCode::NORMAL, &"ä".repeat(100));
        assert!(body.len() <= CONTROL_BYTES_MAX);
        assert!(std::str::from_utf8(&body[2..]).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(
            fin in any::<bool>(),
            masked in any::<Option<[u8; 4]>>(),
            len in prop_oneof![0u64..300, 65_000u64..66_000, any::<u64>().prop_map(|l| l >> 1)],
        ) {
            let header = Header { fin, opcode: Opcode::Binary, mask: masked, len };
            let mut bytes = Vec::new();
            header.write(&mut bytes);
            for cut in 0..bytes.len() {
                prop_assert_eq!(Header::parse(&bytes[..cut]), Ok(None));
            }
            prop_assert_eq!(Header::parse(&bytes), Ok(Some((header, bytes.len()))));
        }

        #[test]
        fn frame_ends_are_found_in_a_run(sizes in proptest::collection::vec(0usize..70_000, 0..6)) {
            let (mut run, mut ends) = (Vec::new(), Vec::new());
            for size in sizes {
                write_server(&mut run, Opcode::Text, &vec![b'x'; size]);
                ends.push(run.len());
            }
            prop_assert_eq!(server_frame_ends(&run).collect::<Vec<_>>(), ends);
        }
    }
}
