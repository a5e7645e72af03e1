//! Users with connections to several nodes: what is sent to them, and who of them is revoked.

use std::collections::BTreeSet;

use ringfeed_engine::access::{Admitted, Identity};
use ringfeed_engine::config::Presence;
use ringfeed_engine::ids::ShardId;
use ringfeed_engine::message::{
    Errand, Gathered, Kept, NodesRequest, Order, Reached, Reply, Request, Revocation, Revoked,
    StoredPayload, UserRequest,
};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, UserId};
use tokio::sync::oneshot;

use super::super::net::ConnId;
use super::super::trace::note;
use super::World;

/// What was sent to a user over the API of a node.
pub(super) struct Sent {
    number: u64,
    answer: Option<oneshot::Receiver<Reached>>,
    /// To how many connections it was handed, if that was said.
    reached: Option<u32>,
    user: usize,
    /// Connections of the user by then.
    there: Vec<(usize, ConnId)>,
}

/// A token that was revoked over the API of a node.
pub(super) struct RevokedToken {
    token: u64,
    answer: Option<oneshot::Receiver<Gathered>>,
    /// Whether all nodes know it.
    is_known: bool,
    /// Where it was said.
    node: usize,
    /// The process to which it was said has ended, …
    is_gone: bool,
    /// … and Redis has lost it: nobody may know any more.
    is_lost: bool,
}

/// The user of a client.
fn user_of(world: &World, at: usize) -> usize {
    at % world.setup.users
}

fn id(user: usize) -> UserId {
    UserId::new(&format!("u{user}")).expect("an id")
}

impl World {
    /// Who a client comes as, with a token of its own, or the one that it had.
    pub(super) fn admitted(&mut self, at: usize) -> Admitted {
        let had = self.clients.get(at).map(|client| client.token);
        let token = had.filter(|_| self.dice.chance(500)).unwrap_or_else(|| {
            self.tokens += 1;
            self.tokens
        });
        if let Some(client) = self.clients.get_mut(at) {
            client.token = token;
        }
        let user = Some(id(user_of(self, at)));
        let token = Some(token.to_string().into());
        let identity = Identity { user, token, ..Identity::default() };
        Admitted { identity, channels: Vec::new(), stated: None }
    }

    pub(super) fn send_to_user(&mut self) {
        let (node, user) = (self.any_node(), self.dice.below(self.setup.users));
        self.send_from(node, user);
    }

    fn send_from(&mut self, node: usize, user: usize) -> bool {
        self.published += 1;
        let number = self.published;
        let bytes = super::client::payload(number, 1).into();
        let payload = StoredPayload { kind: PayloadKind::Json, bytes };
        let (reply, answer) = oneshot::channel();
        let order = Order::Send { from: None, payload };
        let what = UserRequest::Order { connection: None, order, reply: Reply::Control(reply) };
        let (home, user_id) = (self.nodes[node].shared.shards.home(&id(user)), id(user));
        let request = Request::User { user: user_id, what: Box::new(what) };
        if self.nodes[node].shared.shards.request(home, request).is_err() {
            return false;
        }
        note!(self.trace, "the API of n{node} sends {number} to u{user}");
        let there = (0..self.clients.len()).filter(|&at| user_of(self, at) == user);
        let there = there.map(|at| (at, self.clients[at].conn)).collect();
        self.sent.push(Sent { number, answer: Some(answer), reached: None, user, there });
        true
    }

    pub(super) fn revoke(&mut self) {
        let Some(at) = self.any_of() else { return };
        let (node, token) = (self.any_node(), self.clients[at].token);
        let whom = Revoked::Token(token.to_string().into());
        let revocation = Revocation { whom, until: u64::MAX };
        let shared = &self.nodes[node].shared;
        let shards = &shared.shards;
        shared.revoked.add(&revocation).expect("there is room");
        for shard in shards.ids() {
            if shards.request(shard, Request::Revoke(revocation.clone())).is_err() {
                return;
            }
        }
        shared.revoked.mark_told(&revocation);
        let (reply, answer) = oneshot::channel();
        let errand = Box::new(Errand::Keep(Kept::Revoked(revocation)));
        if shards.request(ShardId(0), Request::Nodes(NodesRequest::Ask { errand, reply })).is_ok() {
            note!(self.trace, "the API of n{node} revokes token {token}");
            let (answer, is_known, is_gone, is_lost) = (Some(answer), false, false, false);
            self.revoked.push(RevokedToken { token, answer, is_known, node, is_gone, is_lost });
        }
    }

    /// Redis may have lost what it kept.
    pub(super) fn redis_has_lost(&mut self) {
        self.revoked.iter_mut().for_each(|own| own.is_lost = true);
    }

    /// Another process is in the place of a node's.
    pub(super) fn is_new(&mut self, node: usize) {
        let here = self.revoked.iter_mut().filter(|own| own.node == node);
        here.for_each(|own| own.is_gone = true);
        if !self.setup.is_mesh {
            return;
        }
        // Nodes keep it for one another.
        let nodes = self.nodes.iter();
        let known: Vec<_> = nodes.flat_map(|node| node.shared.revoked.all()).collect();
        for own in &mut self.revoked {
            let whom = Revoked::Token(own.token.to_string().into());
            let lost = !known.iter().any(|revocation| revocation.whom == whom);
            own.is_gone |= lost;
            own.is_lost |= lost;
        }
    }

