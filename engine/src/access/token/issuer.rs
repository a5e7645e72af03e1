//! One issuer: its keys, and what its tokens must be like.

use smol_str::SmolStr;

use super::error::TokenError;
use super::key::{Key, key_algorithm_name};
use super::parse::{Object, Token};
use super::remote::RemoteKeys;
use crate::config::{self, KeyAlgorithm, file};

/// Largest key file.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// One of `[[issuers]]`, its keys read.
#[derive(Debug, Clone)]
pub(super) struct Issuer {
    pub(super) name: Box<str>,
    audience: Vec<String>,
    pub(super) keys: Vec<Key>,
    pub(super) published: Option<Published>,
    pub(super) leeway_s: u64,
    pub(super) user_claim: SmolStr,
    pub(super) roles_claim: SmolStr,
    pub(super) claims: Vec<SmolStr>,
    lifetime_s_max: u64,
}

/// Keys that the issuer publishes.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) url: Box<str>,
    pub(super) algorithms: Vec<KeyAlgorithm>,
}

/// When a token counts.
pub(super) struct Times {
    pub(super) issued_at: u64,
    pub(super) expires_at: u64,
}

impl Issuer {
    /// Reads the public keys. Errors name key and path, and never what is in them.
    pub(super) fn load(entry: &config::Issuer) -> Result<Issuer, Vec<String>> {
        let (mut keys, mut errors) = (Vec::new(), Vec::new());
        if !entry.secret.is_empty() {
            keys.push(Key::secret(&entry.secret.0, entry.secret_algorithm));
        }
        for path in &entry.public_key_files {
            let key = file::read(path, FILE_BYTES_MAX).map_err(|e| e.to_string());
            match key.and_then(|pem| Key::from_pem(&pem).map_err(|e| e.to_string())) {
                Ok(key) => keys.push(key),
                Err(why) => errors.push(format!(".public_key_files: {path:?}: {why}")),
            }
        }
        let published = (!entry.jwks_url.is_empty()).then(|| Published {
            url: entry.jwks_url.as_str().into(),
            algorithms: entry.jwks_algorithms.clone(),
        });
        if keys.is_empty() && published.is_none() && errors.is_empty() {
            errors.push(": it has no key to check tokens with".into());
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Issuer {
            name: entry.issuer.as_str().into(),
            audience: entry.audience.clone(),
            keys,
            published,
            leeway_s: entry.leeway_s.into(),
            user_claim: entry.user_claim.as_str().into(),
            roles_claim: entry.roles_claim.as_str().into(),
            claims: entry.claims.iter().map(|name| name.as_str().into()).collect(),
            lifetime_s_max: entry.lifetime_s_max.into(),
        })
    }

    /// Whether one of its keys has signed the token. The header says which of them may be tried, and nothing else.
    pub(super) fn verify(&self, token: &Token<'_>, remote: &RemoteKeys) -> Result<(), TokenError> {
        let mut tried = false;
        for key in self.keys.iter().filter(|key| key.algorithm_name() == token.algorithm) {
            tried = true;
            if key.verifies(token.signed, token.signature) {
                return Ok(());
            }
        }
        let names = |&algorithm: &KeyAlgorithm| key_algorithm_name(algorithm) == token.algorithm;
        let published = self.published.as_ref().filter(|p| p.algorithms.iter().any(names));
        match (published, token.kid.as_deref()) {
            (None, _) if tried => Err(TokenError::BadSignature),
            (None, _) => Err(TokenError::WrongAlgorithm),
            (Some(_), None) if tried => Err(TokenError::BadSignature),
            (Some(_), None) => Err(TokenError::MissingKeyId),
            (Some(Published { url, .. }), Some(kid)) => match remote.find(url, kid) {
                None => Err(TokenError::UnknownKey { url: url.clone(), kid: kid.into() }),
                Some(key) if key.algorithm_name() != token.algorithm => {
                    Err(TokenError::WrongAlgorithm)
                }
                Some(key) if key.verifies(token.signed, token.signature) => Ok(()),
                Some(_) => Err(TokenError::BadSignature),
            },
        }
    }

    /// Whether a token is for us (RFC 7519 section 4.1.3).
    pub(super) fn check_audience(&self, claims: &Object) -> Result<(), TokenError> {
        match claims.texts("aud")? {
            None if self.audience.is_empty() => Ok(()),
            None => Err(TokenError::missing("aud")),
            Some(named) if named.iter().any(|one| self.audience.contains(one)) => Ok(()),
            Some(_) => Err(TokenError::WrongAudience),
        }
    }

    /// Whether a token counts now (sections 4.1.4 to 4.1.6).
    pub(super) fn check_times(&self, claims: &Object, now: u64) -> Result<Times, TokenError> {
        let expires_at = claims.time("exp")?.ok_or_else(|| TokenError::missing("exp"))?;
        if now >= expires_at.saturating_add(self.leeway_s) {
            return Err(TokenError::Expired);
        }
        let (begins_at, issued_at) = (claims.time("nbf")?, claims.time("iat")?);
        let later = |time: Option<u64>| time.is_some_and(|t| t > now.saturating_add(self.leeway_s));
        if later(begins_at) || later(issued_at) {
            return Err(TokenError::NotYet);
        }
        if self.lifetime_s_max > 0 {
            let issued_at = issued_at.ok_or_else(|| TokenError::missing("iat"))?;
            if expires_at.saturating_sub(issued_at) > self.lifetime_s_max {
                return Err(TokenError::LivesTooLong);
            }
        }
        // Nobody can say that it was issued after something: it is as old as any.
        Ok(Times { issued_at: issued_at.unwrap_or(0), expires_at })
    }
}
