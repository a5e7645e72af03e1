//! A subscription of `raw.v1`, where nothing but payloads is told.

use super::judge::{Ident, Judge, Rule};

/// Where a `raw.v1` subscription stands: nothing but payloads is told.
#[derive(Debug, Default)]
pub(crate) struct RawRun {
    /// Where the last publication stands, once known.
    pub(crate) at: Option<(u64, u64)>,
    /// What came before that was known.
    pub(crate) unknown: Vec<Ident>,
    /// It was subscribed to so often: behind the first time, what comes next may stand anywhere later.
    pub(crate) subscribes: u32,
    pub(crate) jumps: u32,
    pub(crate) last: Option<Ident>,
}

impl RawRun {
    pub(crate) fn next(&mut self, channel: usize, is: Ident, who: &str, judge: &mut Judge) {
        let place = judge.place(is);
        let jump = self.may_jump();
        match (self.at, place) {
            (Some((epoch, offset)), Some(place)) if place != (epoch, offset + 1) => {
                if !jump || (place.0 == epoch && place.1 <= offset) {
                    let name = &judge.names[channel];
                    let what = format_args!(
                        "{who} got {} of {name} where {} was due",
                        place.1,
                        offset + 1
                    );
                    judge.broken(Rule::Dense, what);
                }
                self.jumps += 1;
                self.at = Some(place);
            }
            (Some((epoch, offset)), None) if !jump => {
                judge.learn(channel, epoch, offset + 1, is, who);
                self.at = Some((epoch, offset + 1));
            }
            (_, Some(place)) => {
                if !jump && !self.unknown.is_empty() {
                    self.unknown.push(is);
                }
                judge.run(channel, who, std::mem::take(&mut self.unknown));
                self.at = Some(place);
            }
            (_, None) => {
                if jump {
                    judge.run(channel, who, std::mem::take(&mut self.unknown));
                }
                self.at = None;
                self.unknown.push(is);
            }
        }
    }

    /// Whether the next publication may stand anywhere behind the last.
    pub(crate) fn may_jump(&self) -> bool {
        self.subscribes.saturating_sub(1) > self.jumps
    }
}
