//! The examples of `docs/PROTOCOL.md` against the code.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use ringfeed_protocol::command::{Action, Command, PayloadKind};
use ringfeed_protocol::event::{Epoch, Meta, Present, Publication, Someone};
use ringfeed_protocol::frame::Header;
use ringfeed_protocol::{Dialect, ErrorCode, Event, Incoming, Lane, Offset, Position, UserId};

const PAGE: &str = include_str!("../../docs/PROTOCOL.md");

/// The lines of all blocks with this info string.
fn lines(info: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in PAGE.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(rest) => inside = rest == info,
            None if inside => found.push(line),
            None => {}
        }
    }
    assert!(!found.is_empty(), "docs/PROTOCOL.md has no block {info:?}");
    found
}

#[test]
fn every_command_shown_is_accepted() {
    for line in lines("json command") {
        Dialect::Ringfeed.parse(&Incoming::Text(line)).unwrap_or_else(|e| panic!("{line}: {e:?}"));
    }
    for line in lines("json raw-command") {
        Dialect::Raw.parse(&Incoming::Text(line)).unwrap_or_else(|e| panic!("{line}: {e:?}"));
    }
    let recover = lines("json command")[1];
    match Dialect::Ringfeed.parse(&Incoming::Text(recover)).unwrap().action {
        Action::Subscribe { recover: Some(Position { epoch, offset }), .. } => {
            assert_eq!((epoch, offset), (EPOCH, Offset(41)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_refusal_shown_is_refused_with_its_code() {
    for code in [ErrorCode::BadJson, ErrorCode::BadCommand, ErrorCode::UnknownCommand] {
        for line in lines(&format!("json refused {}", code.as_str())) {
            let refused = Dialect::Ringfeed.parse(&Incoming::Text(line));
            let refused = refused.and_then(Command::or_refused);
            assert_eq!(refused.unwrap_err().refused.code(), code, "{line}");
        }
    }
}

const EPOCH: Epoch = Epoch(0x00c0_ffee_00c0_ffee);

fn there<'a>(user: &'a UserId, info: Option<&'a str>) -> Present<'a> {
    Present { who: Someone::User(user), info }
}

#[test]
#[allow(clippy::too_many_lines)] // an event for each line of the page
fn every_event_is_shown_as_it_is_written() {
    let at = |offset| Position { epoch: EPOCH, offset: Offset(offset) };
    let id = Some;
    let trade = "btcusdt@trade";
    let kept =
        |offset, kind, bytes| Publication { offset: Offset(offset), kind, bytes, meta: None };
    let publications = vec![
        kept(11, PayloadKind::Json, &b"{\"a\":1}"[..]),
        kept(12, PayloadKind::Text, b"not JSON"),
    ];
    let channel = "chat";
    let (connection, ann) = ("00020123456789abcdef", UserId::new("ann").unwrap());
    let user = Some(&ann);
    let (bob, cleo) = (UserId::new("bob").unwrap(), UserId::new("cleo").unwrap());
    let events = [
        Event::Subscribed {
            id: id("1"),
            channel: trade,
            position: at(41),
            recovered: None,
            subscribers: 1,
        },
        Event::Subscribed {
            id: id("\"a\""),
            channel: trade,
            position: at(44),
            recovered: Some(true),
            subscribers: 1,
        },
        Event::Unsubscribed { id: id("2"), channel: trade, reason: None },
        Event::Published {
            id: id("3"),
            channel,
            position: Some(at(7)),
            ack: "accepted",
            subscribers: 1,
            duplicate: false,
        },
        Event::Published {
            id: id("16"),
            channel,
            position: Some(at(7)),
            ack: "accepted",
            subscribers: 1,
            duplicate: true,
        },
        Event::History { id: id("4"), channel, position: at(12), publications },
        Event::Pong { id: id("5") },
        Event::Error {
            id: id("6"),
            code: ErrorCode::Forbidden,
            message: "chat may be published to over the HTTP API only",
        },
        Event::Gap { channel: trade, epoch: EPOCH, from: Offset(45), to: Offset(99) },
        Event::Drain { reconnect_ms: 1234 },
        Event::Connected { id: None, connection, user: None, attributes: &[], expires_in_ms: None },
        Event::Connected {
            id: id("8"),
            connection,
            user,
            attributes: &[],
            expires_in_ms: Some(60_000),
        },
        Event::Unsubscribed { id: None, channel, reason: Some("it is not allowed any more") },
        Event::Sent { id: id("10"), user: &ann, connections: 2 },
        Event::Direct { from: user, kind: PayloadKind::Json, bytes: b"{\"hello\":1}" },
        Event::Direct { from: None, kind: PayloadKind::Text, bytes: b"not JSON" },
        Event::Reply { id: id("11"), data: "[1,2]" },
        Event::Presence {
            id: id("12"),
            channel,
            epoch: EPOCH,
            version: 7,
            count: 3,
            connections: 5,
            users: Some(vec![there(&ann, Some("{\"name\":\"Ann\"}")), there(&bob, None)]),
            next: Some("user:bob"),
        },
        Event::Presence {
            id: id("13"),
            channel: "news",
            epoch: EPOCH,
            version: 0,
            count: 9,
            connections: 9,
            users: None,
            next: None,
        },
        Event::Join {
            channel,
            version: 8,
            users: vec![
                there(&cleo, Some("1")),
                Present { who: Someone::Connection(connection), info: None },
            ],
        },
        Event::Leave { channel, version: 9, users: vec![there(&ann, None)], time_ms: 0 },
        Event::Count { channel, version: 250, count: 201 },
        Event::Confirmed { id: id("15"), channel, offset: Offset(11), in_time: true },
        Event::Receipts {
            channel,
            position: at(11),
            confirmed: vec![Someone::User(&ann)],
            missing: vec![Someone::User(&bob), Someone::Connection(connection)],
        },
        Event::Result { id: "7", data: "[{\"name\":\"cup\",\"price\":4.5}]" },
        Event::Error {
            id: id("7"),
            code: ErrorCode::UnknownMethod,
            message: "there is no method 'products.find'",
        },
    ];
    let shown = lines("json event");
    assert_eq!(shown.len(), events.len());
    for (event, line) in events.iter().zip(shown) {
        let mut frame = Vec::new();
        Dialect::Ringfeed.write_event(&mut frame, event);
        assert_eq!(body(&frame), line);
    }
}

#[test]
fn every_kind_of_message_is_shown_as_it_is_written() {
    let shown = lines("json message");
    let publications = [
        (7, PayloadKind::Json, &b"{\"hello\":\"world\"}"[..]),
        (8, PayloadKind::Text, b"not JSON"),
        (9, PayloadKind::Binary, &[0, 1, 2]),
        (10, PayloadKind::Json, b"{\"hello\":\"world\"}"),
        (11, PayloadKind::Json, b"{\"hello\":\"world\"}"),
    ];
    assert_eq!(shown.len(), publications.len());
    let (time_ms, user) = (1_700_000_000_000, UserId::new("ann").ok());
    let meta = Meta { time_ms, user, number: 7, confirm: false };
    let asked = Meta { confirm: true, ..meta.clone() };
    for ((offset, kind, bytes), line) in publications.into_iter().zip(shown) {
        let mut frame = Vec::new();
        let meta = match offset {
            10 => Some(&meta),
            11 => Some(&asked),
            _ => None,
        };
        let publication = Publication { offset: Offset(offset), kind, bytes, meta };
        Lane::RINGFEED.write_publication(&mut frame, "chat", &publication);
        assert_eq!(body(&frame), line);
    }
}

fn body(frame: &[u8]) -> &str {
    let (header, len) = Header::parse(frame).unwrap().unwrap();
    assert_eq!(header.len as usize, frame.len() - len);
    std::str::from_utf8(&frame[len..]).unwrap()
}
