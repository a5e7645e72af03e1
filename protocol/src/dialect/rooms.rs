//! `rooms`: what the clients of the TuskLang WebSocket module speak: rooms, private messages, presence states.
//!
//! A room is a channel. Everybody has the channel [`LOBBY`], in which it is told who is online.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::object::{Object, quoted};
use super::raw;
use super::talk::{self, Opening, Step, Talk};
use crate::command::{Action, Payload, PayloadKind};
use crate::connection::Incoming;
use crate::error::ErrorCode;
use crate::event::{Epoch, Event, Offset, Position, Present, Publication, Someone};
use crate::frame::{self, Opcode};
use crate::handshake::Request;
use crate::lane::{Form, RoomsForm, shown};
use crate::printable::Printable;
use crate::user_id::UserId;

/// Everybody's channel, whose name no room has.
pub(crate) const LOBBY: &str = "@all";
/// Messages of one connection that are taken in [`RATE_MS`].
const RATE_MESSAGES: usize = 100;
const RATE_MS: u64 = 60_000;
/// A ping is answered if the last one that was is this old: the published client sets up one ping more for each answer.
const PONG_MS: u64 = 25_000;
const STATES: [&str; 4] = ["online", "away", "busy", "offline"];

/// What an answer is to, with the room or the user behind it.
mod asked {
    pub(super) const LOBBY: &str = "lobby";
    pub(super) const AUTH: &str = "auth";
    pub(super) const JOIN: &str = "join:";
    pub(super) const LEAVE: &str = "leave:";
    pub(super) const PRIVATE: &str = "to:";
    pub(super) const SAID: &str = "said";
    pub(super) const OTHER: &str = "other:";
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Rooms {
    hidden: u8,
    /// What it has asked for in the URL.
    form: RoomsForm,
    user: Option<UserId>,
    in_lobby: bool,
    /// When the messages of the last minute were taken.
    taken_ms: VecDeque<u64>,
    ponged_ms: Option<u64>,
}

impl Rooms {
    pub(super) fn new(request: &Request, hidden: u8) -> Rooms {
        Rooms {
            hidden,
            form: RoomsForm {
                batch: request.query_value("batch") == Some("1"),
                ids: request.query_value("ids") == Some("1"),
            },
            user: None,
            in_lobby: false,
            taken_ms: VecDeque::new(),
            ponged_ms: None,
        }
    }

    /// The user as JSON.
    fn user(&self) -> String {
        self.user.as_ref().map_or_else(|| "null".into(), |user| quoted(user))
    }

    fn enter_lobby(&mut self) -> Option<Step> {
        let enters = !std::mem::replace(&mut self.in_lobby, true);
        enters.then(|| Step::ask_as(asked::LOBBY, Action::subscribe(LOBBY)))
    }

    /// Whether one message more may come now; if so, it is counted.
    fn is_within_rate(&mut self, now_ms: u64) -> bool {
        while self.taken_ms.front().is_some_and(|&taken| taken + RATE_MS <= now_ms) {
            self.taken_ms.pop_front();
        }
        let within = self.taken_ms.len() < RATE_MESSAGES;
        if within {
            self.taken_ms.push_back(now_ms);
        }
        within
    }

    /// Tells everybody, the sender first, that its user is online, away, …
    fn announce(&self, status: &str, now_ms: u64) -> Vec<Step> {
        let frame = presence_update(&self.user(), status, now_ms);
        let bytes = Cow::Owned(frame.clone().into_bytes());
        let payload = Payload { kind: PayloadKind::Json, bytes };
        vec![Step::say(&frame), Step::ask(Action::publish(LOBBY, payload, false))]
    }

    fn ping(&mut self, now_ms: u64) -> Vec<Step> {
        if self.ponged_ms.is_some_and(|last| now_ms.saturating_sub(last) < PONG_MS) {
            return Vec::new();
        }
        self.ponged_ms = Some(now_ms);
        vec![Step::say(&format!("{{\"type\":\"pong\",\"timestamp\":{}}}", now_ms / 1000))]
    }

