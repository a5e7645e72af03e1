//! `/api/rooms`: rooms are made, changed, looked at and ended.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State as FromState};
use ringfeed_protocol::{ChannelName, ErrorCode, Refused, UserId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::body::Collected;
use super::error::{ApiError, Code};
use super::guard::check_channel;
use super::publish;
use crate::access::RoomChange;
use crate::callers::{Caller, KeyHash};
use crate::config::{MEMBERS_MAX, PASSWORD_BYTES_MAX, Speakers};
use crate::message::{Request, RoomDenied, RoomReport, RoomRequest};
use crate::rooms::BYTES_MAX;

/// Users whom one list of a room names, at most.
const USERS_MAX: usize = 1000;

/// A room. To make it, what is left out is as the channel's rule says; to change it, what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RoomBody<'a> {
    /// The channel that is the room; its rule has `room = true`.
    #[serde(borrow)]
    channel: Cow<'a, str>,
    /// Members that there may be; 0 is no limit.
    members_max: Option<u32>,
    /// Whether whoever may subscribe may enter; else only who is invited.
    public: Option<bool>,
    /// Whether only moderators speak.
    moderated: Option<bool>,
    /// Who speaks else: `anyone` or `members`.
    #[schema(value_type = Option<String>)]
    speak: Option<Speakers>,
    /// What everybody but moderators has to know to enter; empty where there is to be none.
    #[serde(borrow, default)]
    password: Option<Cow<'a, str>>,
    /// Users who moderate it, beside those whom a permission allows it. At most 1000.
    #[serde(borrow, default)]
    moderators: Option<Vec<Cow<'a, str>>>,
    /// Users who are invited, beside those whom a permission or the application lets in. At most 1000.
    #[serde(borrow, default)]
    invited: Option<Vec<Cow<'a, str>>>,
    /// Whether it ends when its last member leaves; `false` where nothing else was said.
    ends_when_empty: Option<bool>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RoomQuery {
    channel: String,
}

/// What a room is like.
#[derive(Serialize, ToSchema)]
pub(super) struct RoomInfo {
    channel: String,
    /// Whether it was made over the API; else it is what its rule says.
    made: bool,
    /// How many members it has, each a subscription of a connection.
    members: u64,
    members_max: u32,
    public: bool,
    moderated: bool,
    /// `anyone` or `members`.
    speak: &'static str,
    /// Whether there is a password.
    password: bool,
    moderators: Vec<String>,
    invited: Vec<String>,
    ends_when_empty: bool,
}

impl RoomInfo {
    fn new(channel: &ChannelName, report: &RoomReport) -> RoomInfo {
        let RoomReport { rules, ends_when_empty, members } = report;
        let names = |users: &BTreeSet<UserId>| users.iter().map(UserId::to_string).collect();
        RoomInfo {
            channel: channel.to_string(),
            made: ends_when_empty.is_some(),
            members: *members,
            members_max: rules.members_max,
            public: rules.public,
            moderated: rules.moderated,
            speak: rules.speak.name(),
            password: rules.password.is_some(),
            moderators: names(&rules.moderators),
            invited: names(&rules.members),
            ends_when_empty: ends_when_empty.unwrap_or(false),
        }
    }
}

impl RoomBody<'_> {
    /// Which room, and what is said of it.
    fn read(self) -> Result<(ChannelName, RoomChange), ApiError> {
        let channel = ChannelName::new(&self.channel).map_err(Refused::from)?;
        if let Some(most) = self.members_max.filter(|most| *most > MEMBERS_MAX) {
            let message = format!("members_max = {most}: allowed are 0 to {MEMBERS_MAX}");
            return Err(ApiError::new(Code::BadRequest, message));
        }
        let bytes = self.password.as_ref().map_or(0, |password| password.len());
        if bytes > PASSWORD_BYTES_MAX {
            let message =
                format!("password has {bytes} bytes; allowed are at most {PASSWORD_BYTES_MAX}");
            return Err(ApiError::new(Code::BadRequest, message));
        }
        let hash = |word: Cow<str>| (!word.is_empty()).then(|| KeyHash::of(word.as_bytes()));
        let change = RoomChange {
            members_max: self.members_max,
            public: self.public,
            moderated: self.moderated,
            speak: self.speak,
            password: self.password.map(hash),
            moderators: self.moderators.map(|list| users(&list, "moderators")).transpose()?,
            members: self.invited.map(|list| users(&list, "invited")).transpose()?,
            ends_when_empty: self.ends_when_empty,
        };
        Ok((channel, change))
    }
}

/// The users of a list, each once.
fn users(list: &[Cow<str>], field: &str) -> Result<BTreeSet<UserId>, ApiError> {
    if list.len() > USERS_MAX {
        let count = list.len();
        let message = format!("{field} names {count} users; allowed are at most {USERS_MAX}");
        return Err(ApiError::new(Code::BadRequest, message));
    }
    let wrong = |e| ApiError::new(Code::BadRequest, format!("{field}: {e}"));
    list.iter().map(|user| UserId::new(user).map_err(wrong)).collect()
}

