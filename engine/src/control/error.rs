//! Errors as every endpoint answers them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ringfeed_protocol::printable::{DETAIL_BYTES_MAX, Printable};
use ringfeed_protocol::{ErrorCode, Refused};
use serde::Serialize;

/// What went wrong: its word for programs and its HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// As over WebSocket.
    Command(ErrorCode),
    /// The request itself is wrong.
    BadRequest,
    /// A key is missing or wrong.
    Unauthorized,
    /// Who asks is not allowed to.
    Forbidden,
    /// It asks more often than it may.
    RateLimited,
    /// There is no such path or channel.
    NotFound,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// The request did not go on in time.
    Timeout,
    /// A body, a line or a batch beyond its limit.
    TooLarge,
    /// A body in an encoding.
    UnsupportedEncoding,
    /// A limit of the server is used up; later it may not be.
    Busy,
    /// The server shuts down.
    Draining,
}

impl Code {
    /// The word that travels.
    pub(super) fn word(self) -> &'static str {
        match self {
            Code::Command(code) => code.as_str(),
            Code::BadRequest => "bad_request",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::RateLimited => ErrorCode::RateLimited.as_str(),
            Code::NotFound => "not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::Timeout => "timeout",
            Code::TooLarge => ErrorCode::LimitReached.as_str(),
            Code::UnsupportedEncoding => "unsupported_encoding",
            Code::Busy => ErrorCode::Busy.as_str(),
            Code::Draining => ErrorCode::Draining.as_str(),
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Forbidden => StatusCode::FORBIDDEN,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::Timeout => StatusCode::REQUEST_TIMEOUT,
            Code::TooLarge | Code::Command(ErrorCode::MessageTooLong) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Code::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            // Of a shard: its table of channels is full.
            Code::Command(ErrorCode::LimitReached) | Code::Busy | Code::Draining => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Code::Command(_) | Code::BadRequest => StatusCode::BAD_REQUEST,
        }
    }
}

/// The words of all errors that the API answers, for its documentation.
pub fn error_words() -> Vec<&'static str> {
    [
        Code::Command(ErrorCode::BadJson),
        Code::Command(ErrorCode::BadCommand),
        Code::Command(ErrorCode::BadChannel),
        Code::Command(ErrorCode::MessageTooLong),
        Code::Command(ErrorCode::InvalidMessage),
        Code::BadRequest,
        Code::Unauthorized,
        Code::Forbidden,
        Code::RateLimited,
        Code::NotFound,
        Code::MethodNotAllowed,
        Code::Timeout,
        Code::TooLarge,
        Code::UnsupportedEncoding,
        Code::Busy,
        Code::Draining,
    ]
    .map(Code::word)
    .to_vec()
}

/// An error, as every endpoint answers it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(super) struct ApiError {
    #[serde(skip)]
    code: Code,
    /// A word for programs.
    error: &'static str,
    /// A sentence for people, of at most 200 bytes. Left out where many errors are told at once.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl ApiError {
    /// The message may hold what a client sent: it is made printable and cut.
    pub(super) fn new(code: Code, message: impl AsRef<str>) -> ApiError {
        ApiError { code, error: code.word(), message: clip(message.as_ref()) }
    }

    pub(super) fn busy() -> ApiError {
        ApiError::new(Code::Busy, "a shard is busy; whether this was published is not known")
    }

    pub(super) fn draining() -> ApiError {
        ApiError::new(Code::Draining, "the server is shutting down")
    }

    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// What was wrong, for a person.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// The same error about one line of many.
    pub(super) fn of_line(&self, line: u64) -> ApiError {
        ApiError { message: clip(&format!("line {line}: {}", self.message)), ..self.clone() }
    }

    /// The word alone.
    pub(super) fn without_message(mut self) -> ApiError {
        self.message = String::new();
        self
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        let code = match refused {
            Refused::Draining => Code::Draining,
            Refused::Unavailable { .. } => Code::Busy,
            _ => Code::Command(refused.code()),
        };
        ApiError::new(code, refused.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        with_headers(status, (status, Json(self)).into_response())
    }
}

/// Adds what a status asks for beside its body.
pub(crate) fn with_headers(status: StatusCode, mut response: Response) -> Response {
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Without control characters, and no longer than [`DETAIL_BYTES_MAX`].
pub(crate) fn clip(text: &str) -> String {
    Printable::new(text, DETAIL_BYTES_MAX - '…'.len_utf8()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_printable_and_short() {
        assert_eq!(clip("a\u{1b}[2J\n"), "a\\u{1b}[2J\\u{a}");
        for long in ["x", "é", "\u{1b}", "😀"] {
            let clipped = clip(&long.repeat(1000));
            assert!(clipped.len() <= DETAIL_BYTES_MAX && clipped.ends_with('…'), "{clipped}");
        }
    }

    #[test]
    fn what_may_pass_is_503_and_what_is_too_large_413() {
        let full = ApiError::new(Code::Command(ErrorCode::LimitReached), "");
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ApiError::new(Code::TooLarge, "").status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(ApiError::new(Code::TooLarge, "").error, full.error);
    }
}
