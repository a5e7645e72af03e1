//! The door: from accept to the answer of the upgrade, as plain async code on the shard's executor.
//!
//! A connection here has a deadline for everything, a small buffer and no state in the engine. When
//! its handshake is done it is promoted: its descriptor goes to the shard, which moves it into the
//! wire, and nothing here touches it again. Authentication will stand between head and answer.

use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _};
use monoio::net::{TcpListener, TcpStream};
use monoio::time::{Instant, sleep, timeout, timeout_at};
use ringfeed_protocol::Dialect;
use ringfeed_protocol::handshake::{HEAD_BYTES_MAX, Refusal, Request, write_response};

use super::{Local, Promoted, Shared};
use crate::message::ShardId;

/// Bytes read at once; most request heads are smaller.
const READ_BYTES: usize = 2048;
/// Pause after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The page for a browser that was pointed at this port.
const PAGE: &str = include_str!("page.html");

/// Limits on the connections of this process, shared by all doors.
#[derive(Debug)]
pub struct Admission {
    connections: AtomicU32,
    connections_max: u32,
    per_address_max: u32,
    // Touched by doors alone, on accept and at the end of a connection; never in fan-out.
    by_address: DashMap<IpAddr, u32>,
}

/// The right to hold one connection; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

impl Admission {
    /// `per_address_max` 0 is no limit.
    pub fn new(connections_max: u32, per_address_max: u32) -> Admission {
        let (connections, by_address) = (AtomicU32::new(0), DashMap::new());
        Admission { connections, connections_max, per_address_max, by_address }
    }

    /// A permit, or what stands against it.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Permit, &'static str> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut permit = Permit { admission: self.clone(), address: None };
        if before >= self.connections_max {
            return Err("this server has as many connections as it takes\n");
        }
        if self.per_address_max > 0 {
            let address = counted_as(address);
            let mut count = self.by_address.entry(address).or_insert(0);
            *count += 1;
            permit.address = Some(address);
            if *count > self.per_address_max {
                drop(count);
                return Err("this address has as many connections as one address may have\n");
            }
        }
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address {
            self.admission.by_address.remove_if_mut(&address, |_, count| {
                *count -= 1;
                *count == 0
            });
        }
    }
}

/// One IPv6 customer usually has a whole /64.
fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other.to_canonical(),
    }
}

