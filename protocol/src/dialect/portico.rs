//! `portico`: what the WebSocket clients of PorticoEstate speak: rooms of sessions and entities, messages that are
//! relayed as they came, liveness frames.
//!
//! What is published to a channel is what its subscribers are sent. Everybody has the channel `all`; `session_ID` is a
//! session's room, `entity_TYPE_ID` an entity's.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::object::{Object, quoted};
use super::talk::{self, Deed, Opening, Step, Talk};
use crate::command::{Action, Payload, PayloadKind};
use crate::connection::Incoming;
use crate::date::iso_seconds;
use crate::error::ErrorCode;
use crate::event::Event;
use crate::handshake::Request;
use crate::lane::shown;

/// Everybody's channel.
pub(crate) const ALL: &str = "all";
/// Cookies that name a session, and what kind it is; the first that is there counts.
const COOKIES: [(&str, &str); 3] = [
    ("bookingfrontendsession", "booking"),
    ("sessionphpgwsessid", "admin"),
    ("PHPSESSID", "standard"),
];
/// The method that knows what `get_partial_applications` asks for.
const APPLICATIONS_METHOD: &str = "get_partial_applications";
/// Between two `server_ping`.
const SERVER_PING_MS: u32 = 60_000;
/// So many of them are between two `room_ping`.
const SERVER_PINGS_PER_ROOM_PING: u32 = 4;
/// What the server alone says: clients would take it for true.
const SERVERS_OWN: [&str; 14] = [
    "cache_invalidation",
    "connection_success",
    "error",
    "partial_applications_response",
    "reconnect_required",
    "refresh_bookinguser",
    "room_joined",
    "room_ping",
    "server_message",
    "server_ping",
    "session_id_required",
    "session_update_confirmation",
    "subscription_confirmation",
    "user_info_update_confirmation",
];

/// What the answer to a subscribe means.
mod asked {
    pub(super) const ALL: &str = "all";
    pub(super) const GREETING: &str = "greeting";
    pub(super) const SET: &str = "set";
    pub(super) const UPDATED: &str = "updated";
    pub(super) const LEFT: &str = "left";
    pub(super) const APPLICATIONS: &str = "applications";
    /// With the entity behind them.
    pub(super) const ENTITY: &str = "entity:";
    pub(super) const LEAVE: &str = "leave:";
    /// With the type of the message behind it.
    pub(super) const OTHER: &str = "other:";
}

/// What a connection shows of its session.
#[derive(Debug)]
enum Cookies {
    None,
    Others,
    Session { id: String, kind: &'static str },
}

#[derive(Debug)]
struct Session {
    id: String,
    kind: &'static str,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Portico {
    /// Bytes of channels' names that clients do not know.
    hidden: u8,
    cookies: Cookies,
    session: Option<Session>,
    /// Of entities, with the type and the id as the client wrote them, in JSON.
    rooms: BTreeMap<String, Entity>,
    /// The one that it has asked to leave last.
    leaving: Option<Entity>,
    ids: u64,
    ticks: u32,
}

#[derive(Debug, Clone)]
struct Entity {
    kind: String,
    id: String,
}

impl Entity {
    fn of(message: &Object) -> Option<(String, Entity)> {
        let room = entity_room(message)?;
        let raw = |name| message.raw(name).map(str::to_owned);
        Some((room, Entity { kind: raw("entityType")?, id: raw("entityId")? }))
    }

    /// Both fields, a comma behind them.
    fn fields(&self) -> String {
        format!("\"entityType\":{},\"entityId\":{},", self.kind, self.id)
    }
}

/// The room of the entity that a message names.
pub(crate) fn entity_room(message: &Object) -> Option<String> {
    Some(format!("entity_{}_{}", message.name("entityType")?, message.name("entityId")?))
}

/// The room of a session.
pub(crate) fn session_room(id: &str) -> String {
    format!("session_{id}")
}

impl Portico {
    pub(super) fn new(request: &Request, hidden: u8) -> Portico {
        Portico {
            hidden,
            cookies: cookies(request),
            session: None,
            rooms: BTreeMap::new(),
            leaving: None,
            ids: 0,
            ticks: 0,
        }
    }

    fn session_room(&self) -> Option<String> {
        self.session.as_ref().map(|session| session_room(&session.id))
    }

    fn next_id(&mut self, kind: &str, now_ms: u64) -> String {
        self.ids += 1;
        format!("{kind}_{now_ms:x}{:04x}", self.ids)
    }

