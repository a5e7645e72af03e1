//! The rules of a room: who may enter it, and who may speak there.
//!
//! A room is a channel whose rule says so; what the rule says of it may be said otherwise over the API. Its home asks here, since it knows who is a member; what permissions say was
//! found out where the connection is. Owns no state.

use std::collections::BTreeSet;
use std::sync::Arc;

use ringfeed_protocol::{ChannelName, Refused, UserId};

use crate::callers::KeyHash;
use crate::config::Speakers;

/// What holds in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Subscriptions that there may be; 0 is no limit.
    pub members_max: u32,
    /// Whoever may subscribe may enter; else only those who are invited.
    pub public: bool,
    /// Only moderators speak.
    pub moderated: bool,
    /// Who speaks else.
    pub speak: Speakers,
    /// What everybody but moderators has to know to enter.
    pub password: Option<KeyHash>,
    /// Users who moderate it, beside those whom a permission allows it.
    pub moderators: BTreeSet<UserId>,
    /// Users who are invited, beside those whom a permission or the application lets in.
    pub members: BTreeSet<UserId>,
}

/// A room that was made over the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeRoom {
    /// What holds there, whatever the channel's rule says.
    pub rules: Arc<Room>,
    /// It ends when its last member leaves.
    pub ends_when_empty: bool,
}

/// What is said of a room over the API: fields that are left out stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RoomChange {
    pub members_max: Option<u32>,
    pub public: Option<bool>,
    pub moderated: Option<bool>,
    pub speak: Option<Speakers>,
    /// `Some(None)` takes it away.
    pub password: Option<Option<KeyHash>>,
    pub moderators: Option<BTreeSet<UserId>>,
    pub members: Option<BTreeSet<UserId>>,
    pub ends_when_empty: Option<bool>,
}

impl MadeRoom {
    /// The room as it is from now on.
    pub fn changed(&self, change: RoomChange) -> MadeRoom {
        let before = Room::clone(&self.rules);
        let rules = Room {
            members_max: change.members_max.unwrap_or(before.members_max),
            public: change.public.unwrap_or(before.public),
            moderated: change.moderated.unwrap_or(before.moderated),
            speak: change.speak.unwrap_or(before.speak),
            password: change.password.unwrap_or(before.password),
            moderators: change.moderators.unwrap_or(before.moderators),
            members: change.members.unwrap_or(before.members),
        };
        let ends_when_empty = change.ends_when_empty.unwrap_or(self.ends_when_empty);
        MadeRoom { rules: Arc::new(rules), ends_when_empty }
    }
}

/// Who asks, as was found out where its connection is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// The user; `None` for who has not said who they are.
    pub user: Option<UserId>,
    /// What permissions say of `moderate`; `None` where they say nothing.
    pub moderates: Option<bool>,
}

/// What somebody has who wants to enter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Who it is.
    pub guest: Guest,
    /// A permission allows `subscribe` there, or a token or the application lets this connection in.
    pub invited: bool,
    /// Of the password that came with the command.
    pub password: Option<KeyHash>,
}

/// Why somebody may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Barred {
    /// The room is for those who are invited, or only its members speak.
    MembersOnly,
    /// It has a password, and this is not it.
    WrongPassword,
    /// Only moderators speak.
    Moderated,
    /// It has as many members as it may.
    Full,
}

impl Room {
    /// Whether somebody moderates it. What a permission denies is denied, also to those whom the room names.
    pub fn is_moderator(&self, guest: &Guest) -> bool {
        let is_named = || guest.user.as_ref().is_some_and(|user| self.moderators.contains(user));
        guest.moderates.unwrap_or_else(is_named)
    }

    /// Whether somebody who may subscribe may enter a room that has so many members. A moderator needs neither an
    /// invitation nor the password, but a place like everybody. Who may not enter is not told whether it is full.
    pub fn may_enter(&self, entry: &Entry, members: u64) -> Result<(), Barred> {
        let &Entry { ref guest, invited, password } = entry;
        if !self.is_moderator(guest) {
            let is_named = || guest.user.as_ref().is_some_and(|user| self.members.contains(user));
            if !self.public && !invited && !is_named() {
                return Err(Barred::MembersOnly);
            }
            if self.password.is_some_and(|own| !password.is_some_and(|given| own.is(given))) {
                return Err(Barred::WrongPassword);
            }
        }
        let full = self.members_max > 0 && members >= u64::from(self.members_max);
        if full { Err(Barred::Full) } else { Ok(()) }
    }

    /// Whether somebody who may publish may speak. A moderator may, in the room or not.
    pub fn may_speak(&self, guest: &Guest, is_member: bool) -> Result<(), Barred> {
        if self.is_moderator(guest) {
            Ok(())
        } else if self.moderated {
            Err(Barred::Moderated)
        } else if self.speak == Speakers::Members && !is_member {
            Err(Barred::MembersOnly)
        } else {
            Ok(())
        }
    }

    /// What somebody is told who may not.
    pub fn refusal(&self, barred: Barred, channel: &ChannelName) -> Refused {
        let channel = channel.clone();
        match barred {
            Barred::MembersOnly => Refused::MembersOnly { channel },
            Barred::WrongPassword => Refused::WrongPassword { channel },
            Barred::Moderated => Refused::Moderated { channel },
            Barred::Full => Refused::ChannelFull { channel, most: self.members_max },
        }
    }
}

#[cfg(test)]
mod tests;
