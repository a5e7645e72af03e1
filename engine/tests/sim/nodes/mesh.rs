//! What is between nodes that have no Redis: links that are made, stall, one way or both, and break with what is under way; and
//! the registry, which makes the views. It is cut off from nodes, and restarts. Nodes freeze, and go on as if nothing had been.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use ringfeed_engine::bridge::Keep;
use ringfeed_engine::mesh::frame::Frame;
use ringfeed_engine::mesh::store::Event;
use ringfeed_engine::mesh::{Mesh, Own};
use ringfeed_engine::registry::names::NodeId;
use ringfeed_engine::registry::views::{Instance, Member, View, Views};
use ringfeed_engine::shard::Shared;
use ringfeed_protocol::ChannelName;

use super::super::trace::note;
use super::{PATIENCE_MS, World};

/// A node that the registry has not heard of for so long is not there.
const TIMEOUT_MS: u64 = 6000;
/// What the registry says holds for so long.
const LEASE_MS: u64 = 4000;
/// The registry has run for so long at the beginning.
const BEGAN_MS: u64 = 10_000;

/// What a node has of the mesh.
pub(super) struct MeshNode {
    pub(super) mesh: Mesh,
    instance: Instance,
    /// It has said that it is about to go.
    leaving: bool,
    /// It does nothing for so many steps.
    pub(super) frozen: u32,
    /// What the registry has answered and is not heard yet, and when it was asked.
    answers: VecDeque<(u64, View, Vec<Instance>)>,
    /// The registry has answered with an earlier view than it goes by.
    is_ahead: bool,
}

/// One that the registry has heard of.
struct Known {
    instance: Instance,
    heard_ms: u64,
    leaving: bool,
}

/// See the module's description.
pub(super) struct Fabric {
    /// Frames from one node to another, between those that are linked.
    ways: BTreeMap<(usize, usize), VecDeque<Bytes>>,
    /// Ways on which nothing arrives until the link is broken.
    stalled: BTreeSet<(usize, usize)>,
    views: Views,
    known: BTreeMap<usize, Known>,
    /// Nodes that do not reach it.
    cut_off: BTreeSet<usize>,
}

impl Default for Fabric {
    fn default() -> Fabric {
        Fabric {
            ways: BTreeMap::new(),
            stalled: BTreeSet::new(),
            views: Views::new(View::default(), TIMEOUT_MS, 0),
            known: BTreeMap::new(),
            cut_off: BTreeSet::new(),
        }
    }
}

impl Fabric {
    /// The registry takes a node for gone.
    fn forget(&mut self, node: usize) {
        self.known.remove(&node);
        self.views.is_over(&id_of(node));
    }
}

/// What the registry calls a node.
fn id_of(node: usize) -> NodeId {
    format!("n{node}").parse().expect("an id")
}

impl World {
    /// A process that knows of nobody.
    pub(super) fn mesh_node(&mut self, _: usize, instance: u64, shared: &Shared) -> MeshNode {
        let size = self.setup.history_size;
        let own = Own {
            instance: Instance(instance),
            seed: self.dice.number(),
            placing_key: [1, 2],
            patience_ms: PATIENCE_MS,
            channels_max: 1000,
            bytes_max: usize::MAX,
            handed_bytes: self.dice.pick(&[1, 1000, usize::MAX]),
            rules: Box::new(move |_| Keep {
                size,
                bytes: 0,
                age_ms: 0,
                idle_ms: u64::MAX,
                keys_ms: u32::MAX,
            }),
            revoked: shared.revoked.clone(),
            rooms: shared.rooms.clone(),
        };
        let mut mesh = Mesh::new(own, self.now_ms());
        mesh.store_mut().watch();
        MeshNode {
            mesh,
            instance: Instance(instance),
            leaving: false,
            frozen: 0,
            answers: VecDeque::new(),
            is_ahead: false,
        }
    }

    fn own(&mut self, node: usize) -> &mut MeshNode {
        self.nodes[node].mesh.as_mut().expect("there is no Redis")
    }

