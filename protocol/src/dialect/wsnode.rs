//! `wsnode`: what the clients of DistributedWebSocket's nodes speak: they subscribe, and that is all.

use super::object::{Object, quoted};
use super::raw;
use super::talk::{Opening, Step, Talk};
use crate::connection::Incoming;
use crate::date::iso_millis;
use crate::error::ErrorCode;
use crate::event::{Event, Publication};
use crate::frame::{self, Opcode};
use crate::lane::shown;
use crate::node;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Wsnode {
    hidden: u8,
}

impl Wsnode {
    pub(super) fn new(hidden: u8) -> Wsnode {
        Wsnode { hidden }
    }
}

/// The connection's own name, in the form of a random UUID (RFC 9562).
fn uuid(connection: &str) -> String {
    let digits: String = connection.chars().filter(char::is_ascii_hexdigit).collect();
    let digits = format!("{digits:0<30}");
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

fn subscribed(channel: &str, now_ms: u64) -> Step {
    let (channel, time) = (quoted(channel), iso_millis(now_ms));
    Step::say(&format!(
        "{{\"type\":\"subscribed\",\"channel\":{channel},\"timestamp\":\"{time}\"}}"
    ))
}

/// A `broadcast`, in a channel whose name is `shown`.
pub(crate) fn write_publication(out: &mut Vec<u8>, shown: &str, publication: &Publication) {
    let time = iso_millis(publication.meta.map_or(0, |meta| meta.time_ms));
    let mut body =
        format!("{{\"type\":\"broadcast\",\"channel\":{},\"message\":", quoted(shown)).into_bytes();
    raw::write_json(&mut body, publication.kind, publication.bytes);
    let node = quoted(node::name());
    body.extend_from_slice(format!(",\"timestamp\":\"{time}\",\"nodeId\":{node}}}").as_bytes());
    frame::write_server(out, Opcode::Text, &body);
}

impl Talk for Wsnode {
    fn open(&mut self, opening: &Opening, now_ms: u64) -> Vec<Step> {
        let (client, node, time) =
            (uuid(opening.connection), quoted(node::name()), iso_millis(now_ms));
        vec![Step::say(&format!(
            "{{\"type\":\"connected\",\"clientId\":\"{client}\",\"nodeId\":{node},\"timestamp\":\"{time}\"}}"
        ))]
    }

    /// Whatever is no subscribe is ignored, as it was.
    fn message(&mut self, message: &Incoming, _: u64) -> Vec<Step> {
        let Incoming::Text(text) = *message else { return Vec::new() };
        let Some(object) = Object::parse(text) else { return Vec::new() };
        if object.text("type").as_deref() != Some("subscribe") {
            return Vec::new();
        }
        let channel = object.text("channel").unwrap_or_default();
        vec![Step::subscribe(&*channel, &channel)]
    }

    fn event(&mut self, event: &Event, now_ms: u64) -> Vec<Step> {
        match event {
            Event::Subscribed { channel, .. } => {
                vec![subscribed(&shown(channel, self.hidden), now_ms)]
            }
            Event::Error { id: Some(channel), code: ErrorCode::AlreadySubscribed, .. } => {
                vec![subscribed(channel, now_ms)]
            }
            Event::Error { .. } => {
                vec![Step::say("{\"type\":\"error\",\"message\":\"Invalid channel\"}")]
            }
            Event::Direct { kind, bytes, .. } => {
                let mut out = Vec::new();
                write_publication(&mut out, "", &Publication::plain(*kind, bytes));
                vec![Step::Say(out)]
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_named_as_a_uuid() {
        assert_eq!(uuid("00020123456789abcdef"), "00020123-4567-489a-8bcd-ef0000000000");
        assert_eq!(uuid("").len(), 36);
    }
}
