//! Lanes: what makes the bytes of a publication.

use std::borrow::Cow;

use crate::any_name;
use crate::dialect::{cadsock, fluxus, raw, ringfeed, rooms, wsnode};
use crate::event::{Event, Publication};
use crate::frame::{self, Opcode};

/// An encoding of publications, as a record of everything that decides the bytes. Subscribers on
/// one lane of a channel receive identical bytes; a lane is encoded only while somebody is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lane {
    /// What stands around a payload.
    pub form: Form,
    /// So many bytes of the channel's name, its first ones, are the server's own: they are not shown.
    pub hidden: u8,
}

/// What stands around a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// The `message` event of `ringfeed.v1`, in JSON.
    Ringfeed,
    /// Nothing: `raw.v1`.
    Raw,
    /// The `room_message` of `rooms`.
    Rooms(RoomsForm),
    /// The `message` of `fluxus`.
    Fluxus,
    /// The `broadcast` of `wsnode`.
    Wsnode,
    /// The `message` of `cadsock`.
    Cadsock,
}

/// What clients of `rooms` may ask for beside what they always had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RoomsForm {
    /// Messages that come together are a `batch`.
    pub batch: bool,
    /// Each message has its number.
    pub ids: bool,
}

/// A channel's name as clients of existing systems know it, who are not shown its first `hidden` bytes.
pub fn shown(channel: &str, hidden: u8) -> Cow<'_, str> {
    any_name::decode(channel.get(usize::from(hidden)..).unwrap_or_default())
}

impl Lane {
    /// Of `ringfeed.v1`.
    pub const RINGFEED: Lane = Lane { form: Form::Ringfeed, hidden: 0 };
    /// Of `raw.v1`.
    pub const RAW: Lane = Lane { form: Form::Raw, hidden: 0 };
    /// Those of our own dialects.
    pub const ALL: [Lane; 2] = [Lane::RINGFEED, Lane::RAW];

    fn shown(self, channel: &str) -> Cow<'_, str> {
        shown(channel, self.hidden)
    }

    /// Appends one publication as a whole frame.
    pub fn write_publication(self, out: &mut Vec<u8>, channel: &str, publication: &Publication) {
        match self.form {
            Form::Ringfeed => ringfeed::write_publication(out, channel, publication),
            Form::Raw => raw::write_publication(out, publication),
            Form::Rooms(RoomsForm { ids, .. }) => {
                rooms::write_publication(out, &self.shown(channel), publication, ids);
            }
            Form::Fluxus => fluxus::write_publication(out, &self.shown(channel), publication),
            Form::Wsnode => wsnode::write_publication(out, &self.shown(channel), publication),
            Form::Cadsock => cadsock::write_publication(out, &self.shown(channel), publication),
        }
    }

    /// Whether publications of a channel that come together may stand in one frame.
    pub fn joins(self, channel: &str) -> bool {
        matches!(self.form, Form::Rooms(own) if own.batch) && rooms::is_room(&self.shown(channel))
    }

    /// Appends what stands of a publication in a frame that holds several, to those of others before it.
    pub fn write_part(self, parts: &mut Vec<u8>, channel: &str, publication: &Publication) {
        if !parts.is_empty() {
            parts.push(b',');
        }
        let ids = matches!(self.form, Form::Rooms(own) if own.ids);
        rooms::write_message(parts, &self.shown(channel), publication, ids);
    }

    /// Appends the frame of `count` parts, the last of which is of this time. One alone comes as ever.
    pub fn write_joined(self, out: &mut Vec<u8>, parts: &[u8], count: u32, time_ms: u64) {
        match count {
            0 => {}
            1 => frame::write_server(out, Opcode::Text, parts),
            _ => rooms::write_batch(out, parts, time_ms),
        }
    }

    /// Appends a notice, something of the channel that is no publication, as whole frames that belong together; nothing where
    /// the form has none.
    pub fn write_notice(self, out: &mut Vec<u8>, notice: &Event) {
        match self.form {
            Form::Ringfeed => ringfeed::write_event(out, notice),
            Form::Rooms(_) => rooms::write_notice(out, self.hidden, notice),
            Form::Raw | Form::Fluxus | Form::Wsnode | Form::Cadsock => {}
        }
    }
}
