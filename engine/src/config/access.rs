//! What `[[permissions]]` and `[[issuers]]` may not say. Whether public keys are where they are said to be is found out when
//! they are read (`access::token`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ringfeed_protocol::Operation;

use super::rules::{self, USER};
use super::schema::{Config, Issuer, Permission};
use crate::access::Who;
use crate::control::hooks::address;

/// All entries are looked at for each publish of a client.
const PERMISSIONS_MAX: usize = 1024;
/// An issuer is looked for among all.
const ISSUERS_MAX: usize = 64;
/// Bytes of a secret that tokens from beyond this machine are checked with (RFC 7518 section 3.2, for HS256).
const SECRET_BYTES_MIN: usize = 32;
/// Bytes of a name that claims have or hold.
const CLAIM_BYTES_MAX: usize = 255;

impl Config {
    /// Whether there is anybody who could say who clients are.
    pub(crate) fn somebody_vouches(&self) -> bool {
        !self.issuers.is_empty() || !self.hooks.connect_url.0.is_empty()
    }

    pub(super) fn validate_access(&self, errors: &mut Vec<String>) {
        for (section, count, most) in [
            ("permissions", self.permissions.len(), PERMISSIONS_MAX),
            ("issuers", self.issuers.len(), ISSUERS_MAX),
        ] {
            if count > most {
                errors.push(format!("{section}: there are {count}; allowed are at most {most}"));
                return;
            }
        }
        for (i, permission) in self.permissions.iter().enumerate() {
            let wrong = permission.wrong().into_iter();
            errors.extend(wrong.map(|wrong| format!("permissions[{i}]{wrong}")));
        }
        let beyond_loopback = !self.server.listen.ip().is_loopback();
        let mut names = BTreeSet::new();
        for (i, issuer) in self.issuers.iter().enumerate() {
            let mut wrong = issuer.wrong(beyond_loopback);
            // As who fetches them sees it.
            if wrong.is_empty()
                && !issuer.jwks_url.is_empty()
                && let Err(why) =
                    address::check(&issuer.jwks_url, self.hooks.allow_private_addresses)
            {
                wrong.push(format!(".jwks_url: {why}"));
            }
            if !names.insert(&*issuer.issuer) {
                let name = &issuer.issuer;
                wrong.push(format!(".issuer = {name:?}: an entry before has the same"));
            }
            errors.extend(wrong.into_iter().map(|wrong| format!("issuers[{i}]{wrong}")));
        }
    }
}

impl Permission {
    /// Everything that is wrong, each with the key in front.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.who.is_empty() {
            wrong.push(".who: it is empty, and the entry about nobody".into());
        }
        if self.channels.is_empty() {
            wrong.push(".channels: it is empty, and the entry about no channel".into());
        }
        if self.allow.is_empty() && self.deny.is_empty() {
            wrong.push(": it neither allows nor denies anything".into());
        }
        for operation in Operation::ALL {
            if self.allow.contains(&operation) && self.deny.contains(&operation) {
                let name = operation.name();
                wrong.push(format!(".deny: {name} is allowed by the same entry"));
            }
        }
        for who in self.who.iter().filter_map(|who| Who::parse(who).err()) {
            wrong.push(format!(".who: {who}"));
        }
        for pattern in &self.channels {
            if let Err(why) = check_pattern(pattern) {
                wrong.push(format!(".channels: {pattern:?}: {why}"));
            }
        }
        wrong
    }
}

impl Config {
    /// What is no error and may not be what was meant, in sentences.
    pub fn hazards(&self) -> Vec<String> {
        let mut hazards = Vec::new();
        for (number, permission) in self.permissions.iter().enumerate() {
            let loose = |pattern: &&String| pattern.contains(USER) && pattern.contains('*');
            // A denial that fits more denies more.
            for pattern in permission.channels.iter().filter(loose) {
                if !permission.allow.is_empty() {
                    hazards.push(format!(
                        "permissions[{number}].channels: {pattern:?}: a wildcard beside {USER} also fits channels of users whose \
                         ids are longer and begin or end alike"
                    ));
                }
            }
        }
        if self.limits.rooms_per_user_max > 0 && !self.channels.iter().any(|rule| rule.room) {
            hazards.push("limits.rooms_per_user_max: no rule of [[channels]] has room = true, so it limits nothing".into());
        }
        hazards
    }
}

