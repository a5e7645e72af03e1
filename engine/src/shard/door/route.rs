//! What a request is answered with.

use ringfeed_protocol::Dialect;
use ringfeed_protocol::handshake::{Refusal, Request, write_response};

use crate::shard::Shared;

/// The page for a browser that was pointed at this port.
const PAGE: &str = include_str!("../page.html");

/// Decides what a request is answered with. `Some` for an upgrade.
pub(super) fn route(
    request: &Request,
    shared: &Shared,
    answer: &mut Vec<u8>,
) -> Result<Option<(u8, Dialect)>, Refusal> {
    let endpoints = &shared.config.endpoints;
    let Some((number, endpoint)) = (0u8..).zip(endpoints).find(|(_, e)| e.path == request.path)
    else {
        return match (request.path, request.method) {
            ("/health", "GET") => {
                write_response(answer, 200, "", "application/json", "{\"status\":\"ok\"}\n");
                Ok(None)
            }
            ("/", "GET") if !request.wants_upgrade() => {
                write_response(answer, 200, "", "text/html; charset=utf-8", PAGE);
                Ok(None)
            }
            _ => {
                let paths: Vec<&str> = endpoints.iter().map(|e| e.path.as_str()).collect();
                let text = format!("there is nothing here; WebSocket is at {}\n", paths.join(", "));
                Err(Refusal::new(404, text))
            }
        };
    };
    let upgrade = request.upgrade()?;
    let allowed = |dialect: Dialect| {
        dialect == endpoint.dialect || (endpoint.choose && dialect != Dialect::Echo)
    };
    let spoken = || {
        let names = Dialect::ALL.into_iter().filter(|&d| allowed(d)).map(Dialect::name);
        names.collect::<Vec<_>>().join(", ")
    };
    let find = |name: &str| Dialect::from_name(name).filter(|&dialect| allowed(dialect));
    if let Some(name) = request.query_value("protocol") {
        let Some(dialect) = find(name) else {
            let text = format!("?protocol= is not spoken here; allowed are {}\n", spoken());
            return Err(Refusal::new(400, text));
        };
        let offered = upgrade.protocols.contains(&dialect.name());
        upgrade.write_response(answer, offered.then(|| dialect.name()));
        return Ok(Some((number, dialect)));
    }
    if upgrade.protocols.is_empty() {
        upgrade.write_response(answer, None);
        return Ok(Some((number, endpoint.dialect)));
    }
    match upgrade.protocols.iter().find_map(|name| find(name)) {
        Some(dialect) => {
            upgrade.write_response(answer, Some(dialect.name()));
            Ok(Some((number, dialect)))
        }
        None => {
            let text = format!("no subprotocol offered is spoken here; allowed are {}\n", spoken());
            Err(Refusal::new(400, text))
        }
    }
}
