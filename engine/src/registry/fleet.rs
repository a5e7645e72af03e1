//! What the registry knows, in memory: nodes, what they reported, channels. It is pure: time comes from outside, and what has
//! to be stored is handed out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::api::{Announcement, ChannelEntry, NodeEntry, NodeState};
use super::hold::millis;
use super::names::NodeId;
use super::store::{Contents, Later, StoredMetrics, StoredNode};
use super::views::{Instance, Member as ViewMember, Standpoint, View, Views};
use crate::config::rules::matches;

/// How long a node that announced itself as those of other systems do is heard of without a word: their registries have five
/// minutes.
const PLAIN_TIMEOUT: Duration = Duration::from_secs(300);

/// How long, and how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// A node not heard of for longer is not live.
    pub(super) node_timeout: Duration,
    /// A node not heard of for longer is forgotten.
    pub(super) forget_after: Duration,
    pub(super) nodes_max: usize,
    pub(super) channels_max: usize,
}

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// For what has passed.
    pub(super) now: Instant,
    /// For what is told and stored.
    pub(super) unix_ms: u64,
}

#[derive(Debug)]
struct Member {
    stored: StoredNode,
    heard: Instant,
    was_live: bool,
    /// Whether it was heard of since this registry began: what is only in the file may be of an older copy.
    was_heard: bool,
    /// Whether the file has yet to learn when it was heard of.
    unsaved: bool,
}

#[derive(Debug)]
struct Reported {
    stored: StoredMetrics,
    at: Instant,
    unsaved: bool,
}

/// A node that was announced is as good as heard of; one that is full takes nobody new.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Why a heartbeat does not count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotHeard {
    Unknown,
    /// The node is another process by now.
    Replaced,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Fleet {
    limits: Limits,
    began: Instant,
    was_settled: bool,
    members: BTreeMap<NodeId, Member>,
    reported: BTreeMap<NodeId, Reported>,
    channels: BTreeMap<String, ChannelEntry>,
    views: Views,
    nodes_version: u64,
    channels_version: u64,
    gone: BTreeSet<NodeId>,
    gone_metrics: BTreeSet<NodeId>,
}

/// The next version. Also after a file was put back that knows less than nodes were told it is a new one.
fn next(version: u64, at: Moment) -> u64 {
    (version + 1).max(at.unix_ms)
}

impl Fleet {
    /// Nodes are as live as they were when the file was written last: while the registry was away nobody could be heard of.
    pub(super) fn new(limits: Limits, contents: Contents, at: Moment) -> Fleet {
        let ago = |then_ms: u64| {
            let ago = Duration::from_millis(contents.saved_ms.saturating_sub(then_ms));
            at.now.checked_sub(ago).unwrap_or(at.now)
        };
        let mut views = Views::new(contents.view, millis(limits.node_timeout), 0);
        let known: BTreeSet<NodeId> =
            contents.nodes.iter().map(|stored| stored.node.id.clone()).collect();
        views.doubt(|id| known.contains(id));
        let members = contents.nodes.into_iter().map(|stored| {
            let heard = ago(stored.last_seen_ms);
            let timeout = timeout(&limits, &stored);
            let was_live = at.now.saturating_duration_since(heard) <= timeout;
            let id = stored.node.id.clone();
            (id, Member { stored, heard, was_live, was_heard: false, unsaved: false })
        });
        let reported = contents.metrics.into_iter().map(|stored| {
            let at = ago(stored.reported_ms);
            (stored.id.clone(), Reported { stored, at, unsaved: false })
        });
        let channels = contents.channels.into_iter().map(|entry| (entry.name.clone(), entry));
        Fleet {
            limits,
            began: at.now,
            was_settled: false,
            members: members.collect(),
            reported: reported.collect(),
            channels: channels.collect(),
            views,
            nodes_version: next(contents.nodes_version, at),
            channels_version: contents.channels_version,
            gone: BTreeSet::new(),
            gone_metrics: BTreeSet::new(),
        }
    }

    /// Whether every node that lives has had the time to be heard of.
    pub(super) fn is_settled(&self, at: Moment) -> bool {
        at.now.saturating_duration_since(self.began) >= self.limits.node_timeout
    }

    /// Notices who is gone, or back, and that it has settled, so that the version tells of it.
    fn notice(&mut self, at: Moment) {
        let mut changed = !self.was_settled && self.is_settled(at);
        self.was_settled |= changed;
        for member in self.members.values_mut() {
            let live = is_live(&self.limits, member, at);
            changed |= live != member.was_live;
            member.was_live = live;
        }
        if changed {
            self.nodes_version = next(self.nodes_version, at);
        }
    }

