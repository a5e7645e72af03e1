//! What nodes are called and where they are: text from outside that ends up in URLs and in configuration files, so only what
//! cannot mean anything else there is a name.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use reqwest::Url;
use ringfeed_protocol::printable::Printable;
use serde::{Deserialize, Serialize};

/// Longest id of a node, and longest epoch of its process, in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// Longest URL of a node in bytes.
pub const URL_BYTES_MAX: usize = 512;
/// Longest name of a host in bytes (RFC 1035, section 2.3.4).
pub const HOST_BYTES_MAX: usize = 253;
/// Longest name of a channel, or pattern of names, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 255;

/// Text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown:?} is not allowed: {allowed}")]
pub struct BadName {
    what: &'static str,
    shown: String,
    allowed: &'static str,
}

fn bad(what: &'static str, text: &str, allowed: &'static str) -> BadName {
    BadName { what, shown: Printable::name(text).to_string(), allowed }
}

/// A type that is text which was checked.
macro_rules! checked_text {
    ($name:ident, $text:expr) => {
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<$name, BadName> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text: fn(&$name) -> &str = $text;
                f.write_str(text(self))
            }
        }
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                String::schema()
            }
        }
        impl utoipa::ToSchema for $name {}
    };
}

/// Id of a node, or epoch of its process: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Box<str>);

checked_text!(NodeId, |id| &id.0);

impl NodeId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = BadName;

    fn from_str(text: &str) -> Result<NodeId, BadName> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // Of `.` and `..` a path in a URL would be made another one.
        let dots = text.bytes().all(|byte| byte == b'.');
        match (1..=ID_BYTES_MAX).contains(&text.len()) && !dots && text.bytes().all(fits) {
            true => Ok(NodeId(text.into())),
            false => Err(bad("the id", text, "1 to 64 of A-Z a-z 0-9 . _ - and not dots alone")),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    host: Host,
    port: u16,
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Host {
    Name(Box<str>),
    Address(IpAddr),
}

impl Host {
    /// `[…]` is an IPv6 address, and no IPv6 address is anything else.
    fn parse(text: &str) -> Option<Host> {
        if let Some(rest) = text.strip_prefix('[') {
            let ip: Ipv6Addr = rest.strip_suffix(']')?.parse().ok()?;
            return Some(Host::Address(ip.into()));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=HOST_BYTES_MAX).contains(&text.len()) || !text.bytes().all(fits) {
            return None;
        }
        match text.parse::<IpAddr>() {
            Ok(ip) => Some(Host::Address(ip)),
            // What could be read as an address in one program and as a name in another is neither.
            Err(_) if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => None,
            Err(_) if text.starts_with(['.', '-']) => None,
            Err(_) => Some(Host::Name(text.into())),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{port}"),
            Host::Address(IpAddr::V4(ip)) => write!(f, "{ip}:{port}"),
            Host::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]:{port}"),
        }
    }
}

/// Where a node's public port is reached: `http://`, `https://`, `ws://` or `wss://`, a host, a port (that of the scheme if it is
/// left out) and possibly a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeUrl {
    text: Box<str>,
    place: Place,
    tls: bool,
}

checked_text!(NodeUrl, |url| &url.text);

impl NodeUrl {
    /// As it was announced.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `HOST:PORT`, with an IPv6 address in brackets: nothing but letters, digits and `. _ - : [ ]`.
    pub fn authority(&self) -> String {
        self.place.to_string()
    }

    /// Whether TLS is spoken there.
    pub fn has_tls(&self) -> bool {
        self.tls
    }

    /// Another resource of the node, over HTTP.
    pub fn http(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.place)
    }
}

impl FromStr for NodeUrl {
    type Err = BadName;

