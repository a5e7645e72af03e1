//! A client and what it says.
//!
//! To add an operation: a function and a line in [`OPERATIONS`]. What it expects back is noted in
//! [`Link::expect`](super::link::Link::expect) and checked in [`super::listen`].

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::control::{Order, Target};
use super::dice::Dice;
use super::judge::{self, Judge, Kind};
use super::ledger::{Found, Written};
use super::link::{Intent, Link, Pending, Want};
use super::net::ConnId;
use super::policy::Op;
use super::rooms::PASSWORDS;
use super::setup::{Mode, Setup};
use super::talk::{Talk, portico};
use super::token::Mint;
use super::trace::{Trace, note};
use super::ws;

/// The dialect of a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    #[default]
    Ringfeed,
    Raw,
    Echo,
    Rooms,
    Fluxus,
    Portico,
}

impl Speaks {
    /// Whether it is a dialect of an existing system, which has a talk.
    pub(crate) fn talks(self) -> bool {
        matches!(self, Speaks::Rooms | Speaks::Fluxus | Speaks::Portico)
    }

    /// Where not, who misses something is closed.
    pub(crate) fn tells_gaps(self) -> bool {
        self == Speaks::Ringfeed
    }
}

/// How a client treats its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Has room for everything and reads it at once.
    Attentive,
    /// Has a socket of finite size and empties it before anything else happens.
    Prompt,
    /// Reads some of it, now and then.
    Slow,
    /// Reads for a while and then not, and comes back.
    Stalls,
    /// Reads nothing, ever.
    Never,
    /// Neither reads nor sends, and says no farewell.
    Vanished,
}

impl Habit {
    pub(crate) fn keeps_up(self) -> bool {
        matches!(self, Habit::Attentive | Habit::Prompt)
    }

    /// Whether no channel may ever give it up: it always reads, and others cannot use up the time for which
    /// readers are waited for, or it needs none.
    pub(crate) fn is_never_late(self, setup: &Setup) -> bool {
        self == Habit::Attentive || self.keeps_up() && setup.nobody_is_slow()
    }

    /// Whether it reads everything in the end.
    pub(crate) fn reads(self) -> bool {
        !matches!(self, Habit::Never | Habit::Vanished)
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) speaks: Speaks,
    pub(crate) endpoint: usize,
    pub(crate) habit: Habit,
    /// Answers pings and close frames.
    pub(crate) answers: bool,
    /// Reads at present, where its habit leaves that open.
    pub(crate) reading: bool,
    pub(crate) user: Option<usize>,
    /// Channels it can name.
    pub(super) channels: Vec<usize>,
    pub(crate) link: Option<Link>,
    /// Last position seen of each channel.
    pub(crate) seen: BTreeMap<usize, (u64, u64)>,
}

/// What a client needs to act.
pub(crate) struct Scene<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) judge: &'a mut Judge,
    pub(crate) setup: &'a Setup,
    pub(crate) trace: &'a Rc<Trace>,
    pub(crate) mint: &'a mut Mint,
    /// The longest time in which the server heard nothing of this connection, in ms.
    pub(crate) silence_ms: u64,
    /// When what has arrived was written.
    pub(crate) written: &'a mut VecDeque<(u64, Written)>,
    /// For how long everything that the client has sent is with the server, in ms.
    pub(crate) quiet_ms: u64,
    /// Since the beginning.
    pub(crate) now_ms: u64,
}

type Operation = fn(&mut Client, &mut Scene);

