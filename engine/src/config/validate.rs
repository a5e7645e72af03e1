//! What no key says alone: which values do not go together, and texts that mean nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ringfeed_protocol::Dialect;
use ringfeed_protocol::channel_name::{self, NAME_BYTES_MAX};
use ringfeed_protocol::frame::HEADER_BYTES_MAX;

use super::ConfigErrors;
use super::fetched::fetched_place;
use super::node::{self, NODE_BYTES_MAX};
use super::rules::{check_pattern, matches};
use super::schema::{
    ApiKey, ChannelRule, Config, ConnectMethod, Endpoint, ForwardedHeader, HttpRoutes, Presence,
    ProxyProtocol, Scope, Server,
};
use crate::origins::Origins;
use crate::proxies::Proxies;

/// Endpoints are numbered in a byte.
const ENDPOINTS_MAX: usize = 255;
/// A name is compared with one rule after the other.
const RULES_MAX: usize = 1024;
/// Bytes of an endpoint's path.
const PATH_BYTES_MAX: usize = 255;
/// More pings than this are no heartbeat.
const HEARTBEAT_MS_MIN: u32 = 100;
/// Who has just connected has had no time to say anything.
const IDLE_MS_MIN: u32 = 100;

impl Config {
    pub(super) fn validate(&self, errors: &mut Vec<String>) {
        self.validate_addresses(errors);
        self.validate_limits(errors);
        self.validate_endpoints(errors);
        self.validate_rules(errors);
        self.validate_access(errors);
        self.hooks.validate(errors);
        self.validate_rpc(errors);
        self.validate_drop(errors);
        self.validate_redis(errors);
        self.validate_redis_channels(errors);
        self.validate_cluster(errors);
        self.validate_wsnode(errors);
        if let Err(e) = Origins::parse(&self.server.origins) {
            errors.push(format!("server.origins: {e}"));
        }
        let by_cookies =
            self.hooks.forward_headers.iter().any(|f| f.eq_ignore_ascii_case("cookie"));
        let asks = !self.hooks.connect_url.0.is_empty();
        if asks
            && self.hooks.connect_method == ConnectMethod::Get
            && by_cookies
            && self.server.origins.is_empty()
        {
            errors.push(
                "server.origins: with hooks.connect_method = \"get\" cookies say who connects, and browsers send \
                 them with requests of any page; list the origins whose pages may connect"
                    .into(),
            );
        }
        self.validate_proxies(errors);
        let node_id = &self.server.node_id;
        if !node::is_name(node_id) {
            errors.push(format!(
                "server.node_id = {node_id:?}: allowed are 1 to {NODE_BYTES_MAX} visible ASCII characters"
            ));
        }
    }

    fn validate_proxies(&self, errors: &mut Vec<String>) {
        let Server { proxies, proxy_protocol, forwarded_header, .. } = &self.server;
        if let Err(e) = Proxies::parse(proxies) {
            errors.push(format!("server.proxies: {e}"));
        }
        let unused = "it is about server.proxies, which lists nobody";
        if proxies.is_empty() && *proxy_protocol != ProxyProtocol::Off {
            errors.push(format!("server.proxy_protocol: {unused}"));
        }
        if proxies.is_empty() && *forwarded_header != ForwardedHeader::Off {
            errors.push(format!("server.forwarded_header: {unused}"));
        }
    }

    fn validate_addresses(&self, errors: &mut Vec<String>) {
        let (public, internal) = (self.server.listen, self.api.listen);
        if !public.ip().is_loopback() && !self.auth.anonymous && !self.somebody_vouches() {
            errors.push(format!(
                "server.listen = {public}: beyond loopback anybody who reaches this address would be served. \
                 Say who vouches for clients ([[issuers]] or hooks.connect_url), or set auth.anonymous = true to \
                 serve anybody"
            ));
        }
        if !internal.ip().is_loopback() && self.api.keys.is_empty() && self.api_keys.is_empty() {
            errors.push(format!(
                "api.listen = {internal}: beyond loopback api.keys must hold at least one key, or [[api_keys]]"
            ));
        }
        // What is bound to [::] takes IPv4, too.
        let covers =
            |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
        let (ip, other) = (public.ip().to_canonical(), internal.ip().to_canonical());
        let overlaps = ip == other || covers(ip, other) || covers(other, ip);
        if overlaps && public.port() == internal.port() && public.port() != 0 {
            errors.push(format!(
                "api.listen = {internal}: server.listen = {public} has the same port"
            ));
        }
    }

