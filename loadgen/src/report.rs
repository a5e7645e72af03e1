//! What a run found, for a person and as JSON.

mod text;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::recorder::Latency;

/// Field names are the interface of `--json`: those at the top level stay.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether the exit status is 0.
    pub(crate) passed: bool,
    /// The same in words, as the last line of the text.
    pub(crate) verdict: String,
    /// Of loadgen.
    pub(crate) version: &'static str,
    /// RFC 3339, UTC.
    pub(crate) started_at: String,
    /// The command line, without the API key.
    pub(crate) arguments: Vec<String>,
    pub(crate) interest: &'static str,
    pub(crate) seed: u64,
    /// By Ctrl-C, before the end.
    pub(crate) interrupted: bool,
    /// Messages that were to be published, if it was known.
    pub(crate) planned: Option<u64>,
    pub(crate) scenario: String,
    pub(crate) url: String,
    pub(crate) connections: u32,
    pub(crate) subscriptions: u64,
    pub(crate) channels: usize,
    pub(crate) published: u64,
    /// Messages to users that the server had no room for: nobody gets them, so they are lost, too.
    pub(crate) refused: u64,
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
    /// opened; of both ends, where the server is on this machine. Absent where there was none.
    pub(crate) kernel_bytes_per_connection: Option<f64>,
    /// Seconds until all were closed.
    pub(crate) closing_seconds: f64,
    /// Connections that did not read and are not counted.
    pub(crate) stalled: u32,
    /// What loadgen's own sockets were served with.
    pub(crate) io: String,
    /// Connections that ended early, by reason.
    pub(crate) closes: Vec<Close>,
    pub(crate) first_problem: Option<String>,
    /// What is no failure, and should be known.
    pub(crate) notes: Vec<String>,
}

/// Connections that ended early for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Close {
    /// Of the server's close frame; `None` where there was none.
    pub(crate) code: Option<u16>,
    pub(crate) reason: String,
    pub(crate) count: u64,
}

impl Close {
    /// Code and reason, for a person.
    pub(crate) fn why(&self) -> String {
        match (self.code, self.reason.as_str()) {
            (None, reason) => reason.to_owned(),
            (Some(code), "") => code.to_string(),
            (Some(code), reason) => format!("{code} {reason}"),
        }
    }
}

/// What subscribers got of what they were to get.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// Messages that are not as they were published: bytes changed or added, text as binary. One
    /// that stands for a missing one is not counted as lost.
    pub(crate) corrupted: u64,
    /// Messages of channels that were not subscribed to, refusals, and whatever was not to come.
    pub(crate) unexpected: u64,
    /// Gaps that were told and were none.
    pub(crate) false_gaps: u64,
    /// Publications that the server said it left out; they count as lost, too.
    pub(crate) gaps_told: u64,
    /// Connections that ended early.
    pub(crate) disconnected: u64,
    /// Connections that the server ended where that was meant (`--endings`).
    pub(crate) ended: u64,
    /// Tokens that were shown while a connection was open, and taken.
    pub(crate) renewed: u64,
    /// Subscriptions that were asked for anew and did not stand, of connections that stayed.
    pub(crate) unanswered: u64,
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
        self.unexpected += other.unexpected;
        self.false_gaps += other.false_gaps;
        self.gaps_told += other.gaps_told;
        self.disconnected += other.disconnected;
        self.ended += other.ended;
        self.renewed += other.renewed;
        self.unanswered += other.unanswered;
        self.replaced += other.replaced;
        self.resubscribed += other.resubscribed;
    }

    /// Everything arrived, once, in order and unchanged, and nothing else.
    pub(crate) fn is_clean(&self) -> bool {
        let Tally { lost, duplicated, reordered, corrupted, disconnected, .. } = *self;
        let Tally { unexpected, false_gaps, unanswered, .. } = *self;
        [lost, duplicated, reordered, corrupted, disconnected, unexpected, false_gaps, unanswered]
            .into_iter()
            .all(|count| count == 0)
    }
}