    /// As the thread does: what it is told, it is told now, also where it has stood still.
    fn mesh_now(&mut self, node: usize) -> &mut Mesh {
        let now_ms = self.now_ms();
        let mesh = &mut self.own(node).mesh;
        mesh.pass(now_ms);
        mesh
    }

    fn instance(&self, node: usize) -> Instance {
        self.nodes[node].mesh.as_ref().expect("there is no Redis").instance
    }

    /// Hands on between a bridge and its mesh until there is nothing left to hand on.
    pub(super) fn pass_on_in_mesh(&mut self, node: usize) {
        let now_ms = self.now_ms();
        loop {
            let own = &mut self.nodes[node];
            let mesh = &mut own.mesh.as_mut().expect("there is no Redis").mesh;
            let mut any = false;
            for (number, command) in own.bridge.take_commands() {
                note!(self.trace, "n{node} asks {number}: {command:?}");
                mesh.command(number, command);
                any = true;
            }
            while let Some(said) = mesh.take_said() {
                note!(self.trace, "n{node} is told {said:?}");
                let known = said.hand_over(&mut own.bridge, &own.shared.shards, now_ms);
                assert!(known, "rule frames: n{node} does not know what another has published");
                any = true;
            }
            if !any {
                break;
            }
        }
        for event in self.own(node).mesh.store_mut().take_events() {
            match event {
                Event::Began(channel, epoch) => {
                    self.truth.begin(&channel, epoch.0, None);
                    self.truth.keep_from(&channel, 1);
                }
                Event::Appended(channel, at, item) => {
                    let newest = self.truth.newest(&channel).map(|(epoch, _)| epoch);
                    assert_eq!(
                        newest,
                        Some(at.epoch.0),
                        "rule one-keeper: n{node} keeps {channel} as another does"
                    );
                    self.truth.append(&channel, at.epoch.0, at.offset.0, &item);
                }
                Event::KeptFrom(channel, offset) => self.truth.keep_from(&channel, offset),
                Event::TakenOver(channel, at, from) => {
                    assert_eq!(
                        self.truth.newest(&channel),
                        Some((at.epoch.0, at.offset.0)),
                        "rule handed-over: n{node} goes on with {channel} where nobody else has"
                    );
                    self.truth.keep_from(&channel, from);
                    self.tally.handed_over += 1;
                }
            }
        }
        // Not all at once: what happens in between is what is looked for.
        if self.dice.chance(500) {
            self.own(node).mesh.give_lives(|_| true);
        }
        let frames: Vec<(Instance, Frame)> = self.own(node).mesh.take_frames().collect();
        for (to, frame) in frames {
            let Some(to) = (0..self.nodes.len()).find(|other| self.instance(*other) == to) else {
                continue;
            };
            if let Some(way) = self.fabric.ways.get_mut(&(node, to)) {
                let mut bytes = BytesMut::new();
                frame.write(&mut bytes);
                way.push_back(bytes.freeze().slice(4..));
            }
        }
    }

    pub(super) fn any_frame(&mut self) {
        let (from, to) = (self.dice.below(self.nodes.len()), self.any_node());
        if !self.fabric.stalled.contains(&(from, to)) {
            self.frame(from, to);
        }
    }

    fn frame(&mut self, from: usize, to: usize) -> bool {
        let way = self.fabric.ways.get_mut(&(from, to));
        let Some(bytes) = way.and_then(VecDeque::pop_front) else { return false };
        let frame = Frame::read(bytes).expect("what was written");
        note!(self.trace, "n{to} hears n{from}: {frame:?}");
        let instance = self.instance(from);
        self.mesh_now(to).heard(instance, frame);
        self.pass_on(to);
        true
    }

    pub(super) fn any_linked(&mut self) {
        let (a, b) = (self.any_node(), self.any_node());
        self.make_node_link(a, b);
    }

