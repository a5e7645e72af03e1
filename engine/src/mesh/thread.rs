//! The thread that holds the links to other nodes and asks the registry: it calls, answers, calls again, and passes everything on
//! between links, mesh, bridge and shards.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::link::{self, Event, Link, LinkError, Open};
use super::tls::Tls;
use super::transfer::Tally;
use super::{Mesh, Own};
use crate::bridge::{Bridge, Handover, Keep, Numbering, Process};
use crate::registry::api::{Announcement, ChannelList, NodeState};
use crate::registry::client::{CallError, Client};
use crate::registry::keys::Key;
use crate::registry::membership::{Membership, Standing};
use crate::registry::names::NodeId;
use crate::registry::views::{Instance, Standpoint, View, ViewReply};
use crate::seldom::Seldom;
use crate::shard::Shared;
use crate::shard::door::counted_as;

/// How often is looked what has taken too long.
const TICK: Duration = Duration::from_millis(50);
/// How long to wait before shards that were full are tried again.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// How often nodes say that they live.
const ALIVE_EVERY: Duration = Duration::from_millis(400);
/// How often they say how much should have been heard of them.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// A link on which nothing was heard for so long is not there.
const SILENT: Duration = Duration::from_secs(3);
/// How often the registry is asked which view counts, and how long it has for an answer.
const ASK_EVERY: Duration = Duration::from_millis(1000);
/// Of the registry's patience with a silent node, so much of it is relied on, in percent.
const LEASE_PERCENT: u64 = 60;
/// A link that has lived so long was good.
const STABLE: Duration = Duration::from_secs(10);
/// Before a node is called again: after the first failure at most so long, then twice as long each time, …
const RETRY_MS_MIN: u64 = 100;
/// … up to this. Drawn at random below it.
const RETRY_MS_MAX: u64 = 2000;
/// Connections that have not shown the key yet; beyond, whoever has waited longest at the address that has the most of them is waited
/// for no longer.
const STRANGERS_MAX: usize = 64;
/// Frames of one node that wait to be read by this thread, in reads of it.
const EVENTS_MAX: usize = 64;
/// Frames that are sent together have so many bytes, or one.
const TOGETHER_BYTES_MAX: usize = 256 * 1024;
/// Who takes so little that so many bytes wait is cut off, and asks for what it has missed.
const UNSENT_BYTES_MAX: usize = 64 << 20;
/// Bytes of publications that wait for keepers, beyond which shards keep what they want, …
const PENDING_BYTES_MAX: usize = 16 << 20;
/// … and questions.
const PENDING_MAX: usize = 65_536;
/// What nobody has said for so long is said once more.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// The registry is told that the node lives so often, beside its questions.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A node that ends has so long to hand over what it keeps, and to send what is to be sent, since something was handed over last …
const LAST_WORDS: Duration = Duration::from_secs(5);
/// … and since it was to end.
const LAST_WORDS_MAX: Duration = Duration::from_secs(30);
/// Where the thread comes to its tick so late, it has stood still, and has yet to read what others have said.
const LATE: Duration = Duration::from_secs(1);
/// While less than this waits for a node, it is handed more of the channels that are to be its.
const HANDED_BYTES_MAX: usize = 8 << 20;
/// It is handed so many bytes at once.
const HANDED_AT_ONCE_BYTES: usize = 1 << 20;
/// Where the thread's time begins, in milliseconds: what other nodes say to be so old was before.
const BEGAN_MS: u64 = 1 << 40;
/// How long a node that starts waits for the registry's first word.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// The running thread.
pub struct MeshThread {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    channels: watch::Receiver<Arc<ChannelList>>,
    /// Whether the registry has answered, once it was asked first.
    asked: crossbeam_channel::Receiver<bool>,
}

