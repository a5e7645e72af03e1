//! The text of a configuration.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::str::FromStr;

use ringfeed_protocol::printable::Printable;

use crate::registry::api::{NodeEntry, NodeState};
use crate::registry::names::NodeId;

/// A setting that would mean something else in HAProxy's configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not allowed: {1}")]
pub struct BadSetting(String, &'static str);

/// Text that stands in a configuration as it is: one word, without quotes, escapes, variables and comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section(String);

impl FromStr for Section {
    type Err = BadSetting;

    /// Name of a section: letters, digits and `. _ - :`.
    fn from_str(text: &str) -> Result<Section, BadSetting> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        let allowed = "1 to 64 of A-Z a-z 0-9 . _ - :";
        word(text, 64, fits, allowed).map(Section)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text of these bytes alone.
fn word(
    text: &str,
    most: usize,
    fits: impl Fn(u8) -> bool,
    allowed: &'static str,
) -> Result<String, BadSetting> {
    match (1..=most).contains(&text.len()) && text.bytes().all(fits) {
        true => Ok(text.to_owned()),
        false => Err(BadSetting(Printable::name(text).to_string(), allowed)),
    }
}

/// Checks what a `bind` line listens at.
pub fn check_bind(text: &str) -> Result<String, BadSetting> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:*[]@/".contains(&byte);
    word(text, 256, fits, "what HAProxy binds to, as in :443, 10.0.0.1:80 and [::]:443")
}

/// Checks the path of a file that HAProxy reads, or a path that it asks for.
pub fn check_path(text: &str) -> Result<String, BadSetting> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/+@~".contains(&byte);
    let text = word(text, 1024, fits, "a path of A-Z a-z 0-9 . _ - / + @ ~")?;
    match text.starts_with('/') {
        true => Ok(text),
        false => Err(BadSetting(text, "a path that begins with /")),
    }
}

/// How a client comes back to the node that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sticky {
    /// By a cookie of HAProxy's own.
    Cookie,
    /// By its address.
    Source,
    /// Not at all: it goes to the node with the fewest connections.
    None,
}

/// A node as a `server` line has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    id: NodeId,
    /// `HOST:PORT`.
    place: String,
    weight: u16,
    draining: bool,
}

impl Server {
    /// The nodes of a list that live, by id, and those that cannot be had: HAProxy would speak no TLS to them.
    pub fn of(nodes: &[NodeEntry]) -> (Vec<Server>, Vec<&NodeId>) {
        let (tls, plain): (Vec<_>, Vec<_>) =
            nodes.iter().filter(|node| node.live).partition(|node| node.url.has_tls());
        let mut servers: Vec<Server> = plain
            .into_iter()
            .map(|node| Server {
                id: node.id.clone(),
                place: node.url.authority(),
                weight: node.weight.number(),
                draining: node.state == NodeState::Draining,
            })
            .collect();
        servers.sort_by(|a, b| a.id.cmp(&b.id));
        servers.dedup_by(|a, b| a.id == b.id);
        (servers, tls.into_iter().map(|node| &node.id).collect())
    }

    /// Its id.
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Whether it takes no new clients.
    pub fn is_draining(&self) -> bool {
        self.draining
    }
}

/// What an operator decides.
#[derive(Debug, Clone)]
pub struct Template {
    /// Name of the backend.
    pub backend: Section,
    /// Where clients come in, as [`check_bind`] checks it.
    pub binds: Vec<String>,
    /// A PEM file with certificate and key, as [`check_path`] checks it; without it, there is no TLS.
    pub tls_cert: Option<String>,
    /// Whether nodes are told with the PROXY protocol for whom a connection is. Without it they are told with `X-Forwarded-For`.
    pub proxy_protocol: bool,
    /// How a client comes back to its node.
    pub sticky: Sticky,
    /// What is asked of a node to see whether it lives, as [`check_path`] checks it.
    pub check_path: String,
    /// Connections of clients at a time; without it, as many as HAProxy's descriptors allow.
    pub connections_max: Option<u32>,
    /// Seconds that a WebSocket may be silent.
    pub tunnel_timeout_s: u32,
    /// Seconds that connections of before a reload may live on.
    pub reload_timeout_s: u32,
    /// Where HAProxy shows its statistics, on loopback.
    pub stats: Option<SocketAddr>,
}

impl Template {
    /// A whole configuration with these servers.
    pub fn whole(&self, servers: &[Server]) -> String {
        let Template { tunnel_timeout_s, reload_timeout_s, backend, .. } = self;
        let maxconn = self.connections_max.map(|most| format!("    maxconn {most}\n"));
        let maxconn = maxconn.unwrap_or_default();
        let mut text = format!(
            "\
# Written by `ringfeed haproxy`, which writes it again when the nodes change.
global
    log stdout format raw daemon notice
{maxconn}    # After a reload the process of before serves the connections that it has; this is when it has to end.
    hard-stop-after {reload_timeout_s}s
    ssl-default-bind-options ssl-min-ver TLSv1.2

defaults
    mode http
    log global
    option dontlognull
    # A node that is gone is noticed while a client is connecting, and another one is tried.
    option redispatch 1
    retries 3
    timeout connect 3s
    timeout http-request 10s
    timeout http-keep-alive 15s
    timeout queue 10s
    timeout client 60s
    timeout server 60s
    timeout client-fin 15s
    timeout server-fin 15s
    timeout check 3s
    # From the upgrade on. Nodes send pings more often than this.
    timeout tunnel {tunnel_timeout_s}s

frontend ringfeed
"
        );
        let tls = self.tls_cert.as_ref().map(|file| format!(" ssl crt {file} alpn http/1.1"));
        let tls = tls.unwrap_or_default();
        for bind in &self.binds {
            put(&mut text, format_args!("    bind {bind}{tls}"));
        }
        text.push_str(
            "    # Requests that two programs could read in two ways are refused, and odd header names dropped.
    no option accept-invalid-http-request
    option http-restrict-req-hdr-names delete
",
        );
        if !self.proxy_protocol {
            text.push_str("    option forwardfor\n");
        }
        if self.tls_cert.is_some() {
            text.push_str("    http-request set-header X-Forwarded-Proto https\n");
        }
        put(&mut text, format_args!("    default_backend {backend}\n"));
        if let Some(address) = self.stats {
            put(
                &mut text,
                format_args!(
                    "frontend ringfeed_stats\n    bind {address}\n    stats enable\n    stats uri /\n    stats refresh 5s\n"
                ),
            );
        }
        text.push_str(&self.backend(servers));
        text
    }

