//! Several nodes that share channels through a Redis, any of which may fail at any moment: real shards and a real bridge on each
//! node, a Redis that does what [`redis`] says, and clients that come back to any node ([`client`]). What they are told is held
//! against what was really appended ([`truth`]).
//!
//! Links between a node and Redis are cut and made again, with what is under way lost on the way there or on the way back; they
//! deliver as late as they like, and what is asked and what is subscribed to overtake each other. Redis stalls, is flushed, and
//! comes back with what it had, with less, or with nothing; at times it is full. Nodes are killed, and their [`disk`]s, which may be
//! full, stay.
//!
//! To add something that happens: a function and a line in [`STEPS`].

mod client;
mod disk;
mod mesh;
mod receipts;
mod redis;
mod rooms;
mod truth;
mod users;

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfeed_engine::bridge::{Bridge, Numbering, Process, SpoolDone};
use ringfeed_engine::clock::Clock;
use ringfeed_engine::config::{Config, Distribution, Presence, Publishers, Sources, Subscribers};
use ringfeed_engine::ids::ShardId;
use ringfeed_engine::message::{
    KeyOf, Keyed, Post, Published, Request, Sender, Shards, StoredPayload, Waker, queues,
};
use ringfeed_engine::settings::Settings;
use ringfeed_engine::shard::door::Admission;
use ringfeed_engine::shard::{
    Credentials, Environment, Local, Promoted, Shard, Shared, TurnLimits, check_together,
};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, Dialect, IdempotencyKey, Position};
use tokio::sync::oneshot;

use super::dice::Dice;
use super::net::{ConnId, Fate, Faults, Net, Phase, SimWire};
use super::trace::{Trace, Tracing, note};
use super::world::Tally;
use client::{Channels, Client};
use disk::Disk;
use mesh::Fabric;
use receipts::Receipts;
use redis::{Heard, Keeps, Pipe, Redis};
use rooms::Ordered;
use truth::Truth;
use users::{RevokedToken, Sent};

/// How long what needs Redis waits for it.
const PATIENCE_MS: u64 = 2000;
/// Rounds in which everything under way must have arrived.
const ROUNDS_MAX: u32 = 50_000;

/// One shard of a node.
struct Running {
    shard: Shard<SimWire>,
    local: Rc<Local>,
    wake: UnixStream,
    asleep: bool,
    /// Its number among all wires.
    wire: usize,
}

/// One process.
struct Node {
    shards: Vec<Running>,
    shared: Arc<Shared>,
    bridge: Bridge,
    pipe: Pipe,
    /// What its shards are to be told and had no room for.
    told: VecDeque<(ShardId, Request)>,
    /// What its disk has done.
    done: Option<SpoolDone>,
    /// Processes of which it has heard something.
    knows: HashSet<Bytes>,
    /// Where there is no Redis.
    mesh: Option<Box<mesh::MeshNode>>,
}

impl Node {
    /// Whether it is stopped, as by SIGSTOP.
    fn is_frozen(&self) -> bool {
        self.mesh.as_ref().is_some_and(|own| own.frozen > 0)
    }
}

/// A publication over the API of a node.
struct Posted {
    channel: usize,
    numbers: Vec<u64>,
    answer: oneshot::Receiver<Vec<(u32, Published)>>,
    /// Who is to get it, where it is accepted.
    due: Option<Due>,
}

/// Publications on a channel that is not numbered.
struct Due {
    channel: usize,
    /// Where they were published.
    node: usize,
    numbers: Vec<u64>,
    /// Who was subscribed before, and how often it had been told of gaps or had subscribed.
    to: Vec<(usize, u64)>,
}

impl Posted {
    /// Where it was published, if somebody is to get it.
    fn node(&self) -> Option<usize> {
        self.due.as_ref().map(|due| due.node)
    }
}

/// What is drawn at the beginning.
#[derive(Debug)]
struct Setup {
    /// Whether the nodes do without a Redis.
    is_mesh: bool,
    nodes: usize,
    shards: usize,
    channels: usize,
    numbered: usize,
    clients: usize,
    steps: usize,
    history_size: u32,
    filler: usize,
    queue_batches: usize,
    turn: [usize; 6],
    /// Of 1,000 reconnections with recovery.
    recovers: u32,
    /// How often Redis and the links to it fail.
    faults: u32,
    kills: u32,
    /// How often what is published is lost on its way to a node, and nothing else.
    losses: u32,
    turns: u32,
    /// Whether nodes have a disk for what Redis does not take, …
    spools: bool,
    /// … and how often it is full, of 1,000.
    disk_full: u32,
    /// Of 1,000 publications over the API, those with an idempotency key.
    keyed: u32,
    users: usize,
    /// How often somebody is revoked.
    revokes: u32,
    /// How often something is said of a room.
    rooms: u32,
    /// What is shown of who is there.
    presence: Presence,
    /// What subscribers are told of it, this often at most.
    presence_interval_ms: Option<u32>,
    /// Of 1,000 publications of clients, those that are to be confirmed.
    confirms: u32,
}

