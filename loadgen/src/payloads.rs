//! Which channels a payload was published to: how a message that names no channel finds its own.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;

/// By the hash of their bytes; equal hashes are told apart by whoever compares the bytes.
#[derive(Debug, Default)]
pub(crate) struct Payloads {
    hasher: FixedState,
    channels: HashMap<u64, Places, FixedState>,
}

/// Channels, and how many messages with the payload each has. One nearly always.
#[derive(Debug)]
enum Places {
    One((u32, u32)),
    Several(Vec<(u32, u32)>),
}

impl Places {
    fn all(&self) -> &[(u32, u32)] {
        match self {
            Places::One(one) => std::slice::from_ref(one),
            Places::Several(all) => all,
        }
    }
}

impl Payloads {
    /// A payload is published to a channel.
    pub(crate) fn note(&mut self, channel: u32, payload: &[u8]) {
        let hash = self.hasher.hash_one(payload);
        let places = match self.channels.get_mut(&hash) {
            None => {
                self.channels.insert(hash, Places::One((channel, 1)));
                return;
            }
            Some(places) => places,
        };
        match places {
            Places::One((own, count)) if *own == channel => *count += 1,
            Places::One(one) => *places = Places::Several(vec![*one, (channel, 1)]),
            Places::Several(all) => match all.iter_mut().find(|(own, _)| *own == channel) {
                Some((_, count)) => *count += 1,
                None => all.push((channel, 1)),
            },
        }
    }

    /// One message with the payload is known no more.
    pub(crate) fn forget(&mut self, channel: u32, payload: &[u8]) {
        let hash = self.hasher.hash_one(payload);
        let empty = match self.channels.get_mut(&hash) {
            None => false,
            Some(Places::One((_, count))) => {
                *count -= 1;
                *count == 0
            }
            Some(Places::Several(all)) => {
                if let Some((_, count)) = all.iter_mut().find(|(own, _)| *own == channel) {
                    *count -= 1;
                }
                all.retain(|&(_, count)| count > 0);
                all.is_empty()
            }
        };
        if empty {
            self.channels.remove(&hash);
        }
    }

    /// The channels that have it.
    pub(crate) fn channels(&self, payload: &[u8]) -> impl Iterator<Item = u32> + '_ {
        let places = self.channels.get(&self.hasher.hash_one(payload));
        places.map(Places::all).unwrap_or_default().iter().map(|&(channel, _)| channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_known_for_as_long_as_a_message_has_it() {
        let mut payloads = Payloads::default();
        let of = |payloads: &Payloads, text: &[u8]| payloads.channels(text).collect::<Vec<_>>();
        for channel in [3, 3, 5, 7] {
            payloads.note(channel, b"x");
        }
        payloads.note(9, b"y");
        assert_eq!(of(&payloads, b"x"), [3, 5, 7]);
        for channel in [3, 5, 7] {
            payloads.forget(channel, b"x");
        }
        assert_eq!(of(&payloads, b"x"), [3]);
        payloads.forget(3, b"x");
        assert_eq!((of(&payloads, b"x"), of(&payloads, b"y")), (vec![], vec![9]));
    }
}
