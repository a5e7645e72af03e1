//! Who may use the internal port.
//!
//! With keys, who has one with the scope of the route. Without keys, programs on this machine: the port listens on loopback
//! then, but so can be reached by any page in a browser here. A page of another site says so (`Origin`,
//! `Sec-Fetch-Site`) or, once its name is rebound to loopback, still gives its name as `Host`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State as FromState};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use ringfeed_protocol::handshake::bearer;

use super::State;
use super::error::{ApiError, Code, clip};
use crate::callers::{Caller, KeyHash};
use crate::config::Scope;
use crate::shard::door::counted_as;

/// The client's address, in the extensions of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Wrong keys a second of one address, and how many at once, that are answered with 401. Above it they are answered with
/// 429, so that whoever tries many is seen in figures and told to wait; a right key is served all the same, so that nobody
/// is locked out by others behind the same address.
pub(super) const WRONG_KEYS: (u32, u32) = (5, 20);
/// Refused keys are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// What a route asks of who uses it.
#[derive(Debug, Clone)]
pub(super) struct Needs {
    pub(super) state: Arc<State>,
    /// `None` where any key will do.
    pub(super) scope: Option<Scope>,
    /// For figures and the description: on loopback a program of this machine needs no key.
    pub(super) figures: bool,
}

/// Who requests are counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Requester {
    /// Who has this key.
    Key(KeyHash),
    /// Who needs none.
    Address(Option<IpAddr>),
}

/// Finds out once who asks, whether they may and whether not too often; the [`Caller`] and the [`Requester`] travel with
/// the request.
pub(super) async fn guard(
    FromState(needs): FromState<Needs>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (requester, caller) = needs.admit(&request)?;
    let state = &needs.state;
    within_rate(state, requester)?;
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(requester);
    Ok(next.run(request).await)
}

impl Needs {
    /// Who asks, if they may.
    fn admit(&self, request: &Request) -> Result<(Requester, Arc<Caller>), ApiError> {
        let Needs { state, scope, figures } = self;
        let config = state.shared.config();
        let open = config.callers.is_empty() || (*figures && config.api.listen.ip().is_loopback());
        let given = given_key(request.headers());
        let found = config.callers.find(given);
        if let Some((hash, caller)) = found {
            state.figures.key_request(&caller.name);
            if scope.is_none_or(|scope| caller.may(scope)) {
                return Ok((Requester::Key(*hash), caller.clone()));
            }
        }
        let peer = request.extensions().get::<Peer>().map(|peer| counted_as(peer.0));
        if open {
            match local(request) {
                // Who needs no key is not worse off with one.
                Ok(()) => return Ok((Requester::Address(peer), state.local.clone())),
                Err(e) if found.is_none() => return Err(e),
                Err(_) => {}
            }
        }
        if let (Some((_, caller)), Some(scope)) = (found, scope) {
            return Err(lacks(caller, *scope));
        }
        if let Some(others) = state.refused_log.due(LOG_EVERY) {
            let peer = peer.map_or_else(|| "?".into(), |ip| ip.to_string());
            let (method, path) = (request.method(), clip(request.uri().path()));
            tracing::info!("{method} {path} from {peer}: no key that fits ({others} more like it)");
        }
        if let Some(peer) = peer.filter(|_| !given.is_empty())
            && !state.wrong_keys.take(peer, Instant::now())
        {
            return Err(wrong_keys());
        }
        Err(no_key())
    }
}

/// Who somebody is by the settings of now, who was let in by those of then; the error that a new request would get, if
/// they may not any more. Who needed no key then needs one as soon as there are any.
pub(super) fn still(
    state: &State,
    requester: &Requester,
    scope: Scope,
) -> Result<Arc<Caller>, ApiError> {
    let callers = &state.shared.config().callers;
    match requester {
        Requester::Address(_) if callers.is_empty() => Ok(state.local.clone()),
        Requester::Address(_) => Err(no_key()),
        Requester::Key(key) => match callers.holder(key) {
            Some(caller) if caller.may(scope) => Ok(caller.clone()),
            Some(caller) => Err(lacks(caller, scope)),
            None => Err(no_key()),
        },
    }
}

