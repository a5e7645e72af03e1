//! What the threads of a run say to each other: how far it is, what is coming, what has arrived.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

/// Messages handed over at once at most, so that a fast feed is still interleaved with receiving.
const BATCH_MESSAGES: usize = 512;
/// Bytes handed over at once at most.
const BATCH_BYTES: usize = 128 * 1024;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Running = 0,
    Stop = 1,
}

/// What all threads of a run share.
#[derive(Debug)]
pub(crate) struct Control {
    start: Instant,
    phase: AtomicU8,
    stopped: AtomicBool,
    interrupted: AtomicBool,
    begun: AtomicBool,
    publishing: AtomicBool,
    /// When latencies begin to count, on the run's clock.
    pub(crate) counts_from_ns: AtomicU64,
    /// Messages handed to the server, warm-up included.
    pub(crate) published: AtomicU64,
    /// When the next message is due, on the run's clock.
    pub(crate) next_due_ns: AtomicU64,
}

impl Control {
    pub(crate) fn new() -> Control {
        Control {
            start: Instant::now(),
            phase: AtomicU8::new(Phase::Running as u8),
            stopped: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            publishing: AtomicBool::new(false),
            counts_from_ns: AtomicU64::new(0),
            published: AtomicU64::new(0),
            next_due_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// What is measured begins, or has been published.
    pub(crate) fn set_publishing(&self, publishing: bool) {
        self.publishing.store(publishing, Ordering::Relaxed);
        // Behind it: who sees that it has begun, and then that nothing is published, is at the end.
        self.begun.store(true, Ordering::Release);
    }

    /// Whether the run has begun: what goes wrong from here on is a finding, and ends nothing.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Somebody pressed Ctrl-C. Returns whether that was so before.
    pub(crate) fn interrupt(&self) -> bool {
        self.stop();
        self.interrupted.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    /// Has everybody publish no more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// The run's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.phase.load(Ordering::Acquire) == Phase::Stop as u8 {
            Phase::Stop
        } else {
            Phase::Running
        }
    }

    /// Whether that which is measured is being published.
    pub(crate) fn is_publishing(&self) -> bool {
        self.publishing.load(Ordering::Relaxed)
    }

    /// Whether Ctrl-C was pressed or a thread has failed: publish no more.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// What a fleet counts while it runs, for all to see.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) opened: AtomicU64,
    /// Subscriptions that are known to stand.
    pub(crate) standing: AtomicU64,
    /// Subscriptions of connections that have not ended that are asked for, or will be, and do not
    /// stand; and one more until it is over that they come and go.
    pub(crate) owed: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) bytes: AtomicU64,
    channels: Vec<OfChannel>,
}

/// The part of a channel's messages that is not waited for any more.
#[derive(Debug, Default)]
struct OfChannel {
    /// Subscriptions that stand and read.
    live: AtomicU64,
    /// Messages behind the cursors of these, added up: delivered or known to be lost.
    settled: AtomicU64,
}

impl Progress {
    pub(crate) fn new(channels: usize) -> Progress {
        Progress {
            opened: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            channels: (0..channels).map(|_| OfChannel::default()).collect(),
        }
    }

    /// The cursors of a channel have moved by so much, backwards if it wraps.
    pub(crate) fn settle(&self, channel: u32, count: u64) {
        self.channels[channel as usize].settled.fetch_add(count, Ordering::Relaxed);
    }

    /// A subscription begins, or ends if it wraps, with so many messages behind its cursor.
    pub(crate) fn live(&self, channel: u32, count: u64, behind: u64) {
        self.channels[channel as usize].live.fetch_add(count, Ordering::Relaxed);
        self.settle(channel, behind);
    }

    /// Subscriptions of a channel that read, and the messages that they are done with.
    pub(crate) fn of_channel(&self, channel: usize) -> (u64, u64) {
        let OfChannel { live, settled } = &self.channels[channel];
        (live.load(Ordering::Relaxed), settled.load(Ordering::Relaxed))
    }
}

/// Messages about to be published, in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    pub(crate) text: Vec<u8>,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    pub(crate) channel: u32,
    /// On the run's clock.
    pub(crate) intended_ns: u64,
    /// Whether it belongs to what is measured.
    pub(crate) counts: bool,
    start: u32,
    end: u32,
}

impl Batch {
    pub(crate) fn payload(&self, item: &Item) -> &[u8] {
        &self.text[item.start as usize..item.end as usize]
    }

    pub(crate) fn push(&mut self, channel: u32, intended_ns: u64, counts: bool, payload: &[u8]) {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(payload);
        let end = self.text.len() as u32;
        self.items.push(Item { channel, intended_ns, counts, start, end });
    }

    pub(crate) fn is_full(&self) -> bool {
        self.items.len() >= BATCH_MESSAGES || self.text.len() >= BATCH_BYTES
    }
}
