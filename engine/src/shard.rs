//! One shard: a pinned thread that owns its slice of connections and channels.
//!
//! Everything here has a single writer, this thread. One turn takes what came from the sockets and
//! from other shards, appends it to logs, and sends what is new; each step has a limit, so that no
//! turn is long. The shard is generic over the socket layer.

mod asks;
mod check;
pub mod door;
mod drain;
mod errands;
mod fanout;
pub mod feed;
mod gauges;
mod home;
mod local;
mod news;
mod rate;
mod requests;
mod review;
mod run;
mod session;
mod timers;
mod users;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use ringfeed_protocol::dialect::Talk;
use ringfeed_protocol::{Dialect, Lane};
use ringfeed_wire::{Event as WireEvent, SocketId, Wire};
use tokio::sync::mpsc;

use crate::access::token::RemoteKeys;
use crate::access::{Access, Identity};
use crate::bridge::Figures;
use crate::clock::Clock;
use crate::config::{ChannelRule, Config};
use crate::counters::{CloseReason, Counters, RefusalReason};
use crate::ids::{ConnectionId, LaneId, SessionId, ShardId};
use crate::message::{
    Asked, Delivery, Forwards, Inbox, Links, QUEUE_BATCHES, QUEUE_BYTES_MAX, Question, Questions,
    Request, Shards, Upstream,
};
use crate::revoked::RevokedTable;
use crate::rooms::RoomTable;
use crate::settings::Settings;
pub use check::check_together;
use door::{Admission, Handed, Permit};
use drain::Draining;
use errands::Errands;
use fanout::{Context, Fanout, Finding, FlushLimits, Verdict};
use feed::Feeds;
pub(crate) use home::KEY_BYTES;
use home::{HomeLimits, Homes};
pub use local::Local;
use requests::Waiting;
use review::{Review, RevokedList};
pub use session::Credentials;
use session::{BLOCKED, Conversation, Session, Sessions, WOKEN};
use timers::{Purpose, Timer, Wheel};
use users::Users;

/// Time after which no further event is taken: memory touched for the first time makes commands slow.
const STEP_TIME_MAX: Duration = Duration::from_millis(2);
/// What a turn may add to the time that timers count: no turn is much later than the tick. A shard that was
/// stopped for longer (its core was taken away, the machine was suspended) could hear nobody meanwhile, and
/// blames nobody for it.
const TURN_TIME_MAX: u64 = 2 * timers::TICK_MS;
/// Turns with more events than one takes, during which no time passes for timers: what a client has said
/// or taken may be among the events that wait. After so many it does.
const BACKLOG_TURNS_MAX: u32 = 1024;
/// Bytes received in one turn, beyond which no further event is taken.
const BYTES_PER_TURN_MAX: usize = 1024 * 1024;
/// Bytes received between two looks at the time: a command takes a microsecond or two.
const BYTES_PER_LOOK: usize = 16 * 1024;
/// Ticks between two looks at who need not be revoked any more.
const TICKS_PER_FORGET: u64 = 600;
/// Ticks between two looks at who does not read, while outboxes are full: the time after which one does not.
const TICKS_PER_LOOK: u64 = 5;
/// Bytes of a short command.
const COMMAND_BYTES: usize = 64;

/// What a shard keeps for one connection that has nothing to send, in bytes.
pub(crate) const CONNECTION_BYTES: usize =
    session::SESSION_BYTES + size_of::<Timer>() + ringfeed_wire::SOCKET_BYTES;
