//! Serving sessions with one subscription, lane by lane.

use ringfeed_wire::Wire;

use super::{
    BYTES_PER_COST, COST_OF_SEND, Context, Direct, Fanout, PLACE_BITS, SEND_BYTES_MAX, list_once,
};
use crate::ids::LaneId;
use crate::shard::session::{BLOCKED, CLOSING, OUTBOX, QUEUED};

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    /// Everybody who can be sent to has everything.
    Done,
    /// Another walk is needed.
    Again,
    /// It goes on from where it is in the next turn.
    OutOfBudget,
}

impl Fanout {
    /// Sends a lane's newest bytes to its subscribers, from where the last walk stopped.
    pub(super) fn walk<W: Wire>(
        &mut self,
        cx: &mut Context<W>,
        id: LaneId,
        left: &mut usize,
    ) -> Walk {
        let Context { wire, feeds, sessions, counters, now, .. } = cx;
        let Some(lane) = feeds.try_lane_mut(id).filter(|lane| lane.dirty) else {
            return Walk::Done;
        };
        let end = lane.log.end();
        if lane.walk == 0 {
            lane.again = false;
        }
        let (mut deliveries, mut lags) = (0, false);
        let mut index = lane.walk;
        let mut walk = Walk::Done;
        while let Some(subscriber) = lane.walked.get_mut(index as usize) {
            if subscriber.sent >= end {
                index += 1;
                continue;
            }
            let hot = sessions.hot(subscriber.session);
            // Who is in the queue is served as a whole: its outbox, or a half-sent frame, goes first.
            if hot.flags & (BLOCKED | QUEUED | CLOSING | OUTBOX) != 0 {
                lags = true;
                index += 1;
                continue;
            }
            if *left == 0 {
                walk = Walk::OutOfBudget;
                break;
            }
            let from = subscriber.sent;
            let session = subscriber.session;
            let run = lane.skips.run(&mut lane.log, session, from, SEND_BYTES_MAX);
            let Some(run) = run else { break };
            // Fewer than the turn's budget of them.
            let place = self.direct.len() as u32;
            let tag = u32::from(self.stamp) << PLACE_BITS | place;
            wire.send(hot.socket, tag, &run.bytes);
            self.direct.push(Direct { lane: id, index, session, from, to: run.to });
            *left = left.saturating_sub(COST_OF_SEND + run.bytes.len() / BYTES_PER_COST);
            (subscriber.sent, _) = lane.skips.ahead(session, run.to);
            deliveries += run.publications;
            lane.again |= subscriber.sent < end;
            index += 1;
        }
        counters.deliveries.add(deliveries);
        if lags {
            list_once(&mut lane.lagging, &mut self.lagging, id);
        }
        if walk == Walk::OutOfBudget {
            lane.walk = index;
            return walk;
        }
        if let Some(at) = lane.newest_at.filter(|_| deliveries > 0) {
            // No clock of this machine runs for half a million years.
            counters.delivery_us.record(now.saturating_duration_since(at).as_micros() as u64);
        }
        lane.walk = 0;
        lane.dirty = lane.again;
        list_once(&mut lane.touched, &mut self.touched, id);
        if lane.again { Walk::Again } else { Walk::Done }
    }
}
