//! What each connection may have, and since when: what the simulation itself has ordered, by the turns in which
//! shards have taken it.
//!
//! Times are turns of the connection's own shard: what is written in a turn was decided in it.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::net::ConnId;
use super::policy::{Op, Person, Policy, Verdict};
use super::token::LEEWAY_S;

/// A shard that has taken an order has done it so many turns later.
const GRACE_TURNS: u64 = 3;
/// So many turns of all shards later a user's home knows that a connection has ended.
const LEAVE_TURNS: u64 = 100;
/// Who is not read from for a moment has so much longer to say who it is.
const LATE_MS: u64 = 2500;
/// A tick, by which a shard may see later that something has expired.
const TICK_MS: u64 = 100;

/// What the door has found out about a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) person: Rc<Person>,
    /// Whether anybody has vouched for it.
    pub(crate) admitted: bool,
    pub(crate) token: Option<usize>,
    pub(crate) issued_s: u64,
    pub(crate) expires_s: Option<u64>,
    /// Channels to subscribe to at once.
    pub(crate) channels: Vec<usize>,
    pub(crate) must_authenticate: bool,
    pub(crate) refused: bool,
    /// The application was asked and has said all of it, but for whose token it is: that stays.
    pub(crate) asked: bool,
    /// It has a number outside before it is a session.
    pub(crate) number: Option<u64>,
}

/// The application's word that a connection may have a channel.
#[derive(Debug)]
struct Pass {
    turn: u64,
    expires_ms: Option<u64>,
    expired_turn: Option<u64>,
}

/// Stands for what is never to be believed.
pub(crate) const BAD: usize = usize::MAX;

/// Who a connection has said that it is.
#[derive(Debug)]
struct Shown {
    found: Found,
    /// Turn in which it was sent, and in which it was surely believed.
    turn: u64,
    sure: Option<u64>,
    /// It was not believed.
    out: bool,
    /// Since nobody may tell when it was looked at: whether it was good, or bad, at any time.
    was_good: bool,
    was_bad: bool,
    /// Bounds of when it expires.
    expires_ms: Option<(u64, u64)>,
    expired_turn: Option<u64>,
}

impl Shown {
    fn new(found: Found, turn: u64) -> Shown {
        Shown {
            found,
            turn,
            sure: None,
            out: false,
            was_good: false,
            was_bad: false,
            expires_ms: None,
            expired_turn: None,
        }
    }

    /// It may be looked at now. What was said of its connection ends at `end_ms`.
    fn look(
        &mut self,
        (now_ms, unix_ms): (u64, u64),
        at: impl Fn(u64) -> u64,
        end_ms: Option<u64>,
    ) {
        let Some(expires_s) = self.found.expires_s else { return };
        let now_s = unix_ms / 1000;
        let at_ms = end_ms.map_or(at(expires_s), |end_ms| end_ms.min(at(expires_s)));
        let good = now_s < expires_s && self.found.issued_s <= now_s + LEEWAY_S && now_ms < at_ms;
        self.was_good |= good;
        self.was_bad |= !good;
        let (first, last) = self.expires_ms.unwrap_or((at_ms, at_ms));
        self.expires_ms = Some((first.min(at_ms), last.max(at_ms)));
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Ledger {
    shard: usize,
    /// What the door has found out.
    pub(crate) found: Found,
    /// Turn and time in which its shard has taken it.
    adopted: Option<(u64, u64)>,
    /// First what the door has found out, then what was shown in band, where it may be believed.
    shown: Vec<Shown>,
    /// Something was shown that may be refused.
    doubtful: bool,
    passes: BTreeMap<usize, Vec<Pass>>,
    /// Most connections of its user that there were beside it, with it.
    peers_max: usize,
    /// Turns of the shards when it was over on both sides.
    over: Option<Vec<u64>>,
}

/// Something that every shard takes at its own moment.
#[derive(Debug)]
struct Told {
    /// Turns of the shards when it was sent.
    sent: Vec<u64>,
    taken: Vec<Option<u64>>,
}

/// Who is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revoked {
    Token(usize),
    /// As vouched for up to this second.
    User(usize, u64),
}

/// When and where something was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) turn: u64,
    pub(crate) ms: u64,
}

/// What somebody is told who is believed, as far as the dialect tells it.
pub(crate) struct Believed<'a> {
    pub(crate) user: Option<Option<&'a str>>,
    pub(crate) expires_in_ms: Option<Option<u64>>,
}