    fn make_node_link(&mut self, a: usize, b: usize) {
        if a == b || self.fabric.ways.contains_key(&(a, b)) {
            return;
        }
        note!(self.trace, "n{a} and n{b} are linked");
        for (own, other) in [(a, b), (b, a)] {
            self.fabric.ways.insert((own, other), VecDeque::new());
        }
        for (own, other) in [(a, b), (b, a)] {
            let instance = self.instance(other);
            self.mesh_now(own).opened(instance);
            self.pass_on(own);
        }
    }

    pub(super) fn break_link(&mut self) {
        let (a, b) = (self.dice.below(self.nodes.len()), self.dice.below(self.nodes.len()));
        self.cut_link(a, b);
    }

    fn cut_link(&mut self, a: usize, b: usize) {
        if self.fabric.ways.remove(&(a, b)).is_none() {
            return;
        }
        note!(self.trace, "n{a} and n{b} are not linked any more");
        self.tally.faults += 1;
        self.fabric.ways.remove(&(b, a));
        for (own, other) in [(a, b), (b, a)] {
            self.fabric.stalled.remove(&(own, other));
            let instance = self.instance(other);
            self.mesh_now(own).closed(instance);
            self.pass_on(own);
        }
    }

    /// A process has gone, and its links with it.
    pub(super) fn cut_all_links(&mut self, node: usize) {
        (0..self.nodes.len()).for_each(|other| self.cut_link(node, other));
    }

    /// One way or both, nothing arrives any more, and nobody is told.
    pub(super) fn stall_link(&mut self) {
        let (a, b) = (self.dice.below(self.nodes.len()), self.dice.below(self.nodes.len()));
        if a != b && self.fabric.ways.contains_key(&(a, b)) {
            note!(self.trace, "nothing comes from n{a} to n{b}");
            self.tally.faults += 1;
            self.fabric.stalled.insert((a, b));
            if self.dice.chance(500) {
                self.fabric.stalled.insert((b, a));
            }
        }
    }

    pub(super) fn any_registered(&mut self) {
        let node = self.any_node();
        self.ask_registry(node);
    }

    /// A node tells the registry that it lives, which view it goes by, and whom it hears.
    fn ask_registry(&mut self, node: usize) {
        if self.fabric.cut_off.contains(&node) {
            return;
        }
        let now_ms = self.now_ms();
        let own = self.own(node);
        let (instance, number, leaving) = (own.instance, own.mesh.view().number, own.leaving);
        let moving = own.mesh.is_moving();
        let knows = own.is_ahead.then(|| own.mesh.view().clone());
        let hears: Vec<Instance> = own.mesh.supporters().collect();
        let fabric = &mut self.fabric;
        let known = Known { instance, heard_ms: now_ms, leaving };
        if fabric.known.insert(node, known).is_none_or(|before| before.instance != instance) {
            fabric.views.is_over(&id_of(node));
        }
        for known in fabric.known.values_mut().filter(|known| hears.contains(&known.instance)) {
            known.heard_ms = now_ms;
        }
        fabric.views.goes_by(instance, number);
        fabric.views.moves(instance, moving);
        let is_live = |known: &Known| now_ms.saturating_sub(known.heard_ms) <= TIMEOUT_MS;
        let live = fabric.known.iter().filter(|(_, known)| is_live(known));
        let live = live.map(|(node, known)| Member {
            id: id_of(*node),
            instance: known.instance,
            peer: "127.0.0.1:1".parse().expect("an address"),
            leaving: known.leaving,
        });
        let live: Vec<Member> = live.collect();
        let may_run = |own| fabric.known.values().any(|known| known.instance == own);
        let number = fabric.views.view().number + 1;
        if let Some(view) = knows.filter(|view| fabric.views.is_later(view)) {
            note!(self.trace, "the registry is told of {view:?}");
            let known = &fabric.known;
            let is_over = |of: &Member| {
                let node = of.id.as_str()[1..].parse::<usize>().expect("a number");
                known.get(&node).is_some_and(|own| own.instance != of.instance)
            };
            fabric.views.take_over(view, is_over, now_ms + BEGAN_MS);
        } else if let Some(view) = fabric.views.next(&live, may_run, number, now_ms + BEGAN_MS) {
            note!(self.trace, "the registry makes {view:?}");
            fabric.views.set(view, now_ms + BEGAN_MS);
        }
        let (view, go_by) = (fabric.views.view().clone(), fabric.views.who_goes_by_it());
        self.own(node).answers.push_back((now_ms, view, go_by));
    }

