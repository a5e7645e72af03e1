//! The wire over real sockets on loopback, the same for every body.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfeed_wire::{Event, ShortSend, SocketId, Wire, WireConfig};

use crate::{IS_RINGS, open};

const PATIENCE: Duration = Duration::from_secs(20);

fn small() -> WireConfig {
    WireConfig {
        sockets_max: 1000,
        sockets_per_ring_max: 1000,
        submission_entries: 8,
        receive_buffers: 4,
        receive_buffer_bytes: 64,
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, far)
}

/// A socket of the wire's, and its far end.
fn adopted(wire: &mut dyn Wire) -> (SocketId, TcpStream) {
    let (near, far) = pair();
    (wire.adopt(near.into()).unwrap(), far)
}

/// Submits and hands out events until `done` says so.
fn drive(wire: &mut dyn Wire, mut done: impl FnMut(&mut dyn Wire, What) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut short = Vec::new();
    loop {
        wire.submit(&mut short).unwrap();
        for send in short.drain(..) {
            if done(wire, What::Short(send)) {
                return;
            }
        }
        while let Some(event) = wire.next_event() {
            let what = match event {
                Event::Connected(id) => What::Connected(id),
                Event::Received(id, bytes) => What::Received(id, bytes.to_vec()),
                Event::Writable(id) => What::Writable(id),
                Event::Closed(id, error) => What::Closed(id, error.map(|e| e.kind())),
            };
            if done(wire, what) {
                return;
            }
        }
        if done(wire, What::Nothing) {
            return;
        }
        assert!(Instant::now() < deadline, "nothing more happens: {:?}", wire.usage());
        wire.wait(Duration::from_millis(50)).unwrap();
    }
}

#[derive(Debug)]
enum What {
    Short(ShortSend),
    #[allow(dead_code)] // shown by Debug when a test fails
    Connected(SocketId),
    Received(SocketId, Vec<u8>),
    Writable(SocketId),
    Closed(SocketId, Option<std::io::ErrorKind>),
    Nothing,
}

#[test]
fn everything_sent_before_a_close_arrives_and_the_slot_comes_back() {
    let mut wire = open(small());
    for round in 0..50u8 {
        let (id, mut far) = adopted(&mut *wire);
        wire.send_vectored(id, 0, &[Bytes::from(vec![round; 10]), Bytes::from(vec![7; 5])]);
        wire.close(id);
        drive(&mut *wire, |wire, _| wire.usage().sockets == 0);
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_eq!(got, [vec![round; 10], vec![7; 5]].concat());
    }
    assert_eq!(wire.usage().rings, 1);
}

#[test]
fn short_and_refused_sends_are_reported_to_the_byte() {
    let mut wire = open(small());
    let (id, mut far) = adopted(&mut *wire);
    let block = Bytes::from((0..=255u8).cycle().take(1 << 20).collect::<Vec<_>>());
    let (mut taken, mut refused) = (0usize, false);
    let mut short = Vec::new();
    while !refused {
        wire.send(id, 42, &block);
        wire.submit(&mut short).unwrap();
        match short.pop() {
            None => taken += block.len(),
            Some(ShortSend { tag, sent, broken }) => {
                assert_eq!((tag, broken), (42, false));
                taken += sent as usize;
                refused = sent == 0;
                // The pattern must go on where the short send stopped.
                if !refused {
                    let rest = block.slice(sent as usize..);
                    wire.send(id, 43, &rest);
                    wire.submit(&mut short).unwrap();
                    assert_eq!(short.pop(), Some(ShortSend { tag: 43, sent: 0, broken: false }));
                    refused = true;
                }
            }
        }
    }
    wire.watch_writable(id);
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; taken];
        far.read_exact(&mut got).unwrap();
        got
    });
    drive(&mut *wire, |_, what| matches!(what, What::Writable(w) if w == id));
    let got = reader.join().unwrap();
    assert!(got.iter().enumerate().all(|(i, &byte)| byte == (i % 256) as u8));
}

#[test]
fn a_send_to_a_dead_peer_is_reported_as_broken() {
    let mut wire = open(small());
    let (id, far) = adopted(&mut *wire);
    drop(far);
    drive(&mut *wire, |_, what| matches!(what, What::Closed(w, None) if w == id));
    let mut broken = false;
    // The first send after the peer's end provokes its reset, a later one meets it.
    drive(&mut *wire, |wire, what| {
        if let What::Short(send) = what {
            broken = send.broken;
        }
        if !broken {
            wire.send(id, 1, &Bytes::from_static(b"x"));
        }
        broken
    });
}

#[test]
fn bytes_flow_through_a_pool_smaller_than_what_is_under_way() {
    let mut wire = open(small());
    let mut expected = HashMap::new();
    let mut writers = Vec::new();
    for i in 0..20u8 {
        let (id, mut far) = adopted(&mut *wire);
        let bytes: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8 ^ i).collect();
        expected.insert(id, (bytes.clone(), Vec::new()));
        writers.push(std::thread::spawn(move || far.write_all(&bytes).map(|()| far).unwrap()));
    }
    let total = 20 * 50_000;
    let mut seen = 0;
    drive(&mut *wire, |_, what| {
        if let What::Received(id, bytes) = what {
            seen += bytes.len();
            expected.get_mut(&id).unwrap().1.extend(bytes);
        }
        seen == total
    });
    assert!(expected.values().all(|(sent, got)| sent == got));
    let usage = wire.usage();
    assert!(!IS_RINGS || usage.buffer_shortages > 0, "the pool of four was never short: {usage:?}");
}

