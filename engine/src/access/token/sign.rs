//! Making tokens: for tests, and for operators (`ringfeed token make`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};

use super::key;

/// A key to sign with. `Debug` does not show it.
#[derive(Debug, Clone)]
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
}

/// A key that signs nothing that would be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no private key of RSA, P-256 or Ed25519 in PEM; `openssl pkcs8 -topk8 -nocrypt` makes such of other forms"
)]
pub struct NoSigner;

impl Signer {
    pub(super) fn new((key, algorithm): (EncodingKey, Algorithm)) -> Signer {
        Signer { key, algorithm }
    }

    /// A private key in PEM. Its kind says what it signs with.
    pub fn from_pem(pem: &[u8]) -> Result<Signer, NoSigner> {
        let keys = [
            (EncodingKey::from_ec_pem(pem), Algorithm::ES256),
            (EncodingKey::from_ed_pem(pem), Algorithm::EdDSA),
            (EncodingKey::from_rsa_pem(pem), Algorithm::RS256),
        ];
        let mut signers = keys.into_iter().filter_map(|(key, algorithm)| {
            let signer = Signer { key: key.ok()?, algorithm };
            signer.sign(None, "").is_ok().then_some(signer)
        });
        signers.next().ok_or(NoSigner)
    }

    /// The token of these claims, a JSON object.
    pub fn sign(&self, kid: Option<&str>, claims: &str) -> Result<String, NoSigner> {
        let kid = kid.map(|kid| format!(",\"kid\":{}", serde_json::Value::from(kid)));
        let kid = kid.unwrap_or_default();
        let header = format!("{{\"alg\":\"{}\",\"typ\":\"JWT\"{kid}}}", key::name(self.algorithm));
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = crypto::sign(signed.as_bytes(), &self.key, self.algorithm);
        Ok(format!("{signed}.{}", signature.map_err(|_| NoSigner)?))
    }
}
