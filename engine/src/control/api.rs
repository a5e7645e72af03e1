//! The HTTP API on the internal port.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, Request as HttpRequest, State as FromState};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, ErrorCode};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::oneshot;
use tokio::time::Instant;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::publish::{self, ApiError, PublishBody, PublishResult};
use super::{State, ingest, metrics};
use crate::config::Secret;
use crate::counters::Totals;
use crate::message::{Reply, Request, StoredPublication};

type App = FromState<Arc<State>>;

/// All routes. Those under `/api` need a key where keys are configured.
pub(super) fn router(state: Arc<State>) -> Router {
    let body_max = state.shared.config.api.body_bytes_max as usize;
    let guarded = Router::new()
        .route("/api/publish", post(publish_one))
        .route("/api/batch", post(publish_batch))
        .layer(DefaultBodyLimit::max(body_max))
        .route("/api/ingest", post(ingest::ingest))
        .route("/api/channels", get(channels))
        .route("/api/history", get(history))
        .route("/api/stats", get(stats))
        .layer(from_fn_with_state(state.clone(), guard));
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics::metrics))
        .route("/api/openapi.json", get(|| async { Json(openapi()) }))
        .merge(guarded)
        .fallback(|| async {
            let message = "there is nothing here; /api/openapi.json lists what there is";
            (StatusCode::NOT_FOUND, Json(ApiError::new("not_found", message)))
        })
        .method_not_allowed_fallback(|| async {
            let message = "this path is not served for this method; see /api/openapi.json";
            (StatusCode::METHOD_NOT_ALLOWED, Json(ApiError::new("method_not_allowed", message)))
        })
        .with_state(state)
}

