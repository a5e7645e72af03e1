//! What each key may be. The one list that reading, error texts and docs/CONFIG.md go by: a key that is not here is
//! unknown, and a value that is secret here is shown nowhere.

use std::fmt;
use std::net::SocketAddr;

use toml::Value;

use super::rooms::MEMBERS_MAX;

/// What a key may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Allowed {
    /// Whole numbers, both ends included.
    Numbers(u64, u64),
    /// `true` or `false`.
    Switch,
    /// One of these.
    Words(&'static [&'static str]),
    /// An IP address and a port.
    Address,
    /// Text; what it must be like is checked once all keys are known.
    Text(&'static str),
    /// A list of texts.
    Texts(&'static str),
    /// A list of some of these.
    WordLists(&'static [&'static str]),
    /// Text that is never shown.
    Secret(&'static str),
    /// A list of texts that are compared and never shown.
    Secrets(&'static str),
}

use Allowed::{Address, Numbers, Secret, Secrets, Switch, Text, Texts, WordLists, Words};

const TIMEOUT_MS: Allowed = Numbers(10, 600_000);
const API_TIMEOUT_MS: Allowed = Numbers(10, 3_600_000);
const HOOK_URL: Allowed = Text("a URL such as https://app.example.org/hook");
const STALL_MS: Allowed = Numbers(100, 600_000);
/// Bytes of the whole process: up to 1 TiB.
const BUDGET_BYTES: Allowed = Numbers(1 << 16, 1 << 40);

const WHO: Allowed = Texts("anyone, anonymous, users, user:ID, role:NAME and claim:NAME=VALUE");
const OPERATIONS: Allowed =
    WordLists(&["subscribe", "publish", "history", "presence", "send", "moderate"]);
const SCOPES: &[&str] = &[
    "publish",
    "history",
    "channels",
    "presence",
    "stats",
    "metrics",
    "users",
    "connections",
    "tokens",
    "rooms",
    "all",
];

/// Every key, as `section.key`, in the order of `config/default.toml`.
pub(super) const KEYS: &[(&str, Allowed)] = &[
    ("server.listen", Address),
    ("server.io", Words(&["auto", "io_uring", "epoll"])),
    ("server.shards", Numbers(0, 256)),
    ("server.pin", Switch),
    ("server.backlog", Numbers(1, 1 << 20)),
    ("server.connections_max", Numbers(1, 1 << 24)),
    ("server.connections_per_address_max", Numbers(0, 1 << 24)),
    ("server.handshakes_max", Numbers(1, 1 << 20)),
    ("server.handshake_timeout_ms", TIMEOUT_MS),
    ("server.handshakes_per_address_per_second_max", Numbers(0, 1_000_000)),
    ("server.handshakes_burst", Numbers(1, 1_000_000)),
    ("server.send_buffer_bytes", Numbers(0, 1 << 28)),
    ("server.close_timeout_ms", TIMEOUT_MS),
    ("server.drain_timeout_ms", Numbers(0, 3_600_000)),
    ("server.drain_spread_ms", Numbers(0, 3_600_000)),
    ("server.origins", Texts("origins such as https://example.org")),
    ("server.proxies", Texts("IP networks such as 10.0.0.0/8")),
    ("server.proxy_protocol", Words(&["off", "required"])),
    ("server.forwarded_header", Words(&["off", "x-forwarded-for", "forwarded"])),
    ("server.demo_page", Switch),
    ("server.node_id", Text("a name of up to 64 visible ASCII characters")),
    ("api.listen", Address),
    ("api.keys", Secrets("keys of visible ASCII characters")),
    ("api.requests_per_second_max", Numbers(0, 1_000_000)),
    ("api.requests_burst", Numbers(1, 1_000_000)),
    ("api.body_bytes_max", Numbers(1024, 1 << 30)),
    ("api.bodies_bytes_max", BUDGET_BYTES),
    ("api.connections_max", Numbers(1, 1 << 20)),
    ("api.idle_timeout_ms", API_TIMEOUT_MS),
    ("api.body_timeout_ms", API_TIMEOUT_MS),
    ("api.body_idle_timeout_ms", API_TIMEOUT_MS),
    ("api.ingest_idle_timeout_ms", Numbers(10, 86_400_000)),
    ("api.timeout_ms", TIMEOUT_MS),
    ("auth.anonymous", Switch),
    ("auth.token_from", WordLists(&["header", "query", "cookie", "subprotocol", "message"])),
    ("auth.token_query", Text("the name of a query parameter")),
    ("auth.token_cookie", Text("the name of a cookie")),
    ("auth.timeout_ms", TIMEOUT_MS),
    ("auth.refuse_after_upgrade", Switch),
    ("hooks.connect_url", HOOK_URL),
    ("hooks.connect_method", Words(&["post", "get"])),
    ("hooks.connect_cookies", Texts("names of cookies")),
    ("hooks.disconnect_url", HOOK_URL),
    ("hooks.subscribe_url", HOOK_URL),
    ("hooks.publish_url", HOOK_URL),
    ("hooks.message_url", HOOK_URL),
    ("hooks.presence_url", HOOK_URL),
    ("hooks.secret", Secret("a text of 32 bytes or more")),
    ("hooks.secret_env", Text("the name of a variable")),
    ("hooks.secret_file", Text("the path of a file")),
    ("hooks.timeout_ms", TIMEOUT_MS),
    ("hooks.attempt_timeout_ms", TIMEOUT_MS),
    ("hooks.retries", Numbers(0, 10)),
    ("hooks.concurrency_max", Numbers(1, 4096)),
    ("hooks.waiting_max", Numbers(1, 1 << 20)),
    ("hooks.waiting_bytes_max", BUDGET_BYTES),
    ("hooks.answer_bytes_max", Numbers(1024, 1 << 24)),
    ("hooks.allow_private_addresses", Switch),
    ("hooks.on_failure", Words(&["refuse", "allow"])),
    ("hooks.forward_headers", Texts("names of header fields")),
    ("hooks.breaker_failures", Numbers(1, 1_000_000)),
    ("hooks.breaker_open_ms", Numbers(10, 30_000)),
    ("hooks.presence_batch_max", Numbers(1, 100_000)),
    ("hooks.presence_queue_max", Numbers(1, 1 << 24)),
    ("rpc.builtin", Switch),
    ("rpc.allow_ping", WHO),
    ("rpc.allow_client_info", WHO),
    ("rpc.allow_server_stats", WHO),
    ("rpc.allow_channels_list", WHO),
    ("rpc.allow_server_methods", WHO),
    ("rpc.dir", Text("the path of a directory")),
    ("rpc.timeout_ms_max", TIMEOUT_MS),
    ("rpc.answer_bytes_max", Numbers(1024, 1 << 24)),
    ("heartbeat.interval_ms", Numbers(0, 3_600_000)),
    ("heartbeat.timeout_ms", Numbers(10, 3_600_000)),
    ("limits.message_bytes_max", Numbers(125, 1 << 30)),
    ("limits.message_timeout_ms", STALL_MS),
    ("limits.partial_bytes_max", BUDGET_BYTES),
    ("limits.messages_per_second_max", Numbers(0, 1_000_000_000)),
    ("limits.messages_burst", Numbers(1, 1_000_000_000)),
    ("limits.subscribes_per_second_max", Numbers(0, 1_000_000_000)),
    ("limits.subscribes_burst", Numbers(1, 1_000_000_000)),
    ("limits.publishes_per_second_max", Numbers(0, 1_000_000_000)),
    ("limits.publishes_burst", Numbers(1, 1_000_000_000)),
    ("limits.histories_per_second_max", Numbers(0, 1_000_000_000)),
    ("limits.histories_burst", Numbers(1, 1_000_000_000)),
    ("limits.idle_timeout_ms", Numbers(0, 86_400_000)),
    ("limits.subscriptions_per_connection_max", Numbers(1, 1 << 20)),
    ("limits.connections_per_user_max", Numbers(0, 1 << 24)),
    ("limits.rooms_per_user_max", Numbers(0, 1 << 24)),
    ("limits.revocations_max", Numbers(0, 1 << 24)),
    ("limits.channels_max", Numbers(1, 1 << 30)),
    ("limits.rooms_max", Numbers(1, 1 << 24)),
    ("limits.outbox_bytes_max", Numbers(4096, 1 << 30)),
    ("limits.outbox_timeout_ms", STALL_MS),
    ("limits.outboxes_bytes_max", BUDGET_BYTES),
    ("limits.rpc_calls_per_connection_max", Numbers(1, 4096)),
    ("limits.history_reply_max", Numbers(1, 1 << 20)),
    ("limits.presence_reply_max", Numbers(1, 1 << 20)),
    ("limits.confirm_receivers_max", Numbers(1, 1 << 14)),
    ("limits.confirm_ms_max", Numbers(1, 3_600_000)),
    ("limits.idempotency_ms", Numbers(0, 86_400_000)),
    ("limits.idempotency_keys_max", Numbers(1, 1 << 27)),
    ("limits.recovery_bytes_max", Numbers(0, 1 << 30)),
    ("limits.cross_shard_bytes_max", Numbers(1 << 16, 1 << 30)),
    ("limits.history_bytes_max", Numbers(0, 1 << 40)),
    ("limits.parked_bytes_max", BUDGET_BYTES),
    ("limits.retained_bytes_max", BUDGET_BYTES),
    ("redis.url", Secret("a URL such as redis://localhost:6379")),
    ("redis.url_env", Secret("the name of a variable")),
    ("redis.url_file", Text("the path of a file")),
    ("redis.cluster", Switch),
    ("redis.prefix", Text("letters, digits and any of \"-_.\"")),
    ("redis.timeout_ms", TIMEOUT_MS),
    ("redis.ping_interval_ms", Numbers(100, 60_000)),
    ("redis.patience_ms", Numbers(0, 600_000)),
    ("redis.idle_s", Numbers(60, 315_360_000)),
    ("redis.spool_dir", Text("the path of a directory")),
    ("redis.spool_bytes_max", Numbers(1 << 20, 1 << 40)),
    ("cluster.registry", Text("a URL such as http://127.0.0.1:9810")),
    ("cluster.key", Secret("the registry's key")),
    ("cluster.key_env", Secret("the name of a variable")),
    ("cluster.key_file", Text("the path of a file")),
    ("cluster.tls_certificate_file", Text("the path of a PEM file")),
    ("cluster.tls_key_file", Text("the path of a PEM file")),
    ("cluster.tls_authority_file", Text("the path of a PEM file")),
    ("cluster.listen", Address),
    ("cluster.advertise", Text("HOST:PORT, as in 10.0.0.1:9802 and [::1]:9802")),
    ("cluster.channels", Switch),
    ("cluster.url", Text("a URL such as http://10.0.0.1:9800")),
    ("cluster.patience_ms", Numbers(500, 600_000)),
    ("cluster.idle_s", Numbers(60, 315_360_000)),
    ("wsnode.nodes", Texts("URLs such as http://10.0.0.7:8080")),
    ("wsnode.registry", Text("a URL such as http://127.0.0.1:8000")),
    ("wsnode.url", Text("a URL such as http://10.0.0.1:8080")),
    ("wsnode.key", Secret("the key of the nodes")),
    ("wsnode.key_env", Secret("the name of a variable")),
    ("wsnode.key_file", Text("the path of a file")),
    ("wsnode.interval_ms", Numbers(100, 3_600_000)),
    (
        "redis_channels.name",
        Text("a channel of Redis, with one * at most for any run of characters"),
    ),
    ("redis_channels.channel", Text("a channel name, with a * for what stands for that of name")),
    ("redis_channels.format", Words(&["plain", "fluxus", "portico"])),
    ("redis_channels.direction", Words(&["in", "out", "both"])),
    ("drop.dir", Text("the path of a directory")),
    ("drop.portico_dir", Text("the path of a directory")),
    ("drop.redis", Switch),
    ("drop.interval_ms", Numbers(10, 3_600_000)),
    ("drop.owners", Texts("numbers of users, as 33")),
    ("drop.rejected_max", Numbers(0, 1_000_000)),
    ("drop.rejected_age_s", Numbers(1, 315_360_000)),
    ("log.level", Words(&["error", "warn", "info", "debug", "trace"])),
    ("endpoints.path", Text("a path such as /ws")),
    (
        "endpoints.dialect",
        Words(&[
            "ringfeed.v1",
            "raw.v1",
            "echo",
            "portico",
            "rooms",
            "fluxus",
            "wsnode",
            "cadsock",
        ]),
    ),
    ("endpoints.choose", Switch),
    ("endpoints.channel_prefix", Text("the beginning of a channel name")),
    ("endpoints.http", Words(&["none", "wsnode", "cadsock", "fluxus"])),
    ("endpoints.subscribe", Texts("names of channels, without the prefix")),
    ("channels.pattern", Text("a channel name, with * for any run of characters")),
    ("channels.subscribe", Words(&["anyone", "users", "token", "hook", "nobody"])),
    ("channels.publish", Words(&["anyone", "users", "hook", "api"])),
    ("channels.history_size", Numbers(0, 1 << 24)),
    ("channels.history_bytes", Numbers(0, 1 << 40)),
    ("channels.history_age_ms", Numbers(0, u32::MAX as u64)),
    ("channels.distribution", Words(&["auto", "numbered", "bridged", "local"])),
    ("channels.lag_policy", Words(&["gap", "disconnect"])),
    ("channels.window_bytes", Numbers(1 << 12, 1 << 30)),
    ("channels.window_age_ms", Numbers(100, 3_600_000)),
    ("channels.sender", Switch),
    ("channels.confirm", Switch),
    ("channels.presence", Words(&["off", "count", "full"])),
    ("channels.join_leave", Switch),
    ("channels.presence_interval_ms", Numbers(0, 3_600_000)),
    ("channels.presence_hook", Switch),
    ("channels.members_max", Numbers(0, MEMBERS_MAX as u64)),
    ("channels.message_bytes_max", Numbers(0, 1 << 30)),
    ("channels.schema", Text("the path of a file")),
    ("channels.messages_per_second_max", Numbers(0, 1_000_000_000)),
    ("channels.messages_burst", Numbers(1, 1_000_000_000)),
    ("channels.room", Switch),
    ("channels.public", Switch),
    ("channels.moderated", Switch),
    ("channels.password", Secret("a text")),
    ("channels.password_env", Secret("the name of a variable")),
    ("channels.password_file", Text("the path of a file")),
    ("channels.speak", Words(&["anyone", "members"])),
    ("channels.only_made", Switch),
    ("permissions.who", WHO),
    ("permissions.channels", Texts("channel names, with * for any run of characters and {user}")),
    ("permissions.allow", OPERATIONS),
    ("permissions.deny", OPERATIONS),
    ("issuers.issuer", Text("what stands in the claim iss")),
    ("issuers.audience", Texts("what stands in the claim aud")),
    ("issuers.secret", Secret("a text of 32 bytes or more")),
    ("issuers.secret_env", Text("the name of a variable")),
    ("issuers.secret_file", Text("the path of a file")),
    ("issuers.secret_algorithm", Words(&["HS256", "HS384", "HS512"])),
    ("issuers.public_key_files", Texts("paths of PEM files")),
    ("issuers.jwks_url", Text("a URL such as https://example.org/.well-known/jwks.json")),
    ("issuers.jwks_algorithms", WordLists(&["RS256", "ES256", "EdDSA"])),
    ("issuers.leeway_s", Numbers(0, 60)),
    ("issuers.user_claim", Text("the name of a claim")),
    ("issuers.roles_claim", Text("the name of a claim")),
    ("issuers.claims", Texts("names of claims")),
    ("issuers.lifetime_s_max", Numbers(0, u32::MAX as u64)),
    ("api_keys.name", Text("a name")),
    ("api_keys.key", Secret("a key of visible ASCII characters")),
    ("api_keys.key_env", Secret("the name of a variable")),
    ("api_keys.key_file", Text("the path of a file")),
    ("api_keys.key_sha256", Secret("64 hexadecimal digits")),
    ("api_keys.scopes", WordLists(SCOPES)),
    ("api_keys.channels", Texts("channel names, with * for any run of characters")),
    ("databases.name", Text("a name")),
    ("databases.url", Secret("a URL such as sqlite:data.db or postgres://user@host/name")),
    ("databases.url_env", Secret("the name of a variable")),
    ("databases.url_file", Text("the path of a file")),
    ("databases.pool_max", Numbers(1, 1024)),
    ("databases.acquire_timeout_ms", TIMEOUT_MS),
    ("databases.statement_timeout_ms", TIMEOUT_MS),
    ("rpc_methods.name", Text("the name of a method, with * for any run of characters")),
    ("rpc_methods.description", Text("a text")),
    ("rpc_methods.url", HOOK_URL),
    ("rpc_methods.timeout_ms", TIMEOUT_MS),
    ("rpc_methods.allow", WHO),
    ("rpc_methods.types", Texts("types of messages")),
];

/// What `section.key` may be; `None` for a key that there is not.
pub(super) fn allowed(section: &str, key: &str) -> Option<Allowed> {
    let found = KEYS.iter().find(|(name, _)| name.split_once('.') == Some((section, key)));
    found.map(|&(_, allowed)| allowed)
}

/// `key` (or a section) as an error about an unknown one: what there is instead.
pub(super) fn unknown(section: Option<&str>) -> String {
    let mut known: Vec<&str> = match section {
        Some(section) => {
            let keys = KEYS.iter().filter_map(|(name, _)| name.split_once('.'));
            keys.filter(|(of, _)| *of == section).map(|(_, key)| key).collect()
        }
        None => KEYS.iter().filter_map(|(name, _)| Some(name.split_once('.')?.0)).collect(),
    };
    known.dedup();
    let what = if section.is_some() { "key" } else { "section" };
    format!("no such {what}; known are {}", known.join(", "))
}

impl Allowed {
    /// What is wrong with a value from a file.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        let fits = match (self, value) {
            (Numbers(from, to), Value::Integer(number)) => {
                u64::try_from(*number).is_ok_and(|number| (from..=to).contains(&number))
            }
            (Switch, Value::Boolean(_)) | (Text(_) | Secret(_), Value::String(_)) => true,
            (Words(words), Value::String(word)) => words.contains(&word.as_str()),
            (Address, Value::String(address)) => address.parse::<SocketAddr>().is_ok(),
            (Texts(_) | Secrets(_), Value::Array(items)) => items.iter().all(Value::is_str),
            (WordLists(words), Value::Array(items)) => {
                items.iter().all(|item| item.as_str().is_some_and(|word| words.contains(&word)))
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(self.to_string()) }
    }

    /// Reads a value that came as text.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Numbers(..) => text.parse().ok().map(Value::Integer),
            Switch => text.parse().ok().map(Value::Boolean),
            // As below: an unset secret must not turn into none.
            Secret(_) if text.trim().is_empty() => {
                return Err("it is empty: unset it or give one".into());
            }
            Words(_) | Address | Text(_) | Secret(_) => Some(Value::String(text.into())),
            Texts(_) | WordLists(_) | Secrets(_) => {
                // An unset secret must not turn into "no key is needed", nor a list to "any".
                if text.trim().is_empty() {
                    return Err("it is empty: unset it or give at least one".into());
                }
                Some(Value::Array(text.split(',').map(|item| item.trim().into()).collect()))
            }
        };
        let value = value.ok_or_else(|| self.to_string())?;
        self.check(&value).map(|()| value)
    }

    /// A value for people; `(secret)` where it is one.
    pub(super) fn shown(self, value: &Value) -> String {
        if self.is_secret() { "(secret)".into() } else { shown(value) }
    }

    /// Whether it is never shown.
    pub(super) fn is_secret(self) -> bool {
        matches!(self, Secret(_) | Secrets(_))
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Numbers(from, to) => write!(f, "allowed are {from} to {to}"),
            Switch => f.write_str("allowed are true and false"),
            Words(words) => write!(f, "allowed are {}", words.join(", ")),
            Address => f.write_str(
                "allowed are an IP address and a port, as in 127.0.0.1:9800 or [::1]:9800",
            ),
            WordLists(words) => write!(f, "allowed is a list of {}", words.join(", ")),
            Text(what) | Secret(what) => write!(f, "allowed is {what}"),
            Texts(what) | Secrets(what) => write!(f, "allowed is a list of {what}"),
        }
    }
}

