//! Publications of a channel of which their publishers want to know who has got them.

use std::collections::{BTreeMap, BTreeSet};

use ringfeed_protocol::Offset;

use super::members::Seat;
use crate::message::Someone;

/// As many of one channel wait to be confirmed, …
pub(super) const WAITING_MAX: usize = 64;
/// … and so many of one publisher there: nobody takes all of them from the others.
pub(super) const OWN_WAITING_MAX: usize = 8;

/// One of them.
#[derive(Debug)]
struct Waiting {
    /// Who wants to know.
    publisher: Seat,
    /// When that is told at the latest.
    due_ms: u64,
    confirmed: Vec<Someone>,
    missing: BTreeSet<Someone>,
}

/// What has come of one.
#[derive(Debug, PartialEq)]
pub(super) struct Receipts {
    pub(super) publisher: Seat,
    pub(super) offset: Offset,
    /// In the order in which they have.
    pub(super) confirmed: Vec<Someone>,
    pub(super) missing: BTreeSet<Someone>,
}

impl Receipts {
    /// How many were asked.
    pub(super) fn receivers(&self) -> usize {
        self.confirmed.len() + self.missing.len()
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    waiting: BTreeMap<Offset, Waiting>,
}

impl Confirmations {
    /// Waits for receivers of a publication.
    pub(super) fn wait(
        &mut self,
        offset: Offset,
        publisher: Seat,
        due_ms: u64,
        receivers: BTreeSet<Someone>,
    ) {
        let (confirmed, missing) = (Vec::new(), receivers);
        self.waiting.insert(offset, Waiting { publisher, due_ms, confirmed, missing });
    }

    /// Somebody has got a publication. Returns whether that was waited for, and when the publisher was to be told at the
    /// latest if now it is to be: everybody has.
    pub(super) fn confirm(&mut self, offset: Offset, who: &Someone) -> (bool, Option<u64>) {
        let Some(waiting) = self.waiting.get_mut(&offset) else { return (false, None) };
        let Some(who) = waiting.missing.take(who) else { return (false, None) };
        waiting.confirmed.push(who);
        (true, waiting.missing.is_empty().then_some(waiting.due_ms))
    }

    /// Waits for nobody more.
    pub(super) fn end(&mut self, offset: Offset) -> Option<Receipts> {
        let Waiting { publisher, confirmed, missing, .. } = self.waiting.remove(&offset)?;
        Some(Receipts { publisher, offset, confirmed, missing })
    }

    /// Publications that are waited for.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Those of a publisher.
    pub(super) fn len_of(&self, publisher: Seat) -> usize {
        self.waiting.values().filter(|own| own.publisher == publisher).count()
    }

    /// Who was asked, over all of them.
    pub(super) fn receivers(&self) -> usize {
        self.waiting.values().map(|own| own.confirmed.len() + own.missing.len()).sum()
    }

    /// When the publisher of each is told at the latest.
    pub(super) fn due(&self) -> impl Iterator<Item = (u64, Offset)> {
        self.waiting.iter().map(|(&offset, waiting)| (waiting.due_ms, offset))
    }
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::UserId;

    use super::*;
    use crate::ids::{SessionId, SessionSlot, ShardId};

    fn user(name: &str) -> Someone {
        Someone::User(UserId::new(name).unwrap())
    }

    #[test]
    fn each_confirms_once_and_the_last_one_ends_it() {
        let publisher = (ShardId(0), SessionId { slot: SessionSlot(1), generation: 1 });
        let mut all = Confirmations::default();
        all.wait(Offset(7), publisher, 900, ["ann", "bob"].map(user).into());
        all.wait(Offset(9), publisher, 500, ["ann"].map(user).into());
        assert_eq!((all.len(), all.receivers()), (2, 3));
        assert_eq!(all.confirm(Offset(7), &user("bob")), (true, None));
        assert_eq!(all.confirm(Offset(7), &user("bob")), (false, None), "once");
        assert_eq!(all.confirm(Offset(7), &user("eve")), (false, None), "she was not asked");
        assert_eq!(all.confirm(Offset(8), &user("ann")), (false, None), "nobody was");
        assert_eq!(all.confirm(Offset(7), &user("ann")), (true, Some(900)));
        let receipts = all.end(Offset(7)).unwrap();
        assert_eq!(receipts.confirmed, ["bob", "ann"].map(user));
        assert!(receipts.missing.is_empty() && receipts.receivers() == 2);
        assert_eq!(all.confirm(Offset(7), &user("ann")), (false, None), "it has ended");
        assert_eq!(all.end(Offset(7)), None);
        assert_eq!(all.end(Offset(9)).unwrap().missing, ["ann"].map(user).into());
        assert_eq!((all.len(), all.receivers()), (0, 0));
    }
}
