//! What homes hold back, and how they go on with it.

use std::time::Instant;

use super::{Homes, PARKED_PARTS};
use crate::message::Request;
use crate::shard::home::{Deliver, Home, Parked, Parking};

impl Homes {
    /// Bytes of publications held back.
    #[cfg(test)]
    pub(super) fn parked_bytes(&self) -> usize {
        self.parked_bytes
    }

    /// Whether so much is held back that nothing more may be taken. What waits for somebody outside does not count:
    /// it has a bound of its own, and the shard goes on with everything else.
    pub(in crate::shard) fn is_full(&self) -> bool {
        let waits = self.parked_bytes - self.awaiting_bytes + self.incoming_bytes;
        waits > self.limits.parked_bytes_max
    }

    /// Whether anything is held back.
    pub(in crate::shard) fn has_parked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What one channel may have held back. Where all together have too much none may: requests are not
    /// taken then, and the word that nobody is behind any more would be among them. Nor while the server drains.
    pub(super) fn parked_max(&self) -> usize {
        let none = self.is_full() || self.drains;
        if none { 0 } else { self.limits.parked_bytes_max / PARKED_PARTS }
    }

    /// Whether something that was held back can go on in the next turn.
    pub(in crate::shard) fn has_work(&self) -> bool {
        let goes_through_all = self.resume_from.is_some() || self.redistribute_from.is_some();
        if self.some_are_due || goes_through_all || !self.miss_from.is_empty() {
            return true;
        }
        let most = self.parked_max();
        let mut waiting = self.waiting.iter().filter_map(|&index| self.homes.get(index));
        waiting.any(|home| !home.is_held(self.turn.wrapping_add(1), most))
    }

    pub(super) fn park(&mut self, index: u32, parked: Parked) {
        self.park_with(index, parked, Parking::push_back);
    }

    pub(super) fn park_with(&mut self, index: u32, parked: Parked, push: fn(&mut Parking, Parked)) {
        if !self.home_mut(index).waits() {
            self.waiting.push_back(index);
        }
        self.with_parking(index, |parking| push(parking, parked));
    }

    /// Lists a home where something waits now and nothing did before, and the other way round no more.
    pub(super) fn list_waiting(&mut self, index: u32, waited: bool) {
        match (waited, self.home_mut(index).waits()) {
            (false, true) => self.waiting.push_back(index),
            (true, false) => self.waiting.retain(|&waiting| waiting != index),
            _ => {}
        }
    }

    /// Changes what a home holds back, and keeps count of all of it.
    pub(super) fn with_parking<T>(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Parking) -> T,
    ) -> T {
        let home = self.homes.get_mut(index).expect("an indexed home is there");
        let (bytes, awaiting) = (home.parked_bytes(), home.awaiting_bytes());
        let parked = home.parked.get_or_insert_default();
        let changed = change(parked);
        if parked.is_empty() {
            home.parked = None;
        }
        self.parked_bytes = self.parked_bytes - bytes + home.parked_bytes();
        self.awaiting_bytes = self.awaiting_bytes - awaiting + home.awaiting_bytes();
        changed
    }

    /// Holds a request of a session back where a publication of that session is: answers are in the
    /// order of commands. Gives it back where none is.
    pub(in crate::shard) fn park_behind_own(&mut self, request: Request) -> Option<Request> {
        let held = request.session().zip(request.channel()).and_then(|((shard, session), name)| {
            let index = *self.by_name.get(name)?;
            let parked = self.homes.get(index)?.parked.as_ref()?;
            parked.has_of(shard, session).then_some(index)
        });
        let Some(index) = held else { return Some(request) };
        self.park(index, Parked::Request(request));
        None
    }

    /// Whether a publication to this channel has to wait.
    pub(super) fn is_held(&self, index: u32) -> bool {
        let most = self.parked_max();
        let home = self.homes.get(index);
        home.is_some_and(|home| home.parked.is_some() || home.is_held(self.turn, most))
    }

    /// Begins a turn: goes on with what was held back, where it may, up to so many bytes. Returns how many
    /// were published, and the requests that are to be served now.
    pub(in crate::shard) fn begin_turn(
        &mut self,
        now: (Instant, u64),
        budget: &mut usize,
        deliver: Deliver,
    ) -> (u64, Vec<Request>) {
        self.turn = self.turn.wrapping_add(1);
        let (mut published, mut requests) = (0, Vec::new());
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            if self.homes.get(index).is_some_and(|home| home.following.is_some()) {
                let (appended, parked) = self.go_on_following(index, now, budget, deliver);
                published += appended;
                if let Some(Parked::Request(request)) = parked {
                    requests.push(request);
                }
            } else {
                published += self.go_on(index, now, budget, &mut requests, deliver);
            }
            if self.homes.get(index).is_some_and(Home::waits) {
                self.waiting.push_back(index);
            }
        }
        (published, requests)
    }

    /// Goes on with what was held back of one channel, where it may. Returns how many publications were published.
    pub(super) fn go_on(
        &mut self,
        index: u32,
        now: (Instant, u64),
        budget: &mut usize,
        requests: &mut Vec<Request>,
        deliver: Deliver,
    ) -> u64 {
        let mut published = 0;
        while *budget > 0
            && let Some(parked) = self.next_parked(index)
        {
            *budget = budget.saturating_sub(parked.bytes());
            match parked {
                Parked::Publication(payload, mut publisher) => {
                    // Behind what its session has asked before: now it is known whether it is a member.
                    if let Err(refused) = self.may_speak_now(index, &mut publisher) {
                        publisher.asker.refuse(&self.home_mut(index).name, refused, deliver);
                        continue;
                    }
                    let appended = self.append(index, &payload.borrowed(), publisher, now, deliver);
                    published += u64::from(appended);
                }
                Parked::Refused(refused, asker) => {
                    asker.refuse(&self.home_mut(index).name, refused, deliver);
                }
                // The channel was numbered elsewhere.
                Parked::Stored(stored, asker, wanted) => {
                    self.answer_stored(index, (stored, asker, wanted), now.1, deliver);
                }
                // Not before it is answered; and only where channels are numbered elsewhere.
                Parked::Asked(..) | Parked::Sent(..) => {
                    unreachable!("what awaits an answer is not next")
                }
                Parked::Request(request) => {
                    requests.push(request);
                    // What is behind it goes on in the next turn, when it is served.
                    break;
                }
            }
        }
        published
    }

    /// Holds a request back again, before everything else: it takes more than one turn.
    pub(in crate::shard) fn park_again(&mut self, request: Request) {
        let index = request.channel().and_then(|name| self.by_name.get(name).copied());
        let Some(index) = index else { return };
        self.park_with(index, Parked::Request(request), Parking::push_front);
    }

    pub(super) fn next_parked(&mut self, index: u32) -> Option<Parked> {
        let (turn, most) = (self.turn, self.parked_max());
        let home = self.homes.get_mut(index)?;
        if home.is_held(turn, most) {
            return None;
        }
        home.parked.as_ref()?;
        self.with_parking(index, Parking::pop_front)
    }
}
