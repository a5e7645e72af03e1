//! How sessions end.

use bytes::Bytes;
use ringfeed_protocol::frame::{self, Opcode};
use ringfeed_protocol::{ChannelName, CloseCode, Connection, Dialect, ProtocolError, Role};
use ringfeed_wire::Wire;

use super::{BLOCKED, CLOSING, CURSORS, Holds, MULTI, OUTBOX, QUEUED, Subscription};
use crate::counters::{CloseReason, Reason as _};
use crate::ids::SessionSlot;
use crate::message::{Question, Request};
use crate::shard::Shard;
use crate::shard::asks::Awaiting;
use crate::shard::fanout::Queue;
use crate::shard::timers::{Purpose, Timer};

/// How long the peer has to read the close frame after it broke the protocol.
const FAIL_LINGER_MS: u64 = 100;

/// Whether a connection ends without a close frame for this reason, so that its client comes back.
fn is_cut(dialect: Dialect, why: CloseReason) -> bool {
    why.is_passing() && dialect.comes_back_when_cut()
}

impl<W: Wire> Shard<W> {
    /// Takes a channel from a session. A half-sent frame of it is still completed.
    pub(in crate::shard) fn detach(&mut self, slot: SessionSlot, at: usize) {
        if !self.sessions.waiting_mut(slot).is_empty() {
            // What waits of other channels is found by cursors, not by place in a list.
            let (fanout, mut context) = self.fanout_context();
            fanout.give_cursors(&mut context, slot);
        }
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let Some(&Subscription { lane, index, .. }) = session.subscriptions.get(at) else {
            return;
        };
        let half_sent = session.half_sent.take_if(|half| *half == lane).is_some();
        if let Some(index) = index {
            let list = self.sessions.list(slot);
            let state = self.feeds.lane_mut(lane);
            let subscriber = state.subscriber_mut(list, index);
            let position = subscriber.and_then(|subscriber| subscriber.cursor());
            state.gaps.remove(&slot);
            // As long as the log is there.
            if let Some(position) = position.filter(|_| half_sent) {
                let (fanout, mut context) = self.fanout_context();
                fanout.keep_rest(&mut context, lane, slot, position);
                self.look_at(slot);
            }
            self.take_subscriber(slot, lane, index);
            if self.feeds.clear_if_unused(lane) {
                self.tell_pressure(lane);
            }
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.subscriptions.swap_remove(at);
        }
        self.subscription_count -= 1;
        let state = self.feeds.lane(lane);
        let (channel, kind) = (state.name.clone(), state.lane);
        self.feeds.release(lane);
        // The home counts out who was answered; to whom it has not answered yet, it will, and is told
        // then.
        if index.is_some() {
            let (shard, session) = (self.id, self.sessions.id(slot));
            self.request(Request::Unsubscribe { shard, session, channel, lane: kind });
        }
        if self.sessions.has(slot, MULTI) && self.sessions.has(slot, CURSORS) {
            self.look_at(slot);
        }
    }

    /// Ends one subscription of a session that goes on: nothing of the channel follows, also of what it has missed.
    pub(super) fn end_one(&mut self, slot: SessionSlot, at: usize) {
        let own = self.sessions.get(slot).and_then(|session| session.subscriptions.get(at));
        let Some(channel) = own.map(|own| self.feeds.lane(own.lane).name.clone()) else { return };
        self.detach(slot, at);
        // Where all of them end, its end says so.
        self.leave_room(slot, &channel);
        self.take_pass(slot, &channel);
        self.give_up_channel(slot, &channel);
    }

    /// Gives up what waits of a channel in an outbox.
    pub(super) fn give_up_channel(&mut self, slot: SessionSlot, channel: &ChannelName) {
        if self.sessions.has(slot, OUTBOX) {
            self.sessions.with_outbox(slot, |outbox| outbox.give_up_channel(channel));
            self.settle_outbox_hold(slot);
        }
    }

    /// Has a session looked at as a whole in the next flush.
    pub(in crate::shard) fn look_at(&mut self, slot: SessionSlot) {
        let queue = if self.sessions.has(slot, OUTBOX) { Queue::Replies } else { Queue::Feed };
        self.fanout.enqueue(&mut self.sessions, slot, queue, self.work_ms);
    }

