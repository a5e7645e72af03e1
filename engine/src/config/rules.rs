//! Which rule of `[[channels]]` holds for a name, and which names a pattern fits.

use ringfeed_protocol::channel_name::{self, ChannelNameError};

use super::schema::{ChannelRule, Config, Distribution};

/// Stands in the patterns of `[[permissions]]` for the id of the user who asks.
pub(crate) const USER: &str = "{user}";
/// Bytes of a pattern.
const PATTERN_BYTES_MAX: usize = 512;

impl Config {
    /// The first rule whose pattern matches.
    pub fn rule(&self, channel: &str) -> Option<&ChannelRule> {
        self.channels.iter().find(|rule| matches(&rule.pattern, channel))
    }

    /// Who gives a channel's publications their offsets; never [`Distribution::Auto`].
    pub fn distribution(&self, channel: &str) -> Distribution {
        // Most serve alone, and nothing is looked up for them.
        if !self.has_upstream() {
            return Distribution::Local;
        }
        self.distribution_of(channel, self.rule(channel))
    }

    /// The same of a channel whose rule is known.
    pub(crate) fn distribution_of(
        &self,
        channel: &str,
        rule: Option<&ChannelRule>,
    ) -> Distribution {
        if !self.has_upstream() {
            return Distribution::Local;
        }
        match rule {
            None => Distribution::Local,
            // What other programs publish has no offset in Redis, nor what nodes of another system do.
            Some(ChannelRule { distribution: Distribution::Auto, history_size: 1.., .. })
                if !self.is_foreign(channel) && !self.is_forwarded(channel) =>
            {
                Distribution::Numbered
            }
            Some(ChannelRule { distribution: Distribution::Auto, .. }) => Distribution::Bridged,
            Some(rule) => rule.distribution,
        }
    }
}

/// Why a pattern is about nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadPattern {
    /// Its length, which all that look at it would pay for.
    #[error("it has {0} bytes; allowed are {PATTERN_BYTES_MAX}")]
    TooLong(usize),
    /// What is wrong with the shortest name that fits.
    #[error("it matches no name: {0}")]
    NoName(#[from] ChannelNameError),
}

/// Whether some name fits a pattern: one that is left when its wildcards stand for nothing, if that is a name at all.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), BadPattern> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(BadPattern::TooLong(pattern.len()));
    }
    match channel_name::check(&pattern.replace('*', "")) {
        Err(ChannelNameError::Empty) if !pattern.is_empty() => Ok(()),
        checked => checked.map_err(BadPattern::NoName),
    }
}

/// Whether `*` wildcards in `pattern` can be filled in to give `name`.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    fits(pattern, name, None)
}

/// The same, with `{user}` in `pattern` standing for an id, in which nothing is a wildcard.
pub(crate) fn matches_for(pattern: &str, name: &str, user: &str) -> bool {
    fits(pattern, name, Some(user))
}

/// Takes at most the product of the lengths and no memory: each part between wildcards is looked for behind the one
/// before, and where the first place it stands at will not do, no later one does.
fn fits(pattern: &str, name: &str, user: Option<&str>) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return behind_prefix(name, pattern, user) == Some("");
    };
    let Some(mut name) = behind_prefix(name, head, user) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        match behind_first(name, part, user) {
            Some(behind) => name = behind,
            None => return false,
        }
    }
    ends_with(name, tail, user)
}

/// What follows `part` in a name that begins with it.
fn behind_prefix<'a>(name: &'a str, part: &str, user: Option<&str>) -> Option<&'a str> {
    let Some(user) = user else { return name.strip_prefix(part) };
    let mut literals = part.split(USER);
    let rest = name.strip_prefix(literals.next()?)?;
    literals.try_fold(rest, |rest, literal| rest.strip_prefix(user)?.strip_prefix(literal))
}

/// What follows the first place where `part` stands.
fn behind_first<'a>(name: &'a str, part: &str, user: Option<&str>) -> Option<&'a str> {
    if user.is_none() || !part.contains(USER) {
        return name.find(part).and_then(|at| name.get(at + part.len()..));
    }
    let mut places = name.char_indices().filter_map(|(at, _)| name.get(at..));
    places.find_map(|rest| behind_prefix(rest, part, user))
}

fn ends_with(name: &str, part: &str, user: Option<&str>) -> bool {
    let Some(user) = user else { return name.ends_with(part) };
    // From the end: what is left of the name in front of each literal.
    let mut rest = name;
    for (i, literal) in part.rsplit(USER).enumerate() {
        let user = if i == 0 { "" } else { user };
        match rest.strip_suffix(user).and_then(|rest| rest.strip_suffix(literal)) {
            Some(left) => rest = left,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_no_name_fits_is_told() {
        let longest = "a".repeat(255);
        for good in ["*", "**", "a", "a*b", "{user}", &format!("*{longest}*")] {
            check_pattern(good).unwrap();
        }
        for (bad, why) in [
            ("", "it matches no name: channel name is empty"),
            ("a b", "it matches no name: channel name holds ' '"),
            (&*format!("{longest}*a"), "it matches no name: channel name has 256 bytes"),
            (&"*".repeat(513), "it has 513 bytes; allowed are 512"),
        ] {
            let told = check_pattern(bad).unwrap_err().to_string();
            assert!(told.starts_with(why), "{told}");
        }
    }

    #[test]
    fn patterns_match_as_wildcards_do() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("bench.*", "bench.x", true),
            ("bench.*", "bench", false),
            ("*@trade", "btc@trade", true),
            ("*@trade", "btc@trades", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("exact", "exact", true),
            ("a**c", "ac", true),
            ("r*m*", "räume", true),
            ("{user}", "{user}", true),
            ("{user}", "ann", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_user_fills_in_as_text_and_never_as_a_pattern() {
        for (pattern, name, user, expected) in [
            ("box.{user}", "box.ann", "ann", true),
            ("box.{user}", "box.bob", "ann", false),
            ("box.{user}", "box.annex", "ann", false),
            ("box.{user}.*", "box.ann.new", "ann", true),
            ("box.{user}", "box.bob", "*", false),
            ("box.{user}", "box.*", "*", true),
            ("{user}{user}", "aa", "a", true),
            ("*{user}*", "xaby", "ab", true),
            ("*-{user}-*", "x--ab-y", "ab", true),
            ("*{user}x{user}", "aaxaxa", "a", true),
            ("*{user}x{user}", "axb", "a", false),
            ("*{user}", "{user}", "ann", false),
            ("{user}", "{user}", "{user}", true),
            ("a*{user}", "a", "a", false),
            ("*", "any", "ann", true),
        ] {
            assert_eq!(matches_for(pattern, name, user), expected, "{pattern} {name} {user}");
        }
    }

    #[test]
    fn patterns_that_nearly_fit_in_many_ways_come_to_an_end() {
        let name = "a".repeat(255);
        let pattern = format!("{}b", "*a".repeat(127));
        assert!(!matches(&pattern, &name));
        assert!(!matches_for(&format!("{}b", "*{user}".repeat(60)), &name, "a"));
        assert!(!matches_for(&format!("*{}b*", USER.repeat(60)), &name, "a"));
    }
}
