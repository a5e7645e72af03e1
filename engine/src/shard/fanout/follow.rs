//! Sessions that follow: they have several subscriptions and keep up. Each keeps a short list of the
//! chunks that it was not sent yet, in the order in which they came, and nothing else. Who cannot be
//! sent to, or whose list grows too long, is given cursors instead.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Context, Fanout, Queue, list_once};
use crate::ids::{LaneId, LogPosition, SessionSlot};
use crate::message::Skip;
use crate::shard::feed::{FOLLOWS, Feeds};
use crate::shard::session::{BLOCKED, CURSORS, MULTI};

/// Chunks in one session's list. As many as one send takes, so that a longer list would wait anyway.
const WAITING_MAX: usize = ringfeed_wire::VECTORED_RUNS_MAX;

/// A chunk that stands in somebody's list.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) lane: LaneId,
    pub(super) start: LogPosition,
    pub(super) bytes: Bytes,
    pub(super) count: u32,
    pub(super) at: Instant,
    /// In so many lists.
    pub(super) waiting: u32,
}

/// Chunks that stand in somebody's list, by number.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Number of the oldest.
    first: u32,
    chunks: VecDeque<Followed>,
    bytes: usize,
}

impl Recent {
    /// The number that the next chunk will have.
    fn next(&self) -> u32 {
        // Fewer than 2^32 at once: each is in somebody's list, and in memory.
        self.first.wrapping_add(self.chunks.len() as u32)
    }

    fn push(&mut self, followed: Followed) {
        self.bytes += followed.bytes.len();
        self.chunks.push_back(followed);
    }

    fn get(&self, number: u32) -> &Followed {
        let followed = self.chunks.get(number.wrapping_sub(self.first) as usize);
        followed.expect("a chunk in a list is kept")
    }

    /// Takes a chunk off one list.
    pub(super) fn take(&mut self, number: u32) -> &Followed {
        let followed = self.chunks.get_mut(number.wrapping_sub(self.first) as usize);
        let followed = followed.expect("a chunk in a list is kept");
        followed.waiting -= 1;
        followed
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets go of what is in no list any more. A lane of which nothing is listed any more can be trimmed.
    pub(super) fn forget(&mut self, feeds: &mut Feeds, touched: &mut Vec<LaneId>) {
        while self.chunks.front().is_some_and(|oldest| oldest.waiting == 0) {
            let Some(oldest) = self.chunks.pop_front() else { return };
            self.first = self.first.wrapping_add(1);
            self.bytes -= oldest.bytes.len();
            if let Some(lane) = feeds.try_lane_mut(oldest.lane) {
                lane.followed -= 1;
                // Its log may have begun anew since.
                lane.followed_from = lane.followed_from.max(oldest.start + oldest.bytes.len());
                if lane.followed == 0 {
                    list_once(&mut lane.touched, touched, oldest.lane);
                }
            }
        }
    }

    /// Lists that chunks stand in, added up: for checks.
    pub(super) fn waiting(&self) -> usize {
        self.chunks.iter().map(|followed| followed.waiting as usize).sum()
    }
}

impl Fanout {
    /// Sees to sessions that follow and are not sent some of a chunk. Their lists have each chunk as a whole: who is sent
    /// nothing of it goes on following without it, and is returned; the others are given cursors.
    pub(super) fn leave_out<W>(
        &mut self,
        cx: &mut Context<W>,
        id: LaneId,
        bytes: usize,
        skips: &[(SessionSlot, Skip)],
    ) -> SmallVec<[SessionSlot; 1]> {
        let mut left_out = SmallVec::new();
        for &(slot, _) in skips {
            let is_on_lane = cx.sessions.get(slot).is_some_and(|own| own.index_in(id).is_some());
            let flags = cx.sessions.hot(slot).flags;
            let follows = flags & MULTI != 0 && flags & CURSORS == 0;
            if !is_on_lane || !follows || left_out.contains(&slot) {
                continue;
            }
            let own = skips.iter().filter(|(of, _)| *of == slot);
            let all = own.map(|(_, skip)| (skip.to - skip.from) as usize).sum::<usize>() == bytes;
            // Something that waits would bring its cursor back to before this chunk.
            let list = cx.sessions.waiting_mut(slot);
            if all && !list.iter().any(|&number| self.recent.get(number).lane == id) {
                left_out.push(slot);
            } else {
                self.give_cursors(cx, slot);
            }
        }
        left_out
    }

