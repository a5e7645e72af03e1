//! The history of one channel: blocks of payloads, each encoded at most once for a lane. What is
//! replayed to recovering subscribers and what is read as history comes from here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ringfeed_protocol::command::{Payload, PayloadKind};
use ringfeed_protocol::event::{Meta, Publication};
use ringfeed_protocol::{ChannelName, Lane, Offset};
use smallvec::SmallVec;

use crate::message::{Numbered, Replay, StoredPayload, StoredPublication};

/// A block is closed at so many bytes of payload …
const BLOCK_BYTES: usize = 32 * 1024;
/// … or so many publications.
const BLOCK_PUBLICATIONS: usize = 256;

/// How much may be kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) publications: usize,
    pub(super) bytes: usize,
    /// 0 is no limit.
    pub(super) age_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where the payload ends in its block.
    end: u32,
    kind: PayloadKind,
    at_ms: u64,
}

/// Memory that is encoded for replays, as long as anybody holds it: a history that goes on, outboxes that it was
/// put into, or those alone.
#[derive(Debug, Clone)]
pub(super) struct ReplayMemory {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl ReplayMemory {
    pub(super) fn new(bytes_max: usize) -> ReplayMemory {
        ReplayMemory { bytes: Arc::default(), bytes_max }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts frames until the last of those who hold them lets go.
    fn count(&self, frames: Vec<u8>) -> Bytes {
        self.bytes.fetch_add(frames.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted { frames, memory: self.bytes.clone() })
    }
}

#[derive(Debug)]
struct Counted {
    frames: Vec<u8>,
    memory: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.frames
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.fetch_sub(self.frames.len(), Ordering::Relaxed);
    }
}

/// A block in one lane.
#[derive(Debug)]
struct Encoded {
    lane: Lane,
    bytes: Bytes,
    /// Where the frame of each entry ends.
    ends: Box<[u32]>,
}

#[derive(Debug)]
struct Block {
    first_offset: Offset,
    entries: Vec<Entry>,
    payloads: Vec<u8>,
    /// Who published the entries, up to the last of which that is told.
    metas: Vec<Option<Box<Meta>>>,
    /// Nothing is added any more.
    closed: bool,
    encoded: SmallVec<[Encoded; 1]>,
}

/// What a subscriber that comes back is given.
#[derive(Debug)]
pub(super) enum Found {
    /// Some of it is gone, or it is too much; or other replays take all the memory there is for them.
    Gone,
    /// Not all of it is encoded yet: ask again in the next turn.
    Unfinished,
    /// Everything.
    Frames(Replay),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Kept {
    limits: Limits,
    blocks: VecDeque<Block>,
    /// Entries of the oldest block that count as forgotten.
    skipped: usize,
    count: usize,
    bytes: usize,
    /// What is encoded of it for replays.
    encoded_bytes: usize,
    memory: ReplayMemory,
}

impl Encoded {
    /// The frames from entry `skip` on.
    fn from(&self, skip: usize) -> Bytes {
        let start = skip.checked_sub(1).and_then(|last| self.ends.get(last)).copied();
        self.bytes.slice(start.unwrap_or(0) as usize..)
    }

    fn bytes(&self) -> usize {
        self.bytes.len() + size_of_val::<[u32]>(&self.ends)
    }
}

impl Block {
    fn new(first_offset: Offset) -> Block {
        Block {
            first_offset,
            entries: Vec::new(),
            payloads: Vec::new(),
            metas: Vec::new(),
            closed: false,
            encoded: SmallVec::new(),
        }
    }

    /// Nothing is added any more.
    fn close(&mut self) {
        self.closed = true;
        self.payloads.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.metas.shrink_to_fit();
    }

    /// Without what is encoded.
    fn bytes(&self) -> usize {
        // Of those that there are some are told; most channels tell none.
        let metas = self.metas.capacity() * size_of::<Option<Box<Meta>>>()
            + self.metas.len() * size_of::<Meta>();
        size_of::<Block>()
            + self.payloads.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + metas
    }

