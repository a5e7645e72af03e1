//! Places for connections that are not sessions, and who has to leave when there are none.
//!
//! Slow and honest peers cannot be told apart by what they send, but honest ones are through after a
//! moment. So nobody is turned away at a full door: the one that has waited longest at the address
//! that holds the most leaves.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, AbortRegistration};

/// See [`Places::new`].
const SHARE_GRACE: Duration = Duration::from_secs(1);

/// A bounded number of connections, by address and in the order in which they came. Its owner is one
/// shard.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    per_address_most: usize,
    /// Younger ones stay: what they sent may not have been looked at yet.
    grace: Duration,
    taken: RefCell<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    entries: BTreeMap<(IpAddr, u64), Entry>,
    counts: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Entry {
    since: Instant,
    waits: Rc<Cell<bool>>,
    leave: AbortHandle,
}

/// The right to one place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Rc<Places>,
    key: Cell<(IpAddr, u64)>,
    waits: Rc<Cell<bool>>,
}

impl Places {
    /// Of an address that holds half of all places, those leave that have waited for
    /// [`SHARE_GRACE`], though there is room: the others find some. Everybody may come from one
    /// address, that of a proxy nobody has listed.
    pub(super) fn new(most: usize, grace: Duration) -> Places {
        let per_address_most = (most / 2).max(1);
        Places { most, per_address_most, grace, taken: RefCell::default() }
    }

    pub(super) fn count(&self) -> usize {
        self.taken.borrow().entries.len()
    }

    /// A place, and what ends its owner when it has to leave. `None` while everybody who is there
    /// has come just now or is being served: ask again in a moment.
    pub(super) fn enter(
        self: &Rc<Self>,
        address: IpAddr,
        now: Instant,
    ) -> Option<(Place, AbortRegistration)> {
        self.keep_to_share(address, now);
        self.enter_unshared(address, now)
    }

    /// The same for a proxy that may hold as many places as there are.
    pub(super) fn enter_unshared(
        self: &Rc<Self>,
        address: IpAddr,
        now: Instant,
    ) -> Option<(Place, AbortRegistration)> {
        let mut taken = self.taken.borrow_mut();
        if taken.entries.len() >= self.most && !taken.send_away_any(now, self.grace) {
            return None;
        }
        let (leave, registration) = AbortHandle::new_pair();
        let waits = Rc::new(Cell::new(true));
        taken.next += 1;
        let key = (address, taken.next);
        taken.insert(key, Entry { since: now, waits: waits.clone(), leave });
        Some((Place { places: self.clone(), key: Cell::new(key), waits }, registration))
    }

    fn keep_to_share(&self, address: IpAddr, now: Instant) {
        let mut taken = self.taken.borrow_mut();
        if taken.counts.get(&address).is_some_and(|&count| count >= self.per_address_most) {
            taken.send_away(Some(address), now, SHARE_GRACE);
        }
    }

    /// Sends away whoever would have to leave for a newcomer. Whether there is anybody.
    pub(super) fn make_room(&self, now: Instant) -> bool {
        self.taken.borrow_mut().send_away_any(now, self.grace)
    }
}

impl Taken {
    /// Somebody of the address that holds the most, else whoever has waited longest.
    fn send_away_any(&mut self, now: Instant, grace: Duration) -> bool {
        let heaviest = self.counts.iter().max_by_key(|(_, count)| **count);
        let Some((&heaviest, _)) = heaviest else { return false };
        self.send_away(Some(heaviest), now, grace) || self.send_away(None, now, grace)
    }

    fn send_away(&mut self, address: Option<IpAddr>, now: Instant, grace: Duration) -> bool {
        let may_leave = |entry: &Entry| {
            entry.waits.get() && now.saturating_duration_since(entry.since) >= grace
        };
        let oldest = match address {
            Some(address) => {
                let mut of_it = self.entries.range((address, 0)..=(address, u64::MAX));
                of_it.find(|(_, entry)| may_leave(entry)).map(|(&key, _)| key)
            }
            None => {
                let all = self.entries.iter().filter(|(_, entry)| may_leave(entry));
                all.min_by_key(|((_, number), _)| *number).map(|(&key, _)| key)
            }
        };
        let Some(key) = oldest else { return false };
        if let Some(entry) = self.remove(key) {
            entry.leave.abort();
        }
        true
    }

