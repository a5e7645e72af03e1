//! One connection of a client: which commands are unanswered, and where each subscription stands.

mod refusals;

use std::collections::{BTreeMap, VecDeque};

use super::client::{Client, Scene, Speaks};
use super::control::Order;
use super::event::{Said, payload_of};
use super::judge::{Hole, Judge, Rule};
use super::ledger::{Believed, Found, Written};
use super::net::ConnId;
use super::policy::{self, Chance, Op};
use super::presence::List;
use super::raw::RawRun;
use super::rooms::Try;
use super::setup::Setup;
use super::talk::Talk;
use super::talk::rooms::RATE_MESSAGES;
use super::trace::{note, shown};
use super::ws::{self, Parser};

/// Whether a subscription stands, by the commands sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Yes,
    No,
    /// An error came between.
    Maybe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Subscribe {
        recover: Option<(u64, u64)>,
        /// What is said to enter a room.
        password: Option<usize>,
    },
    Unsubscribe,
    Publish(u64),
    History {
        after: Option<u64>,
        limit: Option<u32>,
    },
    /// Who is on a channel: from the first on, and how many at most.
    Presence {
        all: bool,
        limit: Option<u32>,
    },
    Ping,
    /// To a user: an order by this number.
    Send(usize),
    /// To be somebody, by what was noted of it; `None` to be told who it is.
    Auth {
        shown: Option<usize>,
    },
    /// Something that the application knows.
    Other,
    /// What a method gives to the call of this number.
    Call(u64),
    /// To say that a publication has come: perhaps that of this number.
    Confirm {
        number: Option<u64>,
        offset: u64,
    },
    /// To be refused with this code.
    Bad(&'static str),
}

/// A command without its reply.
#[derive(Debug)]
pub(crate) struct Pending {
    /// JSON text.
    pub(crate) id: Option<String>,
    pub(crate) want: Want,
    pub(crate) channel: Option<usize>,
    /// What stood before it.
    pub(crate) before: Intent,
    /// Turns that the shard had begun when it was sent.
    pub(crate) turn: u64,
    /// The moment when it was sent, as rooms count.
    pub(crate) at: u64,
}

/// A subscription as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Off,
    /// It was told that it is subscribed, in a dialect that tells no offsets.
    Told,
    /// `seam`: recovered up to here, without any gap.
    Live {
        epoch: u64,
        next: u64,
        seam: u64,
    },
}

/// One channel on one connection.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) intent: Intent,
    pub(crate) view: View,
    pub(crate) raw: RawRun,
    /// Turn in which it was told last that it has subscribed, and before which it has not unsubscribed.
    pub(crate) subscribed: u64,
    pub(crate) unsubscribed: u64,
    pub(crate) list: List,
    /// Attempts to subscribe, where it is a room.
    pub(crate) tries: Vec<Try>,
    /// The moment of the last `subscribed`, as rooms count.
    pub(crate) joined: u64,
    /// Of `raw.v1`: it was found that it may be in the room.
    pub(crate) entered: bool,
    /// Users that have come and gone by notices without versions: whether they have come.
    pub(crate) came: BTreeMap<String, bool>,
}

impl Own {
    pub(super) fn fresh() -> Own {
        Own {
            intent: Intent::No,
            view: View::Off,
            raw: RawRun::default(),
            subscribed: 0,
            unsubscribed: 0,
            list: List::default(),
            tries: Vec::new(),
            joined: 0,
            entered: false,
            came: BTreeMap::new(),
        }
    }
}

