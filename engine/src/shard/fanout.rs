//! From logs to sockets: the flush at the end of a turn.
//!
//! Subscribers are walked in order, and each is sent what lies between its cursor and the end of
//! the log, as one run of shared memory. Cursors move when a send is staged; the few sends that the
//! kernel does not take whole put theirs back. A session with one subscription and nothing else to
//! say is sent to directly; all others collect their parts and get one vectored send, because two
//! sends to one socket in one submission could tear the stream.

use std::collections::VecDeque;

use bytes::Bytes;
use ringfeed_protocol::{CloseCode, Event};
use ringfeed_wire::{Segment, ShortSend, SocketId, VECTORED_RUNS_MAX, Wire};

use crate::config::LagPolicy;
use crate::shard::Shard;
use crate::shard::feed::{GAPPED, LaneId};
use crate::shard::session::{
    BACKLOG, BLOCKED, CLOSING, MULTI, NOT_STAGED, OUTBOX, SessionId, Sessions, Subscription, WOKEN,
};

/// A send by itself: what the kernel takes for one, in units of [`COST_OF_PART`].
const COST_OF_SEND: usize = 16;
/// A part of a send, or one more part of a send that is made anyway: a little user time.
const COST_OF_PART: usize = 1;
/// So many bytes take the kernel about as long as one unit.
const BYTES_PER_COST: usize = 512;
/// Most bytes in one send to one connection.
const SEND_BYTES_MAX: u64 = 64 * 1024;
/// Runs of one send that are shorter than this on average are put together in one.
const JOINED_RUN_BYTES: usize = 512;
/// What one turn puts together at most; what comes after that is sent as it lies.
const JOINED_BYTES: usize = 2 << 20;
/// Pause before a socket that was writable and took nothing is tried again.
const STUCK_MS: u64 = 500;
/// Tags with this bit are places in `staged`, others in `direct`.
const STAGED_TAG: u32 = 1 << 31;

/// A send of one run of one lane.
#[derive(Debug, Clone, Copy)]
struct Direct {
    lane: LaneId,
    index: u32,
    session: u32,
    from: u64,
    to: u64,
}

/// A part of a vectored send.
#[derive(Debug, Clone, Copy)]
enum Part {
    Outbox,
    Lane { lane: LaneId, index: u32, from: u64 },
}

/// A vectored send under construction. Kept for reuse, so that no turn allocates.
#[derive(Debug, Default)]
struct Staged {
    session: u32,
    socket: Option<SocketId>,
    parts: Vec<Part>,
    runs: Vec<Bytes>,
    bytes: usize,
    /// What the kernel took, where not everything; and whether the socket is broken.
    short: Option<(u32, bool)>,
}

impl Staged {
    fn is_full(&self) -> bool {
        self.parts.len() >= VECTORED_RUNS_MAX || self.bytes as u64 >= SEND_BYTES_MAX
    }

    /// All runs in one, where they are short: copying them costs less than pointing at each.
    fn joined(&self, memory: &mut Segment) -> Option<Bytes> {
        let count = self.runs.len();
        let start = memory.len();
        if count < 2
            || self.bytes > count * JOINED_RUN_BYTES
            || memory.capacity() - start < self.bytes
        {
            return None;
        }
        self.runs.iter().all(|run| memory.append(run)).then(|| memory.slice(start, memory.len()))
    }

    fn push(&mut self, part: Part, run: Bytes) {
        self.bytes += run.len();
        self.parts.push(part);
        self.runs.push(run);
    }
}

