//! Counters of one shard: written by that shard alone, read by whoever scrapes.
//!
//! Every number is a relaxed atomic with a single writer: no contention, and a reader may see one
//! number a moment before another.

use std::sync::atomic::{AtomicU64, Ordering};

use ringfeed_protocol::CloseCode;

/// One number: relaxed, single writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds; only the owning thread may.
    pub fn add(&self, n: u64) {
        self.set(self.read().wrapping_add(n));
    }

    /// Sets; only the owning thread may.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Reads; anybody may.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long a [`WindowMax`] remembers at least, and at most twice as long.
const WINDOW_MS: u64 = 60_000;

/// The largest value of the last 60 to 120 seconds: of the period of 60 s that runs and of the one
/// before. Whoever looks once a minute misses nothing, and an old outlier is forgotten.
#[derive(Debug, Default)]
pub struct WindowMax {
    period: Count,
    running: Count,
    before: Count,
}

impl WindowMax {
    /// Takes a value at a time in milliseconds that never goes back; only the owning thread may.
    /// Call it also while nothing happens (with 0): it is what forgets.
    pub fn record(&self, value: u64, now_ms: u64) {
        let period = now_ms / WINDOW_MS;
        let last = self.period.read();
        if period != last {
            self.before.set(if period == last + 1 { self.running.read() } else { 0 });
            self.running.set(0);
            self.period.set(period);
        }
        if value > self.running.read() {
            self.running.set(value);
        }
    }

    /// Reads; anybody may.
    pub fn read(&self) -> u64 {
        self.running.read().max(self.before.read())
    }
}

/// Buckets of a [`Histogram`]: at most 2^0, 2^1 … 2^24 us (16.8 s), and what is above.
pub const BUCKETS: usize = 26;

/// How often something took how many microseconds, in buckets of powers of two.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Count; BUCKETS],
    sum_us: Count,
}

impl Histogram {
    /// Takes one value in microseconds; only the owning thread may.
    pub fn record(&self, us: u64) {
        self.record_many(us, 1);
    }

    /// Takes the same value `n` times.
    pub fn record_many(&self, us: u64, n: u64) {
        // The number of the smallest power of two that is not below the value.
        let power = (u64::BITS - us.saturating_sub(1).leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get(power.min(BUCKETS - 1)) {
            bucket.add(n);
        }
        self.sum_us.add(us.saturating_mul(n));
    }

    /// Reads; anybody may.
    pub fn read(&self) -> Distribution {
        Distribution {
            buckets: std::array::from_fn(|i| self.buckets[i].read()),
            sum_us: self.sum_us.read(),
        }
    }
}

/// What a [`Histogram`] held at some moment, or several of them added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many values fell into each bucket.
    pub buckets: [u64; BUCKETS],
    /// All values added up, in microseconds.
    pub sum_us: u64,
}

impl Distribution {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Distribution) {
        for (own, other) in self.buckets.iter_mut().zip(other.buckets) {
            *own += other;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// Upper end in microseconds of the bucket of this number; `None` for what is above all.
    pub fn bucket_end_us(bucket: usize) -> Option<u64> {
        (bucket + 1 < BUCKETS).then(|| 1 << bucket)
    }

    /// An upper bound in microseconds for this share (0 to 1) of all values, at most twice too
    /// large; `None` without values, and where the values are above all buckets.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        #[allow(clippy::cast_precision_loss)] // what is lost is less than a bucket
        let wanted = share * self.count() as f64;
        let mut seen = 0u64;
        for (bucket, &n) in self.buckets.iter().enumerate() {
            seen += n;
            #[allow(clippy::cast_precision_loss)]
            if n > 0 && seen as f64 >= wanted {
                return Distribution::bucket_end_us(bucket);
            }
        }
        None
    }
}

/// Why something happened: one of a fixed list, a number in an array and a word in a label.
pub trait Reason: Copy + Sized + 'static {
    /// All there are, in the order of their numbers.
    const ALL: &'static [Self];

    /// Number in [`Reason::ALL`].
    fn index(self) -> usize;

    /// Value of the label `reason`.
    fn label(self) -> &'static str;

    /// A close code, where the reason has one.
    fn code(self) -> Option<u16> {
        None
    }
}

/// One count for each reason.
#[derive(Debug)]
pub struct ByReason<R> {
    counts: Box<[Count]>,
    reasons: std::marker::PhantomData<R>,
}

impl<R: Reason> Default for ByReason<R> {
    fn default() -> Self {
        let counts = R::ALL.iter().map(|_| Count::default()).collect();
        ByReason { counts, reasons: std::marker::PhantomData }
    }
}

