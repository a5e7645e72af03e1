//! `[cluster]`: what its values mean.

use std::net::{IpAddr, SocketAddr};

use super::schema::{Cluster, Config};
use crate::mesh::frame::FRAME_BYTES_MAX;
use crate::registry::client::check_url;
use crate::registry::names::{NodeId, NodeUrl, PeerAddress};

/// Longest publication between nodes in bytes: what a frame holds, with room for what stands around it.
const PUBLICATION_BYTES_MAX: u64 = FRAME_BYTES_MAX as u64 - (1 << 20);
/// Revocations that can be told at once.
const REVOCATIONS_MAX: u32 = 500_000;
/// Rooms that are made over the API, and as many that have ended, in the same way.
const ROOMS_MAX: u32 = 100_000;
/// Shortest key where others than this machine can try.
const OPEN_KEY_BYTES_MIN: usize = 16;

impl Cluster {
    /// Whether the node shares channels with others, without a Redis.
    pub fn is_used(&self) -> bool {
        !self.registry.is_empty()
    }

    /// Where other nodes reach this one, which listens there.
    ///
    /// # Errors
    /// What is wrong with `advertise`, or that nothing else says it.
    pub fn peer(&self, listens: SocketAddr) -> Result<PeerAddress, String> {
        if self.advertise.is_empty() {
            if listens.ip().is_unspecified() {
                let listen = self.listen;
                return Err(format!(
                    "cluster.advertise: cluster.listen = {listen} does not say where other nodes reach this one; \
                     allowed is HOST:PORT"
                ));
            }
            return listens.to_string().parse().map_err(|e| format!("cluster.listen: {e}"));
        }
        self.advertise.parse().map_err(|e| format!("cluster.advertise: {e}"))
    }
}

impl Config {
    /// Whether something numbers channels for several nodes: a Redis, or the nodes themselves.
    pub fn has_upstream(&self) -> bool {
        self.redis.is_used() || self.cluster.is_used()
    }

    /// This node's place among others.
    ///
    /// # Errors
    /// What is wrong with `server.node_id`.
    pub fn cluster_id(&self) -> Result<NodeId, String> {
        self.server.node_id.parse().map_err(|e| format!("server.node_id: {e}"))
    }

    /// Where clients, and HAProxy, reach this node, which listens there.
    ///
    /// # Errors
    /// What is wrong with `cluster.url`, or that nothing else says it.
    pub fn cluster_url(&self, listens: SocketAddr) -> Result<NodeUrl, String> {
        match &*self.cluster.url {
            "" if listens.ip().is_unspecified() => Err(format!(
                "cluster.url: server.listen = {listens} does not say where clients reach this node; allowed is a URL such as \
                 http://10.0.0.1:9800"
            )),
            "" => format!("http://{listens}").parse().map_err(|e| format!("server.listen: {e}")),
            url => url.parse().map_err(|e| format!("cluster.url: {e}")),
        }
    }

