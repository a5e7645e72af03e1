//! The registry's own routes, under `/v1`, and all routes put together.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::api::{Announced, Announcement, BackedUp, ErrorBody, Heard, Heartbeat, Left, NodeList};
use super::body::{BODY_BYTES_MAX, Whole};
use super::error::{ApiError, Code};
use super::guard::{Guard, guard};
use super::hold::{Registry, metrics_text};
use super::names::NodeId;
use super::views::{Standpoint, ViewReply};
use super::{channels, cluster, figures, foreign, server};

pub(super) type App = State<Arc<Registry>>;

/// All routes, with the key asked for in front of them.
pub(super) fn router(keys: Arc<Guard>) -> Router {
    let registry = keys.registry.clone();
    let own = Router::new()
        .route("/v1/nodes", post(announce).get(nodes))
        .route("/v1/nodes/{id}", delete(leave))
        .route("/v1/nodes/{id}/heartbeat", post(heartbeat))
        .route("/v1/nodes/{id}/view", post(view))
        .route("/v1/channels", get(channels::list).put(channels::put).delete(channels::remove))
        .route("/v1/backup", post(backup))
        .route("/metrics", get(figures::metrics))
        .route("/openapi.json", get(|| async { Json(openapi()) }))
        .route("/health", get(health));
    let foreign = Router::new()
        .route("/nodes", get(foreign::nodes).post(foreign::register))
        .route("/announce", post(foreign::announce))
        .route("/nodes/{id}/heartbeat", post(foreign::heartbeat))
        .route("/nodes/{id}/channels", get(foreign::channel_rows))
        .route("/channels", post(foreign::add_channel))
        .route("/channels/{id}", get(foreign::channel_names))
        .route("/metrics/{id}", post(foreign::report))
        .route("/cluster/metrics", get(cluster::metrics));
    own.merge(foreign)
        .fallback(|| async {
            let message = "there is nothing here; /openapi.json lists what there is";
            ApiError::new(Code::NotFound, message)
        })
        .method_not_allowed_fallback(|| async {
            let message = "this path is not served for this method; see /openapi.json";
            ApiError::new(Code::MethodNotAllowed, message)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(keys, guard))
        .with_state(registry)
}

/// The OpenAPI description of the routes under `/v1`, made from the code.
pub fn openapi() -> utoipa::openapi::OpenApi {
    #[derive(OpenApi)]
    #[openapi(
        info(title = "ringfeed registry", description = "Nodes, their figures and their channels. docs/REGISTRY.md \
             has the routes of other systems' registries, which are served beside these."),
        servers((url = "http://127.0.0.1:9810", description = "--listen by default")),
        modifiers(&Keys),
        paths(announce, heartbeat, view, leave, nodes, channels::list, channels::put, channels::remove, backup, health, figures::metrics)
    )]
    struct Document;
    Document::openapi()
}

/// The two ways to give a key.
struct Keys;

impl utoipa::Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let bearer = bearer.description(Some("One of the registry's keys.")).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let header = ApiKeyValue::with_description("X-API-Key", "The same key.");
        components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

/// The id in a path.
pub(super) fn id_in(path: &str) -> Result<NodeId, ApiError> {
    Ok(path.parse::<NodeId>()?)
}

/// What stands behind `?`, with an error in the form of the others.
pub(super) fn query<T>(given: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    let refused = |e: QueryRejection| ApiError::bad_request(e.body_text());
    given.map(|Query(query)| query).map_err(refused)
}

/// Whether who asks has this version already: `?known=` or `If-None-Match`.
pub(super) fn is_known(version: u64, known: Option<u64>, headers: &HeaderMap) -> bool {
    let tag = tag(version);
    let matched = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        value.to_str().is_ok_and(|tags| {
            tags.split(',').any(|given| given.trim().trim_start_matches("W/") == tag)
        })
    });
    matched || known == Some(version)
}

fn tag(version: u64) -> String {
    format!("\"{version}\"")
}

