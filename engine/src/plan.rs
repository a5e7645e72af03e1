//! What a configuration will take of this machine, told before any port is opened: memory by consumer,
//! and the limits that are in the way.

use std::{fs, io};

use ringfeed_protocol::handshake::HEAD_BYTES_MAX;
use ringfeed_wire::{Io, WireConfig, memory_bytes, open_files_limit};

use crate::config::{Config, Hooks, Limits};
use crate::control::hooks::Hook;
use crate::control::{PUBLIC_BODIES_PART, WAITING_BYTES_MAX};
use crate::message::{FORWARDS_BYTES_MAX, QUEUE_BYTES_MAX};
use crate::shard::{
    COMMAND_RATES_BYTES, CONNECTION_BYTES, IDLE_BYTES, KEY_BYTES, SUBSCRIPTION_BYTES,
};

/// What the kernel keeps for one idle TCP connection and the receive under way on it: measured as the
/// growth of its slabs, half of both ends on loopback.
const KERNEL_CONNECTION_BYTES: u64 = 4_800;
/// Bytes of a submission and of a completion in a ring.
const SUBMISSION_BYTES: u64 = 64;
const COMPLETION_BYTES: u64 = 16;
/// What a channel takes with a name of ordinary length, measured with a million of them.
const CHANNEL_BYTES: u64 = 320;
/// Buffers of one connection to the API besides its body.
const API_CONNECTION_BYTES: u64 = 16 * 1024;
/// What a shard takes from: requests, deliveries, requests of the control thread.
const INBOX_QUEUES: u64 = 3;
/// Refused connections that a shard lets linger.
const LINGERING_MAX: u64 = 256;
/// "Too many open files", in Linux on every architecture.
const EMFILE: i32 = 24;
/// Descriptors that are not connections, with room to spare.
const FILES_SPARE: u64 = 1000;

/// One consumer of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// What it is.
    pub name: &'static str,
    /// How much of it.
    pub amount: Amount,
    /// How that comes about, with the keys that decide it.
    pub reason: String,
}

/// How much memory a consumer takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// When every connection there may be is open.
    Taken(u64),
    /// At most, whatever clients do; nothing as long as they do nothing.
    AtMost(u64),
    /// What bounds it is not a number of the configuration.
    Open,
}

use Amount::{AtMost, Open, Taken};

fn line(name: &'static str, amount: Amount, reason: String) -> Consumer {
    Consumer { name, amount, reason }
}

/// Memory by consumer: every queue, buffer and store there is.
pub fn memory(config: &Config, io: Io, shards: u16) -> Vec<Consumer> {
    let Config { server, limits, .. } = config;
    let connections = u64::from(server.connections_max);
    let shards = u64::from(shards);
    let wire = WireConfig::default();
    let files = open_files_limit().map_or(u64::MAX, |(soft, _)| soft);
    let rings = match io {
        Io::IoUring => shards * connections.div_ceil(shards).div_ceil(files.max(1)),
        Io::Epoll => 0,
    };
    let buffers = u64::from(wire.receive_buffers) * u64::from(wire.receive_buffer_bytes);
    let queues = u64::from(wire.submission_entries) * (SUBMISSION_BYTES + 8 * COMPLETION_BYTES);
    let mut lines = memory_for_clients(config, shards);
    let Hooks { waiting_bytes_max, concurrency_max, answer_bytes_max, .. } = config.hooks;
    let asked =
        Hook::ALL.into_iter().filter(|&hook| !config.hooks.url(hook).is_empty()).count() as u64;
    if asked > 0 {
        let answers = u64::from(concurrency_max) * u64::from(answer_bytes_max);
        lines.push(line(
            "questions",
            AtMost(asked * (waiting_bytes_max + answers)),
            format!(
                "{asked} hooks, each with what waits (hooks.waiting_bytes_max) and hooks.concurrency_max answers of \
                 hooks.answer_bytes_max"
            ),
        ));
    }
    if config.wsnode.is_used() {
        let bytes = (FORWARDS_BYTES_MAX + WAITING_BYTES_MAX) as u64;
        lines.push(line(
            "forwards",
            AtMost(bytes),
            "publications that wait for nodes of wsnode".into(),
        ));
    }
    lines.push(line(
        "inboxes",
        AtMost(shards * INBOX_QUEUES * QUEUE_BYTES_MAX as u64),
        format!("{INBOX_QUEUES} queues a shard of up to {QUEUE_BYTES_MAX} bytes each"),
    ));
    if shards > 1 {
        let ways = shards * (shards - 1);
        lines.push(line(
            "between shards",
            AtMost(ways * 2 * u64::from(limits.cross_shard_bytes_max)),
            format!(
                "{ways} ways from shard to shard: limits.cross_shard_bytes_max of requests and as much of deliveries"
            ),
        ));
    }
    if rings > 0 {
        lines.push(line(
            "rings",
            Taken(rings * (buffers + queues)),
            format!(
                "{rings}, with receive buffers; each holds as many sockets as ulimit -n, {files}"
            ),
        ));
    }
    lines.push(line(
        "kernel, sockets",
        Taken(connections * KERNEL_CONNECTION_BYTES),
        format!("about {KERNEL_CONNECTION_BYTES} bytes an idle connection"),
    ));
    lines.push(line(
        "kernel, buffers",
        Open,
        match server.send_buffer_bytes {
            0 => "up to net.ipv4.tcp_wmem a slow reader".into(),
            bytes => format!("up to {bytes} bytes a slow reader (server.send_buffer_bytes)"),
        },
    ));
    lines
}