    pub(super) fn any_told_by_registry(&mut self) {
        let node = self.any_node();
        self.told_by_registry(node);
    }

    fn told_by_registry(&mut self, node: usize) -> bool {
        let answer = self.own(node).answers.pop_front();
        let Some((asked_ms, view, go_by)) = answer else { return false };
        let number = view.number;
        let mesh = self.mesh_now(node);
        let is_ahead = number < mesh.view().number;
        mesh.adopt(view);
        mesh.know(number, &go_by);
        mesh.lease(number, asked_ms, LEASE_MS);
        self.own(node).is_ahead = is_ahead;
        note!(self.trace, "n{node} is told of view {number} by the registry");
        self.pass_on(node);
        true
    }

    pub(super) fn lose_registry(&mut self) {
        let node = self.dice.below(self.nodes.len());
        self.tally.faults += 1;
        if !self.fabric.cut_off.remove(&node) {
            note!(self.trace, "n{node} does not reach the registry");
            self.fabric.cut_off.insert(node);
            self.own(node).answers.clear();
        }
    }

    /// It knows the last view, and nobody is taken for gone until all have had time to be heard of. What comes
    /// of a lost file is not judged: with somebody cut off at the same time, two may keep a channel.
    pub(super) fn restart_registry(&mut self) {
        note!(self.trace, "the registry restarts");
        let now_ms = self.now_ms();
        let fabric = &mut self.fabric;
        fabric.views = Views::new(fabric.views.view().clone(), TIMEOUT_MS, now_ms + BEGAN_MS);
        fabric.known.values_mut().for_each(|known| known.heard_ms = now_ms);
        for node in &mut self.nodes {
            node.mesh.as_mut().expect("there is no Redis").answers.clear();
        }
    }

    /// An operator says that a node is gone, and it is not.
    pub(super) fn let_go(&mut self) {
        let node = self.dice.below(self.nodes.len());
        note!(self.trace, "the registry lets n{node} go");
        self.tally.faults += 1;
        self.fabric.forget(node);
    }

    /// A node is told to end: it says so, and goes once others keep its channels. Some do not wait.
    pub(super) fn let_end(&mut self) {
        let node = self.any_node();
        let own = self.own(node);
        if !own.leaving {
            own.leaving = true;
            note!(self.trace, "n{node} is to end");
            self.ask_registry(node);
        } else if own.mesh.is_relieved() || self.dice.chance(50) {
            self.end(node);
        }
    }

    fn end(&mut self, node: usize) {
        note!(self.trace, "n{node} ends");
        let instance = self.instance(node);
        self.kill_node(node);
        if !self.fabric.cut_off.contains(&node) {
            self.fabric.forget(node);
            self.fabric.views.leaves(instance);
        }
    }

