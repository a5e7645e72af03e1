//! A client of a node: it speaks `ringfeed.v1`, comes back to any node with the last position that it has seen, and looks at
//! all that it is told.

use std::collections::{HashMap, HashSet};

use super::super::event::Said;
use super::super::net::ConnId;
use super::super::ws::{self, Parser};
use super::receipts::Receipts;
use super::truth::{Truth, number_in};

/// What it knows of a subscription.
#[derive(Debug, Clone, Copy)]
enum View {
    Asked { recover: Option<(u64, u64)> },
    Live { epoch: u64, next: u64 },
}

#[derive(Debug)]
enum Pending {
    Subscribe(usize),
    Unsubscribe(usize),
    Publish(u64),
    History,
    Confirm(u64),
}

/// One connection, and what is remembered beyond it.
pub(super) struct Client {
    pub(super) number: usize,
    pub(super) conn: ConnId,
    pub(super) node: usize,
    parser: Parser,
    next_id: u64,
    views: HashMap<usize, View>,
    pending: HashMap<u64, Pending>,
    /// The last position seen of each channel.
    seen: HashMap<usize, (u64, u64)>,
    /// It was told to go, or is gone.
    pub(super) over: bool,
    pub(super) told: Told,
    /// Publications that were said to be stored later.
    pub(super) spooled: Vec<u64>,
    /// What it got of channels that are not numbered.
    got: HashSet<u64>,
    /// How often a view of a channel began or had a gap.
    turns: HashMap<usize, u64>,
    /// With which it has come.
    pub(super) token: u64,
    /// How many connections it has had.
    pub(super) dials: usize,
    /// What was sent to its user and came here, over which connection.
    sent: HashSet<(ConnId, u64)>,
    /// What has come that is to be confirmed: number, channel and offset.
    pub(super) to_confirm: Vec<(u64, usize, u64)>,
    /// Publications of this connection, by channel, epoch and offset.
    own: HashMap<(usize, u64, u64), u64>,
}

/// What clients were told.
#[derive(Debug, Default, Clone)]
pub(super) struct Told {
    pub(super) messages: u64,
    pub(super) gaps: u64,
    pub(super) renewed: u64,
    pub(super) recovered: u64,
    pub(super) lost: u64,
    pub(super) acknowledged: u64,
    pub(super) refused: u64,
}

/// The channels, and which of them Redis numbers.
pub(super) struct Channels {
    pub(super) names: Vec<String>,
    pub(super) numbered: usize,
}

impl Client {
    pub(super) fn new(number: usize, conn: ConnId, node: usize, token: u64) -> Client {
        Client {
            number,
            conn,
            node,
            parser: Parser::default(),
            next_id: 1,
            views: HashMap::new(),
            pending: HashMap::new(),
            seen: HashMap::new(),
            over: false,
            told: Told::default(),
            spooled: Vec::new(),
            got: HashSet::new(),
            turns: HashMap::new(),
            token,
            dials: 1,
            sent: HashSet::new(),
            to_confirm: Vec::new(),
            own: HashMap::new(),
        }
    }

    /// Over how many connections something has come that was sent to its user.
    pub(super) fn times_sent(&self, number: u64) -> usize {
        self.sent.iter().filter(|(_, own)| *own == number).count()
    }

    /// It has another connection.
    pub(super) fn reconnect(&mut self, conn: ConnId, node: usize) {
        (self.conn, self.node, self.over) = (conn, node, false);
        self.dials += 1;
        self.parser = Parser::default();
        self.views.clear();
        self.pending.clear();
        self.to_confirm.clear();
        self.own.clear();
    }

