//! What clients may rely on (`docs/PROTOCOL.md`), and what all of them together have seen.
//!
//! The judge sees what travels and nothing else of the server. To add a rule: a line in `rules!`, and
//! a call of [`Judge::broken`] where it can be seen; the caller goes on as if nothing had happened, so
//! that every rule can be switched off.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::rc::Rc;
use std::time::Duration;

use super::confirm::Confirmations;
use super::control::{Order, Target};
use super::ledger::Ledgers;
use super::net::ConnId;
use super::rooms::Rooms;
use super::setup::Setup;
use super::takes::Takes;
use super::talk::{portico, rooms};

macro_rules! rules {
    ($($rule:ident $name:literal: $what:literal),* $(,)?) => {
        /// A promise to clients.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Rule { $(#[doc = $what] $rule),* }

        /// Every rule with its name and what it says.
        pub(crate) const RULES: &[(Rule, &str, &str)] = &[$((Rule::$rule, $name, $what)),*];
    };
}

rules! {
    Frames "frames": "what arrives is a run of whole frames that a server may send, holding events of the dialect",
    Dense "dense": "publications of a subscription come in order, without hole or repetition that no gap has told",
    Told "told": "a client of an existing system is told what its dialect promises, in that order: each request is answered once",
    Sender "sender": "who has sent something is said where that is told, and it is who it was",
    Timers "timers": "what a dialect does by the clock is done in time, for who is there",
    Payload "payload": "a payload arrives as it was published, on the channel it was published to",
    OneAtAnOffset "one-at-an-offset": "there is one publication at an offset, and everybody sees the same",
    NoEcho "no-echo": "a publication is not sent to the connection that is excepted from it, other than as what it missed",
    Subscribed "subscribed": "data of a channel comes after its subscribed reply and not after its unsubscribed one",
    Gap "gap": "a gap begins at the next offset, is not empty and covers only what was published",
    RecoveryWhole "recovery-whole": "recovered: true is told for the epoch given, and everything since arrives without gap",
    OneReply "one-reply": "each command with an id gets exactly one reply",
    ReplyFits "reply-fits": "a reply is one that the command may get",
    ReplyOrder "reply-order": "replies that concern one channel come in the order of the commands",
    AfterClose "after-close": "nothing follows a close frame",
    CloseCode "close-code": "the close code is one for what the client did",
    CloseReason "close-reason": "the reason of a close for lag names the first missing offset",
    CloseEnds "close-ends": "a closing handshake ends",
    CloseSaysWhy "close-says-why": "a connection that reads is not cut without a close frame",
    DrainWhole "drain-whole": "who is sent away by a drain has got everything that was ever appended for it",
    Complete "complete": "once things are quiet, who reads has everything it subscribed to",
    ReadersKeepUp "readers-keep-up": "who always reads is never gapped, nor closed as slow or lagged, whatever comes at once",
    SilentClosed "silent-closed": "a connection from which nothing comes is closed by the heartbeat",
    UnreadClosed "unread-closed": "a connection that does not read its replies is closed in the end",
    Sleeps "sleeps": "a shard with nothing to do sleeps, whatever its clients do",
    Settles "settles": "when nothing new happens, everything owed is done in bounded work",
    Baseline "baseline": "when everybody has left nothing is held",
    Allowed "allowed": "nothing of a channel is written to a connection that may not have it",
    AskedInOrder "asked-in-order": "what is asked about one connection comes in the order in which it came up, its end last",
    AskedFirst "asked-first": "what the application is to be asked about is published only if and as it allows",
    PublishOrder "publish-order": "publications of one publisher stand on a channel in the order in which they were sent",
    CallsHoldNothing "calls-hold-nothing": "who waits for the results of calls is answered to everything else",
    CallLimit "call-limit": "no connection has more calls under way than one may have",
    Direct "direct": "what is sent to a user or a connection reaches it once, and nobody else",
    Ordered "ordered": "what is ordered for a connection is done once things are quiet",
    TurnedOut "turned-out": "who has expired or was revoked is closed",
    UserLimit "user-limit": "no user has more connections than one may have",
    PresentAsTold "present-as-told": "who is said to be on a channel is there, and so says a list that was followed by the rules",
    MembersAtMost "members-at-most": "no channel has more members than it may",
    VersionsGrow "versions-grow": "what is told of who comes and goes has versions that grow",
    Receipts "receipts": "a publisher who wants it is told once who has confirmed, which is true, and who has not in time",
    HeardInOrder "heard-in-order": "the application is told of each user who comes to a channel and leaves it, in turn, and knows who is there",
    Takes "takes": "what clients publish is published only where the channel takes it, and refused for that only where it does not",
    RateAtMost "rate-at-most": "clients together publish no more often to a channel than they may, in any time",
    RoomEnters "room-enters": "in a room are those who may enter it, and whoever is refused may not",
    RoomSpeaks "room-speaks": "in a room nobody is heard who may not speak there, and whoever is refused may not",
    RoomEnds "room-ends": "who was in a room that has ended is there no more",
    RoomsOfUser "rooms-of-user": "no user is in more rooms than one may be",
    Once "once": "what is sent again with its idempotency key is published once, and the answers to it agree",
    Api "api": "requests of the control thread are answered, and the answers agree with what clients see",
}

