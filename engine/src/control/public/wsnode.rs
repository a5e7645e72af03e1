//! `POST broadcast`, `GET health` and `GET metrics` as a node of DistributedWebSocket serves them.

mod tally;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Extension, Request, State as FromState};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ringfeed_protocol::command::Payload;
use ringfeed_protocol::date::iso_millis;
use ringfeed_protocol::foreign::wsnode::is_truthy;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Beside;
use crate::clock::Clock;
use crate::config::Scope;
use crate::control::State;
use crate::control::body::Collected;
use crate::control::error::{ApiError, Code};
use crate::control::forwards::BODY_BYTES_MAX;
use crate::control::guard::{Peer, holder};
use crate::control::publish;
use crate::counters::Totals;
use crate::message::Sender;
pub(super) use tally::Tally;

/// What the routes share.
#[derive(Debug, Clone)]
struct Node {
    beside: Beside,
    tally: Arc<Tally>,
}

/// Adds the routes.
pub(super) fn add(router: Router, beside: Beside, tally: &Arc<Tally>) -> Router {
    let path = |route| beside.path(route);
    let node = Node { beside: beside.clone(), tally: tally.clone() };
    router
        .route(&path("broadcast"), post(broadcast).with_state(node.clone()))
        .route(&path("health"), get(health).with_state(node.clone()))
        .route(&path("metrics"), get(metrics).with_state(node))
}

#[derive(Deserialize)]
struct Broadcast<'a> {
    #[serde(borrow)]
    channel: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow, rename = "apiKey")]
    api_key: Option<&'a RawValue>,
    /// The node that was told first, and has told all others.
    #[serde(borrow)]
    origin: Option<&'a RawValue>,
    /// What it has in common with those that hear of it by links of their own.
    #[serde(borrow)]
    links: Option<&'a RawValue>,
}

async fn broadcast(
    FromState(node): FromState<Node>,
    Extension(Peer(client)): Extension<Peer>,
    request: Request,
) -> Response {
    match node.broadcast(client, request).await {
        Ok(told) => Json(told).into_response(),
        Err(NotDone::Refused(status, error)) => {
            (status, Json(json!({ "error": error }))).into_response()
        }
        Err(NotDone::Failed(why)) => {
            let told = json!({"error": "Broadcast failed", "message": why});
            (StatusCode::INTERNAL_SERVER_ERROR, Json(told)).into_response()
        }
    }
}

/// Why nothing was broadcast, or it is not known whether it was.
enum NotDone {
    Refused(StatusCode, String),
    Failed(String),
}

impl From<ApiError> for NotDone {
    fn from(error: ApiError) -> NotDone {
        match error.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                NotDone::Refused(StatusCode::UNAUTHORIZED, "Unauthorized".into())
            }
            status if status.is_server_error() => NotDone::Failed(error.message().to_owned()),
            status => NotDone::Refused(status, error.message().to_owned()),
        }
    }
}

impl Node {
    fn state(&self) -> &State {
        &self.beside.state
    }

    fn id(&self) -> String {
        self.state().shared.config().server.node_id.clone()
    }

    /// Whether what is published on a node with these links comes here by them.
    fn hears(&self, links: Option<String>) -> bool {
        links.is_some() && links == self.state().shared.config().links()
    }

    async fn broadcast(&self, client: IpAddr, request: Request) -> Result<Value, NotDone> {
        let state = self.state();
        let body = Collected::read(request, state, &state.public_bodies, BODY_BYTES_MAX).await?;
        let Some(body) = body else {
            let why = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            return Err(NotDone::Refused(StatusCode::PAYLOAD_TOO_LARGE, why));
        };
        let said: Broadcast = publish::object(&body.bytes, "a broadcast")?;
        let text = |value: Option<&RawValue>| {
            value.and_then(|value| serde_json::from_str::<String>(value.get()).ok())
        };
        let key = text(said.api_key).unwrap_or_default();
        let caller = holder(state, key.as_bytes(), Scope::Publish, client)?;
        let channel = text(said.channel).filter(|channel| !channel.is_empty());
        let (Some(channel), Some(message)) = (channel, said.message.filter(|m| is_truthy(m.get())))
        else {
            let why = "Channel and message are required";
            return Err(NotDone::Refused(StatusCode::BAD_REQUEST, why.into()));
        };
        let payload = Payload::from_fields(Some(message), None, None).map_err(ApiError::from)?;
        let node = self.id();
        let origin = said.origin.filter(|origin| is_truthy(origin.get()));
        if origin.is_some()
            && (text(origin).is_some_and(|by| by == node) || self.hears(text(said.links)))
        {
            let mut told = no_subscribers(&node);
            told["linked"] = true.into();
            return Ok(told);
        }
        let by = origin.map(|_| Box::new(Sender { relayed: true, ..Sender::default() }));
        let receipt = self.beside.publish_by(&caller, &channel, payload, by).await?;
        let subscribers = receipt.subscribers;
        self.tally.broadcast(&channel, message.get().len() as u64, subscribers);
        if subscribers == 0 {
            return Ok(no_subscribers(&node));
        }
        Ok(json!({"success": true, "nodeId": node, "delivered": subscribers, "total": subscribers}))
    }

    /// What this node has done. What the engine does not know is null.
    fn metrics(&self) -> Value {
        let state = self.state();
        let mut totals = Totals::default();
        state.shared.counters.iter().for_each(|counters| totals.add(&Totals::of(counters)));
        let (user, system) = ringfeed_wire::process_cpu_time();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load: Vec<f64> =
            load.split(' ').take(3).filter_map(|number| number.parse().ok()).collect();
        let tally = &self.tally;
        json!({
            "nodeId": self.id(),
            "uptime": state.started.elapsed().as_secs_f64(),
            "timestamp": iso_millis(Clock::Machine.unix_ms()),
            "metrics": {
                "broadcasts": tally.broadcasts(),
                "clients": {
                    "total": totals.connections,
                    "totalSubscriptions": totals.subscriptions,
                    "subscriptionsLastMinute": null,
                },
                "channels": tally.channels(),
                "system": {
                    "memory": {
                        "rss": ringfeed_wire::resident_bytes().ok(),
                        "heapTotal": null, "heapUsed": null, "external": null, "arrayBuffers": null,
                    },
                    "cpu": { "user": user.as_micros() as u64, "system": system.as_micros() as u64 },
                    "load": load,
                },
                "network": { "connectedNodes": &**state.figures.forwards.ids.load() },
            },
        })
    }
}

async fn health(FromState(node): FromState<Node>) -> Json<Value> {
    Json(node.metrics())
}

async fn metrics(
    FromState(node): FromState<Node>,
    Extension(Peer(client)): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    let given = headers.get("x-api-key").map(|value| value.as_bytes()).unwrap_or_default();
    match holder(node.state(), given, Scope::Metrics, client) {
        Ok(_) => Json(node.metrics()).into_response(),
        Err(e) if e.code() == Code::RateLimited => {
            (e.status(), Json(json!({"error": e.message()}))).into_response()
        }
        Err(_) => {
            (StatusCode::UNAUTHORIZED, Json(json!({"error": "Unauthorized"}))).into_response()
        }
    }
}

/// What a node says that has nobody to tell.
fn no_subscribers(node: &str) -> Value {
    json!({"success": true, "nodeId": node, "subscribers": 0, "message": "No subscribers for this channel"})
}