/// Accepts until the shard drains; each connection is a task of its own.
pub async fn accept(listener: TcpListener, shard: ShardId, shared: Arc<Shared>, local: Rc<Local>) {
    let counters = shared.counters[usize::from(shard)].clone();
    loop {
        let accepted = listener.accept().await;
        if local.draining.get() {
            return;
        }
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("accept failed: {e}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (under_way, most) = (local.handshakes.get(), shared.config.server.handshakes_max);
        if under_way >= most.saturating_mul(2) {
            // Even refusals take a descriptor and some time.
            counters.refused.add(1);
            continue;
        }
        let permit = if under_way >= most {
            Err("too many handshakes are under way\n")
        } else {
            shared.admission.admit(peer.ip())
        };
        let (shared, local, counters) = (shared.clone(), local.clone(), counters.clone());
        local.handshakes.set(under_way + 1);
        monoio::spawn(async move {
            let limit = Duration::from_millis(shared.config.server.handshake_timeout_ms.into());
            let shaken = match permit {
                Ok(permit) => shake(stream, permit, Instant::now() + limit, &shared).await,
                Err(why) => Err((stream, busy(why))),
            };
            match shaken {
                Ok(Some(promoted)) => {
                    local.promote(promoted);
                    shared.shards.waker(shard).wake();
                }
                Ok(None) => {}
                Err((stream, refusal)) => {
                    counters.refused.add(1);
                    let _ = timeout(limit, refuse(stream, refusal)).await;
                }
            }
            local.handshakes.set(local.handshakes.get() - 1);
        });
    }
}

fn busy(why: &str) -> Refusal {
    Refusal { status: 503, headers: "Retry-After: 5\r\n", text: why.into() }
}

async fn refuse(mut stream: TcpStream, refusal: Refusal) {
    let mut answer = Vec::new();
    refusal.write(&mut answer);
    let _ = stream.write_all(answer).await;
    end(stream).await;
}

/// Ends a connection so that what was written arrives: unread bytes would turn the end to a reset.
async fn end(mut stream: TcpStream) {
    use monoio::io::AsyncWriteRent as _;
    const DRAIN_READS_MAX: usize = 16;
    let _ = stream.shutdown().await;
    let mut chunk = vec![0; READ_BYTES];
    for _ in 0..DRAIN_READS_MAX {
        let read;
        (read, chunk) = stream.read(chunk).await;
        if !read.is_ok_and(|n| n > 0) {
            return;
        }
    }
}

/// Reads the head and answers it, all before the deadline: no trickle of bytes extends it. `None` for a connection that ended or was served a plain answer.
async fn shake(
    mut stream: TcpStream,
    permit: Permit,
    deadline: Instant,
    shared: &Shared,
) -> Result<Option<Promoted>, (TcpStream, Refusal)> {
    let mut head: Vec<u8> = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let Ok((read, returned)) = timeout_at(deadline, stream.read(chunk)).await else {
            let text = "the request head took too long\n";
            return Err((stream, Refusal::new(408, text)));
        };
        chunk = returned;
        match read {
            Ok(0) | Err(_) => return Ok(None),
            Ok(n) => head.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
        match Request::parse(&head) {
            Err(refusal) => return Err((stream, refusal)),
            Ok(None) if head.len() >= HEAD_BYTES_MAX + READ_BYTES => return Ok(None),
            Ok(None) => {}
            Ok(Some((request, len))) => {
                let mut answer = Vec::new();
                let routed = match route(&request, shared, &mut answer) {
                    Ok(routed) => routed,
                    Err(refusal) => return Err((stream, refusal)),
                };
                let rest = head.get(len..).unwrap_or_default().to_vec();
                let written = timeout_at(deadline, stream.write_all(answer)).await;
                if !written.is_ok_and(|(written, _)| written.is_ok()) {
                    return Ok(None);
                }
                let Some((endpoint, dialect)) = routed else {
                    let _ = timeout_at(deadline, end(stream)).await;
                    return Ok(None);
                };
                let socket = ringfeed_wire::into_owned_fd(stream);
                return Ok(Some(Promoted { socket, endpoint, dialect, rest, permit }));
            }
        }
    }
}

/// Decides what a request is answered with. `Some` for an upgrade.
fn route(
    request: &Request,
    shared: &Shared,
    answer: &mut Vec<u8>,
) -> Result<Option<(u8, Dialect)>, Refusal> {
    let endpoints = &shared.config.endpoints;
    let Some((number, endpoint)) = (0u8..).zip(endpoints).find(|(_, e)| e.path == request.path)
    else {
        return match (request.path, request.method) {
            ("/health", "GET") => {
                write_response(answer, 200, "", "application/json", "{\"status\":\"ok\"}\n");
                Ok(None)
            }
            ("/", "GET") if !request.wants_upgrade() => {
                write_response(answer, 200, "", "text/html; charset=utf-8", PAGE);
                Ok(None)
            }
            _ => {
                let paths: Vec<&str> = endpoints.iter().map(|e| e.path.as_str()).collect();
                let text = format!("there is nothing here; WebSocket is at {}\n", paths.join(", "));
                Err(Refusal::new(404, text))
            }
        };
    };
    let upgrade = request.upgrade()?;
    let allowed = |dialect: Dialect| {
        dialect == endpoint.dialect || (endpoint.choose && dialect != Dialect::Echo)
    };
    let spoken = || {
        let names = Dialect::ALL.into_iter().filter(|&d| allowed(d)).map(Dialect::name);
        names.collect::<Vec<_>>().join(", ")
    };
    let find = |name: &str| Dialect::from_name(name).filter(|&dialect| allowed(dialect));
    if let Some(name) = request.query_value("protocol") {
        let Some(dialect) = find(name) else {
            let text = format!("?protocol= is not spoken here; allowed are {}\n", spoken());
            return Err(Refusal::new(400, text));
        };
        let offered = upgrade.protocols.contains(&dialect.name());
        upgrade.write_response(answer, offered.then(|| dialect.name()));
        return Ok(Some((number, dialect)));
    }
    if upgrade.protocols.is_empty() {
        upgrade.write_response(answer, None);
        return Ok(Some((number, endpoint.dialect)));
    }
    match upgrade.protocols.iter().find_map(|name| find(name)) {
        Some(dialect) => {
            upgrade.write_response(answer, Some(dialect.name()));
            Ok(Some((number, dialect)))
        }
        None => {
            let text = format!("no subprotocol offered is spoken here; allowed are {}\n", spoken());
            Err(Refusal::new(400, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_bound_connections_and_addresses_and_come_back() {
        let admission = Arc::new(Admission::new(3, 2));
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = admission.admit(address("10.0.0.1")).unwrap();
        let _second = admission.admit(address("::ffff:10.0.0.1")).unwrap();
        assert!(admission.admit(address("10.0.0.1")).unwrap_err().contains("one address"));
        let _third = admission.admit(address("10.0.0.2")).unwrap();
        assert!(admission.admit(address("10.0.0.3")).unwrap_err().contains("as many"));
        drop(first);
        assert!(admission.admit(address("10.0.0.1")).is_ok());
        assert_eq!(admission.by_address.len(), 2);
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::ffff:1".parse().unwrap());
        assert_eq!(counted_as(a), counted_as(b));
    }
}
