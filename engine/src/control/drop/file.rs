//! What dropped files say: which names are theirs, in which order they come, and what each publishes where.

use std::borrow::Cow;

use ringfeed_protocol::command::{Payload, present};
use ringfeed_protocol::foreign::portico::Told;
use ringfeed_protocol::foreign::{self, Object};
use ringfeed_protocol::{ChannelName, IdempotencyKey, Refused, any_name};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::control::error::ApiError;
use crate::control::publish;
use crate::message::{KeyOf, Keyed, Post, Sender};

/// Who has dropped them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// `ringfeed publish`, and whoever does as it does.
    Publications,
    /// PorticoEstate, where it could not reach Redis; for the endpoints with these prefixes.
    Portico(Vec<String>),
}

const PORTICO_TO_ALL: &str = "websocket_notification_";
const PORTICO_TO_SESSION: &str = "websocket_session_";

/// What `ringfeed publish` writes: the body of `POST /api/publish`, and when it was written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publication<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    base64: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    idempotency_key: Option<Cow<'a, str>>,
    /// For who reads it; files come in the order of their names.
    #[serde(default, rename = "created_ms")]
    _created_ms: Option<u64>,
}

/// Why a file says nothing.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) error: ApiError,
    /// It may be that not all of it was written yet.
    pub(super) may_be_unfinished: bool,
}

impl Wrong {
    fn new(error: impl Into<ApiError>) -> Wrong {
        Wrong { error: error.into(), may_be_unfinished: false }
    }
}

impl Format {
    /// Where a name stands among others; `None` where it is none of a dropped file. Files that are being written have a
    /// name that begins with a dot.
    pub(super) fn order<'a>(&self, name: &'a str) -> Option<Cow<'a, str>> {
        let stem = name.strip_suffix(".json").filter(|_| !name.starts_with('.'))?;
        match self {
            Format::Publications => Some(name.into()),
            Format::Portico(_) => {
                let (_, time) = portico(stem)?;
                // By the time in it, whatever it is for.
                Some(format!("{time}/{name}").into())
            }
        }
    }

    /// What a file publishes. `identity` is the key of what has none of its own: told by it the same file is known again
    /// where it is not known what came of it. Where no keys are remembered none is given: what has one is to be published
    /// all the same.
    pub(super) fn posts(
        &self,
        name: &str,
        bytes: &[u8],
        identity: &str,
        remembers_keys: bool,
    ) -> Result<Vec<Post>, Wrong> {
        let unfinished = serde_json::from_slice::<&RawValue>(bytes).is_err_and(|e| !e.is_data());
        let wrong = |error: ApiError| Wrong { error, may_be_unfinished: unfinished };
        let key = |own: Option<&str>| -> Result<_, Wrong> {
            let key = IdempotencyKey::new(own.unwrap_or(identity));
            let key = key.map_err(|e| Wrong::new(Refused::bad_command(e)))?;
            Ok(Some(key).filter(|_| remembers_keys).map(|key| {
                let key = Some(Box::new(Keyed { of: KeyOf::Application, key }));
                Box::new(Sender { key, ..Sender::default() })
            }))
        };
        if *self == Format::Publications {
            let said: Publication = publish::object(bytes, "a dropped message").map_err(wrong)?;
            let channel = ChannelName::new(&said.channel).map_err(Refused::from);
            let channel = channel.map_err(Wrong::new)?;
            let payload = Payload::from_fields(said.data, said.text, said.base64);
            let payload = payload.map_err(Wrong::new)?.into();
            return Ok(vec![Post { channel, payload, by: key(said.idempotency_key.as_deref())? }]);
        }
        let Format::Portico(prefixes) = self else { return Ok(Vec::new()) };
        let said: Object = publish::object(bytes, "a notification").map_err(wrong)?;
        let Told { room, data } = match name.strip_suffix(".json").and_then(portico) {
            Some((Some(session), _)) => foreign::portico::in_session(&said, session),
            _ => foreign::portico::to_all(&said, &[]),
        };
        let data = RawValue::from_string(data);
        let data = data.map_err(|e| Wrong::new(Refused::from_json_error(&e)))?;
        let post = |prefix: &String| {
            let channel = ChannelName::new(&format!("{prefix}{}", any_name::encode(&room)));
            let channel = channel.map_err(|e| Wrong::new(Refused::from(e)))?;
            let payload = Payload::from_fields(Some(&data), None, None).map_err(Wrong::new)?;
            Ok(Post { channel, payload: payload.into(), by: key(None)? })
        };
        prefixes.iter().map(post).collect()
    }
}

