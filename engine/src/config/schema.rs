//! The keys and their types.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ringfeed_protocol::{Dialect, Operation};
use serde::{Deserialize, Deserializer};

use crate::access::Room;
use crate::callers::Callers;
use crate::content::Content;

/// Everything that can be configured. Field docs are in `config/default.toml`.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Config {
    pub server: Server,
    pub api: Api,
    pub auth: Auth,
    pub hooks: Hooks,
    pub rpc: Rpc,
    pub heartbeat: Heartbeat,
    pub limits: Limits,
    pub redis: Redis,
    pub redis_channels: Vec<RedisChannel>,
    pub cluster: Cluster,
    pub wsnode: Wsnode,
    pub drop: FileDrop,
    pub log: Log,
    pub endpoints: Vec<Endpoint>,
    pub channels: Vec<ChannelRule>,
    pub permissions: Vec<Permission>,
    pub issuers: Vec<Issuer>,
    /// Empty once they were read: see `callers`.
    pub api_keys: Vec<ApiKey>,
    pub databases: Vec<Database>,
    pub rpc_methods: Vec<RpcMethod>,
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
    /// Once loaded it is never empty.
    pub node_id: String,
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

/// `[drop]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct FileDrop {
    pub dir: String,
    pub portico_dir: String,
    pub redis: bool,
    pub interval_ms: u32,
    pub owners: Vec<String>,
    pub rejected_max: u32,
    pub rejected_age_s: u32,
}

/// `[auth]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Auth {
    pub anonymous: bool,
    pub token_from: Vec<TokenPlace>,
    pub token_query: String,
    pub token_cookie: String,
    pub timeout_ms: u32,
    pub refuse_after_upgrade: bool,
}

/// Where a client may show a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum TokenPlace {
    Header,
    Query,
    Cookie,
    Subprotocol,
    Message,
}

/// `[hooks]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Hooks {
    pub connect_url: HookUrl,
    pub connect_method: ConnectMethod,
    pub connect_cookies: Vec<String>,
    pub disconnect_url: HookUrl,
    pub subscribe_url: HookUrl,
    pub publish_url: HookUrl,
    pub message_url: HookUrl,
    pub presence_url: HookUrl,
    /// Once loaded it is the secret, wherever it was said to be; empty where there is none.
    pub secret: Secret,
    /// Not secret, but one may be written there by mistake.
    pub secret_env: Secret,
    pub secret_file: String,
    pub timeout_ms: u32,
    pub attempt_timeout_ms: u32,
    pub retries: u32,
    pub concurrency_max: u32,
    pub waiting_max: u32,
    pub waiting_bytes_max: u64,
    pub answer_bytes_max: u32,
    pub allow_private_addresses: bool,
    pub on_failure: OnFailure,
    pub forward_headers: Vec<String>,
    pub breaker_failures: u32,
    pub breaker_open_ms: u32,
    pub presence_batch_max: u32,
    pub presence_queue_max: u32,
}

/// How the application is asked who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ConnectMethod {
    Post,
    Get,
}

/// `[rpc]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Rpc {
    pub builtin: bool,
    pub allow_ping: Vec<String>,
    pub allow_client_info: Vec<String>,
    pub allow_server_stats: Vec<String>,
    pub allow_channels_list: Vec<String>,
    pub allow_server_methods: Vec<String>,
    pub dir: String,
    pub timeout_ms_max: u32,
    pub answer_bytes_max: u32,
}

/// `[[databases]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Database {
    pub name: String,
    /// Once loaded it is the URL, wherever it was said to be; empty where there is none.
    pub url: Secret,
    /// Not secret, but a URL may be written there by mistake.
    pub url_env: Secret,
    pub url_file: String,
    pub pool_max: u32,
    pub acquire_timeout_ms: u32,
    pub statement_timeout_ms: u32,
}

/// `[[rpc_methods]]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct RpcMethod {
    pub name: String,
    pub description: String,
    pub url: HookUrl,
    pub timeout_ms: u32,
    pub allow: Vec<String>,
    pub types: Vec<String>,
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
    pub connections_per_user_max: u32,
    pub rooms_per_user_max: u32,
    pub revocations_max: u32,
    pub channels_max: u32,
    pub rooms_max: u32,
    pub outbox_bytes_max: u32,
    pub outbox_timeout_ms: u32,
    pub outboxes_bytes_max: u64,
    pub rpc_calls_per_connection_max: u32,
    pub history_reply_max: u32,
    pub presence_reply_max: u32,
    /// Receivers that one publication may ask to confirm it.
    pub confirm_receivers_max: u32,
    /// How long one may give them, in milliseconds.
    pub confirm_ms_max: u32,
    pub idempotency_ms: u32,
    pub idempotency_keys_max: u32,
    pub recovery_bytes_max: u32,
    pub cross_shard_bytes_max: u32,
    pub history_bytes_max: u64,
    pub parked_bytes_max: u64,
    pub retained_bytes_max: u64,
}