/// What this process used while it published and received.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct LoadgenCost {
    pub(crate) cpu_user_seconds: f64,
    pub(crate) cpu_system_seconds: f64,
    /// Cores in use.
    pub(crate) cores: f64,
    /// The part of its connections' threads; what publishes and reads acknowledgements is another.
    pub(crate) connection_cores: f64,
    /// Cores that its connections' threads can fill.
    pub(crate) cores_allowed: u32,
}

impl LoadgenCost {
    /// Share of its cores from which on it counts as busy all the time; `benches/peers/measure.py`
    /// has the same.
    const BUSY: f64 = 0.9;

    /// Whether loadgen rather than the server was probably the limit.
    fn is_limit(&self) -> bool {
        self.connection_cores >= Self::BUSY * f64::from(self.cores_allowed)
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
    /// Whether that turn was in this run.
    pub(crate) turn_max_is_of_run: bool,
    /// The same in CPU time of the server's thread, without what the machine gave to others.
    pub(crate) turn_cpu_max_us: Option<u64>,
    /// Before the first publication.
    pub(crate) resident_bytes_before: u64,
    pub(crate) resident_bytes: u64,
}

/// The server's memory and descriptors before anybody connected, with everybody connected, and
/// after all have left.
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
    /// Whether all went well, and in words. `gave_up` is why publishing was ended early.
    pub(crate) fn judge(
        tally: &Tally,
        published: u64,
        planned: Option<u64>,
        gave_up: Option<&str>,
    ) -> (bool, String) {
        if let Some(why) = gave_up {
            return (false, format!("NOT everything was published: {why}"));
        }
        let clean = tally.is_clean();
        let verdict = match (published, planned) {
            (0, None | Some(0)) if clean => "every connection stayed".to_owned(),
            (0, None | Some(0)) => "NOT every connection stayed".to_owned(),
            (0, Some(_)) => return (false, "NOT anything was published".to_owned()),
            _ => {
                let not = if clean { "" } else { "NOT " };
                format!("{not}every subscriber got every message, once, in order and unchanged")
            }
        };
        (clean, verdict)
    }
}

/// What a server sent, for a person: text up to a length, bytes as numbers.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const CHARS: usize = 160;
    const BYTES: usize = 16;
    let Ok(text) = std::str::from_utf8(bytes) else {
        let start: Vec<String> = bytes.iter().take(BYTES).map(|b| format!("{b:02x}")).collect();
        return format!("{} bytes that are no text: {}", bytes.len(), start.join(" "));
    };
    let mut out = String::new();
    for c in text.trim_end().chars().take(CHARS) {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(CHARS).is_some() {
        out.push('…');
    }
    out
}

/// A time, for a person.
pub(crate) fn spoken(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} days {} h", whole / 86_400, whole / 3600 % 24),
    }
}

/// A moment as RFC 3339 has it, in UTC.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that the leap day is the last one; eras of 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, carried) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!(
        "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        era * 400 + year + carried,
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_written_as_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
    }

    #[test]
    fn a_publisher_that_is_busy_does_not_make_connections_the_limit() {
        let cost = |connection_cores| LoadgenCost {
            cpu_user_seconds: 1.0,
            cpu_system_seconds: 1.0,
            cores: connection_cores + 0.5,
            connection_cores,
            cores_allowed: 1,
        };
        assert!(!cost(0.6).is_limit());
        assert!(cost(0.91).is_limit());
    }

    #[test]
    fn what_a_server_sent_is_shown_as_text_or_as_bytes() {
        assert_eq!(shown(b"{\"a\":1}\r\n"), "{\"a\":1}");
        assert_eq!(shown(b"a\x1b[1mb"), "a\\u{1b}[1mb");
        assert_eq!(shown(b"\x82\xff"), "2 bytes that are no text: 82 ff");
        assert_eq!(shown("é".repeat(200).as_bytes()).chars().count(), 161);
    }
}
