//! `[redis]`: what its values mean, and what `[[channels]]` may say of it.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, parse_redis_url};

use super::schema::{ChannelRule, Config, Distribution, Redis};

/// Bytes of a prefix.
const PREFIX_BYTES_MAX: usize = 64;
/// What a URL may begin with.
const SCHEMES: [&str; 3] = ["redis", "rediss", "unix"];

impl Redis {
    /// Whether there is one that nodes share.
    pub fn is_used(&self) -> bool {
        !self.url.is_empty()
    }

    /// Where Redis is and how it is entered.
    ///
    /// # Errors
    /// What is wrong with `url`, without a part of it: it may hold a password.
    pub fn connection(&self) -> Result<ConnectionInfo, String> {
        redis_connection(&self.url.0).map_err(|why| format!("redis.url: {why}"))
    }
}

/// Where Redis is and how it is entered, as a URL says.
///
/// # Errors
/// What is wrong with it, without a part of it: it may hold a password.
pub fn redis_connection(url: &[u8]) -> Result<ConnectionInfo, String> {
    let wrong = |why: &str| {
        format!(
            "{why}; allowed are redis://USER:PASSWORD@HOST:PORT/DATABASE, the same with rediss:// for TLS, and \
             unix:///PATH?db=DATABASE&user=USER&pass=PASSWORD"
        )
    };
    let text = std::str::from_utf8(url).map_err(|_| wrong("it is not UTF-8"))?;
    let url = parse_redis_url(text)
        .filter(|url| SCHEMES.contains(&url.scheme()))
        .ok_or_else(|| wrong("it is no URL of Redis"))?;
    let known: &[&str] = if url.scheme() == "unix" { &["db", "user", "pass"] } else { &[] };
    if url.fragment().is_some() || url.query_pairs().any(|(key, _)| !known.contains(&&*key)) {
        return Err(wrong("it says more than where Redis is"));
    }
    if url.scheme() != "unix" && url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("it names no host"));
    }
    // Its errors are fixed texts; what they are about may be secret.
    let info = url.into_connection_info().map_err(|e| wrong(&e.to_string()))?;
    if info.redis_settings().db() < 0 {
        return Err(wrong("a database has a number from 0 on"));
    }
    Ok(info)
}

/// Looks whether keys and channels in Redis may begin so.
///
/// # Errors
/// What is wrong with it, and what is allowed.
pub fn check_redis_prefix(prefix: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=PREFIX_BYTES_MAX).contains(&prefix.len()) && prefix.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("allowed are 1 to {PREFIX_BYTES_MAX} letters, digits and any of \"-_.\""))
}

impl Config {
    pub(super) fn validate_redis(&self, errors: &mut Vec<String>) {
        let Redis { url, cluster, prefix, .. } = &self.redis;
        if let Err(why) = check_redis_prefix(prefix) {
            errors.push(format!("redis.prefix = {prefix:?}: {why}"));
        }
        if url.is_empty() {
            if *cluster {
                errors.push("redis.cluster = true: redis.url names no Redis".into());
            }
            if self.cluster.is_used() {
                return;
            }
            for (i, ChannelRule { distribution, .. }) in self.channels.iter().enumerate() {
                let says = match distribution {
                    Distribution::Auto | Distribution::Local => continue,
                    Distribution::Numbered => "numbered",
                    Distribution::Bridged => "bridged",
                };
                errors.push(format!(
                    "channels[{i}].distribution = {says:?}: redis.url names no Redis, and cluster.registry no registry; without \
                     one allowed are auto and local"
                ));
            }
            return;
        }
        match self.redis.connection() {
            Ok(info) if *cluster => {
                if let ConnectionAddr::Unix(_) = info.addr() {
                    errors.push(
                        "redis.cluster = true: redis.url names a socket, and servers of a cluster know each other by host and port; \
                         allowed are redis:// and rediss://"
                            .into(),
                    );
                }
                match info.redis_settings().db() {
                    0 => {}
                    database => errors.push(format!(
                        "redis.cluster = true: redis.url names database {database}; a cluster has 0 alone, and redis.prefix keeps \
                         nodes apart"
                    )),
                }
            }
            Ok(_) => {}
            Err(e) => errors.push(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    fn load(flags: &[&str]) -> Result<Config, String> {
        let flags = flags.iter().map(|&flag| flag.into()).collect();
        Config::load(&Sources { flags, ..Sources::default() }).map_err(|e| e.to_string())
    }

    #[test]
    fn urls_say_where_redis_is_and_nothing_else() {
        for url in [
            "redis://localhost",
            "redis://localhost:6380/3",
            "rediss://user:hush@redis.example:6379/0",
            "redis://:hush@[::1]",
            "unix:///run/redis.sock",
            "unix:///run/redis.sock?db=2&pass=hush",
        ] {
            load(&[&format!("redis.url={url}")]).unwrap();
        }
        for (url, why) in [
            ("hush", "it is no URL of Redis"),
            ("http://hush", "it is no URL of Redis"),
            ("redis:///0?hush", "it"),
            ("redis://hush:x", "it is no URL of Redis"),
            ("redis://u:hush@", "it"),
            ("redis://0.0.0.0", "Cannot connect to a wildcard address"),
            ("redis://localhost/hush", "Invalid database number"),
            ("redis://localhost/-1", "a database has a number from 0 on"),
            ("redis://localhost?hush=resp2", "it says more than where Redis is"),
            ("rediss://localhost#insecure", "it says more than where Redis is"),
            ("unix:///run/redis.sock?hush=1", "it says more than where Redis is"),
            ("unix:///run/redis.sock?db=hush", "Invalid database number"),
        ] {
            let refused = load(&[&format!("redis.url={url}")]).unwrap_err();
            assert!(refused.starts_with(&format!("redis.url: {why}")), "{url}: {refused}");
            assert!(!refused.contains("hush"), "{refused}");
        }
    }

    #[test]
    fn what_needs_redis_is_refused_without_it() {
        for says in ["numbered", "bridged"] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("c.toml");
            let rule = format!("[[channels]]\npattern = \"a\"\ndistribution = {says:?}\n");
            std::fs::write(&file, &rule).unwrap();
            let sources = Sources { file: Some(&file), ..Sources::default() };
            let refused = Config::load(&sources).unwrap_err().to_string();
            let begins = format!("channels[0].distribution = {says:?}: redis.url names no Redis");
            assert!(refused.starts_with(&begins), "{refused}");
            std::fs::write(&file, format!("[redis]\nurl = \"redis://localhost\"\n{rule}")).unwrap();
            Config::load(&sources).unwrap();
        }
        for (url, why) in [
            (None, "redis.url names no Redis"),
            (Some("unix:///run/redis.sock"), "redis.url names a socket"),
            (Some("redis://localhost/3"), "redis.url names database 3"),
        ] {
            let url = url.map(|url| format!("redis.url={url}"));
            let flags: Vec<&str> =
                url.as_deref().into_iter().chain(["redis.cluster=true"]).collect();
            let refused = load(&flags).unwrap_err();
            assert!(refused.starts_with(&format!("redis.cluster = true: {why}")), "{refused}");
        }
        load(&["redis.url=rediss://localhost", "redis.cluster=true"]).unwrap();
        for prefix in ["", "a b", "a*", &"x".repeat(65)] {
            let refused = load(&[&format!("redis.prefix={prefix}")]).unwrap_err();
            assert!(refused.starts_with(&format!("redis.prefix = {prefix:?}: ")), "{refused}");
        }
    }
}
