//! The routes of the registries of other systems, as their nodes and tools know them: one in PHP (`/announce`, `/channels/ID`,
//! `/metrics/ID`, `/cluster/metrics`) and one in Node.js (`POST /nodes`, `/nodes/ID/…`). Paths that both have answer with
//! the fields of both, and a body says by its fields whose it is.

use std::fmt::Display;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::api::{Announcement, ChannelEntry, NodeState, Weight, everywhere};
use super::body::Whole;
use super::channels::{ALLOWED_NODES_MAX, check_nodes};
use super::error::{ApiError, Code, with_headers};
use super::hold::metrics_text;
use super::names::{NodeId, NodeUrl, check_channel};
use super::routes::App;
use super::store::StoredNode;

/// Epoch of every process that says none: one replaces the other without a word.
const NO_EPOCH: &str = "none";

/// A time in UTC as ISO 8601 has it.
pub(super) fn iso(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000);
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

/// The same to the second, as their databases write it.
fn sql_time(unix_ms: u64) -> String {
    iso(unix_ms / 1000 * 1000).trim_end_matches('Z').replace('T', " ")
}

/// An error of the registry in PHP.
struct PhpError(StatusCode, String);

impl PhpError {
    fn missing() -> PhpError {
        PhpError(StatusCode::BAD_REQUEST, "Missing required fields".into())
    }
}

impl From<ApiError> for PhpError {
    fn from(e: ApiError) -> PhpError {
        PhpError(e.status(), e.message().into())
    }
}

impl axum::response::IntoResponse for PhpError {
    fn into_response(self) -> Response {
        let PhpError(status, text) = self;
        with_headers(status, (status, Json(json!({ "error": text }))).into_response())
    }
}

/// What is wrong with fields of a body, as the registry in Node.js says it.
struct Fields(Vec<Value>);

impl Fields {
    fn one(path: &str, message: impl Display) -> Fields {
        let message = super::error::clip(&message.to_string());
        Fields(vec![json!({"type": "field", "msg": message, "path": path, "location": "body"})])
    }
}

impl axum::response::IntoResponse for Fields {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(json!({ "errors": self.0 }))).into_response()
    }
}

/// A field with text in it: there, and not empty.
fn text<'a>(body: &'a Map<String, Value>, field: &str) -> Option<&'a str> {
    body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn success() -> Response {
    Json(json!({ "success": true })).into_response()
}

/// The object in a body; what is none has no fields.
fn object(body: Result<Whole, ApiError>) -> Result<Map<String, Value>, ApiError> {
    let body = body?;
    match serde_json::from_slice(&body.0) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Ok(Map::new()),
    }
}

fn plain_node(id: NodeId, url: NodeUrl, state: NodeState) -> Result<Announcement, ApiError> {
    let epoch = NO_EPOCH.parse::<NodeId>()?;
    Ok(Announcement { id, url, peer: None, weight: Weight::default(), state, epoch })
}

/// `GET /nodes`: those that are active and heard of.
pub(super) async fn nodes(State(registry): App) -> Json<Vec<Value>> {
    let (mut fleet, at) = registry.fleet().await;
    let live = fleet.live_and_active(at);
    drop(fleet);
    let row = |stored: StoredNode| {
        let StoredNode { node, created_ms, last_seen_ms, .. } = stored;
        json!({
            "id": node.id,
            "url": node.url,
            "status": node.state.word(),
            "last_seen": sql_time(last_seen_ms),
            "created_at": sql_time(created_ms),
        })
    };
    Json(live.into_iter().map(row).collect())
}

/// `POST /announce` (PHP).
pub(super) async fn announce(
    State(registry): App,
    body: Result<Whole, ApiError>,
) -> Result<Response, Response> {
    let announced = async {
        let body = object(body)?;
        let fields = (text(&body, "id"), text(&body, "url"), text(&body, "status"));
        let (Some(id), Some(url), Some(status)) = fields else { return Err(PhpError::missing()) };
        let parsed = (id.parse::<NodeId>(), url.parse::<NodeUrl>());
        let (id, url) = (parsed.0.map_err(ApiError::from)?, parsed.1.map_err(ApiError::from)?);
        // Whatever else it wants, it wants no new clients.
        let state = if status == "active" { NodeState::Active } else { NodeState::Draining };
        registry.announce(plain_node(id, url, state)?, true).await?;
        Ok(success())
    };
    announced.await.map_err(|e: PhpError| e.into_response())
}

/// `POST /nodes` (Node.js).
pub(super) async fn register(
    State(registry): App,
    body: Result<Whole, ApiError>,
) -> Result<Response, Response> {
    let body = object(body).map_err(|e| PhpError::from(e).into_response())?;
    let mut wrong = Vec::new();
    let mut field = |name: &str| {
        let found = text(&body, name);
        if found.is_none() {
            wrong.extend(Fields::one(name, "Invalid value").0);
        }
        found.unwrap_or_default()
    };
    let (id, url) = (field("id"), field("url"));
    if !wrong.is_empty() {
        return Err(Fields(wrong).into_response());
    }
    let node = id.parse::<NodeId>().map_err(|e| Fields::one("id", e).into_response())?;
    let place = url.parse::<NodeUrl>().map_err(|e| Fields::one("url", e).into_response())?;
    let registered = async {
        registry.announce(plain_node(node, place, NodeState::Active)?, true).await?;
        Ok(Json(json!({ "id": id, "url": url })).into_response())
    };
    registered.await.map_err(|e: ApiError| PhpError::from(e).into_response())
}

