//! Where secrets are: in the configuration itself, in a variable of the environment or in a file that it names. They are
//! read here and nowhere else, so that whoever goes by a configuration finds them in it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use toml::{Table, Value};

use super::file;
use super::keys::printable;
use super::schema::{
    ApiKey, ChannelRule, Cluster, Config, Database, Hooks, Issuer, Redis, Secret, Wsnode,
};

/// Largest file with a secret.
const FILE_BYTES_MAX: u64 = 4096;

/// One secret, and what may lead to it.
struct Place<'a> {
    /// As messages call it.
    section: String,
    /// Of `section`; the others are this one with `_env` and `_file`.
    key: &'static str,
    secret: &'a mut Secret,
    env: &'a Secret,
    file: &'a str,
}

impl Config {
    /// Puts every secret where the configuration holds one, from wherever it says that it is. Line ends behind a secret
    /// are no part of it: editors and `echo` leave one. Errors say where it was looked for, and never what was found.
    pub(super) fn find_secrets(
        &mut self,
        environment: &[(OsString, OsString)],
        errors: &mut Vec<String>,
    ) {
        let Hooks { secret, secret_env: env, secret_file: file, .. } = &mut self.hooks;
        let hooks = Place { section: "hooks".into(), key: "secret", secret, env, file };
        let Redis { url: secret, url_env: env, url_file: file, .. } = &mut self.redis;
        let redis = Place { section: "redis".into(), key: "url", secret, env, file };
        let Cluster { key: secret, key_env: env, key_file: file, .. } = &mut self.cluster;
        let cluster = Place { section: "cluster".into(), key: "key", secret, env, file };
        let Wsnode { key: secret, key_env: env, key_file: file, .. } = &mut self.wsnode;
        let wsnode = Place { section: "wsnode".into(), key: "key", secret, env, file };
        let issuers = self.issuers.iter_mut().enumerate().map(|(i, issuer)| {
            let Issuer { secret, secret_env: env, secret_file: file, .. } = issuer;
            Place { section: format!("issuers[{i}]"), key: "secret", secret, env, file }
        });
        let api_keys = self.api_keys.iter_mut().enumerate().map(|(i, api_key)| {
            let ApiKey { key: secret, key_env: env, key_file: file, .. } = api_key;
            Place { section: format!("api_keys[{i}]"), key: "key", secret, env, file }
        });
        let databases = self.databases.iter_mut().enumerate().map(|(i, database)| {
            let Database { url: secret, url_env: env, url_file: file, .. } = database;
            Place { section: format!("databases[{i}]"), key: "url", secret, env, file }
        });
        let rooms = self.channels.iter_mut().enumerate().map(|(i, rule)| {
            let ChannelRule { password: secret, password_env: env, password_file: file, .. } = rule;
            Place { section: format!("channels[{i}]"), key: "password", secret, env, file }
        });
        let hooks = [hooks, redis, cluster, wsnode].into_iter();
        for place in hooks.chain(issuers).chain(api_keys).chain(databases).chain(rooms) {
            errors.extend(place.fill(environment).err());
        }
    }
}

impl Place<'_> {
    fn fill(self, environment: &[(OsString, OsString)]) -> Result<(), String> {
        let Place { section, key, secret, env, file } = self;
        let given = [!secret.is_empty(), !env.is_empty(), !file.is_empty()];
        if given.iter().filter(|&&given| given).count() > 1 {
            return Err(format!("{section}: allowed is one of {key}, {key}_env and {key}_file"));
        }
        let (place, found) = match given {
            [true, ..] => (format!("{section}.{key}"), Ok(secret.0.clone())),
            // The name is not shown: by mistake it may be the secret.
            [_, true, _] => (format!("{section}.{key}_env"), variable(environment, env)),
            [.., true] => {
                let found = read(file).map_err(|e| e.to_string());
                (format!("{section}.{key}_file: {}", printable(file)), found)
            }
            _ => return Ok(()),
        };
        let mut found = found.map_err(|why| format!("{place}: {why}"))?;
        let end = found.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
        found.truncate(end);
        if found.is_empty() {
            return Err(format!("{place}: it is empty"));
        }
        secret.0 = found;
        Ok(())
    }
}

fn variable(environment: &[(OsString, OsString)], name: &Secret) -> Result<Vec<u8>, String> {
    let found = environment.iter().rev().find(|(own, _)| own.as_bytes() == name.0);
    let value = found.map(|(_, value)| value.clone().into_vec());
    value.ok_or_else(|| "the environment has no such variable".into())
}

/// Reads a file that may be read at once: a pipe could keep the start waiting.
fn read(path: &str) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    file::read(path, FILE_BYTES_MAX)
}