impl MeshThread {
    /// Starts it, for a node whose clients come to `public`. Whether anybody can be reached is not waited for.
    ///
    /// # Errors
    /// The kernel's, where it cannot listen or there can be no thread; and what is wrong with the configuration, which a
    /// validated one rules out.
    pub fn start(shared: Arc<Shared>, public: SocketAddr) -> io::Result<MeshThread> {
        let config = shared.config();
        let listen = config.cluster.listen;
        let named =
            |e: io::Error| io::Error::new(e.kind(), format!("cluster.listen = {listen}: {e}"));
        let listener = std::net::TcpListener::bind(listen).map_err(named)?;
        listener.set_nonblocking(true)?;
        let listens = listener.local_addr()?;
        let instance = Instance(rand::random());
        let key = std::str::from_utf8(&config.cluster.key.0).map_err(io::Error::other)?;
        let client = Client::new(&config.cluster.registry, Some(&Key::of(key)), ASK_EVERY);
        let node = Announcement {
            id: config.cluster_id().map_err(io::Error::other)?,
            url: config.cluster_url(public).map_err(io::Error::other)?,
            peer: Some(config.cluster.peer(listens).map_err(io::Error::other)?),
            weight: Default::default(),
            state: Default::default(),
            epoch: instance.to_string().parse().map_err(io::Error::other)?,
        };
        let tls = Tls::new(&config.cluster)?;
        let client = client.map_err(io::Error::other)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (was_asked, asked) = crossbeam_channel::bounded(1);
        let membership = {
            let _context = runtime.enter();
            let membership = Membership::start(client.clone(), node.clone(), HEARTBEAT);
            let mut standing = membership.standing();
            tokio::spawn(async move {
                let first = standing.wait_for(|own| *own != Standing::Joining).await;
                let _ = was_asked.send(first.is_ok_and(|own| *own == Standing::Member));
            });
            membership
        };
        let channels = membership.channels();
        let place = Place { instance, id: node.id, client, tls, membership };
        let (stop, stopped) = oneshot::channel();
        let body = move || {
            runtime.block_on(async {
                match TcpListener::from_std(listener) {
                    Ok(listener) => Runner::new(shared, place, listener).run(stopped).await,
                    Err(e) => tracing::error!("cluster.listen: {e}"),
                }
            });
        };
        let thread = std::thread::Builder::new().name("mesh".into()).spawn(body)?;
        Ok(MeshThread { stop, thread, channels, asked })
    }

    /// The registry's channels, after a moment in which it can tell them first, and whether it has answered: who comes to this
    /// node is to find them as other nodes have them. To be called once.
    pub fn channels(&self) -> (watch::Receiver<Arc<ChannelList>>, bool) {
        let was_heard = self.asked.recv_timeout(FIRST_WORD).unwrap_or(false);
        (self.channels.clone(), was_heard)
    }

    /// Ends it, once the shards have ended. What they have left is still given to other nodes, if these take it in time, and the
    /// registry is told.
    pub fn stop(self) {
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the thread of the links to other nodes panicked");
        }
    }
}

/// Who this is, and where that is said.
struct Place {
    instance: Instance,
    id: NodeId,
    client: Client,
    tls: Option<Tls>,
    membership: Membership,
}

/// A key for one purpose.
fn derived(key: &[u8], purpose: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
    mac.update(purpose);
    mac.finalize().into_bytes().into()
}

/// The thread's time; never 0, which stands for never.
fn millis_since(began: Instant) -> u64 {
    BEGAN_MS + u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
}

/// When a node is called next, and how often it could not be.
#[derive(Debug, Default)]
struct Calls {
    under_way: bool,
    failures: u32,
    at: Option<Instant>,
    told: Option<Instant>,
}

impl Calls {
    fn pause(&self) -> Duration {
        let most = RETRY_MS_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MS_MAX);
        Duration::from_millis(rand::random_range(0..=most))
    }
}

type Called = Pin<Box<dyn Future<Output = (Option<Instance>, Result<Open, LinkError>)>>>;

/// A link, and since when there is one.
struct Linked {
    link: Link,
    since: Instant,
}

