//! Rates by address or by key, as buckets of tokens: a burst at once, then so many a second.
//!
//! A bucket is kept as the moment at which it will be full again, so one that is full needs no memory: it is
//! forgotten. What is refused is not counted: who goes on trying gets the rate, not nothing.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Buckets that are not full, about 3 MB. Who comes when there are so many is not counted: to be refused
/// for what others do would be worse.
const BUCKETS_MAX: usize = 65_536;
/// Fewer buckets are not worth looking through.
const SWEPT_MIN: usize = 64;
/// Between two looks for buckets that are full again.
const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// One rate for everybody, counted for each apart. Never touched in fan-out.
#[derive(Debug)]
pub(crate) struct Rates<K: Eq + Hash> {
    /// Nanoseconds after which a token comes back; 0 is no limit.
    token_ns: AtomicU64,
    /// Nanoseconds until an empty bucket is full.
    empty_ns: AtomicU64,
    start: Instant,
    /// When each bucket will be full again, in nanoseconds since `start`.
    full_ns: DashMap<K, u64>,
    count: AtomicUsize,
    next_sweep_ns: AtomicU64,
}

impl<K: Eq + Hash> Rates<K> {
    /// `per_second` 0 is no limit; a burst is at least one.
    pub(crate) fn new(per_second: u32, burst: u32) -> Rates<K> {
        let rates = Rates {
            token_ns: AtomicU64::new(0),
            empty_ns: AtomicU64::new(0),
            start: Instant::now(),
            full_ns: DashMap::new(),
            count: AtomicUsize::new(0),
            next_sweep_ns: AtomicU64::new(0),
        };
        rates.set(per_second, burst);
        rates
    }

    /// Another rate from now on. What was counted stays.
    pub(crate) fn set(&self, per_second: u32, burst: u32) {
        let token_ns = 1_000_000_000_u64.checked_div(per_second.into()).unwrap_or(0);
        let empty_ns = token_ns.saturating_mul(burst.max(1).into());
        self.empty_ns.store(empty_ns, Ordering::Relaxed);
        self.token_ns.store(token_ns, Ordering::Relaxed);
    }

    /// Whether one more is within the rate; it is counted if so.
    pub(crate) fn take(&self, key: K, now: Instant) -> bool {
        let token_ns = self.token_ns.load(Ordering::Relaxed);
        if token_ns == 0 {
            return true;
        }
        let now_ns = now.saturating_duration_since(self.start).as_nanos();
        // Of a process that runs for less than 500 years.
        let now_ns = u64::try_from(now_ns).unwrap_or(u64::MAX);
        if !self.has_room(now_ns) && !self.full_ns.contains_key(&key) {
            return true;
        }
        let mut full_ns = match self.full_ns.entry(key) {
            Entry::Occupied(entry) => entry.into_ref(),
            Entry::Vacant(entry) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                entry.insert(now_ns)
            }
        };
        let full_with_it = now_ns.max(*full_ns).saturating_add(token_ns);
        let within = full_with_it - now_ns <= self.empty_ns.load(Ordering::Relaxed);
        if within {
            *full_ns = full_with_it;
        }
        within
    }

    /// Whether another bucket has room, once those that are full are gone.
    fn has_room(&self, now_ns: u64) -> bool {
        let count = self.count.load(Ordering::Relaxed);
        let due_ns = self.next_sweep_ns.load(Ordering::Relaxed);
        if count < SWEPT_MIN || now_ns < due_ns {
            return count < BUCKETS_MAX;
        }
        let next_ns = now_ns.saturating_add(SWEEP_EVERY.as_nanos() as u64);
        let order = Ordering::Relaxed;
        // One of the doors does it for all.
        if self.next_sweep_ns.compare_exchange(due_ns, next_ns, order, order).is_ok() {
            self.full_ns.retain(|_, full_ns| {
                let kept = *full_ns > now_ns;
                self.count.fetch_sub(usize::from(!kept), Ordering::Relaxed);
                kept
            });
        }
        self.count.load(Ordering::Relaxed) < BUCKETS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_for_each_apart() {
        let rates = Rates::new(10, 5);
        let after = |ms| rates.start + Duration::from_millis(ms);
        let taken = |key, ms| (0..20).filter(|_| rates.take(key, after(ms))).count();
        assert_eq!(taken("a", 0), 5);
        assert_eq!(taken("a", 99), 0);
        assert_eq!(taken("b", 99), 5, "another one");
        assert_eq!(taken("a", 100), 1);
        assert_eq!(taken("a", 400), 3, "what was refused was not counted");
        assert_eq!(taken("a", 10_000), 5, "no more than the burst is saved");
        let none = Rates::new(0, 1);
        assert!((0..1000).all(|_| none.take((), none.start)) && none.full_ns.is_empty());
    }

    #[test]
    fn buckets_that_are_full_again_are_forgotten_and_there_are_never_too_many() {
        let rates = Rates::new(1, 1);
        let start = rates.start;
        for key in 0..BUCKETS_MAX + 10 {
            assert!(rates.take(key, start));
        }
        assert_eq!(rates.full_ns.len(), BUCKETS_MAX);
        assert!(!rates.take(0, start), "who is counted stays so");
        assert!(rates.take(BUCKETS_MAX + 1, start), "who has no bucket is not refused");
        assert!(rates.take(0, start + Duration::from_secs(1)));
        assert_eq!((rates.full_ns.len(), rates.count.into_inner()), (1, 1));
    }
}
