//! The thread that holds the connections to Redis, or to the masters of a cluster of it: it connects, connects again, and passes
//! everything on between Redis, the bridge and the shards.

mod backlog;
mod disk;
mod foreign;
mod moving;

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::{ConnectionInfo, Pipeline, RedisError, RedisResult, Value};
use ringfeed_protocol::ChannelName;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::connection::{
    ConnectError, Link, Target, address, ask, describe, is_elsewhere, is_for_good, is_moving,
};
use super::foreign::Foreign;
use super::handover::Handover;
use super::incoming::{Ended, Message};
use super::names::{Names, Topic};
use super::script;
use super::spool::Spool;
use super::{Bridge, Command, Failed, Numbering, Process, To};
use crate::config::{Config, Distribution, Redis};
use crate::seldom::Seldom;
use crate::shard::Shared;
use backlog::Backlog;
use moving::Moving;

/// How often is looked what has taken too long.
const TICK: Duration = Duration::from_millis(50);
/// How long to wait before shards that were full are tried again.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Before Redis is tried again: after the first failure at most so long, then twice as long each time, …
const RETRY_MS_MIN: u64 = 100;
/// … up to this. Drawn at random below it, so that nodes do not all come at once. Behind it what was missed is asked for and what
/// was spooled is stored: together that is to take five seconds at most.
const RETRY_MS_MAX: u64 = 3000;
/// Once connected for so long, the next time begins with the shortest wait again.
const STABLE: Duration = Duration::from_secs(10);
/// While Redis is away that is said so often.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// What was not heard for so many intervals is not heard any more.
const PINGS_MISSED_MAX: u64 = 3;
/// Channels in one subscribe.
const SUBSCRIBE_CHANNELS_MAX: usize = 512;
/// Commands in one pipeline …
const PIPELINE_COMMANDS_MAX: usize = 256;
/// … and bytes of publications, or one command.
const PIPELINE_BYTES_MAX: usize = 1 << 20;
/// Of commands that ask for history, so many are in one pipeline.
const READS_MAX: usize = 32;
/// Commands that wait to be sent, beyond which shards keep what they want …
const COMMANDS_WAITING_MAX: usize = 8192;
/// … and bytes of publications in them.
const BYTES_WAITING_MAX: usize = 16 << 20;
/// Messages that are taken before it is looked at what else there is.
const MESSAGES_PER_TURN: usize = 1024;

/// The running thread.
pub struct BridgeThread {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl BridgeThread {
    /// Starts it. Whether Redis can be reached is not waited for.
    ///
    /// # Errors
    /// The kernel's, where there can be no thread or `redis.spool_dir` cannot be used; and where `redis.url` cannot be understood,
    /// which a validated configuration rules out.
    pub fn start(shared: Arc<Shared>) -> io::Result<BridgeThread> {
        let config = shared.config();
        let Redis { spool_dir, spool_bytes_max, .. } = &config.redis;
        let info = config.redis.connection().map_err(io::Error::other)?;
        let spool = (!spool_dir.is_empty()).then(|| {
            Spool::open(Path::new(spool_dir), *spool_bytes_max).map_err(|e| {
                io::Error::new(e.kind(), format!("redis.spool_dir = {spool_dir:?}: {e}"))
            })
        });
        let spool = spool.transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let body = move || runtime.block_on(Runner::new(shared, info, spool).run(stopped));
        let thread = std::thread::Builder::new().name("bridge".into()).spawn(body)?;
        Ok(BridgeThread { stop, thread })
    }

    /// Ends it, once the shards have ended. What they have left is still given to Redis, if it takes it in time, or to the
    /// spool.
    pub fn stop(self) {
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the thread of the connections to Redis panicked");
        }
    }
}

/// A command in a pipeline: its number, and what it is where it is about keys, which may be moved.
type Sent = (u64, Option<Command>);

