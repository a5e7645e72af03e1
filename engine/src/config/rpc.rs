//! What `[rpc]`, `[[databases]]` and `[[rpc_methods]]` may not say. What statements hold is found out when they are read
//! (`control::rpc`).

use std::collections::BTreeSet;

use ringfeed_protocol::call::METHOD_BYTES_MAX;
use ringfeed_protocol::command::KIND_BYTES_MAX;

use super::schema::Config;
use crate::access::Who;
use crate::control::hooks::address::{self, Place};

/// Databases; each has its connections.
const DATABASES_MAX: usize = 64;
/// A name is compared with one pattern after the other.
const METHODS_MAX: usize = 1024;
/// What methods must not be called, nor begin with in front of a dot: clients make a function of each method, in the object
/// that they speak to the server with, and these are its own.
const TAKEN: &[&str] = &[
    "addEventListener",
    "call",
    "channel",
    "close",
    "connect",
    "constructor",
    "debug",
    "disconnect",
    "dispatchEvent",
    "emit",
    "error",
    "hasOwnProperty",
    "info",
    "log",
    "off",
    "on",
    "once",
    "prototype",
    "publish",
    "removeEventListener",
    "requestFile",
    "rpc",
    "send",
    "sendFile",
    "sendLargeFile",
    "subscribe",
    "toString",
    "unsubscribe",
    "valueOf",
    "warn",
    "__proto__",
];

impl Config {
    pub(super) fn validate_rpc(&self, errors: &mut Vec<String>) {
        for (section, count, most) in [
            ("databases", self.databases.len(), DATABASES_MAX),
            ("rpc_methods", self.rpc_methods.len(), METHODS_MAX),
        ] {
            if count > most {
                errors.push(format!("{section}: there are {count}; allowed are at most {most}"));
                return;
            }
        }
        for (key, allow) in [
            ("allow_ping", &self.rpc.allow_ping),
            ("allow_client_info", &self.rpc.allow_client_info),
            ("allow_server_stats", &self.rpc.allow_server_stats),
            ("allow_channels_list", &self.rpc.allow_channels_list),
            ("allow_server_methods", &self.rpc.allow_server_methods),
        ] {
            errors.extend(wrong_who(allow).map(|wrong| format!("rpc.{key}{wrong}")));
        }
        let mut names = BTreeSet::new();
        for (i, database) in self.databases.iter().enumerate() {
            let name = &database.name;
            if !is_plain(name, "-_.") {
                errors.push(format!(
                    "databases[{i}].name = {name:?}: allowed are letters, digits and any of \"-_.\""
                ));
            } else if !names.insert(name) {
                errors
                    .push(format!("databases[{i}].name = {name:?}: an entry before has the same"));
            }
        }
        let (mut names, mut types) = (BTreeSet::new(), BTreeSet::new());
        let mut beyond = false;
        for (i, method) in self.rpc_methods.iter().enumerate() {
            let name = &method.name;
            if let Err(why) = check_method(name, true) {
                errors.push(format!("rpc_methods[{i}].name = {name:?}: {why}"));
            } else if !names.insert(name) {
                errors.push(format!(
                    "rpc_methods[{i}].name = {name:?}: an entry before has the same"
                ));
            }
            for kind in &method.types {
                let why = if name.contains('*') {
                    "messages call one method, and this entry is for many".into()
                } else if !(1..=KIND_BYTES_MAX).contains(&kind.len()) {
                    format!("allowed are types of 1 to {KIND_BYTES_MAX} bytes")
                } else if !types.insert(kind) {
                    "a method has it before".into()
                } else {
                    continue;
                };
                errors.push(format!("rpc_methods[{i}].types: {kind:?}: {why}"));
            }
            match address::check(&method.url.0, self.hooks.allow_private_addresses) {
                Ok(place) => beyond |= place == Place::Elsewhere,
                // The value is not shown: a URL may hold a key.
                Err(why) => errors.push(format!("rpc_methods[{i}].url: {why}")),
            }
            let wrong = wrong_who(&method.allow);
            errors.extend(wrong.map(|wrong| format!("rpc_methods[{i}].allow{wrong}")));
        }
        if beyond {
            errors.extend(self.hooks.weak_secret().filter(|weak| !errors.contains(weak)));
        }
    }
}