    fn meta_of(&self, at: usize) -> Option<&Meta> {
        self.metas.get(at)?.as_deref()
    }

    fn encoded_bytes(&self) -> usize {
        self.encoded.iter().map(Encoded::bytes).sum()
    }

    fn start_of(&self, at: usize) -> usize {
        at.checked_sub(1).and_then(|last| self.entries.get(last)).map_or(0, |e| e.end as usize)
    }

    /// The publications from entry `from` on, as frames, and where each ends.
    fn encode(&self, from: usize, lane: Lane, channel: &str) -> (Vec<u8>, Box<[u32]>) {
        let start = self.start_of(from);
        let mut frames = Vec::with_capacity(self.payloads.len() - start + 64 * self.entries.len());
        let mut ends = Vec::with_capacity(self.entries.len() - from);
        let mut begins = start;
        let entries = self.first_offset.onwards().zip(&self.entries).enumerate();
        for (at, (offset, entry)) in entries.skip(from) {
            let end = entry.end as usize;
            let bytes = self.payloads.get(begins..end).unwrap_or_default();
            lane.write_publication(
                &mut frames,
                channel,
                &Publication { offset, kind: entry.kind, bytes, meta: self.meta_of(at) },
            );
            ends.push(u32::try_from(frames.len()).unwrap_or(u32::MAX));
            begins = end;
        }
        frames.shrink_to_fit();
        (frames, ends.into())
    }
}

impl Kept {
    pub(super) fn new(limits: Limits, memory: ReplayMemory) -> Kept {
        let blocks = VecDeque::new();
        Kept { limits, blocks, skipped: 0, count: 0, bytes: 0, encoded_bytes: 0, memory }
    }

    /// Publications kept.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// What it all takes in memory, in bytes, without what is encoded.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is encoded of it, in bytes.
    pub(super) fn encoded_bytes(&self) -> usize {
        self.encoded_bytes
    }

    /// Keeps a publication, and forgets others for it where that is needed.
    pub(super) fn push(
        &mut self,
        offset: Offset,
        payload: &Payload,
        meta: Option<Box<Meta>>,
        now_ms: u64,
    ) {
        let open = self.blocks.back().is_some_and(|block| {
            !block.closed && block.payloads.len() + payload.bytes.len() <= u32::MAX as usize
        });
        if !open {
            self.blocks.push_back(Block::new(offset));
            self.bytes += size_of::<Block>();
        }
        let Some(block) = self.blocks.back_mut() else { return };
        let before = block.bytes();
        block.payloads.extend_from_slice(&payload.bytes);
        let end = u32::try_from(block.payloads.len()).unwrap_or(u32::MAX);
        if meta.is_some() {
            block.metas.resize_with(block.entries.len(), || None);
            block.metas.push(meta);
        }
        block.entries.push(Entry { end, kind: payload.kind, at_ms: now_ms });
        // Several blocks even where little may be kept: what is forgotten for want of room is a block.
        let full = BLOCK_BYTES.min(self.limits.bytes / 8);
        if block.payloads.len() >= full || block.entries.len() >= BLOCK_PUBLICATIONS {
            block.close();
        }
        self.bytes = self.bytes + block.bytes() - before;
        self.count += 1;
        self.forget(now_ms);
    }

    /// Forgets what is too old or too much.
    pub(super) fn forget(&mut self, now_ms: u64) {
        let Limits { publications, bytes, age_ms } = self.limits;
        let oldest_ms = if age_ms == 0 { 0 } else { now_ms.saturating_sub(age_ms) };
        while self.count > publications
            || self.bytes > bytes && self.count > 0
            || self.oldest_at_ms().is_some_and(|at_ms| at_ms < oldest_ms)
        {
            if self.bytes > bytes {
                self.forget_block();
            } else {
                self.forget_one();
            }
        }
    }

    /// Gives memory back: what is encoded, which can be made again, then the oldest block. Returns whether there
    /// was anything.
    pub(super) fn shed(&mut self) -> bool {
        let any = self.bytes > 0;
        if self.encoded_bytes > 0 {
            self.forget_encoded();
        } else {
            self.forget_block();
        }
        any
    }

