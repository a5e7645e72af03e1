//! `ringfeed.v1`: JSON text both ways. `docs/PROTOCOL.md` shows every command and event; its
//! examples are test vectors (`tests/vectors.rs`).

use std::borrow::Cow;
use std::io::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::call::METHOD_BYTES_MAX;
use crate::command::{
    Action, Command, CommandError, KIND_BYTES_MAX, Payload, PayloadKind, present,
};
use crate::event::{Epoch, Meta, Offset, Position, Publication};
use crate::frame::{self, Opcode};
use crate::idempotency_key::IdempotencyKey;
use crate::json::has_lone_surrogate;
use crate::printable::{Detail, Printable};
use crate::refused::Refused;

use super::raw::{write_json, write_string};

mod events;

pub(crate) use events::write_event;

/// Longest JSON text of an id.
const ID_BYTES_MAX: usize = 64;

const COMMANDS: &str =
    "auth, subscribe, unsubscribe, publish, confirm, send, history, presence, rpc, ping";

/// Every field that any command has. `data` is validated but kept as it came. Unknown fields are
/// ignored, so that a newer client can speak to an older server.
#[derive(Deserialize)]
pub(super) struct Fields<'a> {
    #[serde(rename = "type", alias = "action", borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    base64: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) recover: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(borrow, default)]
    after: Option<&'a RawValue>,
    #[serde(default)]
    limit: Option<u32>,
    // Those of `rpc` are looked at where it is one: messages that only the application knows may mean something else by them.
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timeout_ms: Option<&'a RawValue>,
    // That of `subscribe`, those of `publish` and those of `confirm`, likewise.
    #[serde(borrow, default)]
    password: Option<&'a RawValue>,
    #[serde(borrow, default)]
    confirm_ms: Option<&'a RawValue>,
    #[serde(borrow, default)]
    idempotency_key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    epoch: Option<&'a RawValue>,
    #[serde(borrow, default)]
    offset: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Recover<'a> {
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    offset: u64,
}

