//! `GET /metrics`: the counters of all shards in the Prometheus text format, merged when scraped.

use std::sync::Arc;

use axum::extract::State as FromState;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{State, api};
use crate::counters::Kind;

/// A moment's figures: name, help, kind, value.
#[derive(Debug)]
struct Snapshot(Vec<(String, &'static str, Kind, f64)>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for (name, help, kind, value) in &self.0 {
            // The encoder ends help texts with a full stop itself.
            let help = help.trim_end_matches('.');
            match kind {
                Kind::Counter => {
                    let metric = ConstCounter::new(*value);
                    let kind = metric.metric_type();
                    metric.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
                }
                Kind::Gauge | Kind::Maximum => {
                    let metric = ConstGauge::new(*value);
                    let kind = metric.metric_type();
                    metric.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Everything that is counted, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain")))]
pub(super) async fn metrics(FromState(state): FromState<Arc<State>>) -> Response {
    #[allow(clippy::cast_precision_loss)] // Prometheus counts in f64
    let mut figures: Vec<_> = api::totals(&state)
        .each()
        .map(|(name, help, kind, value)| (format!("ringfeed_{name}"), help, kind, value as f64))
        .collect();
    let (user, system) = ringfeed_wire::process_cpu_time();
    let cpu = (user + system).as_secs_f64();
    figures.push(("process_cpu_seconds".into(), "CPU time of the process", Kind::Counter, cpu));
    #[allow(clippy::cast_precision_loss)]
    let resident = ringfeed_wire::resident_bytes().unwrap_or(0) as f64;
    let name = "process_resident_memory_bytes".into();
    figures.push((name, "Resident memory of the process", Kind::Gauge, resident));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(figures)));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}