/// How a payload is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Json,
    Text,
    Binary,
}

/// What stands at an offset: a payload of no bytes has no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ident {
    Empty,
    Number(u64),
}

/// What somebody got last on a channel: where it stands, or what it was.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Last {
    At(u64, u64),
    Is(Ident),
}

#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) channel: usize,
    pub(crate) kind: Kind,
    pub(crate) len: usize,
    /// The connection; `None` for the API.
    pub(crate) by: Option<ConnId>,
    /// Who is not to get it.
    except: Option<ConnId>,
    /// The application has to be asked.
    must_ask: bool,
    asked: Asked,
    /// Epoch and offset, once anybody knows.
    pub(crate) place: Option<(u64, u64)>,
    /// When it was sent, and when anybody knew of it first.
    pub(crate) ms: (u64, u64),
    /// What is relayed as it came, perhaps with something behind it.
    relayed: Option<String>,
    /// It has an idempotency key, and was sent with it once more.
    pub(crate) is_sent_again: bool,
    /// It was answered as published, and not before.
    pub(crate) is_acknowledged: bool,
}

/// What the application has said to a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It was not asked.
    Not,
    Waiting,
    Allowed,
    Refused,
}

/// What was ordered for connections, and what came of it.
#[derive(Debug)]
pub(crate) struct Ordered {
    pub(crate) target: Target,
    pub(crate) order: Order,
    /// Names of the connections that were there just before.
    pub(crate) there: Option<Vec<String>>,
    /// How many connections there had been when it was answered.
    pub(crate) taken: Option<usize>,
    /// Turns of the shards when it was sent.
    pub(crate) sent: Vec<u64>,
    /// Of a connection's: turns of its shard when it was done.
    pub(crate) done: Option<u64>,
    /// Nobody is to get it.
    pub(crate) refused: bool,
}

/// Offsets of a channel that a connection was not sent.
#[derive(Debug, Clone)]
pub(crate) struct Hole {
    pub(crate) channel: usize,
    pub(crate) epoch: u64,
    /// The first, …
    pub(crate) from: u64,
    /// … and the first behind them.
    pub(crate) to: u64,
    pub(crate) conn: ConnId,
    pub(crate) who: String,
}

/// One life of a channel.
#[derive(Debug, Default)]
struct Life {
    offsets: BTreeMap<u64, Ident>,
    /// The newest offset that anybody was told of.
    newest: u64,
    /// An offset that was told where it is not known yet that it exists, and by whom.
    claimed: Option<(u64, String)>,
}

