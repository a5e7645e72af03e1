//! Serving the requests for the channels that are homed here.

use std::collections::VecDeque;

use ringfeed_protocol::command::Payload;
use ringfeed_protocol::event::Meta;
use ringfeed_protocol::refused::Limit;
use ringfeed_protocol::{ChannelName, Offset, Refused, UserId};
use ringfeed_wire::Wire;
use tokio::sync::oneshot;

use super::asks::Awaiting;
use super::home::{Asker, Batch, Publisher, Subscribe, Subscribed};
use super::session::{HISTORY_PARTS, TOO_MANY_QUESTIONS};
use super::{STEP_TIME_MAX, Shard, flush_limits, home_limits, route};
use crate::config::ChannelRule;
use crate::ids::{ConnectionId, Ticket};
use crate::message::{
    By, Caller, Delivery, Errand, HistoryPage, Inbox, Order, Origin, Post, PresencePage, Published,
    Question, Reached, Reply, Request, Revocation, Someone, StoredPayload, UserRequest,
};
use crate::settings::Settings;

/// What serving a request, or a publication of a batch, takes besides the bytes in it, as bytes.
const REQUEST_BYTES: usize = 128;
/// What of a turn's budget is used between two looks at the time.
const BUDGET_PER_LOOK: usize = 64 * REQUEST_BYTES;

