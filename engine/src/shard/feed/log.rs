//! The log of one channel in one lane on one shard: framed bytes in order, addressed by position.
//!
//! Positions count bytes since the log began and never go back. Subscribers are cursors: a position
//! each. The log is the chunks themselves, as their home made them: nothing is copied for those who keep up, and
//! what all are past is dropped, of most channels in the turn in which it came. What lagging ones still need stays
//! within a window, many short chunks put together into blocks. Where frames end stands beside the bytes: nothing
//! here parses them.

use std::collections::VecDeque;

use bytes::Bytes;
use ringfeed_protocol::Offset;

use super::retained::Retained;
use crate::ids::LogPosition;
use crate::message::{Chunk, FrameIndex};

/// A chunk takes so much memory besides its bytes and its record, about: the count of who holds it, and what the
/// allocator rounds up.
const CHUNK_OVERHEAD_BYTES: usize = 64;
/// The log is looked through for what can be dropped when it has a chunk for each of so many subscribers, …
const SUBSCRIBERS_PER_CHUNK: usize = 64;
/// … or holds so much.
const TRIMMED_BYTES: usize = 256 * 1024;
/// When so many chunks stay for those who lag, they are put together …
const MERGED_CHUNKS: usize = 64;
/// … into blocks of up to so many bytes, …
const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// … of what was appended within so long: how old something is is known of a block as a whole.
const BLOCK_MS_MAX: u64 = 100;
/// Room for more chunks than this is given back when little of it is used.
const ROOM_MIN: usize = 2 * MERGED_CHUNKS;

/// A chunk, where it lies in the log; or several put together.
#[derive(Debug, Clone)]
struct Placed {
    start: LogPosition,
    first_offset: Offset,
    count: u32,
    at_ms: u64,
    bytes: Bytes,
    frames: FrameIndex,
}

impl Placed {
    fn end(&self) -> LogPosition {
        self.start + self.bytes.len()
    }

    /// Publications of it that end at or before a position in it.
    fn publications_before(&self, position: LogPosition) -> u32 {
        let (at, len) = (position - self.start, self.bytes.len());
        self.frames.publications_within(at, len, self.count)
    }

    /// What it takes in memory, besides the bytes of its frames.
    fn index_bytes(&self) -> usize {
        size_of::<Placed>() + CHUNK_OVERHEAD_BYTES + self.frames.bytes()
    }

    /// Several that follow each other as one, which is as old as the newest of them.
    fn join(parts: &[Placed]) -> Option<Placed> {
        let (first, last) = (parts.first()?, parts.last()?);
        let mut bytes = Vec::with_capacity(last.end() - first.start);
        parts.iter().for_each(|part| bytes.extend_from_slice(&part.bytes));
        let frames = parts.iter().map(|part| (&part.frames, part.bytes.len(), part.count));
        Some(Placed {
            start: first.start,
            first_offset: first.first_offset,
            count: parts.iter().map(|part| part.count).sum(),
            at_ms: last.at_ms,
            bytes: Bytes::from(bytes),
            frames: FrameIndex::joined(frames),
        })
    }

