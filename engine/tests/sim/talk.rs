//! Clients of existing systems: what all of their dialects have in common. Commands carry no ids and publications no
//! offsets, but most requests are answered, and it is told where a subscription begins.
//!
//! To add such a dialect: a file here, its words in [`Client::tell`], what it hears in [`Client::talked`].

pub(crate) mod fluxus;
pub(crate) mod portico;
pub(crate) mod rooms;

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::value::RawValue;

use super::client::{Client, Habit, Scene, Speaks, payload_size};
use super::event::payload_of;
use super::judge::{Ident, Judge, Kind, Rule};
use super::ledger::Believed;
use super::link::{Intent, Link, Pending, View, Want};
use super::policy::Op;
use super::setup::Setup;
use super::trace::shown;
use super::ws;

/// The words of the application, where a dialect passes them on as they are.
const APPLICATION_SAID: &str = "{\"said\":true}";

/// What a client knows of its connection beyond what those of `ringfeed.v1` do.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    speaks: Speaks,
    /// It was greeted, where the dialect greets.
    greeted: bool,
    /// Messages that count against a limit of the dialect.
    pub(super) said: usize,
    /// Errors of which it is not clear what they were to.
    errors: usize,
    /// Own publications that are to come back: number and channel.
    due: Vec<(u64, usize)>,
    rooms: rooms::Known,
    fluxus: fluxus::Known,
    portico: portico::Known,
}

impl Talk {
    pub(super) fn new(speaks: Speaks) -> Talk {
        Talk { speaks, ..Talk::default() }
    }

    /// Subscriptions of which it is told nothing.
    pub(super) fn hidden_subscriptions(&self) -> usize {
        usize::from(self.speaks == Speaks::Rooms)
    }
}

