//! A cluster of Redis of a test's own, of real servers.

use std::net::TcpListener;

use crate::RedisServer;
use crate::common::{free_port, wait_until};

const SLOTS: usize = 16_384;

/// Its masters come first, each with as many slots, in order; then their replicas, of each one if there are any.
pub(crate) struct RedisCluster {
    pub(crate) servers: Vec<RedisServer>,
    /// For clients, and for the other servers.
    ports: Vec<[u16; 2]>,
    masters: usize,
}

impl RedisCluster {
    /// With these options on top of those of every test.
    pub(crate) fn start(masters: usize, replicas: usize, options: &[&str]) -> RedisCluster {
        let count = masters + replicas;
        // All at once, so that none comes twice.
        let free: Vec<[TcpListener; 2]> = (0..count).map(|_| [free_port(), free_port()]).collect();
        let ports: Vec<[u16; 2]> = free
            .iter()
            .map(|two| two.each_ref().map(|own| own.local_addr().unwrap().port()))
            .collect();
        drop(free);
        let start = |[port, bus]: &[u16; 2]| {
            let (port, bus) = (port.to_string(), bus.to_string());
            let mut all = vec!["--port", &port, "--cluster-enabled", "yes", "--cluster-port", &bus];
            all.extend(["--cluster-node-timeout", "1000", "--cluster-config-file", "nodes.conf"]);
            all.extend(options);
            RedisServer::start(&all)
        };
        let servers = ports.iter().map(start).collect();
        let cluster = RedisCluster { servers, ports, masters };
        cluster.join();
        cluster
    }

    fn join(&self) {
        for (at, server) in self.servers.iter().enumerate() {
            server.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if at < self.masters {
                let slots = [at, at + 1].map(|at| at * SLOTS / self.masters);
                let (first, last) = (slots[0].to_string(), (slots[1] - 1).to_string());
                server.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            }
            let [port, bus] = self.ports[at].map(|port| port.to_string());
            self.servers[0].ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        self.wait_joined();
        for at in self.masters..self.servers.len() {
            self.servers[at].ask::<()>(&["CLUSTER", "REPLICATE", &self.id(at - self.masters)]);
        }
        for replica in &self.servers[self.masters..] {
            let report = || replica.ask::<String>(&["INFO", "replication"]);
            wait_until("replica", report, |report| report.contains("master_link_status:up"));
        }
    }

    /// Waits until every server knows all others, and that all slots are served.
    pub(crate) fn wait_joined(&self) {
        let known = format!("cluster_known_nodes:{}\r", self.servers.len());
        for server in &self.servers {
            let info = || server.ask::<String>(&["CLUSTER", "INFO"]);
            wait_until("CLUSTER INFO", info, |info| {
                info.contains("cluster_state:ok") && info.contains(&known)
            });
        }
    }

    /// As the cluster knows a server.
    pub(crate) fn id(&self, at: usize) -> String {
        self.servers[at].ask(&["CLUSTER", "MYID"])
    }

    /// Where a server is; of the first one nodes are told.
    pub(crate) fn url(&self, at: usize) -> String {
        format!("redis://127.0.0.1:{}", self.ports[at][0])
    }

    pub(crate) fn port(&self, at: usize) -> String {
        self.ports[at][0].to_string()
    }

    pub(crate) fn slot(&self, channel: &str) -> usize {
        self.servers[0].ask(&["CLUSTER", "KEYSLOT", &format!("ringfeed:{{c:{channel}}}")])
    }

    /// A channel that begins so of which a master has the slot.
    pub(crate) fn channel_of(&self, at: usize, begins: &str) -> String {
        let mut names = (0..).map(|n| format!("{begins}{n}"));
        names
            .find(|name| (self.slot(name) * self.masters + self.masters - 1) / SLOTS == at)
            .unwrap()
    }

    /// A slot is on the move from one master to another: what is there is still at the first.
    pub(crate) fn open_slot(&self, slot: usize, from: usize, to: usize) {
        self.set_slot(to, slot, &["IMPORTING", &self.id(from)]);
        self.set_slot(from, slot, &["MIGRATING", &self.id(to)]);
    }

    /// What is there goes over.
    pub(crate) fn move_keys(&self, slot: usize, from: usize, to: usize) {
        let (source, slot, port) = (&self.servers[from], slot.to_string(), self.port(to));
        let keys = || source.ask::<Vec<String>>(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
        while let Some(key) = keys().pop() {
            source.ask::<()>(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
        }
    }

    /// From now on it is the other master's.
    pub(crate) fn give_slot(&self, slot: usize, from: usize, to: usize) {
        [to, from].into_iter().for_each(|at| self.set_slot(at, slot, &["NODE", &self.id(to)]));
    }

    /// It stays where it is.
    pub(crate) fn close_slot(&self, slot: usize, from: usize, to: usize) {
        [to, from].into_iter().for_each(|at| self.set_slot(at, slot, &["STABLE"]));
    }

    fn set_slot(&self, at: usize, slot: usize, how: &[&str]) {
        let slot = slot.to_string();
        let mut words = vec!["CLUSTER", "SETSLOT", &slot];
        words.extend(how);
        self.servers[at].ask::<()>(&words);
    }
}
