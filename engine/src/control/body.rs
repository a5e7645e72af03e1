//! Bodies of requests: read as a whole within their limits on size, time and the memory of all of them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{BodyDataStream, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::State;
use super::budget::{Budget, Held};
use super::error::{ApiError, Code};

/// A whole body, and its part of the memory for bodies: kept as long as anything made of it.
pub(super) struct Collected {
    pub(super) bytes: Bytes,
    pub(super) held: Held,
}

/// Refuses what would have to be unpacked first: its size is not known before.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    for encoding in headers.get_all(header::CONTENT_ENCODING) {
        if !encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity") {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            let message =
                format!("Content-Encoding: {encoding} is not taken; send the body as it is");
            return Err(ApiError::new(Code::UnsupportedEncoding, message));
        }
    }
    Ok(())
}

/// The next part of a body. `None` at its end.
pub(super) async fn next_part(
    body: &mut BodyDataStream,
    deadline: Instant,
) -> Result<Option<Bytes>, ApiError> {
    match timeout_at(deadline, body.next()).await {
        Ok(Some(Ok(part))) => Ok(Some(part)),
        Ok(Some(Err(_))) => Err(ApiError::new(Code::BadRequest, "the body broke off")),
        Ok(None) => Ok(None),
        Err(_) => Err(ApiError::new(Code::Timeout, "the body did not go on in time")),
    }
}

fn too_large(bytes_max: usize) -> ApiError {
    let message = format!("the body is larger than {bytes_max} bytes (api.body_bytes_max)");
    ApiError::new(Code::TooLarge, message)
}

pub(super) fn no_room() -> ApiError {
    ApiError::new(Code::Busy, "too many bodies are held (api.bodies_bytes_max); try again")
}

impl FromRequest<Arc<State>> for Collected {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, ApiError> {
        let bytes_max = state.shared.config().api.body_bytes_max as usize;
        let whole = Collected::read(request, state, &state.bodies, bytes_max).await?;
        whole.ok_or_else(|| too_large(bytes_max))
    }
}

impl Collected {
    /// Reads a body of at most so many bytes, which are of this budget. `None` for a longer one.
    pub(super) async fn read(
        request: Request,
        state: &State,
        budget: &Budget,
        bytes_max: usize,
    ) -> Result<Option<Collected>, ApiError> {
        let config = state.shared.config();
        let api = &config.api;
        check_encoding(request.headers())?;
        let body = request.into_body();
        let announced = body.size_hint().exact().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if announced.is_some_and(|bytes| bytes > bytes_max) {
            return Ok(None);
        }
        let end = Instant::now() + Duration::from_millis(api.body_timeout_ms.into());
        let idle = Duration::from_millis(api.body_idle_timeout_ms.into());
        let patience = Duration::from_millis(api.timeout_ms.into());
        let mut body = body.into_data_stream();
        let mut bytes = BytesMut::new();
        let mut held = budget.hold();
        while let Some(part) = next_part(&mut body, end.min(Instant::now() + idle)).await? {
            let len = bytes.len() + part.len();
            if len > bytes_max {
                return Ok(None);
            }
            // Only who holds nothing yet may wait: all others could be waiting for each other.
            let room = if bytes.is_empty() {
                held.grow_to(len, end.min(Instant::now() + patience)).await
            } else {
                held.try_grow_to(len)
            };
            if !room {
                return Err(no_room());
            }
            if bytes.is_empty() {
                // Memory is taken from the system as it is written to.
                bytes.reserve(announced.unwrap_or(len));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(Some(Collected { bytes: bytes.freeze(), held }))
    }
}
