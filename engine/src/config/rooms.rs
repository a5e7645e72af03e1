//! Rules of `[[channels]]` whose channels are rooms.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::schema::{ChannelRule, Config, Presence, Secret, Speakers};
use crate::access::Room;
use crate::callers::KeyHash;

/// Most members that a channel may be limited to.
pub(crate) const MEMBERS_MAX: u32 = 1 << 30;
/// Longest password of a room: what a client shows is no longer than a message.
pub(crate) const PASSWORD_BYTES_MAX: usize = 256;

impl Config {
    /// Makes of the keys of rooms what holds in them. Of passwords their hash is kept alone.
    pub(super) fn read_rooms(&mut self) {
        self.channels.iter_mut().for_each(ChannelRule::read_room);
    }
}

impl ChannelRule {
    /// Makes of its keys of rooms what holds in them.
    pub(super) fn read_room(&mut self) {
        let password = std::mem::replace(&mut self.password, Secret(Vec::new()));
        self.room_rules = self.room.then(|| {
            Arc::new(Room {
                members_max: self.members_max,
                public: self.public,
                moderated: self.moderated,
                speak: self.speak,
                password: (!password.is_empty()).then(|| KeyHash::of(&password.0)),
                moderators: BTreeSet::new(),
                members: BTreeSet::new(),
            })
        });
    }

    /// Whether it matters who publishes to its channels.
    pub fn asks_who_publishes(&self) -> bool {
        self.sender || self.room
    }

    /// Whether homes know who is on its channels: where it is shown, where it is asked to confirm, and in rooms.
    pub fn knows_members(&self) -> bool {
        self.presence == Presence::Full || self.room || self.confirm
    }

    /// What is wrong with the keys of rooms, each with the key in front: what would mean nothing is refused, since
    /// whoever wrote it takes it to hold.
    pub(super) fn wrong_room(&self) -> Vec<String> {
        let ChannelRule { room, public, moderated, password, speak, only_made, .. } = self;
        let mut wrong = Vec::new();
        let mut unused = |key: &str, given: bool| {
            if given && !room {
                wrong.push(format!(".{key}: it holds in rooms alone; set room = true"));
            }
        };
        unused("public", !public);
        unused("moderated", *moderated);
        unused("password", !password.is_empty());
        unused("speak", *speak != Speakers::Members);
        unused("only_made", *only_made);
        let bytes = password.0.len();
        if bytes > PASSWORD_BYTES_MAX {
            wrong.push(format!(
                ".password: it has {bytes} bytes; allowed are at most {PASSWORD_BYTES_MAX}"
            ));
        }
        if std::str::from_utf8(&password.0).is_err() {
            wrong.push(".password: it is not text, and clients show nothing else".into());
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use crate::callers::KeyHash;
    use crate::config::Speakers;
    use crate::config::tests::load_rule as load;

    #[test]
    fn a_rule_that_says_so_makes_rooms_and_of_its_password_the_hash_is_kept() {
        let config = load("room = true\npassword = \"hush\"\nmembers_max = 7").unwrap();
        let rule = config.rule("r.1").unwrap();
        let room = rule.room_rules.as_ref().unwrap();
        assert_eq!((room.members_max, room.public, room.moderated), (7, true, false));
        assert_eq!((room.speak, room.password), (Speakers::Members, Some(KeyHash::of(b"hush"))));
        assert!(rule.password.is_empty() && rule.knows_members() && rule.asks_who_publishes());
        assert!(load("members_max = 7").unwrap().rule("r.1").unwrap().room_rules.is_none());
    }

    #[test]
    fn what_would_hold_nowhere_is_refused() {
        for (rule, wrong) in [
            ("public = false", "channels[0].public: it holds in rooms alone"),
            ("moderated = true", "channels[0].moderated: it holds in rooms alone"),
            ("password = \"hush\"", "channels[0].password: it holds in rooms alone"),
            ("speak = \"anyone\"", "channels[0].speak: it holds in rooms alone"),
            ("only_made = true", "channels[0].only_made: it holds in rooms alone"),
            ("room = true\nspeak = \"hush\"", "speak = \"hush\": allowed are anyone, members"),
            (
                &format!("room = true\npassword = \"{}\"", "h".repeat(257)),
                "channels[0].password: it has 257 bytes; allowed are at most 256",
            ),
        ] {
            let errors = load(rule).unwrap_err();
            assert!(errors.contains(wrong), "{errors}");
        }
    }
}