/// What it keeps besides where connections are timed for idleness, and where commands have rates of their own.
pub(crate) const IDLE_BYTES: usize = size_of::<Timer>();
pub(crate) const COMMAND_RATES_BYTES: usize = session::COMMAND_RATES_BYTES;
/// What it keeps for one subscription.
pub(crate) const SUBSCRIPTION_BYTES: usize =
    size_of::<session::Subscription>() + size_of::<feed::Subscriber>();

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Promoted {
    /// The socket.
    pub socket: std::os::fd::OwnedFd,
    /// Number of the endpoint in the configuration.
    pub endpoint: u8,
    /// What it speaks.
    pub dialect: Dialect,
    /// What the dialect remembers of it, where it does.
    pub talk: Option<Box<dyn Talk>>,
    /// The HTTP answer that opens it, to be sent before anything else.
    pub answer: Vec<u8>,
    /// Bytes that came behind the request head.
    pub rest: Vec<u8>,
    /// Counts the connection until it ends.
    pub permit: Permit,
    /// What is known of who it is.
    pub credentials: Credentials,
}

/// What differs between a machine and a simulation.
#[derive(Debug)]
pub struct Environment {
    /// Where the time comes from.
    pub clock: Clock,
    /// Of epochs and jitter; random on a machine.
    pub seed: u64,
    /// What one turn may do.
    pub limits: TurnLimits,
}

impl Environment {
    /// The machine's.
    pub fn machine() -> Environment {
        Environment { clock: Clock::Machine, seed: rand::random(), limits: TurnLimits::default() }
    }
}

/// Limits on one turn, so that it takes a millisecond or two; smaller in simulations, so that little
/// work spans many turns.
#[derive(Debug, Clone, Copy)]
pub struct TurnLimits {
    /// Socket events; also connections looked at for a drain.
    pub events: usize,
    /// Batches from other shards, of each kind.
    pub batches: usize,
    /// Answers and chunks for sessions.
    pub deliveries: usize,
    /// New connections.
    pub promotions: usize,
    /// Small sends to sockets.
    pub sends: usize,
    /// Work for homes, in bytes of payload and of what is encoded for a replay.
    pub request_bytes: usize,
}

impl Default for TurnLimits {
    fn default() -> TurnLimits {
        TurnLimits {
            events: 256,
            batches: 16,
            deliveries: 8192,
            promotions: 64,
            sends: 256,
            request_bytes: 1 << 20,
        }
    }
}

/// What all shards and the control thread share.
#[derive(Debug)]
pub struct Shared {
    /// The settings that hold: shards are told when there are new ones.
    pub settings: ArcSwap<Settings>,
    /// The keys of issuers that were fetched.
    pub remote_keys: ArcSwap<RemoteKeys>,
    /// The sending ends of all shards.
    pub shards: Shards,
    /// The way to the control thread.
    pub questions: Questions,
    /// The way to what numbers channels that are not numbered here.
    pub upstream: Upstream,
    /// What is counted of the connections to Redis.
    pub redis: Figures,
    /// It takes nobody new, and ends once those who are there have gone.
    pub draining: AtomicBool,
    /// Where in the time for it the next one comes back who is sent away, of 2^32: one sequence for all shards.
    pub away: AtomicU32,
    /// What the mesh of nodes counts.
    pub cluster: crate::mesh::Figures,
    /// Who is revoked.
    pub revoked: Arc<RevokedTable>,
    /// Rooms that are made over the API, as nodes tell one another: the homes' own are with them.
    pub rooms: Arc<RoomTable>,
    /// Counters, by shard.
    pub counters: Vec<Arc<Counters>>,
    /// Limits on connections.
    pub admission: Arc<Admission>,
    /// Where connections are handed over that are no WebSockets; set by who takes them.
    pub handover: OnceLock<mpsc::Sender<Handed>>,
    /// The way to nodes of another system; set by who tells them, where there are any.
    pub forwards: OnceLock<Forwards>,
}