#[derive(Deserialize)]
struct IdOnly<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Fields<'a>, CommandError<'a>> {
        if !text.trim_start().starts_with('{') {
            let refused = Refused::bad_json(
                "a command is a JSON object and begins with '{'; several stand in one list",
            );
            return Err(CommandError { id: None, refused });
        }
        let fields: Fields<'a> = serde_json::from_str(text).map_err(|e| {
            let id = serde_json::from_str::<IdOnly>(text).ok().and_then(|only| only.id);
            CommandError { id: id.and_then(valid_id), refused: Refused::from_json_error(&e) }
        })?;
        if fields.id.is_some_and(|id| valid_id(id).is_none()) {
            let refused = Refused::bad_command(format_args!(
                "'id' must be a number or a string of at most {ID_BYTES_MAX} bytes"
            ));
            return Err(CommandError { id: None, refused });
        }
        Ok(fields)
    }

    /// The command's name.
    pub(super) fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    pub(super) fn subscribe(mut self) -> Result<Command<'a>, CommandError<'a>> {
        let recover = match self.recover.map(RawValue::get) {
            None => None,
            // Not an array of the two, which serde would take.
            Some(text) if text.starts_with('{') => match serde_json::from_str::<Recover>(text) {
                Ok(Recover { epoch, offset }) => match epoch.parse::<Epoch>() {
                    Ok(epoch) => Some(Position { epoch, offset: Offset(offset) }),
                    Err(()) => {
                        return Err(self.bad("'recover.epoch' must be 16 hexadecimal digits"));
                    }
                },
                Err(e) => return Err(self.bad(format_args!("'recover': {e}"))),
            },
            Some(_) => return Err(self.bad("'recover' must be an object with epoch and offset")),
        };
        let password = match self.password.map(|own| serde_json::from_str::<Cow<str>>(own.get())) {
            None => None,
            Some(Ok(password)) => Some(password),
            Some(Err(_)) => return Err(self.bad("'password' must be a string")),
        };
        let token = self.token.take();
        self.with_channel(|channel| Action::Subscribe { channel, recover, token, password })
    }

    pub(super) fn unsubscribe(self) -> Result<Command<'a>, CommandError<'a>> {
        self.with_channel(|channel| Action::Unsubscribe { channel })
    }

    fn publish(mut self) -> Result<Command<'a>, CommandError<'a>> {
        let payload = Payload::from_fields(self.data, self.text.take(), self.base64.take())
            .map_err(|refused| CommandError { id: self.id(), refused })?;
        let (echo, confirm_ms) =
            (self.echo.unwrap_or(true), self.millis("confirm_ms", self.confirm_ms)?);
        if confirm_ms.is_some() && self.id().is_none() {
            return Err(self.bad("'id' is missing: its reply says which publication is confirmed"));
        }
        let key = self.idempotency_key()?;
        self.with_channel(|channel| Action::Publish { channel, payload, echo, confirm_ms, key })
    }

    fn idempotency_key(&self) -> Result<Option<IdempotencyKey>, CommandError<'a>> {
        let Some(given) = self.idempotency_key else { return Ok(None) };
        match serde_json::from_str::<Cow<str>>(given.get()) {
            Ok(key) => IdempotencyKey::new(&key).map(Some).map_err(|e| self.bad(e)),
            Err(_) => Err(self.bad("'idempotency_key' must be a string")),
        }
    }

    fn confirm(self) -> Result<Command<'a>, CommandError<'a>> {
        let offset = self.offset.and_then(|own| own.get().parse::<u64>().ok()).map(Offset);
        let Some(offset) = offset.filter(|&offset| offset != Offset::NONE) else {
            return Err(self.bad("'offset' must be that of a publication"));
        };
        let epoch = self.epoch.map(|own| {
            let text = serde_json::from_str::<Cow<str>>(own.get()).ok();
            let epoch = text.and_then(|text| text.parse::<Epoch>().ok());
            epoch.ok_or_else(|| self.bad("'epoch' must be 16 hexadecimal digits"))
        });
        let epoch = epoch.transpose()?;
        self.with_channel(|channel| Action::Confirm { channel, epoch, offset })
    }

    /// A time in milliseconds, where there is one.
    fn millis(
        &self,
        name: &str,
        value: Option<&RawValue>,
    ) -> Result<Option<u32>, CommandError<'a>> {
        match value.map(|own| own.get().parse::<u32>()) {
            None => Ok(None),
            Some(Ok(millis)) if millis > 0 => Ok(Some(millis)),
            Some(_) => {
                let most = u32::MAX;
                Err(self.bad(format_args!("'{name}' must be a whole number from 1 to {most}")))
            }
        }
    }

    pub(super) fn auth(self) -> Command<'a> {
        Command { id: self.id(), action: Action::Auth { token: self.token } }
    }

    fn send(mut self) -> Result<Command<'a>, CommandError<'a>> {
        let payload = Payload::from_fields(self.data, self.text.take(), self.base64.take())
            .map_err(|refused| CommandError { id: self.id(), refused })?;
        match self.user.take() {
            Some(user) => Ok(Command { id: self.id(), action: Action::Send { user, payload } }),
            None => Err(self.bad("'user' is missing")),
        }
    }

    fn rpc(self) -> Result<Command<'a>, CommandError<'a>> {
        let Some(id) = self.id() else {
            return Err(self.bad("'id' is missing: by it the result finds who has called"));
        };
        let method = self.method.and_then(|own| serde_json::from_str::<Cow<str>>(own.get()).ok());
        let Some(method) = method.filter(|own| (1..=METHOD_BYTES_MAX).contains(&own.len())) else {
            return Err(self
                .bad(format_args!("'method' must be a string of 1 to {METHOD_BYTES_MAX} bytes")));
        };
        let timeout_ms = self.millis("timeout_ms", self.timeout_ms)?;
        let params = self.params.map(RawValue::get);
        if params.is_some_and(|params| !params.starts_with('{')) {
            return Err(self.bad("'params' must be an object"));
        }
        if params.is_some_and(has_lone_surrogate) {
            let refused = Refused::bad_json(
                "'params' escapes half a character: \\ud800 to \\udfff stand in pairs only",
            );
            return Err(CommandError { id: Some(id), refused });
        }
        let params = params.map(Cow::Borrowed);
        Ok(Command { id: Some(id), action: Action::Rpc { method, params, timeout_ms } })
    }

    /// A type that the dialect does not have: somebody else may know it.
    fn other(mut self, message: &'a str) -> Result<Command<'a>, CommandError<'a>> {
        let CommandError { id, refused } = self.unknown("ringfeed.v1", COMMANDS);
        if has_lone_surrogate(message) {
            // Whoever knows the type could not read it.
            return Err(CommandError {
                id,
                refused: Refused::bad_json(
                    "it escapes half a character: \\ud800 to \\udfff stand in pairs only",
                ),
            });
        }
        match self.kind.take() {
            // Longer ones are nobody's.
            Some(kind) if kind.len() <= KIND_BYTES_MAX => {
                let message = Cow::Borrowed(message);
                let otherwise = Err(refused);
                Ok(Command { id, action: Action::Other { kind, message, otherwise } })
            }
            _ => Err(CommandError { id, refused }),
        }
    }

    fn history(self) -> Result<Command<'a>, CommandError<'a>> {
        let (after, limit) = (self.after::<u64>()?.map(Offset), self.limit);
        self.with_channel(|channel| Action::History { channel, after, limit })
    }

    fn presence(self) -> Result<Command<'a>, CommandError<'a>> {
        // Whatever is escaped in it: what it holds is copied, as serde borrows no more than a plain text.
        let (after, limit) = (self.after::<String>()?.map(Cow::Owned), self.limit);
        self.with_channel(|channel| Action::Presence { channel, after, limit })
    }

    /// From where to go on: an offset, or somebody.
    fn after<T: Deserialize<'a>>(&self) -> Result<Option<T>, CommandError<'a>> {
        let read = |raw: &'a RawValue| {
            serde_json::from_str(raw.get()).map_err(|e| self.bad(format_args!("'after': {e}")))
        };
        self.after.map(read).transpose()
    }

    pub(super) fn unknown(&self, dialect: &'static str, allowed: &'static str) -> CommandError<'a> {
        let refused = match self.kind() {
            None => Refused::bad_command(format_args!("'type' is missing; allowed are {allowed}")),
            Some(kind) => {
                let given = Detail::new(Printable::name(kind));
                Refused::UnknownCommand { given, allowed, dialect }
            }
        };
        CommandError { id: self.id(), refused }
    }

    fn with_channel(
        mut self,
        action: impl FnOnce(Cow<'a, str>) -> Action<'a>,
    ) -> Result<Command<'a>, CommandError<'a>> {
        match self.channel.take() {
            Some(channel) => Ok(Command { id: self.id(), action: action(channel) }),
            None => Err(self.bad("'channel' is missing")),
        }
    }

    fn id(&self) -> Option<&'a str> {
        self.id.and_then(valid_id)
    }

    fn bad(&self, detail: impl std::fmt::Display) -> CommandError<'a> {
        CommandError { id: self.id(), refused: Refused::bad_command(detail) }
    }
}

