//! What the application may do with users and connections: send to them, end them, ask which there are, and revoke
//! what they have shown.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as FromState};
use axum::{Extension, Json};
use ringfeed_protocol::command::{Payload, present};
use ringfeed_protocol::{ChannelName, CloseCode, Refused, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use smol_str::SmolStr;
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::body::Collected;
use super::error::{ApiError, Code};
use super::guard::check_channel;
use super::publish;
use crate::callers::Caller;
use crate::clock::Clock;
use crate::ids::{ConnectionId, ShardId};
use crate::message::{
    Errand, Kept, Listed, NodesRequest, Order, Reply, Request, Revocation, Revoked, UserRequest,
};
use crate::revoked::Added;

/// Codes that the application may close connections with: those for private use (RFC 6455 section 7.4.2).
const CLOSE_CODES: std::ops::RangeInclusive<u16> = 4000..=4999;
/// Longest reason of a close frame (RFC 6455 section 5.5).
const REASON_BYTES_MAX: usize = 123;
/// Longest id of a token.
const TOKEN_ID_BYTES_MAX: usize = 255;

/// Something for a user or a connection. Exactly one of `data`, `text` and `base64` is needed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SendBody<'a> {
    /// For all connections of this user.
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    /// For this connection; with `user`, only if it is that user's.
    #[serde(borrow, default)]
    connection: Option<Cow<'a, str>>,
    /// Any JSON value; delivered as it stands.
    #[serde(borrow, default, deserialize_with = "present")]
    #[schema(value_type = Option<serde_json::Value>)]
    data: Option<&'a RawValue>,
    /// Text that is not JSON.
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    /// Bytes, in padded base64.
    #[serde(borrow, default)]
    base64: Option<Cow<'a, str>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DisconnectBody<'a> {
    /// All connections of this user.
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    /// This connection; with `user`, only if it is that user's.
    #[serde(borrow, default)]
    connection: Option<Cow<'a, str>>,
    /// Close code, 4000 to 4999; 4502 where absent. Clients of ringfeed come back after 4000 to 4499, and not after
    /// the others.
    code: Option<u16>,
    /// Why, for the client: at most 123 bytes.
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UnsubscribeBody<'a> {
    /// All connections of this user.
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    /// This connection; with `user`, only if it is that user's.
    #[serde(borrow, default)]
    connection: Option<Cow<'a, str>>,
    /// The channel.
    #[serde(borrow)]
    channel: Cow<'a, str>,
}

/// How far it got.
#[derive(Serialize, ToSchema)]
pub(super) struct ReachedReply {
    /// Connections that it was handed to. Those that end at this moment may not get it.
    connections: u32,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokeBody<'a> {
    /// Everything this user has been vouched for up to now. What is issued later counts again.
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    /// The token with this id (`jti`).
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
    /// Seconds since 1970 when nothing that is revoked is valid any more: it is forgotten then. Kept as long as the
    /// server runs where absent.
    until: Option<u64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct RevokedReply {
    /// How many are revoked at present.
    revoked: usize,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectionsQuery {
    /// Whose.
    user: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ConnectionsReply {
    /// In no order.
    connections: Vec<ConnectionReply>,
}

#[derive(Serialize, ToSchema)]
struct ConnectionReply {
    /// Its id.
    connection: String,
    /// The shard that has it, on its node.
    shard: u16,
    /// Seconds since 1970 in which it was authenticated.
    since: u64,
}

/// Sends to all connections of a user, or to one connection.
#[utoipa::path(
    post, path = "/api/send",
    request_body = SendBody,
    responses(
        (status = 200, description = "Handed to so many connections: 0 where nobody is there", body = ReachedReply),
        (status = "4XX", description = "Not sent", body = ApiError),
        (status = "5XX", description = "Too much waits for connections, and nobody gets it; or a shard does not answer, and whether it was sent is not known; or not all nodes do, and some may have it, as far as the message says", body = ApiError),
    ),
    security(("bearer" = ["users"]), ("key" = ["users"]))
)]
pub(super) async fn send(
    FromState(state): FromState<Arc<State>>,
    body: Collected,
) -> Result<Json<ReachedReply>, ApiError> {
    let SendBody { user, connection, data, text, base64 } =
        publish::object(&body.bytes, "what is sent")?;
    let payload = Payload::from_fields(data, text, base64)?.into();
    let order = Order::Send { from: None, payload };
    hand_over(&state, user.as_deref(), connection.as_deref(), order).await
}

/// Closes all connections of a user, or one connection.
#[utoipa::path(
    post, path = "/api/disconnect",
    request_body = DisconnectBody,
    responses(
        (status = 200, description = "So many are closed", body = ReachedReply),
        (status = "4XX", description = "None is closed", body = ApiError),
        (status = "5XX", description = "A shard does not answer, or not all nodes do: done as far as the message says", body = ApiError),
    ),
    security(("bearer" = ["connections"]), ("key" = ["connections"]))
)]
pub(super) async fn disconnect(
    FromState(state): FromState<Arc<State>>,
    body: Collected,
) -> Result<Json<ReachedReply>, ApiError> {
    let DisconnectBody { user, connection, code, reason } =
        publish::object(&body.bytes, "what is closed")?;
    let code = code.unwrap_or(CloseCode::DISCONNECTED.0);
    if !CLOSE_CODES.contains(&code) {
        let message = format!("code = {code}: allowed are 4000 to 4999");
        return Err(ApiError::new(Code::BadRequest, message));
    }
    let reason = reason.unwrap_or_default();
    if reason.len() > REASON_BYTES_MAX {
        let message =
            format!("reason has {} bytes; allowed are at most {REASON_BYTES_MAX}", reason.len());
        return Err(ApiError::new(Code::BadRequest, message));
    }
    let order = Order::Disconnect { code, reason: reason.into() };
    hand_over(&state, user.as_deref(), connection.as_deref(), order).await
}

