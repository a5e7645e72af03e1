//! Publishers who ask those on a channel to confirm, on whatever node they are.

use crate::common::process::NodeProcess;
use crate::common::receipts;
use crate::common::tokens::ISSUER;
use crate::fleet::{nodes_with, registry, start_with, toml, wait_members};
use crate::process::KEY;

#[test]
fn whoever_is_on_any_node_is_asked_once() {
    let registry = registry();
    let nodes = nodes_with(&registry, 3, &format!("{}{ISSUER}", receipts::RULES));
    receipts::whoever_is_on_any_node_is_asked_once(&nodes);
}

#[test]
fn who_recovers_on_another_node_confirms_there() {
    let registry = registry();
    let nodes = nodes_with(&registry, 3, &format!("{}{ISSUER}", receipts::RULES));
    receipts::who_recovers_on_another_node_confirms_there(&nodes);
}

#[test]
fn who_is_killed_with_a_node_is_missing() {
    let registry = registry();
    let more = format!("{}{ISSUER}", receipts::RULES);
    let stays = start_with(&registry, "stays", "", &more);
    let dying = ["first", "second"].map(|id| {
        let place = format!("cluster.registry={}", registry.url());
        let toml = format!("{}{more}", toml(KEY, ""));
        NodeProcess::start(&toml, &[place, format!("server.node_id={id}")])
    });
    for node in [stays.internal, dying[0].internal, dying[1].internal] {
        wait_members(node, 3);
    }
    receipts::who_is_killed_with_a_node_is_missing(&stays, dying);
}
