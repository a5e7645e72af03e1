//! Who a session is, how long that counts, and what becomes of what it has when that ends.

use std::sync::Arc;
use std::time::Duration;

use ringfeed_protocol::printable::Detail;
use ringfeed_protocol::{ChannelName, Event, Operation, Refused, UserId};
use ringfeed_wire::Wire;

use super::CLOSING;
use crate::access::token::{ChannelToken, TokenError};
use crate::access::{Admitted, Entry, Guest, Identity, Statement, Verdict};
use crate::callers::KeyHash;
use crate::config::TokenPlace;
use crate::counters::CloseReason;
use crate::ids::{ConnectionId, SessionId, SessionSlot};
use crate::message::{Caller, Question, Request, UserConnection, UserRequest};
use crate::shard::Shard;
use crate::shard::asks::{Awaiting, Terms, Then};
use crate::shard::timers::{Purpose, Timer};

/// Why something is not believed any more.
const REVOKED: &str = "what you have shown was revoked";
const NOT_ASKED: &str =
    "the application was asked about this connection without a token; open another one with it";
const OTHER_USER: &str = "the token is another user's; open another connection for it";
/// Not before the shard ends.
const NEVER_MS: u64 = u64::MAX;

/// What a session is beyond a stranger who may stay one. Most sessions of an open feed have none.
#[derive(Debug)]
pub(in crate::shard) struct Standing {
    identity: Arc<Identity>,
    /// What of it the application has said, where it was asked, but for its end, …
    stated: Option<Box<Statement>>,
    /// … which is in milliseconds of the shard's life.
    stated_until_ms: u64,
    /// It has shown nothing yet, and may do nothing else.
    must_authenticate: bool,
    /// It was told to its user's home.
    joined: bool,
    /// When the identity counts no more, in milliseconds of the shard's life: the clock on the wall was asked once.
    expires_ms: u64,
    /// When the session is looked at next for what expires.
    armed_ms: u64,
    /// Channels that it may have because it was said so for this connection.
    passes: Vec<Pass>,
    /// Its number outside, where it was given one before it was a session.
    pub(super) number: Option<u64>,
}

/// One channel that a session may have, for a time.
#[derive(Debug)]
struct Pass {
    channel: ChannelName,
    expires_ms: u64,
    /// The token that it was given for, which may be revoked; the application's own word is not.
    token: Option<ChannelToken>,
}

impl Standing {
    fn new(identity: Arc<Identity>) -> Standing {
        Standing {
            identity,
            stated: None,
            stated_until_ms: NEVER_MS,
            must_authenticate: false,
            joined: false,
            expires_ms: NEVER_MS,
            armed_ms: NEVER_MS,
            passes: Vec::new(),
            number: None,
        }
    }
}

/// What the door has found out about a connection.
#[derive(Debug, Default)]
pub struct Credentials {
    /// Who it is; `None` for a stranger.
    pub admitted: Option<Box<Admitted>>,
    /// It is to say who it is before anything else.
    pub must_authenticate: bool,
    /// The number under which the application was asked about it.
    pub number: Option<u64>,
    /// Why it is closed as soon as it is open: who cannot read the answer to a handshake is told so.
    pub refused: Option<Refused>,
}

impl<W: Wire> Shard<W> {
    /// Who a session is.
    pub(in crate::shard) fn identity(&self, slot: SessionSlot) -> &Arc<Identity> {
        let standing = self.sessions.standing(slot);
        standing.map_or(&self.stranger, |standing| &standing.identity)
    }

    /// Its name outside.
    pub(in crate::shard) fn connection_id(&self, slot: SessionSlot) -> ConnectionId {
        let standing = self.sessions.standing(slot);
        let id = self.sessions.id(slot);
        let own = u64::from(id.generation) << 32 | u64::from(id.slot.0);
        let number = standing.and_then(|standing| standing.number);
        ConnectionId { shard: self.id, number: number.unwrap_or(own ^ self.connection_key) }
    }