    fn insert(&mut self, key: (IpAddr, u64), entry: Entry) {
        self.entries.insert(key, entry);
        *self.counts.entry(key.0).or_insert(0) += 1;
    }

    fn remove(&mut self, key: (IpAddr, u64)) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        if let Some(count) = self.counts.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key.0);
            }
        }
        Some(entry)
    }
}

impl Place {
    /// Whether its owner waits for the peer, and may be sent away, or is being served.
    pub(super) fn set_waits(&self, waits: bool) {
        self.waits.set(waits);
    }

    /// Its owner turned out to be of another address.
    pub(super) fn move_to(&self, address: IpAddr, now: Instant) {
        self.places.keep_to_share(address, now);
        let mut taken = self.places.taken.borrow_mut();
        // Who was sent away has none any more.
        if let Some(entry) = taken.remove(self.key.get()) {
            self.key.set((address, self.key.get().1));
            taken.insert(self.key.get(), entry);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.borrow_mut().remove(self.key.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(10);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn who_waits_longest_at_the_heaviest_address_leaves() {
        let places = Rc::new(Places::new(8, GRACE));
        let start = Instant::now();
        let later = start + GRACE;
        let honest = places.enter(address(1), start).unwrap();
        let greedy: Vec<_> = (0..7).map(|_| places.enter(address(2), start).unwrap()).collect();
        assert!(places.enter(address(3), start).is_none(), "all have come just now");
        greedy[0].0.set_waits(false);
        let newcomer = places.enter(address(3), later).unwrap();
        let gone: Vec<bool> = places_gone(&places, &greedy);
        assert_eq!(gone, [false, true, false, false, false, false, false], "served ones stay");
        assert_eq!(places_gone(&places, &[honest, newcomer]), [false, false]);
    }

    #[test]
    fn an_address_beyond_its_share_makes_room_for_itself() {
        let places = Rc::new(Places::new(8, GRACE));
        let start = Instant::now();
        let enter = |after| places.enter(address(1), start + after).unwrap();
        let mut held: Vec<_> = (0..5).map(|_| enter(Duration::ZERO)).collect();
        assert_eq!(places_gone(&places, &held), [false; 5], "there is room");
        held.push(enter(SHARE_GRACE));
        assert_eq!(places_gone(&places, &held), [true, false, false, false, false, false]);
        assert_eq!(places.count(), 5);
        drop(held);
        assert_eq!(places.count(), 0);
        assert!(places.taken.borrow().counts.is_empty());
    }

    #[test]
    fn a_proxy_has_no_share_and_its_clients_have() {
        let places = Rc::new(Places::new(8, GRACE));
        let start = Instant::now();
        let (proxy, greedy, later) = (address(9), address(1), start + SHARE_GRACE);
        let held: Vec<_> = (0..6).map(|_| places.enter_unshared(proxy, start).unwrap()).collect();
        let next = places.enter_unshared(proxy, later).unwrap();
        assert_eq!(places_gone(&places, &held), [false; 6]);
        held[..5].iter().for_each(|(place, _)| place.move_to(greedy, start));
        held[5].0.move_to(address(2), later);
        next.0.move_to(greedy, later);
        let gone = places_gone(&places, &held);
        assert_eq!(gone, [true, false, false, false, false, false], "the oldest of the greedy one");
        assert_eq!(places.taken.borrow().counts[&greedy], 5);
        drop((held, next));
        assert!(places.taken.borrow().counts.is_empty());
    }

    fn places_gone(places: &Places, held: &[(Place, AbortRegistration)]) -> Vec<bool> {
        let taken = places.taken.borrow();
        let gone = |(place, registration): &(Place, AbortRegistration)| {
            let left = !taken.entries.contains_key(&place.key.get());
            assert_eq!(left, registration.handle().is_aborted());
            left
        };
        held.iter().map(gone).collect()
    }
}
