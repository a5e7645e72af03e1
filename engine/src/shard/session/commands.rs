//! The commands of a session.

use bytes::Bytes;
use ringfeed_protocol::command::{Action, Command, Payload};
use ringfeed_protocol::frame::{self, Opcode};
use ringfeed_protocol::refused::{Limit, Operation};
use ringfeed_protocol::{ChannelName, Event, Offset, Position, Refused};
use ringfeed_wire::Wire;

use super::{CURSORS, Deferred, Holds, MULTI, Subscription};
use crate::config::{Publishers, Subscribers};
use crate::ids::{LaneId, SessionSlot};
use crate::message::{Origin, Reply, Request};
use crate::shard::Shard;
use crate::shard::feed::{Subscriber, Window};

impl<W: Wire> Shard<W> {
    pub(super) fn handle_command(&mut self, slot: SessionSlot, Command { id, action }: Command) {
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
                    self.unsubscribe(slot, id, name);
                }
            }
            Action::Publish { channel, payload } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.publish(slot, id, name, payload);
                }
            }
            Action::History { channel, after, limit } => {
                if let Some(name) = self.channel_name(slot, id, &channel) {
                    self.history(slot, id, name, after, limit);
                }
            }
        }
    }

    /// The full and valid name of a channel, or `None` after the refusal was told.
    fn channel_name(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        name: &str,
    ) -> Option<ChannelName> {
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
                self.refuse(slot, id, Refused::BadChannel(e));
                None
            }
        }
    }

    fn subscribe(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        recover: Option<Position>,
    ) {
        let Some(session) = self.sessions.get(slot) else { return };
        let Some(lane) = session.dialect.lane() else { return };
        let most = self.config.limits.subscriptions_per_connection_max;
        let rule = match self.config.rule(&channel) {
            Some(rule) if rule.subscribe == Subscribers::Anyone => rule,
            _ => {
                let (operation, hint) = (Operation::Subscribe, "by nobody");
                return self.refuse(slot, id, Refused::Forbidden { operation, channel, hint });
            }
        };
        if self.draining {
            return self.refuse(slot, id, Refused::Draining);
        }
        let known = self.feeds.find(&channel, lane);
        if session.subscriptions.iter().any(|s| Some(s.lane) == known) {
            return self.refuse(slot, id, Refused::AlreadySubscribed { channel });
        }
        if session.subscriptions.len() >= most as usize {
            let (limit, most) = (Limit::SubscriptionsPerConnection, u64::from(most));
            return self.refuse(slot, id, Refused::LimitReached { limit, most });
        }
        let window = Window {
            policy: rule.lag_policy,
            bytes: rule.window_bytes as usize,
            age_ms: rule.window_age_ms.into(),
        };
        let to = self.feeds.acquire(&channel, lane, window);
        let attempt = self.sessions.next_attempt();
        let origin = self.origin(slot, id);
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
        self.request(Request::Subscribe { origin, attempt, channel, lane, to, recover });
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
        self.fanout.enqueue(&mut self.sessions, slot, self.work_ms);
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
        let Some(session) = self.sessions.get(slot) else { return };
        let lane = session.dialect.lane().and_then(|lane| self.feeds.find(&channel, lane));
        match session.subscriptions.iter().position(|own| Some(own.lane) == lane) {
            Some(at) => {
                self.detach(slot, at);
                self.reply(slot, &Event::Unsubscribed { id, channel: &channel });
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
    ) {
        let rule = self.config.rule(&channel);
        if !rule.is_some_and(|rule| rule.publish == Publishers::Anyone) {
            let (operation, hint) = (Operation::Publish, "over the HTTP API only");
            return self.refuse(slot, id, Refused::Forbidden { operation, channel, hint });
        }
        if self.draining {
            return self.refuse(slot, id, Refused::Draining);
        }
        let origin = id.is_some().then(|| self.origin(slot, id));
        if origin.is_some() {
            self.owe(slot, 1);
        }
        self.publish_for(origin, channel, payload);
        let held = self.sessions.get(slot).is_none_or(|s| s.holds.has(Holds::CONGESTED));
        if !held && self.is_congested() {
            self.hold(slot, Holds::CONGESTED);
            self.congested.push(self.sessions.id(slot));
            self.counters.publishers_paused.add(1);
        }
    }

    fn history(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        channel: ChannelName,
        after: Option<Offset>,
        limit: Option<u32>,
    ) {
        let subscribe = self.config.rule(&channel).map(|rule| rule.subscribe);
        if subscribe != Some(Subscribers::Anyone) {
            let (operation, hint) = (Operation::History, "by nobody");
            return self.refuse(slot, id, Refused::Forbidden { operation, channel, hint });
        }
        if self.draining {
            return self.refuse(slot, id, Refused::Draining);
        }
        let most = self.config.limits.history_reply_max;
        let limit = limit.unwrap_or(most).min(most);
        let reply = Reply::Session(self.origin(slot, id));
        self.owe(slot, self.owed_by_history());
        self.request(Request::History { channel, after, limit, reply });
    }

    fn origin(&self, slot: SessionSlot, id: Option<&str>) -> Origin {
        Origin { shard: self.id, session: self.sessions.id(slot), id: id.map(Box::from) }
    }
}
