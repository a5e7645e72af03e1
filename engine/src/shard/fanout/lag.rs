//! Readers that fall behind: how far they may, and what they meet.
//!
//! Who reads is waited for: while readers who took something a moment ago are more than half a window
//! behind, the channel's home is asked to hold publications back. A channel is held for two seconds in
//! one piece at most, and for a tenth of the time after that, so that a reader who reads slowly cannot
//! hold it for long. That time is the shard's, which stands still while events wait: what a socket
//! has said and we have not read yet is our delay, not the reader's. Who does not read, or has had its
//! time, meets the channel's lag policy once it is out of the window.

use ringfeed_wire::Wire;

use super::{Context, Fanout, Finding, list_once};
use crate::config::LagPolicy;
use crate::ids::{LaneId, LogPosition, SessionSlot};
use crate::shard::feed::{GAPPED, LaneState, List};
use crate::shard::session::{BLOCKED, CLOSING, GAPS};

/// The rest of a half-sent frame is copied up to this length; longer ones stay in the log's memory.
const COPIED_REST_BYTES: usize = 1024;

/// Subscribers that are looked at for their age in one turn, before the next lane.
const AGE_LOOKS_PER_TURN: usize = 64 * 1024;

/// In so many turns at most everybody in a lane can have met the lag policy.
const LANE_PARTS: usize = 16;

/// A subscriber that meets the lag policy: its place in a lane, and its session.
type Fallen = (List, u32, SessionSlot);

/// Who is where in a lane.
#[derive(Debug, Clone, Copy)]
struct Standing {
    /// The least position of those who can be sent to: we are late ourselves.
    ours: LogPosition,
    /// The least position of those who cannot, but read.
    reading: LogPosition,
    /// The least position of all others who are within the window.
    within: LogPosition,
}

impl Fanout {
    /// Looks at a lane after a flush: trims its log, applies the lag policy to those who are out of its
    /// window, and says whether publications are to be held back.
    pub(super) fn review<W: Wire>(&mut self, cx: &mut Context<W>, id: LaneId) {
        let Some(lane) = cx.feeds.try_lane_mut(id) else { return };
        if self.falls_left == 0 {
            // Nobody may fall any more in this turn: what a look finds it would have to find again.
            return self.unfinished.push(id);
        }
        lane.touched = false;
        if lane.walk == 0 {
            lane.log.forget_run();
        }
        let end = lane.log.end();
        let half = lane.window.bytes / 2;
        let trimmable = lane.log.is_trimmable(lane.walked.len() + lane.served.len());
        if !lane.pressed && !trimmable && lane.log.bytes_held() <= half {
            if lane.log.bytes_held() > 0 {
                // With the next tick at the latest.
                list_once(&mut lane.lagging, &mut self.lagging, id);
            }
            return;
        }
        // Looking at every subscriber costs: not more often than something has changed.
        let walking = lane.walk > 0;
        if walking && end - lane.reviewed_to < lane.window.bytes / 8 {
            return;
        }
        self.review_now(cx, id);
    }

    fn review_now<W: Wire>(&mut self, cx: &mut Context<W>, id: LaneId) {
        let (standing, fallen) = {
            let lane = cx.feeds.lane(id);
            let burst = cx.limits.burst_bytes_max;
            stand(cx, lane, lane.patience.is_left().then_some(burst))
        };
        let all_seen_to = self.fall_some(cx, id, &fallen).is_empty();
        let lane = cx.feeds.lane_mut(id);
        let end = lane.log.end();
        let mut keep = standing.ours.min(standing.reading).min(standing.within);
        // Who was not seen to, or misses nothing but the rest of the newest frame, has its cursor still.
        for &(list, index, _) in &fallen {
            let subscriber = lane.subscriber_mut(list, index);
            keep = subscriber.and_then(|s| s.cursor()).map_or(keep, |cursor| keep.min(cursor));
        }
        if all_seen_to {
            lane.reviewed_to = end;
        } else {
            list_once(&mut lane.touched, &mut self.unfinished, id);
        }
        if lane.followed > 0 {
            keep = keep.min(lane.followed_from);
        }
        // Half a window, but less where one was enough already: the other half of a burst comes still.
        let half = lane.log.bytes_in(lane.window.bytes) / 2;
        let behind = |position: LogPosition| end - position > half;
        let (late, waited) = (behind(standing.ours), behind(standing.reading));
        lane.patience.pass(cx.now_ms, waited && lane.pressed || lane.waits_for_old);
        let pressed = late || waited && lane.patience.is_left();
        if pressed != lane.pressed {
            lane.pressed = pressed;
            self.pressures.push(id);
        }
        if pressed {
            list_once(&mut lane.lagging, &mut self.lagging, id);
        }
        cx.feeds.trim(id, keep);
    }