    /// Relays what came to a channel, with what every relayed message has.
    fn relay(
        &self,
        message: &Object,
        to: &str,
        fields: &[(&str, &str)],
        echo: bool,
        now_ms: u64,
    ) -> Step {
        let mut fields = fields.to_vec();
        let time = quoted(&iso_seconds(now_ms));
        if message.raw("timestamp").is_none() {
            fields.push(("timestamp", &time));
        }
        let context = self
            .session
            .as_ref()
            .map(|session| format!("{{\"hasSession\":true,\"sessionType\":\"{}\"}}", session.kind));
        if let Some(context) = &context {
            fields.push(("sessionContext", context));
        }
        let bytes = Cow::Owned(message.with(&fields).into_bytes());
        let payload = Payload { kind: PayloadKind::Json, bytes };
        Step::ask(Action::publish(to.to_owned(), payload, echo))
    }

    fn update_session(&mut self, message: &Object, now_ms: u64) -> Vec<Step> {
        let Some(id) = message.text("sessionId").filter(|id| !id.is_empty()) else {
            return vec![refused("INVALID_SESSION_ID", "Invalid session ID", now_ms)];
        };
        let own = self.session.as_ref();
        if own.is_some_and(|session| session.id == *id) {
            return vec![self.session_updated("none", "Session ID is unchanged", 0, now_ms)];
        }
        let left = self.session_room().map(|room| Step::unsubscribe(asked::LEFT, &room));
        let action = if left.is_some() { asked::UPDATED } else { asked::SET };
        self.session = Some(Session { id: id.into_owned(), kind: "booking" });
        let joined = self.session_room().map(|room| Step::subscribe(action, &room));
        left.into_iter().chain(joined).collect()
    }

    fn session_updated(&self, action: &str, message: &str, size: u64, now_ms: u64) -> Step {
        let id = self.session.as_ref().map_or("", |session| &session.id);
        let shown: String = id.chars().take(8).collect();
        Step::say(&format!(
            "{{\"type\":\"session_update_confirmation\",\"success\":true,\"message\":\"{message}\",\
             \"action\":\"{action}\",\"wasRequired\":false,\"sessionId\":{},\"rooms\":{},\"environment\":{ENVIRONMENT},\
             \"timestamp\":\"{}\"}}",
            quoted(&format!("{shown}...")),
            self.own_rooms(size),
            iso_seconds(now_ms),
        ))
    }

    /// The rooms of a connection; of its session's `size` is known.
    fn own_rooms(&self, size: u64) -> String {
        let session = self.session_room();
        let session = session.iter().map(|room| (&**room, size, "session"));
        let entities = self.rooms.keys().map(|room| (&**room, 1, "entity"));
        let mut rooms = String::from("[");
        for (id, size, kind) in session.chain(entities) {
            let comma = if rooms.len() > 1 { "," } else { "" };
            let id = quoted(id);
            // Writing to a String cannot fail.
            let _ = write!(rooms, "{comma}{{\"id\":{id},\"size\":{size},\"type\":\"{kind}\"}}");
        }
        rooms + "]"
    }

    fn subscribe(&mut self, message: &Object, now_ms: u64) -> Vec<Step> {
        let Some((room, entity)) = Entity::of(message) else {
            return vec![refused("INVALID_ENTITY", ENTITY_NEEDED, now_ms)];
        };
        if self.rooms.contains_key(&room) {
            return vec![confirmed(&entity, "subscribed", now_ms)];
        }
        self.rooms.insert(room.clone(), entity);
        vec![Step::subscribe(format!("{}{room}", asked::ENTITY), &room)]
    }

    fn unsubscribe(&mut self, message: &Object, now_ms: u64) -> Vec<Step> {
        let Some((room, entity)) = Entity::of(message) else {
            return vec![refused("INVALID_ENTITY", ENTITY_NEEDED, now_ms)];
        };
        if !self.rooms.contains_key(&room) {
            return vec![confirmed(&entity, "unsubscribed", now_ms)];
        }
        // Nothing more is read before that is answered.
        self.leaving = Some(entity);
        vec![Step::unsubscribe(format!("{}{room}", asked::LEAVE), &room)]
    }

    /// It has left the room of an entity, as it has asked for.
    fn left(&mut self, room: &str, now_ms: u64) -> Vec<Step> {
        let entity = self.rooms.remove(room);
        let entity = self.leaving.take().or(entity);
        entity.iter().map(|entity| confirmed(entity, "unsubscribed", now_ms)).collect()
    }

    fn room_message(&self, message: &Object, now_ms: u64) -> Vec<Step> {
        let room = message.text("roomId").unwrap_or_default();
        let own = self.session_room();
        if !self.rooms.contains_key(&*room) && own.as_deref() != Some(&*room) {
            let why = "You are not a member of this room";
            return vec![refused("ROOM_ACCESS_DENIED", why, now_ms)];
        }
        vec![self.relay(message, &room, &[], false, now_ms)]
    }

