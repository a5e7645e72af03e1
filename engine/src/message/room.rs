//! What the control thread has to do with rooms.

use std::sync::Arc;

use ringfeed_protocol::Refused;
use tokio::sync::oneshot;

use crate::access::{Room, RoomChange};

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
    /// It cannot be made at present.
    Refused(Refused),
}
