//! `GET /api/channels`: which channels there are, in pages by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State as FromState};
use ringfeed_protocol::{ChannelName, lane};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::error::{ApiError, Code};
use super::publish;
use crate::callers::Caller;
use crate::ids::ShardId;
use crate::message::{ChannelPage, ChannelRow, Request};

/// Channels listed where the request does not say how many.
const LIMIT: usize = 1000;
/// Most that one answer lists.
const LIMIT_MAX: usize = 10_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelsQuery {
    /// Only channels whose name begins with this.
    #[serde(default)]
    #[param(required = false)]
    prefix: String,
    /// Only channels behind this one in the order of names: the last one of the page before.
    #[serde(default)]
    #[param(required = false)]
    after: String,
    /// At most so many, 1 to 10000; 1000 where absent.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ChannelsReply {
    /// In order of name (of its bytes).
    channels: Vec<ChannelReply>,
    /// How many have the prefix, listed or not; of those that the key is for.
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

/// Asks a shard for the rows from a place in its table on.
async fn page(
    state: &State,
    shard: ShardId,
    from: u32,
    deadline: Instant,
) -> Result<ChannelPage, ApiError> {
    let (reply, answer) = oneshot::channel();
    publish::send(state, shard, Request::ListChannels { from, reply }, deadline).await?;
    publish::receive(answer, deadline).await
}

/// Lists the channels that have subscribers or history, and that the key is for.
#[utoipa::path(
    get, path = "/api/channels",
    params(ChannelsQuery),
    responses(
        (status = 200, description = "The channels", body = ChannelsReply),
        (status = "4XX", description = "The request is refused", body = ApiError),
        (status = "5XX", description = "The shards do not answer", body = ApiError),
    ),
    security(("bearer" = ["channels"]), ("key" = ["channels"]))
)]
pub(super) async fn channels(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    query: Result<Query<ChannelsQuery>, QueryRejection>,
) -> Result<Json<ChannelsReply>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    let limit = query.limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        let message = format!("limit = {limit}: allowed are 1 to {LIMIT_MAX}");
        return Err(ApiError::new(Code::BadRequest, message));
    }
    let deadline = publish::deadline(&state);
    let listed = |name: &str| name.starts_with(&query.prefix) && caller.may_use(name);
    collect(&state, listed, &query.after, limit, deadline).await.map(Json)
}

/// The first channels by name, of those that begin with `prefix` and that one `may_see`, for who knows nothing of the prefix.
pub(super) async fn list(
    state: &State,
    prefix: &str,
    may_see: impl Fn(&str) -> bool,
    limit: usize,
    deadline: Instant,
) -> Result<ChannelsReply, ApiError> {
    let listed = |name: &str| name.starts_with(prefix) && may_see(name);
    let mut reply = collect(state, listed, "", limit, deadline).await?;
    let Ok(hidden) = u8::try_from(prefix.len()) else { return Ok(reply) };
    for own in reply.channels.iter_mut().filter(|_| hidden > 0) {
        own.channel = lane::shown(&own.channel, hidden).into_owned();
    }
    Ok(reply)
}

/// The first channels by name behind `after`, of those that are to be listed.
async fn collect(
    state: &State,
    listed: impl Fn(&str) -> bool,
    after: &str,
    limit: usize,
    deadline: Instant,
) -> Result<ChannelsReply, ApiError> {
    // The smallest names so far; never more than are wanted.
    let mut first: BTreeMap<ChannelName, ChannelRow> = BTreeMap::new();
    let mut total = 0;
    for shard in state.shared.shards.ids() {
        let mut from = Some(0);
        while let Some(place) = from {
            let ChannelPage { rows, next } = page(state, shard, place, deadline).await?;
            for row in rows.into_iter().filter(|row| listed(&row.name)) {
                total += 1;
                if *row.name > *after {
                    first.insert(row.name.clone(), row);
                    if first.len() > limit {
                        first.pop_last();
                    }
                }
            }
            from = next;
        }
    }
    let channels = first
        .into_values()
        .map(|row| ChannelReply {
            channel: row.name.to_string(),
            epoch: row.position.epoch.to_string(),
            offset: row.position.offset.0,
            subscribers: row.subscribers,
            history: row.history,
        })
        .collect();
    Ok(ChannelsReply { channels, total })
}
