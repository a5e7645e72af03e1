//! `raw.v1`: `{"action":"subscribe","channel":"…"}` and `unsubscribe`; what is delivered is the
//! published payload itself, nothing around it.

use crate::command::{Command, CommandError, PayloadKind};
use crate::event::Publication;
use crate::frame::{self, Opcode};

use super::ringfeed::Fields;

pub(super) fn parse(text: &str) -> Result<Command<'_>, CommandError<'_>> {
    let fields = Fields::parse(text)?;
    match fields.kind() {
        Some("subscribe") => fields.subscribe(),
        Some("unsubscribe") => fields.unsubscribe(),
        _ => Err(fields.unknown("raw.v1", "subscribe, unsubscribe")),
    }
}

pub(crate) fn write_publication(out: &mut Vec<u8>, publication: &Publication) {
    let opcode = match publication.kind {
        PayloadKind::Json | PayloadKind::Text => Opcode::Text,
        PayloadKind::Binary => Opcode::Binary,
    };
    frame::write_server(out, opcode, publication.bytes);
}
