//! How a channel goes on where its keeper changes and the one before lives: what that has kept of the channel goes to the next
//! one, which goes on in the same life. So nothing is missing where a node joins, or says that it is about to go.
//!
//! Whoever has a channel's life goes on with it, and nobody else: it is handed over once, by who goes by the new view, and what is
//! lost on the way is lost, as with a node that is lost. Members of the view before say when they have handed over all, and are
//! told when that has come; until then, or until one has said nothing for three seconds, the next keeper begins no other life in
//! its place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use ringfeed_protocol::ChannelName;

use super::store::{Kept, Life};
use crate::registry::views::Instance;

/// A member that goes by the view is waited for so long since it was heard of last.
pub(super) const PATIENCE_MS: u64 = 3000;
/// Where nothing could be handed over for so long, what is left is forgotten.
const KEPT_MS: u64 = 10 * PATIENCE_MS;

/// What a keeper tells the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer {
    /// Publications of a channel, with their age in milliseconds, the oldest first; the next ones follow on these.
    History(ChannelName, Vec<(u64, Bytes)>),
    /// A channel is the receiver's from now on; its history was told before.
    Life(ChannelName, Life),
    /// That is all.
    End,
    /// To who has said that: it has all come.
    Taken,
}

impl Transfer {
    /// What it takes, nearly.
    fn bytes(&self) -> usize {
        match self {
            Transfer::History(_, entries) => {
                entries.iter().map(|(_, bytes)| bytes.len() + size_of::<u64>()).sum()
            }
            Transfer::Life(_, life) => life.bytes(),
            Transfer::End | Transfer::Taken => 0,
        }
    }
}

/// A member that is waited for.
#[derive(Debug, Default)]
struct Owing {
    /// So long, once it goes by the view.
    until_ms: Option<u64>,
    /// What has come of the channel that it is about to hand over.
    of: Option<ChannelName>,
    history: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Owing {
    fn forget_history(&mut self) {
        (self.of, self.history, self.bytes) = (None, VecDeque::new(), 0);
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// To whom this node has yet to say that it has handed over all, with what that is.
    out: BTreeMap<Instance, VecDeque<(ChannelName, Kept)>>,
    /// Who is given something, and has yet to say that all has come.
    unconfirmed: BTreeSet<Instance>,
    /// When something was handed over last, or the view came that says so.
    moved_ms: u64,
    owing: BTreeMap<Instance, Owing>,
    /// What was handed to this node and is not taken over yet.
    arrived: Vec<(ChannelName, Kept)>,
    pub(super) tally: Tally,
}

/// How many channels have changed their keeper.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Those that this node has given to others.
    pub given: u64,
    /// Those that it was given.
    pub taken: u64,
    /// Those that it had to give, or was given, and that begin another life nevertheless.
    pub lost: u64,
    /// Nodes that were not waited for any longer.
    pub given_up: u64,
}

impl Transfers {
    /// Another view counts: `moved` is for other keepers, `to` are those to be told when that is all, and `from` those who tell
    /// this node.
    pub(super) fn begin(
        &mut self,
        moved: Vec<(Instance, ChannelName, Kept)>,
        to: impl Iterator<Item = Instance>,
        from: impl Iterator<Item = Instance>,
        now_ms: u64,
    ) {
        self.forget();
        self.moved_ms = now_ms;
        self.out = to.map(|own| (own, VecDeque::new())).collect();
        self.owing = from.map(|own| (own, Owing::default())).collect();
        for (keeper, channel, kept) in moved {
            if let Some(out) = self.out.get_mut(&keeper) {
                self.unconfirmed.insert(keeper);
                out.push_back((channel, kept));
            }
        }
    }

    fn forget(&mut self) {
        self.tally.lost += self.out.values().map(|lives| lives.len() as u64).sum::<u64>();
        self.out.clear();
        self.unconfirmed.clear();
    }

    /// How many members are waited for.
    pub(super) fn count_owing(&self) -> usize {
        self.owing.len()
    }

    /// Whether this member is.
    pub(super) fn is_owing(&self, member: Instance) -> bool {
        self.owing.contains_key(&member)
    }

    /// All that others are to keep has come to them.
    pub(super) fn is_confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// When something was handed over last.
    pub(super) fn moved_ms(&self) -> u64 {
        self.moved_ms
    }

    /// Those who have not been told all.
    pub(super) fn untold(&self) -> impl Iterator<Item = Instance> {
        self.out.keys().copied()
    }