/// One connection of a client.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) conn: ConnId,
    pub(crate) who: String,
    pub(crate) parser: Parser,
    pub(crate) fragments: Option<(u8, Vec<u8>)>,
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) channels: BTreeMap<usize, Own>,
    pub(crate) echoes: VecDeque<(u8, Vec<u8>)>,
    /// Commands without an id that an error may answer.
    pub(crate) errors_open: u64,
    pub(crate) next_id: u64,
    /// Code of the server's close frame.
    pub(crate) close_seen: Option<u16>,
    /// Code of ours.
    pub(crate) close_sent: Option<u16>,
    /// Codes for what we broke.
    pub(crate) broke: Vec<u16>,
    /// A command was sent that `raw.v1` answers with a close.
    pub(crate) refusable: bool,
    /// In the middle of a frame that will never end.
    pub(crate) mute: bool,
    /// Sent, not handed to the network.
    pub(crate) out: Vec<u8>,
    pub(crate) drain_told: bool,
    /// The channel it subscribed to last.
    pub(crate) newest_channel: Option<usize>,
    pub(crate) found: Found,
    /// Who it has said in band that it is, where that may be believed.
    pub(crate) shown: Vec<Found>,
    /// Turn in which it was told that it is believed.
    pub(crate) vouched: Option<u64>,
    /// How it is named outside.
    pub(crate) name: Option<String>,
    /// Orders whose payload has come.
    pub(crate) directs: Vec<usize>,
    /// Commands of a message that is not sent yet.
    pub(crate) several: Option<Vec<String>>,
    /// What it was asked to confirm: number, channel and offset.
    pub(crate) to_confirm: Vec<(u64, usize, u64)>,
    /// When the frame was written that is looked at.
    pub(crate) written: Option<Written>,
    pub(crate) talk: Talk,
}

impl Link {
    pub(crate) fn new(conn: ConnId, who: String, found: Found) -> Link {
        Link {
            conn,
            who,
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
            mute: false,
            out: Vec::new(),
            drain_told: false,
            newest_channel: None,
            refusable: found.must_authenticate,
            found,
            shown: Vec::new(),
            vouched: None,
            name: None,
            directs: Vec::new(),
            several: None,
            to_confirm: Vec::new(),
            written: None,
            talk: Talk::default(),
        }
    }

    pub(crate) fn set_view(&mut self, channel: usize, view: View) {
        if let Some(own) = self.channels.get_mut(&channel) {
            own.view = view;
        }
    }

    /// What becomes of something that it does with a channel, as far as that is only a matter of what it may.
    pub(crate) fn chance(&self, op: Op, channel: usize, setup: &Setup) -> Chance {
        let group = setup.channels[channel].group;
        if self.found.must_authenticate && self.vouched.is_none() {
            return Chance { always: false, never: false, asked: false };
        }
        let of = |found: &Found| {
            let named = found.channels.contains(&channel);
            policy::chance(&setup.policies, &found.person, op, group, named)
        };
        // Whoever it is by then.
        let all = Chance { always: true, never: true, asked: true };
        self.founds().map(of).fold(all, Chance::and)
    }

    /// Whether what comes back can be told from other replies without an id.
    pub(crate) fn may_go_without_id(
        &self,
        want: Want,
        channel: Option<usize>,
        setup: &Setup,
    ) -> bool {
        let own = channel.and_then(|channel| self.channels.get(&channel));
        let intent = own.map_or(Intent::No, |own| own.intent);
        let open = self.pending.iter().any(|p| p.id.is_none() && p.channel == channel);
        let sure = !open && setup.messages_per_second_max == 0;
        match want {
            Want::Publish(_) | Want::Ping | Want::Confirm { .. } => true,
            Want::Unsubscribe => sure && intent == Intent::Yes,
            Want::Subscribe { recover: None, .. } => {
                let allowed = channel
                    .is_some_and(|channel| self.chance(Op::Subscribe, channel, setup).always);
                let room = self.channels.len() < setup.subscriptions_max as usize
                    && channel.is_some_and(|channel| {
                        let group = setup.group(channel);
                        group.members_max == 0 && group.room.is_none()
                    });
                // An order may end it before it begins.
                let sure = sure && setup.orders == 0;
                sure && intent == Intent::No && allowed && room && setup.channels_max >= 1000
            }
            _ => false,
        }
    }

    /// Whether all is as it should be, and nothing but the results of calls is waited for.
    pub(crate) fn is_at_ease(&self) -> bool {
        let is_call = |pending: &Pending| matches!(pending.want, Want::Call(_));
        self.is_whole() && self.pending.iter().all(is_call)
    }

