//! Asking with a plain GET who connects: a page of the application that looks at the cookies of a request and answers with
//! the `id` of the user. Such pages were not written for ringfeed, so what they answer beside it may be about anything.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use ringfeed_protocol::printable::Detail;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answers::{ConnectAnswer, Verdict, bad_status, object, stated, wrong};
use super::client::Reply;
use super::event::{Event, forwarded};
use super::failure::Failure;
use crate::access::{Admitted, Identity};
use crate::message::{ConnectRequest, Denied};

/// Fields that say where a client is. What it writes there itself is not forwarded.
const ADDRESS_FIELDS: [&str; 2] = ["x-forwarded-for", "x-real-ip"];

/// The request: it carries the fields that are forwarded, each as it is.
pub(super) fn event(request: &ConnectRequest, forward: &[String]) -> Event {
    let mut headers = HeaderMap::new();
    let mut insert = |name: &str, value: &[u8]| {
        // Both were a header once: they can be one again.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
        {
            headers.insert(name, value);
        }
    };
    for (name, value) in forwarded(request, forward) {
        insert(name, &value);
    }
    let address = request.address.to_string();
    for name in ADDRESS_FIELDS {
        if forward.iter().any(|forward| forward.eq_ignore_ascii_case(name)) {
            insert(name, address.as_bytes());
        }
    }
    Event { body: None, headers }
}

#[derive(Deserialize)]
struct PlainAnswer<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    roles: Option<&'a RawValue>,
    #[serde(borrow)]
    permissions: Option<&'a RawValue>,
    #[serde(borrow)]
    channels: Option<&'a RawValue>,
    #[serde(borrow)]
    expires_at: Option<&'a RawValue>,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
}

/// A value of the kind that ours are; one of another kind is the application's own.
fn ours<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(value?.get()).ok()
}

/// Any status but 200 is a no.
pub(super) fn connect(
    reply: &Reply,
    token: &Identity,
    now: u64,
) -> Result<Verdict<Box<Admitted>>, Failure> {
    match reply.status {
        200 => {}
        status @ (429 | 500..=599) => return Err(bad_status(status)),
        _ => return Ok(Verdict::once(Err(unauthorized()))),
    }
    let text = std::str::from_utf8(&reply.body).map_err(|_| wrong("it is not UTF-8"))?;
    let said: PlainAnswer = object(text)?;
    let user = ours::<String>(said.id).filter(|id| !id.is_empty());
    let mut answer = ConnectAnswer {
        user: Some(user.ok_or_else(|| wrong("id is no text, or empty"))?),
        roles: ours(said.roles).unwrap_or_default(),
        channels: ours(said.channels).unwrap_or_default(),
        expires_at: ours(said.expires_at),
        info: said.info,
        ..ConnectAnswer::default()
    };
    // What may deny something must not be passed over.
    if let Some(permissions) = said.permissions.filter(|value| value.get().starts_with('{')) {
        answer.permissions = Some(object(permissions.get())?);
    }
    Ok(Verdict::once(Ok(stated(answer, token, now)?)))
}

fn unauthorized() -> Denied {
    Denied::Refused { status: 401, text: "Unauthorized".into() }
}

/// What a client is told before its WebSocket where there is no answer.
pub(super) fn denied(failure: &Failure) -> Denied {
    let (status, text) = match failure {
        Failure::Status(_) => return unauthorized(),
        Failure::BadAnswer(_) | Failure::TooLarge => (500, "Invalid auth response"),
        _ => (502, "Bad Gateway"),
    };
    Denied::Refused { status, text: Detail::from(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, body: &str) -> Result<Result<Box<Admitted>, Denied>, Failure> {
        let reply = Reply { status, body: body.as_bytes().to_vec() };
        connect(&reply, &Identity::default(), 7).map(|verdict| verdict.answer)
    }

    #[test]
    fn an_id_is_a_text_and_nothing_else() {
        for body in [
            "",
            "null",
            "[]",
            "{}",
            "{\"id\":7}",
            "{\"id\":\"\"}",
            "{\"id\":null}",
            "{\"user\":\"a\"}",
            "{\"id\":[\"a\"]}",
            "{\"id\":\"a\",\"id\":\"b\"}",
            "[\"a\"]",
            "\"a\"",
            "{\"id\":\"a\"",
        ] {
            let failure = said(200, body).unwrap_err();
            assert!(matches!(failure, Failure::BadAnswer(_)), "{body}: {failure:?}");
            let status = |denied| match denied {
                Denied::Refused { status, text } => (status, text.to_string()),
                other => panic!("{other:?}"),
            };
            assert_eq!(status(denied(&failure)), (500, "Invalid auth response".into()));
        }
        let admitted = said(200, " {\"id\":\"ann\",\"name\":\"Ann\"}").unwrap().unwrap();
        assert_eq!(admitted.identity.user.as_deref(), Some("ann"));
    }

    #[test]
    fn what_is_ours_is_taken_and_what_is_of_another_kind_passed_over() {
        let body = r#"{"id":"ann","roles":["editor"],"channels":["news"],"expires_at":99,
            "permissions":{"deny":{"publish":["news"]}},"info":{"a":1}}"#;
        let admitted = said(200, body).unwrap().unwrap();
        assert_eq!((admitted.channels.len(), admitted.identity.expires_at), (1, Some(99)));
        assert_eq!(admitted.identity.info.as_deref(), Some("{\"a\":1}"));
        let body = r#"{"id":"ann","roles":"admin","channels":{"a":1},"expires_at":"tomorrow",
            "permissions":["read"]}"#;
        let admitted = said(200, body).unwrap().unwrap();
        assert!(admitted.channels.is_empty() && admitted.identity.expires_at.is_none());
        for body in [
            r#"{"id":"ann","permissions":{"deny":{"publish":7}}}"#,
            r#"{"id":"ann","permissions":{"dney":{}}}"#,
            r#"{"id":"ann","roles":[""]}"#,
            r#"{"id":"ann","channels":["a b"]}"#,
        ] {
            assert!(matches!(said(200, body), Err(Failure::BadAnswer(_))), "{body}");
        }
    }

    #[test]
    fn any_status_but_200_is_a_no() {
        for status in [201, 204, 301, 302, 400, 401, 403, 404] {
            let denied = said(status, "{\"id\":\"ann\"}").unwrap().unwrap_err();
            assert_eq!(denied, unauthorized(), "{status}");
        }
        for status in [429, 500, 503] {
            let failure = said(status, "{\"id\":\"ann\"}").unwrap_err();
            assert!(failure.opens_breaker() && denied(&failure) == unauthorized(), "{status}");
        }
        let silent = denied(&Failure::Timeout);
        assert_eq!(silent, Denied::Refused { status: 502, text: "Bad Gateway".into() });
    }
}
