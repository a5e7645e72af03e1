//! What one node asks of all others: things about users and connections, which are wherever they are.

use ringfeed_protocol::{Refused, UserId};

use super::delivery::Order;
use super::request::{Revocation, UserConnection};
use super::room::RoomWord;
use crate::ids::ConnectionId;

/// Something that every node is to do, for those of its connections whom it concerns.
#[derive(Debug, Clone)]
pub enum Errand {
    /// An order for all connections of a user, or for one if it is that user's.
    User {
        /// The user.
        user: UserId,
        /// Which connection; `None` for all.
        connection: Option<ConnectionId>,
        /// What.
        order: Order,
    },
    /// An order for one connection.
    Connection {
        /// Which.
        connection: ConnectionId,
        /// What.
        order: Order,
    },
    /// To say which connections a user has.
    List {
        /// The user.
        user: UserId,
    },
    /// To know something, which nodes that come later are to know, too.
    Keep(Kept),
}

/// What is known on all nodes, also on those that come later, for as long as it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// Somebody is let in no more.
    Revoked(Revocation),
    /// What counts of a room that was made over the API.
    Room(Box<RoomWord>),
}

impl Errand {
    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        let order = match self {
            Errand::User { order, .. } | Errand::Connection { order, .. } => order.cost(),
            Errand::Keep(Kept::Room(word)) => word.bytes(),
            Errand::List { .. } | Errand::Keep(Kept::Revoked(_)) => 0,
        };
        size_of::<Errand>() + order
    }
}

/// An errand among those of all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrandId {
    /// The process that asks.
    pub instance: u64,
    /// Counts what it asks.
    pub number: u64,
}

/// What a node, or all of them together, have to say to an errand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// To how many connections an order was handed.
    pub reached: u32,
    /// Connections of a user.
    pub connections: Vec<Listed>,
    /// Connections are behind with what is sent to them, and so nobody was sent it; of several nodes, on one of them.
    pub behind: bool,
    /// There is no room for what is to be known.
    pub no_room: bool,
}

impl Outcome {
    /// Of an order.
    pub(crate) fn of_order(reached: &Result<u32, Refused>) -> Outcome {
        let (reached, behind) = (*reached.as_ref().unwrap_or(&0), reached.is_err());
        Outcome { reached, behind, ..Outcome::default() }
    }

    /// Of several nodes.
    pub(crate) fn add(&mut self, Outcome { reached, connections, behind, no_room }: Outcome) {
        self.reached = self.reached.saturating_add(reached);
        self.connections.extend(connections);
        self.behind |= behind;
        self.no_room |= no_room;
    }
}

/// What has come of an errand on all other nodes, or why that is not known.
pub type Gathered = Result<Outcome, Refused>;

/// A connection of a user, as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub connection: ConnectionId,
    /// Seconds since 1970 in which it was authenticated.
    pub since: u64,
}

impl From<&UserConnection> for Listed {
    fn from(UserConnection { connection, since, .. }: &UserConnection) -> Listed {
        Listed { connection: *connection, since: *since }
    }
}