/// Name, weight for `ringfeed.v1`, `raw.v1`, `echo`, `rooms`, `fluxus` and `portico`, and what is done.
const OPERATIONS: &[(&str, [u32; 6], Operation)] = &[
    ("subscribe", [30, 30, 0, 30, 30, 0], |c, s| c.subscribe(s)),
    ("unsubscribe", [14, 12, 0, 14, 14, 0], |c, s| c.unsubscribe(s)),
    ("resubscribe", [6, 6, 0, 6, 6, 0], |c, s| c.resubscribe(s)),
    ("move", [6, 4, 0, 6, 6, 0], |c, s| c.move_on(s)),
    ("subscribe to many", [3, 3, 0, 3, 3, 0], |c, s| c.subscribe_to_many(s)),
    ("publish", [25, 0, 0, 0, 0, 0], |c, s| c.publish(s)),
    ("publish a burst", [5, 0, 0, 0, 0, 0], |c, s| c.publish_burst(s)),
    ("history", [4, 0, 0, 0, 0, 0], |c, s| c.history(s)),
    ("presence", [6, 0, 0, 0, 0, 0], |c, s| c.presence(s)),
    ("confirm", [4, 0, 0, 0, 0, 0], |c, s| c.confirm(s)),
    ("ping", [3, 0, 0, 0, 0, 0], |c, s| c.ping(s)),
    ("several commands", [5, 0, 0, 0, 0, 0], |c, s| c.several(s)),
    ("send to a user", [3, 0, 0, 4, 0, 0], |c, s| c.send(s)),
    ("show a token", [6, 3, 0, 6, 6, 0], |c, s| c.auth(s)),
    ("ask the application", [3, 0, 0, 3, 3, 0], |c, s| c.ask(s)),
    ("call a method", [6, 0, 0, 0, 8, 0], |c, s| c.call(s)),
    ("bad command", [3, 1, 0, 0, 0, 0], |c, s| c.bad(s)),
    ("ping frame", [2, 2, 5, 2, 2, 2], |c, s| c.ping_frame(s)),
    ("echo", [0, 0, 30, 0, 0, 0], |c, s| c.echo(s)),
    ("break the protocol", [1, 1, 1, 1, 1, 1], |c, s| c.break_protocol(s)),
    ("half a frame", [1, 1, 1, 1, 1, 1], |c, s| c.half_frame(s)),
    ("broadcast", [0, 0, 0, 30, 30, 0], |c, s| c.broadcast(s)),
    ("say how one is", [0, 0, 0, 6, 0, 0], |c, s| c.announce(s)),
    ("ask for a pong", [0, 0, 0, 3, 0, 0], |c, s| c.ask_for_pong(s)),
    ("bad words", [0, 0, 0, 4, 4, 0], |c, s| c.bad_words(s)),
    ("speak of rooms and entities", [0, 0, 0, 0, 0, 90], |c, s| c.portico_act(s)),
];

impl Client {
    pub(crate) fn new(number: usize, dice: &mut Dice, setup: &Setup) -> Client {
        let speaks = match dice.below(1000) as u32 {
            n if n < setup.raw => Speaks::Raw,
            n if n < setup.raw + setup.echo => Speaks::Echo,
            n => setup.speaks_of_old(n - setup.raw - setup.echo),
        };
        let endpoint = match speaks {
            Speaks::Portico => setup.endpoint_of(portico::PREFIX),
            _ => dice.below(setup.endpoints.len()),
        };
        let prefix = setup.endpoints[endpoint].as_str();
        let mut channels: Vec<usize> = (0..setup.channels.len())
            .filter(|&at| setup.channels[at].name.len() > prefix.len())
            .filter(|&at| setup.channels[at].name.starts_with(prefix))
            .collect();
        if setup.mode == Mode::Wander && channels.len() > 1 {
            let stays = dice.chance(500);
            channels.retain(|&channel| (channel == 0) == stays);
        }
        if speaks == Speaks::Raw && setup.empty > 0 {
            // A payload of nothing does not say which channel it is of.
            channels.truncate(1);
        }
        let habit = if dice.chance(setup.attentive) {
            dice.pick(&[Habit::Attentive, Habit::Attentive, Habit::Prompt])
        } else {
            use Habit::{Never, Slow, Stalls, Vanished};
            dice.pick(&[Slow, Slow, Slow, Stalls, Stalls, Stalls, Never, Vanished])
        };
        Client {
            number,
            speaks,
            endpoint,
            habit,
            answers: habit.keeps_up() || !dice.chance(100),
            reading: true,
            user: (setup.users > 0 && !dice.chance(setup.strangers))
                .then(|| dice.below(setup.users)),
            channels,
            link: None,
            seen: BTreeMap::new(),
        }
    }

    /// `found` says who it is, and `name` how it is named outside where that is known.
    pub(crate) fn connect(
        &mut self,
        conn: ConnId,
        found: Found,
        name: Option<String>,
        setup: &Setup,
    ) {
        let who = format!("k{}/c{conn}", self.number);
        let channels = found.channels.clone();
        let mut link = Link::new(conn, who, found);
        link.name = name;
        link.talk = Talk::new(self.speaks);
        for channel in self.at_once(channels, setup) {
            link.expect_at_once(channel, self.speaks);
        }
        self.link = Some(link);
        if self.speaks == Speaks::Portico {
            self.begin_portico(setup);
        }
    }