    /// A small number above 0 that no other connection of this server has meanwhile.
    pub(in crate::shard) fn number(&self, slot: SessionSlot) -> u32 {
        let shards = u32::from(self.shared.shards.count());
        slot.0.wrapping_mul(shards).wrapping_add(u32::from(self.id.0)).wrapping_add(1)
    }

    /// The session that has a name, if it is there.
    pub(in crate::shard) fn session_named(&self, connection: ConnectionId) -> Option<SessionSlot> {
        if let Some(&id) = self.named.get(&connection.number) {
            return self.sessions.current(id);
        }
        let own = connection.number ^ self.connection_key;
        // The halves that were put together.
        let (generation, slot) = ((own >> 32) as u32, SessionSlot(own as u32));
        let slot = self.sessions.current(SessionId { slot, generation })?;
        (self.connection_id(slot) == connection).then_some(slot)
    }

    pub(in crate::shard) fn caller(&self, slot: SessionSlot) -> Caller {
        Caller { connection: self.connection_id(slot), identity: self.identity(slot).clone() }
    }

    /// What a session may do with a channel.
    pub(super) fn may(
        &self,
        slot: SessionSlot,
        operation: Operation,
        channel: &ChannelName,
    ) -> Verdict {
        let rule = self.config.rule(channel);
        self.access.permissions.may(rule, self.identity(slot), operation, channel)
    }

    /// Whether it may do nothing but say who it is.
    pub(super) fn must_authenticate(&self, slot: SessionSlot) -> bool {
        self.sessions.standing(slot).is_some_and(|standing| standing.must_authenticate)
    }

    /// Begins a session with what the door has found out. It may be closed at once.
    pub(in crate::shard) fn take_credentials(&mut self, slot: SessionSlot, found: Credentials) {
        let Credentials { admitted, must_authenticate, number, refused } = found;
        if let Some(number) = number {
            self.named.insert(number, self.sessions.id(slot));
        }
        if must_authenticate || number.is_some() || refused.is_some() {
            let stranger = self.stranger.clone();
            let Some(session) = self.sessions.get_mut(slot) else { return };
            // Who is refused has not become anybody.
            let must_authenticate = must_authenticate || refused.is_some();
            let standing = Standing { must_authenticate, number, ..Standing::new(stranger) };
            session.standing = Some(Box::new(standing));
        }
        if let Some(refused) = refused {
            return self.close_unauthenticated(slot, &refused.to_string());
        }
        if must_authenticate {
            let due_ms = self.now_ms + u64::from(self.config.auth.timeout_ms);
            let session = self.sessions.id(slot);
            self.wheel.add(Timer { due_ms, session, purpose: Purpose::Authentication });
        }
        match admitted.map(|admitted| self.admit(slot, *admitted)) {
            None => self.open_talk(slot),
            Some(Ok(channels)) => {
                // Whatever comes of the rest is told behind the dialect's greeting.
                self.open_talk(slot);
                self.tell_connected(slot, None);
                self.subscribe_at_once(slot, channels);
            }
            Some(Err(why)) => self.let_nobody_in(slot, &why),
        }
    }

    /// Closes a session of which the door did not know yet that what it has shown counts no more.
    fn let_nobody_in(&mut self, slot: SessionSlot, why: &Refusal) {
        let stranger = self.stranger.clone();
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let standing = session.standing.get_or_insert_with(|| Box::new(Standing::new(stranger)));
        standing.must_authenticate = true;
        match why {
            Refusal::Revoked => self.close_revoked(slot),
            Refusal::NotBelieved(why) => self.close_unauthenticated(slot, why),
        }
    }

