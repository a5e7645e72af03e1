//! What a configuration will take of this machine, told before any port is opened: memory by consumer,
//! and the limits that are in the way.

use std::fs;

use ringfeed_wire::{Io, WireConfig, memory_bytes, open_files_limit};

use crate::config::Config;
use crate::shard::{CONNECTION_BYTES, SUBSCRIPTION_BYTES};

/// What the kernel keeps for one idle TCP connection and the receive under way on it: measured as the
/// growth of its slabs, half of both ends on loopback.
const KERNEL_CONNECTION_BYTES: u64 = 4_800;
/// Bytes of a submission and of a completion in a ring.
const SUBMISSION_BYTES: u64 = 64;
const COMPLETION_BYTES: u64 = 16;
/// Descriptors that are not connections, with room to spare.
const FILES_SPARE: u64 = 200;

/// One consumer of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// What it is.
    pub name: &'static str,
    /// Bytes when every connection there may be is open; `None` depends on what clients do.
    pub bytes: Option<u64>,
    /// How that comes about.
    pub reason: String,
}

/// Memory by consumer.
pub fn memory(config: &Config, io: Io, shards: u16) -> Vec<Consumer> {
    let connections = u64::from(config.server.connections_max);
    let shards = u64::from(shards);
    let wire = WireConfig::default();
    let files = open_files_limit().map_or(u64::MAX, |(soft, _)| soft);
    let rings = match io {
        Io::IoUring => shards * connections.div_ceil(shards).div_ceil(files.max(1)),
        Io::Epoll => 0,
    };
    let buffers = u64::from(wire.receive_buffers) * u64::from(wire.receive_buffer_bytes);
    let queues = u64::from(wire.submission_entries) * (SUBMISSION_BYTES + 8 * COMPLETION_BYTES);
    let each = CONNECTION_BYTES as u64 + SUBSCRIPTION_BYTES as u64;
    let limits = &config.limits;
    let window = config.channels.iter().map(|rule| rule.window_bytes).max().unwrap_or(0);
    vec![
        Consumer {
            name: "connections",
            bytes: Some(connections * each),
            reason: format!("{connections} with one subscription, {each} bytes each"),
        },
        Consumer {
            name: "rings",
            bytes: Some(rings * (buffers + queues)),
            reason: format!("{rings} of up to {files} sockets, with their receive buffers"),
        },
        Consumer {
            name: "between shards",
            bytes: Some(shards * (shards - 1) * u64::from(limits.cross_shard_bytes_max)),
            reason: format!("at most, {shards} shards: limits.cross_shard_bytes_max a pair"),
        },
        Consumer {
            name: "channel logs",
            bytes: None,
            reason: format!(
                "up to {window} bytes a channel with slow readers (window_bytes), and history"
            ),
        },
        Consumer {
            name: "outboxes",
            bytes: None,
            reason: format!(
                "up to {} bytes a connection that does not read its replies",
                limits.outbox_bytes_max
            ),
        },
        Consumer {
            name: "kernel, sockets",
            bytes: Some(connections * KERNEL_CONNECTION_BYTES),
            reason: format!("about {KERNEL_CONNECTION_BYTES} bytes an idle connection"),
        },
        Consumer {
            name: "kernel, buffers",
            bytes: None,
            reason: match config.server.send_buffer_bytes {
                0 => "up to net.ipv4.tcp_wmem a slow reader".into(),
                bytes => format!("up to {bytes} bytes a slow reader (server.send_buffer_bytes)"),
            },
        },
    ]
}

impl std::fmt::Display for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bytes {
            Some(bytes) => {
                write!(f, "{:<16} {:>8.1} MiB", self.name, bytes as f64 / f64::from(1 << 20))?;
            }
            None => write!(f, "{:<16} {:>12}", self.name, "as needed")?,
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
    if let Ok((files, hard)) = open_files_limit()
        && io == Io::Epoll
        && connections + FILES_SPARE > files
    {
        let wanted = connections + FILES_SPARE;
        let how = if hard >= wanted { "" } else { ", as root or with LimitNOFILE= in a unit" };
        found.push(format!(
            "server.connections_max = {connections}, but with epoll every connection is a descriptor \
             and ulimit -n is {files}; `ulimit -n {wanted}` lifts it{how}"
        ));
    }
    let needed: u64 = memory(config, io, shards).iter().filter_map(|consumer| consumer.bytes).sum();
    if let Some(available) = memory_bytes("MemAvailable").filter(|&available| needed > available) {
        found.push(format!(
            "about {} MiB are needed when all connections are open and {} MiB are available: lower \
             server.connections_max",
            needed >> 20,
            available >> 20
        ));
    }
    found
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
        assert_eq!(lines.len(), 7);
        assert!(text[0].contains("100000 with one subscription"), "{text:?}");
        let each = lines[0].bytes.unwrap() / 100_000;
        assert!((100..512).contains(&each), "{each} bytes a connection");
    }

    #[test]
    fn limits_name_the_command_that_lifts_them() {
        let config = config(&["server.connections_max=16000000", "server.backlog=1048576"]);
        let found = limits(&config, Io::Epoll, 1).join("\n");
        for part in ["sysctl -w net.core.somaxconn=1048576", "`ulimit -n 16000200`"] {
            assert!(found.contains(part), "{part:?} is not in:\n{found}");
        }
    }
}
