//! What a session is told: answers to its commands, chunks for its channels, and what waits for it.

use bytes::Bytes;
use ringfeed_protocol::event::Publication;
use ringfeed_protocol::frame::Opcode;
use ringfeed_protocol::refused::Operation;
use ringfeed_protocol::{ChannelName, CloseCode, Dialect, Event, Lane, Offset, Position, Refused};
use ringfeed_wire::Wire;
use smallvec::SmallVec;

use super::{BLOCKED, CLOSING, CURSORS, Deferred, Holds, MULTI, Outbox};
use crate::counters::CloseReason;
use crate::ids::SessionId;
use crate::ids::{ConnectionId, LaneId, SessionSlot};
use crate::message::{
    Chunk, Delivery, FrameIndex, HistoryPage, Naming, Order, Origin, PresencePage, Present,
    Reached, Replay, Request, Skip, Someone, Start,
};
use crate::shard::Shard;
use crate::shard::feed::{FOLLOWS, LaneState};
use crate::shard::timers::{Purpose, Timer};
use crate::shard::users::has_room;

/// Pongs may wait in an outbox of so many frames; beyond it only the newest does.
const PONGS_BEHIND_MAX: usize = 16;
/// First byte of a whole pong frame.
const PONG: u8 = 0x80 | Opcode::Pong as u8;
/// An answer is small that takes no more than this part of what an outbox may hold.
const SMALL_PARTS: usize = 16;
/// An outbox that has waited for so many times `limits.outbox_timeout_ms` must have been taken fast.
const OUTBOX_TIMEOUTS: u64 = 30;
/// An outbox up to this size never counts as what fills the budget of all outboxes.
const OUTBOX_BYTES_FAIR: usize = 16 * 1024;

