//! A client: what it says, what it expects back, and what it makes of what arrives.
//!
//! It keeps for each connection which commands are unanswered and where each subscription stands, and
//! hands everything else it sees to the [`Judge`].
//!
//! To add an operation: a function and a line in [`OPERATIONS`].

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::dice::Dice;
use super::judge::{Ident, Judge, Kind, Rule};
use super::net::ConnId;
use super::setup::Setup;
use super::trace::{Trace, note, shown};
use super::ws::{self, Frame, Parser};

/// The dialect of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Ringfeed,
    Raw,
    Echo,
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

    /// Whether it reads everything in the end.
    pub(crate) fn reads(self) -> bool {
        !matches!(self, Habit::Never | Habit::Vanished)
    }
}

/// Whether a subscription stands, by the commands sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    Yes,
    No,
    /// An error came between.
    Maybe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Subscribe {
        recover: Option<(u64, u64)>,
    },
    Unsubscribe,
    Publish(u64),
    History {
        after: Option<u64>,
        limit: Option<u32>,
    },
    Ping,
    /// To be refused with this code.
    Bad(&'static str),
}

/// A command without its reply.
#[derive(Debug)]
struct Pending {
    /// JSON text.
    id: Option<String>,
    want: Want,
    channel: Option<usize>,
    /// What stood before it.
    before: Intent,
}

/// A subscription as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Off,
    /// `seam`: recovered up to here, without any gap.
    Live {
        epoch: u64,
        next: u64,
        seam: u64,
    },
}

/// One channel on one connection.
#[derive(Debug)]
struct Own {
    intent: Intent,
    view: View,
    raw: RawRun,
}

/// Where a `raw.v1` subscription stands: nothing but payloads is told.
#[derive(Debug, Default)]
struct RawRun {
    /// Where the last publication stands, once known.
    at: Option<(u64, u64)>,
    /// What came before that was known.
    unknown: Vec<Ident>,
    /// It was subscribed to so often: behind the first time, what comes next may stand anywhere later.
    subscribes: u32,
    jumps: u32,
    last: Option<Ident>,
}

/// One connection of a client.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) conn: ConnId,
    who: String,
    parser: Parser,
    fragments: Option<(u8, Vec<u8>)>,
    pending: VecDeque<Pending>,
    channels: BTreeMap<usize, Own>,
    echoes: VecDeque<(u8, Vec<u8>)>,
    /// Commands without an id that an error may answer.
    errors_open: u64,
    next_id: u64,
    /// Code of the server's close frame.
    pub(crate) close_seen: Option<u16>,
    /// Code of ours.
    pub(crate) close_sent: Option<u16>,
    /// Codes for what we broke.
    broke: Vec<u16>,
    /// A command was sent that `raw.v1` answers with a close.
    refusable: bool,
    /// In the middle of a frame that will never end.
    pub(crate) mute: bool,
    /// Sent, not handed to the network.
    pub(crate) out: Vec<u8>,
    pub(crate) drain_told: bool,
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
    /// Channels it can name.
    channels: Vec<usize>,
    pub(crate) link: Option<Link>,
    /// Last position seen of each channel.
    seen: BTreeMap<usize, (u64, u64)>,
}

/// What a client needs to act.
pub(crate) struct Scene<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) judge: &'a mut Judge,
    pub(crate) setup: &'a Setup,
    pub(crate) trace: &'a Rc<Trace>,
    /// The longest time in which the server heard nothing of this connection, in ms.
    pub(crate) silence_ms: u64,
}

type Operation = fn(&mut Client, &mut Scene);

/// Name, weight for `ringfeed.v1`, `raw.v1` and `echo`, and what is done.
const OPERATIONS: &[(&str, [u32; 3], Operation)] = &[
    ("subscribe", [30, 30, 0], |c, s| c.subscribe(s)),
    ("unsubscribe", [14, 12, 0], |c, s| c.unsubscribe(s)),
    ("resubscribe", [6, 6, 0], |c, s| c.resubscribe(s)),
    ("move", [6, 4, 0], |c, s| c.move_on(s)),
    ("subscribe to many", [3, 3, 0], |c, s| c.subscribe_to_many(s)),
    ("publish", [25, 0, 0], |c, s| c.publish(s)),
    ("publish a burst", [5, 0, 0], |c, s| c.publish_burst(s)),
    ("history", [4, 0, 0], |c, s| c.history(s)),
    ("ping", [3, 0, 0], |c, s| c.ping(s)),
    ("bad command", [3, 1, 0], |c, s| c.bad(s)),
    ("ping frame", [2, 2, 5], |c, s| c.ping_frame(s)),
    ("echo", [0, 0, 30], |c, s| c.echo(s)),
    ("break the protocol", [1, 1, 1], |c, s| c.break_protocol(s)),
    ("half a frame", [1, 1, 1], |c, s| c.half_frame(s)),
];

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    channel: Option<&'a str>,
    epoch: Option<&'a str>,
    offset: Option<u64>,
    recovered: Option<bool>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    encoding: Option<&'a str>,
    from: Option<u64>,
    to: Option<u64>,
    code: Option<&'a str>,
    #[serde(borrow)]
    publications: Option<Vec<Item<'a>>>,
    reconnect_ms: Option<u32>,
}

