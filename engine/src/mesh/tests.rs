use std::collections::BTreeMap;

use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{Offset, Position};

use super::transfer::Transfer;
use super::*;
use crate::bridge::{Append, Item, Read};
use crate::message::KeyDigest;
use crate::registry::views::Member;

const LEASE_MS: u64 = 1_000_000;

/// Nodes between which frames go as they are handed on.
struct Nodes {
    meshes: BTreeMap<u64, Mesh>,
    view: View,
    number: u64,
    now_ms: u64,
}

impl Nodes {
    fn new(instances: &[u64]) -> Nodes {
        let mesh = |instance: &u64| {
            let keep = Keep { size: 1000, bytes: 0, age_ms: 0, idle_ms: u64::MAX, keys_ms: 60_000 };
            let own = Own {
                instance: Instance(*instance),
                seed: *instance,
                placing_key: [1, 2],
                patience_ms: 60_000,
                channels_max: 1000,
                bytes_max: usize::MAX,
                handed_bytes: 1,
                rules: Box::new(move |_| keep),
                revoked: Arc::new(RevokedTable::new(1)),
                rooms: Arc::new(RoomTable::new(1)),
            };
            (*instance, Mesh::new(own, 1000))
        };
        let meshes: BTreeMap<u64, Mesh> = instances.iter().map(mesh).collect();
        let mut nodes = Nodes { meshes, view: View::default(), number: 0, now_ms: 1000 };
        for a in instances {
            for b in instances.iter().filter(|b| *b != a) {
                nodes.mesh(*a).opened(Instance(*b));
            }
        }
        nodes
    }

    fn mesh(&mut self, instance: u64) -> &mut Mesh {
        self.meshes.get_mut(&instance).unwrap()
    }

    /// These go by another view from now on, and hear of it in this order.
    fn go_by(&mut self, members: &[u64], leaving: &[u64]) {
        let before = self.view.members.iter().map(|member| member.instance).collect();
        let member = |own: &u64| Member {
            id: format!("n{own}").parse().unwrap(),
            instance: Instance(*own),
            peer: "127.0.0.1:1".parse().unwrap(),
            leaving: leaving.contains(own),
        };
        let (number, previous) = (self.view.number + 1, self.view.number);
        let members = members.iter().map(member).collect();
        self.view = View { number, previous, members, before, wait_ms: 0 };
        for mesh in self.meshes.values_mut() {
            mesh.adopt(self.view.clone());
            mesh.lease(number, self.now_ms, LEASE_MS);
        }
    }

