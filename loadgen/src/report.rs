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
    /// Absent where the server's API does not answer and no process was named.
    pub(crate) server: Option<ServerCost>,
    pub(crate) server_memory: Option<ServerMemory>,
    /// Growth of the kernel's slabs and socket buffers on this machine while the connections were
    /// opened; of both ends, where the server is on this machine.
    pub(crate) kernel_bytes_per_connection: Option<f64>,
    /// Seconds until all were closed.
    pub(crate) closing_seconds: f64,
    /// Connections that did not read and are not counted.
    pub(crate) stalled: u32,
    /// What loadgen's own sockets were served with.
    pub(crate) io: String,
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
    /// Connections replaced on purpose.
    pub(crate) replaced: u64,
    /// Subscriptions renewed on purpose.
    pub(crate) resubscribed: u64,
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
        self.replaced += other.replaced;
        self.resubscribed += other.resubscribed;
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
    /// Cores in use.
    pub(crate) cores: f64,
    /// Cores that its connections' threads can fill.
    pub(crate) cores_allowed: u32,
}

impl LoadgenCost {
    /// Whether loadgen rather than the server was probably the limit.
    fn is_limit(&self) -> bool {
        self.cores > 0.92 * f64::from(self.cores_allowed)
    }
}

/// What the server used in the same time, by its own account.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ServerCost {
    pub(crate) cpu_user_seconds: f64,
    pub(crate) cpu_system_seconds: f64,
    pub(crate) cpu_user_ns_per_delivery: f64,
    pub(crate) cpu_system_ns_per_delivery: f64,
    /// These five only of ringfeed.
    pub(crate) deliveries_per_send: Option<f64>,
    pub(crate) bytes_per_send: Option<f64>,
    pub(crate) sends_per_enter: Option<f64>,
    /// The longest turn since the server started.
    pub(crate) turn_max_us: Option<u64>,
    /// The same in CPU time of the server's thread, without what the machine gave to others.
    pub(crate) turn_cpu_max_us: Option<u64>,
    /// Before the first publication.
    pub(crate) resident_bytes_before: u64,
    pub(crate) resident_bytes: u64,
}

/// The server's memory and descriptors before anybody connected, with everybody connected, and after
/// all have left.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ServerMemory {
    pub(crate) resident_bytes_before: u64,
    pub(crate) resident_bytes_open: u64,
    pub(crate) resident_bytes_after: u64,
    pub(crate) open_files_before: u64,
    pub(crate) open_files_after: u64,
    pub(crate) connections_after: Option<u64>,
    /// Whether connections, socket slots and descriptors are where they were.
    pub(crate) returned: Option<bool>,
}

impl Report {
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let Report { loadgen, tally, .. } = self;
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
        if self.published > 0 {
            self.write_deliveries(&mut out);
        }
        if self.stalled > 0 {
            let _ = writeln!(out, "stalled    {} connections read nothing", self.stalled);
        }
        if tally.replaced + tally.resubscribed > 0 {
            let _ = writeln!(
                out,
                "churn      {} connections replaced, {} subscriptions renewed",
                tally.replaced, tally.resubscribed
            );
        }
        let _ = writeln!(
            out,
            "loadgen    {:.2} s user, {:.2} s system: {:.2} of {} cores, over {}; closed in {:.2} s",
            loadgen.cpu_user_seconds,
            loadgen.cpu_system_seconds,
            loadgen.cores,
            loadgen.cores_allowed,
            self.io,
            self.closing_seconds
        );
        if let Some(server) = &self.server {
            let _ = write!(
                out,
                "server     {:.2} s user, {:.2} s system",
                server.cpu_user_seconds, server.cpu_system_seconds,
            );
            if self.published > 0 {
                let _ = write!(
                    out,
                    ": {:.0} + {:.0} ns a delivery",
                    server.cpu_user_ns_per_delivery, server.cpu_system_ns_per_delivery,
                );
            }
            if let (Some(deliveries), Some(bytes)) =
                (server.deliveries_per_send, server.bytes_per_send)
                && self.published > 0
            {
                let _ = write!(out, "; {deliveries:.1} deliveries and {bytes:.0} bytes a send");
            }
            if let (Some(turn), Some(cpu)) = (server.turn_max_us, server.turn_cpu_max_us) {
                let (turn, cpu) = (turn as f64 / 1000.0, cpu as f64 / 1000.0);
                let _ = write!(out, "; longest turn {turn:.1} ms ({cpu:.1} ms CPU)");
            }
            out.push('\n');
        }
        if let Some(memory) = &self.server_memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let grown = memory.resident_bytes_open as f64 - memory.resident_bytes_before as f64;
            let _ = writeln!(
                out,
                "memory     server {:.1} MiB, {:.1} with the connections ({:.0} bytes each), {:.1} \
                 at the end of the run, {:.1} after",
                mib(memory.resident_bytes_before),
                mib(memory.resident_bytes_open),
                grown / f64::from(self.connections),
                self.server.map_or(0.0, |server| mib(server.resident_bytes)),
                mib(memory.resident_bytes_after),
            );
            if let Some(returned) = memory.returned {
                let how = if returned { "all is back" } else { "NOT all is back" };
                let _ = writeln!(
                    out,
                    "after      {how} where it began: {} connections, {} descriptors ({} before; rings are kept)",
                    memory.connections_after.unwrap_or(0),
                    memory.open_files_after,
                    memory.open_files_before
                );
            }
        }
        if let Some(bytes) = self.kernel_bytes_per_connection {
            let _ =
                writeln!(out, "kernel     {bytes:.0} bytes a connection, all ends on this machine");
        }
        if loadgen.is_limit() {
            let _ = writeln!(
                out,
                "warning: loadgen used {:.2} of {} cores and is probably the limit; give it more \
                 --threads or a machine of its own",
                loadgen.cores, loadgen.cores_allowed
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
        let verdict = if self.published == 0 {
            if tally.is_clean() { "every connection stayed" } else { "NOT every connection stayed" }
        } else if tally.is_clean() {
            "every subscriber got every message, once, in order and unchanged"
        } else {
            "NOT every subscriber got every message, once, in order and unchanged"
        };
        let _ = writeln!(out, "{verdict}");
        out
    }

    fn write_deliveries(&self, out: &mut String) {
        let Report { latency_us: latency, tally, .. } = self;
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
    }
}
