//! What cannot change while the server runs.

use super::schema::Config;

macro_rules! fixed {
    ($($section:ident.$key:ident),* $(,)?) => {
        impl Config {
            /// Takes over what cannot change from the configuration that holds. Returns the keys that would have.
            pub(super) fn keep_fixed(&mut self, holds: &Config) -> Vec<&'static str> {
                let mut changed = Vec::new();
                $(
                    if self.$section.$key != holds.$section.$key {
                        changed.push(concat!(stringify!($section), ".", stringify!($key)));
                        self.$section.$key = holds.$section.$key.clone();
                    }
                )*
                // Sessions know theirs by its number.
                if self.endpoints != holds.endpoints {
                    changed.push("endpoints");
                    self.endpoints.clone_from(&holds.endpoints);
                }
                // They were subscribed to, and homes were told.
                if self.redis_channels != holds.redis_channels {
                    changed.push("redis_channels");
                    self.redis_channels.clone_from(&holds.redis_channels);
                }
                changed
            }
        }
    };
}

fixed! {
    // Ports are open, threads run, rings have their size.
    server.listen, server.io, server.shards, server.pin, server.backlog, server.connections_max,
    server.handshakes_max, server.send_buffer_bytes, server.demo_page, server.node_id,
    api.listen, api.bodies_bytes_max, api.connections_max,
    // Connections that are there have their timers, or have none; links between shards have their room.
    heartbeat.interval_ms, limits.idle_timeout_ms, limits.cross_shard_bytes_max,
    // Homes of users know of the rooms that they are in, or do not.
    limits.rooms_per_user_max,
    // They were looked at when the server started.
    drop.dir, drop.portico_dir,
    // Homes of channels follow, or do not; connections are made as they were begun.
    redis.url, redis.cluster, redis.prefix, redis.timeout_ms, redis.ping_interval_ms, redis.patience_ms,
    redis.spool_dir, redis.spool_bytes_max,
    wsnode.nodes, wsnode.registry, wsnode.url, wsnode.key, wsnode.interval_ms,
    cluster.registry, cluster.key, cluster.tls_certificate_file, cluster.tls_key_file, cluster.tls_authority_file, cluster.listen, cluster.advertise, cluster.url, cluster.patience_ms,
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    #[test]
    fn what_cannot_change_is_named_and_stays() {
        let load = |flags: &[&str]| {
            let flags = flags.iter().map(|&flag| flag.into()).collect();
            Config::load(&Sources { flags, ..Sources::default() }).unwrap()
        };
        let holds = load(&["server.shards=1"]);
        let mut new =
            load(&["server.shards=2", "server.listen=127.0.0.1:1", "limits.messages_burst=7"]);
        assert_eq!(new.keep_fixed(&holds), ["server.listen", "server.shards"]);
        assert_eq!((new.server.shards, new.limits.messages_burst), (1, 7));
        assert!(new.keep_fixed(&holds).is_empty());
    }

    #[test]
    fn what_is_safe_on_loopback_alone_is_not_taken_by_a_server_that_listens_elsewhere() {
        let sources = |flags: &[&str]| {
            let flags = flags.iter().map(|&flag| flag.into()).collect();
            Sources { flags, ..Sources::default() }
        };
        let wide = [
            "server.listen=0.0.0.0:1",
            "api.listen=0.0.0.0:2",
            "auth.anonymous=true",
            "api.keys=0123456789abcdef",
        ];
        let holds = Config::load(&sources(&wide)).unwrap();
        // By itself it would do.
        Config::load(&sources(&[])).unwrap();
        let errors = Config::load_over(&sources(&[]), &holds).unwrap_err().to_string();
        for part in ["server.listen = 0.0.0.0:1: beyond loopback", "api.keys must hold"] {
            assert!(errors.contains(part), "{errors}");
        }
        let (_, fixed) = Config::load_over(&sources(&wide[2..]), &holds).unwrap();
        assert_eq!(fixed, ["server.listen", "api.listen"]);
    }
}
