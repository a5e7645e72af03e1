//! The keys of the HTTP API, `api.keys` and `[[api_keys]]`: checked, and kept as hashes.

use std::collections::BTreeSet;

use super::rules::check_pattern;
use super::schema::{ApiKey, Config};
use crate::callers::{Caller, Callers, KeyHash};

/// Bytes of a key that others than this machine may try.
const KEY_BYTES_MIN: usize = 16;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 64;
/// Keys there may be: each request is compared with all of them.
const KEYS_MAX: usize = 1024;

impl Config {
    /// Makes [`Config::callers`] of all keys, and forgets the keys themselves.
    pub(super) fn read_api_keys(&mut self, errors: &mut Vec<String>) {
        let listed = std::mem::take(&mut self.api.keys);
        let sections = std::mem::take(&mut self.api_keys);
        let mut callers: Vec<(KeyHash, Caller)> = Vec::new();
        if listed.len() + sections.len() > KEYS_MAX {
            return errors.push(format!("api_keys: there may be at most {KEYS_MAX} keys"));
        }
        for (i, key) in listed.iter().enumerate() {
            let label = format!("api.keys[{i}]");
            match self.check_key(&key.0) {
                Ok(hash) => add(&mut callers, hash, Caller::of_everything(label), errors),
                Err(wrong) => errors.push(format!("{label}: {wrong}")),
            }
        }
        let mut names = BTreeSet::new();
        for (i, section) in sections.into_iter().enumerate() {
            let label = format!("api_keys[{i}]");
            check_section(&section, &label, errors);
            if !names.insert(section.name.clone()) {
                errors.push(format!("{label}.name = {:?}: it is in use already", section.name));
            }
            match self.hash(&section) {
                Ok(hash) => {
                    let ApiKey { name, scopes, channels, .. } = section;
                    add(&mut callers, hash, Caller { name, scopes, channels }, errors);
                }
                Err(wrong) => errors.extend(wrong.map(|wrong| format!("{label}{wrong}"))),
            }
        }
        self.callers = Callers::new(callers);
        errors.extend(self.wrong_wsnode_key());
    }

    /// The key of a section; or what is wrong, behind the section's label and unless it was told before.
    fn hash(&self, section: &ApiKey) -> Result<KeyHash, Option<String>> {
        let ApiKey { key, key_env, key_file, key_sha256, .. } = section;
        let is_led_to = !(key.is_empty() && key_env.is_empty() && key_file.is_empty());
        if is_led_to != key_sha256.is_empty() {
            let wrong = ": exactly one of key, key_env, key_file and key_sha256 is needed";
            return Err(Some(wrong.into()));
        }
        if is_led_to {
            // It was not found.
            let key = Some(key).filter(|key| !key.is_empty()).ok_or(None)?;
            let hash = self.check_key(&key.0);
            return hash.map_err(|wrong| Some(format!(".key: {wrong}")));
        }
        match KeyHash::from_hex(&key_sha256.0) {
            Some(hash) if hash == KeyHash::of(b"") => {
                Err(Some(".key_sha256: it is that of an empty key".into()))
            }
            Some(hash) => Ok(hash),
            None => {
                let allowed = "allowed are 64 hexadecimal digits, as `sha256sum` prints them";
                Err(Some(format!(".key_sha256: {allowed}")))
            }
        }
    }

    fn check_key(&self, key: &[u8]) -> Result<KeyHash, String> {
        let listen = self.api.listen;
        if key.trim_ascii().is_empty() {
            Err("an empty key is not allowed".into())
        } else if !key.iter().all(u8::is_ascii_graphic) {
            Err("allowed are visible ASCII characters, no spaces: a header could not carry it"
                .into())
        } else if key.len() < KEY_BYTES_MIN && !listen.ip().is_loopback() {
            Err(format!(
                "beyond loopback (api.listen = {listen}) a key must have at least {KEY_BYTES_MIN} characters; \
                 `openssl rand -hex 16` makes one"
            ))
        } else {
            Ok(KeyHash::of(key))
        }
    }
}

fn add(
    callers: &mut Vec<(KeyHash, Caller)>,
    hash: KeyHash,
    caller: Caller,
    errors: &mut Vec<String>,
) {
    match callers.iter().find(|(other, _)| *other == hash) {
        Some((_, other)) => {
            errors.push(format!("{} and {} have the same key", other.name, caller.name))
        }
        None => callers.push((hash, caller)),
    }
}

/// What is wrong with a section, but for its key.
fn check_section(section: &ApiKey, label: &str, errors: &mut Vec<String>) {
    let ApiKey { name, scopes, channels, .. } = section;
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(in_name) {
        errors.push(format!(
            "{label}.name = {name:?}: allowed are 1 to {NAME_BYTES_MAX} ASCII letters, digits and any of -_."
        ));
    }
    if scopes.is_empty() {
        errors.push(format!(
            "{label}.scopes: at least one is needed: without any a key is for nothing"
        ));
    }
    if channels.is_empty() {
        errors.push(format!("{label}.channels: at least one pattern is needed; \"*\" fits all"));
    }
    for pattern in channels {
        if let Err(e) = check_pattern(pattern) {
            errors.push(format!("{label}.channels: {pattern:?}: {e}"));
        }
    }
}
