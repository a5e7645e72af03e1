//! Limits on connections, over all doors of the process.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use dashmap::DashMap;
use ringfeed_protocol::handshake::Refusal;

use super::refuse::busy;
use crate::config::Config;
use crate::counters::RefusalReason;
use crate::rates::Rates;

/// Limits on the connections of this process, shared by all doors.
#[derive(Debug)]
pub struct Admission {
    connections: AtomicU32,
    connections_max: u32,
    per_address_max: AtomicU32,
    // Touched by doors alone, on accept and at the end of a connection; never in fan-out.
    by_address: DashMap<IpAddr, u32>,
    handshakes: Rates<IpAddr>,
}

/// The right to hold one connection; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

/// What stands against a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// `server.connections_max`.
    #[error("this server has as many connections as it takes")]
    Server,
    /// `server.connections_per_address_max`.
    #[error("this address has as many connections as one address may have")]
    Address,
    /// `server.handshakes_per_address_per_second_max`.
    #[error("this address connects more often than one address may")]
    Rate,
}

impl NotAdmitted {
    /// For the counters.
    pub(super) fn reason(self) -> RefusalReason {
        match self {
            NotAdmitted::Server => RefusalReason::ConnectionsMax,
            NotAdmitted::Address => RefusalReason::PerAddressMax,
            NotAdmitted::Rate => RefusalReason::HandshakeRate,
        }
    }

    /// For the client.
    pub(super) fn refusal(self) -> Refusal {
        let text = format!("{self}\n");
        match self {
            NotAdmitted::Server | NotAdmitted::Address => busy(&text),
            // The next one may come within a second, whatever the rate is.
            NotAdmitted::Rate => {
                Refusal { status: 429, headers: "Retry-After: 1\r\n".into(), text }
            }
        }
    }
}

impl Admission {
    /// `per_address_max` 0 is no limit.
    pub fn new(connections_max: u32, per_address_max: u32) -> Admission {
        let (connections, by_address) = (AtomicU32::new(0), DashMap::new());
        let handshakes = Rates::new(0, 1);
        let per_address_max = AtomicU32::new(per_address_max);
        Admission { connections, connections_max, per_address_max, by_address, handshakes }
    }

    /// With a limit on how often one address may connect.
    pub fn with_handshake_rate(self, per_second: u32, burst: u32) -> Admission {
        Admission { handshakes: Rates::new(per_second, burst), ..self }
    }

    /// Goes by another configuration from now on. Who is there may stay.
    pub fn reconfigure(&self, config: &Config) {
        let most = config.server.connections_per_address_max;
        self.per_address_max.store(most, Ordering::Relaxed);
        let server = &config.server;
        self.handshakes.set(server.handshakes_per_address_per_second_max, server.handshakes_burst);
    }

    /// A permit, or what stands against it.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Permit, NotAdmitted> {
        let mut permit = self.admit_proxy()?;
        permit.count(address)?;
        Ok(permit)
    }

    /// A permit for a proxy that has not said yet for whom it connects.
    pub fn admit_proxy(self: &Arc<Self>) -> Result<Permit, NotAdmitted> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { admission: self.clone(), address: None };
        if before >= self.connections_max { Err(NotAdmitted::Server) } else { Ok(permit) }
    }
}

impl Permit {
    /// Counts the connection for the address of its client.
    pub fn count(&mut self, address: IpAddr) -> Result<(), NotAdmitted> {
        let (address, admission) = (counted_as(address), &self.admission);
        let per_address_max = admission.per_address_max.load(Ordering::Relaxed);
        if per_address_max > 0 && self.address.is_none() {
            let mut count = admission.by_address.entry(address).or_insert(0);
            *count += 1;
            self.address = Some(address);
            if *count > per_address_max {
                return Err(NotAdmitted::Address);
            }
        }
        let within = admission.handshakes.take(address, Instant::now());
        if within { Ok(()) } else { Err(NotAdmitted::Rate) }
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

/// The address under which a peer is counted: one IPv6 customer usually has a whole /64.
pub(crate) fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other.to_canonical(),
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
        assert_eq!(admission.admit(address("10.0.0.1")).unwrap_err(), NotAdmitted::Address);
        let _third = admission.admit(address("10.0.0.2")).unwrap();
        assert_eq!(admission.admit(address("10.0.0.3")).unwrap_err(), NotAdmitted::Server);
        drop(first);
        assert!(admission.admit(address("10.0.0.1")).is_ok());
        assert_eq!(admission.by_address.len(), 2);
    }

    #[test]
    fn a_proxy_is_counted_for_its_client_once_that_is_known() {
        let admission = Arc::new(Admission::new(10, 1));
        let client = "192.0.2.1".parse::<IpAddr>().unwrap();
        let mut permits: Vec<Permit> = (0..3).map(|_| admission.admit_proxy().unwrap()).collect();
        assert!(admission.by_address.is_empty());
        assert_eq!(permits[0].count(client), Ok(()));
        assert_eq!(permits[1].count(client), Err(NotAdmitted::Address));
        assert_eq!(permits[2].count("192.0.2.2".parse().unwrap()), Ok(()));
        drop(permits);
        assert!(admission.by_address.is_empty());
        assert_eq!(admission.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_address_that_connects_too_often_is_told_when_to_come_back() {
        let admission = Arc::new(Admission::new(10, 0).with_handshake_rate(1, 2));
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for _ in 0..2 {
            admission.admit(address("2001:db8::1")).unwrap();
        }
        let refused = admission.admit(address("2001:db8::2")).unwrap_err();
        let refusal = refused.refusal();
        assert_eq!((refused, refusal.status), (NotAdmitted::Rate, 429));
        assert_eq!(refusal.headers, "Retry-After: 1\r\n");
        admission.admit(address("2001:db8:0:1::1")).unwrap();
        assert_eq!(admission.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::ffff:1".parse().unwrap());
        assert_eq!(counted_as(a), counted_as(b));
    }
}
