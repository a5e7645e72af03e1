//! Publications of a channel of which their publishers want to know who has got them.
//!
//! Where other nodes have the channel, each says who is on it there as the publication comes to it: until it has, those count whom
//! it has named before, on its roll.

use std::collections::{BTreeMap, BTreeSet};

use ringfeed_protocol::{Offset, Position};

use super::members::Seat;
use crate::message::{Confirm, Someone, Wanted};

/// As many of one channel wait to be confirmed, …
pub(super) const WAITING_MAX: usize = 64;
/// … and so many of one publisher there: nobody takes all of them from the others.
pub(super) const OWN_WAITING_MAX: usize = 8;
/// So many are remembered of other nodes: 64 of them may have as many.
pub(super) const WANTED_MAX: usize = 4096;

/// Nodes have so long to say who was there, in milliseconds, where it is not known that they have the channel.
const PATIENCE_MS: u64 = 2000;

/// Receivers of one publication, whatever other nodes say who is there: what `limits.confirm_receivers_max` may be.
pub(super) const RECEIVERS_MAX: usize = 1 << 14;

/// What stands for this node among those that have to say who is there; no process is called so.
pub(super) const HERE: u64 = 0;

/// One that is published here.
#[derive(Debug)]
pub(super) struct Waiting {
    confirm: Confirm,
    /// Where it stands; `None` as long as nobody has said.
    position: Option<Position>,
    /// When its publisher is told at the latest; `None` as long as that does not know that it is published.
    due_ms: Option<u64>,
    confirmed: Vec<Someone>,
    missing: BTreeSet<Someone>,
    /// Nodes that have yet to say who was there when it came, with those who were before.
    awaited: BTreeMap<u64, BTreeSet<Someone>>,
    /// Other nodes that have.
    answered: BTreeSet<u64>,
    /// How many of them are asked, once that is known.
    expected: Option<usize>,
    /// Until when that many are waited for.
    patience_ms: u64,
}

/// What has come of one.
#[derive(Debug, PartialEq)]
pub(super) struct Receipts {
    pub(super) publisher: Seat,
    /// `None` where it was not published.
    pub(super) position: Option<Position>,
    /// In the order in which they have.
    pub(super) confirmed: Vec<Someone>,
    pub(super) missing: BTreeSet<Someone>,
}

impl Waiting {
    /// Begins to wait. `there` is who is on the channel, by node; `shared` whether other nodes are asked who it is.
    pub(super) fn new(
        confirm: Confirm,
        there: BTreeMap<u64, BTreeSet<Someone>>,
        shared: bool,
    ) -> Waiting {
        Waiting {
            confirm,
            position: None,
            due_ms: None,
            confirmed: Vec::new(),
            missing: BTreeSet::new(),
            awaited: there,
            answered: BTreeSet::new(),
            expected: (!shared).then_some(0),
            patience_ms: 0,
        }
    }

    /// How many are asked: who is awaited on several nodes counts on each.
    pub(super) fn receivers(&self) -> usize {
        let awaited = self.awaited.values().map(BTreeSet::len).sum::<usize>();
        self.confirmed.len() + self.missing.len() + awaited
    }

    /// It has come to its own channel's log, and stands there.
    pub(super) fn stands(&mut self, position: Position) {
        self.position = Some(position);
    }

    /// Its publisher is told where it stands: from now on the others have so long.
    pub(super) fn published(&mut self, position: Position, now_ms: u64) {
        self.position = Some(position);
        self.due_ms = Some(now_ms + u64::from(self.confirm.within_ms));
        self.patience_ms = now_ms + PATIENCE_MS;
    }

    /// So many other nodes were asked who was there when it came.
    pub(super) fn asked(&mut self, count: usize) {
        self.expected.get_or_insert(count);
    }

