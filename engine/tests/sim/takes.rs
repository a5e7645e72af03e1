//! What channels take of what clients publish, worked out without a look at the engine's own rules.

use std::sync::Arc;

use ringfeed_engine::config::ChannelRule;
use ringfeed_engine::content::{Content, Schema};

use super::dice::Dice;
use super::judge::{Judge, Kind, Publication, Rule};

/// What [`Takes::refuses`] takes to be no fit.
const SCHEMA: &str = r#"{"type":["number","string"]}"#;

/// Of one group of channels; 0 is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Takes {
    pub(crate) bytes_max: usize,
    /// JSON alone, and no objects.
    pub(crate) schema: bool,
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

impl Takes {
    pub(crate) fn draw(dice: &mut Dice) -> Takes {
        let schema = dice.chance(80);
        let bytes_max = dice.pick(&[0, 0, 0, 0, 10, 60, 500]);
        Takes {
            bytes_max: if schema && bytes_max == 0 { 65_536 } else { bytes_max },
            schema,
            per_second: dice.pick(&[0, 0, 0, 0, 0, 1, 5, 50]),
            burst: dice.range(1, 12) as u32,
        }
    }

    /// The same as a rule says it.
    pub(crate) fn apply(self, rule: &mut ChannelRule) {
        let bytes_max = u32::try_from(self.bytes_max).unwrap();
        let schema = self.schema.then(|| Schema::parse(SCHEMA).unwrap());
        let says_anything = schema.is_some() || bytes_max > 0;
        rule.content = says_anything.then(|| Arc::new(Content { bytes_max, schema }));
        (rule.messages_per_second_max, rule.messages_burst) = (self.per_second, self.burst);
    }

    /// The code with which a payload is refused.
    fn refuses(self, kind: Kind, payload: &[u8]) -> Option<&'static str> {
        let fits = kind == Kind::Json && !payload.starts_with(b"{");
        match self {
            Takes { bytes_max, .. } if bytes_max > 0 && payload.len() > bytes_max => {
                Some("message_too_long")
            }
            Takes { schema: true, .. } if !fits => Some("invalid_message"),
            _ => None,
        }
    }
}

impl Judge {
    /// The code with which a client's publication is refused, whenever it comes.
    pub(crate) fn unfit(&self, number: u64) -> Option<&'static str> {
        let Publication { channel, kind, .. } = self.publications[number as usize - 1];
        self.takes[channel].refuses(kind, &self.payload(number))
    }

    /// A client's publication was published.
    pub(crate) fn check_taken(&self, number: u64, who: &str) {
        if let Some(code) = self.unfit(number) {
            let name = &self.names[self.publications[number as usize - 1].channel];
            let what =
                format_args!("{who} got publication {number} of {name}, which is {code} there");
            self.broken(Rule::Takes, what);
        }
    }

    /// Whether clients have published so much to a channel that one may be too many.
    pub(crate) fn may_be_too_often(&self, channel: usize) -> bool {
        let Takes { per_second, burst, .. } = self.takes[channel];
        let of_clients = |own: &&Publication| own.channel == channel && own.by.is_some();
        let spoken = self.publications.iter().filter(of_clients).count();
        per_second > 0 && spoken > burst as usize
    }

    /// From when a publication was sent until somebody knew of another one, no more were published than may be.
    pub(crate) fn check_rates(&self) {
        for (channel, &Takes { per_second, burst, .. }) in self.takes.iter().enumerate() {
            let published = |own: &&Publication| own.channel == channel && own.by.is_some();
            let of_clients = self.publications.iter().filter(published);
            let mut times: Vec<(u64, u64)> =
                of_clients.filter(|own| own.place.is_some()).map(|own| own.ms).collect();
            if per_second == 0 {
                continue;
            }
            times.sort_unstable_by_key(|&(_, known)| known);
            for &(from, _) in &times {
                let since = times.iter().filter(|&&(sent, _)| sent >= from);
                for (before, &(_, to)) in (0u64..).zip(since) {
                    // Clocks count whole milliseconds.
                    let back = (to - from + 1) * u64::from(per_second);
                    if (before + 1) * 1000 > u64::from(burst) * 1000 + back {
                        let name = &self.names[channel];
                        let what = format_args!(
                            "{} were published to {name} from {from} to {to} ms: allowed are {burst} and \
                             {per_second} a second",
                            before + 1
                        );
                        return self.broken(Rule::RateAtMost, what);
                    }
                }
            }
        }
    }
}
