//! HTTP on the port of the WebSockets: what `[[endpoints]].http` says is served beside an endpoint, as the systems do that
//! its clients come from. Who publishes there shows a key of the API.

mod cadsock;
mod fluxus;
mod wsnode;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use ringfeed_protocol::command::Payload;
use ringfeed_protocol::{ChannelName, Dialect, Refused, any_name};

use super::error::ApiError;
use super::guard::check_channel;
use super::publish::{self, Outcome};
use super::{State, api};
use crate::callers::Caller;
use crate::config::{Endpoint, HttpRoutes};
use crate::message::{By, Post};

/// All that is served. Endpoints stay as they are while the server runs.
pub(super) fn router(state: &Arc<State>) -> Router {
    let config = state.shared.config();
    let tally = Arc::default();
    // What a path may be in the configuration is meant as it stands.
    let mut router = Router::new().without_v07_checks();
    for endpoint in &config.endpoints {
        let beside = Beside::new(endpoint, state);
        router = match endpoint.http {
            HttpRoutes::None => router,
            HttpRoutes::Wsnode => wsnode::add(router, beside, &tally),
            HttpRoutes::Cadsock => cadsock::add(router, beside),
            HttpRoutes::Fluxus => fluxus::add(router, beside, endpoint.example()),
        };
    }
    if !config.endpoints.iter().any(|endpoint| endpoint.serves_http("/health")) {
        // A connection that was handed over stays here, and the door serves this one.
        router = router.route("/health", get(api::health));
    }
    router.fallback(nothing).layer(from_fn(no_upgrade))
}

/// What the routes beside one endpoint have in common.
#[derive(Debug, Clone)]
struct Beside {
    state: Arc<State>,
    /// What its clients speak.
    dialect: Dialect,
    /// In front of the names of channels.
    prefix: Arc<str>,
    /// In front of the routes.
    directory: Arc<str>,
}

impl Beside {
    fn new(endpoint: &Endpoint, state: &Arc<State>) -> Beside {
        let (prefix, directory) = (&*endpoint.channel_prefix, endpoint.directory());
        let (prefix, directory) = (prefix.into(), directory.into());
        Beside { state: state.clone(), dialect: endpoint.dialect, prefix, directory }
    }

    fn path(&self, route: &str) -> String {
        format!("{}{route}", self.directory)
    }

    /// Publishes as `POST /api/publish` does.
    async fn publish(&self, caller: &Caller, name: &str, payload: Payload<'_>) -> Outcome {
        self.publish_by(caller, name, payload, None).await
    }

    /// The same, and says who has published it.
    async fn publish_by(
        &self,
        caller: &Caller,
        name: &str,
        payload: Payload<'_>,
        by: By,
    ) -> Outcome {
        publish::not_draining(&self.state)?;
        // As its clients give names.
        let name = if self.dialect.has_any_names() { any_name::encode(name) } else { name.into() };
        let channel = ChannelName::new(&format!("{}{name}", self.prefix)).map_err(Refused::from)?;
        check_channel(caller, &channel)?;
        let post = Post { channel, payload: payload.into(), by };
        let outcome = publish::publish_all(&self.state, vec![post]).await.pop();
        outcome.unwrap_or_else(|| Err(ApiError::busy()))
    }
}

async fn nothing() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there is nothing here\n")
}

/// A connection that was handed over is never one of WebSockets again.
async fn no_upgrade(request: Request, next: Next) -> Response {
    if !wants_websocket(request.headers()) {
        return next.run(request).await;
    }
    let text =
        "a WebSocket needs a connection of its own, on which nothing else was asked before\n";
    (StatusCode::BAD_REQUEST, [(header::CONNECTION, "close")], text).into_response()
}

fn wants_websocket(headers: &HeaderMap) -> bool {
    let upgrades = headers.get_all(header::UPGRADE).iter();
    let mut protocols = upgrades.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    protocols.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket"))
        || headers.contains_key(header::SEC_WEBSOCKET_KEY)
}
