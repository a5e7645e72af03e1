//! What this machine allows: looked at before a run begins, so that a limit is named and not run
//! into.

use std::fs;

use anyhow::{Context as _, bail};
use ringfeed_wire::{Io, memory_bytes, open_files_limit, raise_open_files_limit};

use crate::args::{Common, IoArg};
use crate::target::Target;

/// Kernel memory of one loopback connection, both ends, and what loadgen keeps for it.
const CONNECTION_BYTES: u64 = 6 * 1024;
/// What loadgen keeps for each subscription.
const SUBSCRIPTION_BYTES: u64 = 48;
/// Descriptors that are not connections.
const FILES_SPARE: u64 = 64;

/// What the sockets are served with.
pub(crate) fn choose_io(choice: IoArg) -> anyhow::Result<Io> {
    match choice {
        IoArg::Epoll => Ok(Io::Epoll),
        IoArg::IoUring => {
            ringfeed_wire::probe()?;
            Ok(Io::IoUring)
        }
        IoArg::Auto => match ringfeed_wire::probe() {
            Ok(()) => Ok(Io::IoUring),
            Err(e) => {
                eprintln!("loadgen: {e}; going on with epoll, which ulimit -n bounds");
                Ok(Io::Epoll)
            }
        },
    }
}

/// Says which limit is in the way, with the command that lifts it.
pub(crate) fn check_limits(common: &Common, target: &Target, io: Io) -> anyhow::Result<()> {
    let conns = u64::from(common.conns);
    if conns == 0 {
        bail!("--conns 0: at least one connection is needed");
    }
    raise_open_files_limit().context("reading RLIMIT_NOFILE")?;
    let (files, _) = open_files_limit().context("reading RLIMIT_NOFILE")?;
    // Tables of direct descriptors are as large as the limit, and a thread has up to 4,096 of them.
    let most = match io {
        Io::IoUring => files.saturating_mul(4096).min(u64::from(u32::MAX)),
        Io::Epoll => files.saturating_sub(FILES_SPARE),
    };
    if conns > most {
        let instead = if io == Io::Epoll { ", or --io io_uring" } else { "" };
        bail!(
            "--conns {conns}: {io} allows {most} with ulimit -n {files}; `ulimit -n {}` lifts \
             it{instead}",
            conns + FILES_SPARE
        );
    }
    let ports = read("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| {
        let mut bounds = text.split_whitespace().map(|bound| bound.parse::<u64>().ok());
        Some((bounds.next()??, bounds.next()??))
    });
    if let Some((from, to)) = ports {
        let (each, addresses) = ((to + 1).saturating_sub(from), target.from.len().max(1) as u64);
        if conns > each * addresses {
            bail!(
                "--conns {conns}: from {addresses} address(es) with ports {from} to {to} at most \
                 {} can be made; give more addresses with --from, or \
                 `sysctl -w net.ipv4.ip_local_port_range='1024 65535'`",
                each * addresses
            );
        }
    }
    let each = if common.subscriptions == 0 { 1 } else { u64::from(common.subscriptions) };
    let needed = conns * (CONNECTION_BYTES + each * SUBSCRIPTION_BYTES);
    let available = memory_bytes("MemAvailable").unwrap_or(u64::MAX);
    if needed > available {
        bail!(
            "--conns {conns}: about {} MiB are needed for them and {} MiB are available on this \
             machine; use fewer",
            needed >> 20,
            available >> 20
        );
    }
    let somaxconn = read("/proc/sys/net/core/somaxconn").and_then(|text| text.trim().parse().ok());
    let pace = u64::from(common.pace) * u64::from(common.threads);
    if target.address.ip().is_loopback() && somaxconn.is_some_and(|most: u64| pace > most) {
        eprintln!(
            "loadgen: warning: {pace} handshakes at once are more than a listener here holds; \
             `sysctl -w net.core.somaxconn={pace}` lifts it, or a lower --pace"
        );
    }
    Ok(())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Kernel memory of this machine in use for sockets and the like: slabs, and what TCP holds in
/// buffers.
pub(crate) fn kernel_bytes() -> Option<u64> {
    let sockets = read("/proc/net/sockstat")?;
    let tcp = sockets.lines().find(|line| line.starts_with("TCP:"))?;
    let pages: u64 = tcp.rsplit(' ').next()?.trim().parse().ok()?;
    Some(memory_bytes("Slab")? + pages * 4096)
}

/// CPU seconds (user, system) and resident bytes of some processes, all their threads together.
pub(crate) fn process_usage(pids: &[u32]) -> anyhow::Result<(f64, f64, u64)> {
    /// USER_HZ and the page size of every Linux that this runs on.
    const TICKS_PER_SECOND: f64 = 100.0;
    const PAGE: u64 = 4096;
    let mut sum = (0.0, 0.0, 0);
    for pid in pids {
        let context = || format!("--server-pid {pid}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(context)?;
        // The name in parentheses may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let field = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        sum.0 += field(11) as f64 / TICKS_PER_SECOND;
        sum.1 += field(12) as f64 / TICKS_PER_SECOND;
        sum.2 += field(21) * PAGE;
    }
    Ok(sum)
}