impl<R: Reason> ByReason<R> {
    /// Adds; only the owning thread may.
    pub fn add(&self, reason: R, n: u64) {
        if let Some(count) = self.counts.get(reason.index()) {
            count.add(n);
        }
    }

    /// Each reason with its count; anybody may read.
    pub fn each(&self) -> impl Iterator<Item = (R, u64)> + '_ {
        R::ALL.iter().copied().zip(self.counts.iter().map(Count::read))
    }

    /// Over all reasons.
    pub fn read(&self) -> u64 {
        self.counts.iter().map(Count::read).sum()
    }
}

macro_rules! reasons {
    ($(#[$doc:meta])* $type:ident { $($(#[$own:meta])* $name:ident = $label:literal $(($code:expr))?),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $($(#[$own])* $name),* }

        impl Reason for $type {
            const ALL: &'static [$type] = &[$($type::$name),*];

            fn index(self) -> usize {
                self as usize
            }

            fn label(self) -> &'static str {
                match self { $($type::$name => $label),* }
            }

            fn code(self) -> Option<u16> {
                match self { $($type::$name => None $(.or(Some($code.0)))?),* }
            }
        }
    };
}

reasons! {
    /// Why a WebSocket connection ended. What began its end counts, once for each connection.
    CloseReason {
        /// The client closed it with a close frame.
        Normal = "normal" (CloseCode::NORMAL),
        /// The client broke RFC 6455.
        Protocol = "protocol" (CloseCode::PROTOCOL),
        /// Text that is not UTF-8.
        InvalidData = "invalid_data" (CloseCode::INVALID_DATA),
        /// A message beyond the limit.
        TooLarge = "too_large" (CloseCode::TOO_LARGE),
        /// The server drained.
        ServiceRestart = "service_restart" (CloseCode::SERVICE_RESTART),
        /// The reader fell out of the window where the policy is `disconnect`.
        Lagged = "lagged" (CloseCode::LAGGED),
        /// Nothing was heard within the heartbeat's limit.
        NoHeartbeat = "no_heartbeat" (CloseCode::NO_HEARTBEAT),
        /// Replies were not read.
        Slow = "slow" (CloseCode::SLOW),
        /// A command was refused that could not be answered in band.
        Refused = "refused" (CloseCode::REFUSED),
        /// The client went on sending above the rate.
        RateLimited = "rate_limited" (CloseCode::RATE_LIMITED),
        /// A message was begun and not finished in time.
        MessageTimeout = "message_timeout" (CloseCode::MESSAGE_TIMEOUT),
        /// It had no subscription and sent nothing but pings for long.
        Idle = "idle" (CloseCode::IDLE),
        /// The memory for unfinished messages, or for answers that wait, was used up.
        Overload = "overload" (CloseCode::TRY_AGAIN_LATER),
        /// What it had shown had expired.
        Expired = "expired" (CloseCode::EXPIRED),
        /// The application ended it.
        Disconnected = "disconnected" (CloseCode::DISCONNECTED),
        /// Nobody vouched for it.
        Unauthenticated = "unauthenticated" (CloseCode::UNAUTHENTICATED),
        /// Its token or its user was revoked.
        Revoked = "revoked" (CloseCode::REVOKED),
        /// Its user had too many.
        TooMany = "too_many" (CloseCode::TOO_MANY),
        /// The connection ended or was reset without a close frame.
        PeerGone = "peer_gone",
    }
}

impl CloseReason {
    /// Whether the same client may come back at once and go on.
    pub(crate) fn is_passing(self) -> bool {
        use CloseReason::{Lagged, NoHeartbeat, Overload, ServiceRestart, Slow};
        matches!(self, ServiceRestart | Lagged | NoHeartbeat | Slow | Overload)
    }
}

