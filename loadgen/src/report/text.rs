//! The report as lines for a person.

use std::fmt::Write as _;

use super::{Close, Report, ServerCost, ServerMemory};

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
        if tally.ended + tally.renewed > 0 {
            let _ = writeln!(
                out,
                "tokens     {} connections ended as they were to, {} tokens renewed",
                tally.ended, tally.renewed
            );
        }
        write_closes(&mut out, tally.disconnected, &self.closes);
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
        if tally.unanswered > 0 {
            let _ = writeln!(
                out,
                "unanswered {}: subscriptions that were asked for anew and did not stand",
                tally.unanswered
            );
        }
        let _ = writeln!(
            out,
            "loadgen    {:.2} s user, {:.2} s system: {:.2} cores, connections {:.2} of {}, over {}; \
             closed in {:.2} s",
            loadgen.cpu_user_seconds,
            loadgen.cpu_system_seconds,
            loadgen.cores,
            loadgen.connection_cores,
            loadgen.cores_allowed,
            self.io,
            self.closing_seconds
        );
        if let Some(server) = &self.server {
            self.write_server(&mut out, server);
        }
        if let Some(memory) = &self.server_memory {
            self.write_memory(&mut out, memory);
        }
        if let Some(bytes) = self.kernel_bytes_per_connection {
            let _ =
                writeln!(out, "kernel     {bytes:.0} bytes a connection, all ends on this machine");
        }
        self.write_warnings(&mut out);
        let _ = writeln!(out, "{}", self.verdict);
        out
    }

    fn write_deliveries(&self, out: &mut String) {
        let Report { latency_us: latency, tally, .. } = self;
        let _ = writeln!(
            out,
            "published  {:>12}   {:>12.0} a second   {:.2} s",
            self.published, self.published_per_second, self.publishing_seconds
        );
        if self.refused > 0 {
            let _ = writeln!(out, "refused    {:>12}   for want of room", self.refused);
        }
        let _ = writeln!(
            out,
            "delivered  {:>12}   {:>12.0} a second   of {} expected",
            tally.delivered, self.delivered_per_second, tally.expected
        );
        let _ = writeln!(
            out,
            "lost {} ({} of them told as gaps)   duplicated {}   reordered {}   corrupted {}   \
             unexpected {}   false gaps {}",
            tally.lost,
            tally.gaps_told.min(tally.lost),
            tally.duplicated,
            tally.reordered,
            tally.corrupted,
            tally.unexpected,
            tally.false_gaps
        );
        let _ = writeln!(
            out,
            "latency    p50 {:.0} us   p90 {:.0} us   p99 {:.0} us   p99.9 {:.0} us   max {:.0} us",
            latency.p50, latency.p90, latency.p99, latency.p999, latency.max
        );
    }

    fn write_server(&self, out: &mut String, server: &ServerCost) {
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
        if let (Some(deliveries), Some(bytes)) = (server.deliveries_per_send, server.bytes_per_send)
            && self.published > 0
        {
            let _ = write!(out, "; {deliveries:.1} deliveries and {bytes:.0} bytes a send");
        }
        if let (Some(turn), Some(cpu)) = (server.turn_max_us, server.turn_cpu_max_us) {
            // The server keeps the longest since its start: an older one hides those of this run.
            let which =
                if server.turn_max_is_of_run { "longest turn" } else { "no turn was longer than" };
            let (turn, cpu) = (turn as f64 / 1000.0, cpu as f64 / 1000.0);
            let _ = write!(out, "; {which} {turn:.1} ms ({cpu:.1} ms CPU)");
        }
        out.push('\n');
    }

    fn write_memory(&self, out: &mut String, memory: &ServerMemory) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let grown = memory.resident_bytes_open.saturating_sub(memory.resident_bytes_before);
        let each = match grown {
            0 => "no more than before".to_owned(),
            grown => format!("{:.0} bytes each", grown as f64 / f64::from(self.connections)),
        };
        let _ = writeln!(
            out,
            "memory     server {:.1} MiB, {:.1} with the connections ({each}), {:.1} at the end of \
             the run, {:.1} after",
            mib(memory.resident_bytes_before),
            mib(memory.resident_bytes_open),
            self.server.map_or(0.0, |server| mib(server.resident_bytes)),
            mib(memory.resident_bytes_after),
        );
        let Some(returned) = memory.returned else { return };
        let how = if returned {
            "all is back where it began"
        } else {
            "NOT all is back where it began (or others have come)"
        };
        let _ = writeln!(
            out,
            "after      {how}: {} connections, {} descriptors ({} before; rings are kept)",
            memory.connections_after.unwrap_or(0),
            memory.open_files_after,
            memory.open_files_before
        );
    }

    fn write_warnings(&self, out: &mut String) {
        let loadgen = &self.loadgen;
        if loadgen.is_limit() {
            let _ = writeln!(
                out,
                "warning: loadgen's connections used {:.2} of {} cores and are probably the limit; \
                 give it more --threads or a machine of its own",
                loadgen.connection_cores, loadgen.cores_allowed
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
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        if let Some(problem) = &self.first_problem {
            let _ = writeln!(out, "first problem: {problem}");
        }
    }
}

/// `disconnected 3: 1001 bye (2), 4002 replies are not read (1)`.
fn write_closes(out: &mut String, disconnected: u64, closes: &[Close]) {
    if disconnected == 0 {
        return;
    }
    let each = closes.iter().map(|close| format!("{} ({})", close.why(), close.count));
    let each = each.collect::<Vec<_>>().join(", ");
    let _ = writeln!(out, "disconnected {disconnected}: {each}");
}
