//! Who is on a channel whose rule wants that known: its members, each a subscription of a session, and who is present,
//! each a user with all of their members or a connection that is nobody's.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use ringfeed_protocol::UserId;

use super::confirmations::Confirmations;
use super::notices::{Notice, Notices};
use super::rolls::Said;
use crate::access::Identity;
use crate::ids::{SessionId, ShardId};
use crate::message::{Caller, Present, RollEntry, Someone};

/// What an entry of a page takes beside what is shown of somebody, in bytes, about.
const ENTRY_BYTES: usize = 64;

/// Users who have gone with their node may be remembered; above it they are forgotten.
const MISSED_MAX: usize = 65_536;

/// The session of a member.
pub(super) type Seat = (ShardId, SessionId);

/// What is known of one session.
#[derive(Debug)]
struct Member {
    /// `None` while its shard has not said.
    who: Option<Someone>,
    /// Its subscriptions: for a moment more than one, where it has ended one before that was answered and has begun
    /// another.
    subscriptions: u32,
}

/// Somebody who is there.
#[derive(Debug)]
struct There {
    /// Sessions of this node.
    connections: u32,
    /// Other nodes where they are, and what these show of them.
    elsewhere: Vec<(u64, Arc<Identity>)>,
    /// Of the one that came last, of those of this node where there are any: what is shown of them.
    identity: Arc<Identity>,
    /// They have left this node while another one had them, which may not have known that.
    may_be_last: bool,
}

/// See the module's description. A home has it only where its channel's rule says so. Nothing in it moves when it grows.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_session: BTreeMap<Seat, Member>,
    /// In the order in which pages name them.
    present: BTreeMap<Someone, There>,
    /// How often `present` has changed.
    version: u64,
    /// What subscribers are told of that, where they are.
    notices: Option<Notices>,
    /// Whether the application is told of users.
    heard: bool,
    /// Users who have come or gone, of whom it is to be told.
    news: Vec<(UserId, bool, Arc<Identity>)>,
    /// Who has changed on this node, and whether they were nowhere else, where other nodes are told.
    moved: Option<BTreeMap<Someone, bool>>,
    /// Of whom the application was told that they had left, since their node was not heard any more.
    missed: BTreeMap<Someone, u64>,
    /// Subscribers are not told of what changes now.
    quiet: bool,
    /// What they are asked to confirm.
    pub(super) confirmations: Confirmations,
}

impl There {
    /// Whether they are on another node.
    fn is_on(&self, instance: u64) -> bool {
        self.elsewhere.iter().any(|(own, _)| *own == instance)
    }

    /// Nowhere yet.
    fn new(identity: &Arc<Identity>) -> There {
        let (identity, elsewhere) = (identity.clone(), Vec::new());
        There { connections: 0, elsewhere, identity, may_be_last: false }
    }
}

impl Members {
    /// Nobody yet. Subscribers are told of changes where there is an interval, each so long after the one before; the
    /// application is told where it is to be `heard`, and other nodes where it is `shared`.
    pub(super) fn new(interval_ms: Option<u64>, heard: bool, shared: bool) -> Members {
        let notices = interval_ms.map(Notices::new);
        let moved = shared.then(BTreeMap::new);
        Members { notices, heard, moved, ..Members::default() }
    }

    /// Other nodes are told who is there from now on, or no more.
    pub(super) fn share(&mut self, is_shared: bool) {
        self.moved = is_shared.then(BTreeMap::new);
    }

    /// Users who have come or gone, of whom the application was not told.
    pub(super) fn take_news(&mut self) -> Vec<(UserId, bool, Arc<Identity>)> {
        std::mem::take(&mut self.news)
    }

    fn hear(&mut self, who: &Someone, joined: bool, identity: &Arc<Identity>) {
        if let (true, Someone::User(user)) = (self.heard, who) {
            self.news.push((user.clone(), joined, identity.clone()));
        }
    }