    /// Begins the closing handshake with the code of its reason.
    pub(in crate::shard) fn close_session(
        &mut self,
        slot: SessionSlot,
        why: CloseReason,
        reason: &str,
    ) {
        let code = why.code().map_or(CloseCode::NORMAL, CloseCode);
        self.close_with(slot, why, code, reason);
    }

    /// Begins the closing handshake: nothing of any channel follows, the close frame is the last.
    pub(super) fn close_with(
        &mut self,
        slot: SessionSlot,
        why: CloseReason,
        code: CloseCode,
        reason: &str,
    ) {
        if self.sessions.get(slot).is_none() || self.sessions.has(slot, CLOSING) {
            return;
        }
        self.counters.closes.add(why, 1);
        tracing::debug!(shard = %self.id, session = slot.0, code = code.0, reason, "closing");
        self.detach_all(slot);
        self.leave(slot);
        let now_ms = self.now_ms;
        let cut = self.dialect(slot).is_some_and(|dialect| is_cut(dialect, why));
        if !cut {
            let mut frame = Vec::new();
            frame::write_server(&mut frame, Opcode::Close, &frame::close_body(code, reason));
            self.queue(slot, |outbox| {
                outbox.push(Bytes::from(frame));
                outbox.begin_again(now_ms);
            });
        }
        self.sessions.hot_mut(slot).flags |= CLOSING;
        let id = self.sessions.id(slot);
        // Who is told nothing answers nothing: what waits for it is all that is waited for.
        let timeout_ms = if cut { 0 } else { u64::from(self.config.server.close_timeout_ms) };
        let due_ms = now_ms + timeout_ms;
        self.wheel.add(Timer { due_ms, session: id, purpose: Purpose::Close });
        if let Some(session) = self.sessions.get_mut(slot) {
            session.closed = Some((why, code));
            session.commands = None;
            if let Some(talk) = &mut session.talk {
                talk.give_up();
            }
            session.deferred = None;
            // The peer's answer is waited for, whatever it had to wait for before.
            if !session.holds.is_empty() {
                session.holds = Holds::default();
                self.released.push_back(id);
            }
        }
    }

    /// Whether a session is being closed, and without a close frame.
    fn is_cut(&self, slot: SessionSlot) -> bool {
        self.sessions.get(slot).is_some_and(|session| {
            session.closed.is_some_and(|(why, _)| is_cut(session.dialect, why))
        })
    }

    fn dialect(&self, slot: SessionSlot) -> Option<Dialect> {
        self.sessions.get(slot).map(|session| session.dialect)
    }

    fn detach_all(&mut self, slot: SessionSlot) {
        let count = self.sessions.get(slot).map_or(0, |session| session.subscriptions.len());
        for at in (0..count).rev() {
            self.detach(slot, at);
        }
    }

    /// Closes a session that does not read what is meant for it.
    pub(in crate::shard) fn close_slow(&mut self, slot: SessionSlot) {
        self.give_up_and_close(slot, CloseReason::Slow, "replies are not read");
    }

    /// Closes a session for which too much waits: what it has not begun to read is given up, and it is
    /// told so.
    pub(super) fn give_up_and_close(&mut self, slot: SessionSlot, why: CloseReason, reason: &str) {
        if self.sessions.has(slot, OUTBOX) {
            // Of who is cut, the last is no close frame, and is nothing without what is before it.
            let says_why = self.sessions.has(slot, CLOSING) && !self.is_cut(slot);
            self.sessions.with_outbox(slot, |outbox| match says_why {
                false => outbox.give_up(),
                true => outbox.give_up_before_last(),
            });
        }
        self.close_session(slot, why, reason);
    }

    /// Fails the connection (RFC 6455 section 7.1.7): tells the peer what it broke, listens to nothing
    /// more, and ends it soon. Not at once: closing while the peer still sends would be a reset, which
    /// may overtake the close frame.
    pub(super) fn fail_session(&mut self, slot: SessionSlot, error: &ProtocolError) {
        let code = error.close_code();
        let why = match code {
            CloseCode::INVALID_DATA => CloseReason::InvalidData,
            CloseCode::TOO_LARGE => CloseReason::TooLarge,
            _ => CloseReason::Protocol,
        };
        self.close_with(slot, why, code, &error.to_string());
        self.stop_listening(slot);
        let due_ms = self.now_ms + FAIL_LINGER_MS;
        let session = self.sessions.id(slot);
        self.wheel.add(Timer { due_ms, session, purpose: Purpose::Close });
    }

