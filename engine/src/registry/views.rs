//! Which nodes share the channels among them: a *view*. Nodes go by one view at a time, and the registry is who makes the next.
//!
//! A view says who gives publications their offsets, so two of them must not be gone by at once by nodes that do not know of
//! one another. Three rules see to that, whatever is cut off from what:
//!
//! * The next view has at least half of the members of this one that may still run, and is not made before half of them, and
//!   half of those of the view before, have said that they go by this one.
//! * A member goes by its view as long as the registry has heard of it lately, or more than half of the members, itself among
//!   them and not alone, hear one another and go by it ([`crate::mesh`]).
//! * A member that has become a channel's keeper begins a life of it once everybody who was in both views goes by the newer one, and
//!   where somebody was left out, a while after that ([`View::wait_ms`]): until nobody relies any more on what was said before.
//!   Where it is handed the life that the channel has ([`crate::mesh::transfer`]) it goes on at once: whoever has a life is the only
//!   one that numbers in it, and who handed it over goes by the newer view, as whoever may begin another one does.
//!
//! Where nobody is left out, the next view waits a while for what is on its way between keepers.
//!
//! It is time that this rests on, so clocks must go on: a machine that stands still with its clock (a paused virtual machine)
//! goes on for a moment, when it is woken, as if nothing had been.
//!
//! More than half of a view and half of it have a member in common: whoever is left out finds not enough others, or was found
//! alive by one who knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::{NodeId, PeerAddress};

/// Members of a view at most: each is linked with each.
pub const MEMBERS_MAX: usize = 64;
/// Where nobody was silent for long who is left out, nobody relies on others that it hears for longer than two seconds: with
/// room for the clocks.
pub const SUPPORT_WAIT_MS: u64 = 3000;
/// So far ahead of a registry's clock may be that of another one, which has made the view before: ten years.
const AHEAD_MS_MAX: u64 = 315_360_000_000;
/// A view by which all live waits so long for members who do not say that they go by this one: longer than a node is waited for
/// that says nothing at all, …
const UNKNOWN_MS: u64 = 10_000;
/// … and so long for those who hand channels over to one another.
const MOVING_MS: u64 = 30_000;
/// A registry that knows of no view waits so long for those who go by one, before it makes the first.
const FIRST_MS: u64 = 3000;

/// A process of a node: drawn at random as it starts. As text, 16 hexadecimal digits.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Instance(pub u64);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Instance> for String {
    fn from(instance: Instance) -> String {
        instance.to_string()
    }
}

/// Text that is no [`Instance`].
#[derive(Debug, thiserror::Error)]
#[error("allowed are 16 hexadecimal digits")]
pub struct NoInstance;

impl FromStr for Instance {
    type Err = NoInstance;

    fn from_str(text: &str) -> Result<Instance, NoInstance> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| digits);
        number.map(Instance).ok_or(NoInstance)
    }
}

impl TryFrom<String> for Instance {
    type Error = NoInstance;

    fn try_from(text: String) -> Result<Instance, NoInstance> {
        text.parse()
    }
}

/// A node in a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The node's id.
    pub id: NodeId,
    /// Its process.
    #[schema(value_type = String)]
    pub instance: Instance,
    /// Where other nodes reach it.
    pub peer: PeerAddress,
    /// It is about to go: it keeps no channel, unless all of them are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// See the module's description.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct View {
    /// Later views have higher ones; 0 is the one without members that there is before the first.
    pub number: u64,
    /// That of the view before.
    pub previous: u64,
    /// By id; at most 64.
    pub members: Vec<Member>,
    /// The processes that were members of the view before, but for those that have left it by themselves.
    #[schema(value_type = Vec<String>)]
    pub before: Vec<Instance>,
    /// For so many milliseconds, from when all who were members before and are still go by this view, those who were left out
    /// may not know it: what they kept is not kept anew meanwhile.
    #[serde(default)]
    pub wait_ms: u64,
}

impl View {
    /// Whether a process is a member.
    pub fn has(&self, instance: Instance) -> bool {
        self.members.iter().any(|member| member.instance == instance)
    }
}

