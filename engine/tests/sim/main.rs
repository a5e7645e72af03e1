//! The simulator: shards, clients and a network in one thread, all from one seed.
//!
//! Every seed is a world of its own ([`world`]): a few shards with small limits ([`setup`]), clients of
//! every dialect and habit ([`client`]), a socket layer that does what networks do ([`net`]), a clock
//! that stands still until it is moved, and a judge that knows only what clients may rely on
//! ([`judge`], with what it knows of who may have what in [`ledger`]); tokens that are shown in band are real ones
//! ([`token`]); what holds in rooms is worked out in [`rooms`]. The engine is met in [`node`] and
//! [`control`] alone.
//!
//! `cargo test -p ringfeed-engine --test sim` runs fresh seeds for a minute; `-- --help` says more. A
//! seed that fails is printed with the command that runs it again, with a trace to be read.
//!
//! Dialects of existing systems ([`talk`]) are spoken by some clients: what each of them promises stands in a file of its own.
//!
//! To add an operation of clients: [`client::OPERATIONS`]; something that happens: [`world::STEPS`]; a
//! fault of sockets: [`net::Faults`]; a promise to clients: `rules!` in [`judge`]; a limit or a shape
//! of load: [`setup::Setup`].
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod application;
mod client;
mod confirm;
mod control;
mod dice;
mod door;
mod event;
mod finale;
mod judge;
mod ledger;
mod link;
mod listen;
mod net;
mod node;
mod nodes;
mod policy;
mod presence;
mod publish;
mod raw;
mod rooms;
mod run;
mod setup;
mod takes;
mod talk;
mod token;
mod trace;
mod world;
mod ws;

fn main() -> std::process::ExitCode {
    run::main()
}