    fn presence(&self, message: &Object, now_ms: u64) -> Vec<Step> {
        if self.user.is_none() {
            return Vec::new();
        }
        let status = message.text("status").unwrap_or_default();
        match STATES.iter().find(|state| **state == status) {
            Some(status) => self.announce(status, now_ms),
            None => vec![error("Invalid status")],
        }
    }

    fn command(&mut self, message: &Object, text: &str, now_ms: u64) -> Vec<Step> {
        let kind = message.text("type").unwrap_or_default();
        match &*kind {
            "auth" => {
                let token = message.text("token").map(|token| Cow::Owned(token.into_owned()));
                // None would ask who it is.
                let token = Some(token.unwrap_or_default());
                vec![Step::ask_as(asked::AUTH, Action::Auth { token })]
            }
            "join_room" | "leave_room" => {
                let Some(room) = room(message, "room") else {
                    return vec![error("Room name required")];
                };
                if kind == "leave_room" {
                    return vec![Step::unsubscribe(format!("{}{room}", asked::LEAVE), &room)];
                }
                let channel = Cow::Owned(room.clone());
                let id = format!("{}{room}", asked::JOIN);
                let password = message.text("password").map(|own| Cow::Owned(own.into_owned()));
                let recover = match since(message) {
                    Ok(recover) => recover,
                    Err(said) => return vec![said],
                };
                let subscribe = Action::Subscribe { channel, recover, token: None, password };
                vec![Step::ask_as(id, subscribe)]
            }
            "broadcast" => {
                let payload = payload(message);
                let Some((room, payload)) = room(message, "room").zip(payload) else {
                    return vec![error("Room and message required")];
                };
                let echo = message.raw("exclude_sender") != Some("true");
                let confirm_ms = match message.raw("confirm_ms").map(str::parse::<u32>) {
                    None => None,
                    Some(Ok(confirm_ms)) if confirm_ms > 0 => Some(confirm_ms),
                    Some(_) => return vec![error("Invalid confirm_ms")],
                };
                if confirm_ms.is_none() {
                    return vec![Step::ask(Action::publish(room, payload, echo))];
                }
                let channel = Cow::Owned(room);
                let key = None;
                let publish = Action::Publish { channel, payload, echo, confirm_ms, key };
                vec![Step::ask_as(asked::SAID, publish)]
            }
            "confirm" => {
                let number = message.raw("messageId").and_then(|own| own.parse::<u64>().ok());
                let Some((room, number)) = room(message, "room").zip(number) else {
                    return vec![error("Room and message ID required")];
                };
                let (channel, offset) = (Cow::Owned(room), Offset(number));
                vec![Step::ask(Action::Confirm { channel, epoch: None, offset })]
            }
            "private_message" => {
                let payload = payload(message);
                let Some((to, payload)) = message.name("to").zip(payload) else {
                    return vec![error("Target user ID and message required")];
                };
                let user = Cow::Owned(to.into_owned());
                let id = format!("{}{}", asked::PRIVATE, message.raw("to").unwrap_or_default());
                vec![Step::ask_as(id, Action::Send { user, payload })]
            }
            "presence" => self.presence(message, now_ms),
            other if talk::may_be_known(other) => {
                let id = format!("{}{other}", asked::OTHER);
                let otherwise = Err(talk::unknown(other, "rooms"));
                vec![Step::other(id, other, text.to_owned(), otherwise)]
            }
            other => vec![unknown(other)],
        }
    }