    /// With each tick: every lane where somebody is behind is to be looked at.
    pub(in crate::shard) fn begin_ages(&mut self) {
        self.unaged = self.lagging.len();
    }

    /// Looks at some of them, for readers that are too far behind in time.
    pub(in crate::shard) fn check_ages<W: Wire>(&mut self, cx: &mut Context<W>) {
        let mut looks = 0;
        while self.unaged > 0 && self.falls_left > 0 && looks < AGE_LOOKS_PER_TURN {
            self.unaged -= 1;
            let Some(id) = self.lagging.pop_front() else { return };
            let Some(lane) = cx.feeds.try_lane_mut(id).filter(|lane| lane.lagging) else {
                continue;
            };
            lane.lagging = false;
            looks += lane.walked.len() + lane.served.len();
            self.check_age(cx, id);
        }
    }

    fn check_age<W: Wire>(&mut self, cx: &mut Context<W>, id: LaneId) {
        let patience = cx.feeds.lane(id).patience.is_left();
        let (fallen, waited) = too_old(cx, cx.feeds.lane(id), patience);
        let lane = cx.feeds.lane_mut(id);
        lane.patience.pass(cx.now_ms, waited || lane.waits_for_old);
        lane.waits_for_old = waited;
        if !self.fall_some(cx, id, &fallen).is_empty() {
            // Those that were too many for this turn are the first of the next.
            cx.feeds.lane_mut(id).lagging = true;
            self.lagging.push_front(id);
            self.unaged += 1;
        }
        self.review_now(cx, id);
        let lane = cx.feeds.lane_mut(id);
        let end = lane.log.end();
        let behind = |position: LogPosition| position < end;
        let lags = lane.pressed || lane.subscribers().filter_map(|s| s.cursor()).any(behind);
        if lags {
            list_once(&mut lane.lagging, &mut self.lagging, id);
        }
    }

    /// Applies the lag policy to as many as a turn may. Returns the others.
    fn fall_some<'a, W: Wire>(
        &mut self,
        cx: &mut Context<W>,
        id: LaneId,
        fallen: &'a [Fallen],
    ) -> &'a [Fallen] {
        if self.falls_left == 0 {
            return fallen;
        }
        // Of a large lane more: each turn looks at all of it again.
        let most = self.falls_left.max(cx.feeds.lane(id).subscribers().count() / LANE_PARTS);
        let mut fell = 0;
        for (place, &(list, index, slot)) in fallen.iter().enumerate() {
            if fell == most {
                self.falls_left = 0;
                return &fallen[place..];
            }
            // Who misses nothing costs nothing: others would wait behind it for ever.
            fell += usize::from(self.fall(cx, id, list, index, slot));
        }
        self.falls_left = self.falls_left.saturating_sub(fell);
        &[]
    }

    /// Applies the lag policy to a reader that cannot be sent to, if it misses anything.
    fn fall<W: Wire>(
        &mut self,
        cx: &mut Context<W>,
        id: LaneId,
        list: List,
        index: u32,
        slot: SessionSlot,
    ) -> bool {
        let lane = cx.feeds.lane_mut(id);
        let Some(subscriber) = lane.subscriber_mut(list, index) else { return false };
        assert_eq!(subscriber.session, slot, "nobody moves while the fallen are seen to");
        let Some(position) = subscriber.cursor() else { return false };
        let Some(session) = cx.sessions.get_mut(slot) else { return false };
        let rest_end =
            session.half_sent.filter(|&half| half == id).and(lane.log.end_of_frame(position));
        // What is missed begins behind the frame that is half sent: it is always completed.
        let from = rest_end.unwrap_or(position);
        if from >= lane.log.end() {
            return false;
        }
        // Where only notices are, it is the offset that comes next.
        let missed = lane.first_missed(from);
        session.half_sent = session.half_sent.filter(|&half| half != id);
        let tells = lane.window.policy == LagPolicy::Gap && session.dialect.tells_gaps();
        if let Some(subscriber) = lane.subscriber_mut(list, index) {
            subscriber.sent = GAPPED;
        }
        lane.gaps.insert(slot, missed);
        cx.sessions.hot_mut(slot).flags |= GAPS;
        let session = cx.sessions.id(slot);
        let kept = self.keep_rest(cx, id, slot, position);
        if kept && !tells {
            let LaneState { name, epoch, .. } = cx.feeds.lane(id);
            let reason = format!(
                "lagged: {name} from offset {missed}, epoch {epoch}; resume from your last offset"
            );
            cx.counters.lag_disconnects.add(1);
            self.verdicts.push((session, Finding::Lagged(reason)));
        }
        true
    }
}