/// `[redis]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Redis {
    /// Once loaded it is the URL, wherever it was said to be; empty where there is none.
    pub url: Secret,
    /// Not secret, but a URL may be written there by mistake.
    pub url_env: Secret,
    pub url_file: String,
    pub cluster: bool,
    pub prefix: String,
    pub timeout_ms: u32,
    pub ping_interval_ms: u32,
    pub patience_ms: u32,
    pub idle_s: u32,
    pub spool_dir: String,
    pub spool_bytes_max: u64,
}

/// `[cluster]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Cluster {
    /// Where the registry is; empty where there is none.
    pub registry: String,
    /// Once loaded it is the key, wherever it was said to be.
    pub key: Secret,
    /// Not secret, but a key may be written there by mistake.
    pub key_env: Secret,
    pub key_file: String,
    pub tls_certificate_file: String,
    pub tls_key_file: String,
    pub tls_authority_file: String,
    pub listen: SocketAddr,
    pub advertise: String,
    pub channels: bool,
    pub url: String,
    pub patience_ms: u32,
    pub idle_s: u32,
}

/// `[wsnode]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Wsnode {
    pub nodes: Vec<String>,
    /// Where the registry is that nodes of DistributedWebSocket ask; empty where there is none.
    pub registry: String,
    pub url: String,
    /// Once loaded it is the key, wherever it was said to be.
    pub key: Secret,
    /// Not secret, but a key may be written there by mistake.
    pub key_env: Secret,
    pub key_file: String,
    pub interval_ms: u32,
}

/// `[[redis_channels]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct RedisChannel {
    pub name: String,
    pub channel: String,
    pub format: ForeignFormat,
    pub direction: Direction,
}

/// What other programs publish in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ForeignFormat {
    Plain,
    Fluxus,
    Portico,
}

/// Whether they are heard, are told, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Direction {
    In,
    Out,
    Both,
}

/// Who gives the publications of a channel their offsets, where several nodes serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Distribution {
    Auto,
    Numbered,
    Bridged,
    Local,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Log {
    pub level: Level,
}

/// `[[endpoints]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub path: String,
    #[serde(deserialize_with = "dialect")]
    pub dialect: Dialect,
    pub choose: bool,
    pub channel_prefix: String,
    pub http: HttpRoutes,
    pub subscribe: Vec<String>,
}

impl Config {
    /// Bytes of channels' names that an endpoint's clients are not shown, where their dialect is one of existing systems.
    pub fn hidden(&self, endpoint: u8) -> u8 {
        self.endpoints.get(usize::from(endpoint)).map_or(0, Endpoint::hidden)
    }

    /// Whether any endpoint has routes beside it that are served over HTTP.
    pub fn serves_http(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.http != HttpRoutes::None)
    }
}

impl Endpoint {
    /// Whether a path is one of those that are served over HTTP beside this endpoint.
    pub fn serves_http(&self, path: &str) -> bool {
        let behind = path.strip_prefix(self.directory());
        behind.is_some_and(|behind| self.http.routes().contains(&behind))
    }

    /// These paths: each route in the directory in which the endpoint is.
    pub fn http_paths(&self) -> impl Iterator<Item = String> {
        self.http.routes().iter().map(|route| format!("{}{route}", self.directory()))
    }

    /// Bytes of channels' names that clients of existing systems are not shown.
    pub fn hidden(&self) -> u8 {
        // Shorter than a channel's name may be.
        u8::try_from(self.channel_prefix.len()).unwrap_or(u8::MAX)
    }

    /// Whether it serves all paths that are nobody else's.
    pub fn is_anywhere(&self) -> bool {
        self.path == "*"
    }

    /// A path that it serves.
    pub fn example(&self) -> &str {
        if self.is_anywhere() { "/" } else { &self.path }
    }

    /// The path up to its last slash.
    pub fn directory(&self) -> &str {
        if self.is_anywhere() {
            return "/";
        }
        self.path.rfind('/').and_then(|slash| self.path.get(..=slash)).unwrap_or_default()
    }
}

/// What is served over HTTP beside an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum HttpRoutes {
    None,
    Wsnode,
    Cadsock,
    Fluxus,
}

