//! How other programs write what they publish.

use std::borrow::Cow;

use bytes::Bytes;
use ringfeed_protocol::command::{Payload, PayloadKind};
use ringfeed_protocol::foreign::portico::{self, Source};
use ringfeed_protocol::foreign::{ForeignError, fluxus};
use serde_json::value::RawValue;

use crate::config::{ForeignFormat, RedisChannel};
use crate::message::{Outgoing, StoredPayload};

/// What another program has published.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) payload: StoredPayload,
    /// For what stands for the wildcard, where the payload says that.
    channel: Option<String>,
    origin: Option<String>,
    /// When it was published there, in milliseconds since 1970.
    pub(super) time_ms: Option<u64>,
    /// The connection there that it comes from; 0 where that is unknown.
    pub(super) number: u32,
}

impl Read {
    fn new(kind: PayloadKind, bytes: Bytes) -> Read {
        let payload = StoredPayload { kind, bytes };
        Read { payload, channel: None, origin: None, time_ms: None, number: 0 }
    }

    /// What it says, however that was written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.payload.bytes
    }

    /// What stands for the wildcard in the name of a channel; `text` does in that of Redis.
    pub(super) fn channel<'a>(&'a self, text: &'a str) -> &'a str {
        self.channel.as_deref().unwrap_or(text)
    }

    /// Who has published it in Redis, where it says so.
    pub(super) fn origin(&self) -> Option<&String> {
        self.origin.as_ref()
    }
}

/// Reads what was published on a channel of Redis, at `now_ms` since 1970.
pub(super) fn read(
    entry: &RedisChannel,
    payload: &Bytes,
    now_ms: u64,
) -> Result<Read, ForeignError> {
    match entry.format {
        ForeignFormat::Plain => Ok(Read::new(kind(payload), payload.clone())),
        ForeignFormat::Fluxus => {
            let message = fluxus::read(payload)?;
            let data = Bytes::copy_from_slice(message.data.as_bytes());
            Ok(Read {
                channel: message.channel.map(Cow::into_owned),
                origin: message.origin.map(Cow::into_owned),
                time_ms: message.time_s.map(|seconds| seconds.saturating_mul(1000)),
                number: message.publisher,
                ..Read::new(PayloadKind::Json, data)
            })
        }
        ForeignFormat::Portico => {
            let source = Source::from_name(&entry.name).ok_or(ForeignError::Field("channel"))?;
            let told = portico::read(source, payload, now_ms)?;
            let read = Read::new(PayloadKind::Json, told.data.into());
            Ok(Read { channel: Some(told.room), ..read })
        }
    }
}

/// JSON where it is that, and every receiver can read it: it stands in frames of JSON as it is then. Else text, or bytes.
fn kind(payload: &[u8]) -> PayloadKind {
    let Ok(text) = std::str::from_utf8(payload) else { return PayloadKind::Binary };
    let json = serde_json::from_str::<&RawValue>(text).ok();
    match json.map(|json| Payload::from_fields(Some(json), None, None)) {
        Some(Ok(_)) => PayloadKind::Json,
        _ => PayloadKind::Text,
    }
}

/// Writes a publication as other programs know it, on the channel that they call `name`; `None` where they have no form for it.
pub(super) fn write(
    format: ForeignFormat,
    name: &str,
    Outgoing { payload, meta, .. }: &Outgoing,
    now_ms: u64,
    origin: &str,
) -> Option<Bytes> {
    match format {
        ForeignFormat::Plain => Some(payload.bytes.clone()),
        ForeignFormat::Fluxus => {
            let (time_ms, number) =
                meta.as_ref().map_or((now_ms, 0), |meta| (meta.time_ms, meta.number));
            let payload = (payload.kind, &payload.bytes[..]);
            Some(fluxus::write(name, payload, time_ms / 1000, number, origin).into())
        }
        // It does not listen.
        ForeignFormat::Portico => None,
    }
}