/// A pipeline that is being filled.
#[derive(Default)]
struct Filling {
    pipeline: Pipeline,
    sent: Vec<Sent>,
    shares: u64,
    bytes: usize,
    reads: usize,
}

impl Filling {
    /// Whether a command fits in, with so many bytes of publications.
    fn takes(&self, command: &Command, bytes: usize) -> bool {
        let is_read = matches!(command, Command::Read(_));
        self.sent.len() < PIPELINE_COMMANDS_MAX
            && (self.bytes == 0 || self.bytes + bytes <= PIPELINE_BYTES_MAX)
            && (!is_read || self.reads < READS_MAX)
    }
}

/// A pipeline that is under way.
struct Asked {
    /// Which server is asked.
    at: usize,
    /// Its commands.
    sent: Vec<Sent>,
    /// Of these, publications on channels that are not numbered.
    shares: u64,
}

/// What has become of something that Redis was asked.
enum Done {
    Answered(Asked, RedisResult<Vec<RedisResult<Value>>>),
    /// At a server.
    Subscribed(usize, Vec<ChannelName>, RedisResult<()>),
    /// Nobody waits for it.
    Other(usize, RedisResult<()>),
    /// What the server at the first place has said of a command that was refused before.
    Moved(usize, Box<Moving>, RedisResult<RedisResult<Value>>),
}

type UnderWay = Pin<Box<dyn Future<Output = Done>>>;
type Connecting = Pin<Box<dyn Future<Output = Result<Link, ConnectError>>>>;

/// Waits for what comes, as long as something can.
async fn next(link: &mut Option<Link>, wanted: bool) -> Result<Message, Ended> {
    match link {
        Some(link) => link.incoming.next(wanted).await,
        None => pending().await,
    }
}

async fn connected(connecting: &mut Option<Connecting>) -> Result<Link, ConnectError> {
    match connecting {
        Some(connecting) => connecting.await,
        None => pending().await,
    }
}

/// See the module's description.
struct Runner {
    shared: Arc<Shared>,
    bridge: Bridge,
    began: Instant,
    info: ConnectionInfo,
    names: Names,
    timeout: Duration,
    ping_interval: Duration,
    link: Option<Link>,
    connecting: Option<Connecting>,
    /// Of those that have followed one another.
    failures: u32,
    retry_at: Instant,
    /// When the connections were made, or lost.
    changed_at: Instant,
    told_away: Option<Instant>,
    ping_at: Instant,
    backlog: Backlog,
    under_way: FuturesUnordered<UnderWay>,
    /// Memory of commands in it whose slot is on the move.
    moving_bytes: usize,
    /// Publications in it on channels that are not numbered.
    shares: u64,
    /// Of such publications, those that were given to a connection and may not have got further.
    shares_lost: u64,
    handover: Handover,
    /// Unless there is none, or it has something to do.
    spool: Option<Spool>,
    spool_work: Option<disk::Work>,
    foreign: Foreign,
    foreign_refused: Seldom,
    dropped: Seldom,
    refused: Seldom,
}

