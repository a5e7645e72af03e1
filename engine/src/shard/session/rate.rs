//! How many messages a client may send.

/// A message rate as a bucket of tokens, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::shard) struct Rate {
    spent: u64,
    at_ms: u64,
}

/// Whether one more message is within the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum Allowance {
    Within,
    Above,
    /// So far above for so long that the peer does not react.
    FarAbove,
}

impl Rate {
    /// Counts a message. Refused messages count too, up to a second full burst.
    pub(in crate::shard) fn take(&mut self, now_ms: u64, per_second: u32, burst: u32) -> Allowance {
        if per_second == 0 {
            return Allowance::Within;
        }
        let back = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(per_second));
        self.at_ms = now_ms;
        self.spent = self.spent.saturating_sub(back) + 1000;
        let burst = u64::from(burst) * 1000;
        match self.spent {
            spent if spent <= burst => Allowance::Within,
            spent if spent <= burst * 2 => Allowance::Above,
            _ => Allowance::FarAbove,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_allows_a_burst_then_the_rate_then_gives_up() {
        let mut rate = Rate::default();
        let mut take = |now| rate.take(now, 10, 5);
        assert!((0..5).all(|_| take(1000) == Allowance::Within));
        assert_eq!(take(1000), Allowance::Above);
        assert_eq!(take(1300), Allowance::Within, "three came back, one over was owed");
        for _ in 0..6 {
            take(1300);
        }
        assert_eq!(take(1300), Allowance::FarAbove);
        assert_eq!(rate.take(u64::MAX, 0, 1), Allowance::Within);
    }
}
