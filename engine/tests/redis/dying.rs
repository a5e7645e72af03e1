//! Nodes that are killed again and again while everybody publishes and reads.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use crate::common::{PATIENCE, SetWhenDropped, wait_until};
use crate::{CHANNELS, RedisServer, process_of};

/// How often a node is killed.
const KILLS: usize = 20;
const READERS: usize = 6;
/// Publications from one kill to the next at most: all of them together are less than the channel keeps, however slow the machine.
const PER_KILL: u64 = 4000;

/// What a reader stands at, and what it was told.
#[derive(Default)]
struct Reader {
    at: Option<(Value, u64)>,
    gaps: usize,
    /// It came back and was not given all that it had missed.
    unrecovered: usize,
    connections: usize,
}

impl Reader {
    /// One connection, until it ends or the last publication has come; whether that has.
    fn read(&mut self, to: SocketAddr, last: &AtomicU64, came: &AtomicUsize) -> Option<bool> {
        let stream = std::net::TcpStream::connect(to).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let request = format!("ws://{to}/ws?protocol=ringfeed.v1").into_client_request().ok()?;
        let (mut socket, _) = tungstenite::client(request, stream).ok()?;
        let mut subscribe = json!({"type": "subscribe", "id": 1, "channel": "n.1"});
        if let Some((epoch, offset)) = &self.at {
            subscribe["recover"] = json!({"epoch": epoch, "offset": offset});
        }
        socket.send(Message::text(subscribe.to_string())).ok()?;
        self.connections += 1;
        loop {
            let told = receive(&mut socket)?;
            match told["type"].as_str() {
                Some("subscribed") => {
                    self.unrecovered += usize::from(self.at.is_some() && told["recovered"] != true);
                    came.fetch_add(1, Ordering::AcqRel);
                    let here = (told["epoch"].clone(), told["offset"].as_u64()?);
                    self.at.get_or_insert(here);
                }
                Some("gap") => self.gaps += 1,
                Some("message") => {
                    let (_, at) = self.at.as_mut()?;
                    let offset = told["offset"].as_u64()?;
                    assert_eq!(offset, *at + 1, "{told}");
                    *at = offset;
                    if offset == last.load(Ordering::Acquire) {
                        return Some(true);
                    }
                }
                // A node that has not found Redis yet, or is about to end.
                _ => return Some(false),
            }
        }
    }
}

fn receive(socket: &mut WebSocket<std::net::TcpStream>) -> Option<Value> {
    loop {
        match socket.read().ok()? {
            Message::Text(text) => return serde_json::from_str(&text).ok(),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

#[test]
fn readers_miss_nothing_while_nodes_are_killed_again_and_again() {
    let redis = RedisServer::start(&[]);
    let start = || process_of(CHANNELS, &redis, &[]);
    let mut dying = [start(), start()];
    let stays = start();
    let ports = [&dying[0], &dying[1], &stays].map(|node| AtomicU16::new(node.public.port()));
    let may_be_sent = AtomicU64::new(PER_KILL);
    // No offset is that, until it is known which one is the last.
    let (last, ends) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
    let came = AtomicUsize::new(0);
    let readers = std::thread::scope(|scope| {
        // Also where this fails: the publisher is waited for.
        let _ending = SetWhenDropped(&ends);
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let (ports, last, came) = (&ports, &last, &came);
                scope.spawn(move || {
                    let mut reader = Reader::default();
                    let deadline = Instant::now() + 4 * PATIENCE;
                    for attempt in 0.. {
                        // One is where nobody is killed, the others go from one of the two to the other.
                        let at = if number == 0 { 2 } else { (number + attempt) % 2 };
                        let to = (Ipv4Addr::LOCALHOST, ports[at].load(Ordering::Acquire)).into();
                        if reader.read(to, last, came) == Some(true) {
                            break;
                        }
                        let newest = last.load(Ordering::Acquire);
                        if reader.at.as_ref().is_some_and(|(_, at)| *at == newest) {
                            break;
                        }
                        assert!(Instant::now() < deadline, "reader {number} is at {:?}", reader.at);
                        std::thread::yield_now();
                    }
                    reader
                })
            })
            .collect();
        let publisher = scope.spawn(|| {
            let mut client = stays.client();
            let (mut sent, mut stored) = (0u64, 0);
            while !ends.load(Ordering::Acquire) {
                if sent >= may_be_sent.load(Ordering::Acquire) {
                    std::thread::yield_now();
                    continue;
                }
                // Some are on their way at any time.
                for _ in 0..64 {
                    sent += 1;
                    let publish =
                        json!({"type": "publish", "id": sent, "channel": "n.1", "data": sent});
                    client.send(publish);
                }
                while stored + 64 < sent {
                    stored += 1;
                    let reply = client.receive();
                    assert_eq!(
                        (&reply["type"], &reply["id"]),
                        (&json!("published"), &json!(stored))
                    );
                }
            }
            while stored < sent {
                stored += 1;
                assert_eq!(client.receive()["id"], stored);
            }
            stored
        });
        for round in 0..KILLS {
            // Whoever was thrown out before has come back.
            let wanted = READERS + round;
            wait_until("readers", || came.load(Ordering::Acquire), |came| *came >= wanted);
            let at = round % 2;
            dying[at].kill();
            dying[at] = start();
            ports[at].store(dying[at].public.port(), Ordering::Release);
            may_be_sent.fetch_add(PER_KILL, Ordering::AcqRel);
        }
        ends.store(true, Ordering::Release);
        let published = publisher.join().unwrap();
        last.store(published + 1, Ordering::Release);
        // Who has read up to there already waits for one more.
        assert_eq!(stays.publish("n.1", &json!("the last")).0, 200);
        let all: Vec<Reader> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        println!("{published} publications, {KILLS} kills");
        all
    });
    for reader in &readers {
        println!("{} connections", reader.connections);
        assert_eq!((reader.gaps, reader.unrecovered), (0, 0));
    }
    let connections: usize = readers.iter().map(|reader| reader.connections).sum();
    assert!(connections >= READERS + KILLS, "{connections}");
}