impl Setup {
    fn draw(dice: &mut Dice, is_mesh: bool) -> Setup {
        let channels = dice.range(1, 6);
        Setup {
            is_mesh,
            nodes: if is_mesh { dice.pick(&[1, 2, 3, 3, 4]) } else { dice.pick(&[1, 2, 2, 3, 3]) },
            shards: dice.pick(&[1, 1, 2]),
            channels,
            numbered: dice.pick(&[channels, channels, channels / 2]),
            clients: dice.range(2, 12),
            steps: dice.magnitude(200, 4000),
            history_size: dice.pick(&[0, 3, 30, 1000, 1000]),
            filler: dice.magnitude(1, 400),
            queue_batches: dice.pick(&[1, 4, 256]),
            turn: [
                dice.magnitude(1, 32),
                dice.range(1, 4),
                dice.magnitude(2, 200),
                dice.range(1, 8),
                dice.magnitude(1, 10),
                dice.magnitude(200, 200_000),
            ],
            recovers: dice.pick(&[1000, 900, 300]),
            faults: dice.pick(&[0, 3, 10, 30]),
            kills: dice.pick(&[0, 0, 2, 8]),
            losses: dice.pick(&[0, 0, 0, 10]),
            turns: dice.magnitude(200, 1500) as u32,
            spools: !is_mesh && dice.chance(600),
            disk_full: dice.pick(&[0, 0, 100]),
            keyed: dice.pick(&[0, 300, 1000]),
            users: dice.range(1, 4),
            revokes: dice.pick(&[0, 0, 3, 20]),
            presence: dice.pick(&[Presence::Off, Presence::Count, Presence::Full, Presence::Full]),
            presence_interval_ms: dice.pick(&[None, Some(0), Some(500)]),
            rooms: dice.pick(&[0, 0, 5, 30]),
            confirms: dice.pick(&[0, 0, 50, 500]),
        }
    }
}

/// See the module's description.
pub(crate) struct World {
    setup: Setup,
    dice: Dice,
    trace: Rc<Trace>,
    elapsed: Rc<Cell<Duration>>,
    unix_ms: Rc<Cell<u64>>,
    start: Instant,
    net: Rc<RefCell<Net>>,
    nodes: Vec<Node>,
    redis: Redis,
    truth: Truth,
    channels: Channels,
    clients: Vec<Client>,
    published: u64,
    posts: Vec<Posted>,
    /// Number, filler and channel of what was published with a key and may be again.
    keyed: Vec<(u64, usize, usize)>,
    /// What was accepted of channels that are not numbered.
    due: Vec<Due>,
    /// Of each node, whichever process it runs.
    disks: Vec<Disk>,
    /// What the API was told to be stored later.
    spooled: Vec<u64>,
    /// Connections that clients have had.
    left: Vec<ConnId>,
    sent: Vec<Sent>,
    receipts: Receipts,
    revoked: Vec<RevokedToken>,
    rooms: Vec<Ordered>,
    /// So many tokens there ever were.
    tokens: u64,
    /// Redis does nothing for so many steps.
    stalls: u32,
    /// What is between nodes, and the registry, where there is no Redis.
    fabric: Fabric,
    tally: Tally,
}

type Weight = fn(&World) -> u32;
type Step = fn(&mut World);

/// Name, weight, and what is done.
const STEPS: &[(&str, Weight, Step)] = &[
    ("turn", |w| w.setup.turns, World::any_turn),
    ("input arrives", |_| 300, World::any_input),
    ("a client acts", |_| 150, World::any_client),
    ("a client reads", |_| 300, World::any_reader),
    (
        "a client connects",
        |w| if w.clients.len() < w.setup.clients { 60 } else { 0 },
        World::connect,
    ),
    ("a client comes back", |_| 60, World::reconnect),
    ("a client leaves", |_| 12, World::leave),
    ("a client confirms", |w| if w.setup.confirms > 0 { 100 } else { 0 }, World::any_confirmation),
    ("the API publishes", |_| 40, World::post),
    ("the API sends to a user", |_| 30, World::send_to_user),
    ("the API revokes a token", |w| w.setup.revokes, World::revoke),
    ("the API says something of a room", |w| w.setup.rooms, World::order_room),
    ("the API publishes again", |_| 10, World::repeat),
    ("a disk does something", |_| 150, World::any_order),
    ("a bridge hears of its disk", |_| 150, World::any_done),
    ("Redis is full", |w| w.of_redis(w.setup.faults / 6), World::fill),
    ("the clock moves", |_| 40, World::clock),
    ("a bridge takes what its shards want", |_| 300, World::any_wanted),
    ("Redis does something", |w| w.of_redis(400), World::any_command),
    ("Redis subscribes somebody", |w| w.of_redis(150), World::any_subscribe),
    ("an answer arrives", |w| w.of_redis(400), World::any_answer),
    ("a message arrives", |w| w.of_redis(400), World::any_heard),
    ("shards are told", |_| 300, World::any_told),
    ("a link breaks", |w| w.of_redis(w.setup.faults), World::cut),
    ("a link is made", |w| w.of_redis(30), World::link),
    ("a message is lost", |w| w.of_redis(w.setup.losses), World::lose),
    ("Redis stalls", |w| w.of_redis(w.setup.faults / 3), World::stall),
    ("Redis is saved", |w| w.of_redis(w.setup.faults / 6), World::save),
    ("Redis restarts", |w| w.of_redis(w.setup.faults / 3), World::restart),
    ("Redis is flushed", |w| w.of_redis(w.setup.faults / 10), World::flush),
    ("a node is killed", |w| w.setup.kills, World::kill),
    ("a frame arrives", |w| w.of_mesh(800), World::any_frame),
    ("nodes are linked", |w| w.of_mesh(40), World::any_linked),
    ("a link breaks between nodes", |w| w.of_mesh(w.setup.faults), World::break_link),
    ("a link stalls", |w| w.of_mesh(w.setup.faults), World::stall_link),
    ("a node asks the registry", |w| w.of_mesh(40), World::any_registered),
    ("the registry answers", |w| w.of_mesh(80), World::any_told_by_registry),
    (
        "the registry and a node lose each other",
        |w| w.of_mesh(w.setup.faults / 2),
        World::lose_registry,
    ),
    ("the registry restarts", |w| w.of_mesh(w.setup.faults / 5), World::restart_registry),
    ("the registry lets a node go", |w| w.of_mesh(w.setup.faults / 5), World::let_go),
    ("a node ends", |w| w.of_mesh(3 * w.setup.kills), World::let_end),
    ("a node freezes", |w| w.of_mesh(w.setup.faults / 3), World::freeze),
];

