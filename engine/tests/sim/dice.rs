//! Chance, all of it from one seed.

use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// A stream of random choices.
pub(crate) struct Dice(SmallRng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(SmallRng::seed_from_u64(seed))
    }

    /// A stream of its own, so that what one part of the world does not draw leaves others alone.
    pub(crate) fn split(&mut self) -> Dice {
        Dice::new(self.0.next_u64())
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// 0 to `end - 1`; 0 where there is no choice.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end <= 1 { 0 } else { self.0.random_range(0..end) }
    }

    pub(crate) fn range(&mut self, from: usize, to: usize) -> usize {
        self.0.random_range(from..=to)
    }

    /// True in so many of 1,000 cases.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        self.0.random_range(0..1000) < per_mille
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Between the two, every order of magnitude as likely as any other.
    pub(crate) fn magnitude(&mut self, from: usize, to: usize) -> usize {
        let (low, high) = ((from.max(1) as f64).ln(), (to.max(1) as f64).ln());
        let value = self.0.random_range(low..=high).exp().round() as usize;
        value.clamp(from, to)
    }

    /// An index into `weights`, in proportion to them.
    pub(crate) fn weighted(&mut self, weights: impl Iterator<Item = u32> + Clone) -> usize {
        let total: u32 = weights.clone().sum();
        let mut left = self.0.random_range(0..total.max(1));
        for (index, weight) in weights.enumerate() {
            if left < weight {
                return index;
            }
            left -= weight;
        }
        0
    }
}