/// Ends the subscription of all connections of a user, or of one connection, to a channel.
#[utoipa::path(
    post, path = "/api/unsubscribe",
    request_body = UnsubscribeBody,
    responses(
        (status = 200, description = "So many were told; those that have not subscribed count, too", body = ReachedReply),
        (status = "4XX", description = "Nothing was done", body = ApiError),
        (status = "5XX", description = "A shard does not answer, or not all nodes do: done as far as the message says", body = ApiError),
    ),
    security(("bearer" = ["connections"]), ("key" = ["connections"]))
)]
pub(super) async fn unsubscribe(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    body: Collected,
) -> Result<Json<ReachedReply>, ApiError> {
    let UnsubscribeBody { user, connection, channel } =
        publish::object(&body.bytes, "what is ended")?;
    let channel = ChannelName::new(&channel).map_err(Refused::from)?;
    check_channel(&caller, &channel)?;
    hand_over(&state, user.as_deref(), connection.as_deref(), Order::Unsubscribe(channel)).await
}

/// Lists the connections of a user.
#[utoipa::path(
    get, path = "/api/connections",
    params(ConnectionsQuery),
    responses(
        (status = 200, description = "The connections", body = ConnectionsReply),
        (status = "4XX", description = "The request is refused", body = ApiError),
        (status = "5XX", description = "A shard does not answer, or not all nodes do: done as far as the message says", body = ApiError),
    ),
    security(("bearer" = ["users"]), ("key" = ["users"]))
)]
pub(super) async fn connections(
    FromState(state): FromState<Arc<State>>,
    query: Result<Query<ConnectionsQuery>, QueryRejection>,
) -> Result<Json<ConnectionsReply>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    let user = UserId::new(&query.user).map_err(Refused::from)?;
    let deadline = publish::deadline(&state);
    let home = state.shared.shards.home(&user);
    let (reply, answer) = oneshot::channel();
    let request = Request::User { user, what: Box::new(UserRequest::List { reply }) };
    publish::send(&state, home, request, deadline).await?;
    let connections = publish::receive(answer, deadline).await??;
    let connections = connections.into_iter().map(|Listed { connection, since }| ConnectionReply {
        connection: connection.to_string(),
        shard: connection.shard.0,
        since,
    });
    Ok(Json(ConnectionsReply { connections: connections.collect() }))
}

