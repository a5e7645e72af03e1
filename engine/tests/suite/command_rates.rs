//! Limits on commands of one kind, and connections that nobody uses.

use super::common::hostile::wait_closes;
use super::common::{Client, TestServer};
use serde_json::{Value, json};
use tungstenite::Message;

/// What became of so many commands: how many were refused with `rate_limited`, and the last such sentence.
fn refused(client: &mut Client, count: usize, command: impl Fn(usize) -> Value) -> (usize, String) {
    let (mut refused, mut told) = (0, String::new());
    // What is answered and not read yet has room in the sockets.
    for first in (0..count).step_by(100) {
        let ids = first..(first + 100).min(count);
        ids.clone().for_each(|id| client.send(command(id)));
        for reply in ids.map(|_| client.receive()) {
            if reply["code"] == "rate_limited" {
                refused += 1;
                told = reply["message"].to_string();
            }
        }
    }
    (refused, told)
}

#[test]
fn commands_have_rates_by_kind() {
    // Bursts so large that what comes back meanwhile makes no difference, however slow the machine is.
    let server = TestServer::open(&[
        "limits.subscribes_per_second_max=1",
        "limits.subscribes_burst=1000",
        "limits.publishes_per_second_max=1",
        "limits.publishes_burst=2000",
        "limits.histories_per_second_max=1",
        "limits.histories_burst=500",
    ]);
    let mut client = server.client();
    let history = |id| json!({"type":"history","id":id,"channel":"open.a"});
    let publish = |id| json!({"type":"publish","id":id,"channel":"open.a","data":id});
    let subscribe = |id| {
        let kind = if id % 2 == 0 { "subscribe" } else { "unsubscribe" };
        json!({"type":kind,"id":id,"channel":"open.b"})
    };
    let (count, told) = refused(&mut client, 2500, publish);
    assert!(count > 0 && count <= 500, "{count}");
    assert!(told.contains("at most 1 publications a second"), "{told}");
    let (count, told) = refused(&mut client, 1000, history);
    assert!(count > 0 && count <= 500, "{count}");
    assert!(told.contains("at most 1 requests for history and presence a second"), "{told}");
    let (count, told) = refused(&mut client, 3000, subscribe);
    assert!(count > 0 && count <= 500, "unsubscribes have no rate: {count}");
    assert!(told.contains("at most 1 subscribes a second"), "{told}");
    // Each connection for itself, and what has no limit goes on.
    assert_eq!(client.ask(json!({"type":"ping","id":1}))["type"], "pong");
    let mut other = server.client();
    assert_eq!(refused(&mut other, 500, publish).0, 0);
}

#[test]
fn who_does_nothing_but_ping_is_closed_and_who_has_a_subscription_is_not() {
    let server = TestServer::open(&["limits.idle_timeout_ms=2000"]);
    let mut subscriber = server.client();
    subscriber.subscribe("open.a");
    let mut raw = server.client_of("raw.v1");
    raw.send(json!({"action":"subscribe","channel":"open.a"}));
    server.wait_total("subscriptions", |n| n == 2);
    let mut pinging = server.client();
    let mut silent = server.client();
    // Pings, of both kinds, until the server has enough of them.
    let mut pings = [Message::Ping(Vec::new().into()), Message::text("{\"type\":\"ping\"}")]
        .into_iter()
        .cycle();
    let code = loop {
        // Where the server has closed already, that is still to be read.
        let _ = pings.next().map(|ping| pinging.socket.send(ping));
        match pinging.socket.read() {
            Ok(Message::Close(Some(frame))) => break u16::from(frame.code),
            Ok(_) => {}
            Err(e) => panic!("{e}"),
        }
    };
    assert_eq!(code, 4004);
    let (code, reason) = silent.closed();
    assert!(code == 4004 && reason.contains("limits.idle_timeout_ms"), "{code} {reason}");
    wait_closes(&server, "idle", 2);
    // Those with a subscription have been there as long, and longer.
    server.publish("open.a", json!("still here"));
    assert_eq!(subscriber.receive()["data"], "still here");
    assert_eq!(raw.message(), Message::text("\"still here\""));
    // Who unsubscribes is idle from then on.
    subscriber.ask(json!({"type":"unsubscribe","id":1,"channel":"open.a"}));
    assert_eq!(subscriber.closed().0, 4004);
    raw.send(json!({"action":"unsubscribe","channel":"open.a"}));
    assert_eq!(raw.closed().0, 4004);
}
