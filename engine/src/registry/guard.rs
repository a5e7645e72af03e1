//! Who may ask: whoever has one of the keys, for everything but `/health`. A refusal has the form that those know who ask there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use ringfeed_protocol::handshake::bearer;
use serde_json::json;

use super::error::{ApiError, Code, with_headers};
use super::hold::Registry;
use crate::callers::Callers;
use crate::rates::Rates;
use crate::shard::door::counted_as;

/// Wrong keys a second of one address, and how many at once, that are answered with 401; then with 429.
const WRONG_KEYS: (u32, u32) = (5, 20);

/// Whose request it is, in its extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// See the module.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) registry: Arc<Registry>,
    /// Those that hold by now.
    pub(super) keys: Arc<ArcSwap<Callers>>,
    wrong_keys: Rates<IpAddr>,
}

impl Guard {
    pub(super) fn new(registry: Arc<Registry>, keys: Arc<ArcSwap<Callers>>) -> Guard {
        let (per_second, burst) = WRONG_KEYS;
        Guard { registry, keys, wrong_keys: Rates::new(per_second, burst) }
    }
}

/// In front of every route.
pub(super) async fn guard(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    let keys = guard.keys.load();
    let given = given_key(request.headers());
    if request.uri().path() == "/health" || keys.find(given).is_some() {
        // What is begun is done, also where who asks does not wait for it: the file and what is held here never differ.
        let answered = tokio::spawn(next.run(request)).await;
        let response = answered.unwrap_or_else(|e| {
            tracing::error!("a request failed: {e}");
            ApiError::new(Code::Busy, "this request was given up").into_response()
        });
        guard.registry.figures.answered(response.status().as_u16());
        return response;
    }
    let figures = &guard.registry.figures;
    figures.refused_keys.inc();
    let peer = request.extensions().get::<Peer>().map(|peer| counted_as(peer.0));
    let too_many =
        !given.is_empty() && peer.is_some_and(|peer| !guard.wrong_keys.take(peer, Instant::now()));
    let response = refusal(request.method(), request.uri().path(), too_many);
    figures.answered(response.status().as_u16());
    response
}

fn refusal(method: &Method, path: &str, too_many: bool) -> Response {
    if too_many {
        let message = "too many wrong keys come from this address; try again";
        return ApiError::new(Code::RateLimited, message).into_response();
    }
    // As the registries answered whose routes these are. What both have is answered as in PHP, whose nodes still ask.
    let text = match path.trim_start_matches('/').split('/').next() {
        Some("announce" | "channels" | "metrics" | "cluster") => "Unauthorized",
        Some("nodes") if method == Method::GET && path == "/nodes" => "Unauthorized",
        Some("nodes") => "Invalid API key",
        _ => {
            let message = "Authorization: Bearer KEY, or X-API-Key: KEY, is missing or wrong";
            return ApiError::new(Code::Unauthorized, message).into_response();
        }
    };
    let status = StatusCode::UNAUTHORIZED;
    with_headers(status, (status, Json(json!({ "error": text }))).into_response())
}

/// The key of a request; empty where it has none, which is nobody's.
fn given_key(headers: &HeaderMap) -> &[u8] {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
    given.unwrap_or_default().trim_ascii()
}
