//! What the types cannot say: ranges, and what does not go together.

use std::collections::BTreeSet;

use ringfeed_protocol::channel_name;

use super::schema::{Config, Endpoint};
use crate::origins::Origins;

impl Config {
    /// What the types cannot say.
    pub(super) fn validate(&self, errors: &mut Vec<String>) {
        let mut need = |ok: bool, message: String| {
            if !ok {
                errors.push(message);
            }
        };
        let mut range = |key: &str, value: u32, from: u32, to: u32| {
            need(
                (from..=to).contains(&value),
                format!("{key} = {value}: allowed are {from} to {to}"),
            );
        };
        let Config { server, api, heartbeat, limits, .. } = self;
        range("server.shards", server.shards.into(), 0, 256);
        range("server.backlog", server.backlog, 1, 1 << 20);
        range("server.connections_max", server.connections_max, 1, 1 << 24);
        range("server.handshakes_max", server.handshakes_max, 1, 1 << 20);
        range("server.handshake_timeout_ms", server.handshake_timeout_ms, 10, 600_000);
        range("server.send_buffer_bytes", server.send_buffer_bytes, 0, 1 << 28);
        range("server.close_timeout_ms", server.close_timeout_ms, 10, 600_000);
        range("server.drain_timeout_ms", server.drain_timeout_ms, 0, 3_600_000);
        range("api.body_bytes_max", api.body_bytes_max, 1024, 1 << 30);
        range("api.timeout_ms", api.timeout_ms, 10, 600_000);
        range("heartbeat.timeout_ms", heartbeat.timeout_ms, 10, 3_600_000);
        range("limits.message_bytes_max", limits.message_bytes_max, 125, 1 << 30);
        range("limits.messages_burst", limits.messages_burst, 1, u32::MAX);
        range(
            "limits.subscriptions_per_connection_max",
            limits.subscriptions_per_connection_max,
            1,
            1 << 20,
        );
        range("limits.channels_max", limits.channels_max, 1, 1 << 30);
        range("limits.outbox_bytes_max", limits.outbox_bytes_max, 1024, 1 << 30);
        range("limits.outbox_timeout_ms", limits.outbox_timeout_ms, 100, 600_000);
        range("limits.message_timeout_ms", limits.message_timeout_ms, 100, 600_000);
        range("api.connections_max", api.connections_max, 1, 1 << 20);
        range("limits.history_reply_max", limits.history_reply_max, 1, 1 << 20);
        range("limits.cross_shard_bytes_max", limits.cross_shard_bytes_max, 1 << 16, 1 << 30);
        for (i, rule) in self.channels.iter().enumerate() {
            range(&format!("channels[{i}].window_bytes"), rule.window_bytes, 1 << 12, 1 << 30);
            range(&format!("channels[{i}].window_age_ms"), rule.window_age_ms, 100, 3_600_000);
            range(&format!("channels[{i}].history_size"), rule.history_size, 0, 1 << 24);
        }
        let mut paths = BTreeSet::new();
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let Endpoint { path, channel_prefix, .. } = endpoint;
            need(
                path.starts_with('/') && !path.contains(['?', '#', ' ']),
                format!(
                    "endpoints[{i}].path = {path:?}: it must begin with '/' and hold no '?', '#' or space"
                ),
            );
            need(
                paths.insert(path) && path != "/health" && path != "/",
                format!("endpoints[{i}].path = {path:?}: it is in use already"),
            );
            need(
                channel_prefix.is_empty() || channel_name::check(channel_prefix).is_ok(),
                format!(
                    "endpoints[{i}].channel_prefix = {channel_prefix:?}: it must be the beginning of a channel name"
                ),
            );
        }
        for (i, origin) in server.origins.iter().enumerate() {
            let read = Origins::parse(std::slice::from_ref(origin));
            need(
                read.is_ok(),
                format!(
                    "server.origins[{i}]: {}",
                    read.err().map_or_else(String::new, |e| e.to_string())
                ),
            );
        }
        need(!self.endpoints.is_empty(), "endpoints: at least one is needed".into());
        for (i, key) in api.keys.iter().enumerate() {
            need(!key.0.is_empty(), format!("api.keys[{i}]: an empty key is not allowed"));
        }
        let (public, internal) = (server.listen, api.listen);
        need(
            public.ip().is_loopback() || self.auth.anonymous,
            format!(
                "server.listen = {public}: beyond loopback clients must authenticate; set \
                 auth.anonymous = true to serve anybody"
            ),
        );
        need(
            internal.ip().is_loopback() || !api.keys.is_empty(),
            format!("api.listen = {internal}: beyond loopback api.keys must hold at least one key"),
        );
        need(
            public != internal || public.port() == 0,
            format!("api.listen = {internal}: server.listen has the same address"),
        );
    }
}
