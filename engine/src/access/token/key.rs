//! Keys that tokens are verified with. A key has one algorithm, and nothing that a token says changes it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};

use crate::config::{KeyAlgorithm, SecretAlgorithm};

/// Bits of an RSA modulus.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// DER of a P-256 public key up to its point (RFC 5480), and the point's first byte: uncompressed.
const P256_DER: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\
                          \x07\x03\x42\x00\x04";
/// Bytes of both coordinates.
const P256_BYTES: usize = 64;
/// DER of an Ed25519 public key up to its bytes (RFC 8410).
const ED25519_DER: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const ED25519_BYTES: usize = 32;

/// A key and what it verifies. `Debug` does not show the key.
#[derive(Debug, Clone)]
pub struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why a key is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadKey {
    #[error("it is no PEM file with one key")]
    NotPem,
    #[error(
        "it holds a private key; allowed is the public one, which `openssl pkey -pubout` makes"
    )]
    Private,
    #[error("allowed are public keys of RSA, P-256 and Ed25519")]
    Unsupported,
    #[error("its RSA key has {0} bits; allowed are 2048 to 8192")]
    RsaBits(usize),
    #[error("its RSA key has an exponent that is not allowed")]
    RsaExponent,
}

impl Key {
    /// A secret, and what is signed with it.
    pub(super) fn secret(secret: &[u8], algorithm: SecretAlgorithm) -> Key {
        let algorithm = match algorithm {
            SecretAlgorithm::HS256 => Algorithm::HS256,
            SecretAlgorithm::HS384 => Algorithm::HS384,
            SecretAlgorithm::HS512 => Algorithm::HS512,
        };
        Key { algorithm, key: DecodingKey::from_secret(secret) }
    }

    /// The public key in a PEM file. Its kind alone says what it verifies.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Key, BadKey> {
        let text = std::str::from_utf8(pem).map_err(|_| BadKey::NotPem)?;
        let (label, der) = decode_pem(text).ok_or(BadKey::NotPem)?;
        match label {
            "PUBLIC KEY" => {
                if let Some(point) = der.strip_prefix(P256_DER) {
                    return Key::p256(point);
                }
                if let Some(bytes) = der.strip_prefix(ED25519_DER) {
                    return Key::ed25519(bytes);
                }
            }
            "RSA PUBLIC KEY" => {}
            label if label.ends_with("PRIVATE KEY") => return Err(BadKey::Private),
            _ => return Err(BadKey::Unsupported),
        }
        let key = DecodingKey::from_rsa_pem(pem).map_err(|_| BadKey::Unsupported)?;
        let jwk = Jwk::from_decoding_key(&key, None).map_err(|_| BadKey::Unsupported)?;
        let AlgorithmParameters::RSA(numbers) = jwk.algorithm else {
            return Err(BadKey::Unsupported);
        };
        let decode = |number| URL_SAFE_NO_PAD.decode(number).map_err(|_| BadKey::Unsupported);
        Key::rsa(&decode(numbers.n)?, &decode(numbers.e)?)
    }

    /// An RSA key of modulus and exponent, the highest byte first.
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Result<Key, BadKey> {
        let (n, e) = (without_zeros(n), without_zeros(e));
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err(BadKey::RsaBits(bits));
        }
        // 65537 is what everybody has; 3 and 17 are what the rest has. Large ones make verifying slow.
        let odd = e.last().is_some_and(|last| last % 2 == 1);
        if !odd || e.len() > 4 || e == [1] {
            return Err(BadKey::RsaExponent);
        }
        let key = DecodingKey::from_rsa_raw_components(n, e);
        Ok(Key { algorithm: Algorithm::RS256, key })
    }

    /// A P-256 key of both coordinates, 32 bytes each. A point that is not on the curve verifies nothing.
    pub(super) fn p256(point: &[u8]) -> Result<Key, BadKey> {
        if point.len() != P256_BYTES {
            return Err(BadKey::Unsupported);
        }
        let key = DecodingKey::from_ec_der(&[&[4], point].concat());
        Ok(Key { algorithm: Algorithm::ES256, key })
    }

    /// An Ed25519 key.
    pub(super) fn ed25519(bytes: &[u8]) -> Result<Key, BadKey> {
        if bytes.len() != ED25519_BYTES {
            return Err(BadKey::Unsupported);
        }
        Ok(Key { algorithm: Algorithm::EdDSA, key: DecodingKey::from_ed_der(bytes) })
    }

    /// What it verifies, as a header names it.
    pub(super) fn algorithm_name(&self) -> &'static str {
        name(self.algorithm)
    }

    /// Whether what it verifies is among these.
    pub(super) fn is_among(&self, algorithms: &[KeyAlgorithm]) -> bool {
        algorithms.iter().any(|&algorithm| key_algorithm_name(algorithm) == self.algorithm_name())
    }

    /// Whether `signature`, in base64, is this key's under what is signed.
    pub(super) fn verifies(&self, signed: &str, signature: &str) -> bool {
        crypto::verify(signature, signed.as_bytes(), &self.key, self.algorithm).unwrap_or(false)
    }

    #[cfg(test)]
    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.key
    }

    /// To sign with, where it is a secret.
    pub(super) fn signing(&self) -> Option<(EncodingKey, Algorithm)> {
        if self.key.family() != jsonwebtoken::AlgorithmFamily::Hmac {
            return None;
        }
        let secret = self.key.try_get_as_bytes().ok()?;
        Some((EncodingKey::from_secret(secret), self.algorithm))
    }
}

/// As a header names it.
pub(super) fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 => "HS256",
        Algorithm::HS384 => "HS384",
        Algorithm::HS512 => "HS512",
        Algorithm::RS256 => "RS256",
        Algorithm::ES256 => "ES256",
        Algorithm::EdDSA => "EdDSA",
        // No key is made for another one.
        _ => "",
    }
}

/// As a header names it.
pub(super) fn key_algorithm_name(algorithm: KeyAlgorithm) -> &'static str {
    match algorithm {
        KeyAlgorithm::RS256 => "RS256",
        KeyAlgorithm::ES256 => "ES256",
        KeyAlgorithm::EdDSA => "EdDSA",
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// Label and content of text that is one PEM block.
fn decode_pem(text: &str) -> Option<(&str, Vec<u8>)> {
    let (label, rest) = text.trim().strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let end = format!("-----END {label}-----");
    let body: String = rest.strip_suffix(&end)?.split_whitespace().collect();
    Some((label, STANDARD.decode(body).ok()?))
}