/// Makes a room, or makes it anew: it is from now on as this says, and as its rule says where this says nothing. To ask
/// again does no harm.
#[utoipa::path(
    post, path = "/api/rooms",
    request_body = RoomBody,
    responses(
        (status = 200, description = "The room is there", body = RoomInfo),
        (status = "4XX", description = "Nothing is changed", body = ApiError),
        (status = "5XX", description = "There are as many as there may be, or the shard does not answer", body = ApiError),
    ),
    security(("bearer" = ["rooms"]), ("key" = ["rooms"]))
)]
pub(super) async fn make_room(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    body: Collected,
) -> Result<Json<RoomInfo>, ApiError> {
    let (channel, change) = publish::object::<RoomBody>(&body.bytes, "a room")?.read()?;
    ask(&state, &caller, channel, RoomRequest::Make(change)).await
}

/// Changes a room that was made: what is left out stays.
#[utoipa::path(
    patch, path = "/api/rooms",
    request_body = RoomBody,
    responses(
        (status = 200, description = "What it is like now", body = RoomInfo),
        (status = "4XX", description = "Nothing is changed, or the room was not made", body = ApiError),
        (status = "5XX", description = "The shard does not answer", body = ApiError),
    ),
    security(("bearer" = ["rooms"]), ("key" = ["rooms"]))
)]
pub(super) async fn change_room(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    body: Collected,
) -> Result<Json<RoomInfo>, ApiError> {
    let (channel, change) = publish::object::<RoomBody>(&body.bytes, "a room")?.read()?;
    ask(&state, &caller, channel, RoomRequest::Change(change)).await
}

/// Says what a room is like.
#[utoipa::path(
    get, path = "/api/rooms",
    params(RoomQuery),
    responses(
        (status = 200, description = "The room", body = RoomInfo),
        (status = "4XX", description = "The request is refused, or there is no such room", body = ApiError),
        (status = "5XX", description = "The shard does not answer", body = ApiError),
    ),
    security(("bearer" = ["rooms"]), ("key" = ["rooms"]))
)]
pub(super) async fn show_room(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    query: Result<Query<RoomQuery>, QueryRejection>,
) -> Result<Json<RoomInfo>, ApiError> {
    ask(&state, &caller, named(query)?, RoomRequest::Show).await
}

/// Ends a room that was made: its members are unsubscribed and told so.
#[utoipa::path(
    delete, path = "/api/rooms",
    params(RoomQuery),
    responses(
        (status = 200, description = "What it was like; its members are being told", body = RoomInfo),
        (status = "4XX", description = "The request is refused, or the room was not made", body = ApiError),
        (status = "5XX", description = "The shard does not answer", body = ApiError),
    ),
    security(("bearer" = ["rooms"]), ("key" = ["rooms"]))
)]
pub(super) async fn end_room(
    FromState(state): FromState<Arc<State>>,
    Extension(caller): Extension<Arc<Caller>>,
    query: Result<Query<RoomQuery>, QueryRejection>,
) -> Result<Json<RoomInfo>, ApiError> {
    ask(&state, &caller, named(query)?, RoomRequest::End).await
}

fn named(query: Result<Query<RoomQuery>, QueryRejection>) -> Result<ChannelName, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::new(Code::BadRequest, e.body_text()))?;
    Ok(ChannelName::new(&query.channel).map_err(Refused::from)?)
}

/// Asks the home of a room.
async fn ask(
    state: &State,
    caller: &Caller,
    channel: ChannelName,
    what: RoomRequest,
) -> Result<Json<RoomInfo>, ApiError> {
    check_channel(caller, &channel)?;
    if what.adds() && state.shared.rooms.bytes() > BYTES_MAX {
        let message = format!("all rooms of several nodes may take {BYTES_MAX} bytes, and they do");
        return Err(ApiError::new(Code::Command(ErrorCode::LimitReached), message));
    }
    let deadline = publish::deadline(state);
    let home = state.shared.shards.home(&channel);
    let (reply, answer) = oneshot::channel();
    let request = Request::Room { channel: channel.clone(), what: what.into(), reply };
    publish::send(state, home, request, deadline).await?;
    let report = publish::receive(answer, deadline).await?;
    let report = report.map_err(|denied| match denied {
        RoomDenied::NoRooms => {
            let message = format!("the rule of channel {channel} has room = false");
            ApiError::new(Code::BadRequest, message)
        }
        RoomDenied::NotMade => ApiError::new(Code::NotFound, format!("no room {channel} was made")),
        RoomDenied::Refused(refused) => refused.into(),
        RoomDenied::NotEverywhere => {
            let message = "not all nodes know it: one has no room for more (limits.rooms_max)";
            ApiError::new(Code::Busy, message)
        }
    })?;
    Ok(Json(RoomInfo::new(&channel, &report)))
}
