//! `raw.v1` on connections with several channels: messages say of no channel that they are of it.
//!
//! A message belongs to a channel whose next one it is. Where that is so of several, because what
//! was published to them is equal, it is counted to the one to which it was published first. That
//! is a guess, and a later message may show that it was wrong: then the last ones are counted anew.
//! Any way to count them that keeps the order of each channel is as good as any other, because
//! nobody could tell them apart.

use super::{Fleet, Standing, stream_place};
use crate::expect::{Cursor, Found, payload_of};
use crate::plans::Speech;
use crate::report::shown;

/// How many messages of a connection can be counted anew.
const TAKEN_MAX: usize = 1024;
/// How many attempts it may take.
const ATTEMPTS_MAX: u32 = 20_000;

/// To which subscription a message was counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    place: u32,
    /// Whether there was another one.
    guessed: bool,
}

impl Fleet {
    /// Whether a message is the next one of a subscription; if so it is counted.
    pub(super) fn raw_is_due(
        &mut self,
        at: usize,
        frame: &[u8],
        payload: &[u8],
        now_ns: u64,
    ) -> bool {
        let fitting = |&(place, _): &(usize, u64)| {
            let mut cursor = self.conns[at].subscriptions[place].cursor;
            self.stream(at, place).is_some_and(|stream| stream.takes(&mut cursor, frame))
        };
        let mut fits = self.candidates(at, payload).filter(fitting);
        let Some(mut best) = fits.next() else {
            drop(fits);
            return self.raw_begins(at, frame, payload, now_ns)
                || self.raw_counts_anew(at, frame, now_ns);
        };
        let mut guessed = false;
        for other in fits {
            guessed = true;
            if other.1 < best.1 {
                best = other;
            }
        }
        let place = best.0;
        let taken = self.conns[at].extra.as_ref().map(|extra| !extra.taken.is_empty());
        if guessed || taken == Some(true) {
            let taken = &mut self.conns[at].extra().taken;
            if taken.len() >= TAKEN_MAX {
                taken.pop_front();
            }
            taken.push_back(Taken { place: place as u32, guessed });
        }
        self.takes(at, place, frame, now_ns)
    }

