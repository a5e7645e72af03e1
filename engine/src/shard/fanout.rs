//! From logs to sockets: the flush at the end of a turn.
//!
//! Two ways to schedule. Sessions with one subscription are served lane by lane: subscribers are
//! walked in order, and each is sent what lies between its cursor and the end of the log, as one run
//! of shared memory. Sessions that have had several are served one by one, in the order in which
//! something came for them, each given everything it has over all its channels in one send.
//!
//! Cursors move when a send is staged; the few sends that the kernel does not take whole put theirs
//! back. The flush has no other effects: it closes nobody and feeds nobody. What is to be done about a
//! session it says as a [`Verdict`], and the shard does it afterwards.

mod follow;
mod lag;
mod settle;
mod stage;
mod walk;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ringfeed_wire::{Segment, ShortSend, Wire};

use super::feed::Feeds;
use super::session::{QUEUED, Sessions};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::ids::{LaneId, LogPosition, SessionId, SessionSlot};
use crate::message::{Chunk, Skip};
use follow::{Followed, Recent};
use stage::Staged;
use walk::Walk;

/// A send by itself: what the kernel takes for one, in units of [`COST_OF_PART`].
const COST_OF_SEND: usize = 16;
/// A part of a send, or one more part of a send that is made anyway: a little user time.
const COST_OF_PART: usize = 1;
/// So many bytes take the kernel about as long as one unit.
const BYTES_PER_COST: usize = 512;
/// Most bytes in one send to one connection.
pub(super) const SEND_BYTES_MAX: usize = 64 * 1024;
/// What one submission puts together from short runs at most; what comes after that is sent as it lies.
const JOINED_BYTES: usize = 2 << 20;
/// Turns' budgets that one lane takes before another one has its turn: a channel with tens of thousands of subscribers does
/// not keep the others waiting, and of channels with up to 1,024 on a shard each is done with before the next one.
const WALK_TURNS: usize = 4;
/// Parts of a turn's budget, between which a flush looks at the time, …
const FLUSH_PARTS: usize = 4;
/// … and the time after which it ends. A send takes 3 us mostly, but several times that where sockets are cold, or where
/// each wakes somebody up.
const FLUSH_TIME_MAX: Duration = Duration::from_millis(2);
/// Readers that may meet the lag policy in one turn, for each send that it may make: it takes a tenth of one.
const FALLS_PER_SEND: usize = 4;
/// Pause before a socket that was writable and took nothing is tried again.
const STUCK_MS: u64 = 500;
/// What is waiting for longer than this shows that more comes than can be sent: nothing more is
/// appended until it is gone.
const LATE_MS: u64 = 100;
/// What chunks hold for sessions that follow, beyond which nothing more is appended.
const RECENT_BYTES_MAX: usize = 16 << 20;
/// Tags with this bit are places in `staged`, others in `direct`.
const STAGED_TAG: u32 = 1 << 31;
/// Bits of a tag that hold a place; the turn's stamp is above them.
const PLACE_BITS: u32 = 23;

/// What the flush has found about a session, for the shard to see to once it is over.
pub(super) type Verdict = (SessionId, Finding);

#[derive(Debug)]
pub(super) enum Finding {
    /// It fell out of a channel's window, and the channel or its dialect has it closed, for this reason.
    Lagged(String),
    /// It is to be closed without a word, because no whole frame can be sent any more.
    Cut,
    /// Its socket is broken.
    Broken,
    /// Something waits in its outbox and its socket takes nothing.
    Stalled,
    /// Its outbox has become shorter.
    Read,
}

/// What the flush works on and does not own.
#[derive(Debug)]
pub(super) struct Context<'a, W> {
    pub(super) wire: &'a mut W,
    pub(super) feeds: &'a mut Feeds,
    pub(super) sessions: &'a mut Sessions,
    pub(super) counters: &'a Counters,
    pub(super) limits: FlushLimits,
    pub(super) clock: &'a Clock,
    /// When the turn began.
    pub(super) now: Instant,
    /// What readers are blamed by.
    pub(super) now_ms: u64,
    /// What we are late by.
    pub(super) work_ms: u64,
}