/// What a process says as it asks for the view that counts; it is a sign of life, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Standpoint {
    /// The process, which is the epoch of its node's announcement.
    #[schema(value_type = String)]
    pub instance: Instance,
    /// The number of the view by which it goes; 0 if none.
    pub view: u64,
    /// The processes that it has heard lately and that have heard it: they live. At most 64.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub hears: Vec<Instance>,
    /// Channels are on their way from this process to others: the next view had better wait.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moving: bool,
    /// That view, whole, where the registry has answered with an earlier one: its file was lost, or is an older copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knows: Option<Box<View>>,
}

impl Standpoint {
    /// Whether a process can say so: numbers of views are about the time at which they were made.
    pub(super) fn check(&self, unix_ms: u64) -> Result<(), String> {
        let most = unix_ms.saturating_add(AHEAD_MS_MAX);
        let known = self.knows.as_deref();
        if self.view.max(known.map_or(0, |view| view.number)) > most {
            return Err(format!("no view has a number above {most} by now"));
        }
        let members = known.map_or(0, |view| view.members.len().max(view.before.len()));
        match members.max(self.hears.len()) > MEMBERS_MAX {
            true => Err(format!("a view has at most {MEMBERS_MAX} members")),
            false => Ok(()),
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ViewReply {
    /// The view that counts.
    pub view: View,
    /// The members that go by it.
    #[schema(value_type = Vec<String>)]
    pub go_by: Vec<Instance>,
    /// Milliseconds without a word after which a node counts as gone.
    pub node_timeout_ms: u64,
}

/// The registry's side of it. Times are milliseconds of a clock that only goes forward.
#[derive(Debug)]
pub struct Views {
    view: View,
    timeout_ms: u64,
    began_ms: u64,
    /// By which view processes have said to go.
    go_by: BTreeMap<Instance, u64>,
    /// Who has said that channels are on their way.
    moving: BTreeSet<Instance>,
    /// When the view was made that counts.
    since_ms: u64,
    /// Members that have said that they have ended.
    left: BTreeSet<Instance>,
    /// Members of a view that another node has told of, which were not heard of yet.
    unheard: BTreeSet<Instance>,
    /// Until then views say that those are waited for who were left out lately, and how long.
    waits: Vec<(u64, u64)>,
}

impl Views {
    /// Goes on with the view that was made last. A process that was not heard of for `timeout_ms` is not there.
    pub fn new(view: View, timeout_ms: u64, now_ms: u64) -> Views {
        let waits = vec![(now_ms + view.wait_ms + timeout_ms, view.wait_ms)];
        Views {
            view,
            timeout_ms,
            began_ms: now_ms,
            go_by: BTreeMap::new(),
            moving: BTreeSet::new(),
            since_ms: now_ms,
            left: BTreeSet::new(),
            unheard: BTreeSet::new(),
            waits,
        }
    }

    /// Members whose nodes the registry does not know, as after it has lost them, may run nevertheless.
    pub fn doubt(&mut self, is_known: impl Fn(&NodeId) -> bool) {
        let unknown = self.view.members.iter().filter(|member| !is_known(&member.id));
        self.unheard.extend(unknown.map(|member| member.instance));
    }

    /// The view that counts.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether a process is a member of the view that counts or was one of that before: whether it may still run must be known.
    pub fn is_about(&self, instance: Instance) -> bool {
        self.view.has(instance) || self.view.before.contains(&instance)
    }

    /// The members that go by the view that counts.
    pub fn who_goes_by_it(&self) -> Vec<Instance> {
        let goes_by = |own: &Instance| self.go_by.get(own) == Some(&self.view.number);
        self.view.members.iter().map(|member| member.instance).filter(goes_by).collect()
    }

    /// A process says by which view it goes.
    pub fn goes_by(&mut self, instance: Instance, number: u64) {
        self.left.remove(&instance);
        self.unheard.remove(&instance);
        self.go_by.insert(instance, number);
    }

    /// A process says whether channels are on their way from it.
    pub fn moves(&mut self, instance: Instance, moving: bool) {
        match moving {
            true => self.moving.insert(instance),
            false => self.moving.remove(&instance),
        };
    }

    /// A process says that it has ended what it did: nobody has to wait until it finds that it was left out.
    pub fn leaves(&mut self, instance: Instance) {
        if self.view.has(instance) {
            self.left.insert(instance);
        }
    }

    /// Whether a process has said by which view it goes, or is a member of the one that counts.
    pub fn takes_part(&self, instance: Instance) -> bool {
        self.go_by.contains_key(&instance) || self.view.has(instance)
    }

    /// Forgets what processes have said that are not there any more.
    pub fn forget(&mut self, is_there: impl Fn(Instance) -> bool) {
        self.go_by.retain(|own, _| is_there(*own));
        self.moving.retain(|own| is_there(*own));
    }

    /// Whether a view that somebody goes by is to count from now on, since it is later: what was known here was lost, or is that of an
    /// older copy.
    pub fn is_later(&self, view: &View) -> bool {
        view.number > self.view.number
    }

    /// A view that a node has told of counts from now on. Who is in it and was not heard of here may run nevertheless, but for
    /// those whose node is another process by now.
    pub fn take_over(&mut self, view: View, is_over: impl Fn(&Member) -> bool, now_ms: u64) {
        let members = view.members.iter().filter(|member| !is_over(member));
        let members = members.map(|member| member.instance);
        self.unheard = members.filter(|own| !self.go_by.contains_key(own)).collect();
        self.set(view, now_ms);
    }

    /// The node of this id is another process by now, or is let go. Whether it was waited for.
    pub fn is_over(&mut self, id: &NodeId) -> bool {
        let members = self.view.members.iter().filter(|member| member.id == *id);
        members.filter(|member| self.unheard.remove(&member.instance)).count() > 0
    }

    /// The next view, where there is to be one and can be; `live` are the nodes that were heard of lately, by id, and `may_run`
    /// says whether a process may still run: it has neither left nor been replaced. `number` is above that of this view.
    pub fn next(
        &self,
        live: &[Member],
        may_run: impl Fn(Instance) -> bool,
        number: u64,
        now_ms: u64,
    ) -> Option<View> {
        let View { members, before, .. } = &self.view;
        let may_run = |own| may_run(own) || self.unheard.contains(&own);
        // Where there are more than can be members, those who are stay.
        let (mut live, others): (Vec<Member>, Vec<Member>) =
            live.iter().cloned().partition(|node| self.view.has(node.instance));
        let room = MEMBERS_MAX.saturating_sub(live.len());
        live.extend(others.into_iter().take(room));
        live.sort_by(|a, b| a.id.cmp(&b.id));
        if live.is_empty() || live == *members {
            return None;
        }
        let is_live = |instance: &Instance| live.iter().any(|node| node.instance == *instance);
        let of_members = || members.iter().map(|member| member.instance);
        let age_ms = now_ms.saturating_sub(self.began_ms);
        // Who was not heard of yet may be there; and who goes by a view that is not known here says so as soon as it is heard.
        let may_be_there = of_members().any(|own| may_run(own) && !is_live(&own));
        if age_ms < self.timeout_ms && may_be_there
            || members.is_empty() && age_ms < self.timeout_ms.min(FIRST_MS)
            || self.go_by.iter().any(|(own, known)| *known > self.view.number && is_live(own))
        {
            return None;
        }
        let goes_by = |own: &Instance| self.go_by.get(own) == Some(&self.view.number);
        // Who is about to go keeps nothing that anybody would wait for.
        let some_stay = members.iter().any(|own| !own.leaving);
        let is_spare = |own: &Member| some_stay && own.leaving && self.left.contains(&own.instance);
        let needed: Vec<&Member> = members.iter().filter(|own| !is_spare(own)).collect();
        let age_ms = now_ms.saturating_sub(self.since_ms);
        let is_busy = |own: &&Member| match goes_by(&own.instance) {
            true => age_ms < MOVING_MS && self.moving.contains(&own.instance),
            false => age_ms < UNKNOWN_MS,
        };
        if needed.iter().all(|own| is_live(&own.instance)) && needed.iter().any(is_busy) {
            return None;
        }
        for (place, of) in
            [of_members().collect::<Vec<_>>(), before.clone()].into_iter().enumerate()
        {
            let running: Vec<Instance> = of.into_iter().filter(|own| may_run(*own)).collect();
            // One alone goes by no view of which the registry has not told it lately.
            if running.len() < 2 {
                continue;
            }
            let count = running.iter().filter(|own| goes_by(own)).count();
            let kept = running.iter().filter(|own| is_live(own)).count();
            if 2 * count < running.len() || (place == 0 && 2 * kept < running.len()) {
                return None;
            }
        }
        let before: Vec<Instance> = of_members().filter(|own| !self.left.contains(own)).collect();
        // Who was silent for long has nothing to go by but what others say; who was heard lately may have been told that it has time.
        let left_out = before.iter().filter(|own| !is_live(own));
        let waits =
            left_out.map(|own| if may_run(*own) { SUPPORT_WAIT_MS } else { self.timeout_ms });
        let earlier = self.waits.iter().filter(|(until_ms, _)| *until_ms > now_ms);
        let wait_ms = waits.chain(earlier.map(|(_, wait_ms)| *wait_ms)).max().unwrap_or(0);
        let previous = self.view.number;
        Some(View { number, previous, members: live, before, wait_ms })
    }

    /// A view counts from now on.
    pub fn set(&mut self, view: View, now_ms: u64) {
        self.left.retain(|own| view.has(*own));
        self.waits.retain(|(until_ms, _)| *until_ms > now_ms);
        if view.wait_ms > 0 {
            self.waits.push((now_ms + view.wait_ms + self.timeout_ms, view.wait_ms));
        }
        self.since_ms = now_ms;
        self.view = view;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(instances: &[u64]) -> Vec<Member> {
        let node = |instance: &u64| Member {
            id: format!("n{instance}").parse().unwrap(),
            instance: Instance(*instance),
            peer: "127.0.0.1:1".parse().unwrap(),
            leaving: false,
        };
        instances.iter().map(node).collect()
    }

    fn names(view: &View) -> Vec<u64> {
        view.members.iter().map(|member| member.instance.0).collect()
    }

    /// Views of which the last has these members, who all go by it.
    fn settled(instances: &[u64]) -> Views {
        let mut views = Views::new(View::default(), 0, 0);
        let view = views.next(&nodes(instances), |_| true, 1, 0).unwrap();
        views.set(view, 0);
        instances.iter().for_each(|own| views.goes_by(Instance(*own), 1));
        views
    }

    #[test]
    fn no_view_has_less_than_half_of_those_before_it_that_may_run() {
        let next = |live: &[u64], ended: &[u64]| {
            let view =
                settled(&[1, 2, 3, 4]).next(&nodes(live), |own| !ended.contains(&own.0), 2, 0);
            view.map(|view| names(&view))
        };
        assert_eq!(next(&[1, 2, 3, 4], &[]), None);
        assert_eq!(next(&[1, 2, 3, 4, 5], &[]), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(next(&[1, 2], &[]), Some(vec![1, 2]));
        assert_eq!(next(&[1, 5, 6, 7], &[]), None);
        // Who has left or was replaced does not come back.
        assert_eq!(next(&[1, 5], &[2, 3]), Some(vec![1, 5]));
        assert_eq!(next(&[5], &[1, 2, 3, 4]), Some(vec![5]));
        assert_eq!(next(&[], &[1, 2, 3, 4]), None);
    }

    #[test]
    fn whoever_is_a_member_stays_one_where_more_come_than_have_a_place() {
        let members: Vec<u64> = (100..100 + MEMBERS_MAX as u64).collect();
        let mut views = settled(&members);
        let crowd: Vec<u64> = (90..100).chain(members.iter().copied()).collect();
        assert_eq!(views.next(&nodes(&crowd), |_| true, 2, 0), None);
        views.leaves(Instance(100));
        let next =
            views.next(&nodes(&[&crowd[..10], &crowd[11..]].concat()), |own| own.0 != 100, 2, 0);
        assert_eq!(names(&next.unwrap()), [&members[1..], &[90]].concat());
    }

    #[test]
    fn where_nobody_is_missing_the_next_view_waits_for_what_is_on_its_way() {
        let next = |views: &Views, live: &[Member], now_ms| {
            let view = views.next(live, |own| own.0 != 3, 9, now_ms);
            view.map(|view| names(&view))
        };
        let mut views = settled(&[1, 2, 3]);
        views.moves(Instance(2), true);
        assert_eq!(next(&views, &nodes(&[1, 2, 3, 4]), MOVING_MS - 1), None);
        assert!(next(&views, &nodes(&[1, 2, 3, 4]), MOVING_MS).is_some());
        assert!(next(&views, &nodes(&[1, 2, 4]), 0).is_some(), "one has died");
        views.moves(Instance(2), false);
        assert!(next(&views, &nodes(&[1, 2, 3, 4]), 0).is_some());
        views.go_by.remove(&Instance(2));
        assert_eq!(next(&views, &nodes(&[1, 2, 3, 4]), UNKNOWN_MS - 1), None);
        assert!(next(&views, &nodes(&[1, 2, 3, 4]), UNKNOWN_MS).is_some());

        // One that was about to go has gone: nobody waits for it, and what the others do may be waited for.
        let mut live = nodes(&[1, 2, 3]);
        live[2].leaving = true;
        let mut views = settled(&[1, 2, 3]);
        let view = views.next(&live, |_| true, 2, 0).unwrap();
        views.set(view, 0);
        [1, 2, 3].into_iter().for_each(|own| views.goes_by(Instance(own), 2));
        views.moves(Instance(1), true);
        assert!(next(&views, &nodes(&[1, 2]), 0).is_some(), "it has not said that it has");
        views.leaves(Instance(3));
        assert_eq!(next(&views, &nodes(&[1, 2]), 0), None);
        views.moves(Instance(1), false);
        assert_eq!(next(&views, &nodes(&[1, 2]), 0), Some(vec![1, 2]));
    }

    #[test]
    fn one_that_was_alone_holds_up_nobody_and_two_that_may_go_on_by_themselves_do() {
        assert_eq!(
            settled(&[1]).next(&nodes(&[2]), |_| true, 2, 0).map(|v| names(&v)),
            Some(vec![2])
        );
        let mut views = settled(&[1, 2]);
        let grown = views.next(&nodes(&[1, 2, 3, 4]), |_| true, 2, 0).unwrap();
        assert_eq!((grown.previous, &grown.before[..]), (1, &[Instance(1), Instance(2)][..]));
        views.set(grown, 0);
        // Half of the members know it, but nobody of those who were alone before.
        [3, 4].into_iter().for_each(|own| views.goes_by(Instance(own), 2));
        assert_eq!(views.next(&nodes(&[3, 4]), |_| true, 3, 0), None);
        views.goes_by(Instance(1), 2);
        assert!(views.next(&nodes(&[3, 4]), |_| true, 3, 0).is_some());
        // Somebody goes by a later one, which is waited for.
        views.goes_by(Instance(2), 9);
        assert_eq!(views.next(&nodes(&[2, 3, 4]), |_| true, 3, 0), None);
        assert!(views.is_later(&View { number: 9, ..View::default() }));
    }

    #[test]
    fn who_is_left_out_is_waited_for_also_by_the_views_that_come_soon() {
        let mut views = settled(&[1, 2, 3]);
        views.timeout_ms = 6000;
        let wait = |views: &Views, live: &[u64], ended: &[u64], now_ms| {
            let view = views.next(&nodes(live), |own| !ended.contains(&own.0), 9, now_ms).unwrap();
            view.wait_ms
        };
        // Nobody, one that was silent, one that another process has replaced, and one that has ended.
        assert_eq!(wait(&views, &[1, 2, 3, 4], &[], 10_000), 0);
        assert_eq!(wait(&views, &[1, 2], &[], 10_000), SUPPORT_WAIT_MS);
        assert_eq!(wait(&views, &[1, 2], &[3], 10_000), 6000);
        views.leaves(Instance(3));
        assert_eq!(wait(&views, &[1, 2], &[3], 10_000), 0);
        views.goes_by(Instance(3), 1);
        let next = views.next(&nodes(&[1, 2]), |_| true, 2, 10_000).unwrap();
        views.set(next, 10_000);
        [1, 2].into_iter().for_each(|own| views.goes_by(Instance(own), 2));
        assert_eq!(wait(&views, &[1, 2, 4], &[], 11_000), SUPPORT_WAIT_MS);
        assert_eq!(wait(&views, &[1, 2, 4], &[], 30_000), 0);
    }

    #[test]
    fn a_registry_that_has_just_begun_leaves_nobody_out_and_makes_no_first_view_at_once() {
        let views = Views::new(View::default(), 6000, 0);
        assert_eq!(views.next(&nodes(&[1]), |_| true, 1, 2999), None);
        assert!(views.next(&nodes(&[1]), |_| true, 1, 3000).is_some());
        let mut views = settled(&[1, 2, 3]);
        (views.timeout_ms, views.began_ms) = (6000, 0);
        assert_eq!(views.next(&nodes(&[1, 2]), |_| true, 2, 5999), None);
        assert!(views.next(&nodes(&[1, 2, 3, 4]), |_| true, 2, 5999).is_some());
        assert!(views.next(&nodes(&[1, 2]), |_| true, 2, 6000).is_some());
    }
}
