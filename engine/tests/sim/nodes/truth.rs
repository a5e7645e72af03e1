//! What was really appended, in which life of which channel: the outside checker of the nodes.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use ringfeed_engine::bridge::item;
use ringfeed_protocol::ChannelName;

/// One life of a channel.
#[derive(Debug, Default)]
struct Life {
    /// The life that it continues, and up to which offset.
    parent: Option<(u64, u64)>,
    offsets: BTreeMap<u64, u64>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Truth {
    lives: HashMap<(String, u64), Life>,
    /// Where publications stand, of which some are in lives that are over.
    places: HashMap<u64, (u64, u64)>,
    newest: HashMap<String, (u64, u64)>,
    /// The first offset of which Redis still has what was published.
    kept_from: HashMap<String, u64>,
    /// Where a publication was published that has its place behind the earlier ones from there.
    publishers: HashMap<u64, usize>,
    /// The last that was appended of those that a node has published on a channel.
    last_of: HashMap<(usize, String), u64>,
    pub(super) appended: u64,
}

/// The number of the publication in a payload.
pub(super) fn number_in(payload: &[u8]) -> u64 {
    let digits = payload.iter().skip_while(|byte| !byte.is_ascii_digit());
    let digits = digits.take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, byte| number * 10 + u64::from(byte - b'0'))
}

impl Truth {
    /// A life begins.
    pub(super) fn begin(&mut self, channel: &ChannelName, epoch: u64, parent: Option<(u64, u64)>) {
        let life = Life { parent, offsets: BTreeMap::new() };
        let before = self.lives.insert((channel.to_string(), epoch), life);
        assert!(before.is_none(), "rule epochs: {epoch:016x} of {channel} begins twice");
        let newest = parent.map_or(0, |(_, offset)| offset);
        self.newest.insert(channel.to_string(), (epoch, newest));
    }

    /// A node takes a publication that goes behind its earlier ones.
    pub(super) fn published(&mut self, number: u64, node: usize) {
        self.publishers.insert(number, node);
    }

    /// A publication is sent once more, from anywhere.
    pub(super) fn repeated(&mut self, number: u64) {
        self.publishers.remove(&number);
    }

    /// Whether a publication was ever appended.
    pub(super) fn has(&self, number: u64) -> bool {
        self.places.contains_key(&number)
    }

    /// Redis has appended something.
    pub(super) fn append(&mut self, channel: &ChannelName, epoch: u64, offset: u64, item: &Bytes) {
        let payload = item::decode(item).expect("what was encoded").payload;
        let number = number_in(&payload.bytes);
        let name = channel.to_string();
        let before = self.places.insert(number, (epoch, offset));
        if let Some((of, at)) = before {
            let kept = self.shared(&name, of, epoch).is_some_and(|shared| at <= shared);
            assert!(!kept, "rule once: {number} stands at {at} and at {offset} of {channel}");
        }
        if let Some(node) = self.publishers.get(&number) {
            let last = self.last_of.insert((*node, name.clone()), number);
            // What was lost comes once more, from where it was lost on.
            let in_order = before.is_some() || last.is_none_or(|last| last < number);
            assert!(in_order, "rule order: {number} of {channel} comes behind {last:?}");
        }
        let life = self.lives.get_mut(&(name.clone(), epoch)).expect("a life has begun");
        let before = life.offsets.insert(offset, number);
        assert!(before.is_none(), "rule one-at-an-offset: {offset} of {channel} twice");
        self.newest.insert(name, (epoch, offset));
        self.appended += 1;
    }

    /// Redis has forgotten what is before this offset, if it had anything.
    pub(super) fn keep_from(&mut self, channel: &ChannelName, offset: u64) {
        self.kept_from.insert(channel.to_string(), offset);
    }

    /// Whether what came behind a position is there, all of it.
    pub(super) fn can_be_recovered(&self, channel: &str, epoch: u64, offset: u64) -> bool {
        let Some((now, _)) = self.newest(channel) else { return false };
        let shared = self.shared(channel, epoch, now);
        let kept_from = self.kept_from.get(channel).copied().unwrap_or(1);
        shared.is_some_and(|shared| offset <= shared) && offset + 1 >= kept_from
    }

    /// What stands at a place.
    pub(super) fn at(&self, channel: &str, epoch: u64, offset: u64) -> Option<u64> {
        let life = self.lives.get(&(channel.to_owned(), epoch))?;
        match life.parent {
            Some((parent, shared)) if offset <= shared => self.at(channel, parent, offset),
            _ => life.offsets.get(&offset).copied(),
        }
    }

    /// The offset up to which one life is the same as a later one.
    pub(super) fn shared(&self, channel: &str, old: u64, new: u64) -> Option<u64> {
        if old == new {
            return Some(u64::MAX);
        }
        let (parent, to) = self.lives.get(&(channel.to_owned(), new))?.parent?;
        self.shared(channel, old, parent).map(|shared| shared.min(to))
    }

    /// Epoch and offset of the newest publication.
    pub(super) fn newest(&self, channel: &str) -> Option<(u64, u64)> {
        self.newest.get(channel).copied()
    }

    /// Whether there is such a life.
    pub(super) fn knows(&self, channel: &str, epoch: u64) -> bool {
        self.lives.contains_key(&(channel.to_owned(), epoch))
    }
}
