//! The mesh: nodes that share channels without a broker. What Redis does for the bridge, the nodes do for one another.
//!
//! Each numbered channel has a *keeper*, the node that gives its publications their offsets and remembers them ([`store`]): of
//! the members of the view ([`crate::registry::views`]) the one whose id and the channel's name give the highest number
//! (rendezvous hashing), so that one node less or more moves no channels but its own. All others follow, the keeper's own shards
//! among them, with the code that follows Redis.
//!
//! It is sans-IO. The bridge gives it commands ([`Mesh::command`]), whoever holds the links tells it when they come and go and
//! what was said on them ([`Mesh::opened`], [`Mesh::closed`], [`Mesh::heard`]), whoever asks the registry what that says
//! ([`Mesh::adopt`], [`Mesh::lease`]). It says what to send ([`Mesh::take_frames`]) and what to tell the bridge
//! ([`Mesh::take_said`]). So the simulator drives the very same code.
//!
//! What is asked of a keeper that cannot be reached waits, and is asked of the next one; a keeper knows again what it is asked
//! twice. What was published meanwhile is asked for, as with Redis ([`Said::Interrupted`]).

mod figures;
pub mod frame;
mod handshake;
mod keeping;
mod link;
mod placing;
pub mod store;
mod thread;
mod tls;
pub mod transfer;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use ringfeed_protocol::ChannelName;
use smallvec::SmallVec;

use crate::bridge::item;
use crate::bridge::{Bridge, Command, Failed, Keep, Read, Reply, To};
use crate::message::{Followed, Kept, Numbered, Shards};
use crate::registry::views::{Instance, View};
use crate::revoked::RevokedTable;
use crate::rooms::RoomTable;
pub use figures::Figures;
use frame::{Alive, Answer, Asked, Frame, Topic};
use keeping::Held;
use placing::Placing;
use store::{Appended, Stands, Store};
pub use thread::MeshThread;
use transfer::Transfers;

/// What a node has said lends strength for so long.
const SUPPORT_MS: u64 = 2000;
/// Who hears nothing of the time for so long has stood still.
const STOOD_STILL_MS: u64 = 1000;
/// Bytes that a member which no link leads to yet is told later, with 64 for each publication.
const UNLINKED_BYTES_MAX: usize = 8 << 20;
/// Channels in one frame.
const FOLLOW_CHANNELS_MAX: usize = 512;

/// By which rule a channel is kept.
pub type Rules = Box<dyn Fn(&str) -> Keep + Send>;

/// What a mesh is made of.
pub struct Own {
    /// This process.
    pub instance: Instance,
    /// Another one in each process: what is drawn, is drawn from it.
    pub seed: u64,
    /// What channels are placed by: the same on all nodes.
    pub placing_key: [u64; 2],
    /// How long what needs a keeper waits for it.
    pub patience_ms: u64,
    /// Channels that are kept here at most, …
    pub channels_max: usize,
    /// … and bytes of publications in their histories.
    pub bytes_max: usize,
    /// Bytes that are handed over to another keeper at once.
    pub handed_bytes: usize,
    /// By which rules.
    pub rules: Rules,
    /// Who is revoked: nodes tell one another as they meet.
    pub revoked: Arc<RevokedTable>,
    /// Rooms that were made over the API: the same.
    pub rooms: Arc<RoomTable>,
}

/// Another node, as long as the link to it is there.
#[derive(Debug, Default)]
struct Peer {
    /// By which view it goes, as it has said last.
    view: u64,
    /// When it said so, by its clock.
    at_ms: u64,
    /// Until then it knows this node alive.
    supports_until_ms: u64,
    /// The view that it was sent.
    sent_view: u64,
    /// What is asked of each other can be answered: both go by the same view.
    agrees: bool,
}

/// What is published on bridged channels, as long as no link leads to a member: the oldest is given up, and its beats tell it so.
#[derive(Debug, Default)]
struct Unlinked {
    shared: VecDeque<(ChannelName, Bytes)>,
    bytes: usize,
}

impl Unlinked {
    fn push(&mut self, channel: ChannelName, bytes: Bytes) {
        let size = |bytes: &Bytes| bytes.len() + 64;
        self.bytes += size(&bytes);
        self.shared.push_back((channel, bytes));
        while self.bytes > UNLINKED_BYTES_MAX
            && let Some((_, oldest)) = self.shared.pop_front()
        {
            self.bytes -= size(&oldest);
        }
    }
}

