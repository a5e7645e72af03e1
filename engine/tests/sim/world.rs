//! One seed's world: shards, clients, the control thread's part and the clock, all moved by one stream
//! of choices.
//!
//! To add something that happens: a function and a line in [`STEPS`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::application::Application;
use super::client::{Client, Habit, Scene};
use super::control::name_of;
use super::dice::Dice;
use super::door::Knock;
use super::judge::{Judge, Rule};
use super::ledger::Ledgers;
use super::net::{ConnId, Fate, Faults, Net, Phase, Sabotage};
use super::node::{Answer, Cluster, Outcome, Page, Row, Waiting, configuration};
use super::presence::Present;
use super::publish::Sent;
use super::setup::{Mode, Setup};
use super::talk::rooms::LOBBY;
use super::token::Mint;
use super::trace::{Trace, Tracing, note};

/// What a run was made of.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) seeds: u64,
    pub(crate) turns: u64,
    pub(crate) connections: u64,
    pub(crate) publications: u64,
    pub(crate) deliveries: u64,
    pub(crate) gaps: u64,
    pub(crate) faults: u64,
    /// Channels that went from one keeper to the next.
    pub(crate) handed_over: u64,
    pub(crate) closes: std::collections::BTreeMap<u16, u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        self.turns += other.turns;
        self.connections += other.connections;
        self.publications += other.publications;
        self.deliveries += other.deliveries;
        self.gaps += other.gaps;
        self.faults += other.faults;
        self.handed_over += other.handed_over;
        for (code, count) in &other.closes {
            *self.closes.entry(*code).or_default() += count;
        }
    }
}

/// A close that was decided is said within so many turns of its shard.
const QUIET_TURNS: u64 = 20;

/// See the module's description.
pub(crate) struct World {
    pub(super) setup: Setup,
    pub(super) dice: Dice,
    pub(super) trace: Rc<Trace>,
    pub(super) elapsed: Rc<Cell<Duration>>,
    pub(super) net: Rc<RefCell<Net>>,
    pub(super) cluster: Cluster,
    pub(super) judge: Judge,
    pub(super) clients: Vec<Client>,
    /// Client of each connection.
    pub(super) owners: Vec<usize>,
    /// Connections that are not over on both sides.
    pub(super) open: Vec<ConnId>,
    pub(super) waiting: Vec<Waiting>,
    /// Shards that get no turn for so many steps.
    pub(super) slow: Vec<u32>,
    pub(super) turns: u64,
    /// Shards that were not told of the drain yet.
    pub(super) to_drain: BTreeSet<usize>,
    /// When the drain began.
    drained_at: Option<Duration>,
    /// Newest position of each channel, as the control thread was told last.
    pub(super) newest: Vec<Option<(u64, u64)>>,
    pub(super) application: Application,
    pub(super) mint: Mint,
    pub(super) at_door: Vec<Knock>,
    /// Shards whose tick is due.
    ticks: Vec<bool>,
    pub(super) healed: bool,
    /// When faults ended.
    pub(super) healed_ms: u64,
    /// Who is on each channel, as the control thread was told last.
    pub(super) present: Vec<Option<Present>>,
    /// Rows are of now: everything is quiet.
    pub(super) listing: bool,
    /// What may be sent again.
    pub(super) sent: Vec<Sent>,
}

type Weight = fn(&World) -> u32;
type Step = fn(&mut World);

/// Name, weight, and what is done.
const STEPS: &[(&str, Weight, Step)] = &[
    ("turn", |w| w.setup.turns, World::any_turn),
    ("input arrives", |_| 350, World::any_input),
    ("a client acts", |_| 250, World::any_client),
    ("a client reads", |_| 200, World::any_reader),
    ("a socket is writable", |_| 250, World::any_writable),
    ("a socket is writable in vain", |_| 3, World::any_vain),
    ("a peer's end is noticed", |_| 120, World::any_end),
    ("a client connects", |w| if w.has_room() { 90 } else { 0 }, World::connect),
    ("a client leaves", |w| w.churn(), World::leave),
    ("the API publishes", |_| 70, World::publish),
    ("the API publishes a flood", |w| w.setup.floods, World::flood),
    ("the API publishes something again", |w| w.setup.resends, World::publish_again),
    ("the API asks", |_| 6, World::ask),
    ("the API gives up", |_| 2, World::give_up),
    ("the clock moves", |w| w.setup.clocks, World::clock),
    ("a shard is slow", |_| 3, World::slow_shard),
    ("a reader stalls or comes back", |_| 15, World::stall),
    ("slots are free again", |_| 20, World::release_slots),
    ("the application answers", |w| w.setup.answers, World::answer_some),
    ("nothing can be asked", |w| w.setup.stuffed, World::stuff_questions),
    ("the door has an answer", |w| if w.at_door.is_empty() { 0 } else { 60 }, World::answer_door),
    ("the API orders", |w| w.setup.orders, World::order),
    ("the API orders a room", |w| w.setup.room_orders, World::order_room),
    ("somebody is revoked", |w| w.setup.revocations, World::revoke),
    ("a policy is set", |w| w.setup.reconfigurations, World::set_policy),
    ("a shard is told", |w| w.tells(), World::tell),
    ("the clock on the wall is set", |w| w.setup.wall_clocks, World::set_wall_clock),
    ("drain", |w| u32::from(w.setup.drains), World::drain),
];

