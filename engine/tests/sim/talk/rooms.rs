//! A client of `rooms`: it joins rooms and speaks in them, says how it is, and hears who comes and goes.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::client::{Client, Scene};
use super::super::judge::{self, Rule};
use super::super::link::{Link, View, Want};
use super::super::trace::shown;
use super::super::ws;
use super::{APPLICATION_SAID, Queue};

/// Everybody's channel.
pub(crate) const LOBBY: &str = "@all";
/// Messages of a connection in a minute, of which all are taken; no more than these are counted on.
pub(crate) const RATE_MESSAGES: usize = 95;

/// What is said in frames that hold no message.
pub(super) const BINARY: &str = "Invalid message format";
/// What the dialect refuses, and how.
pub(super) const BAD: &[(&str, &str)] = &[
    ("", BINARY),
    ("[1]", BINARY),
    ("{}", BINARY),
    ("{\"type\":\"broadcast\",\"room\":\"\\ud800\"}", BINARY),
    ("{\"type\":\"join_room\"}", "Room name required"),
    ("{\"type\":\"join_room\",\"room\":\"@all\"}", "Room name required"),
    ("{\"type\":\"leave_room\",\"room\":[]}", "Room name required"),
    ("{\"type\":\"broadcast\",\"room\":\"g0.c0\",\"message\":0}", "Room and message required"),
    ("{\"type\":\"private_message\",\"to\":\"u0\"}", "Target user ID and message required"),
    ("{\"room\":\"g0.c0\"}", "Unknown message type: "),
];

/// What a client knows of its connection.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What it has said of how it is, and was not told yet.
    states: Queue,
    /// It has asked for pongs, and got some.
    pings: usize,
    pongs: usize,
    /// It was told that it is online, and not yet that it was believed.
    online: bool,
    /// How often it was told that a user is online, away, …
    heard: std::collections::BTreeMap<(String, String), u64>,
}

impl Known {
    pub(super) fn owed(&self) -> usize {
        self.states.len() + usize::from(self.pings > 0 && self.pongs == 0)
    }
}

/// Something that was said.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    room: Option<String>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    from: Option<&'a RawValue>,
    #[serde(borrow, rename = "userId")]
    user_id: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    to: Option<&'a RawValue>,
    status: Option<&'a str>,
    #[serde(rename = "connectionId")]
    connection_id: Option<u32>,
    timestamp: Option<u64>,
}

#[derive(Deserialize)]
struct User<'a> {
    id: &'a str,
}

/// How a command is called: the field with its name, the name, and the field with the channel.
pub(super) fn words(want: Want) -> (&'static str, &'static str, &'static str) {
    let name = match want {
        Want::Subscribe { .. } => "join_room",
        Want::Unsubscribe => "leave_room",
        Want::Publish(_) => "broadcast",
        Want::Send(_) => "private_message",
        Want::Auth { .. } => "auth",
        _ => "custom",
    };
    ("type", name, "room")
}

/// Whether a payload is one by which a dialect tells how a user is.
pub(crate) fn is_announcement(payload: &[u8]) -> bool {
    payload.starts_with(b"{\"type\":\"presence_update\"")
}

