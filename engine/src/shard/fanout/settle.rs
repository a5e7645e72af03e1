//! What became of the sends of a turn.

use ringfeed_wire::{ShortSend, Wire};

use super::stage::Source;
use super::{Context, Fanout, Finding, PLACE_BITS, STAGED_TAG, STUCK_MS};
use crate::ids::{LaneId, LogPosition, SessionSlot};
use crate::shard::session::{BLOCKED, NOT_STAGED, OUTBOX, WOKEN};

impl Fanout {
    /// Hands everything staged to the kernel.
    pub(super) fn submit<W: Wire>(&mut self, cx: &mut Context<W>) -> std::io::Result<()> {
        let stamp = u32::from(self.stamp) << PLACE_BITS;
        for (place, staged) in (0u32..).zip(&self.staged[..self.staged_used]) {
            if let Some(socket) = staged.socket {
                cx.wire.send_vectored(socket, STAGED_TAG | stamp | place, &staged.runs);
            }
        }
        cx.wire.submit(&mut self.short)
    }

    /// Books what was not taken whole.
    pub(super) fn settle<W: Wire>(&mut self, cx: &mut Context<W>) {
        for send in std::mem::take(&mut self.short) {
            let stamp = (send.tag & !STAGED_TAG) >> PLACE_BITS;
            assert_eq!(stamp, u32::from(self.stamp), "sends are settled in their own turn");
            let place = (send.tag & ((1 << PLACE_BITS) - 1)) as usize;
            if send.tag & STAGED_TAG == 0 {
                self.settle_direct(cx, place, send);
            } else {
                self.staged[place].short = Some((send.sent, send.broken));
            }
        }
        self.stamp = self.stamp.wrapping_add(1);
        self.direct.clear();
        for place in 0..std::mem::take(&mut self.staged_used) {
            self.settle_staged(cx, place);
        }
        // Nothing of it is referenced any more.
        self.joined.reset();
    }

    /// A direct send that was not taken whole.
    fn settle_direct<W: Wire>(&mut self, cx: &mut Context<W>, place: usize, send: ShortSend) {
        let super::Direct { lane, index, session, from, to } = self.direct[place];
        let position = from + send.sent as usize;
        let state = cx.feeds.lane_mut(lane);
        let subscriber = state.walked.get(index as usize);
        assert!(subscriber.is_some_and(|s| s.session == session), "nobody moves during a flush");
        self.take_back(cx, session, &[(lane, position, to)]);
        if send.sent > 0
            && let Some(session) = cx.sessions.get_mut(session)
        {
            session.half_sent = Some(lane);
        }
        self.block(cx, session, send.sent, send.broken);
    }

    /// Takes back deliveries that were not made: each of a lane, from one position to another.
    fn take_back<W>(
        &mut self,
        cx: &mut Context<W>,
        slot: SessionSlot,
        unsent: &[(LaneId, LogPosition, LogPosition)],
    ) {
        // From the newest to the oldest, so that the oldest of each lane counts.
        for &(lane, from, to) in unsent.iter().rev() {
            let log = &cx.feeds.lane(lane).log;
            let undone = log.next_offset(to).since(log.next_offset(from));
            cx.counters.deliveries.add(undone.wrapping_neg());
            self.put_back(cx, slot, lane, from);
        }
    }

    /// Books what the kernel took of a vectored send.
    fn settle_staged<W: Wire>(&mut self, cx: &mut Context<W>, place: usize) {
        let slot = self.staged[place].session;
        let short = self.staged[place].short;
        cx.sessions.hot_mut(slot).staged = NOT_STAGED;
        let mut taken = short.map_or(self.staged[place].bytes, |(sent, _)| sent as usize);
        let (mut outbox_taken, mut unsent) = (0, Vec::new());
        for &(source, len) in &self.staged[place].parts {
            let sent = taken.min(len);
            taken -= sent;
            match source {
                Source::Outbox => outbox_taken += sent,
                Source::Lane(lane, from) => {
                    let Some(session) = cx.sessions.get_mut(slot) else { continue };
                    if sent == len {
                        session.half_sent = session.half_sent.filter(|&half| half != lane);
                        continue;
                    }
                    if sent > 0 {
                        session.half_sent = Some(lane);
                    }
                    unsent.push((lane, from + sent, from + len));
                }
            }
        }
        if outbox_taken > 0 {
            cx.sessions.with_outbox(slot, |outbox| outbox.sent(outbox_taken));
            self.verdicts.push((cx.sessions.id(slot), Finding::Read));
        }
        match short {
            None => cx.sessions.hot_mut(slot).flags &= !WOKEN,
            Some((sent, broken)) => {
                self.give_cursors(cx, slot);
                self.take_back(cx, slot, &unsent);
                self.block(cx, slot, sent, broken);
            }
        }
        self.staged[place].clear();
    }

    /// The socket took so many bytes and takes nothing more for now, or is broken.
    fn block<W: Wire>(&mut self, cx: &mut Context<W>, slot: SessionSlot, sent: u32, broken: bool) {
        let id = cx.sessions.id(slot);
        let hot = cx.sessions.hot_mut(slot);
        let in_vain = hot.flags & WOKEN != 0 && sent == 0;
        let socket = hot.socket;
        hot.flags = (hot.flags | BLOCKED) & !WOKEN;
        if hot.flags & OUTBOX != 0 {
            self.verdicts.push((id, Finding::Stalled));
        }
        if !in_vain && let Some(session) = cx.sessions.get_mut(slot) {
            // It has taken something now, or everything up to now.
            session.progress_ms = cx.now_ms;
        }
        if broken {
            self.verdicts.push((id, Finding::Broken));
        } else if in_vain {
            // Short of memory for TCP the kernel calls sockets writable and takes nothing: asking
            // again at once would go on for ever.
            if self.stuck.is_empty() {
                self.stuck_due_ms = cx.now_ms + STUCK_MS;
            }
            self.stuck.push(id);
        } else {
            cx.wire.watch_writable(socket);
        }
    }
}