impl Client {
    /// Sends a command in the words of its dialect and notes what is expected.
    pub(super) fn tell(
        &mut self,
        want: Want,
        channel: Option<usize>,
        more: &str,
        scene: &mut Scene,
    ) {
        let (key, kind, place) = match self.speaks {
            Speaks::Rooms => rooms::words(want),
            _ => fluxus::words(want),
        };
        let mut text = format!("{{\"{key}\":\"{kind}\"");
        if let Want::Call(number) = want {
            text.push_str(&format!(",\"id\":{}", fluxus::id_of(number)));
        }
        if let Some(channel) = channel {
            let name = &scene.judge.names[channel][scene.setup.endpoints[self.endpoint].len()..];
            text.push_str(&format!(",\"{place}\":\"{name}\""));
        }
        text.push_str(more);
        text.push('}');
        let Some(link) = &mut self.link else { return };
        if text.len() > scene.setup.message_bytes_max as usize {
            link.broke.push(1009);
        }
        let answers = self.speaks.answers_publications();
        // Who is believed is announced, which may be refused.
        let announces = matches!(want, Want::Auth { .. }) && self.speaks == Speaks::Rooms;
        link.errors_open += u64::from(announces);
        if let Want::Auth { shown: Some(_) } = want
            && let Some(user) = link.shown.last().and_then(|shown| shown.person.user)
        {
            *scene.judge.announced.entry((format!("u{user}"), "online".into())).or_default() += 1;
        }
        link.expect(None, want, channel, false, scene);
        if matches!(want, Want::Publish(_)) && answers {
            let turn = scene.judge.ledgers.turns[scene.judge.ledgers.shard(link.conn)];
            let before = Intent::Maybe;
            let at = scene.judge.rooms.now();
            link.pending.push_back(Pending { id: None, want, channel, before, turn, at });
        }
        link.talk.said += 1;
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    /// Publishes, perhaps not to itself.
    pub(super) fn broadcast(&mut self, scene: &mut Scene) {
        let Some(channel) = self.any_channel(scene) else { return };
        let (_, len) = payload_size(scene.dice, scene.setup);
        // What is shorter is a number, which not all take as it is.
        let number = scene.judge.publication(channel, Kind::Json, len.max(24));
        let Some(link) = &mut self.link else { return };
        let chance = link.chance(Op::Publish, channel, scene.setup);
        scene.judge.sent_by(number, link.conn, chance.asked);
        // Of what it subscribes to later nobody could say what it was not sent.
        let excepts = self.speaks == Speaks::Rooms && link.channels.contains_key(&channel);
        let echo = !excepts || !scene.dice.chance(scene.setup.no_echo);
        if !echo {
            scene.judge.except(number, link.conn);
        }
        let place = if self.speaks == Speaks::Rooms { "message" } else { "data" };
        let payload = scene.judge.payload(number);
        let mut more = format!(",\"{place}\":{}", String::from_utf8_lossy(&payload));
        if !echo {
            more.push_str(",\"exclude_sender\":true");
        }
        link.expect_own((number, channel), echo, chance.always, scene.setup);
        self.command(Want::Publish(number), Some(channel), &more, scene);
    }

    /// Says something that is refused by the dialect itself, in words that are known.
    pub(super) fn bad_words(&mut self, scene: &mut Scene) {
        let (binary, (text, sentence)) = match self.speaks {
            Speaks::Rooms => (rooms::BINARY, scene.dice.pick(rooms::BAD)),
            Speaks::Portico => (portico::BINARY, scene.dice.pick(portico::BAD)),
            _ => (fluxus::BINARY, scene.dice.pick(fluxus::BAD)),
        };
        let Some(link) = &mut self.link else { return };
        link.talk.said += 1;
        let is_binary = scene.dice.chance(100);
        link.expect(None, Want::Bad(if is_binary { binary } else { sentence }), None, false, scene);
        let opcode = if is_binary { ws::BINARY } else { ws::TEXT };
        link.say(opcode, text.as_bytes(), scene);
    }

    /// A message of a dialect with a talk.
    pub(super) fn talked(&mut self, opcode: u8, body: &[u8], scene: &mut Scene) {
        let who = self.link.as_ref().map_or(String::new(), |link| link.who.clone());
        let text = std::str::from_utf8(body).ok().filter(|_| opcode == ws::TEXT);
        let understood = match (self.speaks, text) {
            (Speaks::Rooms, Some(text)) => self.rooms_said(text, scene),
            (Speaks::Portico, _) => self.portico_said(opcode, body, scene),
            (_, Some(text)) => self.fluxus_said(text, scene),
            (_, None) => false,
        };
        if !understood {
            let what = format_args!("{who} got no event: {}", shown(body));
            scene.judge.broken(Rule::Frames, what);
        }
    }

    /// A publication of a channel, in JSON.
    pub(super) fn published(&mut self, channel: usize, data: &RawValue, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        let name = scene.judge.names[channel].clone();
        scene.judge.deliveries += 1;
        let Some(payload) = payload_in(data, scene.judge) else {
            let what = format_args!("{who} got {}, which is no payload", data.get());
            return scene.judge.broken(Rule::Payload, what);
        };
        let Some(is) = scene.judge.identify(&payload, &who) else { return };
        if let Ident::Number(number) = is {
            let of = scene.judge.publications[number as usize - 1].channel;
            if of != channel {
                let what = format_args!("{who} got publication {number} of {of} on {name}");
                return scene.judge.broken(Rule::Payload, what);
            }
        }
        self.heard_of(channel, is, scene);
    }

    /// A publication of a channel.
    pub(super) fn heard_of(&mut self, channel: usize, is: Ident, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let (who, name) = (link.who.clone(), scene.judge.names[channel].clone());
        link.talk.due.retain(|(due, _)| Ident::Number(*due) != is);
        if scene.judge.is_except(is, link.conn) {
            let what = format_args!("{who} got {is:?} of {name}");
            scene.judge.broken(Rule::NoEcho, what);
        }
        let own = link.channels.get_mut(&channel);
        let Some(own) = own.filter(|own| own.view != View::Off || own.raw.silent) else {
            let what = format_args!("{who} got {is:?} of {name}, which is not subscribed");
            return scene.judge.broken(Rule::Subscribed, what);
        };
        own.raw.last = Some(is);
        own.raw.next(channel, is, &who, scene.judge);
        link.check_allowed(channel, scene);
    }

    /// The channel of a name that was told.
    pub(super) fn channel_named(&self, name: &str, scene: &Scene) -> Option<usize> {
        let prefix = &scene.setup.endpoints[self.endpoint];
        let mut names = scene.judge.names.iter();
        names.position(|own| own.strip_prefix(&**prefix) == Some(name))
    }

    /// Everything is quiet: what is owed has come, and what was published to the channels that it has.
    pub(super) fn talk_is_settled(&self, bells: &[Option<u64>], setup: &Setup, judge: &Judge) {
        let Some(link) = &self.link else { return };
        let who = &link.who;
        // Who does not answer pings is cut without a word, perhaps just now.
        let is_silent = setup.heartbeat_interval_ms > 0 && (!self.answers || link.mute);
        if is_silent && self.speaks == Speaks::Fluxus {
            return;
        }
        let sure = link.talk.errors == 0;
        let owed = link.pending.iter().filter(|pending| {
            is_owed(pending, self.speaks) && (sure || pending.want != Want::Unsubscribe)
        });
        let more = match self.speaks {
            Speaks::Rooms => link.talk.rooms.owed(),
            Speaks::Portico => link.talk.portico.owed(),
            _ => 0,
        };
        if owed.count() + more > link.talk.errors && !link.mute {
            let pending: Vec<_> = link.pending.iter().map(|own| (own.want, own.channel)).collect();
            let what = format_args!(
                "{who} is not told of all of {pending:?} and {more} more; errors were {}",
                link.talk.errors
            );
            judge.broken(Rule::Told, what);
        }
        if let Some((number, channel)) = link.talk.due.first().filter(|_| !link.mute) {
            let name = &judge.names[*channel];
            let what = format_args!("{who} has not got its own publication {number} to {name}");
            judge.broken(Rule::Told, what);
        }
        for (&channel, own) in &link.channels {
            // Where the end of a subscription is not told it may have ended.
            let stays = link.chance(Op::Subscribe, channel, setup).always
                && !link.is_ordered_off(channel, judge);
            let stays = stays || self.speaks != Speaks::Fluxus;
            // Behind an error it is not clear which of its commands stand.
            let is_there = own.view == View::Told && !own.raw.silent && sure;
            if is_there
                && stays
                && let Some(bell) = bells[channel].map(|bell| judge.ident(bell))
                && own.raw.last != Some(bell)
            {
                let (last, name) = (own.raw.last, &judge.names[channel]);
                let what = format_args!("{who} got {last:?} of {name} last, not {bell:?}");
                judge.broken(Rule::Complete, what);
            }
        }
    }

    /// Whether it may have been ended without a close frame, for a reason for which its client is to come back.
    pub(super) fn may_be_cut(&self, scene: &Scene) -> bool {
        let setup = scene.setup;
        let silent = u64::from(setup.heartbeat_interval_ms) + u64::from(setup.heartbeat_timeout_ms);
        let tight = setup.partial_bytes_max.min(setup.outboxes_bytes_max) < 1 << 20;
        let heartbeat = setup.heartbeat_interval_ms > 0 && scene.silence_ms >= silent;
        let vanished = self.habit == Habit::Vanished;
        !self.habit.is_never_late(setup) || scene.judge.draining || tight || heartbeat || vanished
    }
}

impl Speaks {
    /// Whether a publication is answered where nothing is wrong with it.
    fn answers_publications(self) -> bool {
        self == Speaks::Fluxus
    }
}

impl Link {
    /// Notes that what it publishes is to come back to it, where that is sure, or that it is not sent all of the channel.
    fn expect_own(
        &mut self,
        (number, channel): (u64, usize),
        echo: bool,
        may: bool,
        setup: &Setup,
    ) {
        let limited = self.is_limited(setup);
        let busy = self.pending.iter().any(|pending| pending.channel == Some(channel));
        let Some(own) = self.channels.get_mut(&channel) else { return };
        if !echo {
            own.raw.is_not_sent_all();
        }
        let stays = own.intent == Intent::Yes && own.view == View::Told && !own.raw.silent;
        if echo && stays && may && !busy && !limited {
            self.talk.due.push((number, channel));
        }
    }

