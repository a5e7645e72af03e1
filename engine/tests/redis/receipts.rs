//! Publishers who ask those on a channel to confirm, on whatever node they are.

use crate::common::tokens::ISSUER;
use crate::common::{TestServer, receipts};
use crate::{RedisServer, node_of, process_of};

fn toml() -> String {
    format!("{}{ISSUER}", receipts::RULES)
}

fn nodes(redis: &RedisServer) -> [TestServer; 3] {
    [(); 3].map(|()| node_of(&toml(), redis, &[]))
}

#[test]
fn whoever_is_on_any_node_is_asked_once() {
    let redis = RedisServer::start(&[]);
    receipts::whoever_is_on_any_node_is_asked_once(&nodes(&redis));
}

#[test]
fn who_recovers_on_another_node_confirms_there() {
    let redis = RedisServer::start(&[]);
    receipts::who_recovers_on_another_node_confirms_there(&nodes(&redis));
}

#[test]
fn who_is_killed_with_a_node_is_missing() {
    let redis = RedisServer::start(&[]);
    let dying = [(); 2].map(|()| process_of(&toml(), &redis, &[]));
    receipts::who_is_killed_with_a_node_is_missing(&node_of(&toml(), &redis, &[]), dying);
}

#[test]
fn whoever_is_on_any_node_counts() {
    let redis = RedisServer::start(&[]);
    let few = &["limits.confirm_receivers_max=2"];
    let nodes = [(); 3].map(|()| node_of(&toml(), &redis, few));
    receipts::whoever_is_on_any_node_counts(&nodes);
}
