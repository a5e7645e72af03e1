//! What a client makes of what arrives. What concerns more than its own connection goes to the
//! [`Judge`].

use serde_json::value::RawValue;

use super::client::{Client, Scene, Speaks};
use super::event::{Said, payload_of};
use super::judge::{self, Hole, Ident, Judge, Kind, Last, Rule};
use super::link::{Intent, Pending, View, Want};
use super::policy::Op;
use super::setup::Setup;
use super::talk::rooms::LOBBY;
use super::trace::{note, shown};
use super::ws::{self, Frame};

/// A close frame waits no longer than this behind what a slow shard has to send to somebody who reads.
const QUIET_MS: u64 = 20_000;

impl Client {
    /// Takes what has arrived.
    pub(crate) fn received(&mut self, bytes: &[u8], scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        link.parser.push(bytes);
        loop {
            let position = self.link.as_ref().map_or(0, |link| link.parser.position());
            let frame = match self.link.as_mut().map(|link| link.parser.next()) {
                Some(Ok(Some(frame))) => frame,
                Some(Err(what)) => {
                    let who = self.link.as_ref().map_or("", |link| &link.who);
                    return scene.judge.broken(Rule::Frames, format_args!("{who}: {what}"));
                }
                _ => return,
            };
            while scene.written.front().is_some_and(|(end, _)| *end <= position) {
                scene.written.pop_front();
            }
            if let Some(link) = &mut self.link {
                link.written = scene.written.front().map(|(_, written)| *written);
            }
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
            Speaks::Rooms | Speaks::Fluxus | Speaks::Portico => self.talked(opcode, body, scene),
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
        if let Some(number) = judge::direct_in(body) {
            return link.direct(number, scene);
        }
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
        link.check_allowed(channel, scene);
        link.check_entered(channel, (scene.setup, scene.judge));
    }

    fn said(&mut self, said: &Said, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        let named = said.channel.and_then(|n| scene.judge.names.iter().position(|own| own == n));
        let epoch = said.epoch.and_then(|text| u64::from_str_radix(text, 16).ok());
        match said.kind {
            "message" => self.heard(said, named, scene),
            "gap" => {
                scene.judge.gaps += 1;
                let (Some(channel), Some(epoch), Some(from), Some(to)) =
                    (named, epoch, said.from.and_then(|from| from.get().parse().ok()), said.to)
                else {
                    return scene.judge.broken(Rule::Frames, format_args!("{who} got half a gap"));
                };
                let view = link.channels.get(&channel).map_or(View::Off, |own| own.view);
                let View::Live { epoch: own_epoch, next, seam } = view else {
                    let what = format_args!("{who} got a gap of a channel that is not subscribed");
                    return scene.judge.broken(Rule::Subscribed, what);
                };
                let name = scene.judge.names[channel].clone();
                let conn = link.conn;
                let hole = Hole { channel, epoch, from: next, to: from, conn, who: who.clone() };
                let goes_on = from == next || next > seam && scene.judge.passes_over(hole);
                // Of notices alone it is empty.
                let least = from - u64::from(scene.setup.group(channel).join_leave);
                if !goes_on || to < least || epoch != own_epoch {
                    let what = format_args!(
                        "{who} got a gap {from}..={to} of {name} where {next} was due"
                    );
                    scene.judge.broken(Rule::Gap, what);
                }
                if from <= seam && to >= from {
                    let what =
                        format_args!("{who} got a gap from {from} of {name}, recovered to {seam}");
                    scene.judge.broken(Rule::RecoveryWhole, what);
                }
                if self.habit.is_never_late(scene.setup) {
                    let what =
                        format_args!("{who} always reads and got a gap {from}..={to} of {name}");
                    scene.judge.broken(Rule::ReadersKeepUp, what);
                }
                scene.judge.claim(channel, epoch, to, &who);
                link.set_view(channel, View::Live { epoch, next: to + 1, seam });
                link.channels.entry(channel).and_modify(|own| own.list.forget());
                self.seen.insert(channel, (epoch, to));
            }
            "receipts" => self.told_receipts(said, (named, epoch), scene),
            "join" | "leave" => self.noticed(said, named, scene),
            "presence" if said.id.is_none() => self.noticed(said, named, scene),
            "drain" => {
                if !scene.judge.draining || said.reconnect_ms.is_none() || link.drain_told {
                    let what = format_args!("{who} was told of a drain that is none, or twice");
                    scene.judge.broken(Rule::ReplyFits, what);
                }
                link.drain_told = true;
            }
            "direct" => {
                let number = said.data.and_then(|data| judge::direct_in(data.get().as_bytes()));
                match number {
                    Some(number) => link.direct(number, scene),
                    None => {
                        let what = format_args!("{who} got something that nobody has sent");
                        scene.judge.broken(Rule::Direct, what);
                    }
                }
            }
            "connected" if said.id.is_none() => {
                if !link.found.admitted || said.connection.is_none() {
                    let what = format_args!("{who} was told that it is somebody");
                    scene.judge.broken(Rule::ReplyFits, what);
                }
                link.name = said.connection.map(str::to_owned);
            }
            "unsubscribed" if said.reason.is_some() => self.sent_off(named, scene),
            _ => self.replied(said, named, epoch, scene),
        }
    }

    /// A publication.
    fn heard(&mut self, said: &Said, named: Option<usize>, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        let who = link.who.clone();
        scene.judge.deliveries += 1;
        let (Some(channel), Some(offset), Some(data)) = (named, said.offset, said.data) else {
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
            let what = format_args!("{who} got {offset} of {name}, which is not subscribed");
            return scene.judge.broken(Rule::Subscribed, what);
        };
        let conn = link.conn;
        let hole = Hole { channel, epoch, from: next, to: offset, conn, who: who.clone() };
        if offset != next && (next <= seam || !scene.judge.passes_over(hole)) {
            let name = &scene.judge.names[channel];
            let what = format_args!("{who} got {offset} of {name} where {next} was due");
            let rule = if next <= seam { Rule::RecoveryWhole } else { Rule::Dense };
            scene.judge.broken(rule, what);
        }
        if let Some(is) = scene.judge.identify(&payload, &who) {
            scene.judge.learn(channel, epoch, offset, is, &who);
            if offset > seam && scene.judge.is_except(is, link.conn) {
                let name = &scene.judge.names[channel];
                let what = format_args!("{who} got {offset} of {name}, {is:?}");
                scene.judge.broken(Rule::NoEcho, what);
            }
        }
        link.check_allowed(channel, scene);
        link.set_view(channel, View::Live { epoch, next: offset + 1, seam });
        self.seen.insert(channel, (epoch, offset));
        if said.confirm == Some(true)
            && let Some(is) = scene.judge.identify(&payload, &who)
        {
            self.is_asked(is, (channel, offset), offset > seam, scene);
        }
    }

    /// The server has ended a subscription by itself.
    fn sent_off(&mut self, named: Option<usize>, scene: &mut Scene) {
        let Some((link, channel)) = self.link.as_mut().zip(named) else { return };
        let always = link.chance(Op::Subscribe, channel, scene.setup).always;
        let over = scene.judge.rooms.may_have_ended(channel);
        if always && !over && !link.is_ordered_off(channel, scene.judge) {
            let name = &scene.judge.names[channel];
            let what = format_args!("{} was taken {name}, which it may have", link.who);
            scene.judge.broken(Rule::Ordered, what);
        }
        link.ended_by_server(channel);
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
        let turn = link.written.map_or(0, |written| written.turn);
        let own = pending.channel.and_then(|channel| link.channels.get_mut(&channel));
        match (said.kind, own) {
            ("subscribed", Some(own)) => own.subscribed = turn,
            ("unsubscribed", Some(own)) => own.unsubscribed = pending.turn,
            _ => {}
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
        let raw = !self.speaks.tells_gaps();
        let lags = |&channel: &usize| raw || setup.group(channel).disconnect;
        let allowed = match code {
            4000 => self.speaks == Speaks::Rooms || link.channels.keys().any(lags),
            4001 => setup.heartbeat_interval_ms > 0 && scene.silence_ms >= silent,
            4002 => true,
            1012 => scene.judge.draining,
            1013 => setup.partial_bytes_max.min(setup.outboxes_bytes_max) < 1 << 20,
            // Whoever it is, it has begun something that was not complete a while ago.
            4003 => link.mute || !self.habit.keeps_up() || scene.quiet_ms < QUIET_MS,
            4500 => {
                let off = |&channel: &usize| {
                    !link.chance(Op::Subscribe, channel, setup).always
                        || link.is_ordered_off(channel, scene.judge)
                };
                let refused = link.refusable
                    || setup.messages_per_second_max > 0
                    || link.channels.keys().any(off);
                matches!(self.speaks, Speaks::Raw | Speaks::Echo) && refused
            }
            4501 => setup.messages_per_second_max > 0,
            4005 | 4503 | 4504 | 4505 => link
                .written
                .is_some_and(|written| scene.judge.ledgers.may_close(link.conn, code, written)),
            code => {
                link.close_sent == Some(code)
                    || link.broke.contains(&code)
                    || link.is_ordered_closed(code, scene.judge)
            }
        };
        if !allowed {
            let what = format_args!("{who} was closed with {code} {reason:?}");
            scene.judge.broken(Rule::CloseCode, what);
        }
        let never = match code {
            4000 => self.habit.is_never_late(setup),
            4002 => self.habit.keeps_up(),
            _ => false,
        };
        if never {
            let what = format_args!("{who} always reads and was closed with {code} {reason:?}");
            scene.judge.broken(Rule::ReadersKeepUp, what);
        }
        if code == 1012 {
            for pending in &link.pending {
                if let (Want::Publish(number), Some(_)) = (pending.want, &pending.id) {
                    scene.judge.unanswered(number, &who);
                }
            }
            for (&channel, own) in &link.channels {
                if let View::Live { epoch, next, .. } = own.view {
                    scene.judge.sent_away(channel, Last::At(epoch, next - 1), link.conn, &who);
                }
                // Of `raw.v1` only who has been there ever since is known to be subscribed.
                if let (Intent::Yes, 1, Some(last)) = (own.intent, own.raw.subscribes, own.raw.last)
                {
                    scene.judge.sent_away(channel, Last::Is(last), link.conn, &who);
                }
            }
        }
        // Who is revoked while it is being closed gets less than the reason takes for granted.
        let turned_out = link.written.is_some_and(|written| {
            let ledgers = &scene.judge.ledgers;
            [4005, 4504].iter().any(|&code| ledgers.may_close(link.conn, code, written))
        });
        if code == 4000 && !turned_out && !reason.contains(LOBBY) {
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
        let Some(mut link) = self.link.take() else { return };
        let who = &link.who;
        note!(scene.trace, "{who} is over, close seen {:?}", link.close_seen);
        // Where nothing can be kept of a half-sent frame there is no whole one to say why.
        let half = link.parser.pending() > 0;
        let excused = excused || half && scene.setup.retained_bytes_max < 1 << 20;
        let excused = excused || self.speaks == Speaks::Fluxus && self.may_be_cut(scene);
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
        for (&channel, own) in &mut link.channels {
            own.raw.end(channel, link.conn, who, scene.judge);
        }
    }

    /// Everything is quiet: nothing may be owed. `bells` are the last publications of each channel.
    pub(crate) fn settled(
        &self,
        bells: &[Option<u64>],
        newest: &[Option<(u64, u64)>],
        setup: &Setup,
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
        // An echo is told nothing else.
        if self.speaks != Speaks::Echo {
            link.check_orders(self.speaks, judge);
            link.check_rooms(judge);
        }
        if self.speaks.talks() {
            self.talk_is_settled(bells, setup, judge);
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