    /// Hands frames on until there are no more, but for those of which this says so. Gives what was transferred.
    fn hand_on(&mut self, lost: impl Fn(u64, &Frame) -> bool) -> Vec<Transfer> {
        let mut transfers = Vec::new();
        loop {
            let mut frames = Vec::new();
            for (from, mesh) in &mut self.meshes {
                mesh.give_lives(|_| true);
                frames.extend(mesh.take_frames().map(|(to, frame)| (*from, to, frame)));
            }
            if frames.is_empty() {
                return transfers;
            }
            for (from, to, frame) in
                frames.into_iter().filter(|(from, _, frame)| !lost(*from, frame))
            {
                if let Frame::Transfer(_, transfer) = &frame {
                    transfers.push(transfer.clone());
                }
                self.mesh(to.0).heard(Instance(from), frame);
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now_ms += 1;
            self.meshes.values_mut().for_each(|mesh| mesh.tick(self.now_ms));
        }
    }

    fn ask(&mut self, node: u64, command: Command) -> u64 {
        self.number += 1;
        let number = self.number;
        self.mesh(node).command(number, command);
        number
    }

    /// What has come of it.
    fn answer(&mut self, node: u64, number: u64) -> Option<Reply> {
        let mesh = self.mesh(node);
        let said: Vec<Said> = std::iter::from_fn(|| mesh.take_said()).collect();
        said.into_iter().find_map(|said| match said {
            Said::Answered(of, reply) if of == number => Some(reply.unwrap()),
            _ => None,
        })
    }

    /// Publishes under a key.
    fn append(&mut self, node: u64, channel: &str, key: u8) -> (Epoch, Offset, usize) {
        let number = self.number + 1;
        let bytes = Bytes::from(vec![key; 700]);
        let item = Item { number, bytes, key: Some(KeyDigest([key; 16])) };
        let channel = ChannelName::new(channel).unwrap();
        let append = Append { channel, instance: node, items: vec![item] };
        let number = self.ask(node, Command::Append(append));
        self.hand_on(|_, _| false);
        match self.answer(node, number) {
            Some(Reply::Appended { epoch, last, duplicates }) => (epoch, last, duplicates.len()),
            other => panic!("{other:?}"),
        }
    }

    /// Where a channel stands, and how much of it is remembered.
    fn read(&mut self, node: u64, channel: &str) -> Option<Position> {
        let channel = ChannelName::new(channel).unwrap();
        let since = Some(Position { epoch: Epoch(0), offset: Offset(0) });
        let number = self.ask(node, Command::Read(Read { channel, since }));
        self.hand_on(|_, _| false);
        match self.answer(node, number) {
            Some(Reply::Read(followed)) => Some(followed.position),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    fn kept(&self, node: u64) -> usize {
        self.meshes[&node].store().bytes()
    }
}

const CHANNEL: &str = "n.1";

fn keeper(nodes: &Nodes) -> u64 {
    nodes.meshes.values().next().unwrap().keeper(CHANNEL).unwrap().0
}

/// Two nodes, the one of the channel's keeper first, and where the channel stands after so many publications.
fn kept(publications: u8) -> (Nodes, [u64; 2], Epoch) {
    let mut nodes = Nodes::new(&[1, 2]);
    nodes.go_by(&[1, 2], &[]);
    nodes.hand_on(|_, _| false);
    let first = keeper(&nodes);
    let mut epoch = Epoch(0);
    for key in 1..=publications {
        let (of, offset, duplicates) = nodes.append(first, CHANNEL, key);
        assert_eq!((offset, duplicates), (Offset(key.into()), 0));
        epoch = of;
    }
    (nodes, [first, 3 - first], epoch)
}

#[test]
fn a_channel_goes_on_in_its_life_with_all_that_is_known_of_it_where_its_keeper_leaves() {
    let (mut nodes, [first, second], epoch) = kept(100);
    assert_eq!((nodes.kept(first), nodes.kept(second)), (70_000, 0));
    assert!(!nodes.mesh(first).is_relieved());
    nodes.go_by(&[1, 2], &[first]);
    assert_eq!(nodes.meshes[&second].keeper(CHANNEL), Some(Instance(second)));
    assert!(!nodes.mesh(first).is_relieved());
    let transfers = nodes.hand_on(|_, _| false);
    assert!(nodes.mesh(first).is_relieved() && !nodes.mesh(second).awaits_lives());
    // Each says when that is all.
    assert_eq!(transfers.iter().filter(|own| **own == Transfer::End).count(), 2);
    assert_eq!((nodes.kept(first), nodes.kept(second)), (0, 70_000));
    // What was published is known again, and what comes next stands behind it.
    assert_eq!(nodes.append(first, CHANNEL, 100), (epoch, Offset(100), 1));
    assert_eq!(nodes.append(first, CHANNEL, 101), (epoch, Offset(101), 0));
    nodes.go_by(&[second], &[]);
    nodes.hand_on(|_, _| false);
    assert_eq!(nodes.append(second, CHANNEL, 102), (epoch, Offset(102), 0));
}

#[test]
fn who_hands_nothing_over_is_waited_for_and_what_comes_later_does_not_count() {
    let (mut nodes, [first, second], epoch) = kept(3);
    nodes.go_by(&[1, 2], &[first]);
    let late = |from: u64, frame: &Frame| from == first && matches!(frame, Frame::Transfer(..));
    nodes.hand_on(late);
    assert_eq!(nodes.read(second, CHANNEL), None, "it waits");
    nodes.pass(transfer::PATIENCE_MS - 1);
    assert_eq!(nodes.read(second, CHANNEL), None, "it still does");
    nodes.pass(1);
    let stands = nodes.read(second, CHANNEL).unwrap();
    assert_ne!(stands.epoch, epoch);
    let life = store::Life { epoch, offset: Offset(3), done: vec![], keys: vec![] };
    let number = nodes.view.number;
    let name = ChannelName::new("n.2").unwrap();
    let frame = Frame::Transfer(number, Transfer::Life(name, life));
    nodes.mesh(second).heard(Instance(first), frame);
    nodes.pass(1);
    assert_ne!(nodes.read(second, "n.2").unwrap().epoch, epoch);
}

#[test]
fn what_is_handed_over_by_an_earlier_view_does_not_count() {
    let (mut nodes, [first, second], epoch) = kept(3);
    nodes.go_by(&[1, 2], &[first]);
    let number = nodes.view.number;
    nodes.go_by(&[1, 2], &[first]);
    let life = store::Life { epoch, offset: Offset(3), done: vec![], keys: vec![] };
    let frame = Frame::Transfer(number, Transfer::Life(ChannelName::new(CHANNEL).unwrap(), life));
    nodes.mesh(second).heard(Instance(first), frame);
    nodes.hand_on(|_, _| false);
    assert_ne!(nodes.read(second, CHANNEL).unwrap().epoch, epoch);
}

#[test]
fn more_history_than_there_ever_was_is_refused() {
    let history = |count: usize| std::iter::repeat_n((0, Bytes::new()), count).collect();
    let life = |offset| store::Life {
        epoch: Epoch(1),
        offset: Offset(offset),
        done: vec![],
        keys: vec![],
    };
    assert!(store::Kept::of(life(3), history(3), 0).is_some());
    assert!(store::Kept::of(life(3), history(4), 0).is_none());
    assert!(store::Kept::of(life(u64::MAX), history(0), 0).is_none());
}

#[test]
fn what_is_published_before_a_link_is_there_comes_over_it() {
    let mut nodes = Nodes::new(&[1, 2]);
    for (own, other) in [(1, 2), (2, 1)] {
        nodes.mesh(own).closed(Instance(other));
    }
    nodes.go_by(&[1, 2], &[]);
    let channel = ChannelName::new("b").unwrap();
    let share = |number: u8, size: usize| Command::Share {
        channel: channel.clone(),
        bytes: Bytes::from(vec![number; size]),
    };
    // More than is kept: the oldest is given up.
    for number in 0..10 {
        nodes.ask(1, share(number, 1 << 20));
    }
    let told = |nodes: &mut Nodes| -> Vec<u8> {
        nodes.hand_on(|_, _| false);
        let mesh = nodes.mesh(2);
        let said = std::iter::from_fn(|| mesh.take_said());
        said.filter_map(|said| match said {
            Said::Told(Topic::Shared(_), bytes) => Some(bytes[0]),
            _ => None,
        })
        .collect()
    };
    assert!(told(&mut nodes).is_empty());
    for (own, other) in [(1, 2), (2, 1)] {
        nodes.mesh(own).opened(Instance(other));
    }
    nodes.ask(1, share(10, 1));
    assert_eq!(told(&mut nodes), [3, 4, 5, 6, 7, 8, 9, 10]);
    // Who is no member any more is told nothing.
    nodes.mesh(1).closed(Instance(2));
    nodes.ask(1, share(11, 1));
    nodes.go_by(&[1], &[]);
    nodes.mesh(1).opened(Instance(2));
    assert!(told(&mut nodes).is_empty());
}
