//! Keys that issuers publish (JWK Set, RFC 7517). Fetching them is somebody else's.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::key::Key;
use crate::config::KeyAlgorithm;

/// Largest document.
pub const JWKS_BYTES_MAX: usize = 1 << 20;
/// Keys of one document that are looked at.
const KEYS_MAX: usize = 256;

/// The keys that are known, by where they are from and by their id: who publishes a key under somebody else's id has
/// another address.
#[derive(Debug, Clone, Default)]
pub struct RemoteKeys(BTreeMap<Box<str>, BTreeMap<Box<str>, Key>>);

/// What a document holds.
#[derive(Debug, Clone, Default)]
pub struct Jwks {
    /// Keys that can verify tokens, with their ids; each id stands there once. Others, for another use, of another kind,
    /// weak or broken, are left out.
    pub keys: Vec<(Box<str>, Key)>,
}

/// A document that is no JWK Set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no JWK Set of at most {JWKS_BYTES_MAX} bytes")]
pub struct NotJwks;

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<IgnoredAny>,
}

impl RemoteKeys {
    /// The keys in a document that may verify tokens with one of `allowed`.
    pub fn parse_jwks(document: &[u8], allowed: &[KeyAlgorithm]) -> Result<Jwks, NotJwks> {
        if document.len() > JWKS_BYTES_MAX {
            return Err(NotJwks);
        }
        let document: Document<'_> = serde_json::from_slice(document).map_err(|_| NotJwks)?;
        let mut found = Jwks::default();
        for key in document.keys.iter().take(KEYS_MAX) {
            let Ok(jwk) = serde_json::from_str::<Jwk>(key.get()) else { continue };
            let is_new = found.keys.iter().all(|(known, _)| **known != *jwk.kid);
            if let Some(key) = jwk.key(allowed).filter(|_| is_new) {
                found.keys.push((jwk.kid.into(), key));
            }
        }
        Ok(found)
    }

    /// Puts what was fetched from `url` in the place of what was known from there.
    pub fn replace(&mut self, url: &str, jwks: Jwks) {
        self.0.insert(url.into(), jwks.keys.into_iter().collect());
    }

    /// Whether the key is known.
    pub fn knows(&self, url: &str, kid: &str) -> bool {
        self.find(url, kid).is_some()
    }

    pub(super) fn find(&self, url: &str, kid: &str) -> Option<&Key> {
        self.0.get(url)?.get(kid)
    }
}

impl Jwk {
    fn key(&self, allowed: &[KeyAlgorithm]) -> Option<Key> {
        let verifies = |ops: &Vec<String>| ops.iter().any(|op| op == "verify");
        let to_sign = self.usage.as_ref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(verifies);
        // A private key that is published is anybody's.
        if !to_sign || self.d.is_some() || self.kid.is_empty() {
            return None;
        }
        let number = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
        let key = match (&*self.kty, self.crv.as_deref()) {
            ("RSA", None) => Key::rsa(&number(&self.n)?, &number(&self.e)?),
            ("EC", Some("P-256")) => {
                let (x, y) = (number(&self.x)?, number(&self.y)?);
                if x.len() != y.len() {
                    return None;
                }
                Key::p256(&[x, y].concat())
            }
            ("OKP", Some("Ed25519")) => Key::ed25519(&number(&self.x)?),
            _ => return None,
        };
        let key = key.ok()?;
        // RFC 9864 has another name for EdDSA with this curve.
        let named = |alg: &str| {
            alg == key.algorithm_name() || (alg == "Ed25519" && key.algorithm_name() == "EdDSA")
        };
        (self.alg.as_deref().is_none_or(named) && key.is_among(allowed)).then_some(key)
    }
}
