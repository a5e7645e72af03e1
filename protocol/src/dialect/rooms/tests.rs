use super::*;
use crate::dialect::talk::said;

fn tell(talk: &mut Rooms, text: &str, now_ms: u64) -> Vec<Step> {
    talk.message(&Incoming::Text(text), now_ms)
}

fn error_of(steps: &[Step]) -> String {
    assert_eq!(steps.len(), 1, "{steps:?}");
    let said = said(&steps[0]);
    assert_eq!(said["type"], "error", "{said}");
    said["message"].as_str().unwrap().to_owned()
}

fn rooms() -> Rooms {
    Rooms::new(&Request::parse_whole(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap(), 0)
}

#[test]
fn every_error_has_its_words() {
    let mut talk = rooms();
    for (text, words) in [
        ("", "Invalid message format"),
        ("{}", "Invalid message format"),
        ("[1]", "Invalid message format"),
        (r#"{"type":"join_room"}"#, "Room name required"),
        (r#"{"type":"join_room","room":""}"#, "Room name required"),
        (r#"{"type":"join_room","room":"@all"}"#, "Room name required"),
        (r#"{"type":"leave_room","room":{}}"#, "Room name required"),
        (r#"{"type":"broadcast","room":"a"}"#, "Room and message required"),
        (r#"{"type":"broadcast","room":"a","message":""}"#, "Room and message required"),
        (r#"{"type":"broadcast","message":"a"}"#, "Room and message required"),
        (r#"{"type":"private_message","to":"ann"}"#, "Target user ID and message required"),
        (r#"{"type":"private_message","message":1}"#, "Target user ID and message required"),
        (r#"{"room":"a"}"#, "Unknown message type: "),
    ] {
        assert_eq!(error_of(&tell(&mut talk, text, 0)), words, "{text}");
    }
    assert_eq!(error_of(&talk.message(&Incoming::Binary(b"{}"), 0)), "Invalid message format");
    let unknown =
        Event::Error { id: Some("other:fly"), code: ErrorCode::UnknownCommand, message: "" };
    assert_eq!(error_of(&talk.event(&unknown, 0)), "Unknown message type: fly");
    let ann = UserId::new("ann").unwrap();
    let sent = Event::Sent { id: Some("to:\"ann\""), user: &ann, connections: 0 };
    assert_eq!(error_of(&talk.event(&sent, 0)), "User not online");
}

#[test]
fn a_room_is_joined_with_its_password_and_what_its_rules_refuse_has_words() {
    let mut talk = rooms();
    for (text, expected) in [
        (r#"{"type":"join_room","room":"a","password":"x\u0079"}"#, Some("xy")),
        (r#"{"type":"join_room","room":"a","password":7}"#, None),
        (r#"{"type":"join_room","room":"a"}"#, None),
    ] {
        let steps = tell(&mut talk, text, 0);
        let [Step::Do(deed)] = &steps[..] else { panic!("{steps:?}") };
        let Action::Subscribe { password, .. } = &deed.action else { panic!("{deed:?}") };
        assert_eq!(password.as_deref(), expected, "{text}");
    }
    for (id, code, words) in [
        (Some("join:a"), ErrorCode::WrongPassword, "Invalid room password"),
        (Some("join:a"), ErrorCode::MembersOnly, "Room is for members only"),
        (Some("join:a"), ErrorCode::ChannelFull, "Room is full"),
        (None, ErrorCode::MembersOnly, "Room is for members only"),
        (None, ErrorCode::Moderated, "Only moderators may speak in this room"),
        (Some("join:a"), ErrorCode::NoSuchRoom, "Room does not exist"),
    ] {
        let refused = Event::Error { id, code, message: "" };
        assert_eq!(error_of(&talk.event(&refused, 0)), words);
    }
}

#[test]
fn the_hundred_and_first_message_of_a_minute_is_refused_and_does_not_prolong_it() {
    let mut talk = rooms();
    let join = r#"{"type":"join_room","room":"a"}"#;
    for n in 0..100 {
        assert!(matches!(tell(&mut talk, join, n)[..], [Step::Do(_)]), "message {n}");
    }
    for now_ms in [100, 30_000, 59_999] {
        assert_eq!(error_of(&tell(&mut talk, join, now_ms)), "Rate limit exceeded");
    }
    // The first of them is a minute old, and the refused ones were not counted.
    assert!(matches!(tell(&mut talk, join, 60_000)[..], [Step::Do(_)]));
    assert_eq!(error_of(&tell(&mut talk, join, 60_000)), "Rate limit exceeded");
    assert!(matches!(tell(&mut talk, join, 60_001)[..], [Step::Do(_)]));
}

#[test]
fn pings_that_double_are_answered_once_and_count_as_nothing() {
    let mut talk = rooms();
    let ping = r#"{"type":"ping"}"#;
    assert_eq!(said(&tell(&mut talk, ping, 1000)[0])["timestamp"], 1);
    for now_ms in (2000..26_000).step_by(10) {
        assert!(tell(&mut talk, ping, now_ms).is_empty());
    }
    assert_eq!(said(&tell(&mut talk, ping, 26_000)[0])["type"], "pong");
    assert!(talk.taken_ms.is_empty());
}

#[test]
fn who_is_found_out_about_is_announced_before_it_is_told_so() {
    let mut talk = rooms();
    talk.open(&Opening { number: 5, connection: "c", user: None }, 0);
    assert!(tell(&mut talk, r#"{"type":"presence","status":"away"}"#, 0).is_empty());
    let user = UserId::new("ann").unwrap();
    let attributes = ["role:editor", "claim:username=Ann", "role:x"].map(smol_str::SmolStr::new);
    let user = Some(&user);
    let (id, expires_in_ms) = (Some(asked::AUTH), None);
    let connected =
        Event::Connected { id, connection: "c", user, attributes: &attributes, expires_in_ms };
    let steps = talk.event(&connected, 7000);
    assert_eq!(said(&steps[0])["status"], "online");
    let Step::Do(deed) = &steps[1] else { panic!("{steps:?}") };
    let Action::Publish { channel, echo: false, .. } = &deed.action else { panic!("{deed:?}") };
    assert_eq!(channel, LOBBY);
    let user = serde_json::json!({"id":"ann","username":"Ann","roles":["editor","x"]});
    assert_eq!(said(&steps[2]), serde_json::json!({"type":"auth_success","user":user}));
    let steps = tell(&mut talk, r#"{"type":"presence","status":"nonsense"}"#, 0);
    assert_eq!(error_of(&steps), "Invalid status");
    assert_eq!(
        said(&tell(&mut talk, r#"{"type":"presence","status":"busy"}"#, 0)[0])["status"],
        "busy"
    );
}

#[test]
fn nobody_is_told_of_the_lobbys_end_and_it_is_entered_again() {
    let mut talk = Rooms { hidden: 2, ..rooms() };
    talk.in_lobby = true;
    let ended = |channel| Event::Unsubscribed { id: None, channel, reason: None };
    assert_eq!(talk.event(&ended("p.@all"), 0), []);
    assert!(!talk.in_lobby);
    assert_eq!(said(&talk.event(&ended("p.hall"), 0)[0])["room"], "hall");
}

#[test]
fn of_an_application_that_says_nothing_nobody_is_told() {
    let mut talk = rooms();
    let reply = |data| Event::Reply { id: Some("other:fly"), data };
    assert_eq!(talk.event(&reply("null"), 0), []);
    assert_eq!(talk.event(&reply("{\"type\":\"flown\"}"), 0).len(), 1);
}
