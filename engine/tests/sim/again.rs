//! Publications of the API with idempotency keys, sent again: also behind one that is held back, and when nobody has
//! waited for the first answer.

use super::dice::Dice;
use super::judge::{Judge, Rule};
use super::node::Item;
use super::trace::note;
use super::world::World;

/// Of these so many are remembered, to be sent again.
const SENT_MAX: usize = 32;

/// A publication that may be sent again.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) channel: usize,
    pub(super) except: Option<String>,
}

impl Sent {
    /// Something with a key is sent: perhaps it will be again.
    pub(super) fn remember(self, all: &mut Vec<Sent>, dice: &mut Dice) {
        if all.len() == SENT_MAX {
            all.swap_remove(dice.below(SENT_MAX));
        }
        all.push(self);
    }
}

impl World {
    /// The API sends something again, once or more often.
    pub(super) fn publish_again(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let Sent { number, channel, except } = self.sent[self.dice.below(self.sent.len())].clone();
        let name = self.setup.channels[channel].name.as_str();
        let home = self.cluster.home(name);
        let count = if self.dice.chance(200) { self.dice.range(2, 5) } else { 1 };
        let item = |_| Item {
            number,
            channel,
            name,
            kind: self.judge.publications[number as usize - 1].kind,
            payload: self.judge.payload(number),
            except: except.clone(),
            keyed: true,
        };
        let items = (0..count).map(item).collect();
        if let Some(waiting) = self.cluster.publish(home, items) {
            note!(self.trace, "the API publishes {number} again, {count} times");
            self.judge.publications[number as usize - 1].is_sent_again = true;
            self.waiting.push(waiting);
        }
    }
}

impl Judge {
    /// What was answered to a publication that has a place.
    pub(super) fn answered_once(&mut self, number: u64, duplicate: bool) {
        let publication = &mut self.publications[number as usize - 1];
        let (again, first) = (publication.is_sent_again, publication.is_acknowledged);
        publication.is_acknowledged |= !duplicate;
        if duplicate && !again {
            let what = format_args!("{number} was sent once and is called a duplicate");
            self.broken(Rule::Once, what);
        }
        if !duplicate && first {
            self.broken(Rule::Once, format_args!("{number} was published twice"));
        }
    }
}