    fn say(&mut self, out: &mut Vec<u8>, what: Pending, text: &str) {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, what);
        let text = text.replacen('{', &format!("{{\"id\":{id},"), 1);
        ws::write(out, true, ws::TEXT, text.as_bytes(), [1, 2, 3, 4]);
    }

    pub(super) fn subscribe(
        &mut self,
        out: &mut Vec<u8>,
        channel: usize,
        name: &str,
        recovers: bool,
    ) {
        if self.views.contains_key(&channel) {
            return;
        }
        let recover = self.seen.get(&channel).copied().filter(|_| recovers);
        self.views.insert(channel, View::Asked { recover });
        let recover = recover.map_or(String::new(), |(epoch, offset)| {
            format!(",\"recover\":{{\"epoch\":\"{epoch:016x}\",\"offset\":{offset}}}")
        });
        let text = format!("{{\"type\":\"subscribe\",\"channel\":\"{name}\"{recover}}}");
        self.say(out, Pending::Subscribe(channel), &text);
    }

    pub(super) fn unsubscribe(&mut self, out: &mut Vec<u8>, channel: usize, name: &str) {
        if let Some(View::Live { .. }) = self.views.get(&channel) {
            let text = format!("{{\"type\":\"unsubscribe\",\"channel\":\"{name}\"}}");
            self.say(out, Pending::Unsubscribe(channel), &text);
        }
    }

    pub(super) fn publish(
        &mut self,
        out: &mut Vec<u8>,
        name: &str,
        (number, filler): (u64, usize),
        confirm_ms: Option<u64>,
    ) {
        let data = payload(number, filler);
        let confirm = confirm_ms.map_or(String::new(), |ms| format!(",\"confirm_ms\":{ms}"));
        let text =
            format!("{{\"type\":\"publish\",\"channel\":\"{name}\",\"data\":{data}{confirm}}}");
        self.say(out, Pending::Publish(number), &text);
    }

    /// What has come of another life of the channel is not confirmed any more.
    pub(super) fn confirm(
        &mut self,
        out: &mut Vec<u8>,
        (channel, name): (usize, &str),
        (number, offset): (u64, u64),
    ) {
        let (epoch, _) = self.seen[&channel];
        let text = format!(
            "{{\"type\":\"confirm\",\"channel\":\"{name}\",\"epoch\":\"{epoch:016x}\",\"offset\":{offset}}}"
        );
        self.say(out, Pending::Confirm(number), &text);
    }

    pub(super) fn history(&mut self, out: &mut Vec<u8>, name: &str) {
        let text = format!("{{\"type\":\"history\",\"channel\":\"{name}\",\"limit\":5}}");
        self.say(out, Pending::History, &text);
    }

    /// Whether it is subscribed; changes whenever it may have missed something and knows.
    pub(super) fn listens(&self, channel: usize) -> Option<u64> {
        let is_live = matches!(self.views.get(&channel), Some(View::Live { .. })) && !self.over;
        self.turns.get(&channel).copied().filter(|_| is_live)
    }

    /// Whether it has got a publication on a channel that is not numbered.
    pub(super) fn has(&self, number: u64) -> bool {
        self.got.contains(&number)
    }

    /// Takes what has arrived.
    pub(super) fn received(
        &mut self,
        bytes: &[u8],
        (channels, truth): (&Channels, &Truth),
        receipts: &mut Receipts,
    ) {
        self.parser.push(bytes);
        while let Some(frame) = self.parser.next().expect("rule frames: whole frames") {
            match frame.opcode {
                ws::TEXT => {
                    let said: Said = serde_json::from_slice(&frame.payload).expect("an event");
                    self.heard(&said, (channels, truth), receipts);
                }
                ws::CLOSE => self.over = true,
                _ => {}
            }
        }
    }

    fn heard(
        &mut self,
        said: &Said,
        (channels, truth): (&Channels, &Truth),
        receipts: &mut Receipts,
    ) {
        let who = format!("k{}", self.number);
        let channel = said.channel.and_then(|name| channels.names.iter().position(|n| n == name));
        let epoch = said.epoch.map(|text| u64::from_str_radix(text, 16).expect("an epoch"));
        let numbered = channel.is_some_and(|channel| channel < channels.numbered);
        let name = said.channel.unwrap_or_default();
        let reply = said.id.and_then(|id| id.get().parse::<u64>().ok());
        let reply = reply.map(|id| {
            self.pending.remove(&id).unwrap_or_else(|| panic!("rule one-reply: {who}: {id}"))
        });
        match (said.kind, reply, channel) {
            ("message", None, Some(channel)) => {
                let (offset, data) = (said.offset.expect("an offset"), said.data.expect("data"));
                let number = number_in(data.get().as_bytes());
                let Some(View::Live { epoch, next }) = self.views.get_mut(&channel) else {
                    panic!("rule subscribed: {who} got {offset} of {name}");
                };
                assert_eq!(offset, *next, "rule dense: {who} on {name}, publication {number}");
                *next += 1;
                self.seen.insert(channel, (*epoch, offset));
                self.told.messages += 1;
                if receipts.is_asked(number, said) {
                    self.to_confirm.push((number, channel, offset));
                }
                if !numbered {
                    self.got.insert(number);
                } else {
                    let there = truth.at(name, *epoch, offset);
                    let what = "rule one-at-an-offset";
                    assert_eq!(there, Some(number), "{what}: {who} on {name} at {offset}");
                }
            }
            ("direct", None, None) => {
                let number = number_in(said.data.expect("data").get().as_bytes());
                let is_first = self.sent.insert((self.conn, number));
                assert!(is_first, "rule users: {who} gets {number} twice");
            }
            ("connected", None, None) => {}
            ("join" | "leave" | "count", None, Some(channel)) => {
                let is_live = matches!(self.views.get(&channel), Some(View::Live { .. }));
                assert!(is_live, "rule subscribed: {who} is told who is on {name}");
            }
            ("gap", None, Some(channel)) => self.told_of_gap(channel, said, epoch, channels, truth),
            ("subscribed", Some(Pending::Subscribe(channel)), _) => {
                self.is_subscribed(channel, said, epoch, channels, truth);
            }
            ("unsubscribed", Some(Pending::Unsubscribe(channel)), _) => {
                self.views.remove(&channel);
            }
            ("published", Some(Pending::Publish(number)), _) => {
                let Some(offset) = said.offset else {
                    assert!(numbered && epoch.is_none(), "rule acks: {who} on {name}");
                    self.spooled.push(number);
                    return;
                };
                let epoch = epoch.expect("an epoch");
                self.told.acknowledged += 1;
                receipts.is_published(number, epoch);
                self.own.insert((channel.expect("a channel"), epoch, offset), number);
                if numbered {
                    let there = truth.at(name, epoch, offset);
                    assert_eq!(there, Some(number), "rule acks: {who} on {name} at {offset}");
                }
            }
            ("receipts", None, Some(channel)) => {
                let place = (channel, epoch.expect("an epoch"), said.offset.expect("an offset"));
                let number = self.own.get(&place).copied();
                let number = number.unwrap_or_else(|| panic!("rule receipts: {who} at {place:?}"));
                receipts.told(number, self.number, said);
            }
            ("confirmed", Some(Pending::Confirm(number)), _) => {
                let in_time = said.in_time.expect("rule frames: in time or not");
                receipts.answered(number, self.number, in_time);
            }
            ("history", Some(Pending::History), _) => {
                let epoch = epoch.expect("an epoch");
                let mut before = None;
                for own in said.publications.iter().flatten().filter(|_| numbered) {
                    let number = number_in(own.data.get().as_bytes());
                    let there = truth.at(name, epoch, own.offset);
                    assert_eq!(there, Some(number), "rule history: {who} on {name}");
                    let fits = before.is_none_or(|before| own.offset == before + 1);
                    assert!(fits, "rule history: {who} on {name} has a hole");
                    before = Some(own.offset);
                }
            }
            ("error", Some(pending), _) => {
                let code = said.code.unwrap_or_default();
                let fits = code == "busy"
                    || code == "not_subscribed"
                    || code == "limit_reached" && matches!(pending, Pending::Publish(_))
                    || code == "bad_channel" && matches!(pending, Pending::History);
                assert!(fits, "rule reply-fits: {who} got {code} for {pending:?}");
                self.told.refused += 1;
                if let Pending::Subscribe(channel) = pending {
                    self.views.remove(&channel);
                }
            }
            other => panic!("rule frames: {who} got {other:?}"),
        }
    }

    fn told_of_gap(
        &mut self,
        channel: usize,
        said: &Said,
        epoch: Option<u64>,
        channels: &Channels,
        truth: &Truth,
    ) {
        let (who, name) = (format!("k{}", self.number), &channels.names[channel]);
        let numbered = channel < channels.numbered;
        let from: u64 = said.from.expect("from").get().parse().expect("a number");
        let (to, new) = (said.to.expect("to"), epoch.expect("an epoch"));
        let Some(View::Live { epoch, next }) = self.views.get_mut(&channel) else {
            panic!("rule subscribed: {who} was told of a gap of {name}");
        };
        self.told.gaps += 1;
        *self.turns.entry(channel).or_default() += 1;
        if new != *epoch {
            self.to_confirm.retain(|(_, of, _)| *of != channel);
            self.told.renewed += 1;
            if numbered {
                assert!(truth.knows(name, new), "rule epochs: {who} on {name}");
                let shared = truth.shared(name, *epoch, new);
                let due = shared.map_or(1, |shared| shared.saturating_add(1).min(*next));
                let what = "rule gap";
                // Nothing is said to be missing only where a life goes on.
                let nothing = shared.is_some() && from == to + 1;
                assert!(to >= from || nothing, "{what}: {who} on {name} {from}..={to}");
                let fits = from == due || from == 1 || (from, to) == (0, 0);
                assert!(fits, "{what}: {who} on {name} from {from}, not {due}");
            }
        } else {
            assert_eq!(from, *next, "rule gap: {who} on {name} begins elsewhere");
        }
        (*epoch, *next) = (new, to + 1);
        self.seen.insert(channel, (new, to));
    }

    fn is_subscribed(
        &mut self,
        channel: usize,
        said: &Said,
        epoch: Option<u64>,
        channels: &Channels,
        truth: &Truth,
    ) {
        let (who, name) = (format!("k{}", self.number), &channels.names[channel]);
        let numbered = channel < channels.numbered;
        let (epoch, offset) = (epoch.expect("an epoch"), said.offset.expect("an offset"));
        let Some(View::Asked { recover }) = self.views.get(&channel).copied() else {
            panic!("rule one-reply: {who} is subscribed to {name} twice");
        };
        let next = match (recover, said.recovered) {
            (Some((of, at)), Some(true)) => {
                self.told.recovered += 1;
                if numbered {
                    let shared = truth.shared(name, of, epoch);
                    let fits = shared.is_some_and(|shared| at <= shared);
                    assert!(fits, "rule recovery-whole: {who} on {name} behind {at}");
                }
                at + 1
            }
            (Some((of, at)), Some(false)) => {
                self.told.lost += 1;
                // An answer may be on its way while Redis begins another life, whose copy may be of before.
                let is_now = truth.newest(name).is_some_and(|(now, _)| now == epoch);
                let kept = numbered && is_now && truth.can_be_recovered(name, of, at);
                assert!(!kept, "rule recovers: {who} on {name} behind {at} of {of:016x}");
                offset + 1
            }
            (None, None) => offset + 1,
            other => panic!("rule reply-fits: {who} on {name}: {other:?}"),
        };
        assert!(next <= offset + 1, "rule recovery-whole: {who} is ahead on {name}");
        if numbered {
            assert!(truth.knows(name, epoch), "rule epochs: {who} on {name}");
        }
        if self.seen.get(&channel).is_some_and(|(before, _)| *before != epoch) {
            self.to_confirm.retain(|(_, of, _)| *of != channel);
        }
        self.views.insert(channel, View::Live { epoch, next });
        // Who is told that it has everything goes on where it was.
        if said.recovered != Some(true) {
            *self.turns.entry(channel).or_default() += 1;
        }
        self.seen.insert(channel, (epoch, next - 1));
    }

    /// Everything is quiet: nothing may be owed or missing.
    pub(super) fn settled(&self, channels: &Channels, truth: &Truth) {
        assert!(self.pending.is_empty(), "rule one-reply: k{} {:?}", self.number, self.pending);
        for (&channel, view) in
            self.views.iter().filter(|(channel, _)| **channel < channels.numbered)
        {
            let name = &channels.names[channel];
            let View::Live { epoch, next } = *view else {
                panic!("rule one-reply: k{} on {name}", self.number)
            };
            let newest = truth.newest(name).expect("it was published to");
            let who = format!("rule complete: k{} of node {} on {name}", self.number, self.node);
            assert_eq!((epoch, next), (newest.0, newest.1 + 1), "{who}");
        }
    }
}

/// A payload by this number, with so much behind it.
pub(super) fn payload(number: u64, filler: usize) -> String {
    format!("[{number},\"{}\"]", "x".repeat(filler))
}
