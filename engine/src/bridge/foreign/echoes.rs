//! Copies that are to come, and are known when they do.
//!
//! A node tells the others of a publication and gives Redis its copies right behind that, over one connection: whoever listens
//! hears both in that order, and what that node publishes next behind them. So of each node no more is to come than the copies of
//! its last publication. Alike payloads on one channel are not told apart and need not be: as many come as were published.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// Nodes of whose last publication a copy has not come; more than there are, since a copy comes at once.
const NODES_MAX: usize = 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    /// Keyed by chance: nobody can publish what is taken for something else.
    hasher: RandomState,
    by_node: HashMap<u64, Vec<u64>>,
}

impl Echoes {
    /// What a copy on a channel of Redis is known by; `bytes` are what it says, however that is written.
    pub(super) fn digest(&self, name: &str, bytes: &[u8]) -> u64 {
        self.hasher.hash_one((name, bytes))
    }

    /// These copies of a node's publication are to come. Those of an earlier one that have not are given up.
    pub(super) fn expect(&mut self, node: u64, copies: Vec<u64>) {
        if self.by_node.len() >= NODES_MAX && !self.by_node.contains_key(&node) {
            self.by_node.clear();
        }
        if copies.is_empty() {
            self.by_node.remove(&node);
        } else {
            self.by_node.insert(node, copies);
        }
    }

    /// Whether this is a copy that was to come. It is not, afterwards.
    pub(super) fn take(&mut self, name: &str, bytes: &[u8]) -> bool {
        if self.by_node.is_empty() {
            return false;
        }
        let known = self.digest(name, bytes);
        let place = |copies: &Vec<u64>| copies.iter().position(|own| *own == known);
        let found = self.by_node.iter().find_map(|(node, copies)| Some((*node, place(copies)?)));
        let Some((node, at)) = found else { return false };
        if let Some(copies) = self.by_node.get_mut(&node) {
            copies.swap_remove(at);
            if copies.is_empty() {
                self.by_node.remove(&node);
            }
        }
        true
    }

    /// Whether none is to come.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// None is to come any more.
    pub(super) fn clear(&mut self) {
        self.by_node.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_known_as_are_to_come() {
        let mut echoes = Echoes::default();
        let expect = |echoes: &mut Echoes, node, copies: &[(&str, &str)]| {
            let copies =
                copies.iter().map(|(name, bytes)| echoes.digest(name, bytes.as_bytes())).collect();
            echoes.expect(node, copies);
        };
        expect(&mut echoes, 1, &[("a", "x"), ("b", "x")]);
        expect(&mut echoes, 2, &[("a", "x")]);
        assert!(!echoes.take("c", b"x") && !echoes.take("a", b"y"));
        assert!(echoes.take("a", b"x") && echoes.take("a", b"x"));
        assert!(!echoes.take("a", b"x"));
        assert!(echoes.take("b", b"x") && echoes.by_node.is_empty());
        // One whose copy was refused or cut off, and that has published again.
        expect(&mut echoes, 1, &[("a", "1")]);
        expect(&mut echoes, 1, &[("a", "2")]);
        assert!(!echoes.take("a", b"1") && echoes.take("a", b"2"));
        for node in 0..2000 {
            expect(&mut echoes, node, &[("a", "x")]);
        }
        assert!(echoes.by_node.len() <= NODES_MAX);
    }
}
