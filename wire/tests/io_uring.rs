//! The wire over io_uring.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod suite;

use ringfeed_wire::{Io, Wire, WireConfig};

/// The body has rings, with tables and buffers of limited size.
const IS_RINGS: bool = true;

fn open(config: WireConfig) -> Box<dyn Wire> {
    Io::IoUring.open(config).unwrap()
}

#[test]
fn the_probe_finds_everything_on_this_kernel() {
    ringfeed_wire::probe().unwrap();
}