/// A pass that its shard has not taken yet.
#[derive(Debug)]
struct Given {
    conn: ConnId,
    channel: usize,
    expires_s: Option<u64>,
}

/// All connections.
pub(crate) struct Ledgers {
    policies: Vec<Policy>,
    pub(crate) conns: Vec<Ledger>,
    /// Not taken by their shards yet.
    offered: Vec<ConnId>,
    /// Turns of each shard so far.
    pub(crate) turns: Vec<u64>,
    given: Vec<Vec<Given>>,
    /// Policies in the order in which they were set; the first holds from the beginning.
    set: Vec<(usize, Told)>,
    revoked: Vec<(Revoked, Told)>,
    /// What was shown in band and is not surely believed or refused yet.
    unsure: Vec<(ConnId, usize)>,
    pub(crate) most_per_user: usize,
    pub(crate) authentication_ms: u64,
}

impl Ledgers {
    pub(crate) fn new(shards: usize, policies: Vec<Policy>) -> Ledgers {
        let told = Told { sent: vec![0; shards], taken: vec![Some(0); shards] };
        Ledgers {
            policies,
            conns: Vec::new(),
            offered: Vec::new(),
            turns: vec![0; shards],
            given: (0..shards).map(|_| Vec::new()).collect(),
            set: vec![(0, told)],
            revoked: Vec::new(),
            unsure: Vec::new(),
            most_per_user: 0,
            authentication_ms: 0,
        }
    }

    /// A connection was handed to its shard.
    pub(crate) fn promoted(&mut self, shard: usize, found: Found) {
        let user = found.person.user;
        self.offered.push(self.conns.len());
        self.conns.push(Ledger {
            shard,
            shown: vec![Shown::new(found.clone(), 0)],
            found,
            adopted: None,
            doubtful: false,
            passes: BTreeMap::new(),
            peers_max: 0,
            over: None,
        });
        if let Some(user) = user {
            self.count_peers(user);
        }
    }

    /// Somebody may be one more connection of a user.
    fn count_peers(&mut self, user: usize) {
        let turns = &self.turns;
        let is_peer = |own: &&mut Ledger| {
            // Its user's home hears of its end a while later.
            let is_known = own
                .over
                .as_ref()
                .is_none_or(|over| over.iter().zip(turns).any(|(at, now)| at + LEAVE_TURNS > *now));
            own.shown.iter().any(|shown| shown.found.person.user == Some(user)) && is_known
        };
        let count = self.conns.iter_mut().filter(is_peer).count();
        for own in self.conns.iter_mut().filter(is_peer) {
            own.peers_max = own.peers_max.max(count);
        }
    }

    /// How often a connection was to be subscribed to a channel at once.
    pub(crate) fn named(&self, channel: usize) -> u64 {
        let shown = self.conns.iter().flat_map(|own| &own.shown);
        shown.filter(|shown| shown.found.channels.contains(&channel)).count() as u64
    }

    // What is shown in band.

    /// Something is shown that may be believed. Returns its number. `may_fail`: also where nothing is wrong with it.
    pub(crate) fn show(&mut self, conn: ConnId, found: Found, may_fail: bool) -> usize {
        let user = found.person.user;
        let own = &mut self.conns[conn];
        let mut shown = Shown::new(found, self.turns[own.shard]);
        shown.was_bad = may_fail;
        own.shown.push(shown);
        let number = own.shown.len() - 1;
        self.unsure.push((conn, number));
        if let Some(user) = user {
            self.count_peers(user);
        }
        number
    }

    /// Something is shown that may be refused.
    pub(crate) fn doubt(&mut self, conn: ConnId) {
        self.conns[conn].doubtful = true;
    }

