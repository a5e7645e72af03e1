//! The application behind the control thread: what it says to questions, when, and what it orders.
//!
//! What it says is a function of user, channel and a number of the run; whether and when it says so is chance.

use std::collections::BTreeMap;

use super::client::{Speaks, payload_size};
use super::control::{Matter, Order, Posed, Says, Target, name_of, number_of};
use super::judge::{Asked, Rule};
use super::ledger::{Found, Revoked};
use super::link::Want;
use super::net::{ConnId, Phase};
use super::node::{Answer, Waiting};
use super::policy::{Person, line};
use super::presence::Heard;
use super::trace::{note, shown};
use super::world::World;

/// How long a shard waits beyond the time that the application has.
const GRACE_MS: u64 = 1000;

/// A question that was taken, and what becomes of it.
#[derive(Debug)]
pub(super) struct Taken {
    posed: Posed,
    asked_ms: u64,
    says: Says,
    /// It is answered at the end only, or never.
    waits: bool,
    never: bool,
    /// The shard waits for it no more.
    given_up: bool,
}

/// Something that every shard is to be told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    Revoked(Revoked, usize),
    Reconfigured(usize),
}

/// Everything of the application, and of the control thread on its behalf.
#[derive(Debug, Default)]
pub(super) struct Application {
    questions: Vec<Taken>,
    /// The newest publication of each connection that it was asked about; the greatest number once that has ended.
    newest: BTreeMap<ConnId, u64>,
    /// Whoever calls gets no result for now.
    withholds_results: bool,
    pub(super) heard: Heard,
    /// Not told yet: what, to which shard, and whether only the question behind it is missing.
    to_tell: Vec<(Word, usize, bool)>,
}

impl World {
    // Identities.

    /// Who a client turns out to be at the door: from a token, from the application, or from both.
    pub(super) fn found(&mut self, at: usize, conn: ConnId) -> Found {
        let setup = &self.setup;
        if !setup.access {
            return Found::default();
        }
        let dice = &mut self.dice;
        let numbered = Some(number_of(conn));
        let (unix_s, groups) = (self.cluster.unix_ms.get() / 1000, setup.groups.len());
        let Some(user) = self.clients[at].user else {
            let refused = dice.chance(20);
            let must_authenticate = !refused && dice.chance(60);
            // Or the application knows them, as nobody.
            let asked = !refused && !must_authenticate && dice.chance(200);
            return Found {
                admitted: asked,
                asked,
                issued_s: unix_s,
                refused,
                must_authenticate,
                number: numbered,
                ..Found::default()
            };
        };
        let roles = (0..2).filter(|_| dice.chance(300)).collect();
        let grants = if dice.chance(150) { vec![line(dice, groups)] } else { Vec::new() };
        let person = Person { user: Some(user), roles, sends: dice.chance(300), grants };
        let lives = dice.pick(&[None, None, Some(0), Some(1), Some(3), Some(20), Some(100_000)]);
        let channels = match dice.below(4) {
            // A payload of nothing does not say which channel it is of.
            0 if setup.empty == 0 => {
                (0..dice.range(1, 3)).map(|_| dice.below(setup.channels.len())).collect()
            }
            _ => Vec::new(),
        };
        Found {
            person: person.into(),
            admitted: true,
            token: Some(self.mint.number(dice)),
            issued_s: unix_s - dice.below(4) as u64,
            expires_s: lives.map(|lives| unix_s + lives),
            channels,
            asked: dice.chance(300),
            number: numbered.filter(|_| dice.chance(300)),
            ..Found::default()
        }
    }

    // Questions.

