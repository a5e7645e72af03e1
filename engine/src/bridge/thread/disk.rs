//! What the thread has to do with the spool: the disk does one thing at a time, on a thread for what blocks.

use std::future::pending;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::Runner;
use super::backlog::Backlog;
use crate::bridge::spool::Spool;
use crate::bridge::spooling::SpoolDone;

/// What the disk is doing.
pub(super) type Work = JoinHandle<(Spool, SpoolDone)>;

/// Waits for what it does, if it does anything.
pub(super) async fn done(work: &mut Option<Work>) -> Result<(Spool, SpoolDone), JoinError> {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

impl Runner {
    /// Keeps on disk what Redis has not taken before the end.
    pub(super) async fn spool_rest(&mut self) {
        if self.spool.is_none() && self.spool_work.is_none() {
            return;
        }
        self.link = None;
        self.backlog = Backlog::default();
        self.bridge.lost(self.now_ms());
        self.bridge.give_up(self.now_ms());
        loop {
            let is_all = self.take_wanted();
            self.use_disk();
            if self.spool_work.is_some() {
                let done = done(&mut self.spool_work).await;
                self.disk_done(done);
            } else if is_all || self.spool.is_none() {
                break;
            }
        }
        let left = self.bridge.spooled();
        if left > 0 {
            tracing::info!("{left} publications are left on disk for Redis");
        }
    }

    /// Gives the disk what it is to do next.
    pub(super) fn use_disk(&mut self) {
        let Some(mut spool) = self.spool.take() else { return };
        match self.bridge.take_spool_order() {
            None => self.spool = Some(spool),
            Some(order) => {
                self.spool_work = Some(spawn_blocking(move || {
                    let done = spool.serve(order);
                    (spool, done)
                }));
            }
        }
    }

    pub(super) fn disk_done(&mut self, done: Result<(Spool, SpoolDone), JoinError>) {
        self.spool_work = None;
        match done {
            Ok((spool, done)) => {
                if let SpoolDone::Written(count) = &done {
                    self.shared.redis.spooled.add(*count as u64);
                }
                self.shared.redis.spool_bytes.set(spool.bytes());
                self.spool = Some(spool);
                self.bridge.spool_done(done);
            }
            Err(e) => tracing::error!("redis.spool_dir: {e}"),
        }
    }
}
