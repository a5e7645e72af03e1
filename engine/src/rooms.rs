//! What was said last, on any node, of each room that is made over the API: what a node tells those that it meets, and Redis where
//! that does not know it.
//!
//! Homes decide about their rooms, and hold them; this holds nothing that they go by. Of two things said of a room the one with the
//! later version counts, on all nodes, in whatever order they hear of it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use ringfeed_protocol::ChannelName;

use crate::message::RoomWord;

/// All rooms of several nodes may take so many bytes, as they are written; beyond, none is made, and none grows.
pub(crate) const BYTES_MAX: usize = 16 << 20;
/// Those that nodes have made that could not hear one another are taken nevertheless, up to so many: what is told to a node that
/// is met has to fit into its link.
const BYTES_KEPT_MAX: usize = 2 * BYTES_MAX;
/// When there are too many rooms that have ended, this part of them is forgotten at once: to find the oldest takes a while.
const FORGOTTEN_PARTS: usize = 8;

/// See the module's description. One thread writes.
#[derive(Debug)]
pub struct RoomTable {
    all: DashMap<ChannelName, Known>,
    most: AtomicUsize,
    /// Rooms that are there, and the bytes of these.
    count: AtomicUsize,
    bytes: AtomicUsize,
    /// Of the rooms that have ended and were forgotten, when the last one has, in milliseconds since 1970.
    forgotten_ms: AtomicU64,
}

#[derive(Debug)]
struct Known {
    word: RoomWord,
    /// Of the times that Redis was looked into, the last at which it had this; 0 for none.
    kept: u64,
}

/// What becomes of something that was said of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is what counts from now on.
    News,
    /// It was known, or something later is.
    Known,
    /// There is no room for it.
    NoRoom,
}

impl RoomTable {
    /// For so many rooms, and as many that have ended.
    pub fn new(most: u32) -> RoomTable {
        RoomTable {
            all: DashMap::new(),
            most: AtomicUsize::new(most as usize),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            forgotten_ms: AtomicU64::new(0),
        }
    }

    /// There may be so many from now on.
    pub(crate) fn set_most(&self, most: u32) {
        self.most.store(most as usize, Ordering::Relaxed);
    }

    /// What the rooms that are there take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A home here has said this. There is room for what homes take.
    pub fn say(&self, word: &RoomWord) -> Heard {
        self.put(word, true)
    }

    /// Another node has.
    pub fn hear(&self, word: &RoomWord) -> Heard {
        self.put(word, false)
    }

    /// Redis keeps this, as is seen when it is looked into for the `look`th time.
    pub(crate) fn hear_kept(&self, word: &RoomWord, look: u64) -> Heard {
        let heard = self.hear(word);
        if let Some(mut known) = self.all.get_mut(&word.channel)
            && known.word.version == word.version
        {
            known.kept = look;
        }
        heard
    }

    fn put(&self, word: &RoomWord, is_own: bool) -> Heard {
        let before = self.all.get(&word.channel).map(|known| {
            let is_there = known.word.state.made().is_some();
            (known.word.version, is_there, known.word.bytes())
        });
        if before.is_some_and(|(version, ..)| version >= word.version) {
            return Heard::Known;
        }
        let is_there = word.state.made().is_some();
        // What was forgotten would be news again and again, as long as any node remembers it.
        let forgotten_ms = self.forgotten_ms.load(Ordering::Relaxed);
        if before.is_none() && !is_there && !is_own && word.version.at_ms <= forgotten_ms {
            return Heard::Known;
        }
        let (was_there, freed) = before.map_or((false, 0), |(_, is_there, bytes)| {
            (is_there, if is_there { bytes } else { 0 })
        });
        let added = if is_there { word.bytes() } else { 0 };
        let (count, bytes) = (self.count.load(Ordering::Relaxed), self.bytes());
        let most = self.most.load(Ordering::Relaxed);
        let is_full = !was_there && count >= most || bytes - freed + added > BYTES_KEPT_MAX;
        if is_there && !is_own && is_full {
            return Heard::NoRoom;
        }
        self.count.store(count + usize::from(is_there) - usize::from(was_there), Ordering::Relaxed);
        self.bytes.store(bytes - freed + added, Ordering::Relaxed);
        let known = Known { word: word.clone(), kept: 0 };
        self.all.insert(word.channel.clone(), known);
        if !is_there {
            self.forget_ended(most);
        }
        Heard::News
    }

    /// Forgets rooms that have ended, where there are too many.
    fn forget_ended(&self, most: usize) {
        if self.all.len() - self.count.load(Ordering::Relaxed) <= most {
            return;
        }
        let ended = self.all.iter().filter(|own| own.word.state.made().is_none());
        let mut ended: Vec<_> = ended.map(|own| (own.word.version, own.key().clone())).collect();
        ended.sort_unstable();
        let keep = most - most / FORGOTTEN_PARTS;
        let over = ended.len().saturating_sub(keep);
        for (version, channel) in ended.into_iter().take(over) {
            self.forgotten_ms.fetch_max(version.at_ms, Ordering::Relaxed);
            self.all.remove(&channel);
        }
    }

    /// What counts of all rooms that are there, and of those that have ended last.
    pub fn all(&self) -> Vec<RoomWord> {
        self.not_kept(u64::MAX)
    }