/// An answer that says which version it is; without a body where that is known.
pub(super) fn versioned(version: u64, body: Option<impl Serialize>) -> Response {
    let mut response = match body {
        Some(body) => Json(body).into_response(),
        None => StatusCode::NOT_MODIFIED.into_response(),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag(version)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Takes a node in, or once more: announcing the same again changes nothing. Another epoch replaces the process that was
/// there under this id, and the answer says so.
#[utoipa::path(
    post, path = "/v1/nodes", request_body = Announcement,
    responses(
        (status = 200, description = "It is there, and stored", body = Announced),
        (status = "4XX", description = "Nothing was changed", body = ErrorBody),
        (status = 503, description = "The file takes nothing, or there are too many; nothing was changed", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
async fn announce(
    State(registry): App,
    body: Result<Whole, ApiError>,
) -> Result<Json<Announced>, ApiError> {
    Ok(Json(registry.announce(body?.parse()?, false).await?))
}

/// Takes a sign of life. 404: the registry does not know the node, which has to announce itself. 409 `replaced`: another process
/// has announced itself under this id since.
#[utoipa::path(
    post, path = "/v1/nodes/{id}/heartbeat", request_body = Heartbeat,
    params(("id" = String, Path, description = "Id of the node")),
    responses(
        (status = 200, description = "It was heard", body = Heard),
        (status = "4XX", description = "It was not", body = ErrorBody),
        (status = 503, description = "It was heard, but its state could not be stored", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
async fn heartbeat(
    State(registry): App,
    Path(id): Path<String>,
    body: Result<Whole, ApiError>,
) -> Result<Json<Heard>, ApiError> {
    let id = id_in(&id)?;
    let Heartbeat { epoch, state, metrics } = body?.parse_or_default()?;
    let metrics = metrics.as_deref().map(metrics_text).transpose()?;
    Ok(Json(registry.hear(&id, epoch.as_ref(), state, metrics).await?))
}

/// Which nodes share the channels among them, for one that says by which view it goes. It is a sign of life, too. 404 and 409 as
/// with a heartbeat.
#[utoipa::path(
    post, path = "/v1/nodes/{id}/view", request_body = Standpoint,
    params(("id" = String, Path, description = "Id of the node")),
    responses(
        (status = 200, description = "The view that counts", body = ViewReply),
        (status = "4XX", description = "It was not heard", body = ErrorBody),
        (status = 503, description = "It was heard, but the next view could not be stored", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
async fn view(
    State(registry): App,
    Path(id): Path<String>,
    body: Result<Whole, ApiError>,
) -> Result<Json<ViewReply>, ApiError> {
    Ok(Json(registry.stand(&id_in(&id)?, &body?.parse()?).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LeaveQuery {
    /// Of the process: one that has been replaced does not take its successor with it.
    #[param(value_type = Option<String>)]
    epoch: Option<NodeId>,
    /// Whether it has ended for certain, as a process says of itself: nobody waits until it has found out that it is let go.
    #[serde(default)]
    ended: bool,
}

/// Lets a node go at once.
#[utoipa::path(
    delete, path = "/v1/nodes/{id}",
    params(("id" = String, Path, description = "Id of the node"), LeaveQuery),
    responses(
        (status = 200, description = "It is not there any more", body = Left),
        (status = "4XX", description = "Nothing was changed", body = ErrorBody),
        (status = 503, description = "The file takes nothing; nothing was changed", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
async fn leave(
    State(registry): App,
    Path(id): Path<String>,
    given: Result<Query<LeaveQuery>, QueryRejection>,
) -> Result<Json<Left>, ApiError> {
    let (id, LeaveQuery { epoch, ended }) = (id_in(&id)?, query(given)?);
    Ok(Json(Left { left: registry.leave(&id, epoch.as_ref(), ended).await? }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NodesQuery {
    /// Also those that have not been heard of for longer than `node_timeout_ms`.
    #[serde(default)]
    all: bool,
    /// With what each reported last.
    #[serde(default)]
    metrics: bool,
    /// A version that is known already: 304 if it is still the same. So is `If-None-Match`.
    known: Option<u64>,
}

/// The nodes that live.
#[utoipa::path(
    get, path = "/v1/nodes", params(NodesQuery),
    responses(
        (status = 200, description = "The nodes, by id", body = NodeList),
        (status = 304, description = "As they are known"),
        (status = "4XX", description = "Nothing", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
async fn nodes(
    State(registry): App,
    headers: HeaderMap,
    given: Result<Query<NodesQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let NodesQuery { all, metrics, known } = query(given)?;
    let (mut fleet, at) = registry.fleet().await;
    let version = fleet.nodes_version(at);
    if is_known(version, known, &headers) {
        return Ok(versioned(version, None::<()>));
    }
    let (settled, nodes) = (fleet.is_settled(at), fleet.nodes(all, metrics, at));
    drop(fleet);
    Ok(versioned(version, Some(NodeList { version, settled, nodes })))
}

/// Writes a consistent copy of the registry's file to the directory that it was started with (`--backup-dir`).
#[utoipa::path(
    post, path = "/v1/backup",
    responses(
        (status = 200, description = "It is on the disk", body = BackedUp),
        (status = 409, description = "There is no directory for copies", body = ErrorBody),
        (status = 503, description = "There is no copy", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
async fn backup(State(registry): App) -> Result<Json<BackedUp>, ApiError> {
    server::backup(&registry).await.map(Json)
}

#[derive(Serialize, ToSchema)]
struct Health {
    /// `healthy`.
    status: &'static str,
    /// What time it is, in UTC.
    timestamp: String,
}

/// The process lives. No key is needed.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It lives", body = Health)))]
async fn health() -> Json<Health> {
    let now = crate::clock::Clock::Machine.unix_ms();
    Json(Health { status: "healthy", timestamp: foreign::iso(now) })
}
