//! `POST /api/ingest`: newline-delimited JSON over one long request, acknowledged as it goes.
//!
//! A task reads and publishes, and the answer is written beside it: a client that does not read
//! acknowledgements while it sends gets fewer of them, each saying more, and is not held up.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{Extension, Request, State as FromState};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Bytes};
use bytes::{Buf as _, BytesMut};
use futures_util::FutureExt as _;
use futures_util::stream::unfold;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::State;
use super::body::{check_encoding, next_part};
use super::budget::Held;
use super::error::{ApiError, Code};
use super::guard::{self, Requester};
use super::publish;
use crate::config::Scope;
use crate::message::Ack;

/// Most lines published at once, and so between two acknowledgements …
const RUN_LINES_MAX: usize = 4096;
/// … and most bytes of them; a longer line goes alone.
const RUN_BYTES_MAX: usize = 256 * 1024;
/// Refused lines that one acknowledgement lists.
const ERRORS_MAX: usize = 100;

/// One acknowledgement: everything up to this line has been seen to.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct IngestAck {
    /// Lines seen to so far, empty ones included.
    lines: u64,
    /// Publications in their channels' logs so far, or that will be.
    accepted: u64,
    /// Of these, those that had been published before, by their `idempotency_key`.
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    duplicates: u64,
    /// Of these, those that are on this node's disk until Redis can be reached, which numbers their channels.
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    spooled: u64,
    /// Lines refused so far.
    refused: u64,
    /// The first 100 lines refused since the acknowledgement before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineError>,
    /// In the last one: `complete`, or `failed` with the reason in `error` and `message`.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
    #[serde(flatten)]
    error: Option<ApiError>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct LineError {
    /// Counted from 1, empty ones included.
    line: u64,
    #[serde(flatten)]
    error: ApiError,
}

/// Publishes each line as it arrives. The response is a line of JSON for each run of lines that was
/// published, so that a publisher knows at any time what is in the logs, and a last one with `end`. Lines
/// look like the body of `/api/publish`; empty lines are skipped. Where nothing was accepted when
/// the first answer is due, it is an error with a status, and the stream ends.
#[utoipa::path(
    post, path = "/api/ingest",
    request_body(content = String, content_type = "application/x-ndjson"),
    responses(
        (status = 200, description = "A line for each run of lines", body = IngestAck, content_type = "application/x-ndjson"),
        (status = "4XX", description = "Nothing was accepted", body = IngestAck),
        (status = "5XX", description = "The server takes none at present", body = ApiError),
    ),
    security(("bearer" = ["publish"]), ("key" = ["publish"]))
)]
pub(super) async fn ingest(
    FromState(state): FromState<Arc<State>>,
    Extension(requester): Extension<Requester>,
    request: Request,
) -> Result<Response, ApiError> {
    check_encoding(request.headers())?;
    publish::not_draining(&state)?;
    let Ok(permit) = state.streams.clone().try_acquire_owned() else {
        let message = "too many ingest streams are open (half of api.connections_max); try again";
        return Err(ApiError::new(Code::Busy, message));
    };
    state.figures.ingest_streams.add(1);
    let (acks, mut said) = mpsc::channel(1);
    let ingest = Ingest {
        body: request.into_body().into_data_stream(),
        pending: Pending::default(),
        held: state.bodies.hold(),
        heard: Instant::now(),
        ack: IngestAck::default(),
        requester,
        state: state.clone(),
    };
    let open = Open { task: tokio::spawn(ingest.run(acks)), state, _permit: permit };
    let Some(first) = said.recv().await else {
        return Err(ApiError::new(Code::BadRequest, "the body broke off"));
    };
    if let Some(error) = first.error.as_ref().filter(|_| first.accepted == 0) {
        let mut response = error.clone().into_response();
        *response.body_mut() = Json(first).into_response().into_body();
        // Of another body.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        return Ok(response);
    }
    let lines = unfold((Some(first), said, open), |(first, mut said, open)| async move {
        let ack = match first {
            Some(first) => first,
            None => said.recv().await?,
        };
        let mut line = serde_json::to_vec(&ack).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, std::io::Error>(Bytes::from(line)), (None, said, open)))
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, Body::from_stream(lines)).into_response())
}

/// A stream whose answer is still wanted; its task ends with it.
struct Open {
    task: JoinHandle<()>,
    state: Arc<State>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
        let open = &self.state.figures.ingest_streams;
        open.set(open.read().saturating_sub(1));
    }
}

/// The task of a stream.
struct Ingest {
    state: Arc<State>,
    /// Who they are by now is looked up for each run of lines.
    requester: Requester,
    body: BodyDataStream,
    pending: Pending,
    held: Held,
    /// When something arrived last.
    heard: Instant,
    /// What is to be said next.
    ack: IngestAck,
}