    /// Channels that the server subscribes it to by itself: who is not shown a prefix has those that begin with it alone.
    pub(super) fn at_once(&self, named: Vec<usize>, setup: &Setup) -> Vec<usize> {
        let prefix = &setup.endpoints[self.endpoint];
        let fits = |channel: &usize| {
            !self.speaks.talks() || setup.channels[*channel].name.starts_with(prefix)
        };
        named.into_iter().chain(setup.list(self.endpoint).iter().copied()).filter(fits).collect()
    }

    /// Says something, where it still may.
    pub(crate) fn act(&mut self, scene: &mut Scene) {
        let Some(link) = &self.link else { return };
        if link.mute || link.close_sent.is_some() || link.close_seen.is_some() {
            return;
        }
        let moves = !matches!(self.speaks, Speaks::Echo | Speaks::Portico);
        if moves && scene.dice.chance(scene.setup.moves) {
            return self.move_on(scene);
        }
        if self.speaks == Speaks::Ringfeed && scene.dice.chance(scene.setup.looks) {
            return self.presence(scene);
        }
        let column = self.speaks as usize;
        let weights = OPERATIONS.iter().map(|(_, weights, _)| weights[column]);
        let (_, _, operation) = OPERATIONS[scene.dice.weighted(weights)];
        operation(self, scene);
    }

    fn subscribe(&mut self, scene: &mut Scene) {
        if let Some(channel) = self.any_channel(scene) {
            self.subscribe_to(channel, scene);
        }
    }

    pub(super) fn any_channel(&self, scene: &mut Scene) -> Option<usize> {
        let count = self.channels.len();
        (count > 0).then(|| self.channels[scene.dice.below(count)])
    }

    fn subscribe_to(&mut self, channel: usize, scene: &mut Scene) {
        let seen = self.seen.get(&channel).copied();
        let recover = match (self.speaks, seen) {
            (Speaks::Ringfeed, Some(seen)) if scene.dice.chance(scene.setup.recovers) => {
                let (epoch, offset) = seen;
                let rewinds = scene.dice.chance(scene.setup.rewinds);
                Some(if rewinds {
                    (epoch, scene.dice.below(offset as usize + 1) as u64)
                } else {
                    seen
                })
            }
            (Speaks::Ringfeed, _) if scene.dice.chance(20) => Some((scene.dice.number(), 3)),
            _ => None,
        };
        let mut more = recover.map_or(String::new(), |(epoch, offset)| {
            format!(",\"recover\":{{\"epoch\":\"{epoch:016x}\",\"offset\":{offset}}}")
        });
        let password = Client::any_password(channel, scene);
        if let Some(password) = password {
            more.push_str(&format!(",\"password\":\"{}\"", PASSWORDS[password]));
        }
        self.command(Want::Subscribe { recover, password }, Some(channel), &more, scene);
    }

    fn unsubscribe(&mut self, scene: &mut Scene) {
        let own = self.link.as_ref().map(|link| link.channels.keys().copied().collect::<Vec<_>>());
        let own = own.unwrap_or_default();
        let channel = match own.len() {
            0 => self.any_channel(scene),
            _ if scene.dice.chance(50) => self.any_channel(scene),
            count => Some(own[scene.dice.below(count)]),
        };
        if let Some(channel) = channel {
            self.command(Want::Unsubscribe, Some(channel), "", scene);
        }
    }

    fn resubscribe(&mut self, scene: &mut Scene) {
        if let Some(channel) = self.any_channel(scene) {
            self.command(Want::Unsubscribe, Some(channel), "", scene);
            self.subscribe_to(channel, scene);
        }
    }

    /// Leaves everything for one other channel, and speaks there at once.
    fn move_on(&mut self, scene: &mut Scene) {
        let Some(link) = &self.link else { return };
        let left: Vec<usize> = link.channels.keys().copied().collect();
        for channel in left {
            if self.link.as_ref().is_some_and(|l| l.channels[&channel].intent != Intent::No) {
                self.command(Want::Unsubscribe, Some(channel), "", scene);
            }
        }
        if let Some(channel) = self.any_channel(scene) {
            self.subscribe_to(channel, scene);
            if self.speaks == Speaks::Ringfeed && scene.dice.chance(500) {
                for _ in 0..scene.dice.range(1, 3) {
                    self.publish_to(channel, scene);
                }
            }
        }
    }