    fn session_message(&self, message: &Object, now_ms: u64) -> Vec<Step> {
        let Some(room) = self.session_room() else {
            return vec![refused("NO_SESSION", "No session found", now_ms)];
        };
        let id = quoted(&room);
        let fields = [("type", "\"room_message\""), ("roomId", &*id)];
        vec![self.relay(message, &room, &fields, false, now_ms)]
    }

    fn entity_event(&self, message: &Object, now_ms: u64) -> Vec<Step> {
        match Entity::of(message) {
            Some((room, _)) => vec![self.relay(message, &room, &[], false, now_ms)],
            None => vec![refused("INVALID_ENTITY", ENTITY_NEEDED, now_ms)],
        }
    }

    /// A message of a type that only the application may know; it goes to all others where nobody does. Whose session it is is ours
    /// to say.
    fn other(&self, message: &Object, kind: &str, now_ms: u64) -> Step {
        let relay = match self.relay(message, ALL, &[], false, now_ms) {
            Step::Do(Deed { action, .. }) if talk::may_be_known(kind) => action,
            relay => return relay,
        };
        let (id, of) = match &self.session {
            Some(Session { id, kind }) => (quoted(id), quoted(kind)),
            None => ("null".into(), "null".into()),
        };
        let message = message.with(&[("sessionId", &id), ("sessionType", &of)]);
        Step::other(format!("{}{kind}", asked::OTHER), kind, message, Ok(Box::new(relay)))
    }

    /// Asks the application for what it calls partial applications; its answer is passed on as it is.
    fn applications(&self, now_ms: u64) -> Step {
        let Some(session) = &self.session else {
            return applications(&failure(ErrorCode::Forbidden, "No session found"), now_ms);
        };
        let (id, kind) = (quoted(&session.id), session.kind);
        let params = format!("{{\"sessionId\":{id},\"sessionType\":\"{kind}\"}}");
        let call = Action::Rpc {
            method: Cow::Borrowed(APPLICATIONS_METHOD),
            params: Some(Cow::Owned(params)),
            timeout_ms: None,
        };
        Step::ask_as(asked::APPLICATIONS, call)
    }

    fn pong(&mut self, message: &Object, now_ms: u64) -> Step {
        let id = self.next_id("pong", now_ms);
        let null = "null";
        let (to, beat) = (message.raw("id"), message.raw("heartbeat_id"));
        Step::say(&format!(
            "{{\"type\":\"pong\",\"id\":\"{id}\",\"reply_to\":{},\"heartbeat_id\":{},\"timestamp\":\"{}\"}}",
            to.unwrap_or(null),
            beat.unwrap_or(null),
            iso_seconds(now_ms)
        ))
    }

    /// A room was joined.
    fn joined(&mut self, asked: &str, channel: &str, size: u64, now_ms: u64) -> Vec<Step> {
        let (room, time) = (shown(channel, self.hidden), iso_seconds(now_ms));
        let id = quoted(&room);
        let joined = |kind: &str, more: &str| {
            Step::say(&format!(
                "{{\"type\":\"room_joined\",\"roomId\":{id},\"roomType\":\"{kind}\",\"message\":\"Joined room\",\
                 \"roomSize\":{size},{more}\"timestamp\":\"{time}\"}}"
            ))
        };
        match asked {
            asked::GREETING => {
                let rooms = self.own_rooms(size);
                let success = Step::say(&format!(
                    "{{\"type\":\"connection_success\",\"message\":\"Successfully connected to WebSocket server\",\
                     \"roomId\":{id},\"rooms\":{rooms},\"environment\":{ENVIRONMENT},\"timestamp\":\"{time}\"}}"
                ));
                vec![joined("session", ""), success]
            }
            asked::SET | asked::UPDATED => {
                let text =
                    if asked == asked::SET { "Session ID set" } else { "Session ID updated" };
                vec![joined("session", ""), self.session_updated(asked, text, size, now_ms)]
            }
            _ => match self.rooms.get(&*room) {
                Some(entity) => {
                    let confirmed = confirmed(entity, "subscribed", now_ms);
                    vec![joined("entity", &entity.fields()), confirmed]
                }
                None => Vec::new(),
            },
        }
    }