    /// Whether each shard can live with its part of the limits that are divided. One for each core
    /// (`server.shards = 0`) is a number that is known at the start.
    pub fn check_shares(&self, shards: u16) -> Result<(), ConfigErrors> {
        if shards < 2 {
            return Ok(());
        }
        let Config { limits, .. } = self;
        let shards = u64::from(shards);
        let mut errors = Vec::new();
        let mut fits = |large: (&str, u64), small: (&str, u64)| {
            let (share, least) = (large.1 / shards, small.1);
            if share < least {
                errors.push(format!(
                    "{} = {}: each of {shards} shards has {share} of it, which must be at least {least} ({}); \
                     allowed are at least {}, or fewer shards (server.shards)",
                    large.0,
                    large.1,
                    small.0,
                    least * shards
                ));
            }
        };
        let message = ("limits.message_bytes_max", limits.message_bytes_max.into());
        let outboxes = ("limits.outboxes_bytes_max", limits.outboxes_bytes_max);
        fits(("limits.partial_bytes_max", limits.partial_bytes_max), message);
        // Up to there one connection alone is read from.
        let quarter = u64::from(limits.outbox_bytes_max) / 4;
        fits(outboxes, ("a quarter of limits.outbox_bytes_max", quarter));
        if self.echoes() {
            fits(outboxes, message);
        }
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }

    fn echoes(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.dialect == Dialect::Echo)
    }

    fn validate_limits(&self, errors: &mut Vec<String>) {
        let Config { api, heartbeat, limits, .. } = self;
        let mut at_least = |(large, large_bytes): (&str, u64),
                            (small, small_bytes): (&str, u64)| {
            if large_bytes < small_bytes {
                errors.push(format!(
                    "{large} = {large_bytes}: it must be at least {small} = {small_bytes}"
                ));
            }
        };
        let message = ("limits.message_bytes_max", limits.message_bytes_max.into());
        let body = ("api.body_bytes_max", api.body_bytes_max.into());
        at_least(("limits.partial_bytes_max", limits.partial_bytes_max), message);
        at_least(
            ("limits.outboxes_bytes_max", limits.outboxes_bytes_max),
            ("limits.outbox_bytes_max", limits.outbox_bytes_max.into()),
        );
        at_least(("api.bodies_bytes_max", api.bodies_bytes_max), body);
        at_least(("limits.parked_bytes_max", limits.parked_bytes_max), body);
        at_least(("limits.parked_bytes_max", limits.parked_bytes_max), message);
        errors.extend(self.check_shares(self.server.shards).err().into_iter().flat_map(|e| e.0));
        if heartbeat.interval_ms > 0 && heartbeat.interval_ms < HEARTBEAT_MS_MIN {
            errors.push(format!(
                "heartbeat.interval_ms = {}: allowed are {HEARTBEAT_MS_MIN} to 3600000, and 0 for no pings",
                heartbeat.interval_ms
            ));
        }
        if limits.idle_timeout_ms > 0 && limits.idle_timeout_ms < IDLE_MS_MIN {
            errors.push(format!(
                "limits.idle_timeout_ms = {}: allowed are {IDLE_MS_MIN} to 86400000, and 0 for never",
                limits.idle_timeout_ms
            ));
        }
        // Reading pauses at a quarter of the outbox; the echo of what was read last comes on top.
        let room = u64::from(limits.outbox_bytes_max) / 4 * 3;
        let largest = u64::from(limits.message_bytes_max) + HEADER_BYTES_MAX as u64;
        if self.echoes() && largest > room {
            errors.push(format!(
                "limits.outbox_bytes_max = {}: an echo of limits.message_bytes_max = {} does not fit; allowed \
                 are at least {}",
                limits.outbox_bytes_max,
                limits.message_bytes_max,
                largest.div_ceil(3) * 4
            ));
        }
    }

    fn validate_endpoints(&self, errors: &mut Vec<String>) {
        let count = self.endpoints.len();
        if !(1..=ENDPOINTS_MAX).contains(&count) {
            errors.push(format!("endpoints: there are {count}; allowed are 1 to {ENDPOINTS_MAX}"));
        }
        let mut paths = BTreeSet::from(["/health".to_owned()]);
        if self.server.demo_page {
            paths.insert("/".into());
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let Endpoint { path, channel_prefix, .. } = endpoint;
            if !is_path(path) && !endpoint.is_anywhere() {
                errors.push(format!(
                    "endpoints[{i}].path = {path:?}: it must be \"*\", or begin with '/' and have at most {PATH_BYTES_MAX} \
                     ASCII letters, digits and any of -._~!$&'()*+,;=:@/"
                ));
            } else if !paths.insert(path.clone()) {
                errors.push(format!("endpoints[{i}].path = {path:?}: it is in use already"));
            }
            if !channel_prefix.is_empty() && channel_name::check(channel_prefix).is_err() {
                errors.push(format!(
                    "endpoints[{i}].channel_prefix = {channel_prefix:?}: it must be the beginning of a channel \
                     name, without white space, control characters, '\"', '\\' and '*'"
                ));
            } else if channel_prefix.len() >= NAME_BYTES_MAX {
                errors.push(format!(
                    "endpoints[{i}].channel_prefix: it has {} bytes, which leaves none for a name; allowed are \
                     at most {}",
                    channel_prefix.len(),
                    NAME_BYTES_MAX - 1
                ));
            }
        }
        for (i, Endpoint { channel_prefix, subscribe, .. }) in self.endpoints.iter().enumerate() {
            let full = subscribe.iter().map(|name| format!("{channel_prefix}{name}"));
            for (name, why) in
                full.filter_map(|name| Some((channel_name::check(&name).err()?, name)))
            {
                errors.push(format!("endpoints[{i}].subscribe: {why:?}: {name}"));
            }
        }
        self.validate_http(paths, errors);
    }

    /// `paths` are in use already.
    fn validate_http(&self, mut paths: BTreeSet<String>, errors: &mut Vec<String>) {
        // This one takes the place of ours.
        paths.remove("/health");
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            for path in endpoint.http_paths() {
                if paths.contains(&path) {
                    errors.push(format!("endpoints[{i}].http: the path {path} is in use already"));
                }
                paths.insert(path);
            }
        }
        let takes = |http| matches!(http, HttpRoutes::Wsnode | HttpRoutes::Cadsock);
        let serves = self.endpoints.iter().position(|endpoint| takes(endpoint.http));
        let publishes = |key: &ApiKey| {
            key.scopes.iter().any(|scope| matches!(scope, Scope::Publish | Scope::All))
        };
        if let Some(i) = serves
            && self.api.keys.is_empty()
            && !self.api_keys.iter().any(publishes)
        {
            errors.push(format!(
                "endpoints[{i}].http: whoever reaches server.listen could publish; give api.keys at least one key, \
                 or [[api_keys]] one with the scope publish"
            ));
        }
    }

    pub(super) fn validate_rules(&self, errors: &mut Vec<String>) {
        let fetched = self.channels.iter().filter(|rule| rule.fetched).count();
        if let Some(wrong) = too_many_rules(self.channels.len() - fetched, fetched) {
            return errors.push(wrong);
        }
        for (i, rule) in self.channels.iter().enumerate() {
            let (pattern, place) = (&rule.pattern, self.place_of(i));
            errors.extend(rule.wrong().iter().map(|own| format!("{place}{own}")));
            if rule.presence_hook && self.hooks.presence_url.0.is_empty() {
                errors.push(format!(
                    "{place}.presence_hook = true: hooks.presence_url says where the application is told"
                ));
            }
            if check_pattern(pattern).is_err() {
                continue;
            }
            // No name holds '*', so an earlier pattern that matches this one as if it were a name matches
            // whatever this one does. What the registry holds is to count before what is here.
            let mut earlier = self.channels.iter().take(i).enumerate();
            let hides = |other: &ChannelRule| {
                other.fetched == rule.fetched && matches(&other.pattern, pattern)
            };
            if let Some((j, other)) = earlier.find(|(_, other)| hides(other)) {
                errors.push(format!(
                    "{place}.pattern = {pattern:?}: it is never reached: {}.pattern = {:?} \
                     matches all its names before; put it in front of that",
                    self.place_of(j),
                    other.pattern
                ));
            }
        }
    }

    /// What messages call a rule. The registry's are in front.
    pub(super) fn place_of(&self, index: usize) -> String {
        let fetched = self.channels.iter().take_while(|rule| rule.fetched).count();
        match self.channels.get(index) {
            Some(rule) if rule.fetched => fetched_place(&rule.pattern),
            _ => format!("channels[{}]", index - fetched),
        }
    }
}

