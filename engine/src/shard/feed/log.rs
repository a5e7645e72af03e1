//! The log of one channel in one lane on one shard: framed bytes in order, addressed by position.
//!
//! Positions count bytes since the log began and never go back. Subscribers are cursors: a position
//! each. What all of them are past is dropped; what lagging ones still need stays within a window.

use std::collections::VecDeque;

use bytes::Bytes;
use ringfeed_protocol::frame::server_frame_ends;
use ringfeed_wire::Segment;

/// First segment of a log, so that a quiet channel stays small.
const SEGMENT_BYTES_MIN: usize = 1024;
/// Later segments double up to this while they fill within [`BUSY_MS`], and halve again when they do
/// not. A chunk never straddles segments, so larger ones exist.
const SEGMENT_BYTES_MAX: usize = 256 * 1024;
/// A segment that filled within this is followed by a larger one.
const BUSY_MS: u64 = 1000;

/// All publications of one turn for one lane, as one run of whole frames.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    start: u64,
    first_offset: u64,
    at_ms: u64,
}

#[derive(Debug)]
struct Placed {
    base: u64,
    made_ms: u64,
    segment: Segment,
}

/// What to send to a subscriber at some position.
#[derive(Debug)]
pub struct Run {
    /// Contiguous bytes, ending at the end of a frame.
    pub bytes: Bytes,
    /// The position behind them.
    pub to: u64,
    /// Publications that end in this run.
    pub publications: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Log {
    segments: VecDeque<Placed>,
    chunks: VecDeque<Chunk>,
    end: u64,
    last_offset: u64,
    /// The last run made, and `end` at that time: caught-up subscribers all ask for the same one.
    recent: Option<(u64, u64, Run)>,
}

impl Log {
    /// An empty log behind `last_offset`.
    pub fn new(last_offset: u64) -> Log {
        Log {
            segments: VecDeque::new(),
            chunks: VecDeque::new(),
            end: 0,
            last_offset,
            recent: None,
        }
    }

    /// The position behind the newest byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Offset of the newest publication.
    pub fn last_offset(&self) -> u64 {
        self.last_offset
    }

    /// Bytes held in segments.
    pub fn bytes_held(&self) -> u64 {
        self.segments.front().map_or(0, |oldest| self.end - oldest.base)
    }

    /// Appends a chunk: `count` whole frames, the first of them with `first_offset`.
    pub fn append(&mut self, bytes: &[u8], first_offset: u64, count: u32, now_ms: u64) {
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
            self.segments.push_back(Placed { base: self.end, made_ms: now_ms, segment });
        }
        self.chunks.push_back(Chunk { start: self.end, first_offset, at_ms: now_ms });
        self.end += bytes.len() as u64;
        self.last_offset = first_offset + u64::from(count) - 1;
    }

    /// What a subscriber at `from` is to be sent: up to `bytes_max` in whole chunks, at least one
    /// chunk, all from one segment. `None` when it is caught up.
    pub fn run(&mut self, from: u64, bytes_max: u64) -> Option<&Run> {
        let known = self.recent.as_ref().is_some_and(|&(at, end, _)| at == from && end == self.end);
        if !known {
            let run = self.make_run(from, bytes_max)?;
            self.recent = Some((from, self.end, run));
        }
        self.recent.as_ref().map(|(_, _, run)| run)
    }

    fn make_run(&self, from: u64, bytes_max: u64) -> Option<Run> {
        if from >= self.end {
            return None;
        }
        assert!(from >= self.base(), "who fell out of the log has met the lag policy");
        let placed = self.placed(from)?;
        let segment_end = placed.base + placed.segment.len() as u64;
        let target = (from + bytes_max).min(segment_end);
        // Chunk ends are the starts of the next ones; the last one's is the log's end.
        let next = self.chunks.partition_point(|chunk| chunk.start <= target);
        let mut to = self.chunks.get(next).map_or(self.end, |chunk| chunk.start).min(segment_end);
        if to > target {
            let start = self.chunks.get(next.wrapping_sub(1)).map_or(to, |chunk| chunk.start);
            if start > from {
                to = start;
            }
        }
        let (start, end) = (from - placed.base, to - placed.base);
        // Both lie within one segment, whose length is a usize.
        let bytes = placed.segment.slice(start as usize, end as usize);
        let publications = self.publications_before(to) - self.publications_before(from);
        Some(Run { bytes, to, publications })
    }

