//! Publications that come over HTTP: their JSON form, and their way to the home shards.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ringfeed_protocol::command::{Payload, present};
use ringfeed_protocol::{ChannelName, IdempotencyKey, Refused};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::budget::Held;
use super::error::ApiError;
use super::guard::check_channel;
use super::{FULL_PAUSE, State};
use crate::callers::Caller;
use crate::config::ChannelRule;
use crate::ids::{ConnectionId, ShardId};
use crate::message::{KeyOf, Keyed, NotTaken, Post, Published, Receipt, Request, Sender};

/// A shard is handed at most so many bytes with one request, or one publication that is larger …
const PIECE_BYTES_MAX: usize = 256 * 1024;
/// … and at most so many publications: what one turn of a shard is to bear.
const PIECE_ITEMS_MAX: usize = 512;
/// After so many bytes that were held against what their channels take, others have a turn.
const CHECKED_BYTES_MAX: usize = 64 * 1024;
/// What a publication takes beside its payload: its name, its place and its frame.
const ITEM_BYTES: usize = 64;

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
    /// 1 to 128 printable ASCII characters, random ones for each message: the same message sent again with the same key to
    /// the same channel is not published again.
    #[serde(borrow, default)]
    idempotency_key: Option<Cow<'a, str>>,
    /// The id of a connection that is not to get it: `connection` in its `connected` event.
    #[serde(borrow, default)]
    except: Option<Cow<'a, str>>,
}

/// What became of one publication.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(super) enum PublishResult {
    /// It is as far as `ack` says.
    Accepted {
        /// The channel.
        channel: String,
        /// The life of the channel's log; absent with `spooled`.
        #[serde(skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
        /// Its place in the log; absent with `spooled`.
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        /// `accepted`: in the home shard's log, in memory; `redis`: stored in Redis; `spooled`: on this node's disk, until Redis
        /// can be reached.
        ack: &'static str,
        /// There, and `true`, where it was published before, by its `idempotency_key`: `offset` says where.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        #[schema(required = false)]
        duplicate: bool,
    },
    /// It was not published.
    Refused(ApiError),
}

/// What became of a publication.
pub(super) type Outcome = Result<Receipt, ApiError>;

/// Reads one publication and checks name and payload, which is never longer than the text.
pub(super) fn parse(text: &[u8]) -> Result<Post, ApiError> {
    let body: PublishBody = object(text, "a publication")?;
    let channel = ChannelName::new(&body.channel).map_err(Refused::from)?;
    let payload = Payload::from_fields(body.data, body.text, body.base64)?.into();
    let except = body.except.map(|id| id.parse::<ConnectionId>()).transpose();
    let except = except.map_err(|e| Refused::bad_command(format_args!("'except': {e}")))?;
    let key = body.idempotency_key.map(|key| IdempotencyKey::new(&key)).transpose();
    let key = key.map_err(Refused::bad_command)?;
    let key = key.map(|key| Box::new(Keyed { of: KeyOf::Application, key }));
    let says = except.is_some() || key.is_some();
    let by = says.then(|| Box::new(Sender { except, key, ..Sender::default() }));
    Ok(Post { channel, payload, by })
}

/// The same, from who may publish to that channel.
pub(super) fn parse_for(caller: &Caller, text: &[u8]) -> Result<Post, ApiError> {
    let post = parse(text)?;
    check_channel(caller, &post.channel)?;
    Ok(post)
}

/// Reads a JSON object; an array with the fields in their order, which serde would take, is none.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a [u8], what: &str) -> Result<T, ApiError> {
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refused::bad_json(format_args!(
            "{what} is a JSON object and begins with '{{'"
        ))
        .into());
    }
    serde_json::from_slice(text).map_err(|e| Refused::from_json_error(&e).into())
}

/// Publications that go to one shard with one request.
struct Piece {
    bytes: usize,
    items: Vec<(u32, Post)>,
}

