//! Tokens as an application's backend makes them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

pub const SECRET: &str = "a secret of an application's own, long enough";

/// A server that believes [`SECRET`] and lets nobody in who shows nothing.
pub const ISSUER: &str = r#"
[[issuers]]
secret = "a secret of an application's own, long enough"
leeway_s = 0
claims = ["plan"]
"#;

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A token with these claims.
pub fn signed(claims: &Value) -> String {
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// A token of a user that is good for so many seconds, with further claims.
pub fn token(user: &str, seconds: u64, more: Value) -> String {
    let mut claims = json!({"sub": user, "exp": now() + seconds});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    signed(&claims)
}
