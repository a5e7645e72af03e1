//! What waits to be sent to one connection only: replies, pongs, gaps, replays, the closing handshake.

use std::collections::VecDeque;

use bytes::Bytes;
use ringfeed_protocol::ChannelName;
use ringfeed_protocol::frame::server_frame_ends;

/// Whose memory a run of frames is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// The connection's own.
    Own,
    /// The connection's own copy of what a channel keeps.
    Copied,
    /// A channel's history or log, whoever else is sent it.
    Shared,
}

/// One frame, or several of a replay.
#[derive(Debug)]
struct Run {
    bytes: Bytes,
    memory: Memory,
    /// Of a replay or a gap: the channel that it is of.
    of: Option<Box<ChannelName>>,
}

/// Whole frames in order; the first may be sent in part.
#[derive(Debug, Default)]
pub(in crate::shard) struct Outbox {
    runs: VecDeque<Run>,
    own_bytes: usize,
    /// Bytes left of the frame that is sent in part: they stay, whatever else is given up.
    begun: usize,
    /// The first frame is the rest of one that was sent from a channel's log.
    rest: bool,
    /// When it began to wait for its socket, and bytes taken since.
    began_ms: Option<u64>,
    taken: u64,
}

/// What a socket must take in each timeout of its outbox, in bytes, once that has waited for long.
const PACE_BYTES: u64 = 64 * 1024;
/// What one frame takes here, besides its bytes.
const RUN_BYTES: usize = size_of::<Run>();

impl Run {
    fn own_bytes(&self) -> usize {
        let name = self.of.as_ref().map_or(0, |_| size_of::<ChannelName>());
        RUN_BYTES + name + if self.memory == Memory::Shared { 0 } else { self.bytes.len() }
    }
}

impl Outbox {
    /// Adds a frame that is nobody else's.
    pub(in crate::shard) fn push(&mut self, frame: Bytes) {
        self.add(Run { bytes: frame, memory: Memory::Own, of: None });
    }

    /// Adds frames of a channel's replay that were copied for this connection.
    pub(in crate::shard) fn push_copied(&mut self, channel: &ChannelName, frames: Bytes) {
        self.push_of(channel, frames, Memory::Copied);
    }

    /// Adds frames of a channel's replay that others share.
    pub(in crate::shard) fn push_shared(&mut self, channel: &ChannelName, frames: Bytes) {
        self.push_of(channel, frames, Memory::Shared);
    }

    /// Adds the news of a gap, which means nothing without what comes before it of its channel.
    pub(in crate::shard) fn push_gap(&mut self, channel: &ChannelName, frame: Bytes) {
        self.push_of(channel, frame, Memory::Own);
    }

    fn push_of(&mut self, channel: &ChannelName, frames: Bytes, memory: Memory) {
        if !frames.is_empty() {
            self.add(Run { bytes: frames, memory, of: Some(Box::new(channel.clone())) });
        }
    }

    fn add(&mut self, run: Run) {
        self.own_bytes += run.own_bytes();
        self.runs.push_back(run);
    }

    /// Puts the rest of a half-sent frame before everything else. `shared`: it is a slice of a log.
    pub(in crate::shard) fn push_rest(&mut self, rest: Bytes, shared: bool) {
        let memory = if shared { Memory::Shared } else { Memory::Own };
        (self.begun, self.rest) = (rest.len(), true);
        let run = Run { bytes: rest, memory, of: None };
        self.own_bytes += run.own_bytes();
        self.runs.push_front(run);
    }

    /// Puts something into an empty outbox that counts as begun.
    pub(in crate::shard) fn push_begun(&mut self, frame: Bytes) {
        debug_assert!(self.runs.is_empty(), "nothing was sent before it");
        self.begun = frame.len();
        self.push(frame);
    }

    /// It waits for its socket. The first time counts until it is empty.
    pub(in crate::shard) fn begin(&mut self, now_ms: u64) {
        if self.began_ms.is_none() {
            self.begin_again(now_ms);
        }
    }

    /// From now on its time counts anew.
    pub(in crate::shard) fn begin_again(&mut self, now_ms: u64) {
        (self.began_ms, self.taken) = (Some(now_ms), 0);
    }

    /// Whether it has waited for at least so many timeouts, and too little was taken in each of them: a few
    /// bytes now and then would hold it for ever.
    pub(in crate::shard) fn is_too_slow(&self, now_ms: u64, timeout_ms: u64, least: u64) -> bool {
        let waited_ms = self.began_ms.map_or(0, |began_ms| now_ms.saturating_sub(began_ms));
        let timeouts = waited_ms / timeout_ms;
        timeouts >= least && self.taken < timeouts.saturating_mul(PACE_BYTES)
    }

