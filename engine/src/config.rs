//! Configuration: `config/default.toml` overlaid by a file, the environment and flags.
//!
//! `default.toml` is embedded and is the list of keys: what it does not show is refused. Every
//! problem is reported at once, with key, value and what is allowed, before any port is opened.

mod access;
mod api_keys;
mod cluster;
mod content;
mod drop;
mod fetched;
pub(crate) mod file;
mod fixed;
mod hooks;
mod keys;
mod merge;
mod node;
mod redis;
mod redis_channels;
mod reference;
mod rooms;
mod rpc;
pub(crate) mod rules;
mod schema;
mod secrets;
mod validate;
mod wsnode;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use toml::{Table, Value};

pub(crate) use fetched::{check_beside, check_rule};
pub use redis::{check_redis_prefix, redis_connection};
pub use reference::reference;
pub(crate) use rooms::{MEMBERS_MAX, PASSWORD_BYTES_MAX};
pub(crate) use rpc::{check_method, wrong_who};
pub(crate) use rules::matches;
pub use schema::{
    Api, ApiKey, Auth, ChannelRule, Cluster, Config, ConnectMethod, Database, Direction,
    Distribution, Endpoint, FileDrop, ForeignFormat, ForwardedHeader, Heartbeat, HookUrl, Hooks,
    HttpRoutes, IoChoice, Issuer, KeyAlgorithm, LagPolicy, Level, Limits, Log, OnFailure,
    Permission, Presence, ProxyProtocol, Publishers, Redis, RedisChannel, Rpc, RpcMethod, Scope,
    Secret, SecretAlgorithm, Server, Speakers, Subscribers, TokenPlace,
};

/// The embedded defaults, with comments.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Where the parts of a configuration come from.
#[derive(Default, Clone)]
pub struct Sources<'a> {
    /// A TOML file.
    pub file: Option<&'a Path>,
    /// `(name, value)` of the environment; names not beginning with `RINGFEED_` are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// `section.key=value` from the command line, strongest last.
    pub flags: Vec<String>,
}

impl Sources<'_> {
    /// The defaults, overlaid by everything that could be read.
    fn merge(&self, errors: &mut Vec<String>) -> Table {
        let mut merged = merge::default_table();
        match self.file.map(merge::File::read) {
            Some(Ok(file)) => file.overlay(&mut merged, errors),
            Some(Err(why)) => errors.extend(why),
            None => {}
        }
        for (name, value) in &self.environment {
            merge::overlay_variable(&mut merged, name, value, errors);
        }
        for flag in &self.flags {
            merge::overlay_flag(&mut merged, flag, errors);
        }
        merged
    }

    /// `server.listen` as these sources have it, whatever else is wrong with them.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.merge(&mut Vec::new()).get("server")?.get("listen")?.as_str()?.parse().ok()
    }

    /// Names of variables that look as if they were for ringfeed and that nothing reads.
    pub fn strays(&self) -> Vec<String> {
        let merged = self.merge(&mut Vec::new());
        let strays = self
            .environment
            .iter()
            .filter(|(name, _)| merge::is_stray(name) && !secrets::names_variable(&merged, name));
        strays.map(|(name, _)| name.to_string_lossy().escape_debug().to_string()).collect()
    }
}

impl fmt::Debug for Sources<'_> {
    /// Without what is in variables and flags, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Config {
    /// Reads, merges and validates. Every secret that the configuration leads to is in it then.
    pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
        Config::load_with(sources, |_| {})
    }

    /// The same while another one holds: what cannot change stays, and the rest must go with it. Returns also the keys
    /// that would have changed.
    pub fn load_over(
        sources: &Sources,
        holds: &Config,
    ) -> Result<(Config, Vec<&'static str>), ConfigErrors> {
        let mut fixed = Vec::new();
        let config = Config::load_with(sources, |config| fixed = config.keep_fixed(holds))?;
        Ok((config, fixed))
    }

    /// `change` comes before anything is looked at as a whole: what would be safe on loopback may not be where the server
    /// listens.
    fn load_with(
        sources: &Sources,
        change: impl FnOnce(&mut Config),
    ) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let merged = sources.merge(&mut errors);
        // What was wrong is not in `merged`, so the rest can be validated all the same.
        match Value::Table(merged).try_into::<Config>() {
            Ok(mut config) => {
                node::name(&mut config.server);
                change(&mut config);
                config.find_secrets(&sources.environment, &mut errors);
                config.validate(&mut errors);
                config.read_api_keys(&mut errors);
                config.read_rooms();
                config.read_contents(&mut errors);
                if errors.is_empty() {
                    return Ok(config);
                }
            }
            Err(e) => errors.push(e.message().to_owned()),
        }
        Err(ConfigErrors(errors))
    }
}