/// Requests that wait, and what they hold.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn push_back(&mut self, request: Request) {
        self.bytes += request.cost();
        self.requests.push_back(request);
    }

    fn push_front(&mut self, request: Request) {
        self.bytes += request.cost();
        self.requests.push_front(request);
    }

    fn pop_front(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        self.bytes -= request.cost();
        Some(request)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<W: Wire> Shard<W> {
    /// Hands a request to the home of its channel, which may be here.
    pub(super) fn request(&mut self, request: Request) {
        let home = request.name().map_or(self.id, |name| self.shared.shards.home(name));
        if home != self.id {
            return self.links.request(home, request);
        }
        if !self.serves_at_once() {
            return self.waiting.push_back(request);
        }
        let asks = !matches!(
            request,
            Request::Unsubscribe { .. }
                | Request::Member { .. }
                | Request::Pressure { .. }
                | Request::User { .. }
        );
        if let Some(later) = self.serve_request(request) {
            self.waiting.push_back(later);
        }
        if asks {
            self.take_own();
        }
    }

    /// Whether a request of a session of this shard need not wait. One by one, or an answer could overtake
    /// one that takes several turns.
    fn serves_at_once(&self) -> bool {
        self.waiting.is_empty() && self.request_budget > 0
    }

    /// Publishes for a session: where the home is here, as it came, without a copy. Returns whether this was done at
    /// once; else, of what is to be asked about, [`Delivery::Asked`] tells when.
    pub(super) fn publish_for(
        &mut self,
        origin: Option<Origin>,
        channel: ChannelName,
        payload: Payload,
        by: By,
        ask: Option<Box<Caller>>,
    ) -> bool {
        let home = self.shared.shards.home(&channel);
        if home == self.id && self.serves_at_once() {
            let asker = origin.map_or(Asker::Nobody, Asker::Session);
            self.publish_here(&channel, payload, Publisher { asker, by }, ask);
            self.take_own();
            return true;
        }
        let request = Request::Publish { origin, channel, payload: payload.into(), by, ask };
        if home == self.id {
            self.waiting.push_back(request);
        } else {
            self.links.request(home, request);
        }
        false
    }

    /// The rule of a channel, where publications may have to be looked at.
    pub(super) fn rule_of_publication(&self, channel: &ChannelName) -> Option<&ChannelRule> {
        if self.some_look { self.config.rule(channel) } else { None }
    }

    /// Whether subscribers of a channel are told who has published something, and when.
    fn tells_sender(&self, channel: &ChannelName) -> bool {
        self.rule_of_publication(channel).is_some_and(|rule| rule.sender)
    }

    /// Publishes to a channel that is homed here.
    fn publish_here(
        &mut self,
        channel: &ChannelName,
        payload: Payload,
        mut publisher: Publisher,
        ask: Option<Box<Caller>>,
    ) {
        self.request_budget = self.request_budget.saturating_sub(payload.bytes.len());
        if let Err(refused) = self.homes.may_speak(channel, &mut publisher) {
            let mut deliver = route(self.id, &mut self.own, &mut self.links);
            return self.homes.refuse(channel, publisher.asker, refused, &mut deliver);
        }
        if let Some(caller) = ask {
            return self.ask_to_publish(channel, payload.into(), publisher, *caller);
        }
        let mut deliver = route(self.id, &mut self.own, &mut self.links);
        let now = (self.now, self.work_ms);
        let published = self.homes.publish(channel, payload, publisher, now, &mut deliver);
        self.counters.publications.add(published.into());
    }

    /// Asks the application whether something may be published; meanwhile it keeps its place in the channel.
    fn ask_to_publish(
        &mut self,
        channel: &ChannelName,
        payload: StoredPayload,
        publisher: Publisher,
        caller: Caller,
    ) {
        let may_ask = self.homes.may_ask(channel, &publisher.asker, self.work_ms);
        let asked = may_ask.and_then(|()| {
            let (channel, payload) = (channel.clone(), payload.clone());
            let waiting = Awaiting::Publication(channel.clone());
            let question = Question::Publish { caller, channel, payload };
            let full = |_| Refused::Unavailable { detail: TOO_MANY_QUESTIONS };
            self.ask(question, waiting).map_err(full)
        });
        match asked {
            Ok(ticket) => self.homes.park_asked(channel, ticket, payload, publisher),
            Err(refused) => {
                let mut deliver = route(self.id, &mut self.own, &mut self.links);
                self.homes.refuse(channel, publisher.asker, refused, &mut deliver);
            }
        }
    }

    /// The same for a session that waits to hear that it was asked about.
    fn publish_from_elsewhere(
        &mut self,
        channel: &ChannelName,
        payload: &StoredPayload,
        publisher: Publisher,
        ask: Option<Box<Caller>>,
    ) {
        let connection = ask.as_ref().map(|caller| caller.connection);
        self.publish_here(channel, payload.borrowed(), publisher, ask);
        if let Some(connection) = connection {
            let mut deliver = route(self.id, &mut self.own, &mut self.links);
            deliver(connection.shard, Delivery::Asked(connection));
        }
    }

    /// Goes on with a publication that was asked about.
    pub(super) fn settle_asked(
        &mut self,
        channel: &ChannelName,
        ticket: Ticket,
        publish: Result<Option<StoredPayload>, Refused>,
    ) {
        // What the application says instead is held to the same.
        let publish = publish.and_then(|instead| {
            if let (Some(rule), Some(payload)) = (self.rule_of_publication(channel), &instead) {
                rule.check_content(channel, payload.kind, &payload.bytes)?;
            }
            Ok(instead)
        });
        let mut deliver = route(self.id, &mut self.own, &mut self.links);
        self.homes.settle_asked(channel, ticket, publish, &mut deliver);
    }

    /// Serves what has come for the homes, up to the turn's limit.
    pub(super) fn take_requests(&mut self) -> bool {
        let now = (self.now, self.work_ms);
        let mut deliver = route(self.id, &mut self.own, &mut self.links);
        let (published, requests) =
            self.homes.begin_turn(now, &mut self.request_budget, &mut deliver);
        drop(deliver);
        self.counters.publications.add(published);
        for (place, request) in requests.into_iter().enumerate() {
            // The first one always goes on, but not a piece of each: replays that are all unfinished would
            // drive each other's pieces out.
            let goes_on = place == 0 || self.request_budget > 0;
            let later = if goes_on { self.serve(request) } else { Some(request) };
            if let Some(later) = later {
                self.homes.park_again(later);
            }
        }
        let (mut batches, mut served, mut looked) = (0, false, self.request_budget);
        while self.request_budget > 0 && self.serves_requests() {
            let Some(request) = self.waiting.pop_front() else {
                if batches == self.limits.batches {
                    break;
                }
                // By turns: neither the control thread nor other shards can keep the others waiting.
                let Inbox { control, requests, .. } = &self.inbox;
                self.control_next = !self.control_next;
                let batch = match self.control_next {
                    true => control.take().or_else(|| requests.take()),
                    false => requests.take().or_else(|| control.take()),
                };
                let Some(batch) = batch else { break };
                batches += 1;
                batch.into_iter().for_each(|request| self.waiting.push_back(request));
                continue;
            };
            self.request_budget = self.request_budget.saturating_sub(REQUEST_BYTES);
            if let Some(later) = self.serve_request(request) {
                self.waiting.push_front(later);
                break;
            }
            served = true;
            if looked - self.request_budget >= BUDGET_PER_LOOK {
                looked = self.request_budget;
                if self.clock.now() - self.now > STEP_TIME_MAX {
                    break;
                }
            }
        }
        published > 0 || served
    }

    /// Serves one request. What is more than the turn's budget comes back, with what is left to do.
    fn serve_request(&mut self, request: Request) -> Option<Request> {
        if !self.homes.has_parked() {
            return self.serve(request);
        }
        if let Request::Member { shard, session, channel, who } = &request {
            // Who it is does not wait for what somebody says of its publications. A subscribe that waits there may still
            // say otherwise: so it comes behind that once more.
            self.homes.name_member(channel, *shard, *session, who, self.work_ms);
        }
        let request = self.homes.park_behind_own(request)?;
        self.serve(request)
    }

    /// Publishes what the control thread has.
    fn serve_batch(
        &mut self,
        items: Vec<(u32, Post)>,
        reply: oneshot::Sender<Vec<(u32, Published)>>,
    ) {
        let batch = Batch::new(items.len(), reply);
        for (place, Post { channel, payload, mut by }) in items {
            self.request_budget = self.request_budget.saturating_sub(REQUEST_BYTES);
            if self.tells_sender(&channel) {
                let time_ms = self.clock.unix_ms();
                let meta = Meta { time_ms, user: None, number: 0, confirm: false };
                by.get_or_insert_default().meta = Some(meta.into());
            }
            let publisher = Publisher { asker: Asker::Batch(place, batch.clone()), by };
            self.publish_here(&channel, payload.borrowed(), publisher, None);
        }
    }

    /// Does what a user's home is asked for.
    fn serve_user(&mut self, user: UserId, what: UserRequest) {
        let mut deliver = route(self.id, &mut self.own, &mut self.links);
        match what {
            UserRequest::Join(connection) => {
                let most = self.config.limits.connections_per_user_max;
                let (shard, sessions) = (connection.shard, vec![connection.session]);
                if !self.users.join(user, connection, most) {
                    deliver(shard, Delivery::Order { sessions, order: Order::TooMany });
                }
            }
            UserRequest::Leave { shard, session } => self.users.leave(&user, shard, session),
            UserRequest::Enter { subscribe } => {
                let Request::Subscribe { origin, channel, .. } = &*subscribe else { return };
                let most = self.config.limits.rooms_per_user_max;
                let shard = origin.shard;
                let counted = if self.users.enter(&user, channel, (shard, origin.session), most) {
                    Ok(())
                } else {
                    let (limit, most) = (Limit::RoomsPerUser, most.into());
                    Err(Refused::LimitReached { limit, most })
                };
                deliver(shard, Delivery::Entering { subscribe, counted });
            }
            UserRequest::LeaveRoom { shard, session, channel } => {
                self.users.leave_room(&user, &channel, (shard, session));
            }
            UserRequest::Order { connection, order, reply } => {
                drop(deliver);
                let reached = self.order_user(&user, connection, &order);
                self.finish_order(Errand::User { user, connection, order }, reached, reply);
            }
            UserRequest::List { reply } => {
                drop(deliver);
                self.finish_list(user, reply);
            }
        }
    }

    /// Hands an order to the connections of a user, or to one of them, that this node has.
    pub(super) fn order_user(
        &mut self,
        user: &UserId,
        connection: Option<ConnectionId>,
        order: &Order,
    ) -> Reached {
        let to = (&self.shared.shards, self.outboxes_max() / 2);
        let mut deliver = route(self.id, &mut self.own, &mut self.links);
        self.users.order(user, connection, order, to, &mut deliver)
    }

    /// Says who is on a channel that is homed here. A session has to be one of those who may look; the application is
    /// told everything.
    fn serve_presence(
        &mut self,
        channel: ChannelName,
        after: Option<&Someone>,
        limit: u32,
        reply: Reply<Option<PresencePage>>,
    ) {
        match reply {
            Reply::Session(origin) => {
                let most = (limit, self.config.limits.outbox_bytes_max / HISTORY_PARTS);
                let shard = origin.shard;
                let may_look = self.homes.may_look(&channel, (shard, origin.session));
                let page = may_look.and_then(|()| {
                    let page = self.presence_page(&channel, after, most, false);
                    page.ok_or_else(|| Refused::NoSuchChannel { channel: channel.clone() })
                });
                let mut deliver = route(self.id, &mut self.own, &mut self.links);
                deliver(shard, Delivery::Presence { origin, channel, page: page.map(Box::new) });
            }
            Reply::Control(reply) => {
                let most = (limit, self.config.api.body_bytes_max);
                let _ = reply.send(self.presence_page(&channel, after, most, true));
            }
        }
    }

    /// Who is on a channel, so many at most and in so many bytes.
    fn presence_page(
        &mut self,
        channel: &ChannelName,
        after: Option<&Someone>,
        (limit, bytes_max): (u32, u32),
        of_room: bool,
    ) -> Option<PresencePage> {
        let mut deliver = route(self.id, &mut self.own, &mut self.links);
        let most = (limit, bytes_max as usize);
        let page = self.homes.presence(channel, after, most, of_room, &mut deliver);
        let cost = page.as_ref().map_or(0, PresencePage::cost);
        self.request_budget = self.request_budget.saturating_sub(cost);
        page
    }

    /// Reads a channel's history, for a session that may look and for the application.
    fn serve_history(
        &mut self,
        channel: ChannelName,
        after: Option<Offset>,
        limit: u32,
        reply: Reply<Option<HistoryPage>>,
    ) {
        match reply {
            Reply::Session(origin) => {
                let bytes_max = self.config.limits.outbox_bytes_max / HISTORY_PARTS;
                let shard = origin.shard;
                let may_look = self.homes.may_look(&channel, (shard, origin.session));
                let page = may_look.and_then(|()| {
                    let page = self.history_page(&channel, after, limit, bytes_max);
                    page.ok_or_else(|| Refused::NoSuchChannel { channel: channel.clone() })
                });
                let mut deliver = route(self.id, &mut self.own, &mut self.links);
                deliver(shard, Delivery::History { origin, channel, page });
            }
            Reply::Control(reply) => {
                let bytes_max = self.config.api.body_bytes_max;
                let _ = reply.send(self.history_page(&channel, after, limit, bytes_max));
            }
        }
    }

    /// What was published on a channel, so many at most and in so many bytes.
    fn history_page(
        &mut self,
        channel: &ChannelName,
        after: Option<Offset>,
        limit: u32,
        bytes_max: u32,
    ) -> Option<HistoryPage> {
        let bytes_max = bytes_max as usize;
        let page = self.homes.history(channel, after, limit, bytes_max, self.work_ms);
        self.request_budget = self.request_budget.saturating_sub(bytes_max);
        page
    }

    /// Goes by new settings from now on.
    fn reconfigure(&mut self) {
        let Settings { config, access, .. } = Settings::clone(&self.shared.settings.load());
        let shards = self.shared.shards.count();
        self.homes.reconfigure(config.clone(), home_limits(&config, shards));
        self.flush_limits = flush_limits(&config, shards);
        self.some_look = config.channels.iter().any(ChannelRule::looks_at_publications);
        (self.config, self.access) = (config, access);
        self.review.begin(true);
    }

    /// Counts a subscriber in, or says why not. What is more than the turn's budget comes back.
    fn serve_subscribe(&mut self, mut request: Request) -> Option<Request> {
        let Request::Subscribe { origin, attempt, channel, lane, to, recover, who, entry, looked } =
            &mut request
        else {
            return None;
        };
        let Shard { id, own, links, homes, config, request_budget: budget, .. } = self;
        let mut deliver = route(*id, own, links);
        let shard = origin.shard;
        let subscribe = Subscribe {
            name: channel,
            shard,
            session: origin.session,
            who: who.as_deref(),
            entry: entry.as_deref(),
            lane: *lane,
            to: *to,
            recover: *recover,
            recovery_bytes_max: config.limits.recovery_bytes_max as usize,
            looked: *looked,
        };
        let now = (self.now, self.work_ms);
        let started = match homes.subscribe(subscribe, now, budget, &mut deliver) {
            Ok(Subscribed::Later) => return Some(request),
            Ok(Subscribed::Upstream { looked: now }) => {
                *looked = now;
                homes.park_again(request);
                return None;
            }
            Ok(Subscribed::Start(start)) => Ok(start),
            Err(refused) => Err(refused),
        };
        let (attempt, lane) = (*attempt, *lane);
        let Request::Subscribe { origin, channel, .. } = request else { return None };
        let answer = match started {
            Ok(start) => Delivery::Subscribed { origin, attempt, channel, lane, start },
            Err(refused) => Delivery::Refused { origin, attempt: Some(attempt), refused },
        };
        deliver(shard, answer);
        None
    }

    /// Somebody is let in no more, and goes where they are there.
    fn serve_revocation(&mut self, Revocation { whom, until }: Revocation) {
        let until_ms = self.at_ms(until);
        self.revoked.add(whom, until_ms);
        self.review.begin(false);
    }

    /// Takes what need not wait any more for what other nodes say.
    pub(super) fn take_released(&mut self) {
        for request in self.homes.take_released() {
            self.waiting.push_back(request);
        }
    }

    fn serve(&mut self, request: Request) -> Option<Request> {
        let request = self.homes.hold_for_upstream(request, self.work_ms)?;
        let request = self.homes.hold_for_rolls(request, self.work_ms)?;
        let Shard { id, own, links, homes, request_budget: budget, .. } = self;
        let mut deliver = route(*id, own, links);
        match request {
            Request::Subscribe { .. } => {
                drop(deliver);
                return self.serve_subscribe(request);
            }
            Request::Unsubscribe { shard, channel, lane, session } => {
                tracing::trace!(%shard, session = session.slot.0, %channel, "unsubscribed");
                homes.unsubscribe(&channel, (shard, session), lane, self.work_ms);
            }
            Request::Member { shard, session, channel, who } => {
                homes.name_member(&channel, shard, session, &who, self.work_ms);
            }
            Request::Pressure { shard, channel, lane, on } => {
                tracing::debug!(%shard, %channel, on, "readers who read are behind");
                homes.press(&channel, shard, lane, on);
            }
            Request::Publish { origin, channel, payload, by, ask } => {
                drop(deliver);
                let asker = origin.map_or(Asker::Nobody, Asker::Session);
                self.publish_from_elsewhere(&channel, &payload, Publisher { asker, by }, ask);
            }
            Request::Confirm { shard, session, origin, channel, epoch, offset } => {
                let from = ((shard, session), origin);
                homes.confirm(from, channel, (epoch, offset), self.work_ms, &mut deliver);
            }
            Request::PublishBatch { items, reply } => {
                drop(deliver);
                self.serve_batch(items, reply);
            }
            Request::History { channel, after, limit, reply } => {
                drop(deliver);
                self.serve_history(channel, after, limit, reply);
            }
            Request::Presence { channel, after, limit, reply } => {
                drop(deliver);
                self.serve_presence(channel, after.as_deref(), limit, reply);
            }
            Request::Room { channel, what, reply } => {
                drop(deliver);
                self.serve_room(&channel, *what, reply);
            }
            Request::ListChannels { from, reply } => {
                let _ = reply.send(homes.page(from));
                *budget = budget.saturating_sub(self.limits.request_bytes / 4);
            }
            Request::User { user, what } => {
                drop(deliver);
                self.serve_user(user, *what);
            }
            Request::Connection { connection, order, reply } => {
                drop(deliver);
                let order = *order;
                let reached = self.order_one(connection, &order);
                let reply = Reply::Control(reply);
                self.finish_order(Errand::Connection { connection, order }, reached, reply);
            }
            Request::Nodes(what) => {
                drop(deliver);
                self.serve_nodes(what);
            }
            Request::Revoke(revocation) => {
                drop(deliver);
                self.serve_revocation(revocation);
            }
            Request::Upstream { channel, what } => {
                homes.heard_upstream(&channel, *what, self.work_ms, &mut deliver);
                drop(deliver);
                self.take_released();
            }
            Request::NodeBack(instance) => homes.node_is_back(instance),
            Request::NodeGone { instance, own } => {
                homes.node_is_gone(instance, own, self.work_ms);
            }
            Request::Resume => homes.resume(),
            Request::Missed(what) => {
                homes.miss(what);
                // As far as it goes before what comes behind the hole.
                homes.miss_some(&mut deliver);
            }
            Request::Shared(posts) => {
                drop(deliver);
                for Post { channel, payload, by } in posts {
                    let publisher = Publisher { asker: Asker::Shared, by };
                    self.publish_here(&channel, payload.borrowed(), publisher, None);
                }
            }
            Request::Reconfigure => {
                drop(deliver);
                self.reconfigure();
            }
            Request::Drain => {
                drop(deliver);
                self.begin_drain();
            }
        }
        None
    }
}