#[test]
fn who_waits_for_a_buffer_is_not_turned_away_again_and_again() {
    const SOCKETS: usize = 200;
    let mut wire = open(small());
    let mut far_ends: Vec<_> = (0..SOCKETS).map(|_| adopted(&mut *wire).1).collect();
    for far in &mut far_ends {
        far.write_all(b"all at once").unwrap();
    }
    let mut seen = 0;
    drive(&mut *wire, |_, what| {
        seen += usize::from(matches!(what, What::Received(..)));
        seen == SOCKETS
    });
    let shortages = wire.usage().buffer_shortages;
    assert!(shortages <= 2 * SOCKETS as u64, "{shortages} for {SOCKETS} sockets");
}

#[test]
fn more_completions_at_once_than_the_queue_holds_all_arrive() {
    let config = WireConfig { receive_buffers: 1024, ..small() };
    let mut wire = open(config);
    let mut far_ends = Vec::new();
    for _ in 0..300 {
        far_ends.push(adopted(&mut *wire));
    }
    wire.submit(&mut Vec::new()).unwrap();
    // All at once, far more than the 64 entries of the queue.
    for (id, far) in &mut far_ends {
        far.write_all(&id.index().to_ne_bytes()).unwrap();
    }
    let mut seen = std::collections::HashSet::new();
    drive(&mut *wire, |_, what| {
        if let What::Received(id, bytes) = what {
            assert_eq!(bytes, id.index().to_ne_bytes());
            seen.insert(id);
        }
        seen.len() == 300
    });
}

#[test]
fn a_paused_socket_stays_silent_and_loses_nothing() {
    let mut wire = open(small());
    let (id, mut far) = adopted(&mut *wire);
    let (other, mut other_far) = adopted(&mut *wire);
    wire.receive(id, false);
    // The pause has taken effect once a later round trip over another socket is through.
    other_far.write_all(b"a").unwrap();
    drive(&mut *wire, |_, what| matches!(what, What::Received(w, _) if w == other));
    far.write_all(b"kept").unwrap();
    other_far.write_all(b"b").unwrap();
    drive(&mut *wire, |_, what| match what {
        What::Received(w, _) => {
            assert_eq!(w, other);
            true
        }
        _ => false,
    });
    wire.receive(id, true);
    let mut got = Vec::new();
    drive(&mut *wire, |_, what| {
        if let What::Received(w, bytes) = what {
            assert_eq!(w, id);
            got.extend(bytes);
        }
        got == b"kept"
    });
}

#[test]
fn the_end_of_a_paused_socket_waits_until_it_is_read_again() {
    let mut wire = open(small());
    let (id, mut far) = adopted(&mut *wire);
    let (other, mut other_far) = adopted(&mut *wire);
    far.write_all(&[7; 100]).unwrap();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = 0;
    drive(&mut *wire, |wire, what| {
        if let What::Received(_, bytes) = what {
            got += bytes.len();
            // The rest, and the end, may be known already.
            wire.receive(id, false);
        }
        got > 0
    });
    other_far.write_all(b"a").unwrap();
    drive(&mut *wire, |_, what| match what {
        What::Received(w, bytes) if w == id => {
            got += bytes.len();
            false
        }
        What::Received(w, _) => w == other,
        What::Closed(..) => panic!("the end of a paused socket is told"),
        _ => false,
    });
    wire.receive(id, true);
    drive(&mut *wire, |_, what| match what {
        What::Received(_, bytes) => {
            got += bytes.len();
            false
        }
        what => matches!(what, What::Closed(w, None) if w == id),
    });
    assert_eq!(got, 100);
}

#[test]
fn connecting_works_from_a_chosen_address_and_failure_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let mut wire = open(small());
    let from = "127.0.0.7".parse().unwrap();
    let ids: Vec<_> = (0..30).map(|_| wire.connect(to, Some(from)).unwrap()).collect();
    let mut connected = 0;
    drive(&mut *wire, |_, what| {
        connected += usize::from(matches!(what, What::Connected(_)));
        connected == ids.len()
    });
    let (mut accepted, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), from);
    accepted.write_all(b"hi").unwrap();
    drive(&mut *wire, |_, what| matches!(what, What::Received(_, bytes) if bytes == b"hi"));
    ids.into_iter().for_each(|id| wire.close(id));
    drive(&mut *wire, |wire, _| wire.usage().sockets == 0);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let id = wire.connect(nobody, None).unwrap();
    drive(&mut *wire, |_, what| match what {
        What::Closed(w, Some(kind)) => {
            assert_eq!((w, kind), (id, std::io::ErrorKind::ConnectionRefused));
            true
        }
        _ => false,
    });
    wire.close(id);
    drive(&mut *wire, |wire, _| wire.usage().sockets == 0);
}