/// What the flush must know of the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlushLimits {
    /// Log memory that only half-sent frames hold.
    pub(super) retained_bytes_max: usize,
    /// What may be under way to this shard's logs beyond their windows.
    pub(super) burst_bytes_max: usize,
}

/// A send of one run of one lane.
#[derive(Debug, Clone, Copy)]
struct Direct {
    lane: LaneId,
    index: u32,
    session: SessionSlot,
    from: LogPosition,
    to: LogPosition,
}

/// A session in the queue.
#[derive(Debug, Clone, Copy)]
struct Queued {
    session: SessionId,
    /// Low bits of the milliseconds since the shard began.
    since_ms: u32,
}

/// Where a session waits to be served, first in, first out: in one queue at most.
#[derive(Debug, Clone, Copy)]
pub(super) enum Queue {
    /// There is something in logs for it.
    Feed,
    /// Something else is in its outbox. Those who ask much at once, each for itself, do not keep the feed waiting.
    Replies,
}

/// What fan-out keeps between turns.
#[derive(Debug)]
pub(super) struct Fanout {
    /// Small sends in one turn.
    sends_max: usize,
    /// Lanes with something that not every subscriber in their walked list was sent, and since when.
    dirty: VecDeque<(LaneId, u64)>,
    /// What the first of them may still take before it is another one's turn.
    walk_left: usize,
    /// Sessions to be served, by [`Queue`].
    queues: [VecDeque<Queued>; 2],
    recent: Recent,
    /// Where short runs of one send are put together.
    joined: Segment,
    staged: Vec<Staged>,
    staged_used: usize,
    direct: Vec<Direct>,
    short: Vec<ShortSend>,
    /// Tells the sends of this turn from those of others.
    stamp: u8,
    /// Lanes to be looked at after the flush: trimmed, and their lagging readers seen to.
    touched: Vec<LaneId>,
    /// Those of them where more readers met the lag policy than one turn sees to.
    unfinished: Vec<LaneId>,
    /// Readers that may still meet it in this turn.
    falls_left: usize,
    /// Lanes with a subscriber that may be too old, looked at with each tick.
    lagging: VecDeque<LaneId>,
    /// So many of them were not looked at since the last tick.
    unaged: usize,
    /// Sessions whose socket was writable and took nothing, and when they are looked at again.
    stuck: Vec<SessionId>,
    stuck_due_ms: u64,
    verdicts: Vec<Verdict>,
    /// Lanes whose readers who read are behind, or no more, and whose homes are to be told.
    pressures: Vec<LaneId>,
    /// More has come than can be sent: nothing more may be appended.
    behind: bool,
}

/// Lists a lane, once: `listed` is what it says of itself.
fn list_once(listed: &mut bool, list: &mut impl Extend<LaneId>, id: LaneId) {
    if !std::mem::replace(listed, true) {
        list.extend([id]);
    }
}

impl Fanout {
    pub(super) fn new(sends_max: usize) -> Fanout {
        Fanout {
            sends_max,
            dirty: VecDeque::new(),
            walk_left: WALK_TURNS * sends_max * COST_OF_SEND,
            queues: Default::default(),
            recent: Recent::default(),
            joined: Segment::new(JOINED_BYTES),
            staged: Vec::new(),
            staged_used: 0,
            direct: Vec::new(),
            short: Vec::new(),
            stamp: 0,
            touched: Vec::new(),
            unfinished: Vec::new(),
            falls_left: FALLS_PER_SEND * sends_max,
            lagging: VecDeque::new(),
            unaged: 0,
            stuck: Vec::new(),
            stuck_due_ms: 0,
            verdicts: Vec::new(),
            pressures: Vec::new(),
            behind: false,
        }
    }

    /// What one turn may send, in units of [`COST_OF_PART`].
    fn budget(&self) -> usize {
        self.sends_max * COST_OF_SEND
    }

    /// Whether there is something to do at once.
    pub(super) fn has_work(&self) -> bool {
        !self.dirty.is_empty() || self.queued() > 0 || !self.touched.is_empty() || self.unaged > 0
    }