    pub(super) fn nodes_version(&mut self, at: Moment) -> u64 {
        self.notice(at);
        self.nodes_version
    }

    pub(super) fn channels_version(&self) -> u64 {
        self.channels_version
    }

    /// What is to be stored of an announcement before it is taken.
    pub(super) fn announced(
        &self,
        node: Announcement,
        plain: bool,
        at: Moment,
    ) -> Result<StoredNode, Full> {
        let before = self.members.get(&node.id);
        if before.is_none() && self.members.len() >= self.limits.nodes_max {
            return Err(Full);
        }
        let created_ms = before.map_or(at.unix_ms, |member| member.stored.created_ms);
        Ok(StoredNode { node, plain, created_ms, last_seen_ms: at.unix_ms })
    }

    /// Takes an announcement that is stored; whether it replaces another process.
    pub(super) fn announce(&mut self, stored: StoredNode, at: Moment) -> bool {
        let id = stored.node.id.clone();
        self.gone.remove(&id);
        let member =
            Member { stored, heard: at.now, was_live: true, was_heard: true, unsaved: false };
        let before = self.members.insert(id.clone(), member);
        self.views.is_over(&id);
        let now = self.members.get(&id).map(|member| &member.stored.node);
        let same = before.as_ref().is_some_and(|old| old.was_live && Some(&old.stored.node) == now);
        if !same {
            self.nodes_version = next(self.nodes_version, at);
        }
        before.is_some_and(|old| Some(&old.stored.node.epoch) != now.map(|now| &now.epoch))
    }

    /// Takes a sign of life. Gives what is to be stored if the node wants something else from now on.
    pub(super) fn hear(
        &mut self,
        id: &NodeId,
        epoch: Option<&NodeId>,
        state: Option<NodeState>,
        at: Moment,
    ) -> Result<Option<StoredNode>, NotHeard> {
        let member = self.members.get_mut(id).ok_or(NotHeard::Unknown)?;
        if epoch.is_some_and(|epoch| *epoch != member.stored.node.epoch) {
            return Err(member.not_of_it());
        }
        (member.heard, member.was_heard) = (at.now, true);
        member.stored.last_seen_ms = at.unix_ms;
        member.unsaved = true;
        let change = state.filter(|&state| state != member.stored.node.state);
        let stored = change.map(|state| {
            let mut stored = member.stored.clone();
            stored.node.state = state;
            stored
        });
        self.notice(at);
        Ok(stored)
    }

    /// A process asks for the view that counts: a sign of its life, and of those whom it hears.
    pub(super) fn stands(
        &mut self,
        id: &NodeId,
        standpoint: &Standpoint,
        at: Moment,
    ) -> Result<(), NotHeard> {
        let Standpoint { instance, view, hears, moving, knows: _ } = standpoint;
        let member = self.members.get(id).ok_or(NotHeard::Unknown)?;
        if instance_of(member) != Some(*instance) {
            return Err(member.not_of_it());
        }
        for member in self.members.values_mut() {
            let own = instance_of(member);
            if own.is_some_and(|own| own == *instance || hears.contains(&own)) {
                (member.heard, member.was_heard) = (at.now, true);
                member.stored.last_seen_ms = at.unix_ms;
                member.unsaved = true;
            }
        }
        self.views.goes_by(*instance, *view);
        self.views.moves(*instance, *moving);
        self.notice(at);
        Ok(())
    }

    /// The view that counts.
    pub(super) fn view(&self) -> &View {
        self.views.view()
    }

    /// The view that is to be next, if there is to be one. It counts once it is stored.
    pub(super) fn next_view(&mut self, at: Moment) -> Option<View> {
        self.notice(at);
        let instances: BTreeSet<Instance> = self.members.values().filter_map(instance_of).collect();
        self.views.forget(|own| instances.contains(&own));
        let now_ms = self.elapsed_ms(at);
        let live = self.members.values().filter(|member| member.was_live);
        let live = live.filter_map(|member| {
            let instance = instance_of(member).filter(|own| self.views.takes_part(*own))?;
            let node = &member.stored.node;
            let (id, peer) = (node.id.clone(), node.peer.clone()?);
            let leaving = node.state == NodeState::Draining;
            Some(ViewMember { id, instance, peer, leaving })
        });
        let live: Vec<ViewMember> = live.collect();
        let number = next(self.views.view().number, at);
        self.views.next(&live, |own| instances.contains(&own), number, now_ms)
    }