    /// It is told that it has subscribed.
    pub(super) fn told_subscribed(&mut self, channel: usize, scene: &mut Scene) {
        let is_this = |pending: &Pending| matches!(pending.want, Want::Subscribe { .. });
        let Some(pending) = self.answered(channel, is_this, scene) else { return };
        let never = self.chance(Op::Subscribe, channel, scene.setup).never;
        let always = self.chance(Op::Subscribe, channel, scene.setup).always;
        let stays = always && !self.is_ordered_off(channel, scene.judge);
        let may_have_ended = self.talk.speaks == Speaks::Fluxus && !stays;
        let turn = self.written.map_or(0, |written| written.turn);
        let (conn, who) = (self.conn, self.who.clone());
        let Some(own) = self.channels.get_mut(&channel) else { return };
        let is_new = own.view == View::Off;
        if is_new && !own.raw.silent {
            own.raw.begin(channel, conn, &who, scene.judge);
        }
        // Of one that the server has begun by itself nobody is told, of what comes behind its end everybody.
        if is_new && (!own.raw.silent || own.subscribed > 0) {
            own.subscribed = turn;
        }
        // Where its end is not told this may be a new subscription.
        if !is_new && may_have_ended {
            own.raw.subscribes += 1;
            own.subscribed = turn;
        }
        if is_new {
            own.came.clear();
        }
        own.view = View::Told;
        if is_new && never && pending.before != Intent::Yes {
            let what = format_args!("{who} was told of {}", scene.judge.names[channel]);
            scene.judge.broken(Rule::ReplyFits, what);
        }
    }

