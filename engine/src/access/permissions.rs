//! What a connection may do with a channel.
//!
//! Three voices, in this order: what denies, in the configuration or with the identity; what allows; and the word of
//! the channel's rule. Owns no state and remembers no answer: the same question has the same answer.

use ringfeed_protocol::{ChannelName, Operation, UserId};

use super::who::{Nobody, Who};
use super::{Grant, Identity};
use crate::config::rules::{USER, matches, matches_for};
use crate::config::{ChannelRule, Permission, Publishers, Subscribers};

/// Ends the sentences of `Refused::Forbidden`.
mod hint {
    pub(super) const NOBODY: &str = "by nobody";
    pub(super) const NAMED: &str = "by those whom a permission names";
    pub(super) const DENIED: &str = "by those whom no permission denies it";
    pub(super) const USERS: &str = "by users who have authenticated";
    pub(super) const API: &str = "over the HTTP API only";
}

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Yes,
    /// It may not. The hint says who may: it ends the sentence of `Refused::Forbidden`.
    No(&'static str),
    /// It may as long as it has subscribed to the channel.
    WhileSubscribed,
    /// It may with a token for the channel.
    Token,
    /// The application has to be asked.
    Ask,
}

/// `[[permissions]]`, made ready.
#[derive(Debug, Clone, Default)]
pub struct Permissions(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    who: Vec<Who>,
    channels: Vec<Pattern>,
    allow: Operations,
    deny: Operations,
}

#[derive(Debug, Clone)]
struct Pattern {
    text: Box<str>,
    /// Whether it holds `{user}`.
    of_user: bool,
}

/// Some operations, a bit each.
#[derive(Debug, Clone, Copy, Default)]
struct Operations(u8);

impl Permissions {
    /// Reads the entries of a configuration. None is about nobody: the configuration's own check refuses such.
    pub fn new(entries: &[Permission]) -> Result<Permissions, Nobody> {
        let read = |entry: &Permission| {
            let who = entry.who.iter().map(|who| Who::parse(who)).collect::<Result<_, _>>()?;
            let pattern = |text: &String| Pattern {
                text: text.as_str().into(),
                of_user: text.contains(USER),
            };
            Ok(Entry {
                who,
                channels: entry.channels.iter().map(pattern).collect(),
                allow: Operations::new(&entry.allow),
                deny: Operations::new(&entry.deny),
            })
        };
        entries.iter().map(read).collect::<Result<_, _>>().map(Permissions)
    }

    /// Whether somebody may do something with a channel whose rule is `rule`, the first of `[[channels]]` that fits its
    /// name. A channel without a rule is nobody's, whatever permissions say: it has no options to serve it by. Takes no
    /// memory.
    pub fn may(
        &self,
        rule: Option<&ChannelRule>,
        identity: &Identity,
        operation: Operation,
        channel: &ChannelName,
    ) -> Verdict {
        let Some(rule) = rule else { return Verdict::No(hint::NOBODY) };
        match self.permitted(identity, operation, channel) {
            Some(true) => Verdict::Yes,
            Some(false) => Verdict::No(hint::DENIED),
            None => self.word(rule, identity, operation),
        }
    }

    /// Whether somebody may send to a user: only where a permission says so, whose patterns are of user ids then.
    pub fn may_send(&self, identity: &Identity, to: &UserId) -> bool {
        self.permitted(identity, Operation::Send, to) == Some(true)
    }

    /// What permissions alone say, those of the configuration and those that came with the identity: a denial first.
    /// `None` where they say nothing.
    pub fn permitted(&self, identity: &Identity, operation: Operation, name: &str) -> Option<bool> {
        if self.0.is_empty() && identity.grants.is_none() {
            return None;
        }
        let grants = identity.grants.as_deref();
        let denied = grants.is_some_and(|grants| grant(&grants.deny, operation, name));
        if denied || self.say(|entry| entry.deny, identity, operation, name) {
            return Some(false);
        }
        let allowed = grants.is_some_and(|grants| grant(&grants.allow, operation, name));
        (allowed || self.say(|entry| entry.allow, identity, operation, name)).then_some(true)
    }

    /// Whether an entry that fits has the operation among those that `which` picks.
    fn say(
        &self,
        which: impl Fn(&Entry) -> Operations,
        identity: &Identity,
        operation: Operation,
        name: &str,
    ) -> bool {
        let user = identity.user.as_ref();
        self.0.iter().any(|entry| {
            which(entry).has(operation)
                && entry.who.iter().any(|who| who.fits(identity))
                && entry.channels.iter().any(|pattern| pattern.fits(name, user))
        })
    }

    /// What the rule of the channel says, where no permission has said anything.
    fn word(&self, rule: &ChannelRule, identity: &Identity, operation: Operation) -> Verdict {
        let users = || match identity.user {
            Some(_) => Verdict::Yes,
            None => Verdict::No(hint::USERS),
        };
        if operation == Operation::Publish {
            return match rule.publish {
                Publishers::Anyone => Verdict::Yes,
                Publishers::Users => users(),
                Publishers::Hook => Verdict::Ask,
                Publishers::Api => Verdict::No(hint::API),
            };
        }
        if matches!(operation, Operation::Send | Operation::Moderate) {
            // No rule gives anybody these.
            return Verdict::No(hint::NAMED);
        }
        let asked = |verdict| match operation {
            Operation::Subscribe => verdict,
            _ => Verdict::WhileSubscribed,
        };
        match rule.subscribe {
            Subscribers::Anyone => Verdict::Yes,
            Subscribers::Users => users(),
            Subscribers::Token => asked(Verdict::Token),
            Subscribers::Hook => asked(Verdict::Ask),
            Subscribers::Nobody if self.0.is_empty() => Verdict::No(hint::NOBODY),
            Subscribers::Nobody => Verdict::No(hint::NAMED),
        }
    }
}

/// Whether one of the grants covers it.
fn grant(grants: &[Grant], operation: Operation, name: &str) -> bool {
    let covers = |grant: &Grant| grant.operation == operation && matches(&grant.pattern, name);
    grants.iter().any(covers)
}

impl Pattern {
    fn fits(&self, name: &str, user: Option<&UserId>) -> bool {
        match (self.of_user, user) {
            (false, _) => matches(&self.text, name),
            (true, Some(user)) => matches_for(&self.text, name, user),
            (true, None) => false,
        }
    }
}

impl Operations {
    fn new(operations: &[Operation]) -> Operations {
        Operations(operations.iter().fold(0, |bits, &operation| bits | Operations::bit(operation)))
    }

    fn has(self, operation: Operation) -> bool {
        self.0 & Operations::bit(operation) != 0
    }

    fn bit(operation: Operation) -> u8 {
        match operation {
            Operation::Subscribe => 1,
            Operation::Publish => 1 << 1,
            Operation::History => 1 << 2,
            Operation::Presence => 1 << 3,
            Operation::Send => 1 << 4,
            Operation::Moderate => 1 << 5,
        }
    }
}

#[cfg(test)]
mod tests;