/// See the module's description.
pub(crate) struct Judge {
    on: u64,
    pub(crate) names: Vec<String>,
    /// Of each channel.
    pub(crate) takes: Vec<Takes>,
    elapsed: Rc<Cell<Duration>>,
    lives: Vec<BTreeMap<u64, Life>>,
    pub(crate) publications: Vec<Publication>,
    /// Publications without acknowledgement, by channel: they may or may not have an offset.
    pub(crate) unacknowledged: Vec<u64>,
    /// Publications tried, by channel.
    submitted: Vec<u64>,
    /// Runs of publications seen by `raw.v1` clients without any known offset: resolved at the end.
    runs: Vec<(usize, String, Vec<Ident>)>,
    /// Reasons of closes to be checked when offsets are known: channel, last seen, offset named, who.
    reasons: Vec<(Ident, u64, String)>,
    /// What connections were not sent, to be looked at when it is known what it was.
    holes: Vec<Hole>,
    /// Publications whose publishers a drain has sent away without an answer.
    unanswered: Vec<(u64, String)>,
    /// Subscriptions that a drain has ended: channel, what came last, whose, who.
    sent_away: Vec<(usize, Last, ConnId, String)>,
    pub(crate) ledgers: Ledgers,
    pub(crate) orders: Vec<Ordered>,
    pub(crate) confirmations: Confirmations,
    pub(crate) rooms: Rooms,
    /// What connections have seen of channels that do not get all that they publish: channel, whose, who, in order.
    seen: Vec<(usize, ConnId, String, Vec<Ident>)>,
    /// How often clients of lobbies have said, or may have, that a user is online, away, …
    pub(crate) announced: BTreeMap<(String, String), u64>,
    /// Calls that were made.
    calls: u64,
    pub(crate) draining: bool,
    pub(crate) deliveries: u64,
    pub(crate) gaps: u64,
    pub(crate) closes: BTreeMap<u16, u64>,
}

