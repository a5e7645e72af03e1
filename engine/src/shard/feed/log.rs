//! The log of one channel in one lane on one shard: framed bytes in order, addressed by position.
//!
//! Positions count bytes since the log began and never go back. Subscribers are cursors: a position
//! each. What all of them are past is dropped; what lagging ones still need stays within a window.
//! Where frames end stands beside the bytes: nothing here parses them.

use std::collections::VecDeque;

use bytes::Bytes;
use ringfeed_protocol::Offset;
use ringfeed_wire::Segment;

use crate::ids::LogPosition;
use crate::message::{Chunk, FrameIndex};

/// First segment of a log, so that a quiet channel stays small.
const SEGMENT_BYTES_MIN: usize = 1024;
/// Later segments double up to this while they fill within [`BUSY_MS`], and halve again when they do
/// not. A chunk never straddles segments, so larger ones exist.
const SEGMENT_BYTES_MAX: usize = 256 * 1024;
/// A segment that filled within this is followed by a larger one.
const BUSY_MS: u64 = 1000;

/// Where a chunk lies in the log.
#[derive(Debug, Clone)]
struct Placed {
    start: LogPosition,
    first_offset: Offset,
    count: u32,
    at_ms: u64,
    frames: FrameIndex,
}

impl Placed {
    /// What it takes in memory, besides the bytes of its frames.
    fn bytes(&self) -> usize {
        size_of::<Placed>() + self.frames.bytes()
    }
}

#[derive(Debug)]
struct Stretch {
    base: LogPosition,
    made_ms: u64,
    segment: Segment,
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

/// See the module's description.
#[derive(Debug)]
pub struct Log {
    segments: VecDeque<Stretch>,
    chunks: VecDeque<Placed>,
    /// What these take.
    index_bytes: usize,
    end: LogPosition,
    last_offset: Offset,
    /// The last run made, and `end` at that time: caught-up subscribers all ask for the same one.
    recent: Option<(LogPosition, LogPosition, Run)>,
}

impl Log {
    /// An empty log behind `last_offset`.
    pub fn new(last_offset: Offset) -> Log {
        Log {
            segments: VecDeque::new(),
            chunks: VecDeque::new(),
            index_bytes: 0,
            end: LogPosition::START,
            last_offset,
            recent: None,
        }
    }

    /// Begins anew behind `last_offset`. Positions go on where they were: none is ever used twice. What
    /// somebody still holds goes to `retained`.
    pub fn restart(&mut self, last_offset: Offset, retained: &mut Vec<Segment>) {
        self.clear(retained);
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

    /// Memory held: bytes in segments, and what says where their frames end.
    pub fn bytes_held(&self) -> usize {
        self.end - self.base() + self.index_bytes
    }

    /// How far positions go in so much memory: beside short frames there stands more than they have
    /// bytes.
    pub fn bytes_in(&self, memory: usize) -> usize {
        let bytes = self.chunks.front().map_or(0, |oldest| self.end - oldest.start) as u128;
        let share = (memory as u128 * bytes).checked_div(bytes + self.index_bytes as u128);
        // No more than `memory`.
        share.map_or(memory, |bytes| bytes as usize)
    }

    /// Start of the oldest segment.
    pub fn base(&self) -> LogPosition {
        self.segments.front().map_or(self.end, |oldest| oldest.base)
    }

    /// Appends a chunk. Returns where it starts.
    pub fn append(&mut self, chunk: &Chunk, now_ms: u64) -> LogPosition {
        let Chunk { bytes, frames, first_offset, count, .. } = chunk;
        let appended = self.segments.back_mut().is_some_and(|last| last.segment.append(bytes));
        if !appended {
            let wanted = match self.segments.back() {
                Some(last) if now_ms.saturating_sub(last.made_ms) < BUSY_MS => {
                    last.segment.capacity() * 2
                }
                Some(last) => last.segment.capacity() / 2,
                None => 0,
            };
            let capacity = wanted.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX).max(bytes.len());
            let mut segment = Segment::new(capacity);
            let fits = segment.append(bytes);
            debug_assert!(fits, "a new segment holds the chunk it was made for");
            self.segments.push_back(Stretch { base: self.end, made_ms: now_ms, segment });
        }
        let start = self.end;
        let placed = Placed {
            start,
            first_offset: *first_offset,
            count: *count,
            at_ms: now_ms,
            frames: frames.clone(),
        };
        self.index_bytes += placed.bytes();
        self.chunks.push_back(placed);
        self.end = start + bytes.len();
        self.last_offset = *first_offset + u64::from(count.saturating_sub(1));
        start
    }