    /// Shows a token: the first one, or a newer one.
    pub(super) fn authenticate(
        &mut self,
        slot: SessionSlot,
        id: Option<&str>,
        token: Option<&str>,
        last_try: bool,
    ) {
        let Some(token) = token else {
            if self.must_authenticate(slot) {
                return self.refuse_authentication(slot, id, "'token' is missing".into());
            }
            return self.tell_connected(slot, id);
        };
        if !self.config.auth.token_from.contains(&TokenPlace::Message) {
            let why = "tokens are shown when connecting, not in messages (auth.token_from)";
            return self.refuse_authentication(slot, id, why.into());
        }
        let now = self.clock.unix_s();
        let checked = self.access.issuers.check(token, now, &self.shared.remote_keys.load());
        let before = self.identity(slot).clone();
        match checked {
            Ok(checked) => match self.admit_anew(slot, checked.into_admitted()) {
                Ok(channels) => {
                    self.tell_connected(slot, id);
                    self.review(slot);
                    self.tell_who_it_is(slot, &before);
                    self.subscribe_at_once(slot, channels);
                    self.subscribe_as_all(slot);
                }
                // Who has shown something that counts still has that.
                Err(Refusal::Revoked) if !self.must_authenticate(slot) => {
                    self.refuse_authentication(slot, id, REVOKED.into());
                }
                Err(Refusal::Revoked) => self.close_revoked(slot),
                Err(Refusal::NotBelieved(why)) => self.refuse_authentication(slot, id, why),
            },
            Err(TokenError::UnknownKey { url, kid }) if !last_try => {
                let then = Then::Auth { id: id.map(Box::from), token: token.into() };
                self.ask_for_keys(slot, (url, kid), then);
            }
            Err(e) => self.refuse_authentication(slot, id, e.to_string()),
        }
    }

    /// Has keys fetched that a token is signed with. Where that cannot be asked, it goes on as if it had been.
    pub(super) fn ask_for_keys(
        &mut self,
        slot: SessionSlot,
        (url, kid): (Box<str>, Box<str>),
        then: Then,
    ) {
        if let Err(then) = self.ask_for(slot, Question::Keys { url, kid }, then) {
            self.go_on(slot, then, None);
        }
    }

    /// Asks something for a session and holds its input until the answer is there.
    pub(super) fn ask_for(
        &mut self,
        slot: SessionSlot,
        question: Question,
        then: Then,
    ) -> Result<(), Then> {
        let session = self.sessions.id(slot);
        match self.ask(question, Awaiting::Session(session, then)) {
            Ok(_) => {
                self.wait_for_answer(slot);
                Ok(())
            }
            Err(Awaiting::Session(_, then)) => Err(then),
            Err(_) => unreachable!("who waits comes back"),
        }
    }

    /// Asks something, for an answer within the time that the application has.
    pub(in crate::shard) fn ask(
        &mut self,
        question: Question,
        waiting: Awaiting,
    ) -> Result<crate::ids::Ticket, Awaiting> {
        let time = Duration::from_millis(self.config.hooks.timeout_ms.into());
        self.ask_within(time, question, waiting)
    }

    /// Asks something.
    pub(super) fn ask_within(
        &mut self,
        time: Duration,
        question: Question,
        waiting: Awaiting,
    ) -> Result<crate::ids::Ticket, Awaiting> {
        let at = (self.id, self.now);
        let asked = self.local.asks.ask(&self.shared.questions, at, time, question, waiting);
        if asked.is_err() {
            self.counters.questions_refused.add(1);
        }
        asked
    }

    /// Gives a session the identity of a token that it has shown. What the application has said of it stays: it cannot
    /// be asked again, since the request is gone.
    fn admit_anew(
        &mut self,
        slot: SessionSlot,
        mut admitted: Admitted,
    ) -> Result<Vec<ChannelName>, Refusal> {
        let own = self.sessions.standing(slot);
        if let Some((own, stated)) = own.and_then(|own| Some((own, own.stated.as_ref()?))) {
            let (bearer, now) = (admitted.identity.user.as_ref(), own.identity.user.as_ref());
            // What was said of somebody is revoked with them.
            if self.revoked.has(&own.identity) {
                return Err(Refusal::Revoked);
            }
            let why = match now {
                None => Some(NOT_ASKED),
                now => (!stated.is_about(bearer, now)).then_some(OTHER_USER),
            };
            if let Some(why) = why {
                return Err(Refusal::NotBelieved(why.into()));
            }
            admitted.identity = stated.onto(admitted.identity);
            admitted.stated = Some(stated.clone());
        }
        self.admit(slot, admitted)
    }

