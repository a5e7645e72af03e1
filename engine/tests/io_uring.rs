//! The engine over io_uring.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod suite;

/// `server.io`
const IO: &str = "io_uring";
