//! Remembers a bounded number of things, and forgets those that nobody has asked for.

use std::collections::HashMap;
use std::hash::Hash;

/// Two generations: what is asked for moves to the younger one, and when that is full the older one is forgotten.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    generation_max: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// For so many entries at most.
    pub(super) fn new(entries_max: usize) -> Cache<K, V> {
        Cache {
            young: HashMap::new(),
            old: HashMap::new(),
            generation_max: entries_max.div_ceil(2),
        }
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.generation_max && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// What is remembered, if it still is `fresh`.
    pub(super) fn find(&mut self, key: &K, fresh: impl Fn(&V) -> bool) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            if fresh(value) {
                return Some(value.clone());
            }
            self.young.remove(key);
            return None;
        }
        let (key, value) = self.old.remove_entry(key)?;
        if !fresh(&value) {
            return None;
        }
        self.insert(key, value.clone());
        Some(value)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_so_many_and_keeps_what_is_asked_for() {
        let mut cache = Cache::new(100);
        for i in 0..10_000 {
            cache.insert(i, i);
            assert_eq!(cache.find(&0, |_| true), Some(0));
            assert!(cache.young.len() + cache.old.len() <= 100);
        }
        assert_eq!(cache.find(&1, |_| true), None);
    }

    #[test]
    fn what_is_not_fresh_is_forgotten() {
        let mut cache = Cache::new(2);
        (0..2).for_each(|i| cache.insert(i, 1));
        for i in 0..2 {
            assert_eq!(cache.find(&i, |&v| v > 1), None);
            assert_eq!(cache.find(&i, |_| true), None);
        }
        cache.insert(1, 1);
        cache.clear();
        assert_eq!(cache.find(&1, |_| true), None);
    }
}