/// Whether a configuration that was merged names this variable as one that holds a secret.
pub(super) fn names_variable(merged: &Table, name: &OsStr) -> bool {
    let named = |keys: &Table| {
        let mut names = keys.iter().filter(|(key, _)| key.ends_with("_env"));
        names.any(|(_, value)| value.as_str().is_some_and(|value| name == value))
    };
    merged.values().any(|section| match section {
        Value::Table(keys) => named(keys),
        Value::Array(entries) => entries.iter().filter_map(Value::as_table).any(named),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use crate::callers::KeyHash;
    use crate::config::{Config, Sources};

    /// Also a URL, since one of them is.
    const SECRET: &[u8] = b"redis://0123456789abcdef-0123456789abcdef";

    fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        let sources = Sources { file: Some(&path), environment, ..Sources::default() };
        assert!(!format!("{sources:?}").contains("0123456789abcdef"), "{sources:?}");
        Config::load(&sources).map_err(|e| e.to_string())
    }

    /// Each section that has a secret, and how the key of it begins.
    const SECTIONS: [(&str, &str, &str); 7] = [
        ("[hooks]\n", "hooks", "secret"),
        ("[redis]\n", "redis", "url"),
        ("[wsnode]\n", "wsnode", "key"),
        ("[[issuers]]\n", "issuers[0]", "secret"),
        ("[[api_keys]]\nname = \"a\"\nscopes = [\"all\"]\n", "api_keys[0]", "key"),
        ("[[databases]]\nname = \"a\"\n", "databases[0]", "url"),
        ("[[channels]]\npattern = \"a\"\nroom = true\n", "channels[0]", "password"),
    ];

    fn is_found(config: &Config) -> bool {
        let issuer = config.issuers.first().is_some_and(|issuer| issuer.secret.0 == SECRET);
        let database = config.databases.first().is_some_and(|own| own.url.0 == SECRET);
        let rooms = config.channels.iter().filter_map(|rule| rule.room_rules.as_ref());
        let password = rooms.filter_map(|room| room.password).next();
        config.hooks.secret.0 == SECRET
            || password == Some(KeyHash::of(SECRET))
            || issuer
            || database
            || config.wsnode.key.0 == SECRET
            || config.redis.url.0 == SECRET
            || config.callers.find(SECRET).is_some()
    }

    #[test]
    fn all_secrets_are_found_and_trimmed_alike() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for (section, _, key) in SECTIONS {
            for end in ["", "\n", "\r\n", "\n\n"] {
                let text = format!("{}{end}", std::str::from_utf8(SECRET).unwrap());
                std::fs::write(path, &text).unwrap();
                for place in [
                    format!("{key} = {text:?}"),
                    format!("{key}_env = \"S\""),
                    format!("{key}_file = {path:?}"),
                ] {
                    let config = load(&format!("{section}{place}"), &[("S", &text)]).unwrap();
                    assert!(is_found(&config), "{section}{place}");
                    assert!(!format!("{config:?}").contains("0123456789abcdef"), "{config:?}");
                }
            }
        }
    }

    #[test]
    fn a_secret_is_bytes_and_not_only_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0xff; 32]).unwrap();
        let config = load(&format!("[hooks]\nsecret_file = {:?}", file.path()), &[]).unwrap();
        assert_eq!(config.hooks.secret.0, [0xff; 32]);
    }

    #[test]
    fn where_no_secret_is_that_is_said_and_nothing_is_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(path, "\n").unwrap();
        let long = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(long.path(), [b'h'; 4097]).unwrap();
        let long = long.path().to_str().unwrap();
        for (section, label, key) in SECTIONS {
            for (place, wrong) in [
                (format!("{key} = \"\\n\""), format!("{label}.{key}: it is empty")),
                (
                    format!("{key}_env = \"hush\""),
                    format!("{label}.{key}_env: the environment has no such variable"),
                ),
                (format!("{key}_env = \"EMPTY\""), format!("{label}.{key}_env: it is empty")),
                (
                    format!("{key}_file = \"/no/such\""),
                    format!("{label}.{key}_file: /no/such: No such file"),
                ),
                (
                    format!("{key}_file = \"/dev/zero\""),
                    format!("{label}.{key}_file: /dev/zero: it is not a file"),
                ),
                (
                    format!("{key}_file = {path:?}"),
                    format!("{label}.{key}_file: {path}: it is empty"),
                ),
                (
                    format!("{key}_file = {long:?}"),
                    format!("{label}.{key}_file: {long}: it has more than 4096 bytes"),
                ),
                (
                    format!("{key} = \"hush\"\n{key}_env = \"SET\""),
                    format!("{label}: allowed is one of {key}, {key}_env and {key}_file"),
                ),
            ] {
                let environment = [("EMPTY", "\r\n"), ("SET", "hush")];
                let errors = load(&format!("{section}{place}"), &environment).unwrap_err();
                assert!(errors.starts_with(&wrong), "{errors}");
                assert!(!errors.contains("hush"), "{errors}");
            }
        }
    }

    #[test]
    fn variables_that_hold_secrets_are_no_strays() {
        let names = ["A", "B", "C", "D", "E", "F", "G", "H"].map(|end| format!("RINGFEED_{end}"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let text: String = SECTIONS
            .iter()
            .zip(&names)
            .map(|((section, _, key), name)| format!("{section}{key}_env = \"{name}\"\n"))
            .collect();
        std::fs::write(&path, text).unwrap();
        let environment = names.map(|name| (name.into(), "0123456789abcdef".into())).to_vec();
        let sources = Sources { file: Some(&path), environment, ..Sources::default() };
        assert_eq!(sources.strays(), ["RINGFEED_H"]);
    }
}