impl Judge {
    pub(crate) fn new(
        setup: &Setup,
        ledgers: Ledgers,
        elapsed: Rc<Cell<Duration>>,
        on: u64,
    ) -> Judge {
        let rooms = Rooms::new(setup);
        let names: Vec<String> = setup.channels.iter().map(|own| own.name.clone()).collect();
        Judge {
            on,
            takes: (0..names.len()).map(|channel| setup.group(channel).takes).collect(),
            elapsed,
            lives: names.iter().map(|_| BTreeMap::new()).collect(),
            unacknowledged: vec![0; names.len()],
            submitted: vec![0; names.len()],
            names,
            publications: Vec::new(),
            runs: Vec::new(),
            reasons: Vec::new(),
            holes: Vec::new(),
            unanswered: Vec::new(),
            sent_away: Vec::new(),
            confirmations: Confirmations::default(),
            seen: Vec::new(),
            announced: BTreeMap::new(),
            calls: 0,
            ledgers,
            orders: Vec::new(),
            rooms,
            draining: false,
            deliveries: 0,
            gaps: 0,
            closes: BTreeMap::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.elapsed.get().as_millis() as u64
    }

    pub(crate) fn is_on(&self, rule: Rule) -> bool {
        self.on & (1 << rule as u64) != 0
    }

    /// Ends the run, unless the rule is switched off.
    #[track_caller]
    pub(crate) fn broken(&self, rule: Rule, what: Arguments) {
        if self.is_on(rule) {
            let (_, name, says) = RULES[rule as usize];
            panic!("rule {name}: {what}\n  ({says})");
        }
    }

    /// A new publication, unlike all others; `len` bytes as far as they hold its number.
    pub(crate) fn publication(&mut self, channel: usize, kind: Kind, len: usize) -> u64 {
        let number = self.publications.len() as u64 + 1;
        self.submitted[channel] += 1;
        let (asked, by, except) = (Asked::Not, None, None);
        let publication = Publication {
            channel,
            kind,
            len,
            by,
            except,
            must_ask: false,
            asked,
            place: None,
            ms: (self.now_ms(), 0),
            relayed: None,
            is_sent_again: false,
            is_acknowledged: false,
        };
        self.publications.push(publication);
        number
    }

    /// A publication is a client's own message.
    pub(crate) fn relayed(&mut self, number: u64, text: &str) {
        self.publications[number as usize - 1].relayed = Some(text.to_owned());
    }

    /// A connection is not to get it.
    pub(crate) fn except(&mut self, number: u64, conn: ConnId) {
        self.publications[number as usize - 1].except = Some(conn);
    }

    /// Whether a connection is not to get what this is.
    pub(crate) fn is_except(&self, is: Ident, conn: ConnId) -> bool {
        matches!(is, Ident::Number(number)
            if self.publications[number as usize - 1].except == Some(conn))
    }

    /// Somebody goes on at `to` of a channel where `from` was due: all between must be what it is not to get.
    /// Returns whether it can be; that it is shows in the end.
    pub(crate) fn passes_over(&mut self, hole: Hole) -> bool {
        let Hole { channel, epoch, from, to, conn, .. } = hole;
        let can_be = |publication: &&Publication| {
            let there =
                publication.place.is_none_or(|(of, at)| of == epoch && from <= at && at < to);
            publication.channel == channel && publication.except == Some(conn) && there
        };
        let fits =
            from <= to && self.publications.iter().filter(can_be).count() as u64 >= to - from;
        if fits && from < to {
            self.holes.push(hole);
        }
        fits
    }

    /// A client has sent it; perhaps the application has to be asked.
    pub(crate) fn sent_by(&mut self, number: u64, conn: ConnId, must_ask: bool) {
        let publication = &mut self.publications[number as usize - 1];
        (publication.by, publication.must_ask) = (Some(conn), must_ask);
    }

    /// The number of the publication in a payload that has one.
    pub(crate) fn number_in(&self, payload: &[u8]) -> Option<u64> {
        if rooms::is_announcement(payload) {
            return None;
        }
        match self.identify(payload, "the application") {
            Some(Ident::Number(number)) => Some(number),
            _ => None,
        }
    }

    /// Whether it may not be decided yet if something that a connection has sent is published: the application has not
    /// said so, or the home, which may refuse it, holds it back for readers who are behind.
    pub(crate) fn awaits_word(&self, conn: ConnId) -> bool {
        let mut own = self.publications.iter().filter(|own| own.by == Some(conn));
        own.any(|own| {
            let limited = self.takes[own.channel].per_second > 0 || self.rooms.is_room(own.channel);
            own.place.is_none()
                && match own.asked {
                    Asked::Waiting | Asked::Allowed => true,
                    Asked::Not => own.must_ask || limited,
                    Asked::Refused => false,
                }
        })
    }

    /// The application was asked about a payload, or has answered: perhaps it is to be another one.
    pub(crate) fn say(&mut self, payload: &[u8], said: Asked, instead: Option<(Kind, usize)>) {
        let Some(number) = self.number_in(payload) else { return };
        let publication = &mut self.publications[number as usize - 1];
        publication.asked = said;
        if let Some((kind, len)) = instead {
            (publication.kind, publication.len, publication.relayed) = (kind, len, None);
        }
    }

    /// Something was ordered.
    pub(crate) fn order(&mut self, target: Target, order: Order) -> usize {
        let sent = self.ledgers.turns.clone();
        let (there, taken, done, refused) = (None, None, None, false);
        self.orders.push(Ordered { target, order, there, taken, sent, done, refused });
        self.orders.len() - 1
    }

    /// Whether an order is for a connection.
    pub(crate) fn is_for(&self, ordered: &Ordered, conn: ConnId, name: Option<&str>) -> bool {
        ordered.taken.is_none_or(|there| conn < there)
            && match &ordered.target {
                Target::User(user) => self.ledgers.was(conn, *user),
                Target::Connection(of) => name.is_none_or(|name| name == of),
            }
    }

    /// Whether what is written in a turn belongs to a subscription that an order had ended by then; `subscribed` is
    /// when its client was told of it.
    pub(crate) fn is_ended(
        &self,
        (conn, name): (ConnId, Option<&str>),
        channel: usize,
        subscribed: u64,
        turn: u64,
    ) -> bool {
        let shard = self.ledgers.shard(conn);
        self.orders.iter().any(|ordered| {
            let by_name = matches!(&ordered.target, Target::Connection(of) if Some(&**of) == name);
            let of_it =
                matches!(&ordered.order, Order::Unsubscribe(of) if *of == self.names[channel]);
            let Some(done) = ordered.done.filter(|_| by_name && of_it) else { return false };
            // Of `raw.v1` nobody is told.
            (1..ordered.sent[shard]).contains(&subscribed) && done < turn
        })
    }

    pub(crate) fn payload(&self, number: u64) -> Vec<u8> {
        let publication = &self.publications[number as usize - 1];
        if let Some(text) = &publication.relayed {
            return text.clone().into_bytes();
        }
        payload(number, publication.kind, publication.len)
    }

    pub(crate) fn ident(&self, number: u64) -> Ident {
        let Publication { kind, len, .. } = self.publications[number as usize - 1];
        if kind != Kind::Json && len == 0 { Ident::Empty } else { Ident::Number(number) }
    }

    /// Which publication a payload is, after checking it to the byte.
    pub(crate) fn identify(&self, payload: &[u8], who: &str) -> Option<Ident> {
        if payload.is_empty() {
            return Some(Ident::Empty);
        }
        let start = payload.iter().position(u8::is_ascii_digit).unwrap_or(payload.len());
        let digits = payload[start..].iter().take_while(|b| b.is_ascii_digit());
        let number =
            digits.fold(0u64, |n, &b| n.saturating_mul(10).saturating_add(u64::from(b - b'0')));
        if number == 0 || number > self.publications.len() as u64 {
            let shown = super::trace::shown(payload);
            self.broken(Rule::Payload, format_args!("{who} got what nobody published: {shown}"));
            return None;
        }
        let relays = self.publications[number as usize - 1].relayed.is_some();
        let as_it_was = if relays { portico::without_context(payload) } else { payload.into() };
        if *self.payload(number) != *as_it_was {
            let (shown, whole) =
                (super::trace::shown(payload), super::trace::shown(&self.payload(number)));
            let what = format_args!("{who} got publication {number} as {shown}, not as {whole}");
            self.broken(Rule::Payload, what);
            return None;
        }
        Some(Ident::Number(number))
    }

    /// Somebody has seen a publication at an offset.
    pub(crate) fn learn(&mut self, channel: usize, epoch: u64, offset: u64, is: Ident, who: &str) {
        let name = &self.names[channel];
        if let Ident::Number(number) = is {
            let publication = &self.publications[number as usize - 1];
            if publication.channel != channel {
                let of = &self.names[publication.channel];
                let what = format_args!("{who} got publication {number} of {of} on {name}");
                return self.broken(Rule::Payload, what);
            }
            match publication.place {
                Some(place) if place != (epoch, offset) => {
                    let what = format_args!(
                        "{who} got publication {number} of {name} at {offset} of {epoch:016x}; \
                         it was at {} of {:016x}",
                        place.1, place.0
                    );
                    return self.broken(Rule::OneAtAnOffset, what);
                }
                None if matches!(publication.asked, Asked::Waiting | Asked::Refused)
                    || publication.must_ask && publication.asked == Asked::Not =>
                {
                    let what = format_args!(
                        "{who} got publication {number} of {name}; the application: {:?}",
                        publication.asked
                    );
                    return self.broken(Rule::AskedFirst, what);
                }
                Some(_) => {}
                None => {
                    if publication.by.is_some() {
                        self.check_taken(number, who);
                    }
                    let now_ms = self.now_ms();
                    let publication = &mut self.publications[number as usize - 1];
                    (publication.place, publication.ms.1) = (Some((epoch, offset)), now_ms);
                }
            }
            if let Some(why) = self.rooms.is_heard(number) {
                let name = &self.names[channel];
                let what = format_args!("{who} got publication {number} of {name}: {why}");
                return self.broken(Rule::RoomSpeaks, what);
            }
        }
        let life = self.lives[channel].entry(epoch).or_default();
        life.newest = life.newest.max(offset);
        let there = *life.offsets.entry(offset).or_insert(is);
        if there != is {
            let what = format_args!(
                "{who} got {is:?} of {} at {offset} of {epoch:016x}, where {there:?} stands",
                self.names[channel]
            );
            self.broken(Rule::OneAtAnOffset, what);
        }
    }

    /// Somebody was told that publications up to `offset` exist.
    pub(crate) fn claim(&mut self, channel: usize, epoch: u64, offset: u64, who: &str) {
        let life = self.lives[channel].entry(epoch).or_default();
        let before = life.claimed.as_ref().map_or(0, |claimed| claimed.0);
        if offset > life.newest && offset > before {
            life.claimed = Some((offset, who.to_owned()));
        }
        let submitted = self.submitted[channel];
        if offset > submitted {
            let name = &self.names[channel];
            let what =
                format_args!("{who} was told of {offset} on {name}; {submitted} were published");
            self.broken(Rule::Gap, what);
        }
    }

    /// Where a publication stands, as far as is known.
    pub(crate) fn place(&self, is: Ident) -> Option<(u64, u64)> {
        match is {
            Ident::Empty => None,
            Ident::Number(number) => self.publications[number as usize - 1].place,
        }
    }

    /// What a `raw.v1` client has seen of a channel, in order, with no offset known.
    pub(crate) fn run(&mut self, channel: usize, who: &str, run: Vec<Ident>) {
        if run.len() > 1 {
            self.runs.push((channel, who.to_owned(), run));
        }
    }

    /// What a connection has seen of a channel, in order, that is not sent all that it publishes there.
    pub(crate) fn seen(&mut self, channel: usize, conn: ConnId, who: &str, seen: Vec<Ident>) {
        if seen.len() > 1 {
            self.seen.push((channel, conn, who.to_owned(), seen));
        }
    }

    /// Between two publications that somebody has seen one behind the other there are only those it is not to get.
    fn are_seen_whole(&mut self) {
        for (channel, conn, who, seen) in std::mem::take(&mut self.seen) {
            for pair in seen.windows(2) {
                let (Some((epoch, last)), Some(next)) = (self.place(pair[0]), self.place(pair[1]))
                else {
                    continue;
                };
                let (from, to) = (last + 1, next.1);
                let hole = Hole { channel, epoch, from, to, conn, who: who.clone() };
                if next.0 != epoch || !self.passes_over(hole) {
                    let name = &self.names[channel];
                    let what = format_args!("{who} got {to} of {name} where {from} was due");
                    self.broken(Rule::Dense, what);
                }
            }
        }
    }

    /// A close for lag has named an offset as the first missing behind `last`.
    pub(crate) fn reason(&mut self, last: Ident, named: u64, who: &str) {
        self.reasons.push((last, named, who.to_owned()));
    }

    /// A drain has ended a subscription that stood at `last`: nothing may ever be seen behind it.
    pub(crate) fn sent_away(&mut self, channel: usize, last: Last, conn: ConnId, who: &str) {
        self.sent_away.push((channel, last, conn, who.to_owned()));
    }

    /// A drain has sent a publisher away without an answer: nobody may ever see the publication.
    pub(crate) fn unanswered(&mut self, number: u64, who: &str) {
        self.unanswered.push((number, who.to_owned()));
    }

    /// What could not be decided before everything was known.
    pub(crate) fn resolve(&mut self) {
        let mut runs = std::mem::take(&mut self.runs);
        let mut before = usize::MAX;
        while runs.len() < before {
            before = runs.len();
            for (channel, who, run) in std::mem::take(&mut runs) {
                let known =
                    run.iter().enumerate().find_map(|(at, &is)| Some((at, self.place(is)?)));
                let Some((at, (epoch, offset))) = known else {
                    runs.push((channel, who, run));
                    continue;
                };
                let Some(first) = offset.checked_sub(at as u64).filter(|&first| first > 0) else {
                    let what = format_args!("{who} got {at} publications before offset {offset}");
                    self.broken(Rule::Dense, what);
                    continue;
                };
                for (offset, is) in (first..).zip(run) {
                    self.learn(channel, epoch, offset, is, &who);
                }
            }
        }
        self.are_in_order();
        self.check_rates();
        self.are_seen_whole();
        for (last, named, who) in std::mem::take(&mut self.reasons) {
            if let Some((_, offset)) = self.place(last)
                && named != offset + 1
            {
                let what =
                    format_args!("{who}: the reason names {named}; {} is missing", offset + 1);
                self.broken(Rule::CloseReason, what);
            }
        }
        for (number, who) in std::mem::take(&mut self.unanswered) {
            if let Some((_, offset)) = self.place(self.ident(number)) {
                let what = format_args!("{who} was not told of {number}, which stands at {offset}");
                self.broken(Rule::OneReply, what);
            }
        }
        for Hole { channel, epoch, from, to, conn, who } in std::mem::take(&mut self.holes) {
            let Some(life) = self.lives[channel].get(&epoch) else { continue };
            // What nobody has seen was counted when it was passed over.
            let seen = life.offsets.range(from..to);
            let mut others =
                seen.filter(|(_, is)| **is != Ident::Empty && !self.is_except(**is, conn));
            if let Some((offset, is)) = others.next() {
                let name = &self.names[channel];
                let what = format_args!("{who} was not sent {offset} of {name}, which is {is:?}");
                self.broken(Rule::Dense, what);
            }
        }
        for (channel, last, conn, who) in std::mem::take(&mut self.sent_away) {
            let place = match last {
                Last::At(epoch, offset) => Some((epoch, offset)),
                Last::Is(ident) => self.place(ident),
            };
            let Some((epoch, last)) = place else { continue };
            let newest = self.lives[channel].get(&epoch).map_or(0, |life| life.newest);
            let hole = (channel, epoch, last + 1, newest + 1);
            let (channel, epoch, from, to) = hole;
            let hole = Hole { channel, epoch, from, to, conn, who: who.clone() };
            if newest > last && !self.passes_over(hole) {
                let name = &self.names[channel];
                let what =
                    format_args!("{who} was sent away at {last} of {name}; {newest} is there, too");
                self.broken(Rule::DrainWhole, what);
            }
        }
        for (channel, lives) in self.lives.iter().enumerate() {
            for life in lives.values() {
                if let Some((offset, who)) = &life.claimed
                    && *offset > life.newest
                    && self.unacknowledged[channel] == 0
                {
                    let name = &self.names[channel];
                    let what = format_args!(
                        "{who} was told of {offset} on {name}; the newest is {}",
                        life.newest
                    );
                    self.broken(Rule::Gap, what);
                }
            }
        }
    }

    /// Publications of one publisher stand in the order in which they were sent.
    fn are_in_order(&self) {
        let mut last: BTreeMap<(Option<ConnId>, usize, u64), (u64, usize)> = BTreeMap::new();
        for (at, publication) in self.publications.iter().enumerate() {
            // Where the first one was refused, it stands where it was sent again.
            let place = publication.place.filter(|_| !publication.is_sent_again);
            let Some((epoch, offset)) = place else { continue };
            let key = (publication.by, publication.channel, epoch);
            let before = last.insert(key, (offset, at + 1));
            if let Some((earlier, number)) = before.filter(|(earlier, _)| *earlier > offset) {
                let what = format_args!(
                    "{number} stands at {earlier} of {}, and {} behind it at {offset}",
                    self.names[publication.channel],
                    at + 1
                );
                self.broken(Rule::PublishOrder, what);
            }
        }
    }

    /// A number for one more call.
    pub(crate) fn next_call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    /// The control thread was told where a channel stands.
    pub(crate) fn newest(&mut self, channel: usize, epoch: u64, offset: u64) {
        let life = self.lives[channel].entry(epoch).or_default();
        let seen = life.newest;
        if seen > offset {
            let name = &self.names[channel];
            let what = format_args!("{name} is said to stand at {offset}; {seen} was seen");
            return self.broken(Rule::Api, what);
        }
        self.lives[channel].entry(epoch).or_default().newest = offset;
    }
}

/// The payload of an order by this number.
pub(crate) fn direct(order: usize) -> Vec<u8> {
    format!("{{\"direct\":{order}}}").into_bytes()
}

/// The order whose payload this is.
pub(crate) fn direct_in(payload: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(payload).ok()?;
    text.strip_prefix("{\"direct\":")?.strip_suffix('}')?.parse().ok()
}

/// The bytes of a publication: its number, and a filler that is its own.
pub(crate) fn payload(number: u64, kind: Kind, len: usize) -> Vec<u8> {
    let letter = |at: usize| b'a' + ((number as usize * 7 + at) % 26) as u8;
    let mut bytes = Vec::with_capacity(len + 24);
    match kind {
        Kind::Text | Kind::Binary if len == 0 => {}
        Kind::Json if len < 24 => bytes.extend_from_slice(number.to_string().as_bytes()),
        Kind::Json if number.is_multiple_of(2) => {
            bytes.extend_from_slice(format!("{{ \"i\" :{number},\"x\":[null, 1.50,\"").as_bytes());
            let left = len.saturating_sub(bytes.len() + 3);
            bytes.extend((0..left).map(letter));
            bytes.extend_from_slice(b"\"]}");
        }
        Kind::Json => {
            bytes.extend_from_slice(format!("\"{number}:").as_bytes());
            let left = len.saturating_sub(bytes.len() + 1);
            bytes.extend((0..left).map(letter));
            bytes.push(b'"');
        }
        Kind::Text => {
            bytes.extend_from_slice(format!("{number}:").as_bytes());
            for at in 0..len.saturating_sub(bytes.len()) {
                match at % 16 {
                    5 => bytes.extend_from_slice("é".as_bytes()),
                    9 => bytes.push(b'"'),
                    13 => bytes.push(b'\n'),
                    _ => bytes.push(letter(at)),
                }
            }
        }
        Kind::Binary => {
            bytes.extend_from_slice(format!("{number}:").as_bytes());
            let left = len.saturating_sub(bytes.len());
            bytes.extend((0..left).map(|at| (number as usize * 31 + at * 7) as u8));
        }
    }
    bytes
}
