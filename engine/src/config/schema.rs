//! The keys and their types.

use std::fmt;
use std::net::SocketAddr;

use ringfeed_protocol::Dialect;
use serde::{Deserialize, Deserializer};

use crate::callers::Callers;

/// Everything that can be configured. Field docs are in `config/default.toml`.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Config {
    pub server: Server,
    pub api: Api,
    pub auth: Auth,
    pub heartbeat: Heartbeat,
    pub limits: Limits,
    pub log: Log,
    pub endpoints: Vec<Endpoint>,
    pub channels: Vec<ChannelRule>,
    /// Emptied of keys once they were read: see `callers`.
    pub api_keys: Vec<ApiKey>,
    /// Of `api.keys` and `api_keys`.
    #[serde(skip)]
    pub callers: Callers,
}

/// `[server]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Server {
    pub listen: SocketAddr,
    pub io: IoChoice,
    pub shards: u16,
    pub pin: bool,
    pub backlog: u32,
    pub connections_max: u32,
    pub connections_per_address_max: u32,
    pub handshakes_max: u32,
    pub handshake_timeout_ms: u32,
    pub handshakes_per_address_per_second_max: u32,
    pub handshakes_burst: u32,
    pub send_buffer_bytes: u32,
    pub close_timeout_ms: u32,
    pub drain_timeout_ms: u32,
    pub drain_spread_ms: u32,
    pub origins: Vec<String>,
    pub proxies: Vec<String>,
    pub proxy_protocol: ProxyProtocol,
    pub forwarded_header: ForwardedHeader,
    pub demo_page: bool,
}

/// `[api]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Api {
    pub listen: SocketAddr,
    /// Empty once they were read: see [`Config::callers`].
    pub keys: Vec<Secret>,
    pub requests_per_second_max: u32,
    pub requests_burst: u32,
    pub body_bytes_max: u32,
    pub bodies_bytes_max: u64,
    pub connections_max: u32,
    pub idle_timeout_ms: u32,
    pub body_timeout_ms: u32,
    pub body_idle_timeout_ms: u32,
    pub ingest_idle_timeout_ms: u32,
    pub timeout_ms: u32,
}

/// `[auth]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Auth {
    pub anonymous: bool,
}

/// `[heartbeat]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Heartbeat {
    pub interval_ms: u32,
    pub timeout_ms: u32,
}

/// `[limits]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Limits {
    pub message_bytes_max: u32,
    pub message_timeout_ms: u32,
    pub partial_bytes_max: u64,
    pub messages_per_second_max: u32,
    pub messages_burst: u32,
    pub subscribes_per_second_max: u32,
    pub subscribes_burst: u32,
    pub publishes_per_second_max: u32,
    pub publishes_burst: u32,
    pub histories_per_second_max: u32,
    pub histories_burst: u32,
    pub idle_timeout_ms: u32,
    pub subscriptions_per_connection_max: u32,
    pub channels_max: u32,
    pub outbox_bytes_max: u32,
    pub outbox_timeout_ms: u32,
    pub outboxes_bytes_max: u64,
    pub history_reply_max: u32,
    pub recovery_bytes_max: u32,
    pub cross_shard_bytes_max: u32,
    pub history_bytes_max: u64,
    pub parked_bytes_max: u64,
    pub retained_bytes_max: u64,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Log {
    pub level: Level,
}

/// `[[endpoints]]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub path: String,
    #[serde(deserialize_with = "dialect")]
    pub dialect: Dialect,
    pub choose: bool,
    pub channel_prefix: String,
}

/// `[[channels]]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct ChannelRule {
    pub pattern: String,
    pub subscribe: Subscribers,
    pub publish: Publishers,
    pub history_size: u32,
    pub history_bytes: u64,
    pub history_age_ms: u32,
    pub lag_policy: LagPolicy,
    pub window_bytes: u32,
    pub window_age_ms: u32,
}

/// `[[api_keys]]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct ApiKey {
    pub name: String,
    pub key: Secret,
    /// Not secret, but a key may be written there by mistake.
    pub key_env: Secret,
    pub key_file: String,
    pub key_sha256: Secret,
    pub scopes: Vec<Scope>,
    pub channels: Vec<String>,
}

/// What a key of the HTTP API may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Scope {
    Publish,
    History,
    Channels,
    Stats,
    Metrics,
    Users,
    Connections,
    Tokens,
    All,
}

impl Scope {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Publish => "publish",
            Scope::History => "history",
            Scope::Channels => "channels",
            Scope::Stats => "stats",
            Scope::Metrics => "metrics",
            Scope::Users => "users",
            Scope::Connections => "connections",
            Scope::Tokens => "tokens",
            Scope::All => "all",
        }
    }
}

/// What the socket layer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum IoChoice {
    Auto,
    IoUring,
    Epoll,
}

/// Whether listed proxies say with the PROXY protocol for whom they connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ProxyProtocol {
    Off,
    Required,
}

/// Which header of listed proxies says for whom they ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum ForwardedHeader {
    Off,
    XForwardedFor,
}

/// Who may subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Subscribers {
    Anyone,
    Nobody,
}

/// Who may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Publishers {
    Anyone,
    Api,
}

/// What a reader meets that fell out of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LagPolicy {
    Gap,
    Disconnect,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// A key that is compared but never shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

fn dialect<'de, D: Deserializer<'de>>(from: D) -> Result<Dialect, D::Error> {
    let name = String::deserialize(from)?;
    Dialect::from_name(&name).ok_or_else(|| serde::de::Error::custom("no such dialect"))
}