#[test]
fn sockets_beyond_one_table_go_to_further_rings() {
    let config = WireConfig { sockets_max: 50, sockets_per_ring_max: 20, ..small() };
    let mut wire = open(config);
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(adopted(&mut *wire));
    }
    let (near, _far) = pair();
    let full = wire.adopt(near.into()).unwrap_err();
    assert_eq!(full.to_string(), "all 50 socket slots are taken");
    assert_eq!(wire.usage().rings, if IS_RINGS { 3 } else { 1 });
    for (id, far) in &mut held {
        wire.send(*id, 0, &Bytes::from(id.index().to_ne_bytes().to_vec()));
        wire.submit(&mut Vec::new()).unwrap();
        let mut got = [0; 4];
        far.read_exact(&mut got).unwrap();
        assert_eq!(u32::from_ne_bytes(got), id.index());
    }
    for (id, _) in &held {
        wire.close(*id);
    }
    drive(&mut *wire, |wire, _| wire.usage().sockets == 0);
}

/// Adopts, sends, pauses and closes in random order with peers that write, read and vanish: no slot
/// may leak and no completion may reach a later socket in the same slot.
#[test]
fn random_churn_leaks_no_slot_and_mixes_up_no_socket() {
    let mut wire = open(small());
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut open: Vec<(SocketId, TcpStream, u8)> = Vec::new();
    let mut stale: Vec<SocketId> = Vec::new();
    let mut short = Vec::new();
    for step in 0..4000u32 {
        match next(6) {
            0 | 1 if open.len() < 40 => {
                let (id, far) = adopted(&mut *wire);
                far.set_nonblocking(true).unwrap();
                open.push((id, far, (step % 256) as u8));
            }
            2 if !open.is_empty() => {
                let (id, far, _) = open.swap_remove(next(open.len() as u64) as usize);
                if next(2) == 0 {
                    drop(far);
                }
                wire.close(id);
                stale.push(id);
            }
            3 if !open.is_empty() => {
                let at = next(open.len() as u64) as usize;
                let (_, far, mark) = &mut open[at];
                let _ = far.write(&vec![*mark; next(300) as usize]);
            }
            4 if !open.is_empty() => {
                let (id, _, _) = open[next(open.len() as u64) as usize];
                wire.receive(id, next(3) > 0);
                wire.watch_writable(id);
            }
            _ => {
                for (id, _, _) in &open {
                    wire.send(*id, 0, &Bytes::from_static(b"to everybody"));
                }
                for id in stale.drain(..) {
                    wire.send(id, 0, &Bytes::from_static(b"to nobody"));
                }
            }
        }
        wire.submit(&mut short).unwrap();
        short.clear();
        while let Some(event) = wire.next_event() {
            match event {
                Event::Received(id, bytes) => {
                    let (_, _, mark) = open.iter().find(|(o, ..)| *o == id).expect("an open one");
                    assert!(bytes.iter().all(|b| b == mark), "bytes of another socket");
                }
                Event::Writable(id) => assert!(open.iter().any(|(o, ..)| *o == id)),
                _ => {}
            }
        }
    }
    for (id, ..) in &open {
        wire.close(*id);
    }
    drive(&mut *wire, |wire, _| wire.usage().sockets == 0);
}

#[test]
fn an_eventfd_write_by_anybody_wakes_the_owner() {
    let mut wire = open(small());
    let fd = wire.event_fd().try_clone_to_owned().unwrap();
    assert!(wire.arm().unwrap());
    let one = 1u64.to_ne_bytes();
    let writer = std::thread::spawn(move || std::fs::File::from(fd).write_all(&one).unwrap());
    let start = Instant::now();
    wire.wait(PATIENCE).unwrap();
    assert!(start.elapsed() < PATIENCE);
    writer.join().unwrap();
}

/// The kernel hands out deferred work in portions and announces only the first of them, of which some
/// end without a completion: an owner that sleeps after each look must still be woken for all of it.
#[test]
fn an_owner_that_sleeps_between_looks_is_woken_for_everything() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let mut wire = open(WireConfig { submission_entries: 1024, ..small() });
    for round in 0..5 {
        let from = Some(std::net::Ipv4Addr::new(127, 0, 1, round).into());
        // Fewer than a listener's backlog.
        let ids: Vec<_> = (0..100).map(|_| wire.connect(to, from).unwrap()).collect();
        let (mut connected, start) = (0, Instant::now());
        while connected < ids.len() {
            wire.submit(&mut Vec::new()).unwrap();
            while let Some(event) = wire.next_event() {
                connected += usize::from(matches!(event, Event::Connected(_)));
            }
            if connected < ids.len() {
                wire.wait(PATIENCE).unwrap();
            }
        }
        assert!(start.elapsed() < PATIENCE, "woken by the timeout");
        ids.into_iter().for_each(|id| wire.close(id));
        drive(&mut *wire, |wire, _| wire.usage().sockets == 0);
        (0..100).for_each(|_| drop(listener.accept().unwrap()));
    }
}