    /// What is refused is told in the words that clients know, where there are any.
    fn refused(&mut self, asked: &str, code: ErrorCode, why: &str) -> Vec<Step> {
        match (asked, code) {
            (asked::LOBBY, _) => {
                self.in_lobby = false;
                Vec::new()
            }
            (asked::AUTH, ErrorCode::Unauthenticated) => {
                vec![Step::say("{\"type\":\"auth_failed\",\"message\":\"Invalid token\"}")]
            }
            (asked, ErrorCode::AlreadySubscribed) => {
                let room = asked.strip_prefix(asked::JOIN);
                room.map(|room| room_joined(room, None)).into_iter().collect()
            }
            (_, ErrorCode::NotSubscribed) => Vec::new(),
            (_, ErrorCode::WrongPassword) => vec![error("Invalid room password")],
            (_, ErrorCode::ChannelFull) => vec![error("Room is full")],
            (_, ErrorCode::MembersOnly) => vec![error("Room is for members only")],
            (_, ErrorCode::Moderated) => vec![error("Only moderators may speak in this room")],
            (_, ErrorCode::NoSuchRoom) => vec![error("Room does not exist")],
            (_, ErrorCode::RateLimited) => vec![error("Rate limit exceeded")],
            (asked, ErrorCode::UnknownCommand) => {
                vec![unknown(asked.strip_prefix(asked::OTHER).unwrap_or_default())]
            }
            _ => vec![error(why)],
        }
    }

    /// It was found out who the client is.
    fn authenticated(
        &mut self,
        user: &UserId,
        attributes: &[smol_str::SmolStr],
        now_ms: u64,
    ) -> Vec<Step> {
        self.user = Some(user.clone());
        let roles = attributes.iter().filter_map(|own| own.strip_prefix("role:")).map(quoted);
        let roles = roles.collect::<Vec<_>>().join(",");
        let name = attributes.iter().find_map(|own| own.strip_prefix("claim:username="));
        let (id, name) = (self.user(), name.map_or_else(|| self.user(), quoted));
        let mut steps: Vec<_> = self.enter_lobby().into_iter().collect();
        steps.extend(self.announce("online", now_ms));
        steps.push(Step::say(&format!(
            "{{\"type\":\"auth_success\",\"user\":{{\"id\":{id},\"username\":{name},\"roles\":[{roles}]}}}}"
        )));
        steps
    }
}

/// A room that may be asked for.
fn room(message: &Object, name: &str) -> Option<String> {
    let room = message.name(name)?;
    (!room.is_empty() && !room.starts_with('@')).then(|| room.into_owned())
}

/// What is to be told; nothing where it is what the original takes for nothing.
fn payload(message: &Object) -> Option<Payload<'static>> {
    let raw = message.raw("message")?;
    let is_something = !matches!(raw, "null" | "false" | "0" | "\"\"" | "\"0\"" | "[]");
    let bytes = Cow::Owned(raw.as_bytes().to_vec());
    is_something.then_some(Payload { kind: PayloadKind::Json, bytes })
}

fn error(message: &str) -> Step {
    Step::say(&format!("{{\"type\":\"error\",\"message\":{}}}", quoted(message)))
}

fn unknown(kind: &str) -> Step {
    error(&format!("Unknown message type: {}", Printable::name(kind)))
}

/// `known` is where the messages begin, and whether what was missed comes first.
fn room_joined(room: &str, known: Option<(&Position, Option<bool>)>) -> Step {
    let mut body = format!("{{\"type\":\"room_joined\",\"room\":{}", quoted(room));
    if let Some((Position { epoch, offset }, recovered)) = known {
        body.push_str(&format!(",\"epoch\":\"{epoch}\",\"messageId\":{offset}"));
        if let Some(recovered) = recovered {
            body.push_str(&format!(",\"recovered\":{recovered}"));
        }
    }
    body.push('}');
    Step::say(&body)
}

/// Those who have, or have not, confirmed something: users, and connections of nobody.
fn names(all: &[Someone]) -> String {
    let names = all.iter().map(|own| match own {
        Someone::User(user) => format!("{{\"userId\":{}}}", quoted(user)),
        Someone::Connection(connection) => {
            format!("{{\"userId\":null,\"connection\":{}}}", quoted(connection))
        }
    });
    format!("[{}]", names.collect::<Vec<_>>().join(","))
}