    /// Whether nothing more may be appended.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// Sessions waiting to be served.
    pub(super) fn queued(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// What the last flush, or tick, has found about sessions.
    pub(super) fn take_verdicts(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.verdicts)
    }

    /// Lanes that say something else now of how their readers stand.
    pub(super) fn take_pressures(&mut self) -> Vec<LaneId> {
        std::mem::take(&mut self.pressures)
    }

    /// Puts a session in a queue, where it is in none.
    pub(super) fn enqueue(
        &mut self,
        sessions: &mut Sessions,
        slot: SessionSlot,
        queue: Queue,
        now_ms: u64,
    ) {
        let session = sessions.id(slot);
        let hot = sessions.hot_mut(slot);
        if hot.flags & QUEUED == 0 {
            hot.flags |= QUEUED;
            // Compared within minutes: the low bits do.
            let queued = Queued { session, since_ms: now_ms as u32 };
            self.queues[queue as usize].push_back(queued);
        }
    }

    /// Appends a chunk to a lane's log, and notes who is to get it, and what of it sessions are not sent.
    pub(super) fn append<W>(
        &mut self,
        cx: &mut Context<W>,
        id: LaneId,
        chunk: Chunk,
        skips: &[(SessionSlot, Skip)],
    ) {
        let left_out = self.leave_out(cx, id, chunk.bytes.len(), skips);
        let followed = !cx.feeds.lane(id).served.is_empty();
        let copy = followed.then(|| (chunk.bytes.clone(), chunk.count, chunk.at));
        let start = cx.feeds.append(id, chunk, cx.now_ms);
        for &(slot, Skip { from, to, .. }) in skips {
            let index = cx.sessions.get(slot).and_then(|session| session.index_in(id));
            if let Some(index) = index {
                let place = (cx.sessions.list(slot), index);
                cx.feeds.skip(id, place, start + from as usize, start + to as usize);
            }
        }
        let lane = cx.feeds.lane_mut(id);
        list_once(&mut lane.touched, &mut self.touched, id);
        if !lane.walked.is_empty() {
            lane.again |= lane.walk > 0;
            if !lane.dirty {
                lane.dirty = true;
                self.dirty.push_back((id, cx.work_ms));
            }
        }
        if let Some((bytes, count, at)) = copy {
            let followed = Followed { lane: id, start, bytes, count, at, waiting: 0 };
            self.mark_served(cx, followed, &left_out);
        }
    }

    /// Sends what there is to send, up to the turn's limits.
    pub(super) fn flush<W: Wire>(&mut self, cx: &mut Context<W>) -> std::io::Result<()> {
        let began = cx.clock.now();
        let mut left = self.budget();
        let mut submitted = Ok(());
        while submitted.is_ok() && left > 0 {
            let most = left.min(self.budget() / FLUSH_PARTS);
            let spent = self.stage_some(cx, most);
            submitted = self.submit(cx);
            self.settle(cx);
            left = left.saturating_sub(spent);
            if spent < most || cx.clock.now() - began > FLUSH_TIME_MAX {
                break;
            }
        }
        self.recent.forget(cx.feeds, &mut self.touched);
        // Kept for the next turn: no turn allocates.
        while let Some(id) = self.touched.pop() {
            self.review(cx, id);
        }
        self.touched.append(&mut self.unfinished);
        self.falls_left = FALLS_PER_SEND * self.sends_max;
        self.behind =
            self.recent.bytes() > RECENT_BYTES_MAX || !self.touched.is_empty() || self.is_late(cx);
        submitted
    }

    /// Stages what is to be sent next, for so much of the budget. Returns what it is of that.
    fn stage_some<W: Wire>(&mut self, cx: &mut Context<W>, most: usize) -> usize {
        // None of the ways of scheduling can starve another: each has its share, and what the others leave.
        let ways = self.queues.iter().filter(|queue| !queue.is_empty()).count()
            + usize::from(!self.dirty.is_empty());
        let share = most / ways.max(1);
        let mut left = most;
        for queue in [Queue::Feed, Queue::Replies] {
            let mut own = share;
            self.serve_queue(cx, queue, &mut own);
            left -= share - own;
        }
        self.walk_lanes(cx, &mut left);
        self.serve_queue(cx, Queue::Feed, &mut left);
        self.serve_queue(cx, Queue::Replies, &mut left);
        most - left
    }