impl Shared {
    /// For shards that can be reached so. Returns also the other end of the way to the control thread.
    pub fn new(
        settings: Settings,
        shards: Shards,
        admission: Admission,
    ) -> (Arc<Shared>, mpsc::Receiver<Asked>) {
        let (questions, asked) = Questions::new(shards.count());
        let upstream = Upstream::new(shards.count(), QUEUE_BATCHES);
        let revoked = Arc::new(RevokedTable::new(settings.config.limits.revocations_max));
        let rooms = Arc::new(RoomTable::new(settings.config.limits.rooms_max));
        let shared = Shared {
            settings: ArcSwap::from_pointee(settings),
            remote_keys: ArcSwap::default(),
            counters: shards.ids().map(|_| Arc::default()).collect(),
            shards,
            questions,
            upstream,
            redis: Figures::default(),
            draining: AtomicBool::new(false),
            away: AtomicU32::new(0),
            cluster: crate::mesh::Figures::default(),
            revoked,
            rooms,
            admission: Arc::new(admission),
            handover: OnceLock::new(),
            forwards: OnceLock::new(),
        };
        (Arc::new(shared), asked)
    }

    /// The configuration that holds.
    pub fn config(&self) -> Arc<Config> {
        self.settings.load().config.clone()
    }
}

/// See the module's description.
pub struct Shard<W> {
    id: ShardId,
    wire: W,
    shared: Arc<Shared>,
    config: Arc<Config>,
    /// Of some channels it matters who publishes, or what, or how often.
    some_look: bool,
    access: Arc<Access>,
    counters: Arc<Counters>,
    inbox: Inbox,
    links: Links,
    local: Rc<Local>,
    sessions: Sessions,
    subscription_count: u64,
    feeds: Feeds,
    homes: Homes,
    users: Users,
    errands: Errands,
    wheel: Wheel,
    /// What ends at a time that somebody has named: it runs on also while the shard does not.
    expiries: Wheel,
    /// Timers that were due and were too many for their turn.
    due: VecDeque<Timer>,
    fanout: Fanout,
    /// Deliveries to sessions of this shard that have come from its own channels, or were taken from a queue.
    own: VecDeque<Delivery>,
    /// Requests that were taken from a queue, or are this shard's own, and wait for the next turn.
    waiting: Waiting,
    /// What this turn may still do for homes, in bytes.
    request_budget: usize,
    /// Sessions held until this shard, or one that it publishes to, is behind no more.
    congested: Vec<SessionId>,
    /// Sessions whose last hold was lifted: what had arrived is looked at in the next turn.
    released: VecDeque<SessionId>,
    /// Memory of all unfinished messages.
    partial_bytes: usize,
    /// Who has said nothing of who they are.
    stranger: Arc<Identity>,
    /// Makes names of connections of places in the table: no two processes give the same ones.
    connection_key: u64,
    /// Connections that had a name before they had a place.
    named: HashMap<u64, SessionId>,
    /// Ends of connections that the application is told of when it was asked about their publications that are on the way.
    farewells: HashMap<ConnectionId, Question>,
    revoked: RevokedList,
    review: Review,
    drain: Draining,
    draining: bool,
    scratch: Vec<u8>,
    clock: Clock,
    rng: SmallRng,
    limits: TurnLimits,
    flush_limits: FlushLimits,
    start: Instant,
    /// Milliseconds since then, in the last turn.
    elapsed_ms: u64,
    now: Instant,
    /// What timers count: time, but for what no turn can have been that long.
    now_ms: u64,
    /// The same, also while events wait: for what no client is blamed for.
    work_ms: u64,
    /// The next batch of requests is one of the control thread's, if it has any.
    control_next: bool,
    /// Turns since one took all events there were.
    backlog_turns: u32,
}

/// Where a home's deliveries go: to this shard's own queue, or to another shard.
fn route<'a>(
    id: ShardId,
    own: &'a mut VecDeque<Delivery>,
    links: &'a mut Links,
) -> impl FnMut(ShardId, Delivery) + use<'a> {
    move |to, delivery| {
        if to == id { own.push_back(delivery) } else { links.deliver(to, delivery) }
    }
}

