//! How many messages a client may send, and how many all of them may publish to a channel.

use ringfeed_protocol::command::Action;
use ringfeed_protocol::{ChannelName, Rated, Refused};

use crate::config::{ChannelRule, Limits};

/// A message rate as a bucket of tokens, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::shard) struct Rate {
    spent: u64,
    at_ms: u64,
}

/// The rates of single commands.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::shard) struct CommandRates {
    subscribes: Rate,
    publications: Rate,
    histories: Rate,
}

/// How often clients together may publish to one channel.
#[derive(Debug, Default)]
pub(in crate::shard) struct ChannelRate {
    rate: Rate,
    /// As the rule had it last.
    per_second: u32,
}

impl ChannelRate {
    /// Counts a publication, if it is not one too many for a rule that has a limit.
    pub(in crate::shard) fn take(
        &mut self,
        channel: &ChannelName,
        rule: &ChannelRule,
        now_ms: u64,
    ) -> Result<(), Refused> {
        let (per_second, burst) = (rule.messages_per_second_max, rule.messages_burst);
        self.per_second = per_second;
        if self.rate.take_within(now_ms, per_second, burst) {
            return Ok(());
        }
        Err(Refused::ChannelRateLimited { channel: channel.clone(), per_second })
    }

    /// Whether it is as if nothing had ever been published.
    pub(in crate::shard) fn is_fresh(&self, now_ms: u64) -> bool {
        let back = now_ms.saturating_sub(self.rate.at_ms).saturating_mul(self.per_second.into());
        back >= self.rate.spent
    }
}

/// What stands against a command: what there may be only so much of, and how much in a second.
pub(in crate::shard) fn check_command(
    rates: &mut Option<Box<CommandRates>>,
    action: &Action<'_>,
    limits: &Limits,
    now_ms: u64,
) -> Result<(), Refused> {
    let (what, per_second, burst) = match action {
        Action::Subscribe { .. } => {
            (Rated::Subscribes, limits.subscribes_per_second_max, limits.subscribes_burst)
        }
        Action::Publish { .. } | Action::Send { .. } => {
            (Rated::Publications, limits.publishes_per_second_max, limits.publishes_burst)
        }
        Action::History { .. } | Action::Presence { .. } => {
            (Rated::Histories, limits.histories_per_second_max, limits.histories_burst)
        }
        _ => return Ok(()),
    };
    if per_second == 0 {
        return Ok(());
    }
    let rates = rates.get_or_insert_default();
    let rate = match what {
        Rated::Subscribes => &mut rates.subscribes,
        Rated::Publications => &mut rates.publications,
        Rated::Histories | Rated::Messages => &mut rates.histories,
    };
    let within = rate.take_within(now_ms, per_second, burst);
    if within { Ok(()) } else { Err(Refused::RateLimited { what, per_second }) }
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
        let (spent, burst) = self.spend(now_ms, per_second, burst);
        self.spent = spent;
        match spent {
            spent if spent <= burst => Allowance::Within,
            spent if spent <= burst * 2 => Allowance::Above,
            _ => Allowance::FarAbove,
        }
    }

    /// Counts a message only if it is within the rate: who is refused may go on at the rate.
    fn take_within(&mut self, now_ms: u64, per_second: u32, burst: u32) -> bool {
        let (spent, burst) = self.spend(now_ms, per_second, burst);
        self.spent = if spent <= burst { spent } else { spent - 1000 };
        spent <= burst
    }

    /// What is spent with one more, and what may be, in thousandths.
    fn spend(&mut self, now_ms: u64, per_second: u32, burst: u32) -> (u64, u64) {
        let back = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(per_second));
        self.at_ms = now_ms;
        (self.spent.saturating_sub(back) + 1000, u64::from(burst) * 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

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

    #[test]
    fn commands_have_rates_of_their_own_and_refused_ones_do_not_count() {
        let mut limits = Config::load(&Sources::default()).unwrap().limits;
        let mut rates = None;
        let subscribe = || Action::subscribe("a");
        let history = || Action::History { channel: "a".into(), after: None, limit: None };
        let mut check = |action: Action<'_>, limits: &Limits, now_ms| {
            let checked = check_command(&mut rates, &action, limits, now_ms);
            (checked, rates.is_some())
        };
        assert_eq!(check(subscribe(), &limits, 0), (Ok(()), false), "no limit, no memory");
        (limits.subscribes_per_second_max, limits.subscribes_burst) = (10, 2);
        (limits.histories_per_second_max, limits.histories_burst) = (1, 1);
        assert_eq!(check(Action::Ping, &limits, 0), (Ok(()), false), "pings have none");
        assert_eq!(check(subscribe(), &limits, 0), (Ok(()), true));
        assert_eq!(check(subscribe(), &limits, 0).0, Ok(()));
        let refused = Refused::RateLimited { what: Rated::Subscribes, per_second: 10 };
        for _ in 0..100 {
            assert_eq!(check(subscribe(), &limits, 0).0, Err(refused.clone()));
        }
        assert_eq!(check(history(), &limits, 0).0, Ok(()), "each for itself");
        assert_eq!(check(subscribe(), &limits, 100).0, Ok(()));
        assert_eq!(check(subscribe(), &limits, 100).0, Err(refused));
    }
}
