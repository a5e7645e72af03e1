//! Rules of channels that a registry holds: the same keys as in `[[channels]]`, but for those that are secret or lead to
//! something on a node's machine, and looked at by the same code.

use std::cmp::Reverse;

use serde_json::Map;
use toml::Value;

use super::ConfigErrors;
use super::keys::{self, printable};
use super::merge::{default_entry, overlay_key};
use super::rules::matches;
use super::schema::{ChannelRule, Config};
use super::validate::too_many_rules;
use crate::registry::api::ChannelEntry;

/// Keys of a rule that stand in a node's own file alone.
const OWN_ALONE: [&str; 4] = ["schema", "password", "password_env", "password_file"];

/// What messages call the rule of a name.
pub(super) fn fetched_place(name: &str) -> String {
    format!("registry: channels[{name:?}]")
}

/// A rule, or everything that is wrong with it by itself.
fn rule_of(name: &str, given: &Map<String, serde_json::Value>) -> Result<ChannelRule, Vec<String>> {
    let place = fetched_place(name);
    let (mut errors, mut filled) = (Vec::new(), default_entry("channels"));
    for (key, value) in given {
        let at = format!("{place}.{}", printable(key));
        if key == "pattern" {
            errors.push(format!("{at}: the name of the channel is the pattern"));
        } else if OWN_ALONE.contains(&&**key) {
            errors.push(format!(
                "{at}: what is secret, or on the machine of a node, stands in its own file alone"
            ));
        } else {
            match Value::try_from(value) {
                Ok(value) => {
                    overlay_key(&mut filled, "channels", &at, (key, &value), &mut errors);
                }
                // TOML has no null, and no numbers so large: neither is anything that a key may be.
                Err(_) => errors.push(match keys::allowed("channels", key) {
                    Some(allowed) => format!("{at}: {allowed}"),
                    None => format!("{at}: {}", keys::unknown(Some("channels"))),
                }),
            }
        }
    }
    filled.insert("pattern".into(), name.into());
    // Their values were looked at.
    let mut rule: ChannelRule =
        Value::Table(filled).try_into().map_err(|e| vec![format!("{place}: {}", e.message())])?;
    errors.extend(rule.wrong().iter().map(|wrong| format!("{place}{wrong}")));
    rule.fetched = true;
    rule.read_room();
    errors.extend(rule.read_content().err().map(|why| format!("{place}.schema: {why}")));
    if errors.is_empty() { Ok(rule) } else { Err(errors) }
}

/// What no node would take.
pub(crate) fn check_rule(
    name: &str,
    given: &Map<String, serde_json::Value>,
) -> Result<(), ConfigErrors> {
    rule_of(name, given).map(drop).map_err(ConfigErrors)
}

/// What no node that has them would take of a rule beside all others of the registry's list.
pub(crate) fn check_beside(entry: &ChannelEntry, others: &[&ChannelEntry]) -> Result<(), String> {
    let is_everywhere = |own: &&&ChannelEntry| own.allowed_nodes.iter().any(|node| node == "*");
    let everywhere = others.iter().filter(is_everywhere).count();
    if let Some(wrong) = too_many_rules(0, everywhere + 1) {
        return Err(wrong);
    }
    let meets = |other: &&&ChannelEntry| {
        is_everywhere(&&entry)
            || is_everywhere(other)
            || other.allowed_nodes.iter().any(|node| entry.allowed_nodes.contains(node))
    };
    for other in others.iter().filter(meets) {
        let mut both = [&*entry.name, &*other.name];
        both.sort_by_key(|name| order(name));
        let [first, behind] = both;
        if matches(first, behind) {
            let (first, behind) = (fetched_place(first), fetched_place(behind));
            return Err(format!(
                "{behind} would never be reached: {first} matches all its names before"
            ));
        }
    }
    Ok(())
}

/// The more a pattern says the earlier it counts: one that matches all names of another is behind it.
fn order(pattern: &str) -> (Reverse<usize>, usize) {
    let wildcards = pattern.bytes().filter(|&byte| byte == b'*').count();
    (Reverse(pattern.len() - wildcards), wildcards)
}

