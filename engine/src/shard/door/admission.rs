//! Limits on connections, over all doors of the process.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;

use crate::config::Config;
use crate::counters::RefusalReason;

/// Limits on the connections of this process, shared by all doors.
#[derive(Debug)]
pub struct Admission {
    connections: AtomicU32,
    connections_max: u32,
    per_address_max: AtomicU32,
    // Touched by doors alone, on accept and at the end of a connection; never in fan-out.
    by_address: DashMap<IpAddr, u32>,
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
}

impl NotAdmitted {
    /// For the counters.
    pub(super) fn reason(self) -> RefusalReason {
        match self {
            NotAdmitted::Server => RefusalReason::ConnectionsMax,
            NotAdmitted::Address => RefusalReason::PerAddressMax,
        }
    }
}

impl Admission {
    /// `per_address_max` 0 is no limit.
    pub fn new(connections_max: u32, per_address_max: u32) -> Admission {
        let (connections, by_address) = (AtomicU32::new(0), DashMap::new());
        let per_address_max = AtomicU32::new(per_address_max);
        Admission { connections, connections_max, per_address_max, by_address }
    }

    /// Goes by another configuration from now on. Who is there may stay.
    pub fn reconfigure(&self, config: &Config) {
        let most = config.server.connections_per_address_max;
        self.per_address_max.store(most, Ordering::Relaxed);
    }

    /// A permit, or what stands against it.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Permit, NotAdmitted> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut permit = Permit { admission: self.clone(), address: None };
        if before >= self.connections_max {
            return Err(NotAdmitted::Server);
        }
        let per_address_max = self.per_address_max.load(Ordering::Relaxed);
        if per_address_max > 0 {
            let address = counted_as(address);
            let mut count = self.by_address.entry(address).or_insert(0);
            *count += 1;
            permit.address = Some(address);
            if *count > per_address_max {
                drop(count);
                return Err(NotAdmitted::Address);
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

/// The address under which a peer is counted: one IPv6 customer usually has a whole /64.
pub(super) fn counted_as(address: IpAddr) -> IpAddr {
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
    fn one_ipv6_network_is_one_address() {
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::ffff:1".parse().unwrap());
        assert_eq!(counted_as(a), counted_as(b));
    }
}