/// A command that is not answered yet.
#[derive(Debug)]
struct Pending {
    asked: Asked,
    /// It was sent there.
    sent_to: Option<Instance>,
    since_ms: u64,
}

/// What the bridge is to be told, in order.
#[derive(Debug)]
pub enum Said {
    /// The node is one of several that go by the same view, and can do what is asked of it.
    Up,
    /// It is not any more.
    Lost,
    /// The answer to a command.
    Answered(u64, Result<Reply, Failed>),
    /// A channel is followed.
    Subscribed(ChannelName),
    /// Something may be missing of a channel that is followed.
    Interrupted(ChannelName),
    /// A node was met that may not know this one.
    Met(Instance),
    /// A message.
    Told(Topic, Bytes),
}

impl Said {
    /// Tells the bridge. Whether it is what ringfeed says.
    pub fn hand_over(self, bridge: &mut Bridge, shards: &Shards, now_ms: u64) -> bool {
        match self {
            Said::Up => bridge.connected(),
            Said::Lost => bridge.lost(now_ms),
            Said::Answered(number, reply) => bridge.answered(number, reply),
            Said::Subscribed(channel) => bridge.subscribed(&channel),
            Said::Interrupted(channel) => bridge.interrupted(&channel),
            Said::Met(instance) => bridge.met(instance.0),
            Said::Told(topic, bytes) => {
                return match topic {
                    Topic::Numbered(channel) => bridge.message(channel, &bytes),
                    Topic::Shared(channel) => bridge.shared(channel, &bytes),
                    Topic::Beat => bridge.beat_heard(&bytes),
                    Topic::Errand => bridge.errand(&bytes, shards),
                    Topic::Answer => bridge.errand_answered(&bytes),
                };
            }
        }
        true
    }
}

/// See the module's description.
pub struct Mesh {
    own: Own,
    now_ms: u64,
    view: View,
    placing: Placing,
    /// The registry has heard of this node, going by this view, so lately that no other view was made.
    leased_until_ms: u64,
    /// It can do what it is asked.
    up: bool,
    peers: BTreeMap<Instance, Peer>,
    /// Members that are not among them.
    unlinked: BTreeMap<Instance, Unlinked>,
    /// Those of the view before that are members still and are not known to go by this one …
    awaited: BTreeSet<Instance>,
    /// Until then channels that this node did not keep before are not.
    begins_ms: Option<u64>,
    /// Not before this, whatever the view says: an earlier one has said so.
    waits_ms: u64,
    /// Who kept what by the view before, if this node has gone by that.
    before: Option<Placing>,
    /// Whether it is up, whether channels are kept that were not before, and how many hand over some, as when it was last looked
    /// what waits.
    kept: (bool, bool, usize),
    store: Store,
    /// What goes from keepers by the view before to those by this one.
    transfers: Transfers,
    /// What others, or this node, have asked of it and waits until it keeps the channel.
    held: BTreeMap<ChannelName, Vec<Held>>,
    /// What the bridge has subscribed to.
    followed: BTreeSet<ChannelName>,
    pending: BTreeMap<u64, Pending>,
    /// Those among these that ask where a channel stands.
    reads: HashMap<ChannelName, SmallVec<[u64; 1]>, RandomState>,
    /// Batches of publications among these, and their bytes.
    pending_appends: usize,
    pending_bytes: usize,
    frames: Vec<(Instance, Frame)>,
    said: VecDeque<Said>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Mesh");
        shown.field("instance", &self.own.instance).field("view", &self.view.number);
        shown.field("up", &self.up).field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Of a process that knows of no view yet.
    pub fn new(own: Own, now_ms: u64) -> Mesh {
        Mesh {
            now_ms,
            view: View::default(),
            placing: Placing::default(),
            leased_until_ms: 0,
            up: false,
            peers: BTreeMap::new(),
            unlinked: BTreeMap::new(),
            awaited: BTreeSet::new(),
            begins_ms: None,
            waits_ms: 0,
            before: None,
            kept: (false, false, 0),
            store: Store::new(own.seed),
            transfers: Transfers::default(),
            held: BTreeMap::new(),
            followed: BTreeSet::new(),
            pending: BTreeMap::new(),
            reads: HashMap::default(),
            pending_appends: 0,
            pending_bytes: 0,
            frames: Vec::new(),
            said: VecDeque::new(),
            own,
        }
    }