impl World {
    pub(crate) fn new(seed: u64, rules: u64, tracing: Tracing) -> World {
        let mut dice = Dice::new(seed);
        let setup = Setup::draw(&mut dice);
        let elapsed = Rc::new(Cell::new(Duration::ZERO));
        let trace = Rc::new(Trace::new(tracing, elapsed.clone()));
        note!(trace, "seed {seed}: {setup:#?}");
        let net = Net::new(setup.shards, dice.split(), trace.clone(), setup.adopt_faults);
        let net = Rc::new(RefCell::new(net));
        let cluster = Cluster::new(&setup, &net, &mut dice, &elapsed);
        let mut ledgers = Ledgers::new(setup.shards, setup.policies.clone());
        ledgers.most_per_user = setup.connections_per_user_max;
        ledgers.authentication_ms = setup.authentication_timeout_ms.into();
        World {
            judge: Judge::new(&setup, ledgers, elapsed.clone(), rules),
            clients: Vec::new(),
            owners: Vec::new(),
            open: Vec::new(),
            waiting: Vec::new(),
            slow: vec![0; setup.shards],
            turns: 0,
            to_drain: BTreeSet::new(),
            drained_at: None,
            newest: vec![None; setup.channels.len()],
            application: Application::default(),
            at_door: Vec::new(),
            mint: Mint::new(configuration(&setup), cluster.unix_ms.clone()),
            ticks: vec![false; setup.shards],
            healed: false,
            healed_ms: 0,
            present: Vec::new(),
            listing: false,
            sent: Vec::new(),
            setup,
            dice,
            trace,
            elapsed,
            net,
            cluster,
        }
    }

    /// Has the network do what it must not.
    pub(crate) fn sabotage(&mut self, sabotage: Sabotage) {
        self.net.borrow_mut().sabotage = Some(sabotage);
    }

