//! What crosses between shards, and between the control thread and the shards.
//!
//! *Requests* (subscribe, publish, …) are work for a channel's home and may cause *deliveries*;
//! deliveries (chunks, answers) are work for the shard of a subscriber. What a delivery causes (a
//! session that it closes unsubscribes) waits in the sender's own links and holds nothing up: a shard
//! that cannot get rid of its deliveries stops taking requests, but never the other way round, so two
//! shards cannot wait for each other. Nothing is dropped: what does not fit waits in the sender's
//! `Links`, and publishers are slowed down there.

mod delivery;
mod errand;
mod forward;
mod link;
mod mailbox;
mod presence;
mod question;
mod request;
mod room;
mod upstream;

pub(crate) use delivery::SESSIONS_PER_ORDER;
pub use delivery::{
    ChannelPage, ChannelRow, Chunk, Delivery, FrameEnd, FrameIndex, HistoryPage, Naming, Order,
    Origin, Replay, Skip, Start, StoredPayload, StoredPublication,
};
pub use errand::{Errand, ErrandId, Gathered, Kept, Listed, Outcome};
pub(crate) use forward::FORWARDS_BYTES_MAX;
pub use forward::{Forward, Forwards};
pub(crate) use link::Links;
pub(crate) use mailbox::QUEUE_BYTES_MAX;
pub use mailbox::{Inbox, NotTaken, QUEUE_BATCHES, ShardEnd, Shards, Waker, queues};
pub use presence::{Change, Confirming, News, PresencePage, Present, Roll, RollEntry, Someone};
pub(crate) use question::CALLS_MAX;
pub use question::{
    Answer, Asked, Caller, ConnectRequest, Denied, Heard, QUESTIONS_MAX, Question, Questions,
    SubscribeAllowed,
};
pub(crate) use request::key_bytes;
pub use request::{
    Ack, By, Confirm, KeyDigest, KeyOf, Keyed, Missing, NodesRequest, Post, Published, Reached,
    Receipt, Reply, Request, Revocation, Revoked, Sender, Speaker, UserConnection, UserRequest,
    Wanted,
};
#[cfg(test)]
pub(crate) use room::samples as room_samples;
pub use room::{RoomDenied, RoomReply, RoomReport, RoomRequest, RoomState, RoomVersion, RoomWord};
pub(crate) use upstream::shared_with;
pub use upstream::{Followed, FromUpstream, Numbered, Outgoing, Stored, ToUpstream, Upstream};
