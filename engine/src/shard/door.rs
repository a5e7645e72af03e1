//! The door: from accept to the answer of the upgrade, as plain async code on the shard's executor.
//!
//! A connection here has a deadline for everything, a small buffer and no state in the engine. When
//! its head is read it is promoted: its descriptor and the answer go to the shard, which moves the one
//! into the wire and sends the other, so that nobody is told of a WebSocket for which there is no
//! place. Authentication will stand between head and answer.

mod accept;
mod admission;
mod client;
mod credentials;
mod handover;
mod head;
mod places;
mod refuse;
mod route;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use accept::accept;
pub(crate) use admission::counted_as;
pub use admission::{Admission, NotAdmitted, Permit};
pub use handover::{HANDED_MAX, Handed};

use super::{Local, Shared};
use crate::counters::Counters;
use crate::ids::ShardId;
use places::Places;

/// Heads younger than this stay when places are short: what an honest peer sent is mostly there.
const HEAD_GRACE: Duration = Duration::from_millis(10);

/// What the tasks of one shard's door share.
#[derive(Debug)]
struct Door {
    shard: ShardId,
    shared: Arc<Shared>,
    local: Rc<Local>,
    counters: Arc<Counters>,
    /// Heads under way.
    handshakes: Rc<Places>,
    /// Connections whose end waits for the peer.
    lingering: Rc<Places>,
}

impl Door {
    fn new(shard: ShardId, shared: Arc<Shared>, local: Rc<Local>) -> Door {
        let counters = shared.counters[shard.index()].clone();
        let config = shared.config();
        let server = &config.server;
        let handshakes = Rc::new(Places::new(server.handshakes_max as usize, HEAD_GRACE));
        let lingering = Rc::new(Places::new(refuse::LINGERING_MAX, Duration::ZERO));
        Door { shard, shared, local, counters, handshakes, lingering }
    }

    /// Tells the shard how many heads are under way.
    fn count_handshakes(&self) {
        self.local.handshakes.set(u32::try_from(self.handshakes.count()).unwrap_or(u32::MAX));
    }
}
