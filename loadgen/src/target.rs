//! Where the server is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use anyhow::{Context as _, bail};

use crate::args::Common;
use crate::templates::Templates;

/// Connections from one local address to one destination before the kernel's search for a free port
/// turns slow: half of its default port range, less some.
const CONNECTIONS_PER_ADDRESS: u32 = 10_000;

/// How long the port of a connection that was closed is not used again.
const TIME_WAIT_SECONDS: f64 = 60.0;

/// A server's addresses.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// For the `Host` header.
    pub(crate) host: String,
    /// Path and query of the WebSocket.
    pub(crate) path: String,
    /// Where to connect.
    pub(crate) address: SocketAddr,
    /// The HTTP API.
    pub(crate) api: SocketAddr,
    pub(crate) api_key: String,
    /// Local addresses to connect from, in turn; empty is the kernel's choice.
    pub(crate) from: Vec<IpAddr>,
    pub(crate) templates: Templates,
}

impl Target {
    pub(crate) fn new(args: &Common, churn: f64) -> anyhow::Result<Target> {
        let (host, path, address) = parse("--url", &args.url)?;
        let api = match &args.api {
            Some(api) => {
                let host = api.trim_start_matches("http://").trim_end_matches('/');
                resolve(host).with_context(|| format!("--api {api}"))?
            }
            None => SocketAddr::new(address.ip(), address.port().wrapping_add(1)),
        };
        let from = if args.from.is_empty() && address.ip().is_loopback() && address.is_ipv4() {
            // Half of what churns is connections.
            let waiting = (churn / 2.0 * TIME_WAIT_SECONDS) as u32;
            let count = args.conns.saturating_add(waiting).div_ceil(CONNECTIONS_PER_ADDRESS);
            // One address is what the kernel chooses itself.
            let spread = (1..=count).filter(|_| count > 1);
            // Others with each run: ports of the last one are in TIME_WAIT for a minute, and the
            // kernel searches around them.
            let base = rand::random_range(1..0xff_0000u32);
            spread
                .map(|i| {
                    let [_, b, c, d] = (base + i).to_be_bytes();
                    IpAddr::V4(Ipv4Addr::new(127, b, c, d))
                })
                .collect()
        } else {
            args.from.clone()
        };
        Ok(Target {
            host,
            path,
            address,
            api,
            api_key: args.api_key.clone(),
            from,
            templates: args.templates.clone(),
        })
    }

    /// Path and query with a dialect chosen.
    pub(crate) fn path_for(&self, dialect: &str) -> String {
        with_parameter(self.path.clone(), "protocol", dialect)
    }
}

/// A path with one more parameter in its query; without one where the value is empty.
pub(crate) fn with_parameter(path: String, name: &str, value: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    if value.is_empty() { path } else { format!("{path}{joint}{name}={value}") }
}

/// Host, path and address of a WebSocket URL.
pub(crate) fn parse(flag: &str, url: &str) -> anyhow::Result<(String, String, SocketAddr)> {
    if url.starts_with("wss://") {
        bail!(
            "{flag} {url}: loadgen speaks no TLS; have something in front of it do that, for \
             example `socat TCP-LISTEN:9000,fork,reuseaddr OPENSSL:HOST:443`, and say \
             {flag} ws://127.0.0.1:9000/…"
        );
    }
    let Some(rest) = url.strip_prefix("ws://") else {
        bail!("{flag} {url}: it must begin with ws://");
    };
    let (host, path) = match rest.split_once('/') {
        Some((host, path)) => (host, format!("/{path}")),
        None => (rest, "/ws".to_owned()),
    };
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = resolve(&host).with_context(|| format!("{flag} {url}"))?;
    Ok((host, path, address))
}

fn resolve(host: &str) -> anyhow::Result<SocketAddr> {
    host.to_socket_addrs()?.next().context("the name has no address")
}