    /// The bytes from a position in it to another.
    fn slice(&self, from: LogPosition, to: LogPosition) -> Option<Bytes> {
        let (from, to) = (from - self.start, to - self.start);
        (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}

/// What to send to a subscriber at some position.
#[derive(Debug, Clone)]
pub struct Run {
    /// Contiguous bytes, ending at the end of a frame.
    pub bytes: Bytes,
    /// The position behind them.
    pub to: LogPosition,
    /// Publications that end in this run.
    pub publications: u64,
}

/// A run that was made.
#[derive(Debug)]
struct Recent {
    from: LogPosition,
    bytes_max: usize,
    /// What is appended behind this makes it longer; `None` if it is as long as it may be.
    grows_at: Option<LogPosition>,
    run: Run,
}

/// See the module's description.
#[derive(Debug)]
pub struct Log {
    chunks: VecDeque<Placed>,
    /// So many, the oldest, are not put together any more.
    merged: usize,
    /// What they take besides the bytes of their frames.
    index_bytes: usize,
    end: LogPosition,
    last_offset: Offset,
    /// The last run made: many subscribers ask for the same one.
    recent: Option<Recent>,
}

impl Log {
    /// An empty log behind `last_offset`.
    pub fn new(last_offset: Offset) -> Log {
        Log {
            chunks: VecDeque::new(),
            merged: 0,
            index_bytes: 0,
            end: LogPosition::START,
            last_offset,
            recent: None,
        }
    }

    /// Begins anew behind `last_offset`. Positions go on where they were: none is ever used twice. As for
    /// [`Log::clear`].
    pub fn restart(&mut self, last_offset: Offset, listed: LogPosition, retained: &mut Retained) {
        self.clear(listed, retained);
        self.last_offset = last_offset;
    }

    /// What is appended from now on comes behind another offset.
    pub fn renew(&mut self, last_offset: Offset) {
        self.last_offset = last_offset;
    }

    /// The position behind the newest byte.
    pub fn end(&self) -> LogPosition {
        self.end
    }

    /// Offset of the newest publication.
    pub fn last_offset(&self) -> Offset {
        self.last_offset
    }

    /// Memory held: the bytes of chunks, and what stands beside them.
    pub fn bytes_held(&self) -> usize {
        self.end - self.base() + self.index_bytes
    }

    /// How far positions go in so much memory: beside short frames there stands more than they have
    /// bytes.
    pub fn bytes_in(&self, memory: usize) -> usize {
        let bytes = (self.end - self.base()) as u128;
        let share = (memory as u128 * bytes).checked_div(bytes + self.index_bytes as u128);
        // No more than `memory`.
        share.map_or(memory, |bytes| bytes as usize)
    }

    /// Start of the oldest chunk.
    pub fn base(&self) -> LogPosition {
        self.chunks.front().map_or(self.end, |oldest| oldest.start)
    }

    /// Appends a chunk. Returns where it starts.
    pub fn append(&mut self, chunk: Chunk, now_ms: u64) -> LogPosition {
        let Chunk { bytes, frames, first_offset, count, .. } = chunk;
        let start = self.end;
        let placed = Placed { start, first_offset, count, at_ms: now_ms, bytes, frames };
        self.index_bytes += placed.index_bytes();
        self.end = placed.end();
        if let Some(behind_first) = count.checked_sub(1) {
            self.last_offset = first_offset + u64::from(behind_first);
        }
        self.chunks.push_back(placed);
        start
    }

    /// What a subscriber at `from` is to be sent: up to `bytes_max` in whole chunks, at least one
    /// chunk. `None` when it is caught up. Chunks are put together, once for all at one position who ask one after
    /// the other.
    ///
    /// # Panics
    /// If what stands at `from` was dropped: who falls out of the log meets the lag policy first.
    pub fn run(&mut self, from: LogPosition, bytes_max: usize) -> Option<&Run> {
        let known = self.recent.as_ref().is_some_and(|recent| {
            (recent.from, recent.bytes_max) == (from, bytes_max)
                && recent.grows_at.is_none_or(|end| end == self.end)
        });
        if !known {
            self.recent = Some(self.make_run(from, bytes_max)?);
        }
        self.recent.as_ref().map(|recent| &recent.run)
    }

    /// The same for who may be sent no more than up to `until`, where a frame ends: in one chunk.
    pub fn run_until(&self, from: LogPosition, until: LogPosition) -> Option<Run> {
        let chunk = self.chunk_at(from)?;
        let to = chunk.end().min(until);
        let publications = chunk.publications_before(to) - chunk.publications_before(from);
        Some(Run { bytes: chunk.slice(from, to)?, to, publications: publications.into() })
    }

    fn make_run(&self, from: LogPosition, bytes_max: usize) -> Option<Recent> {
        if from >= self.end {
            return None;
        }
        assert!(from >= self.base(), "who fell out of the log has met the lag policy");
        let mut chunks = self.chunks.range(self.place(from)..);
        let first = chunks.next()?;
        let mut bytes = first.slice(from, first.end())?;
        let mut publications = u64::from(first.count - first.publications_before(from));
        let joined = chunks.take_while(|chunk| chunk.end() - from <= bytes_max);
        publications += joined.clone().map(|chunk| u64::from(chunk.count)).sum::<u64>();
        let last = joined.clone().last().unwrap_or(first);
        let to = last.end();
        if to > first.end() {
            let mut all = Vec::with_capacity(to - from);
            all.extend_from_slice(&bytes);
            joined.for_each(|chunk| all.extend_from_slice(&chunk.bytes));
            bytes = Bytes::from(all);
        }
        let run = Run { bytes, to, publications };
        let grows_at = (to == self.end && to - from < bytes_max).then_some(to);
        Some(Recent { from, bytes_max, grows_at, run })
    }

    /// The first offset whose frame does not end at or before `position`.
    pub fn next_offset(&self, position: LogPosition) -> Offset {
        let Some(chunk) = self.chunk_at(position) else { return self.last_offset.next() };
        chunk.first_offset + u64::from(chunk.publications_before(position))
    }

    /// Where the frame ends in whose middle `position` lies; `None` at its border.
    pub fn end_of_frame(&self, position: LogPosition) -> Option<LogPosition> {
        let chunk = self.chunk_at(position)?;
        let end = chunk.frames.end_of_frame(position - chunk.start, chunk.bytes.len())?;
        Some(chunk.start + end)
    }

    /// The bytes of one chunk from `from` to `to`, shared.
    pub fn slice(&self, from: LogPosition, to: LogPosition) -> Option<Bytes> {
        self.chunk_at(from)?.slice(from, to)
    }

    /// When the first byte behind `position` was appended.
    pub fn appended_at(&self, position: LogPosition) -> Option<u64> {
        self.chunk_at(position).map(|chunk| chunk.at_ms)
    }

    /// Bytes of the newest chunk.
    pub fn newest_bytes(&self) -> usize {
        self.chunks.back().map_or(0, |newest| newest.bytes.len())
    }

    /// Whether it is worth while to ask so many subscribers what they still need.
    pub fn is_trimmable(&self, subscribers: usize) -> bool {
        self.chunks.len() * SUBSCRIBERS_PER_CHUNK >= subscribers && !self.chunks.is_empty()
            || self.bytes_held() > TRIMMED_BYTES
    }

    /// Drops the chunks that nobody asks for, those below `keep_from`, and puts together what stays. What stands in
    /// lists of sessions that follow begins at `listed`: it stays as it is. Chunks of which somebody else still
    /// holds a slice go to `retained`.
    pub fn trim(&mut self, keep_from: LogPosition, listed: LogPosition, retained: &mut Retained) {
        self.forget_run();
        while self.chunks.front().is_some_and(|oldest| oldest.end() <= keep_from) {
            if let Some(oldest) = self.chunks.pop_front() {
                self.index_bytes -= oldest.index_bytes();
                self.merged = self.merged.saturating_sub(1);
                retained.add(oldest.bytes);
            }
        }
        self.merge(listed, retained);
        if self.chunks.capacity() > ROOM_MIN && self.chunks.len() < self.chunks.capacity() / 4 {
            self.chunks.shrink_to(2 * self.chunks.len());
        }
    }

    /// Puts together what stays for those who lag, where it is many short chunks: each byte is copied once, and
    /// much less stands beside them. Positions stay what they are.
    fn merge(&mut self, listed: LogPosition, retained: &mut Retained) {
        // The newest stays by itself: it comes whole, however large it is.
        let newest = self.chunks.len().saturating_sub(1);
        let end = newest.min(self.chunks.partition_point(|chunk| chunk.end() <= listed));
        if end < self.merged + MERGED_CHUNKS {
            return;
        }
        let behind = self.chunks.split_off(end);
        let parts: Vec<Placed> = self.chunks.drain(self.merged..).collect();
        let mut parts = parts.into_iter().peekable();
        while let Some(first) = parts.next() {
            let (start, at_ms) = (first.start, first.at_ms);
            let mut next = first.first_offset + u64::from(first.count);
            let mut fits = |chunk: &Placed| {
                // Where the channel went on behind another offset, a block ends.
                let fits = chunk.end() - start <= BLOCK_BYTES_MAX
                    && chunk.at_ms - at_ms <= BLOCK_MS_MAX
                    && chunk.first_offset == next;
                next = chunk.first_offset + u64::from(chunk.count);
                fits
            };
            let mut block = vec![first];
            block.extend(std::iter::from_fn(|| parts.next_if(&mut fits)));
            if block.len() > 1 {
                let joined = Placed::join(&block);
                for part in block {
                    self.index_bytes -= part.index_bytes();
                    retained.add(part.bytes);
                }
                self.index_bytes += joined.as_ref().map_or(0, Placed::index_bytes);
                self.chunks.extend(joined);
            } else {
                self.chunks.extend(block);
            }
        }
        self.merged = self.chunks.len();
        self.chunks.extend(behind);
    }

    /// Forgets the run that was made last, which keeps memory alive: nobody will ask for it again.
    pub fn forget_run(&mut self) {
        self.recent = None;
    }

    /// Gives up everything. What stands in lists of sessions that follow begins at `listed`; what somebody else
    /// still holds goes to `retained`.
    pub fn clear(&mut self, listed: LogPosition, retained: &mut Retained) {
        self.forget_run();
        for chunk in std::mem::take(&mut self.chunks) {
            if chunk.end() <= listed {
                retained.add(chunk.bytes);
            }
        }
        (self.index_bytes, self.merged) = (0, 0);
    }

    /// The place of the chunk in which `position` lies, or would lie.
    fn place(&self, position: LogPosition) -> usize {
        // Mostly it is the newest that is asked for.
        match self.chunks.back() {
            Some(newest) if newest.start <= position => self.chunks.len() - 1,
            _ => self.chunks.partition_point(|chunk| chunk.end() <= position),
        }
    }

    /// The chunk in which `position` lies; `None` at the log's end, and below its base.
    fn chunk_at(&self, position: LogPosition) -> Option<&Placed> {
        let chunk = self.chunks.get(self.place(position))?;
        (chunk.start <= position && position < chunk.end()).then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::FrameEnd;
    use ringfeed_protocol::frame::{Opcode, server_frame_ends, write_server};
    use std::time::Instant;

    fn chunk(first_offset: u64, count: u32, size: usize) -> Chunk {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for publications in 1..=count {
            write_server(&mut bytes, Opcode::Text, &vec![b'x'; size]);
            ends.push(FrameEnd { end: u32::try_from(bytes.len()).unwrap(), publications });
        }
        let frames = FrameIndex::new(&ends);
        let first_offset = Offset(first_offset);
        Chunk { bytes: bytes.into(), frames, first_offset, count, at: Instant::now() }
    }

    fn at(position: u64) -> LogPosition {
        LogPosition(position)
    }

    #[test]
    fn runs_end_at_chunk_borders_and_add_up_to_the_log() {
        let mut log = Log::new(Offset::NONE);
        let mut all = Vec::new();
        let mut offset = 1;
        for i in 0..200u32 {
            let chunk = chunk(offset, 1 + i % 4, (i as usize * 37) % 900);
            offset += u64::from(chunk.count);
            all.extend_from_slice(&chunk.bytes);
            log.append(chunk, 0);
        }
        let (mut from, mut got, mut publications) = (LogPosition::START, Vec::new(), 0);
        while let Some(run) = log.run(from, 5000).cloned() {
            assert!(run.bytes.len() <= 5000, "no chunk here is larger");
            assert_eq!(server_frame_ends(&run.bytes).last(), Some(run.bytes.len()));
            assert_eq!(server_frame_ends(&run.bytes).count() as u64, run.publications);
            from = run.to;
            got.extend_from_slice(&run.bytes);
            publications += run.publications;
            assert_eq!(log.next_offset(from), Offset(publications + 1));
        }
        assert_eq!((got, from), (all, log.end()));
        assert_eq!(Offset(publications), log.last_offset());
    }

    #[test]
    fn one_chunk_is_shared_and_several_are_put_together_once() {
        let mut log = Log::new(Offset::NONE);
        log.append(chunk(1, 1, 1000), 0);
        let run = |log: &mut Log, from| log.run(at(from), 3000).cloned().unwrap();
        let alone = run(&mut log, 5).bytes.as_ptr();
        assert_eq!(Some(alone), log.slice(at(5), log.end()).map(|slice| slice.as_ptr()));
        log.append(chunk(2, 1, 1000), 0);
        let two = run(&mut log, 5);
        assert_eq!((two.bytes.len(), two.publications), (2 * 1004 - 5, 2), "it has grown");
        log.append(chunk(3, 1, 1000), 0);
        let full = run(&mut log, 5);
        assert_eq!((full.to, full.bytes.as_ptr()), (two.to, run(&mut log, 5).bytes.as_ptr()));
        log.append(chunk(4, 1, 1000), 0);
        assert_eq!(full.bytes.as_ptr(), run(&mut log, 5).bytes.as_ptr(), "nothing makes it longer");
    }

    #[test]
    fn a_log_is_looked_through_for_what_can_be_dropped_as_often_as_is_worth_while() {
        let mut log = Log::new(Offset::NONE);
        assert!(!log.is_trimmable(1));
        log.append(chunk(1, 1, 10), 0);
        assert!(log.is_trimmable(SUBSCRIBERS_PER_CHUNK));
        assert!(!log.is_trimmable(SUBSCRIBERS_PER_CHUNK + 1));
        log.append(chunk(2, 1, TRIMMED_BYTES), 0);
        assert!(log.is_trimmable(1_000_000));
    }

    #[test]
    fn a_chunk_larger_than_the_limit_goes_out_whole() {
        let mut log = Log::new(Offset(7));
        log.append(chunk(8, 1, 100_000), 0);
        log.append(chunk(9, 1, 10), 0);
        let run = log.run(at(0), 1000).unwrap();
        assert_eq!(run.publications, 1);
        assert!(run.bytes.len() > 100_000);
        let to = run.to;
        assert_eq!(log.run(to, 1000).unwrap().publications, 1);
    }

    #[test]
    fn a_position_inside_a_frame_knows_its_rest_and_its_offset() {
        let mut log = Log::new(Offset::NONE);
        log.append(chunk(1, 3, 10), 0); // frames of 12 bytes
        let offsets = [0, 11, 12, 13].map(|position| log.next_offset(at(position)).0);
        assert_eq!(offsets, [1, 1, 2, 2]);
        assert_eq!((log.end_of_frame(at(0)), log.end_of_frame(at(12))), (None, None));
        assert_eq!(log.end_of_frame(at(13)), Some(at(24)));
        assert_eq!(log.slice(at(13), at(24)).unwrap().len(), 11);
        let run = log.run(at(13), 1000).unwrap();
        assert_eq!((run.bytes.len(), run.publications), (23, 2));
        assert_eq!(log.end_of_frame(at(36)), None);
    }

    #[test]
    fn what_stands_beside_short_frames_is_held_and_takes_its_part_of_a_window() {
        let mut log = Log::new(Offset::NONE);
        assert_eq!((log.bytes_held(), log.bytes_in(1000)), (0, 1000));
        (0..1000).for_each(|i| _ = log.append(chunk(1 + i, 1, 1), 0));
        (0..1000).for_each(|i| _ = log.append(chunk(1001 + i * 9, 9, 1), 0));
        let (bytes, held) = (log.end() - log.base(), log.bytes_held());
        assert!(held > 5 * bytes, "{held} for {bytes} bytes");
        assert_eq!(log.bytes_in(held), bytes);
        let (end, mut retained) = (log.end(), Retained::default());
        log.trim(end, end, &mut retained);
        assert_eq!(log.bytes_held(), 0);
    }

    #[test]
    fn many_short_chunks_that_stay_are_put_together_and_say_the_same_as_before() {
        let mut log = Log::new(Offset::NONE);
        for i in 0..3000u64 {
            // Of one to three publications each; the second half of them slowly.
            let at_ms = i.min(1500) / 10 + i.saturating_sub(1500) * 60;
            log.append(chunk(1 + 2 * i, 2, (i as usize * 7) % 90), at_ms);
        }
        let positions: Vec<_> = (0..log.end().0).step_by(13).map(at).collect();
        let say = |log: &mut Log| -> Vec<_> {
            let say = |&p| (log.next_offset(p), log.end_of_frame(p), log.appended_at(p).unwrap());
            positions.iter().map(say).collect()
        };
        let (before, held, end) = (say(&mut log), log.bytes_held(), log.end());
        let listed = at(end.0 - 10_000);
        let mut retained = Retained::default();
        let slice = log.slice(at(10), at(11)).unwrap();
        log.trim(LogPosition::START, listed, &mut retained);
        assert!(retained.bytes() > 0 && slice.len() == 1, "a chunk that somebody holds is kept");
        assert!(log.bytes_held() < held * 2 / 3, "{} of {held}", log.bytes_held());
        for ((offset, frame, at_ms), (was, frame_was, was_ms)) in
            say(&mut log).into_iter().zip(before)
        {
            assert_eq!((offset, frame), (was, frame_was));
            assert!(at_ms >= was_ms && at_ms - was_ms <= BLOCK_MS_MAX);
        }
        let listed = log.chunks.partition_point(|chunk| chunk.end() <= listed);
        assert_eq!(log.merged, listed, "what stands in lists stays as it is");
        let held: usize = log.chunks.iter().map(|c| c.bytes.len() + c.index_bytes()).sum();
        assert_eq!(held, log.bytes_held());
        assert!(log.chunks.iter().all(|chunk| chunk.bytes.len() <= BLOCK_BYTES_MAX));
        let (mut from, mut publications) = (LogPosition::START, 0);
        while let Some(run) = log.run(from, 1 << 16) {
            (from, publications) = (run.to, publications + run.publications);
        }
        assert_eq!((from, publications), (end, 6000));
    }

    #[test]
    fn trimming_keeps_what_is_still_needed_and_tells_what_is_still_held() {
        let mut log = Log::new(Offset::NONE);
        (0..1000).for_each(|i| _ = log.append(chunk(i + 1, 1, 1000), i));
        let (held, mut retained) = (log.bytes_held(), Retained::default());
        let slice = log.slice(at(0), at(10));
        let keep = at(log.end().0 - 300_000);
        log.trim(keep, log.end(), &mut retained);
        assert!(log.base() <= keep && log.bytes_held() < held);
        assert!(log.run(keep, 1000).is_some());
        assert_eq!(retained.bytes(), 1004, "somebody holds a slice of the first chunk");
        drop(slice);
        retained.sweep();
        assert_eq!(retained.bytes(), 0);
        let end = log.end();
        log.trim(end, end, &mut retained);
        assert_eq!(log.bytes_held(), 0);
        assert_eq!(log.run(end, 1000).map(|r| r.publications), None);
        log.append(chunk(1001, 1, 5), 0);
        assert_eq!(log.run(end, 1000).unwrap().publications, 1);
        assert_eq!(log.next_offset(end), Offset(1001));
    }

    #[test]
    fn a_chunk_without_publications_moves_positions_and_no_offset() {
        let notice = |next: u64| {
            let mut bytes = Vec::new();
            write_server(&mut bytes, Opcode::Text, b"12345678");
            let frames = FrameIndex::new(&[FrameEnd { end: 10, publications: 0 }]);
            let (first_offset, at) = (Offset(next), Instant::now());
            Chunk { bytes: bytes.into(), frames, first_offset, count: 0, at }
        };
        let mut log = Log::new(Offset::NONE);
        log.append(notice(1), 0);
        assert_eq!((log.last_offset(), log.next_offset(at(0))), (Offset::NONE, Offset(1)));
        log.append(chunk(1, 2, 10), 0); // frames of 12 bytes
        log.append(notice(3), 0);
        assert_eq!((log.last_offset(), log.end()), (Offset(2), at(44)));
        let offsets = [0, 9, 10, 22, 34, 43].map(|position| log.next_offset(at(position)).0);
        assert_eq!(offsets, [1, 1, 1, 2, 3, 3]);
        let run = log.run(at(0), 1000).unwrap();
        assert_eq!((run.to, run.publications), (at(44), 2));
        let alone = log.run_until(at(34), at(44)).unwrap();
        assert_eq!((alone.bytes.len(), alone.publications), (10, 0));
        // Put together with others it says the same.
        (0..100).for_each(|i| _ = log.append(chunk(3 + i, 1, 1), 0));
        log.trim(at(0), log.end(), &mut Retained::default());
        assert!(log.merged < 10);
        assert_eq!(offsets, [0, 9, 10, 22, 34, 43].map(|position| log.next_offset(at(position)).0));
    }
}
