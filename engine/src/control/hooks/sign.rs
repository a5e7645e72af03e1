//! Signatures by which the application knows that ringfeed asks.

use std::fmt::{self, Write as _};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::config::Secret;

/// Name of the header field with the time of the request, in seconds since 1970.
pub(super) const TIMESTAMP: &str = "x-ringfeed-timestamp";
/// Name of the header field with the signature.
pub(super) const SIGNATURE: &str = "x-ringfeed-signature";

/// Signs bodies of requests. Does not show its secret.
#[derive(Clone)]
pub(super) struct Signer(Hmac<Sha256>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// `None` without a secret.
    pub(super) fn new(secret: &Secret) -> Option<Signer> {
        if secret.is_empty() {
            return None;
        }
        // A key of any length is taken, RFC 2104, section 3.
        Hmac::new_from_slice(&secret.0).ok().map(Signer)
    }

    /// `v1=` and the HMAC-SHA256 of `TIMESTAMP.BODY` in hexadecimal digits.
    pub(super) fn sign(&self, timestamp: u64, body: &[u8]) -> String {
        let mut mac = self.0.clone();
        mac.update(timestamp.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        let mut signature = String::from("v1=");
        for byte in mac.finalize().into_bytes() {
            let _ = write!(signature, "{byte:02x}");
        }
        signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_openssl() {
        // printf '1234567890.{}' | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        let signer = Signer::new(&Secret(b"0123456789abcdef0123456789abcdef".into())).unwrap();
        let expected = "v1=848aaf9a3ffe9f96079d14ce96832e3b0acc16c8043228d084eb5f056ea526e5";
        assert_eq!(signer.sign(1_234_567_890, b"{}"), expected);
        assert_eq!(format!("{signer:?}"), "Signer");
        assert!(Signer::new(&Secret(Vec::new())).is_none());
    }
}