    /// The `backend` section alone.
    pub fn backend(&self, servers: &[Server]) -> String {
        let Template { backend, check_path, .. } = self;
        let mut text = format!("backend {backend}\n    mode http\n");
        let secure = if self.tls_cert.is_some() { " secure" } else { "" };
        match self.sticky {
            Sticky::Cookie => {
                put(
                    &mut text,
                    format_args!(
                        "    balance leastconn\n    cookie RINGFEED_NODE insert indirect nocache httponly{secure}"
                    ),
                );
            }
            // A hash and no table: every HAProxy, and the next one after a reload, sends a client to the same node.
            Sticky::Source => text.push_str("    balance source\n    hash-type consistent\n"),
            Sticky::None => text.push_str("    balance leastconn\n"),
        }
        put(
            &mut text,
            format_args!(
                "    option httpchk\n    \
                 http-check send meth GET uri {check_path} ver HTTP/1.1 hdr Host localhost\n    \
                 http-check expect status 200"
            ),
        );
        let proxy = if self.proxy_protocol { " send-proxy-v2 check-send-proxy" } else { "" };
        // A name that does not resolve makes its own node unreachable, not the configuration invalid.
        put(
            &mut text,
            format_args!(
                "    default-server check inter 2s fall 3 rise 2 init-addr last,libc,none \
                 on-marked-down shutdown-sessions{proxy}"
            ),
        );
        for Server { id, place, weight, draining } in servers {
            let cookie = match self.sticky {
                Sticky::Cookie => format!(" cookie {id}"),
                _ => String::new(),
            };
            // Also clients with its cookie go elsewhere; those that it has are the process's of before the reload.
            let disabled = if *draining { " disabled" } else { "" };
            put(
                &mut text,
                format_args!("    server {id} {place} weight {weight}{cookie}{disabled}"),
            );
        }
        text
    }
}

/// Adds a line. Writing into a string does not fail.
fn put(text: &mut String, line: fmt::Arguments<'_>) {
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, url: &str, state: NodeState) -> NodeEntry {
        NodeEntry {
            id: id.parse().unwrap(),
            url: url.parse().unwrap(),
            peer: None,
            weight: Default::default(),
            state,
            epoch: "1".parse().unwrap(),
            live: true,
            age_ms: 0,
            last_seen_ms: 0,
            metrics: None,
        }
    }

    fn template() -> Template {
        Template {
            backend: "nodes".parse().unwrap(),
            binds: vec![":80".into()],
            tls_cert: None,
            proxy_protocol: true,
            sticky: Sticky::Cookie,
            check_path: "/health".into(),
            connections_max: None,
            tunnel_timeout_s: 3600,
            reload_timeout_s: 3600,
            stats: None,
        }
    }

    #[test]
    fn servers_are_the_nodes_that_live_by_id() {
        let mut gone = node("gone", "http://c:1", NodeState::Active);
        gone.live = false;
        let nodes = [
            node("b", "ws://b.example.org", NodeState::Draining),
            node("a", "http://[::1]:9800/ws", NodeState::Active),
            node("tls", "wss://t:1", NodeState::Active),
            gone,
        ];
        let (servers, skipped) = Server::of(&nodes);
        assert_eq!(skipped.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["tls"]);
        let text = template().backend(&servers);
        let lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with("    server ")).collect();
        assert_eq!(
            lines,
            [
                "    server a [::1]:9800 weight 100 cookie a",
                "    server b b.example.org:80 weight 100 cookie b disabled"
            ]
        );
        assert!(
            text.contains("send-proxy-v2") && !template().whole(&servers).contains("forwardfor")
        );
    }

    #[test]
    fn settings_are_single_words() {
        for bad in ["", "a b", "a\nb", "a#", "a\"", "a\\", "$A", "a'b", &"x".repeat(65)] {
            assert!(bad.parse::<Section>().is_err(), "{bad}");
        }
        for bad in ["a b", "a\nb", "a#", "a\"", "a\\", "$A", "a'b"] {
            assert!(check_bind(bad).is_err(), "{bad}");
            assert!(check_path(&format!("/{bad}")).is_err(), "{bad}");
        }
        assert!(check_path("relative").is_err() && check_bind("").is_err());
        for good in [":443", "*:80", "[::]:443", "10.0.0.1:80", "unix@/run/a.sock"] {
            assert_eq!(check_bind(good).unwrap(), good);
        }
    }
}