    /// Where [`Log::trim`] would cut: the start of the oldest segment that it would keep.
    pub fn trim_point(&self, keep_from: u64) -> u64 {
        let next = self.segments.partition_point(|placed| placed.base <= keep_from);
        self.segments.get(next.wrapping_sub(1)).map_or(0, |placed| placed.base)
    }

    /// Start of the oldest segment.
    pub fn base(&self) -> u64 {
        self.segments.front().map_or(self.end, |placed| placed.base)
    }

    /// The first offset whose frame does not end at or before `position`.
    pub fn next_offset(&self, position: u64) -> u64 {
        self.publications_before(position) + 1
    }

    /// Offset of the last publication that ends at or before `position`.
    fn publications_before(&self, position: u64) -> u64 {
        if position >= self.end {
            return self.last_offset;
        }
        let Some(chunk) = self.chunk_at(position) else {
            let oldest = self.chunks.front().map_or(self.last_offset + 1, |c| c.first_offset);
            return oldest - 1;
        };
        if position == chunk.start {
            return chunk.first_offset - 1;
        }
        let inside = position - chunk.start;
        let whole = self.with_chunk(&chunk, |bytes| {
            server_frame_ends(bytes).take_while(|&end| end as u64 <= inside).count()
        });
        chunk.first_offset - 1 + whole as u64
    }

    /// The bytes that complete the frame in whose middle `position` lies; `None` at its border.
    pub fn rest_of_frame(&self, position: u64) -> Option<Bytes> {
        let chunk = self.chunk_at(position)?;
        let inside = position - chunk.start;
        if inside == 0 {
            return None;
        }
        self.with_chunk(&chunk, |bytes| {
            let end = server_frame_ends(bytes).map(|end| end as u64).find(|&end| end >= inside)?;
            let rest = bytes.get(inside as usize..end as usize)?;
            (!rest.is_empty()).then(|| Bytes::copy_from_slice(rest))
        })
    }

    /// When the first byte behind `position` was appended.
    pub fn appended_at(&self, position: u64) -> Option<u64> {
        self.chunk_at(position).map(|chunk| chunk.at_ms)
    }

    /// Drops whole segments below `keep_from`.
    pub fn trim(&mut self, keep_from: u64) {
        let base = self.trim_point(keep_from);
        while self.segments.front().is_some_and(|oldest| oldest.base < base) {
            self.segments.pop_front();
        }
        while self.chunks.get(1).is_some_and(|second| second.start <= base) {
            self.chunks.pop_front();
        }
        // The run that was made last would keep its segment alive.
        self.recent = None;
    }

    fn placed(&self, position: u64) -> Option<&Placed> {
        let next = self.segments.partition_point(|placed| placed.base <= position);
        self.segments.get(next.checked_sub(1)?)
    }

    fn chunk_at(&self, position: u64) -> Option<Chunk> {
        if position >= self.end {
            return None;
        }
        let next = self.chunks.partition_point(|chunk| chunk.start <= position);
        self.chunks.get(next.checked_sub(1)?).copied()
    }

