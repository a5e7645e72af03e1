//! Serving sessions one by one: everything that one has to send, in one send.

use bytes::Bytes;
use ringfeed_protocol::{Event, Offset};
use ringfeed_wire::{Segment, SocketId, VECTORED_RUNS_MAX, Wire};

use super::{
    BYTES_PER_COST, COST_OF_PART, COST_OF_SEND, Context, Fanout, Queue, SEND_BYTES_MAX, list_once,
};
use crate::ids::{LaneId, LogPosition, SessionSlot};
use crate::shard::feed::{FOLLOWS, GAPPED, List};
use crate::shard::session::{BLOCKED, CLOSING, CURSORS, GAPS, MULTI, NOT_STAGED, QUEUED, WOKEN};

/// Runs up to this length are put together in one: copying them costs less than pointing at each.
const JOINED_RUN_BYTES: usize = 2048;
/// Parts of one send. More of them than a vector has runs, since short ones are put together.
const PARTS_MAX: usize = 512;

/// Where a part of a send comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Outbox,
    /// A lane's log, from this position on.
    Lane(LaneId, LogPosition),
}

/// A vectored send under construction. Kept for reuse, so that no turn allocates.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) session: SessionSlot,
    pub(super) socket: Option<SocketId>,
    pub(super) parts: Vec<(Source, usize)>,
    pub(super) runs: Vec<Bytes>,
    /// Where the run begins that is being put together.
    joining: Option<usize>,
    pub(super) bytes: usize,
    /// What the kernel took, where not everything; and whether the socket is broken.
    pub(super) short: Option<(u32, bool)>,
}

impl Staged {
    fn new() -> Staged {
        Staged {
            session: SessionSlot(0),
            socket: None,
            parts: Vec::new(),
            runs: Vec::new(),
            joining: None,
            bytes: 0,
            short: None,
        }
    }

    fn is_full(&self) -> bool {
        // One place is for the run that is being put together.
        self.runs.len() + 1 >= VECTORED_RUNS_MAX
            || self.parts.len() >= PARTS_MAX
            || self.bytes >= SEND_BYTES_MAX
    }

    fn push(&mut self, source: Source, run: &Bytes, joined: &mut Segment) {
        self.parts.push((source, run.len()));
        self.bytes += run.len();
        let short = run.len() <= JOINED_RUN_BYTES;
        if let ([first], true) = (&self.runs[..], short && self.parts.len() == 2)
            && first.len() <= JOINED_RUN_BYTES
        {
            // The first one stood alone until now.
            let start = joined.len();
            if joined.append(first) {
                self.runs.clear();
                self.joining = Some(start);
            }
        }
        let start = joined.len();
        if short && self.parts.len() > 1 && joined.append(run) {
            self.joining.get_or_insert(start);
        } else {
            self.finish_joining(joined);
            self.runs.push(run.clone());
        }
    }

    pub(super) fn finish_joining(&mut self, joined: &Segment) {
        if let Some(start) = self.joining.take() {
            self.runs.push(joined.slice(start, joined.len()));
        }
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.runs.clear();
        (self.bytes, self.socket, self.short) = (0, None, None);
    }
}

impl Fanout {
    /// Stages everything that one session has to send: the rest of a half-sent frame's lane, its
    /// outbox, then its channels. What does not fit waits for its next turn in its queue. Returns what it
    /// costs of the turn's budget.
    pub(super) fn serve<W: Wire>(
        &mut self,
        cx: &mut Context<W>,
        slot: SessionSlot,
        queue: Queue,
    ) -> usize {
        let hot = cx.sessions.hot_mut(slot);
        hot.flags &= !QUEUED;
        // It comes back when its socket takes bytes again.
        if hot.flags & BLOCKED != 0 {
            return COST_OF_PART;
        }
        // Once in a submission: it may have been put in the queue again by what its send left over.
        if hot.staged != NOT_STAGED {
            self.enqueue(cx.sessions, slot, queue, cx.work_ms);
            return COST_OF_PART;
        }
        if hot.flags & GAPS != 0 {
            self.tell_gaps(cx, slot);
        }
        let mut staged = self.begin(slot, cx.sessions.hot(slot).socket);
        let left_over = self.stage_session(cx, slot, &mut staged);
        staged.finish_joining(&self.joined);
        let cost = COST_OF_PART * staged.parts.len() + staged.bytes / BYTES_PER_COST;
        if left_over {
            self.enqueue(cx.sessions, slot, queue, cx.work_ms);
        }
        if staged.parts.is_empty() {
            cx.sessions.hot_mut(slot).flags &= !WOKEN;
            self.staged[self.staged_used] = staged;
            return COST_OF_PART;
        }
        // At most the turn's budget of them.
        cx.sessions.hot_mut(slot).staged = self.staged_used as u32;
        self.staged[self.staged_used] = staged;
        self.staged_used += 1;
        COST_OF_SEND + cost
    }

    fn begin(&mut self, session: SessionSlot, socket: SocketId) -> Staged {
        if self.staged_used == self.staged.len() {
            self.staged.push(Staged::new());
        }
        let mut staged = std::mem::replace(&mut self.staged[self.staged_used], Staged::new());
        (staged.session, staged.socket) = (session, Some(socket));
        staged
    }

