//! Bodies of `/api/publish` and `/api/batch`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfeed_engine::control::fuzzing;

fuzz_target!(|body: &[u8]| {
    fuzzing::publication(body);
    fuzzing::batch(body);
});
