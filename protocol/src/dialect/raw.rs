//! `raw.v1`: `{"action":"subscribe","channel":"…"}`, `unsubscribe` and `auth`; what is delivered is the
//! published payload itself, nothing around it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::command::{Command, CommandError, PayloadKind};
use crate::event::Publication;
use crate::frame::{self, Opcode};

use super::ringfeed::Fields;

pub(super) fn parse(text: &str) -> Result<Command<'_>, CommandError<'_>> {
    let mut fields = Fields::parse(text)?;
    // What is delivered shows no offsets from which to recover.
    fields.recover = None;
    match fields.kind() {
        Some("subscribe") => fields.subscribe(),
        Some("unsubscribe") => fields.unsubscribe(),
        Some("auth") => Ok(fields.auth()),
        _ => Err(fields.unknown("raw.v1", "auth, subscribe, unsubscribe")),
    }
}

pub(crate) fn write_publication(out: &mut Vec<u8>, publication: &Publication) {
    write(out, publication.kind, publication.bytes);
}

/// A payload, nothing around it.
pub(super) fn write(out: &mut Vec<u8>, kind: PayloadKind, bytes: &[u8]) {
    let opcode = match kind {
        PayloadKind::Json | PayloadKind::Text => Opcode::Text,
        PayloadKind::Binary => Opcode::Binary,
    };
    frame::write_server(out, opcode, bytes);
}

/// A payload as a JSON value: text as a string, bytes as one in base64.
pub(crate) fn write_json(body: &mut Vec<u8>, kind: PayloadKind, bytes: &[u8]) {
    match kind {
        PayloadKind::Json => body.extend_from_slice(bytes),
        PayloadKind::Text => write_string(body, &String::from_utf8_lossy(bytes)),
        PayloadKind::Binary => {
            body.push(b'"');
            body.extend_from_slice(BASE64.encode(bytes).as_bytes());
            body.push(b'"');
        }
    }
}

/// A JSON string, escaped.
pub(super) fn write_string(body: &mut Vec<u8>, text: &str) {
    // Writing to a Vec cannot fail, and a str is always serializable.
    let _ = serde_json::to_writer(body, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Action;

    #[test]
    fn nobody_recovers() {
        for recover in [r#"{"epoch":"00c0ffee00c0ffee","offset":1}"#, "7"] {
            let text = format!(r#"{{"action":"subscribe","channel":"a","recover":{recover}}}"#);
            let Ok(Command { action, .. }) = parse(&text) else { panic!("{recover}") };
            assert!(matches!(action, Action::Subscribe { recover: None, .. }), "{action:?}");
        }
    }
}