    /// What is to be sent, in order.
    pub fn take_frames(&mut self) -> std::vec::Drain<'_, (Instance, Frame)> {
        self.frames.drain(..)
    }

    /// The next thing that the bridge is to be told.
    pub fn take_said(&mut self) -> Option<Said> {
        self.said.pop_front()
    }

    /// The view that this node goes by.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether it can do what it is asked.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Nodes that it is linked with and that go by the same view.
    pub fn agreeing(&self) -> usize {
        self.peers.values().filter(|peer| peer.agrees).count()
    }

    /// The nodes that have been heard of lately and have heard this one.
    pub fn supporters(&self) -> impl Iterator<Item = Instance> + '_ {
        let supports = |peer: &Peer| peer.supports_until_ms > self.now_ms;
        self.peers.iter().filter(move |(_, peer)| supports(peer)).map(|(own, _)| *own)
    }

    /// What it keeps for all.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The same, to watch it.
    pub fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Bytes of publications that wait for keepers.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Publications' batches that wait for keepers.
    pub fn pending(&self) -> usize {
        self.pending_appends
    }

    fn is_keeper(&self, channel: &str) -> bool {
        self.keeper(channel) == Some(self.own.instance)
    }

    fn keeper(&self, channel: &str) -> Option<Instance> {
        self.placing.keeper(channel)
    }

    /// The bridge wants something.
    pub fn command(&mut self, number: u64, command: Command) {
        match command {
            Command::Subscribe(channels) => self.follow(channels),
            Command::Unsubscribe(channel) => {
                self.followed.remove(&channel);
                self.forget_reads(&channel);
                match self.keeper(&channel) {
                    Some(keeper) if keeper == self.own.instance => {
                        self.asked(keeper, 0, Asked::Unfollow(channel));
                    }
                    Some(keeper) if self.agrees(keeper) => {
                        self.send(keeper, Frame::Ask(0, Asked::Unfollow(channel)));
                    }
                    _ => {}
                }
            }
            Command::Append(append) => self.pend(number, Asked::Append(append)),
            Command::Read(read) => self.pend(number, Asked::Read(read)),
            Command::Message(To::Followers(channel), bytes) => {
                self.pend(number, Asked::PassOn(channel, bytes));
            }
            Command::Message(To::Process(instance), bytes) => {
                let to = Instance(instance);
                let there = self.peers.contains_key(&to);
                if there {
                    self.send(to, Frame::Told(Topic::Answer, bytes));
                }
                self.heard_by(number, usize::from(there));
            }
            Command::Message(To::Beats, bytes) => {
                self.tell_all(&Topic::Beat, &bytes);
                self.said.push_back(Said::Told(Topic::Beat, bytes));
            }
            Command::Message(To::Errands, bytes) | Command::Keep { errand: bytes, .. } => {
                let others = self.tell_all(&Topic::Errand, &bytes);
                let linked = |of: Instance| of == self.own.instance || self.peers.contains_key(&of);
                match self.view.members.iter().all(|member| linked(member.instance)) {
                    // The bridge leaves itself out.
                    true => self.heard_by(number, others + 1),
                    false => self.said.push_back(Said::Answered(number, Err(Failed::Unknown))),
                }
            }
            Command::Message(To::Sharers(channel), bytes) => {
                let others = self.tell_all(&Topic::Shared(channel), &bytes);
                self.heard_by(number, others + 1);
            }
            Command::Share { channel, bytes } => self.share(channel, bytes),
            // Everybody knows what this node knows: whom it meets it tells, and is told by.
            Command::AllKept { .. } => {
                let known = Reply::Kept(self.known(), None);
                self.said.push_back(Said::Answered(number, Ok(known)));
            }
        }
    }

    fn heard_by(&mut self, number: u64, count: usize) {
        self.said.push_back(Said::Answered(number, Ok(Reply::HeardBy(count))));
    }

    /// Tells all nodes that are linked; returns how many these are.
    fn tell_all(&mut self, topic: &Topic, bytes: &Bytes) -> usize {
        for peer in self.peers.keys() {
            self.frames.push((*peer, Frame::Told(topic.clone(), bytes.clone())));
        }
        self.peers.len()
    }

    /// Tells all members of a publication, those that cannot be reached once they can be.
    fn share(&mut self, channel: ChannelName, bytes: Bytes) {
        let is_far = |of: &Instance| *of != self.own.instance && !self.peers.contains_key(of);
        let members = self.view.members.iter().map(|member| member.instance);
        for member in members.filter(is_far) {
            self.unlinked.entry(member).or_default().push(channel.clone(), bytes.clone());
        }
        self.tell_all(&Topic::Shared(channel), &bytes);
    }

    fn send(&mut self, to: Instance, frame: Frame) {
        self.frames.push((to, frame));
    }

    fn agrees(&self, peer: Instance) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.agrees)
    }

    fn follow(&mut self, channels: Vec<ChannelName>) {
        let mut to: BTreeMap<Instance, Vec<ChannelName>> = BTreeMap::new();
        for channel in channels {
            if let Some(keeper) = self.keeper(&channel) {
                to.entry(keeper).or_default().push(channel.clone());
            }
            self.followed.insert(channel.clone());
            // What is asked of its keeper comes there behind this.
            self.said.push_back(Said::Subscribed(channel));
        }
        to.into_iter().for_each(|(keeper, channels)| self.follow_at(keeper, &channels));
    }

    fn follow_at(&mut self, keeper: Instance, channels: &[ChannelName]) {
        for channels in channels.chunks(FOLLOW_CHANNELS_MAX) {
            let asked = Asked::Follow(channels.to_vec());
            if keeper == self.own.instance {
                self.asked(keeper, 0, asked);
            } else if self.agrees(keeper) {
                self.send(keeper, Frame::Ask(0, asked));
            }
        }
    }

    /// Nobody wants to know any more where a channel stands.
    fn forget_reads(&mut self, channel: &ChannelName) {
        for number in self.reads.remove(channel).unwrap_or_default() {
            self.take_pending(number);
            self.said.push_back(Said::Answered(number, Err(Failed::Refused)));
        }
    }

    fn take_pending(&mut self, number: u64) -> Option<Pending> {
        let pending = self.pending.remove(&number)?;
        self.pending_bytes -= pending.asked.bytes();
        self.pending_appends -= usize::from(matches!(pending.asked, Asked::Append(_)));
        if let Asked::Read(Read { channel, .. }) = &pending.asked
            && let Some(reads) = self.reads.get_mut(channel)
        {
            reads.retain(|own| *own != number);
            if reads.is_empty() {
                self.reads.remove(channel);
            }
        }
        Some(pending)
    }

    /// Asks a keeper as soon as it can be asked.
    fn pend(&mut self, number: u64, asked: Asked) {
        self.pending_bytes += asked.bytes();
        self.pending_appends += usize::from(matches!(asked, Asked::Append(_)));
        if let Asked::Read(Read { channel, .. }) = &asked {
            self.reads.entry(channel.clone()).or_default().push(number);
        }
        let since_ms = self.now_ms;
        self.pending.insert(number, Pending { asked, sent_to: None, since_ms });
        self.send_pending(number);
    }

    fn send_pending(&mut self, number: u64) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        let Some(channel) = channel_of(&pending.asked) else { return };
        let Some(keeper) = self.placing.keeper(channel) else { return };
        let here = keeper == self.own.instance;
        let agrees = self.peers.get(&keeper).is_some_and(|peer| peer.agrees);
        if pending.sent_to == Some(keeper) || !(here || agrees) {
            return;
        }
        pending.sent_to = Some(keeper);
        let asked = pending.asked.clone();
        if here {
            self.asked(keeper, number, asked);
        } else {
            self.send(keeper, Frame::Ask(number, asked));
        }
    }

    /// A link to another node is there, and it has shown who it is.
    pub fn opened(&mut self, peer: Instance) {
        self.peers.insert(peer, Peer::default());
        let alive = self.alive(peer);
        self.send(peer, alive);
        for (channel, bytes) in self.unlinked.remove(&peer).unwrap_or_default().shared {
            self.send(peer, Frame::Told(Topic::Shared(channel), bytes));
        }
        self.said.push_back(Said::Met(peer));
        self.tell_known(&[peer]);
    }

    /// What all nodes are to know: who is revoked, and which rooms there are.
    fn known(&self) -> Vec<Kept> {
        let revoked = self.own.revoked.all().into_iter().map(Kept::Revoked);
        let rooms = self.own.rooms.all().into_iter().map(|word| Kept::Room(Box::new(word)));
        revoked.chain(rooms).collect()
    }

    /// Tells it nodes, as this one would pass it on: who knows it already does nothing.
    fn tell_known(&mut self, to: &[Instance]) {
        for errand in Bridge::errands_of_kept(self.own.instance.0, self.known()) {
            for peer in to {
                self.send(*peer, Frame::Told(Topic::Errand, errand.clone()));
            }
        }
    }

    /// It is not there any more.
    pub fn closed(&mut self, peer: Instance) {
        if self.peers.remove(&peer).is_some() {
            self.part(peer);
            self.review();
        }
    }

    /// What was asked of a node may never have come there, and what it has asked is asked again.
    fn part(&mut self, peer: Instance) {
        self.store.forget_follower(peer);
        self.transfers.part(peer);
        self.hold_only(|held| held.from != peer);
        for pending in self.pending.values_mut().filter(|own| own.sent_to == Some(peer)) {
            pending.sent_to = None;
        }
    }

    /// Another node says something.
    pub fn heard(&mut self, from: Instance, frame: Frame) {
        if !self.peers.contains_key(&from) {
            return;
        }
        match frame {
            Frame::Alive(alive) => self.heard_alive(from, alive),
            Frame::View(view) => self.adopt(*view),
            // What it has asked before it has heard that this one goes by another view, it asks again.
            Frame::Ask(number, asked) if self.agrees(from) => self.asked(from, number, asked),
            Frame::Ask(..) => {}
            Frame::Answer(number, answer) => self.answered(number, answer),
            Frame::Told(topic, bytes) => self.said.push_back(Said::Told(topic, bytes)),
            Frame::Transfer(view, transfer) if view == self.view.number && self.agrees(from) => {
                self.heard_transfer(from, transfer);
            }
            Frame::Transfer(..) => {}
        }
    }

    fn alive(&self, to: Instance) -> Frame {
        let heard_ms = self.peers.get(&to).map_or(0, |peer| peer.at_ms);
        Frame::Alive(Alive { view: self.view.number, at_ms: self.now_ms, heard_ms })
    }

    fn heard_alive(&mut self, from: Instance, Alive { view, at_ms, heard_ms }: Alive) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        (peer.view, peer.at_ms) = (view, at_ms);
        // What it says to have heard was said then, by this node's clock.
        let until_ms = heard_ms.min(self.now_ms) + SUPPORT_MS;
        if heard_ms > 0 {
            peer.supports_until_ms = peer.supports_until_ms.max(until_ms);
        }
        self.tell_view(from);
        self.agree(from);
        self.review();
    }

    /// Tells a node of the view, if it neither goes by it nor was told.
    fn tell_view(&mut self, to: Instance) {
        let number = self.view.number;
        let knows = |peer: &Peer| peer.view.max(peer.sent_view) >= number;
        let Some(peer) = self.peers.get_mut(&to).filter(|peer| !knows(peer)) else { return };
        peer.sent_view = number;
        let view = Box::new(self.view.clone());
        self.send(to, Frame::View(view));
    }

    /// Looks whether a node goes by the same view, and does what that changes.
    fn agree(&mut self, with: Instance) {
        let number = self.view.number;
        let is_member = self.view.has(with) && self.view.has(self.own.instance);
        let Some(peer) = self.peers.get_mut(&with) else { return };
        if peer.view >= number && self.awaited.remove(&with) {
            self.begin_when_all_know();
        }
        let Some(peer) = self.peers.get_mut(&with) else { return };
        let agrees = number > 0 && peer.view == number && is_member;
        if peer.agrees == agrees {
            return;
        }
        peer.agrees = agrees;
        if !agrees {
            return self.part(with);
        }
        let kept_there = |own: &&ChannelName| self.keeper(own) == Some(with);
        let channels: Vec<ChannelName> = self.followed.iter().filter(kept_there).cloned().collect();
        self.follow_at(with, &channels);
        self.said.extend(channels.into_iter().map(Said::Interrupted));
        self.send_all_pending();
    }

    fn send_all_pending(&mut self) {
        let unsent = self.pending.iter().filter(|(_, own)| own.sent_to.is_none());
        let unsent: Vec<u64> = unsent.map(|(number, _)| *number).collect();
        unsent.into_iter().for_each(|number| self.send_pending(number));
    }

    /// Goes by a view, if it is newer.
    pub fn adopt(&mut self, view: View) {
        if view.number <= self.view.number {
            return;
        }
        let own = self.own.instance;
        // Whoever was not told of a view in between may have lost its channels to others, and got them back.
        let in_line = view.previous == self.view.number && self.view.has(own) && view.has(own);
        let placing = Placing::new(self.own.placing_key, &view);
        let lives = self.part_with_lives(&placing, in_line);
        let moved = |channel: &&ChannelName| {
            placing.keeper(channel) == Some(own) && !self.store.has(channel)
        };
        let moved: Vec<ChannelName> = self.followed.iter().filter(moved).cloned().collect();
        let waits_ms = self.view.wait_ms;
        let before = std::mem::replace(&mut self.placing, placing);
        self.before = in_line.then_some(before);
        self.view = view;
        self.held.clear();
        self.pending.values_mut().for_each(|pending| pending.sent_to = None);
        let View { members, before, .. } = &self.view;
        let is_member = |of: &Instance| members.iter().any(|member| member.instance == *of);
        let others = before.iter().filter(|of| **of != own);
        self.awaited = others.copied().filter(is_member).collect();
        let to = members.iter().map(|member| member.instance);
        let to = to.filter(|of| *of != own && before.contains(&own));
        self.unlinked.retain(|of, _| is_member(of));
        self.transfers.begin(lives, to, self.awaited.iter().copied(), self.now_ms);
        // Whoever was waited for by the view before is, by this one.
        let waited_ms = self.begins_ms.unwrap_or(self.now_ms.saturating_add(waits_ms));
        self.waits_ms = self.waits_ms.max(waited_ms);
        (self.begins_ms, self.kept) = (None, (false, false, 0));
        for peer in self.peers.values_mut() {
            // Each is agreed with anew: what was asked by the view before is asked again.
            peer.agrees = false;
        }
        let peers: Vec<Instance> = self.peers.keys().copied().collect();
        for peer in &peers {
            // Channels that change their keeper wait until all know.
            self.tell_view(*peer);
            let alive = self.alive(*peer);
            self.send(*peer, alive);
        }
        self.begin_when_all_know();
        let kept_here = |channel: &&ChannelName| self.is_keeper(channel);
        let here: Vec<ChannelName> = self.followed.iter().filter(kept_here).cloned().collect();
        self.follow_at(own, &here);
        self.said.extend(moved.into_iter().map(Said::Interrupted));
        peers.into_iter().for_each(|peer| self.agree(peer));
        self.send_all_pending();
        self.review();
    }

    /// Those who go by the view before are asked no more once all others go by this one, but for those who were left out: they
    /// find out by nobody's supporting them any more.
    fn begin_when_all_know(&mut self) {
        if self.awaited.is_empty() && self.begins_ms.is_none() {
            let begins_ms = self.now_ms.saturating_add(self.view.wait_ms);
            self.begins_ms = Some(begins_ms.max(std::mem::take(&mut self.waits_ms)));
        }
    }

    /// The registry has been asked at this time, by this node's clock, going by this view, and answers that this is the view
    /// that counts: none is made without this node for so long.
    pub fn lease(&mut self, view: u64, asked_ms: u64, for_ms: u64) {
        if view == self.view.number {
            self.leased_until_ms = self.leased_until_ms.max(asked_ms + for_ms);
        }
        self.review();
    }

    /// The registry says who goes by a view: also of those with whom this node cannot be linked.
    pub fn know(&mut self, view: u64, go_by: &[Instance]) {
        if view == self.view.number {
            self.awaited.retain(|own| !go_by.contains(own));
            self.begin_when_all_know();
        }
        self.review();
    }

    /// Looks whether this node can do what it is asked.
    fn review(&mut self) {
        let now_ms = self.now_ms;
        let number = self.view.number;
        let is_member = self.view.has(self.own.instance);
        let leased = self.leased_until_ms > now_ms;
        let supports = |(of, peer): &(&Instance, &Peer)| {
            peer.view == number && peer.supports_until_ms > now_ms && self.view.has(**of)
        };
        let supporters = self.peers.iter().filter(supports).count();
        let many = supporters > 0 && 2 * (supporters + 1) > self.view.members.len();
        let up = is_member && (leased || many);
        if up != std::mem::replace(&mut self.up, up) {
            self.said.push_back(if up { Said::Up } else { Said::Lost });
            if up {
                // What was revoked or made here meanwhile was told to nobody.
                let peers: Vec<Instance> = self.peers.keys().copied().collect();
                self.tell_known(&peers);
            }
            if !up {
                // The bridge asks anew once it is told that it can.
                self.pending.clear();
                self.reads.clear();
                (self.pending_appends, self.pending_bytes) = (0, 0);
                self.followed.clear();
                let own = self.own.instance;
                self.store.forget_follower(own);
                self.hold_only(|held| held.from != own);
            }
        }
        self.take_over();
        let awaited = &self.awaited;
        self.transfers.pass(|own| awaited.contains(&own), now_ms);
        self.serve_held();
    }

    /// It is this time by now: what held may hold no more. To be told before anything is asked of the mesh.
    pub fn pass(&mut self, now_ms: u64) {
        let stood_ms = now_ms.saturating_sub(std::mem::replace(&mut self.now_ms, now_ms));
        if stood_ms > STOOD_STILL_MS {
            self.transfers.stood_still(stood_ms);
        }
        self.review();
    }

    /// Time has passed: to be told from time to time.
    pub fn tick(&mut self, now_ms: u64) {
        self.pass(now_ms);
        let patience_ms = self.own.patience_ms;
        let is_late = |at_ms: u64| now_ms.saturating_sub(at_ms) >= patience_ms;
        // Who has asked has given it up; that it follows, it says once.
        self.hold_only(|held| {
            matches!(held.asked, Asked::Follow(_) | Asked::Unfollow(_)) || !is_late(held.at_ms)
        });
        let late = self.pending.iter().filter(|(_, own)| is_late(own.since_ms));
        let late = late.map(|(number, _)| *number);
        for number in late.collect::<Vec<_>>() {
            let Some(pending) = self.take_pending(number) else { continue };
            self.said.push_back(Said::Answered(number, Err(Failed::Unknown)));
            if let Asked::PassOn(channel, _) = pending.asked {
                // Nobody says it again by itself.
                self.said.push_back(Said::Interrupted(channel));
            }
        }
        self.store.sweep(&self.own.rules, now_ms);
    }

    /// Says to all that this node lives; several times within the two seconds for which that holds.
    pub fn beat(&mut self) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            let alive = self.alive(peer);
            self.send(peer, alive);
        }
    }

    fn answered(&mut self, number: u64, answer: Answer) {
        // What has taken too long is not waited for any more.
        if self.take_pending(number).is_none() {
            return;
        }
        let reply = match answer {
            Answer::Appended(Appended { epoch, last, duplicates }) => {
                Ok(Reply::Appended { epoch, last, duplicates })
            }
            Answer::Stands(stands) => Ok(Reply::Read(followed(stands))),
            Answer::HeardBy(count) => Ok(Reply::HeardBy(count as usize)),
            Answer::Refused => Err(Failed::Refused),
        };
        self.said.push_back(Said::Answered(number, reply));
    }
}

fn channel_of(asked: &Asked) -> Option<&ChannelName> {
    match asked {
        Asked::Append(append) => Some(&append.channel),
        Asked::Read(read) => Some(&read.channel),
        Asked::PassOn(channel, _) | Asked::Unfollow(channel) => Some(channel),
        Asked::Follow(_) => None,
    }
}

/// What is no publication of ours counts as gone, and what is behind it, too.
fn followed(Stands { position, entries }: Stands) -> Followed {
    let mut publications = Vec::new();
    for (offset, age_ms, item) in entries {
        match item::decode(&item) {
            Some(publication) => publications.push(Numbered { offset, age_ms, publication }),
            None if publications.is_empty() => {}
            None => break,
        }
    }
    Followed { position, lineage: Vec::new(), publications }
}

#[cfg(test)]
mod tests;