    /// The same but for something else that is waited for.
    pub(crate) fn is_at_ease_but_for(&self, want: Want) -> bool {
        let fits =
            |pending: &Pending| matches!(pending.want, Want::Call(_)) || pending.want == want;
        self.is_whole() && self.pending.iter().all(fits)
    }

    fn is_whole(&self) -> bool {
        let ends = self.close_seen.is_some() || self.close_sent.is_some();
        !ends && !self.mute && self.broke.is_empty()
    }

    /// Whether replies are owed for what the server may have read.
    pub(crate) fn has_pending(&self) -> bool {
        !self.mute && self.pending.iter().any(|pending| pending.id.is_some())
    }

    /// The server subscribes it by itself, if it may.
    pub(crate) fn expect_at_once(&mut self, channel: usize, speaks: Speaks) {
        self.refusable = true;
        if speaks == Speaks::Echo {
            return;
        }
        let own = self.channels.entry(channel).or_insert_with(Own::fresh);
        own.intent = Intent::Maybe;
        own.raw.subscribes += 1;
        own.tries.push(Try { at: 0, password: None });
        if speaks.talks() {
            (own.raw.silent, own.subscribed) = (true, 0);
            self.errors_open += 1;
        }
        if speaks == Speaks::Ringfeed {
            self.errors_open += 1;
            let (recover, password) = (None, None);
            let (want, before) = (Want::Subscribe { recover, password }, Intent::Maybe);
            self.pending.push_back(Pending {
                id: None,
                want,
                channel: Some(channel),
                before,
                turn: 0,
                at: 0,
            });
        }
    }

    /// Notes what is to come back for a command.
    pub(crate) fn expect(
        &mut self,
        id: Option<String>,
        want: Want,
        channel: Option<usize>,
        raw: bool,
        scene: &mut Scene,
    ) {
        let chance = channel.map(|channel| self.chance(Op::Subscribe, channel, scene.setup));
        let chance = chance.unwrap_or_default();
        let mut before = Intent::Maybe;
        let touches = matches!(want, Want::Subscribe { .. } | Want::Unsubscribe);
        if let Some(channel) = channel.filter(|_| touches) {
            // A lobby is one, too.
            let most = scene.setup.subscriptions_max as usize;
            let most = most - self.talk.hidden_subscriptions();
            let others = self
                .channels
                .iter()
                .filter(|(other, own)| **other != channel && own.intent != Intent::No);
            let full = others.count() >= most
                || scene.setup.channels_max < 1000
                || scene.setup.group(channel).members_max > 0
                || scene.setup.group(channel).room.is_some();
            let (forbidden, sure) = (chance.never, chance.always);
            if raw && matches!(want, Want::Subscribe { .. }) {
                self.refusable |= !sure || full || scene.judge.draining;
            }
            // What the server does by itself may come at any time.
            let at_once = self.pending.iter().any(|p| p.turn == 0 && p.channel == Some(channel));
            let limited = self.is_limited(scene.setup);
            let own = self.channels.entry(channel).or_insert_with(Own::fresh);
            let at_once = at_once || own.raw.silent;
            if at_once {
                own.intent = Intent::Maybe;
            }
            before = own.intent;
            if matches!(want, Want::Subscribe { .. }) {
                self.newest_channel = Some(channel);
                // Not where it stands already: such a subscribe changes nothing.
                own.raw.subscribes += u32::from(own.intent != Intent::Yes);
                own.intent = match before {
                    _ if forbidden => before,
                    _ if limited => Intent::Maybe,
                    Intent::Yes => Intent::Yes,
                    _ if full || !sure || scene.judge.draining => Intent::Maybe,
                    _ => Intent::Yes,
                };
            } else {
                own.intent =
                    if limited && before != Intent::No { Intent::Maybe } else { Intent::No };
            }
            if at_once {
                own.intent = Intent::Maybe;
            }
            if let Want::Subscribe { password, .. } = want {
                self.tries(channel, password, scene.judge);
            }
        }
        if raw {
            return;
        }
        if id.is_none() {
            self.errors_open += 1;
            match (want, channel) {
                (Want::Publish(_), Some(channel)) => {
                    scene.judge.unacknowledged[channel] += 1;
                    return;
                }
                // Nothing is said to it.
                (Want::Confirm { .. }, _) => return,
                _ => {}
            }
        }
        let turn = scene.judge.ledgers.turns[scene.judge.ledgers.shard(self.conn)];
        let at = scene.judge.rooms.now();
        self.pending.push_back(Pending { id, want, channel, before, turn, at });
    }

