//! What Redis sends without being asked, until the bridge takes it.
//!
//! Not reading would hold up nobody who publishes: Redis would keep it, and cut the connection off at a limit of its own. So
//! everything is read, up to a limit of ours, and beyond it the connection counts as lost: homes then ask for what they miss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use redis::aio::{AsyncPushSender, SendError};
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{mpsc, watch};

/// Messages that may wait …
const MESSAGES_MAX: usize = 1 << 16;
/// … and bytes of them.
const BYTES_MAX: usize = 32 << 20;

/// A message on a channel of Redis.
#[derive(Debug)]
pub(super) struct Message {
    /// The channel.
    pub(super) channel: Bytes,
    /// What was published there.
    pub(super) payload: Bytes,
}

impl Message {
    fn cost(&self) -> usize {
        self.channel.len() + self.payload.len() + size_of::<Message>()
    }
}

/// Why a connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was closed, or is broken.
    Closed,
    /// More has come than is taken.
    Overrun,
}

#[derive(Debug)]
struct Shared {
    bytes: AtomicUsize,
    /// When this node heard itself last, in milliseconds since `began`.
    heard_ms: AtomicU64,
    began: Instant,
    ping: String,
}

/// Where a connection puts what comes.
#[derive(Debug, Clone)]
pub(super) struct Inlet {
    messages: mpsc::Sender<Message>,
    ended: watch::Sender<Option<Ended>>,
    shared: Arc<Shared>,
}

/// Where it is taken from.
#[derive(Debug)]
pub(super) struct Incoming {
    messages: mpsc::Receiver<Message>,
    ended: watch::Receiver<Option<Ended>>,
    shared: Arc<Shared>,
}

/// Both ends. On the channel `ping` nothing comes but what this node says to itself: it is noted, and not put in.
pub(super) fn incoming(ping: String) -> (Inlet, Incoming) {
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let (ending, ended) = watch::channel(None);
    let shared = Shared {
        bytes: AtomicUsize::new(0),
        heard_ms: AtomicU64::new(0),
        began: Instant::now(),
        ping,
    };
    let shared = Arc::new(shared);
    let inlet = Inlet { messages: sender, ended: ending, shared: shared.clone() };
    (inlet, Incoming { messages, ended, shared })
}

impl Inlet {
    fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| ended.replace(why).is_none());
    }

    fn message(&self, channel: Value, payload: Value) {
        let (Value::BulkString(channel), Value::BulkString(payload)) = (channel, payload) else {
            return;
        };
        if channel == self.shared.ping.as_bytes() {
            let now_ms = u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.shared.heard_ms.store(now_ms, Ordering::Relaxed);
            return;
        }
        let message = Message { channel: channel.into(), payload: payload.into() };
        let cost = message.cost();
        let waiting = self.shared.bytes.fetch_add(cost, Ordering::Relaxed);
        if waiting > BYTES_MAX || self.messages.try_send(message).is_err() {
            self.shared.bytes.fetch_sub(cost, Ordering::Relaxed);
            self.end(Ended::Overrun);
        }
    }
}

impl AsyncPushSender for Inlet {
    fn send(&self, PushInfo { kind, mut data }: PushInfo) -> Result<(), SendError> {
        match kind {
            PushKind::Message | PushKind::PMessage | PushKind::SMessage => {
                if let (Some(payload), Some(channel)) = (data.pop(), data.pop()) {
                    self.message(channel, payload);
                }
            }
            PushKind::Disconnection => self.end(Ended::Closed),
            _ => {}
        }
        Ok(())
    }
}

impl Incoming {
    /// Waits for the next message, if one is wanted, and until the connections are of no use any more.
    pub(super) async fn next(&mut self, wanted: bool) -> Result<Message, Ended> {
        let message = tokio::select! {
            biased;
            Some(message) = self.messages.recv(), if wanted => message,
            ended = self.ended.wait_for(Option::is_some) => {
                return Err(ended.ok().and_then(|ended| *ended).unwrap_or(Ended::Closed));
            }
        };
        self.shared.bytes.fetch_sub(message.cost(), Ordering::Relaxed);
        Ok(message)
    }

    /// The next message, if there is one.
    pub(super) fn take(&mut self) -> Option<Message> {
        let message = self.messages.try_recv().ok()?;
        self.shared.bytes.fetch_sub(message.cost(), Ordering::Relaxed);
        Some(message)
    }

    /// For how long this node has not heard itself, in milliseconds.
    pub(super) fn unheard_ms(&self) -> u64 {
        let now_ms = u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        now_ms.saturating_sub(self.shared.heard_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(inlet: &Inlet, kind: PushKind, data: &[&[u8]]) {
        let data = data.iter().map(|bytes| Value::BulkString(bytes.to_vec())).collect();
        let _ = inlet.send(PushInfo { kind, data });
    }

    #[tokio::test]
    async fn messages_come_in_order_and_all_else_is_left_out() {
        let (inlet, mut incoming) = incoming("p".into());
        push(&inlet, PushKind::Subscribe, &[b"a"]);
        push(&inlet, PushKind::Message, &[b"a"]);
        push(&inlet, PushKind::Message, &[b"a", b"1"]);
        push(&inlet, PushKind::PMessage, &[b"*", b"b", b"2"]);
        push(&inlet, PushKind::Message, &[b"p", b""]);
        for expected in [(&b"a"[..], &b"1"[..]), (b"b", b"2")] {
            let Message { channel, payload } = incoming.next(true).await.unwrap();
            assert_eq!((&channel[..], &payload[..]), expected);
        }
        assert!(incoming.take().is_none());
        assert_eq!(incoming.shared.bytes.load(Ordering::Relaxed), 0);
        push(&inlet, PushKind::Disconnection, &[]);
        assert_eq!(incoming.next(true).await.unwrap_err(), Ended::Closed);
    }

    #[tokio::test]
    async fn what_is_not_taken_is_bounded() {
        let (inlet, mut incoming) = incoming("p".into());
        let payload = vec![0; 1 << 20];
        for _ in 0..40 {
            push(&inlet, PushKind::Message, &[b"a", &payload]);
        }
        assert_eq!(incoming.next(false).await.unwrap_err(), Ended::Overrun);
        let taken = std::iter::from_fn(|| incoming.take()).count();
        assert!((31..=33).contains(&taken), "{taken}");
    }
}
