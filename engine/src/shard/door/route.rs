//! What a request is answered with.

use std::net::IpAddr;

use ringfeed_protocol::Dialect;
use ringfeed_protocol::dialect::Talk;
use ringfeed_protocol::handshake::{Refusal, Request, Upgrade, write_response};

use super::credentials::{Shown, is_token};
use crate::config::Endpoint;
use crate::settings::Settings;

/// The page for a browser that was pointed at this port.
const PAGE: &str = include_str!("../page.html");
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// What a request is answered with, where it is not refused.
#[derive(Debug)]
pub(super) enum Answer {
    /// What the control thread answers.
    HandOver,
    /// A whole answer, after which the connection ends.
    Page(Vec<u8>),
    /// A WebSocket.
    Upgrade {
        /// Number of the endpoint in the configuration.
        endpoint: u8,
        /// What it speaks.
        dialect: Dialect,
        /// What the dialect remembers of it, where it does.
        talk: Option<Box<dyn Talk>>,
        /// The answer that opens it.
        answer: Vec<u8>,
        /// What it shows of who asks.
        shown: Shown,
    },
}

/// Decides what a request is answered with. `head` is whole.
pub(super) fn route(head: &[u8], settings: &Settings, address: IpAddr) -> Result<Answer, Refusal> {
    let (config, origins) = (&*settings.config, &settings.origins);
    let request = Request::parse_any(head)?;
    if config.endpoints.iter().any(|endpoint| endpoint.serves_http(request.path)) {
        return Ok(Answer::HandOver);
    }
    let request = request.bare()?;
    let endpoints = (0u8..=u8::MAX).zip(&config.endpoints);
    let own = { endpoints.clone() }.find(|(_, endpoint)| endpoint.path == request.path);
    let any = || { endpoints }.find(|(_, endpoint)| endpoint.is_anywhere());
    if let Some((number, endpoint)) = own.or_else(|| any().filter(|_| request.wants_upgrade())) {
        let mut upgrade = request.upgrade()?;
        if !origins.allow(request.header("origin"), request.header("host")) {
            let text =
                "pages of this Origin may not connect; server.origins lists those that may\n";
            return Err(Refusal::new(403, text));
        }
        let mut answer = Vec::new();
        let shown = Shown::of(&request, &upgrade.protocols, settings, address);
        upgrade.protocols.retain(|protocol| !is_token(protocol, config));
        let dialect = choose(&request, &upgrade, endpoint, &mut answer)?;
        let talk = dialect.talk(&request, endpoint.hidden());
        return Ok(Answer::Upgrade { endpoint: number, dialect, talk, answer, shown });
    }
    match request.path {
        "/health" => page(&request, JSON, "{\"status\":\"ok\"}\n"),
        "/" if config.server.demo_page && !request.wants_upgrade() => page(&request, HTML, PAGE),
        _ => {
            let paths: Vec<&str> = config.endpoints.iter().map(Endpoint::example).collect();
            let text = format!("there is nothing here; WebSocket is at {}\n", paths.join(", "));
            Err(Refusal::new(404, text))
        }
    }
}

/// A plain answer; to HEAD without its body.
fn page(request: &Request, kind: &str, body: &str) -> Result<Answer, Refusal> {
    let mut answer = Vec::new();
    match request.method {
        "GET" => write_response(&mut answer, 200, "", kind, body),
        "HEAD" => {
            write_response(&mut answer, 200, "", kind, body);
            answer.truncate(answer.len() - body.len());
        }
        _ => {
            let text = "allowed here are GET and HEAD\n".into();
            return Err(Refusal { status: 405, headers: "Allow: GET, HEAD\r\n".into(), text });
        }
    }
    Ok(Answer::Page(answer))
}

/// Chooses what is spoken and writes the answer that opens the WebSocket.
fn choose(
    request: &Request,
    upgrade: &Upgrade,
    endpoint: &Endpoint,
    answer: &mut Vec<u8>,
) -> Result<Dialect, Refusal> {
    let allowed =
        |dialect: Dialect| dialect == endpoint.dialect || (endpoint.choose && dialect.is_chosen());
    let find = |name: &str| Dialect::from_name(name).filter(|&dialect| allowed(dialect));
    let refusal = |what: &str| {
        let names = Dialect::ALL.into_iter().filter(|&d| allowed(d)).map(Dialect::name);
        let names = names.collect::<Vec<_>>().join(", ");
        Refusal::new(400, format!("{what} spoken here; allowed are {names}\n"))
    };
    if let Some(name) = request.query_value("protocol") {
        let dialect = find(name).ok_or_else(|| refusal("?protocol= is not"))?;
        let offered = upgrade.protocols.contains(&dialect.name());
        if !offered && !upgrade.protocols.is_empty() {
            // A browser would fail a connection without a subprotocol, and not say why.
            let text = format!("?protocol={name} is not among the subprotocols offered\n");
            return Err(Refusal::new(400, text));
        }
        upgrade.write_response(answer, offered.then(|| dialect.name()));
        return Ok(dialect);
    }
    if upgrade.protocols.is_empty() {
        upgrade.write_response(answer, None);
        return Ok(endpoint.dialect);
    }
    let offered = upgrade.protocols.iter().find_map(|name| find(name));
    let dialect = offered.ok_or_else(|| refusal("no subprotocol offered is"))?;
    upgrade.write_response(answer, Some(dialect.name()));
    Ok(dialect)
}