/// A number or a string, short enough to be kept with a pending request, and whole: it is sent back.
fn valid_id(id: &RawValue) -> Option<&str> {
    let text = id.get();
    let kind = text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit());
    (kind && text.len() <= ID_BYTES_MAX && !has_lone_surrogate(text)).then_some(text)
}

/// The commands of a list.
pub(super) fn split(text: &str) -> Option<Result<Vec<&str>, CommandError<'_>>> {
    if !text.trim_start().starts_with('[') {
        return None;
    }
    let split = || {
        let list: Vec<&RawValue> =
            serde_json::from_str(text).map_err(|e| Refused::from_json_error(&e))?;
        if list.is_empty() {
            return Err(Refused::bad_command("a list of commands holds at least one"));
        }
        Ok(list.into_iter().map(RawValue::get).collect())
    };
    Some(split().map_err(|refused| CommandError { id: None, refused }))
}

pub(super) fn parse(text: &str) -> Result<Command<'_>, CommandError<'_>> {
    let fields = Fields::parse(text)?;
    match fields.kind() {
        Some("subscribe") => fields.subscribe(),
        Some("unsubscribe") => fields.unsubscribe(),
        Some("publish") => fields.publish(),
        Some("confirm") => fields.confirm(),
        Some("history") => fields.history(),
        Some("presence") => fields.presence(),
        Some("ping") => Ok(Command { id: fields.id(), action: Action::Ping }),
        Some("send") => fields.send(),
        Some("auth") => Ok(fields.auth()),
        Some("rpc") => fields.rpc(),
        _ => fields.other(text),
    }
}

