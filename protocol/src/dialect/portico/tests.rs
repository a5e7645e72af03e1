use super::*;
use crate::dialect::talk::said;
use crate::position::{Epoch, Offset, Position};

fn talk(headers: &str) -> Portico {
    let head = format!("GET /wss HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    Portico::new(&Request::parse_whole(head.as_bytes()).unwrap(), 2)
}

fn opened(headers: &str) -> (Portico, Vec<Step>) {
    let mut talk = talk(headers);
    let steps = talk.open(&Opening { number: 1, connection: "c", user: None }, 0);
    (talk, steps)
}

fn subscribed(talk: &mut Portico, id: &str, channel: &str) -> Vec<Step> {
    let position = Position { epoch: Epoch(1), offset: Offset(0) };
    let event =
        Event::Subscribed { id: Some(id), channel, position, recovered: None, subscribers: 3 };
    talk.event(&event, 0)
}

/// The channel that is published to, what, and whether the publisher gets it.
fn published(step: &Step) -> (&str, serde_json::Value, bool) {
    let Step::Do(deed) = step else { panic!("{step:?}") };
    let Action::Publish { channel, payload, echo, .. } = &deed.action else { panic!("{deed:?}") };
    (channel, serde_json::from_slice(&payload.bytes).unwrap(), *echo)
}

#[test]
fn the_first_cookie_of_three_names_the_session() {
    for (headers, room) in [
        ("Cookie: a=b; PHPSESSID=x%2F1\r\n", "session_x/1"),
        ("Cookie: PHPSESSID=x; bookingfrontendsession=b\r\n", "session_b"),
        ("Cookie: PHPSESSID=x\r\nCookie: sessionphpgwsessid=%41+%\r\n", "session_A %"),
    ] {
        let (mut talk, steps) = opened(headers);
        assert_eq!(steps.len(), 3, "{headers}");
        assert_eq!(steps[2], Step::subscribe(asked::GREETING, room));
        let greeting = subscribed(&mut talk, asked::GREETING, &format!("p.{room}"));
        assert_eq!(said(&greeting[0])["roomId"], room);
        assert_eq!(said(&greeting[0])["roomSize"], 3);
        assert_eq!(said(&greeting[1])["type"], "connection_success");
    }
    let (_, steps) = opened("Cookie: a=b; PHPSESSID=\r\n");
    assert_eq!(said(&steps[2])["code"], "NO_SESSION");
    assert_eq!(opened("").1.len(), 2, "nothing is said without a Cookie header");
}

#[test]
fn a_user_is_the_digits_that_a_text_begins_with() {
    let number = |value: &str| {
        let text = format!("{{\"userId\":{value}}}");
        user_number(&Object::parse(&text).unwrap())
    };
    for (value, expected) in [
        ("77", 77),
        ("\"77\"", 77),
        ("\"7x\"", 7),
        ("\"x7\"", 0),
        ("null", 0),
        ("[1]", 0),
        ("-3", -3),
        ("\"\"", 0),
        ("1.9", 1),
        ("\"99999999999999999999\"", 0),
    ] {
        assert_eq!(number(value), expected, "{value}");
    }
}

#[test]
fn what_only_the_server_says_is_not_relayed_and_what_nobody_knows_is() {
    let (mut talk, _) = opened("");
    for own in SERVERS_OWN {
        let text = format!("{{\"type\":\"{own}\"}}");
        let steps = talk.message(&Incoming::Text(&text), 0);
        assert_eq!(said(&steps[0])["code"], "INVALID_TYPE", "{own}");
    }
    for text in [r#"{"type":"area_update","x":1.0}"#, r#"{"x":1.0}"#, r#"{"type":7,"x":1.0}"#] {
        let mut steps = talk.message(&Incoming::Text(text), 0);
        if let Step::Do(Deed { action: Action::Other { otherwise, .. }, .. }) = &steps[0] {
            steps = vec![Step::ask((**otherwise.as_ref().unwrap()).clone())];
        }
        let (channel, relayed, echo) = published(&steps[0]);
        assert_eq!((channel, echo), (ALL, false));
        assert_eq!(relayed["x"].to_string(), "1.0");
        assert_eq!(relayed["timestamp"], "1970-01-01T00:00:00+00:00");
        assert!(relayed.get("sessionContext").is_none());
    }
    for text in ["", "[]", "7", "{", r#"{"type":"chat","message":"\udc00"}"#] {
        let steps = talk.message(&Incoming::Text(text), 0);
        assert_eq!(said(&steps[0])["code"], "INVALID_MESSAGE", "{text}");
    }
}

#[test]
fn a_subscribe_without_an_entity_goes_to_nobody_else() {
    let (mut talk, _) = opened("");
    for text in [
        r#"{"type":"subscribe"}"#,
        r#"{"type":"subscribe","entityType":{},"entityId":1}"#,
        r#"{"type":"unsubscribe","entityType":"a"}"#,
        r#"{"type":"entity_event","entityId":1}"#,
        r#"{"type":"update_session"}"#,
        r#"{"type":"update_session","sessionId":7}"#,
        r#"{"type":"session_message"}"#,
        r#"{"type":"room_message","roomId":"all"}"#,
    ] {
        let steps = talk.message(&Incoming::Text(text), 0);
        assert_eq!(steps.len(), 1, "{text}");
        assert_eq!(said(&steps[0])["type"], "error", "{text}");
    }
}

#[test]
fn a_room_that_is_refused_or_ended_is_left() {
    let (mut talk, _) = opened("");
    let subscribe = r#"{"type":"subscribe","entityType":"resource","entityId":42}"#;
    let steps = talk.message(&Incoming::Text(subscribe), 0);
    assert_eq!(steps, [Step::subscribe("entity:entity_resource_42", "entity_resource_42")]);
    let relayed = r#"{"type":"room_message","roomId":"entity_resource_42","action":"presence"}"#;
    let steps = talk.message(&Incoming::Text(relayed), 0);
    assert_eq!(published(&steps[0]).0, "entity_resource_42", "it need not wait for the answer");
    let (code, message) = (ErrorCode::Forbidden, "no");
    let error = Event::Error { id: Some("entity:entity_resource_42"), code, message };
    assert_eq!(said(&talk.event(&error, 0)[0])["code"], "FORBIDDEN");
    let steps = talk.message(&Incoming::Text(relayed), 0);
    assert_eq!(said(&steps[0])["code"], "ROOM_ACCESS_DENIED");

    talk.message(&Incoming::Text(subscribe), 0);
    let steps = subscribed(&mut talk, "entity:entity_resource_42", "p.entity_resource_42");
    let (joined, confirmed) = (said(&steps[0]), said(&steps[1]));
    assert_eq!((&joined["entityType"], &joined["entityId"]), (&"resource".into(), &42.into()));
    assert_eq!(confirmed["status"], "subscribed");
    let again = talk.message(&Incoming::Text(subscribe), 0);
    assert_eq!(said(&again[0])["status"], "subscribed");
    let ended = Event::Unsubscribed { id: None, channel: "p.entity_resource_42", reason: None };
    assert_eq!(said(&talk.event(&ended, 0)[0])["status"], "unsubscribed");
    assert!(talk.rooms.is_empty());
}

#[test]
fn a_room_is_left_when_that_is_done_and_not_before() {
    let (mut talk, _) = opened("");
    let entity = r#""entityType":"resource","entityId":42"#;
    let subscribe = format!(r#"{{"type":"subscribe",{entity}}}"#);
    let unsubscribe = format!(r#"{{"type":"unsubscribe",{entity}}}"#);
    let confirmed = |steps: &[Step]| (steps.len(), said(&steps[0])["status"].clone());
    let not_there = talk.message(&Incoming::Text(&unsubscribe), 0);
    assert_eq!(confirmed(&not_there), (1, "unsubscribed".into()));

    let leave = Step::unsubscribe("leave:entity_resource_42", "entity_resource_42");
    let channel = "p.entity_resource_42";
    // Before the subscribe is answered: its answer comes first.
    talk.message(&Incoming::Text(&subscribe), 0);
    assert_eq!(talk.message(&Incoming::Text(&unsubscribe), 0), std::slice::from_ref(&leave));
    assert_eq!(subscribed(&mut talk, "entity:entity_resource_42", channel).len(), 2);
    let id = Some("leave:entity_resource_42");
    let left = Event::Unsubscribed { id, channel, reason: None };
    assert_eq!(confirmed(&talk.event(&left, 0)), (1, "unsubscribed".into()));
    assert!(talk.rooms.is_empty());

    // It was refused.
    talk.message(&Incoming::Text(&subscribe), 0);
    assert_eq!(talk.message(&Incoming::Text(&unsubscribe), 0), [leave]);
    let error = |id, code| Event::Error { id: Some(id), code, message: "no" };
    talk.event(&error("entity:entity_resource_42", ErrorCode::Forbidden), 0);
    let steps = talk.event(&error("leave:entity_resource_42", ErrorCode::NotSubscribed), 0);
    assert_eq!(confirmed(&steps), (1, "unsubscribed".into()));
}

#[test]
fn liveness_frames_come_by_the_clock_and_evict_nobody() {
    let (mut talk, steps) = opened("");
    assert_eq!(steps[1], Step::Remind(SERVER_PING_MS));
    talk.message(&Incoming::Text(r#"{"type":"subscribe","entityType":"a","entityId":"b"}"#), 0);
    for tick in 1..=20_u32 {
        let steps = talk.tick(u64::from(tick * SERVER_PING_MS));
        assert_eq!(steps[0], Step::Remind(SERVER_PING_MS));
        assert_eq!(said(&steps[1])["type"], "server_ping");
        let expected = if tick % 4 == 0 { 3 } else { 2 };
        assert_eq!(steps.len(), expected);
    }
    assert_eq!(talk.rooms.len(), 1);
}
