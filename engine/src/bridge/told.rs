//! What shards are to be told, as requests.

use ringfeed_protocol::ChannelName;

use super::errands::Asker;
use super::nodes::RESTORED;
use crate::ids::ShardId;
use crate::message::{
    Errand, ErrandId, FromUpstream, Gathered, Kept, Missing, NodesRequest, Post, Request,
    Revocation, RoomWord, Shards,
};

/// What shards are to be told.
#[derive(Debug)]
pub enum Told {
    /// The home of the request's channel.
    Home(ChannelName, FromUpstream),
    /// The home of a channel that is not numbered: what another node has published, or another program.
    Shared(Post),
    /// All shards: homes that follow ask again.
    Resume,
    /// All shards: something is missing that was published elsewhere on channels that are not numbered.
    Missed(Missing),
    /// The home of a user, or the shard of a connection: another node asks something of this one.
    Errand(ShardId, ErrandId, Box<Errand>),
    /// Who has asked something of all nodes: what has come of it.
    Gathered(Asker, Gathered),
    /// All shards: somebody is let in no more.
    Revoked(Revocation),
    /// The home of a room: what another node has said of it.
    Room(Box<RoomWord>),
    /// All shards: another process that was taken for gone is there.
    Back(u64),
    /// All shards: another process is not there any more; and which one this is.
    Gone(u64, u64),
}

impl Told {
    /// Hands it over as requests: to the home of its channel, or to all shards.
    pub fn hand_over(self, shards: &Shards, mut put: impl FnMut(ShardId, Request)) {
        match self {
            Told::Home(channel, what) => {
                let what = Box::new(what);
                put(shards.home(&channel), Request::Upstream { channel, what });
            }
            Told::Shared(post) => put(shards.home(&post.channel), Request::Shared(vec![post])),
            Told::Resume => shards.ids().for_each(|to| put(to, Request::Resume)),
            Told::Missed(what) => shards.ids().for_each(|to| put(to, Request::Missed(what))),
            Told::Errand(to, id, errand) => {
                put(to, Request::Nodes(NodesRequest::Errand { id, errand }));
            }
            Told::Gathered((to, ticket), gathered) => {
                put(to, Request::Nodes(NodesRequest::Gathered { ticket, gathered }));
            }
            Told::Room(word) => {
                let (to, id) =
                    (shards.home(&word.channel), ErrandId { instance: 0, number: RESTORED });
                let errand = Box::new(Errand::Keep(Kept::Room(word)));
                put(to, Request::Nodes(NodesRequest::Errand { id, errand }));
            }
            Told::Back(instance) => {
                shards.ids().for_each(|to| put(to, Request::NodeBack(instance)));
            }
            Told::Gone(instance, own) => {
                shards.ids().for_each(|to| put(to, Request::NodeGone { instance, own }));
            }
            Told::Revoked(revocation) => {
                shards.ids().for_each(|to| put(to, Request::Revoke(revocation.clone())));
            }
        }
    }
}
