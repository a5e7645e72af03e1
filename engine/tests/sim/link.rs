//! One connection of a client: which commands are unanswered, and where each subscription stands.

use std::collections::{BTreeMap, VecDeque};

use super::client::Scene;
use super::event::{Said, payload_of};
use super::judge::Rule;
use super::net::ConnId;
use super::raw::RawRun;
use super::setup::Setup;
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
pub(crate) struct Pending {
    /// JSON text.
    pub(crate) id: Option<String>,
    pub(crate) want: Want,
    pub(crate) channel: Option<usize>,
    /// What stood before it.
    pub(crate) before: Intent,
}

/// A subscription as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
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
pub(crate) struct Own {
    pub(crate) intent: Intent,
    pub(crate) view: View,
    pub(crate) raw: RawRun,
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
}

impl Link {
    pub(crate) fn new(conn: ConnId, who: String) -> Link {
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
            refusable: false,
            mute: false,
            out: Vec::new(),
            drain_told: false,
            newest_channel: None,
        }
    }

    pub(crate) fn set_view(&mut self, channel: usize, view: View) {
        if let Some(own) = self.channels.get_mut(&channel) {
            own.view = view;
        }
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
    pub(crate) fn expect(
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
                self.newest_channel = Some(channel);
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
        let Scene { setup, judge, .. } = scene;
        let group = pending.channel.map(|channel| setup.group(channel));
        if said.kind == "error" {
            let code = said.code.unwrap_or_default();
            self.doubt_after(pending, code);
            return (!self.error_fits(pending, code, scene)).then_some("no such error is due");
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
                let (Some(channel), Some(epoch)) = (channel, epoch) else {
                    return Some("channel or epoch is missing");
                };
                let most = limit.unwrap_or(u32::MAX).min(setup.history_reply_max);
                self.history(said, (channel, epoch), after, most as usize, scene)
            }
            _ => Some("another reply is due"),
        }
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

    /// Whether a command may be refused with this code.
    fn error_fits(&self, pending: &Pending, code: &str, scene: &Scene) -> bool {
        let Scene { setup, judge, .. } = scene;
        let subscribing = matches!(pending.want, Want::Subscribe { .. });
        let publishing = matches!(pending.want, Want::Publish(_));
        let asking = matches!(pending.want, Want::History { .. });
        let group = pending.channel.map(|channel| setup.group(channel));
        match code {
            "rate_limited" => setup.messages_per_second_max > 0,
            "draining" => judge.draining && (subscribing || publishing || asking),
            "already_subscribed" => subscribing && pending.before != Intent::No,
            "not_subscribed" => {
                let refused = judge.draining || pending.before != Intent::Yes;
                pending.want == Want::Unsubscribe && refused
            }
            "limit_reached" => {
                let others = self.channels.keys().filter(|other| Some(**other) != pending.channel);
                let full = others.count() >= setup.subscriptions_max as usize;
                let table_full = setup.channels_max < 1000;
                (subscribing && (full || table_full)) || (publishing && table_full)
            }
            "forbidden" if subscribing || asking => group.is_some_and(|group| !group.subscribable),
            "forbidden" if publishing => group.is_some_and(|group| !group.publishable),
            "bad_channel" if asking => true,
            code => matches!(pending.want, Want::Bad(due) if due == code),
        }
    }

    /// A command was refused: what was expected of later ones on its channel may not hold.
    fn doubt_after(&mut self, pending: &Pending, code: &str) {
        let expected = match pending.want {
            Want::Subscribe { .. } => pending.before == Intent::Yes && code == "already_subscribed",
            Want::Unsubscribe => pending.before == Intent::No && code == "not_subscribed",
            _ => true,
        };
        let Some(channel) = pending.channel.filter(|_| !expected) else { return };
        if let Some(own) = self.channels.get_mut(&channel) {
            own.intent = Intent::Maybe;
        }
        for pending in self.pending.iter_mut().filter(|p| p.channel == Some(channel)) {
            pending.before = Intent::Maybe;
        }
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