    /// A node says who was there when it came: some of them, or the `last` ones. No more are asked than `most`.
    pub(super) fn came(&mut self, from: u64, who: Vec<Someone>, last: bool, most: usize) {
        let before: BTreeSet<&Someone> = self.confirmed.iter().collect();
        let new = |who: &Someone| !before.contains(who) && *who != self.confirm.who;
        let new: Vec<Someone> = who.into_iter().filter(new).collect();
        for who in new {
            if self.confirmed.len() + self.missing.len() < most {
                self.missing.insert(who);
            }
        }
        if last {
            self.has_answered(from);
        }
    }

    /// A node says no more of who was there: those count whom it had named before.
    pub(super) fn silent(&mut self, from: u64) {
        if let Some(mut who) = self.awaited.remove(&from) {
            self.missing.append(&mut who);
        }
        self.has_answered(from);
    }

    fn has_answered(&mut self, from: u64) {
        self.awaited.remove(&from);
        if from != HERE {
            self.answered.insert(from);
        }
    }

    /// A node says that it does not have the channel. It may be of before it came there, and so is no answer.
    pub(super) fn left(&mut self, from: u64) {
        self.awaited.remove(&from);
    }

    /// Whether this node has yet to say who was there when it came.
    pub(super) fn awaits_here(&self) -> bool {
        self.awaited.contains_key(&HERE)
    }

    /// Somebody has got it. Returns whether that was waited for.
    pub(super) fn confirm(&mut self, who: &Someone) -> bool {
        let mut asked = self.missing.remove(who);
        for others in self.awaited.values_mut() {
            asked |= others.remove(who);
        }
        // Whoever has come back by another node may be sooner than the word of the one where they were.
        let may_be =
            || !self.is_counted() && *who != self.confirm.who && !self.confirmed.contains(who);
        let counts = asked || self.receivers() < RECEIVERS_MAX && may_be();
        if counts {
            self.confirmed.push(who.clone());
        }
        counts
    }

    /// Whether all nodes that were asked have said who was there; those that nobody knows of are not waited for long.
    fn is_counted(&self) -> bool {
        self.expected.is_some_and(|expected| self.answered.len() >= expected)
    }

    /// Time has passed. Returns whether it goes on: only nodes that nobody knows of are not waited for any more.
    pub(super) fn goes_on(&mut self, now_ms: u64) -> bool {
        let goes_on = !self.is_counted() && self.due_ms.is_some_and(|due_ms| due_ms > now_ms);
        if goes_on {
            self.expected = Some(0);
        }
        goes_on
    }

    /// Nothing is waited for any more, whoever is missing.
    pub(super) fn end(&mut self) {
        self.due_ms = self.due_ms.map(|_| 0);
    }

    /// When it is to be looked at: when its publisher is told at the latest, or at once where nobody is waited for any more.
    pub(super) fn due(&self) -> Option<u64> {
        let due_ms = self.due_ms?;
        Some(match (self.is_counted(), self.missing.is_empty() && self.awaited.is_empty()) {
            (false, _) => due_ms.min(self.patience_ms),
            (true, true) => 0,
            (true, false) => due_ms,
        })
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    /// By the numbers that their home gives them.
    waiting: BTreeMap<u64, Waiting>,
    /// Those of other nodes, where these wait for them, and until when.
    wanted: BTreeMap<Offset, (Wanted, u64)>,
}

impl Confirmations {
    /// Waits for receivers of a publication.
    pub(super) fn wait(&mut self, number: u64, waiting: Waiting) {
        self.waiting.insert(number, waiting);
    }

    /// One that is waited for.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Waiting> {
        self.waiting.get_mut(&number)
    }

    /// The one that stands there.
    pub(super) fn at(&self, position: Position) -> Option<u64> {
        let mut all = self.waiting.iter();
        all.find(|(_, own)| own.position == Some(position)).map(|(&number, _)| number)
    }

    /// Waits for nobody more.
    pub(super) fn end(&mut self, number: u64) -> Option<Receipts> {
        let Waiting { confirm, position, confirmed, mut missing, awaited, .. } =
            self.waiting.remove(&number)?;
        awaited.into_values().for_each(|mut who| missing.append(&mut who));
        Some(Receipts { publisher: confirm.publisher, position, confirmed, missing })
    }

