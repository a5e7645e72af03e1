//! Whoever comes to the port of the links without the key.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::common::{SetWhenDropped, TestServer, free_port, wait_until};
use crate::fleet::{figure, nodes, registry, toml, wait_members};
use crate::process::KEY;

/// Where a node listens for others.
pub(crate) fn peer_port(registry: &crate::process::Registry, id: &str) -> String {
    let (_, list) = registry.ask("GET", "/v1/nodes", "");
    let nodes = list["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["id"] == id).unwrap();
    node["peer"].as_str().unwrap().to_owned()
}

/// What a stranger gets that says this and ends.
fn answer(port: &str, says: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
    stream.write_all(says).unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    got
}

#[test]
fn who_does_not_show_the_key_is_heard_by_nobody() {
    let registry = registry();
    let nodes = nodes(&registry, 2);
    let port = peer_port(&registry, "node-0");
    let refused = || figure(nodes[0].internal, "refused_total");
    let mut greeting = b"rfm2".to_vec();
    greeting.extend([7; 40]);
    let request = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n".to_vec();
    let wrong_proof = [&greeting[..], &[0; 32]].concat();
    // A frame that a node would send, without a word of who it is.
    let frame = [&greeting[..], &[0, 0, 0, 26, 0, 0, 0, 22, 31, 3], b"b.1", &[0; 40]].concat();
    for says in [request, b"rfm2".repeat(20), wrong_proof, frame, vec![0xff; 4096]] {
        let before = refused();
        let got = answer(&port, &says);
        // A greeting, and nothing that the key is in.
        assert!(got.is_empty() || got.len() == 44, "{got:?}");
        wait_until("refused", refused, |now| *now > before);
    }
    // Who says nothing is not waited for, and holds up nobody.
    let before = refused();
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&port).unwrap()).collect();
    wait_until("refused", refused, |now| *now >= before + 100);
    drop(silent);
    assert_eq!(figure(nodes[0].internal, "links"), 1);
    assert_eq!(nodes[1].publish("n.1", json!(1))["offset"], 1);
}

/// Keeps more connections open that say nothing than are waited for and than wait to be, until told to stop.
fn be_silent(at: SocketAddr, stop: &AtomicBool) {
    let mut silent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        silent.retain_mut(|stream: &mut TcpStream| {
            !matches!(stream.read(&mut [0]), Ok(0)) // ended there
        });
        while silent.len() < 400
            && let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(10))
        {
            stream.set_nonblocking(true).unwrap();
            silent.push(stream);
        }
    }
}

#[test]
fn many_who_say_nothing_keep_nobody_with_the_key_from_linking() {
    let registry = registry();
    let ports = [(); 2].map(|()| free_port()).map(|own| own.local_addr().unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops = SetWhenDropped(&stop);
        // They are there before the nodes know of one another, whichever of these then calls.
        let nodes = [0, 1].map(|n| {
            let sets = [
                format!("cluster.registry={}", registry.url()),
                format!("cluster.listen={}", ports[n]),
                format!("server.node_id=node-{n}"),
            ];
            let (at, stop) = (ports[n], &stop);
            scope.spawn(move || be_silent(at, stop));
            TestServer::start(&toml(KEY, ""), &sets.each_ref().map(String::as_str))
        });
        nodes.iter().for_each(|node| wait_members(node.internal, 2));
        assert_eq!(nodes[1].publish("n.1", json!(1))["offset"], 1);
    });
}

#[test]
fn a_node_with_another_key_is_linked_with_nobody() {
    let registry = registry();
    let nodes = nodes(&registry, 2);
    // The registry does not take it either, so it shares nothing.
    let flags = [format!("cluster.registry={}", registry.url()), "server.node_id=odd".into()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let odd = TestServer::start(&toml("another-key-0123456789", ""), &flags);
    let (status, body) = odd.http("GET", "/ready", "");
    assert_eq!(status, 503, "{body}");
    assert_eq!(figure(odd.internal, "links"), 0);
    assert_eq!(figure(nodes[0].internal, "members"), 2);
}
