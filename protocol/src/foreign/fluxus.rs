//! What servers of Fluxus tell each other in Redis: the `message` that subscribers of a channel are sent, published on
//! `PREFIX.CHANNEL`.

use std::borrow::Cow;

use super::{ForeignError, Object, object};
use crate::command::PayloadKind;
use crate::dialect::fluxus;

/// A publication of another server, or of a program that does as one.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Where it is to be published; `None` where only the channel of Redis says that.
    pub channel: Option<Cow<'a, str>>,
    /// What, in JSON, as it came.
    pub data: &'a str,
    /// When it was published there, in seconds since 1970.
    pub time_s: Option<u64>,
    /// The publisher's connection there; 0 where it does not say.
    pub publisher: u32,
    /// Who has published it in Redis.
    pub origin: Option<Cow<'a, str>>,
}

/// Reads what was published in Redis.
///
/// # Errors
/// What keeps it from being a `message`: the original passes on any object, but clients make nothing of others.
pub fn read(payload: &[u8]) -> Result<Message<'_>, ForeignError> {
    let said = object(payload)?;
    if said.raw("type").is_some() && said.text("type").is_none_or(|kind| kind != "message") {
        return Err(ForeignError::Field("type"));
    }
    let meta = said.raw("_metadata").and_then(Object::parse).unwrap_or_default();
    let number = |name| meta.raw(name).and_then(|raw| raw.parse::<u64>().ok());
    Ok(Message {
        channel: said.text("channel").filter(|channel| !channel.is_empty()),
        data: said.raw("data").ok_or(ForeignError::Field("data"))?,
        time_s: number("timestamp"),
        publisher: number("publisher").and_then(|own| u32::try_from(own).ok()).unwrap_or(0),
        origin: meta.text("origin_server"),
    })
}

/// Writes what is to be published in Redis, in the name of `origin`, at `time_s` seconds since 1970.
pub fn write(
    channel: &str,
    (kind, bytes): (PayloadKind, &[u8]),
    time_s: u64,
    publisher: u32,
    origin: &str,
) -> Vec<u8> {
    fluxus::message(channel, (kind, bytes), time_s, publisher, origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As servers of Fluxus publish it.
    const MESSAGE: &str = r#"{"type":"message","channel":"news","data":{"message":"hi"},"_metadata":{"timestamp":1767000000,"publisher":3,"origin_server":"host1:4242"}}"#;

    #[test]
    fn a_message_is_written_as_it_is_read() {
        let message = read(MESSAGE.as_bytes()).unwrap();
        let expected = Message {
            channel: Some("news".into()),
            data: r#"{"message":"hi"}"#,
            time_s: Some(1_767_000_000),
            publisher: 3,
            origin: Some("host1:4242".into()),
        };
        assert_eq!(message, expected);
        let data = (PayloadKind::Json, message.data.as_bytes());
        let written = write("news", data, 1_767_000_000, 3, "host1:4242");
        assert_eq!(String::from_utf8(written).unwrap(), MESSAGE);
    }

    #[test]
    fn text_and_bytes_are_strings_there() {
        for (kind, bytes, data) in [
            (PayloadKind::Text, &b"a \"b\"\n"[..], r#""a \"b\"\n""#),
            (PayloadKind::Binary, b"\0\xff", r#""AP8=""#),
        ] {
            let written = write("ä b", (kind, bytes), 1, 0, "o");
            let message = read(&written).unwrap();
            assert_eq!((message.channel.as_deref(), message.data), (Some("ä b"), data));
        }
    }

    #[test]
    fn other_programs_may_say_less() {
        let least = read(br#"{"data":null}"#).unwrap();
        let expected =
            Message { channel: None, data: "null", time_s: None, publisher: 0, origin: None };
        assert_eq!(least, expected);
        let odd = r#"{"type":"message","channel":"","data":[ 1 ],"_metadata":{"timestamp":"x","publisher":-1}}"#;
        assert_eq!(read(odd.as_bytes()).unwrap(), Message { data: "[ 1 ]", ..expected });
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (payload, why) in [
            (&b"\xff"[..], ForeignError::NotText),
            (b"", ForeignError::NotAnObject),
            (b"[1]", ForeignError::NotAnObject),
            (b"{\"data\":1", ForeignError::NotAnObject),
            (br#"{"data":"\ud800"}"#, ForeignError::NotAnObject),
            (br#"{"type":"file_available","data":1}"#, ForeignError::Field("type")),
            (br#"{"type":7,"data":1}"#, ForeignError::Field("type")),
            (br#"{"type":"message"}"#, ForeignError::Field("data")),
        ] {
            assert_eq!(read(payload).unwrap_err(), why);
        }
    }
}
