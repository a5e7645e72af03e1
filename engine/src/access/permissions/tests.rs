//! Permissions against a table, and against a model that knows none of their code.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::access::Grants;
use crate::config::{Config, Sources};

const OPERATIONS: [Operation; 5] = [
    Operation::Subscribe,
    Operation::Publish,
    Operation::History,
    Operation::Presence,
    Operation::Moderate,
];

fn rule(subscribe: Subscribers, publish: Publishers) -> ChannelRule {
    let defaults = Config::load(&Sources::default()).unwrap();
    ChannelRule { subscribe, publish, ..defaults.rule("any").unwrap().clone() }
}

fn entry(who: &[&str], channels: &[&str], allow: &[Operation], deny: &[Operation]) -> Permission {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    Permission {
        who: owned(who),
        channels: owned(channels),
        allow: allow.into(),
        deny: deny.into(),
    }
}

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

fn somebody(user: &str, attributes: &[&str]) -> Identity {
    let user = Some(UserId::new(user).unwrap());
    let attributes = attributes.iter().map(|&a| a.into()).collect();
    Identity { user, attributes, ..Identity::default() }
}

#[test]
fn the_word_of_the_rule_decides_where_no_permission_does() {
    use Verdict::{Ask, No, Token, WhileSubscribed, Yes};
    let none = Permissions::default();
    let (ann, nobody) = (somebody("ann", &[]), Identity::default());
    let users = No("by users who have authenticated");
    for (subscribe, of_ann, of_nobody, later) in [
        (Subscribers::Anyone, Yes, Yes, Yes),
        (Subscribers::Users, Yes, users, Yes),
        (Subscribers::Token, Token, Token, WhileSubscribed),
        (Subscribers::Hook, Ask, Ask, WhileSubscribed),
        (Subscribers::Nobody, No("by nobody"), No("by nobody"), No("by nobody")),
    ] {
        let rule = rule(subscribe, Publishers::Anyone);
        let may = |who, operation| none.may(Some(&rule), who, operation, &name("a"));
        assert_eq!(may(&ann, Operation::Subscribe), of_ann, "{subscribe:?}");
        assert_eq!(may(&nobody, Operation::Subscribe), of_nobody, "{subscribe:?}");
        assert_eq!(may(&ann, Operation::History), later, "{subscribe:?}");
        assert_eq!(may(&ann, Operation::Presence), later, "{subscribe:?}");
        let named = No("by those whom a permission names");
        assert_eq!(may(&ann, Operation::Moderate), named, "{subscribe:?}");
    }
    for (publish, of_ann, of_nobody) in [
        (Publishers::Anyone, Yes, Yes),
        (Publishers::Users, Yes, users),
        (Publishers::Hook, Ask, Ask),
        (Publishers::Api, No("over the HTTP API only"), No("over the HTTP API only")),
    ] {
        let rule = rule(Subscribers::Nobody, publish);
        let may = |who| none.may(Some(&rule), who, Operation::Publish, &name("a"));
        assert_eq!((may(&ann), may(&nobody)), (of_ann, of_nobody), "{publish:?}");
    }
    for operation in OPERATIONS {
        assert_eq!(none.may(None, &ann, operation, &name("a")), No("by nobody"));
    }
}

#[test]
fn a_denial_beats_every_allowance_and_an_allowance_the_rule() {
    let all = OPERATIONS;
    let permissions = Permissions::new(&[
        entry(&["role:editor"], &["*"], &all, &[]),
        entry(&["users"], &["box.{user}"], &all, &[]),
        entry(&["user:mallory", "anonymous"], &["secret.*"], &[], &all),
    ])
    .unwrap();
    let closed = rule(Subscribers::Nobody, Publishers::Api);
    let may = |who: &Identity, channel: &str| {
        permissions.may(Some(&closed), who, Operation::Publish, &name(channel)) == Verdict::Yes
    };
    let mut ann = somebody("ann", &["role:editor"]);
    assert!(may(&ann, "secret.a") && may(&ann, "box.bob"));
    assert!(may(&somebody("bob", &[]), "box.bob") && !may(&somebody("bob", &[]), "box.ann"));
    assert!(!may(&somebody("*", &[]), "box.ann") && !may(&Identity::default(), "box.ann"));
    assert!(!may(&somebody("mallory", &["role:editor"]), "secret.a"));
    let publish = |pattern: &str| Grant { operation: Operation::Publish, pattern: pattern.into() };
    ann.grants = Some(Box::new(Grants { deny: vec![publish("secret.*")], ..Grants::default() }));
    assert!(!may(&ann, "secret.a") && may(&ann, "box.bob"), "its own grants deny it");
    let mut mallory = somebody("mallory", &[]);
    mallory.grants = Some(Box::new(Grants { allow: vec![publish("*")], ..Grants::default() }));
    assert!(!may(&mallory, "secret.a") && may(&mallory, "else"), "the configuration denies it");
    let open = rule(Subscribers::Anyone, Publishers::Anyone);
    let denied = permissions.may(Some(&open), &mallory, Operation::Subscribe, &name("secret.a"));
    assert_eq!(denied, Verdict::No("by those whom no permission denies it"));
    let channel = name("else");
    let unnamed = permissions.may(Some(&closed), &mallory, Operation::Subscribe, &channel);
    assert_eq!(unnamed, Verdict::No("by those whom a permission names"));
    for operation in OPERATIONS {
        let ruleless = permissions.may(None, &ann, operation, &channel);
        assert_eq!(ruleless, Verdict::No("by nobody"), "there is nothing to serve it by");
    }
}