impl HttpRoutes {
    /// The paths, without the directory that they are in.
    fn routes(self) -> &'static [&'static str] {
        match self {
            HttpRoutes::None => &[],
            HttpRoutes::Wsnode => &["broadcast", "health", "metrics"],
            HttpRoutes::Cadsock => &["internal/broadcast"],
            HttpRoutes::Fluxus => &["api/rpc-methods", "api/rpc", "health", "stats"],
        }
    }
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
    pub distribution: Distribution,
    pub lag_policy: LagPolicy,
    pub window_bytes: u32,
    pub window_age_ms: u32,
    pub sender: bool,
    pub confirm: bool,
    pub presence: Presence,
    pub join_leave: bool,
    pub presence_interval_ms: u32,
    pub presence_hook: bool,
    pub members_max: u32,
    pub message_bytes_max: u32,
    pub schema: String,
    pub messages_per_second_max: u32,
    pub messages_burst: u32,
    pub room: bool,
    pub public: bool,
    pub moderated: bool,
    /// Empty once it was read: see `room_rules`.
    pub password: Secret,
    /// Not secret, but a password may be written there by mistake.
    pub password_env: Secret,
    pub password_file: String,
    pub speak: Speakers,
    pub only_made: bool,
    /// Whether it is the registry's, and not of this node's own configuration.
    #[serde(skip)]
    pub fetched: bool,
    /// What holds in its channels, where these are rooms: made of the keys above.
    #[serde(skip)]
    pub room_rules: Option<Arc<Room>>,
    /// What may be published on its channels, where the keys above say anything of that.
    #[serde(skip)]
    pub content: Option<Arc<Content>>,
}

/// `[[permissions]]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Permission {
    pub who: Vec<String>,
    pub channels: Vec<String>,
    #[serde(deserialize_with = "operations")]
    pub allow: Vec<Operation>,
    #[serde(deserialize_with = "operations")]
    pub deny: Vec<Operation>,
}

/// `[[issuers]]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Issuer {
    pub issuer: String,
    pub audience: Vec<String>,
    /// Once loaded it is the secret, wherever it was said to be; empty where there is none.
    pub secret: Secret,
    /// Not secret, but one may be written there by mistake.
    pub secret_env: Secret,
    pub secret_file: String,
    pub secret_algorithm: SecretAlgorithm,
    pub public_key_files: Vec<String>,
    pub jwks_url: String,
    pub jwks_algorithms: Vec<KeyAlgorithm>,
    pub leeway_s: u32,
    pub user_claim: String,
    pub roles_claim: String,
    pub claims: Vec<String>,
    pub lifetime_s_max: u32,
}

/// What a secret signs with (RFC 7518 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum SecretAlgorithm {
    HS256,
    HS384,
    HS512,
}

/// What a public key verifies (RFC 7518 section 3.1, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum KeyAlgorithm {
    RS256,
    ES256,
    EdDSA,
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
    Presence,
    Stats,
    Metrics,
    Users,
    Connections,
    Tokens,
    Rooms,
    All,
}

impl Scope {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Publish => "publish",
            Scope::History => "history",
            Scope::Channels => "channels",
            Scope::Presence => "presence",
            Scope::Stats => "stats",
            Scope::Metrics => "metrics",
            Scope::Users => "users",
            Scope::Connections => "connections",
            Scope::Tokens => "tokens",
            Scope::Rooms => "rooms",
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
    Forwarded,
}

/// Who may subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Subscribers {
    Anyone,
    Users,
    Token,
    Hook,
    Nobody,
}

/// Who may speak in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Speakers {
    Anyone,
    Members,
}

impl Speakers {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Speakers::Anyone => "anyone",
            Speakers::Members => "members",
        }
    }
}

/// Who may publish over WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Publishers {
    Anyone,
    Users,
    Hook,
    Api,
}

/// Who is told who is on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Presence {
    Off,
    Count,
    Full,
}

/// What a reader meets that fell out of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LagPolicy {
    Gap,
    Disconnect,
}

/// What counts where the application could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum OnFailure {
    Refuse,
    Allow,
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

/// Where the application is asked; empty where it is not.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct HookUrl(pub String);

impl fmt::Debug for HookUrl {
    /// Without the query, which may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.split(['?', '#']).next().unwrap_or_default(), f)
    }
}

/// What is compared or signed with but never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(pub Vec<u8>);

impl Secret {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text.into_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

fn dialect<'de, D: Deserializer<'de>>(from: D) -> Result<Dialect, D::Error> {
    let name = String::deserialize(from)?;
    Dialect::from_name(&name).ok_or_else(|| serde::de::Error::custom("no such dialect"))
}

fn operations<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Operation>, D::Error> {
    let named = |name: &String| {
        Operation::from_name(name).ok_or_else(|| serde::de::Error::custom("no such operation"))
    };
    Vec::<String>::deserialize(from)?.iter().map(named).collect()
}
