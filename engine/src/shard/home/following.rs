//! What a home keeps of a channel whose publications are numbered elsewhere: what has come and is not appended yet, and
//! what it waits for.

use std::collections::VecDeque;

use ringfeed_protocol::Offset;
use ringfeed_protocol::event::Epoch;
use smallvec::SmallVec;

use crate::message::Numbered;

/// What has come while the upstream's answer is waited for may take so much memory; beyond it, it is given up, and asked
/// for again.
const INCOMING_BYTES_MAX: usize = 4 << 20;
/// What a publication takes beside its payload.
const NUMBERED_BYTES: usize = size_of::<(Epoch, Numbered)>();

/// How much of the upstream's history is here.
#[derive(Debug, Default)]
pub(super) enum Older {
    /// What has come since the home follows.
    #[default]
    Unread,
    /// It is being read, up to here.
    Reading(Vec<Numbered>),
    /// All that there was.
    Read,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// Where the channel stands upstream was asked and not answered.
    pub(super) awaits: bool,
    /// Under this number.
    pub(super) number: u32,
    /// It was answered once: epoch and offset of the home are the channel's.
    pub(super) known: bool,
    /// The channel was numbered otherwise, and its subscribers have yet to be told that another life begins.
    pub(super) begins: bool,
    /// The last answer was that the upstream cannot be reached.
    pub(super) away: bool,
    pub(super) older: Older,
    /// Earlier lives that this one continues, and up to which offset.
    pub(super) lineage: SmallVec<[(Epoch, Offset); 1]>,
    /// What has come and was not appended yet, in the order in which it came.
    incoming: VecDeque<(Epoch, Numbered)>,
    incoming_bytes: usize,
    /// Of these, so many, the first, had come when the upstream was asked last.
    asked_behind: usize,
    /// Some were given up for want of room.
    gave_up: bool,
    /// The upstream has so much, as far as is known.
    pub(super) upstream_at: Offset,
    /// It had so much when it answered last: until that is here there is more to be read.
    pub(super) read_to: Offset,
    /// Since when that is more than is here, in the shard's time.
    pub(super) behind_since_ms: Option<u64>,
    /// When the upstream was asked last.
    pub(super) asked_ms: u64,
    /// The next publication that goes upstream.
    pub(super) ticket: u64,
    /// What the table counts of it.
    pub(super) counted: usize,
}

impl Following {
    /// Notes that the upstream is asked now, under a number.
    pub(super) fn ask(&mut self, number: u32, now_ms: u64) {
        self.number = number;
        (self.awaits, self.gave_up, self.asked_ms) = (true, false, now_ms);
        self.asked_behind = self.incoming.len();
    }

    /// Keeps what has come until it can be appended.
    pub(super) fn push(&mut self, epoch: Epoch, numbered: Numbered) {
        let bytes = numbered.publication.payload.bytes.len() + NUMBERED_BYTES;
        if self.awaits && self.incoming_bytes + bytes > INCOMING_BYTES_MAX {
            self.gave_up = true;
            return;
        }
        self.incoming_bytes += bytes;
        self.incoming.push_back((epoch, numbered));
    }

    /// The same of what was asked for: it is older than what waits.
    pub(super) fn push_answer(&mut self, epoch: Epoch, publications: Vec<Numbered>) {
        for numbered in publications.into_iter().rev() {
            self.incoming_bytes += numbered.publication.payload.bytes.len() + NUMBERED_BYTES;
            self.incoming.push_front((epoch, numbered));
        }
    }

    /// Whether the upstream has more to say than is here: what it has said of where the channel stands is waited for.
    pub(super) fn is_behind(&self, last: Offset) -> bool {
        self.awaits || self.known && !self.away && last < self.read_to
    }

    /// What is next to be appended.
    pub(super) fn next(&self) -> Option<(Epoch, Offset)> {
        self.incoming.front().map(|(epoch, numbered)| (*epoch, numbered.offset))
    }

    pub(super) fn pop(&mut self) -> Option<Numbered> {
        let (_, numbered) = self.incoming.pop_front()?;
        self.incoming_bytes -= numbered.publication.payload.bytes.len() + NUMBERED_BYTES;
        self.asked_behind = self.asked_behind.saturating_sub(1);
        Some(numbered)
    }

    /// The upstream has answered: what had come before it was asked is of this life, or of one that is over. Returns
    /// whether something was given up meanwhile.
    pub(super) fn answered(&mut self, epoch: Epoch) -> bool {
        (self.awaits, self.away, self.begins) = (false, false, false);
        let before = std::mem::take(&mut self.asked_behind);
        let mut place = 0;
        self.incoming.retain(|(of, _)| {
            place += 1;
            place > before || *of == epoch
        });
        self.count();
        std::mem::take(&mut self.gave_up)
    }

    /// Forgets what has come: all of it is asked for again.
    pub(super) fn forget_incoming(&mut self) {
        self.incoming.clear();
        (self.incoming_bytes, self.asked_behind, self.gave_up) = (0, 0, false);
        self.older = Older::Unread;
    }

    fn count(&mut self) {
        let bytes = self.incoming.iter().map(|(_, n)| n.publication.payload.bytes.len());
        self.incoming_bytes = bytes.sum::<usize>() + self.incoming.len() * NUMBERED_BYTES;
    }

    pub(super) fn has_incoming(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Memory of what has come and does not wait for the upstream.
    pub(super) fn appendable_bytes(&self) -> usize {
        if self.awaits { 0 } else { self.incoming_bytes }
    }

    /// Memory of what has come and waits.
    pub(super) fn bytes(&self) -> usize {
        self.incoming_bytes
    }

    /// Panics if what is counted is not what is there.
    pub(super) fn check(&self) {
        let bytes = self.incoming.iter().map(|(_, n)| n.publication.payload.bytes.len());
        let bytes = bytes.sum::<usize>() + self.incoming.len() * NUMBERED_BYTES;
        assert_eq!(bytes, self.incoming_bytes, "bytes that came from upstream");
        assert!(self.asked_behind <= self.incoming.len());
    }
}