    /// It was told that it is believed, and until when. Returns what is wrong with that; `sent` is the turn in which it
    /// was shown.
    pub(crate) fn believe(
        &mut self,
        conn: ConnId,
        number: usize,
        sent: u64,
        Written { turn, ms }: Written,
        told: Believed,
    ) -> Option<&'static str> {
        if number == BAD {
            return Some("nobody has to believe it");
        }
        let was_revoked = self.is_turned_out(conn, number, sent);
        let own = &mut self.conns[conn].shown[number];
        own.sure = Some(turn);
        let name = own.found.person.user.map(|user| format!("u{user}"));
        let in_time = told.expires_in_ms.is_none_or(|told| {
            own.expires_ms.is_some_and(|(first, last)| {
                told.is_some_and(|left| left <= last && ms + left >= first)
            })
        });
        match () {
            () if was_revoked => Some("it was revoked"),
            () if !own.was_good => Some("it had expired"),
            () if told.user.is_some_and(|user| name.as_deref() != user) => {
                Some("it is another user")
            }
            () if !in_time => Some("it expires at another time"),
            () => None,
        }
    }

    /// Whether it may be said that it is not believed.
    pub(crate) fn may_refuse(&self, conn: ConnId, number: usize) -> bool {
        number == BAD || {
            let own = &self.conns[conn].shown[number];
            // What the application has said of somebody is revoked with them.
            let all = &self.conns[conn];
            let gone =
                || all.found.asked && all.shown.iter().any(|own| self.is_revoked(&own.found));
            own.was_bad || self.is_revoked(&own.found) || gone()
        }
    }

    /// It was not believed.
    pub(crate) fn refuse(&mut self, conn: ConnId, number: usize) {
        if number != BAD {
            self.conns[conn].shown[number].out = true;
        }
    }

    /// Who a connection may be in a turn.
    fn candidates(&self, conn: ConnId, turn: u64) -> impl Iterator<Item = (usize, &Shown)> {
        let all = &self.conns[conn].shown;
        let is_sure = |shown: &Shown| shown.sure.is_some_and(|sure| sure <= turn);
        let from = all.iter().rposition(is_sure).unwrap_or(0);
        let all = all.iter().enumerate().skip(from);
        all.filter(move |(_, shown)| !shown.out && shown.turn <= turn)
    }

    /// Names of the users that it may be.
    pub(crate) fn users(&self, conn: ConnId, turn: u64) -> impl Iterator<Item = Option<String>> {
        let users = self.candidates(conn, turn).map(|(_, shown)| shown.found.person.user);
        users.map(|user| user.map(|user| format!("u{user}")))
    }

    /// Names of the users that it is, was or may be.
    pub(crate) fn anybody(&self, conn: ConnId) -> impl Iterator<Item = Option<String>> {
        let users = self.conns[conn].shown.iter().map(|shown| shown.found.person.user);
        users.map(|user| user.map(|user| format!("u{user}")))
    }

    /// Whether a connection is or was a user's, as far as anybody can tell.
    pub(crate) fn was(&self, conn: ConnId, user: usize) -> bool {
        self.conns[conn].shown.iter().any(|shown| shown.found.person.user == Some(user))
    }

    /// Whether somebody named so may be a connection at any time.
    pub(crate) fn may_be_named(&self, conn: ConnId, name: &str) -> bool {
        self.conns[conn].shown.iter().any(|shown| match shown.found.person.user {
            Some(user) => name == format!("user:u{user}"),
            None => name.starts_with("connection:"),
        })
    }

    /// Whether a connection never was anybody else than the user of this name.
    pub(crate) fn is_only_named(&self, conn: ConnId, name: &str) -> bool {
        name.starts_with("user:")
            && self.conns[conn].shown.len() == 1
            && self.may_be_named(conn, name)
    }

    /// Whether a connection never was anybody else.
    pub(crate) fn is_one(&self, conn: ConnId) -> bool {
        self.conns[conn].shown.len() == 1
    }

    /// Whether two connections may be one user's.
    pub(crate) fn may_be_same(&self, conn: ConnId, other: ConnId) -> bool {
        let users = |conn: ConnId| {
            self.conns[conn].shown.iter().filter_map(|shown| shown.found.person.user)
        };
        users(conn).any(|user| users(other).any(|own| own == user))
    }

    /// Whose it surely is.
    pub(crate) fn sure_user(&self, conn: ConnId) -> Option<usize> {
        let own = &self.conns[conn];
        let sure = own.shown.iter().rfind(|shown| shown.sure.is_some());
        sure.map_or(&own.found, |shown| &shown.found).person.user
    }

    /// It is over on both sides.
    pub(crate) fn over(&mut self, conn: ConnId) {
        let turns = self.turns.clone();
        self.conns[conn].over.get_or_insert(turns);
    }

    /// A pass was handed to the shard of a connection.
    pub(crate) fn give(&mut self, conn: ConnId, channel: usize, expires_s: Option<u64>) {
        let shard = self.conns[conn].shard;
        self.given[shard].push(Given { conn, channel, expires_s });
    }

    pub(crate) fn begin_turn(&mut self, shard: usize) {
        self.turns[shard] += 1;
    }

    /// A turn is over: what it has taken counts from it on.
    pub(crate) fn end_turn(
        &mut self,
        shard: usize,
        (now_ms, unix_ms): (u64, u64),
        ticked: bool,
        was_taken: impl Fn(ConnId) -> bool,
    ) {
        let turn = self.turns[shard];
        let at = |second: u64| now_ms + second.saturating_mul(1000).saturating_sub(unix_ms);
        let conns = &mut self.conns;
        self.offered.retain(|&conn| {
            let own = &mut conns[conn];
            if own.shard != shard || !was_taken(conn) {
                return true;
            }
            own.adopted = Some((turn, now_ms));
            own.shown[0].expires_ms = own.found.expires_s.map(|second| (at(second), at(second)));
            false
        });
        for Given { conn, channel, expires_s } in self.given[shard].drain(..) {
            let pass = Pass { turn, expires_ms: expires_s.map(at), expired_turn: None };
            self.conns[conn].passes.entry(channel).or_default().push(pass);
        }
        self.unsure.retain(|&(conn, number)| {
            let own = &mut self.conns[conn];
            let end_ms = own.shown[0].expires_ms.filter(|_| own.found.asked).map(|(end, _)| end);
            let shown = &mut own.shown[number];
            if own.shard == shard {
                shown.look((now_ms, unix_ms), at, end_ms);
            }
            shown.sure.is_none() && !shown.out && own.over.is_none()
        });
        if !ticked {
            return;
        }
        let is_over = |expires_ms: Option<u64>| {
            expires_ms.is_some_and(|at| now_ms / TICK_MS > at.saturating_add(TICK_MS) / TICK_MS)
        };
        let there = self.conns.iter_mut().filter(|own| own.shard == shard && own.over.is_none());
        for own in there.filter(|own| own.adopted.is_some()) {
            for shown in &mut own.shown {
                if shown.expired_turn.is_none() && is_over(shown.expires_ms.map(|(_, last)| last)) {
                    shown.expired_turn = Some(turn);
                }
            }
            for pass in own.passes.values_mut().flatten() {
                if pass.expired_turn.is_none() && is_over(pass.expires_ms) {
                    pass.expired_turn = Some(turn);
                }
            }
        }
    }

    fn told(&self) -> Told {
        Told { sent: self.turns.clone(), taken: vec![None; self.turns.len()] }
    }

    /// Another policy is set. Returns its number among all that were.
    pub(crate) fn set(&mut self, policy: usize) -> usize {
        let told = self.told();
        self.set.push((policy, told));
        self.set.len() - 1
    }

    pub(crate) fn set_taken(&mut self, number: usize, shard: usize) {
        self.set[number].1.taken[shard].get_or_insert(self.turns[shard]);
    }

    pub(crate) fn revoke(&mut self, whom: Revoked) -> usize {
        let told = self.told();
        self.revoked.push((whom, told));
        self.revoked.len() - 1
    }

    pub(crate) fn revoke_taken(&mut self, number: usize, shard: usize) {
        self.revoked[number].1.taken[shard].get_or_insert(self.turns[shard]);
    }

    /// Policies that a shard may have gone by in a turn.
    fn policies_at(&self, shard: usize, turn: u64) -> impl Iterator<Item = &Policy> {
        let done = |told: &Told| told.taken[shard].is_some_and(|taken| taken + GRACE_TURNS <= turn);
        let from = self.set.iter().rposition(|(_, told)| done(told)).unwrap_or(0);
        let sent = move |(_, told): &&(usize, Told)| told.sent[shard] <= turn;
        self.set[from..].iter().filter(sent).map(|(policy, _)| &self.policies[*policy])
    }

    /// The shard of a connection.
    pub(crate) fn shard(&self, conn: ConnId) -> usize {
        self.conns[conn].shard
    }

    /// Whom a revocation is about.
    fn is_about(whom: Revoked, found: &Found) -> bool {
        found.admitted
            && match whom {
                Revoked::Token(token) => found.token == Some(token),
                Revoked::User(user, before) => {
                    found.person.user == Some(user) && found.issued_s <= before
                }
            }
    }

    /// Why a connection may have nothing more in a turn, not even what is sent to it alone.
    pub(crate) fn is_over(&self, conn: ConnId, turn: u64) -> Option<&'static str> {
        let mut last = None;
        for (number, shown) in self.candidates(conn, turn) {
            last = self.is_shown_over(conn, (number, shown), turn);
            last?;
        }
        last
    }

    fn is_shown_over(
        &self,
        conn: ConnId,
        (number, shown): (usize, &Shown),
        turn: u64,
    ) -> Option<&'static str> {
        if shown.expired_turn.is_some_and(|expired| expired <= turn) {
            return Some("what it has shown has expired");
        }
        self.is_turned_out(conn, number, turn).then_some("it was revoked")
    }

    /// Why a connection may not have what was written to it of a channel; `since` is when it was told last that it
    /// has not subscribed.
    pub(crate) fn objection(
        &self,
        conn: ConnId,
        of: (usize, usize),
        turn: u64,
        since: u64,
    ) -> Option<&'static str> {
        let mut last = None;
        for (number, shown) in self.candidates(conn, turn) {
            last = self.objection_to(conn, (number, shown), of, turn, since);
            last?;
        }
        last
    }

    fn objection_to(
        &self,
        conn: ConnId,
        (number, shown): (usize, &Shown),
        (channel, group): (usize, usize),
        turn: u64,
        since: u64,
    ) -> Option<&'static str> {
        let own = &self.conns[conn];
        let found = &shown.found;
        if found.must_authenticate || found.refused {
            return Some("nobody has vouched for it");
        }
        if let Some(why) = self.is_shown_over(conn, (number, shown), turn) {
            return Some(why);
        }
        let has_pass = || {
            let mut passes = own.passes.get(&channel).into_iter().flatten();
            passes.any(|pass| {
                (since..=turn).contains(&pass.turn)
                    && pass.expired_turn.is_none_or(|expired| expired > turn)
            })
        };
        let mut policies = self.policies_at(own.shard, turn);
        let named = found.channels.contains(&channel);
        let allowed = policies.any(|policy| {
            match policy.verdict(&found.person, Op::Subscribe, group, named) {
                Verdict::Yes => true,
                Verdict::Ask => has_pass(),
                Verdict::No | Verdict::WhileSubscribed => false,
            }
        });
        (!allowed).then_some("no policy that its shard may go by allows it")
    }

    /// Whether a revocation that its shard has taken a while before this turn is about who it has said that it is.
    fn is_turned_out(&self, conn: ConnId, number: usize, turn: u64) -> bool {
        let Ledger { shard, shown, adopted, .. } = &self.conns[conn];
        let there = adopted.is_some_and(|(adopted, _)| adopted + GRACE_TURNS <= turn);
        there
            && self.revoked.iter().any(|(whom, told)| {
                let taken = told.taken[*shard];
                taken.is_some_and(|taken| taken + GRACE_TURNS <= turn)
                    && Ledgers::is_about(*whom, &shown[number].found)
            })
    }

    fn is_revoked(&self, found: &Found) -> bool {
        self.revoked.iter().any(|(whom, _)| Ledgers::is_about(*whom, found))
    }

    /// Whether it had to be closed by now: nothing is under way, and has not been for so long.
    pub(crate) fn has_to_go(&self, conn: ConnId, rested_ms: u64) -> Option<&'static str> {
        let own = &self.conns[conn];
        if own.found.refused {
            return Some("it was refused at the door");
        }
        let late = self.authentication_ms + LATE_MS < rested_ms;
        if late && self.candidates(conn, u64::MAX).all(|(_, shown)| shown.found.must_authenticate) {
            return Some("it has shown nothing in time");
        }
        self.is_over(conn, u64::MAX)
    }

    /// Whether a connection may be closed with a code that is about access.
    pub(crate) fn may_close(&self, conn: ConnId, code: u16, written: Written) -> bool {
        let own = &self.conns[conn];
        let Written { turn, ms } = written;
        let any = |fits: &dyn Fn(&Shown) -> bool| {
            self.candidates(conn, turn).any(|(_, shown)| fits(shown))
        };
        let expired = || any(&|shown| shown.expires_ms.is_some_and(|(first, _)| first <= ms));
        match code {
            4005 => expired(),
            4503 => {
                let late = own.adopted.is_some_and(|(_, at)| at + self.authentication_ms <= ms);
                let bad = late || own.doubtful;
                let has_expired = own.shown[0].expires_ms.is_some_and(|(first, _)| first <= ms);
                own.found.refused
                    || bad && any(&|shown| shown.found.must_authenticate)
                    || has_expired && own.shown.iter().all(|shown| shown.sure.is_none())
            }
            4504 => any(&|shown| self.is_revoked(&shown.found)),
            4505 => self.most_per_user > 0 && own.peers_max > self.most_per_user,
            _ => false,
        }
    }
}
