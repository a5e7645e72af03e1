//! What keys and channels of Redis are called that this node uses.
//!
//! All keys of one channel of ours share a hash tag, so that a cluster keeps them together: it begins with `c:`, so that it is
//! never empty, and ends with the first `}` of the name, if the name has one, which is the same in all of them.

use ringfeed_protocol::ChannelName;

use super::command::To;
use super::slots::slot;
use crate::message::KeyDigest;

/// The hash tag of what is kept for all nodes. In a cluster all nodes meet at the server that has it: what they say to one another that is
/// about no numbered channel goes through there.
pub(super) const HUB: &str = "revoked";

/// See the module's description.
#[derive(Debug, Clone)]
pub(super) struct Names {
    keys: String,
    /// What channels of Redis begin with: other than keys, they are the same in all its databases.
    channels: String,
    instance: u64,
}

/// What a channel of Redis is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Topic {
    /// Publications of a channel that Redis numbers.
    Numbered(ChannelName),
    /// Publications of one that it does not.
    Shared(ChannelName),
    /// What nodes say of how much should have been heard of them.
    Beat,
    /// What nodes ask of all others.
    Errand,
    /// What these say to it.
    Answer,
    /// What this node says to itself.
    Ping,
}

impl Names {
    /// `prefix` as it is in the configuration, for a database of Redis and a process.
    pub(super) fn new(prefix: &str, database: i64, instance: u64) -> Names {
        let channels = match database {
            0 => prefix.to_owned(),
            database => format!("{prefix}/{database}"),
        };
        Names { keys: prefix.to_owned(), channels, instance }
    }

    /// Of a channel: where it stands, and its history.
    pub(super) fn keys(&self, channel: &ChannelName) -> [String; 2] {
        let prefix = &self.keys;
        [format!("{prefix}:{{c:{channel}}}:m"), format!("{prefix}:{{c:{channel}}}:s")]
    }

    /// What a process has appended to a channel last.
    pub(super) fn appended(&self, channel: &ChannelName, instance: u64) -> String {
        format!("{}:{{c:{channel}}}:i:{instance:016x}", self.keys)
    }

    /// What was appended to a channel under an idempotency key.
    pub(super) fn keyed(&self, channel: &ChannelName, KeyDigest(digest): KeyDigest) -> String {
        format!("{}:{{c:{channel}}}:k:{:032x}", self.keys, u128::from_be_bytes(digest))
    }

    /// Where publications of a numbered channel are told.
    pub(super) fn numbered(&self, channel: &ChannelName) -> String {
        format!("{}:{{c:{channel}}}", self.channels)
    }

    /// Where publications of a channel that is not numbered are told.
    pub(super) fn shared(&self, channel: &ChannelName) -> String {
        format!("{}:b:{channel}", self.channels)
    }

    /// All of these.
    pub(super) fn shared_pattern(&self) -> String {
        format!("{}:b:*", self.channels)
    }

    /// Where this process says something to itself.
    pub(super) fn ping(&self) -> String {
        format!("{}:ping:{:016x}", self.channels, self.instance)
    }

    /// Where it does so in a cluster: a sharded channel, and a key that nobody ever writes, at the server that this tag leads to.
    pub(super) fn ping_at(&self, tag: &str) -> String {
        format!("{}:{{{tag}}}:ping:{:016x}", self.channels, self.instance)
    }

    /// The slot of all that a cluster has of a channel.
    pub(super) fn slot(&self, channel: &ChannelName) -> u16 {
        slot(&self.numbered(channel))
    }

    /// Where all nodes say how much should have been heard of them.
    pub(super) fn beats(&self) -> String {
        format!("{}:beats", self.channels)
    }

    /// Where nodes ask something of all others.
    pub(super) fn errands(&self) -> String {
        format!("{}:errands", self.channels)
    }

    /// Where a process is told what has come of what it has asked.
    pub(super) fn answers(&self, instance: u64) -> String {
        format!("{}:answers:{instance:016x}", self.channels)
    }

