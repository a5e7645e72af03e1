//! One WebSocket connection after its handshake, as a state machine over bytes.

use crate::close::CloseCode;
use crate::error::ProtocolError;
use crate::frame::{HEADER_BYTES_MAX, Header, Opcode};
use crate::mask;
use crate::utf8::Utf8;

/// Which side of the connection this is; decides who must mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Receives masked frames.
    Server,
    /// Receives unmasked frames.
    Client,
}

/// What arrived. Slices point into the caller's input where the frame came whole and unfragmented,
/// else into the connection's own assembly buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A text message, checked to be UTF-8.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// To be answered with a pong of the same body.
    Ping(&'a [u8]),
    /// An answer to a ping, or unasked for.
    Pong(&'a [u8]),
    /// The closing handshake: the code if the peer gave one. Nothing follows it.
    Close(Option<CloseCode>),
}

/// The receiving half of a WebSocket connection, sans-IO.
///
/// Call order: [`receive`](Connection::receive) with what arrived, again with what it left over,
/// until nothing is left; then [`settle`](Connection::settle). An idle connection holds no buffer.
/// After an error nothing more must be fed. Payloads are unmasked in the caller's buffer.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    close_received: bool,
    message_bytes_max: u32,
    partial: Option<Box<Partial>>,
}

/// What is kept of a frame or message that has not ended yet.
#[derive(Debug, Default)]
struct Partial {
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// The frame under way and how much of its payload has come.
    frame: Option<(Header, u64)>,
    /// Opcode of the fragmented or partly received data message; its bytes are in `message`.
    opcode: Option<Opcode>,
    message: Vec<u8>,
    utf8: Utf8,
    control: Vec<u8>,
    /// `message` or `control` was handed out by the last call and may be dropped.
    handed_out: Option<Opcode>,
}

impl Partial {
    fn is_unfinished(&self) -> bool {
        self.frame.is_some() || self.opcode.is_some() || self.header_len > 0
    }

    /// Appends to the message. The last frame takes no more than it needs; before it nobody knows
    /// how much will come, and fragments of one byte must not copy the message each time.
    fn extend_message(&mut self, piece: &[u8], left: u64, last: bool) {
        let free = self.message.capacity() - self.message.len();
        if last && piece.len() > free {
            let doubled = self.message.capacity().max(piece.len());
            self.message.reserve_exact(doubled.min(usize::try_from(left).unwrap_or(doubled)));
        }
        self.message.extend_from_slice(piece);
    }
}

impl Connection {
    /// A connection that has just been upgraded. `message_bytes_max` bounds one message, summed
    /// over its fragments.
    pub fn new(role: Role, message_bytes_max: u32) -> Connection {
        Connection { role, close_received: false, message_bytes_max, partial: None }
    }

