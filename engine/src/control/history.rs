//! `GET /api/history`: what a channel keeps.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State as FromState};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, Offset, Refused};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::error::{ApiError, Code};
use super::guard::check_channel;
use super::publish;
use crate::callers::Caller;
use crate::message::{Reply, Request, StoredPublication};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    channel: String,
    /// Only publications behind this offset.
    after: Option<u64>,
    /// At most so many; limits.history_reply_max bounds it.
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct HistoryReply {
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
    /// The user who published it, where the channel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// Milliseconds since 1970 when it was published, where the channel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<u64>,
}

impl PublicationReply {
    fn new(StoredPublication { offset, payload, meta }: StoredPublication) -> PublicationReply {
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
        let time = meta.as_ref().map(|meta| meta.time_ms);
        let from = meta.and_then(|meta| meta.user).map(|user| user.to_string());
        PublicationReply { offset: offset.0, data: data.unwrap_or_default(), encoding, from, time }
    }
}

/// Reads what a channel keeps.
#[utoipa::path(
    get, path = "/api/history",
    params(HistoryQuery),
    responses(
        (status = 200, description = "The publications kept", body = HistoryReply),
        (status = "4XX", description = "The request is refused, or there is no such channel", body = ApiError),
        (status = "5XX", description = "The shard does not answer", body = ApiError),
    ),
    security(("bearer" = ["history"]), ("key" = ["history"]))
)]
pub(super) async fn history(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<HistoryReply>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    let channel = ChannelName::new(&query.channel).map_err(Refused::from)?;
    check_channel(&caller, &channel)?;
    let deadline = publish::deadline(&state);
    let most = state.shared.config().limits.history_reply_max;
    let limit = query.limit.unwrap_or(most).min(most);
    let home = state.shared.shards.home(&channel);
    let (reply, answer) = oneshot::channel();
    let request = Request::History {
        channel: channel.clone(),
        after: query.after.map(Offset),
        limit,
        reply: Reply::Control(reply),
    };
    publish::send(&state, home, request, deadline).await?;
    let Some(page) = publish::receive(answer, deadline).await? else {
        let message = format!("there is no channel {channel} at present");
        return Err(ApiError::new(Code::NotFound, message));
    };
    Ok(Json(HistoryReply {
        channel: channel.to_string(),
        epoch: page.position.epoch.to_string(),
        offset: page.position.offset.0,
        publications: page.publications.into_iter().map(PublicationReply::new).collect(),
    }))
}
