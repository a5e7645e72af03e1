//! Who is on a channel, as it crosses between threads.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Position, UserId, event};

use super::question::Caller;
use crate::access::Identity;
use crate::ids::ConnectionId;

/// Somebody who may be on a channel: a user with all of their connections, or one connection that is nobody's. Neither
/// passes for the other, whatever a user is called. Written `user:ID` and `connection:ID`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Someone {
    /// A user.
    User(UserId),
    /// A connection without a user.
    Connection(ConnectionId),
}

impl Someone {
    /// Who a connection is.
    pub fn of(caller: &Caller) -> Someone {
        match &caller.identity.user {
            Some(user) => Someone::User(user.clone()),
            None => Someone::Connection(caller.connection),
        }
    }
}

impl Someone {
    /// Hands some of them over as dialects need them.
    pub(crate) fn show<'a, T>(
        all: impl Iterator<Item = &'a Someone> + Clone,
        show: impl FnOnce(Vec<event::Someone>) -> T,
    ) -> T {
        let named = |own: &Someone| match own {
            Someone::User(_) => None,
            Someone::Connection(connection) => Some(connection.to_string()),
        };
        let connections: Vec<Option<String>> = all.clone().map(named).collect();
        let shown = all.zip(&connections).filter_map(|(own, connection)| match own {
            Someone::User(user) => Some(event::Someone::User(user)),
            Someone::Connection(_) => connection.as_deref().map(event::Someone::Connection),
        });
        show(shown.collect())
    }
}

impl fmt::Display for Someone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Someone::User(user) => write!(f, "user:{user}"),
            Someone::Connection(connection) => write!(f, "connection:{connection}"),
        }
    }
}

/// What came names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("somebody is named user:ID or connection:ID, as 'next' has it")]
pub struct NobodyNamed;

impl FromStr for Someone {
    type Err = NobodyNamed;
    fn from_str(text: &str) -> Result<Someone, NobodyNamed> {
        match text.split_once(':') {
            Some(("user", id)) => UserId::new(id).map(Someone::User).map_err(|_| NobodyNamed),
            Some(("connection", id)) => {
                id.parse().map(Someone::Connection).map_err(|_| NobodyNamed)
            }
            _ => Err(NobodyNamed),
        }
    }
}

/// Somebody who is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Present {
    /// Who.
    pub who: Someone,
    /// What others are shown of them is in it.
    pub identity: Arc<Identity>,
}

impl Present {
    /// Hands some of them over as dialects need them.
    pub(crate) fn show<T>(all: &[Present], show: impl FnOnce(Vec<event::Present>) -> T) -> T {
        Someone::show(all.iter().map(|own| &own.who), |names| {
            let shown = names.into_iter().zip(all).map(|(who, own)| {
                let info = own.identity.info.as_deref();
                event::Present { who, info }
            });
            show(shown.collect())
        })
    }
}

/// Who is on a channel, or some of them.
#[derive(Debug)]
pub struct PresencePage {
    /// The newest position of the channel.
    pub position: Position,
    /// How often who is there has changed in this life of the channel.
    pub version: u64,
    /// How many are there: users, and connections without one.
    pub count: u64,
    /// How many connections these have.
    pub connections: u64,
    /// In order; `None` where only numbers are kept or shown.
    pub present: Option<Vec<Present>>,
    /// There are more behind the last of them.
    pub more: bool,
}

impl PresencePage {
    /// Bytes that it holds while it waits; what is shown of somebody is the home's.
    pub(crate) fn cost(&self) -> usize {
        size_of::<PresencePage>() + self.present.as_ref().map_or(0, |all| size_of_val(&all[..]))
    }

    /// From where to ask on, where there are more.
    pub fn next(&self) -> Option<String> {
        let last = self.present.as_ref().filter(|_| self.more)?.last()?;
        Some(last.who.to_string())
    }
}

