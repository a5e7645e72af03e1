//! What `ringfeed.v1` tells: events as JSON.

use std::fmt::Display;
use std::io::Write as _;

use super::super::raw::write_string;
use super::{write_data, write_meta};
use crate::event::{Event, Position, Present, Publication, Someone};
use crate::frame::{self, Opcode};

pub(crate) fn write_event(out: &mut Vec<u8>, event: &Event) {
    let mut body = Vec::with_capacity(128);
    write_body(Object::of(&mut body), event);
    frame::write_server(out, Opcode::Text, &body);
}

/// An object that is being written. Channel names need no escaping: see [`crate::ChannelName`]. Writing to a `Vec` cannot
/// fail.
struct Object<'a>(&'a mut Vec<u8>);

impl<'a> Object<'a> {
    fn of(body: &'a mut Vec<u8>) -> Object<'a> {
        body.push(b'{');
        Object(body)
    }

    fn name(&mut self, name: &str) {
        let comma = if self.0.last() == Some(&b'{') { "" } else { "," };
        let _ = write!(self.0, "{comma}\"{name}\":");
    }

    fn kind(self, kind: &str) -> Object<'a> {
        self.word("type", kind)
    }

    /// The id of a command, where it had one.
    fn id(self, id: &Option<&str>) -> Object<'a> {
        self.plain_if("id", id.as_ref())
    }

    /// A number, or what is JSON already.
    fn plain(mut self, name: &str, value: impl Display) -> Object<'a> {
        self.name(name);
        let _ = write!(self.0, "{value}");
        self
    }

    fn plain_if(self, name: &str, value: Option<impl Display>) -> Object<'a> {
        match value {
            Some(value) => self.plain(name, value),
            None => self,
        }
    }

    /// What needs no escaping.
    fn word(mut self, name: &str, value: impl Display) -> Object<'a> {
        self.name(name);
        let _ = write!(self.0, "\"{value}\"");
        self
    }

    fn position(self, Position { epoch, offset }: &Position) -> Object<'a> {
        self.word("epoch", epoch).plain("offset", offset)
    }

    fn text(mut self, name: &str, value: &str) -> Object<'a> {
        self.name(name);
        write_string(self.0, value);
        self
    }

    fn text_if(self, name: &str, value: Option<&str>) -> Object<'a> {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    fn someone(self, who: &Someone) -> Object<'a> {
        match who {
            Someone::User(user) => self.text("user", user),
            Someone::Connection(connection) => self.text("connection", connection),
        }
    }

    fn users(mut self, users: &[Present]) -> Object<'a> {
        self.name("users");
        write_list(self.0, users, |body, Present { who, info }| {
            Object::of(body).someone(who).plain_if("info", info.as_deref()).end();
        });
        self
    }

    fn names(mut self, name: &str, names: &[Someone]) -> Object<'a> {
        self.name(name);
        write_list(self.0, names, |body, who| Object::of(body).someone(who).end());
        self
    }

    fn end(self) {
        self.0.push(b'}');
    }
}

/// A list, with commas in between.
fn write_list<T>(body: &mut Vec<u8>, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    body.push(b'[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        write(body, item);
    }
    body.push(b']');
}

fn write_publication(body: &mut Vec<u8>, publication: &Publication) {
    let object = Object::of(body).plain("offset", publication.offset);
    write_meta(object.0, publication.meta);
    write_data(object.0, publication.kind, publication.bytes);
    object.end();
}

fn write_body(object: Object, event: &Event) {
    let object = match event {
        Event::Subscribed { id, channel, position, recovered, .. } => object
            .kind("subscribed")
            .id(id)
            .word("channel", channel)
            .position(position)
            .plain_if("recovered", *recovered),
        Event::Unsubscribed { id, channel, reason } => {
            let object = object.kind("unsubscribed").id(id).word("channel", channel);
            object.text_if("reason", *reason)
        }
        Event::Connected { id, connection, user, expires_in_ms, .. } => object
            .kind("connected")
            .id(id)
            .word("connection", connection)
            .text_if("user", user.map(|user| &**user))
            .plain_if("expires_in_ms", *expires_in_ms),
        Event::Sent { id, user, connections } => {
            object.kind("sent").id(id).text("user", user).plain("connections", connections)
        }
        Event::Direct { from, kind, bytes } => {
            let object = object.kind("direct").text_if("from", from.map(|user| &**user));
            write_data(object.0, *kind, bytes);
            object
        }
        Event::Reply { id, data } => object.kind("reply").id(id).plain("data", data),
        Event::Result { id, data } => object.kind("result").plain("id", id).plain("data", data),
        Event::Published { id, channel, position, ack, duplicate, .. } => {
            let object = object.kind("published").id(id).word("channel", channel);
            let object = match position {
                Some(position) => object.position(position),
                None => object,
            };
            let object = object.word("ack", ack);
            object.plain_if("duplicate", duplicate.then_some(true))
        }
        Event::Confirmed { id, channel, offset, in_time } => {
            let object = object.kind("confirmed").id(id).word("channel", channel);
            object.plain("offset", offset).plain("in_time", in_time)
        }
        Event::Receipts { channel, position, confirmed, missing } => object
            .kind("receipts")
            .word("channel", channel)
            .position(position)
            .names("confirmed", confirmed)
            .names("missing", missing),
        Event::History { id, channel, position, publications } => {
            let object = object.kind("history").id(id).word("channel", channel);
            let mut object = object.position(position);
            object.name("publications");
            write_list(object.0, publications, write_publication);
            object
        }
        Event::Presence { id, channel, epoch, version, count, connections, users, next } => {
            let object = object.kind("presence").id(id).word("channel", channel);
            let object = object.word("epoch", epoch).plain("version", version);
            let object = object.plain("count", count).plain("connections", connections);
            let object = match users {
                Some(users) => object.users(users),
                None => object,
            };
            object.text_if("next", *next)
        }
        Event::Leave { channel, version, users, .. } => {
            object.kind("leave").word("channel", channel).plain("version", version).users(users)
        }
        Event::Join { channel, version, users } => {
            object.kind("join").word("channel", channel).plain("version", version).users(users)
        }
        Event::Count { channel, version, count } => {
            let object = object.kind("presence").word("channel", channel);
            object.plain("version", version).plain("count", count)
        }
        Event::Pong { id } => object.kind("pong").id(id),
        Event::Error { id, code, message } => {
            object.kind("error").id(id).word("code", code.as_str()).text("message", message)
        }
        Event::Gap { channel, epoch, from, to } => {
            let object = object.kind("gap").word("channel", channel).word("epoch", epoch);
            object.plain("from", from).plain("to", to)
        }
        Event::Drain { reconnect_ms } => object.kind("drain").plain("reconnect_ms", reconnect_ms),
    };
    object.end();
}
