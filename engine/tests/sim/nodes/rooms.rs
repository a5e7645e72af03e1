//! Rooms that are made, changed and ended over the API of any node: in the end all nodes go by the same word.

use std::sync::Arc;

use ringfeed_engine::access::{Room, RoomChange};
use ringfeed_engine::message::{Request, RoomDenied, RoomReport, RoomRequest};
use ringfeed_protocol::ChannelName;
use tokio::sync::oneshot;

use super::super::control::room_of;
use super::super::rooms::Terms;
use super::super::trace::note;
use super::World;

/// So many rooms there may be.
const ROOMS: usize = 3;

type Told = Result<RoomReport, RoomDenied>;

/// Something that was said of a room over the API of a node, which is not answered yet.
pub(super) struct Ordered {
    node: usize,
    room: usize,
    /// How many members it may have: nothing else ever says the same. `None` where it is to end.
    makes: Option<u32>,
    answer: oneshot::Receiver<Told>,
}

/// What holds in rooms of which nothing was said.
pub(super) fn by_rule() -> Arc<Room> {
    Arc::new(room_of(&Terms { public: true, anyone: true, ..Terms::default() }))
}

impl World {
    fn ask_room(&self, node: usize, room: usize, what: RoomRequest) -> oneshot::Receiver<Told> {
        let channel = ChannelName::new(&format!("r.{room}")).expect("a name");
        let (reply, answer) = oneshot::channel();
        let shards = &self.nodes[node].shared.shards;
        let request = Request::Room { channel: channel.clone(), what: what.into(), reply };
        // Who is not taken is not answered.
        let _ = shards.request(shards.home(&channel), request);
        answer
    }

    /// What a room is told that nothing else ever says: so many members.
    fn next_change(&mut self) -> (u32, RoomChange) {
        self.published += 1;
        let most = self.published as u32;
        (most, RoomChange { members_max: Some(most), ..RoomChange::default() })
    }

    pub(super) fn order_room(&mut self) {
        let (node, room) = (self.any_node(), self.dice.below(ROOMS));
        let (most, change) = self.next_change();
        let (makes, what) = match self.dice.below(4) {
            0 => (Some(most), RoomRequest::Change(change)),
            1 => (None, RoomRequest::End),
            _ => (Some(most), RoomRequest::Make(change)),
        };
        note!(self.trace, "the API of n{node} says of room {room}: {what:?}");
        let answer = self.ask_room(node, room, what);
        self.rooms.push(Ordered { node, room, makes, answer });
        self.look_at_rooms();
    }

    /// Forgets what is answered, and what a node was asked that has been killed.
    fn look_at_rooms(&mut self) {
        self.rooms.retain_mut(|own| {
            matches!(own.answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        });
    }

    /// What comes of it while nothing else happens.
    fn answer_of_room(&mut self, node: usize, room: usize, what: RoomRequest) -> Told {
        let mut answer = self.ask_room(node, room, what);
        self.settle();
        answer.try_recv().expect("rule rooms: it is answered")
    }

    fn shown_room(&mut self, node: usize, room: usize) -> RoomReport {
        let told = self.answer_of_room(node, room, RoomRequest::Show);
        told.expect("rule rooms: it is one by its rule")
    }

    /// Everything is quiet and nothing fails any more.
    pub(super) fn check_rooms(&mut self) {
        for room in 0..ROOMS {
            let nodes = 0..self.nodes.len();
            let said: Vec<RoomReport> = nodes.map(|node| self.shown_room(node, room)).collect();
            let same = said.iter().all(|own| *own == said[0]);
            assert!(same, "rule rooms: nodes do not agree about room {room}: {said:?}");
        }
        // What is said now is known everywhere as soon as that is answered.
        for (node, room) in (0..self.nodes.len()).flat_map(|node| [(node, 0), (node, 1)]) {
            let (most, change) = self.next_change();
            let makes = room == 0;
            let what = if makes { RoomRequest::Make(change) } else { RoomRequest::End };
            let told = self.answer_of_room(node, room, what);
            let is_done = match told {
                Ok(_) => true,
                Err(RoomDenied::NotMade) => !makes,
                Err(_) => false,
            };
            assert!(is_done, "rule rooms: n{node} says of room {room}: {told:?}");
            for other in 0..self.nodes.len() {
                let shown = self.shown_room(other, room);
                let expected = if makes { most } else { 0 };
                let is_it =
                    shown.rules.members_max == expected && shown.ends_when_empty.is_some() == makes;
                assert!(
                    is_it,
                    "rule rooms: n{other} does not know what n{node} has said: {shown:?}"
                );
            }
        }
        self.look_at_rooms();
        if let Some(Ordered { node, room, makes, .. }) = self.rooms.first() {
            panic!("rule rooms: n{node} does not answer what was said of room {room}: {makes:?}");
        }
    }
}
