//! What the application may answer.
//!
//! Whatever is not exactly that is a failure, and never a yes: another status, JSON of another shape, a value that is not
//! allowed. Only unknown fields are passed over.

use ringfeed_protocol::command::{Payload, present};
use ringfeed_protocol::printable::{DETAIL_BYTES_MAX, Detail};
use ringfeed_protocol::{ChannelName, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Reply;
use super::failure::Failure;
use crate::access::{self, Admitted, Grants, Identity, Statement};
use crate::message::{Denied, StoredPayload, SubscribeAllowed};

/// Entries of each list in an answer.
const ENTRIES_MAX: usize = 256;
/// Bytes of a role's name.
const ROLE_BYTES_MAX: usize = 255;
/// Bytes of `info`: it is kept for each connection, and shown to others.
const INFO_BYTES_MAX: usize = 4096;
/// Longest that an answer is remembered.
const CACHE_S_MAX: u64 = 3600;

/// What the application says.
#[derive(Debug)]
pub(super) struct Verdict<T> {
    /// Yes, with what belongs to it, or no.
    pub(super) answer: Result<T, Denied>,
    /// For how many seconds it holds for the same question.
    pub(super) cache_s: u64,
}

impl<T> Verdict<T> {
    /// For this once.
    pub(super) fn once(answer: Result<T, Denied>) -> Verdict<T> {
        Verdict { answer, cache_s: 0 }
    }
}

/// What every answer may have in common.
enum Common<'a> {
    /// Status 200.
    Object(&'a str),
    /// Status 401 or 403.
    No(Denied),
}

/// What connect may answer.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ConnectAnswer<'a> {
    pub(super) user: Option<String>,
    pub(super) roles: Vec<String>,
    pub(super) permissions: Option<Grants>,
    pub(super) channels: Vec<String>,
    pub(super) expires_at: Option<u64>,
    #[serde(borrow)]
    pub(super) info: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct SubscribeAnswer {
    allow: bool,
    expires_at: Option<u64>,
    cache_s: Option<u64>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct PublishAnswer<'a> {
    allow: bool,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    text: Option<String>,
    base64: Option<String>,
    cache_s: Option<u64>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct MessageAnswer<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    reply: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Refusal {
    message: Option<String>,
}

pub(super) fn wrong(why: &'static str) -> Failure {
    Failure::BadAnswer(why.into())
}

/// Reads an object. serde would take an array for one, too, its items for fields.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Failure> {
    if !text.trim_ascii_start().starts_with('{') {
        return Err(wrong("allowed is a JSON object"));
    }
    // What serde says may repeat what came.
    serde_json::from_str(text).map_err(|e| {
        let (line, column) = (e.line(), e.column());
        let what = if e.is_data() { "it holds a value of the wrong kind" } else { "it is no JSON" };
        Failure::BadAnswer(Detail::new(format_args!("{what}, line {line} column {column}")))
    })
}

fn common(reply: &Reply) -> Result<Common<'_>, Failure> {
    match reply.status {
        200 => match std::str::from_utf8(&reply.body) {
            Ok(text) => Ok(Common::Object(text)),
            Err(_) => Err(wrong("it is not UTF-8")),
        },
        status @ (401 | 403) => {
            Ok(Common::No(Denied::Refused { status, text: words(&reply.body) }))
        }
        status => Err(bad_status(status)),
    }
}

/// 429 and 5xx may be another one in a moment.
pub(super) fn bad_status(status: u16) -> Failure {
    match status {
        429 | 500..=599 => Failure::Status(status),
        _ => Failure::BadAnswer(Detail::new(format_args!("status {status}"))),
    }
}

/// What a refusal says to the client: its `message`, or a short text that is all of it.
fn words(body: &[u8]) -> Detail {
    let nothing = Detail::from("");
    let Ok(text) = std::str::from_utf8(body) else { return nothing };
    let text = text.trim();
    if text.starts_with('{') {
        let message = object::<Refusal>(text).ok().and_then(|refusal| refusal.message);
        return message.map_or(nothing, Detail::new);
    }
    // Longer ones, and those that are marked up, are pages for people in front of a browser.
    if text.len() > DETAIL_BYTES_MAX || text.starts_with('<') {
        return nothing;
    }
    Detail::new(text)
}

fn no(message: Option<String>) -> Denied {
    Denied::Refused { status: 403, text: message.map_or(Detail::from(""), Detail::new) }
}

/// JSON for clients.
fn json(value: &RawValue) -> Result<Box<str>, Failure> {
    Payload::from_fields(Some(value), None, None)
        .map_err(|_| wrong("a string escapes half a character"))?;
    Ok(value.get().into())
}

