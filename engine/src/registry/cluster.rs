//! `GET /cluster/metrics`: asks every node that lives for its `/metrics` and adds up what they say. Nobody but nodes that were
//! announced is asked, redirects are not followed, and what a node answers is bounded in time and length.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use super::api::NodeEntry;
use super::client::{Http, Reply};
use super::error::{ApiError, Code};
use super::foreign::iso;
use super::routes::App;
use crate::clock::Clock;

/// How long one node may take, and all of them.
const NODE_TIME: Duration = Duration::from_secs(3);
const ROUND_TIME: Duration = Duration::from_secs(15);
/// Nodes that are asked at a time.
const ASKED_AT_ONCE: usize = 16;
/// Longest answer of a node, and all that is kept of all of them, in bytes.
const ANSWER_BYTES_MAX: usize = 512 * 1024;
const ROUND_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What one node said.
struct Told {
    id: String,
    said: Value,
    bytes: usize,
}

/// Answers with what all nodes say, one round at a time.
pub(super) async fn metrics(State(registry): App) -> Result<Json<Value>, ApiError> {
    let deadline = Instant::now() + ROUND_TIME;
    let busy = || ApiError::new(Code::Busy, "others ask all nodes already; try again");
    let turn = timeout(NODE_TIME, registry.collecting.acquire()).await;
    let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
    let (mut fleet, at) = registry.fleet().await;
    let nodes = fleet.nodes(false, false, at);
    drop(fleet);
    let http = &registry.options.nodes_http;
    let asked = nodes.into_iter().map(|node| async move {
        let id = node.id.to_string();
        let told = timeout_at(deadline, ask(http, &node)).await;
        told.unwrap_or_else(|_| failed(id, "the nodes took too long"))
    });
    let mut asked = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
    let (mut said, mut summary, mut left) = (Map::new(), Summary::default(), ROUND_BYTES_MAX);
    while let Some(told) = asked.next().await {
        let told = match left.checked_sub(told.bytes) {
            Some(rest) => {
                left = rest;
                told
            }
            None => failed(told.id, "the nodes said too much"),
        };
        summary.add(&told.said);
        said.insert(told.id, told.said);
    }
    Ok(Json(json!({
        "timestamp": iso(Clock::Machine.unix_ms()),
        "totalNodes": said.len(),
        "nodes": said,
        "summary": summary.told(),
    })))
}

fn failed(id: String, why: &str) -> Told {
    Told { id, said: json!({ "error": super::error::clip(why), "status": "error" }), bytes: 0 }
}

async fn ask(http: &Http, node: &NodeEntry) -> Told {
    let id = node.id.to_string();
    match http.get(&node.url.http("/metrics"), ANSWER_BYTES_MAX, NODE_TIME).await {
        Ok(Reply { status: 200, body }) => match serde_json::from_slice(&body) {
            Ok(said @ Value::Object(_)) => Told { id, said, bytes: body.len() },
            _ => failed(id, "its figures are no JSON object"),
        },
        Ok(Reply { status, .. }) => failed(id, &format!("it answers with status {status}")),
        Err(e) => failed(id, &e.to_string()),
    }
}

/// Of all nodes.
#[derive(Default)]
struct Summary {
    clients: u64,
    /// Subscriptions and nodes of each channel.
    channels: BTreeMap<String, (u64, u64)>,
}

impl Summary {
    fn add(&mut self, said: &Value) {
        let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(0);
        let metrics = said.get("metrics");
        let clients = metrics.and_then(|metrics| metrics.get("clients"));
        let total = number(clients.and_then(|clients| clients.get("total")));
        self.clients = self.clients.saturating_add(total);
        // Where the first versions of nodes have them, and where the later ones do.
        let first = clients.and_then(|clients| clients.get("channels"));
        let later = metrics.and_then(|metrics| metrics.get("channels"));
        for (channels, field) in [(first, "subscriberCount"), (later, "subscribers")] {
            for (name, channel) in channels.and_then(Value::as_object).into_iter().flatten() {
                let (subscribers, nodes) = self.channels.entry(name.clone()).or_default();
                *subscribers = subscribers.saturating_add(number(channel.get(field)));
                *nodes += 1;
            }
            if channels.is_some() {
                break;
            }
        }
    }

    fn told(self) -> Value {
        let channels = self.channels.into_iter().map(|(name, (subscribers, nodes))| {
            (name, json!({ "totalSubscribers": subscribers, "nodesServing": nodes }))
        });
        json!({ "totalClients": self.clients, "channels": channels.collect::<Map<_, _>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_figures_are_added_up() {
        let mut summary = Summary::default();
        summary.add(&json!({"metrics": {"clients": {"total": 3, "channels": {
            "news": {"subscriberCount": 2, "subscribers": ["a", "b"]}
        }}}}));
        summary.add(&json!({"metrics": {"clients": {"total": 4}, "channels": {
            "news": {"subscribers": 4, "broadcasts": 9}, "gold": {"subscribers": 1}
        }}}));
        summary.add(&json!({"error": "gone", "status": "error"}));
        summary.add(&json!({"metrics": {"clients": [], "channels": 7}}));
        let channels = json!({
            "gold": {"totalSubscribers": 1, "nodesServing": 1},
            "news": {"totalSubscribers": 6, "nodesServing": 2},
        });
        assert_eq!(summary.told(), json!({"totalClients": 7, "channels": channels}));
    }
}
