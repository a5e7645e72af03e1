//! A client of `portico`: it has a room of its session and rooms of entities, and what it says there is relayed as it is.
//!
//! Publications do not say which channel they are of; those of the run can be told by their numbers.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::client::{Client, Scene, Speaks};
use super::super::judge::{self, Ident, Kind, Rule};
use super::super::link::{Link, Own, Pending, View, Want};
use super::super::policy::Op;
use super::super::setup::Setup;
use super::super::trace::shown;
use super::super::ws;
use super::Queue;

/// What the names of channels that it has begin with.
pub(crate) const PREFIX: &str = "g0.";
/// Of channels that it can have: everybody's, of sessions, of entities.
pub(crate) const ROOMS: &[&str] =
    &["all", "session_s0", "session_s1", "entity_e_0", "entity_e_1", "entity_e_2"];
/// Between two of the frames by which it is told that the server is there.
pub(crate) const SERVER_PING_MS: u64 = 60_000;

/// What is said in frames that hold no message.
pub(super) const BINARY: &str = "Messages are JSON in text frames";
const NO_OBJECT: &str = "A message is a JSON object";
const NO_ENTITY: &str = "entityType and entityId are needed, each a string or a number";
/// What the dialect refuses, and how.
pub(super) const BAD: &[(&str, &str)] = &[
    ("", NO_OBJECT),
    ("[1]", NO_OBJECT),
    ("{\"type\":\"subscribe\"}", NO_ENTITY),
    ("{\"type\":\"unsubscribe\",\"entityType\":{},\"entityId\":1}", NO_ENTITY),
    ("{\"type\":\"entity_event\"}", NO_ENTITY),
    ("{\"type\":\"update_session\"}", "Invalid session ID"),
    ("{\"type\":\"room_message\",\"roomId\":\"nowhere\"}", "You are not a member of this room"),
    ("{\"type\":\"server_ping\"}", "Only the server says that"),
];

/// What a client knows of its connection.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Of the dialect's own pings.
    pongs: Queue,
    /// Answers to what it has said of its session and its user.
    answers: Queue,
    /// Frames by which it was told that the server is there.
    pub(in super::super) server_pings: u64,
}

impl Known {
    pub(super) fn owed(&self) -> usize {
        self.pongs.len() + self.answers.len()
    }
}

/// Something that was said.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(rename = "roomId")]
    room: Option<String>,
    #[serde(rename = "entityType")]
    entity: Option<String>,
    #[serde(rename = "entityId")]
    id: Option<String>,
    status: Option<&'a str>,
    message: Option<String>,
    #[serde(borrow)]
    reply_to: Option<&'a RawValue>,
    timestamp: Option<&'a str>,
}

/// A relayed message as it came, without what was put behind it of its sender's session.
pub(crate) fn without_context(payload: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(payload);
    let behind = ["booking", "admin", "standard"].iter().find_map(|kind| {
        let context =
            format!(",\"sessionContext\":{{\"hasSession\":true,\"sessionType\":\"{kind}\"}}}}");
        text.strip_suffix(&context).map(|text| format!("{text}}}"))
    });
    behind.map_or(payload.to_vec(), String::into_bytes)
}

/// The cookies of a connection.
pub(crate) fn cookie(conn: usize) -> &'static str {
    match conn % 4 {
        0 => "",
        1 => "Cookie: theme=dark\r\n",
        2 => "Cookie: bookingfrontendsession=s0\r\n",
        _ => "Cookie: a=b; sessionphpgwsessid=s1\r\n",
    }
}

impl Client {
    /// Everybody has one channel, and who comes with a session another one.
    pub(in super::super) fn begin_portico(&mut self, setup: &Setup) {
        let Some(link) = &mut self.link else { return };
        let session = match link.conn % 4 {
            2 => "g0.session_s0",
            3 => "g0.session_s1",
            _ => "",
        };
        for (at, channel) in setup.channels.iter().enumerate() {
            if channel.name == "g0.all" || channel.name == session {
                link.expect_at_once(at, Speaks::Portico);
            }
        }
    }

    /// A room of an entity, that it can name.
    fn any_entity(&self, scene: &mut Scene) -> Option<usize> {
        let of = |channel: &usize| scene.judge.names[*channel].starts_with("g0.entity_");
        let own: Vec<usize> = self.channels.iter().copied().filter(of).collect();
        (!own.is_empty()).then(|| own[scene.dice.below(own.len())])
    }
}

impl Client {
    /// How often it was told that the server is there, where that is told.
    pub(in super::super) fn server_pings(&self) -> Option<u64> {
        let link = self.link.as_ref().filter(|_| self.speaks == Speaks::Portico)?;
        Some(link.talk.portico.server_pings)
    }

