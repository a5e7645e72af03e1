//! The idempotency keys of a shard's homes: which publication each was used for, as long as that is remembered.
//!
//! What is kept of a key is a keyed hash of 128 bits: that two of a million share one has odds of 1 to 10^26, and nobody
//! outside can look for two that do. Bounded in number; when there are too many the oldest are forgotten first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use ringfeed_protocol::Offset;
use ringfeed_protocol::event::Epoch;

use crate::message::Keyed;

/// How many tables the keys are spread over: one that grows moves a few thousand of them, never all in one turn.
const PARTS: usize = 256;
/// A table that uses less than a quarter of more room than this is made smaller.
const ROOM_MIN: usize = 64;
/// Keys that are forgotten at most when one is added: more than one, or they would never become fewer.
const FORGOTTEN_PER_KEY: usize = 4;
/// What a key takes in memory, in bytes: its place in the table, with the room that tables have to spare, and in the order.
pub(crate) const KEY_BYTES: usize = 2 * size_of::<(Hash, Known)>() + 2 * size_of::<(u64, Hash)>();

/// Of a channel's life, a publisher and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hash([u64; 2]);

/// What a key was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// The home's place in the table of homes: it is there as long as the key is.
    pub(super) index: u32,
    /// Where the publication stands.
    pub(super) offset: Offset,
    /// When it was published, in the shard's time.
    at_ms: u64,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Keys {
    parts: Vec<HashMap<Hash, Known, foldhash::fast::RandomState>>,
    /// Oldest first. A key that was used anew when it had expired stands here twice, the first time for nothing.
    order: VecDeque<(u64, Hash)>,
    /// The two halves of a hash: publishers choose the keys.
    halves: [RandomState; 2],
    len: usize,
    most: usize,
    /// Forgotten before their time.
    forgotten: u64,
}

impl Keys {
    /// For at most so many.
    pub(super) fn new(most: usize) -> Keys {
        Keys {
            parts: (0..PARTS).map(|_| HashMap::default()).collect(),
            order: VecDeque::new(),
            halves: [RandomState::new(), RandomState::new()],
            len: 0,
            most: most.max(1),
            forgotten: 0,
        }
    }

    /// At most so many from now on; what is too much goes with the next calls of [`Keys::forget`].
    pub(super) fn reconfigure(&mut self, most: usize) {
        self.most = most.max(1);
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many were forgotten before their time, for want of room.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Of a key, in one life of its channel.
    pub(super) fn hash(&self, epoch: Epoch, keyed: &Keyed) -> Hash {
        Hash(self.halves.each_ref().map(|half| half.hash_one((epoch.0, keyed))))
    }

    /// The last part gets three times as much as the first: parts of one size would all grow at the same time.
    fn part(&mut self, hash: Hash) -> &mut HashMap<Hash, Known, foldhash::fast::RandomState> {
        let Hash([low, high]) = hash;
        // Both below 2 * PARTS, which is a usize.
        let (part, chance) = ((low % PARTS as u64) as usize, (high % (2 * PARTS as u64)) as usize);
        &mut self.parts[if chance < PARTS + part { part } else { PARTS - 1 - part }]
    }

    /// What a key was used for within the last `age_ms`.
    pub(super) fn find(&mut self, hash: Hash, now_ms: u64, age_ms: u64) -> Option<Known> {
        let known = self.part(hash).get(&hash).copied()?;
        (now_ms.saturating_sub(known.at_ms) < age_ms).then_some(known)
    }

    /// Remembers a key. Returns whether it is one more of its home: not if it only had expired.
    pub(super) fn remember(&mut self, hash: Hash, index: u32, offset: Offset, now_ms: u64) -> bool {
        let known = Known { index, offset, at_ms: now_ms };
        let is_new = self.part(hash).insert(hash, known).is_none();
        self.order.push_back((now_ms, hash));
        self.len += usize::from(is_new);
        is_new
    }

    /// Forgets what is older than `age_ms`, and the oldest where there are too many: at most `count`. `gone` is told of
    /// each whose home has it no more.
    pub(super) fn forget(
        &mut self,
        (now_ms, age_ms): (u64, u64),
        count: usize,
        mut gone: impl FnMut(u32),
    ) {
        for _ in 0..count {
            let Some(&(at_ms, hash)) = self.order.front() else { return };
            let is_old = now_ms.saturating_sub(at_ms) >= age_ms;
            if !is_old && self.order.len() <= self.most {
                return;
            }
            self.order.pop_front();
            let part = self.part(hash);
            let Some(known) = part.get(&hash).copied().filter(|known| known.at_ms == at_ms) else {
                continue;
            };
            part.remove(&hash);
            if part.capacity() > ROOM_MIN && part.len() < part.capacity() / 4 {
                part.shrink_to(part.len() * 2);
            }
            self.len -= 1;
            self.forgotten += u64::from(!is_old);
            gone(known.index);
        }
        // What a burst has taken is not kept for ever.
        if self.order.capacity() > ROOM_MIN && self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to(self.order.len() * 2);
        }
    }

