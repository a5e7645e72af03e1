//! Dialects: each one file that turns messages into commands and events into frames.
//!
//! A dialect is fixed before the upgrade and never guessed from what a client sends. To add one:
//! a file here, a variant of [`Dialect`], and a [`crate::lane::Form`] if its publications look different from
//! those of every other dialect.

pub(crate) mod cadsock;
mod echo;
pub(crate) mod fluxus;
pub(crate) mod object;
pub(crate) mod portico;
pub(crate) mod raw;
pub(crate) mod ringfeed;
pub(crate) mod rooms;
mod talk;
pub(crate) mod wsnode;

pub use talk::{Deed, Opening, Step, Talk};

use crate::command::{Command, CommandError};
use crate::connection::Incoming;
use crate::event::Event;
use crate::handshake::Request;
use crate::lane::{Form, Lane, RoomsForm};
use crate::refused::Refused;

/// The languages spoken inside WebSocket messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `ringfeed.v1`: JSON commands, replies by id, events with channel and offset.
    Ringfeed,
    /// `raw.v1`: JSON subscribe and unsubscribe; the payload itself is delivered.
    Raw,
    /// Sends every message back. For conformance tests.
    Echo,
    /// `portico`: notifications and rooms of PorticoEstate's WebSocket clients.
    Portico,
    /// `rooms`: rooms and private messages of the TuskLang WebSocket module's clients.
    Rooms,
    /// `fluxus`: channels and calls of the clients of Fluxus.
    Fluxus,
    /// `wsnode`: subscribing at a node of DistributedWebSocket.
    Wsnode,
    /// `cadsock`: the successor of the FrankenPHP realtime module.
    Cadsock,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Dialect; 8] = [
        Dialect::Ringfeed,
        Dialect::Raw,
        Dialect::Echo,
        Dialect::Portico,
        Dialect::Rooms,
        Dialect::Fluxus,
        Dialect::Wsnode,
        Dialect::Cadsock,
    ];

    /// The name in configuration, in `?protocol=` and as a WebSocket subprotocol.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Ringfeed => "ringfeed.v1",
            Dialect::Raw => "raw.v1",
            Dialect::Echo => "echo",
            Dialect::Portico => "portico",
            Dialect::Rooms => "rooms",
            Dialect::Fluxus => "fluxus",
            Dialect::Wsnode => "wsnode",
            Dialect::Cadsock => "cadsock",
        }
    }

    /// Finds a dialect by [`Dialect::name`].
    pub fn from_name(name: &str) -> Option<Dialect> {
        Dialect::ALL.into_iter().find(|d| d.name() == name)
    }

    /// The lane on which this dialect's subscribers sit; `None` where it has no subscriptions. `hidden` is for dialects that
    /// know nothing of what an endpoint puts in front of names.
    pub fn lane(self, hidden: u8) -> Option<Lane> {
        match self {
            Dialect::Ringfeed => Some(Lane::RINGFEED),
            Dialect::Raw => Some(Lane::RAW),
            // What is published there is what is sent.
            Dialect::Portico => Some(Lane { hidden, ..Lane::RAW }),
            Dialect::Rooms => Some(Lane { form: Form::Rooms(RoomsForm::default()), hidden }),
            Dialect::Fluxus => Some(Lane { form: Form::Fluxus, hidden }),
            Dialect::Wsnode => Some(Lane { form: Form::Wsnode, hidden }),
            Dialect::Cadsock => Some(Lane { form: Form::Cadsock, hidden }),
            Dialect::Echo => None,
        }
    }

    /// Whether replies and errors can be told inside the dialect. Where not, an error closes the connection with a code
    /// and a reason.
    pub fn answers_in_band(self) -> bool {
        !matches!(self, Dialect::Raw | Dialect::Echo)
    }

    /// Whether a client may choose it where another one is spoken by default: those of existing systems are for the clients
    /// of these alone.
    pub fn is_chosen(self) -> bool {
        matches!(self, Dialect::Ringfeed | Dialect::Raw)
    }

    /// Whether its clients come back only where a connection was cut: after a close frame they stay away.
    pub fn comes_back_when_cut(self) -> bool {
        matches!(self, Dialect::Fluxus)
    }

    /// Whether gaps can be told inside the dialect. Where not, a gap closes the connection.
    pub fn tells_gaps(self) -> bool {
        matches!(self, Dialect::Ringfeed)
    }

    /// What this dialect remembers of a connection that was asked for by `request`, where `hidden` bytes of channels' names are the
    /// server's own; `None` where it remembers nothing, and
    /// [`Dialect::parse`] and [`Dialect::write_event`] are all of it.
    pub fn talk(self, request: &Request, hidden: u8) -> Option<Box<dyn Talk>> {
        match self {
            Dialect::Portico => Some(Box::new(portico::Portico::new(request, hidden))),
            Dialect::Rooms => Some(Box::new(rooms::Rooms::new(request, hidden))),
            Dialect::Fluxus => Some(Box::new(fluxus::Fluxus::new())),
            Dialect::Wsnode => Some(Box::new(wsnode::Wsnode::new(hidden))),
            Dialect::Cadsock => Some(Box::new(cadsock::Cadsock::new(hidden))),
            Dialect::Ringfeed | Dialect::Raw | Dialect::Echo => None,
        }
    }

    /// Whether its clients give channels any names ([`crate::any_name`]), and are not shown what an endpoint puts in front of them.
    pub fn has_any_names(self) -> bool {
        !matches!(self, Dialect::Ringfeed | Dialect::Raw | Dialect::Echo)
    }

    /// Whether a client can show a token inside the dialect.
    pub fn has_auth(self) -> bool {
        matches!(self, Dialect::Ringfeed | Dialect::Raw | Dialect::Rooms | Dialect::Fluxus)
    }

    /// Reads one data message.
    pub fn parse<'a>(self, message: &Incoming<'a>) -> Result<Command<'a>, CommandError<'a>> {
        match (self, message) {
            (Dialect::Echo, Incoming::Binary(bytes)) => Ok(echo::command(false, bytes)),
            (Dialect::Echo, Incoming::Text(text)) => Ok(echo::command(true, text.as_bytes())),
            (Dialect::Ringfeed, Incoming::Text(text)) => ringfeed::parse(text),
            (Dialect::Raw, Incoming::Text(text)) => raw::parse(text),
            (dialect, _) => Err(CommandError {
                id: None,
                refused: Refused::bad_json(format_args!(
                    "commands of {} are JSON in text messages",
                    dialect.name()
                )),
            }),
        }
    }

    /// The commands of a message that holds several, in order; `None` for one that is to be parsed as a whole.
    pub fn split<'a>(
        self,
        message: &Incoming<'a>,
    ) -> Option<Result<Vec<&'a str>, CommandError<'a>>> {
        match (self, message) {
            (Dialect::Ringfeed, Incoming::Text(text)) => ringfeed::split(text),
            _ => None,
        }
    }

    /// Appends an event as a whole frame; nothing where the dialect has no form for it.
    pub fn write_event(self, out: &mut Vec<u8>, event: &Event) {
        match (self, event) {
            (Dialect::Ringfeed, event) => ringfeed::write_event(out, event),
            (Dialect::Raw, Event::Direct { kind, bytes, .. }) => raw::write(out, *kind, bytes),
            // The others have a Talk.
            _ => {}
        }
    }
}