/// Whether some name can fit.
fn check_pattern(pattern: &str) -> Result<(), String> {
    // A denial with a slip of the pen in it would deny nothing.
    if pattern.replace(USER, "").contains(['{', '}']) {
        return Err(format!("the only thing that may stand in braces is {USER}"));
    }
    rules::check_pattern(pattern).map_err(|e| e.to_string())
}

impl Issuer {
    /// Everything that is wrong, each with the key in front.
    fn wrong(&self, beyond_loopback: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let Issuer { secret, secret_env, secret_file, .. } = self;
        let has_secret = !(secret.is_empty() && secret_env.is_empty() && secret_file.is_empty());
        if !has_secret && self.public_key_files.is_empty() && self.jwks_url.is_empty() {
            let keys = "secret, secret_env, secret_file, public_key_files or jwks_url";
            wrong.push(format!(": it has no key to check tokens with; give {keys}"));
        }
        // One that was not found has been told.
        if beyond_loopback && (1..SECRET_BYTES_MIN).contains(&secret.0.len()) {
            wrong.push(format!(
                ".secret: beyond loopback (server.listen) a secret must have at least {SECRET_BYTES_MIN} bytes; \
                 `openssl rand -hex 32` makes one"
            ));
        }
        if self.public_key_files.iter().any(|file| file.is_empty() || file.contains('\0')) {
            wrong.push(".public_key_files: a path that is empty or holds NUL names no file".into());
        }
        if !self.jwks_url.is_empty() {
            self.wrong_about_jwks(&mut wrong);
        }
        self.wrong_about_claims(&mut wrong);
        wrong
    }

    fn wrong_about_jwks(&self, wrong: &mut Vec<String>) {
        // Who signs for many could otherwise have tokens of one of them taken by another.
        for (key, empty) in
            [("issuer", self.issuer.is_empty()), ("audience", self.audience.is_empty())]
        {
            if empty {
                wrong.push(format!(".{key}: it is empty, and jwks_url needs it"));
            }
        }
        if self.jwks_algorithms.is_empty() {
            wrong.push(".jwks_algorithms: it is empty, so that no key of jwks_url counts".into());
        }
        if let Err(why) = check_url(&self.jwks_url) {
            // The URL is not shown: it may hold a password, which is one of the things that are refused.
            wrong.push(format!(".jwks_url: {why}"));
        }
    }

    fn wrong_about_claims(&self, wrong: &mut Vec<String>) {
        let plain =
            |text: &str| text.len() <= CLAIM_BYTES_MAX && !text.chars().any(char::is_control);
        if !plain(&self.issuer) {
            wrong.push(format!(".issuer: {TOO_LONG}"));
        }
        if !self.audience.iter().all(|audience| plain(audience) && !audience.is_empty()) {
            wrong.push(format!(".audience: an empty one means nothing, and {TOO_LONG}"));
        }
        if !plain(&self.user_claim) || self.user_claim.is_empty() {
            wrong.push(format!(".user_claim: it must not be empty, and {TOO_LONG}"));
        }
        if !plain(&self.roles_claim) {
            wrong.push(format!(".roles_claim: {TOO_LONG}"));
        }
        for claim in &self.claims {
            if !plain(claim) || claim.is_empty() || claim.contains('=') {
                // claim:a=b=c would be both a value of "a" and one of "a=b".
                wrong.push(format!(
                    ".claims: {claim:?}: a name is not empty, has no '=', and {TOO_LONG}"
                ));
            }
        }
    }
}

const TOO_LONG: &str = "allowed are 255 bytes without control characters";