    /// Returns whether something was left over.
    fn stage_session<W>(
        &mut self,
        cx: &mut Context<W>,
        slot: SessionSlot,
        staged: &mut Staged,
    ) -> bool {
        let half_sent = cx.sessions.get(slot).and_then(|session| session.half_sent);
        let mut left_over = false;
        if let Some(lane) = half_sent
            && let Some(index) = cx.sessions.get(slot).and_then(|session| session.index_in(lane))
        {
            left_over |= self.stage_lane(cx, slot, lane, index, staged);
        }
        let Some(session) = cx.sessions.get(slot) else { return false };
        for run in session.outbox.iter().flat_map(|outbox| outbox.runs()) {
            if staged.is_full() {
                return true;
            }
            staged.push(Source::Outbox, run, &mut self.joined);
        }
        let flags = cx.sessions.hot(slot).flags;
        if flags & CLOSING != 0 {
            return false;
        }
        if flags & MULTI != 0 && flags & CURSORS == 0 {
            return self.stage_followed(cx, slot, staged);
        }
        // From where the last send was full: no channel can keep the others waiting.
        let (count, first) = (session.subscriptions.len(), session.next_served);
        let mut next = None;
        for at in (0..count).map(|step| (first + step) % count) {
            let own = cx.sessions.get(slot).and_then(|session| session.subscriptions.get(at));
            let Some(own) = own.copied().filter(|own| Some(own.lane) != half_sent) else {
                continue;
            };
            let Some(index) = own.index else { continue };
            if self.stage_lane(cx, slot, own.lane, index, staged) {
                left_over = true;
                next.get_or_insert(at);
            }
        }
        if let Some(session) = cx.sessions.get_mut(slot) {
            session.next_served = next.unwrap_or(0);
        }
        if !left_over && flags & MULTI != 0 {
            self.take_cursors(cx, slot);
        }
        left_over
    }

    /// Stages what one lane has for a session with cursors. Returns whether something was left over.
    fn stage_lane<W>(
        &mut self,
        cx: &mut Context<W>,
        slot: SessionSlot,
        id: LaneId,
        index: u32,
        staged: &mut Staged,
    ) -> bool {
        let list = cx.sessions.list(slot);
        let lane = cx.feeds.lane_mut(id);
        let end = lane.log.end();
        if lane.pressed {
            // Its publications wait for those who were behind: perhaps this was the last of them.
            list_once(&mut lane.touched, &mut self.touched, id);
        }
        let subscribers = match list {
            List::Walked => &mut lane.walked,
            List::Served => &mut lane.served,
        };
        let Some(subscriber) = subscribers.get_mut(index as usize) else { return false };
        let Some(mut from) = subscriber.cursor().filter(|&from| from < end) else { return false };
        while !staged.is_full() {
            let run = lane.skips.run(&mut lane.log, slot, from, SEND_BYTES_MAX);
            let Some(run) = run else { break };
            staged.push(Source::Lane(id, from), &run.bytes, &mut self.joined);
            cx.counters.deliveries.add(run.publications);
            (from, _) = lane.skips.ahead(slot, run.to);
        }
        subscriber.sent = from;
        from < end
    }

    /// Stages the chunks that a session which follows was not sent yet.
    fn stage_followed<W>(
        &mut self,
        cx: &mut Context<W>,
        slot: SessionSlot,
        staged: &mut Staged,
    ) -> bool {
        let mut waiting = std::mem::take(cx.sessions.waiting_mut(slot));
        let (mut taken, mut deliveries) = (0, 0);
        for &number in &waiting {
            if staged.is_full() {
                break;
            }
            let followed = self.recent.take(number);
            if taken == 0 {
                let waited = cx.now.saturating_duration_since(followed.at);
                cx.counters.delivery_us.record(waited.as_micros() as u64);
            }
            let source = Source::Lane(followed.lane, followed.start);
            staged.push(source, &followed.bytes, &mut self.joined);
            deliveries += u64::from(followed.count);
            taken += 1;
        }
        cx.counters.deliveries.add(deliveries);
        waiting.drain(..taken);
        let left_over = !waiting.is_empty();
        *cx.sessions.waiting_mut(slot) = waiting;
        left_over
    }

    /// A session that was given everything follows from here on.
    fn take_cursors<W>(&mut self, cx: &mut Context<W>, slot: SessionSlot) {
        cx.sessions.hot_mut(slot).flags &= !CURSORS;
        let Some(session) = cx.sessions.get(slot) else { return };
        for own in &session.subscriptions {
            let lane = cx.feeds.lane_mut(own.lane);
            if let Some(index) = own.index
                && let Some(subscriber) = lane.served.get_mut(index as usize)
            {
                subscriber.sent = FOLLOWS;
            }
        }
    }

    /// Tells a session that can be sent to again what it missed, and puts it at the end.
    fn tell_gaps<W>(&mut self, cx: &mut Context<W>, slot: SessionSlot) {
        cx.sessions.hot_mut(slot).flags &= !GAPS;
        let list = cx.sessions.list(slot);
        let Some(session) = cx.sessions.get(slot) else { return };
        let mut frames = Vec::new();
        for own in &session.subscriptions {
            let lane = cx.feeds.lane_mut(own.lane);
            let Some(from) = lane.gaps.remove(&slot) else { continue };
            let (to, end) = (lane.log.last_offset(), lane.log.end());
            // Behind a life that begins there may be publications by now, and none has no offset.
            let from = from.max(Offset::NONE.next().min(to));
            if let Some(subscriber) = own.index.and_then(|i| lane.subscriber_mut(list, i)) {
                debug_assert_eq!(
                    subscriber.sent, GAPPED,
                    "who is told of a gap has met the policy"
                );
                subscriber.sent = end;
            }
            let gap = Event::Gap { channel: &lane.name, epoch: lane.epoch, from, to };
            let mut frame = Vec::new();
            session.dialect.write_event(&mut frame, &gap);
            frames.push((lane.name.clone(), Bytes::from(frame)));
            cx.counters.gaps.add(1);
            cx.counters.gap_publications.add(to.next().since(from));
        }
        cx.sessions.with_outbox(slot, |outbox| {
            frames.into_iter().for_each(|(channel, gap)| outbox.push_gap(&channel, gap));
        });
    }
}