/// Who has a key that came otherwise than as the API takes keys, and may do what needs this scope.
pub(super) fn holder(
    state: &State,
    given: &[u8],
    scope: Scope,
    client: IpAddr,
) -> Result<Arc<Caller>, ApiError> {
    let config = state.shared.config();
    let Some((hash, caller)) = config.callers.find(given) else {
        let told = given.is_empty() || state.wrong_keys.take(counted_as(client), Instant::now());
        return Err(if told { no_key() } else { wrong_keys() });
    };
    state.figures.key_request(&caller.name);
    if !caller.may(scope) {
        return Err(lacks(caller, scope));
    }
    within_rate(state, Requester::Key(*hash))?;
    Ok(caller.clone())
}

/// Whether somebody asks no more often than they may.
fn within_rate(state: &State, requester: Requester) -> Result<(), ApiError> {
    if state.request_rates.take(requester, Instant::now()) {
        return Ok(());
    }
    let most = state.shared.config().api.requests_per_second_max;
    let message = format!("at most {most} requests a second are allowed; try again");
    Err(ApiError::new(Code::RateLimited, message))
}

fn wrong_keys() -> ApiError {
    let message = "too many wrong keys come from this address; try again";
    ApiError::new(Code::RateLimited, message)
}

fn lacks(caller: &Caller, scope: Scope) -> ApiError {
    let message = format!("the key {} does not have the scope {}", caller.name, scope.name());
    ApiError::new(Code::Forbidden, message)
}

fn no_key() -> ApiError {
    let message = "Authorization: Bearer KEY, or X-API-Key: KEY, is missing or wrong";
    ApiError::new(Code::Unauthorized, message)
}

/// Whether a caller may publish to a channel, or read it.
pub(super) fn check_channel(caller: &Caller, channel: &str) -> Result<(), ApiError> {
    if caller.may_use(channel) {
        return Ok(());
    }
    let message = format!("the key {} is not for the channel {channel}", caller.name);
    Err(ApiError::new(Code::Forbidden, message))
}

/// The key of a request; empty where it has none, which is nobody's.
fn given_key(headers: &HeaderMap) -> &[u8] {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
    given.unwrap_or_default().trim_ascii()
}

/// Whether a request can come from a program on this machine rather than from a page.
fn local(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let forbidden = |message: &str| Err(ApiError::new(Code::Forbidden, message));
    if headers.contains_key(header::ORIGIN) {
        return forbidden("browsers are refused without a key (Origin is set)");
    }
    let site = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    if site.is_some_and(|site| site != b"none" && site != b"same-origin") {
        return forbidden("pages of other sites are refused without a key (Sec-Fetch-Site)");
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let target = request.uri().authority().map(|authority| authority.as_str());
    if hosts.next().is_some() || !is_local(host) || !target.is_none_or(is_local) {
        return forbidden(
            "without a key only Host: localhost, 127.0.0.0/8 and [::1], with any port, are served",
        );
    }
    Ok(())
}

/// Whether the value of a `Host` header is a name of this machine that no other site can have.
fn is_local(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port),
            None => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_fits =
        port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    let bracketed = host.starts_with('[');
    let name_fits = match name.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() && ip.is_ipv6() == bracketed,
        Err(_) => !bracketed && name.eq_ignore_ascii_case("localhost"),
    };
    port_fits && name_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_this_machine() {
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:65535", "[::1]", "[::1]:2"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "localhost:",
            "localhost:x",
            "localhost:65536",
            "localhost.",
            "a.localhost",
            "::1",
            "[127.0.0.1]",
            "[::1",
            "[::1]x",
            "[localhost]",
            "127.0.0.1.example.org",
            "0x7f.1",
            "10.0.0.1",
            "0.0.0.0",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