/// What is kept for connections, channels and requests.
fn memory_for_clients(config: &Config, shards: u64) -> Vec<Consumer> {
    let Config { server, api, limits, .. } = config;
    // Beside the WebSockets are as many again.
    let http = match config.serves_http() {
        true => {
            api.bodies_bytes_max / PUBLIC_BODIES_PART
                + u64::from(api.connections_max) * API_CONNECTION_BYTES
        }
        false => 0,
    };
    let connections = u64::from(server.connections_max);
    let mut each = CONNECTION_BYTES as u64 + SUBSCRIPTION_BYTES as u64;
    if limits.idle_timeout_ms > 0 {
        each += IDLE_BYTES as u64;
    }
    let rates = [
        limits.subscribes_per_second_max,
        limits.publishes_per_second_max,
        limits.histories_per_second_max,
    ];
    if rates.iter().any(|&rate| rate > 0) {
        each += COMMAND_RATES_BYTES as u64;
    }
    let more = u64::from(limits.subscriptions_per_connection_max) - 1;
    let handshakes = shards * u64::from(server.handshakes_max);
    let window = config.channels.iter().map(|rule| rule.window_bytes).max().unwrap_or(0);
    vec![
        line(
            "connections",
            Taken(connections * each),
            format!(
                "{connections} (server.connections_max) with one subscription, {each} bytes each"
            ),
        ),
        line(
            "subscriptions",
            AtMost(connections * more * SUBSCRIPTION_BYTES as u64),
            format!(
                "{more} more a connection (limits.subscriptions_per_connection_max), {SUBSCRIPTION_BYTES} bytes each"
            ),
        ),
        line(
            "channels",
            AtMost(u64::from(limits.channels_max) * CHANNEL_BYTES),
            format!(
                "{} (limits.channels_max), about {CHANNEL_BYTES} bytes each",
                limits.channels_max
            ),
        ),
        line(
            "channel logs",
            Open,
            format!(
                "for slow readers up to {window} bytes a channel (window_bytes), and no longer than window_age_ms"
            ),
        ),
        line(
            "half-sent frames",
            AtMost(limits.retained_bytes_max),
            "of readers that fell out of the window (limits.retained_bytes_max)".into(),
        ),
        line(
            "history",
            AtMost(limits.history_bytes_max),
            "of all channels (limits.history_bytes_max)".into(),
        ),
        memory_for_keys(limits),
        line(
            "held back",
            AtMost(limits.parked_bytes_max),
            "publications that wait for readers (limits.parked_bytes_max)".into(),
        ),
        line(
            "replies",
            AtMost(limits.outboxes_bytes_max),
            format!(
                "of all connections (limits.outboxes_bytes_max), up to {} bytes each (limits.outbox_bytes_max)",
                limits.outbox_bytes_max
            ),
        ),
        line(
            "unfinished",
            AtMost(limits.partial_bytes_max),
            "messages of which a part has come (limits.partial_bytes_max)".into(),
        ),
        line(
            "handshakes",
            AtMost(handshakes * HEAD_BYTES_MAX as u64),
            format!(
                "{handshakes} under way (server.handshakes_max a shard), up to {HEAD_BYTES_MAX} bytes each"
            ),
        ),
        line(
            "API requests",
            AtMost(
                api.bodies_bytes_max + u64::from(api.connections_max) * API_CONNECTION_BYTES + http,
            ),
            "bodies (api.bodies_bytes_max) and connections (api.connections_max)".into(),
        ),
    ]
}