    /// Gives a session an identity. Returns the channels that it is to be subscribed to.
    fn admit(
        &mut self,
        slot: SessionSlot,
        Admitted { mut identity, channels, mut stated }: Admitted,
    ) -> Result<Vec<ChannelName>, Refusal> {
        if !channels.is_empty() {
            identity.grants.get_or_insert_default().allow_channels(&channels);
        }
        if self.revoked.has(&identity) {
            return Err(Refusal::Revoked);
        }
        let before = self.identity(slot).user.clone();
        if before.is_some() && before != identity.user {
            return Err(Refusal::NotBelieved(OTHER_USER.into()));
        }
        let until_ms = |at: Option<u64>| at.map_or(NEVER_MS, |at| self.at_ms(at));
        let until_before_ms =
            self.sessions.standing(slot).map_or(NEVER_MS, |own| own.stated_until_ms);
        let stated_until_ms = until_ms(stated.as_mut().and_then(|own| own.expires_at.take()));
        let stated_until_ms = stated_until_ms.min(until_before_ms);
        let expires_ms = until_ms(identity.expires_at).min(stated_until_ms);
        if expires_ms <= self.elapsed_ms {
            return Err(Refusal::NotBelieved(TokenError::Expired.to_string()));
        }
        let identity = Arc::new(identity);
        let Some(session) = self.sessions.get_mut(slot) else { return Ok(Vec::new()) };
        let standing =
            session.standing.get_or_insert_with(|| Box::new(Standing::new(identity.clone())));
        (standing.identity, standing.expires_ms) = (identity.clone(), expires_ms);
        (standing.stated, standing.stated_until_ms) = (stated, stated_until_ms);
        standing.must_authenticate = false;
        let joins = identity.user.is_some() && !std::mem::replace(&mut standing.joined, true);
        self.arm_expiry(slot);
        if let Some(user) = identity.user.clone().filter(|_| joins) {
            self.join(slot, user);
        }
        Ok(channels)
    }

    /// Milliseconds of the shard's life at which a clock on the wall will show this, if nobody sets it.
    pub(in crate::shard) fn at_ms(&self, unix_s: u64) -> u64 {
        let ahead = unix_s.saturating_mul(1000).saturating_sub(self.clock.unix_ms());
        self.elapsed_ms.saturating_add(ahead)
    }

    fn subscribe_at_once(&mut self, slot: SessionSlot, channels: Vec<ChannelName>) {
        for channel in channels {
            if !self.can_be_named(slot, &channel) {
                continue;
            }
            // What it has already it keeps: a newer token names the same ones.
            if self.subscription_to(slot, &channel).is_none() && !self.sessions.has(slot, CLOSING) {
                self.subscribe(slot, None, channel, Terms::default(), None);
            }
        }
    }

    /// Whether a session's dialect, where it does not show what an endpoint puts in front of names, has one for a channel.
    fn can_be_named(&self, slot: SessionSlot, channel: &ChannelName) -> bool {
        let Some(session) = self.sessions.get(slot) else { return false };
        session.talk.is_none() || channel.starts_with(self.prefix(slot))
    }