    /// What nodes are to be told next, of those of whom this says that they can be: so many bytes for each, or a little more.
    pub(super) fn take(
        &mut self,
        can_be_told: impl Fn(Instance) -> bool,
        bytes_at_once: usize,
        now_ms: u64,
    ) -> Vec<(Instance, Transfer)> {
        let mut all = Vec::new();
        let to: Vec<Instance> = self.out.keys().copied().filter(|own| can_be_told(*own)).collect();
        for to in to {
            let mut room = bytes_at_once;
            while room > 0
                && let Some(lives) = self.out.get_mut(&to)
            {
                let history = lives.front_mut().and_then(|(name, kept)| {
                    Some(Transfer::History(name.clone(), kept.take_oldest(now_ms)?))
                });
                let next = history.or_else(|| {
                    let (name, kept) = lives.pop_front()?;
                    self.tally.given += 1;
                    Some(Transfer::Life(name, kept.into_life(now_ms)))
                });
                let next = next.unwrap_or_else(|| {
                    self.out.remove(&to);
                    Transfer::End
                });
                self.moved_ms = now_ms;
                room = room.saturating_sub(next.bytes() + size_of::<Transfer>());
                all.push((to, next));
            }
        }
        all
    }

    /// A member that is waited for, and has just said something.
    fn owing(&mut self, from: Instance, now_ms: u64) -> Option<&mut Owing> {
        let owing = self.owing.get_mut(&from)?;
        owing.until_ms = Some(now_ms + PATIENCE_MS);
        Some(owing)
    }

    /// A member tells of a channel's history, of which at most so much is remembered.
    pub(super) fn heard_history(
        &mut self,
        from: Instance,
        channel: ChannelName,
        entries: Vec<(u64, Bytes)>,
        bytes_max: usize,
        now_ms: u64,
    ) {
        let Some(owing) = self.owing(from, now_ms) else { return };
        if owing.of.as_ref() != Some(&channel) {
            owing.forget_history();
            owing.of = Some(channel);
        }
        let size = |(_, bytes): &(u64, Bytes)| bytes.len() + size_of::<(u64, Bytes)>();
        owing.bytes += entries.iter().map(size).sum::<usize>();
        owing.history.extend(entries);
        while owing.bytes > bytes_max
            && let Some(oldest) = owing.history.pop_front()
        {
            owing.bytes -= size(&oldest);
        }
    }

    /// A member gives a channel away, whose history it has told.
    pub(super) fn heard_life(
        &mut self,
        from: Instance,
        channel: ChannelName,
        life: Life,
        now_ms: u64,
    ) {
        let kept = self.owing(from, now_ms).and_then(|owing| {
            if owing.of.as_ref() != Some(&channel) {
                owing.forget_history();
            }
            let history = std::mem::take(&mut owing.history);
            owing.forget_history();
            Kept::of(life, history, now_ms)
        });
        self.tally.lost += u64::from(kept.is_none());
        self.arrived.extend(kept.map(|kept| (channel, kept)));
    }

    /// A member has told all.
    pub(super) fn heard_end(&mut self, from: Instance) {
        self.owing.remove(&from);
    }

    /// All that a member was told has come there.
    pub(super) fn heard_taken(&mut self, from: Instance, now_ms: u64) {
        self.moved_ms = now_ms;
        self.unconfirmed.remove(&from);
    }

    /// What was handed to this node.
    pub(super) fn take_arrived(&mut self) -> Vec<(ChannelName, Kept)> {
        std::mem::take(&mut self.arrived)
    }

    /// The link to a member is not there any more: what comes next does not follow on what has come.
    pub(super) fn part(&mut self, with: Instance) {
        if let Some(owing) = self.owing.get_mut(&with) {
            owing.forget_history();
        }
    }

    /// This process has stood still for so long: others may have said something that it has not heard yet.
    pub(super) fn stood_still(&mut self, ms: u64) {
        let until = self.owing.values_mut().filter_map(|owing| owing.until_ms.as_mut());
        until.for_each(|until_ms| *until_ms += ms);
        self.moved_ms += ms;
    }

    /// Waits no longer for members that cannot be told, nor for those that go by the view and say nothing; `awaited` says who may not know it yet.
    pub(super) fn pass(&mut self, awaited: impl Fn(Instance) -> bool, now_ms: u64) {
        if now_ms.saturating_sub(self.moved_ms) >= KEPT_MS {
            self.forget();
        }
        let before = self.owing.len();
        self.owing.retain(|own, owing| {
            awaited(*own) || *owing.until_ms.get_or_insert(now_ms + PATIENCE_MS) > now_ms
        });
        self.tally.given_up += (before - self.owing.len()) as u64;
    }
}