/// What the registry has said, and when it was asked, in milliseconds of this thread.
type Told = (u64, ViewReply);

/// See the module's description.
struct Runner {
    shared: Arc<Shared>,
    bridge: Bridge,
    mesh: Mesh,
    instance: Instance,
    key: Arc<[u8]>,
    tls: Option<Tls>,
    began: Instant,
    listener: TcpListener,
    links: BTreeMap<Instance, Linked>,
    next_link: u64,
    calls: HashMap<Instance, Calls>,
    /// Both those that this node calls and those that call it.
    handshakes: FuturesUnordered<Called>,
    /// Those that call it and have not shown the key yet, and where they are, the oldest first.
    strangers: VecDeque<(IpAddr, AbortHandle)>,
    /// Nobody is taken before.
    accepts_at: Instant,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// What the registry is told: the view, and who is heard.
    standpoint: watch::Sender<Standpoint>,
    registry: mpsc::Receiver<Told>,
    membership: Option<Membership>,
    handover: Handover,
    ticked_at: Instant,
    /// Nobody counts as silent before.
    judges_at: Instant,
    alive_at: Instant,
    beat_at: Instant,
    told_lost: Tally,
    told_alone: Option<Instant>,
    refused: Seldom,
    dropped: Seldom,
}

impl Runner {
    fn new(shared: Arc<Shared>, place: Place, listener: TcpListener) -> Runner {
        let config = shared.config();
        let Place { instance, id, client, tls, membership } = place;
        let patience_ms = config.cluster.patience_ms.into();
        let (revoked, rooms) = (shared.revoked.clone(), shared.rooms.clone());
        let by = Numbering::Nodes;
        let process = Process { instance: instance.0, by, patience_ms, revoked, rooms };
        let placing = derived(&config.cluster.key.0, b"ringfeed placing");
        let number = |at: usize| {
            placing[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let rules = shared.clone();
        let own = Own {
            instance,
            seed: rand::random(),
            placing_key: [number(0), number(8)],
            patience_ms,
            channels_max: config.limits.channels_max as usize,
            bytes_max: usize::try_from(config.limits.history_bytes_max).unwrap_or(usize::MAX),
            handed_bytes: HANDED_AT_ONCE_BYTES,
            rules: Box::new(move |channel| Keep::of(&rules.settings.load().config, channel)),
            revoked: shared.revoked.clone(),
            rooms: shared.rooms.clone(),
        };
        let now = Instant::now();
        let (said, standpoint) =
            watch::channel(Standpoint { instance, view: 0, ..Standpoint::default() });
        let (told, registry) = mpsc::channel(1);
        tokio::spawn(ask_registry(client, id, standpoint, told, now));
        let events = mpsc::channel(EVENTS_MAX);
        Runner {
            bridge: Bridge::new(process, BEGAN_MS),
            mesh: Mesh::new(own, BEGAN_MS),
            instance,
            key: derived(&config.cluster.key.0, b"ringfeed links").to_vec().into(),
            tls,
            began: now,
            listener,
            links: BTreeMap::new(),
            next_link: 0,
            calls: HashMap::new(),
            handshakes: FuturesUnordered::new(),
            strangers: VecDeque::new(),
            accepts_at: now,
            events,
            standpoint: said,
            registry,
            membership: Some(membership),
            handover: Handover::new(shared.shards.count()),
            ticked_at: now,
            judges_at: now,
            told_lost: Tally::default(),
            alive_at: now,
            beat_at: now,
            told_alone: Some(now),
            refused: Seldom::default(),
            dropped: Seldom::default(),
            shared,
        }
    }

    fn now_ms(&self) -> u64 {
        millis_since(self.began)
    }

    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let news = self.shared.upstream.news();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ends = None;
        while ends.is_none_or(|since| self.has_last_words(since) && !self.is_idle()) {
            let takes_strangers = Instant::now() >= self.accepts_at;
            tokio::select! {
                _ = &mut stop, if ends.is_none() => ends = Some(self.now_ms()),
                () = news.notified(), if self.has_room() => {}
                _ = tick.tick() => self.tick(),
                Some(event) = self.events.1.recv(), if !self.handover.is_full() => self.event(event),
                Some((asked_ms, reply)) = self.registry.recv() => self.told(asked_ms, reply),
                Some((called, result)) = self.handshakes.next(), if !self.handshakes.is_empty() => {
                    self.shown(called, result);
                }
                accepted = self.listener.accept(), if takes_strangers => self.accepted(accepted),
                () = sleep(FULL_PAUSE), if self.handover.is_waiting() || self.mesh.owes_lives() => {}
            }
            self.pass_on();
        }
        self.shared.cluster.up.set(0);
        if !self.mesh.is_relieved() {
            tracing::warn!(
                "this node ends before other nodes have said that they have its channels: those that they have not begin another life"
            );
        }
        if let Some(membership) = self.membership.take() {
            let _ = tokio::time::timeout(ASK_EVERY, membership.leave()).await;
        }
    }

    /// Whether there is time left, as it is to end since then.
    fn has_last_words(&self, since_ms: u64) -> bool {
        let passed = |from_ms| Duration::from_millis(self.now_ms().saturating_sub(from_ms));
        passed(since_ms.max(self.mesh.moved_ms())) < LAST_WORDS && passed(since_ms) < LAST_WORDS_MAX
    }

    fn has_room(&self) -> bool {
        self.mesh.pending() < PENDING_MAX && self.mesh.pending_bytes() < PENDING_BYTES_MAX
    }

    /// Nothing is left to do, or nobody to do it with.
    fn is_idle(&self) -> bool {
        let is_sent = self.links.values().all(|own| own.link.unsent() == 0);
        is_sent && self.mesh.pending() == 0 && self.mesh.is_relieved()
    }

    /// Takes what shards want, does it or asks others to, and tells shards what has come of it.
    fn pass_on(&mut self) {
        let now_ms = self.now_ms();
        // Time may have stood still for this process: what held may hold no more.
        self.mesh.pass(now_ms);
        for shard in self.shared.shards.ids() {
            while self.has_room()
                && let Some(wanted) = self.shared.upstream.take(shard)
            {
                wanted.into_iter().for_each(|what| self.bridge.wanted(what));
                for (number, command) in self.bridge.take_commands() {
                    self.mesh.command(number, command);
                }
            }
        }
        loop {
            let mut any = false;
            for (number, command) in self.bridge.take_commands() {
                self.mesh.command(number, command);
                any = true;
            }
            while let Some(said) = self.mesh.take_said() {
                any = true;
                if !said.hand_over(&mut self.bridge, &self.shared.shards, now_ms)
                    && let Some(times) = self.dropped.count(Instant::now())
                {
                    tracing::warn!(
                        times,
                        "another node says what no ringfeed of this version says"
                    );
                }
            }
            if !any {
                break;
            }
        }
        let links = &self.links;
        let has_room =
            |to| links.get(&to).is_some_and(|own: &Linked| own.link.unsent() < HANDED_BYTES_MAX);
        self.mesh.give_lives(has_room);
        if self.mesh.is_moving() != self.standpoint.borrow().moving {
            self.stand();
        }
        self.send();
        for told in self.bridge.take_told() {
            self.handover.push(told, &self.shared.shards);
        }
        self.handover.flush(&self.shared.shards);
        self.count();
    }

    fn count(&self) {
        let figures = &self.shared.cluster;
        figures.up.set(self.mesh.is_up().into());
        if self.mesh.is_up() && !self.mesh.awaits_lives() {
            figures.joined.set(1);
        }
        let tally = self.mesh.tally();
        figures.given.set(tally.given);
        figures.taken.set(tally.taken);
        figures.lost.set(tally.lost);
        figures.view.set(self.mesh.view().number);
        figures.members.set(self.mesh.view().members.len() as u64);
        figures.links.set(self.links.len() as u64);
        figures.channels.set(self.mesh.store().channels() as u64);
        figures.bytes.set(self.mesh.store().bytes() as u64);
        figures.pending.set(self.mesh.pending() as u64);
        figures.shared_lost.set(self.bridge.shared_lost());
    }

    /// Hands links what they are to send; what is for one node, together.
    fn send(&mut self) {
        let mut together: BTreeMap<Instance, BytesMut> = BTreeMap::new();
        let (figures, links) = (&self.shared.cluster, &self.links);
        let give = |to: &Instance, frames: &mut BytesMut| {
            figures.bytes_out.add(frames.len() as u64);
            if let Some(linked) = links.get(to) {
                linked.link.send(frames.split().freeze());
            }
        };
        for (to, frame) in self.mesh.take_frames() {
            let frames = together.entry(to).or_default();
            figures.frames_out.add(1);
            let before = frames.len();
            frame.write(frames);
            if frames.len() >= TOGETHER_BYTES_MAX {
                // The last one may be long by itself.
                let mut last = frames.split_off(before);
                for frames in [frames, &mut last] {
                    if !frames.is_empty() {
                        give(&to, frames);
                    }
                }
            }
        }
        for (to, mut frames) in together {
            if !frames.is_empty() {
                give(&to, &mut frames);
            }
        }
        let slow = self.links.iter().filter(|(_, own)| own.link.unsent() > UNSENT_BYTES_MAX);
        for peer in slow.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.unlink(peer, "it takes too little of what it is sent");
        }
    }