impl Client {
    /// Says how its user is.
    pub(in super::super) fn announce(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let status = scene.dice.pick(&["online", "away", "busy", "offline", "asleep"]);
        let own = link.sure_user(scene);
        if let Some(user) = link.founds().last().and_then(|found| found.person.user) {
            let key = (format!("u{user}"), status.to_owned());
            *scene.judge.announced.entry(key).or_default() += 1;
        }
        match (own, status) {
            (Some(_), "asleep") => {
                link.expect(None, Want::Bad("Invalid status"), None, false, scene);
            }
            // Nobody is told how a stranger is.
            (None, "asleep") => return,
            (Some(_), _) => link.talk.rooms.states.push(status),
            (None, _) => {}
        }
        link.errors_open += 1;
        link.talk.said += 1;
        let text = format!("{{\"type\":\"presence\",\"status\":\"{status}\"}}");
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    /// A ping of the dialect, which is answered now and then.
    pub(in super::super) fn ask_for_pong(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        link.talk.rooms.pings += 1;
        link.errors_open += 1;
        link.say(ws::TEXT, b"{\"type\":\"ping\"}", scene);
    }

    /// Returns whether it is something that may be said.
    pub(super) fn rooms_said(&mut self, text: &str, scene: &mut Scene) -> bool {
        let Ok(said) = serde_json::from_str::<Said>(text) else { return false };
        let Some(link) = &mut self.link else { return true };
        let kind = said.kind.unwrap_or_default();
        let greets = kind == "welcome";
        if greets == link.talk.greeted {
            let what = format_args!("{} got {} of its welcome", link.who, shown(text.as_bytes()));
            scene.judge.broken(Rule::Told, what);
        }
        link.talk.greeted = true;
        let room = said.room.as_deref().and_then(|room| self.channel_named(room, scene));
        let Some(link) = &mut self.link else { return true };
        match (kind, room) {
            ("welcome", None) => {
                return said.connection_id.is_some_and(|number| number > 0)
                    && said.timestamp.is_some();
            }
            ("room_joined", Some(channel)) => link.told_subscribed(channel, scene),
            ("room_left", Some(channel)) => link.told_unsubscribed(channel, true, scene),
            ("room_message", Some(channel)) => {
                let (Some(message), Some(_)) = (said.message, said.timestamp) else { return false };
                link.is_from(channel, message, said.from, scene);
                self.published(channel, message, scene);
            }
            ("user_joined" | "user_left", Some(channel)) => {
                let user = said.user_id.map_or("null", RawValue::get);
                link.somebody_came(channel, user, kind == "user_joined", scene);
            }
            ("presence_update", None) => {
                let (Some(user), Some(status)) = (said.user_id, said.status) else { return false };
                let Ok(user) = serde_json::from_str::<&str>(user.get()) else { return false };
                link.told_how_somebody_is(user, status, scene);
            }
            ("auth_success", None) => {
                let user = said.user.and_then(|user| serde_json::from_str::<User>(user.get()).ok());
                let Some(user) = user else { return false };
                link.told_who_it_is(true, Some(Some(user.id)), scene);
                if !std::mem::take(&mut link.talk.rooms.online) {
                    let what = format_args!("{} is believed, and not online", link.who);
                    scene.judge.broken(Rule::Told, what);
                }
            }
            ("auth_failed", None) => link.told_who_it_is(false, None, scene),
            ("pong", None) => {
                link.talk.rooms.pongs += 1;
                if link.talk.rooms.pongs > link.talk.rooms.pings {
                    let what = format_args!("{} got more pongs than it has sent pings", link.who);
                    scene.judge.broken(Rule::Told, what);
                }
            }
            ("private_message", None) => {
                let number = said.message.and_then(|own| judge::direct_in(own.get().as_bytes()));
                let Some(number) = number else { return false };
                link.direct(number, scene);
            }
            ("message_sent", None) => {
                let Some(to) = said.to.map(RawValue::get) else { return false };
                link.told_of(to, |want| matches!(want, Want::Send(_)), scene);
            }
            ("error", None) => {
                let Some(sentence) = said.message else { return false };
                let Ok(sentence) = serde_json::from_str::<String>(sentence.get()) else {
                    return false;
                };
                link.told_in_words(&sentence, scene);
            }
            // The application's own words.
            ("", None) if text == APPLICATION_SAID => {
                link.told_of(text, |want| *want == Want::Other, scene);
            }
            _ => return false,
        }
        true
    }
}

impl Link {
    /// The user of a connection that surely has one.
    fn sure_user(&self, scene: &Scene) -> Option<usize> {
        let silent = self.found.must_authenticate && self.vouched.is_none();
        let user = scene.judge.ledgers.sure_user(self.conn);
        user.filter(|_| !silent && !self.is_limited(scene.setup))
    }