    /// Looks at nothing more that comes from a session, but for the answer to its close frame.
    pub(super) fn stop_listening(&mut self, slot: SessionSlot) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.failed = true;
        session.held = Vec::new();
        session.connection = Connection::new(Role::Server, 0);
        session.message_since_ms = None;
        self.partial_bytes -= std::mem::take(&mut session.partial_bytes);
    }

    /// Ends a session whose closing handshake is over, or that has none and was sent all that waited.
    pub(in crate::shard) fn end_if_closed(&mut self, slot: SessionSlot) {
        let peer_closed = self.sessions.get(slot).is_some_and(|session| session.peer_closed);
        let is_over = peer_closed || self.is_cut(slot);
        if is_over && self.sessions.has(slot, CLOSING) && !self.sessions.has(slot, OUTBOX) {
            self.remove_session(slot, CloseReason::Normal);
        }
    }

    /// The time for a closing handshake is up. Who still takes what was before the close frame, or waits for
    /// us to send it, is given more of it, as long as it is not too slow for an outbox.
    pub(in crate::shard) fn check_closing(&mut self, slot: SessionSlot, timer: Timer) {
        let step = u64::from(self.config.server.close_timeout_ms);
        let timeout = u64::from(self.config.limits.outbox_timeout_ms);
        let reads = self.sessions.get(slot).is_some_and(|session| {
            let outbox = session.outbox.as_ref();
            outbox.is_some_and(|outbox| !outbox.is_too_slow(self.now_ms, timeout, 1))
                && self.now_ms.saturating_sub(session.progress_ms) < step
        });
        let ours = self.sessions.has(slot, OUTBOX) && !self.sessions.has(slot, BLOCKED);
        if reads || ours {
            self.wheel.add(Timer { due_ms: self.now_ms + step, ..timer });
        } else {
            self.remove_session(slot, CloseReason::PeerGone);
        }
    }

    /// Ends a session at once, for this reason where it was not closed before: nothing more is sent to it.
    pub(in crate::shard) fn remove_session(&mut self, slot: SessionSlot, why: CloseReason) {
        let closing = self.sessions.has(slot, CLOSING);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        // Nothing more is sent: no frame is completed.
        session.half_sent = None;
        self.partial_bytes -= session.partial_bytes;
        if !closing {
            self.counters.closes.add(why, 1);
        }
        self.detach_all(slot);
        self.leave(slot);
        self.tell_ended(slot, why);
        if let Some(number) = self.sessions.standing(slot).and_then(|standing| standing.number) {
            self.named.remove(&number);
        }
        self.wire.close(self.sessions.hot(slot).socket);
        self.sessions.hot_mut(slot).flags &= !(QUEUED | BLOCKED);
        self.sessions.remove(slot);
    }

    /// Has the application told that a connection has ended, where it wants to know; not of who has never become
    /// anybody.
    fn tell_ended(&mut self, slot: SessionSlot, why: CloseReason) {
        if self.config.hooks.disconnect_url.0.is_empty() || self.must_authenticate(slot) {
            return;
        }
        let closed = self.sessions.get(slot).and_then(|session| session.closed);
        // Without a close frame, as RFC 6455 section 7.1.5 has it.
        let (why, code) = closed.unwrap_or((why, CloseCode(1006)));
        let (caller, code, reason) = (self.caller(slot), code.0, why.label().into());
        let connection = caller.connection;
        let farewell = Question::Disconnect { caller, code, reason };
        if self.sessions.get(slot).is_some_and(|session| session.posted) {
            // Behind what is still to be asked about it.
            self.farewells.insert(connection, farewell);
        } else {
            self.tell_application(farewell);
        }
    }

    /// Where too much is under way the application is not told; it is counted.
    pub(super) fn tell_application(&mut self, farewell: Question) {
        let _ = self.ask(farewell, Awaiting::Nobody);
    }
}