    /// What a subscriber at `from` is to be sent: up to `bytes_max` in whole chunks, at least one
    /// chunk, all from one segment. `None` when it is caught up.
    ///
    /// # Panics
    /// If what stands at `from` was dropped: who falls out of the log meets the lag policy first.
    pub fn run(&mut self, from: LogPosition, bytes_max: usize) -> Option<&Run> {
        let known = self.recent.as_ref().is_some_and(|&(at, end, _)| at == from && end == self.end);
        if !known {
            let run = self.make_run(from, bytes_max)?;
            self.recent = Some((from, self.end, run));
        }
        self.recent.as_ref().map(|(_, _, run)| run)
    }

    fn make_run(&self, from: LogPosition, bytes_max: usize) -> Option<Run> {
        if from >= self.end {
            return None;
        }
        assert!(from >= self.base(), "who fell out of the log has met the lag policy");
        let stretch = self.stretch(from)?;
        let segment_end = stretch.base + stretch.segment.len();
        let target = (from + bytes_max).min(segment_end);
        // A chunk ends where the next one starts; the last one where the log does.
        let next = self.chunks.partition_point(|chunk| chunk.start <= target);
        let mut to = self.chunks.get(next).map_or(self.end, |chunk| chunk.start).min(segment_end);
        if to > target {
            let start = self.chunks.get(next.wrapping_sub(1)).map_or(to, |chunk| chunk.start);
            if start > from {
                to = start;
            }
        }
        let bytes = stretch.segment.slice(from - stretch.base, to - stretch.base);
        let publications = self.next_offset(to).since(self.next_offset(from));
        Some(Run { bytes, to, publications })
    }

    /// The first offset whose frame does not end at or before `position`.
    pub fn next_offset(&self, position: LogPosition) -> Offset {
        let Some((chunk, len)) = self.chunk_at(position) else { return self.last_offset.next() };
        let inside = chunk.frames.publications_within(position - chunk.start, len, chunk.count);
        chunk.first_offset + u64::from(inside)
    }

    /// Where the frame ends in whose middle `position` lies; `None` at its border.
    pub fn end_of_frame(&self, position: LogPosition) -> Option<LogPosition> {
        let (chunk, len) = self.chunk_at(position)?;
        Some(chunk.start + chunk.frames.end_of_frame(position - chunk.start, len)?)
    }

    /// The bytes of one segment from `from` to `to`, shared.
    pub fn slice(&self, from: LogPosition, to: LogPosition) -> Option<Bytes> {
        let stretch = self.stretch(from)?;
        let (start, end) = (from - stretch.base, to - stretch.base);
        (start <= end && end <= stretch.segment.len()).then(|| stretch.segment.slice(start, end))
    }

    /// When the first byte behind `position` was appended.
    pub fn appended_at(&self, position: LogPosition) -> Option<u64> {
        self.chunk_at(position).map(|(chunk, _)| chunk.at_ms)
    }

    /// Bytes of the newest chunk.
    pub fn newest_bytes(&self) -> usize {
        self.chunks.back().map_or(0, |newest| self.end - newest.start)
    }

    /// Whether [`Log::trim`] at the log's end would drop anything.
    pub fn is_trimmable(&self) -> bool {
        self.segments.len() > 1
    }

    /// Drops what nobody asks for below `keep_from`: whole segments, never the newest, and where frames
    /// end. Segments of which somebody still holds a slice go to `retained`.
    pub fn trim(&mut self, keep_from: LogPosition, retained: &mut Vec<Segment>) {
        // The run that was made last would keep its segment alive.
        self.recent = None;
        while self.segments.get(1).is_some_and(|second| second.base <= keep_from) {
            if let Some(oldest) = self.segments.pop_front()
                && oldest.segment.is_shared()
            {
                retained.push(oldest.segment);
            }
        }
        // Nobody asks where frames end that everybody is past, also within a segment that stays.
        let needed_from = self.base().max(keep_from);
        while self.chunks.get(1).is_some_and(|second| second.start <= needed_from) {
            self.index_bytes -= self.chunks.pop_front().map_or(0, |chunk| chunk.bytes());
        }
    }

