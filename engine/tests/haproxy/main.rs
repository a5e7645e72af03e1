//! HAProxy in front of nodes, as `ringfeed haproxy` configures it: a real HAProxy, a real registry, real nodes and WebSockets
//! through all of it.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod balancing;
mod files;
#[path = "../registry/process.rs"]
#[allow(dead_code)] // each of the two has its own part of it
mod process;
