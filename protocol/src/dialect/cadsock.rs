//! `cadsock`: what the clients of the FrankenPHP realtime module's successor speak: `raw.v1` with answers, and an
//! envelope around what is published.

use super::object::{Object, quoted};
use super::raw;
use super::talk::{Opening, Step, Talk};
use crate::connection::Incoming;
use crate::error::ErrorCode;
use crate::event::{Event, Publication};
use crate::frame::{self, Opcode};
use crate::lane::shown;
use crate::printable::Printable;

/// See the module's description. It remembers nothing.
#[derive(Debug)]
pub(super) struct Cadsock {
    hidden: u8,
}

impl Cadsock {
    pub(super) fn new(hidden: u8) -> Cadsock {
        Cadsock { hidden }
    }

    fn done(&self, kind: &str, channel: &str) -> Step {
        let channel = quoted(&shown(channel, self.hidden));
        Step::say(&format!("{{\"type\":\"{kind}\",\"channel\":{channel}}}"))
    }
}

fn error(why: &str) -> Step {
    Step::say(&format!("{{\"type\":\"error\",\"error\":{}}}", quoted(why)))
}

/// A `message`, of a channel whose name is `shown`.
pub(crate) fn write_publication(out: &mut Vec<u8>, shown: &str, publication: &Publication) {
    let mut body =
        format!("{{\"type\":\"message\",\"channel\":{},\"payload\":", quoted(shown)).into_bytes();
    raw::write_json(&mut body, publication.kind, publication.bytes);
    body.push(b'}');
    frame::write_server(out, Opcode::Text, &body);
}

impl Talk for Cadsock {
    fn open(&mut self, _: &Opening, _: u64) -> Vec<Step> {
        Vec::new()
    }

    fn message(&mut self, message: &Incoming, _: u64) -> Vec<Step> {
        let object = match *message {
            Incoming::Text(text) => Object::parse(text),
            _ => None,
        };
        let Some(object) = object else { return vec![error("invalid JSON message")] };
        let (action, channel) = (object.text("action"), object.text("channel"));
        let channel = channel.filter(|channel| !channel.is_empty());
        let step = match (action.as_deref().unwrap_or_default(), channel) {
            ("subscribe" | "unsubscribe", None) => error("channel must be specified"),
            ("subscribe", Some(channel)) => Step::subscribe(&*channel, &channel),
            ("unsubscribe", Some(channel)) => Step::unsubscribe(&*channel, &channel),
            (other, _) => error(&format!("unknown action: {}", Printable::name(other))),
        };
        vec![step]
    }

    fn event(&mut self, event: &Event, _: u64) -> Vec<Step> {
        let step = match event {
            Event::Subscribed { channel, .. } => self.done("subscribed", channel),
            Event::Unsubscribed { channel, .. } => self.done("unsubscribed", channel),
            Event::Direct { kind, bytes, .. } => {
                let mut out = Vec::new();
                write_publication(&mut out, "", &Publication::plain(*kind, bytes));
                Step::Say(out)
            }
            // Twice is once, as it was.
            Event::Error { id: Some(channel), code: ErrorCode::AlreadySubscribed, .. } => {
                let channel = quoted(channel);
                Step::say(&format!("{{\"type\":\"subscribed\",\"channel\":{channel}}}"))
            }
            Event::Error { id: Some(channel), code: ErrorCode::NotSubscribed, .. } => {
                let channel = quoted(channel);
                Step::say(&format!("{{\"type\":\"unsubscribed\",\"channel\":{channel}}}"))
            }
            Event::Error { message, .. } => error(message),
            _ => return Vec::new(),
        };
        vec![step]
    }
}