    /// Takes what a shard has asked in its last turn, and notes what the shard waits for no more.
    pub(super) fn take_questions(&mut self, shard: usize, ticked: bool) {
        if !self.setup.access {
            return;
        }
        let now_ms = self.elapsed.get().as_millis() as u64;
        for taken in self.application.questions.iter_mut().filter(|own| own.posed.shard == shard) {
            let patience = GRACE_MS
                + u64::from(match taken.posed.matter {
                    Matter::Call { .. } => self.setup.rpc_timeout_ms,
                    _ => self.setup.hooks_timeout_ms,
                });
            if ticked && !taken.given_up && taken.asked_ms + patience <= now_ms {
                taken.given_up = true;
                if let Matter::Publish { payload, .. } = &taken.posed.matter {
                    self.judge.say(payload, Asked::Refused, None);
                }
            }
        }
        while let Some(posed) = self.cluster.question() {
            note!(
                self.trace,
                "the application is asked by s{} of c{}: {:?}",
                posed.shard,
                posed.conn,
                posed.matter
            );
            self.is_asked_in_order(&posed);
            let says = self.says(&posed);
            if let Matter::Publish { payload, .. } = &posed.matter {
                self.judge.say(payload, Asked::Waiting, None);
            }
            let withheld =
                self.application.withholds_results && matches!(posed.matter, Matter::Call { .. });
            let (waits, never) = match self.dice.below(if self.healed { 0 } else { 20 }) {
                _ if withheld => (true, true),
                _ if self.healed => (false, false),
                0 => (true, true),
                1..4 => (true, false),
                _ => (false, false),
            };
            self.is_within_call_limit(&posed, now_ms);
            let taken = Taken { posed, asked_ms: now_ms, says, waits, never, given_up: false };
            self.application.questions.push(taken);
        }
    }

    /// Those that are surely not given up yet are no more than may be.
    fn is_within_call_limit(&mut self, posed: &Posed, now_ms: u64) {
        let is_call = |matter: &Matter| matches!(matter, Matter::Call { .. });
        if !is_call(&posed.matter) {
            return;
        }
        let questions = self.application.questions.iter();
        let others = questions.filter(|own| {
            own.posed.conn == posed.conn
                && is_call(&own.posed.matter)
                && own.asked_ms + GRACE_MS > now_ms
        });
        let (count, most) = (others.count() + 1, self.setup.rpc_calls_max as usize);
        if count > most {
            let what = format_args!("c{} has {count} calls under way, not {most}", posed.conn);
            self.judge.broken(Rule::CallLimit, what);
        }
    }

    /// Who waits for calls that are not answered, and for nothing else, is answered to a ping.
    pub(super) fn check_calls_hold_nothing(&mut self) {
        if self.judge.draining || self.setup.messages_per_second_max > 0 || !self.setup.access {
            return;
        }
        self.application.withholds_results = true;
        let mut asked = Vec::new();
        for conn in self.open.clone() {
            let client = &self.clients[self.owners[conn]];
            let fits = client.link.as_ref().is_some_and(|link| {
                let open = self.net.borrow().conns[conn].phase == Phase::Open;
                // What it has published without an id may have to be refused yet, and what comes next is told behind that.
                open && link.conn == conn && link.is_at_ease() && !self.judge.awaits_word(conn)
            });
            let ringfeed = client.speaks == Speaks::Ringfeed;
            if fits && ringfeed && client.habit.is_never_late(&self.setup) {
                self.with_client(conn, |client, scene| {
                    client.call(scene);
                    client.ping(scene);
                });
                asked.push(conn);
            }
        }
        self.settle();
        for conn in asked {
            let client = &self.clients[self.owners[conn]];
            let link = client.link.as_ref().filter(|link| link.conn == conn);
            let Some(link) = link.filter(|link| link.is_at_ease_but_for(Want::Ping)) else {
                continue;
            };
            if link.pending.iter().any(|pending| pending.want == Want::Ping) {
                let what = format_args!("{} has no pong", link.who);
                self.judge.broken(Rule::CallsHoldNothing, what);
            }
        }
        self.application.withholds_results = false;
        for taken in &mut self.application.questions {
            let is_call = matches!(taken.posed.matter, Matter::Call { .. });
            taken.never &= !is_call || taken.given_up;
        }
        self.settle();
    }

    fn is_asked_in_order(&mut self, posed: &Posed) {
        let number = match &posed.matter {
            Matter::Keys | Matter::Presence { .. } => return,
            // Whose end it is, is not known of everybody.
            Matter::Ended if posed.conn == 0 => return,
            Matter::Ended => u64::MAX,
            Matter::Publish { payload, .. } => self.judge.number_in(payload).unwrap_or(0),
            Matter::Subscribe { .. } | Matter::Message { .. } | Matter::Call { .. } => 0,
        };
        let newest = self.application.newest.entry(posed.conn).or_default();
        let before = std::mem::replace(newest, number.max(*newest));
        if before == u64::MAX || number > 0 && number < before {
            let what = format_args!("c{}: {number} is asked about behind {before}", posed.conn);
            self.judge.broken(Rule::AskedInOrder, what);
        }
    }