    /// Whether anything waits that only this connection is to get.
    pub(in crate::shard) fn is_owed(&self) -> bool {
        self.runs.len() > usize::from(self.rest)
    }

    /// Memory of what only this connection is to get, and nobody else's.
    pub(in crate::shard) fn owed_bytes(&self) -> usize {
        let rest = self.runs.front().filter(|_| self.rest);
        self.own_bytes - rest.map_or(0, Run::own_bytes)
    }

    /// The same, of answers up to a length. Replays are none, however short.
    pub(in crate::shard) fn small_bytes(&self, frame_bytes_max: usize) -> usize {
        let owed = self.runs.iter().skip(usize::from(self.rest));
        let answers = owed.filter(|run| run.memory != Memory::Copied);
        let small = answers.filter(|run| run.bytes.len() <= frame_bytes_max);
        small.map(Run::own_bytes).sum()
    }

    /// Memory that is nobody else's.
    pub(in crate::shard) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    pub(in crate::shard) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Runs of frames waiting.
    pub(in crate::shard) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Everything waiting, in order.
    pub(in crate::shard) fn runs(&self) -> impl Iterator<Item = &Bytes> {
        self.runs.iter().map(|run| &run.bytes)
    }

    /// The newest.
    pub(in crate::shard) fn last(&self) -> Option<&Bytes> {
        self.runs.back().map(|run| &run.bytes)
    }

    /// The kernel has taken so many bytes.
    pub(in crate::shard) fn sent(&mut self, mut taken: usize) {
        self.taken += taken as u64;
        while taken > 0
            && let Some(front) = self.runs.front_mut()
        {
            self.own_bytes -= front.own_bytes();
            if taken < front.bytes.len() {
                self.begun = match self.begun.checked_sub(taken) {
                    Some(left) => left,
                    None => left_of_frame(&front.bytes[self.begun..], taken - self.begun),
                };
                front.bytes = front.bytes.slice(taken..);
                self.own_bytes += front.own_bytes();
                return;
            }
            taken -= front.bytes.len();
            self.runs.pop_front();
            (self.begun, self.rest) = (0, false);
        }
    }

    /// Replaces the newest frame, which is one of the connection's own and not begun.
    pub(in crate::shard) fn replace_last(&mut self, frame: Bytes) {
        if let Some(last) = self.runs.pop_back() {
            self.own_bytes -= last.own_bytes();
        }
        self.push(frame);
    }

    /// Whether the newest frame may be replaced: it is the connection's own, and nothing of it is sent.
    pub(in crate::shard) fn is_last_replaceable(&self) -> bool {
        self.runs.back().is_some_and(|run| run.memory == Memory::Own)
            && (self.runs.len() > 1 || self.begun == 0)
    }

    /// Gives up what has not begun: for who does not read, and is closed. A frame that has begun is finished.
    pub(in crate::shard) fn give_up(&mut self) {
        self.keep(|_| false);
    }

    /// The same before a close frame, which is the last one and stays.
    pub(in crate::shard) fn give_up_before_last(&mut self) {
        let last = self.runs.pop_back();
        self.keep(|_| false);
        self.own_bytes += last.as_ref().map_or(0, Run::own_bytes);
        self.runs.extend(last);
    }

    /// Gives up what waits of a channel and has not begun.
    pub(in crate::shard) fn give_up_channel(&mut self, channel: &ChannelName) {
        self.keep(|run| run.of.as_deref() != Some(channel));
    }

    /// The channels of which something waits, in order.
    pub(in crate::shard) fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.runs.iter().filter_map(|run| run.of.as_deref())
    }

    /// Gives up the others. Of the first one what has begun stays.
    fn keep(&mut self, keeps: impl Fn(&Run) -> bool) {
        let begun = std::mem::take(&mut self.begun);
        let mut first = true;
        self.runs.retain_mut(|run| {
            let begun = if std::mem::take(&mut first) { begun } else { 0 };
            let kept = keeps(run);
            if !kept {
                run.bytes.truncate(begun);
            }
            kept || begun > 0
        });
        self.begun = begun;
        self.own_bytes = self.runs.iter().map(Run::own_bytes).sum();
    }
}

