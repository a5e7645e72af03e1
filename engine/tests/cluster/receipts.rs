//! Publishers who ask those on a channel to confirm, on whatever node they are.

use crate::common::receipts;
use crate::common::tokens::ISSUER;
use crate::fleet::{nodes_with, registry};

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
