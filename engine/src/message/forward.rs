//! What was published here on channels that nodes of another system have, too: the way from homes to the control thread, which
//! tells those nodes. Bounded in number and bytes; what finds no room is counted and not told.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ringfeed_protocol::ChannelName;
use tokio::sync::mpsc;

use super::delivery::StoredPayload;

/// Publications that wait for the control thread …
const FORWARDS_MAX: usize = 16_384;
/// … and bytes of them.
pub(crate) const FORWARDS_BYTES_MAX: usize = 16 << 20;

/// A publication that others are to be told of.
#[derive(Debug)]
pub struct Forward {
    /// The channel.
    pub channel: ChannelName,
    /// What.
    pub payload: StoredPayload,
}

/// The homes' end.
#[derive(Debug)]
pub struct Forwards {
    sender: mpsc::Sender<Forward>,
    bytes: AtomicUsize,
    lost: AtomicU64,
}

impl Forwards {
    /// Both ends.
    pub fn new() -> (Forwards, mpsc::Receiver<Forward>) {
        let (sender, receiver) = mpsc::channel(FORWARDS_MAX);
        (Forwards { sender, bytes: AtomicUsize::new(0), lost: AtomicU64::new(0) }, receiver)
    }

    /// Hands a publication over, or counts it as lost. Those of one shard keep their order.
    pub(crate) fn give(&self, forward: Forward) {
        let bytes = forward.payload.bytes.len();
        let fits = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= FORWARDS_BYTES_MAX;
        if !fits || self.sender.try_send(forward).is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One has come to the other end.
    pub(crate) fn taken(&self, forward: &Forward) {
        self.bytes.fetch_sub(forward.payload.bytes.len(), Ordering::Relaxed);
    }

    /// How many found no room since this was asked last.
    pub(crate) fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::command::PayloadKind;

    use super::*;

    #[test]
    fn what_finds_no_room_is_counted() {
        let (forwards, mut receiver) = Forwards::new();
        let half = vec![b'x'; FORWARDS_BYTES_MAX / 2];
        let give = || {
            let payload = StoredPayload { kind: PayloadKind::Text, bytes: half.clone().into() };
            forwards.give(Forward { channel: ChannelName::new("a").unwrap(), payload });
        };
        (0..3).for_each(|_| give());
        assert_eq!((forwards.take_lost(), forwards.take_lost()), (1, 0));
        forwards.taken(&receiver.try_recv().unwrap());
        give();
        assert_eq!(forwards.take_lost(), 0);
    }
}
