//! Dialects that remember something of their connection, or say more than one thing at a time.
//!
//! Such a dialect has a [`Talk`] for each connection. It is told what comes from the client and what the engine
//! has to tell, and says for each what is to be done, step by step: frames for the client, and commands, whose answers
//! come back to it as events. Sans-IO like everything here: it is told the time.

use std::borrow::Cow;
use std::fmt;

use super::raw;
use crate::close::CloseCode;
use crate::command::{Action, KIND_BYTES_MAX, PayloadKind};
use crate::connection::Incoming;
use crate::event::Event;
use crate::frame::{self, Opcode};
use crate::lane::Form;
use crate::printable::{Detail, Printable};
use crate::refused::Refused;
use crate::user_id::UserId;

/// A connection that is open.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// A number above 0 that no other connection of this server has meanwhile.
    pub number: u32,
    /// Its name in the HTTP API.
    pub connection: &'a str,
    /// Who the client is, where that is known by now.
    pub user: Option<&'a UserId>,
}

/// One thing to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Send this: whole frames.
    Say(Vec<u8>),
    /// Do what a client could ask for.
    Do(Deed),
    /// Call [`Talk::tick`] in so many milliseconds.
    Remind(u32),
    /// Close the connection with this code and reason.
    Close(CloseCode, &'static str),
}

impl Step {
    /// Says this in a text frame.
    pub fn say(text: &str) -> Step {
        let mut out = Vec::with_capacity(text.len() + frame::HEADER_BYTES_MAX);
        frame::write_server(&mut out, Opcode::Text, text.as_bytes());
        Step::Say(out)
    }

    /// Says a payload as it is.
    pub fn payload(kind: PayloadKind, bytes: &[u8]) -> Step {
        let mut out = Vec::with_capacity(bytes.len() + frame::HEADER_BYTES_MAX);
        raw::write(&mut out, kind, bytes);
        Step::Say(out)
    }

    /// Asks for a channel. `id` comes back with the answer.
    pub fn subscribe(id: impl Into<Box<str>>, channel: &str) -> Step {
        Step::ask_as(id, Action::subscribe(Cow::Owned(channel.to_owned())))
    }

    /// Asks for a channel no more. `id` comes back with the answer.
    pub fn unsubscribe(id: impl Into<Box<str>>, channel: &str) -> Step {
        Step::ask_as(id, Action::Unsubscribe { channel: Cow::Owned(channel.to_owned()) })
    }

    /// Asks whoever knows messages of this type, one that [`may_be_known`]. `id` comes back with the answer.
    pub(super) fn other(
        id: String,
        kind: &str,
        message: String,
        otherwise: Result<Box<Action<'static>>, Refused>,
    ) -> Step {
        let (kind, message) = (Cow::Owned(kind.to_owned()), Cow::Owned(message));
        Step::ask_as(id, Action::Other { kind, message, otherwise })
    }

    /// Asks for this, without an answer unless it is refused.
    pub fn ask(action: Action<'static>) -> Step {
        Step::Do(Deed { id: None, action })
    }

    /// Asks for this. `id` comes back with the answer.
    pub fn ask_as(id: impl Into<Box<str>>, action: Action<'static>) -> Step {
        Step::Do(Deed { id: Some(id.into()), action })
    }
}

/// A [`crate::Command`] that borrows from nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Deed {
    /// Comes back with its answer. It is the dialect's own, and need not be what a client gave.
    pub id: Option<Box<str>>,
    /// What.
    pub action: Action<'static>,
}

/// See the module's description.
pub trait Talk: fmt::Debug {
    /// What stands around the payloads that its client is sent, where that is not as for all of the dialect.
    fn form(&self) -> Option<Form> {
        None
    }

    /// The connection is open. `now_ms` is in milliseconds since 1970, here and below.
    fn open(&mut self, opening: &Opening, now_ms: u64) -> Vec<Step>;

    /// A data message has come.
    fn message(&mut self, message: &Incoming, now_ms: u64) -> Vec<Step>;

    /// Something is to be told: answers carry the id of their [`Deed`].
    fn event(&mut self, event: &Event, now_ms: u64) -> Vec<Step>;

    /// The time is over of a [`Step::Remind`].
    fn tick(&mut self, _now_ms: u64) -> Vec<Step> {
        Vec::new()
    }
}

/// Whether somebody else may know messages of this type.
pub(super) fn may_be_known(kind: &str) -> bool {
    (1..=KIND_BYTES_MAX).contains(&kind.len())
}

/// What the refusal of a message is like whose type nobody knows; the dialect has words of its own for it.
pub(super) fn unknown(kind: &str, dialect: &'static str) -> Refused {
    let given = Detail::new(Printable::name(kind));
    Refused::UnknownCommand { given, allowed: "", dialect }
}

/// What a step says, as JSON.
#[cfg(test)]
pub(super) fn said(step: &Step) -> serde_json::Value {
    let Step::Say(frame) = step else { panic!("{step:?}") };
    let (_, len) = frame::Header::parse(frame).unwrap().unwrap();
    serde_json::from_slice(&frame[len..]).unwrap()
}
