//! The registry: a process of its own that holds, for a fleet of nodes without a broker, which nodes there are, what they
//! report and which channels they serve. It is asked over HTTP and keeps what it knows in one SQLite file.
//!
//! Memory is what requests are answered from. What nodes and operators are told is stored is in the file before they are told;
//! when a node was last heard of and what it last reported follow within a second, so that a heartbeat costs no disk and a
//! full one makes no node seem dead. The registry carries no publication, and nodes go on without it.

pub mod api;
pub mod client;
pub mod keys;
pub mod membership;
pub mod names;
pub mod views;

mod body;
mod channels;
mod cluster;
mod error;
mod figures;
mod fleet;
mod foreign;
mod guard;
mod hold;
mod port;
mod routes;
mod server;
mod store;

pub use routes::openapi;
pub use server::{Options, OptionsError, run};
pub use store::{StoreError, copy};