    fn is_late<W>(&self, cx: &Context<W>) -> bool {
        let now_ms = cx.work_ms;
        // A walk that has begun goes on with the newest state of its log: it is not late.
        let mut waiting = self
            .dirty
            .iter()
            .filter(|&&(id, _)| cx.feeds.try_lane(id).is_some_and(|lane| lane.walk == 0));
        let lane = waiting.next().is_some_and(|&(_, since_ms)| now_ms - since_ms > LATE_MS);
        let first = self.queues[Queue::Feed as usize].front();
        let waits = |queued: &Queued| u64::from((now_ms as u32).wrapping_sub(queued.since_ms));
        lane || first.is_some_and(|queued| waits(queued) > LATE_MS)
    }

    /// Serves sessions of a queue in their order.
    fn serve_queue<W: Wire>(&mut self, cx: &mut Context<W>, queue: Queue, left: &mut usize) {
        // Each at most once: who has more than fits goes behind the others.
        for _ in 0..self.queues[queue as usize].len() {
            if *left == 0 {
                return;
            }
            let Some(queued) = self.queues[queue as usize].pop_front() else { return };
            let Some(slot) = cx.sessions.current(queued.session) else { continue };
            *left = left.saturating_sub(self.serve(cx, slot, queue));
        }
    }

    /// Walks lanes in turn.
    fn walk_lanes<W: Wire>(&mut self, cx: &mut Context<W>, left: &mut usize) {
        // Each at most once: a second walk could send to a socket twice.
        for _ in 0..self.dirty.len() {
            let Some((id, since_ms)) = self.dirty.pop_front() else { return };
            let others_wait = !self.dirty.is_empty();
            let most = if others_wait { self.walk_left.min(*left) } else { *left };
            let mut own = most;
            let walk = self.walk(cx, id, &mut own);
            *left -= most - own;
            self.walk_left = self.walk_left.saturating_sub(most - own);
            match walk {
                Walk::OutOfBudget if *left == 0 && (self.walk_left > 0 || !others_wait) => {
                    self.dirty.push_front((id, since_ms));
                    return;
                }
                Walk::OutOfBudget => self.dirty.push_back((id, since_ms)),
                Walk::Again => self.dirty.push_back((id, cx.work_ms)),
                Walk::Done => {}
            }
            self.walk_left = WALK_TURNS * self.budget();
        }
    }

    /// Asks again for the sockets that were writable and took nothing.
    pub(super) fn retry_stuck<W: Wire>(&mut self, cx: &mut Context<W>) {
        if self.stuck.is_empty() || cx.now_ms < self.stuck_due_ms {
            return;
        }
        for id in std::mem::take(&mut self.stuck) {
            if let Some(slot) = cx.sessions.current(id) {
                cx.wire.watch_writable(cx.sessions.hot(slot).socket);
            }
        }
    }
}

impl Fanout {
    /// Panics if something is left over from a flush, or lists disagree with what they list.
    pub(super) fn check(&self, feeds: &Feeds) {
        assert!(self.direct.is_empty() && self.staged_used == 0, "sends are settled");
        assert!(self.verdicts.is_empty() && self.short.is_empty(), "verdicts are applied");
        assert!(self.pressures.is_empty(), "pressures are told");
        for (id, lane) in feeds.lanes() {
            let listed = self.dirty.iter().filter(|&&(dirty, _)| dirty == id).count();
            assert_eq!(listed, usize::from(lane.dirty), "{} is dirty and listed once", lane.name);
            let listed = self.lagging.iter().filter(|&&lagging| lagging == id).count();
            assert_eq!(listed, usize::from(lane.lagging), "{} lags and is listed once", lane.name);
        }
        let waiting = self.recent.waiting();
        assert!(waiting == 0 || self.queued() > 0, "who waits for a chunk is in a queue");
    }
}
