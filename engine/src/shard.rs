//! One shard: a pinned thread that owns its slice of connections and channels.
//!
//! Everything here has a single writer, this thread. One turn takes what came from the sockets and
//! from other shards, appends it to logs, and sends what is new; each step has a limit, so that no
//! turn is long. The shard is generic over the socket layer.

pub mod door;
mod fanout;
pub mod feed;
mod home;
pub mod session;
mod timers;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use monoio::net::UnixStream;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use ringfeed_protocol::{CloseCode, Connection, Dialect, Event, Role};
use ringfeed_wire::{Event as WireEvent, SocketId, Wire, drain_event_fd};

use crate::clock::Clock;
use crate::config::Config;
use crate::counters::Counters;
use crate::message::{Delivery, Inbox, Links, Request, ShardId, Shards};
use crate::seldom::Seldom;
use door::{Admission, Permit};
use fanout::Fanout;
use feed::Subscriptions;
use home::Homes;
use session::{BACKLOG, BLOCKED, CLOSING, Session, SessionId, Sessions, WOKEN};
use timers::{Purpose, TICK_MS, Timer, Wheel};

/// Time after which no further event is taken: memory touched for the first time makes commands slow.
const EVENTS_TIME_MAX: Duration = Duration::from_millis(2);
/// Bytes received in one turn, beyond which no further event is taken: a command takes a microsecond
/// or two.
const BYTES_PER_TURN_MAX: usize = 64 * 1024;
/// Bytes of a short command.
const COMMAND_BYTES: usize = 64;
/// Connections told of a drain in one turn.
const DRAINS_PER_TURN_MAX: usize = 256;
/// How long a busy shard keeps the executor (accepts, handshakes, timers) waiting.
const YIELD_EVERY: Duration = Duration::from_millis(1);

/// What a shard keeps for one connection that has nothing to send, in bytes.
pub(crate) const CONNECTION_BYTES: usize =
    session::SESSION_BYTES + size_of::<Timer>() + ringfeed_wire::SOCKET_BYTES;
/// What it keeps for one subscription.
pub(crate) const SUBSCRIPTION_BYTES: usize =
    size_of::<session::Subscription>() + size_of::<feed::Subscriber>();

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Promoted {
    /// The socket.
    pub socket: OwnedFd,
    /// Number of the endpoint in the configuration.
    pub endpoint: u8,
    /// What it speaks.
    pub dialect: Dialect,
    /// The HTTP answer that opens it, to be sent before anything else.
    pub answer: Vec<u8>,
    /// Bytes that came behind the request head.
    pub rest: Vec<u8>,
    /// Counts the connection until it ends.
    pub permit: Permit,
}

/// What the door and the shard's own timer share with it, on its thread.
#[derive(Debug, Default)]
pub struct Local {
    promoted: RefCell<VecDeque<Promoted>>,
    tick: Cell<bool>,
    /// Set when the shard stops accepting.
    draining: Cell<bool>,
    /// Handshakes under way.
    handshakes: Cell<u32>,
    /// A second handle of the door's listener, to end its accepts.
    listener: Option<socket2::Socket>,
}

impl Local {
    /// With a second handle of the door's listener; `None` where nothing accepts.
    pub fn new(listener: Option<socket2::Socket>) -> Local {
        Local { listener, ..Local::default() }
    }

    fn stop_accepting(&self) {
        self.draining.set(true);
        if let Some(listener) = &self.listener
            && let Err(e) = listener.shutdown(std::net::Shutdown::Both)
        {
            tracing::warn!("the listener could not be shut down: {e}");
        }
    }

    /// The shard's tick is due. [`Local::tick`] says so every 100 ms.
    pub fn set_tick(&self) {
        self.tick.set(true);
    }

    /// Hands over a connection whose handshake is done.
    pub fn promote(&self, promoted: Promoted) {
        self.promoted.borrow_mut().push_back(promoted);
    }

    /// Ticks the shard for ever.
    pub async fn tick(self: Rc<Local>, shard: ShardId, shared: Arc<Shared>) {
        loop {
            monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
            self.set_tick();
            shared.shards.waker(shard).wake();
        }
    }
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
    /// Socket events.
    pub events: usize,
    /// Batches from other shards, of each kind.
    pub batches: usize,
    /// New connections.
    pub promotions: usize,
    /// Small sends to sockets.
    pub sends: usize,
}

