//! What the registry counts, and `GET /metrics`, which tells it in the OpenMetrics text format.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as Exposed;

use super::error::{ApiError, Code};
use super::hold::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Liveness {
    live: &'static str,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Figures {
    exposed: Exposed,
    requests: Family<Status, Counter>,
    nodes: Family<Liveness, Gauge>,
    channels: Gauge,
    /// Changes that the file did not take.
    pub(super) store_failures: Counter,
    /// Requests without a key that fits.
    pub(super) refused_keys: Counter,
    /// Copies made.
    pub(super) backups: Counter,
    /// Connections that are open.
    pub(super) connections: Gauge,
    /// Connections closed because there were as many as there may be.
    pub(super) connections_refused: Counter,
}

impl Figures {
    pub(super) fn new() -> Figures {
        let mut figures = Figures {
            exposed: Exposed::default(),
            requests: Family::default(),
            nodes: Family::default(),
            channels: Gauge::default(),
            store_failures: Counter::default(),
            refused_keys: Counter::default(),
            backups: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
        };
        let mut exposed = Exposed::with_prefix("ringfeed_registry");
        exposed.register(
            "requests",
            "Requests by the status of the answer",
            figures.requests.clone(),
        );
        exposed.register("nodes", "Nodes, live and not", figures.nodes.clone());
        exposed.register("channels", "Channels", figures.channels.clone());
        let help = "Changes that the file did not take";
        exposed.register("store_failures", help, figures.store_failures.clone());
        let help = "Requests without a key that fits";
        exposed.register("refused_keys", help, figures.refused_keys.clone());
        exposed.register("backups", "Copies of the file", figures.backups.clone());
        exposed.register("connections", "Connections that are open", figures.connections.clone());
        let help = "Connections closed because there were as many as there may be";
        exposed.register("connections_refused", help, figures.connections_refused.clone());
        figures.exposed = exposed;
        figures
    }

    /// A request was answered.
    pub(super) fn answered(&self, status: u16) {
        self.requests.get_or_create(&Status { status: status.into() }).inc();
    }
}

/// Figures of the registry itself, for Prometheus.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text", body = String)),
    security(("bearer" = []), ("key" = []))
)]
pub(super) async fn metrics(State(registry): State<Arc<Registry>>) -> Result<Response, ApiError> {
    let (mut fleet, at) = registry.fleet().await;
    let ((live, gone), channels) = (fleet.count(at), fleet.channels_count());
    drop(fleet);
    let figures = &registry.figures;
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    figures.nodes.get_or_create(&Liveness { live: "true" }).set(number(live));
    figures.nodes.get_or_create(&Liveness { live: "false" }).set(number(gone));
    figures.channels.set(number(channels));
    let mut text = String::new();
    let failed = |_| ApiError::new(Code::Busy, "the figures could not be written");
    encode(&mut text, &figures.exposed).map_err(failed)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