    fn event(&mut self, event: Event) {
        self.mesh.pass(self.now_ms());
        let of = |number: u64| {
            let found = self.links.iter().find(|(_, own)| own.link.number == number);
            found.map(|(peer, _)| *peer)
        };
        match event {
            Event::Heard(number, frames, bytes) => {
                let Some(peer) = of(number) else { return };
                self.shared.cluster.frames_in.add(frames.len() as u64);
                self.shared.cluster.bytes_in.add(bytes as u64);
                for frame in frames {
                    let was = self.mesh.view().number;
                    self.mesh.heard(peer, frame);
                    if self.mesh.view().number != was {
                        self.adopted();
                    }
                }
            }
            Event::Ended(number, why) => {
                if let Some(peer) = of(number) {
                    self.unlink(peer, &why.to_string());
                }
            }
        }
    }

    fn unlink(&mut self, peer: Instance, why: &str) {
        if let Some(linked) = self.links.remove(&peer) {
            tracing::warn!("the link to node {} has ended: {why}", self.name(peer));
            self.mesh.closed(peer);
            let calls = self.calls.entry(peer).or_default();
            if linked.since.elapsed() >= STABLE {
                calls.failures = 0;
            }
            calls.at = Some(Instant::now() + calls.pause());
            // It may have left: then there is another view.
            self.standpoint.send_modify(|_| {});
        }
    }

