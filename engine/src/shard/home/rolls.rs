//! Who is on a channel on other nodes, as these say it: what is not yet told of here, and what is not yet known of there.
//!
//! Nothing is counted and nothing is kept elsewhere: nodes hear one another in order as long as they are connected, and whoever has
//! not been, or is new, says all that there is here and asks for all that there is there.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::{Request, Roll, RollEntry};

/// How long others have to say who is there before it is answered without them, in milliseconds.
const PATIENCE_MS: u64 = 2000;

/// Another node.
#[derive(Debug, Default)]
struct Other {
    subscribers: u32,
    /// What has come of who is there, from its beginning, while more is to come.
    parts: Option<Vec<RollEntry>>,
}

/// The others were asked.
#[derive(Debug)]
struct Asked {
    at_ms: u64,
    /// How many, once that is known.
    count: Option<usize>,
    answered: BTreeSet<u64>,
}

impl Asked {
    fn at(at_ms: u64) -> Asked {
        Asked { at_ms, count: None, answered: BTreeSet::new() }
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Rolls {
    others: BTreeMap<u64, Other>,
    asked: Option<Asked>,
    /// Everybody who was asked has answered, or had time to.
    known: bool,
    /// Nodes that were not among these though they are taken to have the channel.
    doubted: Vec<u64>,
    /// The others have to be told and asked once they can be.
    pub(super) due: bool,
    /// Something here has changed of which they were not told.
    pub(super) dirty: bool,
    /// Subscriptions here, as all others were told; `None` where some were told otherwise.
    pub(super) told: Option<u32>,
    /// What waits until it is known who is there.
    waiting: Vec<Request>,
}

/// Who is there on another node, whole or what has changed.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    Whole(Vec<RollEntry>),
    Changed(Vec<RollEntry>),
}

impl Rolls {
    /// Nobody knows of anybody yet.
    pub(super) fn new() -> Rolls {
        Rolls { due: true, ..Rolls::default() }
    }

    /// The others are asked now.
    pub(super) fn ask(&mut self, now_ms: u64) {
        (self.due, self.dirty) = (false, false);
        // Who waits already does not wait longer for that.
        let since_ms = self.asked.as_ref().map_or(now_ms, |asked| asked.at_ms);
        self.asked = Some(Asked::at(since_ms));
    }

    /// So many were asked.
    pub(super) fn asked(&mut self, count: usize) {
        if let Some(asked) = &mut self.asked {
            asked.count = Some(count);
            self.settle();
        }
    }

    /// Another node says who is there. Returns what that is, once it has said all of it.
    pub(super) fn heard(&mut self, from: u64, roll: Roll) -> Option<Said> {
        let Roll { whole, first, more, asks, has_it, subscribers, mut entries } = roll;
        if whole && !more && !asks {
            // What it says of itself to all is no answer: it may be of before.
            if let Some(asked) = &mut self.asked {
                asked.answered.insert(from);
                self.settle();
            }
        }
        if !has_it {
            self.others.remove(&from);
            return Some(Said::Whole(Vec::new()));
        }
        let other = self.others.entry(from).or_default();
        other.subscribers = subscribers;
        if !whole {
            return Some(Said::Changed(entries));
        }
        if first {
            other.parts = Some(Vec::new());
        }
        // Of what has begun before anything was heard, the beginning is missing.
        other.parts.as_mut()?.append(&mut entries);
        if more { None } else { other.parts.take().map(Said::Whole) }
    }

    /// Another node is not there any more. Returns whether this is the one, of those that have the channel, that tells of who
    /// was there; `None` where it did not have it.
    pub(super) fn gone(&mut self, instance: u64, own: u64) -> Option<bool> {
        self.others.remove(&instance)?;
        Some(self.others.keys().all(|&other| own < other))
    }

    /// Other nodes that have the channel.
    pub(super) fn others(&self) -> impl Iterator<Item = u64> {
        self.others.keys().copied()
    }

    /// Subscriptions on other nodes.
    pub(super) fn subscribers(&self) -> u64 {
        self.others.values().map(|other| u64::from(other.subscribers)).sum()
    }

    fn settle(&mut self) {
        let is_done =
            |asked: &Asked| asked.count.is_some_and(|count| asked.answered.len() >= count);
        if let Some(asked) = self.asked.take_if(|asked| is_done(asked)) {
            self.known = true;
            let doubted = self.others().filter(|other| !asked.answered.contains(other));
            self.doubted = doubted.collect();
        }
    }