    /// Whether what it sends may be one message too many.
    pub(super) fn is_limited(&self, setup: &Setup) -> bool {
        setup.messages_per_second_max > 0 || self.talk.said >= RATE_MESSAGES
    }

    /// Writes a message or a control frame, whole or in fragments.
    pub(crate) fn say(&mut self, opcode: u8, payload: &[u8], scene: &mut Scene) {
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

    /// A subscription was ended by the server: what was expected of commands on its way may not hold.
    pub(crate) fn ended_by_server(&mut self, channel: usize) {
        let mut under_way = false;
        for pending in self.pending.iter_mut().filter(|p| p.channel == Some(channel)) {
            pending.before = Intent::Maybe;
            under_way = true;
        }
        if let Some(own) = self.channels.get_mut(&channel) {
            own.view = View::Off;
            own.intent = if under_way { Intent::Maybe } else { Intent::No };
        }
    }

    /// Something of a channel has come: whether it may have it.
    pub(crate) fn check_allowed(&self, channel: usize, scene: &Scene) {
        let Some(Written { turn, ms }) = self.written.filter(|_| scene.setup.access) else {
            return;
        };
        let own = self.channels.get(&channel);
        let (since, subscribed) = own.map_or((0, 0), |own| (own.unsubscribed, own.subscribed));
        let of = (channel, scene.setup.channels[channel].group);
        let judge = &scene.judge;
        let ended = || {
            let of = (self.conn, self.name.as_deref());
            let ended = judge.is_ended(of, channel, subscribed, turn);
            ended.then_some("the API has ended its subscription")
        };
        let objection = judge.ledgers.objection(self.conn, of, turn, since);
        if let Some(why) = objection.or_else(ended) {
            let what = format_args!(
                "{} got something of {} that was written in turn {turn}, at {ms} ms: {why}",
                self.who, judge.names[channel]
            );
            judge.broken(Rule::Allowed, what);
        }
    }

    /// Whether it was ordered that a subscription ends.
    pub(crate) fn is_ordered_off(&self, channel: usize, judge: &Judge) -> bool {
        let name = &judge.names[channel];
        judge.orders.iter().any(|ordered| {
            matches!(&ordered.order, Order::Unsubscribe(of) if of == name)
                && judge.is_for(ordered, self.conn, self.name.as_deref())
        })
    }

    /// Whether it was ordered that the connection is closed with this code.
    pub(crate) fn is_ordered_closed(&self, code: u16, judge: &Judge) -> bool {
        judge.orders.iter().any(|ordered| {
            matches!(ordered.order, Order::Disconnect(of) if of == code)
                && judge.is_for(ordered, self.conn, self.name.as_deref())
        })
    }

    /// Everything is quiet: what was ordered for it while it was there is done.
    pub(crate) fn check_orders(&self, speaks: Speaks, judge: &Judge) {
        let Some(name) = &self.name else { return };
        for (number, ordered) in judge.orders.iter().enumerate() {
            if ordered.refused && self.directs.contains(&number) {
                let what = format_args!("{} got what order {number} sends: refused", self.who);
                judge.broken(Rule::Direct, what);
            }
            let there = ordered.there.iter().flatten().any(|there| there == name);
            if ordered.refused || !there || ordered.taken.is_none() {
                continue;
            }
            let shard = judge.ledgers.shard(self.conn);
            let rule = match &ordered.order {
                Order::Send(_) if self.directs.contains(&number) => continue,
                Order::Send(_) => Rule::Direct,
                // Of its end nobody is told.
                Order::Unsubscribe(_) if speaks == Speaks::Fluxus => continue,
                Order::Unsubscribe(channel) => {
                    let own = self.channels.iter().find(|(of, _)| judge.names[**of] == *channel);
                    match own {
                        Some((_, own))
                            if own.view != View::Off
                                && !own.raw.silent
                                && own.subscribed < ordered.sent[shard] => {}
                        _ => continue,
                    }
                    Rule::Ordered
                }
                Order::Disconnect(_) => Rule::Ordered,
            };
            let what =
                format_args!("{}: order {number} is not done: {:?}", self.who, ordered.order);
            judge.broken(rule, what);
        }
    }

    /// What an order has sent has come.
    pub(crate) fn direct(&mut self, number: usize, scene: &Scene) {
        let fits = scene.judge.orders.get(number).is_some_and(|ordered| {
            !ordered.refused && scene.judge.is_for(ordered, self.conn, self.name.as_deref())
        });
        if !fits || self.directs.contains(&number) {
            let what = format_args!("{} got what order {number} sends: fits {fits}", self.who);
            scene.judge.broken(Rule::Direct, what);
        }
        self.directs.push(number);
        let Some(Written { turn, .. }) = self.written.filter(|_| scene.setup.access) else {
            return;
        };
        if let Some(why) = scene.judge.ledgers.is_over(self.conn, turn) {
            let what = format_args!("{} got what order {number} sends: {why}", self.who);
            scene.judge.broken(Rule::Direct, what);
        }
    }

    /// Applies a reply; says what is wrong with it.
    pub(crate) fn reply(
        &mut self,
        pending: &Pending,
        said: &Said,
        named: Option<usize>,
        epoch: Option<u64>,
        seen: &mut BTreeMap<usize, (u64, u64)>,
        scene: &mut Scene,
    ) -> Option<&'static str> {
        if said.kind == "error" {
            return self.refused(pending, said.code.unwrap_or_default(), scene);
        }
        let Scene { setup, judge, .. } = scene;
        let own = |op| pending.channel.map(|channel| self.chance(op, channel, setup));
        let never = |op| own(op).is_some_and(|chance: Chance| chance.never);
        let (no_subscribe, no_publish) = (never(Op::Subscribe), never(Op::Publish));
        let channel = pending.channel.filter(|_| pending.channel == named);
        match (pending.want, said.kind) {
            (Want::Ping, "pong") => None,
            (Want::Other, "reply") => None,
            (Want::Call(number), "result") => {
                let own = said.data.is_some_and(|data| data.get() == format!("[{number}]"));
                (!own).then_some("it is the result of another call")
            }
            (Want::Send(_), "sent") => {
                let may = self.founds().any(|found| found.person.sends);
                (!may).then_some("it had to be refused")
            }
            (Want::Auth { shown }, "connected") => self.connected(pending, shown, said, scene),
            (Want::Subscribe { recover, password }, "subscribed") => {
                let (Some(channel), Some(epoch), Some(offset)) = (channel, epoch, said.offset)
                else {
                    return Some("channel, epoch or offset is missing");
                };
                judge.claim(channel, epoch, offset, &self.who);
                let from = recover.filter(|_| said.recovered == Some(true));
                if let Some((from_epoch, from)) = from
                    && (from_epoch != epoch || from > offset)
                {
                    let what = format_args!(
                        "{} asked for {from} of {from_epoch:016x} and is said to have recovered to \
                         {offset} of {epoch:016x}",
                        self.who
                    );
                    judge.broken(Rule::RecoveryWhole, what);
                }
                let next = from.map_or(offset, |(_, from)| from) + 1;
                let seam = from.map_or(0, |_| offset);
                self.set_view(channel, View::Live { epoch, next, seam });
                let tried = Try { at: pending.at, password };
                let entered = self.enters(channel, Some(&tried), "subscribed", (setup, judge));
                if judge.rooms.is_room(channel) && !entered {
                    let name = &judge.names[channel];
                    let what = format_args!("{} has entered {name} with {tried:?}", self.who);
                    judge.broken(Rule::RoomEnters, what);
                }
                if let Some(own) = self.channels.get_mut(&channel) {
                    own.list = List::default();
                    own.joined = judge.rooms.now();
                }
                seen.insert(channel, (epoch, next - 1));
                if pending.before == Intent::Yes || no_subscribe {
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
                judge.confirmations.accept(number);
                no_publish.then_some("it had to be refused")
            }
            (Want::Confirm { number, offset }, "confirmed") => {
                if channel.is_none() || said.offset != Some(offset) {
                    return Some("it is not what was confirmed");
                }
                Client::told_in_time(self.conn, number, said.in_time, scene)
            }
            (Want::History { after, limit }, "history") => {
                let (Some(channel), Some(epoch)) = (channel, epoch) else {
                    return Some("channel or epoch is missing");
                };
                if self.is_no_member(channel, setup) {
                    return Some("only members are shown what was said in a room");
                }
                let most = limit.unwrap_or(u32::MAX).min(setup.history_reply_max);
                self.history(said, (channel, epoch), after, most as usize, scene)
            }
            (Want::Presence { all, limit }, "presence") => {
                let Some(channel) = channel else { return Some("another channel is named") };
                if self.is_no_member(channel, setup) {
                    return Some("only members are shown who is in a room");
                }
                let own = self.channels.get_mut(&channel).filter(|own| own.view != View::Off);
                let list = own.map(|own| &mut own.list);
                Client::told_who_is_there(said, channel, (all, limit), list, scene)
            }
            _ => Some("another reply is due"),
        }
    }

    /// It is told who it is.
    fn connected(
        &mut self,
        pending: &Pending,
        shown: Option<usize>,
        said: &Said,
        scene: &mut Scene,
    ) -> Option<&'static str> {
        let Some(written) = self.written else { return Some("nothing was written") };
        self.name = said.connection.map(str::to_owned);
        let ledgers = &mut scene.judge.ledgers;
        let Some(shown) = shown else {
            let fits =
                ledgers.users(self.conn, written.turn).any(|user| user.as_deref() == said.user);
            return (!fits).then_some("it is another user");
        };
        self.vouched.get_or_insert(written.turn);
        let told = Believed { user: Some(said.user), expires_in_ms: Some(said.expires_in_ms) };
        ledgers.believe(self.conn, shown, pending.turn, written, told)
    }

