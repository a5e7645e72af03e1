//! Which pages may connect: the key `server.origins`.
//!
//! A browser sends the `Origin` of the page that opens a WebSocket and lets no page choose it, which
//! is what stands between a user's session and a foreign page (RFC 6455 section 10.2). Who sends none
//! is no browser, or is lying: it is let in, because it could say anything.

/// The origins that may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins(Vec<Pattern>);

/// A pattern that can never fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no origin: allowed are \"null\", \"same-host\" and scheme://host or scheme://host:port as browsers \
     send them (no path, non-ASCII names in punycode), with '*' in host or as port"
)]
pub struct BadOriginPattern(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// Pages of the host, and port, that the request is for.
    SameHost,
    /// Pages without an origin of their own: local files, sandboxed frames.
    Null,
    Tuple {
        scheme: String,
        /// With `*` for one or more letters, digits, `-` and `.`.
        host: String,
        port: PortPattern,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortPattern {
    Any,
    Only(Option<u16>),
}

/// An origin as RFC 6454 section 6.2 writes it, in lower case.
struct Tuple<'a> {
    scheme: &'a str,
    host: &'a str,
    /// Of the scheme, where none is written; `None` where the scheme has none either.
    port: Option<u16>,
}

impl Origins {
    /// Reads the patterns of the configuration. None at all lets everybody in.
    pub fn parse(patterns: &[String]) -> Result<Origins, BadOriginPattern> {
        let read = |text: &String| {
            Pattern::parse(&text.to_ascii_lowercase()).ok_or_else(|| BadOriginPattern(text.clone()))
        };
        patterns.iter().map(read).collect::<Result<_, _>>().map(Origins)
    }

    /// Whether none are listed, so that pages from everywhere may connect. Who acts on what browsers send of themselves,
    /// cookies above all, must not begin so.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a page of this origin, the value of the header, may connect to `host`, the value of another one.
    pub fn allow(&self, origin: Option<&[u8]>, host: Option<&[u8]>) -> bool {
        let Some(origin) = origin.filter(|_| !self.0.is_empty()) else { return true };
        let Ok(origin) = std::str::from_utf8(origin) else { return false };
        if origin == "null" {
            return self.0.contains(&Pattern::Null);
        }
        let origin = origin.to_ascii_lowercase();
        let own = origin.split_once("://").map(|(_, own)| own.as_bytes());
        let is_same = own.zip(host).is_some_and(|(own, host)| own.eq_ignore_ascii_case(host));
        let Some(Tuple { scheme, host, port }) = Tuple::parse(&origin, false) else { return false };
        self.0.iter().any(|pattern| match pattern {
            Pattern::Null => false,
            Pattern::SameHost => is_same,
            Pattern::Tuple { scheme: s, host: h, port: p } => {
                let port_fits = *p == PortPattern::Any || *p == PortPattern::Only(port);
                s == scheme && port_fits && fits(h.as_bytes(), host.as_bytes())
            }
        })
    }
}

impl Pattern {
    fn parse(text: &str) -> Option<Pattern> {
        if text == "null" {
            return Some(Pattern::Null);
        }
        if text == "same-host" {
            return Some(Pattern::SameHost);
        }
        let (text, any_port) = match text.strip_suffix(":*") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let Tuple { scheme, host, port } = Tuple::parse(text, true)?;
        let port = if any_port { PortPattern::Any } else { PortPattern::Only(port) };
        Some(Pattern::Tuple { scheme: scheme.into(), host: host.into(), port })
    }
}

impl<'a> Tuple<'a> {
    fn parse(text: &'a str, stars: bool) -> Option<Tuple<'a>> {
        let (scheme, rest) = text.split_once("://")?;
        let (host, port) = match rest.rsplit_once(':') {
            // Colons inside brackets belong to an IPv6 address.
            Some((host, port)) if !port.ends_with(']') => {
                let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
                (host, Some(port.parse().ok().filter(|_| digits)?))
            }
            _ => (rest, None),
        };
        let in_scheme = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        let in_host = |b: u8| is_wild(b) || b == b'_' || (stars && b == b'*');
        let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(in_host),
        };
        let begins = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
        if !begins || !scheme.bytes().all(in_scheme) || !host_fits {
            return None;
        }
        let default = match scheme {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        };
        Some(Tuple { scheme, host, port: port.or(default) })
    }
}

/// What `*` stands for.
fn is_wild(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')
}

/// Whether `text` fits `pattern`: `*` stands for one or more bytes. Takes at most the product of the
/// lengths, whatever a peer sends.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stood, and up to where in `text` it has been tried to reach.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') if is_wild(byte) => {
                star = Some((p, t + 1));
                (p, t) = (p + 1, t + 1);
            }
            Some(&expected) if expected == byte && expected != b'*' => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, reached)) if text.get(reached).is_some_and(|&b| is_wild(b)) => {
                    star = Some((at, reached + 1));
                    (p, t) = (at + 1, reached + 1);
                }
                _ => return false,
            },
        }
    }
    p == pattern.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(patterns: &[&str]) -> Origins {
        Origins::parse(&patterns.iter().map(|&p| p.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn only_listed_pages_may_connect() {
        let listed = origins(&[
            "https://example.org",
            "https://*.example.org",
            "http://localhost:*",
            "http://127.0.0.1:8080",
            "https://xn--bcher-kva.example:8443",
            "https://[2001:db8::1]",
            "capacitor://localhost",
            "https://a*c.test",
        ]);
        let table: [(&str, bool); 62] = [
            ("https://example.org", true),
            ("https://example.org:443", true),
            ("HTTPS://EXAMPLE.ORG", true),
            ("https://www.example.org", true),
            ("https://a.b.example.org", true),
            ("http://localhost", true),
            ("http://localhost:1", true),
            ("http://localhost:65535", true),
            ("http://127.0.0.1:8080", true),
            ("https://xn--bcher-kva.example:8443", true),
            ("https://[2001:db8::1]", true),
            ("https://[2001:db8::1]:443", true),
            ("capacitor://localhost", true),
            ("https://abc.test", true),
            ("https://a.b-c.test", true),
            // The same host otherwise.
            ("http://example.org", false),
            ("https://example.org:8443", false),
            ("https://example.org:80", false),
            ("https://example.org.", false),
            ("https://example.org/", false),
            ("https://example.org/path", false),
            ("https://example.org?query", false),
            ("https://example.org#fragment", false),
            ("https://user@example.org", false),
            ("https://evil.test@example.org", false),
            ("https://example.org:443:443", false),
            ("https://example.org:", false),
            ("https://example.org:+443", false),
            ("https://example.org:70000", false),
            ("https://example.org https://evil.test", false),
            (" https://example.org", false),
            ("example.org", false),
            ("//example.org", false),
            ("https:example.org", false),
            // Hosts that look like it.
            ("https://example.org.evil.test", false),
            ("https://evilexample.org", false),
            ("https://example.orgevil.test", false),
            ("https://.example.org", false),
            ("https://example.com", false),
            ("https://example-org", false),
            ("https://www.example.org.evil.test", false),
            ("https://evil.test/.example.org", false),
            ("https://evil.test?.example.org", false),
            ("https://bücher.example:8443", false),
            ("https://ехample.org", false),
            ("https://xn--bcher-kva.example", false),
            ("http://localhost.evil.test:8080", false),
            ("http://127.0.0.1", false),
            ("https://[2001:db8::2]", false),
            ("https://ac.test", false),
            ("https://EXAMPLE.org.", false),
            ("https://[2001:DB8::1]", true),
            ("https://[2001:db8::1", false),
            ("https://[2001:db8::1]evil.test", false),
            ("https://[::ffff:127.0.0.1]", false),
            // Further lines, or what looks like them.
            ("https://example.org\r\nX: https://evil.test", false),
            ("https://evil.test\nhttps://example.org", false),
            ("https://example.org\r", false),
            ("https://example.org\0", false),
            ("https://example.org, https://example.org", false),
            ("null", false),
            ("", false),
        ];
        for (origin, allowed) in table {
            assert_eq!(listed.allow(Some(origin.as_bytes()), None), allowed, "{origin:?}");
        }
        assert!(!listed.allow(Some(b"https://\xff.example.org"), None));
        assert!(listed.allow(None, None), "who sends none is no browser");
    }

    #[test]
    fn pages_of_the_same_host_are_those_whose_origin_is_what_the_request_is_for() {
        let own = origins(&["same-host"]);
        for (origin, host, allowed) in [
            ("https://example.org", "example.org", true),
            ("http://EXAMPLE.org:8080", "example.ORG:8080", true),
            ("https://[::1]:1", "[::1]:1", true),
            ("https://example.org", "example.org:8080", false),
            ("https://example.org:8080", "example.org", false),
            ("https://evil.test", "example.org", false),
            ("https://example.org.evil.test", "example.org", false),
            ("https://user@example.org", "user@example.org", false),
            ("null", "null", false),
            ("", "", false),
            ("https://", "", false),
        ] {
            let is = own.allow(Some(origin.as_bytes()), Some(host.as_bytes()));
            assert_eq!(is, allowed, "{origin:?} for {host:?}");
        }
        assert!(!own.allow(Some(b"https://example.org"), None) && own.allow(None, None));
    }

    #[test]
    fn an_empty_list_takes_any_and_null_is_listed_as_such() {
        for origin in [Some(&b"https://anything"[..]), Some(b"null"), Some(b"\xff"), None] {
            assert!(origins(&[]).allow(origin, None));
        }
        assert!(origins(&[]).is_empty() && !origins(&["null"]).is_empty());
        assert!(origins(&["null"]).allow(Some(b"null"), None));
        assert!(!origins(&["null"]).allow(Some(b"NULL"), None));
        assert!(!origins(&["null"]).allow(Some(b"https://example.org"), None));
    }

    #[test]
    fn a_pattern_that_can_never_fit_is_refused() {
        for bad in [
            "",
            "*",
            "example.org",
            "https://",
            "https://example.org/",
            "https://example.org/app",
            "https://bücher.example",
            "https://user@example.org",
            "https://example.org:99999",
            "https://example.org:44*",
            "*://example.org",
            "https://exa mple.org",
        ] {
            let error = Origins::parse(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("scheme://host"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_long_host_takes_no_long_time() {
        let many = origins(&[&format!("https://{}b.test", "*a".repeat(30))]);
        let host = format!("https://{}", "a".repeat(16_000));
        assert!(!many.allow(Some(host.as_bytes()), None));
    }
}
