//! Publishers who ask those on a channel to confirm, on whatever node they are.

use crate::common::tokens::ISSUER;
use crate::common::{TestServer, receipts};
use crate::{RedisServer, node_of};

fn nodes(redis: &RedisServer) -> [TestServer; 3] {
    let toml = format!("{}{ISSUER}", receipts::RULES);
    [(); 3].map(|()| node_of(&toml, redis, &[]))
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
