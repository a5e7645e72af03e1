//! Publications that the application is asked about: each keeps its place in its channel until it has answered.

use ringfeed_protocol::{ChannelName, Refused};

use super::{Homes, PARKED_PARTS, TOO_MUCH_ASKED};
use crate::ids::Ticket;
use crate::message::StoredPayload;
use crate::shard::home::{Asker, Deliver, Parked, Publisher};

impl Homes {
    /// Whether one more publication may be asked about before it is published. `Err` says why not.
    pub(in crate::shard) fn may_ask(
        &mut self,
        name: &ChannelName,
        asker: &Asker,
        now_ms: u64,
    ) -> Result<(), Refused> {
        if self.closed {
            return Err(Refused::Draining);
        }
        let index = self.open(name, now_ms)?;
        if self.parked_bytes > self.limits.parked_bytes_max / 2 {
            return Err(TOO_MUCH_ASKED);
        }
        if !self.has_room_behind_asked(index) {
            return Err(TOO_MUCH_ASKED);
        }
        self.take_rate(index, asker, now_ms)
    }

    /// Holds a publication back, at its place, until it is known whether it may be.
    pub(in crate::shard) fn park_asked(
        &mut self,
        name: &ChannelName,
        ticket: Ticket,
        payload: StoredPayload,
        publisher: Publisher,
    ) {
        let index = *self.by_name.get(name).expect("the channel was opened to ask");
        self.park(index, Parked::Asked(ticket, payload, publisher));
    }

    /// Goes on with a publication that was asked about.
    pub(in crate::shard) fn settle_asked(
        &mut self,
        name: &ChannelName,
        ticket: Ticket,
        publish: Result<Option<StoredPayload>, Refused>,
        deliver: Deliver,
    ) {
        let Some(&index) = self.by_name.get(name) else { return };
        if self.homes.get(index).is_none_or(|home| home.parked.is_none()) {
            return;
        }
        let refused = self.with_parking(index, |parked| parked.answered(ticket, publish));
        if !self.home_mut(index).waits() {
            self.waiting.retain(|&waiting| waiting != index);
        }
        if let Some((asker, refused)) = refused {
            asker.refuse(name, refused, deliver);
        }
    }

    /// What waits behind a question waits as long as somebody outside likes: it may take so much, and the shard goes
    /// on with everything else.
    pub(super) fn has_room_behind_asked(&self, index: u32) -> bool {
        let most = self.limits.parked_bytes_max;
        let parked = self.homes.get(index).and_then(|home| home.parked.as_ref());
        parked.is_none_or(|parked| {
            let full = parked.bytes() > most / PARKED_PARTS || self.parked_bytes > most / 2;
            !full || !parked.has_asked()
        })
    }
}