impl Runner {
    fn new(
        shared: Arc<Shared>,
        info: ConnectionInfo,
        spool: Option<(Spool, BTreeMap<ChannelName, u32>)>,
    ) -> Runner {
        let config = shared.config();
        let redis = &config.redis;
        let instance = rand::random();
        let now = Instant::now();
        let (patience_ms, by) = (redis.patience_ms.into(), Numbering::Redis);
        let (revoked, rooms) = (shared.revoked.clone(), shared.rooms.clone());
        let mut bridge = Bridge::new(Process { instance, by, patience_ms, revoked, rooms }, 0);
        let spool = spool.map(|(spool, waiting)| {
            let count: u64 = waiting.values().map(|&count| u64::from(count)).sum();
            if count > 0 {
                tracing::info!("{count} publications wait on disk for Redis");
            }
            let other = |name: &&ChannelName| config.distribution(name) != Distribution::Numbered;
            if let Some(name) = waiting.keys().find(other) {
                tracing::warn!(
                    "redis.spool_dir has publications of channels that Redis does not number any more, such as {name}: they \
                     are stored there, and nobody reads them"
                );
            }
            shared.redis.spool_bytes.set(spool.bytes());
            bridge.use_spool(waiting);
            spool
        });
        Runner {
            bridge,
            began: now,
            names: Names::new(&redis.prefix, info.redis_settings().db(), instance),
            info,
            timeout: Duration::from_millis(redis.timeout_ms.into()),
            ping_interval: Duration::from_millis(redis.ping_interval_ms.into()),
            link: None,
            connecting: None,
            failures: 0,
            retry_at: now,
            changed_at: now,
            told_away: None,
            ping_at: now,
            backlog: Backlog::default(),
            under_way: FuturesUnordered::new(),
            moving_bytes: 0,
            shares: 0,
            shares_lost: 0,
            handover: Handover::new(shared.shards.count()),
            spool,
            spool_work: None,
            foreign: Foreign::new(&config, instance),
            foreign_refused: Seldom::default(),
            dropped: Seldom::default(),
            refused: Seldom::default(),
            shared,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let news = self.shared.upstream.news();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_moment = None;
        while last_moment.is_none_or(|at| Instant::now() < at && !self.is_idle()) {
            tokio::select! {
                _ = &mut stop, if last_moment.is_none() => {
                    last_moment = Some(Instant::now() + self.timeout);
                }
                () = news.notified(), if self.has_room() => {}
                _ = tick.tick() => self.tick(),
                result = connected(&mut self.connecting) => {
                    self.connecting = None;
                    self.connected(result);
                }
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.done(done);
                }
                next = next(&mut self.link, !self.handover.is_full()) => match next {
                    Ok(message) => self.take_messages(message),
                    Err(Ended::Closed) => self.lost("the connection was closed"),
                    Err(Ended::Overrun) => self.lost("more was published than the shards take"),
                    Err(Ended::Moved) => self.lost("what one of its masters served has moved"),
                },
                done = disk::done(&mut self.spool_work) => self.disk_done(done),
                () = sleep(FULL_PAUSE), if self.handover.is_waiting() => {}
            }
            self.pass_on();
        }
        self.shared.redis.up.set(0);
        self.spool_rest().await;
    }

    /// Whether more may be taken from shards.
    fn has_room(&self) -> bool {
        self.backlog.waiting() < COMMANDS_WAITING_MAX
            && self.backlog.waiting_bytes() < BYTES_WAITING_MAX
            && self.bridge.unwritten_bytes() < BYTES_WAITING_MAX
    }

    /// Nothing is left to do, or to do it with.
    fn is_idle(&self) -> bool {
        self.link.is_none() || (self.backlog.waiting() == 0 && self.under_way.is_empty())
    }

    /// Takes what shards want, sends what Redis is to do, and tells shards what has come of it.
    fn pass_on(&mut self) {
        self.take_wanted();
        self.use_disk();
        self.take_commands();
        self.send();
        for told in self.bridge.take_told() {
            self.handover.push(told, &self.shared.shards);
        }
        self.handover.flush(&self.shared.shards);
        self.shared.redis.shared_lost.set(self.bridge.shared_lost() + self.shares_lost);
        self.shared.redis.spool.set(self.bridge.spooled());
    }

    /// Takes what shards want. Returns whether that is all.
    fn take_wanted(&mut self) -> bool {
        for shard in self.shared.shards.ids() {
            while self.has_room()
                && let Some(wanted) = self.shared.upstream.take(shard)
            {
                wanted.into_iter().for_each(|what| self.bridge.wanted(what));
                self.take_commands();
            }
        }
        self.has_room()
    }

