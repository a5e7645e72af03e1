//! Who wants what: which channels each connection subscribes to, and which channel each message is
//! published to.

use std::collections::HashSet;

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::index;

use crate::args::InterestArg;

/// Draws channels, the same ones for the same seed.
#[derive(Debug)]
pub(crate) struct Interest {
    how: InterestArg,
    channels: u32,
    random: SmallRng,
    /// How many messages or connections have drawn.
    turn: u64,
}

/// What is drawn from one seed; each has random numbers of its own.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub(crate) enum Draws {
    Subscriptions = 0x5b5c,
    Publications = 0x9b17,
}

impl Interest {
    /// `channels` must not be 0.
    pub(crate) fn new(how: InterestArg, seed: u64, channels: u32, draws: Draws) -> Interest {
        let random = SmallRng::seed_from_u64(seed ^ ((draws as u64) << 48));
        Interest { how, channels, random, turn: 0 }
    }

    /// The channel of the next message.
    pub(crate) fn channel(&mut self) -> u32 {
        let turn = self.turn;
        self.turn += 1;
        match self.how {
            InterestArg::Random => self.random.random_range(0..self.channels),
            InterestArg::Popular => self.popular(),
            InterestArg::Blocks => (turn % u64::from(self.channels)) as u32,
        }
    }

    /// The channels of the next connection, `count` different ones in ascending order.
    pub(crate) fn channels(&mut self, count: u32) -> Vec<u32> {
        let count = count.min(self.channels);
        let turn = self.turn;
        self.turn += 1;
        if count == self.channels {
            return (0..count).collect();
        }
        let (length, amount) = (self.channels as usize, count as usize);
        let mut drawn: Vec<u32> = match self.how {
            InterestArg::Blocks => {
                let first = turn * u64::from(count);
                let nth = |i| ((first + i) % u64::from(self.channels)) as u32;
                (0..u64::from(count)).map(nth).collect()
            }
            InterestArg::Random => {
                let drawn = index::sample(&mut self.random, length, amount);
                drawn.iter().map(|channel| channel as u32).collect()
            }
            // Drawing again what was drawn before is quick only while most is left.
            InterestArg::Popular if amount * 8 <= length => {
                let mut drawn = HashSet::with_capacity(amount);
                while drawn.len() < amount {
                    drawn.insert(self.popular());
                }
                drawn.into_iter().collect()
            }
            InterestArg::Popular => {
                let weight = |rank: usize| (1.0 / (rank as f64 + 1.0)).ln_1p();
                let drawn = index::sample_weighted(&mut self.random, length, weight, amount);
                let drawn = drawn.expect("every weight is positive, and there are enough of them");
                drawn.iter().map(|channel| channel as u32).collect()
            }
        };
        drawn.sort_unstable();
        drawn
    }

    /// Log-uniform by rank: the first r of C channels are chosen with probability
    /// ln(r + 1) / ln(C + 1).
    fn popular(&mut self) -> u32 {
        let all = (f64::from(self.channels) + 1.0).ln();
        let rank = (self.random.random::<f64>() * all).exp() - 1.0;
        (rank as u32).min(self.channels - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: [InterestArg; 3] =
        [InterestArg::Random, InterestArg::Popular, InterestArg::Blocks];

    fn drawn(how: InterestArg, seed: u64, channels: u32, count: u32) -> Vec<Vec<u32>> {
        let mut interest = Interest::new(how, seed, channels, Draws::Subscriptions);
        (0..50).map(|_| interest.channels(count)).collect()
    }

    #[test]
    fn a_connection_draws_different_channels_and_the_same_ones_for_the_same_seed() {
        for how in EVERY {
            for (channels, count) in [(1, 1), (7, 3), (100, 99), (100, 100), (5000, 50)] {
                let all = drawn(how, 7, channels, count);
                for own in &all {
                    assert_eq!(own.len(), count as usize, "{how:?}");
                    assert!(own.is_sorted_by(|a, b| a < b), "{how:?}: {own:?}");
                    assert!(own.iter().all(|&channel| channel < channels), "{how:?}: {own:?}");
                }
                assert_eq!(all, drawn(how, 7, channels, count), "{how:?}");
            }
        }
        let other = drawn(InterestArg::Random, 8, 5000, 50);
        assert_ne!(drawn(InterestArg::Random, 7, 5000, 50), other);
    }

    #[test]
    fn blocks_go_round_the_channels() {
        let all = drawn(InterestArg::Blocks, 1, 5, 2);
        assert_eq!(all[..3], [vec![0, 1], vec![2, 3], vec![0, 4]]);
        let mut turn = Interest::new(InterestArg::Blocks, 1, 3, Draws::Publications);
        assert_eq!([0, 1, 2, 0, 1].map(|_| turn.channel()), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn popular_is_log_uniform_by_rank_and_random_is_uniform() {
        const DRAWS: u32 = 200_000;
        const CHANNELS: u32 = 500;
        for (how, below) in [
            (InterestArg::Random, |rank: f64| rank / f64::from(CHANNELS)),
            (InterestArg::Popular, |rank: f64| (rank + 1.0).ln() / f64::from(CHANNELS + 1).ln()),
        ] as [(InterestArg, fn(f64) -> f64); 2]
        {
            let mut interest = Interest::new(how, 3, CHANNELS, Draws::Publications);
            let all: Vec<u32> = (0..DRAWS).map(|_| interest.channel()).collect();
            for rank in [1, 10, 100, 400] {
                let share = all.iter().filter(|&&c| c < rank).count() as f64 / f64::from(DRAWS);
                let due = below(f64::from(rank));
                assert!((share - due).abs() < 0.01, "{how:?}, {rank}: {share} instead of {due}");
            }
        }
    }

    #[test]
    fn few_and_many_popular_subscriptions_favour_the_same_channels() {
        for count in [10, 60] {
            let mut interest = Interest::new(InterestArg::Popular, 5, 100, Draws::Subscriptions);
            let all: Vec<Vec<u32>> = (0..2000).map(|_| interest.channels(count)).collect();
            let of = |channel| all.iter().filter(|own| own.contains(&channel)).count();
            assert!(of(0) > of(9) && of(9) > of(99), "{count}: {} {} {}", of(0), of(9), of(99));
        }
    }
}