    /// What the application says.
    fn says(&mut self, posed: &Posed) -> Says {
        let user = self.judge.ledgers.conns[posed.conn].found.person.user;
        let unix_s = self.cluster.unix_ms.get() / 1000;
        let mixed = |text: &str, more: u64| {
            let seed = self.setup.says ^ user.map_or(7, |user| user as u64 * 31) ^ more << 20;
            text.bytes().fold(seed, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
            }) % 10
        };
        match &posed.matter {
            Matter::Subscribe { channel } => match mixed(channel, 0) {
                0..5 => Says::Allow(None),
                5 | 6 => Says::Allow(Some(unix_s + self.dice.pick(&[0, 1, 2, 5, 60]))),
                7 => Says::CannotBeAsked,
                _ => Says::No("not for you"),
            },
            Matter::Publish { channel, payload } => {
                let number = self.judge.number_in(payload);
                match (mixed(channel, number.unwrap_or(0)), number) {
                    (0..5, _) | (_, None) => Says::Publish(None),
                    (5..8, Some(_)) => {
                        let (kind, len) = payload_size(&mut self.dice, &self.setup);
                        Says::Publish(Some((kind, vec![0; len.max(1)])))
                    }
                    _ => Says::No("not that"),
                }
            }
            Matter::Message { message } => match mixed(message, 0) {
                0..5 => Says::Reply(Some("{\"said\":true}".into())),
                5 | 6 => Says::Reply(None),
                7 => Says::CannotBeAsked,
                _ => Says::No(""),
            },
            Matter::Call { number } => match mixed("call", *number) {
                0..7 => Says::Reply(None),
                7 => Says::CannotBeAsked,
                _ => Says::No("not for you"),
            },
            Matter::Presence { .. } if self.healed => Says::Noted,
            Matter::Presence { .. } => match self.dice.below(20) {
                0..4 => Says::CannotBeAsked,
                4 if self.setup.says.is_multiple_of(3) => Says::No(""),
                _ => Says::Noted,
            },
            Matter::Ended | Matter::Keys => Says::Noted,
        }
    }

    /// One question, whichever, is answered; perhaps in vain or once more.
    pub(super) fn answer_some(&mut self) {
        for _ in 0..self.dice.pick(&[1, 1, 1, 4]) {
            let count = self.application.questions.len();
            if count == 0 {
                return;
            }
            let at = self.dice.below(count);
            let taken = &self.application.questions[at];
            if taken.waits && !(taken.given_up && !taken.never && self.dice.chance(300)) {
                continue;
            }
            self.answer_one(at);
        }
    }

    fn answer_one(&mut self, at: usize) {
        let Taken { posed, mut says, given_up, .. } = self.application.questions.swap_remove(at);
        let mut instead = None;
        if let (Matter::Presence { id, lost, changes }, Says::Noted | Says::No(_)) =
            (&posed.matter, &says)
        {
            let heard = matches!(says, Says::Noted);
            self.application.heard.hear(&self.judge, (*id, *lost), changes, heard);
        }
        if let (Matter::Publish { payload, .. }, Says::Publish(Some((kind, bytes)))) =
            (&posed.matter, &mut says)
            && let Some(number) = self.judge.number_in(payload)
        {
            instead = Some((*kind, bytes.len()));
            *bytes = super::judge::payload(number, *kind, bytes.len());
        }
        // They may be there before the answer is, and without one; or the issuer cannot be asked.
        if matches!(posed.matter, Matter::Keys) && self.dice.chance(700) {
            note!(self.trace, "the keys are known");
            self.cluster.publish_keys();
            self.mint.keys_known = true;
        }
        if !self.cluster.answer(&posed, &says) {
            // It comes too late then.
            return;
        }
        note!(
            self.trace,
            "the application says to s{} of c{}: {}",
            posed.shard,
            posed.conn,
            shown(format!("{says:?}").as_bytes())
        );
        if !given_up {
            match (&posed.matter, &says) {
                (Matter::Subscribe { channel }, Says::Allow(expires_s)) => {
                    // Or it is a lobby.
                    let channel = self.judge.names.iter().position(|name| name == channel);
                    if let Some(channel) = channel {
                        self.judge.ledgers.give(posed.conn, channel, *expires_s);
                    }
                }
                (Matter::Publish { payload, .. }, Says::Publish(_)) => {
                    self.judge.say(payload, Asked::Allowed, instead);
                }
                (Matter::Publish { payload, .. }, _) => {
                    self.judge.say(payload, Asked::Refused, None);
                }
                _ => {}
            }
        }
        if self.dice.chance(150) {
            let again = match (&posed.matter, &says) {
                (Matter::Subscribe { .. }, Says::No(_) | Says::CannotBeAsked) => Says::Allow(None),
                (Matter::Publish { .. }, Says::No(_) | Says::CannotBeAsked) => Says::Publish(None),
                (Matter::Publish { .. }, _) if self.dice.chance(500) => Says::Publish(None),
                _ => Says::No("twice"),
            };
            self.cluster.answer(&posed, &again);
        }
    }

    /// Answers everything that is to be answered at all. Returns whether there was any.
    pub(super) fn answer_all(&mut self) -> bool {
        let mut any = false;
        while let Some(at) = self.application.questions.iter().position(|taken| !taken.never) {
            self.answer_one(at);
            any = true;
        }
        any
    }

    /// Nothing more can be asked for a while.
    pub(super) fn stuff_questions(&mut self) {
        note!(self.trace, "the queue of questions is full");
        self.cluster.stuff_questions();
    }

    // Orders.

    fn any_user(&mut self) -> usize {
        self.dice.below(self.setup.users)
    }

    /// The API sends to somebody, closes connections or ends subscriptions.
    pub(super) fn order(&mut self) {
        let target = match self.any_conn().filter(|_| self.dice.chance(400)) {
            None => Target::User(self.any_user()),
            Some(conn) => match self.name_of_conn(conn) {
                Some(name) => Target::Connection(name),
                None => return,
            },
        };
        let number = self.judge.orders.len();
        let order = if self.dice.chance(self.setup.taken_off) {
            let channel = self.dice.below(self.setup.channels.len());
            Order::Unsubscribe(self.setup.channels[channel].name.clone())
        } else if self.dice.chance(750) {
            Order::Send(super::judge::direct(number))
        } else {
            Order::Disconnect(self.dice.pick(&[4502, 4502, 4100, 4700]))
        };
        note!(self.trace, "the API orders {number}: {order:?} for {target:?}");
        self.judge.order(target.clone(), order.clone());
        let waiting = self.cluster.order(number, &target, &order);
        self.waiting.extend(waiting);
    }

    /// How a connection is named outside, where that is known.
    pub(super) fn name_of_conn(&self, conn: ConnId) -> Option<String> {
        let ledger = &self.judge.ledgers.conns[conn];
        match ledger.found.number {
            Some(number) => Some(name_of(self.net.borrow().conns[conn].shard, number)),
            None => {
                let link = self.clients[self.owners[conn]].link.as_ref();
                link.filter(|link| link.conn == conn)?.name.clone()
            }
        }
    }

    /// A token, or all of a user, is revoked.
    pub(super) fn revoke(&mut self) {
        let unix_s = self.cluster.unix_ms.get() / 1000;
        let whom = if self.dice.chance(500) {
            Revoked::User(self.any_user(), unix_s - self.dice.below(3) as u64)
        } else {
            Revoked::Token(self.dice.range(1, self.mint.count.max(1)))
        };
        let number = self.judge.ledgers.revoke(whom);
        note!(self.trace, "revocation {number}: {whom:?}");
        let shards = 0..self.cluster.count();
        self.application.to_tell.extend(shards.map(|at| (Word::Revoked(whom, number), at, false)));
    }

    /// The configuration says something else about access.
    pub(super) fn set_policy(&mut self) {
        let policy = self.dice.below(self.setup.policies.len());
        let number = self.judge.ledgers.set(policy);
        note!(self.trace, "policy {policy} is set, as number {number}");
        self.cluster.set_policy(&self.setup, &self.setup.policies[policy]);
        let shards = 0..self.cluster.count();
        self.application.to_tell.extend(shards.map(|at| (Word::Reconfigured(number), at, false)));
    }

    /// A step: see [`World::tell_one`].
    pub(super) fn tell(&mut self) {
        self.tell_one();
    }

    /// One shard is told something that all are to be told. Returns whether there was anything.
    pub(super) fn tell_one(&mut self) -> bool {
        if self.application.to_tell.is_empty() {
            return false;
        }
        // In order for each shard, as the control thread does.
        let any = self.dice.below(self.application.to_tell.len());
        let shard = self.application.to_tell[any].1;
        let mut words = self.application.to_tell.iter();
        let at = words.position(|(_, at, _)| *at == shard).expect("one is for it");
        let (word, _, said) = &mut self.application.to_tell[at];
        let word = *word;
        *said = *said
            || match word {
                Word::Revoked(whom, _) => self.cluster.revoke(shard, whom),
                Word::Reconfigured(_) => self.cluster.reconfigure(shard),
            };
        let told = if *said { self.cluster.behind(shard) } else { None };
        if told.is_some() || self.cluster.has_ended(shard) {
            note!(self.trace, "s{shard} is told: {word:?}");
            self.application.to_tell.remove(at);
        }
        let told = told.map(|behind| match word {
            Word::Revoked(_, number) => Waiting::Revoked(number, shard, behind),
            Word::Reconfigured(number) => Waiting::Reconfigured(number, shard, behind),
        });
        self.waiting.extend(told);
        true
    }

    /// Somebody sets the clock on the wall, by minutes or by days.
    pub(super) fn set_wall_clock(&mut self) {
        let step = self.dice.pick(&[1, 60, 3600, 86_400, 400_000]) * 1000;
        let now = self.cluster.unix_ms.get();
        self.cluster.unix_ms.set(if self.dice.chance(500) { now + step } else { now - step });
        note!(self.trace, "the clock on the wall is set to {}", self.cluster.unix_ms.get());
    }

    /// What came of orders. Others are the caller's.
    pub(super) fn ordered(&mut self, answer: Answer) {
        match answer {
            Answer::There(number, names) => self.judge.orders[number].there = Some(names),
            Answer::Reached(number, count) => {
                let ledgers = &self.judge.ledgers;
                let order = &mut self.judge.orders[number];
                order.taken = Some(ledgers.conns.len());
                order.refused = count.is_none();
                if order.refused && !self.setup.may_refuse_sends(&order.order) {
                    let what = format_args!("the API's order {number} was refused");
                    self.judge.broken(Rule::Direct, what);
                }
                let order = &mut self.judge.orders[number];
                if let (Target::Connection(name), Some(1)) = (&order.target, count) {
                    order.there = Some(vec![name.clone()]);
                    let shard = super::control::shard_of(name);
                    order.done = Some(ledgers.turns[shard]);
                }
            }
            Answer::Reconfigured(number, shard) => self.judge.ledgers.set_taken(number, shard),
            Answer::Revoked(number, shard) => self.judge.ledgers.revoke_taken(number, shard),
            _ => {}
        }
    }

    /// Everything is quiet: who had to go is gone, and nobody has more connections than may be.
    pub(super) fn check_access(&self) {
        if !self.setup.access || self.judge.draining {
            return;
        }
        let rested_ms = self.elapsed.get().as_millis() as u64 - self.healed_ms;
        let mut of_user = vec![0; self.setup.users];
        for &conn in &self.open {
            let net = self.net.borrow();
            let client = &self.clients[self.owners[conn]];
            let Some(link) = client.link.as_ref().filter(|link| link.conn == conn) else {
                continue;
            };
            let alive = net.conns[conn].phase == Phase::Open && client.reading;
            if !alive || link.close_seen.is_some() || link.close_sent.is_some() {
                continue;
            }
            if let Some(why) = self.judge.ledgers.has_to_go(conn, rested_ms) {
                let what = format_args!("{} is still there: {why}", link.who);
                self.judge.broken(Rule::TurnedOut, what);
            }
            if let Some(user) = self.judge.ledgers.sure_user(conn) {
                of_user[user] += 1;
            }
        }
        let most = self.setup.connections_per_user_max;
        if let Some(user) = of_user.iter().position(|&count| most > 0 && count > most) {
            let what = format_args!("u{user} has {} connections, not {most}", of_user[user]);
            self.judge.broken(Rule::UserLimit, what);
        }
    }
}
