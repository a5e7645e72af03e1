//! Rooms that are made over the API of one of several nodes.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::common::TestServer;
use crate::common::process::NodeProcess;
use crate::common::rooms::{
    RULES, about, assert_ended, end, ends_with_its_last_member, enter, lives_on_all, make,
    try_make, wait_members, wait_room,
};
use crate::{RedisServer, node_of, wait_ready};

fn node(redis: &RedisServer) -> TestServer {
    node_of(RULES, redis, &["server.shards=2"])
}

#[test]
fn a_room_that_is_made_on_one_node_is_one_on_all_and_ends_for_its_members_on_all() {
    let redis = RedisServer::start(&[]);
    let nodes = [node(&redis), node(&redis), node(&redis)];
    let places = nodes.each_ref().map(|node| node.internal);
    lives_on_all(places, |at| nodes[at].client());
    ends_with_its_last_member(places, |at| nodes[at].client());
}

#[test]
fn a_room_outlasts_the_nodes_and_who_comes_later_knows_it() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let made = make(a.internal, json!({"channel": "r.1", "password": "hush", "invited": ["bob"]}));
    make(b.internal, json!({"channel": "q.1"}));
    make(b.internal, json!({"channel": "q.2"}));
    assert_eq!(end(a.internal, "q.2").0, 200);
    let c = node(&redis);
    assert_eq!(wait_room(c.internal, "r.1", true), made);
    assert_eq!(enter(&mut c.client(), "r.1", Some("hush")), "subscribed");
    drop((a, b, c));
    let d = node(&redis);
    for room in ["r.1", "q.1"] {
        wait_room(d.internal, room, true);
    }
    assert_eq!(about(d.internal, "q.2").0, 404);
    assert_eq!(enter(&mut d.client(), "r.1", Some("hush")), "subscribed");
    assert_eq!(end(d.internal, "q.1").0, 200);
}

#[test]
fn what_is_made_and_ended_while_redis_is_away_is_so_everywhere_later() {
    let mut redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    for room in ["q.stays", "q.ends"] {
        make(a.internal, json!({"channel": room}));
    }
    let mut member = b.client();
    assert_eq!(enter(&mut member, "q.ends", None), "subscribed");
    wait_members(a.internal, "q.ends", 1);
    // It comes back with nothing.
    redis.kill();
    wait_ready(&a, "redis away");
    wait_ready(&b, "redis away");
    let (status, answer) = end(a.internal, "q.ends");
    assert_eq!(status, 503, "{answer}");
    assert!(answer.to_string().contains("only this node could be asked"), "{answer}");
    assert_eq!((about(a.internal, "q.ends").0, about(b.internal, "q.ends").0), (404, 200));
    assert_eq!(try_make(b.internal, &json!({"channel": "q.new"})).0, 503);
    assert_eq!((about(a.internal, "q.new").0, about(b.internal, "q.new").0), (404, 200));
    // Of two who say something about the same room the later counts, by milliseconds.
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    for (node, most) in [(&a, 3), (&b, 4)] {
        let before = clock();
        while clock() == before {}
        assert_eq!(
            try_make(node.internal, &json!({"channel": "q.both", "members_max": most})).0,
            503
        );
    }
    assert_eq!(try_make(a.internal, &json!({"channel": "q.over"})).0, 503);
    assert_eq!(end(a.internal, "q.over").0, 503);
    redis.spawn();
    let c = node(&redis);
    for node in [&a, &b, &c] {
        for (room, is_there) in
            [("q.ends", false), ("q.new", true), ("q.stays", true), ("q.both", true)]
        {
            wait_room(node.internal, room, is_there);
        }
        assert_eq!(about(node.internal, "q.over").0, 404);
    }
    assert_ended(&mut member, "q.ends");
    for node in [&a, &b, &c] {
        let most = || about(node.internal, "q.both").1["members_max"].clone();
        crate::wait_until("the later one", most, |most| *most == 4);
    }
}

#[test]
fn a_node_that_was_frozen_learns_of_what_it_has_missed() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis);
    let toml = format!("[redis]\nurl = \"{}\"\n{RULES}", redis.url());
    let [frozen, mut dies] = [(); 2].map(|()| NodeProcess::start(&toml, &[]));
    make(a.internal, json!({"channel": "r.1"}));
    make(a.internal, json!({"channel": "q.1", "ends_when_empty": true}));
    for node in [&frozen, &dies] {
        wait_room(node.internal, "q.1", true);
    }
    let mut member = frozen.client();
    assert_eq!(enter(&mut member, "r.1", None), "subscribed");
    let mut leaves = dies.client();
    assert_eq!(enter(&mut leaves, "q.1", None), "subscribed");
    frozen.signal("STOP");
    // It is asked, and does not answer.
    assert!([200, 503].contains(&end(a.internal, "r.1").0));
    assert!([200, 503].contains(&try_make(a.internal, &json!({"channel": "r.2"})).0));
    frozen.signal("CONT");
    assert_ended(&mut member, "r.1");
    wait_room(frozen.internal, "r.1", false);
    wait_room(frozen.internal, "r.2", true);
    // Who has to go with a node that ends comes back elsewhere, and the room is still there.
    wait_members(a.internal, "q.1", 1);
    dies.signal("TERM");
    dies.wait();
    wait_members(a.internal, "q.1", 0);
    assert_eq!(enter(&mut a.client(), "q.1", None), "subscribed");
}

#[test]
fn rooms_of_all_nodes_are_bounded_by_what_they_take() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let users: Vec<String> = (0..1000).map(|number| format!("{number:0>255}")).collect();
    let body = |number: usize| json!({"channel": format!("q.{number}"), "invited": users});
    let mut made = 0;
    let refused = loop {
        let node = if made % 2 == 0 { &a } else { &b };
        let (status, answer) = try_make(node.internal, &body(made));
        if status != 200 {
            break (status, answer["error"].clone());
        }
        made += 1;
    };
    assert_eq!(refused, (503, json!("limit_reached")));
    // 16 MiB, of 256,000 bytes and a little each.
    assert!((62..=67).contains(&made), "{made}");
    let (status, answer) = try_make(b.internal, &json!({"channel": "q.small"}));
    assert_eq!((status, &answer["error"]), (503, &json!("limit_reached")));
    // A node that comes then is told of all of them.
    let c = node(&redis);
    for number in 0..made {
        wait_room(c.internal, &format!("q.{number}"), true);
    }
    assert_eq!(end(c.internal, "q.1").0, 200);
    make(a.internal, json!({"channel": "q.small"}));
    assert_eq!(about(b.internal, "q.small").0, 200);
}

#[test]
fn a_node_that_has_no_room_for_one_says_so_and_learns_of_it_once_it_has() {
    let redis = RedisServer::start(&[]);
    let few = ["limits.rooms_max=1", "server.shards=1"];
    let (a, b) = (node(&redis), node_of(RULES, &redis, &few));
    make(a.internal, json!({"channel": "q.1"}));
    let (status, answer) = try_make(a.internal, &json!({"channel": "q.2"}));
    assert_eq!((status, &answer["error"]), (503, &json!("busy")), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("limits.rooms_max"), "{answer}");
    assert_eq!((about(a.internal, "q.2").0, about(b.internal, "q.2").0), (200, 404));
    assert_eq!(end(b.internal, "q.1").0, 200);
    // Asked for again nothing is lost.
    make(a.internal, json!({"channel": "q.2"}));
    assert_eq!(about(b.internal, "q.2").0, 200);
}
