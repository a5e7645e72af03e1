//! Who keeps a channel: rendezvous hashing (Thaler and Ravishankar, 1998) over the members of a view.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::registry::views::{Instance, View};

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Placing {
    key: [u64; 2],
    /// The members that keep channels, and a number of each that depends on its id alone: a node that is started again keeps what it kept.
    members: Vec<(u64, Instance)>,
}

impl Placing {
    pub(super) fn new(key: [u64; 2], view: &View) -> Placing {
        let all_leave = view.members.iter().all(|member| member.leaving);
        let members = view.members.iter().filter(|member| all_leave || !member.leaving);
        let members = members.map(|member| (hash(key, member.id.as_str()), member.instance));
        Placing { key, members: members.collect() }
    }

    /// Whether a node keeps channels at all.
    pub(super) fn has(&self, instance: Instance) -> bool {
        self.members.iter().any(|(_, own)| *own == instance)
    }

    /// Where there is nobody, nobody.
    pub(super) fn keeper(&self, channel: &str) -> Option<Instance> {
        let channel = hash(self.key, channel);
        let weighed = self.members.iter().map(|(of, instance)| (mixed(channel ^ of), instance));
        weighed.max().map(|(_, instance)| *instance)
    }
}

/// Keyed, since others choose the names.
fn hash([a, b]: [u64; 2], name: &str) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(a, b);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// A bijection of which every bit depends on every other (the finalizer of SplitMix64, Steele and others, 2014).
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::views::Member;

    fn placing(nodes: &[u64], leaving: &[u64]) -> Placing {
        let member = |node: &u64| Member {
            id: format!("node-{node}").parse().unwrap(),
            instance: Instance(*node),
            peer: "127.0.0.1:1".parse().unwrap(),
            leaving: leaving.contains(node),
        };
        let view = View { members: nodes.iter().map(member).collect(), ..View::default() };
        Placing::new([1, 2], &view)
    }

    #[test]
    fn channels_are_spread_and_those_of_a_node_that_goes_alone_move() {
        let (all, less) = (placing(&[1, 2, 3, 4], &[]), placing(&[1, 2, 4], &[]));
        let leaves = placing(&[1, 2, 3, 4], &[3]);
        let mut counts = [0; 5];
        for channel in 0..10_000 {
            let name = format!("channel.{channel}");
            let keeper = all.keeper(&name).unwrap();
            counts[keeper.0 as usize] += 1;
            if keeper != Instance(3) {
                assert_eq!(less.keeper(&name), Some(keeper));
            }
            assert_eq!(leaves.keeper(&name), less.keeper(&name));
        }
        assert!(counts[1..].iter().all(|count| (2200..2800).contains(count)), "{counts:?}");
        assert_eq!(Placing::default().keeper("a"), None);
        // Somebody must.
        assert!(placing(&[1, 2], &[1, 2]).keeper("a").is_some());
    }
}