    /// A view that was next counts from now on.
    pub(super) fn set_view(&mut self, view: View, at: Moment) {
        let now_ms = self.elapsed_ms(at);
        self.views.set(view, now_ms);
    }

    /// A view that a node has told of counts from now on.
    pub(super) fn take_over_view(&mut self, view: View, at: Moment) {
        let now_ms = self.elapsed_ms(at);
        let members = &self.members;
        let is_over = |of: &ViewMember| {
            let own = members.get(&of.id).filter(|own| own.was_heard);
            own.is_some_and(|own| instance_of(own) != Some(of.instance))
        };
        self.views.take_over(view, is_over, now_ms);
    }

    /// Whether a view is later than the one that counts.
    pub(super) fn is_later_view(&self, view: &View) -> bool {
        self.views.is_later(view)
    }

    /// The members that go by the view that counts.
    pub(super) fn who_goes_by_it(&self) -> Vec<Instance> {
        self.views.who_goes_by_it()
    }

    fn elapsed_ms(&self, at: Moment) -> u64 {
        millis(at.now.saturating_duration_since(self.began))
    }

    /// What a node reported; false where there is no room for another one's.
    pub(super) fn report(&mut self, id: &NodeId, text: Box<str>, at: Moment) -> bool {
        if !self.reported.contains_key(id) && self.reported.len() >= self.limits.nodes_max {
            return false;
        }
        self.gone_metrics.remove(id);
        let stored = StoredMetrics { id: id.clone(), reported_ms: at.unix_ms, text };
        self.reported.insert(id.clone(), Reported { stored, at: at.now, unsaved: true });
        true
    }

    /// Whether a node of this id is there, and of this epoch if one is given.
    pub(super) fn has(&self, id: &NodeId, epoch: Option<&NodeId>) -> bool {
        let member = self.members.get(id);
        member.is_some_and(|member| epoch.is_none_or(|epoch| *epoch == member.stored.node.epoch))
    }

    /// A node of the view that was never heard of here is let go; whether there is one.
    pub(super) fn let_go_unheard(&mut self, id: &NodeId) -> bool {
        !self.members.contains_key(id) && self.views.is_over(id)
    }

    /// A node has left, and the file knows; whether it has said so itself.
    pub(super) fn leave(&mut self, id: &NodeId, itself: bool, at: Moment) {
        self.reported.remove(id);
        self.views.is_over(id);
        if let Some(member) = self.members.remove(id) {
            if let Some(instance) = instance_of(&member).filter(|_| itself) {
                self.views.leaves(instance);
            }
            self.nodes_version = next(self.nodes_version, at);
        }
    }

    /// The nodes by id; those that are not live only if `all`.
    pub(super) fn nodes(&mut self, all: bool, metrics: bool, at: Moment) -> Vec<NodeEntry> {
        self.notice(at);
        let members = self.members.values().filter(|member| all || member.was_live);
        members.map(|member| self.entry(member, metrics, at)).collect()
    }

    fn entry(&self, member: &Member, metrics: bool, at: Moment) -> NodeEntry {
        let node = member.stored.node.clone();
        let age = at.unix_ms.saturating_sub(member.stored.last_seen_ms);
        let reported = self.reported.get(&node.id).filter(|_| metrics);
        NodeEntry {
            id: node.id,
            url: node.url,
            peer: node.peer,
            weight: node.weight,
            state: node.state,
            epoch: node.epoch,
            live: member.was_live,
            age_ms: age,
            last_seen_ms: member.stored.last_seen_ms,
            metrics: reported.and_then(|own| serde_json::from_str(&own.stored.text).ok()),
        }
    }

    /// The same, with when they were announced first.
    pub(super) fn live_and_active(&mut self, at: Moment) -> Vec<StoredNode> {
        self.notice(at);
        let members = self.members.values().filter(|member| member.was_live);
        let active = members.filter(|member| member.stored.node.state == NodeState::Active);
        active.map(|member| member.stored.clone()).collect()
    }

    /// How many are live, and how many are not.
    pub(super) fn count(&mut self, at: Moment) -> (usize, usize) {
        self.notice(at);
        let live = self.members.values().filter(|member| member.was_live).count();
        (live, self.members.len() - live)
    }

