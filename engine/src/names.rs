//! A table by a name that came from outside. It is many small tables: one that grows or shrinks moves a few thousand
//! entries, never a million in one turn.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash};

/// How many tables.
const PARTS: usize = 512;
/// A table that uses less than a quarter of more room than this is made smaller.
const ROOM_MIN: usize = 64;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Names<K, V> {
    // Each keeps the standard library's keyed hash: names come from outside.
    parts: Vec<HashMap<K, V>>,
    /// Chooses the part; seeded at random, and only balance depends on it.
    choice: foldhash::fast::RandomState,
    len: usize,
}

impl<K: Borrow<str> + Eq + Hash, V> Names<K, V> {
    pub(crate) fn new() -> Names<K, V> {
        Names {
            parts: (0..PARTS).map(|_| HashMap::new()).collect(),
            choice: foldhash::fast::RandomState::default(),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The last part gets three times as much as the first: parts of one size would all grow at the same
    /// time.
    fn part(&self, name: &str) -> usize {
        let hash = self.choice.hash_one(name);
        // Both below PARTS, which is a usize.
        let (part, chance) = ((hash % PARTS as u64) as usize, (hash >> 32) as usize % (2 * PARTS));
        if chance < PARTS + part { part } else { PARTS - 1 - part }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        self.parts[self.part(name)].get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        let part = self.part(name);
        self.parts[part].get_mut(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flatten()
    }

    pub(crate) fn insert(&mut self, name: K, value: V) {
        let part = self.part(name.borrow());
        self.len += usize::from(self.parts[part].insert(name, value).is_none());
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<V> {
        let part = self.part(name);
        let table = &mut self.parts[part];
        let removed = table.remove(name)?;
        self.len -= 1;
        if table.capacity() > ROOM_MIN && table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2);
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfeed_protocol::ChannelName;

    #[test]
    fn a_table_shrinks_with_its_content() {
        let name = |i: u32| ChannelName::new(&format!("c{i}")).unwrap();
        let mut names = Names::new();
        (0..200_000).for_each(|i| names.insert(name(i), i));
        assert_eq!((names.len(), names.get("c7")), (200_000, Some(&7)));
        let room = |names: &Names<ChannelName, u32>| {
            names.parts.iter().map(HashMap::capacity).sum::<usize>()
        };
        let full = room(&names);
        (100..200_000).for_each(|i| assert_eq!(names.remove(&name(i)), Some(i)));
        assert_eq!((names.len(), names.remove("c100")), (100, None));
        assert!(room(&names) < full / 4);
    }
}
