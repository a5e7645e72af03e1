//! Rooms that are made over the API of one of several nodes.

use serde_json::json;

use crate::common::rooms::{
    RULES, about, assert_ended, end, ends_with_its_last_member, enter, lives_on_all, make,
    try_make, wait_room,
};
use crate::fleet::{nodes_with, process_with, registry, wait_members};

#[test]
fn a_room_that_is_made_on_one_node_is_one_on_all_and_ends_for_its_members_on_all() {
    let registry = registry();
    let nodes = nodes_with(&registry, 3, RULES);
    let places = [nodes[0].internal, nodes[1].internal, nodes[2].internal];
    lives_on_all(places, |at| nodes[at].client());
    ends_with_its_last_member(places, |at| nodes[at].client());
}

#[test]
fn a_node_that_was_frozen_or_comes_later_knows_what_there_is_as_long_as_one_lives_that_does() {
    let registry = registry();
    let start = |id: &str| process_with(&registry, id, RULES);
    let mut nodes = ["a", "b", "c"].map(start);
    nodes.iter().for_each(|node| wait_members(node.internal, 3));
    let [a, b, frozen] = nodes.each_ref().map(|node| node.internal);
    for room in ["q.ends", "q.stays"] {
        make(a, json!({"channel": room}));
    }
    let mut member = nodes[2].client();
    assert_eq!(enter(&mut member, "q.ends", None), "subscribed");
    nodes[2].signal("STOP");
    // It is asked, and does not answer.
    assert!([200, 503].contains(&end(b, "q.ends").0));
    assert!([200, 503].contains(&try_make(a, &json!({"channel": "q.new"})).0));
    // The later word counts, whoever hears of it when.
    for (node, most) in [(a, 3), (b, 4)] {
        let said = try_make(node, &json!({"channel": "q.both", "members_max": most}));
        assert!([200, 503].contains(&said.0), "{said:?}");
    }
    nodes[2].signal("CONT");
    assert_ended(&mut member, "q.ends");
    for node in [a, b, frozen] {
        wait_room(node, "q.ends", false);
        wait_room(node, "q.new", true);
        let most = || about(node, "q.both").1["members_max"].clone();
        crate::common::wait_until("the later one", most, |most| *most == 4);
    }
    nodes.iter().for_each(|node| wait_members(node.internal, 3));
    let later = start("d");
    wait_members(later.internal, 4);
    for (room, is_there) in [("q.new", true), ("q.stays", true), ("q.ends", false)] {
        wait_room(later.internal, room, is_there);
    }
    // Those that have made it go, one after the other.
    for (at, left) in [(0, 3), (1, 2), (2, 1)] {
        nodes[at].signal("TERM");
        nodes[at].wait();
        wait_members(later.internal, left);
    }
    assert_eq!(about(later.internal, "q.stays").0, 200);
    assert_eq!(enter(&mut later.client(), "q.new", None), "subscribed");
    assert_eq!(end(later.internal, "q.stays").0, 200);
}
