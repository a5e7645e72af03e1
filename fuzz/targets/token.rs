//! Tokens, claims that are signed, and documents with the keys of issuers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfeed_engine::access::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        fuzzing::token(text);
        fuzzing::claims(text);
    }
    fuzzing::jwks(bytes);
});