/// What is wrong with a list of whom something is about.
pub(crate) fn wrong_who(who: &[String]) -> impl Iterator<Item = String> {
    let each = who.iter().enumerate();
    each.filter_map(|(i, text)| Who::parse(text).err().map(|e| format!("[{i}]: {e}")))
}

/// Whether a method may have this name; with `wildcards` it may be a pattern of names.
pub(crate) fn check_method(name: &str, wildcards: bool) -> Result<(), String> {
    let more = if wildcards { "-_.*" } else { "-_." };
    if !is_plain(name, more) || name.len() > METHOD_BYTES_MAX {
        return Err(format!(
            "allowed are 1 to {METHOD_BYTES_MAX} letters, digits and any of {more:?}"
        ));
    }
    let first = name.split('.').next().unwrap_or_default();
    if TAKEN.contains(&first) {
        return Err(format!(
            "clients make functions of methods, and this one would replace their own {first:?}; allowed are names that \
             do not begin with that word"
        ));
    }
    Ok(())
}

/// ASCII letters, digits and some more.
fn is_plain(name: &str, more: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || more.as_bytes().contains(&byte);
    !name.is_empty() && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn names_that_clients_need_for_themselves_are_refused() {
        for good in ["ping", "server.stats", "channels.list", "shop.subscribe", "login", "on_call"]
        {
            check_method(good, false).unwrap();
        }
        for bad in [
            "subscribe",
            "publish",
            "connect",
            "rpc",
            "on",
            "log.tail",
            "error.x",
            "debug.x",
            "info.x",
            "channel.x",
        ] {
            let why = check_method(bad, false).unwrap_err();
            assert!(why.contains("would replace their own"), "{bad}: {why}");
        }
        for bad in ["", "a b", "a*", "\u{e9}", &"a".repeat(129)] {
            assert!(check_method(bad, false).unwrap_err().starts_with("allowed are 1 to 128"));
        }
        check_method("app.*", true).unwrap();
    }

    #[test]
    fn what_is_wrong_with_methods_and_databases_is_told_without_their_urls() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let text = "[rpc]\nallow_ping = [\"root\"]\n[[databases]]\nname = \"a b\"\n[[databases]]\nname = \"a\"\n\
                    [[databases]]\nname = \"a\"\n[[rpc_methods]]\nname = \"on\"\nurl = \"ftp://hush/\"\nallow = [\"x\"]\n\
                    [[rpc_methods]]\nname = \"app.*\"\nurl = \"https://app.example.org/?k=hush\"\nallow = []\n\
                    types = [\"a\"]\n[[rpc_methods]]\nname = \"b\"\nurl = \"https://app.example.org/\"\nallow = []\ntypes = [\"c\", \"c\", \"\"]\n";
        std::fs::write(&path, text).unwrap();
        let sources = Sources { file: Some(&path), ..Sources::default() };
        let errors = Config::load(&sources).unwrap_err().to_string();
        for part in [
            "rpc.allow_ping[0]: \"root\" is nobody",
            "databases[0].name = \"a b\": allowed are letters",
            "databases[2].name = \"a\": an entry before",
            "rpc_methods[0].name = \"on\": clients make functions",
            "rpc_methods[0].url: ",
            "rpc_methods[0].allow[0]: \"x\" is nobody",
            "rpc_methods[1].types: \"a\": messages call one method",
            "rpc_methods[2].types: \"c\": a method has it before",
            "rpc_methods[2].types: \"\": allowed are types of 1 to 64 bytes",
            "hooks.secret: it has 0 bytes",
        ] {
            assert!(errors.contains(part), "{part} is not in:\n{errors}");
        }
        assert!(!errors.contains("hush"), "{errors}");
    }
}