/// Characters of a value that are worth showing.
const SHOWN_CHARACTERS_MAX: usize = 100;

/// A value without what would act on a terminal.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().take(10).map(shown).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(_) => "a table".into(),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// A name from outside without what would act on a terminal.
pub(super) fn printable(name: &str) -> String {
    name.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::merge::{default_entry, default_table, with_examples};
    use ringfeed_protocol::Dialect;

    #[test]
    fn the_list_has_the_keys_of_the_defaults_in_their_order() {
        let mut section = String::new();
        let mut names = Vec::new();
        for line in with_examples().lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_matches(['[', ']']).to_owned();
            } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#'))
            {
                names.push(format!("{section}.{key}"));
            }
        }
        assert_eq!(names, KEYS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn whatever_the_list_allows_the_types_can_hold() {
        for (name, allowed) in KEYS {
            let (section, key) = name.split_once('.').unwrap();
            let values: Vec<Value> = match *allowed {
                Numbers(from, to) => {
                    [from, to].map(|n| Value::Integer(n.try_into().unwrap())).into()
                }
                Words(words) => words.iter().map(|&word| word.into()).collect(),
                Switch => vec![true.into(), false.into()],
                Address => vec!["[::1]:1".into()],
                Text(_) | Secret(_) => vec!["x".into()],
                WordLists(words) => vec![words.to_vec().into()],
                Texts(_) | Secrets(_) => vec![Value::Array(vec!["x".into()])],
            };
            for value in values {
                allowed.check(&value).unwrap();
                let mut table = default_table();
                match table.get_mut(section).unwrap() {
                    Value::Table(keys) => keys.insert(key.into(), value.clone()),
                    Value::Array(entries) => {
                        let mut entry = default_entry(section);
                        entry.insert(key.into(), value.clone());
                        *entries = vec![entry.into()];
                        None
                    }
                    other => panic!("{other}"),
                };
                let read = Value::Table(table).try_into::<Config>();
                read.unwrap_or_else(|e| panic!("{name} = {value}: {e}"));
            }
        }
        let dialects: Vec<_> = Dialect::ALL.iter().map(|dialect| dialect.name()).collect();
        assert!(matches!(super::allowed("endpoints", "dialect"), Some(Words(w)) if w == dialects));
    }

    #[test]
    fn no_value_acts_on_the_terminal_it_is_shown_on() {
        let shown = shown(&Value::Array(vec!["\u{1b}[2J\r\n".into()]));
        assert_eq!(shown, r#"["\u{1b}[2J\r\n"]"#);
        assert!(super::shown(&"x".repeat(5000).into()).len() < 200);
    }
}
