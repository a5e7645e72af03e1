//! Publications with idempotency keys: one that was published before is not published again.

use ringfeed_protocol::{Offset, Position, Refused};

use super::Homes;
use crate::message::{Ack, By, Keyed, Receipt};
use crate::shard::home::idempotency::Hash;
use crate::shard::home::{Asker, Deliver};

/// Keys that one sweep forgets at most.
const FORGOTTEN_PER_SWEEP: usize = 4096;

/// Of a publication with a key, at its turn.
#[derive(Debug)]
enum Key {
    /// It has none.
    None,
    /// It was not used yet.
    New(Hash),
    /// It was used for what stands here.
    Used(Position),
}

impl Homes {
    /// Before a publication is appended: answers whoever publishes what may not be, or was before; else gives them back, with
    /// the key that is to be remembered.
    pub(super) fn take_key(
        &mut self,
        index: u32,
        asker: Asker,
        by: &By,
        now_ms: u64,
        deliver: Deliver,
    ) -> Option<(Asker, Option<Hash>)> {
        let keyed = by.as_ref().and_then(|by| by.key.as_deref());
        let key = keyed.map_or(Ok(Key::None), |keyed| self.look_up(index, keyed, now_ms));
        let key = key.and_then(|key| match key {
            Key::Used(_) => Ok(key),
            key => self.may_be_confirmed(index, by).map(|()| key),
        });
        let answer = match key {
            Ok(Key::None) => return Some((asker, None)),
            Ok(Key::New(hash)) => return Some((asker, Some(hash))),
            Ok(Key::Used(position)) => {
                let subscribers = self.home_mut(index).subscribers();
                let ack = Ack::Accepted;
                Ok(Receipt { position: Some(position), ack, subscribers, duplicate: true })
            }
            Err(refused) => Err(refused),
        };
        asker.answer(&self.home_mut(index).name, answer, deliver);
        None
    }

    /// For how long keys are remembered. An error where they are not: taken without a word something would be published twice
    /// where that was to be ruled out.
    pub(super) fn key_age_ms(&self) -> Result<u64, Refused> {
        match self.config.limits.idempotency_ms {
            0 => Err(Refused::bad_command(
                "'idempotency_key': this server remembers none (limits.idempotency_ms is 0)",
            )),
            age_ms => Ok(age_ms.into()),
        }
    }

    fn look_up(&mut self, index: u32, keyed: &Keyed, now_ms: u64) -> Result<Key, Refused> {
        let age_ms = self.key_age_ms()?;
        let epoch = self.home_mut(index).epoch;
        let hash = self.keys.hash(epoch, keyed);
        Ok(match self.keys.find(hash, now_ms, age_ms) {
            Some(known) => {
                self.duplicates += 1;
                Key::Used(Position { epoch, offset: known.offset })
            }
            None => Key::New(hash),
        })
    }

    /// A publication with a key was appended.
    pub(super) fn remember_key(&mut self, index: u32, hash: Hash, offset: Offset, now_ms: u64) {
        let age = (now_ms, u64::from(self.config.limits.idempotency_ms));
        let is_new = self.keys.remember(hash, index, offset, now_ms);
        let home = self.homes.get_mut(index).expect("an indexed home is there");
        home.keys += u32::from(is_new);
        let homes = &mut self.homes;
        self.keys.make_room(age, |index| {
            homes.get_mut(index).expect("a key has a home").keys -= 1;
        });
    }

    /// Forgets keys whose time is over.
    pub(super) fn forget_keys(&mut self, now_ms: u64) {
        let age = (now_ms, u64::from(self.config.limits.idempotency_ms));
        let homes = &mut self.homes;
        self.keys.forget(age, FORGOTTEN_PER_SWEEP, |index| {
            homes.get_mut(index).expect("a key has a home").keys -= 1;
        });
    }

    /// How many keys are remembered, how many were forgotten before their time, and how many publications were known
    /// again by theirs.
    pub(in crate::shard) fn key_counts(&self) -> (u64, u64, u64) {
        (self.keys.len() as u64, self.keys.forgotten(), self.duplicates)
    }

    /// Panics if homes do not know how many keys they have.
    pub(super) fn check_keys(&self) {
        assert_eq!(self.keys.iter().count(), self.keys.len(), "keys are counted");
        let mut of_homes = std::collections::HashMap::new();
        for known in self.keys.iter() {
            *of_homes.entry(known.index).or_default() += 1;
        }
        let with_keys = self.homes.iter().filter(|(_, home)| home.keys > 0);
        let counted = with_keys.map(|(index, home)| (index, home.keys)).collect();
        assert_eq!(of_homes, counted, "each home knows how many keys it has");
    }
}