impl Default for TurnLimits {
    fn default() -> TurnLimits {
        TurnLimits { events: 256, batches: 16, promotions: 64, sends: 256 }
    }
}

/// What all shards and the control thread share.
#[derive(Debug)]
pub struct Shared {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// The sending ends of all shards.
    pub shards: Shards,
    /// Counters, by shard.
    pub counters: Vec<Arc<Counters>>,
    /// Limits on connections.
    pub admission: Arc<Admission>,
}

/// See the module's description.
pub struct Shard<W> {
    id: ShardId,
    wire: W,
    shared: Arc<Shared>,
    config: Arc<Config>,
    counters: Arc<Counters>,
    inbox: Inbox,
    links: Links,
    local: Rc<Local>,
    sessions: Sessions,
    session_count: u64,
    subscriptions: Subscriptions,
    subscription_count: u64,
    homes: Homes,
    wheel: Wheel,
    adopt_failures: Seldom,
    fanout: Fanout,
    /// Deliveries of this shard's own channels to its own sessions.
    own: VecDeque<Delivery>,
    /// Sessions that are not read from for now.
    paused: Vec<SessionId>,
    draining: bool,
    drain_left: Vec<SessionId>,
    drain_deadline: Option<Instant>,
    scratch: Vec<u8>,
    clock: Clock,
    rng: SmallRng,
    limits: TurnLimits,
    start: Instant,
    now_ms: u64,
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
        let config = shared.config.clone();
        let shards = shared.shards.count();
        Shard {
            id,
            wire,
            counters: shared.counters[usize::from(id)].clone(),
            links: Links::new(shards, config.limits.cross_shard_bytes_max),
            homes: Homes::new(
                id,
                config.limits.channels_max as usize / usize::from(shards) + 1,
                SmallRng::from_rng(&mut rng),
            ),
            shared,
            config,
            inbox,
            local,
            sessions: Sessions::default(),
            session_count: 0,
            subscriptions: Subscriptions::new(),
            subscription_count: 0,
            wheel: Wheel::new(),
            adopt_failures: Seldom::default(),
            fanout: Fanout::new(limits.sends),
            own: VecDeque::new(),
            paused: Vec::new(),
            draining: false,
            drain_left: Vec::new(),
            drain_deadline: None,
            scratch: Vec::new(),
            start: clock.now(),
            clock,
            rng,
            limits,
            now_ms: 0,
        }
    }

    /// Runs until the shard has drained.
    pub async fn run(mut self) -> std::io::Result<()> {
        let wake = waitable(self.wire.wait_fd())?;
        let round = Round::new()?;
        let mut yielded = Instant::now();
        loop {
            let busy = self.turn()?;
            if self.is_drained() {
                return Ok(());
            }
            if !busy {
                // Asleep first, then one more look: who queues something later will wake us.
                self.shared.shards.waker(self.id).set_sleeping(true);
                if self.wire.arm()? && !self.has_mail() {
                    self.counters.sleeps.add(1);
                    wake.readable(false).await?;
                    drain_event_fd(self.wire.event_fd());
                    yielded = Instant::now();
                }
                self.shared.shards.waker(self.id).set_sleeping(false);
            }
            // Also where there was nothing to do and no reason to sleep.
            if yielded.elapsed() >= YIELD_EVERY {
                round.pass().await?;
                yielded = Instant::now();
            }
        }
    }

    /// One turn. Returns whether there is more to do at once. [`Shard::run`] calls it for ever; it is
    /// public for benchmarks and simulations, which bring a wire and a clock of their own.
    pub fn turn(&mut self) -> std::io::Result<bool> {
        let began = self.clock.now();
        // Milliseconds of a process that runs for less than 500 million years.
        self.now_ms = began.duration_since(self.start).as_millis() as u64;
        let cpu_began = self.clock.thread_cpu();
        let mut busy = self.take_events(began);
        busy |= self.take_promotions();
        // While fan-out is behind nothing more is appended; what waits, waits at its sender.
        if !self.fanout.behind {
            busy |= self.take_deliveries();
            if !self.links.deliveries_full() {
                busy |= self.take_requests();
            }
        }
        if self.local.tick.replace(false) {
            self.tick();
        }
        if self.draining && !self.fanout.has_dirty() {
            self.drain_some();
        }
        self.unpause();
        self.homes.seal_all(&mut route(self.id, &mut self.own, &mut self.links));
        self.take_own();
        self.links.flush(&self.shared.shards);
        self.flush()?;
        self.counters.turns.add(1);
        let micros = (self.clock.now() - began).as_micros() as u64;
        if micros > self.counters.turn_max_us.read() {
            self.counters.turn_max_us.set(micros);
        }
        // A turn takes no more CPU time than time: mostly there is nothing to ask.
        if micros > self.counters.turn_cpu_max_us.read() {
            let cpu_micros = (self.clock.thread_cpu() - cpu_began).as_micros() as u64;
            if cpu_micros > self.counters.turn_cpu_max_us.read() {
                self.counters.turn_cpu_max_us.set(cpu_micros);
            }
        }
        let resumable = !self.paused.is_empty() && !self.is_congested();
        let busy = busy || resumable || self.fanout.has_work();
        if !busy && self.links.waiting() {
            // Nothing to do but to wait for another shard, which may need this core.
            std::thread::yield_now();
            return Ok(true);
        }
        Ok(busy)
    }

    /// Whether something waits that its sender may have announced while we were awake.
    fn has_mail(&self) -> bool {
        !self.inbox.requests.is_empty()
            || !self.inbox.deliveries.is_empty()
            || !self.local.promoted.borrow().is_empty()
            || self.local.tick.get()
    }

    fn take_events(&mut self, began: Instant) -> bool {
        let mut scratch = std::mem::take(&mut self.scratch);
        let (mut count, mut bytes_taken) = (0, 0);
        while count < self.limits.events
            && bytes_taken < BYTES_PER_TURN_MAX
            && (count % 8 != 7 || self.clock.now() - began < EVENTS_TIME_MAX)
        {
            let (socket, what) = match self.wire.next_event() {
                None => break,
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
                What::Received => self.received(slot, &mut scratch),
                What::Writable => {
                    let hot = self.sessions.hot_mut(slot);
                    hot.flags = (hot.flags & !BLOCKED) | WOKEN;
                    self.resume_session(slot);
                }
                What::Closed => {
                    // Its subscriptions end with it, as if it had said so for each.
                    let ended = self.sessions.get(slot).map_or(0, |s| s.subscriptions.len());
                    bytes_taken += ended * COMMAND_BYTES;
                    self.remove_session(slot);
                }
            }
        }
        self.scratch = scratch;
        count > 0
    }

    fn take_promotions(&mut self) -> bool {
        for taken in 0..self.limits.promotions {
            let next = self.local.promoted.borrow_mut().pop_front();
            let Some(promoted) = next else { return taken > 0 };
            self.promote(promoted);
        }
        true
    }

    /// Moves a connection from the executor to the wire.
    fn promote(&mut self, promoted: Promoted) {
        let Promoted { socket, endpoint, dialect, answer, mut rest, permit } = promoted;
        if self.draining {
            return;
        }
        let socket: SocketId = match self.wire.adopt(socket) {
            Ok(socket) => socket,
            Err(e) => {
                self.counters.refused.add(1);
                if let Some(count) = self.adopt_failures.count(self.clock.now()) {
                    tracing::warn!(
                        "{count} connections got no answer, because there was no socket slot: {e}"
                    );
                }
                return;
            }
        };
        let limit = self.config.limits.message_bytes_max;
        let session = Session {
            connection: Connection::new(Role::Server, limit),
            dialect,
            endpoint,
            peer_closed: false,
            failed: false,
            pinged: false,
            paused: false,
            held: Vec::new(),
            histories: 0,
            half_sent: None,
            subscriptions: Vec::new(),
            outbox: None,
            heard_ms: self.now_ms,
            rate: Default::default(),
            _permit: permit,
        };
        let id = self.sessions.add(socket, session);
        self.session_count += 1;
        self.counters.opened.add(1);
        let interval = self.config.heartbeat.interval_ms;
        if interval > 0 {
            // Spread, so that connections that came together are not pinged together.
            let jitter = self.rng.random_range(0..=interval / 4);
            let due_ms = self.now_ms + u64::from(interval - jitter);
            self.wheel.add(Timer { due_ms, session: id, purpose: Purpose::Heartbeat });
        }
        if !answer.is_empty() {
            self.push_outbox(id.slot, Bytes::from(answer));
        }
        if !rest.is_empty() {
            self.received(id.slot, &mut rest);
        }
    }

    fn take_deliveries(&mut self) -> bool {
        for taken in 0..self.limits.batches {
            if self.fanout.behind {
                return true;
            }
            let Ok(batch) = self.inbox.deliveries.try_recv() else { return taken > 0 };
            batch.into_iter().for_each(|delivery| self.delivered(delivery));
        }
        true
    }

    fn take_requests(&mut self) -> bool {
        for taken in 0..self.limits.batches {
            if self.fanout.behind || self.links.deliveries_full() {
                return true;
            }
            let Ok(batch) = self.inbox.requests.try_recv() else { return taken > 0 };
            batch.into_iter().for_each(|request| self.requested(request));
        }
        true
    }

    fn take_own(&mut self) {
        while let Some(delivery) = self.own.pop_front() {
            self.delivered(delivery);
        }
    }

    /// Hands a request to the home of its channel, which may be here.
    pub(crate) fn request(&mut self, request: Request) {
        let home = match &request {
            Request::Subscribe { channel, .. }
            | Request::Unsubscribe { channel, .. }
            | Request::Publish { channel, .. }
            | Request::History { channel, .. } => self.shared.shards.home(channel),
            _ => self.id,
        };
        if home == self.id {
            self.requested(request);
            self.take_own();
        } else {
            self.links.request(home, request);
        }
    }

    /// Serves a request for a channel that is homed here.
    fn requested(&mut self, request: Request) {
        let Shard { id, own, links, homes, config, now_ms, .. } = self;
        let now_ms = *now_ms;
        let mut deliver = route(*id, own, links);
        match request {
            Request::Subscribe { origin, attempt, channel, lane, recover } => {
                let rule = config.rule(&channel).map(|(_, rule)| rule);
                let most = config.limits.recovery_bytes_max as usize;
                let shard = origin.shard;
                let start = homes.subscribe(
                    &channel,
                    rule,
                    shard,
                    lane,
                    recover,
                    most,
                    now_ms,
                    &mut deliver,
                );
                let answer = match start {
                    Ok(home::Start { key, position, recovered, replay }) => Delivery::Subscribed {
                        origin,
                        attempt,
                        channel,
                        key,
                        lane,
                        position,
                        recovered,
                        replay,
                    },
                    Err((code, message)) => {
                        Delivery::Refused { origin, attempt: Some(attempt), code, message }
                    }
                };
                deliver(shard, answer);
            }
            Request::Unsubscribe { shard, channel, lane } => {
                homes.unsubscribe(&channel, shard, lane, now_ms);
            }
            Request::Publish { origin, channel, payload } => {
                let rule = config.rule(&channel).map(|(_, rule)| rule);
                let result = homes.publish(&channel, rule, &payload, now_ms, &mut deliver);
                self.counters.publications.add(u64::from(result.is_ok()));
                let Some(origin) = origin else { return };
                let shard = origin.shard;
                deliver(
                    shard,
                    match result {
                        Ok(position) => Delivery::Published { origin, channel, position },
                        Err((code, message)) => {
                            Delivery::Refused { origin, attempt: None, code, message }
                        }
                    },
                );
            }
            Request::History { origin, channel, after, limit } => {
                let shard = origin.shard;
                let page_bytes = config.limits.outbox_bytes_max as usize / 16;
                let page = homes.history(&channel, after, limit, page_bytes, now_ms);
                deliver(shard, Delivery::History { origin, channel, page });
            }
            Request::PublishBatch { items, reply } => {
                let mut answers = Vec::with_capacity(items.len());
                for (place, channel, payload) in items {
                    let rule = config.rule(&channel).map(|(_, rule)| rule);
                    let result = homes.publish(&channel, rule, &payload, now_ms, &mut deliver);
                    self.counters.publications.add(u64::from(result.is_ok()));
                    answers.push((place, result));
                }
                // A caller that has gone away does not undo its publications.
                let _ = reply.send(answers);
            }
            Request::ReadHistory { channel, after, limit, reply } => {
                let page_bytes = config.api.body_bytes_max as usize;
                let _ = reply.send(homes.history(&channel, after, limit, page_bytes, now_ms));
            }
            Request::ListChannels { reply } => {
                let _ = reply.send(homes.rows());
            }
            Request::Drain => {
                drop(deliver);
                self.drain();
            }
        }
    }

    /// Whether publishers must wait: this shard, or one it publishes to, is behind.
    pub(crate) fn is_congested(&self) -> bool {
        self.fanout.behind || self.links.full()
    }

    fn tick(&mut self) {
        for timer in self.wheel.due(self.now_ms) {
            self.due(timer);
        }
        self.check_ages();
        self.retry_stuck();
        self.homes.sweep(self.now_ms);
        self.report();
    }

    /// Writes the gauges.
    fn report(&self) {
        let (counters, usage) = (&self.counters, self.wire.usage());
        counters.connections.set(self.session_count);
        counters.subscriptions.set(self.subscription_count);
        counters.channels.set(self.homes.count() as u64);
        counters.handshakes.set(self.local.handshakes.get().into());
        counters.sockets.set(usage.sockets);
        counters.rings.set(usage.rings);
        counters.log_bytes.set(self.subscriptions.bytes_held());
        counters.sends.set(usage.sends);
        counters.short_sends.set(usage.short_sends);
        counters.bytes_in.set(usage.bytes_in);
        counters.bytes_out.set(usage.bytes_out);
        counters.kernel_enters.set(usage.enters);
    }

    /// Stops accepting and begins to send the clients away.
    fn drain(&mut self) {
        if self.draining {
            return;
        }
        self.draining = true;
        self.local.stop_accepting();
        let timeout = Duration::from_millis(self.config.server.drain_timeout_ms.into());
        self.drain_deadline = Some(self.clock.now() + timeout);
        let open = self.sessions.slots().filter(|&slot| self.sessions.get(slot).is_some());
        self.drain_left = open.map(|slot| self.sessions.id(slot)).collect();
    }

    /// Tells some clients to come back later, and closes them once everything was sent to them.
    fn drain_some(&mut self) {
        let spread = self.config.server.drain_spread_ms;
        let mut later = Vec::new();
        for _ in 0..DRAINS_PER_TURN_MAX {
            let Some(id) = self.drain_left.pop() else { break };
            let Some(slot) = self.sessions.current(id) else { continue };
            let flags = self.sessions.hot(slot).flags;
            if flags & CLOSING != 0 {
                continue;
            }
            if flags & (BLOCKED | BACKLOG) != 0 {
                later.push(id);
                continue;
            }
            let reconnect_ms = self.rng.random_range(0..=spread);
            self.reply(slot, &Event::Drain { reconnect_ms });
            self.close_session(slot, CloseCode::SERVICE_RESTART, "the server is restarting");
        }
        self.drain_left.append(&mut later);
    }

    /// Whether a drain is over: everybody has left, or the time for it is up.
    pub fn is_drained(&self) -> bool {
        let over = self.drain_deadline.is_some_and(|deadline| self.clock.now() >= deadline);
        self.draining && (self.session_count == 0 || over)
    }
}