/// What is published over the API.
fn posted(channel: &ChannelName, number: u64, filler: usize, is_keyed: bool) -> Post {
    let bytes = Bytes::from(client::payload(number, filler));
    let payload = StoredPayload { kind: PayloadKind::Json, bytes };
    let by = is_keyed.then(|| {
        let key = IdempotencyKey::new(&number.to_string()).expect("a key");
        let key = Some(Box::new(Keyed { of: KeyOf::Application, key }));
        Box::new(Sender { key, ..Sender::default() })
    });
    Post { channel: channel.clone(), payload, by }
}

fn configuration(setup: &Setup) -> Config {
    let mut config = Config::load(&Sources::default()).expect("the defaults are valid");
    config.redis.url.0 = b"redis://simulated".to_vec();
    config.limits.messages_per_second_max = 0;
    config.heartbeat.interval_ms = 0;
    let mut rule = config.channels[0].clone();
    (rule.subscribe, rule.publish) = (Subscribers::Anyone, Publishers::Anyone);
    (rule.history_size, rule.history_age_ms) = (setup.history_size, 0);
    rule.presence = setup.presence;
    if let (Presence::Full, Some(interval_ms)) = (setup.presence, setup.presence_interval_ms) {
        (rule.join_leave, rule.presence_interval_ms) = (true, interval_ms);
    }
    (rule.sender, rule.confirm) = (setup.confirms > 0, setup.confirms > 0);
    let mut bridged = rule.clone();
    (rule.pattern, rule.distribution) = ("n.*".into(), Distribution::Numbered);
    (bridged.pattern, bridged.distribution) = ("b.*".into(), Distribution::Bridged);
    let mut rooms = bridged.clone();
    (rooms.pattern, rooms.room, rooms.room_rules) = ("r.*".into(), true, Some(rooms::by_rule()));
    config.channels = vec![rule, bridged, rooms];
    config
}

impl World {
    pub(crate) fn new(seed: u64, is_mesh: bool, tracing: Tracing) -> World {
        let mut dice = Dice::new(seed);
        let setup = Setup::draw(&mut dice, is_mesh);
        let elapsed = Rc::new(Cell::new(Duration::ZERO));
        let trace = Rc::new(Trace::new(tracing, elapsed.clone()));
        note!(trace, "seed {seed}: {setup:#?}");
        let net = Rc::new(RefCell::new(Net::new(0, dice.split(), trace.clone(), 0)));
        let names = (0..setup.channels).map(|number| {
            let prefix = if number < setup.numbered { "n" } else { "b" };
            format!("{prefix}.{number}")
        });
        let channels = Channels { names: names.collect(), numbered: setup.numbered };
        let redis = Redis::new(setup.history_size as usize, dice.split());
        let mut world = World {
            elapsed,
            unix_ms: Rc::new(Cell::new(1_700_000_000_000)),
            start: Instant::now(),
            net,
            nodes: Vec::new(),
            redis,
            truth: Truth::default(),
            channels,
            clients: Vec::new(),
            published: 0,
            posts: Vec::new(),
            keyed: Vec::new(),
            due: Vec::new(),
            disks: (0..setup.nodes).map(|_| Disk::default()).collect(),
            spooled: Vec::new(),
            left: Vec::new(),
            sent: Vec::new(),
            receipts: Receipts::new(setup.users),
            revoked: Vec::new(),
            rooms: Vec::new(),
            tokens: 0,
            stalls: 0,
            fabric: Fabric::default(),
            tally: Tally { seeds: 1, ..Tally::default() },
            trace,
            setup,
            dice,
        };
        for number in 0..world.setup.nodes {
            let node = world.node(number);
            world.nodes.push(node);
        }
        world
    }

