//! Which nodes share the channels among them: a *view*. Nodes go by one view at a time, and the registry is who makes the next.
//!
//! A view says who gives publications their offsets, so two of them must not be gone by at once by nodes that do not know of
//! one another. Three rules see to that, whatever is cut off from what:
//!
//! * The next view has at least half of the members of this one that may still run, and is not made before half of them, and
//!   half of those of the view before, have said that they go by this one.
//! * A member goes by its view as long as the registry has heard of it lately, or more than half of the members, itself among
//!   them and not alone, hear one another and go by it ([`crate::mesh`]).
//! * A member that has become a channel's keeper begins once everybody who was in both views goes by the newer one, and where
//!   somebody was left out, a while after that.
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

/// A process of a node: drawn at random as it starts. As text, 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
}

impl View {
    /// Whether a process is a member.
    pub fn has(&self, instance: Instance) -> bool {
        self.members.iter().any(|member| member.instance == instance)
    }
}

/// What a process says as it asks for the view that counts; it is a sign of life, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ViewReply {
    /// The view that counts.
    pub view: View,
    /// Milliseconds without a word after which a node counts as gone.
    pub node_timeout_ms: u64,
}

/// The registry's side of it.
#[derive(Debug)]
pub struct Views {
    view: View,
    /// By which view processes have said to go.
    go_by: BTreeMap<Instance, u64>,
    /// Members that have said that they go, and so do nothing any more.
    left: BTreeSet<Instance>,
}

impl Views {
    /// Goes on with the view that was made last.
    pub fn new(view: View) -> Views {
        Views { view, go_by: BTreeMap::new(), left: BTreeSet::new() }
    }

    /// The view that counts.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// A process says by which view it goes.
    pub fn goes_by(&mut self, instance: Instance, number: u64) {
        self.go_by.insert(instance, number);
    }

    /// A process says that it has ended what it did: nobody has to wait until it finds that it was left out.
    pub fn leaves(&mut self, instance: Instance) {
        if self.view.has(instance) {
            self.left.insert(instance);
        }
    }

    /// Whether a process has said by which view it goes.
    pub fn has_asked(&self, instance: Instance) -> bool {
        self.go_by.contains_key(&instance)
    }

    /// Forgets what processes have said that are not there any more.
    pub fn forget(&mut self, is_there: impl Fn(Instance) -> bool) {
        self.go_by.retain(|own, _| is_there(*own));
    }

    /// Whether somebody goes by a view that is later than the one that counts: it was lost.
    pub fn is_behind(&self) -> bool {
        self.go_by.values().any(|number| *number > self.view.number)
    }

    /// The next view, where there is to be one and can be; `live` are the nodes that were heard of lately, by id, and `may_run`
    /// says whether a process may still run: it has neither left nor been replaced. `number` is above that of this view.
    pub fn next(
        &self,
        live: &[Member],
        may_run: impl Fn(Instance) -> bool,
        number: u64,
    ) -> Option<View> {
        let View { members, before, .. } = &self.view;
        let live = &live[..live.len().min(MEMBERS_MAX)];
        if live.is_empty() || live == &members[..] {
            return None;
        }
        let is_live = |instance: &Instance| live.iter().any(|node| node.instance == *instance);
        let goes_by = |own: &Instance| self.go_by.get(own) == Some(&self.view.number);
        let of_members = members.iter().map(|member| member.instance);
        let both = [of_members.collect::<Vec<_>>(), before.clone()];
        for (place, of) in both.into_iter().enumerate() {
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
        let before = members.iter().map(|member| member.instance);
        let before = before.filter(|own| !self.left.contains(own)).collect();
        Some(View { number, previous: self.view.number, members: live.to_vec(), before })
    }

    /// A view counts from now on.
    pub fn set(&mut self, view: View) {
        self.left.retain(|own| view.has(*own));
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
        };
        instances.iter().map(node).collect()
    }

    fn names(view: &View) -> Vec<u64> {
        view.members.iter().map(|member| member.instance.0).collect()
    }

    /// Views of which the last has these members, who all go by it.
    fn settled(instances: &[u64]) -> Views {
        let mut views = Views::new(View::default());
        let view = views.next(&nodes(instances), |_| true, 1).unwrap();
        views.set(view);
        instances.iter().for_each(|own| views.goes_by(Instance(*own), 1));
        views
    }

    #[test]
    fn no_view_has_less_than_half_of_those_before_it_that_may_run() {
        let next = |live: &[u64], ended: &[u64]| {
            let view = settled(&[1, 2, 3, 4]).next(&nodes(live), |own| !ended.contains(&own.0), 2);
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
    fn one_that_was_alone_holds_up_nobody_and_two_that_may_go_on_by_themselves_do() {
        assert_eq!(settled(&[1]).next(&nodes(&[2]), |_| true, 2).map(|v| names(&v)), Some(vec![2]));
        let mut views = settled(&[1, 2]);
        let grown = views.next(&nodes(&[1, 2, 3, 4]), |_| true, 2).unwrap();
        assert_eq!((grown.previous, &grown.before[..]), (1, &[Instance(1), Instance(2)][..]));
        views.set(grown);
        // Half of the members know it, but nobody of those who were alone before.
        [3, 4].into_iter().for_each(|own| views.goes_by(Instance(own), 2));
        assert_eq!(views.next(&nodes(&[3, 4]), |_| true, 3), None);
        views.goes_by(Instance(1), 2);
        assert!(views.next(&nodes(&[3, 4]), |_| true, 3).is_some());
        assert!(!views.is_behind());
        views.goes_by(Instance(2), 9);
        assert!(views.is_behind());
    }
}