#[derive(Debug, Clone, Copy)]
enum What {
    Received,
    Writable,
    Closed,
}

/// A descriptor for the executor to wait on. It waits for readiness only and never treats it as a
/// socket.
fn waitable(fd: BorrowedFd<'_>) -> std::io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(fd.try_clone_to_owned()?))
}

/// Lets the executor do one round of its work. A self-waking task would starve it, and `sleep(0)`
/// takes a millisecond; a descriptor that becomes readable while it is waited for takes one round.
struct Round {
    near: UnixStream,
    far: std::os::unix::net::UnixStream,
    near_end: std::os::unix::net::UnixStream,
}

impl Round {
    fn new() -> std::io::Result<Round> {
        let (near, far) = std::os::unix::net::UnixStream::pair()?;
        near.set_nonblocking(true)?;
        Ok(Round { near: waitable(near.as_fd())?, near_end: near, far })
    }

    async fn pass(&self) -> std::io::Result<()> {
        use std::io::{Read as _, Write as _};
        let mut readable = std::pin::pin!(self.near.readable(false));
        // Waited for first: what is readable already would be no wait for the epoll executor.
        if futures_util::poll!(readable.as_mut()).is_pending() {
            (&self.far).write_all(b"!")?;
            readable.await?;
        }
        // What there is to read does not matter, nor whether there is anything.
        let _ = (&self.near_end).read(&mut [0; 8]);
        Ok(())
    }
}