/// The model: everything said again as a reader of the documentation would, in its own words.
mod model {
    use super::*;

    /// Characters of a pattern; `None` is a wildcard.
    fn characters(pattern: &str, user: Option<&str>) -> Option<Vec<Option<char>>> {
        let mut all = Vec::new();
        let mut rest: Vec<char> = pattern.chars().collect();
        while !rest.is_empty() {
            let word: Vec<char> = "{user}".chars().collect();
            if rest.starts_with(&word) {
                all.extend(user?.chars().map(Some));
                rest.drain(..word.len());
            } else {
                let first = rest.remove(0);
                all.push(if first == '*' { None } else { Some(first) });
            }
        }
        Some(all)
    }

    fn fits(pattern: &[Option<char>], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([None, rest @ ..], []) => fits(rest, name),
            ([None, rest @ ..], [_, behind @ ..]) => fits(rest, name) || fits(pattern, behind),
            ([Some(a), rest @ ..], [b, behind @ ..]) => a == b && fits(rest, behind),
            _ => false,
        }
    }

    fn about(pattern: &str, user: Option<&str>, channel: &str) -> bool {
        let name: Vec<char> = channel.chars().collect();
        characters(pattern, user).is_some_and(|pattern| fits(&pattern, &name))
    }

    /// What a token says of channels has wildcards and nothing else.
    fn granted(grants: &[Grant], operation: Operation, channel: &str) -> bool {
        let name: Vec<char> = channel.chars().collect();
        let plain = |p: &str| -> Vec<Option<char>> {
            p.chars().map(|c| if c == '*' { None } else { Some(c) }).collect()
        };
        grants.iter().any(|g| g.operation == operation && fits(&plain(&g.pattern), &name))
    }

    fn is_among(who: &str, identity: &Identity) -> bool {
        let user = identity.user.as_ref().map(|user| user.to_string());
        match who {
            "anyone" => true,
            "anonymous" => user.is_none(),
            "users" => user.is_some(),
            _ if who.starts_with("user:") => user.is_some_and(|user| who == format!("user:{user}")),
            _ => identity.attributes.iter().any(|attribute| attribute == who),
        }
    }

    pub(super) fn may(
        entries: &[Permission],
        rule: Option<&ChannelRule>,
        identity: &Identity,
        operation: Operation,
        channel: &str,
    ) -> &'static str {
        let Some(rule) = rule else { return "no" };
        let user = identity.user.as_ref().map(|user| user.to_string());
        let (mut allowed, mut denied) = (false, false);
        for entry in entries {
            let who = entry.who.iter().filter(|who| is_among(who, identity)).count() > 0;
            let patterns = entry.channels.iter();
            let channel =
                patterns.filter(|pattern| about(pattern, user.as_deref(), channel)).count() > 0;
            if who && channel {
                allowed |= entry.allow.contains(&operation);
                denied |= entry.deny.contains(&operation);
            }
        }
        if let Some(grants) = &identity.grants {
            allowed |= granted(&grants.allow, operation, channel);
            denied |= granted(&grants.deny, operation, channel);
        }
        if denied {
            return "no";
        }
        if allowed {
            return "yes";
        }
        if operation == Operation::Moderate {
            return "no";
        }
        let word = match operation {
            Operation::Publish => format!("{:?}", rule.publish),
            _ => format!("{:?}", rule.subscribe),
        };
        let first = matches!(operation, Operation::Subscribe | Operation::Publish);
        match &*word {
            "Anyone" => "yes",
            "Users" if user.is_some() => "yes",
            "Token" if first => "token",
            "Hook" if first => "ask",
            "Token" | "Hook" => "while subscribed",
            _ => "no",
        }
    }
}

