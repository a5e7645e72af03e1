//! `api/rpc-methods`, `api/rpc`, `health` and `stats` as Fluxus serves them.

use std::net::IpAddr;

use axum::extract::{Extension, State as FromState};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Beside;
use ringfeed_protocol::date::iso_millis;

use crate::clock::Clock;
use crate::config::Scope;
use crate::control::error::ApiError;
use crate::control::guard::{Peer, holder};
use crate::control::{channels, publish, rpc};
use crate::counters::Totals;

/// What defines `window.VecturaRPC`.
const SCRIPT: &str = include_str!("fluxus.js");
/// Channels that are listed.
const CHANNELS_MAX: usize = 1000;

/// What the routes share.
#[derive(Debug, Clone)]
struct Fluxus {
    beside: Beside,
    /// Of the WebSocket.
    path: String,
}

/// Adds the routes beside the endpoint at `path`.
pub(super) fn add(router: Router, beside: Beside, path: &str) -> Router {
    let at = |route| beside.path(route);
    let fluxus = Fluxus { beside: beside.clone(), path: path.to_owned() };
    router
        .route(&at("api/rpc-methods"), any(methods).with_state(fluxus.clone()))
        .route(&at("api/rpc"), any(script).with_state(fluxus.clone()))
        .route(&at("health"), any(health).with_state(fluxus.clone()))
        .route(&at("stats"), any(stats).with_state(fluxus))
}

impl Fluxus {
    fn listing(&self) -> Value {
        let shared = &self.beside.state.shared;
        let (settings, date) = (shared.settings.load(), iso_millis(Clock::Machine.unix_ms()));
        rpc::listing(&settings, &settings.config.server.node_id, &date)
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let shards = &self.beside.state.shared.counters;
        shards.iter().for_each(|counters| totals.add(&Totals::of(counters)));
        totals
    }
}

/// Pages of any origin ask, and without an answer that they may read a client is never ready.
async fn methods(FromState(fluxus): FromState<Fluxus>) -> Response {
    ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], Json(fluxus.listing())).into_response()
}

async fn script(FromState(fluxus): FromState<Fluxus>) -> Response {
    // In a script `<` in a text could end it.
    let methods = fluxus.listing()["methods"].to_string().replace('<', "\\u003c");
    let path = Value::from(&*fluxus.path).to_string().replace('<', "\\u003c");
    let script = SCRIPT.replacen("/*PATH*/\"/\"", &path, 1);
    let script = script.replacen("/*METHODS*/[]", &methods, 1);
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], script).into_response()
}

async fn health(FromState(fluxus): FromState<Fluxus>) -> Json<Value> {
    let totals = fluxus.totals();
    Json(json!({
        "status": "ok",
        "channels": totals.channels,
        "timestamp": Clock::Machine.unix_s(),
        "pid": std::process::id(),
        "workers": fluxus.beside.state.shared.shards.count(),
        "connections": totals.connections,
    }))
}

/// Names of channels are for who has a key that may see them.
async fn stats(
    FromState(fluxus): FromState<Fluxus>,
    Extension(Peer(client)): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    match listed(&fluxus, client, &headers).await {
        Ok(channels) => {
            let total = fluxus.totals().subscriptions;
            Json(json!({"channels": channels, "total_subscribers": total})).into_response()
        }
        Err(e) => e.into_response(),
    }
}

async fn listed(fluxus: &Fluxus, client: IpAddr, headers: &HeaderMap) -> Result<Value, ApiError> {
    let state = &fluxus.beside.state;
    let given = headers.get("x-api-key").map(|value| value.as_bytes()).unwrap_or_default();
    let caller = holder(state, given, Scope::Channels, client)?;
    let (prefix, may_see) = (&*fluxus.beside.prefix, |name: &str| caller.may_use(name));
    let deadline = publish::deadline(state);
    let listed = channels::list(state, prefix, may_see, CHANNELS_MAX, deadline).await?;
    Ok(json!(listed)["channels"].take())
}