    /// Something was refused.
    fn refused(&mut self, asked: &str, code: ErrorCode, why: &str, now_ms: u64) -> Vec<Step> {
        match asked {
            asked::LEFT => return Vec::new(),
            asked::APPLICATIONS => return vec![applications(&failure(code, why), now_ms)],
            asked::GREETING | asked::SET | asked::UPDATED => self.session = None,
            _ => {
                if let Some(room) = asked.strip_prefix(asked::ENTITY) {
                    self.rooms.remove(room);
                } else if let Some(room) = asked.strip_prefix(asked::LEAVE)
                    && code == ErrorCode::NotSubscribed
                {
                    return self.left(room, now_ms);
                }
                if let Some(kind) = asked.strip_prefix(asked::OTHER) {
                    return vec![response(kind, &failure(code, why), now_ms)];
                }
            }
        }
        vec![refused(&code.as_str().to_uppercase(), why, now_ms)]
    }
}

/// What the original tells of its own environment: nothing here.
const ENVIRONMENT: &str =
    "{\"NEXTJS_HOST\":null,\"SLIM_HOST\":null,\"REDIS_HOST\":null,\"websocket_host\":null}";
const ENTITY_NEEDED: &str = "entityType and entityId are needed, each a string or a number";

fn refused(code: &str, message: &str, now_ms: u64) -> Step {
    let (message, time) = (quoted(message), iso_seconds(now_ms));
    Step::say(&format!(
        "{{\"type\":\"error\",\"message\":{message},\"code\":\"{code}\",\"timestamp\":\"{time}\"}}"
    ))
}

/// `data` is JSON.
fn applications(data: &str, now_ms: u64) -> Step {
    response(APPLICATIONS_METHOD, data, now_ms)
}

/// What is said to a message of a type that only the application knows. `data` is JSON.
fn response(kind: &str, data: &str, now_ms: u64) -> Step {
    let kind = format!("{}_response", kind.strip_prefix("get_").unwrap_or(kind));
    let (kind, time) = (quoted(&kind), iso_seconds(now_ms));
    Step::say(&format!("{{\"type\":{kind},\"data\":{data},\"timestamp\":\"{time}\"}}"))
}

fn failure(code: ErrorCode, message: &str) -> String {
    let (code, message) = (code.as_str().to_uppercase(), quoted(message));
    format!("{{\"error\":true,\"code\":\"{code}\",\"message\":{message},\"status\":\"error\"}}")
}

fn has_type(data: &str) -> bool {
    Object::parse(data).is_some_and(|object| object.text("type").is_some())
}

fn confirmed(entity: &Entity, status: &str, now_ms: u64) -> Step {
    let (entity, time) = (entity.fields(), iso_seconds(now_ms));
    Step::say(&format!(
        "{{\"type\":\"subscription_confirmation\",{entity}\"status\":\"{status}\",\"timestamp\":\"{time}\"}}"
    ))
}

/// Who somebody says they are: a number, or the digits that a text begins with.
fn user_number(message: &Object) -> i64 {
    let given = message.name("userId").unwrap_or_default();
    let given = given.trim_start();
    let digits = given.char_indices().find(|&(at, c)| !(c.is_ascii_digit() || at == 0 && c == '-'));
    let end = digits.map_or(given.len(), |(at, _)| at);
    given.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn cookies(request: &Request) -> Cookies {
    let mut lines = request.all("cookie").peekable();
    if lines.peek().is_none() {
        return Cookies::None;
    }
    let text: Vec<_> = lines.map(String::from_utf8_lossy).collect();
    let all = text.iter().flat_map(|line| line.split(';'));
    let all: Vec<_> = all.filter_map(|one| one.trim().split_once('=')).collect();
    let found = COOKIES.iter().find_map(|&(name, kind)| {
        let (_, value) = all.iter().find(|(own, _)| *own == name)?;
        let id = url_decoded(value);
        (!id.is_empty()).then_some(Cookies::Session { id, kind })
    });
    found.unwrap_or(Cookies::Others)
}

/// `%41` as A, and `+` as a space.
fn url_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let hex = behind.get(..2).filter(|_| byte == b'%');
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = behind.get(2..).unwrap_or_default();
            }
            None => {
                out.push(if byte == b'+' { b' ' } else { byte });
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Talk for Portico {
    fn open(&mut self, _: &Opening, now_ms: u64) -> Vec<Step> {
        let mut steps = vec![Step::subscribe(asked::ALL, ALL), Step::Remind(SERVER_PING_MS)];
        match std::mem::replace(&mut self.cookies, Cookies::None) {
            Cookies::None => {}
            Cookies::Others => steps.push(Step::say(&format!(
                "{{\"type\":\"session_id_required\",\"message\":\"Session ID required\",\"code\":\"NO_SESSION\",\"timestamp\":\"{}\"}}",
                iso_seconds(now_ms)
            ))),
            Cookies::Session { id, kind } => {
                self.session = Some(Session { id, kind });
                let room = self.session_room();
                steps.extend(room.map(|room| Step::subscribe(asked::GREETING, &room)));
            }
        }
        steps
    }

    fn message(&mut self, message: &Incoming, now_ms: u64) -> Vec<Step> {
        let Incoming::Text(text) = *message else {
            return vec![refused("INVALID_MESSAGE", "Messages are JSON in text frames", now_ms)];
        };
        if text == "ping" {
            return vec![Step::say("pong")];
        }
        let Some(message) = Object::parse(text) else {
            return vec![refused("INVALID_MESSAGE", "A message is a JSON object", now_ms)];
        };
        let message = &message;
        match message.text("type").as_deref() {
            Some("ping") => vec![self.pong(message, now_ms)],
            Some("pong" | "room_ping_response") => Vec::new(),
            Some("update_user_info") => vec![Step::say(&format!(
                "{{\"type\":\"user_info_update_confirmation\",\"success\":true,\
                 \"message\":\"User information updated successfully\",\"userId\":{},\"timestamp\":\"{}\"}}",
                user_number(message),
                iso_seconds(now_ms)
            ))],
            Some("get_partial_applications") => vec![self.applications(now_ms)],
            Some("update_session") => self.update_session(message, now_ms),
            Some("subscribe") => self.subscribe(message, now_ms),
            Some("unsubscribe") => self.unsubscribe(message, now_ms),
            Some("room_message") => self.room_message(message, now_ms),
            Some("session_message") => self.session_message(message, now_ms),
            Some("entity_event") => self.entity_event(message, now_ms),
            Some("notification") => vec![self.relay(message, ALL, &[], true, now_ms)],
            Some(own) if SERVERS_OWN.contains(&own) => {
                vec![refused("INVALID_TYPE", "Only the server says that", now_ms)]
            }
            Some("chat") | None => vec![self.relay(message, ALL, &[], false, now_ms)],
            Some(other) => vec![self.other(message, other, now_ms)],
        }
    }

    fn event(&mut self, event: &Event, now_ms: u64) -> Vec<Step> {
        match event {
            Event::Subscribed { id: Some(asked), channel, subscribers, .. } => {
                self.joined(asked, channel, *subscribers, now_ms)
            }
            Event::Unsubscribed { id: Some(asked), .. } => {
                let room = asked.strip_prefix(asked::LEAVE);
                room.map_or(Vec::new(), |room| self.left(room, now_ms))
            }
            Event::Unsubscribed { id: None, channel, .. } => {
                let room = shown(channel, self.hidden);
                if self.session_room().as_deref() == Some(&*room) {
                    self.session = None;
                }
                let entity = self.rooms.remove(&*room);
                entity.iter().map(|entity| confirmed(entity, "unsubscribed", now_ms)).collect()
            }
            Event::Result { id: asked::APPLICATIONS, data } => vec![applications(data, now_ms)],
            Event::Reply { data: "null", .. } => Vec::new(),
            // An answer with a type is what is sent.
            Event::Reply { data, .. } if has_type(data) => vec![Step::say(data)],
            Event::Reply { id: Some(asked), data } => {
                let kind = asked.strip_prefix(asked::OTHER).unwrap_or_default();
                vec![response(kind, data, now_ms)]
            }
            Event::Direct { kind, bytes, .. } => vec![Step::payload(*kind, bytes)],
            Event::Error { id, code, message } => {
                self.refused(id.unwrap_or_default(), *code, message, now_ms)
            }
            _ => Vec::new(),
        }
    }

    /// Liveness frames. Nobody is sent away for not answering them: no published client does.
    fn tick(&mut self, now_ms: u64) -> Vec<Step> {
        self.ticks = self.ticks.wrapping_add(1);
        let (id, time) = (self.next_id("ping", now_ms), iso_seconds(now_ms));
        let ping = format!("{{\"type\":\"server_ping\",\"id\":\"{id}\",\"timestamp\":\"{time}\"}}");
        let mut steps = vec![Step::Remind(SERVER_PING_MS), Step::say(&ping)];
        if self.ticks.is_multiple_of(SERVER_PINGS_PER_ROOM_PING) {
            steps.extend(self.rooms.keys().map(|room| {
                let room = quoted(room);
                Step::say(&format!(
                    "{{\"type\":\"room_ping\",\"roomId\":{room},\"timestamp\":\"{time}\"}}"
                ))
            }));
        }
        steps
    }
}

#[cfg(test)]
mod tests;
