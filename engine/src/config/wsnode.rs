//! `[wsnode]`: nodes of DistributedWebSocket beside this one, and what its values mean.

use super::redis_channels::overlap;
use super::schema::{Config, Distribution, Endpoint, HttpRoutes, Scope, Wsnode};
use crate::registry::client::check_url;
use crate::registry::names::NodeUrl;

/// Nodes that may be listed.
const NODES_MAX: usize = 64;
/// Bytes of a key.
const KEY_BYTES_MAX: usize = 4096;

impl Wsnode {
    /// Whether there may be such nodes.
    pub fn is_used(&self) -> bool {
        !self.nodes.is_empty() || !self.registry.is_empty()
    }

    /// The key, which is text where it was validated.
    pub(crate) fn key_text(&self) -> &str {
        std::str::from_utf8(&self.key.0).unwrap_or_default()
    }
}

impl Config {
    /// The endpoint whose channels such nodes have, too.
    pub(crate) fn wsnode_endpoint(&self) -> Option<&Endpoint> {
        let mut served = self.endpoints.iter().filter(|own| own.http == HttpRoutes::Wsnode);
        served.next().filter(|_| self.wsnode.is_used())
    }

    /// Whether what is published on a channel is posted to them.
    pub(crate) fn is_forwarded(&self, channel: &str) -> bool {
        let endpoint = self.wsnode_endpoint();
        endpoint.is_some_and(|endpoint| channel.starts_with(&*endpoint.channel_prefix))
    }

    /// What this node has in common with those that hear by links of their own what is published here.
    pub(crate) fn links(&self) -> Option<String> {
        if self.cluster.is_used() {
            return Some("cluster".into());
        }
        let database = self.redis.connection().ok()?.redis_settings().db();
        self.redis.is_used().then(|| format!("redis:{}/{database}", self.redis.prefix))
    }