/// Cuts publications into pieces that a shard's turn can bear, in the same order.
fn pieces(items: Vec<(u32, Post)>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for item in items {
        let bytes = item.1.payload.bytes.len() + ITEM_BYTES;
        match pieces.last_mut() {
            Some(piece)
                if piece.bytes + bytes <= PIECE_BYTES_MAX
                    && piece.items.len() < PIECE_ITEMS_MAX =>
            {
                piece.bytes += bytes;
                piece.items.push(item);
            }
            _ => pieces.push(Piece { bytes, items: vec![item] }),
        }
    }
    pieces
}

/// Hands publications that their channels take to their homes and waits for the answers, in order. Publications to one
/// channel keep their order. Where a shard takes nothing or does not answer in time, what it was to
/// get from then on is answered with `busy`, or `draining` where it has ended, and of that some may be
/// published.
pub(super) async fn publish_all(state: &State, items: Vec<Post>) -> Vec<Outcome> {
    let shards = &state.shared.shards;
    let mut by_home: Vec<Vec<(u32, Post)>> = (0..shards.count()).map(|_| Vec::new()).collect();
    let mut outcomes: Vec<Outcome> = items.iter().map(|_| Err(ApiError::busy())).collect();
    let config = state.shared.config();
    let (checks, mut checked) = (config.says_content(), 0);
    for ((place, post), outcome) in (0u32..).zip(items).zip(&mut outcomes) {
        if checks {
            if checked > CHECKED_BYTES_MAX {
                checked = 0;
                yield_now().await;
            }
            let Post { channel, payload, .. } = &post;
            checked += payload.bytes.len() + ITEM_BYTES;
            let takes =
                |rule: &ChannelRule| rule.check_content(channel, payload.kind, &payload.bytes);
            if let Err(refused) = config.rule(channel).map_or(Ok(()), takes) {
                *outcome = Err(refused.into());
                continue;
            }
        }
        by_home[shards.home(&post.channel).index()].push((place, post));
    }
    let homes = shards.ids().zip(by_home).filter(|(_, items)| !items.is_empty());
    let until = deadline(state);
    let all = homes.map(|(home, items)| publish_home(state, home, items, until));
    for (place, outcome) in join_all(all).await.into_iter().flatten() {
        if let Some(slot) = outcomes.get_mut(place as usize) {
            *slot = outcome;
        }
    }
    outcomes
}

/// A piece that waits for its answer, and its share of what may be under way to the shard.
type UnderWay = (oneshot::Receiver<Vec<(u32, Published)>>, Held);

/// Hands one shard its publications. What it did not take or answer has the reason as its outcome.
async fn publish_home(
    state: &State,
    home: ShardId,
    items: Vec<(u32, Post)>,
    until: Instant,
) -> Vec<(u32, Outcome)> {
    let places: Vec<u32> = items.iter().map(|item| item.0).collect();
    let mut outcomes = Vec::with_capacity(items.len());
    if let Err(why) = publish_pieces(state, home, items, until, &mut outcomes).await {
        // Pieces are answered as a whole and in order.
        let rest = places.into_iter().skip(outcomes.len());
        outcomes.extend(rest.map(|place| (place, Err(why.clone()))));
    }
    outcomes
}

/// Hands one shard its publications, piece by piece, and waits for the answers.
async fn publish_pieces(
    state: &State,
    home: ShardId,
    items: Vec<(u32, Post)>,
    until: Instant,
    outcomes: &mut Vec<(u32, Outcome)>,
) -> Result<(), ApiError> {
    let Some(budget) = state.to_shards.get(home.index()) else { return Err(ApiError::busy()) };
    let mut under_way: VecDeque<UnderWay> = VecDeque::new();
    let mut sent = Ok(());
    for Piece { bytes, items } in pieces(items) {
        let mut held = budget.hold();
        while !held.try_grow_to(bytes) {
            // What this request has under way itself comes back first.
            match under_way.pop_front() {
                Some(piece) => answered(piece, until, outcomes).await?,
                None if held.grow_to(bytes, until).await => {}
                None => return Err(ApiError::busy()),
            }
        }
        let (reply, answer) = oneshot::channel();
        sent = send(state, home, Request::PublishBatch { items, reply }, until).await;
        if sent.is_err() {
            break;
        }
        under_way.push_back((answer, held));
    }
    for piece in under_way {
        answered(piece, until, outcomes).await?;
    }
    sent
}