    /// An error of the dialect.
    fn told_in_words(&mut self, sentence: &str, scene: &mut Scene) {
        let bad = |want: &Want| matches!(want, Want::Bad(own) if *own == sentence);
        match sentence {
            "Unknown message type: custom" => {
                self.told_of(sentence, |want| *want == Want::Other, scene);
            }
            "User not online" => {
                self.told_of(sentence, |want| matches!(want, Want::Send(_)), scene);
            }
            "Invalid status" => self.told_of(sentence, bad, scene),
            _ if BAD.iter().any(|(_, own)| *own == sentence) => self.told_of(sentence, bad, scene),
            _ => self.told_error(sentence, scene),
        }
    }

    /// Who is said to have sent a message.
    fn is_from(
        &self,
        channel: usize,
        message: &RawValue,
        from: Option<&RawValue>,
        scene: &mut Scene,
    ) {
        let from = from.map_or("null", RawValue::get);
        let payload = super::payload_in(message, scene.judge).filter(|payload| !payload.is_empty());
        let number = payload.and_then(|payload| scene.judge.number_in(&payload));
        let Some(number) = number else { return };
        let by = scene.judge.publications[number as usize - 1].by;
        let ledgers = &scene.judge.ledgers;
        let is_user = |user: Option<String>| match user {
            Some(user) => from == format!("\"{user}\""),
            None => from == "null",
        };
        let fits = match by.filter(|_| scene.setup.group(channel).sender) {
            None => from == "\"admin\"",
            Some(by) => ledgers.anybody(by).any(is_user),
        };
        if !fits {
            let name = &scene.judge.names[channel];
            let what = format_args!("{} got {number} of {name} from {from}", self.who);
            scene.judge.broken(Rule::Sender, what);
        }
    }

    /// Somebody is said to have come to a room, or to have left it.
    fn somebody_came(&mut self, channel: usize, user: &str, came: bool, scene: &mut Scene) {
        let name = &scene.judge.names[channel];
        let users: Vec<_> = scene.judge.ledgers.anybody(self.conn).collect();
        let own = self.channels.get_mut(&channel);
        let Some(own) = own.filter(|own| own.view != View::Off || own.raw.silent) else {
            let what = format_args!("{} hears of {user} on {name}, not subscribed", self.who);
            return scene.judge.broken(Rule::Subscribed, what);
        };
        if !scene.setup.group(channel).join_leave {
            let what = format_args!("{} hears of {user} on {name}, which tells nobody", self.who);
            scene.judge.broken(Rule::Frames, what);
        }
        let Ok(user) = serde_json::from_str::<String>(user) else { return };
        // As long as it is there, its user is.
        let is_own = users.iter().all(|own| own.as_ref() == Some(&user));
        if is_own && !came && own.view == View::Told && !own.raw.silent {
            let what = format_args!("{} hears that {user}, who it is, has left {name}", self.who);
            scene.judge.broken(Rule::PresentAsTold, what);
        }
        own.came.insert(user, came);
        self.check_allowed(channel, scene);
    }

    /// It is told that a user is online, away, …
    fn told_how_somebody_is(&mut self, user: &str, status: &str, scene: &mut Scene) {
        let known = &mut self.talk.rooms;
        let mut own = scene.judge.ledgers.anybody(self.conn);
        if own.any(|own| own.as_deref() == Some(user)) {
            known.states.take(status);
            known.online |= status == "online";
        }
        // Who leaves is said to be offline.
        if status == "offline" {
            return;
        }
        let key = (user.to_owned(), status.to_owned());
        let said = scene.judge.announced.get(&key).copied().unwrap_or(0);
        let heard = known.heard.entry(key).or_default();
        *heard += 1;
        if *heard > said {
            let what = format_args!(
                "{} hears for the {heard}th time that {user} is {status}; it was said {said} times",
                self.who
            );
            scene.judge.broken(Rule::Told, what);
        }
    }
}