/// The OpenAPI description, made from the code.
pub fn openapi() -> utoipa::openapi::OpenApi {
    #[derive(OpenApi)]
    #[openapi(
        info(title = "ringfeed", description = "The HTTP API of a ringfeed server."),
        paths(
            publish_one,
            publish_batch,
            ingest::ingest,
            channels,
            history,
            stats,
            health,
            ready,
            metrics::metrics
        )
    )]
    struct Document;
    Document::openapi()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.error.as_str() {
            "unauthorized" => StatusCode::UNAUTHORIZED,
            "forbidden" => StatusCode::FORBIDDEN,
            "not_found" => StatusCode::NOT_FOUND,
            "limit_reached" => StatusCode::PAYLOAD_TOO_LARGE,
            "busy" | "draining" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut response = (status, Json(self)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let bearer = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// Keys are compared by their hashes, in a time that depends neither on where they differ nor on
/// how long they are. Without keys the API is for programs on this machine: browsers are refused,
/// because any page may send requests to loopback.
async fn guard(
    FromState(state): App,
    request: HttpRequest,
    next: Next,
) -> Result<Response, ApiError> {
    let keys = &state.shared.config.api.keys;
    if keys.is_empty() {
        if request.headers().contains_key(header::ORIGIN) {
            let message = "browsers are refused while api.keys is empty";
            return Err(ApiError::new("forbidden", message));
        }
        return Ok(next.run(request).await);
    }
    if !key_fits(keys, request.headers()) {
        let message = "Authorization: Bearer KEY, or X-API-Key, is missing or wrong";
        return Err(ApiError::new("unauthorized", message));
    }
    Ok(next.run(request).await)
}

fn key_fits(keys: &[Secret], headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = value("authorization").and_then(|v| v.strip_prefix("Bearer "));
    let given = bearer.or_else(|| value("x-api-key")).unwrap_or_default();
    let given = Sha256::digest(given.trim());
    // Every key is looked at, whether or not an earlier one fits.
    let fits = keys
        .iter()
        .map(|key| Sha256::digest(&key.0).ct_eq(&given))
        .fold(subtle::Choice::from(0), |any, fits| any | fits);
    bool::from(fits)
}

fn body_of(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|e| {
        let large = e.status() == StatusCode::PAYLOAD_TOO_LARGE;
        ApiError::new(if large { "limit_reached" } else { "bad_request" }, e.body_text())
    })
}

fn not_draining(state: &State) -> Result<(), ApiError> {
    if state.draining.load(Ordering::SeqCst) {
        return Err(ApiError::new("draining", "the server is shutting down"));
    }
    Ok(())
}

/// Publishes to one channel.
#[utoipa::path(
    post, path = "/api/publish",
    request_body = PublishBody,
    responses((status = 200, body = PublishResult), (status = "4XX", body = ApiError))
)]
async fn publish_one(
    FromState(state): App,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PublishResult>, ApiError> {
    not_draining(&state)?;
    let body = body_of(body)?;
    let bytes_max = state.shared.config.api.body_bytes_max as usize;
    let item = publish::parse(&body)?.check(bytes_max)?;
    let channel = item.0.clone();
    let published = publish::publish_all(&state, vec![item]).await?.pop();
    match published.map(|published| publish::result(&channel, published)) {
        Some(PublishResult::Refused(e)) => Err(e),
        Some(accepted) => Ok(Json(accepted)),
        None => Err(ApiError::new("busy", "no shard has answered")),
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchBody<'a> {
    /// In order; those to one channel keep it.
    #[serde(borrow)]
    publications: Vec<PublishBody<'a>>,
}

#[derive(Serialize, ToSchema)]
struct BatchReply {
    /// One for each publication, in the same order.
    results: Vec<PublishResult>,
}

/// Publishes to many channels at once. Each publication has its own result.
#[utoipa::path(
    post, path = "/api/batch",
    request_body = BatchBody,
    responses((status = 200, body = BatchReply), (status = "4XX", body = ApiError))
)]
async fn publish_batch(
    FromState(state): App,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<BatchReply>, ApiError> {
    not_draining(&state)?;
    let body = body_of(body)?;
    let batch: BatchBody = serde_json::from_slice(&body)
        .map_err(|e| ApiError::new(ErrorCode::BadJson.as_str(), e.to_string()))?;
    let bytes_max = state.shared.config.api.body_bytes_max as usize;
    let checked: Vec<_> = batch.publications.into_iter().map(|p| p.check(bytes_max)).collect();
    let good: Vec<_> = checked.iter().flatten().cloned().collect();
    let mut published = publish::publish_all(&state, good).await?.into_iter();
    let results = checked
        .into_iter()
        .map(|checked| match checked {
            Err(e) => PublishResult::Refused(e),
            Ok((channel, _)) => match published.next() {
                Some(published) => publish::result(&channel, published),
                None => PublishResult::Refused(ApiError::new("busy", "no shard has answered")),
            },
        })
        .collect();
    Ok(Json(BatchReply { results }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ChannelsQuery {
    /// Only channels whose name begins with this.
    #[serde(default)]
    prefix: String,
    /// At most so many; 1000 where absent.
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
struct ChannelsReply {
    /// In order of name.
    channels: Vec<ChannelReply>,
    /// How many there are, listed or not.
    total: usize,
}

#[derive(Serialize, ToSchema)]
struct ChannelReply {
    channel: String,
    epoch: String,
    /// Of the newest publication.
    offset: u64,
    subscribers: u64,
    /// Publications kept.
    history: usize,
}

/// Lists the channels that have subscribers or history.
#[utoipa::path(
    get, path = "/api/channels",
    params(ChannelsQuery),
    responses((status = 200, body = ChannelsReply), (status = "4XX", body = ApiError))
)]
async fn channels(
    FromState(state): App,
    query: Result<Query<ChannelsQuery>, QueryRejection>,
) -> Result<Json<ChannelsReply>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::new("bad_request", e.body_text()))?;
    let deadline = Instant::now() + publish::timeout(&state);
    let mut rows = Vec::new();
    for shard in state.shared.shards.ids() {
        let mut next = Some(0);
        while let Some(from) = next {
            let (reply, answer) = oneshot::channel();
            publish::send(&state, shard, Request::ListChannels { from, reply }, deadline).await?;
            let page = publish::receive(answer, deadline).await?;
            rows.extend(page.rows);
            next = page.next;
        }
    }
    rows.retain(|row| row.name.starts_with(&query.prefix));
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let total = rows.len();
    rows.truncate(query.limit.unwrap_or(1000));
    let channels = rows
        .into_iter()
        .map(|row| ChannelReply {
            channel: row.name.to_string(),
            epoch: row.position.epoch.to_string(),
            offset: row.position.offset,
            subscribers: row.subscribers,
            history: row.history,
        })
        .collect();
    Ok(Json(ChannelsReply { channels, total }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct HistoryQuery {
    channel: String,
    /// Only publications behind this offset.
    after: Option<u64>,
    /// At most so many; limits.history_reply_max bounds it.
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
struct HistoryReply {
    channel: String,
    epoch: String,
    /// Of the newest publication.
    offset: u64,
    publications: Vec<PublicationReply>,
}

#[derive(Serialize, ToSchema)]
struct PublicationReply {
    offset: u64,
    /// As published; text as a string, bytes in base64.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// `base64` where `data` is that.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

impl PublicationReply {
    fn new(StoredPublication { offset, payload }: StoredPublication) -> PublicationReply {
        let text = String::from_utf8_lossy(&payload.bytes);
        let mut encoding = None;
        let data = match payload.kind {
            PayloadKind::Json => RawValue::from_string(text.into_owned()),
            PayloadKind::Text => to_raw_value(&text),
            PayloadKind::Binary => {
                use base64::Engine as _;
                encoding = Some("base64");
                to_raw_value(&base64::engine::general_purpose::STANDARD.encode(&payload.bytes))
            }
        };
        PublicationReply { offset, data: data.unwrap_or_default(), encoding }
    }
}

/// Reads what a channel keeps.
#[utoipa::path(
    get, path = "/api/history",
    params(HistoryQuery),
    responses((status = 200, body = HistoryReply), (status = "4XX", body = ApiError))
)]
async fn history(
    FromState(state): App,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<HistoryReply>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::new("bad_request", e.body_text()))?;
    let channel = ChannelName::new(&query.channel)
        .map_err(|e| ApiError::new(ErrorCode::BadChannel.as_str(), e.to_string()))?;
    let deadline = Instant::now() + publish::timeout(&state);
    let most = state.shared.config.limits.history_reply_max;
    let limit = query.limit.unwrap_or(most).min(most);
    let home = state.shared.shards.home(&channel);
    let (reply, answer) = oneshot::channel();
    let request = Request::History {
        channel: channel.clone(),
        after: query.after,
        limit,
        reply: Reply::Control(reply),
    };
    publish::send(&state, home, request, deadline).await?;
    let Some(page) = publish::receive(answer, deadline).await? else {
        return Err(ApiError::new(
            "not_found",
            format!("there is no channel {channel} at present"),
        ));
    };
    Ok(Json(HistoryReply {
        channel: channel.to_string(),
        epoch: page.position.epoch.to_string(),
        offset: page.position.offset,
        publications: page.publications.into_iter().map(PublicationReply::new).collect(),
    }))
}

/// What the whole process has done and holds.
#[derive(Serialize, ToSchema)]
pub(super) struct StatsReply {
    version: &'static str,
    uptime_seconds: f64,
    shards: u16,
    /// CPU time of the process.
    cpu_user_seconds: f64,
    cpu_system_seconds: f64,
    /// Resident memory in bytes.
    resident_bytes: u64,
    /// Ordinary descriptors in use.
    open_files: usize,
    /// Counters and gauges, over all shards.
    totals: Totals,
}

/// Adds up the counters of all shards.
pub(super) fn totals(state: &State) -> Totals {
    let mut totals = Totals::default();
    state.shared.counters.iter().for_each(|counters| totals.add(&Totals::of(counters)));
    totals
}

/// Counters, CPU time and memory. Gauges are at most a tenth of a second old.
#[utoipa::path(get, path = "/api/stats", responses((status = 200, body = StatsReply)))]
async fn stats(FromState(state): App) -> Json<StatsReply> {
    let (user, system) = ringfeed_wire::process_cpu_time();
    Json(StatsReply {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: state.started.elapsed().as_secs_f64(),
        shards: state.shared.shards.count(),
        cpu_user_seconds: user.as_secs_f64(),
        cpu_system_seconds: system.as_secs_f64(),
        resident_bytes: ringfeed_wire::resident_bytes().unwrap_or(0),
        open_files: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        totals: totals(&state),
    })
}

#[derive(Serialize, ToSchema)]
struct StatusReply {
    status: &'static str,
}

/// The process lives.
#[utoipa::path(get, path = "/health", responses((status = 200, body = StatusReply)))]
async fn health() -> Json<StatusReply> {
    Json(StatusReply { status: "ok" })
}

/// The process takes new connections; 503 while it drains.
#[utoipa::path(
    get, path = "/ready",
    responses((status = 200, body = StatusReply), (status = 503, body = StatusReply))
)]
async fn ready(FromState(state): App) -> (StatusCode, Json<StatusReply>) {
    if state.draining.load(Ordering::SeqCst) {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(StatusReply { status: "draining" }));
    }
    (StatusCode::OK, Json(StatusReply { status: "ready" }))
}
