//! What PorticoEstate itself has to say to clients: in Redis, and in files where it cannot reach that. To everybody, to a
//! session, to who looks at an entity, to a user: each a room.

use super::{ForeignError, Object, object};
use crate::date::iso_seconds;
use crate::dialect::object::quoted;
use crate::dialect::portico::{ALL, entity_room, session_room};

/// A channel of Redis on which PorticoEstate publishes; their names are fixed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `notifications`: to all, or to what `target` names.
    Notifications,
    /// `session_messages`: to a session.
    SessionMessages,
    /// `room_messages`: to the room that `roomId` names.
    RoomMessages,
}

impl Source {
    /// Each of them.
    pub const ALL: [Source; 3] =
        [Source::Notifications, Source::SessionMessages, Source::RoomMessages];

    /// As Redis knows it.
    pub fn name(self) -> &'static str {
        match self {
            Source::Notifications => "notifications",
            Source::SessionMessages => "session_messages",
            Source::RoomMessages => "room_messages",
        }
    }

    /// By [`Source::name`].
    pub fn from_name(name: &str) -> Option<Source> {
        Source::ALL.into_iter().find(|source| source.name() == name)
    }
}

/// What a room is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// The room, as clients know it.
    pub room: String,
    /// What, in JSON.
    pub data: String,
}

/// Reads what was published in Redis, at `now_ms` since 1970.
///
/// # Errors
/// What keeps it from being for anybody. `update_partial_applications` is for nobody either: it asks for what only the
/// application knows.
pub fn read(source: Source, payload: &[u8], now_ms: u64) -> Result<Told, ForeignError> {
    let said = object(payload)?;
    match source {
        Source::Notifications => notification(&said, now_ms),
        Source::SessionMessages => session_message(&said, now_ms),
        Source::RoomMessages => {
            let room = said.text("roomId").filter(|room| !room.is_empty());
            let room = room.ok_or(ForeignError::Field("roomId"))?.into_owned();
            Ok(Told { room, data: said.with(&[]) })
        }
    }
}

fn notification(said: &Object, now_ms: u64) -> Result<Told, ForeignError> {
    let part = |name| {
        let part = said.name(name).filter(|part| !part.is_empty());
        part.ok_or(ForeignError::Field(name))
    };
    match said.text("target").as_deref() {
        None if said.raw("target").is_none_or(|raw| raw == "null") => {
            let time = quoted(&iso_seconds(now_ms));
            Ok(to_all(said, &[("source", "\"redis\""), ("received_at", &time)]))
        }
        Some("session") => Ok(in_session(said, &part("sessionId")?)),
        Some("entity") => {
            let room = entity_room(said).ok_or(ForeignError::Field("entityType"))?;
            Ok(in_room(said, room))
        }
        Some("user") => {
            let room = format!("user_{}_{}", part("userType")?, part("identifier")?);
            Ok(Told { room, data: said.with(&[]) })
        }
        // What is for somebody must not go to everybody.
        _ => Err(ForeignError::Field("target")),
    }
}

fn session_message(said: &Object, now_ms: u64) -> Result<Told, ForeignError> {
    let session = said.name("sessionId").filter(|session| !session.is_empty());
    let session = session.ok_or(ForeignError::Field("sessionId"))?;
    match said.text("type").as_deref() {
        Some("session_targeted") => {
            let data = said.raw("data").and_then(Object::parse);
            Ok(in_session(&data.ok_or(ForeignError::Field("data"))?, &session))
        }
        Some("refresh_bookinguser") => {
            let field = |name, otherwise: &str| {
                quoted(&said.text(name).unwrap_or_else(|| otherwise.into()))
            };
            let data = format!(
                "{{\"type\":\"refresh_bookinguser\",\"message\":{},\"action\":{},\"timestamp\":\"{}\"}}",
                field("message", "Booking user updated"),
                field("action", "refresh"),
                iso_seconds(now_ms)
            );
            Ok(Told { room: session_room(&session), data })
        }
        _ => Err(ForeignError::Field("type")),
    }
}

/// What everybody is to be sent, with some fields, given as JSON, in the place of its own or behind them.
pub fn to_all(said: &Object, fields: &[(&str, &str)]) -> Told {
    Told { room: ALL.to_owned(), data: said.with(fields) }
}