    pub(super) fn validate_cluster(&self, errors: &mut Vec<String>) {
        let Cluster { registry, key, listen, .. } = &self.cluster;
        if !self.cluster.is_used() {
            return;
        }
        if self.redis.is_used() {
            errors.push(
                "cluster.registry: redis.url names a Redis, which numbers channels; allowed is one of both".into(),
            );
        }
        errors.extend(check_url(registry).err().map(|e| format!("cluster.registry: {e}")));
        // Which port the kernel gives is known once it listens.
        let known = |at: SocketAddr| SocketAddr::new(at.ip(), at.port().max(1));
        errors.extend(self.cluster.peer(known(*listen)).err());
        errors.extend(self.cluster_id().err());
        errors.extend(self.cluster_url(known(self.server.listen)).err());
        let message = u64::from(self.limits.message_bytes_max).max(self.api.body_bytes_max.into());
        if message > PUBLICATION_BYTES_MAX {
            errors.push(format!(
                "cluster.registry: limits.message_bytes_max and api.body_bytes_max let in {message} bytes; between nodes at most \
                 {PUBLICATION_BYTES_MAX} go"
            ));
        }
        if self.limits.revocations_max > REVOCATIONS_MAX {
            errors.push(format!(
                "limits.revocations_max: nodes tell one another all of them as they meet; with cluster.registry at most \
                 {REVOCATIONS_MAX}"
            ));
        }
        if self.limits.rooms_max > ROOMS_MAX {
            errors.push(format!(
                "limits.rooms_max: nodes tell one another of all of them as they meet; with cluster.registry at most {ROOMS_MAX}"
            ));
        }
        let Cluster { tls_certificate_file, tls_key_file, tls_authority_file, .. } = &self.cluster;
        let tls = [tls_certificate_file, tls_key_file, tls_authority_file];
        if tls.iter().any(|file| file.is_empty()) && !tls.iter().all(|file| file.is_empty()) {
            errors.push(
                "cluster.tls_certificate_file, tls_key_file and tls_authority_file: all three are needed for TLS between nodes; \
                 allowed is also none of them"
                    .into(),
            );
        }
        let is_local = |host: &str| {
            host == "localhost"
                || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(is_loopback)
        };
        let host = |authority: &str| authority.rsplit_once(':').map(|(host, _)| host.to_owned());
        let at =
            registry.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(""));
        let at = host(at).unwrap_or_else(|| at.to_owned());
        if let Ok(peer) = self.cluster.peer(known(*listen))
            && host(peer.as_str()).is_some_and(|own| is_local(&own))
            && !is_local(&at)
        {
            errors.push(format!(
                "cluster.advertise: other nodes are told {peer}, which is this machine to each of them; name where this one is \
                 reached, and let cluster.listen listen there"
            ));
        }
        let text = std::str::from_utf8(&key.0).unwrap_or_default();
        let fits = |byte: u8| byte.is_ascii_graphic() && byte != b',';
        if !(1..=4096).contains(&text.len()) || !text.bytes().all(fits) {
            errors.push(
                "cluster.key: the registry's key is needed: 1 to 4096 visible ASCII characters but commas".into(),
            );
        } else if !is_loopback(listen.ip()) && text.len() < OPEN_KEY_BYTES_MIN {
            errors.push("cluster.key: beyond loopback it needs at least 16 characters".into());
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    fn load(flags: &[&str]) -> Result<Config, String> {
        let mut flags: Vec<_> = flags.iter().map(|&flag| flag.into()).collect();
        flags.push("server.node_id=n1".into());
        let environment = vec![("RINGFEED_CLUSTER__KEY".into(), "0123456789abcdef".into())];
        let sources = Sources { flags, environment, ..Sources::default() };
        Config::load(&sources).map_err(|e| e.to_string())
    }

    #[test]
    fn a_node_says_where_it_is_reached() {
        let config = load(&["cluster.registry=http://localhost:9810"]).unwrap();
        assert_eq!(config.cluster.peer(config.cluster.listen).unwrap().as_str(), "127.0.0.1:9802");
        assert_eq!(
            config.cluster_url(config.server.listen).unwrap().as_str(),
            "http://127.0.0.1:9800"
        );
        for (flags, why) in [
            (
                &["cluster.listen=0.0.0.0:9802"][..],
                "cluster.advertise: cluster.listen = 0.0.0.0:9802",
            ),
            (&["cluster.advertise=here"], "cluster.advertise: the address \"here\""),
            (&["server.listen=0.0.0.0:9800"], "cluster.url: server.listen = 0.0.0.0:9800"),
            (&["cluster.url=ftp://a"], "cluster.url: "),
            (&["limits.message_bytes_max=100000000"], "between nodes at most 32505856"),
            (&["cluster.registry=http://10.0.0.5:9810"], "which is this machine to each of them"),
            (&["cluster.registry=here"], "cluster.registry: "),
            (&["cluster.tls_key_file=a.pem"], "all three are needed"),
        ] {
            let mut all = vec!["cluster.registry=http://localhost:9810"];
            all.extend(flags);
            let refused = load(&all).unwrap_err();
            assert!(refused.contains(why), "{flags:?}: {refused}");
        }
    }
}