    /// Subscribes to what everybody at its endpoint has, where it may.
    pub(in crate::shard) fn subscribe_as_all(&mut self, slot: SessionSlot) {
        let Some(session) = self.sessions.get(slot) else { return };
        let endpoint = self.config.endpoints.get(usize::from(session.endpoint));
        let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.subscribe.is_empty()) else {
            return;
        };
        if self.must_authenticate(slot) {
            return;
        }
        let prefix = &endpoint.channel_prefix;
        let full =
            endpoint.subscribe.iter().map(|name| ChannelName::new(&format!("{prefix}{name}")));
        // All are names: the configuration was looked at.
        let full = full.filter_map(Result::ok);
        let may = |channel: &ChannelName| {
            matches!(self.may(slot, Operation::Subscribe, channel), Verdict::Yes)
        };
        let channels = full.filter(may).collect();
        self.subscribe_at_once(slot, channels);
    }

    fn tell_connected(&mut self, slot: SessionSlot, id: Option<&str>) {
        let connection = self.connection_id(slot).to_string();
        let identity = self.identity(slot).clone();
        let expires_ms = self.sessions.standing(slot).map_or(NEVER_MS, |own| own.expires_ms);
        let expires_ms =
            (expires_ms != NEVER_MS).then(|| expires_ms.saturating_sub(self.elapsed_ms));
        let connected = Event::Connected {
            id,
            connection: &connection,
            user: identity.user.as_ref(),
            attributes: &identity.attributes,
            expires_in_ms: expires_ms,
        };
        self.reply(slot, &connected);
    }

    /// A token is not believed. Who has shown none before is nobody whom we serve.
    fn refuse_authentication(&mut self, slot: SessionSlot, id: Option<&str>, why: String) {
        self.counters.tokens_refused.add(1);
        let talks = self.sessions.get(slot).is_some_and(|session| session.talk.is_some());
        // Where the dialect has an answer of its own to that, the client ends it, or its time does.
        if self.must_authenticate(slot) && !talks {
            return self.close_unauthenticated(slot, &why);
        }
        self.refuse(slot, id, Refused::Unauthenticated { detail: Detail::new(why) });
    }

    fn close_unauthenticated(&mut self, slot: SessionSlot, why: &str) {
        self.close_session(slot, CloseReason::Unauthenticated, why);
    }

    pub(in crate::shard) fn close_revoked(&mut self, slot: SessionSlot) {
        // What waits for it was for somebody who might have it.
        self.give_up_and_close(slot, CloseReason::Revoked, REVOKED);
    }

    /// The time to say who it is has passed.
    pub(in crate::shard) fn check_authentication(&mut self, slot: SessionSlot, timer: Timer) {
        if !self.must_authenticate(slot) {
            return;
        }
        // While we do not read, silence is ours.
        if self.sessions.get(slot).is_some_and(|session| !session.holds.is_empty()) {
            return self.wheel.add(Timer { due_ms: self.now_ms + 1000, ..timer });
        }
        self.close_unauthenticated(slot, "no token was shown in time");
    }

    /// Sees to it that a session is looked at when something of it expires.
    fn arm_expiry(&mut self, slot: SessionSlot) {
        let id = self.sessions.id(slot);
        let Some(standing) = self.sessions.standing_mut(slot) else { return };
        let passes = standing.passes.iter().map(|pass| pass.expires_ms);
        let next_ms = passes.fold(standing.expires_ms, u64::min);
        if next_ms < standing.armed_ms {
            standing.armed_ms = next_ms;
            self.expiries.add(Timer { due_ms: next_ms, session: id, purpose: Purpose::Expiry });
        }
    }

    /// Something of a session may have expired.
    pub(in crate::shard) fn check_expiry(&mut self, slot: SessionSlot, timer: Timer) {
        let now_ms = self.elapsed_ms;
        let Some(standing) = self.sessions.standing_mut(slot) else { return };
        if standing.armed_ms != timer.due_ms {
            return;
        }
        standing.armed_ms = NEVER_MS;
        if standing.expires_ms <= now_ms {
            let reason = "what you have shown has expired; come back with something newer";
            return self.give_up_and_close(slot, CloseReason::Expired, reason);
        }
        let passes = standing.passes.len();
        standing.passes.retain(|pass| pass.expires_ms > now_ms);
        if standing.passes.len() < passes {
            self.review(slot);
        }
        self.arm_expiry(slot);
    }

    /// Notes that a session may have a channel, up to a time in seconds since 1970, perhaps for a token.
    pub(super) fn give_pass(
        &mut self,
        slot: SessionSlot,
        channel: &ChannelName,
        expires_at: Option<u64>,
        token: Option<ChannelToken>,
    ) {
        let expires_ms = expires_at.map_or(NEVER_MS, |at| self.at_ms(at));
        let stranger = self.stranger.clone();
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let standing = session.standing.get_or_insert_with(|| Box::new(Standing::new(stranger)));
        standing.passes.retain(|pass| pass.channel != *channel);
        standing.passes.push(Pass { channel: channel.clone(), expires_ms, token });
        self.arm_expiry(slot);
    }

    /// The channel is the session's no more.
    pub(super) fn take_pass(&mut self, slot: SessionSlot, channel: &ChannelName) {
        if let Some(standing) = self.sessions.standing_mut(slot) {
            standing.passes.retain(|pass| pass.channel != *channel);
        }
    }

    /// Takes back what a session was given for tokens that are revoked. Returns whether there was any.
    pub(in crate::shard) fn take_revoked_passes(&mut self, slot: SessionSlot) -> bool {
        let Some(standing) = self.sessions.standing(slot).filter(|own| !own.passes.is_empty())
        else {
            return false;
        };
        let (user, count) = (standing.identity.user.clone(), standing.passes.len());
        let revoked = std::mem::take(&mut self.revoked);
        if let Some(standing) = self.sessions.standing_mut(slot) {
            let is_revoked = |token: &ChannelToken| revoked.has_token(user.as_ref(), token);
            standing.passes.retain(|pass| !pass.token.as_ref().is_some_and(is_revoked));
        }
        self.revoked = revoked;
        self.sessions.standing(slot).is_some_and(|standing| standing.passes.len() < count)
    }

    fn has_pass(&self, slot: SessionSlot, channel: &ChannelName) -> bool {
        self.sessions.standing(slot).is_some_and(|standing| {
            let mut passes = standing.passes.iter();
            passes.any(|pass| pass.channel == *channel && pass.expires_ms > self.elapsed_ms)
        })
    }

    /// Who a session is to the home of a room.
    pub(super) fn guest(&self, slot: SessionSlot, channel: &ChannelName) -> Guest {
        let (identity, permissions) = (self.identity(slot), &self.access.permissions);
        let moderates = permissions.permitted(identity, Operation::Moderate, channel);
        Guest { user: identity.user.clone(), moderates }
    }

    /// What it has to enter a room with.
    pub(super) fn entry(
        &self,
        slot: SessionSlot,
        channel: &ChannelName,
        password: Option<&KeyHash>,
    ) -> Entry {
        let permitted =
            self.access.permissions.permitted(self.identity(slot), Operation::Subscribe, channel);
        Entry {
            guest: self.guest(slot, channel),
            invited: permitted == Some(true) || self.has_pass(slot, channel),
            password: password.copied(),
        }
    }

    /// Whether a session may have a channel now that it was once given.
    pub(super) fn may_keep(&self, slot: SessionSlot, channel: &ChannelName) -> bool {
        match self.may(slot, Operation::Subscribe, channel) {
            Verdict::Yes => true,
            Verdict::No(_) | Verdict::WhileSubscribed => false,
            Verdict::Token | Verdict::Ask => self.has_pass(slot, channel),
        }
    }

    /// Ends what a session may not have any more.
    pub(in crate::shard) fn review(&mut self, slot: SessionSlot) {
        let count = self.sessions.get(slot).map_or(0, |session| session.subscriptions.len());
        for at in (0..count).rev() {
            let Some(session) = self.sessions.get(slot) else { return };
            // What its home has not answered is looked at when it has.
            let Some(own) = session.subscriptions.get(at).filter(|own| own.index.is_some()) else {
                continue;
            };
            let channel = self.feeds.lane(own.lane).name.clone();
            if !self.may_keep(slot, &channel) {
                self.end_subscription(slot, &channel, "it is not allowed any more");
            }
        }
        // Who is being closed has no subscriptions any more, and what it has missed may wait still.
        let outbox = self.sessions.get(slot).and_then(|session| session.outbox.as_ref());
        let waiting = outbox.iter().flat_map(|outbox| outbox.channels());
        let mut lost: Vec<ChannelName> =
            waiting.filter(|channel| !self.may_keep(slot, channel)).cloned().collect();
        lost.dedup();
        for channel in lost {
            self.give_up_channel(slot, &channel);
        }
    }

    /// Ends a subscription for a reason that is ours, and says so.
    pub(in crate::shard) fn end_subscription(
        &mut self,
        slot: SessionSlot,
        channel: &ChannelName,
        reason: &str,
    ) -> bool {
        let Some(at) = self.subscription_to(slot, channel) else { return false };
        let own = self.sessions.get(slot).and_then(|session| session.subscriptions.get(at));
        if own.is_some_and(|own| own.index.is_none()) {
            // Its home has not answered: the subscribe is refused when it has.
            self.end_one(slot, at);
            return true;
        }
        let in_band = self.sessions.get(slot).is_some_and(|s| s.dialect.answers_in_band());
        if in_band {
            self.end_one(slot, at);
            let (id, reason) = (None, Some(reason));
            self.reply(slot, &Event::Unsubscribed { id, channel, reason });
        } else {
            self.close_session(slot, CloseReason::Refused, &format!("{channel}: {reason}"));
        }
        true
    }

    /// Tells the homes of its channels who a session is, where they are to know and it was somebody else before.
    fn tell_who_it_is(&mut self, slot: SessionSlot, before: &Identity) {
        let now = self.identity(slot);
        if (&now.user, &now.info) == (&before.user, &before.info) {
            return;
        }
        let subscriptions = self.sessions.get(slot).map_or(&[][..], |own| &own.subscriptions);
        // What its home has not answered yet may have been asked for by somebody who was to be named.
        let lanes = subscriptions.iter().map(|own| (own, self.feeds.lane(own.lane)));
        let named = lanes.filter(|(own, lane)| own.index.is_none() || lane.named);
        let channels: Vec<ChannelName> = named.map(|(_, lane)| lane.name.clone()).collect();
        for channel in channels {
            self.tell_member(slot, channel);
        }
    }

    /// Tells the home of a channel who a session is.
    pub(super) fn tell_member(&mut self, slot: SessionSlot, channel: ChannelName) {
        let (shard, session) = (self.id, self.sessions.id(slot));
        let who = Box::new(self.caller(slot));
        self.request(Request::Member { shard, session, channel, who });
    }

    /// Tells a user's home of a connection.
    fn join(&mut self, slot: SessionSlot, user: UserId) {
        let connection = UserConnection {
            shard: self.id,
            session: self.sessions.id(slot),
            connection: self.connection_id(slot),
            since: self.clock.unix_s(),
        };
        self.request(Request::User { user, what: Box::new(UserRequest::Join(connection)) });
    }

    /// The user of a session, where the rooms that a user is in are limited.
    pub(super) fn user_in_rooms(&self, slot: SessionSlot) -> Option<UserId> {
        let limited = self.config.limits.rooms_per_user_max > 0;
        limited.then(|| self.identity(slot).user.clone()).flatten()
    }

    /// Tells a user's home that a session is in a channel no more: it knows whether that was a room.
    pub(super) fn leave_room(&mut self, slot: SessionSlot, channel: &ChannelName) {
        if let Some(user) = self.user_in_rooms(slot) {
            let (shard, session) = (self.id, self.sessions.id(slot));
            let what = UserRequest::LeaveRoom { shard, session, channel: channel.clone() };
            self.request(Request::User { user, what: what.into() });
        }
    }

    /// Tells a user's home that a connection is there no more; nothing more is sent to it as the user's.
    pub(super) fn leave(&mut self, slot: SessionSlot) {
        let (shard, session) = (self.id, self.sessions.id(slot));
        let own = self.sessions.standing_mut(slot);
        let Some(standing) = own.filter(|standing| standing.joined) else { return };
        standing.joined = false;
        if let Some(user) = standing.identity.user.clone() {
            let what = UserRequest::Leave { shard, session };
            self.request(Request::User { user, what: what.into() });
        }
    }

    /// User and session of everybody whom homes of users are to know, for checks.
    pub(in crate::shard) fn joined(&self) -> impl Iterator<Item = (&UserId, SessionId)> {
        self.sessions.slots().filter_map(|slot| {
            let standing = self.sessions.standing(slot)?;
            let user = standing.identity.user.as_ref().filter(|_| standing.joined)?;
            Some((user, self.sessions.id(slot)))
        })
    }
}

/// Why an identity is not given.
enum Refusal {
    Revoked,
    /// For this reason.
    NotBelieved(String),
}