    /// Takes what the bridge wants to be asked, each where it is to be asked. It wants nothing while there is no link.
    fn take_commands(&mut self) {
        let Some(link) = &self.link else { return };
        for (number, command) in self.bridge.take_commands() {
            let of = |channel: &ChannelName| link.server_of(&self.names, channel);
            let at = match &command {
                Command::Subscribe(channels) => {
                    let mut parts: BTreeMap<usize, Vec<ChannelName>> = BTreeMap::new();
                    for channel in channels {
                        parts.entry(of(channel)).or_default().push(channel.clone());
                    }
                    for (at, channels) in parts {
                        self.backlog.push(at, number, Command::Subscribe(channels));
                    }
                    continue;
                }
                Command::Unsubscribe(channel) | Command::Message(To::Followers(channel), _) => {
                    of(channel)
                }
                Command::Append(append) => of(&append.channel),
                Command::Read(read) => of(&read.channel),
                Command::Message(..)
                | Command::Share { .. }
                | Command::Keep { .. }
                | Command::AllKept { .. } => link.hub,
            };
            self.backlog.push(at, number, command);
        }
    }

    /// Sends as much as may be under way.
    fn send(&mut self) {
        let config = self.shared.config();
        for at in 0..self.backlog.servers() {
            while self.backlog.is_due(at) {
                self.send_one(at, &config);
            }
        }
    }

    /// Sends a server one pipeline.
    fn send_one(&mut self, at: usize, config: &Config) {
        let mut filling = Filling::default();
        while let Some((number, command, bytes)) =
            self.backlog.take(at, |command, bytes| filling.takes(command, bytes))
        {
            filling.bytes += bytes;
            self.fill(at, &mut filling, number, command, config);
        }
        let Filling { pipeline, sent, shares, bytes, .. } = filling;
        let figures = &self.shared.redis;
        figures.bytes_out.add(bytes as u64);
        let server = self.link.as_ref().and_then(|link| link.servers.get(at));
        let Some(server) = server else { return };
        if !sent.is_empty() {
            figures.commands.add(sent.len() as u64);
            self.backlog.sent(at);
            self.shares += shares;
            let asked = Asked { at, sent, shares };
            let commands = server.commands.clone();
            self.under_way.push(Box::pin(async move {
                Done::Answered(asked, ask(commands, pipeline).await)
            }));
        }
    }

    /// Puts a command into a pipeline, or sends it where it goes over the connection that listens.
    fn fill(
        &self,
        at: usize,
        filling: &mut Filling,
        number: u64,
        command: Command,
        config: &Config,
    ) {
        let Some(link) = &self.link else { return };
        let Some(server) = link.servers.get(at) else { return };
        let (names, figures) = (&self.names, &self.shared.redis);
        let Filling { pipeline, sent, shares, reads, .. } = filling;
        match &command {
            Command::Subscribe(channels) => {
                for channels in channels.chunks(SUBSCRIBE_CHANNELS_MAX) {
                    let subscribed =
                        server.subscribe(channels.iter().map(|own| names.numbered(own)).collect());
                    let channels = channels.to_vec();
                    self.under_way.push(Box::pin(async move {
                        Done::Subscribed(at, channels, subscribed.await)
                    }));
                }
                return;
            }
            Command::Unsubscribe(channel) => {
                let unsubscribed = server.unsubscribe(names.numbered(channel));
                self.under_way.push(Box::pin(async move { Done::Other(at, unsubscribed.await) }));
                return;
            }
            Command::Message(to, bytes) => {
                let is_numbered = matches!(to, To::Followers(_));
                let publish = if is_numbered { server.publish() } else { "PUBLISH" };
                pipeline.cmd(publish).arg(to.name(names)).arg(&bytes[..]);
            }
            Command::Share { channel, bytes } => {
                figures.publications_out.add(1);
                *shares += 1;
                pipeline.cmd("PUBLISH").arg(names.shared(channel)).arg(&bytes[..]);
                // Right behind it: by that they are known.
                let copies = self.add_copies(pipeline, channel, bytes);
                sent.extend((0..copies).map(|_| (number, None)));
            }
            Command::Append(_)
            | Command::Read(_)
            | Command::Keep { .. }
            | Command::AllKept { .. } => {
                if let Command::Append(append) = &command {
                    figures.publications_out.add(append.items.len() as u64);
                }
                *reads += usize::from(matches!(command, Command::Read(_)));
                if let Some(cmd) = link.about_keys(names, config, server.publish(), &command) {
                    pipeline.add_command(cmd);
                }
                return sent.push((number, Some(command)));
            }
        }
        sent.push((number, None));
    }