    /// What a process is called where people read it.
    fn name(&self, peer: Instance) -> String {
        let member = self.mesh.view().members.iter().find(|member| member.instance == peer);
        member.map_or_else(|| format!("of process {peer}"), |member| member.id.to_string())
    }

    fn told(&mut self, asked_ms: u64, reply: ViewReply) {
        let ViewReply { view, go_by, node_timeout_ms } = reply;
        self.mesh.pass(self.now_ms());
        let (number, was) = (view.number, self.mesh.view().number);
        self.mesh.adopt(view);
        self.mesh.know(number, &go_by);
        // Where it does not know the view that this node goes by, it is told of it.
        let knows = (number < was).then(|| Box::new(self.mesh.view().clone()));
        self.standpoint.send_if_modified(|own| {
            let is_news = own.knows.is_none() && knows.is_some();
            own.knows = knows;
            is_news
        });
        self.mesh.lease(number, asked_ms, node_timeout_ms * LEASE_PERCENT / 100);
        if self.mesh.view().number != was {
            self.adopted();
        }
    }

    /// There is another view.
    fn adopted(&mut self) {
        let View { number, members, .. } = self.mesh.view();
        let ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
        tracing::info!("view {number}: {}", ids.join(", "));
        let is_member = |of: &Instance| members.iter().any(|member| member.instance == *of);
        self.calls.retain(|peer, _| is_member(peer));
        let gone: Vec<Instance> =
            self.links.keys().copied().filter(|own| !is_member(own)).collect();
        for peer in gone {
            // One that is to be a member of a later view may have called already.
            if peer < self.instance {
                continue;
            }
            self.unlink(peer, "it is no member any more");
        }
        self.stand();
        self.call();
    }

