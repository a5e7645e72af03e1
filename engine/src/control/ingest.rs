//! `POST /api/ingest`: newline-delimited JSON over one long request, acknowledged as it goes.

use std::sync::Arc;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::State as FromState;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use serde::Serialize;

use super::State;
use super::publish::{self, ApiError};

/// Most lines published at once, and so between two acknowledgements.
const LINES_MAX: usize = 4096;

/// One acknowledgement: everything up to this line has been seen to.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct IngestAck {
    /// Lines read so far.
    lines: u64,
    /// Publications in their home shards' logs so far.
    accepted: u64,
    /// Lines refused so far.
    refused: u64,
    /// The lines refused since the acknowledgement before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineError>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct LineError {
    /// Counted from 1.
    line: u64,
    #[serde(flatten)]
    error: ApiError,
}

struct Ingest {
    state: Arc<State>,
    body: BodyDataStream,
    /// Bytes received and not published yet; the last line may be unfinished.
    pending: Vec<u8>,
    ended: bool,
    ack: IngestAck,
}

/// Publishes each line as it arrives. The response is a line of JSON for each run of lines that was
/// published, so that a publisher knows at any time what is in the logs. Lines look like the body of
/// `/api/publish`; empty lines are skipped.
#[utoipa::path(
    post, path = "/api/ingest",
    request_body(content = String, content_type = "application/x-ndjson"),
    responses((status = 200, body = IngestAck, content_type = "application/x-ndjson"))
)]
pub(super) async fn ingest(FromState(state): FromState<Arc<State>>, body: Body) -> Response {
    let ingest = Ingest {
        state,
        body: body.into_data_stream(),
        pending: Vec::new(),
        ended: false,
        ack: IngestAck::default(),
    };
    let acks = unfold(ingest, |mut ingest| async move {
        let ack = ingest.next_ack().await?;
        Some((ack, ingest))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(acks)).into_response()
}

impl Ingest {
    /// Reads and publishes the next run of lines. `None` at the end.
    async fn next_ack(&mut self) -> Option<std::io::Result<Bytes>> {
        let lines = loop {
            let whole = self.pending.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            if whole > 0 {
                let rest = self.pending.split_off(whole);
                break std::mem::replace(&mut self.pending, rest);
            }
            let line_max = self.state.shared.config.api.body_bytes_max as usize;
            if self.pending.len() > line_max {
                let message = format!("a line is longer than {line_max} bytes");
                return self.give_up(ApiError::new("limit_reached", message));
            }
            if self.ended {
                if self.pending.is_empty() {
                    return None;
                }
                break std::mem::take(&mut self.pending);
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.pending.extend_from_slice(&bytes),
                // A body that breaks off leaves an unfinished line: it is not published.
                Some(Err(_)) => return None,
                None => self.ended = true,
            }
        };
        let mut run = lines.split(|&b| b == b'\n').peekable();
        run.peek()?;
        self.ack.errors.clear();
        while run.peek().is_some() {
            let lines = run.by_ref().take(LINES_MAX);
            if let Err(e) = self.publish(lines).await {
                return self.give_up(e);
            }
        }
        Some(Ok(line_of(&self.ack)))
    }

    async fn publish<'a>(&mut self, lines: impl Iterator<Item = &'a [u8]>) -> Result<(), ApiError> {
        let bytes_max = self.state.shared.config.api.body_bytes_max as usize;
        let mut items = Vec::new();
        let mut numbers = Vec::new();
        for line in lines.map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
            self.ack.lines += 1;
            match publish::parse(line).and_then(|body| body.check(bytes_max)) {
                Ok(item) => {
                    items.push(item);
                    numbers.push(self.ack.lines);
                }
                Err(error) => self.refuse(self.ack.lines, error),
            }
        }
        if self.state.draining.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(ApiError::new("draining", "the server is shutting down"));
        }
        for (line, result) in
            numbers.into_iter().zip(publish::publish_all(&self.state, items).await?)
        {
            match result {
                Ok(_) => self.ack.accepted += 1,
                Err(refused) => {
                    let code = refused.code().as_str();
                    self.refuse(line, ApiError::new(code, refused.to_string()));
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, line: u64, error: ApiError) {
        self.ack.refused += 1;
        self.ack.errors.push(LineError { line, error });
    }

    /// Says why nothing more is read; the lines behind the last acknowledgement may be published or
    /// not.
    fn give_up(&mut self, error: ApiError) -> Option<std::io::Result<Bytes>> {
        (self.ended, self.pending) = (true, Vec::new());
        self.body = Body::empty().into_data_stream();
        Some(Ok(line_of(&error)))
    }
}

fn line_of(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