impl Ingest {
    /// Reads and publishes to the end, and says what came of it.
    async fn run(mut self, acks: mpsc::Sender<IngestAck>) {
        let end = self.publish_all(&acks).await;
        (self.ack.end, self.ack.error) = match end {
            Ok(()) => (Some("complete"), None),
            Err(error) => (Some("failed"), Some(error)),
        };
        // Who does not read it loses the connection at some time, and with it this task ends.
        let _ = acks.send(self.ack).await;
    }

    async fn publish_all(&mut self, acks: &mpsc::Sender<IngestAck>) -> Result<(), ApiError> {
        let mut draining = self.state.draining.subscribe();
        // Whether something was published that is not said yet.
        let mut unsaid = false;
        // How the body has ended, once what came before is published.
        let mut over = None;
        loop {
            // Each time: a stream may outlast many configurations.
            let config = self.state.shared.config();
            let line_max = config.api.body_bytes_max as usize;
            let idle = Duration::from_millis(config.api.ingest_idle_timeout_ms.into());
            while let Some(run) = self.pending.take_run() {
                self.publish(&run).await?;
                unsaid = !self.say(acks);
            }
            self.held.shrink_to(self.pending.bytes.len());
            // What has come of a line may be too long already.
            if self.pending.bytes.len() > line_max {
                return Err(line_too_long(line_max).of_line(self.ack.lines + 1));
            }
            if let Some(end) = over.take() {
                end?;
                break;
            }
            let part = tokio::select! {
                permit = acks.reserve(), if unsaid => {
                    if let Ok(permit) = permit {
                        permit.send(self.take_ack());
                    }
                    unsaid = false;
                    continue;
                }
                part = next_part(&mut self.body, self.heard + idle) => part?,
                _ = draining.wait_for(|draining| *draining) => return Err(ApiError::draining()),
            };
            let Some(part) = part else { break };
            self.hold(&part).await?;
            // While the run before was stored more may have come, perhaps line by line: all of it is stored at once.
            while over.is_none() && self.pending.bytes.len() < RUN_BYTES_MAX {
                // The connection's own task hands over the next part, one at a time.
                tokio::task::yield_now().await;
                let more = next_part(&mut self.body, self.heard + idle).now_or_never();
                let Some(more) = more else { break };
                match more {
                    Ok(Some(part)) => self.hold(&part).await?,
                    Ok(None) => over = Some(Ok(())),
                    Err(e) => over = Some(Err(e)),
                }
            }
        }
        let last = self.pending.take_rest();
        if last.is_empty() { Ok(()) } else { self.publish(&last).await }
    }

    /// Takes a part of the body.
    async fn hold(&mut self, part: &[u8]) -> Result<(), ApiError> {
        let needed = self.pending.bytes.len() + part.len();
        if !self.held.grow_to(needed, publish::deadline(&self.state)).await {
            let message = "too many bodies are being read (api.bodies_bytes_max)";
            return Err(ApiError::new(Code::Busy, message));
        }
        self.pending.push(part);
        self.heard = Instant::now();
        Ok(())
    }

    /// Says what is done, if the acknowledgement before was taken.
    fn say(&mut self, acks: &mpsc::Sender<IngestAck>) -> bool {
        match acks.try_reserve() {
            Ok(permit) => {
                permit.send(self.take_ack());
                true
            }
            Err(_) => false,
        }
    }

    fn take_ack(&mut self) -> IngestAck {
        let errors = std::mem::take(&mut self.ack.errors);
        let IngestAck { lines, accepted, duplicates, spooled, refused, .. } = self.ack;
        IngestAck { lines, accepted, duplicates, spooled, refused, errors, end: None, error: None }
    }

    /// Publishes a run of lines. Fails where who sends them may not any more, where the shards do not follow, at a line
    /// that is too long, and where these are the first lines and all of them are refused.
    async fn publish(&mut self, run: &[u8]) -> Result<(), ApiError> {
        // Each time, as above: else a stream would outlast its key.
        let caller = guard::still(&self.state, &self.requester, Scope::Publish)?;
        let line_max = self.state.shared.config().api.body_bytes_max as usize;
        let mut too_long = None;
        let mut items = Vec::new();
        // Lines that are not empty, and what is known of them before they are published.
        let mut checked = Vec::new();
        let mut number = self.ack.lines;
        for line in lines(run) {
            if line.len() > line_max {
                too_long = Some(line_too_long(line_max).of_line(number + 1));
                break;
            }
            number += 1;
            let line = line.trim_ascii();
            if !line.is_empty() {
                let item = publish::parse_for(&caller, line).map(|item| items.push(item));
                checked.push((number, item));
            }
        }
        let mut outcomes = publish::publish_all(&self.state, items).await.into_iter();
        for (line, checked) in checked {
            let outcome = match checked {
                Ok(()) => outcomes.next().unwrap_or_else(|| Err(ApiError::busy())),
                Err(e) => Err(e),
            };
            match outcome {
                Ok(receipt) => {
                    self.ack.accepted += 1;
                    self.ack.duplicates += u64::from(receipt.duplicate);
                    self.ack.spooled += u64::from(receipt.ack == Ack::Spooled);
                }
                // What stands behind it may be published or not: nothing is said of it.
                Err(e) if matches!(e.code(), Code::Busy | Code::Draining) => {
                    self.ack.lines = line - 1;
                    return Err(e.of_line(line));
                }
                Err(e) => self.refuse(line, e),
            }
        }
        self.ack.lines = number;
        match self.ack.errors.first() {
            Some(first) if self.ack.accepted == 0 => Err(first.error.of_line(first.line)),
            _ => too_long.map_or(Ok(()), Err),
        }
    }

