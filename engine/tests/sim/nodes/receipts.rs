//! Publishers who ask those on a channel to confirm, on whatever node these are, and what both are told.

use std::collections::{BTreeMap, BTreeSet};

use super::super::event::Said;
use super::super::net::ConnId;
use super::World;

/// A publication that is to be confirmed.
#[derive(Debug)]
struct Asked {
    /// Who has published it, over which connection.
    by: (usize, ConnId),
    channel: usize,
    /// The life of the channel in which it is, as its publisher knows it.
    published: Option<u64>,
    /// Who has confirmed it and who has not, as its publisher was told.
    told: Option<(Vec<String>, Vec<String>)>,
    /// Users who have said that they have it, …
    said: BTreeSet<String>,
    /// … and those who were told that this was waited for.
    in_time: BTreeSet<String>,
}

/// All of them, by number.
#[derive(Debug)]
pub(super) struct Receipts {
    users: usize,
    asked: BTreeMap<u64, Asked>,
}

impl Receipts {
    pub(super) fn new(users: usize) -> Receipts {
        Receipts { users, asked: BTreeMap::new() }
    }

    /// The user of a client, as others are shown it.
    fn user(&self, client: usize) -> String {
        format!("u{}", client % self.users)
    }

    pub(super) fn ask(&mut self, number: u64, channel: usize, by: (usize, ConnId)) {
        let (said, in_time) = (BTreeSet::new(), BTreeSet::new());
        let asked = Asked { by, channel, published: None, told: None, said, in_time };
        self.asked.insert(number, asked);
    }

    /// Whether it is to be confirmed; each message says the same of it.
    pub(super) fn is_asked(&self, number: u64, message: &Said) -> bool {
        let asked = self.asked.contains_key(&number);
        assert_eq!(message.confirm == Some(true), asked, "rule receipts: {number} says otherwise");
        asked
    }

    /// A publisher knows that it has its place.
    pub(super) fn is_published(&mut self, number: u64, epoch: u64) {
        if let Some(asked) = self.asked.get_mut(&number) {
            asked.published = Some(epoch);
        }
    }

    /// A client says that it has it.
    pub(super) fn says(&mut self, number: u64, client: usize) {
        let user = self.user(client);
        self.asked.get_mut(&number).expect("it is asked").said.insert(user);
    }

    /// A client was told whether that was waited for.
    pub(super) fn answered(&mut self, number: u64, client: usize, in_time: bool) {
        let user = self.user(client);
        let asked = self.asked.get_mut(&number).expect("it is asked");
        if in_time {
            asked.in_time.insert(user);
        }
    }

    /// The publisher is told who has confirmed.
    pub(super) fn told(&mut self, number: u64, client: usize, said: &Said) {
        // Nobody is nameless here.
        let name = |name: String| name.trim_start_matches("user:").to_owned();
        let names = |all: Option<Vec<String>>| -> Vec<String> {
            all.expect("rule frames: names").into_iter().map(name).collect()
        };
        let (confirmed, missing) = (names(said.confirmed()), names(said.missing()));
        let own = self.user(client);
        let asked = self.asked.get_mut(&number).expect("it is asked");
        assert_eq!(asked.by.0, client, "rule receipts: {number} is somebody else's");
        assert!(asked.told.is_none(), "rule receipts: of {number} it was told before");
        let all: BTreeSet<&String> = confirmed.iter().chain(&missing).collect();
        let unique = all.len() == confirmed.len() + missing.len();
        let what = format!("of {number} {own} was told {confirmed:?}, {missing:?}");
        assert!(unique && !all.contains(&own), "rule receipts: {what}");
        asked.told = Some((confirmed, missing));
    }
}

impl World {
    /// Everything is quiet, and has been for longer than anybody has to confirm.
    pub(super) fn check_receipts(&self) {
        for (number, asked) in &self.receipts.asked {
            let client = &self.clients[asked.by.0];
            let Some((confirmed, _)) = &asked.told else {
                let hears = asked.published.is_some() && client.conn == asked.by.1 && !client.over;
                assert!(!hears, "rule receipts: k{} is told nothing of {number}", client.number);
                continue;
            };
            // What was said before somebody knew of another life is about an offset of that.
            let newest = self.truth.newest(&self.channels.names[asked.channel]);
            let lives_on = newest.map(|(epoch, _)| epoch) == asked.published;
            if asked.channel < self.channels.numbered && !lives_on {
                continue;
            }
            let unheard = asked.in_time.iter().find(|user| !confirmed.contains(user));
            assert!(unheard.is_none(), "rule receipts: {unheard:?} has confirmed {number} in time");
            let invented = confirmed.iter().find(|user| !asked.said.contains(*user));
            assert!(invented.is_none(), "rule receipts: {invented:?} has not confirmed {number}");
        }
    }

    /// Nothing fails any more: whoever is on a channel, on any node, is asked, and all who confirm are named at once.
    pub(super) fn check_confirmations(&mut self) {
        if self.setup.confirms == 0 {
            return;
        }
        for channel in 0..self.channels.names.len() {
            let mut there = (0..self.clients.len()).filter(|&at| !self.clients[at].over);
            let count = there.clone().count();
            if count == 0 {
                return;
            }
            let Some(by) = there.nth(self.dice.below(count)) else { return };
            self.published += 1;
            let number = self.published;
            self.ask_to_confirm(by, channel, (number, 0), 60_000);
            self.settle();
            for at in 0..self.clients.len() {
                while self.confirm(at) {}
            }
            self.settle();
            self.pass(100);
            self.settle();
            let own = self.receipts.user(by);
            let listens = |at: &usize| self.clients[*at].listens(channel).is_some();
            let users = (0..self.clients.len()).filter(listens).map(|at| self.receipts.user(at));
            let users: BTreeSet<String> = users.filter(|user| *user != own).collect();
            let asked = self.receipts.asked.get(&number).expect("it was asked");
            let what = format!("rule receipts: of {number} on {}", self.channels.names[channel]);
            let (confirmed, missing) = asked.told.as_ref().unwrap_or_else(|| panic!("{what}"));
            let confirmed: BTreeSet<String> = confirmed.iter().cloned().collect();
            assert_eq!((confirmed, missing), (users, &Vec::new()), "{what}, by k{by}");
        }
    }

    /// A client publishes something that is to be confirmed.
    pub(super) fn ask_to_confirm(
        &mut self,
        at: usize,
        channel: usize,
        what: (u64, usize),
        within_ms: u64,
    ) {
        let mut out = Vec::new();
        let name = self.channels.names[channel].clone();
        let client = &mut self.clients[at];
        self.receipts.ask(what.0, channel, (at, client.conn));
        client.publish(&mut out, &name, what, Some(within_ms));
        self.net.borrow_mut().conns[client.conn].upstream.extend(out);
    }

    /// A client confirms something that has come to it. Whether there was anything.
    pub(super) fn confirm(&mut self, at: usize) -> bool {
        let mut out = Vec::new();
        let client = &mut self.clients[at];
        let Some((number, channel, offset)) = client.to_confirm.pop().filter(|_| !client.over)
        else {
            return false;
        };
        self.receipts.says(number, at);
        let name = &self.channels.names[channel];
        client.confirm(&mut out, (channel, name), (number, offset));
        self.net.borrow_mut().conns[client.conn].upstream.extend(out);
        true
    }
}
