//! `raw.v1`: `{"action":"subscribe","channel":"…"}`, `unsubscribe` and `auth`; what is delivered is the
//! published payload itself, nothing around it.

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