    /// Publications of a history reply: known, dense, behind `after` and not too many.
    fn history(
        &self,
        said: &Said,
        (channel, epoch): (usize, u64),
        after: Option<u64>,
        most: usize,
        scene: &mut Scene,
    ) -> Option<&'static str> {
        let judge = &mut *scene.judge;
        let (Some(newest), Some(items)) = (said.offset, &said.publications) else {
            return Some("offset or publications are missing");
        };
        judge.claim(channel, epoch, newest, &self.who);
        let mut due = None;
        for item in items {
            let payload = payload_of(item.data, item.encoding, judge);
            if let Some(is) = payload.and_then(|payload| judge.identify(&payload, &self.who)) {
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
        (items.len() > most).then_some("more than were asked for")
    }

    /// Whether the reason of a close for lag names the first missing offset.
    pub(crate) fn check_reason(&mut self, reason: &str, raw: bool, scene: &mut Scene) {
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
            // What is recovered is given up with the right to have it, also while its reader is being closed.
            View::Live { next, seam, .. }
                if next <= seam && !self.chance(Op::Subscribe, channel, scene.setup).always =>
            {
                None
            }
            View::Live { epoch, next, seam } => {
                let (conn, who) = (self.conn, self.who.clone());
                let hole = Hole { channel, epoch, from: next, to: offset, conn, who };
                Some(if next > seam && judge.passes_over(hole) { offset } else { next })
            }
            View::Off | View::Told if raw && own.raw.knows_next() => own.raw.at.map(|at| at.1 + 1),
            View::Off | View::Told => None,
        };
        match (due, own.raw.last.filter(|_| raw && own.raw.knows_next())) {
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
