//! What is asked outside, over real sockets: an application that answers, and one that does wrong in every way there is.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod answers;
mod application;
mod failures;
mod issuer;
mod limits;
mod shard;
