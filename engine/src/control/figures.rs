//! What the control thread counts of itself. Written by it alone, as shards write their counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::counters::{Count, Histogram};

/// Statuses that are counted one by one: 100 to 599.
const STATUSES: std::ops::Range<u16> = 100..600;

/// Counters of one port.
#[derive(Debug)]
pub(super) struct PortFigures {
    /// Connections open.
    pub(super) connections: Count,
    /// Connections told to come back, because all others had a request.
    pub(super) connections_refused: Count,
    /// Connections closed without a request, because others needed their place.
    pub(super) connections_pushed_out: Count,
    /// From the head of a request to the head of its answer.
    pub(super) request_us: Histogram,
    statuses: Vec<Count>,
}

/// Counters of the control thread.
#[derive(Debug)]
pub(super) struct Figures {
    /// The HTTP API.
    pub(super) api: PortFigures,
    /// HTTP on the port of the WebSockets.
    pub(super) public: PortFigures,
    /// Publications that came over HTTP from outside and were accepted, though no subscriber could be told of them.
    pub(super) broadcasts_dropped: Count,
    /// Configurations read again and taken.
    pub(super) reloads: Count,
    /// Configurations read again and refused.
    pub(super) reloads_failed: Count,
    /// Ingest streams open.
    pub(super) ingest_streams: Count,
    /// Of dropped files.
    pub(super) drop: super::drop::Figures,
    /// Of messages that were left in Redis.
    pub(super) redis_drop: super::drop::Figures,
    /// Of what nodes of another system are told.
    pub(super) forwards: super::forwards::Figures,
    /// Requests with each key, by its name: keys come and go when the configuration is read again.
    keys: DashMap<String, u64>,
}

impl PortFigures {
    fn new() -> PortFigures {
        PortFigures {
            connections: Count::default(),
            connections_refused: Count::default(),
            connections_pushed_out: Count::default(),
            request_us: Histogram::default(),
            statuses: STATUSES.map(|_| Count::default()).collect(),
        }
    }

    /// Counts an answer.
    pub(super) fn request(&self, status: u16, took: Duration) {
        if let Some(count) = self.statuses.get(usize::from(status.wrapping_sub(STATUSES.start))) {
            count.add(1);
        }
        self.request_us.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Each status that was ever answered, and how often.
    pub(super) fn statuses(&self) -> impl Iterator<Item = (u16, u64)> {
        STATUSES.zip(&self.statuses).map(|(s, count)| (s, count.read())).filter(|(_, n)| *n > 0)
    }
}

impl Figures {
    pub(super) fn new() -> Figures {
        Figures {
            api: PortFigures::new(),
            public: PortFigures::new(),
            broadcasts_dropped: Count::default(),
            keys: DashMap::new(),
            reloads: Count::default(),
            reloads_failed: Count::default(),
            ingest_streams: Count::default(),
            drop: super::drop::Figures::default(),
            redis_drop: super::drop::Figures::default(),
            forwards: super::forwards::Figures::default(),
        }
    }

    /// Counts a request with the key of this name.
    pub(super) fn key_request(&self, name: &str) {
        if let Some(mut count) = self.keys.get_mut(name) {
            *count += 1;
            return;
        }
        *self.keys.entry(name.to_owned()).or_default() += 1;
    }

    /// Requests with each key that was ever used.
    pub(super) fn key_requests(&self) -> Vec<(String, u64)> {
        let each = self.keys.iter().map(|entry| (entry.key().clone(), *entry.value()));
        let mut counts: Vec<(String, u64)> = each.collect();
        counts.sort();
        counts
    }
}

/// Lets a line be logged from time to time, and counts those between.
#[derive(Debug)]
pub(super) struct LogLimit {
    began: Instant,
    /// When the next line may be logged, in milliseconds since the beginning.
    next_ms: AtomicU64,
    kept_back: AtomicU64,
}

impl LogLimit {
    pub(super) fn new() -> LogLimit {
        LogLimit { began: Instant::now(), next_ms: AtomicU64::new(0), kept_back: AtomicU64::new(0) }
    }

    /// Whether a line may be logged: how many were kept back since the last one.
    pub(super) fn due(&self, every: Duration) -> Option<u64> {
        let now_ms = self.began.elapsed().as_millis() as u64;
        if now_ms < self.next_ms.load(Ordering::Relaxed) {
            self.kept_back.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.next_ms.store(now_ms + every.as_millis() as u64, Ordering::Relaxed);
        Some(self.kept_back.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_back_and_counted() {
        let limit = LogLimit::new();
        assert_eq!(limit.due(Duration::from_secs(3600)), Some(0));
        assert_eq!(limit.due(Duration::ZERO), None);
        assert_eq!(limit.due(Duration::ZERO), None);
        limit.next_ms.store(0, Ordering::Relaxed);
        assert_eq!(limit.due(Duration::ZERO), Some(2));
    }

    #[test]
    fn every_status_has_a_count() {
        let figures = Figures::new();
        ["b", "a", "b"].iter().for_each(|name| figures.key_request(name));
        assert_eq!(figures.key_requests(), [("a".into(), 1), ("b".into(), 2)]);
        let figures = figures.api;
        for status in [100, 200, 200, 599, 600, 0] {
            figures.request(status, Duration::ZERO);
        }
        assert_eq!(figures.statuses().collect::<Vec<_>>(), [(100, 1), (200, 2), (599, 1)]);
        assert_eq!(figures.request_us.read().count(), 6);
    }
}
