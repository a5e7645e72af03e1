//! The commands of a session.

use bytes::Bytes;
use ringfeed_protocol::command::{Action, Command, Payload};
use ringfeed_protocol::event::{Epoch, Meta};
use ringfeed_protocol::frame::{self, Opcode};
use ringfeed_protocol::printable::Detail;
use ringfeed_protocol::refused::{Limit, Operation};
use ringfeed_protocol::{ChannelName, Event, IdempotencyKey, Offset, Refused, UserId, any_name};
use ringfeed_wire::Wire;

use super::{CURSORS, Deferred, Holds, MULTI, Subscription};
use crate::access::Verdict;
use crate::access::token::TokenError;
use crate::config::{ChannelRule, Presence};
use crate::ids::{LaneId, SessionSlot};
use crate::message::{
    By, Confirm, KeyOf, Keyed, Order, Origin, Question, Reply, Request, Sender, Someone, Speaker,
    UserRequest,
};
use crate::shard::Shard;
use crate::shard::asks::{Calling, Terms, Then};
use crate::shard::feed::{Subscriber, Window};

/// Why nobody was asked.
pub(in crate::shard) const TOO_MANY_QUESTIONS: &str = "too much is being asked of the application";

impl<W: Wire> Shard<W> {
    pub(super) fn handle_command(&mut self, slot: SessionSlot, Command { id, action }: Command) {
        if self.must_authenticate(slot) && !matches!(action, Action::Auth { .. } | Action::Ping) {
            let detail = "say who you are first: {\"type\":\"auth\",\"token\":…}".into();
            return self.refuse(slot, id, Refused::Unauthenticated { detail });
        }
        match action {
            Action::Auth { token } => self.authenticate(slot, id, token.as_deref(), false),
            Action::Send { user, payload } => match UserId::new(&user) {
                Ok(user) => self.send(slot, id, user, payload),
                Err(e) => self.refuse(slot, id, Refused::BadUser(e)),
            },
            Action::Other { kind, message, otherwise } => {
                self.handle_other(slot, id, &kind, &message, otherwise);
            }
            Action::Rpc { method, params, timeout_ms } => {
                // The dialects see to it that there is one.
                if let Some(id) = id {
                    let calling = Calling::Named(id.into());
                    self.call(slot, calling, &method, params.as_deref(), timeout_ms);
                }
            }
            Action::Ping => self.reply(slot, &Event::Pong { id }),
            Action::Echo { text, bytes } => {
                let mut echo = Vec::with_capacity(bytes.len() + frame::HEADER_BYTES_MAX);
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                frame::write_server(&mut echo, opcode, bytes);
                self.push_outbox(slot, Bytes::from(echo));
            }
            Action::Subscribe { channel, recover, token, password } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    let terms = Terms::new(recover, password.as_deref());
                    self.subscribe(slot, id, name, terms, token.as_deref());
                }
            }
            Action::Unsubscribe { channel } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.unsubscribe(slot, id, name);
                }
            }
            Action::Publish { channel, payload, echo, confirm_ms, key } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.publish(slot, id, name, payload, (echo, confirm_ms, key));
                }
            }
            Action::Confirm { channel, epoch, offset } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.confirm(slot, id, name, (epoch, offset));
                }
            }
            Action::History { channel, after, limit } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.history(slot, id, name, after, limit);
                }
            }
            Action::Presence { channel, after, limit } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.presence(slot, id, name, after.as_deref(), limit);
                }
            }
        }
    }

    /// What the endpoint of a session puts in front of channels' names.
    pub(super) fn prefix(&self, slot: SessionSlot) -> &str {
        let endpoint = self.sessions.get(slot).map(|session| usize::from(session.endpoint));
        let endpoint = endpoint.and_then(|endpoint| self.config.endpoints.get(endpoint));
        endpoint.map_or("", |endpoint| &endpoint.channel_prefix)
    }

    /// The full and valid name of a channel, or `None` after the refusal was told.
    fn channel_name(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        name: &str,
    ) -> Option<ChannelName> {
        let (session, prefix) = (self.sessions.get(slot)?, self.prefix(slot));
        // Clients of existing systems give any names.
        let name =
            if session.dialect.has_any_names() { any_name::encode(name) } else { name.into() };
        let full = if prefix.is_empty() {
            ChannelName::new(&name)
        } else {
            ChannelName::new(&format!("{prefix}{name}"))
        };
        match full {
            Ok(name) => Some(name),
            Err(e) => {
                self.refuse(slot, id, Refused::BadChannel(e));
                None
            }
        }
    }

    pub(super) fn subscribe(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        terms: Terms,
        token: Option<&str>,
    ) {
        if self.is_asked_for(slot, &channel) {
            let (id, token) = (id.map(Box::from), token.map(Box::from));
            self.defer(slot, Deferred::Subscribe { id, channel, terms, token });
            return;
        }
        let operation = Operation::Subscribe;
        let hint = match self.may(slot, operation, &channel) {
            Verdict::Yes => return self.subscribe_allowed(slot, id, channel, terms),
            Verdict::Token => match token {
                Some(token) => {
                    return self.subscribe_with_token(slot, id, channel, terms, token, false);
                }
                None => "with a token for it",
            },
            Verdict::Ask => return self.ask_to_subscribe(slot, id, channel, terms),
            Verdict::No(hint) => hint,
            Verdict::WhileSubscribed => "by nobody",
        };
        self.refuse(slot, id, Refused::Forbidden { operation, channel, hint });
    }

    /// Subscribes with a token for the channel alone.
    pub(super) fn subscribe_with_token(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        terms: Terms,
        token: &str,
        last_try: bool,
    ) {
        let (now, keys) = (self.clock.unix_s(), self.shared.remote_keys.load_full());
        let user = self.identity(slot).user.clone();
        let issuers = &self.access.issuers;
        match issuers.check_channel_token(token, now, &keys, user.as_ref(), &channel) {
            Ok(shown) if self.revoked.has_token(user.as_ref(), &shown) => {
                let detail = Detail::new(format_args!("the token for {channel}: it was revoked"));
                self.refuse(slot, id, Refused::Unauthenticated { detail });
            }
            Ok(shown) => {
                self.give_pass(slot, &channel, Some(shown.expires_at), Some(shown));
                if self.subscription_to(slot, &channel).is_some() {
                    // It has shown a newer one.
                    return self.refuse(slot, id, Refused::AlreadySubscribed { channel });
                }
                self.subscribe_allowed(slot, id, channel, terms);
            }
            Err(TokenError::UnknownKey { url, kid }) if !last_try => {
                let (id, token) = (id.map(Box::from), token.into());
                let then = Then::ChannelToken { id, channel, terms, token };
                self.ask_for_keys(slot, (url, kid), then);
            }
            Err(e) => {
                let detail = Detail::new(format_args!("the token for {channel}: {e}"));
                self.refuse(slot, id, Refused::Unauthenticated { detail });
            }
        }
    }

    /// Asks the application whether a session may subscribe.
    fn ask_to_subscribe(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        terms: Terms,
    ) {
        // Nobody is asked about what is refused anyway.
        if let Err(refused) = self.has_room_to_subscribe(slot, &channel) {
            return self.refuse(slot, id, refused);
        }
        let question = Question::Subscribe { caller: self.caller(slot), channel: channel.clone() };
        let then = Then::Subscribe { id: id.map(Box::from), channel, terms };
        if self.ask_for(slot, question, then).is_err() {
            self.refuse(slot, id, Refused::Unavailable { detail: TOO_MANY_QUESTIONS });
        }
    }

    /// The place of a channel among a session's subscriptions.
    pub(super) fn subscription_to(
        &self,
        slot: SessionSlot,
        channel: &ChannelName,
    ) -> Option<usize> {
        let session = self.sessions.get(slot)?;
        let known = self.feeds.find(channel, session.lane?)?;
        session.subscriptions.iter().position(|own| own.lane == known)
    }

    /// Whether a session has subscribed to a channel whose home has not answered yet.
    fn is_asked_for(&self, slot: SessionSlot, channel: &ChannelName) -> bool {
        let at = self.subscription_to(slot, channel);
        let session = self.sessions.get(slot).filter(|session| session.owed > 0);
        let own = session.zip(at).and_then(|(session, at)| session.subscriptions.get(at));
        own.is_some_and(|own| own.index.is_none())
    }

    /// What stands against one more subscription, whoever may have it.
    fn has_room_to_subscribe(
        &self,
        slot: SessionSlot,
        channel: &ChannelName,
    ) -> Result<(), Refused> {
        if self.draining {
            return Err(Refused::Draining);
        }
        if self.subscription_to(slot, channel).is_some() {
            return Err(Refused::AlreadySubscribed { channel: channel.clone() });
        }
        let most = self.config.limits.subscriptions_per_connection_max;
        let count = self.sessions.get(slot).map_or(0, |session| session.subscriptions.len());
        if count >= most as usize {
            let (limit, most) = (Limit::SubscriptionsPerConnection, u64::from(most));
            return Err(Refused::LimitReached { limit, most });
        }
        Ok(())
    }

    /// Subscribes a session that may.
    pub(super) fn subscribe_allowed(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        Terms { recover, password }: Terms,
    ) {
        if let Err(refused) = self.has_room_to_subscribe(slot, &channel) {
            if !matches!(refused, Refused::AlreadySubscribed { .. }) {
                self.take_pass(slot, &channel);
            }
            return self.refuse(slot, id, refused);
        }
        let Some(lane) = self.sessions.get(slot).and_then(|session| session.lane) else {
            return;
        };
        let Some(rule) = self.config.rule(&channel) else { return };
        let window = Window {
            policy: rule.lag_policy,
            bytes: rule.window_bytes as usize,
            age_ms: rule.window_age_ms.into(),
        };
        let to = self.feeds.acquire(&channel, lane, window);
        let (named, is_room) = (rule.knows_members(), rule.room);
        let entry = is_room.then(|| Box::new(self.entry(slot, &channel, password.as_deref())));
        let attempt = self.sessions.next_attempt();
        let origin = self.origin(slot, id);
        let who = named.then(|| Box::new(self.caller(slot)));
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.subscriptions.is_empty() {
            // Most connections have one and keep it.
            session.subscriptions.reserve_exact(1);
        }
        session.subscriptions.push(Subscription { lane: to, index: None, attempt });
        if session.subscriptions.len() > 1 {
            self.serve_as_whole(slot);
        }
        self.subscription_count += 1;
        self.owe(slot, 1);
        let subscribe = Request::Subscribe {
            origin,
            attempt,
            channel,
            lane,
            to,
            recover,
            who,
            entry,
            looked: false,
        };
        match self.user_in_rooms(slot).filter(|_| is_room) {
            Some(user) => {
                // What it asks next is to come behind this.
                self.wait_for_answer(slot);
                let what = UserRequest::Enter { subscribe: subscribe.into() };
                self.request(Request::User { user, what: what.into() });
            }
            None => self.request(subscribe),
        }
    }

    /// A session with several subscriptions is served as a whole from here on: its first one moves to
    /// the lane's other list.
    fn serve_as_whole(&mut self, slot: SessionSlot) {
        if self.sessions.has(slot, MULTI) {
            return;
        }
        let first = self.sessions.get(slot).and_then(|s| s.subscriptions.first().copied());
        if let Some(Subscription { lane, index: Some(index), .. }) = first {
            let subscriber = self.take_subscriber(slot, lane, index);
            self.sessions.hot_mut(slot).flags |= MULTI | CURSORS;
            let served = &mut self.feeds.lane_mut(lane).served;
            let index = u32::try_from(served.len()).expect("sessions have 32-bit slots");
            served.push(subscriber);
            self.set_index(slot, lane, index);
        }
        // With cursors first; once it has everything, it follows.
        self.sessions.hot_mut(slot).flags |= MULTI | CURSORS;
        self.look_at(slot);
    }

    /// Takes a subscriber out of its lane. The last one moves to its place, and its session is told.
    pub(super) fn take_subscriber(
        &mut self,
        slot: SessionSlot,
        lane: LaneId,
        index: u32,
    ) -> Subscriber {
        let list = self.sessions.list(slot);
        let state = self.feeds.lane_mut(lane);
        let subscribers = state.list_mut(list);
        let subscriber = subscribers.swap_remove(index as usize);
        assert_eq!(subscriber.session, slot, "a place belongs to its session");
        let moved = subscribers.get(index as usize).map(|moved| moved.session);
        // The one that moved may not have been walked yet.
        state.again |= state.walk > 0;
        if let Some(moved) = moved {
            self.set_index(moved, lane, index);
        }
        subscriber
    }

    fn set_index(&mut self, slot: SessionSlot, lane: LaneId, index: u32) {
        let session = self.sessions.get_mut(slot);
        let own = session.and_then(|s| s.subscriptions.iter_mut().find(|own| own.lane == lane));
        if let Some(own) = own {
            own.index = Some(index);
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
    ) {
        let wait = Deferred::Unsubscribe { id: id.map(Box::from), channel: channel.clone() };
        if self.defer(slot, wait) {
            return;
        }
        match self.subscription_to(slot, &channel) {
            Some(at) => {
                self.end_one(slot, at);
                self.reply(slot, &Event::Unsubscribed { id, channel: &channel, reason: None });
            }
            None => self.refuse(slot, id, Refused::NotSubscribed { channel }),
        }
    }

    fn publish(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        payload: Payload,
        how: (bool, Option<u32>, Option<IdempotencyKey>),
    ) {
        let operation = Operation::Publish;
        let ask = match self.may(slot, operation, &channel) {
            Verdict::Yes => None,
            Verdict::Ask => Some(Box::new(self.caller(slot))),
            Verdict::No(hint) => {
                return self.refuse(slot, id, Refused::Forbidden { operation, channel, hint });
            }
            Verdict::Token | Verdict::WhileSubscribed => {
                let hint = "over the HTTP API only";
                return self.refuse(slot, id, Refused::Forbidden { operation, channel, hint });
            }
        };
        if self.draining {
            return self.refuse(slot, id, Refused::Draining);
        }
        let rule = self.rule_of_publication(&channel);
        let takes = |rule: &ChannelRule| rule.check_content(&channel, payload.kind, &payload.bytes);
        if let Err(refused) = rule.map_or(Ok(()), takes) {
            return self.refuse(slot, id, refused);
        }
        let has_key = how.2.is_some();
        let by = self.sender(slot, &channel, rule, how);
        // Its home may refuse it, and that is told whoever does not ask for an answer.
        let minds =
            has_key || rule.is_some_and(|rule| rule.room || rule.messages_per_second_max > 0);
        let origin = (id.is_some() || minds).then(|| self.origin(slot, id));
        if origin.is_some() {
            self.owe(slot, 1);
        }
        let asks = ask.is_some();
        if !self.publish_for(origin, channel, payload, by, ask) && asks {
            // The home is another shard. What the application is asked next about this connection comes behind it.
            self.wait_for_answer(slot);
            if let Some(session) = self.sessions.get_mut(slot) {
                session.posted = true;
            }
        }
        self.hold_if_congested(slot);
    }

    /// Reads no more of a connection whose commands go where there is no room, until there is.
    fn hold_if_congested(&mut self, slot: SessionSlot) {
        let held = self.sessions.get(slot).is_none_or(|s| s.holds.has(Holds::CONGESTED));
        if !held && self.is_congested() {
            self.hold(slot, Holds::CONGESTED);
            self.congested.push(self.sessions.id(slot));
            self.counters.publishers_paused.add(1);
        }
    }

    /// Who a publication is by, where that matters.
    fn sender(
        &self,
        slot: SessionSlot,
        channel: &ChannelName,
        rule: Option<&ChannelRule>,
        (echo, confirm_ms, key): (bool, Option<u32>, Option<IdempotencyKey>),
    ) -> By {
        let (tells, is_room) = rule.map_or((false, false), |rule| (rule.sender, rule.room));
        if echo && !tells && !is_room && confirm_ms.is_none() && key.is_none() {
            return None;
        }
        let confirm = confirm_ms.map(|within_ms| {
            let within_ms = within_ms.min(self.config.limits.confirm_ms_max);
            let (publisher, who) =
                ((self.id, self.sessions.id(slot)), Someone::of(&self.caller(slot)));
            Box::new(Confirm { publisher, who, within_ms })
        });
        let speaker = is_room.then(|| {
            let seat = (self.id, self.sessions.id(slot));
            Box::new(Speaker { seat, guest: self.guest(slot, channel) })
        });
        let meta = tells.then(|| {
            let user = self.identity(slot).user.clone();
            let (time_ms, number) = (self.clock.unix_ms(), self.number(slot));
            Box::new(Meta { time_ms, user, number, confirm: confirm.is_some() })
        });
        let except = (!echo).then(|| self.connection_id(slot));
        let key = key.map(|key| {
            let user = self.identity(slot).user.clone();
            Box::new(Keyed { of: user.map_or(KeyOf::Strangers, KeyOf::User), key })
        });
        Some(Box::new(Sender { except, meta, speaker, confirm, key, ..Sender::default() }))
    }

    /// Says that a publication has come.
    fn confirm(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        (epoch, offset): (Option<Epoch>, Offset),
    ) {
        if self.draining {
            // Who wants to know hears nothing more.
            return if id.is_some() {
                self.refuse(slot, id, Refused::Draining)
            };
        }
        let origin = id.is_some().then(|| self.origin(slot, id));
        if origin.is_some() {
            self.owe(slot, 1);
        }
        let (shard, session) = (self.id, self.sessions.id(slot));
        self.request(Request::Confirm { shard, session, origin, channel, epoch, offset });
        // Each may be told to another node.
        self.hold_if_congested(slot);
    }

    fn history(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        after: Option<Offset>,
        limit: Option<u32>,
    ) {
        if let Err(refused) = self.may_see(slot, Operation::History, &channel) {
            return self.refuse(slot, id, refused);
        }
        let most = self.config.limits.history_reply_max;
        let limit = limit.unwrap_or(most).min(most);
        let reply = Reply::Session(self.origin(slot, id));
        self.owe(slot, self.owed_by_history());
        self.request(Request::History { channel, after, limit, reply });
    }

    /// Whether a session may be shown what is known of a channel: its history, or who is there.
    fn may_see(
        &self,
        slot: SessionSlot,
        operation: Operation,
        channel: &ChannelName,
    ) -> Result<(), Refused> {
        let hint = match self.may(slot, operation, channel) {
            Verdict::Yes => None,
            Verdict::No(hint) => Some(hint),
            _ if self.subscription_to(slot, channel).is_some() => None,
            _ => Some("by its subscribers"),
        };
        match hint {
            Some(hint) => Err(Refused::Forbidden { operation, channel: channel.clone(), hint }),
            None if self.draining => Err(Refused::Draining),
            None => Ok(()),
        }
    }

    /// Says who is on a channel.
    fn presence(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        after: Option<&str>,
        limit: Option<u32>,
    ) {
        let operation = Operation::Presence;
        let after = match after.map(str::parse::<Someone>).transpose() {
            Ok(after) => after.map(Box::new),
            Err(e) => {
                return self.refuse(slot, id, Refused::bad_command(format_args!("'after': {e}")));
            }
        };
        if let Err(refused) = self.may_see(slot, operation, &channel) {
            return self.refuse(slot, id, refused);
        }
        if self.config.rule(&channel).is_none_or(|rule| rule.presence == Presence::Off) {
            let hint = "by nobody";
            return self.refuse(slot, id, Refused::Forbidden { operation, channel, hint });
        }
        let most = self.config.limits.presence_reply_max;
        let limit = limit.unwrap_or(most).min(most);
        let reply = Reply::Session(self.origin(slot, id));
        self.owe(slot, self.owed_by_history());
        self.request(Request::Presence { channel, after, limit, reply });
    }

    /// Sends to all connections of a user.
    fn send(&mut self, slot: SessionSlot, id: Option<&str>, user: UserId, payload: Payload) {
        if !self.access.permissions.may_send(self.identity(slot), &user) {
            return self.refuse(slot, id, Refused::SendForbidden { user });
        }
        let from = self.identity(slot).user.clone();
        let order = Order::Send { from, payload: payload.into() };
        let reply = Reply::Session(self.origin(slot, id));
        self.owe(slot, 1);
        let what = UserRequest::Order { connection: None, order, reply };
        self.request(Request::User { user, what: what.into() });
    }

    fn origin(&self, slot: SessionSlot, id: Option<&str>) -> Origin {
        Origin { shard: self.id, session: self.sessions.id(slot), id: id.map(Box::from) }
    }
}
