//! The disk of a node, where publications wait for Redis: what is on it stays when the node is killed.

use std::collections::{BTreeMap, VecDeque};

use ringfeed_engine::bridge::{SpoolDone, SpoolOrder, Spooled};
use ringfeed_protocol::ChannelName;

use super::super::dice::Dice;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Disk {
    segments: VecDeque<Vec<Spooled>>,
    /// Whether the newest is written to.
    is_open: bool,
}

impl Disk {
    /// How much of which channels is there.
    pub(super) fn channels(&mut self) -> BTreeMap<ChannelName, u32> {
        self.is_open = false;
        let mut channels = BTreeMap::new();
        for spooled in self.segments.iter().flatten() {
            *channels.entry(spooled.channel.clone()).or_default() += 1;
        }
        channels
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Does what it is told to; where it is full, not all of it.
    pub(super) fn serve(&mut self, order: SpoolOrder, is_full: bool, dice: &mut Dice) -> SpoolDone {
        match order {
            SpoolOrder::Write(mut records) => {
                if is_full {
                    records.truncate(dice.below(records.len()));
                }
                let written = records.len();
                for record in records {
                    if !self.is_open || dice.chance(200) {
                        self.segments.push_back(Vec::new());
                    }
                    self.is_open = true;
                    self.segments.back_mut().expect("a segment is open").push(record);
                }
                SpoolDone::Written(written)
            }
            SpoolOrder::Read => {
                if self.segments.len() == 1 {
                    self.is_open = false;
                }
                SpoolDone::Read(self.segments.front().cloned().unwrap_or_default())
            }
            SpoolOrder::SetAside(_) => panic!("rule spool: this Redis takes everything in the end"),
            SpoolOrder::Forget => {
                self.segments.pop_front();
                SpoolDone::Forgotten
            }
        }
    }
}