    /// Nodes that are to be asked by themselves whether they still have the channel: they may have said that they do not, as that could not
    /// be heard.
    pub(super) fn take_doubted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.doubted)
    }

    /// Whether it is known who is there. Who has not answered in time is not waited for.
    pub(super) fn is_known(&mut self, now_ms: u64) -> bool {
        let late = |asked: &Asked| now_ms.saturating_sub(asked.at_ms) >= PATIENCE_MS;
        self.known |= self.asked.as_ref().is_some_and(late);
        self.known
    }

    /// Whether something waits for what others say.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Holds something back until it is known who is there.
    pub(super) fn wait(&mut self, request: Request, now_ms: u64) {
        self.asked.get_or_insert_with(|| Asked::at(now_ms));
        self.waiting.push(request);
    }

    /// Nothing is shared any more: the other nodes that had the channel, and what waited for what they say.
    pub(super) fn end(self) -> (Vec<u64>, Vec<Request>) {
        (self.others.into_keys().collect(), self.waiting)
    }

    /// What need not wait any longer.
    pub(super) fn take_waiting(&mut self, now_ms: u64) -> Vec<Request> {
        if self.is_known(now_ms) { std::mem::take(&mut self.waiting) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnectionId, ShardId};
    use crate::message::Someone;

    fn entry(number: u64) -> RollEntry {
        let who = Someone::Connection(ConnectionId { shard: ShardId(0), number });
        RollEntry { who, is_there: true, last: false, info: None }
    }

    fn roll(whole: bool, more: bool, subscribers: u32, entries: Vec<RollEntry>) -> Roll {
        let (first, asks, has_it) = (true, false, true);
        Roll { whole, first, more, asks, has_it, subscribers, entries }
    }

    #[test]
    fn it_is_known_who_is_there_when_all_who_were_asked_have_said_all() {
        let mut rolls = Rolls::default();
        rolls.ask(0);
        rolls.wait(Request::Resume, 0);
        assert!(rolls.take_waiting(0).is_empty());
        assert_eq!(rolls.heard(1, roll(true, true, 3, vec![entry(1)])), None);
        rolls.asked(2);
        let said = rolls.heard(2, roll(true, false, 1, vec![entry(9)]));
        assert_eq!(said, Some(Said::Whole(vec![entry(9)])));
        // What changes meanwhile is no answer.
        let said = rolls.heard(3, roll(false, false, 1, vec![entry(4)]));
        assert_eq!(said, Some(Said::Changed(vec![entry(4)])));
        assert!(!rolls.is_known(0));
        let last = Roll { first: false, ..roll(true, false, 3, vec![entry(2)]) };
        let said = rolls.heard(1, last);
        assert_eq!(said, Some(Said::Whole(vec![entry(1), entry(2)])));
        assert!(rolls.is_known(0));
        assert_eq!((rolls.take_waiting(0).len(), rolls.subscribers()), (1, 5));
        assert_eq!(rolls.take_doubted(), [3], "was not asked, and is taken to have the channel");
        // Nor is what somebody says to all, or the end of what has begun before.
        let to_all = Roll { asks: true, ..roll(true, false, 7, vec![]) };
        assert_eq!(rolls.heard(4, to_all), Some(Said::Whole(vec![])));
        assert_eq!(rolls.heard(5, Roll { first: false, ..roll(true, false, 0, vec![]) }), None);
        assert_eq!(
            (rolls.gone(9, 0), rolls.gone(3, 10), rolls.gone(4, 10)),
            (None, Some(false), Some(false))
        );
        assert_eq!((rolls.gone(5, 10), rolls.gone(1, 1)), (Some(false), Some(true)));
        assert_eq!(rolls.subscribers(), 1);
        let nothing = Roll { has_it: false, ..roll(true, false, 0, vec![]) };
        assert_eq!((rolls.heard(2, nothing), rolls.gone(2, 0)), (Some(Said::Whole(vec![])), None));
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        let mut rolls = Rolls::default();
        rolls.ask(10);
        rolls.asked(1);
        rolls.wait(Request::Resume, 10);
        assert!(rolls.take_waiting(10 + PATIENCE_MS - 1).is_empty());
        assert_eq!(rolls.take_waiting(10 + PATIENCE_MS).len(), 1);
        // Asked once more, what was known goes on to be.
        rolls.ask(9000);
        assert!(rolls.is_known(9000));
    }
}