/// Revokes a token, or all that a user has been vouched for up to now: connections that rest on it are closed, and
/// nobody is let in with it any more. Kept in memory, and in Redis where nodes share one: without it, who needs it to
/// outlast a restart gives tokens short lives.
#[utoipa::path(
    post, path = "/api/revoke",
    request_body = RevokeBody,
    responses(
        (status = 200, description = "All shards know", body = RevokedReply),
        (status = "4XX", description = "Nothing is revoked", body = ApiError),
        (status = "5XX", description = "A shard does not answer: ask again, it does no harm", body = ApiError),
    ),
    security(("bearer" = ["tokens"]), ("key" = ["tokens"]))
)]
pub(super) async fn revoke(
    FromState(state): FromState<Arc<State>>,
    body: Collected,
) -> Result<Json<RevokedReply>, ApiError> {
    let RevokeBody { user, token, until } = publish::object(&body.bytes, "what is revoked")?;
    let whom = match (user, token) {
        (Some(user), None) => {
            Revoked::User(UserId::new(&user).map_err(Refused::from)?, Clock::Machine.unix_s())
        }
        (None, Some(token)) if (1..=TOKEN_ID_BYTES_MAX).contains(&token.len()) => {
            Revoked::Token(SmolStr::new(&token))
        }
        (None, Some(_)) => {
            let message = format!("token: allowed are ids of 1 to {TOKEN_ID_BYTES_MAX} bytes");
            return Err(ApiError::new(Code::BadRequest, message));
        }
        _ => {
            let message = "exactly one of 'user' and 'token' is needed";
            return Err(ApiError::new(Code::BadRequest, message));
        }
    };
    let revocation = Revocation { whom, until: until.unwrap_or(u64::MAX) };
    let Some(Added { count: revoked, .. }) = state.shared.revoked.add(&revocation) else {
        let most = state.shared.config().limits.revocations_max;
        let message = format!(
            "{most} are revoked already (limits.revocations_max); with 'until' they are forgotten in time"
        );
        return Err(ApiError::new(Code::Busy, message));
    };
    let deadline = publish::deadline(&state);
    for shard in state.shared.shards.ids() {
        publish::send(&state, shard, Request::Revoke(revocation.clone()), deadline).await?;
    }
    state.shared.revoked.mark_told(&revocation);
    if state.shared.config().has_upstream() {
        let (reply, answer) = oneshot::channel();
        let errand = Box::new(Errand::Keep(Kept::Revoked(revocation)));
        let ask = Request::Nodes(NodesRequest::Ask { errand, reply });
        publish::send(&state, ShardId(0), ask, deadline).await?;
        if publish::receive(answer, deadline).await??.no_room {
            let message =
                "not all nodes know it: one has no room for more (limits.revocations_max)";
            return Err(ApiError::new(Code::Busy, message));
        }
    }
    Ok(Json(RevokedReply { revoked }))
}

/// Hands an order to the home of a user, or to the shard of a connection.
async fn hand_over(
    state: &State,
    user: Option<&str>,
    connection: Option<&str>,
    order: Order,
) -> Result<Json<ReachedReply>, ApiError> {
    let connection = connection.map(str::parse::<ConnectionId>).transpose();
    let connection =
        connection.map_err(|e| ApiError::new(Code::BadRequest, format!("connection: {e}")))?;
    let (reply, answer) = oneshot::channel();
    let shards = &state.shared.shards;
    let (to, request) = match (user, connection) {
        (Some(user), connection) => {
            let user = UserId::new(user).map_err(Refused::from)?;
            let reply = Reply::Control(reply);
            let to = shards.home(&user);
            let what = UserRequest::Order { connection, order, reply };
            (to, Request::User { user, what: what.into() })
        }
        (None, Some(connection)) => {
            // It may be one of a node that has more of them.
            let to = ShardId(connection.shard.0.min(shards.count().saturating_sub(1)));
            (to, Request::Connection { connection, order: order.into(), reply })
        }
        (None, None) => {
            let message = "'user' or 'connection' is needed";
            return Err(ApiError::new(Code::BadRequest, message));
        }
    };
    let deadline = publish::deadline(state);
    publish::send(state, to, request, deadline).await?;
    Ok(Json(ReachedReply { connections: publish::receive(answer, deadline).await?? }))
}