    /// A subscription was counted in.
    pub(super) fn join(&mut self, seat: Seat, caller: Option<&Caller>) {
        let member = Member { who: None, subscriptions: 0 };
        self.by_session.entry(seat).or_insert(member).subscriptions += 1;
        if let Some(caller) = caller {
            self.name(seat, caller);
        }
    }

    /// A member is, or has become, somebody.
    pub(super) fn name(&mut self, seat: Seat, caller: &Caller) {
        let Some(member) = self.by_session.get_mut(&seat) else { return };
        let who = Someone::of(caller);
        let before = member.who.replace(who.clone());
        if before.as_ref() != Some(&who) {
            self.arrive(who, &caller.identity);
            if let Some(before) = before {
                self.depart(&before);
            }
        } else if self.is_shown_otherwise(&who, &caller.identity) {
            self.change(&who);
            if let Some(there) = self.present.get_mut(&who) {
                there.identity = caller.identity.clone();
            }
            self.has_moved(&who, false);
        }
    }

    /// Other nodes are to be told of somebody.
    fn has_moved(&mut self, who: &Someone, last: bool) {
        if let Some(moved) = &mut self.moved {
            moved.insert(who.clone(), last);
        }
    }

    /// Whether this is not what is shown of somebody.
    fn is_shown_otherwise(&self, who: &Someone, identity: &Identity) -> bool {
        self.present.get(who).is_none_or(|there| there.identity.info != identity.info)
    }

    /// Somebody comes, goes or is shown otherwise: to be called before.
    fn change(&mut self, who: &Someone) {
        self.version += 1;
        if let Some(notices) = self.notices.as_mut().filter(|_| !self.quiet) {
            notices.note(who, self.present.get(who).map(|there| &there.identity));
        }
    }

    /// A subscription was counted out.
    pub(super) fn leave(&mut self, seat: Seat) {
        let Entry::Occupied(mut member) = self.by_session.entry(seat) else { return };
        member.get_mut().subscriptions -= 1;
        if member.get().subscriptions == 0
            && let Some(who) = member.remove().who
        {
            self.depart(&who);
        }
    }

    fn arrive(&mut self, who: Someone, identity: &Arc<Identity>) {
        if self.is_shown_otherwise(&who, identity) {
            self.change(&who);
        }
        if !self.present.contains_key(&who) {
            self.hear(&who, true, identity);
            self.missed.remove(&who);
        }
        if self.moved.is_some() {
            self.has_moved(&who, false);
        }
        let there = self.present.entry(who).or_insert_with(|| There::new(identity));
        there.connections += 1;
        there.identity = identity.clone();
        there.may_be_last = false;
    }

    fn depart(&mut self, who: &Someone) {
        let Some(there) = self.present.get_mut(who) else { return };
        if there.connections > 1 {
            there.connections -= 1;
        } else if there.elsewhere.is_empty() {
            self.change(who);
            if let Some(there) = self.present.remove(who) {
                self.hear(who, false, &there.identity);
            }
            self.has_moved(who, true);
        } else {
            (there.connections, there.may_be_last) = (0, true);
            self.has_moved(who, false);
            self.show_elsewhere(who);
        }
    }

    /// Shows somebody who is not on this node as another one does.
    fn show_elsewhere(&mut self, who: &Someone) {
        let there = self.present.get(who).filter(|there| there.connections == 0);
        let Some((_, identity)) = there.and_then(|there| there.elsewhere.last()) else { return };
        let identity = identity.clone();
        if self.is_shown_otherwise(who, &identity) {
            self.change(who);
        }
        if let Some(there) = self.present.get_mut(who) {
            there.identity = identity;
        }
    }

    /// Another node says who is there. Where it says all, it says of nobody who has left that nobody else tells of them.
    /// Subscribers are not told of whom there may have been before them (`quiet`).
    pub(super) fn take_said(&mut self, from: u64, said: Said, quiet: bool) {
        self.quiet = quiet;
        self.take_entries(from, said);
        self.quiet = false;
    }