    /// Everything that happens under this seed. Panics when a rule is broken.
    pub(crate) fn run(&mut self) {
        for _ in 0..self.setup.steps {
            let weights = STEPS.iter().map(|(_, weight, _)| weight(self)).collect::<Vec<_>>();
            let (_, _, step) = STEPS[self.dice.weighted(weights.iter().copied())];
            step(self);
        }
        self.heal();
        self.part();
        // What was not answered by now never will be.
        self.give_up();
        for conn in self.open.clone() {
            self.with_client(conn, |client, scene| client.ended(true, scene));
        }
        self.judge.resolve();
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            seeds: 1,
            turns: self.turns,
            connections: self.owners.len() as u64,
            publications: self.judge.publications.len() as u64,
            deliveries: self.judge.deliveries,
            gaps: self.judge.gaps,
            handed_over: 0,
            faults: self.net.borrow().faults,
            closes: self.judge.closes.clone(),
        }
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.trace.take()
    }

    // Steps.

    fn any_turn(&mut self) {
        let shard = self.dice.below(self.cluster.count());
        if self.slow[shard] > 0 {
            self.slow[shard] -= 1;
        } else if self.cluster.is_awake(shard) || self.dice.chance(20) {
            self.turn(shard);
        }
    }

    pub(super) fn any_conn(&mut self) -> Option<ConnId> {
        let count = self.open.len();
        (count > 0).then(|| self.open[self.dice.below(count)])
    }

    fn any_input(&mut self) {
        let Some(conn) = self.any_conn() else { return };
        let most = match self.dice.below(10) {
            0 => 1,
            1..4 => self.dice.range(1, 40),
            _ => self.dice.pick(&[4096, 4096, 16_384]),
        };
        self.net.borrow_mut().deliver(conn, most);
    }

    fn any_client(&mut self) {
        if let Some(conn) = self.any_conn() {
            for _ in 0..self.dice.pick(&[1, 1, 1, 2, 5]) {
                self.act(conn);
            }
        }
    }

    fn any_reader(&mut self) {
        let Some(conn) = self.any_conn() else { return };
        let client = &self.clients[self.owners[conn]];
        if client.reading && !client.habit.keeps_up() {
            let most = self.dice.magnitude(1, self.setup.sip_bytes);
            self.read(conn, most);
        }
    }

    fn any_writable(&mut self) {
        if let Some(conn) = self.any_conn() {
            self.net.borrow_mut().tell_writable(conn, false);
        }
    }

    fn any_vain(&mut self) {
        let Some(conn) = self.any_conn() else { return };
        if !self.clients[self.owners[conn]].habit.keeps_up() {
            self.net.borrow_mut().tell_writable(conn, true);
        }
    }

    fn any_end(&mut self) {
        if let Some(conn) = self.any_conn() {
            self.net.borrow_mut().tell_closed(conn);
        }
    }

    fn has_room(&self) -> bool {
        !self.judge.draining && self.open.len() < self.setup.clients
    }

    fn tells(&self) -> u32 {
        if self.setup.revocations + self.setup.reconfigurations > 0 { 40 } else { 0 }
    }

    fn churn(&self) -> u32 {
        match self.setup.mode {
            Mode::Crowd => 25,
            _ => 10,
        }
    }

    /// A client comes, or comes back.
    fn connect(&mut self) {
        let away: Vec<usize> =
            (0..self.clients.len()).filter(|&at| self.clients[at].link.is_none()).collect();
        let at = if away.is_empty() || self.dice.chance(300) {
            let number = self.clients.len();
            let client = Client::new(number, &mut self.dice, &self.setup);
            self.clients.push(client);
            number
        } else {
            away[self.dice.below(away.len())]
        };
        let client = &mut self.clients[at];
        client.reading = client.habit != Habit::Never;
        let shard = self.dice.below(self.cluster.count());
        let capacity = match client.habit {
            Habit::Attentive => usize::MAX,
            Habit::Prompt => self.dice.magnitude(256, 65_536),
            _ => self.dice.magnitude(16, 65_536),
        };
        let faults = match client.habit {
            Habit::Slow | Habit::Stalls if self.dice.chance(500) => Faults {
                short: self.dice.pick(&[0, 20, 300]),
                refused: self.dice.pick(&[0, 20, 100]),
                broken: self.dice.pick(&[0, 0, 5]),
            },
            _ => Faults::default(),
        };
        let (conn, socket) = self.net.borrow_mut().connect(shard, capacity, faults);
        self.owners.push(at);
        self.open.push(conn);
        let found = self.found(at, conn);
        self.judge.ledgers.promoted(shard, found.clone());
        let name = found.number.map(|number| name_of(shard, number));
        let client = &mut self.clients[at];
        client.connect(conn, found.clone(), name, &self.setup);
        // Of what a token names it is known.
        let by_itself = client.link.iter().flat_map(|link| link.channels.keys());
        for &channel in by_itself.filter(|channel| !found.channels.contains(channel)) {
            self.judge.rooms.is_tried(channel);
        }
        note!(
            self.trace,
            "k{at}/c{conn} connects to s{shard}: {:?} {:?}, {capacity} bytes of buffer, {found:?}",
            client.speaks,
            client.habit
        );
        let (endpoint, speaks) = (client.endpoint, client.speaks);
        let mut rest = Vec::new();
        if self.dice.chance(400) {
            self.act(conn);
            if self.dice.chance(500) {
                rest = self.net.borrow_mut().conns[conn].upstream.drain(..).collect();
            }
        }
        let knock = Knock { conn, shard, socket, endpoint, speaks, rest, found };
        if self.dice.chance(self.setup.door_waits) {
            note!(self.trace, "somebody is asked about c{conn}");
            self.at_door.push(knock);
        } else {
            self.let_in(knock);
        }
    }

    fn leave(&mut self) {
        let Some(conn) = self.any_conn() else { return };
        let how = self.dice.below(4);
        self.leave_by(conn, how);
    }

    /// Ends a connection from the client's side: by a close frame, half, or with a reset.
    pub(super) fn leave_by(&mut self, conn: ConnId, how: usize) {
        let at = self.owners[conn];
        if self.clients[at].link.as_ref().is_none_or(|link| link.conn != conn) {
            return;
        }
        if self.net.borrow().conns[conn].phase != Phase::Open {
            return;
        }
        match how {
            0 | 1 => self.with_client(conn, |client, scene| client.close(scene)),
            2 => {
                note!(self.trace, "k{at}/c{conn} half-closes");
                let state = &mut self.net.borrow_mut().conns[conn];
                if state.fate == Fate::Alive {
                    state.fate = Fate::HalfClosed;
                }
                if let Some(link) = &mut self.clients[at].link {
                    link.mute = true;
                }
            }
            _ => {
                note!(self.trace, "k{at}/c{conn} is gone");
                {
                    let state = &mut self.net.borrow_mut().conns[conn];
                    state.fate = Fate::Reset;
                    state.unread.clear();
                    state.upstream.clear();
                }
                self.with_client(conn, |client, scene| client.ended(true, scene));
            }
        }
    }

    /// A channel to publish to; where clients wander, the busy one or one that somebody is on.
    pub(super) fn any_channel(&mut self) -> usize {
        if self.setup.mode == Mode::Wander {
            if self.dice.chance(400) {
                return 0;
            }
            let conn = self.any_conn();
            let link = conn.and_then(|conn| self.clients[self.owners[conn]].link.as_ref());
            if let Some(channel) = link.and_then(|link| link.newest_channel.as_ref()) {
                return *channel;
            }
        }
        self.dice.below(self.setup.channels.len())
    }

    fn ask(&mut self) {
        let waiting = if self.dice.chance(500) {
            self.cluster.list(self.dice.below(self.cluster.count()))
        } else {
            let channel = self.dice.below(self.setup.channels.len());
            let after = self.dice.chance(500).then(|| self.dice.below(20) as u64);
            let limit = self.dice.range(1, 50) as u32;
            let name = &self.setup.channels[channel].name;
            if self.dice.chance(500) {
                self.cluster.presence(channel, name, limit)
            } else {
                self.cluster.history(channel, name, after, limit)
            }
        };
        self.waiting.extend(waiting);
    }

    /// The control thread is gone, or its callers are: nobody waits for the answers.
    fn give_up(&mut self) {
        if !self.waiting.is_empty() {
            self.waiting.clear();
            self.judge.unacknowledged.iter_mut().for_each(|count| *count += 1);
        }
    }

    fn clock(&mut self) {
        let step = if self.dice.chance(self.setup.jumps) {
            let group = self.dice.below(self.setup.groups.len());
            self.dice.pick(&[
                100,
                500,
                self.setup.groups[group].window_age_ms + 1,
                self.setup.heartbeat_interval_ms + 1,
                self.setup.heartbeat_timeout_ms + 1,
                self.setup.close_timeout_ms + 1,
                11_000,
            ])
        } else {
            self.dice.range(1, 60) as u32
        };
        self.pass(step.into());
    }

    fn slow_shard(&mut self) {
        let shard = self.dice.below(self.slow.len());
        self.slow[shard] = self.dice.magnitude(5, 200) as u32;
        note!(self.trace, "s{shard} is slow");
    }

    fn stall(&mut self) {
        let Some(conn) = self.any_conn() else { return };
        let client = &mut self.clients[self.owners[conn]];
        match client.habit {
            Habit::Stalls => client.reading = !client.reading,
            Habit::Vanished => {
                client.reading = false;
                if let Some(link) = &mut client.link {
                    link.mute = true;
                }
            }
            _ => return,
        }
        note!(self.trace, "c{conn} reads: {}", client.reading);
    }

    fn release_slots(&mut self) {
        let shard = self.dice.below(self.slow.len());
        self.net.borrow_mut().release_slots(shard);
    }

    pub(super) fn drain(&mut self) {
        if !self.judge.draining {
            note!(self.trace, "drain");
            self.judge.draining = true;
            self.drained_at = Some(self.elapsed.get());
            self.to_drain = (0..self.cluster.count()).collect();
            self.tell_drain();
        }
    }

    /// Whether the time for a drain is up: then connections may be cut.
    fn is_drain_over(&self) -> bool {
        let timeout = Duration::from_millis(self.setup.drain_timeout_ms.into());
        self.drained_at.is_some_and(|at| self.elapsed.get() >= at + timeout)
    }

    /// Tells the shards whose queues have room.
    pub(super) fn tell_drain(&mut self) {
        let World { to_drain, cluster, .. } = self;
        to_drain.retain(|&shard| !cluster.drain(shard));
    }

    // What steps are made of.

    pub(super) fn turn(&mut self, shard: usize) {
        self.turns += 1;
        self.tell_drain();
        self.judge.ledgers.begin_turn(shard);
        self.net.borrow_mut().turn = self.judge.ledgers.turns[shard];
        let busy = self.cluster.turn(shard);
        let ticked = std::mem::take(&mut self.ticks[shard]);
        self.end_turn(shard, ticked);
        note!(self.trace, "s{shard} turn, {}", if busy { "busy" } else { "idle" });
        if self.cluster.has_ended(shard) {
            self.end_shard(shard);
        }
        let fresh = std::mem::take(&mut self.net.borrow_mut().fresh);
        for conn in fresh {
            if self.clients[self.owners[conn]].habit.keeps_up() {
                self.read(conn, usize::MAX);
                self.net.borrow_mut().tell_writable(conn, false);
            }
        }
        self.poll();
    }

    /// What the shard has taken in this turn counts from now on.
    fn end_turn(&mut self, shard: usize, ticked: bool) {
        if !self.setup.access {
            return;
        }
        let now = (self.elapsed.get().as_millis() as u64, self.cluster.unix_ms.get());
        let net = self.net.borrow();
        let was_taken = |conn: ConnId| net.conns[conn].phase != Phase::Offered;
        self.judge.ledgers.end_turn(shard, now, ticked, was_taken);
        drop(net);
        self.take_questions(shard, ticked);
    }

    /// The shard's thread is over: the kernel closes what it had.
    fn end_shard(&mut self, shard: usize) {
        let mut net = self.net.borrow_mut();
        for conn in net.conns.iter_mut().filter(|conn| conn.shard == shard) {
            match conn.phase {
                Phase::Open => (conn.phase, conn.socket) = (Phase::Ended, None),
                Phase::Offered => conn.phase = Phase::Refused,
                Phase::Refused | Phase::Ended => {}
            }
        }
    }

    pub(super) fn poll(&mut self) {
        for mut waiting in std::mem::take(&mut self.waiting) {
            match waiting.poll() {
                None => self.waiting.push(waiting),
                Some(answer) => self.answered(answer),
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        const WHO: &str = "the API";
        let judge = &mut self.judge;
        match answer {
            Answer::Published(results) => {
                for Outcome { number, channel, place, duplicate } in results {
                    match place {
                        Ok((epoch, offset)) => {
                            note!(self.trace, "the API has published {number} at {offset}");
                            judge.learn(channel, epoch, offset, judge.ident(number), WHO);
                            judge.answered_once(number, duplicate);
                        }
                        Err(code) if code == "limit_reached" && self.setup.channels_max < 1000 => {}
                        Err(code) if code == "draining" && judge.draining => {}
                        Err(code) if code == "busy" && self.setup.access => {}
                        Err(code) => {
                            judge.broken(
                                Rule::Api,
                                format_args!("a publication was refused: {code}"),
                            );
                        }
                    }
                }
            }
            Answer::History(channel, Some(page)) => {
                let Page { epoch, newest, publications } = page;
                judge.claim(channel, epoch, newest, WHO);
                for (offset, payload) in publications {
                    if let Some(is) = judge.identify(&payload, WHO) {
                        judge.learn(channel, epoch, offset, is, WHO);
                    }
                }
            }
            Answer::History(_, None) => {}
            Answer::Presence(channel, present) => {
                if let Some(place) = self.present.get_mut(channel) {
                    *place = present;
                }
            }
            Answer::Rows(rows) => {
                for Row { name, epoch, newest: offset, subscribers } in rows {
                    let at = self.setup.channels.iter().position(|channel| channel.name == name);
                    let most = at.and_then(|at| {
                        judge.rooms.members_max(at, self.setup.group(at).members_max)
                    });
                    if let Some(most) = most.filter(|most| subscribers > u64::from(*most)) {
                        let what = format_args!("{name} has {subscribers} members of {most}");
                        judge.broken(Rule::MembersAtMost, what);
                    }
                    match at {
                        // Later answers may have been read by now.
                        Some(at) if !self.listing => judge.claim(at, epoch, offset, WHO),
                        Some(at) => {
                            judge.newest(at, epoch, offset);
                            self.newest[at] = Some((epoch, offset));
                        }
                        None if name.ends_with(LOBBY) => {}
                        None => judge.broken(Rule::Api, format_args!("a channel {name} is listed")),
                    }
                }
            }
            Answer::Room(channel, told) => self.told_of_room(channel, &told),
            Answer::There(..)
            | Answer::Reached(..)
            | Answer::Reconfigured(..)
            | Answer::Revoked(..) => self.ordered(answer),
            Answer::Lost => {
                if !judge.draining {
                    judge.broken(Rule::Api, format_args!("a request was dropped"));
                }
                judge.unacknowledged.iter_mut().for_each(|count| *count += 1);
            }
        }
    }

    /// Has the client of a connection do something, and hands what it says to the network.
    pub(super) fn with_client(&mut self, conn: ConnId, act: impl FnOnce(&mut Client, &mut Scene)) {
        let client = &mut self.clients[self.owners[conn]];
        if client.link.as_ref().is_none_or(|link| link.conn != conn) {
            return;
        }
        let mut net = self.net.borrow_mut();
        let state = &mut net.conns[conn];
        let silent_ms = self.elapsed.get().as_millis() as u64 - state.heard_ms;
        // A clock that jumps leaves a shard no time to say what it had decided before.
        let turns = self.judge.ledgers.turns[state.shard].saturating_sub(state.heard_turn);
        let is_quiet = state.upstream.is_empty() && state.arriving == 0 && turns >= QUIET_TURNS;
        let mut scene = Scene {
            dice: &mut self.dice,
            judge: &mut self.judge,
            setup: &self.setup,
            trace: &self.trace,
            mint: &mut self.mint,
            written: &mut state.written,
            silence_ms: silent_ms.max(state.silence_ms),
            now_ms: self.elapsed.get().as_millis() as u64,
            quiet_ms: if is_quiet { silent_ms } else { 0 },
        };
        act(client, &mut scene);
        if let Some(link) = &mut client.link
            && state.fate == Fate::Alive
        {
            state.upstream.extend(link.out.drain(..));
        }
    }

    fn act(&mut self, conn: ConnId) {
        if self.net.borrow().conns[conn].fate == Fate::Alive && !self.is_at_door(conn) {
            self.with_client(conn, |client, scene| client.act(scene));
        }
    }

    /// Reads up to so many bytes of a connection; ends it where nothing more will come.
    pub(super) fn read(&mut self, conn: ConnId, most: usize) {
        let bytes: Vec<u8> = {
            let unread = &mut self.net.borrow_mut().conns[conn].unread;
            if unread.len() <= most {
                std::mem::take(unread)
            } else {
                unread.drain(..most).collect()
            }
        };
        if !bytes.is_empty() {
            self.net.borrow_mut().activity += 1;
            self.with_client(conn, |client, scene| client.received(&bytes, scene));
        }
        self.look(conn);
    }

    /// Takes a connection off the list that is over on both sides.
    pub(super) fn look(&mut self, conn: ConnId) {
        let (over, excused) = {
            let net = self.net.borrow();
            let state = &net.conns[conn];
            let client = &self.clients[self.owners[conn]];
            let mute = client.link.as_ref().is_some_and(|link| link.mute);
            let keeps_up = client.habit.keeps_up() && !mute;
            let excused = state.fate != Fate::Alive
                || state.phase == Phase::Refused
                || (state.blocked && !keeps_up)
                || self.cluster.has_ended(state.shard) && self.is_drain_over();
            let over = match state.phase {
                Phase::Ended => state.unread.is_empty(),
                Phase::Refused => true,
                _ => false,
            };
            (over, excused)
        };
        if over {
            self.with_client(conn, |client, scene| client.ended(excused, scene));
            self.open.retain(|&other| other != conn);
            self.judge.ledgers.over(conn);
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        let before = self.elapsed.get();
        let now = before + Duration::from_millis(ms);
        self.elapsed.set(now);
        self.cluster.unix_ms.set(self.cluster.unix_ms.get() + ms);
        self.net.borrow_mut().now_ms = now.as_millis() as u64;
        if now.as_millis() / 100 > before.as_millis() / 100 {
            for shard in 0..self.cluster.count() {
                if self.healed || !self.dice.chance(100) {
                    self.cluster.tick(shard);
                    self.ticks[shard] = true;
                }
            }
        }
    }
}