    /// Something that Redis was asked is done.
    fn done(&mut self, done: Done) {
        match done {
            Done::Answered(Asked { at, sent, shares }, Ok(answers)) => {
                self.backlog.answered(at);
                self.shares -= shares;
                for ((number, command), answer) in sent.into_iter().zip(answers) {
                    match (command, answer) {
                        (Some(command), Err(e)) if is_moving(&e) => {
                            self.moves(at, number, command, &e);
                        }
                        (_, answer) => self.answered(at, number, answer),
                    }
                }
            }
            Done::Moved(by, moving, Ok(answer)) => self.moved(by, *moving, answer),
            Done::Subscribed(_, channels, Ok(())) => {
                channels.iter().for_each(|channel| self.bridge.subscribed(channel));
            }
            Done::Other(_, Ok(())) => {}
            Done::Answered(Asked { at, .. }, Err(e))
            | Done::Subscribed(at, _, Err(e))
            | Done::Other(at, Err(e))
            | Done::Moved(at, _, Err(e)) => self.lost_at(at, &describe(&e)),
        }
    }

    fn answered(&mut self, at: usize, number: u64, answer: RedisResult<Value>) {
        match answer {
            Ok(answer) => match script::reply(answer) {
                Some(reply) => self.bridge.answered(number, Ok(reply)),
                // That of a command that nobody waits for.
                None => self.bridge.answered(number, Err(Failed::Refused)),
            },
            Err(e) if is_elsewhere(&e) => self.lost_at(at, &describe(&e)),
            Err(e) => {
                self.refused_by(&e);
                let failed = if is_for_good(&e) { Failed::Never } else { Failed::Refused };
                self.bridge.answered(number, Err(failed));
            }
        }
    }

    fn refused_by(&mut self, error: &RedisError) {
        self.shared.redis.refused.add(1);
        if let Some(times) = self.refused.count(Instant::now()) {
            tracing::error!(times, "Redis refuses a command: {error}");
        }
    }

    /// Takes what was published, this and what else has come.
    fn take_messages(&mut self, first: Message) {
        let mut next = Some(first);
        let mut count = 0;
        while let Some(message) = next {
            self.message(message);
            count += 1;
            let more = count < MESSAGES_PER_TURN;
            next = self.link.as_mut().filter(|_| more).and_then(|link| link.incoming.take());
        }
    }

    fn message(&mut self, Message { channel, payload }: Message) {
        let figures = &self.shared.redis;
        figures.messages_in.add(1);
        figures.bytes_in.add(payload.len() as u64);
        let known = match self.names.topic(&channel) {
            Some(Topic::Numbered(channel)) => self.bridge.message(channel, &payload),
            Some(Topic::Shared(channel)) => {
                self.foreign.shared(&channel, &payload);
                self.bridge.shared(channel, &payload)
            }
            Some(Topic::Beat) => self.bridge.beat_heard(&payload),
            Some(Topic::Errand) => self.bridge.errand(&payload, &self.shared.shards),
            Some(Topic::Answer) => self.bridge.errand_answered(&payload),
            Some(Topic::Ping) => true,
            None => self.foreign_message(&channel, &payload),
        };
        if !known {
            self.shared.redis.dropped.add(1);
            if let Some(times) = self.dropped.count(Instant::now()) {
                let channel = String::from_utf8_lossy(&channel);
                tracing::warn!(
                    times,
                    "what Redis tells on {channel:?} is nothing that ringfeed publishes"
                );
            }
        }
    }

