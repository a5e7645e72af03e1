//! Recordings as `loadgen replay` reads them, gzip or plain.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    static FILE: OnceLock<tempfile::NamedTempFile> = OnceLock::new();
    let file =
        FILE.get_or_init(|| tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory"));
    std::fs::write(file.path(), bytes).expect("a file to write to");
    loadgen_as_library::fuzzing::recording(file.path());
});
