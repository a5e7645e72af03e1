//! What stands between a connection and its shard: the door, which may have to wait for an answer from outside.
//!
//! The door itself is async code over sockets and is tested over real ones. Here is what its shard gets of it: who a
//! connection is, as that was found out when it came, at any time afterwards and in any order.

use std::os::fd::OwnedFd;

use super::client::Speaks;
use super::ledger::Found;
use super::net::{ConnId, Fate, Phase};
use super::trace::note;
use super::world::World;

/// A connection about which somebody is asked.
#[derive(Debug)]
pub(super) struct Knock {
    pub(super) conn: ConnId,
    pub(super) shard: usize,
    pub(super) socket: OwnedFd,
    pub(super) endpoint: usize,
    pub(super) speaks: Speaks,
    /// What has come behind its head.
    pub(super) rest: Vec<u8>,
    pub(super) found: Found,
}

impl World {
    /// Hands a connection to its shard.
    pub(super) fn let_in(&mut self, knock: Knock) {
        let Knock { conn, shard, socket, endpoint, speaks, rest, found } = knock;
        if self.cluster.has_ended(shard) {
            self.net.borrow_mut().conns[conn].phase = Phase::Refused;
            return self.look(conn);
        }
        self.net.borrow_mut().hand_over(conn);
        self.cluster.promote(shard, socket, endpoint, speaks, rest, (&found, conn, &self.setup));
    }

    /// Whether somebody is asked about a connection.
    pub(super) fn is_at_door(&self, conn: ConnId) -> bool {
        self.at_door.iter().any(|knock| knock.conn == conn)
    }

    /// A step: the door has its answer about some connection, whose client may have gone meanwhile.
    pub(super) fn answer_door(&mut self) {
        if self.at_door.is_empty() {
            return;
        }
        let at = self.dice.below(self.at_door.len());
        let knock = self.at_door.swap_remove(at);
        let conn = knock.conn;
        note!(self.trace, "c{conn} is let in");
        if self.dice.chance(100) {
            note!(self.trace, "c{conn} is gone");
            self.net.borrow_mut().conns[conn].fate = Fate::Reset;
            self.with_client(conn, |client, scene| client.ended(true, scene));
        }
        self.let_in(knock);
    }

    /// Nobody waits at the door any more.
    pub(super) fn clear_door(&mut self) {
        while !self.at_door.is_empty() {
            self.answer_door();
        }
    }
}
