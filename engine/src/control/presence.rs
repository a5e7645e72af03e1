//! `GET /api/presence`: who is on a channel.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State as FromState};
use ringfeed_protocol::{ChannelName, Refused};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::error::{ApiError, Code};
use super::guard::check_channel;
use super::publish;
use crate::callers::Caller;
use crate::config::Presence;
use crate::message::{Present, Reply, Request, Someone};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PresenceQuery {
    channel: String,
    /// Only those behind this one: `next` of the page before.
    after: Option<String>,
    /// At most so many; limits.presence_reply_max bounds it.
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct PresenceReply {
    channel: String,
    epoch: String,
    /// How often who is there has changed in this epoch.
    version: u64,
    /// How many users, and connections without one, are there.
    count: u64,
    /// How many connections these have.
    connections: u64,
    /// Who, where the channel's rule says that this is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<Vec<PresentReply>>,
    /// `after` of the next page, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A user, or a connection without one.
#[derive(Serialize, ToSchema)]
struct PresentReply {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    /// What others are shown of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    info: Option<Box<RawValue>>,
}

impl PresentReply {
    fn new(Present { who, identity }: Present) -> PresentReply {
        let (user, connection) = match who {
            Someone::User(user) => (Some(user.to_string()), None),
            Someone::Connection(connection) => (None, Some(connection.to_string())),
        };
        let info = identity.info.as_deref();
        let info = info.and_then(|info| RawValue::from_string(info.to_owned()).ok());
        PresentReply { user, connection, info }
    }
}

/// Says who is on a channel.
#[utoipa::path(
    get, path = "/api/presence",
    params(PresenceQuery),
    responses(
        (status = 200, description = "Who is there", body = PresenceReply),
        (status = "4XX", description = "The request is refused, or there is no such channel", body = ApiError),
        (status = "5XX", description = "The shard does not answer", body = ApiError),
    ),
    security(("bearer" = ["presence"]), ("key" = ["presence"]))
)]
pub(super) async fn presence(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    query: Result<Query<PresenceQuery>, QueryRejection>,
) -> Result<Json<PresenceReply>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    let channel = ChannelName::new(&query.channel).map_err(Refused::from)?;
    check_channel(&caller, &channel)?;
    let after = query.after.as_deref().map(str::parse::<Someone>).transpose();
    let after =
        after.map_err(|e| ApiError::new(Code::BadRequest, format!("after: {e}")))?.map(Box::new);
    let config = state.shared.config();
    if config.rule(&channel).is_none_or(|rule| rule.presence == Presence::Off && !rule.room) {
        let message =
            format!("the rule of channel {channel} has presence = \"off\" and room = false");
        return Err(ApiError::new(Code::BadRequest, message));
    }
    let most = config.limits.presence_reply_max;
    let limit = query.limit.unwrap_or(most).min(most);
    let deadline = publish::deadline(&state);
    let home = state.shared.shards.home(&channel);
    let (reply, answer) = oneshot::channel();
    let reply = Reply::Control(reply);
    let request = Request::Presence { channel: channel.clone(), after, limit, reply };
    publish::send(&state, home, request, deadline).await?;
    let Some(page) = publish::receive(answer, deadline).await? else {
        let message = format!("there is no channel {channel} at present");
        return Err(ApiError::new(Code::NotFound, message));
    };
    let next = page.next();
    Ok(Json(PresenceReply {
        channel: channel.to_string(),
        epoch: page.position.epoch.to_string(),
        version: page.version,
        count: page.count,
        connections: page.connections,
        users: page.present.map(|all| all.into_iter().map(PresentReply::new).collect()),
        next,
    }))
}
