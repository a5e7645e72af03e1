//! `[[redis_channels]]`: what other programs' channels in Redis are called here, and which entries cannot be.

use ringfeed_protocol::foreign::portico::Source;

use super::rules::{check_pattern, matches};
use super::schema::{Config, Direction, Distribution, ForeignFormat, RedisChannel};

/// What comes from Redis is compared with one entry after the other.
const ENTRIES_MAX: usize = 64;
/// Bytes of a channel's name in Redis.
const NAME_BYTES_MAX: usize = 255;

impl RedisChannel {
    /// What the wildcard in `name` stands for in the name of a channel of Redis, nothing where there is none; `None` where
    /// the entry is about another one.
    pub(crate) fn of_redis<'a>(&self, name: &'a str) -> Option<&'a str> {
        filled(&self.name, name)
    }

    /// The same for one of ringfeed's channels.
    pub(crate) fn of_channel<'a>(&self, channel: &'a str) -> Option<&'a str> {
        filled(&self.channel, channel)
    }

    /// Whether what others publish there is published here.
    pub(crate) fn comes_in(&self) -> bool {
        self.direction != Direction::Out
    }

    /// Whether what is published here is published there.
    pub(crate) fn goes_out(&self) -> bool {
        self.direction != Direction::In
    }
}

/// What the wildcard in a pattern stands for; nothing where it has none.
fn filled<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    match pattern.split_once('*') {
        Some((head, tail)) => name.strip_prefix(head)?.strip_suffix(tail),
        None => (pattern == name).then_some(""),
    }
}

/// Whether some name fits both patterns.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    // Of each end of `a`, from the last one on: which ends of `b` it has a name in common with.
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut behind = vec![false; b.len() + 1];
    for (i, end) in (0..=a.len()).rev().map(|at| (at, a.get(at))) {
        let mut row = vec![false; b.len() + 1];
        for (j, other) in (0..=b.len()).rev().map(|at| (at, b.get(at))) {
            let next = |row: &[bool]| row.get(j + 1).copied().unwrap_or(false);
            row[j] = match (end, other) {
                (None, None) => i == a.len(),
                (Some(b'*'), _) | (_, Some(b'*')) => behind[j] && i < a.len() || next(&row),
                (Some(one), Some(two)) => one == two && next(&behind),
                _ => false,
            };
        }
        behind = row;
    }
    behind.first().copied().unwrap_or(false)
}

impl Config {
    /// Whether other programs publish to a channel, or are told what is published there.
    pub(crate) fn is_foreign(&self, channel: &str) -> bool {
        self.redis_channels.iter().any(|own| own.of_channel(channel).is_some())
    }

    /// Whether what other programs publish comes to a channel.
    pub(crate) fn hears_foreign(&self, channel: &str) -> bool {
        let mut heard = self.redis_channels.iter().filter(|own| own.comes_in());
        heard.any(|own| own.of_channel(channel).is_some())
    }

    pub(super) fn validate_redis_channels(&self, errors: &mut Vec<String>) {
        let entries = &self.redis_channels;
        if entries.is_empty() {
            return;
        }
        if !self.redis.is_used() {
            errors.push("redis_channels: redis.url names no Redis".into());
        }
        if entries.len() > ENTRIES_MAX {
            let count = entries.len();
            return errors.push(format!(
                "redis_channels: there are {count} entries; allowed are at most {ENTRIES_MAX}"
            ));
        }
        for (i, entry) in entries.iter().enumerate() {
            errors.extend(entry.wrong().iter().map(|own| format!("redis_channels[{i}]{own}")));
            let RedisChannel { name, .. } = entry;
            let prefix = &self.redis.prefix;
            if [format!("{prefix}:*"), format!("{prefix}/*")].iter().any(|own| overlap(own, name)) {
                errors.push(format!(
                    "redis_channels[{i}].name = {name:?}: ringfeed's own channels begin with redis.prefix = {prefix:?}"
                ));
            }
            let mut earlier = entries.iter().take(i).enumerate();
            if let Some((j, other)) = earlier.find(|(_, other)| overlap(&other.name, name)) {
                errors.push(format!(
                    "redis_channels[{i}].name = {name:?}: redis_channels[{j}].name = {:?} has channels in common with it, and \
                     what is published there would come twice; allowed is one entry for each channel of Redis",
                    other.name
                ));
            }
            self.validate_distribution(i, entry, errors);
        }
    }