#[derive(Deserialize)]
struct Item<'a> {
    offset: u64,
    #[serde(borrow)]
    data: &'a RawValue,
    encoding: Option<&'a str>,
}

/// The payload behind `data`.
fn payload_of(data: &RawValue, encoding: Option<&str>, judge: &Judge) -> Option<Vec<u8>> {
    let text = data.get();
    if encoding == Some("base64") {
        return BASE64.decode(serde_json::from_str::<String>(text).ok()?).ok();
    }
    // A string is a JSON payload as it stands or a text; the publication's own kind tells.
    if text.starts_with('"') {
        let inner = serde_json::from_str::<String>(text).ok()?;
        let digits: String = inner.chars().take_while(char::is_ascii_digit).collect();
        let number = digits.parse::<u64>().ok().filter(|&n| n > 0);
        let kind = number.and_then(|n| judge.publications.get(n as usize - 1)).map(|p| p.kind);
        if kind != Some(Kind::Json) {
            return Some(inner.into_bytes());
        }
    }
    Some(text.as_bytes().to_vec())
}

impl Client {
    pub(crate) fn new(number: usize, dice: &mut Dice, setup: &Setup) -> Client {
        let speaks = match dice.below(1000) as u32 {
            n if n < setup.raw => Speaks::Raw,
            n if n < setup.raw + setup.echo => Speaks::Echo,
            _ => Speaks::Ringfeed,
        };
        let endpoint = dice.below(setup.endpoints.len());
        let prefix = setup.endpoints[endpoint].as_str();
        let mut channels: Vec<usize> = (0..setup.channels.len())
            .filter(|&at| setup.channels[at].name.len() > prefix.len())
            .filter(|&at| setup.channels[at].name.starts_with(prefix))
            .collect();
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
            channels,
            link: None,
            seen: BTreeMap::new(),
        }
    }

    pub(crate) fn connect(&mut self, conn: ConnId) {
        self.link = Some(Link {
            conn,
            who: format!("k{}/c{conn}", self.number),
            parser: Parser::default(),
            fragments: None,
            pending: VecDeque::new(),
            channels: BTreeMap::new(),
            echoes: VecDeque::new(),
            errors_open: 0,
            next_id: 1,
            close_seen: None,
            close_sent: None,
            broke: Vec::new(),
            refusable: false,
            mute: false,
            out: Vec::new(),
            drain_told: false,
        });
    }

    /// Says something, where it still may.
    pub(crate) fn act(&mut self, scene: &mut Scene) {
        let Some(link) = &self.link else { return };
        if link.mute || link.close_sent.is_some() || link.close_seen.is_some() {
            return;
        }
        if self.speaks != Speaks::Echo && scene.dice.chance(scene.setup.moves) {
            return self.move_on(scene);
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

    fn any_channel(&self, scene: &mut Scene) -> Option<usize> {
        let count = self.channels.len();
        (count > 0).then(|| self.channels[scene.dice.below(count)])
    }

    fn subscribe_to(&mut self, channel: usize, scene: &mut Scene) {
        let seen = self.seen.get(&channel).copied();
        let recover = match (self.speaks, seen) {
            (Speaks::Ringfeed, Some(seen)) if scene.dice.chance(600) => Some(seen),
            (Speaks::Ringfeed, _) if scene.dice.chance(20) => Some((scene.dice.number(), 3)),
            _ => None,
        };
        let more = recover.map_or(String::new(), |(epoch, offset)| {
            format!(",\"recover\":{{\"epoch\":\"{epoch:016x}\",\"offset\":{offset}}}")
        });
        self.command(Want::Subscribe { recover }, Some(channel), &more, scene);
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
        let payload = scene.judge.payload(number);
        let more = match kind {
            Kind::Json => format!(",\"data\":{}", String::from_utf8_lossy(&payload)),
            Kind::Text => {
                let text = String::from_utf8_lossy(&payload);
                format!(",\"text\":{}", serde_json::to_string(&text).expect("text is JSON"))
            }
            Kind::Binary => format!(",\"base64\":\"{}\"", BASE64.encode(&payload)),
        };
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

    fn ping(&mut self, scene: &mut Scene) {
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
        let want = Want::Bad(code);
        let pending =
            Pending { id: Some(id.to_string()), want, channel: None, before: Intent::Maybe };
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
    fn command(&mut self, want: Want, channel: Option<usize>, more: &str, scene: &mut Scene) {
        let prefix = &scene.setup.endpoints[self.endpoint];
        let Some(link) = &mut self.link else { return };
        let raw = self.speaks == Speaks::Raw;
        let kind = match want {
            Want::Subscribe { .. } => "subscribe",
            Want::Unsubscribe => "unsubscribe",
            Want::Publish(_) => "publish",
            Want::History { .. } => "history",
            Want::Ping | Want::Bad(_) => "ping",
        };
        let key = if raw || scene.dice.chance(100) { "action" } else { "type" };
        let nameless = link.may_go_without_id(want, channel, scene.setup)
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
        if text.len() > scene.setup.message_bytes_max as usize {
            link.broke.push(1009);
        }
        link.expect(id, want, channel, raw, scene);
        link.say(ws::TEXT, text.as_bytes(), scene);
    }

    /// Takes what has arrived.
    pub(crate) fn received(&mut self, bytes: &[u8], scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        link.parser.push(bytes);
        loop {
            let frame = match self.link.as_mut().map(|link| link.parser.next()) {
                Some(Ok(Some(frame))) => frame,
                Some(Err(what)) => {
                    let who = self.link.as_ref().map_or("", |link| &link.who);
                    return scene.judge.broken(Rule::Frames, format_args!("{who}: {what}"));
                }
                _ => return,
            };
            self.frame(frame, scene);
        }
    }

    fn frame(&mut self, frame: Frame, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        note!(scene.trace, "{who} <- {} {}", frame.opcode, shown(&frame.payload));
        if link.close_seen.is_some() {
            let what = shown(&frame.payload);
            let what = format_args!("{who} got opcode {} {what} after the close", frame.opcode);
            return scene.judge.broken(Rule::AfterClose, what);
        }
        match frame.opcode {
            ws::PING => {
                if self.answers && !link.mute && link.close_sent.is_none() {
                    link.say(ws::PONG, &frame.payload, scene);
                }
            }
            ws::PONG => {}
            ws::CLOSE => self.closed(&frame.payload, scene),
            opcode => {
                let whole = match (opcode, link.fragments.take()) {
                    (ws::CONTINUATION, Some((opcode, mut message))) => {
                        message.extend_from_slice(&frame.payload);
                        (opcode, message)
                    }
                    (ws::CONTINUATION, None) | (_, Some(_)) => {
                        let what = format_args!("{who} got fragments out of order");
                        return scene.judge.broken(Rule::Frames, what);
                    }
                    (opcode, None) => (opcode, frame.payload),
                };
                if frame.fin {
                    self.message(whole.0, &whole.1, scene);
                } else {
                    link.fragments = Some(whole);
                }
            }
        }
    }

    fn message(&mut self, opcode: u8, body: &[u8], scene: &mut Scene) {
        match self.speaks {
            Speaks::Echo => {
                let Some(link) = &mut self.link else { return };
                if link.echoes.pop_front().is_none_or(|(is, was)| is != opcode || was != body) {
                    let what = format_args!("{} got another echo: {}", link.who, shown(body));
                    scene.judge.broken(Rule::Frames, what);
                }
            }
            Speaks::Raw => self.raw_message(opcode, body, scene),
            Speaks::Ringfeed => {
                let text = std::str::from_utf8(body).ok().filter(|_| opcode == ws::TEXT);
                match text.map(serde_json::from_str::<Said>) {
                    Some(Ok(said)) => self.said(&said, scene),
                    _ => {
                        let who = self.link.as_ref().map_or("", |link| &link.who);
                        let what = format_args!("{who} got no event: {}", shown(body));
                        scene.judge.broken(Rule::Frames, what);
                    }
                }
            }
        }
    }

    fn raw_message(&mut self, opcode: u8, body: &[u8], scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        scene.judge.deliveries += 1;
        let Some(is) = scene.judge.identify(body, &link.who) else { return };
        let (channel, binary) = match is {
            Ident::Number(number) => {
                let publication = &scene.judge.publications[number as usize - 1];
                (Some(publication.channel), publication.kind == Kind::Binary)
            }
            Ident::Empty => (link.channels.keys().next().copied(), opcode == ws::BINARY),
        };
        if binary != (opcode == ws::BINARY) {
            let what = format_args!("{} got {} with opcode {opcode}", link.who, shown(body));
            return scene.judge.broken(Rule::Payload, what);
        }
        let own = channel.and_then(|channel| Some((channel, link.channels.get_mut(&channel)?)));
        let Some((channel, own)) = own else {
            let what = format_args!("{} got {} of no channel of its own", link.who, shown(body));
            return scene.judge.broken(Rule::Subscribed, what);
        };
        own.raw.last = Some(is);
        own.raw.next(channel, is, &link.who, scene.judge);
    }

    fn said(&mut self, said: &Said, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        let named = said.channel.and_then(|n| scene.judge.names.iter().position(|own| own == n));
        let epoch = said.epoch.and_then(|text| u64::from_str_radix(text, 16).ok());
        match said.kind {
            "message" => {
                scene.judge.deliveries += 1;
                let (Some(channel), Some(offset), Some(data)) = (named, said.offset, said.data)
                else {
                    let what = format_args!("{who} got a message without channel, offset or data");
                    return scene.judge.broken(Rule::Frames, what);
                };
                let Some(payload) = payload_of(data, said.encoding, scene.judge) else {
                    let what = format_args!("{who} got {}, which is no payload", data.get());
                    return scene.judge.broken(Rule::Payload, what);
                };
                let View::Live { epoch, next, seam } =
                    link.channels.get(&channel).map_or(View::Off, |own| own.view)
                else {
                    let name = &scene.judge.names[channel];
                    let what =
                        format_args!("{who} got {offset} of {name}, which is not subscribed");
                    return scene.judge.broken(Rule::Subscribed, what);
                };
                if offset != next {
                    let name = &scene.judge.names[channel];
                    let what = format_args!("{who} got {offset} of {name} where {next} was due");
                    let rule = if next <= seam { Rule::RecoveryWhole } else { Rule::Dense };
                    scene.judge.broken(rule, what);
                }
                if let Some(is) = scene.judge.identify(&payload, &who) {
                    scene.judge.learn(channel, epoch, offset, is, &who);
                }
                link.set_view(channel, View::Live { epoch, next: offset + 1, seam });
                self.seen.insert(channel, (epoch, offset));
            }
            "gap" => {
                scene.judge.gaps += 1;
                let (Some(channel), Some(epoch), Some(from), Some(to)) =
                    (named, epoch, said.from, said.to)
                else {
                    return scene.judge.broken(Rule::Frames, format_args!("{who} got half a gap"));
                };
                let view = link.channels.get(&channel).map_or(View::Off, |own| own.view);
                let View::Live { epoch: own_epoch, next, seam } = view else {
                    let what = format_args!("{who} got a gap of a channel that is not subscribed");
                    return scene.judge.broken(Rule::Subscribed, what);
                };
                let name = scene.judge.names[channel].clone();
                if from != next || to < from || epoch != own_epoch {
                    let what = format_args!(
                        "{who} got a gap {from}..={to} of {name} where {next} was due"
                    );
                    scene.judge.broken(Rule::Gap, what);
                }
                if from <= seam {
                    let what =
                        format_args!("{who} got a gap from {from} of {name}, recovered to {seam}");
                    scene.judge.broken(Rule::RecoveryWhole, what);
                }
                if self.habit.keeps_up() {
                    let what =
                        format_args!("{who} always reads and got a gap {from}..={to} of {name}");
                    scene.judge.broken(Rule::ReadersKeepUp, what);
                }
                scene.judge.claim(channel, epoch, to, &who);
                link.set_view(channel, View::Live { epoch, next: to + 1, seam });
                self.seen.insert(channel, (epoch, to));
            }
            "drain" => {
                if !scene.judge.draining || said.reconnect_ms.is_none() || link.drain_told {
                    let what = format_args!("{who} was told of a drain that is none, or twice");
                    scene.judge.broken(Rule::ReplyFits, what);
                }
                link.drain_told = true;
            }
            _ => self.replied(said, named, epoch, scene),
        }
    }

    /// A reply: finds its command and checks that it fits.
    fn replied(
        &mut self,
        said: &Said,
        named: Option<usize>,
        epoch: Option<u64>,
        scene: &mut Scene,
    ) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        let text = said.id.map(RawValue::get);
        let fits = |pending: &&Pending| match text {
            Some(id) => pending.id.as_deref() == Some(id),
            None => {
                pending.id.is_none()
                    && match (said.kind, pending.want) {
                        ("subscribed", Want::Subscribe { .. })
                        | ("unsubscribed", Want::Unsubscribe) => pending.channel == named,
                        ("pong", Want::Ping) => true,
                        _ => false,
                    }
            }
        };
        let Some(at) = link.pending.iter().position(|pending| fits(&pending)) else {
            if said.kind == "error" && text.is_none() && link.errors_open > 0 {
                link.errors_open -= 1;
                return;
            }
            let what = format_args!("{who} got {} for id {text:?}, which is not open", said.kind);
            return scene.judge.broken(Rule::OneReply, what);
        };
        let Some(pending) = link.pending.remove(at) else { return };
        if text.is_some() && pending.channel.is_some() {
            let earlier = link.pending.iter().take(at);
            let mut earlier = earlier.filter(|p| p.channel == pending.channel && p.id.is_some());
            if let Some(earlier) = earlier.next() {
                let what = format_args!(
                    "{who} got {} for id {text:?} before the reply to {:?} with id {:?}",
                    said.kind, earlier.want, earlier.id
                );
                scene.judge.broken(Rule::ReplyOrder, what);
            }
        }
        let misfit = link.reply(&pending, said, named, epoch, &mut self.seen, scene);
        if let Some(why) = misfit {
            let what = format_args!(
                "{who} got {} {} for {:?} of {:?}: {why}",
                said.kind,
                said.code.unwrap_or_default(),
                pending.want,
                pending.channel.map(|channel| &scene.judge.names[channel])
            );
            scene.judge.broken(Rule::ReplyFits, what);
        }
    }

    /// The server's close frame.
    fn closed(&mut self, body: &[u8], scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        let Some((code, reason)) = body.split_first_chunk::<2>() else {
            link.close_seen = Some(1005);
            let what = format_args!("{who} was closed without a code");
            return scene.judge.broken(Rule::CloseCode, what);
        };
        let code = u16::from_be_bytes(*code);
        let reason = String::from_utf8_lossy(reason).into_owned();
        link.close_seen = Some(code);
        *scene.judge.closes.entry(code).or_default() += 1;
        let setup = scene.setup;
        let silent = u64::from(setup.heartbeat_interval_ms) + u64::from(setup.heartbeat_timeout_ms);
        let raw = self.speaks == Speaks::Raw;
        let lags = |&channel: &usize| raw || setup.group(channel).disconnect;
        let allowed = match code {
            4000 => link.channels.keys().any(lags),
            4001 => setup.heartbeat_interval_ms > 0 && scene.silence_ms >= silent,
            4002 => true,
            1012 => scene.judge.draining,
            4500 => {
                self.speaks != Speaks::Ringfeed
                    && (link.refusable || setup.messages_per_second_max > 0)
            }
            4501 => setup.messages_per_second_max > 0,
            code => link.close_sent == Some(code) || link.broke.contains(&code),
        };
        if !allowed {
            let what = format_args!("{who} was closed with {code} {reason:?}");
            scene.judge.broken(Rule::CloseCode, what);
        }
        if self.habit.keeps_up() && matches!(code, 4000 | 4002) {
            let what = format_args!("{who} always reads and was closed with {code} {reason:?}");
            scene.judge.broken(Rule::ReadersKeepUp, what);
        }
        if code == 4000 {
            link.check_reason(&reason, raw, scene);
        }
        if self.answers && link.close_sent.is_none() && !link.mute {
            let answer = body.get(..2).unwrap_or_default().to_vec();
            link.say(ws::CLOSE, &answer, scene);
            link.close_sent = Some(code);
        }
    }

    /// The connection is over and everything that came was read. `excused`: something other than the
    /// server's will may have ended it.
    pub(crate) fn ended(&mut self, excused: bool, scene: &mut Scene) {
        let Some(link) = self.link.take() else { return };
        let who = &link.who;
        note!(scene.trace, "{who} is over, close seen {:?}", link.close_seen);
        if link.close_seen.is_none() && !excused {
            let cut = link.parser.pending();
            let what = format_args!("{who} was cut without a close frame ({cut} bytes of a frame)");
            scene.judge.broken(Rule::CloseSaysWhy, what);
        }
        for pending in &link.pending {
            if let (Want::Publish(_), Some(channel)) = (pending.want, pending.channel) {
                scene.judge.unacknowledged[channel] += 1;
            }
        }
        for (channel, own) in link.channels {
            scene.judge.run(channel, who, own.raw.unknown);
        }
    }

    /// Everything is quiet: nothing may be owed. `bells` are the last publications of each channel.
    pub(crate) fn settled(
        &self,
        bells: &[Option<u64>],
        newest: &[Option<(u64, u64)>],
        judge: &Judge,
    ) {
        let Some(link) = &self.link else { return };
        let who = &link.who;
        if link.close_seen.is_some() || link.close_sent.is_some() || !link.broke.is_empty() {
            return;
        }
        if !link.mute
            && let Some(pending) = link.pending.iter().find(|pending| pending.id.is_some())
        {
            let what = format_args!("{who} has no reply to {:?} {:?}", pending.want, pending.id);
            judge.broken(Rule::OneReply, what);
        }
        if let Some((_, body)) = link.echoes.front().filter(|_| !link.mute) {
            judge.broken(Rule::Complete, format_args!("{who} has no echo of {}", shown(body)));
        }
        for (&channel, own) in &link.channels {
            let name = &judge.names[channel];
            if let (View::Live { epoch, next, .. }, Some((now, newest))) =
                (own.view, newest[channel])
                && (epoch != now || next != newest + 1)
            {
                let what = format_args!("{who} waits for {next} of {name}, the newest is {newest}");
                judge.broken(Rule::Complete, what);
            }
            if self.speaks == Speaks::Raw
                && own.intent == Intent::Yes
                && let Some(bell) = bells[channel].map(|bell| judge.ident(bell))
                && own.raw.last != Some(bell)
            {
                let last = own.raw.last;
                let what = format_args!("{who} got {last:?} of {name} last, not {bell:?}");
                judge.broken(Rule::Complete, what);
            }
        }
    }
}

impl Link {
    fn set_view(&mut self, channel: usize, view: View) {
        if let Some(own) = self.channels.get_mut(&channel) {
            own.view = view;
        }
    }

    /// Whether what comes back can be told from other replies without an id.
    fn may_go_without_id(&self, want: Want, channel: Option<usize>, setup: &Setup) -> bool {
        let own = channel.and_then(|channel| self.channels.get(&channel));
        let intent = own.map_or(Intent::No, |own| own.intent);
        let open = self.pending.iter().any(|p| p.id.is_none() && p.channel == channel);
        let sure = !open && setup.messages_per_second_max == 0;
        match want {
            Want::Publish(_) | Want::Ping => true,
            Want::Unsubscribe => sure && intent == Intent::Yes,
            Want::Subscribe { recover: None } => {
                let allowed = channel.is_some_and(|channel| setup.group(channel).subscribable);
                let room = self.channels.len() < setup.subscriptions_max as usize;
                sure && intent == Intent::No && allowed && room && setup.channels_max >= 1000
            }
            _ => false,
        }
    }

    /// Whether replies are owed for what the server may have read.
    pub(crate) fn has_pending(&self) -> bool {
        !self.mute && self.pending.iter().any(|pending| pending.id.is_some())
    }

    /// Notes what is to come back for a command.
    fn expect(
        &mut self,
        id: Option<String>,
        want: Want,
        channel: Option<usize>,
        raw: bool,
        scene: &mut Scene,
    ) {
        let group = channel.map(|channel| scene.setup.group(channel));
        let mut before = Intent::Maybe;
        let touches = matches!(want, Want::Subscribe { .. } | Want::Unsubscribe);
        if let Some(channel) = channel.filter(|_| touches) {
            let most = scene.setup.subscriptions_max as usize;
            let others = self
                .channels
                .iter()
                .filter(|(other, own)| **other != channel && own.intent != Intent::No);
            let full = others.count() >= most || scene.setup.channels_max < 1000;
            let forbidden = group.is_some_and(|group| !group.subscribable);
            let fresh = || Own { intent: Intent::No, view: View::Off, raw: RawRun::default() };
            if raw && matches!(want, Want::Subscribe { .. }) {
                self.refusable |= forbidden || full || scene.judge.draining;
            }
            let own = self.channels.entry(channel).or_insert_with(fresh);
            before = own.intent;
            if matches!(want, Want::Subscribe { .. }) {
                // Not where it stands already: such a subscribe changes nothing.
                own.raw.subscribes += u32::from(own.intent != Intent::Yes);
                own.intent = match before {
                    _ if forbidden => before,
                    _ if scene.setup.messages_per_second_max > 0 => Intent::Maybe,
                    Intent::Yes => Intent::Yes,
                    _ if full || scene.judge.draining => Intent::Maybe,
                    _ => Intent::Yes,
                };
            } else {
                let limited = scene.setup.messages_per_second_max > 0;
                own.intent =
                    if limited && before != Intent::No { Intent::Maybe } else { Intent::No };
            }
        }
        if raw {
            return;
        }
        if id.is_none() {
            self.errors_open += 1;
            if let (Want::Publish(_), Some(channel)) = (want, channel) {
                scene.judge.unacknowledged[channel] += 1;
                return;
            }
        }
        self.pending.push_back(Pending { id, want, channel, before });
    }

    /// Writes a message or a control frame, whole or in fragments.
    fn say(&mut self, opcode: u8, payload: &[u8], scene: &mut Scene) {
        note!(scene.trace, "{} -> {opcode} {}", self.who, shown(payload));
        let key = (scene.dice.number() as u32).to_be_bytes();
        if opcode < ws::CLOSE && scene.dice.chance(40) {
            let cut = scene.dice.below(payload.len() + 1);
            ws::write(&mut self.out, false, opcode, &payload[..cut], key);
            if scene.dice.chance(300) {
                ws::write(&mut self.out, true, ws::PING, b"between", key);
            }
            ws::write(&mut self.out, true, ws::CONTINUATION, &payload[cut..], key);
        } else {
            ws::write(&mut self.out, true, opcode, payload, key);
        }
    }

    /// Applies a reply; says what is wrong with it.
    fn reply(
        &mut self,
        pending: &Pending,
        said: &Said,
        named: Option<usize>,
        epoch: Option<u64>,
        seen: &mut BTreeMap<usize, (u64, u64)>,
        scene: &mut Scene,
    ) -> Option<&'static str> {
        let Scene { setup, judge, .. } = scene;
        let group = pending.channel.map(|channel| setup.group(channel));
        if said.kind == "error" {
            let code = said.code.unwrap_or_default();
            let subscribing = matches!(pending.want, Want::Subscribe { .. });
            let expected = match pending.want {
                Want::Subscribe { .. } => {
                    (pending.before == Intent::Yes).then_some("already_subscribed")
                }
                Want::Unsubscribe => (pending.before == Intent::No).then_some("not_subscribed"),
                Want::Bad(code) => Some(code),
                _ => None,
            };
            if (subscribing || pending.want == Want::Unsubscribe)
                && expected != Some(code)
                && let Some(channel) = pending.channel
            {
                self.doubt(channel);
            }
            let others = || {
                let own =
                    self.channels.iter().filter(|(other, _)| Some(**other) != pending.channel);
                own.count()
            };
            let fits = match code {
                "rate_limited" => setup.messages_per_second_max > 0,
                "draining" => {
                    judge.draining && (subscribing || matches!(pending.want, Want::Publish(_)))
                }
                "already_subscribed" => subscribing && pending.before != Intent::No,
                "not_subscribed" => {
                    let refused = judge.draining || pending.before != Intent::Yes;
                    pending.want == Want::Unsubscribe && refused
                }
                "limit_reached" => {
                    let publishing = matches!(pending.want, Want::Publish(_));
                    (subscribing && others() >= setup.subscriptions_max as usize)
                        || ((subscribing || publishing) && setup.channels_max < 1000)
                }
                "forbidden" => match pending.want {
                    Want::Subscribe { .. } | Want::History { .. } => {
                        group.is_some_and(|group| !group.subscribable)
                    }
                    Want::Publish(_) => group.is_some_and(|group| !group.publishable),
                    _ => false,
                },
                "bad_channel" if matches!(pending.want, Want::History { .. }) => true,
                code => matches!(pending.want, Want::Bad(due) if due == code),
            };
            return (!fits).then_some("no such error is due");
        }
        let channel = pending.channel.filter(|_| pending.channel == named);
        match (pending.want, said.kind) {
            (Want::Ping, "pong") => None,
            (Want::Subscribe { recover }, "subscribed") => {
                let (Some(channel), Some(epoch), Some(offset)) = (channel, epoch, said.offset)
                else {
                    return Some("channel, epoch or offset is missing");
                };
                judge.claim(channel, epoch, offset, &self.who);
                let mut next = offset + 1;
                if said.recovered == Some(true)
                    && let Some((from_epoch, from)) = recover
                {
                    if from_epoch != epoch || from > offset {
                        let what = format_args!(
                            "{} asked for {from} of {from_epoch:016x} and is said to have recovered to \
                             {offset} of {epoch:016x}",
                            self.who
                        );
                        judge.broken(Rule::RecoveryWhole, what);
                    }
                    next = from + 1;
                }
                let seam = if said.recovered == Some(true) { offset } else { 0 };
                self.set_view(channel, View::Live { epoch, next, seam });
                seen.insert(channel, (epoch, next - 1));
                if pending.before == Intent::Yes || group.is_some_and(|group| !group.subscribable) {
                    return Some("it had to be refused");
                }
                (said.recovered.is_some() != recover.is_some())
                    .then_some("recovered is told where recover was not asked for, or not told")
            }
            (Want::Unsubscribe, "unsubscribed") => {
                let Some(channel) = channel else { return Some("another channel is named") };
                self.set_view(channel, View::Off);
                (pending.before == Intent::No).then_some("it was not subscribed to")
            }
            (Want::Publish(number), "published") => {
                let (Some(channel), Some(epoch), Some(offset)) = (channel, epoch, said.offset)
                else {
                    return Some("channel, epoch or offset is missing");
                };
                let is = judge.ident(number);
                judge.learn(channel, epoch, offset, is, &self.who);
                group.is_some_and(|group| !group.publishable).then_some("it had to be refused")
            }
            (Want::History { after, limit }, "history") => {
                let (Some(channel), Some(epoch), Some(newest), Some(items)) =
                    (channel, epoch, said.offset, &said.publications)
                else {
                    return Some("channel, epoch, offset or publications are missing");
                };
                judge.claim(channel, epoch, newest, &self.who);
                let mut due = None;
                for item in items {
                    let payload = payload_of(item.data, item.encoding, judge);
                    if let Some(is) =
                        payload.and_then(|payload| judge.identify(&payload, &self.who))
                    {
                        judge.learn(channel, epoch, item.offset, is, &self.who);
                    }
                    if due.is_some_and(|due| due != item.offset)
                        || after.is_some_and(|after| item.offset <= after)
                        || item.offset > newest
                    {
                        return Some("publications are not dense or out of range");
                    }
                    due = Some(item.offset + 1);
                }
                let most = limit.unwrap_or(u32::MAX).min(setup.history_reply_max);
                (items.len() > most as usize).then_some("more than were asked for")
            }
            _ => Some("another reply is due"),
        }
    }

    /// A command on this channel was refused: what was expected of later ones may not hold.
    fn doubt(&mut self, channel: usize) {
        if let Some(own) = self.channels.get_mut(&channel) {
            own.intent = Intent::Maybe;
        }
        for pending in self.pending.iter_mut().filter(|p| p.channel == Some(channel)) {
            pending.before = Intent::Maybe;
        }
    }

    /// Whether the reason of a close for lag names the first missing offset.
    fn check_reason(&mut self, reason: &str, raw: bool, scene: &mut Scene) {
        let judge = &mut *scene.judge;
        let named = |channel: &usize| {
            let name = judge.names[*channel].as_str();
            // Not a name that only begins like it.
            reason.split(name).nth(1).is_some_and(|rest| rest.starts_with([' ', ',', ';']))
        };
        let channel = self.channels.keys().copied().find(|channel| named(channel));
        let offset = reason.split("offset ").nth(1).and_then(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            rest[..end].parse::<u64>().ok()
        });
        let (Some(channel), Some(offset)) = (channel, offset) else {
            // A long name leaves no room for the offset in 123 bytes.
            if reason.len() < 100 {
                let what = format_args!("{} was closed for lag with {reason:?}", self.who);
                judge.broken(Rule::CloseReason, what);
            }
            return;
        };
        let own = &self.channels[&channel];
        let due = match own.view {
            View::Live { next, .. } => Some(next),
            View::Off if raw && !own.raw.may_jump() => own.raw.at.map(|at| at.1 + 1),
            View::Off => None,
        };
        match (due, own.raw.last.filter(|_| raw && !own.raw.may_jump())) {
            (Some(due), _) if due != offset => {
                let name = &judge.names[channel];
                let what = format_args!(
                    "{}: the reason names {offset} of {name}; {due} is missing",
                    self.who
                );
                judge.broken(Rule::CloseReason, what);
            }
            (None, Some(last)) => judge.reason(last, offset, &self.who),
            _ => {}
        }
    }
}