/// Whether keys may be asked for there: where nobody can put others in their place.
fn check_url(url: &str) -> Result<(), &'static str> {
    let url = reqwest::Url::parse(url).map_err(|_| "it is no URL")?;
    let host = url.host_str().ok_or("it has no host")?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user or a password is not allowed");
    }
    if url.fragment().is_some() {
        return Err("a URL with a fragment is not allowed");
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if here => Ok(()),
        "http" => Err("http is allowed on loopback alone; use https"),
        _ => Err("allowed are https, and http on loopback"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn wrong(file: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        match Config::load(&Sources { file: Some(&path), ..Sources::default() }) {
            Ok(_) => String::new(),
            Err(errors) => errors.to_string(),
        }
    }

    #[track_caller]
    fn refused(file: &str, part: &str) {
        let wrong = wrong(file);
        assert!(wrong.contains(part), "{part:?} is not in {wrong:?} for\n{file}");
    }

    const KEYS: &str = "[[issuers]]\nissuer = \"https://id.test\"\naudience = [\"me\"]\n";
    const SECRET: &str = "secret = \"0123456789abcdef0123456789abcdef\"\n";

    #[test]
    fn what_the_defaults_show_as_an_example_is_not_active() {
        let config = Config::load(&Sources::default()).unwrap();
        assert!(config.permissions.is_empty() && config.issuers.is_empty());
        assert_eq!(config.channels.len(), 1);
    }

    #[test]
    fn an_entry_takes_what_it_leaves_out_from_the_example() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let file = format!(
            "[[issuers]]\n{SECRET}leeway_s = 3\n[[permissions]]\nwho = [\"users\"]\n\
             channels = [\"a.{{user}}\", \"*\"]\nallow = [\"history\"]\n"
        );
        std::fs::write(&path, file).unwrap();
        let config = Config::load(&Sources { file: Some(&path), ..Sources::default() }).unwrap();
        let issuer = &config.issuers[0];
        assert_eq!((&*issuer.user_claim, issuer.leeway_s, issuer.lifetime_s_max), ("sub", 3, 0));
        assert_eq!(config.permissions[0].allow, [Operation::History]);
        assert!(config.permissions[0].deny.is_empty());
        assert!(!format!("{config:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn wildcards_beside_a_users_id_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let entry = |channels: &str, rest: &str| {
            format!(
                "[[permissions]]\nwho = [\"users\"]\nchannels = [{channels}]\n{rest} = [\"publish\"]\n"
            )
        };
        let file = entry("\"a.{user}\", \"b.{user}.inbox\", \"*\"", "allow")
            + &entry("\"c.{user}.*\"", "deny")
            + &entry("\"d.{user}\", \"e.{user}.*\", \"*.{user}\"", "allow");
        std::fs::write(&path, file).unwrap();
        let config = Config::load(&Sources { file: Some(&path), ..Sources::default() }).unwrap();
        let hazards = config.hazards();
        assert_eq!(hazards.len(), 2, "{hazards:?}");
        assert!(hazards[0].starts_with("permissions[2].channels: \"e.{user}.*\": "), "{hazards:?}");
    }

    #[test]
    fn a_limit_of_rooms_where_there_are_none_is_told() {
        let flags = vec!["limits.rooms_per_user_max=2".to_owned()];
        let config = Config::load(&Sources { flags, ..Sources::default() }).unwrap();
        let hazards = config.hazards();
        assert!(hazards[0].starts_with("limits.rooms_per_user_max: "), "{hazards:?}");
    }

    #[test]
    fn permissions_that_mean_nothing_are_refused() {
        let entry = |who: &str, channels: &str, rest: &str| {
            format!("[[permissions]]\nwho = [{who}]\nchannels = [{channels}]\n{rest}\n")
        };
        let allow = "allow = [\"publish\"]";
        assert_eq!(wrong(&entry("\"users\"", "\"a{user}*\"", allow)), "");
        refused(&entry("", "\"*\"", allow), "permissions[0].who: it is empty");
        refused(&entry("\"users\"", "", allow), "permissions[0].channels: it is empty");
        refused(&entry("\"users\"", "\"*\"", ""), "neither allows nor denies");
        refused(&entry("\"user\"", "\"*\"", allow), "\"user\" is nobody");
        refused(&entry("\"users\"", "\"{usr}\"", allow), "may stand in braces is {user}");
        refused(&entry("\"users\"", "\"a b\"", allow), "it matches no name");
        refused(&entry("\"users\"", "\"\"", allow), "it matches no name");
        refused(
            &entry("\"users\"", "\"*\"", "allow = [\"write\"]"),
            "a list of subscribe, publish",
        );
        let both = "allow = [\"publish\"]\ndeny = [\"publish\"]";
        refused(&entry("\"users\"", "\"*\"", both), "publish is allowed by the same entry");
        refused("[[permissions]]\nallow = [\"publish\"]\n", "permissions[0]: who is missing");
        let long = format!("\"{}\"", "a*".repeat(300));
        refused(&entry("\"users\"", &long, allow), "it has 600 bytes");
    }

    #[test]
    fn issuers_that_protect_nothing_are_refused() {
        assert_eq!(wrong(&format!("{KEYS}{SECRET}")), "");
        refused(KEYS, "issuers[0]: it has no key to check tokens with");
        refused(&format!("{KEYS}{SECRET}secret_env = \"A\""), "one of secret, secret_env");
        refused(&format!("{KEYS}{SECRET}{KEYS}{SECRET}"), "issuers[1].issuer");
        refused(&format!("{KEYS}{SECRET}leeway_s = 61"), "allowed are 0 to 60");
        refused(&format!("{KEYS}{SECRET}claims = [\"a=b\"]"), "issuers[0].claims");
        refused(&format!("{KEYS}{SECRET}user_claim = \"\""), "issuers[0].user_claim");
        refused(&format!("{KEYS}{SECRET}secret_algorithm = \"none\""), "HS256, HS384, HS512");
        refused(&format!("{KEYS}secret = 7"), "issuers[0].secret = (secret)");
        let shown = wrong(&format!("{KEYS}secret = [\"hush\"]"));
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn keys_are_asked_for_where_nobody_can_exchange_them() {
        let with = |url: &str| format!("{KEYS}jwks_url = \"{url}\"\n");
        for good in [
            "https://id.test/keys",
            "https://id.test:8443/keys?a=b",
            "http://127.0.0.1:8080/keys",
            "http://localhost/keys",
            "http://[::1]/keys",
        ] {
            assert_eq!(wrong(&with(good)), "", "{good}");
        }
        for bad in [
            "http://id.test/keys",
            "http://localhost.id.test/keys",
            "http://127.0.0.1.id.test/keys",
            "http://0.0.0.0/keys",
            "ftp://id.test/keys",
            "file:///etc/passwd",
            "id.test/keys",
            "https://",
            "https://hush:hush@id.test/keys",
            "https://id.test/keys#hush",
        ] {
            refused(&with(bad), "issuers[0].jwks_url: ");
            assert!(!wrong(&with(bad)).contains("hush"), "{bad}");
        }
        let url = "jwks_url = \"https://id.test/keys\"\n";
        refused(&format!("[[issuers]]\naudience = [\"me\"]\n{url}"), "issuers[0].issuer: it is");
        refused(&format!("[[issuers]]\nissuer = \"a\"\n{url}"), "issuers[0].audience: it is");
        refused(&format!("{KEYS}{url}jwks_algorithms = []"), "issuers[0].jwks_algorithms: it is");
        refused(&format!("{KEYS}{url}jwks_algorithms = [\"HS256\"]"), "RS256, ES256, EdDSA");
    }

    #[test]
    fn keys_that_could_not_be_fetched_are_refused_with_the_configuration() {
        let at = |url: &str| {
            format!("[[issuers]]\nissuer = \"a\"\naudience = [\"b\"]\njwks_url = \"{url}\"\n")
        };
        let errors = wrong(&at("https://10.0.0.1/keys"));
        assert!(errors.contains("issuers[0].jwks_url: "), "{errors:?}");
        assert_eq!(wrong(&at("https://login.example.org/keys")), "");
    }
}
