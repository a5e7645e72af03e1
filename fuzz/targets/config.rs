//! Configurations: a file, then `--set` values and environment variables, each behind a NUL.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ringfeed_engine::config::{Config, Sources};

fuzz_target!(|bytes: &[u8]| {
    static FILE: OnceLock<tempfile::NamedTempFile> = OnceLock::new();
    let file =
        FILE.get_or_init(|| tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory"));
    let mut parts = bytes.split(|&b| b == 0);
    std::fs::write(file.path(), parts.next().unwrap_or_default()).expect("a file to write to");
    let (mut flags, mut environment) = (Vec::new(), Vec::new());
    for part in parts.filter_map(|part| std::str::from_utf8(part).ok()) {
        match part.strip_prefix("RINGFEED_").and_then(|rest| rest.split_once('=')) {
            Some((name, value)) => environment.push((format!("RINGFEED_{name}").into(), value.into())),
            None => flags.push(part.to_owned()),
        }
    }
    let sources = Sources { file: Some(file.path()), environment, flags };
    if let Err(errors) = Config::load(&sources) {
        assert!(!errors.0.is_empty() && errors.0.iter().all(|error| !error.is_empty()));
    }
});
