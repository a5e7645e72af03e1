//! What a run found, for a person and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::recorder::Latency;

/// Field names are the interface of `--json`: those at the top level stay.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
    pub(crate) url: String,
    pub(crate) connections: u32,
    pub(crate) subscriptions: u64,
    pub(crate) channels: usize,
    pub(crate) published: u64,
    pub(crate) published_per_second: f64,
    #[serde(flatten)]
    pub(crate) tally: Tally,
    pub(crate) delivered_per_second: f64,
    pub(crate) bytes_received: u64,
    /// Microseconds from the intended send time to the receipt.
    pub(crate) latency_us: Latency,
    /// Seconds from the first connect until all were upgraded.
    pub(crate) opening_seconds: f64,
    /// Seconds until every subscription stood.
    pub(crate) subscribing_seconds: f64,
    /// Seconds of publishing.
    pub(crate) publishing_seconds: f64,
    /// Seconds from the first publication to the last delivery.
    pub(crate) delivering_seconds: f64,
    /// How far publishing fell behind its schedule at worst.
    pub(crate) publisher_late_max_us: f64,
    pub(crate) loadgen: LoadgenCost,
    /// Absent where the server's API does not answer.
    pub(crate) server: Option<ServerCost>,
    pub(crate) first_problem: Option<String>,
}

/// What subscribers got of what they were to get.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// Frames that were never published.
    pub(crate) corrupted: u64,
    /// Publications that the server said it left out; they count as lost, too.
    pub(crate) gaps_told: u64,
    /// Connections that ended early.
    pub(crate) disconnected: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        self.expected += other.expected;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.gaps_told += other.gaps_told;
        self.disconnected += other.disconnected;
    }

    /// Everything arrived, once, in order and unchanged.
    pub(crate) fn is_clean(&self) -> bool {
        let Tally { lost, duplicated, reordered, corrupted, disconnected, .. } = self;
        [lost, duplicated, reordered, corrupted, disconnected].into_iter().all(|&n| n == 0)
    }
}

/// What this process used while it published and received.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct LoadgenCost {
    pub(crate) cpu_user_seconds: f64,
    pub(crate) cpu_system_seconds: f64,
    /// Cores in use, of those it may use: near the number of its threads it is the limit.
    pub(crate) cores: f64,
}

/// What the server used in the same time, by its own account.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ServerCost {
    pub(crate) cpu_user_seconds: f64,
    pub(crate) cpu_system_seconds: f64,
    pub(crate) cpu_user_ns_per_delivery: f64,
    pub(crate) cpu_system_ns_per_delivery: f64,
    pub(crate) deliveries_per_send: f64,
    pub(crate) bytes_per_send: f64,
    pub(crate) resident_bytes: u64,
}

impl Report {
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let Report { latency_us: latency, loadgen, tally, .. } = self;
        let _ = writeln!(
            out,
            "{}: {} connections, {} subscriptions, {} channels; opened in {:.2} s, subscribed in \
             {:.2} s",
            self.scenario,
            self.connections,
            self.subscriptions,
            self.channels,
            self.opening_seconds,
            self.subscribing_seconds
        );
        let _ = writeln!(
            out,
            "published  {:>12}   {:>12.0} a second   {:.2} s",
            self.published, self.published_per_second, self.publishing_seconds
        );
        let _ = writeln!(
            out,
            "delivered  {:>12}   {:>12.0} a second   of {} expected",
            tally.delivered, self.delivered_per_second, tally.expected
        );
        let _ = writeln!(
            out,
            "lost {} ({} of them told as gaps)   duplicated {}   reordered {}   corrupted {}   \
             disconnected {}",
            tally.lost,
            tally.gaps_told,
            tally.duplicated,
            tally.reordered,
            tally.corrupted,
            tally.disconnected
        );
        let _ = writeln!(
            out,
            "latency    p50 {:.0} us   p90 {:.0} us   p99 {:.0} us   p99.9 {:.0} us   max {:.0} us",
            latency.p50, latency.p90, latency.p99, latency.p999, latency.max
        );
        let _ = writeln!(
            out,
            "loadgen    {:.2} s user, {:.2} s system: {:.2} cores",
            loadgen.cpu_user_seconds, loadgen.cpu_system_seconds, loadgen.cores
        );
        if let Some(server) = &self.server {
            let _ = writeln!(
                out,
                "server     {:.2} s user, {:.2} s system: {:.0} + {:.0} ns a delivery; {:.1} \
                 deliveries and {:.0} bytes a send; {:.1} MiB resident",
                server.cpu_user_seconds,
                server.cpu_system_seconds,
                server.cpu_user_ns_per_delivery,
                server.cpu_system_ns_per_delivery,
                server.deliveries_per_send,
                server.bytes_per_send,
                server.resident_bytes as f64 / f64::from(1 << 20)
            );
        }
        if self.publisher_late_max_us > 100_000.0 {
            let _ = writeln!(
                out,
                "warning: publishing fell {:.0} ms behind its schedule: the server or this machine \
                 does not keep up, and latencies count from the schedule",
                self.publisher_late_max_us / 1000.0
            );
        }
        if let Some(problem) = &self.first_problem {
            let _ = writeln!(out, "first problem: {problem}");
        }
        let verdict = if tally.is_clean() {
            "every subscriber got every message, once, in order and unchanged"
        } else {
            "NOT every subscriber got every message, once, in order and unchanged"
        };
        let _ = writeln!(out, "{verdict}");
        out
    }
}