    fn refuse(&mut self, line: u64, error: ApiError) {
        self.ack.refused += 1;
        if self.ack.errors.len() < ERRORS_MAX {
            self.ack.errors.push(LineError { line, error });
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks
fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn line_too_long(line_max: usize) -> ApiError {
    let message = format!("it is longer than {line_max} bytes (api.body_bytes_max)");
    ApiError::new(Code::TooLarge, message)
}

/// The lines of a run.
pub(super) fn lines(run: &[u8]) -> impl Iterator<Item = &[u8]> {
    run.strip_suffix(b"\n").unwrap_or(run).split(|&b| b == b'\n')
}

/// Bytes received and not published yet; the last line may be unfinished.
#[derive(Debug, Default)]
pub(super) struct Pending {
    bytes: BytesMut,
    /// So many were searched for the end of a line and have none.
    searched: usize,
    /// Bytes looked at in all.
    #[cfg(test)]
    looked_at: usize,
}

impl Pending {
    pub(super) fn push(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
    }

    /// What is left at the end: a last line that nothing ended.
    pub(super) fn take_rest(&mut self) -> BytesMut {
        std::mem::take(&mut self.bytes)
    }

    /// The next whole lines: at most [`RUN_LINES_MAX`] and [`RUN_BYTES_MAX`], or one. Each byte is
    /// searched at most twice, however it arrives.
    pub(super) fn take_run(&mut self) -> Option<Bytes> {
        let (mut end, mut lines) = (0, 0);
        while lines < RUN_LINES_MAX {
            let unsearched = self.bytes.get(self.searched..).unwrap_or_default();
            let found = unsearched.iter().position(|&b| b == b'\n');
            #[cfg(test)]
            {
                self.looked_at += found.map_or(unsearched.len(), |at| at + 1);
            }
            let Some(at) = found else {
                self.searched = self.bytes.len();
                break;
            };
            let next = self.searched + at + 1;
            if lines > 0 && next > RUN_BYTES_MAX {
                break;
            }
            (end, self.searched) = (next, next);
            lines += 1;
        }
        if end == 0 {
            return None;
        }
        self.searched -= end;
        let run = self.bytes.split_to(end).freeze();
        if !self.bytes.has_remaining() {
            // What was large stays with the run, and goes with it.
            self.bytes = BytesMut::new();
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_in_small_parts_is_searched_once() {
        let mut pending = Pending::default();
        for _ in 0..10_000 {
            pending.bytes.extend_from_slice(b"12345678");
            assert!(pending.take_run().is_none());
        }
        pending.bytes.extend_from_slice(b"\nrest");
        assert_eq!(pending.take_run().map(|run| run.len()), Some(80_001));
        assert!(pending.take_run().is_none());
        assert!(pending.looked_at <= 80_005 * 2, "{} bytes looked at", pending.looked_at);
    }

    #[test]
    fn runs_end_at_so_many_lines_or_bytes() {
        let mut pending = Pending::default();
        pending.bytes.extend_from_slice("\n".repeat(RUN_LINES_MAX + 1).as_bytes());
        let lens = |pending: &mut Pending| -> Vec<usize> {
            std::iter::from_fn(|| pending.take_run()).map(|run| run.len()).collect()
        };
        assert_eq!(lens(&mut pending), [RUN_LINES_MAX, 1]);
        let line = |len: usize| format!("{}\n", "x".repeat(len - 1));
        for len in [100_000, 100_000, 100_000, 300_000, 1, 1] {
            pending.bytes.extend_from_slice(line(len).as_bytes());
        }
        pending.bytes.extend_from_slice(b"unfinished");
        assert_eq!(lens(&mut pending), [200_000, 100_000, 300_000, 2]);
        assert_eq!(&pending.bytes[..], b"unfinished");
        assert!(pending.looked_at <= 2 * 600_012 + RUN_LINES_MAX * 2);
    }
}
