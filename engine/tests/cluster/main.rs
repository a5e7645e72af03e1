//! Several nodes that share channels without a broker, and the registry that says which.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod channels;
mod encrypted;
mod faults;
mod fleet;
mod namespaces;
#[path = "../registry/process.rs"]
#[allow(dead_code)] // a part of it is used
mod process;
mod receipts;
mod rolling;
mod rooms;
mod share;
mod strangers;
#[path = "../suite"]
mod suite {
    pub(crate) mod common;
}

pub(crate) use suite::common;

/// `server.io`
const IO: &str = "auto";
