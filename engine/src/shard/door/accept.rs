//! Accepting: each connection is a task of its own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use monoio::net::TcpListener;
use monoio::time::{Instant, sleep, timeout};

use super::head::shake;
use super::refuse::{busy, refuse};
use crate::message::ShardId;
use crate::shard::{Local, Shared};

/// Pause after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the shard drains; each connection is a task of its own.
pub async fn accept(listener: TcpListener, shard: ShardId, shared: Arc<Shared>, local: Rc<Local>) {
    let counters = shared.counters[usize::from(shard)].clone();
    loop {
        let accepted = listener.accept().await;
        if local.draining.get() {
            return;
        }
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("accept failed: {e}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (under_way, most) = (local.handshakes.get(), shared.config.server.handshakes_max);
        if under_way >= most.saturating_mul(2) {
            // Even refusals take a descriptor and some time.
            counters.refused.add(1);
            continue;
        }
        let permit = if under_way >= most {
            Err("too many handshakes are under way\n")
        } else {
            shared.admission.admit(peer.ip())
        };
        let (shared, local, counters) = (shared.clone(), local.clone(), counters.clone());
        local.handshakes.set(under_way + 1);
        monoio::spawn(async move {
            let limit = Duration::from_millis(shared.config.server.handshake_timeout_ms.into());
            let shaken = match permit {
                Ok(permit) => shake(stream, permit, Instant::now() + limit, &shared).await,
                Err(why) => Err((stream, busy(why))),
            };
            match shaken {
                Ok(Some(promoted)) => {
                    local.promote(promoted);
                    shared.shards.waker(shard).wake();
                }
                Ok(None) => {}
                Err((stream, refusal)) => {
                    counters.refused.add(1);
                    let _ = timeout(limit, refuse(stream, refusal)).await;
                }
            }
            local.handshakes.set(local.handshakes.get() - 1);
        });
    }
}
