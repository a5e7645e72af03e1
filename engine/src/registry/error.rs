//! Errors as the routes under `/v1` answer them.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::api::ErrorBody;
use super::names::BadName;
use super::store::StoreError;
pub(super) use crate::control::error::{clip, with_headers};

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// The request itself is wrong.
    BadRequest,
    /// A key is missing or wrong.
    Unauthorized,
    /// There is no such path, node or channel.
    NotFound,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// The body did not come in time.
    Timeout,
    /// Another process has announced itself as this node.
    Replaced,
    /// The registry was started without what this needs.
    NotConfigured,
    /// A body beyond its limit.
    TooLarge,
    /// Too many wrong keys.
    RateLimited,
    /// A table is full.
    LimitReached,
    /// The file takes nothing at present. Nothing was changed.
    Storage,
    /// Somebody else is doing it already.
    Busy,
}

impl Code {
    fn word(self) -> &'static str {
        match self {
            Code::BadRequest => "bad_request",
            Code::Unauthorized => "unauthorized",
            Code::NotFound => "not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::Timeout => "timeout",
            Code::Replaced => "replaced",
            Code::NotConfigured => "not_configured",
            Code::TooLarge => "too_large",
            Code::RateLimited => "rate_limited",
            Code::LimitReached => "limit_reached",
            Code::Storage => "storage",
            Code::Busy => "busy",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Code::BadRequest => StatusCode::BAD_REQUEST,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::Timeout => StatusCode::REQUEST_TIMEOUT,
            Code::Replaced | Code::NotConfigured => StatusCode::CONFLICT,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::LimitReached | Code::Storage | Code::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// An error on its way to who asked.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    code: Code,
    message: String,
}

impl ApiError {
    /// The message may hold what came from outside: it is made printable and cut.
    pub(super) fn new(code: Code, message: impl AsRef<str>) -> ApiError {
        ApiError { code, message: clip(message.as_ref()) }
    }

    pub(super) fn bad_request(message: impl AsRef<str>) -> ApiError {
        ApiError::new(Code::BadRequest, message)
    }

    pub(super) fn status(&self) -> StatusCode {
        self.code.status()
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<BadName> for ApiError {
    fn from(bad: BadName) -> ApiError {
        ApiError::bad_request(bad.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> ApiError {
        ApiError::new(Code::Storage, format!("nothing was changed: {}", e.told()))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = ErrorBody { error: self.code.word().into(), message: self.message };
        with_headers(status, (status, Json(body)).into_response())
    }
}
