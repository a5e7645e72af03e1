//! Configuration: `config/default.toml` overlaid by a file, the environment and flags.
//!
//! `default.toml` is embedded and is the list of keys: what it does not show is refused. Every
//! problem is reported at once, with key, value and what is allowed, before any port is opened.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use ringfeed_protocol::{Dialect, channel_name};
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

/// The embedded defaults, with comments.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

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
    pub send_buffer_bytes: u32,
    pub close_timeout_ms: u32,
    pub drain_timeout_ms: u32,
    pub drain_spread_ms: u32,
}

/// `[api]`
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Api {
    pub listen: SocketAddr,
    pub keys: Vec<Secret>,
    pub body_bytes_max: u32,
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
    pub messages_per_second_max: u32,
    pub messages_burst: u32,
    pub subscriptions_per_connection_max: u32,
    pub channels_max: u32,
    pub outbox_bytes_max: u32,
    pub history_reply_max: u32,
    pub recovery_bytes_max: u32,
    pub cross_shard_bytes_max: u32,
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
    pub history_age_ms: u32,
    pub lag_policy: LagPolicy,
    pub window_bytes: u32,
    pub window_age_ms: u32,
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
    Dialect::from_name(&name).ok_or_else(|| {
        let allowed: Vec<_> = Dialect::ALL.iter().map(|d| d.name()).collect();
        serde::de::Error::custom(format!("allowed are {}", allowed.join(", ")))
    })
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Where the parts of a configuration come from.
#[derive(Debug, Default, Clone)]
pub struct Sources<'a> {
    /// A TOML file.
    pub file: Option<&'a Path>,
    /// `(name, value)` of the environment; names not beginning with `RINGFEED_` are ignored.
    pub environment: Vec<(String, String)>,
    /// `section.key=value` from the command line, strongest last.
    pub flags: Vec<String>,
}

impl Config {
    /// Reads, merges and validates.
    pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
        let defaults = default_table();
        let mut errors = Vec::new();
        let mut merged = defaults.clone();
        if let Some(path) = sources.file {
            match read_file(path) {
                Ok(table) => overlay_file(&mut merged, &defaults, table, &mut errors),
                Err(e) => return Err(ConfigErrors(vec![e])),
            }
        }
        for (name, value) in &sources.environment {
            if let Some(path) = name.strip_prefix("RINGFEED_") {
                let Some((section, key)) = path.split_once("__") else {
                    // Other programs have variables, too; but one that begins like a section is a
                    // key with an underscore too few.
                    let begins = |section: &String| {
                        let rest = path.to_lowercase();
                        rest.strip_prefix(section.as_str()).is_some_and(|r| r.starts_with('_'))
                    };
                    if defaults.keys().any(begins) && !NOT_CONFIG.contains(&name.as_str()) {
                        errors.push(format!(
                            "{name}: allowed are names of the form RINGFEED_SECTION__KEY"
                        ));
                    }
                    continue;
                };
                let key = (section.to_lowercase(), key.to_lowercase());
                overlay_text(&mut merged, &defaults, name, key, value, &mut errors);
            }
        }
        for flag in &sources.flags {
            let parsed = flag.split_once('=').and_then(|(path, value)| {
                let (section, key) = path.trim().split_once('.')?;
                Some(((section.to_owned(), key.to_owned()), value.trim()))
            });
            match parsed {
                Some((key, value)) => {
                    let label = format!("--set {flag}");
                    overlay_text(&mut merged, &defaults, &label, key, value, &mut errors);
                }
                None => errors.push(format!("--set {flag}: allowed is section.key=value")),
            }
        }
        // What was wrong is not in `merged`, so the rest can be validated all the same.
        match Value::Table(merged).try_into::<Config>() {
            Ok(config) => {
                config.validate(&mut errors);
                if errors.is_empty() {
                    return Ok(config);
                }
            }
            Err(e) => errors.push(e.message().to_owned()),
        }
        Err(ConfigErrors(errors))
    }

    /// What the types cannot say.
    fn validate(&self, errors: &mut Vec<String>) {
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

    /// The first rule whose pattern matches, and its number.
    pub fn rule(&self, channel: &str) -> Option<(u16, &ChannelRule)> {
        let numbered = (0u16..).zip(&self.channels);
        numbered.into_iter().find(|(_, rule)| matches(&rule.pattern, channel))
    }
}

/// Environment names that begin with `RINGFEED_` and are read elsewhere.
const NOT_CONFIG: [&str; 1] = ["RINGFEED_API_KEY"];