/// Draws from few characters and few words, so that patterns nearly fit and entries meet one another.
struct Draw(SmallRng);

impl Draw {
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.random_range(0..of.len())].clone()
    }

    fn some<T>(&mut self, most: usize, mut draw: impl FnMut(&mut Draw) -> T) -> Vec<T> {
        let count = self.0.random_range(0..=most);
        (0..count).map(|_| draw(self)).collect()
    }

    fn text(&mut self, parts: &[&str], most: usize) -> String {
        self.some(most, |draw| draw.one(parts)).concat()
    }

    fn pattern(&mut self) -> String {
        self.text(&["a", "b", ".", "ä", "*", "*", "{user}", "{user}", "{", "user"], 6)
    }

    fn operations(&mut self) -> Vec<Operation> {
        self.some(2, |draw| draw.one(&OPERATIONS))
    }

    fn entry(&mut self) -> Permission {
        const WHO: [&str; 9] = [
            "anyone",
            "anonymous",
            "users",
            "user:a",
            "user:*",
            "role:r",
            "role:s",
            "claim:n=1",
            "claim:n=2",
        ];
        Permission {
            who: self.some(2, |draw| draw.one(&WHO).to_owned()),
            channels: self.some(3, Draw::pattern),
            allow: self.operations(),
            deny: if self.0.random_bool(0.4) { self.operations() } else { Vec::new() },
        }
    }

    fn grants(&mut self) -> Vec<Grant> {
        self.some(2, |draw| Grant {
            operation: draw.one(&OPERATIONS),
            pattern: draw.pattern().into(),
        })
    }

    fn identity(&mut self) -> Identity {
        let user = self.one(&[None, Some("a"), Some("ab"), Some("*"), Some("{user}"), Some("ä.")]);
        let grants = self.0.random_bool(0.3);
        Identity {
            user: user.map(|id| UserId::new(id).unwrap()),
            attributes: self
                .some(2, |draw| draw.one(&["role:r", "role:s", "claim:n=1", "user:a"]).into())
                .into(),
            grants: grants.then(|| Box::new(Grants { allow: self.grants(), deny: self.grants() })),
            ..Identity::default()
        }
    }

    fn channel(&mut self) -> ChannelName {
        loop {
            let text = self.text(&["a", "b", ".", "ä", "{user}", "ab"], 6);
            if let Ok(name) = ChannelName::new(&text) {
                return name;
            }
        }
    }
}

/// Panics at the first case in which the two do not agree.
fn compare(cases: u32, seed: u64) {
    let subscribe = [
        Subscribers::Anyone,
        Subscribers::Users,
        Subscribers::Token,
        Subscribers::Hook,
        Subscribers::Nobody,
    ];
    let publish = [Publishers::Anyone, Publishers::Users, Publishers::Hook, Publishers::Api];
    let mut seen = std::collections::BTreeMap::<&str, u32>::new();
    let mut draw = Draw(SmallRng::seed_from_u64(seed));
    let mut rule = rule(Subscribers::Anyone, Publishers::Anyone);
    for case in 0..cases {
        let entries = draw.some(4, Draw::entry);
        let permissions = Permissions::new(&entries).unwrap();
        let (identity, channel) = (draw.identity(), draw.channel());
        (rule.subscribe, rule.publish) = (draw.one(&subscribe), draw.one(&publish));
        let rule = draw.0.random_bool(0.95).then_some(&rule);
        let operation = draw.one(&OPERATIONS);
        let told = match permissions.may(rule, &identity, operation, &channel) {
            Verdict::Yes => "yes",
            Verdict::No(_) => "no",
            Verdict::WhileSubscribed => "while subscribed",
            Verdict::Token => "token",
            Verdict::Ask => "ask",
        };
        let expected = model::may(&entries, rule, &identity, operation, &channel);
        assert_eq!(
            told, expected,
            "case {case} of seed {seed}: {operation:?} of {channel} by {identity:?}\n{entries:#?}"
        );
        *seen.entry(told).or_default() += 1;
    }
    // Cases that all end the same way would show nothing.
    for verdict in ["yes", "no", "while subscribed", "token", "ask"] {
        let times = seen.get(verdict).copied().unwrap_or_default();
        assert!(times > cases / 100, "{verdict}: {times} of {cases}");
    }
}

#[test]
fn permissions_agree_with_a_naive_model() {
    compare(20_000, rand::random());
}

/// `cargo test -p ringfeed-engine --lib --release -- --ignored a_million`
#[test]
#[ignore = "takes longer; for changes of permissions and patterns"]
fn permissions_agree_with_a_naive_model_a_million_times() {
    compare(1_000_000, rand::random());
}