impl Config {
    /// This configuration with the rules of a registry's list in the place of those that it has of one, in front of its own.
    /// Entries without a rule say nothing to a node.
    ///
    /// # Errors
    /// Everything that is wrong with them, by itself and with what else is here.
    pub fn with_fetched(&self, entries: &[ChannelEntry]) -> Result<Config, ConfigErrors> {
        let rules = entries.iter().filter_map(|entry| Some((&entry.name, entry.rule.as_ref()?)));
        let rules: Vec<_> = rules.filter(|_| self.cluster.channels).collect();
        let own = self.channels.iter().filter(|rule| !rule.fetched).count();
        // Nobody waits for all of them to be looked at.
        if let Some(wrong) = too_many_rules(own, rules.len()) {
            return Err(ConfigErrors(vec![wrong]));
        }
        let (mut errors, mut fetched) = (Vec::new(), Vec::new());
        for (name, given) in rules {
            match rule_of(name, given) {
                Ok(rule) => fetched.push(rule),
                Err(wrong) => errors.extend(wrong),
            }
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        fetched.sort_by_key(|rule| order(&rule.pattern));
        self.in_front(fetched)
    }

    /// This configuration with the rules of a registry that another one has.
    ///
    /// # Errors
    /// As above.
    pub fn with_fetched_of(&self, other: &Config) -> Result<Config, ConfigErrors> {
        let fetched = other.fetched_rules().filter(|_| self.cluster.channels);
        self.in_front(fetched.cloned().collect())
    }

    fn in_front(&self, mut fetched: Vec<ChannelRule>) -> Result<Config, ConfigErrors> {
        let mut config = self.clone();
        config.channels.retain(|rule| !rule.fetched);
        fetched.append(&mut config.channels);
        config.channels = fetched;
        let mut errors = Vec::new();
        config.validate_rules(&mut errors);
        config.validate_wsnode_rules(&mut errors);
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// Those that are a registry's.
    pub fn fetched_rules(&self) -> impl Iterator<Item = &ChannelRule> {
        self.channels.iter().filter(|rule| rule.fetched)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::check_beside;
    use crate::config::{Config, Sources};
    use crate::registry::api::{ChannelEntry, everywhere};

    fn own(file: &str) -> Config {
        let cluster = "[server]\nnode_id = \"a\"\n[cluster]\nregistry = \"http://127.0.0.1:9810\"\nkey = \"k\"\n";
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), format!("{cluster}{file}")).unwrap();
        Config::load(&Sources { file: Some(path.path()), ..Sources::default() }).unwrap()
    }

    fn entries(all: &[(&str, Value)]) -> Vec<ChannelEntry> {
        let entry = |(name, rule): &(&str, Value)| ChannelEntry {
            name: (*name).to_owned(),
            allowed_nodes: everywhere(),
            rule: rule.as_object().cloned(),
        };
        all.iter().map(entry).collect()
    }

    fn patterns(config: &Config) -> Vec<&str> {
        config.channels.iter().map(|rule| &*rule.pattern).collect()
    }

    #[test]
    fn what_a_file_may_not_say_beside_nodes_of_wsnode_the_registry_may_not_either() {
        let own = own("[wsnode]\nkey = \"one-of-all-the-nodes\"\nnodes = [\"http://a:8080\"]\n\
             [[api_keys]]\nname = \"n\"\nkey = \"one-of-all-the-nodes\"\nscopes = [\"publish\"]\nchannels = [\"*\"]\n\
             [[endpoints]]\npath = \"/\"\ndialect = \"wsnode\"\nchannel_prefix = \"node.\"\nhttp = \"wsnode\"\n");
        for says in ["numbered", "local"] {
            let list = entries(&[("node.*", json!({"distribution": says}))]);
            let refused = own.with_fetched(&list).unwrap_err().to_string();
            assert!(refused.contains("allowed are auto and bridged"), "{refused}");
        }
        own.with_fetched(&entries(&[("node.*", json!({"history_size": 5}))])).unwrap();
    }

    #[test]
    fn rules_of_the_registry_come_first_and_of_these_the_one_that_says_most() {
        let own = own("[[channels]]\npattern = \"news\"\n[[channels]]\npattern = \"*\"\n");
        let list = entries(&[
            ("*", json!({})),
            ("a*", json!({"history_size": 7, "room": true})),
            ("a", json!({"subscribe": "nobody", "message_bytes_max": 9})),
            ("*ab", json!({})),
            ("a*b", json!({})),
            ("of others, by name", Value::Null),
        ]);
        let both = own.with_fetched(&list).unwrap();
        assert_eq!(patterns(&both), ["*ab", "a*b", "a", "a*", "*", "news", "*"]);
        let of = |name| both.rule(name).unwrap();
        assert!(of("a").fetched && of("a").content.is_some() && of("a").room_rules.is_none());
        assert!(of("ac").history_size == 7 && of("ac").room_rules.is_some());
        // Another list takes the place of the first, and none leaves what was there.
        let less = both.with_fetched(&entries(&[("news*", json!({}))])).unwrap();
        assert_eq!(patterns(&less), ["news*", "news", "*"]);
        assert_eq!(patterns(&less.with_fetched(&[]).unwrap()), ["news", "*"]);
        // What is read anew of the file keeps them.
        assert_eq!(patterns(&own.with_fetched_of(&less).unwrap()), ["news*", "news", "*"]);
    }

    #[test]
    fn rules_that_no_node_takes_together_are_told() {
        let entry = |name: &str, node: &str| ChannelEntry {
            name: name.into(),
            allowed_nodes: vec![node.into()],
            rule: Some(serde_json::Map::new()),
        };
        let one = entry("a*", "*");
        for other in ["a**", "a***", "a*b", "*a", "*", "b*"] {
            let other = entry(other, "x");
            let alone = own("").with_fetched(&[one.clone(), other.clone()]);
            let told = check_beside(&other, &[&one]);
            assert_eq!(told.is_err(), alone.is_err(), "{other:?}");
            assert_eq!(check_beside(&one, &[&other]), told);
        }
        let told = check_beside(&entry("a**", "y"), &[&one]).unwrap_err();
        assert!(told.contains(r#"channels["a**"] would never be reached: "#), "{told}");
        assert_eq!(check_beside(&entry("b**", "y"), &[&entry("b*", "x")]), Ok(()));
        let many: Vec<ChannelEntry> = (0..1024).map(|n| entry(&n.to_string(), "*")).collect();
        let many: Vec<&ChannelEntry> = many.iter().collect();
        assert_eq!(check_beside(&one, &many[1..]), Ok(()));
        let told = check_beside(&one, &many).unwrap_err();
        assert!(told.contains("allowed are at most 1024"), "{told}");
    }

    #[test]
    fn a_node_that_is_to_goes_by_its_own_rules_alone() {
        let config = own("");
        let list = entries(&[("a", json!({}))]);
        let both = config.with_fetched(&list).unwrap();
        let mut alone = config.clone();
        alone.cluster.channels = false;
        assert_eq!(patterns(&alone.with_fetched(&list).unwrap()), ["*"]);
        assert_eq!(patterns(&alone.with_fetched_of(&both).unwrap()), ["*"]);
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_the_channel_and_the_key() {
        let list = entries(&[
            ("a\"b", json!({})),
            ("c", json!({"history_sise": 1, "history_size": -1, "publish": "me", "sender": null})),
            (
                "d",
                json!({"pattern": "*", "room": true, "password": "hush", "password_env": "hush"}),
            ),
            ("e", json!({"schema": "/etc/passwd", "window_bytes": u64::MAX, "confirm": true})),
            ("f", json!({"join_leave": true, "moderated": true, "messages_burst": 1.5})),
        ]);
        let told = own("").with_fetched(&list).unwrap_err().to_string();
        for part in [
            r#"registry: channels["a\"b"].pattern = "a\"b": it matches no name"#,
            r#"registry: channels["c"].history_sise: no such key; known are pattern, subscribe"#,
            r#"registry: channels["c"].history_size = -1: allowed are 0 to 16777216"#,
            r#"registry: channels["c"].publish = "me": allowed are anyone, users, hook, api"#,
            r#"registry: channels["c"].sender: allowed are true and false"#,
            r#"registry: channels["d"].pattern: the name of the channel is the pattern"#,
            r#"registry: channels["d"].password: what is secret, or on the machine of a node"#,
            r#"registry: channels["d"].password_env: what is secret"#,
            r#"registry: channels["e"].schema: what is secret, or on the machine of a node"#,
            r#"registry: channels["e"].window_bytes: allowed are 4096 to 1073741824"#,
            r#"registry: channels["e"].confirm = true: whoever confirms"#,
            r#"registry: channels["f"].join_leave = true: who comes and goes"#,
            r#"registry: channels["f"].moderated: it holds in rooms alone"#,
            r#"registry: channels["f"].messages_burst = 1.5: allowed are 1 to"#,
        ] {
            assert!(told.contains(part), "{part} is not in:\n{told}");
        }
        assert_eq!(told.lines().count(), 14, "{told}");
        assert!(!told.contains("hush"), "{told}");
    }

    #[test]
    fn what_does_not_go_with_the_rest_is_told_too() {
        let config = own("[[channels]]\npattern = \"x\"\n");
        let told =
            |list: &[(&str, Value)]| config.with_fetched(&entries(list)).unwrap_err().to_string();
        let hook = told(&[("a", json!({"presence": "full", "presence_hook": true}))]);
        assert!(
            hook.contains(r#"channels["a"].presence_hook = true: hooks.presence_url says"#),
            "{hook}"
        );
        let twice = told(&[("a*", json!({})), ("a**", json!({}))]);
        let never = r#"channels["a**"].pattern = "a**": it is never reached: registry: channels["a*"].pattern"#;
        assert!(twice.contains(never), "{twice}");
        let names: Vec<String> = (0..1024).map(|n| format!("n{n}")).collect();
        let many: Vec<_> = names.iter().map(|name| (&**name, json!({}))).collect();
        let many = told(&many);
        assert!(many.contains("there are 1025 rules, 1024 of them the registry's"), "{many}");
    }
}
