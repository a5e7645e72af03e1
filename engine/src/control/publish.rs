//! Publications that come over HTTP: their JSON form, and their way to the home shards.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfeed_protocol::command::{Payload, present};
use ringfeed_protocol::{ChannelName, ErrorCode, Position};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::State;
use crate::ids::ShardId;
use crate::message::{Published, Request, StoredPayload};

/// How long to wait before a full shard is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// One publication. Exactly one of `data`, `text` and `base64` is needed.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishBody<'a> {
    /// Where to publish.
    #[serde(borrow)]
    channel: Cow<'a, str>,
    /// Any JSON value; delivered as it stands.
    #[serde(borrow, default, deserialize_with = "present")]
    #[schema(value_type = Option<serde_json::Value>)]
    data: Option<&'a RawValue>,
    /// Text that is not JSON.
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    /// Bytes, in padded base64; raw.v1 delivers them as a binary message.
    #[serde(borrow, default)]
    base64: Option<Cow<'a, str>>,
}

/// What became of one publication.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(super) enum PublishResult {
    /// It is in the home shard's log, in memory.
    Accepted {
        /// The channel.
        channel: String,
        /// The life of the channel's log.
        epoch: String,
        /// Its place in the log.
        offset: u64,
        /// `accepted`: in the home shard's log.
        ack: &'static str,
    },
    /// It was not published.
    Refused(ApiError),
}

/// An error, as every endpoint answers it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(super) struct ApiError {
    /// A word for programs.
    pub(super) error: String,
    /// A sentence for people.
    pub(super) message: String,
}

impl ApiError {
    pub(super) fn new(error: &str, message: impl Into<String>) -> ApiError {
        ApiError { error: error.into(), message: message.into() }
    }
}

/// A publication, checked and ready to be routed.
pub(super) type Checked = (ChannelName, StoredPayload);

impl PublishBody<'_> {
    /// Checks name, payload and size.
    pub(super) fn check(self, bytes_max: usize) -> Result<Checked, ApiError> {
        let channel = ChannelName::new(&self.channel)
            .map_err(|e| ApiError::new(ErrorCode::BadChannel.as_str(), e.to_string()))?;
        let Payload { kind, bytes } = Payload::from_fields(self.data, self.text, self.base64)
            .map_err(|refused| ApiError::new(refused.code().as_str(), refused.to_string()))?;
        if bytes.len() > bytes_max {
            let (len, code) = (bytes.len(), ErrorCode::LimitReached.as_str());
            let message = format!("the payload has {len} bytes; at most {bytes_max} are allowed");
            return Err(ApiError::new(code, message));
        }
        Ok((channel, StoredPayload { kind, bytes: Bytes::from(bytes.into_owned()) }))
    }
}

/// Parses one publication.
pub(super) fn parse(text: &[u8]) -> Result<PublishBody<'_>, ApiError> {
    serde_json::from_slice(text)
        .map_err(|e| ApiError::new(ErrorCode::BadJson.as_str(), e.to_string()))
}

/// Hands publications to their homes and waits for the answers, in order. Publications to one
/// channel keep their order. `Err` if a shard did not take them or did not answer in time; then
/// some may be published and some not.
pub(super) async fn publish_all(
    state: &Arc<State>,
    items: Vec<Checked>,
) -> Result<Vec<Published>, ApiError> {
    let shards = &state.shared.shards;
    let mut by_home: Vec<Vec<(u32, ChannelName, StoredPayload)>> =
        (0..shards.count()).map(|_| Vec::new()).collect();
    let count = items.len();
    for (place, (channel, payload)) in (0u32..).zip(items) {
        by_home[shards.home(&channel).index()].push((place, channel, payload));
    }
    let deadline = Instant::now() + timeout(state);
    let mut replies = Vec::new();
    for (home, items) in shards.ids().zip(by_home).filter(|(_, items)| !items.is_empty()) {
        let (reply, answer) = oneshot::channel();
        send(state, home, Request::PublishBatch { items, reply }, deadline).await?;
        replies.push(answer);
    }
    let mut results: Vec<Option<Published>> = (0..count).map(|_| None).collect();
    for answer in replies {
        for (place, result) in receive(answer, deadline).await? {
            if let Some(slot) = results.get_mut(place as usize) {
                *slot = Some(result);
            }
        }
    }
    Ok(results.into_iter().map(|r| r.expect("each home answers for each item")).collect())
}

pub(super) fn timeout(state: &State) -> Duration {
    Duration::from_millis(state.shared.config.api.timeout_ms.into())
}

/// Hands a request to a shard, waiting while its queue is full.
pub(super) async fn send(
    state: &State,
    to: ShardId,
    mut request: Request,
    deadline: Instant,
) -> Result<(), ApiError> {
    while let Err(back) = state.shared.shards.request(to, request) {
        if Instant::now() >= deadline {
            return Err(busy());
        }
        request = back;
        sleep(FULL_PAUSE).await;
    }
    Ok(())
}

/// Waits for a shard's answer.
pub(super) async fn receive<T>(
    answer: oneshot::Receiver<T>,
    deadline: Instant,
) -> Result<T, ApiError> {
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(ApiError::new("draining", "the shard has ended")),
        Err(_) => Err(busy()),
    }
}

fn busy() -> ApiError {
    ApiError::new("busy", "a shard is busy; whether everything was published is not known")
}

/// The JSON form of a result.
pub(super) fn result(channel: &ChannelName, published: Published) -> PublishResult {
    match published {
        Ok(Position { epoch, offset }) => PublishResult::Accepted {
            channel: channel.to_string(),
            epoch: epoch.to_string(),
            offset,
            ack: "accepted",
        },
        Err(refused) => {
            let code = refused.code().as_str();
            PublishResult::Refused(ApiError::new(code, refused.to_string()))
        }
    }
}