    fn take_entries(&mut self, from: u64, said: Said) {
        let entries = match said {
            Said::Changed(entries) => entries,
            Said::Whole(entries) => {
                let there: BTreeSet<&Someone> = entries.iter().map(|own| &own.who).collect();
                let is_left =
                    |(who, own): &(&Someone, &There)| own.is_on(from) && !there.contains(who);
                let left = self.present.iter().filter(is_left).map(|(who, _)| who.clone());
                for who in left.collect::<Vec<_>>() {
                    self.leave_elsewhere(&who, from, false);
                }
                entries
            }
        };
        for RollEntry { who, is_there, last, info } in entries {
            match is_there {
                true => self.come_elsewhere(who, from, info),
                false => self.leave_elsewhere(&who, from, last),
            }
        }
    }

    fn come_elsewhere(&mut self, who: Someone, from: u64, info: Option<Box<str>>) {
        let user = match &who {
            Someone::User(user) => Some(user.clone()),
            Someone::Connection(_) => None,
        };
        let identity = Arc::new(Identity { user, info, ..Identity::default() });
        if !self.present.contains_key(&who) {
            self.change(&who);
            if self.missed.get(&who) == Some(&from) {
                // The application was told that they had left with their node, which is there after all.
                self.hear(&who, true, &identity);
            }
        }
        self.missed.remove(&who);
        let there = self.present.entry(who.clone()).or_insert_with(|| There::new(&identity));
        match there.elsewhere.iter_mut().find(|(own, _)| *own == from) {
            Some((_, known)) => *known = identity,
            None => there.elsewhere.push((from, identity)),
        }
        self.show_elsewhere(&who);
    }

    /// Somebody has left another node; `told` where the application hears of it from there, if it is to.
    fn leave_elsewhere(&mut self, who: &Someone, from: u64, told: bool) {
        let Some(there) = self.present.get_mut(who) else { return };
        there.elsewhere.retain(|(own, _)| *own != from);
        match (there.connections, there.elsewhere.is_empty()) {
            (0, true) => {
                self.change(who);
                if let Some(there) = self.present.remove(who)
                    && there.may_be_last
                    && !told
                {
                    // Both have left while each thought that the other had them.
                    self.hear(who, false, &there.identity);
                }
            }
            (0, false) => self.show_elsewhere(who),
            // They have come here before that was heard, and so nobody has told of that.
            (_, true) if told => {
                let identity = there.identity.clone();
                self.hear(who, true, &identity);
            }
            _ => {}
        }
    }

    /// Another node is not there any more, and nobody on it; whether the application is told from here.
    pub(super) fn forget_node(&mut self, instance: u64, tells: bool) {
        let there = self.present.iter_mut().filter(|(_, own)| own.is_on(instance));
        let there = there.map(|(who, own)| {
            own.may_be_last |= tells;
            who.clone()
        });
        for who in there.collect::<Vec<_>>() {
            self.leave_elsewhere(&who, instance, false);
            if tells && self.heard && !self.present.contains_key(&who) {
                if self.missed.len() >= MISSED_MAX {
                    self.missed.clear();
                }
                self.missed.insert(who, instance);
            }
        }
    }

    /// What other nodes are to be told of who has come and gone here.
    pub(super) fn take_moved(&mut self) -> Vec<RollEntry> {
        let moved = self.moved.as_mut().map(std::mem::take).unwrap_or_default();
        let entries = moved.into_iter().map(|(who, last)| {
            let here = self.present.get(&who).filter(|there| there.connections > 0);
            let info = here.and_then(|there| there.identity.info.clone());
            RollEntry { is_there: here.is_some(), last: here.is_none() && last, info, who }
        });
        entries.collect()
    }