impl<W: Wire> Shard<W> {
    /// A shard with nothing on it yet.
    pub fn new(
        id: ShardId,
        wire: W,
        shared: Arc<Shared>,
        inbox: Inbox,
        local: Rc<Local>,
        environment: Environment,
    ) -> Shard<W> {
        let Environment { clock, seed, limits } = environment;
        let mut rng = SmallRng::seed_from_u64(seed);
        let Settings { config, access, .. } = Settings::clone(&shared.settings.load());
        let shards = shared.shards.count();
        let now = clock.now();
        Shard {
            id,
            wire,
            counters: shared.counters[id.index()].clone(),
            links: Links::new(shards, config.limits.cross_shard_bytes_max),
            homes: Homes::new(
                config.clone(),
                home_limits(&config, shards),
                clock.clone(),
                SmallRng::from_rng(&mut rng),
            ),
            flush_limits: flush_limits(&config, shards),
            shared,
            some_look: config.channels.iter().any(ChannelRule::looks_at_publications),
            config,
            access,
            inbox,
            local,
            sessions: Sessions::default(),
            subscription_count: 0,
            feeds: Feeds::new(),
            wheel: Wheel::new(),
            expiries: Wheel::new(),
            users: Users::new(),
            errands: Errands::default(),
            due: VecDeque::new(),
            fanout: Fanout::new(limits.sends),
            own: VecDeque::new(),
            waiting: Waiting::default(),
            request_budget: limits.request_bytes,
            congested: Vec::new(),
            released: VecDeque::new(),
            partial_bytes: 0,
            stranger: Arc::default(),
            connection_key: rng.random(),
            named: HashMap::new(),
            farewells: HashMap::new(),
            revoked: RevokedList::default(),
            review: Review::default(),
            drain: Draining::default(),
            draining: false,
            scratch: Vec::new(),
            clock,
            rng,
            limits,
            start: now,
            elapsed_ms: 0,
            now,
            now_ms: 0,
            work_ms: 0,
            control_next: false,
            backlog_turns: 0,
        }
    }

    /// One turn. Returns whether there is more to do at once. [`Shard::run`] calls it for ever; it is
    /// public for benchmarks and simulations, which bring a wire and a clock of their own.
    pub fn turn(&mut self) -> std::io::Result<bool> {
        self.begin_turn();
        let cpu_began = self.clock.thread_cpu();
        let mut busy = self.take_events();
        busy |= self.take_promotions();
        busy |= self.take_answers();
        busy |= self.resume_released();
        self.review_some();
        // While fan-out is behind nothing more is appended; what waits, waits at its sender.
        if !self.fanout.is_behind() {
            busy |= self.take_deliveries();
            busy |= self.take_requests();
        }
        if self.local.take_tick() {
            self.tick();
        } else if !self.due.is_empty() {
            self.see_to_due();
        }
        let (now, mut deliver) =
            ((self.now, self.work_ms), route(self.id, &mut self.own, &mut self.links));
        self.homes.miss_some(&mut deliver);
        self.homes.redistribute_some(now.1, &mut deliver);
        self.homes.tell_notices(now, &mut deliver);
        self.homes.tell_unconfirmed(now.1, &mut deliver);
        self.homes.seal_all(&mut deliver);
        drop(deliver);
        self.tell_news();
        self.take_own();
        self.homes.resume_some(self.work_ms);
        self.homes.take_outgoing().for_each(|what| self.links.upstream(what));
        let forwards = self.shared.forwards.get();
        for forward in self.homes.take_forwards() {
            if let Some(forwards) = forwards {
                forwards.give(forward);
            }
        }
        let (fanout, mut context) = self.fanout_context();
        fanout.check_ages(&mut context);
        let flushed = fanout.flush(&mut context);
        self.apply_verdicts();
        if self.draining {
            self.drain_some();
        }
        self.show_outboxes();
        self.links.flush(self.id, &self.shared.shards, &self.shared.upstream);
        self.count_turn(cpu_began);
        #[cfg(debug_assertions)]
        self.check_sometimes();
        flushed?;
        let busy = busy || self.has_work();
        if !busy && self.links.waiting() {
            // Nothing to do but to wait for another shard, which may need this core.
            std::thread::yield_now();
            return Ok(true);
        }
        Ok(busy)
    }

