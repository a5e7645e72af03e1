//! `POST internal/broadcast`: a form with `channel` and `message`, as the successor of the FrankenPHP realtime module takes it.

use std::borrow::Cow;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request, State as FromState};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use ringfeed_protocol::Dialect;
use ringfeed_protocol::command::{Payload, PayloadKind};
use serde_json::value::RawValue;

use super::Beside;
use crate::config::Scope;
use crate::control::State;
use crate::control::body::Collected;
use crate::control::error::ApiError;
use crate::control::guard::{Peer, holder};

/// Where the key is.
const SECRET: &str = "x-broadcast-secret";
/// Messages that are no JSON are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Adds the route.
pub(super) fn add(router: Router, beside: Beside) -> Router {
    router.route(&beside.path("internal/broadcast"), any(broadcast).with_state(beside))
}

async fn broadcast(
    FromState(beside): FromState<Beside>,
    Extension(Peer(client)): Extension<Peer>,
    request: Request,
) -> Response {
    match taken(&beside, client, request).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err((status, text)) => (status, format!("{text}\n")).into_response(),
    }
}

/// Why a request is not taken.
type NotTaken = (StatusCode, Cow<'static, str>);

async fn taken(
    beside: &Beside,
    client: std::net::IpAddr,
    request: Request,
) -> Result<(), NotTaken> {
    let state = &*beside.state;
    let given = request.headers().get(SECRET).map(|value| value.as_bytes()).unwrap_or_default();
    let caller = holder(state, given, Scope::Publish, client).map_err(refusal)?;
    if request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed".into()));
    }
    let is_form = is_form(request.headers());
    let bytes_max = state.shared.config().api.body_bytes_max as usize;
    let body = Collected::read(request, state, &state.public_bodies, bytes_max).await;
    let too_large = (StatusCode::PAYLOAD_TOO_LARGE, "the form is too large".into());
    let body = body.map_err(refusal)?.ok_or(too_large)?;
    let form: &[u8] = if is_form { &body.bytes } else { b"" };
    let field = |name: &str| {
        let found = form_urlencoded::parse(form).find(|(key, _)| key == name);
        found.map(|(_, value)| value).filter(|value| !value.is_empty())
    };
    let (Some(channel), Some(message)) = (field("channel"), field("message")) else {
        return Err((StatusCode::BAD_REQUEST, "Missing channel or message".into()));
    };
    let json = serde_json::from_str::<&RawValue>(&message).ok();
    let payload = json.and_then(|json| Payload::from_fields(Some(json), None, None).ok());
    let payload = match payload {
        Some(payload) => payload,
        // Nothing stands around it.
        None if beside.dialect == Dialect::Raw => {
            let bytes = Cow::Borrowed(message.as_bytes());
            Payload { kind: PayloadKind::Text, bytes }
        }
        None => {
            drop_message(state, &channel);
            return Ok(());
        }
    };
    beside.publish(&caller, &channel, payload).await.map_err(refusal)?;
    Ok(())
}

/// What it was sent for cannot be told of: subscribers get JSON.
fn drop_message(state: &State, channel: &str) {
    state.figures.broadcasts_dropped.add(1);
    if let Some(others) = state.dropped_log.due(LOG_EVERY) {
        let channel = crate::control::error::clip(channel);
        tracing::warn!(
            "a broadcast to {channel} is dropped: its message is no JSON ({others} more like it)"
        );
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

/// In this route's own words.
fn refusal(error: ApiError) -> NotTaken {
    match error.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            (StatusCode::FORBIDDEN, "Forbidden".into())
        }
        status if status.is_server_error() => {
            (StatusCode::INTERNAL_SERVER_ERROR, error.message().to_owned().into())
        }
        status => (status, error.message().to_owned().into()),
    }
}
