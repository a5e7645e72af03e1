//! The users homed on this shard: which connections each has, on all shards, and which rooms it is in, where these are
//! limited.

use std::collections::{BTreeMap, BTreeSet};

use ringfeed_protocol::{ChannelName, Refused, UserId};
use smallvec::{SmallVec, smallvec};

use crate::ids::{ConnectionId, SessionId, ShardId};
use crate::message::{Delivery, Order, Reached, SESSIONS_PER_ORDER, Shards, UserConnection};
use crate::names::Names;

/// Why something is not sent.
const BEHIND: &str = "connections are behind with what is sent to them";

/// Whether outboxes of a shard have room for what is sent. One send is never too large for those that have.
pub(super) fn has_room(shards: &Shards, shard: ShardId, room: usize) -> Result<(), Refused> {
    let full = shards.end(shard).outboxes.bytes() > room;
    if full { Err(Refused::Unavailable { detail: BEHIND }) } else { Ok(()) }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Users {
    /// The first connection stands in the table itself: most users have no other.
    by_id: Names<UserId, SmallVec<[UserConnection; 1]>>,
    connections: usize,
    /// Rooms with the sessions that are there, or want to be.
    rooms: BTreeMap<UserId, Rooms>,
}

type Rooms = BTreeMap<ChannelName, BTreeSet<(ShardId, SessionId)>>;

impl Users {
    pub(super) fn new() -> Users {
        Users { by_id: Names::new(), connections: 0, rooms: BTreeMap::new() }
    }

    /// Counts a session of a user into a room. `false` where the user is in `most` others already.
    pub(super) fn enter(
        &mut self,
        user: &UserId,
        channel: &ChannelName,
        seat: (ShardId, SessionId),
        most: u32,
    ) -> bool {
        let rooms = self.rooms.get(user);
        let is_there = rooms.is_some_and(|rooms| rooms.contains_key(channel));
        if !is_there && rooms.map_or(0, BTreeMap::len) >= most as usize {
            return false;
        }
        let rooms = self.rooms.entry(user.clone()).or_default();
        rooms.entry(channel.clone()).or_default().insert(seat);
        true
    }

    /// Counts a session out of a room, if it was counted in.
    pub(super) fn leave_room(
        &mut self,
        user: &UserId,
        channel: &ChannelName,
        seat: (ShardId, SessionId),
    ) {
        let Some(rooms) = self.rooms.get_mut(user) else { return };
        let Some(seats) = rooms.get_mut(channel) else { return };
        seats.remove(&seat);
        if seats.is_empty() {
            rooms.remove(channel);
        }
        if rooms.is_empty() {
            self.rooms.remove(user);
        }
    }

    /// Counts a session out of all rooms.
    fn leave_rooms(&mut self, user: &UserId, seat: (ShardId, SessionId)) {
        let Some(rooms) = self.rooms.get_mut(user) else { return };
        rooms.retain(|_, seats| {
            seats.remove(&seat);
            !seats.is_empty()
        });
        if rooms.is_empty() {
            self.rooms.remove(user);
        }
    }

    /// Users who are there.
    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Counts a connection in. `false` where the user has `most` already; 0 is no limit.
    pub(super) fn join(&mut self, user: UserId, connection: UserConnection, most: u32) -> bool {
        match self.by_id.get_mut(&user) {
            Some(all) if most > 0 && all.len() >= most as usize => return false,
            Some(all) => all.push(connection),
            None => self.by_id.insert(user, smallvec![connection]),
        }
        self.connections += 1;
        true
    }

    /// Counts a connection out, if it was counted in, and out of its rooms.
    pub(super) fn leave(&mut self, user: &UserId, shard: ShardId, session: SessionId) {
        self.leave_rooms(user, (shard, session));
        let Some(all) = self.by_id.get_mut(user) else { return };
        let Some(at) = all.iter().position(|own| own.shard == shard && own.session == session)
        else {
            return;
        };
        all.swap_remove(at);
        self.connections -= 1;
        if all.is_empty() {
            self.by_id.remove(user);
        }
    }

    /// The connections of a user.
    pub(super) fn of(&self, user: &UserId) -> &[UserConnection] {
        self.by_id.get(user).map_or(&[], |connections| connections)
    }

    /// Hands an order to the shards of all connections of a user, or of one, in pieces. Returns to how many connections. What is
    /// sent is refused as long as more than `room` waits in the outboxes of one of the shards; then nobody gets it.
    pub(super) fn order(
        &self,
        user: &UserId,
        only: Option<ConnectionId>,
        order: &Order,
        (shards, room): (&Shards, usize),
        deliver: &mut dyn FnMut(ShardId, Delivery),
    ) -> Reached {
        let wanted = |own: &&UserConnection| only.is_none_or(|only| own.connection == only);
        let mut by_shard: SmallVec<[(ShardId, Vec<SessionId>); 4]> = SmallVec::new();
        let mut count = 0;
        for own in self.of(user).iter().filter(wanted) {
            count += 1;
            match by_shard.iter_mut().find(|(shard, _)| *shard == own.shard) {
                Some((_, sessions)) => sessions.push(own.session),
                None => by_shard.push((own.shard, vec![own.session])),
            }
        }
        if matches!(order, Order::Send { .. }) {
            by_shard.iter().try_for_each(|&(shard, _)| has_room(shards, shard, room))?;
        }
        for (shard, sessions) in by_shard {
            for sessions in sessions.chunks(SESSIONS_PER_ORDER) {
                let delivery =
                    Delivery::Order { sessions: sessions.to_vec(), order: order.clone() };
                shards.end(shard).outboxes.come(delivery.sent_bytes());
                deliver(shard, delivery);
            }
        }
        Ok(count)
    }

    /// Everybody who is counted in a room.
    pub(super) fn seats(&self) -> impl Iterator<Item = (&ChannelName, ShardId, SessionId)> {
        let rooms = self.rooms.values().flatten();
        rooms.flat_map(|(name, seats)| seats.iter().map(move |&(at, own)| (name, at, own)))
    }

    /// All connections, with their users.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&UserId, &UserConnection)> {
        let all = self.by_id.iter();
        all.flat_map(|(user, connections)| connections.iter().map(move |own| (user, own)))
    }

    /// Panics if what is counted is not what is there.
    pub(super) fn check(&self) {
        assert!(self.by_id.iter().all(|(_, all)| !all.is_empty()), "a user has connections");
        assert_eq!(self.iter().count(), self.connections, "connections of users");
        let mut rooms = self.rooms.values();
        let occupied = |rooms: &Rooms| rooms.values().all(|seats| !seats.is_empty());
        assert!(rooms.all(|own| !own.is_empty() && occupied(own)), "somebody is in each room");
    }
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::command::PayloadKind;

    use super::*;
    use crate::ids::SessionSlot;
    use crate::message::StoredPayload;

    fn connection(shard: u16, slot: u32) -> UserConnection {
        let (shard, session) =
            (ShardId(shard), SessionId { slot: SessionSlot(slot), generation: 1 });
        let connection = ConnectionId { shard, number: slot.into() };
        UserConnection { shard, session, connection, since: 0 }
    }

    #[test]
    fn an_order_to_many_goes_in_pieces_that_a_turn_can_bear() {
        let mut users = Users::new();
        let ann = UserId::new("ann").unwrap();
        let count = 3 * SESSIONS_PER_ORDER as u32;
        (0..2 * count).for_each(|i| {
            let shard = u16::from(i % 2 == 0);
            assert!(users.join(ann.clone(), connection(shard, i), 0));
        });
        let mut delivered: [Vec<SessionId>; 2] = Default::default();
        let mut deliver = |shard: ShardId, delivery: Delivery| {
            let Delivery::Order { sessions, .. } = delivery else { panic!("{delivery:?}") };
            assert!((1..=SESSIONS_PER_ORDER).contains(&sessions.len()), "{}", sessions.len());
            delivered[shard.index()].extend(sessions);
        };
        let to = (&shards(), 0);
        assert_eq!(users.order(&ann, None, &Order::TooMany, to, &mut deliver), Ok(2 * count));
        for (shard, sessions) in (0u16..).zip(delivered) {
            let expected = (0..2 * count).filter(|i| u16::from(i % 2 == 0) == shard);
            let expected = expected.map(|i| connection(shard, i).session);
            assert_eq!(sessions, expected.collect::<Vec<_>>());
        }
    }

    fn shards() -> Shards {
        let queues = (0..3).map(|_| {
            let event_fd = tempfile::tempfile().unwrap();
            crate::message::queues(crate::message::Waker::new(event_fd), 1).0
        });
        Shards::new(queues.collect(), [1, 2])
    }

    #[test]
    fn a_room_counts_once_for_all_connections_of_a_user() {
        let mut users = Users::new();
        let (ann, bob) = (UserId::new("ann").unwrap(), UserId::new("bob").unwrap());
        let room = |name: &str| ChannelName::new(name).unwrap();
        let seat = |slot: u32| (connection(0, slot).shard, connection(0, slot).session);
        for (slot, name, fits) in [
            (1, "a", true),
            (1, "b", true),
            (1, "c", false),
            (2, "a", true),
            (2, "a", true),
            (2, "c", false),
        ] {
            assert_eq!(users.enter(&ann, &room(name), seat(slot), 2), fits, "{slot} {name}");
            users.check();
        }
        assert!(users.enter(&bob, &room("c"), seat(3), 2), "he is somebody else");
        users.leave_room(&ann, &room("a"), seat(1));
        users.leave_room(&ann, &room("a"), seat(1));
        assert!(!users.enter(&ann, &room("c"), seat(1), 2), "another connection is in a");
        users.leave_room(&ann, &room("c"), seat(1));
        users.leave(&ann, seat(2).0, seat(2).1);
        assert!(users.enter(&ann, &room("c"), seat(1), 2));
        assert_eq!(users.seats().count(), 3);
        users.leave(&ann, seat(1).0, seat(1).1);
        users.leave(&bob, seat(3).0, seat(3).1);
        users.check();
        assert_eq!((users.seats().count(), users.rooms.len()), (0, 0));
    }

    #[test]
    fn an_order_goes_once_to_each_shard_and_names_the_connections_there() {
        let shards = shards();
        let mut users = Users::new();
        let ann = UserId::new("ann").unwrap();
        for (shard, slot) in [(0, 1), (1, 1), (0, 2)] {
            assert!(users.join(ann.clone(), connection(shard, slot), 3));
        }
        assert!(!users.join(ann.clone(), connection(2, 9), 3), "she has three");
        let mut delivered = Vec::new();
        let mut deliver = |shard: ShardId, delivery: Delivery| {
            let Delivery::Order { sessions, .. } = delivery else { panic!("{delivery:?}") };
            delivered.push((shard.0, sessions.len()));
        };
        let room = (&shards, 1000);
        assert_eq!(users.order(&ann, None, &Order::TooMany, room, &mut deliver), Ok(3));
        let one = connection(1, 1).connection;
        assert_eq!(users.order(&ann, Some(one), &Order::TooMany, room, &mut deliver), Ok(1));
        // One shard without room: nobody is sent anything, not even on the other; who has to go goes.
        shards.end(ShardId(0)).outboxes.hold(1001);
        let payload = StoredPayload { kind: PayloadKind::Text, bytes: "hi".into() };
        let send = Order::Send { from: None, payload };
        assert!(users.order(&ann, None, &send, room, &mut deliver).is_err());
        assert_eq!(shards.end(ShardId(1)).outboxes.coming(), 0);
        assert_eq!(users.order(&ann, None, &Order::TooMany, room, &mut deliver), Ok(3));
        // What is under way counts like what is there.
        assert_eq!(users.order(&ann, Some(one), &send, (&shards, 0), &mut deliver), Ok(1));
        assert!(users.order(&ann, Some(one), &send, (&shards, 0), &mut deliver).is_err());
        assert_eq!(delivered, [(0, 2), (1, 1), (1, 1), (0, 2), (1, 1), (1, 1)]);
        for (shard, slot) in [(0, 1), (0, 1), (1, 1), (0, 2), (2, 9)] {
            let UserConnection { shard, session, .. } = connection(shard, slot);
            users.leave(&ann, shard, session);
            users.check();
        }
        assert_eq!((users.count(), users.of(&ann).len()), (0, 0));
    }
}
