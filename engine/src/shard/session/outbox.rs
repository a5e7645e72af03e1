//! What waits to be sent to one connection only: replies, pongs, gaps, replays, the closing handshake.

use std::collections::VecDeque;

use bytes::Bytes;

/// Whose memory a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// The connection's own.
    Own,
    /// The connection's own copy of what a channel keeps.
    Copied,
    /// A channel's history or log, whoever else is sent it.
    Shared,
}

/// Whole frames in order; the first may be sent in part.
#[derive(Debug, Default)]
pub(in crate::shard) struct Outbox {
    frames: VecDeque<(Memory, Bytes)>,
    own_bytes: usize,
    /// The first frame is sent in part: it stays, whatever else is given up.
    begun: bool,
    /// The first frame is the rest of one that was sent from a channel's log.
    rest: bool,
    /// When it began to wait for its socket, and bytes taken since.
    began_ms: Option<u64>,
    taken: u64,
}

/// What a socket must take in each timeout of its outbox, in bytes, once that has waited for long.
const PACE_BYTES: u64 = 64 * 1024;
/// What one frame takes here, besides its bytes.
const FRAME_BYTES: usize = size_of::<(Memory, Bytes)>();

fn own_bytes_of(memory: Memory, frame: &Bytes) -> usize {
    FRAME_BYTES + if memory == Memory::Shared { 0 } else { frame.len() }
}

impl Outbox {
    /// Adds a frame that is nobody else's.
    pub(in crate::shard) fn push(&mut self, frame: Bytes) {
        self.own_bytes += own_bytes_of(Memory::Own, &frame);
        self.frames.push_back((Memory::Own, frame));
    }

    /// Adds frames of a replay that were copied for this connection.
    pub(in crate::shard) fn push_copied(&mut self, frames: Bytes) {
        self.own_bytes += own_bytes_of(Memory::Copied, &frames);
        self.frames.push_back((Memory::Copied, frames));
    }

    /// Adds frames that others share.
    pub(in crate::shard) fn push_shared(&mut self, frames: Bytes) {
        if !frames.is_empty() {
            self.own_bytes += own_bytes_of(Memory::Shared, &frames);
            self.frames.push_back((Memory::Shared, frames));
        }
    }

    /// Puts the rest of a half-sent frame before everything else. `shared`: it is a slice of a log.
    pub(in crate::shard) fn push_rest(&mut self, rest: Bytes, shared: bool) {
        let memory = if shared { Memory::Shared } else { Memory::Own };
        self.own_bytes += own_bytes_of(memory, &rest);
        self.frames.push_front((memory, rest));
        (self.begun, self.rest) = (true, true);
    }

    /// Puts something into an empty outbox that counts as begun.
    pub(in crate::shard) fn push_begun(&mut self, frame: Bytes) {
        debug_assert!(self.frames.is_empty(), "nothing was sent before it");
        self.push(frame);
        self.begun = true;
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
        self.frames.len() > usize::from(self.rest)
    }

    /// Memory of what only this connection is to get, and nobody else's.
    pub(in crate::shard) fn owed_bytes(&self) -> usize {
        let rest = self.frames.front().filter(|_| self.rest);
        self.own_bytes - rest.map_or(0, |(memory, frame)| own_bytes_of(*memory, frame))
    }

    /// The same, of answers up to a length. Replays are none, however short.
    pub(in crate::shard) fn small_bytes(&self, frame_bytes_max: usize) -> usize {
        let owed = self.frames.iter().skip(usize::from(self.rest));
        let answers = owed.filter(|(memory, _)| *memory != Memory::Copied);
        let small = answers.filter(|(_, frame)| frame.len() <= frame_bytes_max);
        small.map(|(memory, frame)| own_bytes_of(*memory, frame)).sum()
    }

    /// Memory that is nobody else's.
    pub(in crate::shard) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    pub(in crate::shard) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames waiting.
    pub(in crate::shard) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Everything waiting, in order.
    pub(in crate::shard) fn frames(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().map(|(_, frame)| frame)
    }

