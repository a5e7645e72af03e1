//! Who may do what, worked out without a look at the engine's own permissions.

use super::dice::Dice;

/// What somebody does with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Subscribe,
    Publish,
    History,
    Presence,
    Moderate,
}

/// The word of a channel's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Anyone,
    Users,
    /// The application is asked.
    Hook,
    /// Nobody, or only over the API.
    Nobody,
}

/// Whom a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    Anonymous,
    User(usize),
    Role(usize),
}

/// One operation on the channels of one group, allowed or denied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub(crate) whom: Whom,
    pub(crate) group: usize,
    pub(crate) op: Op,
    pub(crate) allow: bool,
}

/// What one configuration says about access.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Of each group: who may subscribe, and who may publish.
    pub(crate) words: Vec<(Word, Word)>,
    pub(crate) lines: Vec<Line>,
}

/// Who a connection is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Person {
    pub(crate) user: Option<usize>,
    pub(crate) roles: Vec<usize>,
    /// May send to users.
    pub(crate) sends: bool,
    /// What travels with it.
    pub(crate) grants: Vec<Line>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Yes,
    No,
    WhileSubscribed,
    Ask,
}

/// What may become of something, whichever policy holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Chance {
    pub(crate) always: bool,
    pub(crate) never: bool,
    /// The application is asked under every policy.
    pub(crate) asked: bool,
}

impl Chance {
    /// Whichever of both it is.
    pub(crate) fn and(self, other: Chance) -> Chance {
        Chance {
            always: self.always && other.always,
            never: self.never && other.never,
            asked: self.asked && other.asked,
        }
    }
}

impl Policy {
    /// What lines say; `None` where they say nothing.
    pub(crate) fn permitted(&self, person: &Person, op: Op, group: usize) -> Option<bool> {
        let fits = |line: &&Line| line.group == group && line.op == op;
        let about = |line: &&Line| match line.whom {
            Whom::Anonymous => person.user.is_none(),
            Whom::User(user) => person.user == Some(user),
            Whom::Role(role) => person.roles.contains(&role),
        };
        let own = person.grants.iter().filter(fits);
        let all: Vec<&Line> = self.lines.iter().filter(fits).filter(about).chain(own).collect();
        if all.iter().any(|line| !line.allow) {
            return Some(false);
        }
        (!all.is_empty()).then_some(true)
    }

    /// `named`: the channel is one to which the connection was to be subscribed at once.
    pub(crate) fn verdict(&self, person: &Person, op: Op, group: usize, named: bool) -> Verdict {
        match self.permitted(person, op, group) {
            Some(false) => return Verdict::No,
            Some(true) => return Verdict::Yes,
            None if named && op == Op::Subscribe => return Verdict::Yes,
            None => {}
        }
        let (subscribe, publish) = self.words[group];
        match (if op == Op::Publish { publish } else { subscribe }, op) {
            (Word::Anyone, _) => Verdict::Yes,
            (Word::Users, _) if person.user.is_some() => Verdict::Yes,
            (Word::Users | Word::Nobody, _) => Verdict::No,
            (Word::Hook, Op::History | Op::Presence | Op::Moderate) => Verdict::WhileSubscribed,
            (Word::Hook, _) => Verdict::Ask,
        }
    }
}

/// What may become of it under any of these.
pub(crate) fn chance(
    policies: &[Policy],
    person: &Person,
    op: Op,
    group: usize,
    named: bool,
) -> Chance {
    let all = |due| policies.iter().all(|policy| policy.verdict(person, op, group, named) == due);
    Chance { always: all(Verdict::Yes), never: all(Verdict::No), asked: all(Verdict::Ask) }
}

/// Draws what the first policy says, and others that differ from it.
pub(crate) fn draw(dice: &mut Dice, groups: usize, open: bool, asks: bool) -> Vec<Policy> {
    use Word::{Anyone, Hook, Nobody, Users};
    let words = |dice: &mut Dice| {
        if open {
            let subscribe = if dice.chance(960) { Anyone } else { Nobody };
            return (subscribe, if dice.chance(700) { Anyone } else { Nobody });
        }
        let hook = if asks { Hook } else { Anyone };
        let subscribe = dice.pick(&[Anyone, Anyone, hook, hook, Users, Nobody]);
        (subscribe, dice.pick(&[Anyone, Anyone, hook, hook, Users, Nobody]))
    };
    let first: Vec<(Word, Word)> = (0..groups).map(|_| words(dice)).collect();
    let more = if open { 0 } else { dice.pick(&[0, 0, 1, 2]) };
    let mut policies = vec![Policy { words: first.clone(), lines: Vec::new() }];
    for _ in 0..more {
        let words = first.iter().map(|&own| if dice.chance(400) { own } else { words(dice) });
        policies.push(Policy { words: words.collect(), lines: Vec::new() });
    }
    for policy in policies.iter_mut().filter(|_| !open) {
        policy.lines = (0..dice.pick(&[0, 0, 1, 3])).map(|_| line(dice, groups)).collect();
    }
    policies
}

/// One that may be anybody's.
pub(crate) fn line(dice: &mut Dice, groups: usize) -> Line {
    let (user, role) = (Whom::User(dice.below(3)), Whom::Role(dice.below(2)));
    Line {
        whom: dice.pick(&[Whom::Anonymous, user, user, role, role]),
        group: dice.below(groups),
        op: dice.pick(&[
            Op::Subscribe,
            Op::Subscribe,
            Op::Publish,
            Op::History,
            Op::Presence,
            Op::Moderate,
        ]),
        allow: dice.chance(600),
    }
}