/// What fan-out keeps between turns.
#[derive(Debug)]
pub(super) struct Fanout {
    /// Small sends in one turn.
    sends_max: usize,
    /// Where short runs of one send are put together.
    joined: Segment,
    /// Lanes with something that not every subscriber was sent.
    dirty: VecDeque<LaneId>,
    /// Sessions to be looked at as a whole in the next flush.
    resume: Vec<SessionId>,
    staged: Vec<Staged>,
    staged_used: usize,
    direct: Vec<Direct>,
    /// Lanes whose walk ended in this flush: their logs can be trimmed after it.
    walked: Vec<LaneId>,
    short: Vec<ShortSend>,
    /// Lanes with a subscriber that may be too old, looked at with each tick.
    pub(super) lagging: Vec<LaneId>,
    /// Sessions whose socket was writable and took nothing, and when they are looked at again.
    stuck: Vec<SessionId>,
    stuck_due_ms: u64,
    /// Sessions whose socket turned out to be broken in this flush.
    broken: Vec<SessionId>,
    /// Some walk is so far behind its log that nothing more may be appended.
    pub(super) behind: bool,
}

impl Fanout {
    pub(super) fn new(sends_max: usize) -> Fanout {
        Fanout {
            sends_max,
            joined: Segment::new(JOINED_BYTES),
            dirty: VecDeque::new(),
            resume: Vec::new(),
            staged: Vec::new(),
            staged_used: 0,
            direct: Vec::new(),
            walked: Vec::new(),
            short: Vec::new(),
            lagging: Vec::new(),
            stuck: Vec::new(),
            stuck_due_ms: 0,
            broken: Vec::new(),
            behind: false,
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.dirty.is_empty() || !self.resume.is_empty()
    }

    pub(super) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }
}

enum Walk {
    Done,
    Again,
    OutOfBudget,
}

impl<W: Wire> Shard<W> {
    /// Marks a lane as having something to send.
    pub(super) fn mark_dirty(&mut self, id: LaneId) {
        let lane = self.subscriptions.lane_mut(id);
        // A quarter of the window is what walks may be behind: the rest is for slow readers.
        self.fanout.behind |= lane.log.end() - lane.floor > lane.window.bytes / 4;
        if lane.walk > 0 {
            lane.again = true;
        }
        if !lane.dirty {
            lane.dirty = true;
            self.fanout.dirty.push_back(id);
        }
    }

