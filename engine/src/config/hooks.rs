//! What `[hooks]` may hold: URLs that may be asked, and a secret to sign with.

use super::schema::{ConnectMethod, Hooks};
use crate::control::hooks::Hook;
use crate::control::hooks::address::{self, Place};

/// Bytes of a secret that others than this machine may try to guess.
const SECRET_BYTES_MIN: usize = 32;
/// Header fields of one list.
const HEADERS_MAX: usize = 32;
/// Fields that say how a request is to be read, and where it is for.
const NOT_FORWARDED: [&str; 9] = [
    "host",
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Hooks {
    /// Where a hook is asked; empty where it is not.
    pub(crate) fn url(&self, hook: Hook) -> &str {
        match hook {
            Hook::Connect => &self.connect_url.0,
            Hook::Subscribe => &self.subscribe_url.0,
            Hook::Publish => &self.publish_url.0,
            Hook::Message => &self.message_url.0,
            Hook::Disconnect => &self.disconnect_url.0,
            Hook::Presence => &self.presence_url.0,
            // Those of issuers stand with them.
            Hook::Keys => "",
            // Each method has its own.
            Hook::Rpc => "",
        }
    }

    /// What is wrong with the secret where others than this machine are asked.
    pub(super) fn weak_secret(&self) -> Option<String> {
        let len = self.secret.0.len();
        (len < SECRET_BYTES_MIN).then(|| {
            format!(
                "hooks.secret: it has {len} bytes; where a URL is not on loopback, allowed are at least \
                 {SECRET_BYTES_MIN} (also in hooks.secret_env and hooks.secret_file); `openssl rand -hex 32` makes one"
            )
        })
    }

    /// The values are not shown: a URL may hold a key.
    pub(super) fn validate(&self, errors: &mut Vec<String>) {
        let mut beyond = false;
        for hook in Hook::ALL {
            let url = self.url(hook);
            match address::check(url, self.allow_private_addresses) {
                _ if url.is_empty() => {}
                Ok(place) => beyond |= place == Place::Elsewhere,
                Err(why) => errors.push(format!("hooks.{}_url: {why}", hook.label())),
            }
        }
        if beyond {
            errors.extend(self.weak_secret());
        }
        if self.attempt_timeout_ms > self.timeout_ms {
            errors.push(format!(
                "hooks.attempt_timeout_ms = {}: it must be at most hooks.timeout_ms = {}",
                self.attempt_timeout_ms, self.timeout_ms
            ));
        }
        let count = self.forward_headers.len();
        if count > HEADERS_MAX {
            errors.push(format!(
                "hooks.forward_headers: there are {count}; allowed are at most {HEADERS_MAX}"
            ));
        }
        let forwards =
            |name: &str| self.forward_headers.iter().any(|f| f.eq_ignore_ascii_case(name));
        if !self.connect_cookies.is_empty() && !forwards("cookie") {
            errors.push(
                "hooks.connect_cookies: hooks.forward_headers has no cookie, so that none is shown"
                    .into(),
            );
        }
        if self.connect_method == ConnectMethod::Get {
            for name in NOT_FORWARDED.into_iter().filter(|name| forwards(name)) {
                errors.push(format!(
                    "hooks.forward_headers: {name} is about the connection it came on; with hooks.connect_method = \
                     \"get\" it cannot be forwarded"
                ));
            }
        }
        for (i, name) in self.forward_headers.iter().enumerate() {
            if reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
                errors.push(format!(
                    "hooks.forward_headers[{i}] = {name:?}: it is no name of a header field"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn load(flags: &[&str], environment: &[(&str, &str)]) -> Result<Config, String> {
        let flags = flags.iter().map(|&flag| flag.into()).collect();
        let environment = environment.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        let sources = Sources { flags, environment, ..Sources::default() };
        Config::load(&sources).map_err(|e| e.to_string())
    }

    #[test]
    fn beyond_loopback_a_secret_is_needed() {
        let url = "hooks.connect_url=https://app.example.org/hook";
        let short = format!("hooks.secret={}", &SECRET[1..]);
        for flags in [vec![url], vec![url, &*short]] {
            let errors = load(&flags, &[]).unwrap_err();
            assert!(errors.starts_with("hooks.secret: ") && !errors.contains(&SECRET[1..]));
        }
        load(&[url, &format!("hooks.secret={SECRET}")], &[]).unwrap();
        for url in ["http://127.0.0.1:1/", "http://[::1]/a", "http://localhost:3000/"] {
            load(&[&format!("hooks.connect_url={url}")], &[]).unwrap();
        }
    }

    #[test]
    fn urls_that_must_not_be_asked_are_refused_and_not_shown() {
        for url in [
            "nowhere",
            "ftp://example.org/",
            "https://user:hush@example.org/",
            "http://10.0.0.1/hush",
            "http://169.254.169.254/hush",
            "http://[::ffff:10.0.0.1]/hush",
            "http://0x0a000001/hush",
        ] {
            let secret = format!("hooks.secret={SECRET}");
            let errors = load(&[&format!("hooks.publish_url={url}"), &secret], &[]).unwrap_err();
            assert!(errors.starts_with("hooks.publish_url: "), "{url}: {errors}");
            assert!(errors.lines().count() == 1 && !errors.contains("hush"), "{errors}");
        }
        let flags = [
            "hooks.publish_url=http://10.0.0.1/a?key=hush",
            "hooks.allow_private_addresses=true",
            &format!("hooks.secret={SECRET}"),
        ];
        let config = load(&flags, &[]).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (flag, part) in [
            ("hooks.attempt_timeout_ms=5001", "at most hooks.timeout_ms = 5000"),
            ("hooks.forward_headers=a b", "forward_headers[0] = \"a b\": it is no name"),
        ] {
            let errors = load(&[flag], &[]).unwrap_err();
            assert!(errors.contains(part), "{errors}");
        }
    }
}