    /// Gives up everything; what somebody still holds goes to `retained`.
    pub fn clear(&mut self, retained: &mut Vec<Segment>) {
        self.recent = None;
        let shared = self.segments.drain(..).filter(|stretch| stretch.segment.is_shared());
        retained.extend(shared.map(|stretch| stretch.segment));
        self.chunks.clear();
        self.index_bytes = 0;
    }

    fn stretch(&self, position: LogPosition) -> Option<&Stretch> {
        let next = self.segments.partition_point(|stretch| stretch.base <= position);
        self.segments.get(next.checked_sub(1)?)
    }

    /// The chunk in which `position` lies, and its length; `None` at the log's end.
    fn chunk_at(&self, position: LogPosition) -> Option<(&Placed, usize)> {
        if position >= self.end {
            return None;
        }
        let next = self.chunks.partition_point(|chunk| chunk.start <= position);
        let chunk = self.chunks.get(next.checked_sub(1)?)?;
        let end = self.chunks.get(next).map_or(self.end, |next| next.start);
        Some((chunk, end - chunk.start))
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
            log.append(&chunk, 0);
            offset += u64::from(chunk.count);
            all.extend_from_slice(&chunk.bytes);
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
    fn a_chunk_larger_than_the_limit_goes_out_whole() {
        let mut log = Log::new(Offset(7));
        log.append(&chunk(8, 1, 100_000), 0);
        log.append(&chunk(9, 1, 10), 0);
        let run = log.run(at(0), 1000).unwrap();
        assert_eq!(run.publications, 1);
        assert!(run.bytes.len() > 100_000);
        let to = run.to;
        assert_eq!(log.run(to, 1000).unwrap().publications, 1);
    }

    #[test]
    fn a_position_inside_a_frame_knows_its_rest_and_its_offset() {
        let mut log = Log::new(Offset::NONE);
        log.append(&chunk(1, 3, 10), 0); // frames of 12 bytes
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
        (0..1000).for_each(|i| _ = log.append(&chunk(1 + i, 1, 1), 0));
        (0..1000).for_each(|i| _ = log.append(&chunk(1001 + i * 9, 9, 1), 0));
        let (bytes, held) = (log.end() - log.base(), log.bytes_held());
        assert!(held > 5 * bytes, "{held} for {bytes} bytes");
        assert_eq!(log.bytes_in(held), bytes);
        let (end, mut retained) = (log.end(), Vec::new());
        log.trim(end, &mut retained);
        assert!(log.bytes_held() < 2 * SEGMENT_BYTES_MAX && log.index_bytes < 1000);
        log.clear(&mut retained);
        assert_eq!(log.bytes_held(), 0);
    }

    #[test]
    fn trimming_keeps_what_is_still_needed_and_tells_what_is_still_held() {
        let mut log = Log::new(Offset::NONE);
        (0..1000).for_each(|i| _ = log.append(&chunk(i + 1, 1, 1000), i));
        let (held, mut retained) = (log.bytes_held(), Vec::new());
        let slice = log.slice(at(0), at(10));
        let keep = at(log.end().0 - 300_000);
        log.trim(keep, &mut retained);
        assert!(log.base() <= keep && log.bytes_held() < held);
        assert!(log.run(keep, 1000).is_some());
        assert_eq!(retained.len(), 1, "somebody holds a slice of the first segment");
        drop(slice);
        assert!(!retained[0].is_shared());
        let end = log.end();
        log.trim(end, &mut retained);
        assert!(log.bytes_held() <= SEGMENT_BYTES_MAX);
        assert_eq!(log.run(end, 1000).map(|r| r.publications), None);
        log.append(&chunk(1001, 1, 5), 0);
        assert_eq!(log.run(end, 1000).unwrap().publications, 1);
        assert_eq!(log.next_offset(end), Offset(1001));
    }
}
