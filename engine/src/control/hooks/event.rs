//! What the application is sent: one JSON object for each question.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{COOKIE, HeaderMap, HeaderName, HeaderValue};
use ringfeed_protocol::command::PayloadKind;
use serde::Serialize;
use serde_json::value::RawValue;

use super::figures::Hook;
use crate::clock::Clock;
use crate::message::{Caller, Change, ConnectRequest, News, Question};

/// What tells one question from another, the same however often it is sent.
#[derive(Debug, Clone)]
pub(super) struct Stamp {
    /// 32 hexadecimal digits.
    pub(super) id: String,
    /// When the question came, in seconds since 1970.
    pub(super) time: u64,
}

impl Stamp {
    pub(super) fn new() -> Stamp {
        Stamp { id: format!("{:032x}", rand::random::<u128>()), time: Clock::Machine.unix_s() }
    }
}

/// A question as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// JSON; `None` for a GET.
    pub(super) body: Option<Bytes>,
    /// Header fields beside those that every request has.
    pub(super) headers: HeaderMap,
}

#[derive(Serialize)]
struct Body<'a> {
    event: &'static str,
    id: &'a str,
    time: u64,
    connection: String,
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<&'a str, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> Body<'a> {
    fn new(hook: Hook, stamp: &'a Stamp, caller: &'a Caller) -> Body<'a> {
        Body {
            event: hook.label(),
            id: &stamp.id,
            time: stamp.time,
            connection: caller.connection.to_string(),
            user: caller.identity.user.as_deref(),
            info: caller.identity.info.as_deref().and_then(|info| serde_json::from_str(info).ok()),
            address: None,
            path: None,
            query: None,
            headers: None,
            channel: None,
            data: None,
            text: None,
            base64: None,
            r#type: None,
            message: None,
            code: None,
            reason: None,
        }
    }
}

/// About whom it is asked, and which hook. `None` for what is no question to the application.
pub(super) fn subject(question: &Question) -> Option<(Hook, &Caller)> {
    Some(match question {
        Question::Connect { caller, .. } => (Hook::Connect, caller),
        Question::Subscribe { caller, .. } => (Hook::Subscribe, caller),
        Question::Publish { caller, .. } => (Hook::Publish, caller),
        Question::Message { caller, .. } => (Hook::Message, caller),
        Question::Disconnect { caller, .. } => (Hook::Disconnect, caller),
        Question::Presence(_) | Question::Keys { .. } | Question::Rpc { .. } => return None,
    })
}

/// Bytes that a question holds while it waits.
pub(super) fn cost(question: &Question) -> usize {
    size_of::<Question>()
        + match question {
            Question::Connect { request, .. } => {
                let ConnectRequest { path, query, headers, .. } = &**request;
                let fields = headers.iter().map(|(name, value)| name.len() + value.len());
                path.len() + query.len() + fields.sum::<usize>()
            }
            Question::Publish { payload, .. } => payload.bytes.len(),
            Question::Message { kind, message, .. } => kind.len() + message.len(),
            Question::Disconnect { reason, .. } => reason.len(),
            Question::Subscribe { .. }
            | Question::Presence(_)
            | Question::Keys { .. }
            | Question::Rpc { .. } => 0,
        }
}

/// `None` for what cannot be sent: a shard's JSON that is none.
pub(super) fn event(question: &Question, stamp: &Stamp, forward: &[String]) -> Option<Event> {
    let (hook, caller) = subject(question)?;
    let mut body = Body::new(hook, stamp, caller);
    let mut headers = HeaderMap::new();
    match question {
        Question::Connect { request, .. } => {
            let ConnectRequest { address, path, query, .. } = &**request;
            let shown = forwarded(request, forward);
            body.address = Some(address.to_string());
            (body.path, body.query) = (Some(&**path), Some(&**query));
            let texts = shown
                .iter()
                .map(|(name, value)| (*name, String::from_utf8_lossy(value).into_owned()));
            body.headers = Some(texts.collect());
            let cookie = shown.get("cookie").map(|cookie| HeaderValue::from_bytes(cookie));
            if let Some(Ok(cookie)) = cookie {
                headers.insert(COOKIE, cookie);
            }
            if let Ok(address) = HeaderValue::from_str(&address.to_string()) {
                headers.insert(HeaderName::from_static("x-forwarded-for"), address);
            }
        }
        Question::Subscribe { channel, .. } => body.channel = Some(channel),
        Question::Publish { channel, payload, .. } => {
            body.channel = Some(channel);
            match payload.kind {
                PayloadKind::Json => body.data = Some(serde_json::from_slice(&payload.bytes).ok()?),
                PayloadKind::Text => body.text = Some(std::str::from_utf8(&payload.bytes).ok()?),
                PayloadKind::Binary => body.base64 = Some(STANDARD.encode(&payload.bytes)),
            }
        }
        Question::Message { kind, message, .. } => {
            body.r#type = Some(kind);
            body.message = Some(serde_json::from_slice(message).ok()?);
        }
        Question::Disconnect { code, reason, .. } => {
            (body.code, body.reason) = (Some(*code), Some(&**reason));
        }
        Question::Presence(_) | Question::Keys { .. } | Question::Rpc { .. } => return None,
    }
    let body = serde_json::to_vec(&body).ok()?;
    Some(Event { body: Some(body.into()), headers })
}

/// Who comes to channels and leaves them.
pub(super) fn presence(news: &News) -> Option<Event> {
    #[derive(Serialize)]
    struct Shown<'a> {
        change: &'static str,
        channel: &'a str,
        epoch: String,
        user: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<&'a RawValue>,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        event: &'static str,
        id: String,
        time: u64,
        lost: u64,
        changes: Vec<Shown<'a>>,
    }
    fn shown(change: &Change) -> Shown<'_> {
        let info = change.identity.info.as_deref();
        Shown {
            change: if change.joined { "join" } else { "leave" },
            channel: &change.channel,
            epoch: change.epoch.to_string(),
            user: &change.user,
            info: info.and_then(|info| serde_json::from_str(info).ok()),
        }
    }
    let body = Body {
        event: Hook::Presence.label(),
        id: format!("{:032x}", news.id),
        time: news.unix_s,
        lost: news.lost,
        changes: news.changes.iter().map(shown).collect(),
    };
    let body = Some(serde_json::to_vec(&body).ok()?.into());
    Some(Event { body, headers: HeaderMap::new() })
}

/// The fields that are forwarded, each once: values of one name are put together as RFC 9110, section 5.3, and for
/// cookies RFC 6265, section 5.4, say.
pub(super) fn forwarded<'a>(
    request: &'a ConnectRequest,
    forward: &[String],
) -> BTreeMap<&'a str, Cow<'a, [u8]>> {
    let mut fields: BTreeMap<&str, Cow<[u8]>> = BTreeMap::new();
    for (name, value) in &request.headers {
        if !forward.iter().any(|forward| forward.eq_ignore_ascii_case(name)) {
            continue;
        }
        let between: &[u8] = if &**name == "cookie" { b"; " } else { b", " };
        match fields.get_mut(&**name) {
            Some(values) => {
                let values = values.to_mut();
                values.extend_from_slice(between);
                values.extend_from_slice(value);
            }
            None => {
                fields.insert(name, Cow::Borrowed(value));
            }
        }
    }
    fields
}