    fn subscribe_to_many(&mut self, scene: &mut Scene) {
        for channel in self.channels.clone() {
            if scene.dice.chance(700) {
                self.subscribe_to(channel, scene);
            }
        }
    }

    fn publish(&mut self, scene: &mut Scene) {
        if let Some(channel) = self.any_channel(scene) {
            self.publish_to(channel, scene);
        }
    }

    fn publish_burst(&mut self, scene: &mut Scene) {
        if let Some(channel) = self.any_channel(scene) {
            for _ in 0..scene.dice.range(2, 12) {
                self.publish_to(channel, scene);
            }
        }
    }

    fn publish_to(&mut self, channel: usize, scene: &mut Scene) {
        let (kind, len) = payload_size(scene.dice, scene.setup);
        let number = scene.judge.publication(channel, kind, len);
        if let Some(link) = &self.link {
            let must_ask = link.chance(Op::Publish, channel, scene.setup).asked;
            scene.judge.sent_by(number, link.conn, must_ask);
            link.speaks(number, channel, (scene.setup, scene.judge));
        }
        // What has no bytes does not show whose it was.
        let echo = len == 0 || !scene.dice.chance(scene.setup.no_echo);
        if let Some(link) = self.link.as_ref().filter(|_| !echo) {
            scene.judge.except(number, link.conn);
        }
        let payload = scene.judge.payload(number);
        let mut more = match kind {
            Kind::Json => format!(",\"data\":{}", String::from_utf8_lossy(&payload)),
            Kind::Text => {
                let text = String::from_utf8_lossy(&payload);
                format!(",\"text\":{}", serde_json::to_string(&text).expect("text is JSON"))
            }
            Kind::Binary => format!(",\"base64\":\"{}\"", BASE64.encode(&payload)),
        };
        if !echo || scene.dice.chance(20) {
            more.push_str(&format!(",\"echo\":{echo}"));
        }
        if let Some(link) = self.link.as_ref().filter(|_| len > 0) {
            more.push_str(&Client::ask_to_confirm(number, channel, link.conn, scene));
        }
        self.command(Want::Publish(number), Some(channel), &more, scene);
    }

    fn history(&mut self, scene: &mut Scene) {
        let Some(channel) = self.any_channel(scene) else { return };
        let seen = self.seen.get(&channel).map(|seen| seen.1);
        let after = seen.filter(|_| scene.dice.chance(500));
        let limit = scene.dice.chance(500).then(|| scene.dice.below(20) as u32);
        let mut more = after.map_or(String::new(), |after| format!(",\"after\":{after}"));
        if let Some(limit) = limit {
            more.push_str(&format!(",\"limit\":{limit}"));
        }
        self.command(Want::History { after, limit }, Some(channel), &more, scene);
    }