    /// Takes bytes; returns how many were used and at most one message. Used is never zero unless
    /// `input` is empty.
    pub fn receive<'a>(
        &'a mut self,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Incoming<'a>>), ProtocolError> {
        if self.close_received {
            return Ok((input.len(), None));
        }
        self.settle();
        if self.partial.is_none() {
            return self.receive_fresh(input);
        }
        self.receive_partial(input)
    }

    /// Frees what the last message occupied. To be called when the input is used up.
    pub fn settle(&mut self) {
        let Some(partial) = self.partial.as_deref_mut() else { return };
        if let Some(opcode) = partial.handed_out.take() {
            if opcode.is_control() {
                partial.control.clear();
            } else {
                partial.message = Vec::new();
            }
        }
        if !partial.is_unfinished() {
            self.partial = None;
        }
    }

    /// Bytes of memory held for a message or frame that has not ended: 0 for an idle connection, and
    /// never more than twice what has come of it, and a little. What a peer announces takes none.
    pub fn pending_bytes(&self) -> usize {
        self.partial.as_deref().map_or(0, |partial| {
            size_of::<Partial>() + partial.message.capacity() + partial.control.capacity()
        })
    }

    /// Whether something has begun that has not ended: a frame, or a message of which fragments are
    /// missing. Control frames between the fragments do not end it.
    pub fn is_unfinished(&self) -> bool {
        self.partial.as_deref().is_some_and(Partial::is_unfinished)
    }

    /// The common case: nothing is pending. A whole unfragmented frame is handed out in place.
    fn receive_fresh<'a>(
        &'a mut self,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Incoming<'a>>), ProtocolError> {
        let Some((header, header_len)) = Header::parse(input)? else {
            return self.receive_partial(input);
        };
        self.check(&header, None)?;
        let whole = usize::try_from(header.len).ok().and_then(|len| len.checked_add(header_len));
        let Some(end) = whole.filter(|&end| header.fin && end <= input.len()) else {
            return self.receive_partial(input);
        };
        let payload = input.get_mut(header_len..end).unwrap_or_default();
        if let Some(key) = header.mask {
            mask::apply(payload, key, 0);
        }
        let incoming = finish(header.opcode, payload, false)?;
        self.close_received = matches!(incoming, Incoming::Close(_));
        Ok((end, Some(incoming)))
    }

    /// The general case: headers and payloads in pieces, fragmented messages.
    fn receive_partial<'a>(
        &'a mut self,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Incoming<'a>>), ProtocolError> {
        let mut used = 0;
        let (header, seen) = match self.partial.as_ref().and_then(|p| p.frame) {
            Some(frame) => frame,
            None => {
                let Some(header) = self.complete_header(input, &mut used)? else {
                    return Ok((used, None));
                };
                self.begin(&header)?;
                (header, 0)
            }
        };
        let partial = self.partial.get_or_insert_default();
        let rest = input.get_mut(used..).unwrap_or_default();
        let take = usize::try_from(header.len - seen).unwrap_or(usize::MAX).min(rest.len());
        let piece = rest.get_mut(..take).unwrap_or_default();
        if let Some(key) = header.mask {
            // Only the offset modulo four matters.
            mask::apply(piece, key, (seen & 3) as usize);
        }
        used += take;
        if header.opcode.is_control() {
            partial.control.extend_from_slice(piece);
        } else {
            if partial.opcode == Some(Opcode::Text) {
                partial.utf8.feed(piece).map_err(|_| ProtocolError::InvalidUtf8)?;
            }
            partial.extend_message(piece, header.len - seen, header.fin);
        }
        let seen = seen + take as u64;
        if seen < header.len {
            partial.frame = Some((header, seen));
            return Ok((used, None));
        }
        partial.frame = None;
        if header.opcode.is_control() {
            partial.handed_out = Some(header.opcode);
            let incoming = finish(header.opcode, &partial.control, false)?;
            self.close_received = matches!(incoming, Incoming::Close(_));
            return Ok((used, Some(incoming)));
        }
        if !header.fin {
            return Ok((used, None));
        }
        let opcode = partial.opcode.take().unwrap_or(Opcode::Binary);
        if opcode == Opcode::Text && !partial.utf8.is_complete() {
            return Err(ProtocolError::InvalidUtf8);
        }
        partial.handed_out = Some(opcode);
        Ok((used, Some(finish(opcode, &partial.message, true)?)))
    }

    /// Moves header bytes from `input` to the spill until the header is whole.
    fn complete_header(
        &mut self,
        input: &[u8],
        used: &mut usize,
    ) -> Result<Option<Header>, ProtocolError> {
        let partial = self.partial.get_or_insert_default();
        loop {
            let spilled = partial.header.get(..usize::from(partial.header_len)).unwrap_or_default();
            if let Some((header, _)) = Header::parse(spilled)? {
                partial.header_len = 0;
                return Ok(Some(header));
            }
            let Some(&byte) = input.get(*used) else { return Ok(None) };
            if let Some(place) = partial.header.get_mut(usize::from(partial.header_len)) {
                *place = byte;
            }
            partial.header_len += 1;
            *used += 1;
        }
    }

    /// Checks a header against the state and opens its message.
    fn begin(&mut self, header: &Header) -> Result<(), ProtocolError> {
        let pending = self.partial.as_ref().and_then(|p| p.opcode.map(|_| p.message.len() as u64));
        self.check(header, pending)?;
        let partial = self.partial.get_or_insert_default();
        if !header.opcode.is_control() && header.opcode != Opcode::Continuation {
            partial.opcode = Some(header.opcode);
            partial.utf8 = Utf8::default();
        }
        Ok(())
    }

    /// The rules that need no payload. `pending` is how many bytes of an unfinished message there
    /// are, `None` when there is no such message.
    fn check(&self, header: &Header, pending: Option<u64>) -> Result<(), ProtocolError> {
        match (self.role, header.mask) {
            (Role::Server, None) => return Err(ProtocolError::Unmasked),
            (Role::Client, Some(_)) => return Err(ProtocolError::Masked),
            _ => {}
        }
        if header.opcode.is_control() {
            return Ok(());
        }
        match (header.opcode, pending) {
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::ExpectedContinuation);
            }
            _ => {}
        }
        let size = header.len.saturating_add(pending.unwrap_or(0));
        let limit = u64::from(self.message_bytes_max);
        if size > limit {
            return Err(ProtocolError::TooLarge { size, limit });
        }
        Ok(())
    }
}