    /// Forgets what is encoded: it can be made again.
    pub(super) fn forget_encoded(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.encoded = SmallVec::new());
        self.encoded_bytes = 0;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        while !self.blocks.is_empty() {
            self.forget_block();
        }
    }

    /// Puts publications in front, which lead up to the oldest that is kept, and forgets what is too much then.
    pub(super) fn prepend(&mut self, older: Vec<Numbered>, now_ms: u64) {
        // Some of the oldest block were forgotten: what comes before them would be, too.
        if self.skipped > 0 {
            return;
        }
        let limits = Limits { publications: usize::MAX, bytes: usize::MAX, age_ms: 0 };
        let mut before = Kept::new(limits, self.memory.clone());
        for Numbered { offset, age_ms, publication } in older {
            let at_ms = now_ms.saturating_sub(age_ms);
            before.push(offset, &publication.payload.borrowed(), publication.meta, at_ms);
        }
        if let Some(newest) = before.blocks.back_mut() {
            // Only the newest of all is added to.
            let bytes = newest.bytes();
            newest.close();
            before.bytes = before.bytes - bytes + newest.bytes();
        }
        self.count += before.count;
        self.bytes += before.bytes;
        before.blocks.append(&mut self.blocks);
        self.blocks = before.blocks;
        self.forget(now_ms);
    }

    /// Forgets the oldest block.
    fn forget_block(&mut self) {
        if let Some(block) = self.blocks.pop_front() {
            self.count -= block.entries.len() - std::mem::take(&mut self.skipped);
            self.bytes -= block.bytes();
            self.encoded_bytes -= block.encoded_bytes();
        }
    }

    fn forget_one(&mut self) {
        self.skipped += 1;
        self.count -= 1;
        if self.blocks.front().is_some_and(|block| self.skipped == block.entries.len()) {
            self.forget_block();
        }
    }

    fn oldest_at_ms(&self) -> Option<u64> {
        self.blocks.front()?.entries.get(self.skipped).map(|entry| entry.at_ms)
    }

    /// The oldest offset kept.
    pub(super) fn first_offset(&self) -> Option<Offset> {
        self.blocks.front().map(|block| block.first_offset + self.skipped as u64)
    }

    /// Up to `limit` publications behind `after`, up to `bytes_max` of payload, but at least one if
    /// there is any.
    pub(super) fn page(
        &self,
        after: Offset,
        limit: usize,
        bytes_max: usize,
    ) -> Vec<StoredPublication> {
        let from = self.first_offset().unwrap_or(Offset(u64::MAX)).max(after.next());
        let mut page = Vec::new();
        let mut room = bytes_max;
        let next = self.blocks.partition_point(|block| block.first_offset <= from);
        for block in self.blocks.iter().skip(next.saturating_sub(1)) {
            // A block's entries are counted by a usize.
            let skip = from.since(block.first_offset) as usize;
            let begin = block.start_of(skip);
            let mut ends = Vec::new();
            for entry in block.entries.iter().skip(skip).take(limit - page.len()) {
                let end = entry.end as usize;
                let size = end - ends.last().map_or(begin, |&(_, end)| end);
                if size > room && !(page.is_empty() && ends.is_empty()) {
                    room = 0;
                    break;
                }
                room = room.saturating_sub(size);
                ends.push((entry.kind, end));
            }
            let Some(&(_, end)) = ends.last() else { break };
            let bytes = Bytes::copy_from_slice(block.payloads.get(begin..end).unwrap_or_default());
            let mut start = begin;
            let offsets = (block.first_offset + skip as u64).onwards();
            for ((at, (kind, end)), offset) in (skip..).zip(ends).zip(offsets) {
                let bytes = bytes.slice(start - begin..end - begin);
                let meta = block.meta_of(at).cloned().map(Box::new);
                page.push(StoredPublication {
                    offset,
                    payload: StoredPayload { kind, bytes },
                    meta,
                });
                start = end;
            }
            if page.len() >= limit || room == 0 {
                break;
            }
        }
        page
    }