/// `{"type":"message","channel":C,"offset":N,"data":D}`; a payload that is not JSON is embedded as
/// a string, bytes as base64 with `"encoding":"base64"`.
pub(crate) fn write_publication(out: &mut Vec<u8>, channel: &str, publication: &Publication) {
    const HEAD: &str = "{\"type\":\"message\",\"channel\":\"";
    const OFFSET: &str = "\",\"offset\":";
    const DATA: &str = ",\"data\":";
    if publication.kind == PayloadKind::Json && publication.meta.is_none() {
        // The hot path: the length is known beforehand, so the payload is copied once.
        let mut digits = Decimal::default();
        let offset = digits.format(publication.offset.0);
        let len = HEAD.len()
            + channel.len()
            + OFFSET.len()
            + offset.len()
            + DATA.len()
            + publication.bytes.len()
            + 1;
        out.reserve(len + frame::HEADER_BYTES_MAX);
        frame::write_server_header(out, Opcode::Text, len);
        out.extend_from_slice(HEAD.as_bytes());
        out.extend_from_slice(channel.as_bytes());
        out.extend_from_slice(OFFSET.as_bytes());
        out.extend_from_slice(offset);
        out.extend_from_slice(DATA.as_bytes());
        out.extend_from_slice(publication.bytes);
        out.push(b'}');
        return;
    }
    let mut body = format!("{HEAD}{channel}{OFFSET}{}", publication.offset).into_bytes();
    write_meta(&mut body, publication.meta);
    write_data(&mut body, publication.kind, publication.bytes);
    body.push(b'}');
    frame::write_server(out, Opcode::Text, &body);
}

/// Appends `,"from":…` and `,"time":…` where they are known, and `,"confirm":true` where that is asked for.
fn write_meta(body: &mut Vec<u8>, meta: Option<&Meta>) {
    let Some(Meta { time_ms, user, confirm, .. }) = meta else { return };
    if let Some(user) = user {
        body.extend_from_slice(b",\"from\":");
        write_string(body, user);
    }
    // Writing to a `Vec` cannot fail.
    let _ = write!(body, ",\"time\":{time_ms}");
    if *confirm {
        body.extend_from_slice(b",\"confirm\":true");
    }
}

/// Appends `,"data":…` and, for bytes, `,"encoding":"base64"`.
fn write_data(body: &mut Vec<u8>, kind: PayloadKind, bytes: &[u8]) {
    body.extend_from_slice(b",\"data\":");
    write_json(body, kind, bytes);
    if kind == PayloadKind::Binary {
        body.extend_from_slice(b",\"encoding\":\"base64\"");
    }
}

/// A number in decimal without an allocation.
#[derive(Default)]
struct Decimal([u8; 20]);

