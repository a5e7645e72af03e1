//! The routes of the internal port, and those that publish.

use std::sync::Arc;

use axum::extract::{Extension, State as FromState};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ringfeed_protocol::ChannelName;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{OpenApi, ToSchema};

use super::body::{Collected, no_room};
use super::error::{ApiError, Code};
use super::guard::{Needs, guard};
use super::port::{Reserved, UNCOUNTED_BYTES_MAX};
use super::publish::{self, PublishBody, PublishResult};
use super::{State, channels, history, ingest, metrics, presence, rooms, stats, users};
use crate::callers::Caller;
use crate::config::Scope;

type App = FromState<Arc<State>>;

/// Publications in one batch.
const BATCH_ITEMS_MAX: usize = 65_536;
/// Refused entries of a batch whose errors have a message.
const MESSAGES_MAX: usize = 100;
/// What a result of a batch takes beside the channel's name.
const RESULT_BYTES_MAX: usize = 96;

/// All routes.
pub(super) fn router(state: Arc<State>) -> Router {
    let needs = |scope, figures| {
        let state = state.clone();
        from_fn_with_state(Needs { state, scope, figures }, guard)
    };
    let scoped = |scope| needs(Some(scope), false);
    let rooms = post(rooms::make_room)
        .patch(rooms::change_room)
        .get(rooms::show_room)
        .delete(rooms::end_room);
    let description = get(|| async { Json(openapi()) });
    let guarded = Router::new()
        .route("/api/publish", post(publish_one).layer(scoped(Scope::Publish)))
        .route("/api/batch", post(publish_batch).layer(scoped(Scope::Publish)))
        .route("/api/ingest", post(ingest::ingest).layer(scoped(Scope::Publish)))
        .route("/api/channels", get(channels::channels).layer(scoped(Scope::Channels)))
        .route("/api/history", get(history::history).layer(scoped(Scope::History)))
        .route("/api/presence", get(presence::presence).layer(scoped(Scope::Presence)))
        .route("/api/rooms", rooms.layer(scoped(Scope::Rooms)))
        .route("/api/stats", get(stats::stats).layer(scoped(Scope::Stats)))
        .route("/api/send", post(users::send).layer(scoped(Scope::Users)))
        .route("/api/disconnect", post(users::disconnect).layer(scoped(Scope::Connections)))
        .route("/api/unsubscribe", post(users::unsubscribe).layer(scoped(Scope::Connections)))
        .route("/api/connections", get(users::connections).layer(scoped(Scope::Users)))
        .route("/api/revoke", post(users::revoke).layer(scoped(Scope::Tokens)))
        .route("/metrics", get(metrics::metrics).layer(needs(Some(Scope::Metrics), true)))
        .route("/api/openapi.json", description.layer(needs(None, true)));
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .merge(guarded)
        .fallback(|| async {
            let message = "there is nothing here; /api/openapi.json lists what there is";
            ApiError::new(Code::NotFound, message)
        })
        .method_not_allowed_fallback(|| async {
            let message = "this path is not served for this method; see /api/openapi.json";
            ApiError::new(Code::MethodNotAllowed, message)
        })
        .with_state(state)
}

/// The OpenAPI description, made from the code.
pub fn openapi() -> utoipa::openapi::OpenApi {
    #[derive(OpenApi)]
    #[openapi(
        info(title = "ringfeed", description = "The HTTP API of a ringfeed server."),
        servers((url = "http://127.0.0.1:9801", description = "api.listen by default")),
        modifiers(&Keys),
        paths(
            publish_one,
            publish_batch,
            ingest::ingest,
            channels::channels,
            history::history,
            presence::presence,
            rooms::make_room,
            rooms::change_room,
            rooms::show_room,
            rooms::end_room,
            stats::stats,
            users::send,
            users::disconnect,
            users::unsubscribe,
            users::connections,
            users::revoke,
            health,
            ready,
            metrics::metrics
        )
    )]
    struct Document;
    Document::openapi()
}