    /// The channels by name, of one node or all.
    pub(super) fn channels(&self, node: Option<&str>) -> Vec<ChannelEntry> {
        let serves = |entry: &&ChannelEntry| {
            node.is_none_or(|id| entry.allowed_nodes.iter().any(|pattern| matches(pattern, id)))
        };
        self.channels.values().filter(serves).cloned().collect()
    }

    pub(super) fn channel(&self, name: &str) -> Option<&ChannelEntry> {
        self.channels.get(name)
    }

    /// Channels that have a rule.
    pub(super) fn rules(&self) -> impl Iterator<Item = &ChannelEntry> {
        self.channels.values().filter(|own| own.rule.is_some())
    }

    pub(super) fn channels_count(&self) -> usize {
        self.channels.len()
    }

    /// Whether a channel of this name has a place.
    pub(super) fn has_room_for_channel(&self, name: &str) -> bool {
        self.channels.contains_key(name) || self.channels.len() < self.limits.channels_max
    }

    /// The version that the list will have with one more change.
    pub(super) fn next_channels_version(&self, at: Moment) -> u64 {
        next(self.channels_version, at)
    }

    /// Takes a change that is stored.
    pub(super) fn set_channel(&mut self, name: &str, entry: Option<ChannelEntry>, version: u64) {
        match entry {
            Some(entry) => self.channels.insert(name.to_owned(), entry),
            None => self.channels.remove(name),
        };
        self.channels_version = version;
    }

    /// Forgets who has not been heard of for long, and gives what the file has yet to learn. It counts as learnt: hand it back
    /// if it could not be stored.
    pub(super) fn take_later(&mut self, at: Moment) -> Later {
        self.notice(at);
        let Limits { forget_after, .. } = self.limits;
        let mut later = Later { saved_ms: at.unix_ms, ..Later::default() };
        let (gone, gone_metrics) = (&mut self.gone, &mut self.gone_metrics);
        let views = &self.views;
        self.members.retain(|id, member| {
            let silent = at.now.saturating_duration_since(member.heard);
            // That somebody is silent does not say that it has ended.
            let counts = instance_of(member).is_some_and(|own| views.is_about(own));
            let kept = member.was_live || counts || silent < forget_after;
            if !kept {
                gone.insert(id.clone());
            } else if std::mem::take(&mut member.unsaved) {
                later.seen.push((id.clone(), member.stored.last_seen_ms));
            }
            kept
        });
        let members = &self.members;
        self.reported.retain(|id, reported| {
            let old = at.now.saturating_duration_since(reported.at) >= forget_after;
            let kept = !old || members.contains_key(id);
            if !kept {
                gone_metrics.insert(id.clone());
            } else if std::mem::take(&mut reported.unsaved) {
                later.metrics.push(reported.stored.clone());
            }
            kept
        });
        later.gone = gone.iter().cloned().collect();
        later.gone_metrics = gone_metrics.iter().cloned().collect();
        later.nodes_version = self.nodes_version;
        later
    }

    /// What was taken is stored, or has to be taken again.
    pub(super) fn settle(&mut self, later: &Later, is_stored: bool) {
        if is_stored {
            self.gone.retain(|id| !later.gone.contains(id));
            self.gone_metrics.retain(|id| !later.gone_metrics.contains(id));
            return;
        }
        for (id, _) in &later.seen {
            if let Some(member) = self.members.get_mut(id) {
                member.unsaved = true;
            }
        }
        for stored in &later.metrics {
            if let Some(reported) = self.reported.get_mut(&stored.id) {
                reported.unsaved = true;
            }
        }
    }
}

impl Member {
    /// What somebody is told who is of this id and another epoch.
    fn not_of_it(&self) -> NotHeard {
        if self.was_heard { NotHeard::Replaced } else { NotHeard::Unknown }
    }
}

/// The process of a node that may share channels with others.
fn instance_of(member: &Member) -> Option<Instance> {
    let StoredNode { node, plain, .. } = &member.stored;
    node.epoch.as_str().parse().ok().filter(|_| !plain && node.peer.is_some())
}

fn timeout(limits: &Limits, stored: &StoredNode) -> Duration {
    if stored.plain { limits.node_timeout.max(PLAIN_TIMEOUT) } else { limits.node_timeout }
}

fn is_live(limits: &Limits, member: &Member, at: Moment) -> bool {
    at.now.saturating_duration_since(member.heard) <= timeout(limits, &member.stored)
}

#[cfg(test)]
mod tests;