    /// Frames of everything behind `offset` up to `last_offset`, which is the newest kept if any is,
    /// `bytes_max` at most. What is encoded for it is kept for others, and counts against `budget`, in
    /// bytes; a first block always may be.
    pub(super) fn replay(
        &mut self,
        offset: Offset,
        last_offset: Offset,
        lane: Lane,
        channel: &ChannelName,
        bytes_max: usize,
        budget: &mut usize,
    ) -> Found {
        if offset == last_offset {
            return Found::Frames(Replay::default());
        }
        if self.first_offset().is_none_or(|first| first > offset.next()) {
            return Found::Gone;
        }
        let first = self.blocks.partition_point(|block| block.first_offset <= offset.next());
        let first = first.saturating_sub(1);
        // Frames are no shorter than payloads: nothing is encoded in vain for who misses far too much.
        let missed = self.blocks.iter().skip(first + 1).map(|block| block.payloads.len());
        if missed.sum::<usize>() > bytes_max {
            return Found::Gone;
        }
        let (mut replay, mut total, mut grown) = (Replay::default(), 0, 0);
        let mut found = None;
        for block in self.blocks.iter_mut().skip(first) {
            let skip = offset.next().since(block.first_offset) as usize;
            let known = block.encoded.iter().position(|encoded| encoded.lane == lane);
            if known.is_none() && block.closed && self.memory.bytes() > self.memory.bytes_max {
                found = Some(Found::Gone);
                break;
            }
            if known.is_none() && grown > 0 && *budget == 0 {
                found = Some(Found::Unfinished);
                break;
            }
            let bytes = match known {
                Some(at) => block.encoded[at].from(skip),
                None if block.closed => {
                    let (frames, ends) = block.encode(0, lane, channel);
                    let encoded = Encoded { lane, bytes: self.memory.count(frames), ends };
                    *budget = budget.saturating_sub(encoded.bytes());
                    grown += encoded.bytes();
                    let frames = encoded.from(skip);
                    block.encoded.push(encoded);
                    frames
                }
                // Only the newest block is open.
                None => {
                    let (frames, _) = block.encode(skip, lane, channel);
                    *budget = budget.saturating_sub(frames.len());
                    replay.own = Bytes::from(frames);
                    Bytes::new()
                }
            };
            total += bytes.len() + replay.own.len();
            if total > bytes_max {
                found = Some(Found::Gone);
                break;
            }
            if !bytes.is_empty() {
                replay.shared.push(bytes);
            }
        }
        self.encoded_bytes += grown;
        found.unwrap_or(Found::Frames(replay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfeed_protocol::frame::server_frame_ends;

    const ALL: Limits = Limits { publications: usize::MAX, bytes: usize::MAX, age_ms: 0 };

    fn payload(size: usize) -> Payload<'static> {
        Payload { kind: PayloadKind::Json, bytes: vec![b'1'; size].into() }
    }

    fn kept(limits: Limits, sizes: impl Iterator<Item = usize>) -> (Kept, u64) {
        let mut kept = Kept::new(limits, ReplayMemory::new(usize::MAX));
        let mut last = 0;
        for size in sizes {
            last += 1;
            kept.push(Offset(last), &payload(size), None, last);
        }
        let bytes: usize = kept.blocks.iter().map(Block::bytes).sum();
        assert_eq!(kept.bytes(), bytes, "the count agrees with what is there");
        (kept, last)
    }

    fn replay(kept: &mut Kept, offset: u64, last: u64, bytes_max: usize) -> Option<Vec<Bytes>> {
        let channel = ChannelName::new("c").unwrap();
        loop {
            match kept.replay(Offset(offset), Offset(last), Lane::RAW, &channel, bytes_max, &mut 0)
            {
                Found::Gone => return None,
                Found::Unfinished => {}
                Found::Frames(replay) => {
                    return Some(replay.shared.into_iter().chain([replay.own]).collect());
                }
            }
        }
    }

    #[test]
    fn a_replay_is_exactly_what_was_missed_and_is_shared() {
        let (mut kept, last) = kept(ALL, (0..5000).map(|i| (i * 37) % 700));
        for offset in [0, 1, 77, 255, 256, 2500, last - 1, last] {
            let frames = replay(&mut kept, offset, last, usize::MAX).unwrap();
            let count: usize = frames.iter().map(|run| server_frame_ends(run).count()).sum();
            assert_eq!(count as u64, last - offset, "behind {offset}");
        }
        let (one, two) = (
            replay(&mut kept, 0, last, usize::MAX).unwrap(),
            replay(&mut kept, 0, last, usize::MAX).unwrap(),
        );
        let shared = one.iter().zip(&two).filter(|(a, b)| a.as_ptr() == b.as_ptr()).count();
        assert_eq!(shared, one.len() - 1, "all but the block that is still open");
        let bytes: usize = kept.blocks.iter().map(Block::bytes).sum();
        assert_eq!(kept.bytes(), bytes);
        assert!(replay(&mut kept, 0, last, 1000).is_none(), "too much");
    }

    #[test]
    fn what_is_encoded_counts_until_everybody_has_let_go_of_it() {
        let (mut kept, last) = kept(ALL, (0..100).map(|_| 10_000));
        kept.memory.bytes_max = 980_000;
        let all = replay(&mut kept, 0, last, usize::MAX).unwrap();
        let held = kept.memory.bytes();
        assert!(held > 980_000, "{held}");
        kept.forget_encoded();
        assert_eq!(kept.memory.bytes(), held, "an outbox has it still");
        assert!(replay(&mut kept, 0, last, usize::MAX).is_none(), "not once more");
        drop(all);
        assert_eq!(kept.memory.bytes(), 0);
        assert!(replay(&mut kept, 50, last, usize::MAX).is_some());
    }

    #[test]
    fn a_history_page_is_bounded_and_goes_on_from_its_last() {
        let (kept, last) = kept(ALL, (0..1000).map(|i| 1 + i % 300));
        let (mut after, mut seen) = (0, 0);
        while after < last {
            let page = kept.page(Offset(after), 100, 5000);
            assert!(!page.is_empty() && page.len() <= 100);
            let bytes: usize = page.iter().map(|p| p.payload.bytes.len()).sum();
            assert!(bytes <= 5000);
            for publication in page {
                assert_eq!(publication.offset.0, after + 1);
                assert_eq!(publication.payload.bytes.len() as u64, 1 + (after % 300));
                after += 1;
                seen += 1;
            }
        }
        assert_eq!((seen, kept.page(Offset(last), 9, 9).len()), (last, 0));
        assert_eq!(kept.page(Offset::NONE, 5, 0).len(), 1, "at least one");
        assert_eq!(kept.page(Offset(u64::MAX), 5, 0).len(), 0);
    }

    #[test]
    fn limits_on_publications_bytes_and_age_hold() {
        let (mut few, last) = kept(Limits { publications: 300, ..ALL }, (0..1000).map(|_| 10));
        assert_eq!((few.len(), few.first_offset()), (300, Some(Offset(last - 299))));
        assert!(replay(&mut few, last - 301, last, usize::MAX).is_none());
        assert!(replay(&mut few, last - 300, last, usize::MAX).is_some());
        let bytes = 200_000;
        let (small, _) = kept(Limits { bytes, ..ALL }, (0..10_000).map(|_| 1000));
        assert!(small.bytes() <= bytes && small.len() > 50);
        let (none, _) = kept(Limits { bytes, ..ALL }, [10, 300_000].into_iter());
        assert_eq!((none.len(), none.bytes()), (0, 0), "what is larger than all is not kept");
        let (mut old, last) = kept(Limits { age_ms: 100, ..ALL }, (0..500).map(|_| 1));
        assert_eq!(old.len(), 101);
        old.forget(last + 1000);
        assert_eq!((old.len(), old.bytes()), (0, 0));
    }
}