/// Bytes left of the frame in which the first `taken` bytes of a run of whole frames end.
fn left_of_frame(run: &[u8], taken: usize) -> usize {
    server_frame_ends(run).find(|&end| end >= taken).unwrap_or(run.len()) - taken
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::frame::{Opcode, write_server};

    use super::*;

    fn outbox(frames: &[&'static [u8]]) -> Outbox {
        let mut outbox = Outbox::default();
        frames.iter().for_each(|frame| outbox.push(Bytes::from_static(frame)));
        outbox
    }

    #[test]
    fn partial_sends_cut_the_first_frame() {
        let mut outbox = outbox(&[b"hello", b"world"]);
        outbox.sent(7);
        assert_eq!(outbox.runs().collect::<Vec<_>>(), [&b"rld"[..]]);
        assert!(!outbox.is_last_replaceable(), "it has begun");
        outbox.sent(3);
        assert_eq!((outbox.own_bytes(), outbox.is_empty()), (0, true));
    }

    fn channel(name: &str) -> ChannelName {
        ChannelName::new(name).unwrap()
    }

    /// Frames with payloads of these lengths.
    fn frames(lens: &[usize]) -> Bytes {
        let mut run = Vec::new();
        lens.iter().for_each(|&len| write_server(&mut run, Opcode::Text, &vec![b'x'; len]));
        run.into()
    }

    fn lens(outbox: &Outbox) -> Vec<usize> {
        outbox.runs().map(Bytes::len).collect()
    }

    #[test]
    fn a_copied_replay_is_memory_but_no_answer() {
        let mut outbox = outbox(&[b"reply"]);
        let answers = outbox.small_bytes(100);
        outbox.push_copied(&channel("a"), frames(&[6]));
        assert_eq!(outbox.small_bytes(100), answers);
        let run = RUN_BYTES + size_of::<ChannelName>();
        assert_eq!(outbox.owed_bytes(), answers + run + 8);
        outbox.sent(5 + 3);
        assert_eq!(outbox.own_bytes(), run + 5);
    }

    #[test]
    fn shared_memory_costs_its_handle_only() {
        let mut outbox = outbox(&[b"reply"]);
        outbox.push_shared(&channel("a"), frames(&[4092]));
        let run = RUN_BYTES + size_of::<ChannelName>();
        assert_eq!(outbox.own_bytes(), 5 + RUN_BYTES + run);
        outbox.sent(5 + 4000);
        assert_eq!(outbox.own_bytes(), run);
        outbox.push(Bytes::from_static(b"later"));
        outbox.give_up();
        assert_eq!(lens(&outbox), [96], "it has begun");
    }

    #[test]
    fn of_a_replay_that_is_given_up_a_frame_that_has_begun_is_finished_and_no_other() {
        let (a, b) = (channel("a"), channel("b"));
        for (taken, left) in [(0, vec![22]), (12, vec![22]), (13, vec![11, 22]), (24, vec![22])] {
            let mut outbox = Outbox::default();
            outbox.push_shared(&a, frames(&[10, 10, 200]));
            outbox.push_copied(&a, frames(&[10]));
            outbox.push_gap(&a, frames(&[10]));
            outbox.push_shared(&b, frames(&[20]));
            // In two parts, the first of them in the middle of a frame.
            outbox.sent(taken.min(1));
            outbox.sent(taken - taken.min(1));
            outbox.give_up_channel(&a);
            assert_eq!(lens(&outbox), left, "{taken} bytes were taken");
            outbox.give_up_channel(&b);
            outbox.sent(outbox.runs().map(Bytes::len).sum());
            assert!(outbox.is_empty() && outbox.own_bytes() == 0);
        }
    }

    #[test]
    fn the_rest_of_a_frame_of_a_channel_is_owed_to_nobody_in_particular() {
        let mut outbox = Outbox::default();
        outbox.push_rest(Bytes::from_static(b"rest"), false);
        assert!(!outbox.is_owed());
        outbox.push(Bytes::from_static(b"gap"));
        assert!(outbox.is_owed());
        outbox.sent(4);
        assert!(outbox.is_owed());
        outbox.give_up();
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_waits_before_a_close_frame_is_given_up_but_for_what_has_begun() {
        let frames = |outbox: &Outbox| outbox.runs().map(|run| run.to_vec()).collect::<Vec<_>>();
        let mut begun = outbox(&[b"first", b"second", b"close"]);
        begun.sent(1);
        begun.give_up_before_last();
        assert_eq!(frames(&begun), [&b"irst"[..], b"close"]);
        assert_eq!(begun.own_bytes(), 4 + 5 + 2 * RUN_BYTES);
        let mut alone = outbox(&[b"close"]);
        alone.sent(1);
        alone.give_up_before_last();
        assert_eq!(frames(&alone), [b"lose"]);
    }
}
