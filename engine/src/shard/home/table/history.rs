//! The history that homes keep, and what is encoded of it for replays.

use std::collections::HashSet;

use ringfeed_protocol::Offset;

use super::Homes;
use crate::config::ChannelRule;
use crate::message::HistoryPage;
use crate::shard::home::kept::{Kept, Limits};

/// What is encoded of history for replays may take this part of what history may.
const ENCODED_PARTS: usize = 4;
/// Channels of whose history something is encoded, before the list of them is looked through.
pub(super) const ENCODED_ROOM: usize = 64;

impl Homes {
    /// Memory of all history, in bytes.
    pub(in crate::shard) fn history_bytes(&self) -> usize {
        self.history_bytes + self.replay_memory.bytes()
    }

    /// What a new home keeps.
    pub(super) fn kept_by(&self, rule: Option<&ChannelRule>) -> Option<Box<Kept>> {
        rule.filter(|rule| rule.history_size > 0).map(|rule| {
            let limits = Limits {
                publications: rule.history_size as usize,
                bytes: usize::try_from(rule.history_bytes).unwrap_or(usize::MAX),
                age_ms: rule.history_age_ms.into(),
            };
            Box::new(Kept::new(limits, self.replay_memory.clone()))
        })
    }

    /// Who adds makes room: other channels' history is not theirs to take.
    pub(super) fn bound_history(&mut self, index: u32) {
        while self.history_bytes() > self.limits.history_bytes_max
            && self.with_kept(index, Kept::shed) == Some(true)
        {}
    }

    fn list_encoded(&mut self, index: u32) {
        self.encoded.push_back(index);
        if self.encoded.len() <= self.encoded_room {
            return;
        }
        // Some have lost it since, and some stand here twice.
        let mut seen = HashSet::new();
        let homes = &self.homes;
        let is_encoded = |index: u32| {
            let kept = homes.get(index).and_then(|home| home.kept.as_ref());
            kept.is_some_and(|kept| kept.encoded_bytes() > 0)
        };
        self.encoded.retain(|&index| is_encoded(index) && seen.insert(index));
        self.encoded_room = 2 * self.encoded.len() + ENCODED_ROOM;
    }

    /// Forgets what is encoded of other channels than this one, longest ago first, until there is room.
    pub(super) fn bound_encoded(&mut self, keep: u32) {
        let most = self.limits.history_bytes_max / ENCODED_PARTS;
        for _ in 0..self.encoded.len() {
            if self.encoded_bytes <= most {
                return;
            }
            let Some(index) = self.encoded.pop_front() else { return };
            if index == keep {
                self.encoded.push_back(index);
            } else {
                self.with_kept(index, Kept::forget_encoded);
            }
        }
    }

    /// A page of history, at least one publication if there is any, else up to `limit` of them and
    /// `bytes_max` of payload; `None` for a channel that does not exist.
    pub(in crate::shard) fn history(
        &mut self,
        name: &str,
        after: Option<Offset>,
        limit: u32,
        bytes_max: usize,
        now_ms: u64,
    ) -> Option<HistoryPage> {
        let index = *self.by_name.get(name)?;
        self.forget(index, now_ms);
        let home = self.homes.get(index)?;
        let publications = match &home.kept {
            Some(kept) if limit > 0 => {
                kept.page(after.unwrap_or(Offset::NONE), limit as usize, bytes_max)
            }
            _ => Vec::new(),
        };
        Some(HistoryPage { position: home.position(), publications })
    }

    /// Changes a channel's history, and keeps count of all of it.
    pub(super) fn with_kept<T>(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Kept) -> T,
    ) -> Option<T> {
        let kept = self.homes.get_mut(index)?.kept.as_mut()?;
        let (bytes, encoded) = (kept.bytes(), kept.encoded_bytes());
        let changed = change(kept);
        self.history_bytes = self.history_bytes - bytes + kept.bytes();
        self.encoded_bytes = self.encoded_bytes - encoded + kept.encoded_bytes();
        if encoded == 0 && kept.encoded_bytes() > 0 {
            self.list_encoded(index);
        }
        Some(changed)
    }
}
