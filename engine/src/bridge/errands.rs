//! What nodes ask of one another, and who still has to answer.
//!
//! An errand goes to all who have subscribed, and Redis says how many that were: with so many answers it is done. Redis counts
//! others that listen, too; so where fewer have come in time, it is done nevertheless if everybody has answered who was heard of
//! lately.

mod format;

use std::collections::BTreeMap;

use ringfeed_protocol::Refused;

pub(super) use format::{decode_answer, decode_errand, decode_kept, encode_kept};
pub(super) use format::{encode_answer, encode_errand};

use crate::ids::ShardId;
use crate::message::{Gathered, Outcome};

/// How long other nodes have to answer, in milliseconds.
const PATIENCE_MS: u64 = 2000;
/// What waits for answers; one more is refused.
const WAITING_MAX: usize = 65_536;

/// Why it is not known what has come of an errand.
pub(super) const AWAY: Refused = Refused::Unavailable {
    detail: "only this node could be asked: what passes it on to the others cannot be reached",
};
const LOST: Refused =
    Refused::Unavailable { detail: "not all nodes have answered: the way to them was lost" };
const SILENT: Refused = Refused::Unavailable { detail: "not all nodes have answered in time" };
const BUSY: Refused =
    Refused::Unavailable { detail: "only this node was asked: too much is asked of the others" };
const REFUSED: Refused = Refused::Unavailable { detail: "not all nodes could be asked" };

/// Who wants to know what has come of it: a shard, and the number by which it knows it.
pub(super) type Asker = (ShardId, u64);

/// One that is not done yet.
#[derive(Debug)]
struct Waiting {
    asker: Asker,
    since_ms: u64,
    /// How many are to answer, once Redis has said it.
    expected: Option<usize>,
    /// Who has.
    answered: Vec<u64>,
    outcome: Outcome,
}

impl Waiting {
    fn is_done(&self) -> bool {
        self.expected.is_some_and(|expected| self.answered.len() >= expected)
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Errands {
    next: u64,
    /// By number: in the order in which they were asked.
    waiting: BTreeMap<u64, Waiting>,
    /// What has come of some.
    done: Vec<(Asker, Gathered)>,
}

impl Errands {
    /// Somebody asks something of all nodes. Returns the number that it has, or nothing where it is refused.
    pub(super) fn ask(&mut self, asker: Asker, now_ms: u64) -> Option<u64> {
        if self.waiting.len() >= WAITING_MAX {
            self.done.push((asker, Err(BUSY)));
            return None;
        }
        let number = self.next;
        self.next += 1;
        let waiting = Waiting {
            asker,
            since_ms: now_ms,
            expected: None,
            answered: Vec::new(),
            outcome: Outcome::default(),
        };
        self.waiting.insert(number, waiting);
        Some(number)
    }

    /// It cannot be asked at all.
    pub(super) fn refuse(&mut self, asker: Asker) {
        self.done.push((asker, Err(AWAY)));
    }

    /// So many others have heard it.
    pub(super) fn heard_by(&mut self, number: u64, count: usize) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.expected = Some(count);
            self.settle(number);
        }
    }

    /// Redis has not passed it on.
    pub(super) fn not_heard(&mut self, number: u64) {
        self.end(number, Err(REFUSED));
    }

    /// A node has answered.
    pub(super) fn answered(&mut self, number: u64, instance: u64, outcome: Outcome) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        if !waiting.answered.contains(&instance) {
            waiting.answered.push(instance);
            waiting.outcome.add(outcome);
            self.settle(number);
        }
    }

    fn settle(&mut self, number: u64) {
        let is_done = self.waiting.get(&number).is_some_and(Waiting::is_done);
        if is_done && let Some(Waiting { asker, outcome, .. }) = self.waiting.remove(&number) {
            self.done.push((asker, Ok(outcome)));
        }
    }

    fn end(&mut self, number: u64, gathered: Gathered) {
        if let Some(Waiting { asker, .. }) = self.waiting.remove(&number) {
            self.done.push((asker, gathered));
        }
    }

    /// Time has passed. `alive` are the processes that were heard of lately.
    pub(super) fn tick(&mut self, now_ms: u64, alive: impl Fn() -> Vec<u64>) {
        while let Some(first) = self.waiting.first_entry()
            && now_ms.saturating_sub(first.get().since_ms) >= PATIENCE_MS
        {
            let Waiting { asker, answered, outcome, expected, .. } = first.remove();
            let all = expected.is_some() && alive().iter().all(|own| answered.contains(own));
            self.done.push((asker, if all { Ok(outcome) } else { Err(SILENT) }));
        }
    }

    /// Redis cannot be reached any more: nobody answers.
    pub(super) fn lost(&mut self) {
        let lost = std::mem::take(&mut self.waiting).into_values();
        self.done.extend(lost.map(|Waiting { asker, .. }| (asker, Err(LOST))));
    }

    /// What has come of those that are done.
    pub(super) fn take_done(&mut self) -> Vec<(Asker, Gathered)> {
        std::mem::take(&mut self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: Asker = (ShardId(1), 7);

    fn reached(reached: u32) -> Outcome {
        Outcome { reached, ..Outcome::default() }
    }

    fn gathered(errands: &mut Errands) -> Vec<Gathered> {
        errands
            .take_done()
            .into_iter()
            .map(|(asker, own)| (asker == ASKER).then_some(own).unwrap())
            .collect()
    }

    #[test]
    fn it_is_done_when_all_who_heard_it_have_answered() {
        let mut errands = Errands::default();
        let number = errands.ask(ASKER, 0).unwrap();
        errands.answered(number, 1, reached(2));
        assert!(gathered(&mut errands).is_empty(), "nobody has said yet how many there are");
        errands.heard_by(number, 2);
        errands.answered(number, 1, reached(2));
        assert!(gathered(&mut errands).is_empty(), "the same one counts once");
        errands.answered(number, 9, reached(3));
        errands.answered(number, 8, reached(3));
        assert_eq!(gathered(&mut errands), [Ok(reached(5))]);
        // Nobody else is there.
        let number = errands.ask(ASKER, 0).unwrap();
        errands.heard_by(number, 0);
        assert_eq!(gathered(&mut errands), [Ok(reached(0))]);
    }

    #[test]
    fn who_does_not_answer_in_time_is_missing_only_if_it_was_heard_of_lately() {
        for (alive, expected) in [(vec![1], Ok(reached(2))), (vec![1, 2], Err(SILENT))] {
            let mut errands = Errands::default();
            let number = errands.ask(ASKER, 10).unwrap();
            errands.heard_by(number, 2);
            errands.answered(number, 1, reached(2));
            errands.tick(10 + PATIENCE_MS - 1, || alive.clone());
            assert!(gathered(&mut errands).is_empty());
            errands.tick(10 + PATIENCE_MS, || alive.clone());
            assert_eq!(gathered(&mut errands), [expected]);
            errands.answered(number, 2, reached(2));
            assert!(gathered(&mut errands).is_empty());
        }
    }

    #[test]
    fn nothing_that_is_not_known_is_said_to_be_done() {
        let mut errands = Errands::default();
        errands.refuse(ASKER);
        errands.ask(ASKER, 0);
        errands.lost();
        let number = errands.ask(ASKER, 0).unwrap();
        errands.not_heard(number);
        errands.ask(ASKER, 0);
        errands.tick(PATIENCE_MS, Vec::new);
        assert_eq!(gathered(&mut errands), [Err(AWAY), Err(LOST), Err(REFUSED), Err(SILENT)]);
    }
}
