//! Signals: TERM and INT drain, HUP reads the configuration again, USR1, USR2 and ALRM do nothing but say so.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::State;

/// Exit status after a second signal.
const ABORTED: i32 = 130;

/// Caught signals. From when this exists none of them ends the process by itself.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    alarm: Signal,
}

impl Signals {
    /// Call it inside the runtime.
    pub(super) fn catch() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            alarm: signal(SignalKind::alarm())?,
        })
    }

    /// The first TERM or INT drains, the second ends the process at once.
    pub(super) async fn handle(mut self, state: Arc<State>) {
        loop {
            tokio::select! {
                _ = self.term.recv() => {}
                _ = self.int.recv() => {}
                _ = self.hangup.recv() => {
                    // A shard that takes nothing is not to keep the next signal waiting.
                    tokio::spawn(state.clone().reload());
                    continue;
                }
                _ = self.user1.recv() => {
                    tracing::info!("SIGUSR1 is ignored");
                    continue;
                }
                _ = self.user2.recv() => {
                    tracing::info!("SIGUSR2 is ignored");
                    continue;
                }
                _ = self.alarm.recv() => {
                    tracing::info!("SIGALRM is ignored");
                    continue;
                }
            }
            if state.is_draining() {
                std::process::exit(ABORTED);
            }
            state.drain();
        }
    }
}