    fn with_chunk<T>(&self, chunk: &Chunk, read: impl FnOnce(&[u8]) -> T) -> T {
        let end = match self.chunks.binary_search_by_key(&chunk.start, |c| c.start) {
            Ok(at) => self.chunks.get(at + 1).map_or(self.end, |next| next.start),
            Err(_) => self.end,
        };
        match self.placed(chunk.start) {
            Some(placed) => {
                let start = (chunk.start - placed.base) as usize;
                let end = ((end - placed.base) as usize).min(placed.segment.len());
                read(&placed.segment.slice(start, end))
            }
            None => read(&[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfeed_protocol::frame::{Opcode, write_server};

    fn frames(count: usize, size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        (0..count).for_each(|i| write_server(&mut out, Opcode::Text, &vec![i as u8; size]));
        out
    }

    #[test]
    fn runs_end_at_chunk_borders_and_add_up_to_the_log() {
        let mut log = Log::new(0);
        let mut all = Vec::new();
        let mut offset = 1;
        for i in 0..200u32 {
            let count = 1 + i % 4;
            let chunk = frames(count as usize, (i as usize * 37) % 900);
            log.append(&chunk, offset, count, 0);
            offset += u64::from(count);
            all.extend_from_slice(&chunk);
        }
        let (mut at, mut got, mut publications) = (0, Vec::new(), 0);
        while log.run(at, 5000).is_some() {
            let Run { bytes, to, publications: count } = log.run(at, 5000).unwrap();
            let run = Run { bytes: bytes.clone(), to: *to, publications: *count };
            assert!(run.bytes.len() <= 5000, "no chunk here is larger");
            assert_eq!(server_frame_ends(&run.bytes).last(), Some(run.bytes.len()));
            assert_eq!(server_frame_ends(&run.bytes).count() as u64, run.publications);
            at = run.to;
            got.extend_from_slice(&run.bytes);
            publications += run.publications;
            assert_eq!(log.next_offset(at), publications + 1);
        }
        assert_eq!((got, at), (all, log.end()));
        assert_eq!(publications, log.last_offset());
    }

    #[test]
    fn a_chunk_larger_than_the_limit_goes_out_whole() {
        let mut log = Log::new(7);
        log.append(&frames(1, 100_000), 8, 1, 0);
        log.append(&frames(1, 10), 9, 1, 0);
        let run = log.run(0, 1000).unwrap();
        assert_eq!(run.publications, 1);
        assert!(run.bytes.len() > 100_000);
        let to = run.to;
        assert_eq!(log.run(to, 1000).unwrap().publications, 1);
    }

    #[test]
    fn a_position_inside_a_frame_knows_its_rest_and_its_offset() {
        let mut log = Log::new(0);
        log.append(&frames(3, 10), 1, 3, 0); // frames of 12 bytes
        assert_eq!(log.next_offset(0), 1);
        assert_eq!(log.next_offset(11), 1);
        assert_eq!(log.next_offset(12), 2);
        assert_eq!(log.next_offset(13), 2);
        assert_eq!(log.rest_of_frame(0), None);
        assert_eq!(log.rest_of_frame(12), None);
        assert_eq!(log.rest_of_frame(13).unwrap().len(), 11);
        let run = log.run(13, 1000).unwrap();
        assert_eq!((run.bytes.len(), run.publications), (23, 2));
        assert_eq!(log.rest_of_frame(36), None);
    }

    #[test]
    fn trimming_keeps_what_is_still_needed() {
        let mut log = Log::new(0);
        for i in 0..1000u64 {
            log.append(&frames(1, 1000), i + 1, 1, i);
        }
        let held = log.bytes_held();
        let keep = log.end() - 300_000;
        log.trim(keep);
        assert!(log.base() <= keep && log.bytes_held() < held);
        assert!(log.run(keep, 1000).is_some());
        let end = log.end();
        log.trim(end);
        assert!(log.bytes_held() <= SEGMENT_BYTES_MAX as u64);
        assert_eq!(log.run(end, 1000).map(|r| r.publications), None);
        log.append(&frames(1, 5), 1001, 1, 0);
        assert_eq!(log.run(end, 1000).unwrap().publications, 1);
        assert_eq!(log.next_offset(end), 1001);
    }
}