    /// Where nothing fails, nothing is lost with a node that ends, nor with one that comes.
    pub(super) fn check_ends(&mut self) {
        let goes = self.dice.below(self.nodes.len());
        let stays = |(at, node): (usize, &super::Node)| {
            at != goes && node.mesh.as_ref().is_some_and(|own| !own.leaving)
        };
        let Some(stays) = self.nodes.iter().enumerate().position(stays) else { return };
        self.own(goes).leaving = true;
        self.ask_registry(goes);
        // It goes in the very moment when it can.
        for _ in 0..10_000 {
            if self.own(goes).mesh.is_relieved() {
                break;
            }
            match self.dice.below(3) {
                0 => self.any_frame(),
                1 => self.any_told_by_registry(),
                _ => self.pass(10),
            }
        }
        let is_relieved = self.own(goes).mesh.is_relieved();
        assert!(is_relieved, "rule ends: n{goes} does not get rid of its channels");
        let newest = |world: &World| -> Vec<Option<(u64, u64)>> {
            let nodes = world.nodes.iter().filter_map(|node| node.mesh.as_ref());
            // A life may have ended with a node, and nobody has asked for the channel since.
            let lives = |name: &str| {
                let name = ChannelName::new(name).expect("a name");
                nodes.clone().any(|own| own.mesh.store().has(&name))
            };
            let names = world.channels.names.iter();
            names.map(|name| world.truth.newest(name).filter(|_| lives(name))).collect()
        };
        let before = newest(self);
        self.end(goes);
        self.settle_for(20);
        self.link_all();
        self.settle_for(60);
        for channel in 0..self.channels.numbered {
            self.post_to(stays, channel, 1);
            self.settle();
        }
        let names = self.channels.names.iter();
        for ((before, now), name) in before.iter().zip(newest(self)).zip(names) {
            if let Some((epoch, offset)) = before.filter(|(_, offset)| *offset > 0) {
                let next = Some((epoch, offset + 1));
                assert_eq!(now, next, "rule ends: {name} begins again without need");
            }
        }
    }

    /// Lets so many tenths of a second go by, in which everything arrives.
    fn settle_for(&mut self, tenths: usize) {
        for _ in 0..tenths {
            self.pass(100);
            self.settle();
        }
    }

    pub(super) fn freeze(&mut self) {
        let node = self.any_node();
        let steps = self.dice.magnitude(10, 800) as u32;
        self.own(node).frozen = steps;
        self.tally.faults += 1;
        note!(self.trace, "n{node} freezes");
    }

    /// Who was frozen long enough goes on.
    pub(super) fn thaw(&mut self) {
        if !self.setup.is_mesh {
            return;
        }
        for node in 0..self.nodes.len() {
            let own = self.own(node);
            if own.frozen > 0 {
                own.frozen -= 1;
                if own.frozen == 0 {
                    self.wake(node);
                }
            }
        }
    }

    pub(super) fn wake(&mut self, node: usize) {
        note!(self.trace, "n{node} goes on");
        let now_ms = self.now_ms();
        self.own(node).frozen = 0;
        self.own(node).mesh.tick(now_ms);
        self.nodes[node].bridge.tick(now_ms);
        self.pass_on(node);
    }

    /// Time has passed for the mesh of a node.
    pub(super) fn pass_mesh(&mut self, node: usize, before_ms: u64) {
        if !self.setup.is_mesh || self.nodes[node].is_frozen() {
            return;
        }
        let now_ms = self.now_ms();
        let mesh = &mut self.own(node).mesh;
        mesh.tick(now_ms);
        if now_ms / 500 > before_ms / 500 {
            mesh.beat();
        }
        if now_ms / 1000 > before_ms / 1000 {
            self.ask_registry(node);
        }
    }

    /// Everybody reaches everybody.
    pub(super) fn heal_mesh(&mut self) {
        self.fabric.cut_off.clear();
        let stalled: Vec<_> = self.fabric.stalled.iter().copied().collect();
        stalled.into_iter().for_each(|(a, b)| self.cut_link(a, b));
        for node in 0..self.nodes.len() {
            self.wake(node);
        }
        self.link_all();
    }

    pub(super) fn link_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.make_node_link(a, b);
            }
        }
    }

    /// Lets everything arrive that is on its way to a node.
    pub(super) fn settle_mesh(&mut self, node: usize) -> bool {
        if !self.setup.is_mesh {
            return false;
        }
        let mut moved = false;
        for from in 0..self.nodes.len() {
            moved |= self.frame(from, node);
        }
        moved | self.told_by_registry(node)
    }
}
