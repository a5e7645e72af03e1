//! How a channel goes on where its keeper changes and the one before lives: what that has kept of the channel goes to the next
//! one, which goes on in the same life. So nothing is missing where a node joins, or says that it is about to go.
//!
//! Whoever has a channel's life goes on with it, and nobody else: it is handed over once, by who goes by the new view, and what is
//! lost on the way is lost, as with a node that is lost. Members of the view before say when they have handed over all; until then,
//! or until one has said nothing for [`PATIENCE_MS`], the next keeper begins no other life in its place.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ringfeed_protocol::ChannelName;

use super::store::{Kept, Life};
use crate::registry::views::Instance;

/// A member that goes by the view is waited for so long since it was heard of last.
pub(super) const PATIENCE_MS: u64 = 3000;
/// What could not be handed over for so long is not waited for any more, and forgotten.
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
}

impl Transfer {
    /// What it takes, nearly.
    fn bytes(&self) -> usize {
        match self {
            Transfer::History(_, entries) => {
                entries.iter().map(|(_, bytes)| bytes.len() + size_of::<u64>()).sum()
            }
            Transfer::Life(_, life) => life.bytes(),
            Transfer::End => 0,
        }
    }
}

/// A member that is waited for.
#[derive(Debug, Default)]
struct Owing {
    /// So long, once it goes by the view.
    until_ms: Option<u64>,
    /// Of the channel that it is about to hand over.
    history: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// To whom this node has yet to say that it has handed over all, with what that is.
    out: BTreeMap<Instance, VecDeque<(ChannelName, Kept)>>,
    /// When the view came that says so.
    since_ms: u64,
    owing: BTreeMap<Instance, Owing>,
    /// What was handed to this node and is not taken over yet.
    arrived: Vec<(ChannelName, Kept)>,
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
        self.since_ms = now_ms;
        self.out = to.map(|own| (own, VecDeque::new())).collect();
        self.owing = from.map(|own| (own, Owing::default())).collect();
        self.arrived.clear();
        for (keeper, channel, kept) in moved {
            if let Some(out) = self.out.get_mut(&keeper) {
                out.push_back((channel, kept));
            }
        }
    }

    /// All that is to come has come, or is not waited for.
    pub(super) fn is_complete(&self) -> bool {
        self.owing.is_empty()
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
                let mut life = || lives.pop_front();
                let next = history.or_else(|| {
                    life().map(|(name, kept)| Transfer::Life(name, kept.into_life(now_ms)))
                });
                let next = next.unwrap_or_else(|| {
                    self.out.remove(&to);
                    Transfer::End
                });
                room = room.saturating_sub(next.bytes() + size_of::<Transfer>());
                all.push((to, next));
            }
        }
        all
    }

    /// A member tells something, of which at most so much is remembered. Whether it was the last.
    pub(super) fn heard(
        &mut self,
        from: Instance,
        transfer: Transfer,
        bytes_max: usize,
        now_ms: u64,
    ) -> bool {
        let Some(owing) = self.owing.get_mut(&from) else { return false };
        owing.until_ms = Some(now_ms + PATIENCE_MS);
        match transfer {
            Transfer::History(_, entries) => {
                owing.bytes += entries.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
                owing.history.extend(entries);
                while owing.bytes > bytes_max
                    && let Some((_, oldest)) = owing.history.pop_front()
                {
                    owing.bytes -= oldest.len();
                }
            }
            Transfer::Life(channel, life) => {
                let Owing { history, bytes, .. } = owing;
                *bytes = 0;
                self.arrived.extend(
                    Kept::of(life, std::mem::take(history), now_ms).map(|kept| (channel, kept)),
                );
            }
            Transfer::End => {
                self.owing.remove(&from);
                return true;
            }
        }
        false
    }

    /// What was handed to this node.
    pub(super) fn take_arrived(&mut self) -> Vec<(ChannelName, Kept)> {
        std::mem::take(&mut self.arrived)
    }

    /// The link to a member is not there any more: what comes next does not follow on what has come.
    pub(super) fn part(&mut self, with: Instance) {
        if let Some(owing) = self.owing.get_mut(&with) {
            (owing.history, owing.bytes) = (VecDeque::new(), 0);
        }
    }

    /// Waits no longer for members that cannot be told, nor for those that go by the view and say nothing; `awaited` says who may not know it yet.
    pub(super) fn pass(&mut self, awaited: impl Fn(Instance) -> bool, now_ms: u64) {
        if now_ms.saturating_sub(self.since_ms) >= KEPT_MS {
            self.out.clear();
        }
        self.owing.retain(|own, owing| {
            awaited(*own) || *owing.until_ms.get_or_insert(now_ms + PATIENCE_MS) > now_ms
        });
    }
}
