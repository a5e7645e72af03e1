//! Lanes: what makes the bytes of a publication.

use crate::dialect::{cadsock, fluxus, raw, ringfeed, rooms, wsnode};
use crate::event::{Event, Publication};

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
    Rooms,
    /// The `message` of `fluxus`.
    Fluxus,
    /// The `broadcast` of `wsnode`.
    Wsnode,
    /// The `message` of `cadsock`.
    Cadsock,
}

/// A channel's name as clients know it who are not shown its first `hidden` bytes.
pub(crate) fn shown(channel: &str, hidden: u8) -> &str {
    channel.get(usize::from(hidden)..).unwrap_or_default()
}

impl Lane {
    /// Of `ringfeed.v1`.
    pub const RINGFEED: Lane = Lane { form: Form::Ringfeed, hidden: 0 };
    /// Of `raw.v1`.
    pub const RAW: Lane = Lane { form: Form::Raw, hidden: 0 };
    /// Those of our own dialects.
    pub const ALL: [Lane; 2] = [Lane::RINGFEED, Lane::RAW];

    fn shown(self, channel: &str) -> &str {
        shown(channel, self.hidden)
    }

    /// Appends one publication as a whole frame.
    pub fn write_publication(self, out: &mut Vec<u8>, channel: &str, publication: &Publication) {
        match self.form {
            Form::Ringfeed => ringfeed::write_publication(out, channel, publication),
            Form::Raw => raw::write_publication(out, publication),
            Form::Rooms => rooms::write_publication(out, self.shown(channel), publication),
            Form::Fluxus => fluxus::write_publication(out, self.shown(channel), publication),
            Form::Wsnode => wsnode::write_publication(out, self.shown(channel), publication),
            Form::Cadsock => cadsock::write_publication(out, self.shown(channel), publication),
        }
    }

    /// Appends a notice, something of the channel that is no publication, as whole frames that belong together; nothing where
    /// the form has none.
    pub fn write_notice(self, out: &mut Vec<u8>, notice: &Event) {
        match self.form {
            Form::Ringfeed => ringfeed::write_event(out, notice),
            Form::Rooms => rooms::write_notice(out, self.hidden, notice),
            Form::Raw | Form::Fluxus | Form::Wsnode | Form::Cadsock => {}
        }
    }
}