    /// The newest frame.
    pub(in crate::shard) fn last(&self) -> Option<&Bytes> {
        self.frames.back().map(|(_, frame)| frame)
    }

    /// The kernel has taken so many bytes.
    pub(in crate::shard) fn sent(&mut self, mut taken: usize) {
        self.taken += taken as u64;
        while taken > 0
            && let Some((memory, front)) = self.frames.front_mut()
        {
            self.own_bytes -= own_bytes_of(*memory, front);
            if taken < front.len() {
                *front = front.slice(taken..);
                self.own_bytes += own_bytes_of(*memory, front);
                self.begun = true;
                return;
            }
            taken -= front.len();
            self.frames.pop_front();
            (self.begun, self.rest) = (false, false);
        }
    }

    /// Replaces the newest frame, which is one of the connection's own and not begun.
    pub(in crate::shard) fn replace_last(&mut self, frame: Bytes) {
        if let Some((memory, last)) = self.frames.pop_back() {
            self.own_bytes -= own_bytes_of(memory, &last);
        }
        self.push(frame);
    }

    /// Whether the newest frame may be replaced: it is the connection's own, and nothing of it is sent.
    pub(in crate::shard) fn is_last_replaceable(&self) -> bool {
        self.frames.back().is_some_and(|(memory, _)| *memory == Memory::Own)
            && (self.frames.len() > 1 || !self.begun)
    }

    /// Gives up what has not begun: for who does not read, and is closed. A run of frames that has begun
    /// is finished.
    pub(in crate::shard) fn give_up(&mut self) {
        self.frames.truncate(usize::from(self.begun));
        self.own_bytes = self.frames.iter().map(|(memory, f)| own_bytes_of(*memory, f)).sum();
    }

    /// The same before a close frame, which is the last one and stays.
    pub(in crate::shard) fn give_up_before_last(&mut self) {
        let last = self.frames.pop_back();
        self.frames.truncate(usize::from(self.begun));
        self.frames.extend(last);
        self.own_bytes = self.frames.iter().map(|(memory, f)| own_bytes_of(*memory, f)).sum();
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(outbox.frames().collect::<Vec<_>>(), [&b"rld"[..]]);
        assert!(!outbox.is_last_replaceable(), "it has begun");
        outbox.sent(3);
        assert_eq!((outbox.own_bytes(), outbox.is_empty()), (0, true));
    }

    #[test]
    fn a_copied_replay_is_memory_but_no_answer() {
        let mut outbox = outbox(&[b"reply"]);
        let answers = outbox.small_bytes(100);
        outbox.push_copied(Bytes::from_static(b"replayed"));
        assert_eq!(outbox.small_bytes(100), answers);
        assert_eq!(outbox.owed_bytes(), answers + FRAME_BYTES + 8);
        outbox.sent(5 + 3);
        assert_eq!(outbox.own_bytes(), FRAME_BYTES + 5);
    }

    #[test]
    fn shared_memory_costs_its_handle_only() {
        let mut outbox = outbox(&[b"reply"]);
        outbox.push_shared(Bytes::from_static(&[0; 4096]));
        assert_eq!(outbox.own_bytes(), 5 + 2 * FRAME_BYTES);
        outbox.sent(5 + 4000);
        assert_eq!(outbox.own_bytes(), FRAME_BYTES);
        outbox.push(Bytes::from_static(b"later"));
        outbox.give_up();
        assert_eq!(outbox.frames().map(Bytes::len).collect::<Vec<_>>(), [96], "it has begun");
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
        let frames = |outbox: &Outbox| outbox.frames().map(|f| f.to_vec()).collect::<Vec<_>>();
        let mut begun = outbox(&[b"first", b"second", b"close"]);
        begun.sent(1);
        begun.give_up_before_last();
        assert_eq!(frames(&begun), [&b"irst"[..], b"close"]);
        assert_eq!(begun.own_bytes(), 4 + 5 + 2 * FRAME_BYTES);
        let mut alone = outbox(&[b"close"]);
        alone.sent(1);
        alone.give_up_before_last();
        assert_eq!(frames(&alone), [b"lose"]);
    }
}