fn memory_for_keys(limits: &Limits) -> Consumer {
    line(
        "idempotency keys",
        // None is remembered where that is not said for how long.
        AtMost(match limits.idempotency_ms {
            0 => 0,
            _ => u64::from(limits.idempotency_keys_max) * KEY_BYTES as u64,
        }),
        format!(
            "{} (limits.idempotency_keys_max), about {KEY_BYTES} bytes each",
            limits.idempotency_keys_max
        ),
    )
}

impl std::fmt::Display for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes| bytes as f64 / f64::from(1 << 20);
        write!(f, "{:<16} ", self.name)?;
        match self.amount {
            Taken(bytes) => write!(f, "      {:>9.1} MiB", mib(bytes))?,
            AtMost(bytes) => write!(f, "up to {:>9.1} MiB", mib(bytes))?,
            Open => write!(f, "{:>19}", "as needed")?,
        }
        write!(f, "   {}", self.reason)
    }
}

/// Which limits of this machine are in the way, each with the command that lifts it.
pub fn limits(config: &Config, io: Io, shards: u16) -> Vec<String> {
    let mut found = Vec::new();
    let connections = u64::from(config.server.connections_max);
    let backlog = u64::from(config.server.backlog);
    if let Some(most) = number("/proc/sys/net/core/somaxconn").filter(|&most| most < backlog) {
        found.push(format!(
            "server.backlog = {backlog}, but the kernel allows {most}: in a connect storm clients are \
             refused; `sysctl -w net.core.somaxconn={backlog}` lifts it"
        ));
    }
    let buffer = u64::from(config.server.send_buffer_bytes);
    if let Some(most) = number("/proc/sys/net/core/wmem_max").filter(|&most| most < buffer) {
        found.push(format!(
            "server.send_buffer_bytes = {buffer}, but the kernel allows {most}: readers far away get less at a \
             time; `sysctl -w net.core.wmem_max={buffer}` lifts it"
        ));
    }
    let lingering = u64::from(shards) * LINGERING_MAX;
    let ports = if config.serves_http() { 2 } else { 1 };
    let spare = FILES_SPARE + ports * u64::from(config.api.connections_max) + lingering;
    let (wanted, why) = match io {
        Io::Epoll => (
            connections + spare,
            format!("with epoll each of {connections} connections is a descriptor"),
        ),
        Io::IoUring => {
            let handshakes = u64::from(shards) * u64::from(config.server.handshakes_max);
            let why = format!("each of {handshakes} handshakes under way is a descriptor");
            (handshakes + spare, why)
        }
    };
    if let Ok((files, hard)) = open_files_limit()
        && wanted > files
    {
        let how = if hard >= wanted { "" } else { ", as root or with LimitNOFILE= in a unit" };
        found.push(format!(
            "ulimit -n is {files}, but {why}, and the API, refused connections and files take {spare} more: above it clients are \
             not accepted; `ulimit -n {wanted}` lifts it{how}"
        ));
    }
    let lines = memory(config, io, shards);
    let taken = |consumer: &Consumer| if let Taken(bytes) = consumer.amount { bytes } else { 0 };
    let at_most = |consumer: &Consumer| if let AtMost(bytes) = consumer.amount { bytes } else { 0 };
    let needed: u64 = lines.iter().map(taken).sum();
    let most = needed + lines.iter().map(at_most).sum::<u64>();
    if let Some(available) = available_bytes() {
        let (needed_mib, available_mib) = (needed >> 20, available >> 20);
        if needed > available {
            found.push(format!(
                "about {needed_mib} MiB are needed when all connections are open and {available_mib} MiB are \
                 available: lower server.connections_max"
            ));
        } else if most > available {
            let mut largest: Vec<&Consumer> = lines.iter().collect();
            largest.sort_by_key(|consumer| std::cmp::Reverse(at_most(consumer)));
            let names: Vec<&str> = largest.iter().take(2).map(|consumer| consumer.name).collect();
            found.push(format!(
                "{available_mib} MiB of memory are available and all bounds together allow {} MiB: clients that \
                 use them to the full could get this process killed; the largest are {} (see the lines \
                 \"memory:\" for their keys)",
                most >> 20,
                names.join(" and ")
            ));
        }
    }
    found
}