/// From where on a client has missed what was said.
fn since(message: &Object) -> Result<Option<Position>, Step> {
    let Some(raw) = message.raw("since").filter(|raw| *raw != "null") else { return Ok(None) };
    let since = Object::parse(raw).and_then(|since| {
        let epoch = since.text("epoch")?.parse::<Epoch>().ok()?;
        let offset = since.raw("messageId")?.parse::<u64>().ok().map(Offset)?;
        Some(Position { epoch, offset })
    });
    since.map(Some).ok_or_else(|| error("Invalid since: epoch and messageId required"))
}

/// `user` is JSON.
fn presence_update(user: &str, status: &str, now_ms: u64) -> String {
    let now = now_ms / 1000;
    format!(
        "{{\"type\":\"presence_update\",\"userId\":{user},\"status\":\"{status}\",\"timestamp\":{now}}}"
    )
}

/// Whether a name is one of a room.
pub(crate) fn is_room(shown: &str) -> bool {
    shown != LOBBY
}

/// `room_message`, of a room whose name is `shown`. What is published to the lobby is what is sent.
pub(crate) fn write_publication(
    out: &mut Vec<u8>,
    shown: &str,
    publication: &Publication,
    ids: bool,
) {
    if !is_room(shown) {
        return raw::write_publication(out, publication);
    }
    let mut body = Vec::new();
    write_message(&mut body, shown, publication, ids);
    frame::write_server(out, Opcode::Text, &body);
}

/// The JSON of a `room_message`; with its number where `ids` are asked for, or where it is to be confirmed.
pub(crate) fn write_message(body: &mut Vec<u8>, shown: &str, publication: &Publication, ids: bool) {
    let meta = publication.meta;
    let from = match meta {
        // As the documentation of the original has it.
        None => "\"admin\"".into(),
        Some(meta) if meta.number == 0 => "\"admin\"".into(),
        Some(meta) => meta.user.as_ref().map_or_else(|| "null".into(), |user| quoted(user)),
    };
    let time = meta.map_or(0, |meta| meta.time_ms / 1000);
    let head = format!("{{\"type\":\"room_message\",\"room\":{},\"message\":", quoted(shown));
    body.extend_from_slice(head.as_bytes());
    raw::write_json(body, publication.kind, publication.bytes);
    body.extend_from_slice(format!(",\"from\":{from},\"timestamp\":{time}").as_bytes());
    let confirm = meta.is_some_and(|meta| meta.confirm);
    if ids || confirm {
        let number = format!(",\"messageId\":{}", publication.offset);
        body.extend_from_slice(number.as_bytes());
    }
    body.extend_from_slice(if confirm { b",\"confirm\":true}" } else { b"}" });
}

/// A `batch` of messages, in JSON with commas between them.
pub(crate) fn write_batch(out: &mut Vec<u8>, messages: &[u8], time_ms: u64) {
    let mut body = b"{\"type\":\"batch\",\"messages\":[".to_vec();
    body.extend_from_slice(messages);
    body.extend_from_slice(format!("],\"timestamp\":{}}}", time_ms / 1000).as_bytes());
    frame::write_server(out, Opcode::Text, &body);
}

/// Who has come to a room or left it, a frame each; in the lobby, who is offline.
pub(crate) fn write_notice(out: &mut Vec<u8>, hidden: u8, notice: &Event) {
    let (channel, kind, users, time_ms) = match notice {
        Event::Join { channel, users, .. } => (channel, "user_joined", users, 0),
        Event::Leave { channel, users, time_ms, .. } => (channel, "user_left", users, *time_ms),
        _ => return,
    };
    let shown = shown(channel, hidden);
    for Present { who, .. } in users {
        let user = match who {
            Someone::User(user) => quoted(user),
            Someone::Connection(_) => "null".into(),
        };
        let body = match (&*shown, kind) {
            // Who is online says so itself, with a token.
            (LOBBY, "user_joined") => continue,
            (LOBBY, _) if user == "null" => continue,
            (LOBBY, _) => presence_update(&user, "offline", time_ms),
            _ => format!("{{\"type\":\"{kind}\",\"room\":{},\"userId\":{user}}}", quoted(&shown)),
        };
        frame::write_server(out, Opcode::Text, body.as_bytes());
    }
}