    fn begin_turn(&mut self) {
        self.now = self.clock.now();
        self.request_budget = self.limits.request_bytes;
        // Milliseconds of a process that runs for less than 500 million years.
        let elapsed_ms = self.now.duration_since(self.start).as_millis() as u64;
        let passed_ms = elapsed_ms - self.elapsed_ms;
        self.elapsed_ms = elapsed_ms;
        let passed_ms = passed_ms.min(TURN_TIME_MAX);
        self.work_ms += passed_ms;
        if self.backlog_turns == 0 || self.backlog_turns > BACKLOG_TURNS_MAX {
            self.now_ms += passed_ms;
        }
    }

    fn has_work(&self) -> bool {
        self.fanout.has_work()
            || !self.own.is_empty()
            || !self.released.is_empty()
            || !self.due.is_empty()
            || self.review.is_under_way()
            || (!self.congested.is_empty() && !self.is_congested())
            || self.homes.has_work()
            || (!self.waiting.is_empty() && self.serves_requests())
            || self.draining && self.has_to_drain()
    }

    /// Whether something waits that its sender may have announced while we were awake.
    pub fn has_mail(&self) -> bool {
        !self.inbox.is_empty() || self.local.has_mail()
    }

    fn take_events(&mut self) -> bool {
        let mut scratch = std::mem::take(&mut self.scratch);
        let (mut count, mut bytes_taken, mut bytes_looked) = (0, 0, 0);
        self.backlog_turns = self.backlog_turns.saturating_add(1);
        while count < self.limits.events && bytes_taken < BYTES_PER_TURN_MAX {
            if count % 8 == 7 || bytes_taken - bytes_looked >= BYTES_PER_LOOK {
                bytes_looked = bytes_taken;
                if self.clock.now() - self.now >= STEP_TIME_MAX {
                    break;
                }
            }
            let (socket, what) = match self.wire.next_event() {
                None => {
                    self.backlog_turns = 0;
                    break;
                }
                Some(WireEvent::Received(socket, bytes)) => {
                    scratch.clear();
                    scratch.extend_from_slice(bytes);
                    bytes_taken += bytes.len();
                    (socket, What::Received)
                }
                Some(WireEvent::Writable(socket)) => (socket, What::Writable),
                Some(WireEvent::Closed(socket, _)) => (socket, What::Closed),
                Some(WireEvent::Connected(_)) => continue,
            };
            count += 1;
            let Some(slot) = self.sessions.slot_of(socket) else { continue };
            match what {
                What::Received => self.handle_received(slot, &mut scratch),
                // Who is cut takes nothing more.
                What::Writable if self.sessions.get(slot).is_some_and(|s| s.cut) => {}
                What::Writable => {
                    let hot = self.sessions.hot_mut(slot);
                    hot.flags = (hot.flags & !BLOCKED) | WOKEN;
                    self.look_at(slot);
                }
                What::Closed => {
                    // Its subscriptions end with it, as if it had said so for each.
                    let ended = self.sessions.get(slot).map_or(0, |s| s.subscriptions.len());
                    bytes_taken += ended * COMMAND_BYTES;
                    self.remove_session(slot, CloseReason::PeerGone);
                }
            }
        }
        self.scratch = scratch;
        count > 0
    }

    fn take_promotions(&mut self) -> bool {
        for taken in 0..self.limits.promotions {
            let Some(promoted) = self.local.take_promoted() else { return taken > 0 };
            self.promote(promoted);
        }
        true
    }

