//! The registry as nodes and operators meet it: the real binary over real HTTP, with a file of its own for each test.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod durability;
mod foreign;
mod membership;
mod own;
mod process;
mod requests;
