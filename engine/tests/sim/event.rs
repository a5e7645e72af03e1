//! An event of `ringfeed.v1` as a client reads it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::judge::{Judge, Kind};

#[derive(Deserialize)]
pub(crate) struct Said<'a> {
    #[serde(rename = "type")]
    pub(crate) kind: &'a str,
    #[serde(borrow)]
    pub(crate) id: Option<&'a RawValue>,
    pub(crate) channel: Option<&'a str>,
    pub(crate) epoch: Option<&'a str>,
    pub(crate) offset: Option<u64>,
    pub(crate) recovered: Option<bool>,
    #[serde(borrow)]
    pub(crate) data: Option<&'a RawValue>,
    pub(crate) encoding: Option<&'a str>,
    /// The first offset of a gap, or the user who sends.
    #[serde(borrow)]
    pub(crate) from: Option<&'a RawValue>,
    pub(crate) to: Option<u64>,
    pub(crate) code: Option<&'a str>,
    #[serde(borrow)]
    pub(crate) publications: Option<Vec<Item<'a>>>,
    pub(crate) reconnect_ms: Option<u32>,
    pub(crate) connection: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
    pub(crate) user: Option<&'a str>,
    pub(crate) expires_in_ms: Option<u64>,
    pub(crate) version: Option<u64>,
    pub(crate) count: Option<u64>,
    pub(crate) connections: Option<u64>,
    #[serde(borrow)]
    users: Option<Vec<Person<'a>>>,
    pub(crate) next: Option<&'a str>,
    /// Whether it is to be confirmed, of a message.
    pub(crate) confirm: Option<bool>,
    pub(crate) in_time: Option<bool>,
    #[serde(borrow)]
    confirmed: Option<Vec<Person<'a>>>,
    #[serde(borrow)]
    missing: Option<Vec<Person<'a>>>,
}

/// A user, or a connection without one.
#[derive(Deserialize)]
struct Person<'a> {
    user: Option<&'a str>,
    connection: Option<&'a str>,
}

impl Person<'_> {
    fn name(&self) -> String {
        match (self.user, self.connection) {
            (Some(user), None) => format!("user:{user}"),
            (None, Some(connection)) => format!("connection:{connection}"),
            _ => "nobody".into(),
        }
    }
}

impl Said<'_> {
    /// Who is named, where anybody may be.
    pub(crate) fn names(&self) -> Option<Vec<String>> {
        Some(self.users.as_ref()?.iter().map(Person::name).collect())
    }

    /// Who has confirmed something.
    pub(crate) fn confirmed(&self) -> Option<Vec<String>> {
        Some(self.confirmed.as_ref()?.iter().map(Person::name).collect())
    }

    /// Who has not.
    pub(crate) fn missing(&self) -> Option<Vec<String>> {
        Some(self.missing.as_ref()?.iter().map(Person::name).collect())
    }
}

#[derive(Deserialize)]
pub(crate) struct Item<'a> {
    pub(crate) offset: u64,
    #[serde(borrow)]
    pub(crate) data: &'a RawValue,
    pub(crate) encoding: Option<&'a str>,
}

/// The payload behind `data`.
pub(crate) fn payload_of(
    data: &RawValue,
    encoding: Option<&str>,
    judge: &Judge,
) -> Option<Vec<u8>> {
    let text = data.get();
    if encoding == Some("base64") {
        return BASE64.decode(serde_json::from_str::<String>(text).ok()?).ok();
    }
    // A string is a JSON payload as it stands or a text; the publication's own kind tells.
    if text.starts_with('"') {
        let inner = serde_json::from_str::<String>(text).ok()?;
        let digits: String = inner.chars().take_while(char::is_ascii_digit).collect();
        let number = digits.parse::<u64>().ok().filter(|&n| n > 0);
        let kind = number.and_then(|n| judge.publications.get(n as usize - 1)).map(|p| p.kind);
        if kind != Some(Kind::Json) {
            return Some(inner.into_bytes());
        }
    }
    Some(text.as_bytes().to_vec())
}