    pub(in super::super) fn portico_act(&mut self, scene: &mut Scene) {
        match scene.dice.below(100) {
            0..20 => self.enter(true, scene),
            20..32 => self.enter(false, scene),
            32..50 => self.relay("room_message", scene),
            50..58 => self.relay("entity_event", scene),
            58..64 => self.relay("notification", scene),
            64..68 => self.relay("chat", scene),
            68..70 => self.tell_application(scene),
            70..76 => self.portico_ping(scene),
            76..80 => self.tell_of_user(scene),
            80..88 => self.update_session(scene),
            88..94 => self.bad_words(scene),
            _ => {}
        }
    }

    /// Subscribes to an entity, or not any more.
    fn enter(&mut self, subscribes: bool, scene: &mut Scene) {
        let Some(channel) = self.any_entity(scene) else { return };
        let (entity, id) = entity_of(&scene.judge.names[channel]);
        let Some(link) = &mut self.link else { return };
        let (kind, want) = match subscribes {
            true => ("subscribe", Want::Subscribe { recover: None, password: None }),
            false => ("unsubscribe", Want::Unsubscribe),
        };
        let text =
            format!("{{\"type\":\"{kind}\",\"entityType\":\"{entity}\",\"entityId\":\"{id}\"}}");
        link.expect(None, want, Some(channel), false, scene);
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    /// Says something to a room, to those of an entity, or to everybody.
    fn relay(&mut self, kind: &str, scene: &mut Scene) {
        let channel = match kind {
            "room_message" | "entity_event" => self.any_entity(scene),
            _ => scene.judge.names.iter().position(|name| name == "g0.all"),
        };
        let Some(channel) = channel else { return };
        let Some(link) = &mut self.link else { return };
        let name = scene.judge.names[channel][PREFIX.len()..].to_owned();
        let number = scene.judge.publication(channel, Kind::Json, 0);
        let (entity, id) = entity_of(&scene.judge.names[channel]);
        let more = match kind {
            "room_message" => format!("\"roomId\":\"{name}\""),
            "entity_event" => format!("\"entityType\":\"{entity}\",\"entityId\":\"{id}\""),
            _ => format!("\"about\":[{}]", scene.dice.below(9)),
        };
        let text = format!("{{\"n\":{number},\"type\":\"{kind}\",{more},\"timestamp\":\"t\"}}");
        scene.judge.relayed(number, &text);
        let chance = link.chance(Op::Publish, channel, scene.setup);
        scene.judge.sent_by(number, link.conn, chance.asked);
        let echo = kind == "notification";
        if !echo {
            scene.judge.except(number, link.conn);
            link.channels.entry(channel).or_insert_with(Own::fresh);
        }
        link.expect_own((number, channel), echo, chance.always, scene.setup);
        link.expect(None, Want::Publish(number), Some(channel), false, scene);
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    fn portico_ping(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        link.errors_open += 1;
        let (text, answer) = scene.dice.pick(&[
            ("ping", "pong"),
            ("{\"type\":\"ping\",\"id\":1}", "1"),
            ("{\"type\":\"ping\",\"id\":\"a\"}", "\"a\""),
            ("{\"type\":\"ping\"}", "null"),
        ]);
        link.talk.portico.pongs.push(answer);
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    /// Says something that the application may know.
    fn tell_application(&mut self, scene: &mut Scene) {
        let Some(link) = self.link.as_mut().filter(|_| scene.setup.access) else { return };
        link.expect(None, Want::Other, None, false, scene);
        link.say(ws::TEXT, b"{\"type\":\"get_booking\",\"about\":1}", scene);
    }

    fn tell_of_user(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        link.errors_open += 1;
        link.talk.portico.answers.push("user_info_update_confirmation");
        link.say(ws::TEXT, b"{\"type\":\"update_user_info\",\"userId\":\"7\"}", scene);
    }

    fn update_session(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        link.talk.portico.answers.push("session_update_confirmation");
        let session = scene.dice.below(2);
        let room = format!("g0.session_s{session}");
        if let Some(at) = scene.judge.names.iter().position(|name| *name == room) {
            link.expect_at_once(at, Speaks::Portico);
            scene.judge.rooms.is_tried(at);
        }
        let text = format!("{{\"type\":\"update_session\",\"sessionId\":\"s{session}\"}}");
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    /// Returns whether it is something that may be said.
    pub(super) fn portico_said(&mut self, opcode: u8, body: &[u8], scene: &mut Scene) -> bool {
        if let Some(number) = judge::direct_in(body) {
            if let Some(link) = &mut self.link {
                link.direct(number, scene);
            }
            return true;
        }
        if body == b"pong" {
            return self.link.as_mut().is_some_and(|link| link.ponged("pong", scene));
        }
        if !body.starts_with(b"{\"type\":\"") {
            return self.relayed(opcode, body, scene);
        }
        let Ok(said) = serde_json::from_slice::<Said>(body) else { return false };
        let room = said.room.as_deref().and_then(|room| self.channel_named(room, scene));
        let entity = said.entity.as_deref().zip(said.id.as_deref());
        let entity = entity.map(|(kind, id)| format!("entity_{kind}_{id}"));
        let entity = entity.and_then(|name| self.channel_named(&name, scene));
        let Some(link) = &mut self.link else { return true };
        if said.timestamp.is_none() {
            return false;
        }
        match (said.kind, room, entity) {
            ("room_joined", Some(channel), of) if of.is_none_or(|of| of == channel) => {
                link.has_joined(channel, scene);
            }
            ("subscription_confirmation", None, Some(channel)) => {
                let is_this = |pending: &Pending| match said.status {
                    Some("subscribed") => matches!(pending.want, Want::Subscribe { .. }),
                    _ => pending.want == Want::Unsubscribe,
                };
                link.is_confirmed(channel, is_this, said.status == Some("subscribed"), scene);
            }
            ("session_update_confirmation" | "user_info_update_confirmation", None, None) => {
                link.talk.portico.answers.take(said.kind);
            }
            ("booking_response", None, None) => {
                link.told_of(said.kind, |want| *want == Want::Other, scene);
            }
            ("connection_success", Some(_), None) | ("session_id_required", None, None) => {}
            ("pong", None, None) => {
                let to = said.reply_to.map_or("null", RawValue::get).to_owned();
                return link.ponged(&to, scene);
            }
            ("server_ping", None, None) => link.talk.portico.server_pings += 1,
            ("room_ping", Some(_), None) => {}
            ("error", None, None) => {
                let Some(sentence) = said.message else { return false };
                let bad = |want: &Want| matches!(want, Want::Bad(own) if *own == sentence);
                let known = link.pending.iter().any(|pending| bad(&pending.want));
                match known {
                    true => link.told_of(&sentence, bad, scene),
                    false => link.told_error(&sentence, scene),
                }
            }
            _ => return false,
        }
        true
    }

    /// A payload as it was published.
    fn relayed(&mut self, opcode: u8, body: &[u8], scene: &mut Scene) -> bool {
        let Some(link) = &mut self.link else { return true };
        let Some(is) = scene.judge.identify(body, &link.who) else { return true };
        let Ident::Number(number) = is else { return false };
        let (channel, kind) = {
            let own = &scene.judge.publications[number as usize - 1];
            (own.channel, own.kind)
        };
        if (kind == Kind::Binary) != (opcode == ws::BINARY) {
            let what = format_args!("{} got {} with opcode {opcode}", link.who, shown(body));
            scene.judge.broken(Rule::Payload, what);
        }
        self.heard_of(channel, is, scene);
        true
    }
}

/// Type and id of an entity, by the name of its channel.
fn entity_of(name: &str) -> (&str, &str) {
    name.rsplit_once('_')
        .map_or(("", ""), |(first, id)| (first.rsplit_once('_').map_or("", |(_, kind)| kind), id))
}

impl Link {
    fn ponged(&mut self, to: &str, scene: &mut Scene) -> bool {
        if !self.talk.portico.pongs.take(to) {
            let what = format_args!("{} got a pong to {to}, for nothing", self.who);
            scene.judge.broken(Rule::Told, what);
        }
        true
    }

    /// It is in a room from now on.
    fn has_joined(&mut self, channel: usize, scene: &mut Scene) {
        let turn = self.written.map_or(0, |written| written.turn);
        let (conn, who) = (self.conn, self.who.clone());
        let Some(own) = self.channels.get_mut(&channel) else { return };
        if own.view == View::Told && !own.raw.silent {
            let what = format_args!("{who} has joined {} again", scene.judge.names[channel]);
            scene.judge.broken(Rule::Told, what);
        }
        if !own.raw.silent {
            own.raw.begin(channel, conn, &who, scene.judge);
            own.subscribed = turn;
        }
        own.view = View::Told;
    }

    /// What it has asked for is done; or, of an end, the server has done it by itself.
    fn is_confirmed(
        &mut self,
        channel: usize,
        is_this: impl Fn(&Pending) -> bool,
        subscribed: bool,
        scene: &mut Scene,
    ) {
        if subscribed {
            self.answered(channel, is_this, scene);
        } else {
            self.told_unsubscribed(channel, true, scene);
        }
    }
}