/// Whether `*` wildcards in `pattern` can be filled in to give `name`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(tail)
}

fn default_table() -> Table {
    DEFAULT_TOML.parse().expect("the embedded defaults are valid TOML")
}

fn read_file(path: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    text.parse::<Table>().map_err(|e| format!("{}: {e}", path.display()))
}

/// Overlays a file key by key, so that each wrong key is told and the others are still looked at.
fn overlay_file(merged: &mut Table, defaults: &Table, file: Table, errors: &mut Vec<String>) {
    for (section, value) in file {
        match (defaults.get(&section), value) {
            (Some(Value::Table(known)), Value::Table(given)) => {
                for (key, value) in given {
                    let label = format!("{section}.{key} = {}", shown(&key, &value));
                    if !known.contains_key(&key) {
                        errors.push(unknown(&label, known));
                        continue;
                    }
                    let mut trial = defaults.clone();
                    set(&mut trial, &section, &key, value.clone());
                    if check(trial, &label, errors) {
                        set(merged, &section, &key, value);
                    }
                }
            }
            (Some(Value::Array(known)), Value::Array(given)) => {
                let template = known.first().and_then(Value::as_table).cloned().unwrap_or_default();
                let mut filled = Vec::new();
                for (i, entry) in given.into_iter().enumerate() {
                    let label = format!("{section}[{i}]");
                    filled.push(fill_entry(&section, &label, &template, entry, defaults, errors));
                }
                merged.insert(section, Value::Array(filled));
            }
            (Some(Value::Array(_)), _) => {
                errors.push(format!("{section}: must be written as [[{section}]]"));
            }
            (Some(_), _) => errors.push(format!("{section}: must be a section, [{section}]")),
            (None, _) => errors.push(unknown(&section, defaults)),
        }
    }
}

/// One entry of `[[channels]]` or `[[endpoints]]`: keys left out take the template's values.
fn fill_entry(
    section: &str,
    label: &str,
    template: &Table,
    entry: Value,
    defaults: &Table,
    errors: &mut Vec<String>,
) -> Value {
    let Value::Table(given) = entry else {
        errors.push(format!("{label}: must be written as [[{section}]]"));
        return Value::Table(template.clone());
    };
    let named = if section == "channels" { "pattern" } else { "path" };
    if !given.contains_key(named) {
        errors.push(format!("{label}.{named} is missing"));
    }
    let mut filled = template.clone();
    for (key, value) in given {
        let label = format!("{label}.{key} = {value}");
        if !template.contains_key(&key) {
            errors.push(unknown(&label, template));
            continue;
        }
        let mut one = template.clone();
        one.insert(key.clone(), value.clone());
        let mut trial = defaults.clone();
        trial.insert(section.to_owned(), Value::Array(vec![Value::Table(one)]));
        if check(trial, &label, errors) {
            filled.insert(key, value);
        }
    }
    Value::Table(filled)
}

/// Overlays a value that came as text, read as the default's type.
fn overlay_text(
    merged: &mut Table,
    defaults: &Table,
    label: &str,
    (section, key): (String, String),
    text: &str,
    errors: &mut Vec<String>,
) {
    let Some(Value::Table(known)) = defaults.get(&section) else {
        errors.push(if defaults.contains_key(&section) {
            format!("{label}: [[{section}]] can only be set in a file")
        } else {
            unknown(label, defaults)
        });
        return;
    };
    let value = match known.get(&key) {
        None => return errors.push(unknown(label, known)),
        Some(Value::Integer(_)) => text.parse().map(Value::Integer).map_err(|_| "a whole number"),
        Some(Value::Boolean(_)) => text.parse().map(Value::Boolean).map_err(|_| "true or false"),
        Some(Value::Array(_)) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.into())).collect()))
        }
        Some(_) => Ok(Value::String(text.to_owned())),
    };
    match value {
        Err(allowed) => errors.push(format!("{label}: allowed is {allowed}")),
        Ok(value) => {
            let mut trial = defaults.clone();
            set(&mut trial, &section, &key, value.clone());
            if check(trial, label, errors) {
                set(merged, &section, &key, value);
            }
        }
    }
}

/// Whether the defaults with one key changed still have the right types.
fn check(trial: Table, label: &str, errors: &mut Vec<String>) -> bool {
    match Value::Table(trial).try_into::<Config>() {
        Ok(_) => true,
        Err(e) => {
            errors.push(format!("{label}: {}", e.message().trim()));
            false
        }
    }
}

