//! Which rule of `[[channels]]` holds for a name.

use super::schema::{ChannelRule, Config};

impl Config {
    /// The first rule whose pattern matches.
    pub fn rule(&self, channel: &str) -> Option<&ChannelRule> {
        self.channels.iter().find(|rule| matches(&rule.pattern, channel))
    }
}

/// Whether `*` wildcards in `pattern` can be filled in to give `name`.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