    /// What other nodes are to be told of who is here.
    pub(super) fn all_here(&self) -> Vec<RollEntry> {
        let here = self.present.iter().filter(|(_, there)| there.connections > 0);
        let entries = here.map(|(who, there)| {
            let (who, info) = (who.clone(), there.identity.info.clone());
            RollEntry { who, is_there: true, last: false, info }
        });
        entries.collect()
    }

    /// When subscribers are to be told of changes, if there are any and nobody sees to it yet.
    pub(super) fn becomes_due(&mut self, now_ms: u64) -> Option<u64> {
        self.notices.as_mut()?.becomes_due(now_ms)
    }

    /// What they are to be told, if it was to be by now.
    pub(super) fn take_notice(&mut self, due_ms: u64, now_ms: u64) -> Option<Notice> {
        let Members { notices, present, .. } = self;
        let notices = notices.as_mut().filter(|notices| notices.due_ms == Some(due_ms))?;
        notices.take(now_ms, |who| present.get(who).map(|there| &there.identity))
    }

    /// When something is to be told that no interval puts off.
    pub(super) fn is_due_at_once(&self) -> Option<u64> {
        self.notices.as_ref().filter(|notices| notices.is_immediate())?.due_ms
    }

    /// Somebody is told who is there.
    pub(super) fn ask(&mut self) {
        self.notices.iter_mut().for_each(Notices::ask);
    }

    /// Whether it is known who a session is; `None` where it is no member.
    pub(super) fn knows(&self, seat: Seat) -> bool {
        self.who(seat).is_some()
    }

    /// Whether a session is a member.
    pub(super) fn has(&self, seat: Seat) -> bool {
        self.by_session.contains_key(&seat)
    }

    /// Who a session is; `None` where it is no member, or that is not known.
    pub(super) fn who(&self, seat: Seat) -> Option<&Someone> {
        self.by_session.get(&seat)?.who.as_ref()
    }

    /// All who are there on this node, in order.
    pub(super) fn present_here(&self) -> impl Iterator<Item = &Someone> {
        self.present.iter().filter(|(_, there)| there.connections > 0).map(|(who, _)| who)
    }

    /// All who are there, in order.
    pub(super) fn present(&self) -> impl Iterator<Item = &Someone> {
        self.present.keys()
    }

    /// All who are there, on each node where they are; this one is called `here`.
    pub(super) fn by_node(&self, here: u64) -> impl Iterator<Item = (u64, &Someone)> {
        self.present.iter().flat_map(move |(who, there)| {
            let own = (there.connections > 0).then_some(here);
            own.into_iter()
                .chain(there.elsewhere.iter().map(|(node, _)| *node))
                .map(move |n| (n, who))
        })
    }

    /// How often who is there has changed.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many are there.
    pub(super) fn count(&self) -> usize {
        self.present.len()
    }

    /// How many connections they have on this node.
    pub(super) fn connections(&self) -> usize {
        self.by_session.len()
    }

    /// Those behind somebody, up to so many and so many bytes, but one at least; and whether there are more.
    pub(super) fn page(
        &self,
        after: Option<&Someone>,
        limit: usize,
        bytes_max: usize,
    ) -> (Vec<Present>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = self.present.range((from, Bound::Unbounded)).peekable();
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some((who, there)) = behind.next_if(|(_, there)| {
            bytes += ENTRY_BYTES + there.identity.info.as_ref().map_or(0, |info| info.len());
            page.len() < limit && (page.is_empty() || bytes <= bytes_max)
        }) {
            page.push(Present { who: who.clone(), identity: there.identity.clone() });
        }
        (page, behind.peek().is_some())
    }