/// Of connect. What the answer leaves out stays as the caller's token says it; what it gives is added to that, but for
/// `user` and `info`, which take its place, and for the earlier end of the two.
pub(super) fn connect(
    reply: &Reply,
    token: &Identity,
    now: u64,
) -> Result<Verdict<Box<Admitted>>, Failure> {
    let answer: ConnectAnswer = match common(reply)? {
        Common::Object(text) => object(text)?,
        Common::No(denied) => return Ok(Verdict::once(Err(denied))),
    };
    Ok(Verdict::once(Ok(stated(answer, token, now)?)))
}

/// Who somebody is by an answer on top of what a token says.
pub(super) fn stated(
    answer: ConnectAnswer,
    token: &Identity,
    now: u64,
) -> Result<Box<Admitted>, Failure> {
    let mut stated = Statement { of: token.user.clone(), ..Statement::default() };
    if let Some(user) = &answer.user {
        stated.user = Some(UserId::new(user).map_err(|_| wrong("user is no user id"))?);
    }
    if answer.roles.len() > ENTRIES_MAX || answer.channels.len() > ENTRIES_MAX {
        return Err(wrong("a list has more than 256 entries"));
    }
    let is_role = |role: &String| {
        !role.is_empty() && role.len() <= ROLE_BYTES_MAX && !role.chars().any(char::is_control)
    };
    if !answer.roles.iter().all(is_role) {
        return Err(wrong("a role is no name"));
    }
    stated.attributes = answer.roles.iter().map(|role| access::role(role)).collect();
    stated.grants = answer.permissions.unwrap_or_default();
    stated.expires_at = answer.expires_at;
    if let Some(info) = answer.info {
        if info.get().len() > INFO_BYTES_MAX {
            return Err(wrong("info has more than 4096 bytes"));
        }
        stated.info = Some(json(info)?);
    }
    let channels = answer.channels.iter().map(|name| ChannelName::new(name));
    let channels: Vec<_> =
        channels.collect::<Result<_, _>>().map_err(|_| wrong("no channel name"))?;
    stated.grants.allow_channels(&channels);
    let mut identity = stated.onto(token.clone());
    if token.user.is_none() {
        // Nobody but the application vouches for it.
        identity.issued_at = now;
    }
    Ok(Box::new(Admitted { identity, channels, stated: Some(Box::new(stated)) }))
}

/// Of subscribe.
pub(super) fn subscribe(reply: &Reply) -> Result<Verdict<SubscribeAllowed>, Failure> {
    let answer: SubscribeAnswer = match common(reply)? {
        Common::Object(text) => object(text)?,
        Common::No(denied) => return Ok(Verdict::once(Err(denied))),
    };
    let said = match answer.allow {
        true => Ok(SubscribeAllowed { expires_at: answer.expires_at }),
        false => Err(no(answer.message)),
    };
    Ok(Verdict { answer: said, cache_s: answer.cache_s.unwrap_or(0).min(CACHE_S_MAX) })
}

/// Of publish. What is published instead may have so many bytes.
pub(super) fn publish(
    reply: &Reply,
    bytes_max: usize,
) -> Result<Verdict<Option<StoredPayload>>, Failure> {
    let answer: PublishAnswer = match common(reply)? {
        Common::Object(text) => object(text)?,
        Common::No(denied) => return Ok(Verdict::once(Err(denied))),
    };
    let mut cache_s = answer.cache_s.unwrap_or(0).min(CACHE_S_MAX);
    if !answer.allow {
        return Ok(Verdict { answer: Err(no(answer.message)), cache_s });
    }
    let PublishAnswer { data, text, base64, .. } = answer;
    let mut instead = None;
    if data.is_some() || text.is_some() || base64.is_some() {
        let payload = Payload::from_fields(data, text.map(Into::into), base64.map(Into::into));
        let payload = payload.map_err(|_| wrong("what to publish instead is none"))?;
        if payload.bytes.len() > bytes_max {
            return Err(wrong("what to publish instead is larger than limits.message_bytes_max"));
        }
        instead = Some(StoredPayload::from(payload));
        // It is for this publication alone.
        cache_s = 0;
    }
    Ok(Verdict { answer: Ok(instead), cache_s })
}

/// Of message.
pub(super) fn message(reply: &Reply) -> Result<Verdict<Option<Box<str>>>, Failure> {
    if reply.status == 204 {
        return Ok(Verdict::once(Ok(None)));
    }
    match common(reply)? {
        Common::Object(text) => {
            let MessageAnswer { reply } = object(text)?;
            Ok(Verdict::once(Ok(reply.map(json).transpose()?)))
        }
        Common::No(denied) => Ok(Verdict::once(Err(denied))),
    }
}

/// Of disconnect: any 2xx.
pub(super) fn disconnect(reply: &Reply) -> Result<Verdict<()>, Failure> {
    match reply.status {
        200..=299 => Ok(Verdict::once(Ok(()))),
        status => Err(bad_status(status)),
    }
}