    /// The same where one was added.
    pub(super) fn make_room(&mut self, age: (u64, u64), gone: impl FnMut(u32)) {
        self.forget(age, FORGOTTEN_PER_KEY, gone);
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Known> {
        self.parts.iter().flat_map(HashMap::values)
    }
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::IdempotencyKey;

    use super::*;
    use crate::message::KeyOf;

    const AGE_MS: u64 = 1000;

    fn keyed(key: u32) -> Keyed {
        Keyed { of: KeyOf::Application, key: IdempotencyKey::new(&key.to_string()).unwrap() }
    }

    fn remember(keys: &mut Keys, key: u32, now_ms: u64) -> Vec<u32> {
        let hash = keys.hash(Epoch(1), &keyed(key));
        assert!(keys.remember(hash, key, Offset(key.into()), now_ms));
        let mut gone = Vec::new();
        keys.make_room((now_ms, AGE_MS), |index| gone.push(index));
        gone
    }

    fn find(keys: &mut Keys, key: u32, now_ms: u64) -> Option<Offset> {
        let hash = keys.hash(Epoch(1), &keyed(key));
        keys.find(hash, now_ms, AGE_MS).map(|known| known.offset)
    }

    #[test]
    fn a_key_counts_for_its_time_its_channels_life_and_its_publisher() {
        let mut keys = Keys::new(10);
        assert!(remember(&mut keys, 7, 500).is_empty());
        assert_eq!(find(&mut keys, 7, 1499), Some(Offset(7)));
        assert_eq!(find(&mut keys, 7, 1500), None, "its time is over");
        assert_eq!(find(&mut keys, 8, 500), None);
        let of = |keys: &Keys, epoch, of| keys.hash(Epoch(epoch), &Keyed { of, key: keyed(7).key });
        let user = |id| KeyOf::User(ringfeed_protocol::UserId::new(id).unwrap());
        let own = of(&keys, 1, KeyOf::Application);
        assert_eq!(own, of(&keys, 1, KeyOf::Application));
        for other in [
            of(&keys, 2, KeyOf::Application),
            of(&keys, 1, KeyOf::Strangers),
            of(&keys, 1, user("ann")),
        ] {
            assert_ne!(own, other);
        }
        assert_ne!(of(&keys, 1, user("ann")), of(&keys, 1, user("bob")));
    }

    #[test]
    fn the_oldest_make_room_and_are_counted() {
        let mut keys = Keys::new(3);
        for key in 1..=3 {
            assert!(remember(&mut keys, key, 0).is_empty());
        }
        assert_eq!(remember(&mut keys, 4, 0), [1]);
        assert_eq!((keys.len(), keys.forgotten()), (3, 1));
        assert_eq!(find(&mut keys, 1, 0), None);
        assert_eq!(find(&mut keys, 2, 0), Some(Offset(2)));
        // With fewer allowed, each that comes drives out several.
        keys.reconfigure(1);
        assert_eq!(remember(&mut keys, 5, 1), [2, 3, 4]);
        assert_eq!((keys.len(), keys.forgotten()), (1, 4));
    }

    #[test]
    fn a_key_that_is_used_anew_when_it_had_expired_is_one_key() {
        let mut keys = Keys::new(10);
        assert!(remember(&mut keys, 7, 0).is_empty());
        let hash = keys.hash(Epoch(1), &keyed(7));
        assert!(!keys.remember(hash, 7, Offset(9), AGE_MS));
        assert_eq!(keys.len(), 1);
        // Its first place in the order goes, and it stays.
        keys.forget((AGE_MS, AGE_MS), 10, |_| panic!("it is there"));
        assert_eq!((keys.len(), find(&mut keys, 7, AGE_MS)), (1, Some(Offset(9))));
        let mut gone = Vec::new();
        keys.forget((2 * AGE_MS, AGE_MS), 10, |index| gone.push(index));
        assert_eq!((gone, keys.len(), keys.forgotten()), (vec![7], 0, 0));
        assert!(keys.order.is_empty() && keys.iter().next().is_none());
    }

    #[test]
    fn room_is_given_back() {
        let mut keys = Keys::new(100_000);
        for key in 0..50_000 {
            remember(&mut keys, key, 0);
        }
        let room = |keys: &Keys| {
            keys.order.capacity() + keys.parts.iter().map(HashMap::capacity).sum::<usize>()
        };
        let full = room(&keys);
        keys.forget((AGE_MS, AGE_MS), 49_900, |_| {});
        assert_eq!(keys.len(), 100);
        assert!(room(&keys) < full / 4);
    }
}