    /// Sessions that are counted, and who they are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seat, Option<&Someone>)> {
        self.by_session.iter().map(|(seat, member)| (*seat, member.who.as_ref()))
    }

    /// Panics if what is counted is not what is there. `subscribers` are those of the channel.
    pub(super) fn check(&self, subscribers: u64) {
        let all = self.by_session.values();
        let subscriptions: u64 = all.map(|member| u64::from(member.subscriptions)).sum();
        assert_eq!(subscriptions, subscribers, "members are those who are subscribed");
        let named = self.by_session.values().filter(|member| member.who.is_some()).count();
        let connections: u64 = self.present.values().map(|own| u64::from(own.connections)).sum();
        assert_eq!(connections, named as u64, "who is there has members");
        let is_there = |there: &There| there.connections > 0 || !there.elsewhere.is_empty();
        assert!(self.present.values().all(is_there), "who is there is there");
        assert!(self.version >= self.present.len() as u64, "each who came was counted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnectionId, SessionSlot};

    fn caller(number: u64, user: Option<&str>, info: Option<&str>) -> Caller {
        let identity = Identity {
            user: user.map(|user| UserId::new(user).unwrap()),
            info: info.map(Box::from),
            ..Identity::default()
        };
        let connection = ConnectionId { shard: ShardId(0), number };
        Caller { connection, identity: Arc::new(identity) }
    }

    fn seat(slot: u32) -> Seat {
        (ShardId(0), SessionId { slot: SessionSlot(slot), generation: 1 })
    }

    fn names(members: &Members) -> Vec<String> {
        members.page(None, 99, 1 << 20).0.iter().map(|own| own.who.to_string()).collect()
    }

    #[test]
    fn a_user_is_there_from_the_first_connection_to_the_last() {
        let mut members = Members::default();
        members.join(seat(1), Some(&caller(1, Some("ann"), None)));
        members.join(seat(2), Some(&caller(2, Some("ann"), None)));
        assert_eq!((members.version(), members.count(), members.connections()), (1, 1, 2));
        members.join(seat(3), Some(&caller(3, None, None)));
        assert_eq!(names(&members), ["user:ann", "connection:00000000000000000003"]);
        members.check(3);
        members.leave(seat(1));
        assert_eq!((members.version(), members.count()), (2, 2));
        members.leave(seat(2));
        assert_eq!((members.version(), members.count()), (3, 1));
        members.leave(seat(3));
        members.check(0);
        assert_eq!((members.version(), members.count()), (4, 0));
    }

    #[test]
    fn a_session_that_is_counted_twice_for_a_moment_is_there_once() {
        let mut members = Members::default();
        let own = caller(1, Some("ann"), None);
        members.join(seat(1), Some(&own));
        members.join(seat(1), Some(&own));
        members.check(2);
        members.leave(seat(1));
        members.check(1);
        assert_eq!((members.version(), members.count(), members.connections()), (1, 1, 1));
    }

    #[test]
    fn who_becomes_somebody_else_leaves_and_comes_and_who_was_not_named_is_named_later() {
        let mut members = Members::default();
        members.join(seat(1), None);
        assert!(!members.knows(seat(1)) && members.count() == 0);
        members.check(1);
        members.name(seat(1), &caller(1, None, None));
        members.name(seat(1), &caller(1, Some("ann"), None));
        members.check(1);
        assert_eq!((names(&members), members.version()), (vec!["user:ann".to_owned()], 3));
        // Another word about who is there already, and the same again.
        members.name(seat(1), &caller(1, Some("ann"), Some("1")));
        members.name(seat(1), &caller(1, Some("ann"), Some("1")));
        assert_eq!(members.version(), 4);
        // Nobody who has gone comes back by being named.
        members.leave(seat(1));
        members.name(seat(1), &caller(1, Some("ann"), None));
        members.check(0);
        assert_eq!(members.count(), 0);
    }

    fn entry(name: &str, is_there: bool, last: bool, info: Option<&str>) -> RollEntry {
        let who = Someone::User(UserId::new(name).unwrap());
        RollEntry { who, is_there, last, info: info.map(Box::from) }
    }

    fn news(members: &mut Members) -> Vec<(String, bool)> {
        members.take_news().iter().map(|(user, joined, _)| (user.to_string(), *joined)).collect()
    }

    #[test]
    fn a_user_is_there_as_long_as_on_any_node() {
        let mut members = Members::new(None, true, true);
        let own = caller(1, Some("ann"), Some("1"));
        members.take_said(
            7,
            Said::Whole(vec![
                entry("ann", true, false, Some("2")),
                entry("bob", true, false, None),
            ]),
            false,
        );
        assert_eq!(
            (names(&members), members.version()),
            (vec!["user:ann".into(), "user:bob".into()], 2)
        );
        members.join(seat(1), Some(&own));
        // She is shown as here, and has come before.
        assert_eq!((members.version(), members.count(), news(&mut members)), (3, 2, vec![]));
        assert_eq!(members.take_moved(), [entry("ann", true, false, Some("1"))]);
        members.take_said(7, Said::Changed(vec![entry("ann", true, false, Some("3"))]), false);
        assert_eq!(members.version(), 3, "that is not what is shown of her");
        members.leave(seat(1));
        assert_eq!(members.take_moved(), [entry("ann", false, false, None)]);
        members.check(0);
        assert_eq!((members.count(), news(&mut members)), (2, vec![]));
        // There it is known that she was nowhere else: it tells the application.
        members.take_said(7, Said::Changed(vec![entry("ann", false, true, None)]), false);
        assert_eq!((names(&members), news(&mut members)), (vec!["user:bob".to_owned()], vec![]));
        members.forget_node(7, false);
        assert_eq!((members.count(), news(&mut members)), (0, vec![]));
        members.check(0);
    }

    #[test]
    fn the_last_one_to_leave_is_told_of_by_somebody() {
        let mut members = Members::new(None, true, true);
        let come = |members: &mut Members| {
            members.join(seat(1), Some(&caller(1, Some("ann"), None)));
            members.take_said(7, Said::Changed(vec![entry("ann", true, false, None)]), false);
        };
        come(&mut members);
        assert_eq!(news(&mut members), [("ann".to_owned(), true)]);
        // Both at once: neither was the last for itself.
        members.leave(seat(1));
        assert_eq!(news(&mut members), []);
        members.take_said(7, Said::Changed(vec![entry("ann", false, false, None)]), false);
        assert_eq!(news(&mut members), [("ann".to_owned(), false)]);
        // The same where the other one has said it all anew since.
        come(&mut members);
        members.leave(seat(1));
        members.take_said(7, Said::Whole(vec![]), false);
        assert_eq!(news(&mut members), [("ann".to_owned(), true), ("ann".to_owned(), false)]);
        // Of whom a node has that ends another one tells, and only of those who are nowhere else.
        come(&mut members);
        members.take_said(7, Said::Changed(vec![entry("bob", true, false, None)]), false);
        news(&mut members);
        members.forget_node(7, true);
        assert_eq!(
            (names(&members), news(&mut members)),
            (vec!["user:ann".into()], vec![("bob".to_owned(), false)])
        );
        members.check(1);
    }

    #[test]
    fn pages_follow_each_other_without_hole_or_repetition() {
        let mut members = Members::default();
        for i in 0..100 {
            let user = format!("u{}", i % 70);
            members.join(seat(i), Some(&caller(i.into(), Some(&user), Some("12345678"))));
        }
        for (limit, bytes_max) in [(7, 1 << 20), (1000, 500), (1000, 0)] {
            let (mut all, mut after) = (Vec::new(), None);
            loop {
                let (page, more) = members.page(after.as_ref(), limit, bytes_max);
                assert!(page.len() <= limit && (1..=70).contains(&page.len()));
                after = page.last().map(|own| own.who.clone());
                all.extend(page.into_iter().map(|own| own.who.to_string()));
                if !more {
                    break;
                }
            }
            assert_eq!(all, names(&members), "{limit} {bytes_max}");
            assert_eq!(all.len(), 70);
        }
        assert!(members.page(None, 0, 100).0.is_empty());
        assert!(members.page(None, 0, 100).1);
    }
}