    /// Looks what has taken too long, and what is due.
    fn tick(&mut self) {
        let now = Instant::now();
        self.bridge.tick(self.now_ms());
        let Some(link) = &self.link else {
            if self.connecting.is_none() && now >= self.retry_at {
                let target = Target {
                    info: self.info.clone(),
                    is_cluster: self.shared.config().redis.cluster,
                    others: self.shared.redis.servers.load_full(),
                    timeout: self.timeout,
                    names: self.names.clone(),
                    foreign: self.foreign.subscriptions(),
                };
                self.connecting = Some(Box::pin(target.connect()));
            }
            return;
        };
        let interval_ms = u64::try_from(self.ping_interval.as_millis()).unwrap_or(u64::MAX);
        let longest = PINGS_MISSED_MAX.saturating_mul(interval_ms);
        if let Some((at, _)) = link.incoming.unheard().filter(|(_, since_ms)| *since_ms > longest) {
            return self.lost_at(at, "nothing comes over the subscription any more");
        }
        if now >= self.ping_at {
            self.ping_at = now + self.ping_interval;
            self.bridge.beat();
            for (at, server) in link.servers.iter().enumerate() {
                let pinged = server.ping();
                self.under_way.push(Box::pin(async move { Done::Other(at, pinged.await) }));
            }
        }
    }

    fn connected(&mut self, result: Result<Link, ConnectError>) {
        let now = Instant::now();
        match result {
            Ok(link) => {
                let (version, count) = (&link.version, link.servers.len());
                let masters = if self.shared.config().redis.cluster {
                    format!(", a cluster of {count} masters")
                } else {
                    String::new()
                };
                tracing::info!("{version} is there, at {}{masters}", address(&self.info));
                if let Some(policy) = &link.evicts {
                    tracing::warn!(
                        "Redis forgets channels when it is full: its maxmemory-policy is {policy}. With noeviction it \
                         refuses publications instead"
                    );
                }
                (self.changed_at, self.ping_at, self.told_away) = (now, now, None);
                self.shared.redis.servers.store(Arc::new(link.others()));
                self.backlog = Backlog::new(link.servers.len());
                self.link = Some(link);
                self.shared.redis.up.set(1);
                self.shared.redis.connects.add(1);
                self.bridge.connected();
                if self.foreign.listens() {
                    self.bridge.foreign_missed();
                }
            }
            Err(e) => self.retry(&e.to_string()),
        }
    }

    /// A server cannot be reached any more: without it, what is on the others is not all there is.
    fn lost_at(&mut self, at: usize, why: &str) {
        let server = self.link.as_ref().and_then(|link| link.servers.get(at));
        let why = server.map_or_else(|| why.to_owned(), |server| server.why(why));
        self.lost(&why);
    }

    /// Redis cannot be reached any more.
    fn lost(&mut self, why: &str) {
        if self.link.take().is_none() {
            return;
        }
        self.shared.redis.up.set(0);
        self.under_way.clear();
        self.moving_bytes = 0;
        let unsent = std::mem::take(&mut self.backlog).into_waiting();
        let unsent = unsent.filter(|own| matches!(own, Command::Share { .. }));
        self.shares_lost += unsent.count() as u64 + std::mem::take(&mut self.shares);
        self.bridge.lost(self.now_ms());
        self.foreign.lost();
        if self.changed_at.elapsed() >= STABLE {
            self.failures = 0;
        }
        self.changed_at = Instant::now();
        self.retry(why);
    }

    /// Tries again in a moment.
    fn retry(&mut self, why: &str) {
        let now = Instant::now();
        if self.told_away.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY) {
            self.told_away = Some(now);
            tracing::warn!("Redis cannot be used, at {}: {why}", address(&self.info));
        }
        let most = RETRY_MS_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MS_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + Duration::from_millis(rand::random_range(0..=most));
    }
}