/// The two ways to give a key.
struct Keys;

impl utoipa::Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("One of api.keys, or of [[api_keys]] with the scope that stands beside it here. Where there are none, \
                 no key is needed."));
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
        let header = ApiKeyValue::with_description("X-API-Key", "The same key.");
        components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

/// Publishes to one channel.
#[utoipa::path(
    post, path = "/api/publish",
    request_body = PublishBody,
    responses(
        (status = 200, description = "Published", body = PublishResult),
        (status = 202, description = "Kept on disk until Redis can be reached, which numbers the channel", body = PublishResult),
        (status = "4XX", description = "Not published", body = ApiError),
        (status = "5XX", description = "The server takes none at present; whether this was published is not known", body = ApiError),
    ),
    security(("bearer" = ["publish"]), ("key" = ["publish"]))
)]
async fn publish_one(
    FromState(state): App,
    Extension(caller): Extension<Arc<Caller>>,
    body: Collected,
) -> Result<(StatusCode, Json<PublishResult>), ApiError> {
    publish::not_draining(&state)?;
    let item = publish::parse_for(&caller, &body.bytes)?;
    let channel = item.channel.clone();
    let outcome = publish::publish_all(&state, vec![item]).await.pop();
    match publish::result(&channel, outcome.unwrap_or_else(|| Err(ApiError::busy()))) {
        PublishResult::Refused(e) => Err(e),
        pending @ PublishResult::Accepted { offset: None, .. } => {
            Ok((StatusCode::ACCEPTED, Json(pending)))
        }
        accepted @ PublishResult::Accepted { .. } => Ok((StatusCode::OK, Json(accepted))),
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchBody<'a> {
    /// In order; those to one channel keep it. At most 65536.
    #[serde(borrow)]
    #[schema(value_type = Vec<PublishBody>, max_items = 65536)]
    publications: Entries<'a>,
}

/// The entries of a batch, not parsed yet: each has its own errors.
struct Entries<'a> {
    entries: Vec<&'a RawValue>,
    /// Also those above the limit, which are not kept.
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Entries<'a>, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of publications")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries<'de>, A::Error> {
                let mut found = Entries { entries: Vec::new(), count: 0 };
                while let Some(entry) = list.next_element::<&RawValue>()? {
                    found.count += 1;
                    if found.count <= BATCH_ITEMS_MAX {
                        found.entries.push(entry);
                    }
                }
                Ok(found)
            }
        }
        from.deserialize_seq(Each)
    }
}

#[derive(Serialize, ToSchema)]
struct BatchReply {
    /// One for each publication, in the same order. From the 101st refused one on, errors have no
    /// message.
    results: Vec<PublishResult>,
}

