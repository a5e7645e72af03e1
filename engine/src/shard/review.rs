//! Looking at all sessions, over many turns, because what they may do may have changed: somebody was revoked, or
//! there are new settings; or because outboxes are full, and some do not read theirs.

use std::collections::HashMap;

use ringfeed_protocol::UserId;
use ringfeed_wire::Wire;
use smol_str::SmolStr;

use super::{STEP_TIME_MAX, Shard};
use crate::access::Identity;
use crate::access::token::ChannelToken;
use crate::ids::SessionSlot;
use crate::message::Revoked;

/// Places of the table looked at in one turn.
const PLACES_PER_TURN: u32 = 1024;
/// Places looked at between two looks at the time.
const PLACES_PER_LOOK: u32 = 64;

/// Who is let in no more, and until when that matters, in milliseconds of the shard's life: somebody may set the clock
/// on the wall. The control thread bounds how many there are.
#[derive(Debug, Default)]
pub(super) struct RevokedList {
    tokens: HashMap<SmolStr, u64>,
    /// Up to when, in seconds since 1970, what they were vouched for does not count, and until when that matters.
    users: HashMap<UserId, (u64, u64)>,
}

impl RevokedList {
    pub(super) fn add(&mut self, whom: Revoked, until_ms: u64) {
        match whom {
            Revoked::Token(token) => {
                let known = self.tokens.entry(token).or_default();
                *known = until_ms.max(*known);
            }
            Revoked::User(user, before) => {
                let (known_before, known_until) = self.users.entry(user).or_default();
                *known_before = before.max(*known_before);
                *known_until = until_ms.max(*known_until);
            }
        }
    }

    /// Whether somebody is let in no more.
    pub(super) fn has(&self, identity: &Identity) -> bool {
        self.counts_no_more(identity.user.as_ref(), identity.token.as_ref(), identity.issued_at)
    }

    /// Whether a user's token lets nobody into its channel any more.
    pub(super) fn has_token(&self, user: Option<&UserId>, token: &ChannelToken) -> bool {
        self.counts_no_more(user, token.id.as_ref(), token.issued_at)
    }

    fn counts_no_more(&self, user: Option<&UserId>, id: Option<&SmolStr>, issued_at: u64) -> bool {
        let by_token = || id.is_some_and(|id| self.tokens.contains_key(id));
        let by_user = || {
            let before = user.and_then(|user| self.users.get(user));
            before.is_some_and(|&(before, _)| issued_at <= before)
        };
        !self.tokens.is_empty() && by_token() || !self.users.is_empty() && by_user()
    }

    /// Forgets those of whom no token is good any more.
    pub(super) fn forget(&mut self, now_ms: u64) {
        self.tokens.retain(|_, until_ms| *until_ms > now_ms);
        self.users.retain(|_, (_, until_ms)| *until_ms > now_ms);
    }
}

/// How far a look at all sessions has come.
#[derive(Debug, Default)]
pub(super) struct Review {
    /// The next place; `None` while there is nothing to look for.
    next: Option<u32>,
    /// What subscriptions are allowed may have changed, too.
    of_subscriptions: bool,
}

impl Review {
    /// Begins, or begins again: what has changed meanwhile concerns those who were looked at already.
    pub(super) fn begin(&mut self, of_subscriptions: bool) {
        self.next = Some(0);
        self.of_subscriptions |= of_subscriptions;
    }

    /// Whether there are sessions to look at.
    pub(super) fn is_under_way(&self) -> bool {
        self.next.is_some()
    }
}

impl<W: Wire> Shard<W> {
    /// Looks at some sessions.
    pub(super) fn review_some(&mut self) {
        let Some(from) = self.review.next else { return };
        let end = from.saturating_add(PLACES_PER_TURN);
        for place in from..end {
            if place >= self.sessions.places() {
                self.review = Review::default();
                return;
            }
            if place % PLACES_PER_LOOK == PLACES_PER_LOOK - 1
                && self.clock.now() - self.now > STEP_TIME_MAX
            {
                self.review.next = Some(place);
                return;
            }
            let slot = SessionSlot(place);
            if self.sessions.get(slot).is_none() {
                continue;
            }
            if self.revoked.has(self.identity(slot)) {
                self.close_revoked(slot);
                continue;
            }
            if self.take_revoked_passes(slot) || self.review.of_subscriptions {
                self.review(slot);
            }
            if self.are_outboxes_full() {
                self.close_if_it_fills(slot);
            }
        }
        self.review.next = Some(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_vouched_for_afterwards_is_not_revoked() {
        let mut list = RevokedList::default();
        let user = UserId::new("ann").unwrap();
        let of = |issued_at: u64, token: Option<&str>| Identity {
            user: Some(user.clone()),
            token: token.map(SmolStr::new),
            issued_at,
            ..Identity::default()
        };
        assert!(!list.has(&of(100, Some("t"))));
        list.add(Revoked::User(user.clone(), 100), 200);
        // An older word does not take back a newer one.
        list.add(Revoked::User(user.clone(), 50), 150);
        list.add(Revoked::Token("t".into()), 300);
        assert!(list.has(&of(100, None)) && !list.has(&of(101, None)));
        assert!(list.has(&of(101, Some("t"))) && !list.has(&of(101, Some("u"))));
        list.forget(199);
        assert!(list.has(&of(100, None)));
        list.forget(200);
        assert!(!list.has(&of(100, None)) && list.has(&of(100, Some("t"))));
        list.forget(300);
        assert!(!list.has(&of(100, Some("t"))) && !list.has(&Identity::default()));
    }
}