    /// Where this process is.
    pub(super) fn own_answers(&self) -> String {
        self.answers(self.instance)
    }

    /// What all nodes are to know (a hash), and until when (a sorted set): under one hash tag.
    pub(super) fn kept(&self) -> [String; 2] {
        let prefix = &self.keys;
        [format!("{prefix}:{{{HUB}}}:h"), format!("{prefix}:{{{HUB}}}:z")]
    }

    /// What a channel of Redis is for; `None` where it is none of these.
    pub(super) fn topic(&self, channel: &[u8]) -> Option<Topic> {
        let channel = std::str::from_utf8(channel).ok()?;
        let rest = channel.strip_prefix(&self.channels)?.strip_prefix(':')?;
        if let Some(name) = rest.strip_prefix("{c:").and_then(|rest| rest.strip_suffix('}')) {
            return ChannelName::new(name).ok().map(Topic::Numbered);
        }
        if let Some(name) = rest.strip_prefix("b:") {
            return ChannelName::new(name).ok().map(Topic::Shared);
        }
        match rest {
            "beats" => Some(Topic::Beat),
            "errands" => Some(Topic::Errand),
            _ if channel == self.own_answers() => Some(Topic::Answer),
            _ => (channel == self.ping()).then_some(Topic::Ping),
        }
    }
}

impl To {
    /// What the channel of Redis is called.
    pub(super) fn name(&self, names: &Names) -> String {
        match self {
            To::Beats => names.beats(),
            To::Errands => names.errands(),
            To::Process(instance) => names.answers(*instance),
            To::Followers(channel) => names.numbered(channel),
            To::Sharers(channel) => names.shared(channel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_name_is_known_by_it() {
        for database in [0, 3] {
            let names = Names::new("ringfeed", database, 7);
            for name in ["a", "{}", "}{", "b:x", "c:", "ping:0000000000000007", "ö{x}y"] {
                let channel = ChannelName::new(name).unwrap();
                let numbered = names.topic(names.numbered(&channel).as_bytes());
                assert_eq!(numbered, Some(Topic::Numbered(channel.clone())));
                let shared = names.topic(names.shared(&channel).as_bytes());
                assert_eq!(shared, Some(Topic::Shared(channel)));
            }
            assert_eq!(names.topic(names.ping().as_bytes()), Some(Topic::Ping));
            assert_eq!(names.topic(names.beats().as_bytes()), Some(Topic::Beat));
            assert_eq!(names.topic(names.errands().as_bytes()), Some(Topic::Errand));
            assert_eq!(names.topic(names.own_answers().as_bytes()), Some(Topic::Answer));
            assert_eq!(names.topic(names.answers(8).as_bytes()), None);
        }
        let (names, other) = (Names::new("r", 0, 7), Names::new("r", 1, 7));
        let channel = ChannelName::new("a").unwrap();
        for unknown in [
            &other.numbered(&channel),
            &other.shared(&channel),
            "r",
            "r:",
            "r:b:",
            "r:{c:}",
            "s:b:a",
        ] {
            assert_eq!(names.topic(unknown.as_bytes()), None, "{unknown}");
        }
        assert_eq!(names.topic(b"r:b:\xff"), None);
    }

    #[test]
    fn keys_of_a_channel_share_a_hash_tag() {
        let tag = |key: &str| {
            let (_, rest) = key.split_once('{').unwrap();
            rest.split_once('}').unwrap().0.to_owned()
        };
        let names = Names::new("ringfeed", 0, 7);
        for name in ["a", "{}", "}", "{", "x}y{z"] {
            let channel = ChannelName::new(name).unwrap();
            let tags = names.keys(&channel).map(|key| tag(&key));
            assert!(!tags[0].is_empty() && tags.iter().all(|own| *own == tags[0]), "{tags:?}");
            assert_eq!(tag(&names.numbered(&channel)), tags[0]);
            assert_eq!(names.slot(&channel), slot(&tags[0]));
        }
    }
}
