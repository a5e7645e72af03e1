//! Counters of one shard: written by that shard alone, read by whoever scrapes.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number: relaxed, single writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds; only the owning shard may.
    pub fn add(&self, n: u64) {
        self.set(self.read().wrapping_add(n));
    }

    /// Sets; only the owning shard may.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Reads; anybody may.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

macro_rules! counters {
    ($($name:ident: $kind:ident = $help:literal),* $(,)?) => {
        /// Written by one shard, without contention.
        #[derive(Debug, Default)]
        pub struct Counters { $(#[doc = $help] pub $name: Count),* }

        /// The counters of all shards, added up.
        #[derive(Debug, Clone, Default, serde::Serialize, utoipa::ToSchema)]
        pub struct Totals { $(#[doc = $help] pub $name: u64),* }

        impl Totals {
            /// Adds one shard's counters.
            pub fn add(&mut self, counters: &Counters) {
                $(self.$name += counters.$name.read();)*
            }

            /// Name, help, kind and value of each.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, Kind, u64)> {
                [$((stringify!($name), $help, Kind::$kind, self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    connections: Gauge = "WebSocket connections open.",
    subscriptions: Gauge = "Subscriptions of open connections.",
    channels: Gauge = "Channels with subscribers or history.",
    handshakes: Gauge = "Handshakes under way.",
    sockets: Gauge = "Socket slots in use in the wire.",
    rings: Gauge = "Rings of the wire; each is a descriptor, and is kept once it was needed.",
    log_bytes: Gauge = "Bytes held in channel logs.",
    outbox_bytes: Gauge = "Bytes waiting in outboxes of single connections.",
    opened: Counter = "WebSocket connections opened.",
    refused: Counter = "Connections and upgrades refused.",
    messages_in: Counter = "Messages received from clients.",
    publications: Counter = "Publications appended to channel logs.",
    deliveries: Counter = "Publications sent to subscribers.",
    sends: Counter = "Sends handed to the kernel.",
    short_sends: Counter = "Sends the kernel did not take whole.",
    bytes_in: Counter = "Bytes received.",
    bytes_out: Counter = "Bytes handed to the kernel.",
    turns: Counter = "Turns of the shard's loop.",
    sleeps: Counter = "Times the shard went to sleep.",
    kernel_enters: Counter = "Times the wire entered the kernel.",
    gaps: Counter = "Gaps told to subscribers that lagged.",
    gap_publications: Counter = "Publications that lagging subscribers missed and were told of.",
    lag_disconnects: Counter = "Connections closed because they lagged.",
    recovered: Counter = "Subscribes that recovered everything missed.",
    not_recovered: Counter = "Subscribes whose position could not be recovered.",
    errors_told: Counter = "Commands refused with an error.",
    protocol_errors: Counter = "Connections closed for breaking the WebSocket protocol.",
    heartbeat_timeouts: Counter = "Connections closed because nothing was heard from them.",
    publishers_paused: Counter = "Times a publisher was slowed down because the shard was behind.",
    turn_max_us: Gauge = "Longest turn in microseconds, added up over shards.",
    turn_cpu_max_us: Gauge = "Longest turn in microseconds of the shard's own CPU time, without what the machine gave to others; added up over shards.",
}