fn set(table: &mut Table, section: &str, key: &str, value: Value) {
    if let Some(Value::Table(section)) = table.get_mut(section) {
        section.insert(key.to_owned(), value);
    }
}

fn unknown(label: &str, known: &Table) -> String {
    let keys: Vec<&str> = known.keys().map(String::as_str).collect();
    format!("{label}: no such key; known are {}", keys.join(", "))
}

/// A value for an error message; keys stay secret.
fn shown(key: &str, value: &Value) -> String {
    if key == "keys" { "(secret)".into() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        let sources = Sources {
            file: Some(&path),
            environment: environment.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
            flags: flags.iter().map(|&f| f.into()).collect(),
        };
        Config::load(&sources).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_and_the_bench_config_are_valid() {
        Config::load(&Sources::default()).unwrap();
        let bench = load(include_str!("../../config/bench.toml"), &[], &[]).unwrap();
        assert_eq!(bench.rule("bench.a").unwrap().1.publish, Publishers::Anyone);
        assert_eq!(bench.rule("other").unwrap().1.publish, Publishers::Api);
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = "[server]\nshards = 1\nbacklog = 1\nlisten = \"127.0.0.1:1\"";
        let environment = [("RINGFEED_SERVER__SHARDS", "2"), ("RINGFEED_SERVER__BACKLOG", "2")];
        let config = load(file, &environment, &["server.shards=3"]).unwrap();
        assert_eq!((config.server.shards, config.server.backlog), (3, 2));
        assert_eq!(config.server.listen.port(), 1);
    }

    #[test]
    fn every_problem_is_reported_at_once_with_key_value_and_what_is_allowed() {
        let file = "[server]\nshard = 1\nbacklog = \"x\"\nlisten = \"nowhere\"\n[sever]\na = 1\n\
                    [[channels]]\npattern = \"*\"\nlag_policy = \"drop\"\n[[endpoints]]\n\
                    path = \"/a\"\ndialect = \"klingon\"\n[api]\nkeys = [\"hush\", 7]";
        let flags = [
            "limits.message_bytes_max=many",
            "limits.outbox_bytes_max=1",
            "a.b",
            "channels.pattern=x",
        ];
        let environment =
            [("RINGFEED_SERVER__PIN", "maybe"), ("RINGFEED_SERVER_PORT", "1"), ("RINGFEED_X", "1")];
        let errors = load(file, &environment, &flags).unwrap_err();
        assert!(errors.contains("RINGFEED_SERVER_PORT: allowed are names of the form"));
        assert!(!errors.contains("RINGFEED_X"));
        for part in [
            "server.shard = 1: no such key; known are backlog, ",
            "server.backlog = \"x\": invalid type",
            "server.listen = \"nowhere\": invalid socket address",
            "sever: no such key",
            "channels[0].lag_policy = \"drop\": unknown variant `drop`, expected `gap` or",
            "endpoints[0].dialect = \"klingon\": allowed are ringfeed.v1, raw.v1, echo",
            "api.keys = (secret): invalid type",
            "RINGFEED_SERVER__PIN: allowed is true or false",
            "limits.message_bytes_max=many: allowed is a whole number",
            "limits.outbox_bytes_max = 1: allowed are 1024 to",
            "--set a.b: allowed is section.key=value",
            "[[channels]] can only be set in a file",
        ] {
            assert!(errors.contains(part), "{part:?} is not in:\n{errors}");
        }
        assert!(!errors.contains("hush"));
    }

    #[test]
    fn beyond_loopback_nothing_is_open_by_accident() {
        let errors = load("", &[], &["server.listen=0.0.0.0:1", "api.listen=0.0.0.0:2"]);
        let errors = errors.unwrap_err();
        assert!(errors.contains("auth.anonymous = true") && errors.contains("api.keys must hold"));
        let flags = ["server.listen=0.0.0.0:1", "auth.anonymous=true"];
        load("", &[], &flags).unwrap();
    }

    #[test]
    fn ranges_are_checked() {
        let errors = load("", &[], &["limits.message_bytes_max=5", "server.shards=999"]);
        let errors = errors.unwrap_err();
        assert!(errors.contains("limits.message_bytes_max = 5: allowed are 125 to"), "{errors}");
        assert!(errors.contains("server.shards = 999: allowed are 0 to 256"), "{errors}");
    }

    #[test]
    fn patterns_match_as_wildcards_do() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("bench.*", "bench.x", true),
            ("bench.*", "bench", false),
            ("*@trade", "btc@trade", true),
            ("*@trade", "btc@trades", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("exact", "exact", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
