//! The ringfeed server.
//!
//! [`config`] says what is to run, [`server`] starts it: N pinned [`shard`]s that own connections
//! and channels, and one [`control`] thread for the HTTP API and metrics.
#![forbid(unsafe_code)]

pub mod access;
pub mod bridge;
pub mod callers;
pub mod clock;
pub mod config;
pub mod content;
pub mod control;
pub mod counters;
pub mod haproxy;
pub mod ids;
pub mod mesh;
pub mod message;
mod names;
pub mod origins;
pub mod plan;
pub mod proxies;
mod rates;
pub mod registry;
pub mod revoked;
pub mod rooms;
mod seldom;
pub mod server;
pub mod settings;
pub mod shard;
mod slab;