    /// Redis does not number what others publish: its rules must not say so.
    fn validate_distribution(&self, i: usize, entry: &RedisChannel, errors: &mut Vec<String>) {
        let RedisChannel { channel, .. } = entry;
        for (j, rule) in self.channels.iter().enumerate() {
            if !overlap(&rule.pattern, channel) {
                continue;
            }
            let wrong = match rule.distribution {
                Distribution::Numbered => Some((
                    "numbered",
                    "what other programs publish has no offset in Redis; allowed are auto, bridged and local",
                )),
                Distribution::Local if entry.goes_out() => Some((
                    "local",
                    "what is published there leaves this node; allowed are auto and bridged, or direction = \"in\"",
                )),
                _ => None,
            };
            if let Some((says, why)) = wrong {
                errors.push(format!(
                    "redis_channels[{i}].channel = {channel:?}: channels[{j}].pattern = {:?} has distribution = {says:?}: {why}",
                    rule.pattern
                ));
            }
            // As with rules: no name holds '*', so this rule has all of its names.
            if matches(&rule.pattern, channel) {
                break;
            }
        }
    }
}

impl RedisChannel {
    /// What is wrong with it whatever else there is.
    fn wrong(&self) -> Vec<String> {
        let RedisChannel { name, channel, format, direction } = self;
        let mut wrong = Vec::new();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
            wrong.push(format!(
                ".name = {name:?}: allowed are 1 to {NAME_BYTES_MAX} bytes without control characters"
            ));
        }
        if let Err(e) = check_pattern(channel) {
            wrong.push(format!(".channel = {channel:?}: {e}"));
        }
        for (key, pattern) in [("name", name), ("channel", channel)] {
            if pattern.matches('*').count() > 1 {
                wrong.push(format!(".{key} = {pattern:?}: allowed is one * at most"));
            }
        }
        let stars = (name.contains('*'), channel.contains('*'));
        match format {
            ForeignFormat::Plain if stars.0 != stars.1 => wrong.push(format!(
                ".name = {name:?}: a * in it stands for the same as one in channel = {channel:?}; allowed are one in both \
                 or none"
            )),
            ForeignFormat::Fluxus if stars != (true, true) => wrong.push(
                ".format = \"fluxus\": name and channel need a *, which stands for the name that Fluxus has for a channel, as in \
                 name = \"ws-default.*\" and channel = \"fluxus.*\""
                    .into(),
            ),
            ForeignFormat::Portico => {
                if Source::from_name(name).is_none() {
                    let known = Source::ALL.map(Source::name).join(", ");
                    wrong.push(format!(".name = {name:?}: PorticoEstate publishes on {known}"));
                }
                if !stars.1 {
                    wrong.push(format!(
                        ".channel = {channel:?}: with format = \"portico\" it needs a *, which stands for a room, as in \
                         \"portico.*\""
                    ));
                }
                if *direction != Direction::In {
                    wrong.push(
                        ".direction: PorticoEstate does not listen to Redis; with format = \"portico\" allowed is in"
                            .into(),
                    );
                }
            }
            _ => {}
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Sources;

    fn load(file: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let file = format!("[redis]\nurl = \"redis://localhost\"\n{file}");
        std::fs::write(&path, file).unwrap();
        let sources = Sources { file: Some(&path), ..Sources::default() };
        Config::load(&sources).map_err(|e| e.to_string().replace(path.to_str().unwrap(), "c.toml"))
    }

    fn entry(name: &str, channel: &str, more: &str) -> String {
        format!("[[redis_channels]]\nname = {name:?}\nchannel = {channel:?}\n{more}\n")
    }

    #[test]
    fn what_cannot_be_is_named_with_what_is_allowed() {
        for (file, part) in [
            (entry("", "a", ""), "redis_channels[0].name = \"\": allowed are 1 to 255 bytes"),
            (entry("a\n", "a", ""), "without control characters"),
            (entry("a", "a b", ""), "redis_channels[0].channel = \"a b\": it matches no name"),
            (entry("*a*", "*", ""), "redis_channels[0].name = \"*a*\": allowed is one *"),
            (
                entry("x:*", "a", ""),
                "redis_channels[0].name = \"x:*\": a * in it stands for the same",
            ),
            (entry("x", "*", ""), "allowed are one in both or none"),
            (
                entry("ws.news", "news", "format = \"fluxus\""),
                "redis_channels[0].format = \"fluxus\": name",
            ),
            (
                entry("news", "p.*", "format = \"portico\""),
                "PorticoEstate publishes on notifications, ",
            ),
            (
                entry("notifications", "p", "format = \"portico\""),
                "it needs a *, which stands for a room",
            ),
            (
                entry("notifications", "p.*", "format = \"portico\"\ndirection = \"both\""),
                "redis_channels[0].direction: PorticoEstate does not listen",
            ),
            (entry("*", "*", ""), "ringfeed's own channels begin with redis.prefix = \"ringfeed\""),
            (entry("ring*", "r.*", ""), "ringfeed's own channels"),
            (entry("ringfeed/3:b:x", "x", ""), "ringfeed's own channels"),
            (
                entry("a:*", "a.*", "") + &entry("*:b", "b.*", ""),
                "redis_channels[1].name = \"*:b\": redis_channels[0].name = \"a:*\" has channels in common",
            ),
            (entry("a", "a", "format = \"cobol\""), "allowed are plain, fluxus, portico"),
            (entry("a", "a", "direction = \"up\""), "allowed are in, out, both"),
            ("[[redis_channels]]\nname = \"a\"\n".into(), "redis_channels[0]: channel is missing"),
        ] {
            let refused = load(&file).unwrap_err();
            assert!(refused.contains(part), "{file}: {refused}");
        }
        let many: String =
            (0..65).map(|n| entry(&format!("x{n}."), &format!("a{n}"), "")).collect();
        assert!(load(&many).unwrap_err().contains("there are 65 entries"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, entry("a", "a", "")).unwrap();
        let sources = Sources { file: Some(&path), ..Sources::default() };
        let refused = Config::load(&sources).unwrap_err().to_string();
        assert_eq!(refused, "redis_channels: redis.url names no Redis");
    }

    #[test]
    fn a_rule_that_has_redis_number_what_others_publish_is_refused_by_both_names() {
        let rules = |distribution: &str| {
            format!(
                "[[channels]]\npattern = \"first\"\n[[channels]]\npattern = \"n*\"\ndistribution = {distribution:?}\n\
                 history_size = 10\n[[channels]]\npattern = \"*\"\n"
            )
        };
        for (mapped, direction, numbered, local) in [
            ("news", "in", true, false),
            ("news", "both", true, true),
            ("*", "out", true, true),
            ("*.x", "in", true, false),
            ("first", "both", false, false),
            ("other.*", "both", false, false),
        ] {
            let name = if mapped.contains('*') { "x:*" } else { "x" };
            let entry = entry(name, mapped, &format!("direction = {direction:?}"));
            for (says, is_refused) in [("numbered", numbered), ("local", local), ("bridged", false)]
            {
                match load(&format!("{}{entry}", rules(says))) {
                    Ok(_) => assert!(!is_refused, "{mapped} {direction} {says}"),
                    Err(refused) => {
                        let both = format!(
                            "redis_channels[0].channel = {mapped:?}: channels[1].pattern = \"n*\" has distribution = {says:?}"
                        );
                        assert!(is_refused && refused.starts_with(&both), "{refused}");
                    }
                }
            }
            // Each node keeps a history of its own.
            let config = load(&format!("{}{entry}", rules("auto"))).unwrap();
            let channel = mapped.replace('*', "n");
            assert_eq!(config.distribution(&channel), Distribution::Bridged, "{mapped}");
        }
        let config = load(&format!("{}{}", rules("auto"), entry("x", "news", ""))).unwrap();
        assert_eq!(config.distribution("no.news"), Distribution::Numbered);
    }

    #[test]
    fn a_wildcard_stands_for_the_same_on_both_sides() {
        let entry = |name: &str, channel: &str| RedisChannel {
            name: name.into(),
            channel: channel.into(),
            format: ForeignFormat::Plain,
            direction: Direction::Both,
        };
        let realtime = entry("realtime:*", "*.live");
        assert_eq!(realtime.of_redis("realtime:a:b"), Some("a:b"));
        assert_eq!(realtime.of_redis("realtime:"), Some(""));
        assert_eq!(realtime.of_redis("real"), None);
        assert_eq!(realtime.of_channel("a:b.live"), Some("a:b"));
        assert_eq!(realtime.of_channel("live"), None);
        let exact = entry("notifications", "news");
        assert_eq!(exact.of_redis("notifications"), Some(""));
        assert_eq!(exact.of_redis("notifications2"), None);
        // The ends must not share what is between them.
        assert_eq!(entry("aba*aba", "*").of_redis("ababa"), None);
    }

    proptest! {
        #[test]
        fn patterns_overlap_where_a_name_fits_both(
            a in "[ab*]{0,6}", b in "[ab*]{0,6}", name in "[ab]{0,8}",
        ) {
            if matches(&a, &name) && matches(&b, &name) {
                prop_assert!(overlap(&a, &b), "{name}");
            }
            prop_assert_eq!(overlap(&a, &b), overlap(&b, &a));
            // A name is a pattern that one name fits.
            prop_assert_eq!(overlap(&a, &name), matches(&a, &name));
        }
    }
}
