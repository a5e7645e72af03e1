//! What the door and the shard's own timer share with it, on its thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfeed_wire::WireError;

use super::asks::Asks;
use super::timers::TICK_MS;
use super::{Promoted, Shared};
use crate::ids::ShardId;
use crate::seldom::Seldom;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Local {
    promoted: RefCell<VecDeque<Promoted>>,
    tick: Cell<bool>,
    /// Questions under way, of the shard and of its door.
    pub(super) asks: Asks,
    /// Set when the shard stops accepting.
    pub(super) draining: Cell<bool>,
    /// Handshakes under way.
    pub(super) handshakes: Cell<u32>,
    /// A second handle of the door's listener, to end its accepts.
    listener: Option<socket2::Socket>,
    /// Connections that the wire did not take.
    refused: RefCell<Seldom>,
}

impl Local {
    /// With a second handle of the door's listener; `None` where nothing accepts.
    pub fn new(listener: Option<socket2::Socket>) -> Local {
        Local { listener, ..Local::default() }
    }

    /// Hands over a connection whose handshake is done.
    pub fn promote(&self, promoted: Promoted) {
        self.promoted.borrow_mut().push_back(promoted);
    }

    /// The next connection that was handed over.
    pub(super) fn take_promoted(&self) -> Option<Promoted> {
        self.promoted.borrow_mut().pop_front()
    }

    /// The shard's tick is due. [`Local::tick`] says so every 100 ms.
    pub fn set_tick(&self) {
        self.tick.set(true);
    }

    /// Whether the tick is due; it is not afterwards.
    pub(super) fn take_tick(&self) -> bool {
        self.tick.replace(false)
    }

    pub(super) fn has_mail(&self) -> bool {
        !self.promoted.borrow().is_empty() || self.tick.get()
    }

    /// Ticks the shard for ever.
    pub async fn tick(self: Rc<Local>, shard: ShardId, shared: Arc<Shared>) {
        loop {
            monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
            self.set_tick();
            shared.shards.waker(shard).wake();
        }
    }

    pub(super) fn stop_accepting(&self) {
        self.draining.set(true);
        if let Some(listener) = &self.listener
            && let Err(e) = listener.shutdown(std::net::Shutdown::Both)
        {
            tracing::warn!("the listener could not be shut down: {e}");
        }
    }

    /// Warns of a connection that the wire did not take, but not of each.
    pub(super) fn warn_refused(&self, error: &WireError, now: Instant) {
        if let Some(count) = self.refused.borrow_mut().count(now) {
            tracing::warn!("{count} connections got no answer: {error}");
        }
    }
}