impl Decimal {
    fn format(&mut self, mut number: u64) -> &[u8] {
        let mut start = self.0.len();
        for (at, place) in self.0.iter_mut().enumerate().rev() {
            // A single digit fits any integer type.
            *place = b'0' + (number % 10) as u8;
            number /= 10;
            start = at;
            if number == 0 {
                break;
            }
        }
        self.0.get(start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use proptest::prelude::*;

    fn refused(text: &str) -> (ErrorCode, Option<&str>) {
        match parse(text).and_then(Command::or_refused) {
            Err(e) => (e.refused.code(), e.id),
            Ok(command) => panic!("{text} was accepted as {command:?}"),
        }
    }

    #[test]
    fn a_list_holds_commands() {
        assert!(split(r#"{"type":"ping"}"#).is_none());
        let list = split(r#" [{"type":"ping"}, {"type":"auth"},[] ,7]"#).unwrap().unwrap();
        assert_eq!(list, [r#"{"type":"ping"}"#, r#"{"type":"auth"}"#, "[]", "7"]);
        for (bad, code) in
            [("[", ErrorCode::BadJson), ("[1,]", ErrorCode::BadJson), ("[]", ErrorCode::BadCommand)]
        {
            assert_eq!(split(bad).unwrap().unwrap_err().refused.code(), code, "{bad}");
        }
        // Lists do not stand in lists.
        assert_eq!(refused("[]").0, ErrorCode::BadJson);
    }

    #[test]
    fn broken_json_anywhere_is_refused() {
        for text in [
            "",
            "{",
            "nonsense",
            "[\"subscribe\"]",
            r#"{"type":"publish","channel":"a","data":{"a":}}"#,
            r#"{"type":"publish","channel":"a","data":[1,2}"#,
            r#"{"type":"publish","channel":"a","data":tru}"#,
            r#"{"type":"publish","channel":"a","data":"\x"}"#,
            r#"{"type":"publish","channel":"a","data":1} trailing"#,
            r#"{"type":"publish","channel":"a","data":"\ud800"}"#,
            r#"{"type":"publish","channel":"a","data":{"\udc00":[]}}"#,
            r#"{"type":"publish","channel":"a","text":"\ud800"}"#,
        ] {
            assert_eq!(refused(text).0, ErrorCode::BadJson, "{text}");
        }
    }

    #[test]
    fn a_bad_field_is_told_with_the_id() {
        for (text, code) in [
            (r#"{"type":"subscribe","id":7}"#, ErrorCode::BadCommand),
            (r#"{"type":"subscribe","id":7,"channel":5}"#, ErrorCode::BadCommand),
            (
                r#"{"id":7,"type":"subscribe","channel":"a","recover":{"epoch":"x","offset":1}}"#,
                ErrorCode::BadCommand,
            ),
            (
                r#"{"id":7,"type":"subscribe","channel":"a","recover":{"offset":-1}}"#,
                ErrorCode::BadCommand,
            ),
            (
                r#"{"id":7,"type":"subscribe","channel":"a","recover":["00c0ffee00c0ffee",1]}"#,
                ErrorCode::BadCommand,
            ),
            (r#"{"id":7,"type":"publish","channel":"a"}"#, ErrorCode::BadCommand),
            (
                r#"{"id":7,"type":"publish","channel":"a","data":1,"text":""}"#,
                ErrorCode::BadCommand,
            ),
            (r#"{"id":7,"type":"publish","channel":"a","base64":"%%"}"#, ErrorCode::BadCommand),
            (r#"{"id":7,"type":"fly"}"#, ErrorCode::UnknownCommand),
            (r#"{"id":7}"#, ErrorCode::BadCommand),
        ] {
            assert_eq!(refused(text), (code, Some("7")), "{text}");
        }
        assert_eq!(refused(r#"{"id":[1],"type":"ping"}"#).0, ErrorCode::BadCommand);
        assert_eq!(refused(r#"{"id":"\ud800","type":"ping"}"#), (ErrorCode::BadCommand, None));
    }

    #[test]
    fn an_error_does_not_repeat_what_came() {
        let long = "\u{7f}".repeat(64_000);
        for text in [
            format!(r#"{{"type":"subscribe","id":7,"channel":"a","recover":"{long}"}}"#),
            format!(
                r#"{{"type":"subscribe","id":7,"channel":"a","recover":{{"offset":"{long}"}}}}"#
            ),
            format!(r#"{{"type":"history","id":7,"channel":"a","after":"{long}"}}"#),
            format!(r#"{{"type":"presence","id":7,"channel":"a","after":["{long}"]}}"#),
            format!(r#"{{"type":"{long}","id":7}}"#),
            format!(r#"{{"type":"publish","id":7,"channel":"a","base64":"{long}"}}"#),
            format!(r#"{{"type":"history","id":7,"channel":"a","limit":"{long}"}}"#),
        ] {
            let refused = parse(&text).and_then(Command::or_refused).unwrap_err();
            let message = refused.refused.to_string();
            assert_eq!(refused.id, Some("7"));
            assert!(message.len() < 250, "{} bytes are told of {}", message.len(), text.len());
            assert!(!message.chars().any(char::is_control), "{message}");
        }
    }

    #[test]
    fn deep_nesting_does_not_recurse() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        let text = format!(r#"{{"type":"publish","channel":"a","data":{deep}}}"#);
        assert!(parse(&text).is_ok());
    }

    #[test]
    fn null_is_data() {
        let command = parse(r#"{"type":"publish","channel":"a","data":null}"#).unwrap();
        let Action::Publish { payload, .. } = command.action else { panic!() };
        assert_eq!(&*payload.bytes, b"null");
    }

    proptest! {
        #[test]
        fn any_text_is_answered_and_never_panics(text in ".{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn every_kind_of_payload_is_embedded_as_valid_json(
            text in ".{0,40}",
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            offset in any::<u64>(),
        ) {
            let json = serde_json::to_string(&text).unwrap();
            for (kind, payload) in [
                (PayloadKind::Json, json.as_bytes()),
                (PayloadKind::Text, text.as_bytes()),
                (PayloadKind::Binary, &bytes),
            ] {
                let mut out = Vec::new();
                let publication = Publication { offset: Offset(offset), kind, bytes: payload, meta: None };
                write_publication(&mut out, "ch", &publication);
                let (header, len) = frame::Header::parse(&out).unwrap().unwrap();
                prop_assert_eq!(header.len as usize, out.len() - len);
                let value: serde_json::Value = serde_json::from_slice(&out[len..]).unwrap();
                prop_assert_eq!(&value["offset"], offset);
                match kind {
                    PayloadKind::Binary => {
                        let data = BASE64.decode(value["data"].as_str().unwrap()).unwrap();
                        prop_assert_eq!(&data, &bytes);
                        prop_assert_eq!(&value["encoding"], "base64");
                    }
                    _ => prop_assert_eq!(&value["data"], &text),
                }
            }
        }
    }
}