    /// Says to the registry where this node stands, the next time that it is asked.
    fn stand(&mut self) {
        let (view, hears) = (self.mesh.view().number, self.mesh.supporters().collect());
        let moving = self.mesh.is_moving();
        self.standpoint.send_if_modified(|own| {
            let is_other = own.view != view;
            let changed = is_other || own.moving != moving;
            (own.view, own.hears, own.moving) = (view, hears, moving);
            own.knows = own.knows.take().filter(|_| !is_other);
            changed
        });
    }

    /// Calls the members that it is to call: of two the one with the lower number calls.
    fn call(&mut self) {
        let now = Instant::now();
        for member in &self.mesh.view().members {
            let peer = member.instance;
            if peer <= self.instance || self.links.contains_key(&peer) {
                continue;
            }
            let calls = self.calls.entry(peer).or_default();
            if calls.under_way || calls.at.is_some_and(|at| at > now) {
                continue;
            }
            calls.under_way = true;
            let (address, own, key) = (member.peer.to_string(), self.instance, self.key.clone());
            let tls = self.tls.as_mut().map(Tls::ends);
            self.handshakes.push(Box::pin(async move {
                (Some(peer), link::call(&address, own, peer, &key, tls.as_ref()).await)
            }));
        }
    }

    fn accepted(&mut self, accepted: io::Result<(tokio::net::TcpStream, SocketAddr)>) {
        let Ok((stream, address)) = accepted else {
            // There are no descriptors, mostly, and the next attempt would fail, too.
            self.accepts_at = Instant::now() + TICK;
            return;
        };
        if self.strangers.len() >= STRANGERS_MAX {
            self.turn_away();
        }
        let (own, key) = (self.instance, self.key.clone());
        let tls = self.tls.as_mut().map(Tls::ends);
        let shown =
            tokio::spawn(async move { link::answer(stream, own, &key, tls.as_ref()).await });
        self.strangers.push_back((counted_as(address.ip()), shown.abort_handle()));
        self.handshakes
            .push(Box::pin(async move { (None, shown.await.unwrap_or(Err(LinkError::Crowded))) }));
    }