    /// Moves a connection from the executor to the wire.
    fn promote(&mut self, promoted: Promoted) {
        let Promoted { socket, endpoint, dialect, talk, answer, mut rest, permit, credentials } =
            promoted;
        if self.draining {
            return;
        }
        let socket: SocketId = match self.wire.adopt(socket) {
            Ok(socket) => socket,
            Err(e) => {
                self.counters.refused.add(RefusalReason::NoRoom, 1);
                self.local.warn_refused(&e, self.now);
                return;
            }
        };
        let limit = self.config.limits.message_bytes_max;
        let hidden = self.config.hidden(endpoint);
        let form = talk.as_ref().and_then(|talk| talk.form());
        let lane = dialect.lane(hidden);
        let lane = lane.map(|lane| Lane { form: form.unwrap_or(lane.form), ..lane });
        let mut session = Session::new(dialect, endpoint, limit, self.now_ms, permit);
        (session.lane, session.talk) = (lane, talk.map(Conversation::new).map(Box::new));
        let id = self.sessions.add(socket, session);
        self.counters.opened.add(1);
        tracing::trace!(shard = %self.id, session = id.slot.0, dialect = dialect.name(), "opened");
        self.begin_heartbeat(id);
        if !answer.is_empty() {
            // As what has begun: however soon it is closed, it is told of a WebSocket first.
            self.queue_answer(id.slot, Bytes::from(answer));
        }
        self.take_credentials(id.slot, credentials);
        self.subscribe_as_all(id.slot);
        if !rest.is_empty() && self.sessions.current(id).is_some() {
            self.handle_received(id.slot, &mut rest);
        }
    }

    fn take_deliveries(&mut self) -> bool {
        for taken in 0..self.limits.batches {
            if !self.own.is_empty() || taken > 0 && self.clock.now() - self.now > STEP_TIME_MAX {
                break;
            }
            let Some(batch) = self.inbox.deliveries.take() else { return taken > 0 };
            self.own.extend(batch);
            self.take_own();
        }
        true
    }

    /// Handles what has come for sessions of this shard; what is too much for a turn waits for the next.
    fn take_own(&mut self) {
        if self.own.is_empty() {
            return;
        }
        let began = self.clock.now();
        for count in 1..=self.limits.deliveries {
            let Some(delivery) = self.own.pop_front() else { return };
            // It is for many sessions.
            let is_order = matches!(delivery, Delivery::Order { .. });
            self.handle_delivery(delivery);
            if (is_order || count % 16 == 0) && self.clock.now() - began > STEP_TIME_MAX {
                return;
            }
        }
    }

    /// Whether publishers must wait: this shard, or one it publishes to, is behind.
    fn is_congested(&self) -> bool {
        let waiting_max = self.config.limits.cross_shard_bytes_max as usize;
        self.fanout.is_behind()
            || self.links.full()
            || self.homes.is_full()
            || self.waiting.bytes() > waiting_max
    }

    /// Whether homes do anything: what comes of it has room.
    fn serves_requests(&self) -> bool {
        !self.fanout.is_behind()
            && !self.links.deliveries_full()
            && !self.homes.is_full()
            && self.own.len() <= self.limits.deliveries
    }

    /// This shard's part of a limit of the whole process.
    fn share_of(&self, bytes: u64) -> usize {
        share_of(bytes, self.shared.shards.count())
    }

    /// Fan-out, and what it works on.
    fn fanout_context(&mut self) -> (&mut Fanout, Context<'_, W>) {
        let context = Context {
            wire: &mut self.wire,
            feeds: &mut self.feeds,
            sessions: &mut self.sessions,
            counters: &self.counters,
            limits: self.flush_limits,
            clock: &self.clock,
            now: self.now,
            now_ms: self.now_ms,
            work_ms: self.work_ms,
        };
        (&mut self.fanout, context)
    }

    /// Does what the flush has found to be done. Who is closed in the middle of a frame may have to be cut:
    /// there may be more to do then.
    fn apply_verdicts(&mut self) {
        // First, while the lanes are there: they may end with their sessions, whose homes go on.
        for lane in self.fanout.take_pressures() {
            self.tell_pressure(lane);
        }
        loop {
            let verdicts = self.fanout.take_verdicts();
            if verdicts.is_empty() {
                return;
            }
            verdicts.into_iter().for_each(|verdict| self.apply(verdict));
        }
    }

    /// Tells a lane's home how its readers stand, as the lane has it now.
    fn tell_pressure(&mut self, id: LaneId) {
        let Some(state) = self.feeds.try_lane(id) else { return };
        let (shard, channel, lane, on) = (self.id, state.name.clone(), state.lane, state.pressed);
        self.request(Request::Pressure { shard, channel, lane, on });
    }

