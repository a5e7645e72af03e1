//! What fuzz targets call: the parts of the API that read what clients send, without a server.

use ringfeed_protocol::command::PayloadKind;

use super::{api, ingest, publish};
use crate::message::Post;

/// A body of `/api/publish`. Whether it would be published.
pub fn publication(body: &[u8]) -> bool {
    let checked = publish::parse(body);
    if let Ok(Post { payload, .. }) = &checked {
        assert!(payload.bytes.len() <= body.len());
        if payload.kind == PayloadKind::Json {
            serde_json::from_slice::<serde::de::IgnoredAny>(&payload.bytes).expect("valid JSON");
        }
    }
    checked.is_ok()
}

/// A body of `/api/batch`.
pub fn batch(body: &[u8]) {
    let _ = serde_json::from_slice::<api::BatchBody>(body);
}

/// The body of `/api/ingest` in pieces. Which of its lines would be published.
pub fn ingest<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<bool> {
    let mut pending = ingest::Pending::default();
    let mut published = Vec::new();
    let mut publish = |run: &[u8]| {
        let lines = ingest::lines(run).map(<[u8]>::trim_ascii);
        published.extend(lines.filter(|line| !line.is_empty()).map(publication));
    };
    for piece in pieces {
        pending.push(piece);
        while let Some(run) = pending.take_run() {
            publish(&run);
        }
    }
    publish(&pending.take_rest());
    published
}