    /// A process that has just started.
    fn node(&mut self, number: usize) -> Node {
        let (mut ends, mut inboxes, mut wakes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.setup.shards {
            let (wake, waker) = UnixStream::pair().expect("descriptors are to be had");
            wake.set_nonblocking(true).expect("a socket can be made non-blocking");
            waker.set_nonblocking(true).expect("a socket can be made non-blocking");
            let waker = Waker::new(File::from(OwnedFd::from(waker)));
            let (end, inbox) = queues(waker, self.setup.queue_batches);
            ends.push(end);
            inboxes.push(inbox);
            wakes.push(wake);
        }
        let settings = Settings::new(configuration(&self.setup)).expect("it is valid");
        let shards = Shards::new(ends, [self.dice.number(), self.dice.number()]);
        let (shared, _) = Shared::new(settings, shards, Admission::new(u32::MAX, 0));
        let [events, batches, deliveries, promotions, sends, request_bytes] = self.setup.turn;
        let first = self.net.borrow_mut().add_sides(self.setup.shards);
        let shards = inboxes.into_iter().zip(wakes).enumerate().map(|(number, (inbox, wake))| {
            let local = Rc::new(Local::new(None));
            let environment = Environment {
                clock: Clock::Simulated {
                    start: self.start,
                    elapsed: self.elapsed.clone(),
                    unix_ms: self.unix_ms.clone(),
                },
                seed: self.dice.number(),
                limits: TurnLimits {
                    events,
                    batches,
                    deliveries,
                    promotions,
                    sends,
                    request_bytes,
                },
            };
            let wire = SimWire::new(self.net.clone(), first + number);
            let id = ShardId(number as u16);
            let shard = Shard::new(id, wire, shared.clone(), inbox, local.clone(), environment);
            Running { shard, local, wake, asleep: false, wire: first + number }
        });
        let shards = shards.collect();
        let instance = self.dice.number();
        let patience_ms = PATIENCE_MS;
        let (revoked, rooms) = (shared.revoked.clone(), shared.rooms.clone());
        let by = if self.setup.is_mesh { Numbering::Nodes } else { Numbering::Redis };
        let process = Process { instance, by, patience_ms, revoked, rooms };
        let mut bridge = Bridge::new(process, self.now_ms());
        if self.setup.spools {
            bridge.use_spool(self.disks[number].channels());
        }
        let (pipe, told) = (Pipe::new(instance), VecDeque::new());
        let mesh = self.setup.is_mesh.then(|| Box::new(self.mesh_node(number, instance, &shared)));
        Node { shards, shared, bridge, pipe, told, done: None, knows: HashSet::new(), mesh }
    }

    fn now_ms(&self) -> u64 {
        self.elapsed.get().as_millis() as u64
    }

    /// Everything that happens under this seed. Panics when a rule is broken.
    pub(crate) fn run(&mut self) {
        for _ in 0..self.setup.steps {
            let weights = STEPS.iter().map(|(_, weight, _)| weight(self)).collect::<Vec<_>>();
            let (_, _, step) = STEPS[self.dice.weighted(weights.iter().copied())];
            step(self);
            self.stalls = self.stalls.saturating_sub(1);
            self.thaw();
        }
        self.heal();
    }

    pub(crate) fn tally(&self) -> Tally {
        let told = |of: fn(&client::Told) -> u64| self.clients.iter().map(|c| of(&c.told)).sum();
        Tally {
            publications: self.truth.appended,
            deliveries: told(|told| told.messages),
            gaps: told(|told| told.gaps),
            ..self.tally.clone()
        }
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.trace.take()
    }

    fn of_redis(&self, weight: u32) -> u32 {
        if self.setup.is_mesh { 0 } else { weight }
    }

    fn of_mesh(&self, weight: u32) -> u32 {
        if self.setup.is_mesh { weight } else { 0 }
    }

    // Steps.

    fn any_node(&mut self) -> usize {
        let node = self.dice.below(self.nodes.len());
        let runs = |node: &usize| !self.nodes[*node].is_frozen();
        let running = Some(node).filter(runs).or((0..self.nodes.len()).find(runs));
        running.unwrap_or_else(|| {
            // Where all are frozen, this one goes on.
            self.wake(node);
            node
        })
    }

    fn any_turn(&mut self) {
        let node = self.any_node();
        let shard = self.dice.below(self.setup.shards);
        if self.is_awake(node, shard) || self.dice.chance(20) {
            self.turn(node, shard);
        }
    }

    fn is_awake(&mut self, node: usize, shard: usize) -> bool {
        let Running { asleep, wake, wire, .. } = &mut self.nodes[node].shards[shard];
        if *asleep
            && (self.net.borrow().sides[*wire].has_events()
                || matches!(wake.read(&mut [0; 64]), Ok(1..)))
        {
            *asleep = false;
        }
        !*asleep
    }

    fn turn(&mut self, node: usize, number: usize) {
        self.tally.turns += 1;
        let Node { shards, shared, .. } = &mut self.nodes[node];
        let Running { shard, asleep, wake, .. } = &mut shards[number];
        let waker = shared.shards.waker(ShardId(number as u16));
        waker.set_sleeping(false);
        while matches!(wake.read(&mut [0; 64]), Ok(1..)) {}
        let busy = shard.turn().expect("this wire does not fail");
        *asleep = !busy && !shard.has_mail();
        waker.set_sleeping(*asleep);
        note!(self.trace, "n{node}/s{number} turn, {}", if busy { "busy" } else { "idle" });
    }

    fn any_of(&mut self) -> Option<usize> {
        let count = self.clients.len();
        (count > 0).then(|| self.dice.below(count))
    }

    fn any_input(&mut self) {
        let Some(at) = self.any_of() else { return };
        let most = self.dice.pick(&[1, 30, 4096]);
        let conn = self.clients[at].conn;
        let mut net = self.net.borrow_mut();
        net.deliver(conn, most);
        net.tell_writable(conn, false);
        net.tell_closed(conn);
    }

    fn any_reader(&mut self) {
        if let Some(at) = self.any_of() {
            self.read(at);
        }
    }

    fn read(&mut self, at: usize) -> bool {
        let client = &mut self.clients[at];
        let bytes = std::mem::take(&mut self.net.borrow_mut().conns[client.conn].unread);
        if !bytes.is_empty() && !client.over {
            note!(self.trace, "k{at} <- {}", String::from_utf8_lossy(&bytes));
            client.received(&bytes, (&self.channels, &self.truth), &mut self.receipts);
        }
        let phase = self.net.borrow().conns[client.conn].phase;
        client.over |= matches!(phase, Phase::Ended | Phase::Refused);
        self.net.borrow_mut().tell_writable(client.conn, false) || !bytes.is_empty()
    }

    fn any_client(&mut self) {
        let Some(at) = self.any_of() else { return };
        if self.clients[at].over {
            return;
        }
        let channel = self.dice.below(self.channels.names.len());
        let name = self.channels.names[channel].clone();
        let recovers = self.dice.chance(self.setup.recovers);
        let mut out = Vec::new();
        let client = &mut self.clients[at];
        match self.dice.below(10) {
            0..4 => client.subscribe(&mut out, channel, &name, recovers),
            4 => client.unsubscribe(&mut out, channel, &name),
            5 => client.history(&mut out, &name),
            _ => {
                self.published += 1;
                let what = (self.published, self.dice.below(self.setup.filler));
                if self.setup.confirms > 0 && self.dice.chance(self.setup.confirms) {
                    let within_ms = self.dice.magnitude(1, 5000) as u64;
                    return self.ask_to_confirm(at, channel, what, within_ms);
                }
                client.publish(&mut out, &name, what, None);
            }
        }
        note!(self.trace, "k{at} -> {} bytes", out.len());
        self.net.borrow_mut().conns[self.clients[at].conn].upstream.extend(out);
    }

    fn any_confirmation(&mut self) {
        if let Some(at) = self.any_of() {
            self.confirm(at);
        }
    }

    fn connect(&mut self) {
        let number = self.clients.len();
        let (conn, node) = self.dial(number);
        note!(self.trace, "k{number}/c{conn} connects to n{node}");
        self.clients.push(Client::new(number, conn, node, self.tokens));
    }

    fn reconnect(&mut self) {
        let Some(at) = self.any_of().filter(|&at| self.clients[at].over) else { return };
        self.left.push(self.clients[at].conn);
        let (conn, node) = self.dial(at);
        note!(self.trace, "k{at}/c{conn} comes back, to n{node}");
        self.clients[at].reconnect(conn, node);
    }

    /// A connection of a client to any node.
    fn dial(&mut self, client: usize) -> (ConnId, usize) {
        let node = self.any_node();
        let admitted = Some(Box::new(self.admitted(client)));
        let shard = self.dice.below(self.setup.shards);
        let own = &self.nodes[node].shards[shard];
        let capacity = 1 << 20;
        let (conn, socket) = self.net.borrow_mut().connect(own.wire, capacity, Faults::default());
        self.net.borrow_mut().hand_over(conn);
        let shared = &self.nodes[node].shared;
        let permit = shared.admission.admit([127, 0, 0, 1].into()).expect("there is no limit");
        let credentials =
            Credentials { admitted, must_authenticate: false, number: None, refused: None };
        own.local.promote(Promoted {
            socket,
            endpoint: 0,
            dialect: Dialect::Ringfeed,
            talk: None,
            answer: Vec::new(),
            rest: Vec::new(),
            permit,
            credentials,
        });
        shared.shards.waker(ShardId(shard as u16)).wake();
        self.tally.connections += 1;
        (conn, node)
    }

    fn leave(&mut self) {
        let Some(at) = self.any_of() else { return };
        note!(self.trace, "k{at} is gone");
        self.clients[at].over = true;
        let state = &mut self.net.borrow_mut().conns[self.clients[at].conn];
        state.fate = Fate::Reset;
        state.unread.clear();
        state.upstream.clear();
    }

    fn post(&mut self) {
        self.look_at_posts();
        let node = self.any_node();
        let channel = self.dice.below(self.channels.names.len());
        let count = self.dice.pick(&[1, 1, 3, 20]);
        self.post_to(node, channel, count);
    }

    /// Publishes over the API of a node; returns the number of the last.
    fn post_to(&mut self, node: usize, channel: usize, count: usize) {
        let name = ChannelName::new(&self.channels.names[channel]).expect("a name");
        let shards = &self.nodes[node].shared.shards;
        let home = shards.home(&name);
        let (reply, answer) = oneshot::channel();
        let mut numbers = Vec::new();
        let items = (0..count as u32).map(|place| {
            self.published += 1;
            let (number, filler) = (self.published, self.dice.below(self.setup.filler));
            numbers.push(number);
            self.truth.published(number, node);
            let is_keyed = channel < self.channels.numbered && self.dice.chance(self.setup.keyed);
            if is_keyed {
                self.keyed.push((number, filler, channel));
            }
            (place, posted(&name, number, filler, is_keyed))
        });
        let items = items.collect();
        if shards.request(home, Request::PublishBatch { items, reply }).is_ok() {
            note!(self.trace, "the API of n{node} publishes {count}, up to {}", self.published);
            let clients = self.clients.iter().enumerate();
            let to = clients.filter_map(|(at, client)| Some((at, client.listens(channel)?)));
            let due = Some(Due { channel, node, numbers: Vec::new(), to: to.collect() });
            self.posts.push(Posted { channel, numbers, answer, due });
        }
    }

    /// Publishes once more what was published with a key, at any node.
    fn repeat(&mut self) {
        if self.keyed.is_empty() {
            return;
        }
        let at = self.dice.below(self.keyed.len());
        let (number, filler, channel) = self.keyed[at];
        self.truth.repeated(number);
        let node = self.any_node();
        let name = ChannelName::new(&self.channels.names[channel]).expect("a name");
        let shards = &self.nodes[node].shared.shards;
        let (reply, answer) = oneshot::channel();
        let items = vec![(0, posted(&name, number, filler, true))];
        if shards.request(shards.home(&name), Request::PublishBatch { items, reply }).is_ok() {
            note!(self.trace, "the API of n{node} publishes {number} again");
            self.posts.push(Posted { channel, numbers: vec![number], answer, due: None });
        }
    }

    /// Looks at what was answered to whoever has published over the API.
    fn look_at_posts(&mut self) {
        for mut post in std::mem::take(&mut self.posts) {
            let Ok(answers) = post.answer.try_recv() else {
                self.posts.push(post);
                continue;
            };
            let is_numbered = post.channel < self.channels.numbered;
            if let Some(due) = post.due.take().filter(|_| !is_numbered) {
                let accepted = answers.iter().filter(|(_, answer)| answer.is_ok());
                let numbers = accepted.map(|(place, _)| post.numbers[*place as usize]).collect();
                self.due.push(Due { numbers, ..due });
            }
            let name = &self.channels.names[post.channel];
            for (place, answer) in answers.into_iter().filter(|_| is_numbered) {
                let number = post.numbers[place as usize];
                match answer.map(|receipt| receipt.position) {
                    Ok(Some(Position { epoch, offset })) => {
                        let there = self.truth.at(name, epoch.0, offset.0);
                        assert_eq!(there, Some(number), "rule acks: {name} at {offset}");
                    }
                    Ok(None) => self.spooled.push(number),
                    Err(_) => {}
                }
            }
        }
    }

    fn any_order(&mut self) {
        let node = self.any_node();
        self.order(node);
    }

    /// The disk of a node does what it is told to.
    fn order(&mut self, node: usize) -> bool {
        let Node { bridge, done, .. } = &mut self.nodes[node];
        if done.is_some() {
            return false;
        }
        let Some(order) = bridge.take_spool_order() else { return false };
        note!(self.trace, "the disk of n{node} does {order:?}");
        let is_full = self.dice.chance(self.setup.disk_full);
        *done = Some(self.disks[node].serve(order, is_full, &mut self.dice));
        true
    }

    fn any_done(&mut self) {
        let node = self.any_node();
        self.disk_done(node);
    }

    fn disk_done(&mut self, node: usize) -> bool {
        let Node { bridge, done, .. } = &mut self.nodes[node];
        let Some(done) = done.take() else { return false };
        note!(self.trace, "n{node} hears of its disk: {done:?}");
        bridge.spool_done(done);
        self.pass_on(node);
        true
    }

    fn fill(&mut self) {
        self.tally.faults += 1;
        note!(self.trace, "Redis is full");
        self.redis.fill(self.dice.magnitude(1, 50) as u32);
    }

    fn clock(&mut self) {
        let step = match self.setup.is_mesh {
            true => self.dice.pick(&[1, 10, 60, 100, 100, 500, 500, 2100]),
            false => self.dice.pick(&[1, 10, 60, 100, 500, 2100, 11_000]),
        };
        self.pass(step);
    }

    fn pass(&mut self, ms: u64) {
        let before = self.elapsed.get();
        self.elapsed.set(before + Duration::from_millis(ms));
        self.unix_ms.set(self.unix_ms.get() + ms);
        let now_ms = self.now_ms();
        self.net.borrow_mut().now_ms = now_ms;
        for at in 0..self.nodes.len() {
            let second = now_ms / 1000 > before.as_millis() as u64 / 1000;
            self.pass_mesh(at, before.as_millis() as u64);
            let node = &mut self.nodes[at];
            if !node.is_frozen() {
                node.bridge.tick(now_ms);
                if second {
                    node.bridge.beat();
                }
                self.pass_on(at);
            }
            let node = &mut self.nodes[at];
            if now_ms / 100 > before.as_millis() as u64 / 100 {
                for (number, own) in node.shards.iter().enumerate() {
                    own.local.set_tick();
                    node.shared.shards.waker(ShardId(number as u16)).wake();
                }
            }
        }
    }

    /// Hands on what a bridge asks for.
    fn pass_on(&mut self, node: usize) {
        if self.setup.is_mesh {
            return self.pass_on_in_mesh(node);
        }
        let Node { bridge, pipe, .. } = &mut self.nodes[node];
        if pipe.connected {
            pipe.take(bridge.take_commands());
        }
    }

    fn any_wanted(&mut self) {
        let node = self.any_node();
        let shard = self.dice.below(self.setup.shards);
        self.wanted(node, shard);
    }

    fn wanted(&mut self, node: usize, shard: usize) -> bool {
        let Node { shared, bridge, .. } = &mut self.nodes[node];
        let Some(batch) = shared.upstream.take(ShardId(shard as u16)) else { return false };
        for what in batch {
            note!(self.trace, "n{node}/s{shard} wants {what:?}");
            bridge.wanted(what);
        }
        self.pass_on(node);
        true
    }

    fn any_command(&mut self) {
        let node = self.any_node();
        if self.stalls == 0 {
            self.command(node);
        }
    }

    fn command(&mut self, node: usize) -> bool {
        let mut pipes: Vec<&mut Pipe> = self.nodes.iter_mut().map(|node| &mut node.pipe).collect();
        let Some((number, command)) = pipes[node].asked.front() else { return false };
        note!(self.trace, "Redis does {number} of n{node}: {command:?}");
        self.redis.serve(node, &mut pipes, &mut self.truth);
        true
    }

    fn any_subscribe(&mut self) {
        let node = self.any_node();
        if self.stalls == 0 {
            self.redis.subscribe(&mut self.nodes[node].pipe);
        }
    }

    fn any_answer(&mut self) {
        let node = self.any_node();
        self.answer(node);
    }

    fn answer(&mut self, node: usize) -> bool {
        let Node { bridge, pipe, .. } = &mut self.nodes[node];
        let Some((number, reply)) = pipe.answers.pop_front() else { return false };
        note!(self.trace, "n{node} hears of {number}: {reply:?}");
        bridge.answered(number, reply);
        pipe.take(bridge.take_commands());
        true
    }

    fn any_heard(&mut self) {
        let node = self.any_node();
        self.heard(node);
    }

    fn heard(&mut self, node: usize) -> bool {
        let Node { bridge, pipe, knows, shared, .. } = &mut self.nodes[node];
        let Some(heard) = pipe.heard.pop_front() else { return false };
        note!(self.trace, "n{node} hears {heard:?}");
        if let Heard::Shared(_, bytes) | Heard::Beat(bytes) = &heard {
            knows.extend(redis::instance(bytes).map(Bytes::copy_from_slice));
        }
        let understood = match heard {
            Heard::Subscribed(channel) => {
                bridge.subscribed(&channel);
                true
            }
            Heard::Message(channel, bytes) => bridge.message(channel, &bytes),
            Heard::Shared(channel, bytes) => bridge.shared(channel, &bytes),
            Heard::Beat(bytes) => bridge.beat_heard(&bytes),
            Heard::Errand(bytes) => bridge.errand(&bytes, &shared.shards),
            Heard::Answer(bytes) => bridge.errand_answered(&bytes),
            Heard::Roll(channel, bytes) => bridge.shared(channel, &bytes),
        };
        assert!(understood, "rule frames: n{node} does not know what another has published");
        pipe.take(bridge.take_commands());
        true
    }

    fn any_told(&mut self) {
        let node = self.any_node();
        self.tell(node);
    }

    /// Hands shards what they are to be told, as far as they take it.
    fn tell(&mut self, node: usize) -> bool {
        let Node { bridge, told, shared, .. } = &mut self.nodes[node];
        for one in bridge.take_told() {
            note!(self.trace, "n{node} is told {one:?}");
            one.hand_over(&shared.shards, |to, request| told.push_back((to, request)));
        }
        let mut any = false;
        while let Some((to, request)) = told.pop_front() {
            if let Err(back) = shared.shards.request(to, request) {
                let ringfeed_engine::message::NotTaken::Full(request) = back else { break };
                told.push_front((to, request));
                break;
            }
            any = true;
        }
        any
    }

    /// A message does not come, and the subscription lives on.
    fn lose(&mut self) {
        let node = self.any_node();
        let Node { pipe: Pipe { heard, .. }, knows, .. } = &mut self.nodes[node];
        // What is said again and again is not for that; and of whom nothing was heard yet, nobody knows where it began.
        let may_be = |heard: &Heard| match heard {
            Heard::Message(..) => true,
            Heard::Shared(_, bytes) => redis::instance(bytes).is_some_and(|of| knows.contains(of)),
            Heard::Subscribed(_)
            | Heard::Beat(_)
            | Heard::Errand(_)
            | Heard::Answer(_)
            | Heard::Roll(..) => false,
        };
        if let Some(lost) = heard.iter().position(may_be) {
            note!(self.trace, "n{node} does not hear {:?}", heard[lost]);
            heard.remove(lost);
            self.tally.faults += 1;
        }
    }

    fn cut(&mut self) {
        let node = self.any_node();
        self.cut_off(node);
    }

    fn cut_off(&mut self, node: usize) {
        let now_ms = self.now_ms();
        let Node { bridge, pipe, .. } = &mut self.nodes[node];
        if pipe.connected {
            note!(self.trace, "n{node} has lost Redis");
            self.tally.faults += 1;
            pipe.cut();
            bridge.lost(now_ms);
        }
    }

    fn link(&mut self) {
        let node = self.any_node();
        if self.stalls == 0 {
            self.make_link(node);
        }
    }

    fn make_link(&mut self, node: usize) {
        let Node { bridge, pipe, .. } = &mut self.nodes[node];
        if !pipe.connected {
            note!(self.trace, "n{node} has Redis");
            pipe.connected = true;
            bridge.connected();
            pipe.take(bridge.take_commands());
        }
    }

    fn stall(&mut self) {
        self.stalls = self.dice.magnitude(10, 400) as u32;
        self.tally.faults += 1;
        note!(self.trace, "Redis stalls");
    }

    fn save(&mut self) {
        self.redis.save();
    }

    fn restart(&mut self) {
        let keeps = self.dice.pick(&[Keeps::All, Keeps::Copy, Keeps::Copy, Keeps::Nothing]);
        note!(self.trace, "Redis restarts with {keeps:?}");
        self.redis.restart(keeps);
        if !matches!(keeps, Keeps::All) {
            self.redis_has_lost();
        }
        (0..self.nodes.len()).for_each(|node| self.cut_off(node));
    }

    fn flush(&mut self) {
        note!(self.trace, "Redis is flushed");
        self.tally.faults += 1;
        self.redis.flush();
        self.redis_has_lost();
    }

    fn kill(&mut self) {
        let node = self.any_node();
        note!(self.trace, "n{node} is killed");
        self.tally.faults += 1;
        self.kill_node(node);
    }

    /// It is another process from now on.
    fn kill_node(&mut self, node: usize) {
        let wires: Vec<usize> = self.nodes[node].shards.iter().map(|own| own.wire).collect();
        for conn in self.net.borrow_mut().conns.iter_mut().filter(|c| wires.contains(&c.shard)) {
            (conn.phase, conn.socket) = (Phase::Ended, None);
        }
        for client in self.clients.iter_mut().filter(|client| client.node == node) {
            client.over = true;
        }
        self.cut_all_links(node);
        self.nodes[node] = self.node(node);
        self.is_new(node);
        // What it had accepted is gone with it.
        self.due.retain(|due| due.node != node);
        self.posts.iter_mut().filter(|post| post.node() == Some(node)).for_each(|p| p.due = None);
    }

    // The end.

    /// Faults end; then everybody has everything.
    fn heal(&mut self) {
        note!(self.trace, "faults end");
        self.stalls = 0;
        self.redis.fill(0);
        self.setup.disk_full = 0;
        if self.setup.is_mesh {
            self.heal_mesh();
        } else {
            (0..self.nodes.len()).for_each(|node| self.make_link(node));
        }
        self.settle();
        // What is found by looking from time to time is found by then.
        for _ in 0..180 {
            self.pass(180);
            self.settle();
        }
        self.check_clients();
        for channel in 0..self.channels.names.len() {
            let node = self.any_node();
            self.post_to(node, channel, 1);
        }
        self.settle();
        self.check_clients();
        self.check_users();
        self.check_presence();
        self.check_rooms();
        self.check_confirmations();
        self.check_receipts();
        self.look_at_posts();
        for Due { channel, numbers, to, node } in &self.due {
            for &(at, listens) in to {
                let client = &self.clients[at];
                let missed = numbers.iter().find(|number| !client.has(**number));
                if let (Some(number), Some(now)) = (missed, client.listens(*channel)) {
                    assert!(
                        now != listens,
                        "rule told: k{at} misses {number} of n{node}, and does not know"
                    );
                }
            }
        }
        let spooled = self.clients.iter().flat_map(|client| &client.spooled).chain(&self.spooled);
        for number in spooled {
            assert!(self.truth.has(*number), "rule spool: {number} is nowhere");
        }
        for (node, disk) in self.disks.iter().enumerate() {
            assert!(disk.is_empty(), "rule spool: something is left on the disk of n{node}");
        }
        for mut post in std::mem::take(&mut self.posts) {
            use tokio::sync::oneshot::error::TryRecvError;
            let answer = post.answer.try_recv();
            // A node that was killed answers nothing.
            let answered = !matches!(answer, Err(TryRecvError::Empty));
            assert!(answered, "rule api: a publication is not answered");
        }
        if self.setup.is_mesh {
            self.check_ends();
        }
        for node in &self.nodes {
            check_together(node.shards.iter().map(|own| &own.shard));
        }
    }

    fn check_clients(&self) {
        for client in self.clients.iter().filter(|client| !client.over) {
            client.settled(&self.channels, &self.truth);
        }
    }

    /// Lets everything under way arrive.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            for &conn in &self.left {
                moved |= self.net.borrow_mut().tell_closed(conn);
            }
            for at in 0..self.clients.len() {
                moved |= self.read(at);
                let conn = self.clients[at].conn;
                let mut net = self.net.borrow_mut();
                moved |= net.deliver(conn, 16_384) | net.tell_closed(conn);
            }
            for node in 0..self.nodes.len() {
                for shard in 0..self.setup.shards {
                    moved |= self.wanted(node, shard);
                    let wire = self.nodes[node].shards[shard].wire;
                    moved |= self.net.borrow_mut().release_slots(wire);
                    if self.is_awake(node, shard) {
                        self.turn(node, shard);
                        moved = true;
                    }
                }
                moved |= self.command(node) | self.answer(node) | self.heard(node);
                moved |= self.order(node) | self.disk_done(node);
                moved |= !self.nodes[node].pipe.subscribes.is_empty();
                self.redis.subscribe(&mut self.nodes[node].pipe);
                moved |= self.tell(node);
                moved |= self.settle_mesh(node);
            }
            if !moved {
                return;
            }
        }
        panic!("rule settles: it goes on and on");
    }
}