    fn apply(&mut self, (session, found): Verdict) {
        let Some(slot) = self.sessions.current(session) else { return };
        match found {
            Finding::Lagged(reason) => self.close_session(slot, CloseReason::Lagged, &reason),
            Finding::Cut => self.remove_session(slot, CloseReason::Slow),
            Finding::Broken => self.remove_session(slot, CloseReason::PeerGone),
            Finding::Stalled => self.time_outbox(slot),
            Finding::Read => {
                self.settle_outbox_hold(slot);
                self.end_if_closed(slot);
            }
        }
    }

    fn tick(&mut self) {
        let sessions = &self.sessions;
        self.due.extend(self.wheel.due(self.now_ms, |session| sessions.current(session).is_some()));
        self.due.extend(
            self.expiries.due(self.elapsed_ms, |session| self.sessions.current(session).is_some()),
        );
        self.see_to_due();
        self.give_up_questions();
        let (fanout, mut context) = self.fanout_context();
        fanout.begin_ages();
        fanout.retry_stuck(&mut context);
        self.homes.tell_rolls(self.work_ms);
        self.take_released();
        self.homes.sweep(self.work_ms);
        if self.are_outboxes_full()
            && self.counters.ticks.read().is_multiple_of(TICKS_PER_LOOK)
            && !self.review.is_under_way()
        {
            self.review.begin(false);
        }
        if self.counters.ticks.read().is_multiple_of(TICKS_PER_FORGET) {
            self.revoked.forget(self.elapsed_ms);
        }
        self.report();
    }

    /// Sees to timers that are due; what is too much for one turn waits for the next.
    fn see_to_due(&mut self) {
        for count in 1u32.. {
            if count % 64 == 0 && self.clock.now() - self.now > STEP_TIME_MAX {
                return;
            }
            let Some(timer) = self.due.pop_front() else { return };
            let Some(slot) = self.sessions.current(timer.session) else { continue };
            match timer.purpose {
                Purpose::Close => self.check_closing(slot, timer),
                Purpose::Heartbeat => self.check_heartbeat(slot, timer),
                Purpose::Message => self.check_message(slot, timer),
                Purpose::Outbox => self.check_outbox(slot, timer),
                Purpose::Authentication => self.check_authentication(slot, timer),
                Purpose::Expiry => self.check_expiry(slot, timer),
                Purpose::Idle => self.check_idle(slot, timer),
                Purpose::Talk => self.remind(slot),
            }
        }
    }
}

fn flush_limits(config: &Config, shards: u16) -> FlushLimits {
    FlushLimits {
        retained_bytes_max: share_of(config.limits.retained_bytes_max, shards),
        burst_bytes_max: QUEUE_BYTES_MAX + config.limits.cross_shard_bytes_max as usize,
    }
}

fn home_limits(config: &Config, shards: u16) -> HomeLimits {
    let (channels, rooms) = (config.limits.channels_max, config.limits.rooms_max);
    HomeLimits {
        channels_max: channels.into(),
        own_channels_max: channels as usize / usize::from(shards) + 1,
        rooms_max: rooms.into(),
        own_rooms_max: (rooms as usize).div_ceil(usize::from(shards)),
        history_bytes_max: share_of(config.limits.history_bytes_max, shards),
        parked_bytes_max: share_of(config.limits.parked_bytes_max, shards),
        news_max: share_of(config.hooks.presence_queue_max.into(), shards),
        keys_max: share_of(config.limits.idempotency_keys_max.into(), shards),
    }
}

/// One shard's part of a limit of the whole process.
fn share_of(bytes: u64, shards: u16) -> usize {
    usize::try_from(bytes / u64::from(shards.max(1))).unwrap_or(usize::MAX)
}

#[derive(Debug, Clone, Copy)]
enum What {
    Received,
    Writable,
    Closed,
}
