//! Configuration: `config/default.toml` overlaid by a file, the environment and flags.
//!
//! `default.toml` is embedded and is the list of keys: what it does not show is refused. Every
//! problem is reported at once, with key, value and what is allowed, before any port is opened.

mod merge;
mod rules;
mod schema;
mod validate;

use std::path::Path;

use toml::Value;

pub use schema::{
    Api, Auth, ChannelRule, Config, Endpoint, Heartbeat, IoChoice, LagPolicy, Level, Limits, Log,
    Publishers, Secret, Server, Subscribers,
};

/// The embedded defaults, with comments.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

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
        let defaults = merge::default_table();
        let mut errors = Vec::new();
        let mut merged = defaults.clone();
        if let Some(path) = sources.file {
            match merge::read_file(path) {
                Ok(table) => merge::overlay_file(&mut merged, &defaults, table, &mut errors),
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
                merge::overlay_text(&mut merged, &defaults, name, key, value, &mut errors);
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
                    merge::overlay_text(&mut merged, &defaults, &label, key, value, &mut errors);
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
}

/// Environment names that begin with `RINGFEED_` and are read elsewhere.
const NOT_CONFIG: [&str; 1] = ["RINGFEED_API_KEY"];

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
}
