//! The list of channels: which there are, on which nodes, and by which rule. What no node would take, of a rule or
//! of all of them together, is refused; whether they go with the rest of a node's configuration is that node's business.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::api::{ChannelEntry, ChannelList, ChannelPut, ChannelsChanged, ErrorBody};
use super::body::Whole;
use super::error::{ApiError, Code};
use super::names::{self, NodeId};
use super::routes::{App, is_known, query, versioned};
use crate::config::check_rule;

/// Entries of `allowed_nodes`.
pub(super) const ALLOWED_NODES_MAX: usize = 256;
/// Longest rule as JSON.
const RULE_BYTES_MAX: usize = 16 * 1024;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only those that this node serves.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    /// A version that is known already: 304 if it is still the same. So is `If-None-Match`.
    known: Option<u64>,
}

/// The channels.
#[utoipa::path(
    get, path = "/v1/channels", params(ListQuery),
    responses(
        (status = 200, description = "The channels, by name", body = ChannelList),
        (status = 304, description = "As they are known"),
        (status = "4XX", description = "Nothing", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
pub(super) async fn list(
    State(registry): App,
    headers: HeaderMap,
    given: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let ListQuery { node, known } = query(given)?;
    let (fleet, _) = registry.fleet().await;
    let version = fleet.channels_version();
    if is_known(version, known, &headers) {
        return Ok(versioned(version, None::<()>));
    }
    let channels = fleet.channels(node.as_ref().map(NodeId::as_str));
    drop(fleet);
    Ok(versioned(version, Some(ChannelList { version, channels })))
}

/// Adds a channel, or changes what was there under its name.
#[utoipa::path(
    put, path = "/v1/channels", request_body = ChannelPut,
    responses(
        (status = 200, description = "It is so now, and stored", body = ChannelsChanged),
        (status = "4XX", description = "Nothing was changed", body = ErrorBody),
        (status = 503, description = "The file takes nothing, or there are too many; nothing was changed", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
pub(super) async fn put(
    State(registry): App,
    body: Result<Whole, ApiError>,
) -> Result<Json<ChannelsChanged>, ApiError> {
    let entry = checked(body?.parse()?)?;
    let name = entry.name.clone();
    Ok(Json(registry.set_channel(&name, |_| Some(entry)).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// Its name as it is in the list.
    name: String,
}

/// Removes a channel from the list.
#[utoipa::path(
    delete, path = "/v1/channels", params(RemoveQuery),
    responses(
        (status = 200, description = "It is not there any more", body = ChannelsChanged),
        (status = "4XX", description = "Nothing was changed", body = ErrorBody),
        (status = 503, description = "The file takes nothing; nothing was changed", body = ErrorBody),
    ),
    security(("bearer" = []), ("key" = []))
)]
pub(super) async fn remove(
    State(registry): App,
    given: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<Json<ChannelsChanged>, ApiError> {
    let RemoveQuery { name } = query(given)?;
    Ok(Json(registry.set_channel(&name, |_| None).await?))
}

/// An entry as it may be kept.
pub(super) fn checked(put: ChannelPut) -> Result<ChannelEntry, ApiError> {
    let ChannelPut { name, allowed_nodes, rule } = put;
    names::check_channel(&name)?;
    check_nodes(&allowed_nodes)?;
    if let Some(rule) = &rule {
        let bytes = serde_json::to_string(rule).map_or(usize::MAX, |text| text.len());
        if bytes > RULE_BYTES_MAX {
            let message = format!("the rule has {bytes} bytes; allowed are {RULE_BYTES_MAX}");
            return Err(ApiError::new(Code::TooLarge, message));
        }
        check_rule(&name, rule).map_err(|e| ApiError::bad_request(e.to_string()))?;
    }
    Ok(ChannelEntry { name, allowed_nodes, rule })
}

/// Ids of nodes, with `*` in them or not.
pub(super) fn check_nodes(nodes: &[String]) -> Result<(), ApiError> {
    if !(1..=ALLOWED_NODES_MAX).contains(&nodes.len()) {
        let message = format!(
            "allowed_nodes has {} entries; allowed are 1 to {ALLOWED_NODES_MAX}",
            nodes.len()
        );
        return Err(ApiError::bad_request(message));
    }
    for node in nodes {
        if node != "*" {
            // A letter stands for any run of characters: the rest has to be as ids are.
            node.replace('*', "x").parse::<NodeId>()?;
        }
    }
    Ok(())
}