impl<W: Wire> Shard<W> {
    /// Answers to commands, and chunks, from the home shards.
    pub(in crate::shard) fn handle_delivery(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Chunk { to, chunk, skips } => self.handle_chunk(to, chunk, &skips),
            Delivery::Subscribed { origin, attempt, channel, lane, start } => {
                self.handle_subscribed(origin, attempt, channel, lane, start);
            }
            Delivery::Renewed { to, position, lost, ends } => {
                self.handle_renewed(to, position, lost, ends);
            }
            Delivery::Published { origin, channel, position, ack, subscribers, duplicate } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                self.settle_owed(slot, 1);
                // It was only to be told if it was refused.
                let (Some(id), channel) = (origin.id.as_deref(), &channel) else { return };
                let (id, ack) = (Some(id), ack.as_str());
                let published =
                    Event::Published { id, channel, position, ack, subscribers, duplicate };
                self.reply(slot, &published);
            }
            Delivery::Confirmed { origin, channel, offset, in_time } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                self.settle_owed(slot, 1);
                let (id, channel) = (origin.id.as_deref(), &channel);
                self.reply(slot, &Event::Confirmed { id, channel, offset, in_time });
            }
            Delivery::Receipts { session, channel, position, confirmed, missing } => {
                let Some(slot) = self.sessions.current(session) else { return };
                Someone::show(confirmed.iter(), |confirmed| {
                    Someone::show(missing.iter(), |missing| {
                        let channel = &channel;
                        let receipts = Event::Receipts { channel, position, confirmed, missing };
                        self.reply(slot, &receipts);
                    });
                });
            }
            Delivery::History { origin, channel, page } => {
                self.handle_history(&origin, channel, page);
            }
            Delivery::Presence { origin, channel, page } => {
                self.handle_presence(&origin, channel, page);
            }
            Delivery::Refused { origin, attempt, refused } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                self.settle_owed(slot, 1);
                if let Some(attempt) = attempt {
                    self.forget_attempt(slot, attempt);
                }
                self.tell_refused(slot, origin.id.as_deref(), &refused);
            }
            Delivery::Asked(connection) => self.handle_asked(connection),
            Delivery::Entering { subscribe, counted } => self.handle_entering(*subscribe, counted),
            Delivery::Order { .. } => self.handle_handed(&delivery),
            Delivery::Handed { origin, user, connections } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                self.settle_owed(slot, 1);
                let (id, user) = (origin.id.as_deref(), &user);
                self.reply(slot, &Event::Sent { id, user, connections });
            }
            Delivery::Closed => self.another_closed(),
        }
    }

    fn handle_chunk(&mut self, id: LaneId, mut chunk: Chunk, skips: &[Skip]) {
        // Who wanted it may have gone.
        if !self.feeds.try_lane(id).is_some_and(LaneState::has_subscribers) {
            return;
        }
        chunk.unshare();
        let skips = skips.iter();
        let skips = skips.filter_map(|&skip| Some((self.session_named(skip.connection)?, skip)));
        let skips: SmallVec<[_; 1]> = skips.collect();
        let (fanout, mut context) = self.fanout_context();
        fanout.append(&mut context, id, chunk, &skips);
    }

    /// A channel goes on in another life, or behind a hole, for everybody who is there.
    fn handle_renewed(&mut self, id: LaneId, position: Position, lost: Offset, ends: bool) {
        if !self.feeds.try_lane(id).is_some_and(LaneState::has_subscribers) {
            return;
        }
        let LaneState { name, lane, .. } = self.feeds.lane(id);
        let (name, lane) = (name.clone(), *lane);
        let Position { epoch, offset } = position;
        let gap = Event::Gap { channel: &name, epoch, from: lost, to: offset };
        let mut frame = Vec::new();
        lane.write_notice(&mut frame, &gap);
        let told = !frame.is_empty();
        self.feeds.renew(id, position, lost);
        if told {
            let frames = FrameIndex::default();
            let (bytes, first_offset) = (Bytes::from(frame), offset.next());
            let chunk = Chunk { bytes, frames, first_offset, count: 0, at: self.now };
            let (fanout, mut context) = self.fanout_context();
            fanout.append(&mut context, id, chunk, &[]);
        } else if offset >= lost && ends {
            // There is no way to say so but to end: who comes back begins anew.
            let reason = format!("lagged: {name} goes on behind offset {offset}, epoch {epoch}");
            let lane = self.feeds.lane(id);
            let slots: Vec<SessionSlot> = lane.subscribers().map(|own| own.session).collect();
            for slot in slots {
                self.close_session(slot, CloseReason::Lagged, &reason);
            }
        }
    }

    fn handle_subscribed(
        &mut self,
        origin: Origin,
        attempt: u32,
        channel: ChannelName,
        lane: Lane,
        Start { position, recovered, replay, naming, subscribers }: Start,
    ) {
        let slot = self.sessions.current(origin.session);
        let known = slot.and_then(|slot| {
            let mut subscriptions = self.sessions.get(slot)?.subscriptions.iter();
            let own = subscriptions.find(|own| own.attempt == attempt)?;
            own.index.is_none().then_some((own.lane, slot))
        });
        if let Some(slot) = slot {
            self.settle_owed(slot, 1);
        }
        let allowed = known.is_none_or(|(_, slot)| self.may_keep(slot, &channel));
        let Some((id, slot)) = known.filter(|_| allowed) else {
            // Gone, or not allowed any more: the home has counted it in, so it is to count it out.
            let (shard, session) = (self.id, origin.session);
            // Or it was ended before it began.
            if let Some(slot) = slot.filter(|&slot| !self.sessions.has(slot, CLOSING)) {
                self.forget_attempt(slot, attempt);
                let (operation, hint) = (Operation::Subscribe, "no more");
                let refused = Refused::Forbidden { operation, channel: channel.clone(), hint };
                self.tell_refused(slot, origin.id.as_deref(), &refused);
            }
            self.request(Request::Unsubscribe { shard, session, channel, lane });
            return;
        };
        let list = self.sessions.list(slot);
        let index = self.feeds.attach(id, position, list, slot);
        self.feeds.lane_mut(id).named = naming != Naming::Off;
        if naming == Naming::Wanted {
            self.tell_member(slot, channel.clone());
        }
        if self.sessions.has(slot, MULTI) && !self.sessions.has(slot, CURSORS) {
            self.feeds.lane_mut(id).served[index as usize].sent = FOLLOWS;
        }
        if let Some(session) = self.sessions.get_mut(slot)
            && let Some(own) = session.subscriptions.iter_mut().find(|own| own.attempt == attempt)
        {
            own.index = Some(index);
        }
        match recovered {
            Some(true) => self.counters.recovered.add(1),
            Some(false) => self.counters.not_recovered.add(1),
            None => {}
        }
        let id = origin.id.as_deref();
        let subscribed =
            Event::Subscribed { id, channel: &channel, position, recovered, subscribers };
        self.reply(slot, &subscribed);
        self.push_replay(slot, &channel, replay);
    }

    /// Does what a home has handed over.
    fn handle_handed(&mut self, delivery: &Delivery) {
        let Delivery::Order { sessions, order } = delivery else { return };
        self.handle_order(sessions, order);
        // First what is there now: nobody is to see less than there is.
        self.show_outboxes();
        self.shared.shards.end(self.id).outboxes.taken(delivery.sent_bytes());
    }

    /// Shows homes of users what waits in the outboxes here.
    pub(in crate::shard) fn show_outboxes(&self) {
        self.shared.shards.end(self.id).outboxes.hold(self.sessions.outbox_bytes());
    }

    /// Does with some sessions what was ordered.
    fn handle_order(&mut self, sessions: &[SessionId], order: &Order) {
        // One frame for all who speak the same.
        let mut frames: SmallVec<[(Dialect, Bytes); 2]> = SmallVec::new();
        for &session in sessions {
            let Some(slot) = self.sessions.current(session) else { continue };
            match order {
                Order::Send { from, payload } => {
                    let Some(session) = self.sessions.get(slot) else { continue };
                    let dialect = session.dialect;
                    if session.talk.is_some() {
                        self.tell_direct(slot, from.as_ref(), payload);
                        continue;
                    }
                    let known = frames.iter().find(|(of, _)| *of == dialect);
                    let frame = known.map(|(_, frame)| frame.clone()).unwrap_or_else(|| {
                        let mut frame = Vec::new();
                        let (from, kind) = (from.as_ref(), payload.kind);
                        let direct = Event::Direct { from, kind, bytes: &payload.bytes };
                        dialect.write_event(&mut frame, &direct);
                        let frame = Bytes::from(frame);
                        frames.push((dialect, frame.clone()));
                        frame
                    });
                    if !frame.is_empty() {
                        self.push_sent(slot, frame);
                    }
                }
                Order::Disconnect { code, reason } => {
                    let code = CloseCode(*code);
                    self.close_with(slot, CloseReason::Disconnected, code, reason);
                }
                Order::LeaveRoom(channel) => {
                    self.end_subscription(slot, channel, "the room has ended");
                }
                Order::Unsubscribe(channel) => {
                    self.end_subscription(slot, channel, "the application has ended it");
                    if self.sessions.get(slot).is_some_and(|session| session.asked > 0) {
                        self.local.asks.end_subscription(session, channel);
                    }
                }
                Order::TooMany => {
                    let reason = "this user has as many connections as one may have";
                    self.close_session(slot, CloseReason::TooMany, reason);
                }
            }
        }
    }

    /// Does with one connection what was ordered; returns how many there are, 0 or 1. What is sent may be refused.
    pub(in crate::shard) fn order_one(
        &mut self,
        connection: ConnectionId,
        order: &Order,
    ) -> Reached {
        let slot = self.session_named(connection).filter(|slot| !self.sessions.has(*slot, CLOSING));
        let Some(slot) = slot else { return Ok(0) };
        if matches!(order, Order::Send { .. }) {
            self.show_outboxes();
            has_room(&self.shared.shards, self.id, self.outboxes_max() / 2)?;
        }
        self.handle_order(&[self.sessions.id(slot)], order);
        Ok(1)
    }

    pub(super) fn forget_attempt(&mut self, slot: SessionSlot, attempt: u32) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let at = session.subscriptions.iter().position(|own| own.attempt == attempt);
        if let Some(at) = at {
            let own = session.subscriptions.swap_remove(at);
            self.subscription_count -= 1;
            let channel = self.feeds.lane(own.lane).name.clone();
            self.feeds.release(own.lane);
            self.leave_room(slot, &channel);
            self.take_pass(slot, &channel);
        }
    }

    fn handle_history(
        &mut self,
        origin: &Origin,
        channel: ChannelName,
        page: Result<HistoryPage, Refused>,
    ) {
        let Some(slot) = self.sessions.current(origin.session) else { return };
        self.settle_owed(slot, self.owed_by_history());
        let id = origin.id.as_deref();
        let page = match page {
            Ok(page) => page,
            Err(refused) => return self.tell_refused(slot, id, &refused),
        };
        let publications = page
            .publications
            .iter()
            .map(|p| Publication {
                offset: p.offset,
                kind: p.payload.kind,
                bytes: &p.payload.bytes,
                meta: p.meta.as_deref(),
            })
            .collect();
        let (channel, position) = (&channel, page.position);
        self.reply(slot, &Event::History { id, channel, position, publications });
    }

    fn handle_presence(
        &mut self,
        origin: &Origin,
        channel: ChannelName,
        page: Result<Box<PresencePage>, Refused>,
    ) {
        let Some(slot) = self.sessions.current(origin.session) else { return };
        self.settle_owed(slot, self.owed_by_history());
        let id = origin.id.as_deref();
        let page = match page {
            Ok(page) => page,
            Err(refused) => return self.tell_refused(slot, id, &refused),
        };
        let next = page.next();
        let PresencePage { position, version, count, connections, present, .. } = *page;
        let (channel, epoch, next) = (&channel, position.epoch, next.as_deref());
        Present::show(present.as_deref().unwrap_or_default(), |shown| {
            let users = present.is_some().then_some(shown);
            let presence =
                Event::Presence { id, channel, epoch, version, count, connections, users, next };
            self.reply(slot, &presence);
        });
    }

    /// Sends an event to one session, where its dialect has a form for it.
    pub(in crate::shard) fn reply(&mut self, slot: SessionSlot, event: &Event) {
        let Some(session) = self.sessions.get(slot) else { return };
        if session.talk.is_some() {
            return self.talk(slot, |talk, now_ms| talk.event(event, now_ms));
        }
        let mut frame = Vec::new();
        session.dialect.write_event(&mut frame, event);
        if !frame.is_empty() {
            self.push_outbox(slot, Bytes::from(frame));
        }
    }

    /// Refuses a command here, behind the answers that are under way.
    pub(super) fn refuse(&mut self, slot: SessionSlot, id: Option<&str>, refused: Refused) {
        let wait = Deferred::Refuse { id: id.map(Box::from), refused: refused.clone() };
        if !self.defer(slot, wait) {
            self.tell_refused(slot, id, &refused);
        }
    }

    /// Tells a session that a command was refused; closes it where that cannot be told.
    pub(super) fn tell_refused(&mut self, slot: SessionSlot, id: Option<&str>, refused: &Refused) {
        self.counters.errors_told.add(1);
        let Some(session) = self.sessions.get(slot) else { return };
        let code = refused.code();
        if session.dialect.answers_in_band() {
            let refused = match session.dialect.has_any_names() {
                true => &refused.clone().shown(self.config.hidden(session.endpoint)),
                false => refused,
            };
            return self.reply(slot, &Event::Error { id, code, message: &refused.to_string() });
        }
        match refused {
            // What is so already needs no telling.
            Refused::AlreadySubscribed { .. } | Refused::NotSubscribed { .. } => {}
            // The drain says so, once the session has everything.
            Refused::Draining => {}
            _ => {
                let reason = format!("{}: {refused}", code.as_str());
                self.close_session(slot, CloseReason::Refused, &reason);
            }
        }
    }

    /// Queues a frame for one session; nothing follows a close frame.
    pub(in crate::shard) fn push_outbox(&mut self, slot: SessionSlot, frame: Bytes) {
        if !self.sessions.has(slot, CLOSING) {
            self.queue(slot, |outbox| outbox.push(frame));
            self.bound_outbox(slot, true);
        }
    }

    /// The same of what somebody sends. There was room for it, and it is not the session's doing if there is none left.
    fn push_sent(&mut self, slot: SessionSlot, frame: Bytes) {
        if !self.sessions.has(slot, CLOSING) {
            self.queue(slot, |outbox| outbox.push(frame));
            self.bound_outbox(slot, false);
        }
    }

    /// Queues the answer to a handshake, which comes before everything and is never given up.
    pub(in crate::shard) fn queue_answer(&mut self, slot: SessionSlot, answer: Bytes) {
        self.queue(slot, |outbox| outbox.push_begun(answer));
    }

    /// Queues what a subscriber missed.
    fn push_replay(
        &mut self,
        slot: SessionSlot,
        channel: &ChannelName,
        Replay { shared, own }: Replay,
    ) {
        let nothing = shared.is_empty() && own.is_empty();
        if nothing || self.sessions.has(slot, CLOSING) {
            return;
        }
        self.queue(slot, |outbox| {
            shared.into_iter().for_each(|frames| outbox.push_shared(channel, frames));
            outbox.push_copied(channel, own);
        });
        self.bound_outbox(slot, true);
    }

    /// Adds to what waits for one session, and has the session looked at.
    pub(in crate::shard) fn queue(&mut self, slot: SessionSlot, add: impl FnOnce(&mut Outbox)) {
        self.sessions.with_outbox(slot, add);
        self.look_at(slot);
        self.time_outbox(slot);
    }

    /// A session is not read from while much waits for it. Where its socket takes nothing and too much
    /// waits, it is closed; for the memory of all only where it has asked for what was added.
    fn bound_outbox(&mut self, slot: SessionSlot, asked_for: bool) {
        let most = self.config.limits.outbox_bytes_max as usize;
        let outbox = self.sessions.get(slot).and_then(|session| session.outbox.as_ref());
        let Some(outbox) = outbox else { return };
        let waiting = outbox.owed_bytes();
        // A large answer is fine, also one behind another; many small ones that nobody reads are not.
        let many = waiting > most && outbox.small_bytes(most / SMALL_PARTS) > most;
        let (all, all_max) = (self.sessions.outbox_bytes(), self.outboxes_max());
        let fills = waiting > OUTBOX_BYTES_FAIR && all > all_max / 2;
        // Whose socket takes everything waits for us.
        let blocked = self.sessions.has(slot, BLOCKED);
        if blocked && (many || fills && !self.sessions.is_reading(slot, self.now_ms)) {
            self.close_slow(slot);
        } else if asked_for && blocked && fills && all > all_max {
            let reason = "answers take too much memory; come back later";
            self.give_up_and_close(slot, CloseReason::Overload, reason);
        } else if waiting > most / 4 || fills {
            self.hold(slot, Holds::OUTBOX);
        }
    }

    /// Closes a session that keeps others from being sent to: it has its part of the memory of all, and takes
    /// nothing of it, or little.
    pub(in crate::shard) fn close_if_it_fills(&mut self, slot: SessionSlot) {
        let outbox = self.sessions.get(slot).and_then(|session| session.outbox.as_ref());
        let Some(outbox) = outbox.filter(|outbox| outbox.owed_bytes() > OUTBOX_BYTES_FAIR) else {
            return;
        };
        let timeout = u64::from(self.config.limits.outbox_timeout_ms);
        let slow = !self.sessions.is_reading(slot, self.now_ms)
            || outbox.is_too_slow(self.now_ms, timeout, 1);
        if slow && self.sessions.has(slot, BLOCKED) && !self.sessions.has(slot, CLOSING) {
            self.close_slow(slot);
        }
    }

    /// Whether so much waits in the outboxes of this shard that who adds to it has to wait.
    pub(in crate::shard) fn are_outboxes_full(&self) -> bool {
        self.sessions.outbox_bytes() > self.outboxes_max() / 2
    }

    /// What the outboxes of this shard may take.
    pub(in crate::shard) fn outboxes_max(&self) -> usize {
        self.share_of(self.config.limits.outboxes_bytes_max)
    }

    /// Lifts the hold of an outbox that has become short.
    pub(in crate::shard) fn settle_outbox_hold(&mut self, slot: SessionSlot) {
        let full = self.are_outboxes_full();
        let low = self.config.limits.outbox_bytes_max as usize / 8;
        let low = if full { low.min(OUTBOX_BYTES_FAIR / 2) } else { low };
        let outbox = self.sessions.get(slot).and_then(|session| session.outbox.as_ref());
        if outbox.is_none_or(|outbox| outbox.owed_bytes() <= low) {
            self.lift(slot, Holds::OUTBOX);
        }
    }

    /// Queues a pong. Behind a reader that does not read, one that still waits is replaced, as RFC 6455
    /// section 5.5.3 allows, so that pings cannot fill an outbox.
    pub(super) fn push_pong(&mut self, slot: SessionSlot, pong: Bytes) {
        let outbox = self.sessions.get(slot).and_then(|session| session.outbox.as_ref());
        let replaceable = outbox.is_some_and(|outbox| {
            outbox.len() > PONGS_BEHIND_MAX
                && outbox.is_last_replaceable()
                && outbox.last().is_some_and(|last| last.first() == Some(&PONG))
        });
        if replaceable {
            self.sessions.with_outbox(slot, |outbox| outbox.replace_last(pong));
        } else {
            self.push_outbox(slot, pong);
        }
    }

    /// Sees to it that somebody looks after an outbox whose socket takes nothing.
    pub(in crate::shard) fn time_outbox(&mut self, slot: SessionSlot) {
        let (id, blocked) = (self.sessions.id(slot), self.sessions.has(slot, BLOCKED));
        let now_ms = self.now_ms;
        let due_ms = now_ms + u64::from(self.config.limits.outbox_timeout_ms);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let owed = session.outbox.as_ref().is_some_and(|outbox| outbox.is_owed());
        if blocked && owed && !session.outbox_timed {
            session.outbox_timed = true;
            if let Some(outbox) = &mut session.outbox {
                outbox.begin(now_ms);
            }
            self.wheel.add(Timer { due_ms, session: id, purpose: Purpose::Outbox });
        }
    }

    /// An outbox may have waited too long: its socket has taken nothing for that time.
    pub(in crate::shard) fn check_outbox(&mut self, slot: SessionSlot, timer: Timer) {
        let timeout = u64::from(self.config.limits.outbox_timeout_ms);
        let waits = self.sessions.has(slot, BLOCKED) && !self.sessions.has(slot, CLOSING);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.outbox_timed = false;
        let owed = session.outbox.as_ref().is_some_and(|outbox| outbox.is_owed());
        if !waits || !owed {
            return;
        }
        let since_ms = session.progress_ms.max(timer.due_ms - timeout);
        let outbox = session.outbox.as_ref();
        let slow = outbox.is_some_and(|o| o.is_too_slow(self.now_ms, timeout, OUTBOX_TIMEOUTS));
        if self.now_ms >= since_ms + timeout || slow {
            self.close_slow(slot);
        } else {
            session.outbox_timed = true;
            self.wheel.add(Timer { due_ms: since_ms + timeout, ..timer });
        }
    }
}