    /// One stranger is waited for no longer: so who says nothing keeps nobody away who has the key.
    fn turn_away(&mut self) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (address, _) in &self.strangers {
            *counts.entry(*address).or_default() += 1;
        }
        let most = counts.values().copied().max();
        let oldest = self.strangers.iter().position(|(own, _)| counts.get(own).copied() == most);
        if let Some((_, shown)) = oldest.and_then(|at| self.strangers.remove(at)) {
            shown.abort();
        }
    }

    /// Somebody has shown the key, or has not.
    fn shown(&mut self, called: Option<Instance>, result: Result<Open, LinkError>) {
        let now = Instant::now();
        if called.is_none() {
            self.strangers.retain(|(_, shown)| !shown.is_finished());
        }
        match result {
            Ok(open) => {
                let peer = open.peer;
                if let Some(called) = called {
                    // One that ends at once is not made again at once.
                    let calls = self.calls.entry(called).or_default();
                    (calls.under_way, calls.failures) = (false, calls.failures.saturating_add(1));
                }
                // Who calls again has lost the other link, and this side has not noticed.
                if self.links.remove(&peer).is_some() {
                    self.mesh.closed(peer);
                }
                if peer == self.instance {
                    return;
                }
                self.next_link += 1;
                let link = Link::start(open, self.next_link, self.events.0.clone());
                self.links.insert(peer, Linked { link, since: now });
                self.shared.cluster.connects.add(1);
                tracing::info!("linked with node {}", self.name(peer));
                self.mesh.pass(self.now_ms());
                self.mesh.opened(peer);
            }
            Err(why) => match called {
                None => {
                    self.shared.cluster.refused.add(1);
                    if let Some(times) = self.refused.count(now) {
                        tracing::warn!(times, "a call at cluster.listen was refused: {why}");
                    }
                }
                Some(peer) => {
                    let name = self.name(peer);
                    let calls = self.calls.entry(peer).or_default();
                    calls.at = Some(now + calls.pause());
                    (calls.under_way, calls.failures) = (false, calls.failures.saturating_add(1));
                    if calls.told.is_none_or(|told| now - told >= TOLD_EVERY) {
                        calls.told = Some(now);
                        tracing::warn!("node {name} cannot be linked with: {why}");
                    }
                }
            },
        }
    }

    /// Looks what has taken too long, and what is due.
    fn tick(&mut self) {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        self.mesh.tick(now_ms);
        self.bridge.tick(now_ms);
        if now - std::mem::replace(&mut self.ticked_at, now) > LATE {
            self.judges_at = now + LATE;
        }
        let judges = now >= self.judges_at;
        let silent = |own: &Linked| judges && own.link.silent_for() > SILENT;
        let silent = self.links.iter().filter(|(_, own)| silent(own)).map(|(peer, _)| *peer);
        for peer in silent.collect::<Vec<_>>() {
            self.unlink(peer, "nothing is heard over it");
        }
        if let Some(membership) = &self.membership
            && self.shared.draining.load(Ordering::Relaxed)
        {
            membership.set_state(NodeState::Draining);
        }
        if now >= self.alive_at {
            self.alive_at = now + ALIVE_EVERY;
            self.mesh.beat();
            self.stand();
        }
        if now >= self.beat_at {
            self.beat_at = now + BEAT_EVERY;
            self.bridge.beat();
        }
        self.call();
        let (told, tally) = (self.told_lost, self.mesh.tally());
        if (told.lost, told.given_up) != (tally.lost, tally.given_up) {
            tracing::warn!(
                channels = tally.lost - told.lost,
                nodes = tally.given_up - told.given_up,
                "channels that changed their keeper begin another life, or other nodes have said nothing of theirs in time"
            );
        }
        self.told_lost = tally;
        if self.mesh.is_up() {
            self.told_alone = None;
        } else if self.told_alone.is_none_or(|told| now - told >= TOLD_EVERY) {
            self.told_alone = Some(now);
            tracing::warn!(
                "this node goes by no view that counts: neither the registry answers, nor do enough other nodes"
            );
        }
    }
}

/// Asks the registry again and again which view counts.
async fn ask_registry(
    client: Client,
    id: NodeId,
    mut standpoint: watch::Receiver<Standpoint>,
    told: mpsc::Sender<Told>,
    began: Instant,
) {
    loop {
        let asked_ms = millis_since(began);
        let own = standpoint.borrow_and_update().clone();
        let pause = match client.view(&id, &own).await {
            Ok(reply) => {
                // A view that is new here is said to be gone by at once: the next one waits for that.
                if told.send((asked_ms, reply)).await.is_err() {
                    return;
                }
                ASK_EVERY
            }
            // It is announced by somebody else, who says what is wrong, too.
            Err(e) if e.is_unknown() => ASK_EVERY / 10,
            Err(CallError::Refused { .. }) => ASK_EVERY,
            Err(_) => ASK_EVERY / 2,
        };
        tokio::select! {
            () = sleep(pause) => {}
            changed = standpoint.changed() => if changed.is_err() { return },
        }
    }
}