    pub(super) fn validate_wsnode(&self, errors: &mut Vec<String>) {
        let Wsnode { nodes, registry, url, .. } = &self.wsnode;
        if !self.wsnode.is_used() {
            if !url.is_empty() {
                errors.push("wsnode.url: wsnode.registry names no registry to tell it to".into());
            }
            return;
        }
        if nodes.len() > NODES_MAX {
            let count = nodes.len();
            errors
                .push(format!("wsnode.nodes: there are {count}; allowed are at most {NODES_MAX}"));
        }
        for (i, node) in nodes.iter().enumerate() {
            let wrong = node.parse::<NodeUrl>().err().map(|e| e.to_string());
            let twice = nodes.iter().take(i).any(|other| other == node);
            let wrong = wrong.or(twice.then(|| "it is listed before".into()));
            errors.extend(wrong.map(|wrong| format!("wsnode.nodes[{i}]: {wrong}")));
        }
        if !registry.is_empty() {
            errors.extend(check_url(registry).err().map(|e| format!("wsnode.registry: {e}")));
        }
        self.validate_wsnode_url(errors);
        let key = &self.wsnode.key.0;
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
            errors.push(format!(
                "wsnode.key: the key that the nodes have is needed: 1 to {KEY_BYTES_MAX} visible ASCII characters"
            ));
        }
        let served = self.endpoints.iter().filter(|own| own.http == HttpRoutes::Wsnode).count();
        if served != 1 {
            errors.push(format!(
                "wsnode: nodes have the channels of an endpoint with http = \"wsnode\"; there are {served}, allowed is one"
            ));
        }
        self.validate_wsnode_rules(errors);
    }

    fn validate_wsnode_url(&self, errors: &mut Vec<String>) {
        let Wsnode { registry, url, .. } = &self.wsnode;
        if url.is_empty() {
            return;
        }
        errors.extend(url.parse::<NodeUrl>().err().map(|e| format!("wsnode.url: {e}")));
        let same = |one: &str| one.trim_end_matches('/') == registry.trim_end_matches('/');
        if registry.is_empty() {
            errors.push("wsnode.url: wsnode.registry names no registry to tell it to".into());
        } else if same(&self.cluster.registry) {
            // One word would take the place of the other, again and again.
            errors.push(
                "wsnode.url: the registry has this node from [cluster]; allowed is cluster.url in its place"
                    .into(),
            );
        }
    }

    /// Nobody numbers what such nodes publish, and it reaches each node by itself: rules must not say otherwise.
    pub(super) fn validate_wsnode_rules(&self, errors: &mut Vec<String>) {
        let Some(endpoint) = self.wsnode_endpoint().filter(|_| self.has_upstream()) else { return };
        let pattern = format!("{}*", endpoint.channel_prefix);
        for (i, rule) in self.channels.iter().enumerate() {
            let says = match rule.distribution {
                Distribution::Numbered => "numbered",
                Distribution::Local => "local",
                Distribution::Auto | Distribution::Bridged => continue,
            };
            if overlap(&rule.pattern, &pattern) {
                let place = self.place_of(i);
                errors.push(format!(
                    "{place}.distribution = {says:?}: nodes of wsnode have its channels, too; allowed are auto and bridged"
                ));
            }
        }
    }

    /// What is wrong with the key, once it is known who has which.
    pub(super) fn wrong_wsnode_key(&self) -> Option<String> {
        let Wsnode { key, .. } = &self.wsnode;
        if !self.wsnode.is_used() || key.is_empty() {
            return None;
        }
        let found = self.callers.find(&key.0).filter(|(_, own)| own.may(Scope::Publish));
        let Some((_, caller)) = found else {
            let wrong = "wsnode.key: no entry of [[api_keys]] with the scope publish has it, so what the nodes post would be refused";
            return Some(wrong.into());
        };
        let channels = format!("{}*", self.wsnode_endpoint()?.channel_prefix);
        let may_some = caller.channels.iter().any(|own| overlap(own, &channels));
        (!may_some).then(|| {
            format!(
                "wsnode.key: its entry of [[api_keys]] has none of the nodes' channels ({channels:?}) among its channels, so what \
                 they post would be refused"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    const KEY: &str = "of-all-the-nodes-one";
    const NODES: &str = "nodes = [\"http://a:8080\"]\n";

    fn load(wsnode: &str, more: &str) -> Result<Config, String> {
        let text = format!(
            "[wsnode]\nkey = {KEY:?}\n{wsnode}\n[[api_keys]]\nname = \"n\"\nkey = {KEY:?}\nscopes = [\"publish\"]\nchannels = [\"*\"]\n\
             [[endpoints]]\npath = \"/\"\ndialect = \"wsnode\"\nchannel_prefix = \"node.\"\nhttp = \"wsnode\"\n{more}"
        );
        load_text(&text)
    }

    fn load_text(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let sources = Sources { file: Some(&path), ..Sources::default() };
        Config::load(&sources).map_err(|e| e.to_string())
    }

    #[test]
    fn channels_of_the_endpoint_are_forwarded_and_never_numbered() {
        let rule = "[redis]\nurl = \"redis://localhost\"\n[[channels]]\npattern = \"*\"\nhistory_size = 9\n";
        let config = load(NODES, rule).unwrap();
        assert!(config.is_forwarded("node.a") && !config.is_forwarded("other"));
        assert_eq!(config.distribution("node.a"), Distribution::Bridged);
        assert_eq!(config.distribution("other"), Distribution::Numbered);
        assert_eq!(config.links().unwrap(), "redis:ringfeed/0");
        let config = load("", "").unwrap();
        assert!(!config.wsnode.is_used() && !config.is_forwarded("node.a"));
        assert_eq!(config.links(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let redis = "[redis]\nurl = \"redis://localhost\"\n[[channels]]\npattern = \"n*\"\n";
        let other = "[[endpoints]]\npath = \"/other/ws\"\nhttp = \"wsnode\"\n";
        let cluster = format!("[cluster]\nkey = {KEY:?}\nregistry = \"http://localhost:1/\"\n");
        for (wsnode, more, wrong) in [
            ("nodes = [\"ftp://a\"]", "", "wsnode.nodes[0]: the URL \"ftp://a\""),
            ("nodes = [\"http://a\", \"http://a\"]", "", "wsnode.nodes[1]: it is listed before"),
            ("registry = \"here\"", "", "wsnode.registry: "),
            ("url = \"http://a\"", "", "wsnode.url: wsnode.registry names no registry"),
            ("nodes = [\"http://a\"]\nurl = \"http://b\"", "", "wsnode.url: wsnode.registry"),
            ("registry = \"http://r\"\nurl = \"a\"", "", "wsnode.url: the URL \"a\""),
            (
                "registry = \"http://localhost:1\"\nurl = \"http://a\"",
                &cluster,
                "wsnode.url: the registry has this node from [cluster]",
            ),
            (NODES, other, "there are 2, allowed is one"),
            (NODES, &format!("{redis}distribution = \"numbered\"\n"), "channels[0].distribution"),
            (NODES, &format!("{redis}distribution = \"local\"\n"), "channels[0].distribution"),
        ] {
            let errors = load(wsnode, more).unwrap_err();
            assert!(errors.contains(wrong), "{wsnode} {more}: {errors}");
        }
    }

    #[test]
    fn the_key_is_needed_and_opens_this_node_too() {
        let base = "[wsnode]\nnodes = [\"http://a\"]\n";
        let end = "[[endpoints]]\npath = \"/\"\nhttp = \"wsnode\"\n[[api_keys]]\nname = \"n\"\nkey = \"another-key-than-that\"\n\
                   scopes = [\"publish\"]\nchannels = [\"*\"]\n";
        let errors = load_text(&format!("{base}{end}")).unwrap_err();
        assert!(errors.contains("wsnode.key: the key that the nodes have is needed"), "{errors}");
        let errors = load_text(&format!("{base}key = {KEY:?}\n{end}")).unwrap_err();
        assert!(errors.contains("wsnode.key: no entry of [[api_keys]]"), "{errors}");
        assert!(!errors.contains(KEY), "{errors}");
    }
}