    /// Subscriptions of a connection that receive, and to whose channel a payload was published;
    /// and when the next message of each was due.
    fn candidates<'a>(
        &'a self,
        at: usize,
        payload: &[u8],
    ) -> impl Iterator<Item = (usize, u64)> + 'a {
        let channels = self.payloads.as_ref().map(|payloads| payloads.channels(payload));
        channels.into_iter().flatten().filter_map(move |channel| {
            let place = self.place_of(at, channel)?;
            let subscription = &self.conns[at].subscriptions[place];
            let stream = self.stream(at, place)?;
            let due = stream.intended_ns(subscription.cursor.next());
            subscription.receives().then_some((place, due))
        })
    }

    /// Whether a message is the first of a subscription: it shows from where on that stands.
    fn raw_begins(&mut self, at: usize, frame: &[u8], payload: &[u8], now_ns: u64) -> bool {
        let places: Vec<usize> = if self.conns[at].subscriptions.len() == 1 {
            vec![0]
        } else {
            let channels = self.payloads.as_ref().map(|payloads| payloads.channels(payload));
            let places = channels.into_iter().flatten().filter_map(|c| self.place_of(at, c));
            places.collect()
        };
        for place in places {
            let conn = &mut self.conns[at];
            let subscription = &mut conn.subscriptions[place];
            let channel = subscription.channel;
            let stream = &self.streams[stream_place(channel, Speech::Raw.lane())];
            let unknown = matches!(subscription.standing, Standing::Asked | Standing::Believed);
            let Some(stream) = stream.as_ref().filter(|_| unknown) else { continue };
            let mut cursor = Cursor::default();
            if matches!(stream.find(&mut cursor, frame), Found::Next | Found::Ahead(_)) {
                let number = cursor.next() - 1;
                subscription.cursor = stream.cursor_at(number);
                self.begins(at, place);
                self.conns[at].subscriptions[place].cursor = cursor;
                self.arrived(at, place, number, 1, now_ns);
                return true;
            }
        }
        false
    }

    /// Looks for another way to count the last messages and this one behind them.
    fn raw_counts_anew(&mut self, at: usize, frame: &[u8], now_ns: u64) -> bool {
        let conn = &self.conns[at];
        let Some(extra) = &conn.extra else { return false };
        let mut cursors: Vec<Cursor> = conn.subscriptions.iter().map(|s| s.cursor).collect();
        // The newest first.
        let mut frames = vec![frame];
        let mut attempts = ATTEMPTS_MAX;
        let mut found = None;
        for taken in extra.taken.iter().rev() {
            let place = taken.place as usize;
            let Some(stream) = self.stream(at, place) else { return false };
            let Some(before) = stream.back(cursors[place]) else { return false };
            let Some(last) = stream.frame(before.next()) else { return false };
            frames.push(last);
            cursors[place] = before;
            if taken.guessed {
                found = self.count_anew(at, &mut cursors.clone(), &frames, &mut attempts);
            }
            if found.is_some() || attempts == 0 {
                break;
            }
        }
        let Some(places) = found else { return false };
        let newest = places.last().copied().unwrap_or_default();
        let taken = &mut self.conns[at].extra().taken;
        taken.truncate(taken.len() + 1 - places.len());
        taken.extend(places.iter().map(|&place| Taken { place: place as u32, guessed: true }));
        self.move_cursors(at, &cursors, &places[..places.len() - 1]);
        self.takes(at, newest, frame, now_ns)
    }

    /// Puts cursors where they were before some messages, and then behind these.
    fn move_cursors(&mut self, at: usize, before: &[Cursor], places: &[usize]) {
        let mut next: Vec<u64> = before.iter().map(Cursor::next).collect();
        places.iter().for_each(|&place| next[place] += 1);
        for (place, next) in next.into_iter().enumerate() {
            let Some(stream) = self.stream(at, place) else { continue };
            let subscription = &self.conns[at].subscriptions[place];
            let old = subscription.cursor.next();
            if old == next || !subscription.receives() {
                continue;
            }
            let counted = |next: u64| next.max(stream.counted_from());
            let moved = counted(next).wrapping_sub(counted(old));
            let cursor = stream.cursor_at(next);
            self.settle(at, place, moved);
            self.conns[at].subscriptions[place].cursor = cursor;
        }
    }

    /// Subscriptions to count messages to, the newest of which stands first, so that each is the
    /// next one: depth first.
    fn count_anew(
        &self,
        at: usize,
        cursors: &mut [Cursor],
        frames: &[&[u8]],
        attempts: &mut u32,
    ) -> Option<Vec<usize>> {
        // What may still be tried for each message so far, and what is.
        let mut open: Vec<Vec<usize>> = Vec::new();
        let mut tried: Vec<(usize, Cursor)> = Vec::new();
        loop {
            if tried.len() == frames.len() {
                return Some(tried.into_iter().map(|(place, _)| place).collect());
            }
            let frame = frames[frames.len() - 1 - tried.len()];
            if open.len() == tried.len() {
                let payload = payload_of(frame).unwrap_or_default();
                open.push(self.candidates(at, payload).map(|(place, _)| place).collect());
            }
            *attempts = attempts.checked_sub(1)?;
            match open.last_mut()?.pop() {
                Some(place) => {
                    let before = cursors[place];
                    let stream = self.stream(at, place)?;
                    if stream.takes(&mut cursors[place], frame) {
                        tried.push((place, before));
                    }
                }
                None => {
                    open.pop();
                    let (place, before) = tried.pop()?;
                    cursors[place] = before;
                }
            }
        }
    }

    /// A message that is the next one of no subscription.
    pub(super) fn raw_misfit(&mut self, at: usize, frame: &[u8], payload: &[u8], now_ns: u64) {
        if self.conns[at].subscriptions.len() == 1 {
            if !self.raw_begins(at, frame, payload, now_ns) {
                self.misplaced(at, 0, frame, now_ns);
            }
            return;
        }
        let missing = |(place, _): (usize, u64)| {
            let mut cursor = self.conns[at].subscriptions[place].cursor;
            match self.stream(at, place)?.find(&mut cursor, frame) {
                Found::Next => Some((0, place)),
                Found::Ahead(missing) => Some((missing, place)),
                Found::Behind => Some((u64::MAX, place)),
                Found::Nowhere => None,
            }
        };
        // Where the fewest are missing.
        match self.candidates(at, payload).filter_map(missing).min() {
            Some((_, place)) => {
                if let Some(extra) = &mut self.conns[at].extra {
                    extra.taken.clear();
                }
                self.misplaced(at, place, frame, now_ns);
            }
            None => {
                self.changed(at);
                self.problem(|fleet| {
                    let number = fleet.number(at);
                    format!("connection {number}: this was never published: {}", shown(payload))
                });
            }
        }
    }
}