impl Fanout {
    /// Puts the rest of a frame that is half sent into a session's outbox. `false` where it cannot be
    /// kept: then nothing more may be sent, and the session is cut.
    pub(in crate::shard) fn keep_rest<W>(
        &mut self,
        cx: &mut Context<W>,
        id: LaneId,
        slot: SessionSlot,
        position: LogPosition,
    ) -> bool {
        let log = &cx.feeds.lane(id).log;
        let rest = log.end_of_frame(position).and_then(|end| log.slice(position, end));
        let Some(rest) = rest else { return true };
        if rest.len() <= COPIED_REST_BYTES {
            cx.sessions.push_rest(slot, bytes::Bytes::copy_from_slice(&rest), false);
            cx.counters.deliveries.add(1);
        } else if cx.feeds.retained_bytes() + rest.len() <= cx.limits.retained_bytes_max {
            cx.sessions.push_rest(slot, rest, true);
            cx.counters.deliveries.add(1);
        } else {
            cx.sessions.hot_mut(slot).flags |= BLOCKED;
            if let Some(session) = cx.sessions.get_mut(slot) {
                session.cut = true;
            }
            self.verdicts.push((cx.sessions.id(slot), Finding::Cut));
            return false;
        }
        true
    }
}

/// Where a lane's subscribers stand, and who of them is out of the window and not waited for: where
/// there is patience, readers who read are waited for within `burst` bytes more.
fn stand<W>(cx: &Context<W>, lane: &LaneState, burst: Option<usize>) -> (Standing, Vec<Fallen>) {
    let end = lane.log.end();
    let mut standing = Standing { ours: end, reading: end, within: end };
    // One chunk comes whole, however large it is.
    let window = lane.log.bytes_in(lane.window.bytes);
    let most = burst.map(|burst| window + burst + lane.log.newest_bytes());
    let mut fallen = Vec::new();
    for (list, index, subscriber) in numbered(lane) {
        let Some(position) = subscriber.cursor() else { continue };
        if position >= end {
            continue;
        }
        let lag = end - position;
        let slot = subscriber.session;
        let flags = cx.sessions.hot(slot).flags;
        if flags & (BLOCKED | CLOSING) == 0 {
            standing.ours = standing.ours.min(position);
            continue;
        }
        // Few are that far behind: a look at the session itself is for them.
        let reads = lag > window / 2
            && most.is_some_and(|most| lag <= most)
            && cx.sessions.is_reading(slot, cx.now_ms);
        if reads {
            standing.reading = standing.reading.min(position);
        } else if lag <= window {
            standing.within = standing.within.min(position);
        } else {
            fallen.push((list, index, slot));
        }
    }
    (standing, fallen)
}

/// Readers that cannot be sent to and for whom something has waited too long that has not begun. Where
/// there is patience, those who read are not among them; and whether there are any.
fn too_old<W>(cx: &Context<W>, lane: &LaneState, patience: bool) -> (Vec<Fallen>, bool) {
    let (end, age_ms) = (lane.log.end(), lane.window.age_ms);
    let is_old = |position: LogPosition| {
        let begins = lane.log.end_of_frame(position).unwrap_or(position);
        let appended_ms = lane.log.appended_at(begins);
        appended_ms.is_some_and(|at_ms| cx.now_ms.saturating_sub(at_ms) > age_ms)
    };
    let (mut fallen, mut waited) = (Vec::new(), false);
    for (list, index, subscriber) in numbered(lane) {
        let slot = subscriber.session;
        let behind = subscriber.cursor().filter(|&at| at < end);
        if !cx.sessions.has(slot, BLOCKED) || !behind.is_some_and(is_old) {
            continue;
        }
        if patience && cx.sessions.is_reading(slot, cx.now_ms) {
            waited = true;
        } else {
            fallen.push((list, index, slot));
        }
    }
    (fallen, waited)
}

fn numbered(
    lane: &LaneState,
) -> impl Iterator<Item = (List, u32, &crate::shard::feed::Subscriber)> {
    let walked = (0u32..).zip(&lane.walked).map(|(index, s)| (List::Walked, index, s));
    walked.chain((0u32..).zip(&lane.served).map(|(index, s)| (List::Served, index, s)))
}