impl ChannelRule {
    /// Everything that is wrong with it by itself, each with the key in front.
    pub(super) fn wrong(&self) -> Vec<String> {
        let ChannelRule { pattern, presence, join_leave, presence_hook, .. } = self;
        let mut wrong = Vec::new();
        for (key, on) in [("join_leave", join_leave), ("presence_hook", presence_hook)] {
            if *on && *presence != Presence::Full {
                wrong.push(format!(
                    ".{key} = true: who comes and goes is known only with presence = \"full\""
                ));
            }
        }
        if self.confirm && !self.sender {
            wrong.push(
                ".confirm = true: whoever confirms is to know to whom; set sender = true".into(),
            );
        }
        wrong.extend(self.wrong_room());
        if let Err(e) = check_pattern(pattern) {
            wrong.push(format!(".pattern = {pattern:?}: {e}"));
        }
        wrong
    }
}

/// What is wrong with so many rules, if they are too many.
pub(super) fn too_many_rules(own: usize, fetched: usize) -> Option<String> {
    let of_these = match fetched {
        0 => String::new(),
        fetched => format!(", {fetched} of them the registry's"),
    };
    let count = own + fetched;
    (count > RULES_MAX).then(|| {
        format!("channels: there are {count} rules{of_these}; allowed are at most {RULES_MAX}")
    })
}

/// What a request's path may be without escapes: `pchar` and `/` of RFC 3986, section 3.3.
fn is_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte);
    path.starts_with('/') && path.len() <= PATH_BYTES_MAX && path.bytes().all(plain)
}
