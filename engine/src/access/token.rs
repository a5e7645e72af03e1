//! Tokens (JWT, RFC 7519, signed as RFC 7515 says): whose they are, and whether they are to be believed.
//!
//! Until a signature has been verified only `iss` and `kid` are looked at, to choose the keys; both choose among what
//! the configuration names, and neither a key nor an address is ever taken from a token. What a key verifies is bound
//! to the key. Fetching keys is not done here: [`TokenError::UnknownKey`] says what is missing.

mod claims;
mod error;
mod issuer;
mod key;
mod parse;
mod remote;
mod sign;

use ringfeed_protocol::{ChannelName, UserId};
use smol_str::SmolStr;

use self::issuer::{Issuer, Times};
use self::parse::{Object, Token};
use super::Admitted;
use crate::config::{Config, ConfigErrors, KeyAlgorithm};

pub use error::TokenError;
pub use key::Key;
pub use parse::{TOKEN_BYTES_MAX, unverified};
pub use remote::{JWKS_BYTES_MAX, Jwks, NotJwks, RemoteKeys};
pub use sign::{NoSigner, Signer};

/// The claim that makes a token one for a single channel.
const CHANNEL: &str = "channel";

/// `[[issuers]]` with their keys.
#[derive(Debug, Clone, Default)]
pub struct Issuers(Vec<Issuer>);

/// A token that is to be believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Who its bearer is. `expires_at` is what the token says.
    pub admitted: Admitted,
    /// Seconds after `expires_at` for which it counts still.
    pub leeway_s: u64,
}

impl Checked {
    /// Who it is, until nobody need believe it any more.
    pub fn into_admitted(self) -> Admitted {
        let Checked { mut admitted, leeway_s } = self;
        let expires_at = &mut admitted.identity.expires_at;
        *expires_at = expires_at.map(|at| at.saturating_add(leeway_s));
        admitted
    }
}

/// A token that lets a connection into one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelToken {
    /// Seconds since 1970 after which nobody need believe it any more.
    pub expires_at: u64,
    /// Its id (`jti`), where it has one.
    pub id: Option<SmolStr>,
    /// Seconds since 1970 in which it was issued.
    pub issued_at: u64,
}

/// Where keys are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySource {
    /// The address of the JWK Set.
    pub url: Box<str>,
    /// What keys from there may be for.
    pub algorithms: Vec<KeyAlgorithm>,
}

impl Issuers {
    /// Reads the keys of all issuers. Every problem is reported at once, by key and path and without what was read.
    pub fn from_config(config: &Config) -> Result<Issuers, ConfigErrors> {
        let (mut issuers, mut errors) = (Vec::new(), Vec::new());
        for (i, entry) in config.issuers.iter().enumerate() {
            match Issuer::load(entry) {
                Ok(issuer) => issuers.push(issuer),
                Err(why) => errors.extend(why.into_iter().map(|why| format!("issuers[{i}]{why}"))),
            }
        }
        if errors.is_empty() { Ok(Issuers(issuers)) } else { Err(ConfigErrors(errors)) }
    }

    /// Whether no token at all is taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where keys have to be fetched from, each address once.
    pub fn key_sources(&self) -> Vec<KeySource> {
        let mut sources: Vec<KeySource> = Vec::new();
        for published in self.0.iter().filter_map(|issuer| issuer.published.as_ref()) {
            let (url, algorithms) = (published.url.clone(), published.algorithms.clone());
            match sources.iter_mut().find(|source| source.url == url) {
                Some(source) => source.algorithms.extend(algorithms),
                None => sources.push(KeySource { url, algorithms }),
            }
        }
        sources
    }

    /// Who the bearer of a token is. `now` is in seconds since 1970.
    pub fn check(&self, token: &str, now: u64, remote: &RemoteKeys) -> Result<Checked, TokenError> {
        let (issuer, claims, times) = self.current(token, now, remote)?;
        // Who was let into one channel was not let in.
        if claims.get(CHANNEL).is_some() {
            return Err(TokenError::bad(CHANNEL));
        }
        let admitted = claims::admitted(issuer, &claims, &times)?;
        Ok(Checked { admitted, leeway_s: issuer.leeway_s })
    }

    /// Whether a token lets a connection subscribe to a channel: its claim `channel` is the channel's whole name, its
    /// user the connection's, and it has none where the connection has none.
    pub fn check_channel_token(
        &self,
        token: &str,
        now: u64,
        remote: &RemoteKeys,
        user: Option<&UserId>,
        channel: &ChannelName,
    ) -> Result<ChannelToken, TokenError> {
        let (issuer, claims, times) = self.current(token, now, remote)?;
        if claims::user(issuer, &claims)?.as_ref() != user {
            return Err(TokenError::BadClaim(issuer.user_claim.clone()));
        }
        match claims.text(CHANNEL)? {
            None => Err(TokenError::missing(CHANNEL)),
            Some(name) if name == channel.as_str() => Ok(ChannelToken {
                expires_at: times.expires_at.saturating_add(issuer.leeway_s),
                id: claims::token_id(&claims)?,
                issued_at: times.issued_at,
            }),
            Some(_) => Err(TokenError::bad(CHANNEL)),
        }
    }

    /// What a token for a single channel is for, whoever shows it: for operators. Channel, and `exp` in seconds since 1970.
    pub fn channel_of(
        &self,
        token: &str,
        now: u64,
        remote: &RemoteKeys,
    ) -> Result<(ChannelName, u64), TokenError> {
        let (issuer, claims, times) = self.current(token, now, remote)?;
        claims::user(issuer, &claims)?;
        let name = claims.text(CHANNEL)?.ok_or_else(|| TokenError::missing(CHANNEL))?;
        let channel = ChannelName::new(&name).map_err(|_| TokenError::bad(CHANNEL))?;
        Ok((channel, times.expires_at))
    }

    /// What signs with the secret of an issuer, which is numbered as in the configuration.
    pub fn signer(&self, issuer: usize) -> Option<Signer> {
        self.0.get(issuer)?.keys.iter().find_map(Key::signing).map(Signer::new)
    }

    /// The claims of a token that one of the issuers has signed, for us and for now.
    fn current(
        &self,
        token: &str,
        now: u64,
        remote: &RemoteKeys,
    ) -> Result<(&Issuer, Object, Times), TokenError> {
        let token = Token::parse(token)?;
        let name = token.claims.text("iss")?.unwrap_or_default();
        let named = |name: &str| self.0.iter().find(|issuer| *issuer.name == *name);
        let issuer = named(&name).or_else(|| named("")).ok_or(TokenError::UnknownIssuer)?;
        issuer.verify(&token, remote)?;
        issuer.check_audience(&token.claims)?;
        let times = issuer.check_times(&token.claims, now)?;
        Ok((issuer, token.claims, times))
    }
}

#[cfg(test)]
mod tests;