/// What a node says of who is on a channel there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roll {
    /// Who is not named is not there; else it is what has changed.
    pub whole: bool,
    /// It is not the continuation of another one, …
    pub first: bool,
    /// … and goes on in another one.
    pub more: bool,
    /// The others are to say it of themselves, too.
    pub asks: bool,
    /// Whether the channel is there at all.
    pub has_it: bool,
    /// Subscriptions there.
    pub subscribers: u32,
    /// Users, and connections without one, where that is kept.
    pub entries: Vec<RollEntry>,
}

impl Roll {
    /// That the channel is not there.
    pub(crate) fn not_there() -> Roll {
        Roll { whole: true, first: true, ..Roll::default() }
    }

    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        let entries = self.entries.iter().map(RollEntry::cost).sum::<usize>();
        size_of::<Roll>() + entries
    }
}

/// Somebody on a node.
#[derive(Debug, Clone, PartialEq)]
pub struct RollEntry {
    /// Who.
    pub who: Someone,
    /// Whether they are there, or have left.
    pub is_there: bool,
    /// Who has left was nowhere else, as far as that node knew: it tells the application.
    pub last: bool,
    /// What others are shown of them.
    pub info: Option<Box<str>>,
}

impl RollEntry {
    /// Bytes that it holds, about.
    pub(crate) fn cost(&self) -> usize {
        size_of::<RollEntry>() + 16 + self.info.as_ref().map_or(0, |info| info.len())
    }
}

/// What two nodes tell each other of who has got a publication of one of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Confirming {
    /// To all others: who has the channel says so as it comes there ([`Confirming::Came`]), and who has not, at once.
    Who {
        /// By which the home where it is waited for knows it.
        number: u64,
    },
    /// It has come to a node that it is not of.
    Came {
        /// As above.
        number: u64,
        /// Who is on the channel there, or some of them.
        who: Vec<Someone>,
        /// These are the last ones.
        last: bool,
    },
    /// Somebody there has got it.
    Confirm {
        /// As above.
        number: u64,
        /// Who.
        who: Someone,
        /// Under which it is answered with [`Confirming::Confirmed`], where that is wanted.
        ticket: Option<u64>,
    },
    /// To [`Confirming::Confirm`].
    Confirmed {
        /// As given.
        ticket: u64,
        /// Whether that was waited for.
        in_time: bool,
    },
}

impl Confirming {
    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        let who = match self {
            Confirming::Came { who, .. } => size_of_val(&who[..]) + 16 * who.len(),
            Confirming::Who { .. } | Confirming::Confirm { .. } | Confirming::Confirmed { .. } => 0,
        };
        size_of::<Confirming>() + who
    }
}

/// A user's first connection has come to a channel, or the last one has left it.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The channel.
    pub channel: ChannelName,
    /// Its life.
    pub epoch: Epoch,
    /// The user.
    pub user: UserId,
    /// Whether the user has come.
    pub joined: bool,
    /// What others are shown of them is in it.
    pub identity: Arc<Identity>,
}

/// What the application is told at once of who comes and goes.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// The same when it is told again.
    pub id: u128,
    /// When it was put together, in seconds since 1970.
    pub unix_s: u64,
    /// Changes before these of which the application will not hear.
    pub lost: u64,
    /// In the order in which they came.
    pub changes: Vec<Change>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;

    #[test]
    fn nobody_passes_for_somebody_else() {
        let connection = ConnectionId { shard: ShardId(1), number: 7 };
        let user = |id: &str| Someone::User(UserId::new(id).unwrap());
        let all = [
            user("ann"),
            user(&connection.to_string()),
            user("user:ann"),
            user(&Someone::Connection(connection).to_string()),
            Someone::Connection(connection),
        ];
        for own in &all {
            assert_eq!(own.to_string().parse::<Someone>().as_ref(), Ok(own));
            assert_eq!(all.iter().filter(|other| *other == own).count(), 1);
        }
        for bad in ["", "ann", "user:", "connection:ann", "User:ann", "connection:"] {
            assert_eq!(bad.parse::<Someone>(), Err(NobodyNamed), "{bad}");
        }
    }
}
