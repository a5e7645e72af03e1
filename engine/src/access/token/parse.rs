//! A token taken apart: RFC 7515 section 7.1, as strictly as it is written. Nothing here is verified.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::TokenError;
use crate::access::unique::Unique;

/// Longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Longest key id that is looked for.
const KID_BYTES_MAX: usize = 255;
/// Largest time: what a double holds to the second.
const TIME_S_MAX: u64 = 1 << 53;

/// The parts of a token.
pub(super) struct Token<'a> {
    /// What is signed.
    pub(super) signed: &'a str,
    /// The signature, in base64.
    pub(super) signature: &'a str,
    /// `alg` of the header.
    pub(super) algorithm: String,
    /// `kid` of the header.
    pub(super) kid: Option<String>,
    pub(super) claims: Object,
}

impl<'a> Token<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Token<'a>, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let shape =
            TokenError::Malformed("allowed are three parts in base64url, with dots between");
        let Some((signed, signature)) = text.rsplit_once('.') else { return Err(shape) };
        let Some((header, payload)) = signed.split_once('.') else { return Err(shape) };
        if payload.contains('.') || URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(shape);
        }
        let header =
            Object::decode(header).ok_or(TokenError::Malformed("its header is no JSON object"))?;
        let claims = Object::decode(payload)
            .ok_or(TokenError::Malformed("its payload is no JSON object of different names"))?;
        // What is critical there must be understood (RFC 7515 section 4.1.11), and here nothing is: not an unencoded
        // payload either (RFC 7797).
        if header.get("crit").is_some() || header.get("b64").is_some() {
            return Err(TokenError::Malformed("extensions (crit, b64) are not supported"));
        }
        let text = |name| header.text(name).map_err(|_| TokenError::Malformed(BAD_HEADER));
        let algorithm = text("alg")?.ok_or(TokenError::Malformed(BAD_HEADER))?;
        let kid = text("kid")?;
        let fits = |kid: &String| {
            (1..=KID_BYTES_MAX).contains(&kid.len()) && !kid.chars().any(char::is_control)
        };
        if !kid.as_ref().is_none_or(fits) {
            return Err(TokenError::Malformed(BAD_HEADER));
        }
        Ok(Token { signed, signature, algorithm, kid, claims })
    }
}

const BAD_HEADER: &str = "its header needs an alg, and alg and kid are short texts";

/// Header and payload of what may be a token, to be shown to people.
pub fn unverified(token: &str) -> Option<(serde_json::Value, serde_json::Value)> {
    let mut parts = token.get(..TOKEN_BYTES_MAX.min(token.len()))?.split('.');
    let mut part = || serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts.next()?).ok()?).ok();
    Some((part()?, part()?))
}

/// A JSON object whose names are all different (RFC 7519 section 4 lets a parser refuse others), values as they came.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Object(Unique<Box<RawValue>>);

impl Object {
    fn decode(part: &str) -> Option<Object> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.0.get(name).map(|value| value.get())
    }

    /// A value of one type. One that is there and is of another, `null` too, is not one that is missing.
    pub(super) fn read<'a, T: Deserialize<'a>>(
        &'a self,
        name: &str,
    ) -> Result<Option<T>, TokenError> {
        let Some(json) = self.get(name) else { return Ok(None) };
        serde_json::from_str(json).map(Some).map_err(|_| TokenError::bad(name))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, TokenError> {
        self.read(name)
    }

    /// One text or a list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<String>>, TokenError> {
        match self.get(name) {
            Some(json) if json.starts_with('"') => Ok(self.text(name)?.map(|text| vec![text])),
            _ => self.read(name),
        }
    }

    /// Seconds since 1970 (NumericDate), without their fraction.
    pub(super) fn time(&self, name: &str) -> Result<Option<u64>, TokenError> {
        let Some(number) = self.read::<serde_json::Number>(name)? else { return Ok(None) };
        let whole = number
            .as_u64()
            .or_else(|| Some(Duration::try_from_secs_f64(number.as_f64()?).ok()?.as_secs()));
        match whole {
            Some(seconds) if seconds <= TIME_S_MAX => Ok(Some(seconds)),
            _ => Err(TokenError::bad(name)),
        }
    }
}
