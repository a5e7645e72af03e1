//! A subscription of `raw.v1`, where nothing but payloads is told, and of other dialects that tell no offsets.

use super::judge::{Ident, Judge, Rule};
use super::net::ConnId;

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
    /// It may be subscribed to, or not any more, without a word.
    pub(crate) silent: bool,
    /// Of who is not sent all of its own publications: what has come.
    seen: Option<Vec<Ident>>,
}

impl RawRun {
    /// Some of its own publications are not sent to it from now on.
    pub(crate) fn is_not_sent_all(&mut self) {
        self.seen.get_or_insert_default();
    }

    /// Whether its last publication says which one is next.
    pub(crate) fn knows_next(&self) -> bool {
        self.seen.is_none() && !self.may_jump()
    }

    /// It is told that it has subscribed: what comes next may stand anywhere.
    pub(crate) fn begin(&mut self, channel: usize, conn: ConnId, who: &str, judge: &mut Judge) {
        self.end(channel, conn, who, judge);
        (self.at, self.last, self.subscribes, self.jumps) = (None, None, 1, 0);
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self, channel: usize, conn: ConnId, who: &str, judge: &mut Judge) {
        judge.run(channel, who, std::mem::take(&mut self.unknown));
        if let Some(seen) = &mut self.seen {
            judge.seen(channel, conn, who, std::mem::take(seen));
        }
    }

    pub(crate) fn next(&mut self, channel: usize, is: Ident, who: &str, judge: &mut Judge) {
        if let Some(seen) = &mut self.seen {
            // Of several subscriptions nothing is known.
            if !self.silent {
                seen.push(is);
            }
            return;
        }
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