impl RawRun {
    fn next(&mut self, channel: usize, is: Ident, who: &str, judge: &mut Judge) {
        let place = judge.place(is);
        let jump = self.may_jump();
        match (self.at, place) {
            (Some((epoch, offset)), Some(place)) if place != (epoch, offset + 1) => {
                if !jump || (place.0 == epoch && place.1 <= offset) {
                    let name = &judge.names[channel];
                    let what = format_args!(
                        "{who} got {} of {name} where {} was due",
                        place.1,
                        offset + 1
                    );
                    judge.broken(Rule::Dense, what);
                }
                self.jumps += 1;
                self.at = Some(place);
            }
            (Some((epoch, offset)), None) if !jump => {
                judge.learn(channel, epoch, offset + 1, is, who);
                self.at = Some((epoch, offset + 1));
            }
            (_, Some(place)) => {
                if !jump && !self.unknown.is_empty() {
                    self.unknown.push(is);
                }
                judge.run(channel, who, std::mem::take(&mut self.unknown));
                self.at = Some(place);
            }
            (_, None) => {
                if jump {
                    judge.run(channel, who, std::mem::take(&mut self.unknown));
                }
                self.at = None;
                self.unknown.push(is);
            }
        }
    }

    /// Whether the next publication may stand anywhere behind the last.
    fn may_jump(&self) -> bool {
        self.subscribes.saturating_sub(1) > self.jumps
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