reasons! {
    /// Why a connection did not become a WebSocket.
    RefusalReason {
        /// `server.handshakes_max` was reached.
        BusyHandshakes = "busy_handshakes",
        /// Too many requests waited for the control thread.
        BusyRequests = "busy_requests",
        /// `server.connections_max` was reached.
        ConnectionsMax = "connections_max",
        /// `server.connections_per_address_max` was reached.
        PerAddressMax = "per_address_max",
        /// `server.handshakes_per_address_per_second_max` was exceeded.
        HandshakeRate = "handshake_rate",
        /// A PROXY protocol header was wrong, missing, or came from who is not in `server.proxies`.
        ProxyHeader = "proxy_header",
        /// The request was wrong.
        BadRequest = "bad_request",
        /// Nothing is served at its path.
        NotFound = "not_found",
        /// Nobody vouched for it, or not so that it was believed.
        Unauthenticated = "unauthenticated",
        /// The application could not be asked.
        Unavailable = "unavailable",
        /// Its `Origin` is not allowed.
        Origin = "origin",
        /// The head was not there in time.
        Timeout = "timeout",
        /// The socket layer had no place or memory.
        NoRoom = "no_room",
    }
}

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down; of all shards the sum means something.
    Gauge,
    /// Goes up and down; of all shards the largest means something.
    Maximum,
}

impl Kind {
    fn join(self, a: u64, b: u64) -> u64 {
        if self == Kind::Maximum { a.max(b) } else { a.wrapping_add(b) }
    }
}

