//! `GET /api/stats`: counters, CPU time and memory, of the process and of each shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State as FromState;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use super::figures::PortFigures;
use crate::counters::{Distribution, Totals};

/// What the whole process has done and holds.
#[derive(Serialize, ToSchema)]
pub(super) struct StatsReply {
    version: &'static str,
    uptime_seconds: f64,
    shards: u16,
    /// CPU time of the process.
    cpu_user_seconds: f64,
    cpu_system_seconds: f64,
    /// Resident memory in bytes.
    resident_bytes: u64,
    /// Ordinary descriptors in use.
    open_files: usize,
    /// Counters and gauges over all shards: sums, and of maxima the largest.
    totals: Totals,
    /// The same of each shard.
    by_shard: Vec<ShardStats>,
    /// WebSocket connections ended, by reason.
    closes: BTreeMap<&'static str, u64>,
    /// Connections and upgrades refused, by reason.
    refused: BTreeMap<&'static str, u64>,
    /// Time of the turns of all shards.
    turn_us: Quantiles,
    /// From the append at the home to the hand-over to the kernel, for subscribers that keep up.
    delivery_us: Quantiles,
    /// The HTTP API itself.
    api: ApiStats,
    /// HTTP on the port of the WebSockets.
    http: PortStats,
}

#[derive(Serialize, ToSchema)]
struct ShardStats {
    shard: usize,
    #[serde(flatten)]
    totals: Totals,
}

/// Upper bounds in microseconds, at most twice too large; null where there is nothing, or where it is
/// above 16.8 s.
#[derive(Serialize, ToSchema)]
struct Quantiles {
    count: u64,
    p50: Option<u64>,
    p99: Option<u64>,
    p999: Option<u64>,
}

impl Quantiles {
    fn of(distribution: &Distribution) -> Quantiles {
        Quantiles {
            count: distribution.count(),
            p50: distribution.quantile_us(0.5),
            p99: distribution.quantile_us(0.99),
            p999: distribution.quantile_us(0.999),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct PortStats {
    /// Connections open.
    connections: u64,
    /// Connections told to come back, because all others had a request.
    connections_refused: u64,
    /// Connections closed without a request, because others needed their place.
    connections_pushed_out: u64,
    /// Answers by status.
    requests: BTreeMap<u16, u64>,
    /// From the head of a request to the head of its answer.
    request_us: Quantiles,
}

impl PortStats {
    fn of(figures: &PortFigures) -> PortStats {
        PortStats {
            connections: figures.connections.read(),
            connections_refused: figures.connections_refused.read(),
            connections_pushed_out: figures.connections_pushed_out.read(),
            requests: figures.statuses().collect(),
            request_us: Quantiles::of(&figures.request_us.read()),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct ApiStats {
    #[serde(flatten)]
    port: PortStats,
    /// Ingest streams open.
    ingest_streams: u64,
    /// Bytes of requests and large answers held.
    body_bytes: usize,
    /// Payload bytes handed to shards and not answered yet.
    bytes_under_way: usize,
}

/// How many ordinary descriptors are in use.
pub(super) fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Counters, CPU time and memory. Gauges are at most a tenth of a second old.
#[utoipa::path(
    get, path = "/api/stats",
    responses(
        (status = 200, description = "Counters and gauges", body = StatsReply),
        (status = "4XX", description = "The request is refused", body = super::error::ApiError),
    ),
    security(("bearer" = ["stats"]), ("key" = ["stats"]))
)]
pub(super) async fn stats(FromState(state): FromState<Arc<State>>) -> Json<StatsReply> {
    Json(collect(&state))
}

/// What the process has done and holds.
pub(super) fn collect(state: &State) -> StatsReply {
    let (user, system) = ringfeed_wire::process_cpu_time();
    let counters = &state.shared.counters;
    let by_shard: Vec<ShardStats> = (0..)
        .zip(counters)
        .map(|(shard, counters)| ShardStats { shard, totals: Totals::of(counters) })
        .collect();
    let mut totals = Totals::default();
    by_shard.iter().for_each(|shard| totals.add(&shard.totals));
    let mut reasons: BTreeMap<&str, BTreeMap<&'static str, u64>> = BTreeMap::new();
    let mut histograms: BTreeMap<&str, Distribution> = BTreeMap::new();
    for counters in counters {
        for (name, _, counted) in counters.by_reason() {
            let by_reason = reasons.entry(name).or_default();
            for counted in counted {
                *by_reason.entry(counted.reason).or_default() += counted.count;
            }
        }
        for (name, _, distribution) in counters.histograms() {
            histograms.entry(name).or_default().add(&distribution);
        }
    }
    let mut by_reason = |name: &str| reasons.remove(name).unwrap_or_default();
    let quantiles =
        |name: &str| Quantiles::of(histograms.get(name).unwrap_or(&Distribution::default()));
    let figures = &state.figures;
    StatsReply {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: state.started.elapsed().as_secs_f64(),
        shards: state.shared.shards.count(),
        cpu_user_seconds: user.as_secs_f64(),
        cpu_system_seconds: system.as_secs_f64(),
        resident_bytes: ringfeed_wire::resident_bytes().unwrap_or(0),
        open_files: open_files(),
        totals,
        by_shard,
        closes: by_reason("closes"),
        refused: by_reason("refused"),
        turn_us: quantiles("turn_us"),
        delivery_us: quantiles("delivery_us"),
        api: ApiStats {
            port: PortStats::of(&figures.api),
            ingest_streams: figures.ingest_streams.read(),
            body_bytes: state.bodies.in_use(),
            bytes_under_way: state.to_shards.iter().map(super::Budget::in_use).sum(),
        },
        http: PortStats::of(&figures.public),
    }
}