/// What the room of a session is to be sent, with `roomId`; a `server_message` is known without it.
pub fn in_session(said: &Object, session: &str) -> Told {
    let room = session_room(session);
    if said.text("type").is_some_and(|kind| kind == "server_message") {
        return Told { room, data: said.with(&[]) };
    }
    in_room(said, room)
}

/// What a room is to be sent, with `roomId`.
fn in_room(said: &Object, room: String) -> Told {
    let data = said.with(&[("roomId", &quoted(&room))]);
    Told { room, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_747_050_860_007;

    #[test]
    fn each_is_for_whom_it_names() {
        let (all, session, room) =
            (Source::Notifications, Source::SessionMessages, Source::RoomMessages);
        for (source, payload, to, data) in [
            (
                all,
                r#"{"type":"notification","n":1.50,"source":"x","target":null}"#,
                "all",
                r#"{"type":"notification","n":1.50,"target":null,"source":"redis","received_at":"2025-05-12T11:54:20+00:00"}"#,
            ),
            (
                all,
                r#"{"target":"entity","entityType":"resource","entityId":42,"a":[1]}"#,
                "entity_resource_42",
                r#"{"target":"entity","entityType":"resource","entityId":42,"a":[1],"roomId":"entity_resource_42"}"#,
            ),
            (
                all,
                r#"{"target":"session","sessionId":"ab c","roomId":7}"#,
                "session_ab c",
                r#"{"target":"session","sessionId":"ab c","roomId":"session_ab c"}"#,
            ),
            (
                all,
                r#"{"target":"session","sessionId":"a","type":"server_message"}"#,
                "session_a",
                r#"{"target":"session","sessionId":"a","type":"server_message"}"#,
            ),
            (
                all,
                r#"{"target":"user","userType":"bb_user","identifier":7}"#,
                "user_bb_user_7",
                r#"{"target":"user","userType":"bb_user","identifier":7}"#,
            ),
            (
                session,
                r#"{"type":"session_targeted","sessionId":"a","message":"m","data":{"type":"x"}}"#,
                "session_a",
                r#"{"type":"x","roomId":"session_a"}"#,
            ),
            (
                session,
                r#"{"type":"refresh_bookinguser","sessionId":"a","message":"m \"n\""}"#,
                "session_a",
                r#"{"type":"refresh_bookinguser","message":"m \"n\"","action":"refresh","timestamp":"2025-05-12T11:54:20+00:00"}"#,
            ),
            (
                room,
                r#"{"type":"room_message","roomId":"entity_x_1","action":"updated"}"#,
                "entity_x_1",
                r#"{"type":"room_message","roomId":"entity_x_1","action":"updated"}"#,
            ),
        ] {
            let told = read(source, payload.as_bytes(), NOW_MS).unwrap();
            assert_eq!((&*told.room, &*told.data), (to, data), "{payload}");
        }
    }

    #[test]
    fn what_is_for_nobody_is_refused() {
        let (all, session, room) =
            (Source::Notifications, Source::SessionMessages, Source::RoomMessages);
        for (source, payload, field) in [
            (all, r#"{"target":"session"}"#, "sessionId"),
            (all, r#"{"target":"session","sessionId":""}"#, "sessionId"),
            (all, r#"{"target":"entity","entityType":"x"}"#, "entityType"),
            (all, r#"{"target":"user","userType":"x"}"#, "identifier"),
            (all, r#"{"target":"planet"}"#, "target"),
            (all, r#"{"target":7}"#, "target"),
            (session, r#"{"type":"session_targeted","data":{}}"#, "sessionId"),
            (session, r#"{"type":"session_targeted","sessionId":"a","data":[]}"#, "data"),
            (session, r#"{"type":"update_partial_applications","sessionId":"a"}"#, "type"),
            (room, r#"{"type":"room_message"}"#, "roomId"),
        ] {
            let refused = read(source, payload.as_bytes(), NOW_MS).unwrap_err();
            assert_eq!(refused, ForeignError::Field(field), "{payload}");
        }
        for source in Source::ALL {
            assert_eq!(read(source, b"null", 0), Err(ForeignError::NotAnObject));
            assert_eq!(Source::from_name(source.name()), Some(source));
        }
    }
}
