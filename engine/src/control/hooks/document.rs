//! The examples of `docs/HOOKS.md` are what is sent and what is understood.

use std::sync::Arc;

use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Operation, UserId};
use serde_json::Value;

use super::client::Reply;
use super::event::{Stamp, event, presence};
use super::figures::Hook;
use super::{address, answers};
use crate::access::Identity;
use crate::config::DEFAULT_TOML;
use crate::ids::{ConnectionId, ShardId};
use crate::message::{Caller, Change, ConnectRequest, Denied, News, Question, StoredPayload};

const DOCUMENT: &str = include_str!("../../../../docs/HOOKS.md");

/// The example of this name.
fn example(name: &str) -> &'static str {
    let begin = format!("```json {name}\n");
    let (_, rest) = DOCUMENT.split_once(&begin).unwrap_or_else(|| panic!("{name} is missing"));
    rest.split_once("```").unwrap().0
}

fn answer(name: &str) -> Reply {
    Reply { status: 200, body: example(name).into() }
}

fn caller(user: Option<&str>) -> Caller {
    let identity = Identity {
        user: user.map(|user| UserId::new(user).unwrap()),
        info: user.map(|_| "{\"name\":\"Ann\"}".into()),
        ..Identity::default()
    };
    let connection = ConnectionId { shard: ShardId(3), number: 7 };
    Caller { connection, identity: Arc::new(identity) }
}

#[test]
fn requests_are_what_the_document_shows() {
    let channel = ChannelName::new("rooms.1").unwrap();
    let header = |name: &str, value: &str| (name.into(), value.as_bytes().into());
    let request = ConnectRequest {
        address: "203.0.113.7".parse().unwrap(),
        path: "/ws".into(),
        query: "room=1".into(),
        headers: vec![header("user-agent", "Browser/1.0"), header("cookie", "sid=abc")],
    };
    let caller_ = caller(Some("ann"));
    let bytes = "{\"say\":\"hello\"}".into();
    for question in [
        Question::Connect { caller: caller(None), request: Box::new(request) },
        Question::Subscribe { caller: caller_.clone(), channel: channel.clone() },
        Question::Publish {
            caller: caller_.clone(),
            channel,
            payload: StoredPayload { kind: PayloadKind::Json, bytes },
        },
        Question::Message {
            caller: caller_.clone(),
            kind: "vote".into(),
            message: "{\"type\":\"vote\",\"for\":3}".into(),
        },
        Question::Disconnect { caller: caller_, code: 1001, reason: "going away".into() },
    ] {
        let stamp = Stamp { id: format!("{:032x}", 42), time: 1_750_000_000 };
        let forward = ["Cookie".to_owned(), "user-agent".to_owned()];
        let sent = event(&question, &stamp, &forward).unwrap();
        let sent: Value = serde_json::from_slice(&sent.body.unwrap()).unwrap();
        let shown = example(&format!("{} request", sent["event"].as_str().unwrap()));
        assert_eq!(sent, serde_json::from_str::<Value>(shown).unwrap());
    }
}

#[test]
fn who_comes_and_goes_is_told_as_the_document_shows() {
    let change = |user: &str, joined| Change {
        channel: ChannelName::new("rooms.1").unwrap(),
        epoch: Epoch(0x5d3c_1f6a_90b7_e248),
        user: UserId::new(user).unwrap(),
        joined,
        identity: caller(Some(user).filter(|user| *user == "ann")).identity,
    };
    let changes = vec![change("ann", true), change("bob", false)];
    let news = News { id: 42, unix_s: 1_750_000_000, lost: 0, changes };
    let sent: Value = serde_json::from_slice(&presence(&news).unwrap().body.unwrap()).unwrap();
    assert_eq!(sent, serde_json::from_str::<Value>(example("presence request")).unwrap());
}

#[test]
fn answers_mean_what_the_document_says() {
    let admitted = answers::connect(&answer("connect answer"), &Identity::default(), 5);
    let admitted = admitted.unwrap().answer.unwrap();
    let identity = admitted.identity;
    assert_eq!((identity.user.as_deref(), identity.issued_at), (Some("ann"), 5));
    assert_eq!(*identity.attributes, ["role:editor"]);
    let grants = identity.grants.unwrap();
    // Those that it gives, and the channel that it names.
    assert_eq!((grants.allow.len(), grants.deny.len()), (3, 1));
    assert_eq!(grants.deny[0].operation, Operation::Subscribe);
    assert_eq!(&*admitted.channels[0], "rooms.1");
    let subscribe = answers::subscribe(&answer("subscribe answer")).unwrap();
    assert_eq!(subscribe.answer.unwrap().expires_at, identity.expires_at);
    assert_eq!(subscribe.cache_s, 30);
    let refusal = answers::subscribe(&answer("subscribe refusal")).unwrap();
    let text = "this room is full".into();
    assert_eq!(refusal.answer.unwrap_err(), Denied::Refused { status: 403, text });
    let instead = answers::publish(&answer("publish answer"), 100).unwrap().answer.unwrap();
    assert_eq!(instead.unwrap().bytes, "{\"say\":\"h*llo\"}");
    let reply = answers::message(&answer("message answer")).unwrap().answer.unwrap();
    assert_eq!(reply.as_deref(), Some("{\"votes\":17}"));
}

#[test]
fn what_a_token_says_is_added_to_and_never_prolonged() {
    let token = Identity {
        user: Some(UserId::new("bob").unwrap()),
        attributes: ["claim:a=b".into()].into(),
        token: Some("jti".into()),
        issued_at: 3,
        expires_at: Some(9),
        ..Identity::default()
    };
    let reply = Reply { status: 200, body: b"{\"roles\":[\"x\"],\"expires_at\":10}".into() };
    let admitted = answers::connect(&reply, &token, 5).unwrap().answer.unwrap();
    let expected = Identity { attributes: ["claim:a=b".into(), "role:x".into()].into(), ..token };
    assert_eq!(admitted.identity, expected);
}

#[test]
fn the_document_names_every_hook() {
    for hook in Hook::ALL.iter().filter(|hook| !matches!(hook, Hook::Keys | Hook::Rpc)) {
        let url = format!("\n{}_url = \"\"\n", hook.label());
        assert!(DEFAULT_TOML.contains(&url) && DOCUMENT.contains(&format!("**{}**", hook.label())));
    }
    assert!(address::check("https://app.example.org/hook", false).is_ok());
}