    /// Publications that are waited for.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Their numbers.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.waiting.keys().copied().collect()
    }

    /// Those of a publisher.
    pub(super) fn len_of(&self, publisher: Seat) -> usize {
        self.waiting.values().filter(|own| own.confirm.publisher == publisher).count()
    }

    /// Who was asked, over all of them.
    pub(super) fn receivers(&self) -> usize {
        self.waiting.values().map(Waiting::receivers).sum()
    }

    /// When each is to be looked at.
    pub(super) fn due(&self) -> impl Iterator<Item = (u64, u64)> {
        self.waiting.iter().filter_map(|(&number, waiting)| Some((waiting.due()?, number)))
    }

    /// Remembers a publication of another node until then.
    pub(super) fn want(&mut self, offset: Offset, wanted: Wanted, until_ms: u64) {
        self.wanted.insert(offset, (wanted, until_ms));
        if self.wanted.len() > WANTED_MAX {
            self.wanted.pop_first();
        }
    }

    /// Where a publication of another node is waited for.
    pub(super) fn wanted_at(&self, offset: Offset) -> Option<Wanted> {
        self.wanted.get(&offset).map(|(wanted, _)| *wanted)
    }

    /// How many are remembered.
    pub(super) fn wanted_len(&self) -> usize {
        self.wanted.len()
    }

    /// Forgets those that nobody waits for any more.
    pub(super) fn forget_wanted(&mut self, now_ms: u64) {
        while let Some(oldest) = self.wanted.first_entry().filter(|own| own.get().1 <= now_ms) {
            oldest.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::UserId;
    use ringfeed_protocol::event::Epoch;

    use super::*;
    use crate::ids::{SessionId, SessionSlot, ShardId};

    fn user(name: &str) -> Someone {
        Someone::User(UserId::new(name).unwrap())
    }

    fn users<T: FromIterator<Someone>>(names: &[&str]) -> T {
        names.iter().copied().map(user).collect()
    }

    fn at(offset: u64) -> Position {
        Position { epoch: Epoch(5), offset: Offset(offset) }
    }

    const PUBLISHER: Seat = (ShardId(0), SessionId { slot: SessionSlot(1), generation: 1 });

    /// Waits for these, each with the number of its node.
    fn waiting(there: &[(u64, &[&str])], shared: bool) -> Waiting {
        let confirm = Confirm { publisher: PUBLISHER, who: user("pub"), within_ms: 900 };
        let there = there.iter().map(|(node, who)| (*node, users(who))).collect();
        Waiting::new(confirm, there, shared)
    }

    #[test]
    fn each_confirms_once_and_the_last_one_ends_it() {
        let mut all = Confirmations::default();
        for (number, who) in [(7, &["ann", "bob"][..]), (9, &["ann"])] {
            let mut waiting = waiting(&[(HERE, who)], false);
            waiting.silent(HERE);
            waiting.published(at(number + 10), 0);
            all.wait(number, waiting);
        }
        assert_eq!((all.len(), all.len_of(PUBLISHER), all.receivers()), (2, 2, 3));
        assert_eq!((all.at(at(17)), all.at(at(8))), (Some(7), None));
        let own = all.get_mut(7).unwrap();
        for (who, expected) in [("bob", true), ("bob", false), ("eve", false)] {
            assert_eq!((own.confirm(&user(who)), own.due()), (expected, Some(900)), "{who}");
        }
        assert!(own.confirm(&user("ann")));
        assert_eq!(all.due().collect::<Vec<_>>(), [(0, 7), (900, 9)]);
        let receipts = all.end(7).unwrap();
        assert_eq!(receipts.confirmed, ["bob", "ann"].map(user));
        assert!(receipts.missing.is_empty() && receipts.position == Some(at(17)));
        assert_eq!(all.end(7), None);
        assert_eq!(all.end(9).unwrap().missing, ["ann"].map(user).into());
        assert_eq!((all.len(), all.receivers()), (0, 0));
    }

    #[test]
    fn each_node_says_who_was_there_and_a_user_on_two_counts_once() {
        let mut own = waiting(&[(HERE, &["ann"]), (1, &["ann", "bob"]), (2, &["cleo"])], true);
        // Whoever has it sooner than it is published may say so.
        assert!(own.confirm(&user("ann")));
        assert_eq!(own.due(), None);
        own.came(HERE, users(&["ann", "pub"]), true, 9);
        own.published(at(1), 100);
        // She was asked by a node that has yet to say so, and has come back by another one.
        assert!(own.confirm(&user("fay")) && !own.confirm(&user("fay")));
        assert!(!own.confirm(&user("pub")), "nobody confirms to oneself");
        own.came(3, users(&["fay"]), true, 9);
        // He has left and dan has come since the roll was called.
        own.came(1, users(&["ann"]), false, 9);
        own.came(1, users(&["dan"]), true, 9);
        own.asked(3);
        assert_eq!((own.receivers(), own.due()), (4, Some(1000)));
        assert!(!own.confirm(&user("ann")), "once");
        assert!(own.confirm(&user("dan")));
        assert_eq!(own.due(), Some(1000), "the other node may name more");
        own.came(2, users(&["dan", "eve", "gil"]), true, 4);
        assert!(!own.confirm(&user("bob")), "all nodes have said who was there");
        assert!(own.confirm(&user("eve")));
        assert_eq!(own.due(), Some(0));
    }

    #[test]
    fn who_was_there_on_a_node_that_is_lost_is_missing() {
        let mut own = waiting(&[(1, &["bob"]), (2, &["cleo"])], false);
        own.published(at(1), 0);
        own.silent(1);
        own.left(2);
        assert_eq!((own.receivers(), own.due()), (1, Some(900)));
        let mut all = Confirmations::default();
        all.wait(3, own);
        assert_eq!(all.end(3).unwrap().missing, ["bob"].map(user).into());
    }

    #[test]
    fn it_is_not_over_before_all_who_were_asked_have_said_who_was_there() {
        let mut own = waiting(&[(HERE, &[])], true);
        own.silent(HERE);
        own.published(at(1), 0);
        own.came(1, users(&["bob"]), true, 9);
        assert!(own.confirm(&user("bob")));
        assert_eq!(own.due(), Some(900), "nobody has said how many there are");
        own.asked(2);
        assert_eq!(own.due(), Some(900));
        // It did not have the channel when somebody asked before.
        own.left(2);
        assert_eq!(own.due(), Some(900));
        own.came(2, vec![], true, 9);
        assert_eq!(own.due(), Some(0));
    }

    #[test]
    fn nodes_that_nobody_knows_of_are_not_waited_for_long() {
        let mut own = waiting(&[(HERE, &[]), (1, &["bob"])], true);
        own.confirm.within_ms = 60_000;
        own.silent(HERE);
        own.published(at(1), 0);
        own.asked(3);
        assert!(own.confirm(&user("bob")));
        assert_eq!(own.due(), Some(PATIENCE_MS));
        assert!(own.goes_on(PATIENCE_MS) && !own.goes_on(PATIENCE_MS));
        assert_eq!(own.due(), Some(60_000), "this one has the channel, and may name more");
        own.came(1, users(&["bob"]), true, 9);
        assert_eq!(own.due(), Some(0));
    }

    #[test]
    fn what_other_nodes_wait_for_is_remembered_for_a_time() {
        let mut all = Confirmations::default();
        let wanted = |number| Wanted { instance: 4, number };
        for number in 0..WANTED_MAX as u64 + 2 {
            all.want(Offset(number), wanted(number), 100 + number);
        }
        assert_eq!((all.wanted_len(), all.wanted_at(Offset(1))), (WANTED_MAX, None));
        assert_eq!(all.wanted_at(Offset(2)), Some(wanted(2)));
        all.forget_wanted(109);
        assert_eq!((all.wanted_at(Offset(9)), all.wanted_len()), (None, WANTED_MAX - 8));
        assert_eq!(all.wanted_at(Offset(10)), Some(wanted(10)));
    }
}