/// Whether the value of a key, `section.key`, is secret.
pub fn is_secret(path: &str) -> bool {
    let allowed = path.split_once('.').and_then(|(section, key)| keys::allowed(section, key));
    allowed.is_some_and(keys::Allowed::is_secret)
}

/// What the defaults show as the example of an issuer: the values that an entry takes which says nothing.
pub(crate) fn example_issuers() -> Vec<Issuer> {
    let example = Value::Table(merge::default_entry("issuers"));
    example.try_into().ok().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, String> {
        let environment = environment.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        load_from(file, environment, flags)
    }

    /// A configuration with one rule more, for channels named `r.*`.
    pub(super) fn load_rule(rule: &str) -> Result<Config, String> {
        load(&format!("[[channels]]\npattern = \"r.*\"\n{rule}"), &[], &[])
    }

    fn load_from(
        file: &str,
        environment: Vec<(OsString, OsString)>,
        flags: &[&str],
    ) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        let flags = flags.iter().map(|&f| f.into()).collect();
        Config::load(&Sources { file: Some(&path), environment, flags }).map_err(|e| e.to_string())
    }

    /// Each part must be in what is wrong with a configuration.
    #[track_caller]
    fn refused(file: &str, environment: &[(&str, &str)], flags: &[&str], parts: &[&str]) -> String {
        let errors = load(file, environment, flags).unwrap_err();
        for part in parts {
            assert!(errors.contains(part), "{part:?} is not in:\n{errors}");
        }
        errors
    }

    #[test]
    fn the_defaults_and_the_bench_config_are_valid() {
        Config::load(&Sources::default()).unwrap();
        let bench = load(include_str!("../../config/bench.toml"), &[], &[]).unwrap();
        assert_eq!(bench.rule("bench.a").unwrap().publish, Publishers::Anyone);
        assert_eq!(bench.rule("other").unwrap().publish, Publishers::Api);
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
    fn every_problem_is_reported_at_once_with_place_value_and_what_is_allowed() {
        let file = "[server]\nshard = 1\nbacklog = \"x\"\nlisten = \"nowhere\"\n[sever]\na = 1\n\
                    [[channels]]\npattern = \"*\"\nlag_policy = \"drop\"\n[[channels]]\npublish = 1\n\
                    [[endpoints]]\npath = \"/a\"\ndialect = \"klingon\"\n[api]\nkeys = [\"hush\", 7]\n\
                    [log]\n[limits]\nmessages_burst = 0\n";
        let flags = [
            "limits.message_bytes_max=many",
            "limits.outbox_bytes_max=1",
            "a.b",
            "channels.pattern=x",
        ];
        let environment = [("RINGFEED_SERVER__PIN", "maybe"), ("RINGFEED_SERVER_SHARDS", "1")];
        let parts = [
            "c.toml:2: server.shard: no such key; known are listen, io, ",
            "c.toml:3: server.backlog = \"x\": allowed are 1 to 1048576",
            "c.toml:4: server.listen = \"nowhere\": allowed are an IP address and a port, as in 127.0.0.1:9800",
            "c.toml:5: sever: no such section; known are server, api, ",
            "c.toml:9: channels[0].lag_policy = \"drop\": allowed are gap, disconnect",
            "c.toml:10: channels[1]: pattern is missing",
            "c.toml:11: channels[1].publish = 1: allowed are anyone, users, hook, api",
            "c.toml:14: endpoints[0].dialect = \"klingon\": allowed are ringfeed.v1, raw.v1, echo, portico, rooms, fluxus, wsnode, cadsock",
            "c.toml:16: api.keys = (secret): allowed is a list of keys",
            "c.toml:19: limits.messages_burst = 0: allowed are 1 to",
            "RINGFEED_SERVER__PIN = \"maybe\": allowed are true and false",
            "RINGFEED_SERVER_SHARDS: allowed are names of the form RINGFEED_SECTION__KEY",
            "--set limits.message_bytes_max = \"many\": allowed are 125 to 1073741824",
            "--set limits.outbox_bytes_max = \"1\": allowed are 4096 to",
            "--set a.b: allowed is SECTION.KEY=VALUE",
            "--set channels.pattern: [[channels]] can only be set in a file",
        ];
        let errors = refused(file, &environment, &flags, &parts);
        assert_eq!(errors.lines().count(), parts.len(), "{errors}");
        assert!(!errors.contains("hush"));
    }

    #[test]
    fn text_that_is_not_toml_is_refused_with_its_lines_and_not_shown() {
        let errors =
            refused("[api]\nkeys = [\"hush\"\n[server]\nshards 2\n", &[], &[], &["c.toml:"]);
        assert!(errors.lines().count() > 1 && !errors.contains("hush"), "{errors}");
        assert!(errors.lines().all(|line| line.contains("c.toml:")), "{errors}");
    }

    #[test]
    fn a_type_error_names_the_range() {
        let file =
            "[server]\nshards = -1\nbacklog = 99999999999\n[heartbeat]\ninterval_ms = 4294967295";
        let parts = [
            "server.shards = -1: allowed are 0 to 256",
            "server.backlog = 99999999999: allowed are 1 to 1048576",
            "heartbeat.interval_ms = 4294967295: allowed are 0 to 3600000",
            "--set server.shards = \"-1\": allowed are 0 to 256",
        ];
        refused(file, &[], &["server.shards=-1"], &parts);
    }

    #[test]
    fn no_secret_is_shown_whatever_is_wrong_with_it() {
        let file = "[api]\nkeys = \"hush\"\nkey = \"hush\"\n[[channels]]\npattern = \"*\"\npasswort = \"hush\"\n\
                    [[endpoints]]\npath = \"/a\"\ntoken = { of = \"hush\" }\n[hush]\na = \"hush\"\n";
        let environment = [
            ("RINGFEED_API__KEY", "hush"),
            ("RINGFEED_APIS__KEYS", "hush"),
            ("RINGFEED_API__KEYS", "hu sh,"),
        ];
        let flags =
            ["api.kes=hush", "apikeys=hush", "api.keys=", "nothing.at=hush", "api.keys=,hush"];
        let errors = refused(
            file,
            &environment,
            &flags,
            &["api.keys = (secret)", "channels[0].passwort: no such"],
        );
        assert!(!errors.replace(": hush: no such section", "").contains("hush"), "{errors}");
        assert!(!errors.contains("hu sh"), "{errors}");
    }

    #[test]
    fn keys_that_protect_nothing_are_refused() {
        let empty = "RINGFEED_API__KEYS = (secret): it is empty: unset it or give";
        refused("", &[("RINGFEED_API__KEYS", "")], &[], &[empty]);
        refused("", &[("RINGFEED_API__KEYS", " ")], &[], &[empty]);
        refused("", &[("RINGFEED_API__KEYS", "a,,b")], &[], &["api.keys[1]: an empty key"]);
        let spaces = "[api]\nkeys = [\"  \", \" a\", \"b\\u007f\", \"k\u{e9}\"]";
        let visible = [
            "api.keys[0]: an empty",
            "api.keys[1]: allowed are visible",
            "keys[2]: allowed",
            "keys[3]: allowed",
        ];
        refused(spaces, &[], &[], &visible);
        let short = "[api]\nlisten = \"0.0.0.0:9801\"\nkeys = [\"0123456789abcde\"]";
        refused(short, &[], &[], &["api.keys[0]: beyond loopback", "at least 16 characters"]);
        load("[api]\nlisten = \"0.0.0.0:9801\"\nkeys = [\"0123456789abcdef\"]", &[], &[]).unwrap();
        let spaced = load("", &[("RINGFEED_API__KEYS", "a, b")], &[]).unwrap();
        let callers = spaced.callers;
        assert!(callers.find(b"a").is_some() && callers.find(b"b").is_some());
        assert!(spaced.api.keys.is_empty() && callers.find(b" b").is_none(), "hashes alone stay");
        refused("", &[("RINGFEED_API__KEYS", "a,b,a")], &[], &["api.keys[0] and api.keys[2] have"]);
    }

    #[test]
    fn api_keys_are_read_from_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "of-a-file\n").unwrap();
        let sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        let file = format!(
            "[[api_keys]]\nname = \"a\"\nkey = \"itself\"\nscopes = [\"all\"]\n\
             [[api_keys]]\nname = \"b\"\nkey_env = \"THE_KEY\"\nscopes = [\"publish\", \"stats\"]\n\
             [[api_keys]]\nname = \"c\"\nkey_file = {path:?}\nscopes = [\"history\"]\nchannels = [\"x.*\"]\n\
             [[api_keys]]\nname = \"d\"\nkey_sha256 = \"{sha256}\"\nscopes = [\"metrics\"]\n"
        );
        let config = load(&file, &[("THE_KEY", "of-environment")], &["api.keys=listed"]).unwrap();
        let keys = ["listed", "itself", "of-environment", "of-a-file", "foo"];
        for (key, name) in keys.into_iter().zip(["api.keys[0]", "a", "b", "c", "d"]) {
            assert_eq!(config.callers.find(key.as_bytes()).unwrap().1.name, name);
            assert!(!format!("{config:?}").contains(key), "{key}");
        }
        let (_, caller) = config.callers.find(b"of-a-file").unwrap();
        assert!(caller.may(Scope::History) && !caller.may(Scope::Publish) && !caller.may_use("y"));
        assert!(
            Config::load(&Sources::default()).unwrap().callers.is_empty(),
            "a template is no key"
        );
        assert!(load(DEFAULT_TOML, &[], &[]).unwrap().callers.is_empty(), "nor is it in a file");
    }

    #[test]
    fn api_keys_that_protect_nothing_are_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let empty = path("empty", b"\n");
        let binary = path("binary", b"hush\xff");
        let long = path("long", &[b'h'; 5000]);
        let section =
            |keys: &str| format!("[[api_keys]]\nname = \"a\"\nscopes = [\"all\"]\n{keys}\n");
        let environment = [("EMPTY", ""), ("SPACES", "hu sh")];
        for (keys, part) in [
            ("", "api_keys[0]: exactly one of key, key_env, key_file and key_sha256 is needed"),
            ("key = \"hush\"\nkey_env = \"EMPTY\"", "api_keys[0]: allowed is one of"),
            ("key = \"hush\"\nkey_sha256 = \"hush\"", "api_keys[0]: exactly one of"),
            ("key = \" \"", "api_keys[0].key: an empty key"),
            ("key = 7", "api_keys[0].key = (secret): allowed is"),
            ("key_env = \"hush\"", "api_keys[0].key_env: the environment has no such variable"),
            ("key_env = \"EMPTY\"", "api_keys[0].key_env: it is empty"),
            ("key_env = \"SPACES\"", "api_keys[0].key: allowed are visible"),
            ("key_sha256 = \"hush\"", "api_keys[0].key_sha256: allowed are 64 hexadecimal digits"),
            (
                "key_sha256 = \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
                "api_keys[0].key_sha256: it is that of an empty key",
            ),
            ("key_file = \"/no/such/file\"", "api_keys[0].key_file: /no/such/file: No such file"),
            (&format!("key_file = {empty:?}"), "/empty: it is empty"),
            (&format!("key_file = {binary:?}"), "api_keys[0].key: allowed are visible"),
            (&format!("key_file = {long:?}"), "/long: it has more than 4096 bytes"),
        ] {
            let errors = refused(&section(keys), &environment, &[], &[part]);
            assert!(!errors.contains("hush") && !errors.contains("hu sh"), "{errors}");
        }
        let wrong = "[[api_keys]]\nname = \"a b\"\nkey = \"k\"\nchannels = [\"\", \"a b\"]\n\
                     [[api_keys]]\nname = \"c\"\nkey = \"k\"\nscopes = [\"fly\"]\nchannels = []\n\
                     [[api_keys]]\nname = \"c\"\nkey = \"l\"\nscopes = [\"all\"]\n[[api_keys]]\nkey = \"m\"\n";
        let parts = [
            "api_keys[0].name = \"a b\": allowed are 1 to 64",
            "api_keys[0].scopes: at least one",
            "api_keys[0].channels: \"\": it matches no name",
            "api_keys[0].channels: \"a b\": it matches no name",
            "api_keys[1].scopes = [\"fly\"]: allowed is a list of publish, history",
            "api_keys[1].channels: at least one",
            "a b and c have the same key",
            "api_keys[2].name = \"c\": it is in use already",
            "api_keys[3]: name is missing",
        ];
        refused(wrong, &[], &["api_keys.name=x"], &parts);
        let short = section("key = \"0123456789abcde\"");
        refused(&short, &[], &["api.listen=0.0.0.0:1"], &["api_keys[0].key: beyond loopback"]);
        load(&section("key = \"0123456789abcdef\""), &[], &["api.listen=0.0.0.0:1"]).unwrap();
    }

    #[test]
    fn variables_that_are_not_utf8_matter_if_they_are_ours() {
        use std::os::unix::ffi::OsStringExt as _;
        let bytes = |text: &[u8]| OsString::from_vec(text.to_vec());
        let load =
            |name: &[u8], value: &[u8]| load_from("", vec![(bytes(name), bytes(value))], &[]);
        load(b"LESS\xff", b"\xff").unwrap();
        load(b"RINGFEED_FOO", b"\xff").unwrap();
        let value = load(b"RINGFEED_SERVER__SHARDS", b"\xff").unwrap_err();
        assert!(value.contains("RINGFEED_SERVER__SHARDS: its value is not UTF-8"), "{value}");
        let name = load(b"RINGFEED_SERVER__SH\xffRDS", b"1").unwrap_err();
        assert!(name.contains("its name is not UTF-8"), "{name}");
    }

    #[test]
    fn variables_that_look_like_ours_and_mean_nothing_are_named() {
        let names = ["RINGFEED_FOO", "RINGFEED_API_KEY", "RINGFEED_SERVER__SHARDS", "HOME"];
        let environment = names.map(|name| (name.into(), "2".into())).to_vec();
        let sources = Sources { environment, ..Sources::default() };
        assert_eq!(sources.strays(), ["RINGFEED_FOO"]);
        assert_eq!(Config::load(&sources).unwrap().server.shards, 2);
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_with_our_name_does_not_stop_the_start() {
        let names = [
            "RINGFEED_API_SERVICE_HOST",
            "RINGFEED_API_SERVICE_PORT",
            "RINGFEED_API_SERVICE_PORT_HTTP",
            "RINGFEED_API_PORT",
            "RINGFEED_API_PORT_9801_TCP",
            "RINGFEED_API_PORT_9801_TCP_ADDR",
            "RINGFEED_SERVER_PORT",
        ];
        let environment = names.map(|name| (name.into(), "tcp://10.0.0.1:9801".into())).to_vec();
        let sources = Sources { environment, ..Sources::default() };
        Config::load(&sources).unwrap();
        assert_eq!(sources.strays(), names);
    }

    #[test]
    fn where_it_listens_is_known_whatever_else_is_wrong() {
        let flags = vec!["server.listen=0.0.0.0:1".into(), "no.such=key".into()];
        let sources = Sources { flags, ..Sources::default() };
        assert_eq!(sources.listen(), "0.0.0.0:1".parse().ok());
    }

    #[test]
    fn beyond_loopback_nothing_is_open_by_accident() {
        let flags = ["server.listen=0.0.0.0:1", "api.listen=0.0.0.0:2"];
        refused("", &[], &flags, &["auth.anonymous = true", "api.keys must hold"]);
        let flags = ["server.listen=0.0.0.0:1", "auth.anonymous=true"];
        load("", &[], &flags).unwrap();
    }

    #[test]
    fn two_ports_in_one_are_refused() {
        let flags = |public: &str, internal: &str| {
            [
                format!("server.listen={public}"),
                format!("api.listen={internal}"),
                "auth.anonymous=true".into(),
                "api.keys=0123456789abcdef".into(),
            ]
        };
        for (public, internal) in [
            ("0.0.0.0:9801", "127.0.0.1:9801"),
            ("[::]:9801", "127.0.0.1:9801"),
            ("127.0.0.1:9801", "[::]:9801"),
            ("[::]:9801", "[::1]:9801"),
            ("[::ffff:127.0.0.1]:9801", "127.0.0.1:9801"),
        ] {
            let part =
                format!("api.listen = {internal}: server.listen = {public} has the same port");
            refused("", &[], &flags(public, internal).each_ref().map(|f| &**f), &[&part]);
        }
        for (public, internal) in [
            ("0.0.0.0:9801", "[::1]:9801"),
            ("[::]:9800", "127.0.0.1:9801"),
            ("[::1]:9801", "127.0.0.1:9801"),
            ("[::]:0", "127.0.0.1:0"),
        ] {
            load("", &[], &flags(public, internal).each_ref().map(|f| &**f)).unwrap();
        }
    }

    #[test]
    fn endpoints_are_numbered_in_a_byte() {
        let endpoints = |count: usize| -> String {
            (0..count).map(|i| format!("[[endpoints]]\npath = \"/e{i}\"\n")).collect()
        };
        refused(&endpoints(256), &[], &[], &["endpoints: there are 256; allowed are 1 to 255"]);
        assert_eq!(load(&endpoints(255), &[], &[]).unwrap().endpoints.len(), 255);
        refused("endpoints = []", &[], &[], &["endpoints: there are 0; allowed are 1 to 255"]);
    }

    #[test]
    fn paths_and_prefixes_that_no_client_can_use_are_refused() {
        for path in
            ["", "ws", "/a b", "/a%20b", "/a\\nb", "/a\\u001b[2J", "/\u{e9}", "/a?b", "/health"]
        {
            let file = format!("[[endpoints]]\npath = \"{path}\"");
            let errors = refused(&file, &[], &[], &["endpoints[0].path = "]);
            assert!(!errors.contains('\u{1b}') && errors.lines().count() == 1, "{errors:?}");
        }
        let twice = "[[endpoints]]\npath = \"/a\"\n[[endpoints]]\npath = \"/a\"";
        refused(twice, &[], &[], &["endpoints[1].path = \"/a\": it is in use already"]);
        let anywhere = "[[endpoints]]\npath = \"*\"\n[[endpoints]]\npath = \"*\"\n";
        refused(anywhere, &[], &[], &["endpoints[1].path = \"*\": it is in use already"]);
        let prefix = |bytes| {
            format!("[[endpoints]]\npath = \"/\"\nchannel_prefix = \"{}\"", "p".repeat(bytes))
        };
        refused(&prefix(255), &[], &[], &["it has 255 bytes, which leaves none for a name"]);
        load(&prefix(254), &[], &[]).unwrap();
        refused(&prefix(1), &[], &["server.demo_page=true"], &["path = \"/\": it is in use"]);
    }

    #[test]
    fn rules_that_never_hold_are_refused() {
        let rules = |patterns: &[&str]| -> String {
            patterns
                .iter()
                .map(|pattern| format!("[[channels]]\npattern = \"{pattern}\"\n"))
                .collect()
        };
        let parts =
            ["channels[1].pattern = \"a.*\": it is never reached: channels[0].pattern = \"*\""];
        refused(&rules(&["*", "a.*"]), &[], &[], &parts);
        for (first, second) in [("a", "a"), ("a*", "ab*c"), ("*b*", "a*b"), ("a**", "a*")] {
            refused(&rules(&[first, second]), &[], &[], &["channels[1].pattern = "]);
        }
        load(&rules(&["a*b", "a*", "*b", "*"]), &[], &[]).unwrap();
        for never in ["", "a b", "a\\u0007*"] {
            refused(&rules(&[never]), &[], &[], &["channels[0].pattern = ", "it matches no name"]);
        }
    }

    #[test]
    fn bounds_that_contradict_each_other_are_refused() {
        for (flags, part) in [
            (
                ["limits.message_bytes_max=1073741824", "auth.anonymous=true"],
                "limits.partial_bytes_max = 67108864: it must be at least limits.message_bytes_max",
            ),
            (
                ["limits.outbox_bytes_max=1073741824", "auth.anonymous=true"],
                "limits.outboxes_bytes_max = 67108864: it must be at least limits.outbox_bytes_max",
            ),
            (
                ["api.body_bytes_max=1073741824", "auth.anonymous=true"],
                "api.bodies_bytes_max = 67108864: it must be at least api.body_bytes_max",
            ),
            (
                ["limits.parked_bytes_max=1048576", "auth.anonymous=true"],
                "limits.parked_bytes_max = 1048576: it must be at least api.body_bytes_max",
            ),
            (
                ["heartbeat.interval_ms=1", "auth.anonymous=true"],
                "heartbeat.interval_ms = 1: allowed are 100 to 3600000, and 0",
            ),
            (
                ["limits.idle_timeout_ms=99", "auth.anonymous=true"],
                "limits.idle_timeout_ms = 99: allowed are 100 to 86400000, and 0",
            ),
        ] {
            refused("", &[], &flags, &[part]);
        }
        let echo = "[[endpoints]]\npath = \"/e\"\ndialect = \"echo\"";
        let flags = ["limits.outbox_bytes_max=65536"];
        let errors = refused(
            echo,
            &[],
            &flags,
            &["an echo of limits.message_bytes_max = 65536 does not fit"],
        );
        let least = errors.rsplit(' ').next().unwrap();
        load(echo, &[], &[&format!("limits.outbox_bytes_max={least}")]).unwrap();
    }

    #[test]
    fn the_defaults_leave_each_shard_enough() {
        let config = Config::load(&Sources::default()).unwrap();
        for shards in 0..=256 {
            config.check_shares(shards).unwrap();
        }
    }

    #[test]
    fn a_part_of_a_limit_that_lets_nothing_through_is_refused() {
        let message = ["limits.message_bytes_max=131072", "limits.partial_bytes_max=1048576"];
        let config = load("", &[], &message).unwrap();
        config.check_shares(8).unwrap();
        let told = config.check_shares(9).unwrap_err().to_string();
        let expected = "limits.partial_bytes_max = 1048576: each of 9 shards has 116508 of it, which must be at least \
                        131072 (limits.message_bytes_max); allowed are at least 1179648, or fewer shards \
                        (server.shards)";
        assert_eq!(told, expected);
        refused("", &[], &[&message[..], &["server.shards=9"]].concat(), &[expected]);
        let outbox = ["limits.outboxes_bytes_max=1048576", "server.shards=5"];
        refused("", &[], &outbox, &["at least 262144 (a quarter of limits.outbox_bytes_max)"]);
        let echo = "[[endpoints]]\npath = \"/e\"\ndialect = \"echo\"";
        let flags = ["limits.message_bytes_max=300000", "limits.outboxes_bytes_max=1048576"];
        load("", &[], &[&flags[..], &["server.shards=4"]].concat()).unwrap();
        let flags = [&flags[..], &["server.shards=4"]].concat();
        refused(
            echo,
            &[],
            &flags,
            &["limits.outboxes_bytes_max = 1048576: each of 4 shards has 262144"],
        );
    }

    #[test]
    fn origins_are_what_browsers_send() {
        let good = "https://example.org,https://*.example.org,http://localhost:8080,http://localhost:*,null,http://[::1]:80";
        assert_eq!(
            load("", &[], &[&format!("server.origins={good}")]).unwrap().server.origins.len(),
            6
        );
        for bad in
            ["*", "example.org", "https://example.org/", "https://", "https://a:b", "https://a b"]
        {
            refused(
                "",
                &[],
                &[&format!("server.origins={bad}")],
                &["server.origins: ", "is no origin"],
            );
        }
        refused("", &[("RINGFEED_SERVER__ORIGINS", "")], &[], &["it is empty"]);
    }

    #[test]
    fn where_it_listens_and_whom_it_takes_can_be_said_by_the_environment() {
        let environment = [
            ("RINGFEED_SERVER__LISTEN", "127.0.0.1:8080"),
            ("RINGFEED_SERVER__ORIGINS", "https://a.example.org, https://b.example.org"),
            ("RINGFEED_HOOKS__CONNECT_COOKIES", "AUTH_TOKEN"),
        ];
        let config =
            load("[server]\norigins = [\"https://c.example.org\"]", &environment, &[]).unwrap();
        assert_eq!(config.server.listen.port(), 8080);
        assert_eq!(config.server.origins, ["https://a.example.org", "https://b.example.org"]);
        assert_eq!(config.hooks.connect_cookies, ["AUTH_TOKEN"]);
    }

    #[test]
    fn endpoints_serve_http_beside_themselves_and_only_for_who_has_a_key() {
        let endpoints = |routes: &[(&str, &str)]| -> String {
            let each = routes.iter().map(|(path, http)| {
                format!("[[endpoints]]\npath = \"{path}\"\nhttp = \"{http}\"\n")
            });
            each.collect()
        };
        let two = endpoints(&[("/ws", "wsnode"), ("/app/ws", "cadsock"), ("/x", "none")]);
        let config = load(&two, &[], &["api.keys=k"]).unwrap();
        let paths: Vec<String> = config.endpoints.iter().flat_map(Endpoint::http_paths).collect();
        assert_eq!(paths, ["/broadcast", "/health", "/metrics", "/app/internal/broadcast"]);
        assert!(paths.iter().all(|path| config.endpoints.iter().any(|e| e.serves_http(path))));
        for path in ["/", "/broadcast/", "/app/broadcast", "broadcast", "/internal/broadcast", ""] {
            assert!(!config.endpoints.iter().any(|e| e.serves_http(path)), "{path}");
        }
        refused(
            &two,
            &[],
            &[],
            &["endpoints[0].http: whoever reaches server.listen could publish"],
        );
        let reader = "[[api_keys]]\nname = \"r\"\nkey = \"k\"\nscopes = [\"history\"]\n";
        refused(&format!("{two}{reader}"), &[], &[], &["endpoints[0].http: whoever"]);
        load(&format!("{two}{}", reader.replace("history", "publish")), &[], &[]).unwrap();
        for (routes, path) in [
            ([("/ws", "wsnode"), ("/feed", "wsnode")], "/broadcast"),
            ([("/ws", "wsnode"), ("/metrics", "none")], "/metrics"),
            ([("/ws", "cadsock"), ("/internal/broadcast", "none")], "/internal/broadcast"),
        ] {
            let part = format!(".http: the path {path} is in use already");
            refused(&endpoints(&routes), &[], &["api.keys=k"], &[&part]);
        }
    }

    #[test]
    fn cookies_that_say_who_connects_need_origins() {
        let asked = ["hooks.connect_url=http://127.0.0.1:1/", "hooks.connect_method=get"];
        refused("", &[], &asked, &["server.origins: with hooks.connect_method = \"get\""]);
        load("", &[], &[&asked[..], &["server.origins=https://a.example.org"]].concat()).unwrap();
        load("", &[], &[&asked[..], &["hooks.forward_headers=authorization"]].concat()).unwrap();
        let host = [&asked[..], &["hooks.forward_headers=host,authorization"]].concat();
        refused("", &[], &host, &["hooks.forward_headers: host is about the connection"]);
        let none = ["hooks.forward_headers=authorization", "hooks.connect_cookies=a"];
        refused("", &[], &none, &["hooks.connect_cookies: hooks.forward_headers has no cookie"]);
    }

    #[test]
    fn a_node_has_a_name() {
        let name = |flags: &[&str]| load("", &[], flags).unwrap().server.node_id;
        assert_eq!(name(&["server.node_id=eu-1"]), "eu-1");
        assert!(!name(&[]).is_empty() && name(&[]) == name(&[]));
        refused(
            "",
            &[],
            &["server.node_id=a b"],
            &["server.node_id = \"a b\": allowed are 1 to 64"],
        );
    }

    #[test]
    fn proxies_are_networks_and_not_everybody() {
        let good = "server.proxies=10.0.0.0/8,192.0.2.7,2001:db8::/32,::1";
        assert_eq!(load("", &[], &[good]).unwrap().server.proxies.len(), 4);
        for bad in ["everybody", "10.0.0.0/33", "10.0.0.0/", "0.0.0.0/0", "::/0", "10.0.0.1:80"] {
            let flag = format!("server.proxies={bad}");
            refused("", &[], &[&flag], &["server.proxies: ", "is no network of proxies"]);
        }
        for key in ["server.proxy_protocol=required", "server.forwarded_header=x-forwarded-for"] {
            refused("", &[], &[key], &["it is about server.proxies, which lists nobody"]);
            load("", &[], &[key, good]).unwrap();
        }
    }

    #[test]
    fn the_page_about_the_configuration_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFIG.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == reference(),
            "docs/CONFIG.md is not what config/default.toml says; \
             `ringfeed default-config --markdown > docs/CONFIG.md` makes it anew"
        );
    }
}
