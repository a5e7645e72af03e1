//! What fuzz targets call: what reads tokens and published keys, with nobody's keys.

use super::token::{Issuers, RemoteKeys, TokenError};
use crate::config::{Config, KeyAlgorithm, Sources};
use ringfeed_protocol::ChannelName;

thread_local! {
    static ISSUERS: Issuers = issuers();
}

/// Claims of an issuer that signs anything. Whether they are taken.
pub fn claims(text: &str) -> bool {
    ISSUERS.with(|issuers| {
        let signer = issuers.signer(0).expect("a secret");
        let token = signer.sign(None, text).expect("a secret signs anything");
        let checked = issuers.check(&token, 1_800_000_000, &RemoteKeys::default());
        if let Ok(checked) = &checked {
            let identity = &checked.admitted.identity;
            assert!(identity.user.is_some() && identity.expires_at > Some(1_800_000_000 - 10));
        }
        checked.is_ok()
    })
}

/// A token of whoever does not know the secret: it is never taken, and what is said of it repeats nothing of it.
pub fn token(text: &str) {
    let remote = RemoteKeys::default();
    let channel = ChannelName::new("a").expect("a name");
    ISSUERS.with(|issuers| {
        let told = issuers.check(text, 1_800_000_000, &remote).expect_err("nobody signed it");
        assert!(told.to_string().len() < 200 && !matches!(told, TokenError::UnknownKey { .. }));
        issuers
            .check_channel_token(text, 1_800_000_000, &remote, None, &channel)
            .expect_err("nobody signed it");
    });
}

/// What came from where an issuer publishes its keys.
pub fn jwks(document: &[u8]) {
    let all = [KeyAlgorithm::RS256, KeyAlgorithm::ES256, KeyAlgorithm::EdDSA];
    if let Ok(found) = RemoteKeys::parse_jwks(document, &all) {
        let mut remote = RemoteKeys::default();
        let ids: Vec<_> = found.keys.iter().map(|(kid, _)| kid.clone()).collect();
        remote.replace("https://a", found);
        assert!(ids.iter().all(|kid| remote.knows("https://a", kid) && !remote.knows("", kid)));
    }
}

/// One issuer without a name, whose secret nobody knows.
fn issuers() -> Issuers {
    use std::hash::{BuildHasher as _, RandomState};
    let mut config = Config::load(&Sources::default()).expect("the defaults");
    let secret = format!("{:032x}", RandomState::new().hash_one("a secret of this process"));
    config.issuers = crate::config::example_issuers();
    for issuer in &mut config.issuers {
        issuer.secret = secret.clone().into();
    }
    Issuers::from_config(&config).expect("an issuer")
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzz_targets_call_runs() {
        for text in ["", "a.b.c", "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjE5MDAwMDAwMDB9.", "e30.e30.e30"] {
            super::token(text);
            assert!(!super::claims(text));
            super::jwks(text.as_bytes());
        }
        assert!(super::claims(r#"{"sub":"a","exp":1900000000}"#));
        super::jwks(br#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#);
    }
}