/// Publishes to many channels at once. Each publication has its own result.
#[utoipa::path(
    post, path = "/api/batch",
    request_body = BatchBody,
    responses(
        (status = 200, description = "What became of each", body = BatchReply),
        (status = "4XX", description = "Nothing was published", body = ApiError),
        (status = "5XX", description = "The server takes none at present", body = ApiError),
    ),
    security(("bearer" = ["publish"]), ("key" = ["publish"]))
)]
async fn publish_batch(
    FromState(state): App,
    Extension(caller): Extension<Arc<Caller>>,
    body: Collected,
) -> Result<Response, ApiError> {
    publish::not_draining(&state)?;
    let BatchBody { publications: Entries { entries, count } } =
        publish::object(&body.bytes, "a batch")?;
    if count > BATCH_ITEMS_MAX {
        let message =
            format!("the batch has {count} publications; at most {BATCH_ITEMS_MAX} are allowed");
        return Err(ApiError::new(Code::TooLarge, message));
    }
    let mut items = Vec::new();
    let checked: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let item = publish::parse_for(&caller, entry.get().as_bytes())?;
            let channel = item.channel.clone();
            items.push(item);
            Ok(channel)
        })
        .collect();
    let Collected { bytes, mut held } = body;
    // Before anything is published: who was told "try again" would publish it twice.
    let answer_bytes = answer_bytes_max(&checked);
    if !held.try_grow_to(bytes.len() + answer_bytes) {
        return Err(no_room());
    }
    drop(bytes);
    let mut outcomes = publish::publish_all(&state, items).await.into_iter();
    held.shrink_to(answer_bytes);
    let mut messages = 0;
    let mut refused = |error: ApiError| {
        messages += 1;
        let error = if messages > MESSAGES_MAX { error.without_message() } else { error };
        PublishResult::Refused(error)
    };
    let results = checked.into_iter().map(|checked| match checked {
        Err(e) => refused(e),
        Ok(channel) => match outcomes.next().unwrap_or_else(|| Err(ApiError::busy())) {
            Err(e) => refused(e),
            outcome => publish::result(&channel, outcome),
        },
    });
    let mut response = Json(BatchReply { results: results.collect() }).into_response();
    response.extensions_mut().insert(Reserved::new(held));
    Ok(response)
}

/// What the results of a batch can take, without the messages of those that are refused: these are
/// less than an answer may have that is not counted. Nothing for an answer that is not.
fn answer_bytes_max(checked: &[Result<ChannelName, ApiError>]) -> usize {
    let names = checked.iter().flatten().map(|channel| channel.len());
    let bytes = names.sum::<usize>() + checked.len() * RESULT_BYTES_MAX;
    if bytes > UNCOUNTED_BYTES_MAX { bytes } else { 0 }
}

#[derive(Serialize, ToSchema)]
pub(super) struct StatusReply {
    status: &'static str,
}

/// The process lives.
#[utoipa::path(
    get, path = "/health",
    responses((status = 200, description = "It lives", body = StatusReply))
)]
pub(super) async fn health() -> Json<StatusReply> {
    Json(StatusReply { status: "ok" })
}

/// The process takes new connections; 503 while it drains, while a Redis that it shares channels through is away, and while it is cut
/// off from the nodes that it shares them with, or still takes over channels from them.
#[utoipa::path(
    get, path = "/ready",
    responses(
        (status = 200, description = "It takes connections", body = StatusReply),
        (status = 503, description = "It drains, its Redis is away, or it is cut off from the other nodes", body = StatusReply),
    )
)]
async fn ready(FromState(state): App) -> (StatusCode, Json<StatusReply>) {
    let status = if state.is_draining() {
        "draining"
    } else if state.shared.config().redis.is_used() && !state.shared.redis.is_up() {
        "redis away"
    } else if state.shared.config().cluster.is_used() && !state.shared.cluster.is_up() {
        "cut off from the other nodes"
    } else if state.shared.config().cluster.is_used() && !state.shared.cluster.has_joined() {
        "joining the other nodes"
    } else {
        return (StatusCode::OK, Json(StatusReply { status: "ready" }));
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(StatusReply { status }))
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::{Epoch, Offset, Position};

    use super::*;
    use crate::message::{Ack, Receipt};

    #[test]
    fn a_result_takes_no_more_than_was_reserved_for_it() {
        let position = Position { epoch: Epoch(u64::MAX), offset: Offset(u64::MAX) };
        let position = Some(position);
        let receipt = Receipt { position, ack: Ack::Accepted, subscribers: 1, duplicate: false };
        let result = publish::result(&ChannelName::new("a").unwrap(), Ok(receipt));
        assert!(serde_json::to_vec(&result).unwrap().len() < "a".len() + RESULT_BYTES_MAX);
        let refused = ApiError::new(Code::UnsupportedEncoding, "").without_message();
        assert!(serde_json::to_vec(&refused).unwrap().len() < RESULT_BYTES_MAX);
    }
}
