//! What single readers of a lane are not sent, because they published it and want no echo.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use super::log::{Log, Run};
use crate::ids::{LogPosition, SessionSlot};

/// Parts of the log, each from one position to another.
type Parts = VecDeque<(LogPosition, LogPosition)>;

#[derive(Debug, Default)]
struct Table {
    of: HashMap<SessionSlot, Parts>,
}

/// For each session what it is not sent, in order, as long as the log has it and the session may still come to it.
/// Most lanes have none at all.
#[derive(Debug, Default)]
pub(in crate::shard) struct Skips(Option<Box<Table>>);

impl Skips {
    /// Adds a part, behind all others of the session.
    pub(in crate::shard) fn add(
        &mut self,
        session: SessionSlot,
        from: LogPosition,
        to: LogPosition,
    ) {
        let parts = self.0.get_or_insert_default().of.entry(session).or_default();
        match parts.back_mut().filter(|last| last.1 == from) {
            Some(last) => last.1 = to,
            None => parts.push_back((from, to)),
        }
    }

    /// Where a session goes on that has come to `position`, and up to where it may be sent in one piece, if not to
    /// the end.
    #[inline]
    pub(in crate::shard) fn ahead(
        &self,
        session: SessionSlot,
        position: LogPosition,
    ) -> (LogPosition, Option<LogPosition>) {
        match &self.0 {
            None => (position, None),
            Some(table) => {
                table.of.get(&session).map_or((position, None), |parts| next(parts, position))
            }
        }
    }

    /// What a session at `from` is to be sent next, up to `bytes_max`; `None` when it has everything.
    pub(in crate::shard) fn run<'a>(
        &self,
        log: &'a mut Log,
        session: SessionSlot,
        from: LogPosition,
        bytes_max: usize,
    ) -> Option<Cow<'a, Run>> {
        match self.ahead(session, from) {
            (_, None) => log.run(from, bytes_max).map(Cow::Borrowed),
            (_, Some(until)) => log.run_until(from, until).map(Cow::Owned),
        }
    }

    /// Forgets what lies before a position: the log has it no more.
    pub(in crate::shard) fn forget(&mut self, before: LogPosition) {
        let Some(table) = &mut self.0 else { return };
        table.of.retain(|_, parts| {
            let gone = parts.partition_point(|part| part.1 <= before);
            parts.drain(..gone);
            !parts.is_empty()
        });
        if table.of.is_empty() {
            self.0 = None;
        }
    }

    /// Panics if a session stands at a part that it is not sent, or something is kept that the log has no more.
    pub(in crate::shard) fn check(
        &self,
        base: LogPosition,
        subscribers: impl Iterator<Item = (SessionSlot, LogPosition)>,
    ) {
        for (session, position) in subscribers {
            assert_eq!(self.ahead(session, position).0, position, "who comes to a part is past it");
        }
        let parts = self.0.iter().flat_map(|table| table.of.values());
        assert!(parts.flatten().all(|part| part.1 > base), "what is gone needs no skipping");
    }
}

fn next(parts: &Parts, position: LogPosition) -> (LogPosition, Option<LogPosition>) {
    let mut behind = parts.range(parts.partition_point(|part| part.1 <= position)..).peekable();
    let position = match behind.next_if(|part| part.0 <= position) {
        Some(part) => part.1,
        None => position,
    };
    (position, behind.next().map(|part| part.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_goes_around_its_parts_and_nobody_else_does() {
        let at = |position: u64| LogPosition(position);
        let (own, other) = (SessionSlot(3), SessionSlot(4));
        let mut skips = Skips::default();
        assert_eq!(skips.ahead(own, at(5)), (at(5), None));
        for (from, to) in [(10, 20), (20, 25), (40, 50)] {
            skips.add(own, at(from), at(to));
        }
        let ahead = [0, 9, 10, 25, 39, 40, 50].map(|position| skips.ahead(own, at(position)));
        let (first, second) = (Some(at(10)), Some(at(40)));
        let (past, end) = ((at(25), second), (at(50), None));
        assert_eq!(ahead, [(at(0), first), (at(9), first), past, past, (at(39), second), end, end]);
        assert_eq!(skips.ahead(other, at(10)), (at(10), None));
        skips.forget(at(25));
        assert_eq!(skips.ahead(own, at(10)), (at(10), second));
        skips.forget(at(50));
        assert!(skips.0.is_none());
    }
}
