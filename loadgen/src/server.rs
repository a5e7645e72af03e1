//! What the server says of itself, or the kernel of its processes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::machine::process_usage;
use crate::report::{ServerCost, ServerMemory};
use crate::target::Target;

/// Gauges are written every tenth of a second.
const GAUGES_SETTLE: Duration = Duration::from_millis(150);
/// How long a server may take to be back where it began once everybody has left, while there is
/// progress, and without.
const RETURN_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at the server: its figures change no more often.
const RETURN_PAUSE: Duration = Duration::from_millis(50);
const STANDSTILL_PATIENCE: Duration = Duration::from_secs(5);

/// A server at one moment.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServerState {
    cpu_user_seconds: f64,
    cpu_system_seconds: f64,
    resident_bytes: u64,
    #[serde(default)]
    open_files: u64,
    /// Only of ringfeed.
    totals: Option<Totals>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Totals {
    connections: u64,
    sockets: u64,
    rings: u64,
    sends: u64,
    bytes_out: u64,
    kernel_enters: u64,
    turn_max_us: Option<u64>,
    turn_cpu_max_us: Option<u64>,
}

impl ServerState {
    /// `None` where the server has no such API and no process was named.
    pub(crate) fn fetch(target: &Target) -> anyhow::Result<Option<ServerState>> {
        if target.templates.server_pid.is_empty() {
            return Ok(Self::ask(target));
        }
        let usage = process_usage(&target.templates.server_pid)?;
        let (cpu_user_seconds, cpu_system_seconds, resident_bytes) = usage;
        Ok(Some(ServerState {
            cpu_user_seconds,
            cpu_system_seconds,
            resident_bytes,
            open_files: 0,
            totals: None,
        }))
    }

    fn ask(target: &Target) -> Option<ServerState> {
        std::thread::sleep(GAUGES_SETTLE);
        let mut stream = TcpStream::connect_timeout(&target.api, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(
            stream,
            "GET /api/stats HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Connection: close\r\n\r\n",
            target.api, target.api_key
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// What was used between two moments.
    pub(crate) fn cost(&self, after: &ServerState, delivered: u64) -> ServerCost {
        let user = (after.cpu_user_seconds - self.cpu_user_seconds).max(0.0);
        let system = (after.cpu_system_seconds - self.cpu_system_seconds).max(0.0);
        let each = delivered.max(1) as f64;
        let totals = self.totals.as_ref().zip(after.totals.as_ref());
        let sends = totals.map(|(b, a)| a.sends.saturating_sub(b.sends).max(1) as f64);
        ServerCost {
            cpu_user_seconds: user,
            cpu_system_seconds: system,
            cpu_user_ns_per_delivery: user * 1e9 / each,
            cpu_system_ns_per_delivery: system * 1e9 / each,
            deliveries_per_send: sends.map(|sends| delivered as f64 / sends),
            bytes_per_send: totals
                .zip(sends)
                .map(|((b, a), sends)| a.bytes_out.saturating_sub(b.bytes_out) as f64 / sends),
            sends_per_enter: totals.zip(sends).map(|((b, a), sends)| {
                sends / a.kernel_enters.saturating_sub(b.kernel_enters).max(1) as f64
            }),
            turn_max_us: after.totals.as_ref().and_then(|totals| totals.turn_max_us),
            turn_max_is_of_run: totals.is_some_and(|(b, a)| a.turn_max_us > b.turn_max_us),
            turn_cpu_max_us: after.totals.as_ref().and_then(|totals| totals.turn_cpu_max_us),
            resident_bytes_before: self.resident_bytes,
            resident_bytes: after.resident_bytes,
        }
    }

    /// Waits until the server is back where it was, or does not come back. `self` is before the
    /// run.
    pub(crate) fn wait_for_return(&self, target: &Target) -> anyhow::Result<Option<ServerMemory>> {
        let deadline = Instant::now() + RETURN_PATIENCE;
        let mut seen = (None, Instant::now());
        loop {
            let Some(now) = ServerState::fetch(target)? else { return Ok(None) };
            let open = now.totals.as_ref().map(|totals| (totals.connections, totals.sockets));
            if seen.0 != Some(open) {
                seen = (Some(open), Instant::now());
            }
            // Who came in the meantime and is no part of the run would be waited for in vain.
            let stands_still = seen.1.elapsed() > STANDSTILL_PATIENCE;
            let totals = self.totals.as_ref().zip(now.totals.as_ref());
            let returned = totals.map(|(before, after)| {
                (after.connections, after.sockets) == (before.connections, before.sockets)
                    && now.open_files.saturating_sub(after.rings)
                        <= self.open_files.saturating_sub(before.rings)
            });
            if returned != Some(false) || stands_still || Instant::now() > deadline {
                return Ok(Some(ServerMemory {
                    resident_bytes_before: self.resident_bytes,
                    resident_bytes_open: 0,
                    resident_bytes_after: now.resident_bytes,
                    open_files_before: self.open_files,
                    open_files_after: now.open_files,
                    connections_after: now.totals.as_ref().map(|totals| totals.connections),
                    returned,
                }));
            }
            std::thread::sleep(RETURN_PAUSE);
        }
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }
}