/// Waits for the answer to a piece.
async fn answered(
    (answer, _held): UnderWay,
    until: Instant,
    outcomes: &mut Vec<(u32, Outcome)>,
) -> Result<(), ApiError> {
    let answers = receive(answer, until).await?.into_iter();
    outcomes.extend(answers.map(|(place, published)| (place, published.map_err(ApiError::from))));
    Ok(())
}

/// Until when a request of this moment may wait for shards, however many times it asks them.
pub(super) fn deadline(state: &State) -> Instant {
    Instant::now() + Duration::from_millis(state.shared.config().api.timeout_ms.into())
}

/// Hands a request to a shard, waiting while its queue is full.
pub(super) async fn send(
    state: &State,
    to: ShardId,
    mut request: Request,
    deadline: Instant,
) -> Result<(), ApiError> {
    loop {
        request = match state.shared.shards.request(to, request) {
            Ok(()) => return Ok(()),
            Err(NotTaken::Gone(_)) => return Err(ApiError::draining()),
            Err(NotTaken::Full(_)) if Instant::now() >= deadline => return Err(ApiError::busy()),
            Err(NotTaken::Full(back)) => back,
        };
        sleep(FULL_PAUSE).await;
    }
}

/// Waits for a shard's answer.
pub(super) async fn receive<T>(
    answer: oneshot::Receiver<T>,
    deadline: Instant,
) -> Result<T, ApiError> {
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(ApiError::draining()),
        Err(_) => Err(ApiError::busy()),
    }
}

/// The JSON form of an outcome.
pub(super) fn result(channel: &ChannelName, outcome: Outcome) -> PublishResult {
    match outcome {
        Ok(Receipt { position, ack, duplicate, .. }) => PublishResult::Accepted {
            channel: channel.to_string(),
            epoch: position.map(|position| position.epoch.to_string()),
            offset: position.map(|position| position.offset.0),
            ack: ack.as_str(),
            duplicate,
        },
        Err(e) => PublishResult::Refused(e),
    }
}

/// Refuses what is new once the server drains.
pub(super) fn not_draining(state: &Arc<State>) -> Result<(), ApiError> {
    if state.is_draining() { Err(ApiError::draining()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::command::PayloadKind;

    use super::*;

    fn items(sizes: &[usize]) -> Vec<(u32, Post)> {
        let item = |(place, &size): (u32, &usize)| {
            let payload = Payload { kind: PayloadKind::Text, bytes: vec![b'x'; size].into() };
            let channel = ChannelName::new("a").unwrap();
            (place, Post { channel, payload: payload.into(), by: None })
        };
        (0..).zip(sizes).map(item).collect()
    }

    #[test]
    fn pieces_hold_so_many_bytes_or_one_publication() {
        let sizes = [10, 200_000, 100_000, 4_000_000, 5, 6];
        let cut = pieces(items(&sizes));
        let counts: Vec<_> = cut.iter().map(|piece| piece.items.len()).collect();
        assert_eq!(counts, [2, 1, 1, 2]);
        let places: Vec<_> = cut.iter().flat_map(|piece| &piece.items).map(|item| item.0).collect();
        assert_eq!(places, [0, 1, 2, 3, 4, 5]);
        let cut = pieces(items(&[1; 2 * PIECE_ITEMS_MAX + 1]));
        assert_eq!(cut.iter().map(|piece| piece.items.len()).max(), Some(PIECE_ITEMS_MAX));
        assert_eq!(cut.len(), 3);
        assert!(pieces(Vec::new()).is_empty());
    }
}