/// Memory that this process may still take: of the machine, and of its control group.
fn available_bytes() -> Option<u64> {
    let machine = memory_bytes("MemAvailable")?;
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
        number(&format!("/sys/fs/cgroup{path}/memory.max"))
    });
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// What may help when the kernel had no memory or descriptor for a ring.
pub fn shortage_hint(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::OutOfMemory => {
            let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
            let line = limits.lines().find(|line| line.starts_with("Max locked memory"));
            let locked = line.and_then(|line| line.split_whitespace().nth(3)).unwrap_or("unknown");
            format!(
                "; rings count as locked memory, of which this process may have {locked} bytes: \
                 `ulimit -l unlimited` (LimitMEMLOCK=infinity in a unit) lifts it, and server.io = \"epoll\" \
                 needs none"
            )
        }
        _ if cause.raw_os_error() == Some(EMFILE) => {
            "; ulimit -n is reached: raise it (LimitNOFILE= in a unit)".into()
        }
        _ => String::new(),
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn config(flags: &[&str]) -> Config {
        let flags = flags.iter().map(|&flag| flag.into()).collect();
        Config::load(&Sources { flags, ..Sources::default() }).unwrap()
    }

    #[test]
    fn every_consumer_is_a_line() {
        let lines = memory(&config(&[]), Io::IoUring, 2);
        let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
        assert!(text[0].contains("100000 (server.connections_max) with one"), "{text:?}");
        let Taken(all) = lines[0].amount else { panic!("{text:?}") };
        assert!((100..512).contains(&(all / 100_000)), "{all} bytes for 100,000 connections");
    }

    #[test]
    fn every_bound_in_bytes_is_in_the_plan() {
        let text = |config: &Config| -> Vec<String> {
            memory(config, Io::IoUring, 3).iter().map(ToString::to_string).collect()
        };
        let asked = "hooks.message_url=http://127.0.0.1/";
        let plain = text(&config(&[asked]));
        for flag in [
            "limits.history_bytes_max=2000000000",
            "limits.outboxes_bytes_max=2000000000",
            "limits.partial_bytes_max=2000000000",
            "api.bodies_bytes_max=2000000000",
            "limits.parked_bytes_max=2000000000",
            "limits.retained_bytes_max=2000000000",
            "limits.cross_shard_bytes_max=1000000",
            "limits.subscriptions_per_connection_max=7",
            "limits.channels_max=7",
            "server.handshakes_max=7",
            "api.connections_max=7",
            "server.send_buffer_bytes=7",
            "hooks.waiting_bytes_max=2000000000",
            "hooks.concurrency_max=7",
            "hooks.answer_bytes_max=2048",
            "hooks.publish_url=http://127.0.0.1/",
        ] {
            assert_ne!(text(&config(&[asked, flag])), plain, "{flag} is not in the plan");
        }
    }

    #[test]
    fn what_waits_between_shards_is_counted_in_every_queue() {
        let lines = memory(&config(&["limits.cross_shard_bytes_max=1000000"]), Io::Epoll, 3);
        let amount = |name| lines.iter().find(|line| line.name == name).map(|line| line.amount);
        assert_eq!(amount("inboxes"), Some(AtMost(3 * 3 * (16 << 20))));
        // Three shards have two others each, and requests and deliveries for each of them.
        assert_eq!(amount("between shards"), Some(AtMost(3 * 2 * 2 * 1_000_000)));
    }

    #[test]
    fn a_send_buffer_that_the_kernel_cuts_is_told() {
        let most = number("/proc/sys/net/core/wmem_max").unwrap_or(u64::MAX);
        let found =
            limits(&config(&["server.send_buffer_bytes=268435456"]), Io::Epoll, 1).join("\n");
        let told = found.contains("`sysctl -w net.core.wmem_max=268435456`");
        assert_eq!(told, most < 268_435_456, "{found}");
    }

    #[test]
    fn limits_name_the_command_that_lifts_them() {
        let config = config(&["server.connections_max=16000000", "server.backlog=1048576"]);
        let found = limits(&config, Io::Epoll, 1).join("\n");
        for part in ["sysctl -w net.core.somaxconn=1048576", "`ulimit -n 16001512`"] {
            assert!(found.contains(part), "{part:?} is not in:\n{found}");
        }
    }

    #[test]
    fn too_few_descriptors_for_handshakes_are_told() {
        let config = config(&["server.handshakes_max=1048576"]);
        let found = limits(&config, Io::IoUring, 256).join("\n");
        assert!(found.contains("handshakes under way is a descriptor"), "{found}");
        assert!(found.contains("`ulimit -n 268502248`"), "{found}");
    }

    #[test]
    fn bounds_that_allow_more_than_there_is_are_told() {
        let config = config(&["limits.history_bytes_max=1099511627776"]);
        let found = limits(&config, Io::IoUring, 1).join("\n");
        assert!(found.contains("the largest are history and"), "{found}");
    }
}
