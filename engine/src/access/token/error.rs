//! Why a token is not taken.

use smol_str::SmolStr;

use super::parse::TOKEN_BYTES_MAX;

/// Why a token is not taken. What is displayed may be shown to whoever sent it: it names claims and what is allowed,
/// and repeats nothing of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// More bytes than are looked at.
    #[error("the token is too long; allowed are {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// Not a token as RFC 7519 and RFC 7515 (compact serialization) have it.
    #[error("this is no token: {0}")]
    Malformed(&'static str),
    /// No issuer of the configuration has this name.
    #[error("the token's issuer is not known")]
    UnknownIssuer,
    /// Signed with what no key of the issuer is for.
    #[error("the token is not signed with an algorithm that its issuer has a key for")]
    WrongAlgorithm,
    /// The keys of an issuer are published and the token does not say which it is signed with.
    #[error("the token does not say which of its issuer's keys it is signed with (kid)")]
    MissingKeyId,
    /// The key is not known. It may be there when the issuer's keys are fetched again. Nothing about the token was
    /// verified: anybody can make it so.
    #[error("the token is signed with a key that is not known")]
    UnknownKey {
        /// Where the issuer's keys are, as the configuration has it.
        url: Box<str>,
        /// Which key.
        kid: Box<str>,
    },
    /// Not signed by whom it says.
    #[error("the token's signature is not right")]
    BadSignature,
    /// It counts no more.
    #[error("the token has expired")]
    Expired,
    /// It does not count yet, or is of the future.
    #[error("the token is not valid yet")]
    NotYet,
    /// For somebody else.
    #[error("the token is for another audience")]
    WrongAudience,
    /// It would be valid for longer than is allowed.
    #[error("the token is valid for longer than is allowed")]
    LivesTooLong,
    /// A claim has to be there.
    #[error("the token has no claim '{0}'")]
    MissingClaim(SmolStr),
    /// A claim is not what it has to be.
    #[error("the token's claim '{0}' is not what it has to be")]
    BadClaim(SmolStr),
}

impl TokenError {
    pub(super) fn missing(claim: &str) -> TokenError {
        TokenError::MissingClaim(claim.into())
    }

    pub(super) fn bad(claim: &str) -> TokenError {
        TokenError::BadClaim(claim.into())
    }
}