/// Turns a complete payload into what arrived.
fn finish(opcode: Opcode, body: &[u8], checked: bool) -> Result<Incoming<'_>, ProtocolError> {
    Ok(match opcode {
        Opcode::Text => Incoming::Text(match std::str::from_utf8(body) {
            Ok(text) => text,
            Err(_) => {
                debug_assert!(!checked, "the incremental check agrees with the standard library");
                return Err(ProtocolError::InvalidUtf8);
            }
        }),
        Opcode::Binary | Opcode::Continuation => Incoming::Binary(body),
        Opcode::Ping => Incoming::Ping(body),
        Opcode::Pong => Incoming::Pong(body),
        Opcode::Close => Incoming::Close(close_code(body)?),
    })
}

fn close_code(body: &[u8]) -> Result<Option<CloseCode>, ProtocolError> {
    let Some((code, reason)) = body.split_first_chunk::<2>() else {
        return if body.is_empty() { Ok(None) } else { Err(ProtocolError::BadClose) };
    };
    let code = CloseCode(u16::from_be_bytes(*code));
    if !code.may_travel() {
        return Err(ProtocolError::BadClose);
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(ProtocolError::InvalidUtf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    /// Everything a connection says about `bytes` fed in pieces of `step`.
    fn feed(
        bytes: &[u8],
        step: usize,
        limit: u32,
    ) -> (Vec<String>, Option<ProtocolError>, Connection) {
        let mut connection = Connection::new(Role::Server, limit);
        let mut said = Vec::new();
        for piece in bytes.chunks(step) {
            let mut piece = piece.to_vec();
            let mut at = 0;
            while at < piece.len() {
                match connection.receive(&mut piece[at..]) {
                    Ok((used, incoming)) => {
                        at += used;
                        said.extend(incoming.map(|i| format!("{i:?}")));
                    }
                    Err(e) => return (said, Some(e), connection),
                }
            }
            connection.settle();
        }
        (said, None, connection)
    }

    fn fragment(out: &mut Vec<u8>, fin: bool, opcode: Opcode, payload: &[u8]) {
        let key = [1, 2, 3, 4];
        Header { fin, opcode, mask: Some(key), len: payload.len() as u64 }.write(out);
        let start = out.len();
        out.extend_from_slice(payload);
        mask::apply(&mut out[start..], key, 0);
    }

    #[test]
    fn control_frames_pass_between_fragments_at_every_cut() {
        let mut bytes = Vec::new();
        fragment(&mut bytes, false, Opcode::Text, "hä".as_bytes());
        fragment(&mut bytes, true, Opcode::Ping, b"p");
        fragment(&mut bytes, false, Opcode::Continuation, b"");
        fragment(&mut bytes, true, Opcode::Continuation, b"llo");
        fragment(&mut bytes, true, Opcode::Binary, b"next");
        fragment(&mut bytes, true, Opcode::Close, &1000u16.to_be_bytes());
        bytes.extend_from_slice(b"whatever follows a close is not looked at");
        for step in 1..=bytes.len() {
            let (said, error, _) = feed(&bytes, step, 100);
            assert_eq!(error, None);
            assert_eq!(
                said,
                [
                    "Ping([112])",
                    "Text(\"hällo\")",
                    "Binary([110, 101, 120, 116])",
                    "Close(Some(CloseCode(1000)))"
                ]
            );
        }
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_from_its_header_alone() {
        let mut bytes = Vec::new();
        Header { fin: true, opcode: Opcode::Binary, mask: Some([0; 4]), len: 1 << 40 }
            .write(&mut bytes);
        let (_, error, _) = feed(&bytes, 100, 1000);
        assert_eq!(error, Some(ProtocolError::TooLarge { size: 1 << 40, limit: 1000 }));
        let mut bytes = Vec::new();
        fragment(&mut bytes, false, Opcode::Binary, &[0; 600]);
        fragment(&mut bytes, true, Opcode::Continuation, &[0; 401]);
        let (_, error, _) = feed(&bytes, 4096, 1000);
        assert_eq!(error, Some(ProtocolError::TooLarge { size: 1001, limit: 1000 }));
    }

    #[test]
    fn an_idle_connection_holds_no_buffer() {
        let mut bytes = Vec::new();
        fragment(&mut bytes, false, Opcode::Binary, &[1; 500]);
        fragment(&mut bytes, true, Opcode::Continuation, &[2; 500]);
        let (said, _, connection) = feed(&bytes, 7, 1000);
        assert_eq!(said.len(), 1);
        assert!(connection.partial.is_none());
    }

    #[test]
    fn what_is_announced_takes_no_memory_and_what_came_is_told() {
        const MESSAGE: usize = 1 << 20;
        let mut bytes = Vec::new();
        fragment(&mut bytes, false, Opcode::Binary, &[1; MESSAGE / 2]);
        fragment(&mut bytes, true, Opcode::Ping, b"between");
        fragment(&mut bytes, true, Opcode::Continuation, &[2; MESSAGE / 2]);
        for step in [1, 1000, 65_536] {
            let mut connection = Connection::new(Role::Server, MESSAGE as u32);
            assert_eq!((connection.pending_bytes(), connection.is_unfinished()), (0, false));
            let mut came = 0;
            for piece in bytes.chunks(step) {
                let mut piece = piece.to_vec();
                let mut at = 0;
                while at < piece.len() {
                    at += connection.receive(&mut piece[at..]).unwrap().0;
                }
                connection.settle();
                came += at;
                let last = came == bytes.len();
                assert_eq!(connection.is_unfinished(), !last);
                let pending = connection.pending_bytes();
                assert!(pending <= 2 * came + 512, "{pending} bytes are held when {came} came");
                assert!(pending <= MESSAGE + MESSAGE / 2 + 512, "{pending} for {MESSAGE}");
                assert_eq!(pending == 0, last, "{pending}");
            }
        }
        let mut announced = Vec::new();
        Header { fin: true, opcode: Opcode::Binary, mask: Some([0; 4]), len: MESSAGE as u64 }
            .write(&mut announced);
        let (_, error, connection) = feed(&announced, 3, MESSAGE as u32);
        assert_eq!(error, None);
        assert!(connection.pending_bytes() < 512 && connection.is_unfinished());
    }

    #[test]
    fn invalid_text_fails_at_its_first_bad_byte_not_at_its_end() {
        let mut bytes = Vec::new();
        let text = b"\xce\xba\xe1\xbd\xb9\xf4\x90 and so on";
        Header { fin: true, opcode: Opcode::Text, mask: Some([0; 4]), len: 1000 }.write(&mut bytes);
        bytes.extend_from_slice(text);
        let (_, error, _) = feed(&bytes, 1, 2000);
        assert_eq!(error, Some(ProtocolError::InvalidUtf8));
    }

    #[test]
    fn each_broken_sequence_has_its_own_error() {
        let case = |build: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            build(&mut bytes);
            feed(&bytes, 3, 1000).1
        };
        assert_eq!(
            case(&|b| fragment(b, true, Opcode::Continuation, b"x")),
            Some(ProtocolError::UnexpectedContinuation)
        );
        assert_eq!(
            case(&|b| {
                fragment(b, false, Opcode::Text, b"x");
                fragment(b, true, Opcode::Text, b"y");
            }),
            Some(ProtocolError::ExpectedContinuation)
        );
        assert_eq!(
            case(&|b| frame::write_server(b, Opcode::Text, b"x")),
            Some(ProtocolError::Unmasked)
        );
        for body in [&b"x"[..], &1005u16.to_be_bytes(), &999u16.to_be_bytes()] {
            assert_eq!(
                case(&|b| fragment(b, true, Opcode::Close, body)),
                Some(ProtocolError::BadClose)
            );
        }
    }
}