    /// It is told that it is not subscribed any more, by its own will if it has asked for that.
    pub(super) fn told_unsubscribed(&mut self, channel: usize, unasked: bool, scene: &mut Scene) {
        let is_this = |pending: &Pending| pending.want == Want::Unsubscribe;
        let speaks = self.talk.speaks;
        // What was asked for before is answered before: this is not by its own will then.
        let mut own = self.pending.iter().filter(|pending| pending.channel == Some(channel));
        let sure = self.talk.errors == 0;
        let first = own.find(|pending| is_this(pending) || sure && is_owed(pending, speaks));
        let asked = first.is_some_and(is_this);
        let always = self.chance(Op::Subscribe, channel, scene.setup).always;
        let may_be_taken = !always || self.is_ordered_off(channel, scene.judge);
        if asked || !unasked {
            // Or it was taken, and what was asked for is still to be refused.
            self.errors_open += u64::from(unasked && !sure && may_be_taken);
            let Some(pending) = self.answered(channel, is_this, scene) else { return };
            if let Some(own) = self.channels.get_mut(&channel) {
                own.unsubscribed = pending.turn;
                own.view = View::Off;
            }
        } else {
            if !may_be_taken {
                let name = &scene.judge.names[channel];
                let what = format_args!("{} was taken {name}, which it may have", self.who);
                scene.judge.broken(Rule::Ordered, what);
            }
            self.ended_by_server(channel);
        }
        self.talk.due.retain(|(_, of)| *of != channel);
        let (conn, who) = (self.conn, self.who.clone());
        if let Some(own) = self.channels.get_mut(&channel) {
            own.raw.end(channel, conn, &who, scene.judge);
        }
    }

    /// Something of a channel is answered: finds its command.
    pub(super) fn answered(
        &mut self,
        channel: usize,
        is_this: impl Fn(&Pending) -> bool,
        scene: &mut Scene,
    ) -> Option<Pending> {
        let own = |pending: &&Pending| pending.channel == Some(channel) && is_this(pending);
        let name = &scene.judge.names[channel];
        let Some(at) = self.pending.iter().position(|pending| own(&pending)) else {
            let what = format_args!("{} got an answer about {name} to nothing", self.who);
            scene.judge.broken(Rule::Told, what);
            return None;
        };
        let speaks = self.talk.speaks;
        let mut earlier = self.pending.iter().take(at);
        let skipped = earlier.find(|p| p.channel == Some(channel) && is_owed(p, speaks));
        if let Some(skipped) = skipped.filter(|_| self.talk.errors == 0) {
            let what = format_args!(
                "{} got the answer to {:?} about {name} before that to {:?}",
                self.who, self.pending[at].want, skipped.want
            );
            scene.judge.broken(Rule::ReplyOrder, what);
        }
        let pending = self.take(at);
        // To the end of what was not subscribed nothing was said; behind an error it is not clear what that was.
        let mut before = if self.talk.errors == 0 { at } else { 0 };
        self.pending.retain(|own| {
            let is_over = own.channel == Some(channel) && own.want == Want::Unsubscribe;
            let is_before = before > 0;
            before = before.saturating_sub(1);
            !(is_before && is_over)
        });
        pending
    }

    /// One command is answered.
    pub(super) fn take(&mut self, at: usize) -> Option<Pending> {
        self.errors_open = self.errors_open.saturating_sub(1);
        self.pending.remove(at)
    }