    /// Looks at what was answered.
    pub(super) fn look_at_users(&mut self) {
        for sent in &mut self.sent {
            if let Some(Ok(answer)) = sent.answer.as_mut().map(oneshot::Receiver::try_recv) {
                (sent.answer, sent.reached) = (None, answer.ok());
            }
        }
        for own in &mut self.revoked {
            if let Some(Ok(answer)) = own.answer.as_mut().map(oneshot::Receiver::try_recv) {
                own.answer = None;
                own.is_known |= answer.is_ok();
            }
        }
    }

    /// Everything is quiet and nothing fails any more.
    pub(super) fn check_users(&mut self) {
        let first = self.sent.len();
        for node in 0..self.nodes.len() {
            for user in 0..self.setup.users {
                let is_taken = self.send_from(node, user);
                assert!(is_taken, "rule users: n{node} takes nothing");
                self.settle();
            }
        }
        self.look_at_users();
        let mut dials = vec![0; self.setup.users];
        for (at, client) in self.clients.iter().enumerate() {
            dials[user_of(self, at)] += client.dials;
        }
        for (place, sent) in self.sent.iter_mut().enumerate() {
            use tokio::sync::oneshot::error::TryRecvError;
            // A node that was killed answers nothing.
            let owed = sent
                .answer
                .as_mut()
                .is_some_and(|answer| matches!(answer.try_recv(), Err(TryRecvError::Empty)));
            let Sent { number, reached, user, there, .. } = sent;
            assert!(!owed, "rule users: nobody says what has come of {number}");
            let got = self.clients.iter().map(|client| client.times_sent(*number)).sum::<usize>();
            let is_there = |(at, conn): &&(usize, ConnId)| {
                let client = &self.clients[*at];
                client.conn == *conn && !client.over
            };
            let left = there.iter().filter(is_there).count();
            if let Some(reached) = reached.map(|count| count as usize) {
                // A connection that ends may have got it, or not, and a node may learn late that it has ended.
                let gone = dials[*user] - left;
                assert!(
                    reached <= got + gone,
                    "rule users: {number} was handed to {reached}, and {got} have it"
                );
            }
            if place >= first {
                assert_eq!(*reached, Some(left as u32), "rule users: {number} reaches all");
                assert_eq!(got, left, "rule users: {number} has come to all");
            }
        }
        for RevokedToken { token, is_known, is_gone, is_lost, .. } in &self.revoked {
            for client in self.clients.iter().filter(|client| client.token == *token) {
                let is_known = *is_known && !(*is_gone && *is_lost);
                assert!(
                    client.over || !is_known,
                    "rule users: k{} is there with token {token}, which is revoked",
                    client.number
                );
            }
        }
    }

    /// Everything is quiet: every node knows who is on which channel, on all of them.
    pub(super) fn check_presence(&mut self) {
        if self.setup.presence == Presence::Off {
            return;
        }
        // Whoever was revoked at last has gone, and the others have heard it.
        let over = |world: &World| world.clients.iter().filter(|own| own.over).count();
        let mut quiet = 0;
        while quiet < 2 {
            let before = over(self);
            self.pass(200);
            self.settle();
            quiet = if over(self) == before { quiet + 1 } else { 0 };
        }
        let full = self.setup.presence == Presence::Full;
        for node in 0..self.nodes.len() {
            for (channel, name) in self.channels.names.clone().iter().enumerate() {
                let (reply, mut answer) = oneshot::channel();
                let name = ChannelName::new(name).expect("a name");
                let shards = &self.nodes[node].shared.shards;
                let reply = Reply::Control(reply);
                let (home, after) = (shards.home(&name), None);
                let ask = Request::Presence { channel: name.clone(), after, limit: 1000, reply };
                assert!(shards.request(home, ask).is_ok(), "rule presence: n{node} takes nothing");
                self.settle();
                let page = answer.try_recv().expect("rule presence: it is answered");
                let page = page.expect("rule presence: it is made where it is asked about");
                let there = self.clients.iter().filter(|own| own.listens(channel).is_some());
                let users = there.clone().map(|own| format!("user:u{}", user_of(self, own.number)));
                let (subscriptions, users) = (there.count(), users.collect::<BTreeSet<_>>());
                let count = if full { users.len() } else { subscriptions };
                let what = format!("rule presence: of {name} on n{node}");
                assert_eq!(page.count, count as u64, "{what}: {:?}, not {users:?}", page.present);
                assert_eq!(page.connections, subscriptions as u64, "{what}");
                let present = page.present.unwrap_or_default();
                let present: BTreeSet<String> =
                    present.iter().map(|own| own.who.to_string()).collect();
                assert!(!full || present == users, "{what}: {present:?}, not {users:?}");
            }
        }
    }
}
