//! What arrives from a session and what is answered: messages, commands, replies, the end.

use bytes::Bytes;
use ringfeed_protocol::command::{Action, Command, CommandError, Payload};
use ringfeed_protocol::event::Publication;
use ringfeed_protocol::frame::{self, Opcode};
use ringfeed_protocol::{
    ChannelName, CloseCode, Connection, ErrorCode, Event, Incoming, Position, ProtocolError, Role,
};
use ringfeed_wire::Wire;

use crate::config::{Publishers, Subscribers};
use crate::message::{Delivery, Origin, Request, StoredPayload};
use crate::shard::Shard;
use crate::shard::feed::{LaneId, Window};
use crate::shard::session::{Allowance, BLOCKED, CLOSING, MULTI, OUTBOX, Session, Subscription};
use crate::shard::timers::{Purpose, Timer};

/// History requests of one session under way. An answer has up to a sixteenth of what an outbox may
/// hold, and reading pauses at a quarter, so that answers alone never fill it.
const HISTORIES_MAX: u8 = 8;
/// How long the peer has to read the close frame after it broke the protocol.
const FAIL_LINGER_MS: u64 = 100;
/// Pongs may wait in an outbox of so many frames; beyond it only the newest does.
const PONGS_BEHIND_MAX: usize = 16;
/// First byte of a whole pong frame.
const PONG: u8 = 0x80 | Opcode::Pong as u8;