    /// One command of a kind is answered, in words that no other gets.
    pub(super) fn told_of(
        &mut self,
        sentence: &str,
        is_this: impl Fn(&Want) -> bool,
        scene: &Scene,
    ) {
        match self.pending.iter().position(|pending| is_this(&pending.want)) {
            Some(at) => drop(self.take(at)),
            None => {
                let what = format_args!("{} got {sentence:?}, for nothing", self.who);
                scene.judge.broken(Rule::Told, what);
            }
        }
    }

    /// Something was refused.
    pub(super) fn told_error(&mut self, sentence: &str, scene: &mut Scene) {
        if self.errors_open == 0 {
            let what = format_args!("{} got {sentence:?}; nothing is to be refused", self.who);
            return scene.judge.broken(Rule::Told, what);
        }
        self.errors_open -= 1;
        self.talk.errors += 1;
        self.talk.due.clear();
        for pending in &mut self.pending {
            let touches = matches!(pending.want, Want::Subscribe { .. } | Want::Unsubscribe);
            if let Some(own) = pending.channel.and_then(|channel| self.channels.get_mut(&channel))
                && touches
            {
                own.intent = Intent::Maybe;
            }
            pending.before = Intent::Maybe;
        }
    }

    /// It is told that somebody has vouched for it, or has not. `user` is who it is said to be, where that is told.
    pub(super) fn told_who_it_is(
        &mut self,
        believed: bool,
        user: Option<Option<&str>>,
        scene: &mut Scene,
    ) {
        let is_auth = |pending: &Pending| matches!(pending.want, Want::Auth { .. });
        let at = self.pending.iter().position(is_auth);
        // Behind an error it is not clear which of several this is about.
        if self.talk.errors > 0 && self.pending.iter().filter(|own| is_auth(own)).count() > 1 {
            drop(at.and_then(|at| self.take(at)));
            if let Some(written) = self.written.filter(|_| believed) {
                self.vouched.get_or_insert(written.turn);
            }
            return scene.judge.ledgers.doubt(self.conn);
        }
        let Some((pending, written)) = at.and_then(|at| self.take(at)).zip(self.written) else {
            let what = format_args!("{} is told who it is, unasked", self.who);
            return scene.judge.broken(Rule::Told, what);
        };
        let Want::Auth { shown } = pending.want else { return };
        let ledgers = &mut scene.judge.ledgers;
        let wrong = match (believed, shown) {
            (true, None) => Some("it has shown nothing"),
            (true, Some(shown)) => {
                self.vouched.get_or_insert(written.turn);
                let told = Believed { user, expires_in_ms: None };
                ledgers.believe(self.conn, shown, pending.turn, written, told)
            }
            (false, None) => None,
            (false, Some(shown)) if ledgers.may_refuse(self.conn, shown) => {
                ledgers.refuse(self.conn, shown);
                None
            }
            (false, Some(_)) => Some("it had to be believed"),
        };
        if let Some(why) = wrong {
            let what = format_args!("{} is told that it is believed: {believed}; {why}", self.who);
            scene.judge.broken(Rule::ReplyFits, what);
        }
    }
}

/// Whether a command gets an answer, whatever comes of it.
fn is_owed(pending: &Pending, speaks: Speaks) -> bool {
    match pending.want {
        // Of what was not subscribed nothing is said.
        Want::Unsubscribe if speaks == Speaks::Rooms => pending.before == Intent::Yes,
        // The application may say nothing to it.
        Want::Other => false,
        _ => true,
    }
}

/// The payload in a JSON value: bytes are in base64, which never begins like a text of ours.
fn payload_in(data: &RawValue, judge: &Judge) -> Option<Vec<u8>> {
    let inner = serde_json::from_str::<String>(data.get()).ok();
    let is_bytes = inner.as_ref().is_some_and(|inner| inner.starts_with(char::is_alphabetic));
    match inner.filter(|_| is_bytes) {
        Some(inner) => BASE64.decode(inner).ok(),
        None => payload_of(data, None, judge),
    }
}

/// Commands of which at most so many are under way: nothing else is to be said of them.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<&'static str>);

impl Queue {
    pub(super) fn push(&mut self, what: &'static str) {
        self.0.push_back(what);
    }

    /// Takes the first of this kind; returns whether there is one.
    pub(super) fn take(&mut self, what: &str) -> bool {
        let at = self.0.iter().position(|own| *own == what);
        at.and_then(|at| self.0.remove(at)).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
