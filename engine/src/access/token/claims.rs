//! What the claims of a token that was verified say about a connection.

use ringfeed_protocol::{ChannelName, UserId};
use serde_json::value::RawValue;
use smol_str::SmolStr;

use super::error::TokenError;
use super::issuer::{Issuer, Times};
use super::parse::Object;
use crate::access::{Admitted, Grants, Identity, who};

/// Channels that a token may subscribe to at once.
const CHANNELS_MAX: usize = 128;
/// Bytes of a token's id.
const ID_BYTES_MAX: usize = 255;

/// Who the bearer is.
pub(super) fn admitted(
    issuer: &Issuer,
    claims: &Object,
    times: &Times,
) -> Result<Admitted, TokenError> {
    let user = user(issuer, claims)?;
    let identity = Identity {
        user: Some(user.ok_or_else(|| TokenError::MissingClaim(issuer.user_claim.clone()))?),
        attributes: attributes(issuer, claims)?.into(),
        grants: claims.read::<Grants>("permissions")?.map(Box::new),
        token: token_id(claims)?,
        issued_at: times.issued_at,
        expires_at: Some(times.expires_at),
        info: info(claims)?,
    };
    Ok(Admitted { identity, channels: channels(claims)?, stated: None })
}

/// The user, where the token names one: a text, or a whole number as databases have it.
pub(super) fn user(issuer: &Issuer, claims: &Object) -> Result<Option<UserId>, TokenError> {
    let name = &issuer.user_claim;
    let id = match claims.get(name) {
        None => return Ok(None),
        Some(json) if json.starts_with('"') => claims.text(name)?,
        Some(_) => claims.read::<u64>(name)?.map(|id| id.to_string()),
    };
    let id = id.map(|id| UserId::new(&id)).transpose();
    id.map_err(|_| TokenError::BadClaim(name.clone()))
}

fn attributes(issuer: &Issuer, claims: &Object) -> Result<Vec<SmolStr>, TokenError> {
    let mut attributes = Vec::new();
    if !issuer.roles_claim.is_empty() {
        let roles = claims.texts(&issuer.roles_claim)?.unwrap_or_default();
        attributes.extend(roles.iter().filter(|role| !role.is_empty()).map(|role| who::role(role)));
    }
    for name in &issuer.claims {
        let Some(json) = claims.get(name) else { continue };
        let values: Vec<&RawValue> = match json.starts_with('[') {
            true => claims.read(name)?.unwrap_or_default(),
            false => claims.read(name)?.into_iter().collect(),
        };
        for value in values {
            attributes.extend(plain(value.get()).map(|value| who::claim(name, &value)));
        }
    }
    Ok(attributes)
}

/// A text, a number or a switch as text; nothing can be bound to what has parts, or to `null`.
fn plain(json: &str) -> Option<String> {
    match json.bytes().next()? {
        b'"' => serde_json::from_str(json).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(json.to_owned()),
    }
}

pub(super) fn token_id(claims: &Object) -> Result<Option<SmolStr>, TokenError> {
    match claims.text("jti")? {
        Some(id) if id.len() > ID_BYTES_MAX => Err(TokenError::bad("jti")),
        id => Ok(id.map(SmolStr::from)),
    }
}

/// JSON that goes on to others as it came: it has to be JSON that all of them can read.
fn info(claims: &Object) -> Result<Option<Box<str>>, TokenError> {
    match claims.read::<serde_json::Value>("info")? {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(_) => Ok(claims.get("info").map(Box::from)),
    }
}

fn channels(claims: &Object) -> Result<Vec<ChannelName>, TokenError> {
    let names = claims.read::<Vec<String>>("channels")?.unwrap_or_default();
    if names.len() > CHANNELS_MAX {
        return Err(TokenError::bad("channels"));
    }
    let names = names.iter().map(|name| ChannelName::new(name));
    names.collect::<Result<_, _>>().map_err(|_| TokenError::bad("channels"))
}
