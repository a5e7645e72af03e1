//! Lines of `/api/ingest`: what is published does not depend on how they are cut into pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfeed_engine::control::fuzzing;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let step = usize::from(step) + 1;
    let whole = fuzzing::ingest([bytes]);
    assert_eq!(whole, fuzzing::ingest(bytes.chunks(step)), "in pieces of {step}");
});
