//! Commands of every dialect: a refusal is short and printable, what is accepted is handed on as
//! valid JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfeed_protocol::command::{
    Action, Command, CommandError, KIND_BYTES_MAX, Payload, PayloadKind,
};
use ringfeed_protocol::dialect::{Deed, Opening, Step, Talk};
use ringfeed_protocol::event::Publication;
use ringfeed_protocol::frame::Header;
use ringfeed_protocol::handshake::Request;
use ringfeed_protocol::lane::{Form, RoomsForm};
use ringfeed_protocol::{ChannelName, Dialect, Event, Incoming, Lane, Offset, any_name};
use serde_json::value::RawValue;

fuzz_target!(|bytes: &[u8]| {
    let messages =
        [std::str::from_utf8(bytes).ok().map(Incoming::Text), Some(Incoming::Binary(bytes))];
    for message in messages.iter().flatten() {
        for dialect in Dialect::ALL {
            if let Some(mut talk) = talk(dialect) {
                // What it publishes is valid in any dialect, and what it says whole frames.
                talk.message(message, 7).iter().chain(&talk.tick(8)).for_each(stepped);
                continue;
            }
            match dialect.parse(message) {
                Ok(command) => accepted(&command),
                Err(CommandError { id, refused }) => {
                    let text = refused.to_string();
                    assert!(text.len() < 400, "{} bytes: {text}", text.len());
                    assert!(!text.chars().any(char::is_control), "{text:?}");
                    replied(&Event::Error { id, code: refused.code(), message: &text });
                }
            }
        }
    }
});

/// A connection that shows a session.
fn talk(dialect: Dialect) -> Option<Box<dyn Talk>> {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: PHPSESSID=s\r\n\r\n";
    let mut talk = dialect.talk(&Request::parse_whole(head).expect("a request"), 0)?;
    talk.open(&Opening { number: 1, connection: "c", user: None }, 0).iter().for_each(stepped);
    Some(talk)
}

fn stepped(step: &Step) {
    match step {
        Step::Do(Deed { id, action }) => {
            accepted(&Command { id: id.as_deref().map(|_| "1"), action: action.clone() });
        }
        Step::Say(frames) => {
            let (header, len) = Header::parse(frames).expect("valid").expect("whole");
            assert!(header.len as usize <= frames.len() - len);
        }
        Step::Remind(_) | Step::Close(..) => {}
    }
}

fn accepted(command: &Command) {
    replied(&Event::Pong { id: command.id });
    if let Action::Other { kind, message, otherwise } = &command.action {
        // What the application is handed is JSON, of a type that a configuration can name.
        assert!(kind.len() <= KIND_BYTES_MAX);
        serde_json::from_str::<&RawValue>(message).expect("JSON");
        if let Ok(action) = otherwise {
            accepted(&Command { id: None, action: (**action).clone() });
        }
    }
    if let Action::Subscribe { channel, .. } | Action::Unsubscribe { channel } = &command.action {
        let name = any_name::encode(channel);
        assert_eq!(any_name::decode(&name), *channel);
        assert!(name.is_empty() || name.len() > 255 || ChannelName::new(&name).is_ok());
    }
    let Action::Publish { channel, payload: Payload { kind, bytes }, .. } = &command.action else {
        return;
    };
    let Ok(channel) = ChannelName::new(channel) else { return };
    let mut frame = Vec::new();
    let publication = Publication { offset: Offset(7), kind: *kind, bytes, meta: None };
    Lane::RINGFEED.write_publication(&mut frame, &channel, &publication);
    json(&frame);
    frame.clear();
    Lane::RAW.write_publication(&mut frame, &channel, &publication);
    assert_eq!(body(&frame), &bytes[..]);
    let form = Form::Rooms(RoomsForm { batch: true, ids: true });
    let batch = Lane { form, hidden: 0 };
    let (mut parts, mut joined) = (Vec::new(), Vec::new());
    (0..2).for_each(|_| batch.write_part(&mut parts, &channel, &publication));
    batch.write_joined(&mut joined, &parts, 2, 7);
    json(&joined);
    if *kind != PayloadKind::Binary {
        assert!(std::str::from_utf8(bytes).is_ok());
    }
}

fn replied(event: &Event) {
    let mut frame = Vec::new();
    Dialect::Ringfeed.write_event(&mut frame, event);
    json(&frame);
}

fn json(frame: &[u8]) {
    let parsed = serde_json::from_slice::<&RawValue>(body(frame));
    parsed.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(body(frame))));
}

/// The payload of one whole frame.
fn body(frame: &[u8]) -> &[u8] {
    let (header, len) = Header::parse(frame).expect("a frame").expect("whole");
    assert_eq!(header.len, (frame.len() - len) as u64);
    &frame[len..]
}
