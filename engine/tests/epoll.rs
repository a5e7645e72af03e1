//! The engine over epoll.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod suite;

/// `server.io`
const IO: &str = "epoll";