impl<W: Wire> Shard<W> {
    /// Feeds received bytes to a session. While it is paused they are held.
    pub(in crate::shard) fn received(&mut self, slot: u32, bytes: &mut [u8]) {
        let id = self.sessions.id(slot);
        let now_ms = self.now_ms;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.heard_ms = now_ms;
        session.pinged = false;
        if session.failed {
            // Where a frame begins is not known any more, but an answer to our close frame mostly
            // comes by itself; else the linger ends it.
            let mut fresh = Connection::new(Role::Server, 0);
            if let Ok((_, Some(Incoming::Close(_)))) = fresh.receive(bytes) {
                session.peer_closed = true;
                self.settle_outbox(slot);
            }
            return;
        }
        if session.paused {
            session.held.extend_from_slice(bytes);
            return;
        }
        // Taken out, because what it hands out borrows from it.
        let idle = Connection::new(Role::Server, 0);
        let mut connection = std::mem::replace(&mut session.connection, idle);
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match connection.receive(rest) {
                Ok((used, incoming)) => {
                    at += used;
                    if let Some(incoming) = incoming {
                        self.handle(slot, &incoming);
                    }
                }
                Err(e) => {
                    self.counters.protocol_errors.add(1);
                    self.fail_session(slot, &e);
                    break;
                }
            }
            match self.sessions.current(id).and_then(|slot| self.sessions.get_mut(slot)) {
                None => return,
                Some(session) if session.paused => {
                    session.held.extend_from_slice(bytes.get(at..).unwrap_or_default());
                    break;
                }
                Some(_) => {}
            }
        }
        connection.settle();
        if let Some(session) = self.sessions.get_mut(slot) {
            session.connection = connection;
        }
    }

    fn handle(&mut self, slot: u32, incoming: &Incoming) {
        let closing = self.sessions.hot(slot).flags & CLOSING != 0;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        match incoming {
            Incoming::Close(code) => {
                session.peer_closed = true;
                if closing {
                    // Our close frame was sent or waits; this was the peer's answer.
                    self.settle_outbox(slot);
                } else {
                    self.close_session(slot, code.unwrap_or(CloseCode::NORMAL), "");
                }
            }
            _ if closing => {}
            Incoming::Pong(_) => {}
            Incoming::Ping(body) => {
                let mut pong = Vec::with_capacity(body.len() + 2);
                frame::write_server(&mut pong, Opcode::Pong, body);
                self.push_pong(slot, Bytes::from(pong));
            }
            Incoming::Text(_) | Incoming::Binary(_) => {
                self.counters.messages_in.add(1);
                let limits = &self.config.limits;
                let (rate, burst) = (limits.messages_per_second_max, limits.messages_burst);
                let allowance = session.rate.take(self.now_ms, rate, burst);
                let dialect = session.dialect;
                match (allowance, dialect.parse(incoming)) {
                    (Allowance::Within, Ok(command)) => self.command(slot, command),
                    (Allowance::Within, Err(CommandError { id, refused })) => {
                        self.refuse(slot, id, refused.code(), &refused.to_string());
                    }
                    (Allowance::Above, command) => {
                        let id = command.map_or_else(|e| e.id, |command| command.id);
                        let message = format!("at most {rate} messages a second are allowed");
                        self.refuse(slot, id, ErrorCode::RateLimited, &message);
                    }
                    (Allowance::FarAbove, _) => {
                        let reason = format!("at most {rate} messages a second are allowed");
                        self.close_session(slot, CloseCode::RATE_LIMITED, &reason);
                    }
                }
            }
        }
    }

    fn command(&mut self, slot: u32, Command { id, action }: Command) {
        match action {
            Action::Ping => self.reply(slot, &Event::Pong { id }),
            Action::Echo { text, bytes } => {
                let mut echo = Vec::with_capacity(bytes.len() + frame::HEADER_BYTES_MAX);
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                frame::write_server(&mut echo, opcode, bytes);
                self.push_outbox(slot, Bytes::from(echo));
            }
            Action::Subscribe { channel, recover } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.subscribe(slot, id, name, recover);
                }
            }
            Action::Unsubscribe { channel } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.unsubscribe(slot, id, &name);
                }
            }
            Action::Publish { channel, payload } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.publish(slot, id, name, payload);
                }
            }
            Action::History { channel, after, limit } => {
                let Some(name) = self.channel_name(slot, id, &channel) else { return };
                let subscribe = self.config.rule(&name).map(|(_, rule)| rule.subscribe);
                if subscribe != Some(Subscribers::Anyone) {
                    let message = format!("history of {name} may be read by nobody");
                    return self.refuse(slot, id, ErrorCode::Forbidden, &message);
                }
                let most = self.config.limits.history_reply_max;
                let limit = limit.unwrap_or(most).min(most);
                let origin = self.origin(slot, id);
                if let Some(session) = self.sessions.get_mut(slot) {
                    session.histories += 1;
                    if session.histories >= HISTORIES_MAX {
                        self.pause(slot);
                    }
                }
                self.request(Request::History { origin, channel: name, after, limit });
            }
        }
    }

    /// The full and valid name of a channel, or `None` after the refusal was told.
    fn channel_name(&mut self, slot: u32, id: Option<&str>, name: &str) -> Option<ChannelName> {
        let endpoint = self.sessions.get(slot)?.endpoint;
        let prefix = &self.config.endpoints.get(usize::from(endpoint))?.channel_prefix;
        let full = if prefix.is_empty() {
            ChannelName::new(name)
        } else {
            ChannelName::new(&format!("{prefix}{name}"))
        };
        match full {
            Ok(name) => Some(name),
            Err(e) => {
                self.refuse(slot, id, ErrorCode::BadChannel, &e.to_string());
                None
            }
        }
    }

    fn subscribe(
        &mut self,
        slot: u32,
        id: Option<&str>,
        name: ChannelName,
        recover: Option<Position>,
    ) {
        let Some(session) = self.sessions.get(slot) else { return };
        let Some(lane) = session.dialect.lane() else { return };
        let most = self.config.limits.subscriptions_per_connection_max as usize;
        let rule = match self.config.rule(&name) {
            Some((_, rule)) if rule.subscribe == Subscribers::Anyone => rule,
            _ => {
                let message = format!("{name} may be subscribed to by nobody");
                return self.refuse(slot, id, ErrorCode::Forbidden, &message);
            }
        };
        if self.draining {
            return self.refuse(slot, id, ErrorCode::Draining, "the server is shutting down");
        }
        let known = self.subscriptions.find(&name, lane);
        if session.subscriptions.iter().any(|s| Some(s.lane) == known) {
            let message = format!("this connection has subscribed to {name} before");
            return self.refuse(slot, id, ErrorCode::AlreadySubscribed, &message);
        }
        if session.subscriptions.len() >= most {
            let message = format!("at most {most} channels for each connection are allowed");
            return self.refuse(slot, id, ErrorCode::LimitReached, &message);
        }
        let window = Window {
            policy: rule.lag_policy,
            bytes: rule.window_bytes.into(),
            age_ms: rule.window_age_ms.into(),
        };
        let lane_id = self.subscriptions.acquire(&name, lane, window);
        let attempt = self.sessions.next_attempt();
        let origin = self.origin(slot, id);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.subscriptions.is_empty() {
            // Most connections have one and keep it.
            session.subscriptions.reserve_exact(1);
        }
        session.subscriptions.push(Subscription { lane: lane_id, index: None, attempt });
        if session.subscriptions.len() > 1 {
            self.sessions.hot_mut(slot).flags |= MULTI;
        }
        self.subscription_count += 1;
        self.request(Request::Subscribe { origin, attempt, channel: name, lane, recover });
    }

    fn unsubscribe(&mut self, slot: u32, id: Option<&str>, name: &ChannelName) {
        let Some(session) = self.sessions.get(slot) else { return };
        let lane = session.dialect.lane().and_then(|lane| self.subscriptions.find(name, lane));
        let own = session.subscriptions.iter().position(|s| Some(s.lane) == lane);
        match own {
            Some(at) => {
                self.detach(slot, at);
                self.reply(slot, &Event::Unsubscribed { id, channel: name });
            }
            None => {
                let message = format!("this connection has not subscribed to {name}");
                self.refuse(slot, id, ErrorCode::NotSubscribed, &message);
            }
        }
    }

    fn publish(&mut self, slot: u32, id: Option<&str>, name: ChannelName, payload: Payload) {
        if !self.config.rule(&name).is_some_and(|(_, rule)| rule.publish == Publishers::Anyone) {
            let message = format!("{name} may be published to over the HTTP API only");
            return self.refuse(slot, id, ErrorCode::Forbidden, &message);
        }
        if self.draining {
            return self.refuse(slot, id, ErrorCode::Draining, "the server is shutting down");
        }
        let origin = id.is_some().then(|| self.origin(slot, id));
        let bytes = Bytes::from(payload.bytes.into_owned());
        let payload = StoredPayload { kind: payload.kind, bytes };
        self.request(Request::Publish { origin, channel: name, payload });
        if self.is_congested() {
            self.pause(slot);
            self.counters.publishers_paused.add(1);
        }
    }

    fn origin(&self, slot: u32, id: Option<&str>) -> Origin {
        Origin { shard: self.id, session: self.sessions.id(slot), id: id.map(Box::from) }
    }

    /// Stops reading from a session until the shard has caught up.
    pub(in crate::shard) fn pause(&mut self, slot: u32) {
        let id = self.sessions.id(slot);
        let socket = self.sessions.hot(slot).socket;
        if let Some(session) = self.sessions.get_mut(slot)
            && !session.paused
        {
            session.paused = true;
            self.wire.receive(socket, false);
            self.paused.push(id);
        }
    }

    /// Reads again from sessions that were paused, where the reason is gone.
    pub(in crate::shard) fn unpause(&mut self) {
        if self.paused.is_empty() || self.is_congested() {
            return;
        }
        let low = self.config.limits.outbox_bytes_max as usize / 8;
        for id in std::mem::take(&mut self.paused) {
            let Some(slot) = self.sessions.current(id) else { continue };
            let socket = self.sessions.hot(slot).socket;
            let Some(session) = self.sessions.get_mut(slot) else { continue };
            let waiting = session.outbox.as_ref().is_some_and(|outbox| outbox.bytes() > low);
            if waiting || session.histories >= HISTORIES_MAX {
                self.paused.push(id);
                continue;
            }
            session.paused = false;
            let mut held = std::mem::take(&mut session.held);
            self.received(slot, &mut held);
            let again = self.sessions.get(slot).is_some_and(|session| !session.paused);
            if again && self.sessions.current(id).is_some() {
                self.wire.receive(socket, true);
            }
        }
    }

    /// Answers to commands, and chunks, from the home shards.
    pub(in crate::shard) fn delivered(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Chunk { key, lane, first_offset, count, bytes } => {
                let Some(id) = self.subscriptions.find_key(key, lane) else { return };
                let state = self.subscriptions.lane_mut(id);
                if state.subscribers.is_empty() {
                    return;
                }
                assert_eq!(first_offset, state.log.last_offset() + 1, "offsets are dense");
                state.log.append(&bytes, first_offset, count, self.now_ms);
                self.mark_dirty(id);
            }
            Delivery::Subscribed {
                origin,
                attempt,
                channel,
                key,
                lane,
                position,
                recovered,
                replay,
            } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                let Some(id) = self.subscriptions.find(&channel, lane) else { return };
                let Some(session) = self.sessions.get_mut(slot) else { return };
                let pending = session.subscriptions.iter_mut().find(|s| s.attempt == attempt);
                let Some(subscription) = pending.filter(|s| s.lane == id && s.index.is_none())
                else {
                    return;
                };
                let index = self.subscriptions.attach(id, key, slot, position);
                subscription.index = Some(index);
                match recovered {
                    Some(true) => self.counters.recovered.add(1),
                    Some(false) => self.counters.not_recovered.add(1),
                    None => {}
                }
                let id = origin.id.as_deref();
                let channel = &channel;
                self.reply(slot, &Event::Subscribed { id, channel, position, recovered });
                if !replay.is_empty() {
                    self.push_outbox(slot, replay);
                }
            }
            Delivery::Published { origin, channel, position } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                let (id, channel) = (origin.id.as_deref(), &channel);
                self.reply(slot, &Event::Published { id, channel, position });
            }
            Delivery::History { origin, channel, page } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                if let Some(session) = self.sessions.get_mut(slot) {
                    session.histories = session.histories.saturating_sub(1);
                }
                let id = origin.id.as_deref();
                let Some(page) = page else {
                    let message = format!("there is no channel {channel} at present");
                    return self.refuse(slot, id, ErrorCode::BadChannel, &message);
                };
                let publications = page
                    .publications
                    .iter()
                    .map(|p| Publication {
                        offset: p.offset,
                        kind: p.payload.kind,
                        bytes: &p.payload.bytes,
                    })
                    .collect();
                let (channel, position) = (&channel, page.position);
                self.reply(slot, &Event::History { id, channel, position, publications });
            }
            Delivery::Refused { origin, attempt, code, message } => {
                let Some(slot) = self.sessions.current(origin.session) else { return };
                if let Some(session) = self.sessions.get_mut(slot)
                    && let Some(attempt) = attempt
                {
                    let at = session.subscriptions.iter().position(|s| s.attempt == attempt);
                    // Unsubscribed in the meantime: the answer is to nobody.
                    let Some(at) = at else { return };
                    let subscription = session.subscriptions.swap_remove(at);
                    self.subscription_count -= 1;
                    self.subscriptions.release(subscription.lane);
                }
                self.refuse(slot, origin.id.as_deref(), code, &message);
            }
        }
    }

    /// Takes a channel from a session. A half-sent frame of it is still completed.
    fn detach(&mut self, slot: u32, at: usize) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let Subscription { lane, index, .. } = session.subscriptions.swap_remove(at);
        self.subscription_count -= 1;
        let state = self.subscriptions.lane_mut(lane);
        if let Some(index) = index {
            if session.half_sent == Some(lane) {
                session.half_sent = None;
                let position = state.subscribers.get(index as usize).map(|s| s.sent);
                if let Some(rest) = position.and_then(|p| state.log.rest_of_frame(p)) {
                    session.outbox.get_or_insert_default().push_front(rest);
                    self.sessions.hot_mut(slot).flags |= OUTBOX;
                    self.resume_session(slot);
                }
            }
            self.subscriptions.lane_mut(lane).gaps.remove(&slot);
            self.remove_subscriber(lane, index);
        }
        let state = self.subscriptions.lane_mut(lane);
        let (channel, lane_kind) = (state.name.clone(), state.lane);
        self.subscriptions.release(lane);
        self.request(Request::Unsubscribe { shard: self.id, channel, lane: lane_kind });
    }

    /// Takes the last subscriber to the place of the one that goes, and tells its session.
    fn remove_subscriber(&mut self, lane: LaneId, index: u32) {
        let state = self.subscriptions.lane_mut(lane);
        state.subscribers.swap_remove(index as usize);
        // The one that moved may not have been walked yet.
        state.again |= state.walk > 0;
        if let Some(moved) = state.subscribers.get(index as usize)
            && let Some(session) = self.sessions.get_mut(moved.session)
            && let Some(own) = session.subscriptions.iter_mut().find(|s| s.lane == lane)
        {
            own.index = Some(index);
        }
    }

    /// Sends an event to one session, where its dialect has a form for it.
    pub(in crate::shard) fn reply(&mut self, slot: u32, event: &Event) {
        let Some(session) = self.sessions.get(slot) else { return };
        let mut frame = Vec::new();
        session.dialect.write_event(&mut frame, event);
        if !frame.is_empty() {
            self.push_outbox(slot, Bytes::from(frame));
        }
    }

    /// Tells a session that a command was refused; closes it where that cannot be told.
    fn refuse(&mut self, slot: u32, id: Option<&str>, code: ErrorCode, message: &str) {
        self.counters.errors_told.add(1);
        let Some(session) = self.sessions.get(slot) else { return };
        if session.dialect.answers_in_band() {
            self.reply(slot, &Event::Error { id, code, message });
        } else if !matches!(code, ErrorCode::AlreadySubscribed | ErrorCode::NotSubscribed) {
            // What is so already needs no telling; anything else cannot be told otherwise.
            let reason = format!("{}: {message}", code.as_str());
            self.close_session(slot, CloseCode::REFUSED, &reason);
        }
    }

    /// Queues bytes for one session. Reading from it stops while it does not read.
    pub(in crate::shard) fn push_outbox(&mut self, slot: u32, frame: Bytes) {
        let most = self.config.limits.outbox_bytes_max as usize;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let outbox = session.outbox.get_or_insert_default();
        let len = frame.len();
        outbox.push(frame);
        let waiting = outbox.bytes();
        self.sessions.hot_mut(slot).flags |= OUTBOX;
        self.resume_session(slot);
        if waiting > most / 4 {
            self.pause(slot);
        }
        // One large answer is fine; many small ones that nobody reads are not.
        if waiting - len > most && self.sessions.hot(slot).flags & CLOSING == 0 {
            self.close_session(slot, CloseCode::SLOW, "replies are not read");
        }
    }

    /// Queues a pong. Behind a reader that does not read, one that still waits is replaced, as RFC 6455
    /// section 5.5.3 allows, so that pings cannot fill an outbox.
    fn push_pong(&mut self, slot: u32, pong: Bytes) {
        let outbox = self.sessions.get_mut(slot).and_then(|session| session.outbox.as_mut());
        let waiting = outbox.filter(|outbox| outbox.frames().count() > PONGS_BEHIND_MAX);
        match waiting {
            Some(outbox) if outbox.frames().last().is_some_and(|f| f.first() == Some(&PONG)) => {
                outbox.replace_last(pong);
            }
            _ => self.push_outbox(slot, pong),
        }
    }

    /// After a send: frees an empty outbox, and ends a session whose close frame is out.
    pub(in crate::shard) fn settle_outbox(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.outbox.as_ref().is_some_and(|outbox| outbox.bytes() > 0) {
            return;
        }
        session.outbox = None;
        let peer_closed = session.peer_closed;
        let hot = self.sessions.hot_mut(slot);
        hot.flags &= !OUTBOX;
        if hot.flags & CLOSING != 0 && peer_closed {
            self.remove_session(slot);
        }
    }

    /// Begins the closing handshake: nothing of any channel follows, the close frame is the last.
    pub(in crate::shard) fn close_session(&mut self, slot: u32, code: CloseCode, reason: &str) {
        let Some(session) = self.sessions.get(slot) else { return };
        if self.sessions.hot(slot).flags & CLOSING != 0 {
            return;
        }
        for at in (0..session.subscriptions.len()).rev() {
            self.detach(slot, at);
        }
        self.sessions.hot_mut(slot).flags |= CLOSING;
        let mut frame = Vec::new();
        frame::write_server(&mut frame, Opcode::Close, &frame::close_body(code, reason));
        self.push_outbox(slot, Bytes::from(frame));
        let due_ms = self.now_ms + u64::from(self.config.server.close_timeout_ms);
        let session = self.sessions.id(slot);
        self.wheel.add(Timer { due_ms, session, purpose: Purpose::Close });
    }

    /// Fails the connection (RFC 6455 section 7.1.7): tells the peer what it broke, listens to nothing
    /// more, and ends it soon. Not at once: closing while the peer still sends would be a reset, which
    /// may overtake the close frame.
    fn fail_session(&mut self, slot: u32, error: &ProtocolError) {
        self.close_session(slot, error.close_code(), &error.to_string());
        if let Some(session) = self.sessions.get_mut(slot) {
            session.failed = true;
            let due_ms = self.now_ms + FAIL_LINGER_MS;
            let session = self.sessions.id(slot);
            self.wheel.add(Timer { due_ms, session, purpose: Purpose::Close });
        }
    }

    /// Ends a session at once.
    pub(in crate::shard) fn remove_session(&mut self, slot: u32) {
        let Some(session) = self.sessions.get(slot) else { return };
        for at in (0..session.subscriptions.len()).rev() {
            self.detach(slot, at);
        }
        let socket = self.sessions.hot(slot).socket;
        self.wire.close(socket);
        self.sessions.remove(slot);
        self.session_count -= 1;
    }

    /// Sees to the timers of sessions.
    pub(in crate::shard) fn due(&mut self, timer: Timer) {
        let Some(slot) = self.sessions.current(timer.session) else { return };
        let flags = self.sessions.hot(slot).flags;
        let now_ms = self.now_ms;
        let interval = u64::from(self.config.heartbeat.interval_ms);
        let timeout = u64::from(self.config.heartbeat.timeout_ms);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        match timer.purpose {
            Purpose::Close => self.remove_session(slot),
            Purpose::Heartbeat if flags & CLOSING != 0 => {}
            Purpose::Heartbeat => {
                let Session { heard_ms, pinged, paused, .. } = *session;
                let silent = now_ms.saturating_sub(heard_ms);
                // While we do not read, silence is ours.
                let due_ms = if paused || silent < interval {
                    (heard_ms + interval).max(now_ms + 1)
                } else if !pinged {
                    session.pinged = true;
                    let mut ping = Vec::new();
                    frame::write_server(&mut ping, Opcode::Ping, b"");
                    self.push_outbox(slot, Bytes::from(ping));
                    now_ms + timeout
                } else {
                    self.counters.heartbeat_timeouts.add(1);
                    let reason = "nothing was heard within the heartbeat's timeout";
                    self.close_session(slot, CloseCode::NO_HEARTBEAT, reason);
                    if flags & BLOCKED != 0 {
                        self.remove_session(slot);
                    }
                    return;
                };
                self.wheel.add(Timer { due_ms, ..timer });
            }
        }
    }
}