    /// A message that holds several commands.
    fn several(&mut self, scene: &mut Scene) {
        const SINGLE: [Operation; 12] = [
            |c, s| c.subscribe(s),
            |c, s| c.auth(s),
            |c, s| c.subscribe(s),
            |c, s| c.unsubscribe(s),
            |c, s| c.publish(s),
            |c, s| c.publish(s),
            |c, s| c.history(s),
            |c, s| c.presence(s),
            |c, s| c.confirm(s),
            |c, s| c.ask(s),
            |c, s| c.call(s),
            |c, s| c.send(s),
        ];
        if let Some(link) = &mut self.link {
            link.several = Some(Vec::new());
        }
        for _ in 0..scene.dice.range(1, 8) {
            scene.dice.pick(&SINGLE)(self, scene);
        }
        let Some(link) = &mut self.link else { return };
        let commands = link.several.take().unwrap_or_default();
        if commands.is_empty() {
            return;
        }
        let text = format!("[{}]", commands.join(" , "));
        if text.len() > scene.setup.message_bytes_max as usize {
            link.broke.push(1009);
        }
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    fn send(&mut self, scene: &mut Scene) {
        let user = scene.dice.below(scene.setup.users + 1);
        let number = scene.judge.orders.len();
        let payload = judge::direct(number);
        let payload = String::from_utf8_lossy(&payload);
        let (to, what) = match self.speaks {
            Speaks::Rooms => ("to", "message"),
            _ => ("user", "data"),
        };
        let more = format!(",\"{to}\":\"u{user}\",\"{what}\":{payload}");
        let payload = payload.into_owned().into_bytes();
        scene.judge.order(Target::User(user), Order::Send(payload));
        self.command(Want::Send(number), None, &more, scene);
    }

    /// A message of a type that only the application knows.
    fn ask(&mut self, scene: &mut Scene) {
        let more = format!(",\"about\":{}", scene.dice.below(20));
        self.command(Want::Other, None, &more, scene);
    }

    /// A method. What it gives says of which call it is.
    pub(crate) fn call(&mut self, scene: &mut Scene) {
        if !scene.setup.access {
            return;
        }
        let number = scene.judge.next_call();
        let mut more = format!(",\"method\":\"m\",\"params\":{{\"call\":{number}}}");
        if scene.dice.chance(300) {
            let timeout_ms = scene.dice.range(1, 2 * scene.setup.rpc_timeout_ms as usize);
            more.push_str(&format!(",\"timeout_ms\":{timeout_ms}"));
        }
        self.command(Want::Call(number), None, &more, scene);
    }

    pub(crate) fn ping(&mut self, scene: &mut Scene) {
        self.command(Want::Ping, None, "", scene);
    }

    /// A command that is refused.
    fn bad(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        link.refusable = true;
        let id = link.next_id;
        link.next_id += 1;
        let with_id = |text: &str| text.replace("ID", &id.to_string());
        let (text, code) = scene.dice.pick(&[
            ("{\"type\":\"fly\",\"id\":ID}", "unknown_command"),
            ("{\"id\":ID}", "bad_command"),
            ("{\"type\":\"subscribe\",\"id\":ID}", "bad_command"),
            ("{\"type\":\"subscribe\",\"id\":ID,\"channel\":7}", "bad_command"),
            ("{\"type\":\"subscribe\",\"id\":ID,\"channel\":\"a b\"}", "bad_channel"),
            ("{\"type\":\"publish\",\"id\":ID,\"channel\":\"a b\",\"data\":1}", "bad_channel"),
            ("{\"type\":\"publish\",\"id\":ID,\"channel\":\"a\"}", "bad_command"),
        ]);
        if self.speaks != Speaks::Ringfeed {
            link.say(ws::TEXT, with_id("{\"action\":\"fly\",\"id\":ID}").as_bytes(), scene);
            return;
        }
        if scene.dice.chance(200) {
            link.errors_open += 1;
            link.say(ws::TEXT, b"[\"subscribe\"", scene);
            return;
        }
        let unknown = code == "unknown_command";
        let want = if unknown && scene.setup.access { Want::Other } else { Want::Bad(code) };
        let pending = Pending {
            id: Some(id.to_string()),
            want,
            channel: None,
            before: Intent::Maybe,
            turn: 0,
            at: 0,
        };
        link.pending.push_back(pending);
        link.say(ws::TEXT, with_id(text).as_bytes(), scene);
    }

    fn ping_frame(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let opcode = scene.dice.pick(&[ws::PING, ws::PING, ws::PONG]);
        let body = vec![b'p'; scene.dice.pick(&[0, 4, 125])];
        link.say(opcode, &body, scene);
    }

    fn echo(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let (_, len) = payload_size(scene.dice, scene.setup);
        let opcode = scene.dice.pick(&[ws::TEXT, ws::BINARY]);
        let body: Vec<u8> = (0..len).map(|at| b'a' + (at % 26) as u8).collect();
        if body.len() <= scene.setup.message_bytes_max as usize {
            link.echoes.push_back((opcode, body.clone()));
        } else {
            link.broke.push(1009);
        }
        link.say(opcode, &body, scene);
    }

    fn break_protocol(&mut self, scene: &mut Scene) {
        if self.habit.keeps_up() && scene.dice.chance(700) {
            return;
        }
        let Some(link) = &mut self.link else { return };
        let mut whole = Vec::new();
        let code = match scene.dice.below(7) {
            0 => {
                whole.extend_from_slice(&[0x81, 0x02, b'h', b'i']);
                1002
            }
            1 => {
                ws::write(&mut whole, true, 3, b"x", [1, 2, 3, 4]);
                1002
            }
            2 => {
                ws::write(&mut whole, true, ws::TEXT, b"{\"\xff\"}", [1, 2, 3, 4]);
                1007
            }
            3 => {
                let len = scene.setup.message_bytes_max as usize + 1;
                ws::write(&mut whole, true, ws::BINARY, &vec![0; len], [1, 2, 3, 4]);
                1009
            }
            4 => {
                ws::write(&mut whole, true, ws::CONTINUATION, b"x", [1, 2, 3, 4]);
                1002
            }
            5 => {
                ws::write(&mut whole, true, ws::CLOSE, &ws::close_body(1005), [1, 2, 3, 4]);
                1002
            }
            _ => {
                ws::write(&mut whole, false, ws::PING, b"x", [1, 2, 3, 4]);
                1002
            }
        };
        note!(scene.trace, "{} breaks the protocol, to be closed with {code}", link.who);
        link.broke.push(code);
        link.out.extend_from_slice(&whole);
    }

    /// Sends the beginning of a frame and then nothing, ever.
    fn half_frame(&mut self, scene: &mut Scene) {
        if self.habit.keeps_up() && scene.dice.chance(900) {
            return;
        }
        let Some(link) = &mut self.link else { return };
        let mut whole = Vec::new();
        ws::write(&mut whole, true, ws::TEXT, &[b'x'; 100], [9, 9, 9, 9]);
        whole.truncate(scene.dice.range(1, whole.len() - 1));
        note!(scene.trace, "{} sends {} bytes of a frame and no more", link.who, whole.len());
        link.out.extend_from_slice(&whole);
        link.mute = true;
    }

    /// Begins the closing handshake.
    pub(crate) fn close(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        if link.close_sent.is_some() || link.mute {
            return;
        }
        let code = scene.dice.pick(&[0, 1000, 1000, 1001, 3500]);
        let body = if code == 0 { Vec::new() } else { ws::close_body(code) };
        link.say(ws::CLOSE, &body, scene);
        link.close_sent = Some(if code == 0 { 1000 } else { code });
    }

    /// Sends a command and notes what is expected.
    pub(super) fn command(
        &mut self,
        want: Want,
        channel: Option<usize>,
        more: &str,
        scene: &mut Scene,
    ) {
        if self.speaks.talks() {
            return self.tell(want, channel, more, scene);
        }
        let prefix = &scene.setup.endpoints[self.endpoint];
        let Some(link) = &mut self.link else { return };
        let raw = self.speaks == Speaks::Raw;
        let kind = match want {
            Want::Subscribe { .. } => "subscribe",
            Want::Unsubscribe => "unsubscribe",
            Want::Publish(_) => "publish",
            Want::History { .. } => "history",
            Want::Presence { .. } => "presence",
            Want::Ping | Want::Bad(_) => "ping",
            Want::Send(_) => "send",
            Want::Auth { .. } => "auth",
            Want::Other => "custom",
            Want::Call(_) => "rpc",
            Want::Confirm { .. } => "confirm",
        };
        let key = if raw || scene.dice.chance(100) { "action" } else { "type" };
        let is_asked =
            matches!(want, Want::Publish(number) if scene.judge.confirmations.is_asked(number));
        let nameless = !is_asked
            && link.may_go_without_id(want, channel, scene.setup)
            && scene.dice.chance(if matches!(want, Want::Publish(_)) { 400 } else { 100 });
        let id = (!raw && !nameless).then(|| {
            let id = link.next_id;
            link.next_id += 1;
            if scene.dice.chance(300) { format!("\"k{id}\"") } else { id.to_string() }
        });
        let mut text = format!("{{\"{key}\":\"{kind}\"");
        if let Some(id) = &id {
            text.push_str(&format!(",\"id\":{id}"));
        }
        if let Some(channel) = channel {
            let name = &scene.judge.names[channel][prefix.len()..];
            text.push_str(&format!(",\"channel\":\"{name}\""));
        }
        text.push_str(more);
        text.push('}');
        if text.len() > scene.setup.message_bytes_max as usize && link.several.is_none() {
            link.broke.push(1009);
        }
        link.expect(id, want, channel, raw, scene);
        match &mut link.several {
            Some(several) => several.push(text),
            None => link.say(ws::TEXT, text.as_bytes(), scene),
        }
    }
}

/// Kind and bytes of a payload.
pub(crate) fn payload_size(dice: &mut Dice, setup: &Setup) -> (Kind, usize) {
    let kind = dice.pick(&[Kind::Json, Kind::Json, Kind::Json, Kind::Text, Kind::Binary]);
    let len = if dice.chance(setup.empty) {
        0
    } else if dice.chance(setup.large) {
        dice.magnitude(setup.payload_bytes, setup.large_bytes.max(setup.payload_bytes))
    } else {
        dice.magnitude(1, setup.payload_bytes).max(1)
    };
    (kind, len)
}