impl Talk for Rooms {
    fn form(&self) -> Option<Form> {
        Some(Form::Rooms(self.form))
    }

    fn open(&mut self, opening: &Opening, now_ms: u64) -> Vec<Step> {
        self.user = opening.user.cloned();
        let (number, now) = (opening.number, now_ms / 1000);
        let welcome =
            format!("{{\"type\":\"welcome\",\"connectionId\":{number},\"timestamp\":{now}}}");
        let lobby = self.enter_lobby();
        [Step::say(&welcome)].into_iter().chain(lobby).collect()
    }

    fn message(&mut self, message: &Incoming, now_ms: u64) -> Vec<Step> {
        let bad = || vec![error("Invalid message format")];
        let text = match *message {
            Incoming::Text(text) => text,
            _ => return bad(),
        };
        let parsed = Object::parse(text).filter(|message| !message.is_empty());
        if parsed.as_ref().and_then(|message| message.text("type")).as_deref() == Some("ping") {
            return self.ping(now_ms);
        }
        if !self.is_within_rate(now_ms) {
            return vec![error("Rate limit exceeded")];
        }
        match parsed {
            Some(message) => self.command(&message, text, now_ms),
            None => bad(),
        }
    }

    fn event(&mut self, event: &Event, now_ms: u64) -> Vec<Step> {
        match event {
            Event::Connected { id, user: Some(user), attributes, .. } => match id {
                Some(_) => self.authenticated(user, attributes, now_ms),
                None => {
                    self.user = Some((*user).clone());
                    Vec::new()
                }
            },
            Event::Subscribed { id: Some(asked), position, recovered, .. } => {
                let known = self.form.ids.then_some((position, *recovered));
                let room = asked.strip_prefix(asked::JOIN);
                room.map(|room| room_joined(room, known)).into_iter().collect()
            }
            Event::Receipts { channel, position, confirmed, missing } => {
                let room = quoted(&shown(channel, self.hidden));
                vec![Step::say(&format!(
                    "{{\"type\":\"message_confirmed\",\"room\":{room},\"messageId\":{},\"confirmed\":{},\"missing\":{},\"timestamp\":{}}}",
                    position.offset,
                    names(confirmed),
                    names(missing),
                    now_ms / 1000
                ))]
            }
            // Clients know nothing of it.
            Event::Unsubscribed { channel, .. } if shown(channel, self.hidden) == LOBBY => {
                self.in_lobby = false;
                Vec::new()
            }
            Event::Unsubscribed { id, channel, .. } => {
                let room = id.and_then(|asked| asked.strip_prefix(asked::LEAVE));
                let room = room.map_or_else(|| shown(channel, self.hidden), Cow::Borrowed);
                vec![Step::say(&format!("{{\"type\":\"room_left\",\"room\":{}}}", quoted(&room)))]
            }
            Event::Sent { id, connections: 0, .. } if id.is_some() => {
                vec![error("User not online")]
            }
            Event::Sent { id: Some(asked), .. } => {
                let to = asked.strip_prefix(asked::PRIVATE).unwrap_or("null");
                vec![Step::say(&format!("{{\"type\":\"message_sent\",\"to\":{to}}}"))]
            }
            Event::Direct { from, kind, bytes } => {
                let mut body = b"{\"type\":\"private_message\",\"message\":".to_vec();
                raw::write_json(&mut body, *kind, bytes);
                let from = from.map_or_else(|| "null".into(), |from| quoted(from));
                let now = now_ms / 1000;
                body.extend_from_slice(
                    format!(",\"from\":{from},\"timestamp\":{now}}}").as_bytes(),
                );
                let mut out = Vec::new();
                frame::write_server(&mut out, Opcode::Text, &body);
                vec![Step::Say(out)]
            }
            // What the application says to a type of its own is what is sent.
            Event::Reply { data: "null", .. } => Vec::new(),
            Event::Reply { data, .. } => vec![Step::say(data)],
            Event::Error { id, code, message } => {
                self.refused(id.unwrap_or_default(), *code, message)
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