/// The session, if it is for one, and the time in a name.
fn portico(stem: &str) -> Option<(Option<&str>, &str)> {
    let is_time = |time: &&str| {
        time.starts_with(|c: char| c.is_ascii_digit())
            && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    if let Some(time) = stem.strip_prefix(PORTICO_TO_ALL) {
        return Some((None, time)).filter(|(_, time)| is_time(time));
    }
    let (session, time) = stem.strip_prefix(PORTICO_TO_SESSION)?.rsplit_once('_')?;
    Some((Some(session), time)).filter(|(_, time)| !session.is_empty() && is_time(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posts(format: &Format, name: &str, text: &str) -> Result<Vec<(String, String)>, Wrong> {
        let posts = format.posts(name, text.as_bytes(), "file-1", true)?;
        let shown = |post: Post| {
            let text = String::from_utf8(post.payload.bytes.to_vec()).unwrap();
            (post.channel.to_string(), text)
        };
        Ok(posts.into_iter().map(shown).collect())
    }

    #[test]
    fn a_publication_is_what_the_api_takes() {
        let format = Format::Publications;
        let text = r#"{"channel":"a","data":{ "b":1 },"idempotency_key":"k","created_ms":17}"#;
        assert_eq!(posts(&format, "1.json", text).unwrap(), [("a".into(), r#"{ "b":1 }"#.into())]);
        let key = |text: &str, remembers| {
            let post = format.posts("1.json", text.as_bytes(), "file-1", remembers).unwrap();
            post[0].by.as_ref().map(|by| by.key.as_ref().unwrap().key.to_string())
        };
        assert_eq!(key(text, true), Some("k".into()));
        assert_eq!(key(r#"{"channel":"a","text":"b"}"#, true), Some("file-1".into()));
        assert_eq!(key(r#"{"channel":"a","text":"b"}"#, false), None);
        assert_eq!(key(text, false), None);
        for (text, part, unfinished) in [
            (r#"{"channel":"a","#, "EOF", true),
            ("", "begins with '{'", true),
            (r#"{"channel":"a","data":1,"datum":2}"#, "datum", false),
            (r#"{"channel":"a b","data":1}"#, "white space", false),
            (r#"{"channel":"a"}"#, "exactly one", false),
            (r#"{"channel":"a","data":1,"idempotency_key":""}"#, "is empty", false),
            (r#"{"channel":"a","data":1,"except":"x"}"#, "except", false),
        ] {
            let wrong = posts(&format, "1.json", text).unwrap_err();
            assert!(wrong.error.message().contains(part), "{text}: {}", wrong.error.message());
            assert_eq!(wrong.may_be_unfinished, unfinished, "{text}");
        }
    }

    #[test]
    fn notifications_go_to_all_or_to_a_session_with_its_room() {
        let format = Format::Portico(vec!["portico.".into(), "".into()]);
        let to_all = "websocket_notification_1716200000.1234.json";
        let text = r#"{"type":"notification","message":"x"}"#;
        let both = [("portico.all".into(), text.into()), ("all".into(), text.into())];
        assert_eq!(posts(&format, to_all, text).unwrap(), both);
        let format = Format::Portico(vec!["portico.".into()]);
        let to_one = "websocket_session_a_b c_1716200000.5.json";
        let sent = posts(&format, to_one, r#"{"type":"x","n":1.50,"roomId":7}"#).unwrap();
        let data = r#"{"type":"x","n":1.50,"roomId":"session_a_b c"}"#;
        assert_eq!(sent, [("portico.session_a_b%20c".into(), data.into())]);
        assert!(posts(&format, to_one, "[1]").is_err());
    }

    #[test]
    fn only_names_of_dropped_files_are_looked_at() {
        let publications = Format::Publications;
        for (name, is_one) in
            [("1.json", true), (".1.json", false), ("1.json.tmp", false), ("rejected", false)]
        {
            assert_eq!(publications.order(name).is_some(), is_one, "{name}");
        }
        let format = Format::Portico(Vec::new());
        for (name, is_one) in [
            ("websocket_notification_1716200000.1234.json", true),
            ("websocket_notification_1716200000.json", true),
            ("websocket_notification_.json", false),
            ("websocket_notification_x.json", false),
            ("websocket_session_abc_1716200000.1.json", true),
            ("websocket_session__1716200000.1.json", false),
            ("websocket_running", false),
            ("other.json", false),
        ] {
            assert_eq!(format.order(name).is_some(), is_one, "{name}");
        }
        let time = |name| format.order(name).unwrap();
        assert!(time("websocket_session_z_15.1.json") < time("websocket_notification_15.2.json"));
    }
}
