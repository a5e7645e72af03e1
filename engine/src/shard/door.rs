//! The door: from accept to the answer of the upgrade, as plain async code on the shard's executor.
//!
//! A connection here has a deadline for everything, a small buffer and no state in the engine. When
//! its handshake is done it is promoted: its descriptor goes to the shard, which moves it into the
//! wire, and nothing here touches it again. Authentication will stand between head and answer.

mod accept;
mod admission;
mod head;
mod refuse;
mod route;

pub use accept::accept;
pub use admission::{Admission, Permit};

/// Bytes read at once; most request heads are smaller.
const READ_BYTES: usize = 2048;
