//! The wire over epoll.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod suite;

use ringfeed_wire::{Io, Wire, WireConfig};

/// The body has rings, with tables and buffers of limited size.
const IS_RINGS: bool = false;

fn open(config: WireConfig) -> Box<dyn Wire> {
    Io::Epoll.open(config).unwrap()
}
