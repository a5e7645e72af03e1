//! `GET /metrics`: the counters of each shard, of the API and of the process in the OpenMetrics text
//! format, read when scraped.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::State as FromState;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::error::{ApiError, Code};
use super::figures::PortFigures;
use super::{State, drop, forwards, hooks, rpc, stats};
use crate::bridge;
use crate::counters::{Count, Counters, Distribution, Kind, Reason as _, Totals};
use crate::mesh;

/// One family of a moment's figures: each value with its labels.
#[derive(Debug)]
struct Family {
    name: String,
    help: &'static str,
    kind: MetricType,
    values: Values,
}

type Values = Vec<(Vec<(&'static str, String)>, Value)>;

#[derive(Debug)]
enum Value {
    Number(f64),
    Histogram(Box<Distribution>),
}

#[derive(Debug)]
struct Snapshot(Vec<Family>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for Family { name, help, kind, values } in &self.0 {
            // The encoder ends help texts with a full stop itself.
            let help = help.trim_end_matches('.');
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (labels, value) in values {
                if labels.is_empty() {
                    write(&mut family, *kind, value)?;
                } else {
                    write(&mut family.encode_family(labels)?, *kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(to: &mut MetricEncoder, kind: MetricType, value: &Value) -> Result<(), std::fmt::Error> {
    match value {
        Value::Number(n) if matches!(kind, MetricType::Counter) => {
            to.encode_counter::<NoLabelSet, _, u64>(n, None)
        }
        Value::Number(n) => to.encode_gauge(n),
        Value::Histogram(distribution) => {
            let end = |i| Distribution::bucket_end_us(i).map_or(f64::MAX, seconds);
            let buckets = distribution.buckets.iter().enumerate();
            let buckets: Vec<(f64, u64)> = buckets.map(|(i, &n)| (end(i), n)).collect();
            let (sum, count) = (seconds(distribution.sum_us), distribution.count());
            to.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

#[allow(clippy::cast_precision_loss)] // Prometheus counts in f64
fn float(n: u64) -> f64 {
    n as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}

/// A value that has no labels.
fn alone(value: u64) -> Values {
    vec![(Vec::new(), Value::Number(float(value)))]
}

/// How often something came of what is counted, each labelled with what that was.
fn by_outcome<const N: usize>(outcomes: [(&str, &Count); N]) -> Values {
    let values = outcomes.map(|(outcome, count)| {
        (vec![("outcome", outcome.to_owned())], Value::Number(float(count.read())))
    });
    values.into()
}

fn metric_type(kind: Kind) -> MetricType {
    match kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge | Kind::Maximum => MetricType::Gauge,
    }
}

/// The families of all shards, each value labelled with its shard.
fn shards(counters: &[Arc<Counters>]) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let shard = |i: usize| ("shard", i.to_string());
    for (i, counters) in counters.iter().enumerate() {
        let mut at = 0;
        // Every shard has the same families in the same order.
        let mut add = |name: String, help, kind, values: Vec<_>| {
            match families.get_mut(at) {
                Some(family) => family.values.extend(values),
                None => families.push(Family { name, help, kind, values }),
            }
            at += 1;
        };
        for (name, help, kind, value) in Totals::of(counters).each() {
            let value = vec![(vec![shard(i)], Value::Number(float(value)))];
            add(format!("ringfeed_{name}"), help, metric_type(kind), value);
        }
        for (name, help, counted) in counters.by_reason() {
            let coded = counted.iter().any(|counted| counted.code.is_some());
            let values = counted.into_iter().map(|counted| {
                let mut labels = vec![shard(i), ("reason", counted.reason.into())];
                if coded {
                    let code = counted.code.map(|code| code.to_string());
                    labels.push(("code", code.unwrap_or_default()));
                }
                (labels, Value::Number(float(counted.count)))
            });
            add(format!("ringfeed_{name}"), help, MetricType::Counter, values.collect());
        }
        for (name, help, distribution) in counters.histograms() {
            let name = format!("ringfeed_{}_seconds", name.trim_end_matches("_us"));
            let value = vec![(vec![shard(i)], Value::Histogram(Box::new(distribution)))];
            add(name, help, MetricType::Histogram, value);
        }
    }
    families
}

/// The families of the API and of the process.
#[allow(clippy::too_many_lines)] // a list
fn process(state: &State) -> Vec<Family> {
    let one = |name: &str, help, kind, value| Family {
        name: name.into(),
        help,
        kind,
        values: vec![(Vec::new(), Value::Number(value))],
    };
    let gauge = |name, help, value| one(name, help, MetricType::Gauge, value);
    let counter = |name, help, value| one(name, help, MetricType::Counter, value);
    let figures = &state.figures;
    let (user, system) = ringfeed_wire::process_cpu_time();
    let started = state.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let files_max = ringfeed_wire::open_files_limit().map_or(0, |(soft, _)| soft);
    let under_way: usize = state.to_shards.iter().map(super::Budget::in_use).sum();
    let mut families = port("api", &figures.api);
    families.extend(port("http", &figures.public));
    families.extend([
        counter(
            "ringfeed_http_broadcasts_dropped",
            "Broadcasts of cadsock that were answered with 202 and dropped: their message is no JSON.",
            float(figures.broadcasts_dropped.read()),
        ),
        Family {
            name: "ringfeed_build_info".into(),
            help: "The running version; always 1.",
            kind: MetricType::Gauge,
            values: vec![(vec![("version", env!("CARGO_PKG_VERSION").into())], Value::Number(1.0))],
        },
        Family {
            name: "ringfeed_api_key_requests".into(),
            help: "Requests to the HTTP API with each key, whatever they were answered.",
            kind: MetricType::Counter,
            values: { figures.key_requests().into_iter() }
                .map(|(name, n)| (vec![("key", name)], Value::Number(float(n))))
                .collect(),
        },
        gauge(
            "ringfeed_api_ingest_streams",
            "Ingest streams open.",
            float(figures.ingest_streams.read()),
        ),
        Family {
            name: "ringfeed_reloads".into(),
            help: "Configurations read again, by whether they were taken.",
            kind: MetricType::Counter,
            values: by_outcome([("taken", &figures.reloads), ("refused", &figures.reloads_failed)]),
        },
        gauge(
            "ringfeed_api_body_bytes",
            "Bytes of requests and large answers held.",
            float(state.bodies.in_use() as u64),
        ),
        gauge(
            "ringfeed_api_bytes_under_way",
            "Payload bytes handed to shards and not answered yet.",
            float(under_way as u64),
        ),
        counter("process_cpu_seconds", "CPU time of the process.", (user + system).as_secs_f64()),
        gauge(
            "process_resident_memory_bytes",
            "Resident memory of the process.",
            float(ringfeed_wire::resident_bytes().unwrap_or(0)),
        ),
        gauge(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970.",
            started.as_secs_f64(),
        ),
        gauge(
            "process_open_fds",
            "Ordinary descriptors in use.",
            float(stats::open_files() as u64),
        ),
        gauge("process_max_fds", "The limit on them, ulimit -n.", float(files_max)),
    ]);
    families
}

/// The families of one port: of the HTTP API, or of HTTP beside WebSockets.
fn port(name: &str, figures: &PortFigures) -> Vec<Family> {
    let family = |suffix: &str, help, kind, values| Family {
        name: format!("ringfeed_{name}_{suffix}"),
        help,
        kind,
        values,
    };
    let statuses = figures.statuses();
    let statuses = statuses
        .map(|(status, n)| (vec![("status", status.to_string())], Value::Number(float(n))))
        .collect();
    let took = vec![(Vec::new(), Value::Histogram(Box::new(figures.request_us.read())))];
    vec![
        family("requests", "Requests by the status of their answer", MetricType::Counter, statuses),
        family(
            "request_seconds",
            "From the head of a request to the head of its answer",
            MetricType::Histogram,
            took,
        ),
        family("connections", "Connections", MetricType::Gauge, alone(figures.connections.read())),
        family(
            "connections_refused",
            "Connections told to come back, because all others had a request",
            MetricType::Counter,
            alone(figures.connections_refused.read()),
        ),
        family(
            "connections_pushed_out",
            "Connections closed without a request, because others needed their place",
            MetricType::Counter,
            alone(figures.connections_pushed_out.read()),
        ),
    ]
}

/// The families of the hooks, each value labelled with its hook.
fn hooks(figures: &hooks::Figures) -> Vec<Family> {
    let snapshot = figures.snapshot();
    let label = |hook: hooks::Hook| ("hook", hook.label().to_owned());
    let gauge = |name: &str, help, of: fn(&hooks::Snapshot) -> u64| Family {
        name: name.into(),
        help,
        kind: MetricType::Gauge,
        values: snapshot
            .iter()
            .map(|figures| (vec![label(figures.hook)], Value::Number(float(of(figures)))))
            .collect(),
    };
    let outcomes = snapshot.iter().flat_map(|figures| {
        figures.outcomes.iter().filter(|(_, count)| *count > 0).map(move |&(outcome, count)| {
            let labels = vec![label(figures.hook), ("outcome", outcome.label().to_owned())];
            (labels, Value::Number(float(count)))
        })
    });
    let latencies = snapshot.iter().map(|figures| {
        (vec![label(figures.hook)], Value::Histogram(Box::new(figures.request_us.clone())))
    });
    vec![
        Family {
            name: "ringfeed_hook_requests".into(),
            help: "Requests to the application by what came of them, and questions for which none was sent: \
                   cached, busy, late, broken (the breaker is open) and dropped.",
            kind: MetricType::Counter,
            values: outcomes.collect(),
        },
        Family {
            name: "ringfeed_hook_latency_seconds".into(),
            help: "From sending a request to the last byte of its answer.",
            kind: MetricType::Histogram,
            values: latencies.collect(),
        },
        gauge(
            "ringfeed_hook_breaker_state",
            "Whether the hook is asked: 0 closed, it is; 1 half open, one question tries; 2 open, it is not.",
            |figures| figures.breaker,
        ),
        gauge(
            "ringfeed_hook_waiting",
            "Questions that wait for others, and disconnects that were not told yet.",
            |figures| figures.waiting,
        ),
        gauge("ringfeed_hook_waiting_bytes", "Bytes of them.", |figures| figures.waiting_bytes),
    ]
}

/// The families of calls, each value labelled with what is behind the method.
fn calls(figures: &rpc::Figures) -> Vec<Family> {
    let (mut counted, mut under_way) = (Vec::new(), Vec::new());
    for (kind, now, outcomes) in figures.each() {
        let label = ("kind", kind.label().to_owned());
        under_way.push((vec![label.clone()], Value::Number(float(now))));
        counted.extend(outcomes.into_iter().filter(|(_, count)| *count > 0).map(
            |(outcome, count)| {
                let labels = vec![label.clone(), ("outcome", outcome.label().to_owned())];
                (labels, Value::Number(float(count)))
            },
        ));
    }
    vec![
        Family {
            name: "ringfeed_rpc_calls".into(),
            help: "Calls of methods by what is behind them (none: there is no such method, or the caller may not) and by \
                   what came of them.",
            kind: MetricType::Counter,
            values: counted,
        },
        Family {
            name: "ringfeed_rpc_calls_under_way".into(),
            help: "Calls of methods that are not answered yet.",
            kind: MetricType::Gauge,
            values: under_way,
        },
    ]
}

/// The families of dropped files, or of messages that were left in Redis.
fn dropped(source: &str, what: &str, figures: &drop::Figures) -> Vec<Family> {
    let one = |name: &str, help, kind, count: &Count| Family {
        name: format!("ringfeed_{source}_{name}"),
        help,
        kind,
        values: alone(count.read()),
    };
    let outcomes = [
        ("published", &figures.published),
        ("rejected", &figures.rejected),
        ("forgotten", &figures.forgotten),
    ];
    vec![
        Family {
            name: format!("ringfeed_{source}_{what}"),
            help: "What was dropped, by what came of it: published; rejected, and set aside; of these forgotten, deleted to make \
                   room or for their age.",
            kind: MetricType::Counter,
            values: by_outcome(outcomes),
        },
        one(
            "duplicates",
            "Of the published ones, those that had been published before, by their idempotency keys.",
            MetricType::Counter,
            &figures.duplicates,
        ),
        one(
            "kept",
            "Times something dropped could not be published yet, and was left to be tried again.",
            MetricType::Counter,
            &figures.kept,
        ),
        one("waiting", "What was there at the last look.", MetricType::Gauge, &figures.waiting),
        one(
            "failed",
            "Places of what is dropped that cannot be worked on; the log says why.",
            MetricType::Gauge,
            &figures.failed,
        ),
    ]
}

/// The families of what nodes of another system are told.
fn forwarded(figures: &forwards::Figures) -> Vec<Family> {
    let gauge = |name: &str, help, count: &Count| Family {
        name: format!("ringfeed_wsnode_{name}"),
        help,
        kind: MetricType::Gauge,
        values: alone(count.read()),
    };
    let outcomes = [
        ("sent", &figures.sent),
        ("refused", &figures.refused),
        ("failed", &figures.failed),
        ("lost", &figures.lost),
        ("unfit", &figures.unfit),
    ];
    vec![
        Family {
            name: "ringfeed_wsnode_forwards".into(),
            help: "Posts to nodes of wsnode by what came of them: sent; refused by the node; failed, without an answer; lost, since \
                   the node could not be reached or too much waited; and publications that no node takes: unfit.",
            kind: MetricType::Counter,
            values: by_outcome(outcomes),
        },
        gauge("nodes", "Nodes of wsnode that are told of publications.", &figures.nodes),
        gauge("waiting_bytes", "Bytes that wait to be posted to them.", &figures.waiting_bytes),
    ]
}

/// The families of the connections to Redis.
fn redis(figures: &bridge::Figures) -> impl Iterator<Item = Family> {
    figures.each().into_iter().map(|(name, help, kind, value)| Family {
        name: format!("ringfeed_redis_{name}"),
        help,
        kind: metric_type(kind),
        values: alone(value),
    })
}

/// The families of what nodes do for one another.
fn cluster(figures: &mesh::Figures) -> impl Iterator<Item = Family> {
    figures.each().into_iter().map(|(name, help, kind, value)| Family {
        name: format!("ringfeed_cluster_{name}"),
        help,
        kind: metric_type(kind),
        values: alone(value),
    })
}

/// Everything that is counted, for Prometheus.
#[utoipa::path(
    get, path = "/metrics",
    responses(
        (status = 200, description = "OpenMetrics text", content_type = "text/plain"),
        (status = "4XX", description = "The request is refused", body = ApiError),
    ),
    security((), ("bearer" = ["metrics"]), ("key" = ["metrics"]))
)]
pub(super) async fn metrics(FromState(state): FromState<Arc<State>>) -> Response {
    let mut families = shards(&state.shared.counters);
    families.extend(process(&state));
    families.extend(hooks(&state.hooks));
    families.extend(calls(&state.rpc));
    families.extend(dropped("drop", "files", &state.figures.drop));
    if state.shared.config().redis.is_used() {
        families.extend(dropped("redis_drop", "messages", &state.figures.redis_drop));
        families.extend(redis(&state.shared.redis));
    }
    if state.shared.config().cluster.is_used() {
        families.extend(cluster(&state.shared.cluster));
    }
    if state.shared.config().wsnode.is_used() {
        families.extend(forwarded(&state.figures.forwards));
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(families)));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => ApiError::new(Code::Busy, e.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hook_has_its_lines() {
        let mut registry = Registry::default();
        let figures = hooks::Figures::default();
        registry.register_collector(Box::new(Snapshot(hooks(&figures))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for hook in hooks::Hook::ALL {
            let label = format!("hook=\"{}\"", hook.label());
            for line in ["breaker_state{", "waiting{", "waiting_bytes{", "latency_seconds_count{"] {
                assert!(text.contains(&format!("ringfeed_hook_{line}{label}")), "{text}");
            }
        }
    }
}