/// `POST /nodes/ID/heartbeat` (Node.js). Whatever the body says.
pub(super) async fn heartbeat(State(registry): App, Path(id): Path<String>) -> Response {
    let not_found = || PhpError(StatusCode::NOT_FOUND, "Node not found".into()).into_response();
    let Ok(id) = id.parse::<NodeId>() else { return not_found() };
    match registry.hear(&id, None, None, None).await {
        Ok(_) => Json(json!({ "status": "ok" })).into_response(),
        Err(e) if e.status() == StatusCode::NOT_FOUND => not_found(),
        Err(e) => PhpError::from(e).into_response(),
    }
}

/// `GET /nodes/ID/channels` (Node.js): rows.
pub(super) async fn channel_rows(State(registry): App, Path(id): Path<String>) -> Response {
    let channels = registry.fleet().await.0.channels(Some(&id));
    let row = |entry: ChannelEntry| row(&id, &entry.name);
    Json(channels.into_iter().map(row).collect::<Vec<_>>()).into_response()
}

fn row(node: &str, name: &str) -> Value {
    json!({ "id": format!("{node}-{name}"), "nodeId": node, "name": name })
}

/// `GET /channels/ID` (PHP): names.
pub(super) async fn channel_names(
    State(registry): App,
    Path(id): Path<String>,
) -> Json<Vec<String>> {
    let channels = registry.fleet().await.0.channels(Some(&id));
    Json(channels.into_iter().map(|entry| entry.name).collect())
}

/// `POST /channels`: with `nodeId` it is that of Node.js and lets one more node serve a channel; with `allowed_nodes` that of PHP,
/// which says all that do.
pub(super) async fn add_channel(
    State(registry): App,
    body: Result<Whole, ApiError>,
) -> Result<Response, Response> {
    let body = object(body).map_err(|e| PhpError::from(e).into_response())?;
    let other = |e: ApiError| PhpError::from(e).into_response();
    if !body.contains_key("nodeId") {
        let (Some(name), Some(allowed)) = (text(&body, "name"), body.get("allowed_nodes")) else {
            return Err(PhpError::missing().into_response());
        };
        let allowed_nodes =
            allowed_nodes(allowed).map_err(axum::response::IntoResponse::into_response)?;
        check_channel(name).map_err(|e| other(e.into()))?;
        check_nodes(&allowed_nodes).map_err(other)?;
        let put = |before: Option<&ChannelEntry>| {
            let rule = before.and_then(|entry| entry.rule.clone());
            Some(ChannelEntry { name: name.to_owned(), allowed_nodes, rule })
        };
        registry.set_channel(name, put).await.map_err(other)?;
        return Ok(success());
    }
    let fields = (text(&body, "nodeId"), text(&body, "name"));
    let node = fields.0.ok_or_else(|| Fields::one("nodeId", "Invalid value").into_response())?;
    let name = fields.1.ok_or_else(|| Fields::one("name", "Invalid value").into_response())?;
    node.parse::<NodeId>().map_err(|e| Fields::one("nodeId", e).into_response())?;
    check_channel(name).map_err(|e| Fields::one("name", e).into_response())?;
    let mut full = false;
    let add = |before: Option<&ChannelEntry>| {
        let mut entry = before.cloned().unwrap_or_else(|| ChannelEntry {
            name: name.to_owned(),
            allowed_nodes: Vec::new(),
            rule: None,
        });
        let nodes = &mut entry.allowed_nodes;
        if !nodes.iter().any(|own| own == node || own == "*") {
            full = nodes.len() >= ALLOWED_NODES_MAX;
            if !full {
                nodes.push(node.to_owned());
            }
        }
        Some(entry)
    };
    registry.set_channel(name, add).await.map_err(other)?;
    if full {
        let message = format!("{ALLOWED_NODES_MAX} nodes are named already; name them with *");
        return Err(other(ApiError::new(Code::LimitReached, message)));
    }
    Ok(Json(row(node, name)).into_response())
}

/// `*`, a list, or text with ids between commas or white space.
fn allowed_nodes(given: &Value) -> Result<Vec<String>, PhpError> {
    let own = |text: &str| text.to_owned();
    let nodes: Option<Vec<String>> = match given {
        Value::String(text) => {
            let parts = text.split(|c: char| c == ',' || c.is_whitespace());
            Some(parts.filter(|part| !part.is_empty()).map(own).collect())
        }
        Value::Array(list) => list.iter().map(|entry| entry.as_str().map(own)).collect(),
        _ => None,
    };
    match nodes {
        Some(nodes) if nodes.iter().any(|node| node == "*") => Ok(everywhere()),
        Some(nodes) if !nodes.is_empty() => Ok(nodes),
        _ => Err(PhpError::missing()),
    }
}

/// `POST /metrics/ID` (PHP). The node need not have announced itself; if it has, it was heard.
pub(super) async fn report(
    State(registry): App,
    Path(id): Path<String>,
    body: Result<Whole, ApiError>,
) -> Result<Response, Response> {
    let reported = async {
        let id = id.parse::<NodeId>().map_err(ApiError::from)?;
        let body = body?;
        let metrics: &RawValue =
            serde_json::from_slice(&body.0).map_err(|_| PhpError::missing())?;
        registry.report(&id, metrics_text(metrics)?).await?;
        Ok(success())
    };
    reported.await.map_err(|e: PhpError| e.into_response())
}
