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
    /// The server says no more on a channel: another one does.
    Moved,
}

#[derive(Debug)]
struct Shared {
    bytes: AtomicUsize,
    began: Instant,
    servers: Vec<Server>,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What is known of what comes from a server.
#[derive(Debug)]
struct Server {
    ping: String,
    /// When this node heard itself there last, in milliseconds since `began`.
    heard_ms: AtomicU64,
    /// Channels of sharded pub/sub that this node wants to hear no more, which is not confirmed yet.
    leaving: AtomicUsize,
}

/// Where the connections to a server put what comes.
#[derive(Debug, Clone)]
pub(super) struct Inlet {
    messages: mpsc::Sender<Message>,
    ended: watch::Sender<Option<Ended>>,
    shared: Arc<Shared>,
    /// Which server it is.
    at: usize,
}

/// Where it is taken from.
#[derive(Debug)]
pub(super) struct Incoming {
    messages: mpsc::Receiver<Message>,
    ended: watch::Receiver<Option<Ended>>,
    shared: Arc<Shared>,
}

/// Both ends, for each server one of the first. On the channels `pings`, of each server one, nothing comes but what this node
/// says to itself: it is noted, and not put in.
pub(super) fn incoming(pings: Vec<String>) -> (Vec<Inlet>, Incoming) {
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let (ending, ended) = watch::channel(None);
    let server = |ping| Server { ping, heard_ms: AtomicU64::new(0), leaving: AtomicUsize::new(0) };
    let servers = pings.into_iter().map(server).collect();
    let shared = Arc::new(Shared { bytes: AtomicUsize::new(0), began: Instant::now(), servers });
    let inlet = |at| {
        let (messages, ended) = (sender.clone(), ending.clone());
        Inlet { messages, ended, shared: shared.clone(), at }
    };
    let inlets = (0..shared.servers.len()).map(inlet).collect();
    (inlets, Incoming { messages, ended, shared })
}

impl Inlet {
    fn server(&self) -> Option<&Server> {
        self.shared.servers.get(self.at)
    }

    /// This node is about to say that it wants to hear a channel of sharded pub/sub no more.
    pub(super) fn leave(&self) {
        if let Some(server) = self.server() {
            server.leaving.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A channel of sharded pub/sub is heard no more. Unless this node wants it so, what it is about has moved: where both
    /// happen at once, the count does not fit in the end, and it counts as moved, too.
    fn left(&self) {
        let Some(server) = self.server() else { return };
        let fewer = |count: usize| count.checked_sub(1);
        if server.leaving.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_err() {
            self.end(Ended::Moved);
        }
    }

    fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| ended.replace(why).is_none());
    }

    fn message(&self, channel: Value, payload: Value) {
        let (Value::BulkString(channel), Value::BulkString(payload)) = (channel, payload) else {
            return;
        };
        if let Some(server) = self.server().filter(|own| channel == own.ping.as_bytes()) {
            server.heard_ms.store(self.shared.now_ms(), Ordering::Relaxed);
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
            PushKind::SUnsubscribe => self.left(),
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

    /// All connections are made: from now on this node is to be heard.
    pub(super) fn begin(&self) {
        let now_ms = self.shared.now_ms();
        self.shared.servers.iter().for_each(|own| own.heard_ms.store(now_ms, Ordering::Relaxed));
    }

    /// The server where this node has not heard itself for longest, and for how long, in milliseconds.
    pub(super) fn unheard(&self) -> Option<(usize, u64)> {
        let heard = self.shared.servers.iter().map(|own| own.heard_ms.load(Ordering::Relaxed));
        let (at, oldest) = heard.enumerate().min_by_key(|(_, heard)| *heard)?;
        Some((at, self.shared.now_ms().saturating_sub(oldest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> (Inlet, Incoming) {
        let (mut inlets, incoming) = incoming(vec!["p".into()]);
        (inlets.remove(0), incoming)
    }

    fn push(inlet: &Inlet, kind: PushKind, data: &[&[u8]]) {
        let data = data.iter().map(|bytes| Value::BulkString(bytes.to_vec())).collect();
        let _ = inlet.send(PushInfo { kind, data });
    }

    #[tokio::test]
    async fn messages_come_in_order_and_all_else_is_left_out() {
        let (inlet, mut incoming) = one();
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
        let (inlet, mut incoming) = one();
        let payload = vec![0; 1 << 20];
        for _ in 0..40 {
            push(&inlet, PushKind::Message, &[b"a", &payload]);
        }
        assert_eq!(incoming.next(false).await.unwrap_err(), Ended::Overrun);
        let taken = std::iter::from_fn(|| incoming.take()).count();
        assert!((31..=33).contains(&taken), "{taken}");
    }

    #[tokio::test]
    async fn a_server_that_says_no_more_on_a_channel_that_is_wanted_is_left() {
        let (inlet, mut incoming) = one();
        // One that is not wanted any more.
        inlet.leave();
        push(&inlet, PushKind::SUnsubscribe, &[b"a"]);
        assert_eq!(incoming.ended.borrow_and_update().as_ref(), None);
        push(&inlet, PushKind::SUnsubscribe, &[b"b"]);
        assert_eq!(incoming.next(true).await.unwrap_err(), Ended::Moved);
    }

    #[test]
    fn the_server_that_was_heard_last_of_all_counts() {
        let (inlets, incoming) = incoming(vec!["p".into(), "q".into(), "r".into()]);
        while incoming.shared.now_ms() == 0 {}
        push(&inlets[0], PushKind::SMessage, &[b"p", b""]);
        push(&inlets[2], PushKind::SMessage, &[b"r", b""]);
        // That of another server says nothing of this one.
        push(&inlets[1], PushKind::SMessage, &[b"p", b""]);
        assert_eq!(incoming.unheard().unwrap().0, 1);
    }
}
