//! What waits to be sent to one connection only: replies, pongs, gaps, the closing handshake.

use std::collections::VecDeque;

use bytes::Bytes;

/// Whole frames in order; the first may be sent in part.
#[derive(Debug, Default)]
pub(in crate::shard) struct Outbox {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    pub(in crate::shard) fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Puts bytes before everything else: the rest of a frame that is half sent.
    pub(in crate::shard) fn push_front(&mut self, rest: Bytes) {
        self.bytes += rest.len();
        self.frames.push_front(rest);
    }

    /// Bytes waiting.
    pub(in crate::shard) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Everything waiting, in order.
    pub(in crate::shard) fn frames(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter()
    }

    /// The kernel has taken so many bytes.
    pub(in crate::shard) fn sent(&mut self, mut taken: usize) {
        self.bytes -= taken;
        while taken > 0
            && let Some(front) = self.frames.front_mut()
        {
            if taken < front.len() {
                *front = front.slice(taken..);
                return;
            }
            taken -= front.len();
            self.frames.pop_front();
        }
    }

    /// Replaces the last frame.
    pub(in crate::shard) fn replace_last(&mut self, frame: Bytes) {
        if let Some(last) = self.frames.pop_back() {
            self.bytes -= last.len();
        }
        self.push(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_sends_cut_the_first_frame() {
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"hello"));
        outbox.push(Bytes::from_static(b"world"));
        outbox.sent(7);
        assert_eq!(outbox.frames().collect::<Vec<_>>(), [&b"rld"[..]]);
        outbox.push_front(Bytes::from_static(b"x"));
        assert_eq!(outbox.bytes(), 4);
        outbox.sent(4);
        assert_eq!((outbox.bytes(), outbox.frames().count()), (0, 0));
    }
}