    /// What Redis had not when it was looked into for the `look`th time.
    pub(crate) fn not_kept(&self, look: u64) -> Vec<RoomWord> {
        let missing = self.all.iter().filter(|own| own.kept < look);
        let mut missing: Vec<RoomWord> = missing.map(|own| own.word.clone()).collect();
        // In an order that a simulation repeats.
        missing.sort_unstable_by(|a, b| a.channel.cmp(&b.channel));
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::message::room_samples::made_room;
    use crate::message::{RoomState, RoomVersion};

    fn word(channel: &str, at_ms: u64, tie: u64, state: RoomState) -> RoomWord {
        let channel = ChannelName::new(channel).unwrap();
        RoomWord { channel, version: RoomVersion { at_ms, tie }, state }
    }

    fn made(channel: &str, at_ms: u64, users: usize) -> RoomWord {
        word(channel, at_ms, 1, RoomState::Made(made_room(users)))
    }

    #[test]
    fn nodes_that_remember_other_ends_and_pass_on_what_is_news_come_to_rest() {
        let tables = [RoomTable::new(80), RoomTable::new(80), RoomTable::new(80)];
        let ended = |number: u64| word(&format!("r.{number}"), 1000 + number, 1, RoomState::Ended);
        for (table, from) in tables.iter().zip([0, 40, 70]) {
            (from..from + 80).for_each(|number| assert_eq!(table.say(&ended(number)), Heard::News));
        }
        // Each tells the others all as they meet, and then what is news to it.
        let mut told: VecDeque<(usize, RoomWord)> = VecDeque::new();
        let tell = |told: &mut VecDeque<_>, from: usize, word: &RoomWord| {
            told.extend((0..3).filter(|to| *to != from).map(|to| (to, word.clone())));
        };
        for (from, table) in tables.iter().enumerate() {
            table.all().iter().for_each(|word| tell(&mut told, from, word));
        }
        for _ in 0..10_000 {
            let Some((at, word)) = told.pop_front() else { return };
            if tables[at].hear(&word) == Heard::News {
                tell(&mut told, at, &word);
            }
        }
        panic!("{} words are still on their way", told.len());
    }

    #[test]
    fn the_later_version_counts_in_whatever_order_it_comes() {
        let now = 1_700_000_000_000;
        let ended = |at_ms, tie| word("a", at_ms, tie, RoomState::Ended);
        let all = [
            made("a", now, 0),
            ended(now, 0),
            ended(now + 1, 3),
            made("a", now + 2, 0),
            ended(now + 2, 0),
            ended(now + 2, 2),
        ];
        for turn in 0..all.len() {
            let table = RoomTable::new(1);
            for word in all.iter().cycle().skip(turn).take(all.len()) {
                table.hear(word);
            }
            assert_eq!(table.all(), [ended(now + 2, 2)]);
            assert_eq!(table.bytes(), 0);
        }
    }

    #[test]
    fn the_table_is_bounded_by_rooms_and_bytes_and_forgets_the_oldest_ends() {
        let now = 1_700_000_000_000;
        let table = RoomTable::new(2);
        assert_eq!(table.hear(&made("a", now, 0)), Heard::News);
        assert_eq!(table.hear(&made("b", now, 0)), Heard::News);
        assert_eq!(table.hear(&made("c", now, 0)), Heard::NoRoom);
        assert_eq!(table.hear(&made("b", now + 1, 0)), Heard::News);
        assert_eq!(table.hear(&made("b", now + 1, 0)), Heard::Known);
        assert_eq!(table.say(&made("c", now, 0)), Heard::News, "a home has taken it");
        for (number, channel) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let end = word(channel, now + 10 + number as u64, 0, RoomState::Ended);
            assert_eq!(table.hear(&end), Heard::News);
        }
        let known: Vec<_> = table.all().iter().map(|own| own.channel.to_string()).collect();
        assert_eq!((known, table.bytes()), (vec!["c".to_owned(), "d".to_owned()], 0));
        table.set_most(10_000);
        let mut number = 0;
        let refused = loop {
            number += 1;
            let heard = table.hear(&made(&format!("large.{number}"), now, 1000));
            if heard != Heard::News {
                break heard;
            }
        };
        assert_eq!(refused, Heard::NoRoom);
        assert!((BYTES_KEPT_MAX / 2..=BYTES_KEPT_MAX).contains(&table.bytes()), "{number}");
    }

    #[test]
    fn what_redis_does_not_keep_is_known() {
        let now = 1_700_000_000_000;
        let table = RoomTable::new(10);
        let (here, there) = (made("a", now + 5, 0), made("b", now, 0));
        table.say(&here);
        // It keeps an earlier word of one, and another room.
        assert_eq!(table.hear_kept(&made("a", now, 0), 1), Heard::Known);
        assert_eq!(table.hear_kept(&there, 1), Heard::News);
        assert_eq!(table.not_kept(1), std::slice::from_ref(&here));
        assert_eq!(table.hear_kept(&here, 1), Heard::Known);
        assert_eq!(table.not_kept(1), []);
        assert_eq!(table.not_kept(2), [here, there], "it may have lost them since");
    }
}