    fn from_str(text: &str) -> Result<NodeUrl, BadName> {
        let refused = |allowed| bad("the URL", text, allowed);
        if text.len() > URL_BYTES_MAX {
            return Err(refused("at most 512 bytes"));
        }
        // The parser would drop or encode them, and the text is kept as it came.
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'\\<>`{}|^".contains(&byte)) {
            return Err(refused("visible ASCII characters that stand for themselves in a URL"));
        }
        let url = Url::parse(text).map_err(|_| refused("one such as http://node-1:9800"))?;
        let tls = match url.scheme() {
            "http" | "ws" => false,
            "https" | "wss" => true,
            _ => return Err(refused("http://, https://, ws:// and wss://")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("no user and no password in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("no ? and no # in it"));
        }
        let host = url.host_str().and_then(Host::parse);
        let host = host.ok_or_else(|| refused("a host of A-Z a-z 0-9 . _ - or an address"))?;
        let port = url.port_or_known_default().filter(|&port| port > 0);
        let port = port.ok_or_else(|| refused("a port from 1 to 65535"))?;
        Ok(NodeUrl { text: text.into(), place: Place { host, port }, tls })
    }
}

/// `HOST:PORT` of a node's link to other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddress(Box<str>);

checked_text!(PeerAddress, |address| &address.0);

impl PeerAddress {
    /// As text, with an IPv6 address in brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerAddress {
    type Err = BadName;

    fn from_str(text: &str) -> Result<PeerAddress, BadName> {
        let place = || {
            let (host, port) = text.rsplit_once(':')?;
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|&port| port > 0 && digits)?;
            Some(Place { host: Host::parse(host)?, port })
        };
        let allowed = "HOST:PORT, as in 10.0.0.1:9802 and [::1]:9802";
        let place = place().ok_or_else(|| bad("the address", text, allowed))?;
        Ok(PeerAddress(place.to_string().into()))
    }
}

/// Checks a channel's name or a pattern of names.
pub(super) fn check_channel(name: &str) -> Result<(), BadName> {
    let fits = |c: char| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}');
    match (1..=CHANNEL_BYTES_MAX).contains(&name.len()) && name.chars().all(fits) {
        true => Ok(()),
        false => Err(bad("the name", name, "1 to 255 bytes without control characters")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_nothing_but_ids() {
        for good in ["a", "node-1", "N_1.example.org", "..a", &"x".repeat(64)] {
            assert_eq!(good.parse::<NodeId>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a b", "a/b", "a\nb", "é", "a\"", "a#", "a%41", &"x".repeat(65)]
        {
            let error = bad.parse::<NodeId>().unwrap_err().to_string();
            assert!(error.contains("1 to 64 of"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn urls_have_a_host_and_a_port_and_nothing_that_could_mean_more() {
        for (url, authority, tls) in [
            ("http://localhost:8080", "localhost:8080", false),
            ("ws://node_1:9800/ws", "node_1:9800", false),
            ("https://Example.org", "example.org:443", true),
            ("wss://[2001:db8::1]:9800/", "[2001:db8::1]:9800", true),
            ("http://10.0.0.1", "10.0.0.1:80", false),
        ] {
            let parsed: NodeUrl = url.parse().unwrap();
            assert_eq!((parsed.authority(), parsed.has_tls()), (authority.to_owned(), tls));
            assert_eq!(parsed.as_str(), url);
        }
        for bad in [
            "",
            "localhost:8080",
            "ftp://a:1",
            "file:///etc/passwd",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:70000",
            "http://u:p@a:1",
            "http://a:1?x",
            "http://a:1/#x",
            "http://a b:1",
            "http://a:1\nserver evil 1.2.3.4:80",
            "http://a$b:1",
            "http://a*b:1",
            "http://a:1/\"",
            "http://a:1/{x}",
            "http://-a:1",
            "http://é:1",
            &format!("http://a:1/{}", "x".repeat(512)),
        ] {
            assert!(bad.parse::<NodeUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_links_are_a_host_and_a_port() {
        for (text, read) in [
            ("10.0.0.1:9802", "10.0.0.1:9802"),
            ("node-1.example.org:1", "node-1.example.org:1"),
            ("[0:0::1]:9802", "[::1]:9802"),
        ] {
            assert_eq!(text.parse::<PeerAddress>().unwrap().as_str(), read);
        }
        for bad in
            ["", "a", ":1", "a:", "a:0", "a:+1", "a:65536", "::1:1", "[::1]", "a b:1", "1.2:1"]
        {
            assert!(bad.parse::<PeerAddress>().is_err(), "{bad}");
        }
    }
}