    /// Notes a chunk in the list of each session that follows, and queues those that may be sent it.
    pub(super) fn mark_served<W>(
        &mut self,
        cx: &mut Context<W>,
        followed: Followed,
        left_out: &[SessionSlot],
    ) {
        let (id, start) = (followed.lane, followed.start);
        let number = self.recent.next();
        let lane = cx.feeds.lane_mut(id);
        let (mut waiting, mut lags) = (0, false);
        let mut overflowed = Vec::new();
        for subscriber in &lane.served {
            if left_out.contains(&subscriber.session) {
                continue;
            }
            let (hot, list) = cx.sessions.follower(subscriber.session);
            let flags = hot.flags;
            if flags & CURSORS != 0 {
                if flags & BLOCKED != 0 {
                    lags = true;
                    continue;
                }
            } else if list.len() < WAITING_MAX {
                list.push(number);
                waiting += 1;
            } else {
                overflowed.push(subscriber.session);
            }
            self.enqueue(cx.sessions, subscriber.session, Queue::Feed, cx.work_ms);
        }
        if waiting > 0 {
            if lane.followed == 0 {
                lane.followed_from = start;
            }
            lane.followed += 1;
            self.recent.push(Followed { waiting, ..followed });
        }
        if lags {
            list_once(&mut lane.lagging, &mut self.lagging, id);
        }
        for slot in overflowed {
            self.give_cursors(cx, slot);
            self.put_back(cx, slot, id, start);
        }
    }

    /// Gives a session cursors instead of its list. Only then may it be blocked, unsubscribe a
    /// channel, or lag.
    pub(in crate::shard) fn give_cursors<W>(&mut self, cx: &mut Context<W>, slot: SessionSlot) {
        let hot = cx.sessions.hot_mut(slot);
        if hot.flags & MULTI == 0 || hot.flags & CURSORS != 0 {
            return;
        }
        hot.flags |= CURSORS;
        let waiting = std::mem::take(cx.sessions.waiting_mut(slot));
        let Some(session) = cx.sessions.get(slot) else { return };
        for own in &session.subscriptions {
            let lane = cx.feeds.lane_mut(own.lane);
            let end = lane.log.end();
            if let Some(index) = own.index
                && let Some(subscriber) = lane.served.get_mut(index as usize)
                && subscriber.sent == FOLLOWS
            {
                subscriber.sent = end;
            }
        }
        // From the newest to the oldest, so that the oldest of each lane counts.
        for &number in waiting.iter().rev() {
            let &Followed { lane, start, .. } = self.recent.get(number);
            self.recent.take(number);
            self.put_back(cx, slot, lane, start);
        }
    }

    /// Puts a session's cursor in one lane back to what was really sent.
    pub(super) fn put_back<W>(
        &mut self,
        cx: &mut Context<W>,
        slot: SessionSlot,
        id: LaneId,
        position: LogPosition,
    ) {
        let list = cx.sessions.list(slot);
        let index = cx.sessions.get(slot).and_then(|session| session.index_in(id));
        let lane = cx.feeds.lane_mut(id);
        if let Some(subscriber) = index.and_then(|index| lane.subscriber_mut(list, index)) {
            debug_assert_eq!(subscriber.session, slot, "a place belongs to its session");
            // Never forward: something older may have been put back before.
            subscriber.sent = subscriber.sent.min(position);
        }
        list_once(&mut lane.lagging, &mut self.lagging, id);
    }
}