macro_rules! counters {
    (
        numbers { $($name:ident: $kind:ident = $help:literal),* $(,)? }
        maxima { $($max:ident = $max_help:literal),* $(,)? }
        reasons { $($by:ident: $reason:ty = $by_help:literal),* $(,)? }
        histograms { $($histogram:ident = $histogram_help:literal),* $(,)? }
    ) => {
        /// Written by one shard, without contention.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $help] pub $name: Count,)*
            $(#[doc = $max_help] pub $max: WindowMax,)*
            $(#[doc = $by_help] pub $by: ByReason<$reason>,)*
            $(#[doc = $histogram_help] pub $histogram: Histogram,)*
        }

        impl Counters {
            /// The counts with a reason: name, help, and for each reason its label, its close code
            /// and its count.
            pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, &'static str, Vec<Counted>)> {
                [$((stringify!($by), $by_help, counted(&self.$by))),*].into_iter()
            }

            /// The histograms: name, help and values.
            pub fn histograms(&self) -> impl Iterator<Item = (&'static str, &'static str, Distribution)> {
                [$((stringify!($histogram), $histogram_help, self.$histogram.read())),*].into_iter()
            }
        }

        /// The numbers of a shard at some moment, or those of several added up.
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
        pub struct Totals {
            $(#[doc = $help] pub $name: u64,)*
            $(#[doc = $max_help] pub $max: u64,)*
            $(#[doc = $by_help] pub $by: u64,)*
        }

        impl Totals {
            /// One shard's counters.
            pub fn of(counters: &Counters) -> Totals {
                Totals {
                    $($name: counters.$name.read(),)*
                    $($max: counters.$max.read(),)*
                    $($by: counters.$by.read(),)*
                }
            }

            /// Adds those of another shard; of maxima the larger one stays.
            pub fn add(&mut self, other: &Totals) {
                $(self.$name = Kind::$kind.join(self.$name, other.$name);)*
                $(self.$max = Kind::Maximum.join(self.$max, other.$max);)*
                $(self.$by = Kind::Counter.join(self.$by, other.$by);)*
            }

            /// Name, help, kind and value of each; what has reasons is left to
            /// [`Counters::by_reason`].
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, Kind, u64)> {
                [
                    $((stringify!($name), $help, Kind::$kind, self.$name),)*
                    $((stringify!($max), $max_help, Kind::Maximum, self.$max),)*
                ].into_iter()
            }
        }
    };
}

/// One reason's label, close code and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Value of the label `reason`.
    pub reason: &'static str,
    /// A close code, where there is one.
    pub code: Option<u16>,
    /// How often.
    pub count: u64,
}

fn counted<R: Reason>(by: &ByReason<R>) -> Vec<Counted> {
    by.each().map(|(r, count)| Counted { reason: r.label(), code: r.code(), count }).collect()
}

counters! {
    numbers {
        connections: Gauge = "WebSocket connections open.",
        subscriptions: Gauge = "Subscriptions of open connections.",
        channels: Gauge = "Channels with subscribers, history or idempotency keys.",
        handshakes: Gauge = "Handshakes under way.",
        sockets: Gauge = "Socket slots in use in the wire.",
        rings: Gauge = "Rings of the wire; each is a descriptor, and is kept once it was needed.",
        log_bytes: Gauge = "Bytes held in channel logs.",
        retained_bytes: Gauge = "Bytes of chunks that are out of their log and still waited for by a reader.",
        history_bytes: Gauge = "Bytes of publications kept for history and recovery.",
        outbox_bytes: Gauge = "Bytes waiting in outboxes of single connections.",
        partial_message_bytes: Gauge = "Bytes of messages that clients have begun and not finished.",
        idempotency_keys: Gauge = "Idempotency keys of publications that are remembered.",
        sessions_waiting: Gauge = "Connections waiting for their turn to be sent to.",
        users: Gauge = "Users with connections, counted where they are homed.",
        presence_changes_waiting: Gauge = "Users who came to channels or left them, of which the application was not told yet.",
        questions: Gauge = "Questions to the application that are not answered yet.",
        opened: Counter = "WebSocket connections opened.",
        messages_in: Counter = "Messages received from clients.",
        publications: Counter = "Publications appended to channel logs.",
        duplicates: Counter = "Publications that had been published before, by their idempotency keys, and were not again.",
        idempotency_keys_forgotten: Counter = "Idempotency keys forgotten before their time, because there were too many.",
        deliveries: Counter = "Publications sent to subscribers.",
        sends: Counter = "Sends handed to the kernel.",
        short_sends: Counter = "Sends the kernel did not take whole.",
        bytes_in: Counter = "Bytes received.",
        bytes_out: Counter = "Bytes handed to the kernel.",
        turns: Counter = "Turns of the shard's loop.",
        ticks: Counter = "Ticks of the shard's timer: ten a second while it keeps up. Gauges are written with each.",
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
        tokens_refused: Counter = "Tokens shown over a WebSocket that were not believed.",
        questions_refused: Counter = "Questions to the application that were not asked, because too many were under way.",
        questions_given_up: Counter = "Questions that the control thread did not answer in time.",
        answers_unwanted: Counter = "Answers that came late, or a second time.",
        publishers_paused: Counter = "Times a publisher was slowed down because the shard was behind.",
    }
    maxima {
        turn_max_us = "Longest turn of the last one to two minutes, in microseconds.",
        turn_cpu_max_us = "Longest turn of the last one to two minutes in microseconds of the shard's own CPU time, without what the machine gave to others.",
    }
    reasons {
        closes: CloseReason = "WebSocket connections ended.",
        refused: RefusalReason = "Connections and upgrades refused.",
    }
    histograms {
        turn_us = "Time a turn took.",
        delivery_us = "From the append at the home to the hand-over to the kernel, for subscribers that keep up.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_first_bucket_that_is_not_below_it() {
        for (us, end) in [
            (0, Some(1)),
            (1, Some(1)),
            (2, Some(2)),
            (3, Some(4)),
            (4, Some(4)),
            (5, Some(8)),
            (1 << 24, Some(1 << 24)),
            ((1 << 24) + 1, None),
            (u64::MAX, None),
        ] {
            let histogram = Histogram::default();
            histogram.record(us);
            let read = histogram.read();
            let at = read.buckets.iter().position(|&n| n == 1).unwrap();
            assert_eq!(Distribution::bucket_end_us(at), end, "{us}");
            assert_eq!((read.count(), read.quantile_us(0.5)), (1, end), "{us}");
        }
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile_us(0.99), None);
        histogram.record_many(100, 90);
        histogram.record_many(1000, 10);
        let mut both = histogram.read();
        assert_eq!((both.quantile_us(0.9), both.quantile_us(0.91)), (Some(128), Some(1024)));
        both.add(&histogram.read());
        assert_eq!((both.count(), both.sum_us), (200, 2 * (9_000 + 10_000)));
    }

    #[test]
    fn a_maximum_is_kept_for_a_minute_and_forgotten_after_two() {
        let max = WindowMax::default();
        max.record(7, 59_999);
        max.record(3, 60_000);
        assert_eq!(max.read(), 7);
        max.record(1, 119_999);
        assert_eq!(max.read(), 7);
        max.record(0, 120_000);
        assert_eq!(max.read(), 3);
        max.record(0, 600_000);
        assert_eq!(max.read(), 0);
    }

    #[test]
    fn reasons_are_told_apart_and_added_up() {
        let counters = Counters::default();
        counters.closes.add(CloseReason::Slow, 2);
        counters.closes.add(CloseReason::PeerGone, 1);
        counters.turn_max_us.record(5, 0);
        let mut totals = Totals::of(&counters);
        totals.add(&Totals::of(&counters));
        assert_eq!((totals.closes, totals.turn_max_us), (6, 5));
        let (_, _, counted) = counters.by_reason().find(|(name, ..)| *name == "closes").unwrap();
        assert!(counted.contains(&Counted { reason: "slow", code: Some(4002), count: 2 }));
        assert!(counted.contains(&Counted { reason: "peer_gone", code: None, count: 1 }));
        for (i, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
    }
}
