//! Who is revoked, as the shards of this node were told, and until when each is kept.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use ringfeed_protocol::UserId;
use smol_str::SmolStr;

use crate::clock::Clock;
use crate::message::{Revocation, Revoked};

/// See the module's description.
#[derive(Debug)]
pub struct RevokedTable {
    all: DashMap<Whom, Word>,
    most: AtomicUsize,
    /// When it was looked who is over, in seconds since 1970.
    swept: AtomicU64,
}

/// One who is revoked. Of a user only the newest word counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whom {
    Token(SmolStr),
    User(UserId),
}

/// What there is to it.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Of a user: what was vouched for up to then, in seconds since 1970.
    before: u64,
    until: u64,
    /// Of the times that Redis was looked into, the last at which it had this; 0 for none.
    kept: u64,
    /// Whether all shards were told.
    told: bool,
}

/// Somebody is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// How many there are.
    pub count: usize,
    /// Whether shards are still to be told.
    pub is_news: bool,
    /// Whether what was added is all that is known.
    is_all: bool,
}

fn taken_apart(Revocation { whom, until }: &Revocation) -> (Whom, Word) {
    let (whom, before) = match whom {
        Revoked::Token(token) => (Whom::Token(token.clone()), 0),
        Revoked::User(user, before) => (Whom::User(user.clone()), *before),
    };
    (whom, Word { before, until: *until, kept: 0, told: false })
}

impl RevokedTable {
    /// With room for so many.
    pub fn new(most: u32) -> RevokedTable {
        RevokedTable {
            all: DashMap::new(),
            most: AtomicUsize::new(most as usize),
            swept: AtomicU64::new(0),
        }
    }

    /// There is room for so many from now on.
    pub(crate) fn set_most(&self, most: u32) {
        self.most.store(most as usize, Ordering::Relaxed);
    }

    /// Adds one, if there is room once those were forgotten that need not be known any more.
    pub fn add(&self, revocation: &Revocation) -> Option<Added> {
        let (whom, word) = taken_apart(revocation);
        let most = self.most.load(Ordering::Relaxed);
        if self.all.len() >= most && !self.all.contains_key(&whom) {
            let now = Clock::Machine.unix_s();
            // Looking through all of them takes a while.
            if self.swept.swap(now, Ordering::Relaxed) == now {
                return None;
            }
            self.all.retain(|_, own| own.until > now);
            if self.all.len() >= most {
                return None;
            }
        }
        let (is_news, is_all) = match self.all.entry(whom) {
            Entry::Vacant(place) => {
                place.insert(word);
                (true, true)
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.told &= word.before <= known.before && word.until <= known.until;
                let is_all = word.before >= known.before && word.until >= known.until;
                known.before = known.before.max(word.before);
                known.until = known.until.max(word.until);
                (!known.told, is_all)
            }
        };
        Some(Added { count: self.all.len(), is_news, is_all })
    }

    /// Shards were told of one that was added.
    pub fn mark_told(&self, revocation: &Revocation) {
        let (whom, word) = taken_apart(revocation);
        if let Some(mut known) = self.all.get_mut(&whom) {
            // Somebody else may have added more meanwhile, and tells that.
            known.told |= word.before >= known.before && word.until >= known.until;
        }
    }

    /// Adds what Redis keeps, as is seen when it is looked into for the `look`th time.
    pub(crate) fn add_kept(&self, revocation: &Revocation, look: u64) -> Option<Added> {
        let added = self.add(revocation)?;
        if added.is_all
            && let Some(mut known) = self.all.get_mut(&taken_apart(revocation).0)
        {
            known.kept = look;
        }
        Some(added)
    }

    /// All that are not over.
    pub fn all(&self) -> Vec<Revocation> {
        self.not_kept(u64::MAX)
    }

    /// Those that Redis had not when it was looked into for the `look`th time.
    pub(crate) fn not_kept(&self, look: u64) -> Vec<Revocation> {
        let now = Clock::Machine.unix_s();
        let missing = self.all.iter().filter(|own| own.kept < look && own.until > now);
        let missing = missing.map(|own| {
            let whom = match own.key() {
                Whom::Token(token) => Revoked::Token(token.clone()),
                Whom::User(user) => Revoked::User(user.clone(), own.before),
            };
            Revocation { whom, until: own.until }
        });
        let mut missing: Vec<Revocation> = missing.collect();
        // In an order that a simulation repeats.
        missing.sort_unstable_by(|a, b| a.whom.cmp(&b.whom));
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_bounded_and_forgets_what_is_over() {
        let table = RevokedTable::new(2);
        let add = |whom: Revoked, until: u64| {
            let added = table.add(&Revocation { whom, until });
            added.map(|Added { count, is_news, .. }| (count, is_news))
        };
        let token = |id: &str| Revoked::Token(id.into());
        assert_eq!(add(token("a"), 1), Some((1, true)));
        assert_eq!(add(token("b"), u64::MAX), Some((2, true)));
        assert_eq!(add(token("b"), 1), Some((2, true)), "no shard was told");
        table.mark_told(&Revocation { whom: token("b"), until: 1 });
        assert_eq!(add(token("b"), 1), Some((2, true)), "they were told something else");
        table.mark_told(&Revocation { whom: token("b"), until: u64::MAX });
        assert_eq!(add(token("b"), 1), Some((2, false)));
        let user = UserId::new("ann").unwrap();
        let known = add(Revoked::User(user.clone(), 5), u64::MAX);
        assert_eq!(
            known,
            Some((2, true)),
            "a was over, and b is kept as long as the longest word says"
        );
        assert_eq!(add(Revoked::User(user.clone(), 9), u64::MAX), Some((2, true)));
        table.mark_told(&Revocation { whom: Revoked::User(user.clone(), 9), until: u64::MAX });
        assert_eq!(add(Revoked::User(user.clone(), 7), 3), Some((2, false)));
        assert_eq!(add(Revoked::User(user, 10), 3), Some((2, true)));
        assert_eq!(add(token("c"), u64::MAX), None);
        table.set_most(3);
        assert_eq!(add(token("c"), u64::MAX), Some((3, true)));
    }

    #[test]
    fn what_redis_does_not_keep_is_known() {
        let table = RevokedTable::new(10);
        let user = |before: u64| Revoked::User(UserId::new("ann").unwrap(), before);
        let of = |whom: Revoked, until: u64| Revocation { whom, until };
        table.add(&of(user(5), u64::MAX)).unwrap();
        table.add(&of(Revoked::Token("over".into()), 1)).unwrap();
        let missing = [of(user(5), u64::MAX)];
        assert_eq!(table.not_kept(1), missing);
        table.mark_told(&missing[0]);
        // It keeps an earlier word about her, and somebody else.
        assert!(!table.add_kept(&of(user(4), u64::MAX), 1).unwrap().is_news);
        assert!(table.add_kept(&of(Revoked::Token("t".into()), u64::MAX), 1).unwrap().is_news);
        assert_eq!(table.not_kept(1), missing);
        table.add_kept(&of(user(5), u64::MAX), 1).unwrap();
        assert_eq!(table.not_kept(1), []);
        assert_eq!(table.not_kept(2).len(), 2, "it may have lost them since");
    }
}
