//! Bodies of requests: bounded in length and time, and JSON whatever their `Content-Type` says, as the nodes of other systems
//! and `curl -d` do not agree on one.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::error::{ApiError, Code};

/// Longest body in bytes.
pub(super) const BODY_BYTES_MAX: usize = 256 * 1024;
/// How long one may take to come.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A whole body.
#[derive(Debug)]
pub(super) struct Whole(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Whole, ApiError> {
        read(request.into_body()).await.map(Whole)
    }
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_TIME, to_bytes(body, BODY_BYTES_MAX)).await;
    let read = read.map_err(|_| ApiError::new(Code::Timeout, "the body did not come in time"))?;
    read.map_err(|_| {
        let message = format!("the body is not whole or has more than {BODY_BYTES_MAX} bytes");
        ApiError::new(Code::TooLarge, message)
    })
}

impl Whole {
    /// The body as what a route takes.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.0)
            .map_err(|e| ApiError::bad_request(format!("the body is not what is taken here: {e}")))
    }

    /// The same; nothing at all is what stands for nothing said.
    pub(super) fn parse_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        if self.0.trim_ascii().is_empty() { Ok(T::default()) } else { self.parse() }
    }
}
