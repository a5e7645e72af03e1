//! What the control thread has to do with rooms, and what nodes tell one another of them.

use std::sync::Arc;

use ringfeed_protocol::{ChannelName, Refused, UserId};
use tokio::sync::oneshot;

use crate::access::{MadeRoom, Room, RoomChange};

/// Something for the home of a room.
#[derive(Debug)]
pub enum RoomRequest {
    /// It is made, or is from now on as if it were made anew: what is not said is as the channel's rule says.
    Make(RoomChange),
    /// It was made, and is changed: what is not said stays.
    Change(RoomChange),
    /// What it is like.
    Show,
    /// It was made, and ends: its members are unsubscribed.
    End,
}

impl RoomRequest {
    /// Whether the room may take more memory then.
    pub(crate) fn adds(&self) -> bool {
        matches!(self, RoomRequest::Make(_) | RoomRequest::Change(_))
    }
}

/// Where the answer goes.
pub type RoomReply = oneshot::Sender<Result<RoomReport, RoomDenied>>;

/// What a room is like; of one that ends, what it was like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomReport {
    /// What holds there.
    pub rules: Arc<Room>,
    /// Of a room that was made: whether it ends when its last member leaves. `None` of one by the configuration alone.
    pub ends_when_empty: Option<bool>,
    /// Subscriptions.
    pub members: u64,
}

/// Why something is not done with a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomDenied {
    /// The channel's rule does not say that it is one.
    NoRooms,
    /// It was not made.
    NotMade,
    /// It cannot be made at present, or other nodes cannot be told.
    Refused(Refused),
    /// It is so on this node, and another one has no room for it.
    NotEverywhere,
}

/// When something was said of a room: of two of them the later counts, everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoomVersion {
    /// In milliseconds since 1970 by the clock of the node that has said it, and in any case later than all that this had heard
    /// of the room.
    pub at_ms: u64,
    /// Drawn at random: decides between those of one millisecond.
    pub tie: u64,
}

/// What counts of a room that is made over the API, or was, on all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomWord {
    /// Which.
    pub channel: ChannelName,
    /// When it was said.
    pub version: RoomVersion,
    /// What.
    pub state: RoomState,
}

/// See [`RoomWord`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomState {
    /// It is there, and like this.
    Made(MadeRoom),
    /// It has ended, as the application has said.
    Ended,
    /// It has ended with its last member. A node that has members nevertheless, who have come meanwhile, says that it goes on.
    Empty,
}

impl RoomState {
    /// What it is like, where it is there.
    pub fn made(&self) -> Option<&MadeRoom> {
        match self {
            RoomState::Made(room) => Some(room),
            RoomState::Ended | RoomState::Empty => None,
        }
    }
}

impl RoomWord {
    /// Bytes that it takes, about, in memory and as it is written.
    pub(crate) fn bytes(&self) -> usize {
        let users = |list: &std::collections::BTreeSet<UserId>| {
            list.iter().map(|user| user.len() + 1).sum::<usize>()
        };
        let lists = self.state.made().map_or(0, |room| {
            let Room { moderators, members, .. } = &*room.rules;
            users(moderators) + users(members)
        });
        self.channel.len() + 64 + lists
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use crate::callers::KeyHash;
    use crate::config::Speakers;

    /// One with everything, and so many users invited whose ids are as long as they may be.
    pub(crate) fn made_room(users: usize) -> MadeRoom {
        let user = |number: usize| UserId::new(&format!("{number:0>255}")).unwrap();
        let rules = Room {
            members_max: 7,
            public: false,
            moderated: true,
            speak: Speakers::Anyone,
            password: Some(KeyHash::of(b"hush")),
            moderators: [UserId::new("ann").unwrap()].into(),
            members: (0..users).map(user).collect(),
        };
        MadeRoom { rules: Arc::new(rules), ends_when_empty: true }
    }
}