    /// Sends what there is to send, up to the turn's limit.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        let mut budget = self.fanout.sends_max * COST_OF_SEND;
        for id in std::mem::take(&mut self.fanout.resume) {
            let Some(slot) = self.sessions.current(id) else { continue };
            if budget == 0 {
                self.fanout.resume.push(id);
                continue;
            }
            let hot = self.sessions.hot_mut(slot);
            hot.flags &= !BACKLOG;
            // A blocked one comes back when its socket takes bytes again.
            if hot.flags & BLOCKED == 0 {
                let bytes = self.stage_session(slot);
                budget = budget.saturating_sub(COST_OF_SEND + bytes / BYTES_PER_COST);
            }
        }
        // Each lane at most once: a second walk could send to a socket twice.
        for _ in 0..self.fanout.dirty.len() {
            let Some(id) = self.fanout.dirty.pop_front() else { break };
            match self.walk(id, &mut budget) {
                Walk::Done => {}
                Walk::Again => self.fanout.dirty.push_back(id),
                Walk::OutOfBudget => {
                    self.fanout.dirty.push_front(id);
                    break;
                }
            }
        }
        for (tag, staged) in (STAGED_TAG..).zip(&self.fanout.staged[..self.fanout.staged_used]) {
            let Some(socket) = staged.socket.filter(|_| !staged.runs.is_empty()) else { continue };
            match staged.joined(&mut self.fanout.joined) {
                Some(run) => self.wire.send(socket, tag, &run),
                None => self.wire.send_vectored(socket, tag, &staged.runs),
            }
        }
        let mut short = std::mem::take(&mut self.fanout.short);
        let submitted = self.wire.submit(&mut short);
        for send in short.drain(..) {
            match send.tag & STAGED_TAG {
                0 => self.direct_short(send),
                _ => {
                    let place = (send.tag & !STAGED_TAG) as usize;
                    self.fanout.staged[place].short = Some((send.sent, send.broken));
                }
            }
        }
        // Nothing of it is referenced any more.
        self.fanout.joined.reset();
        self.fanout.short = short;
        self.fanout.direct.clear();
        for place in 0..std::mem::take(&mut self.fanout.staged_used) {
            self.settle_staged(place);
        }
        for id in std::mem::take(&mut self.fanout.broken) {
            if let Some(slot) = self.sessions.current(id) {
                self.remove_session(slot);
            }
        }
        for id in std::mem::take(&mut self.fanout.walked) {
            self.trim(id);
        }
        self.fanout.behind = self.fanout.dirty.iter().any(|&id| {
            self.subscriptions
                .try_lane(id)
                .is_some_and(|lane| lane.log.end() - lane.floor > lane.window.bytes / 4)
        });
        submitted
    }

    /// Sends a lane's newest bytes to its subscribers, from where the last walk stopped.
    fn walk(&mut self, id: LaneId, budget: &mut usize) -> Walk {
        let Shard { wire, subscriptions, sessions, fanout, counters, .. } = self;
        let Some(lane) = subscriptions.try_lane_mut(id).filter(|lane| lane.dirty) else {
            return Walk::Done;
        };
        let end = lane.log.end();
        if lane.walk == 0 {
            lane.walk_floor = end;
            lane.lagging = false;
            lane.again = false;
        }
        let mut deliveries = 0;
        let mut index = lane.walk;
        while let Some(subscriber) = lane.subscribers.get_mut(index as usize) {
            if subscriber.sent >= end {
                index += 1;
                continue;
            }
            let hot = sessions.hot_mut(subscriber.session);
            if hot.flags & (BLOCKED | BACKLOG | CLOSING) != 0 {
                lane.lagging = true;
                index += 1;
                continue;
            }
            if *budget == 0 {
                lane.walk = index;
                counters.deliveries.add(deliveries);
                return Walk::OutOfBudget;
            }
            let from = subscriber.sent;
            let Some(run) = lane.log.run(from, SEND_BYTES_MAX) else { break };
            let mut cost = COST_OF_SEND;
            if hot.flags & (MULTI | OUTBOX) == 0 {
                // Fewer than the turn's budget of them.
                let tag = fanout.direct.len() as u32;
                wire.send(hot.socket, tag, &run.bytes);
                let session = subscriber.session;
                fanout.direct.push(Direct { lane: id, index, session, from, to: run.to });
            } else {
                if hot.staged != NOT_STAGED {
                    cost = COST_OF_PART;
                }
                let staged = stage(fanout, &mut hot.staged, subscriber.session, hot.socket);
                if staged.is_full() {
                    lane.lagging = true;
                    resume(fanout, sessions, subscriber.session);
                    index += 1;
                    continue;
                }
                staged.push(Part::Lane { lane: id, index, from }, run.bytes.clone());
            }
            *budget = budget.saturating_sub(cost + run.bytes.len() / BYTES_PER_COST);
            subscriber.sent = run.to;
            deliveries += run.publications;
            lane.again |= run.to < end;
            lane.walk_floor = lane.walk_floor.min(run.to);
            index += 1;
        }
        counters.deliveries.add(deliveries);
        lane.walk = 0;
        lane.floor = lane.walk_floor;
        if lane.lagging && !lane.lag_listed {
            lane.lag_listed = true;
            fanout.lagging.push(id);
        }
        fanout.walked.push(id);
        lane.dirty = lane.again;
        if lane.again { Walk::Again } else { Walk::Done }
    }

    /// Collects everything that one session has to send: the rest of a half-sent frame's lane, its
    /// outbox, then its channels. What does not fit waits for the next turn. Returns the bytes.
    fn stage_session(&mut self, slot: u32) -> usize {
        self.tell_gaps(slot);
        let Shard { subscriptions, sessions, fanout, counters, .. } = self;
        let (mut place, socket) = (sessions.hot(slot).staged, sessions.hot(slot).socket);
        let staged = stage(fanout, &mut place, slot, socket);
        sessions.hot_mut(slot).staged = place;
        let closing = sessions.hot(slot).flags & CLOSING != 0;
        let Some(session) = sessions.get_mut(slot) else { return 0 };
        let mut left_over = false;
        let mut add_lane = |staged: &mut Staged, lane: LaneId, index: u32| {
            let state = subscriptions.lane_mut(lane);
            let Some(subscriber) = state.subscribers.get_mut(index as usize) else { return };
            let from = subscriber.sent;
            let Some(run) = state.log.run(from, SEND_BYTES_MAX) else { return };
            staged.push(Part::Lane { lane, index, from }, run.bytes.clone());
            subscriber.sent = run.to;
            counters.deliveries.add(run.publications);
            left_over |= run.to < state.log.end();
        };
        if let Some(lane) = session.half_sent {
            let own = session.subscriptions.iter().find(|s| s.lane == lane);
            if let Some(&Subscription { index: Some(index), .. }) = own {
                add_lane(staged, lane, index);
            }
        }
        for frame in session.outbox.iter().flat_map(|outbox| outbox.frames()) {
            if staged.is_full() {
                break;
            }
            staged.push(Part::Outbox, frame.clone());
        }
        if !closing && !staged.is_full() {
            for &Subscription { lane, index, .. } in &session.subscriptions {
                if staged.is_full() {
                    break;
                }
                if session.half_sent != Some(lane)
                    && let Some(index) = index
                {
                    add_lane(staged, lane, index);
                }
            }
        }
        // Where it is full something may be left: another look costs little.
        if left_over || staged.is_full() {
            resume(fanout, sessions, slot);
        }
        fanout.staged[place as usize].bytes
    }

    /// Has the session looked at as a whole in the next flush.
    pub(super) fn resume_session(&mut self, slot: u32) {
        resume(&mut self.fanout, &mut self.sessions, slot);
    }

    /// Tells a session that can be sent to again what it missed, and puts it at the end.
    fn tell_gaps(&mut self, slot: u32) {
        let Some(session) = self.sessions.get(slot) else { return };
        for at in 0..session.subscriptions.len() {
            let Some(session) = self.sessions.get(slot) else { return };
            let Subscription { lane, index, .. } = session.subscriptions[at];
            let dialect = session.dialect;
            let state = self.subscriptions.lane_mut(lane);
            if state.gaps.is_empty() {
                continue;
            }
            let Some(from) = state.gaps.remove(&slot) else { continue };
            let to = state.log.last_offset();
            if let Some(subscriber) =
                index.and_then(|index| state.subscribers.get_mut(index as usize))
            {
                subscriber.sent = state.log.end();
            }
            let mut frame = Vec::new();
            let gap = Event::Gap { channel: &state.name, epoch: state.epoch, from, to };
            dialect.write_event(&mut frame, &gap);
            self.counters.gaps.add(1);
            self.counters.gap_publications.add((to + 1).saturating_sub(from));
            self.push_outbox(slot, Bytes::from(frame));
        }
    }

    /// A direct send that was not taken whole.
    fn direct_short(&mut self, send: ShortSend) {
        let Direct { lane, index, session, from, to } = self.fanout.direct[send.tag as usize];
        let position = from + u64::from(send.sent);
        self.put_back(lane, index, session, position, to);
        if send.sent > 0
            && let Some(session) = self.sessions.get_mut(session)
        {
            session.half_sent = Some(lane);
        }
        self.block(session, send.sent, send.broken);
    }

    /// Puts a cursor back to what was really sent.
    fn put_back(&mut self, lane: LaneId, index: u32, session: u32, position: u64, staged_to: u64) {
        let state = self.subscriptions.lane_mut(lane);
        let undone = state.log.next_offset(staged_to) - state.log.next_offset(position);
        self.counters.deliveries.add(undone.wrapping_neg());
        if let Some(subscriber) = state.subscribers.get_mut(index as usize) {
            debug_assert_eq!(subscriber.session, session, "no subscriber moves during a flush");
            subscriber.sent = position;
        }
        state.lagging = true;
        if !state.lag_listed {
            state.lag_listed = true;
            self.fanout.lagging.push(lane);
        }
    }

    /// The socket took so many bytes and takes nothing more for now, or is broken.
    fn block(&mut self, slot: u32, sent: u32, broken: bool) {
        let hot = self.sessions.hot_mut(slot);
        let in_vain = hot.flags & WOKEN != 0 && sent == 0;
        hot.flags = (hot.flags | BLOCKED) & !WOKEN;
        if broken {
            // Removing it now would move subscribers while a flush counts on their places.
            self.fanout.broken.push(self.sessions.id(slot));
        } else if in_vain {
            // Short of memory for TCP the kernel calls sockets writable and takes nothing: asking
            // again at once would go on for ever.
            self.fanout.stuck.push(self.sessions.id(slot));
        } else {
            self.wire.watch_writable(hot.socket);
        }
    }

    /// Asks again for the sockets that were writable and took nothing.
    pub(super) fn retry_stuck(&mut self) {
        if self.fanout.stuck.is_empty() || self.now_ms < self.fanout.stuck_due_ms {
            return;
        }
        self.fanout.stuck_due_ms = self.now_ms + STUCK_MS;
        for id in std::mem::take(&mut self.fanout.stuck) {
            if let Some(slot) = self.sessions.current(id) {
                self.wire.watch_writable(self.sessions.hot(slot).socket);
            }
        }
    }

    /// Books what the kernel took of a vectored send.
    fn settle_staged(&mut self, place: usize) {
        let mut staged = std::mem::take(&mut self.fanout.staged[place]);
        let slot = staged.session;
        let (mut taken, broken) =
            staged.short.map_or((staged.bytes, false), |(sent, broken)| (sent as usize, broken));
        for (part, run) in staged.parts.iter().zip(&staged.runs) {
            let whole = taken >= run.len();
            let sent = taken.min(run.len());
            taken -= sent;
            let Some(session) = self.sessions.get_mut(slot) else { break };
            match *part {
                Part::Outbox => {
                    if let Some(outbox) = &mut session.outbox {
                        outbox.sent(sent);
                    }
                }
                Part::Lane { lane, .. } if whole => {
                    if session.half_sent == Some(lane) {
                        session.half_sent = None;
                    }
                }
                Part::Lane { lane, index, from } => {
                    if sent > 0 {
                        session.half_sent = Some(lane);
                    }
                    let to = from + run.len() as u64;
                    self.put_back(lane, index, slot, from + sent as u64, to);
                }
            }
        }
        if self.sessions.get(slot).is_some() {
            self.sessions.hot_mut(slot).staged = NOT_STAGED;
            match staged.short {
                Some((sent, _)) => self.block(slot, sent, broken),
                None => self.sessions.hot_mut(slot).flags &= !WOKEN,
            }
            self.settle_outbox(slot);
        }
        staged.parts.clear();
        staged.runs.clear();
        (staged.bytes, staged.socket, staged.short) = (0, None, None);
        self.fanout.staged[place] = staged;
    }

    /// Drops what no subscriber needs any more; readers that fell out of the window meet the
    /// channel's lag policy.
    fn trim(&mut self, id: LaneId) {
        let Some(lane) = self.subscriptions.try_lane_mut(id) else { return };
        let mut keep = lane.floor;
        if lane.lagging {
            keep = keep.min(lane.log.end().saturating_sub(lane.window.bytes));
        }
        let keep = lane.log.trim_point(keep);
        if keep <= lane.log.base() {
            return;
        }
        if lane.lagging {
            self.fall(id, |position, _| position < keep);
        }
        if let Some(lane) = self.subscriptions.try_lane_mut(id) {
            lane.log.trim(keep);
        }
    }

    /// Looks for readers that are too far behind in time.
    pub(super) fn check_ages(&mut self) {
        for id in std::mem::take(&mut self.fanout.lagging) {
            let now_ms = self.now_ms;
            let Some(lane) = self.subscriptions.try_lane_mut(id).filter(|l| l.lag_listed) else {
                continue;
            };
            let age_ms = lane.window.age_ms;
            self.fall(id, |_, appended_ms| now_ms.saturating_sub(appended_ms) > age_ms);
            let Some(lane) = self.subscriptions.try_lane_mut(id) else { continue };
            let end = lane.log.end();
            lane.lagging = lane.subscribers.iter().any(|s| s.sent < end);
            lane.lag_listed = lane.lagging;
            if lane.lagging {
                self.fanout.lagging.push(id);
            } else if !lane.dirty {
                lane.floor = end;
                self.trim(id);
            }
        }
    }

    /// Applies the lag policy to the readers of a lane that cannot be sent to and whose position, or
    /// the time when what they wait for was appended, is too old.
    fn fall(&mut self, id: LaneId, too_old: impl Fn(u64, u64) -> bool) {
        let lane = self.subscriptions.lane_mut(id);
        let end = lane.log.end();
        let mut fallen = Vec::new();
        for (index, subscriber) in (0u32..).zip(&lane.subscribers) {
            let position = subscriber.sent;
            let cannot = self.sessions.hot(subscriber.session).flags & (BLOCKED | BACKLOG) != 0;
            if position < end && cannot {
                let appended_ms = lane.log.appended_at(position).unwrap_or(0);
                if too_old(position, appended_ms) {
                    fallen.push((index, subscriber.session));
                }
            }
        }
        // From the last to the first: when one is closed, the last subscriber moves to its place, and
        // that one has been seen to.
        for (index, slot) in fallen.into_iter().rev() {
            self.fall_one(id, index, slot);
        }
    }

    fn fall_one(&mut self, id: LaneId, index: u32, slot: u32) {
        let lane = self.subscriptions.lane_mut(id);
        let Some(subscriber) = lane.subscribers.get_mut(index as usize) else { return };
        assert_eq!(subscriber.session, slot, "no fallen subscriber has moved");
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let mut missed = lane.log.next_offset(subscriber.sent);
        if lane.window.policy == LagPolicy::Gap && session.dialect.answers_in_band() {
            if session.half_sent == Some(id) {
                session.half_sent = None;
                if let Some(rest) = lane.log.rest_of_frame(subscriber.sent) {
                    session.outbox.get_or_insert_default().push_front(rest);
                    self.sessions.hot_mut(slot).flags |= OUTBOX;
                    missed += 1;
                }
            }
            subscriber.sent = GAPPED;
            lane.gaps.insert(slot, missed);
        } else {
            let reason = format!(
                "lagged: {} from offset {missed}, epoch {}; resume from your last offset",
                lane.name, lane.epoch
            );
            self.counters.lag_disconnects.add(1);
            self.close_session(slot, CloseCode::LAGGED, &reason);
        }
    }
}

/// Puts a session on the list for the next flush, once.
fn resume(fanout: &mut Fanout, sessions: &mut Sessions, slot: u32) {
    let id = sessions.id(slot);
    let hot = sessions.hot_mut(slot);
    if hot.flags & BACKLOG == 0 {
        hot.flags |= BACKLOG;
        fanout.resume.push(id);
    }
}

/// The staged send of a session, begun if there is none.
fn stage<'a>(
    fanout: &'a mut Fanout,
    place: &mut u32,
    session: u32,
    socket: SocketId,
) -> &'a mut Staged {
    if *place == NOT_STAGED {
        // At most the turn's budget of them.
        *place = fanout.staged_used as u32;
        if fanout.staged_used == fanout.staged.len() {
            fanout.staged.push(Staged::default());
        }
        let staged = &mut fanout.staged[fanout.staged_used];
        (staged.session, staged.socket) = (session, Some(socket));
        fanout.staged_used += 1;
    }
    &mut fanout.staged[*place as usize]
}
