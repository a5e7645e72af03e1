//! Accepting: each connection is a task of its own.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{AbortRegistration, Abortable, Aborted};
use monoio::net::{TcpListener, TcpStream};
use monoio::time::{sleep, timeout};
use ringfeed_protocol::handshake::Refusal;

use super::Door;
use super::admission::Permit;
use super::client::Client;
use super::head::Head;
use super::places::Place;
use super::refuse::busy;
use super::route::{Answer, route};
use crate::counters::RefusalReason;
use crate::ids::ShardId;
use crate::seldom::Seldom;
use crate::settings::Settings;
use crate::shard::{Local, Promoted, Shared};

/// Pause after an accept failed for want of descriptors or memory, and nobody can be sent away.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pause while all places are taken by those who came just now: the others wait in the backlog.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// Accepts until the shard drains.
pub async fn accept(listener: TcpListener, shard: ShardId, shared: Arc<Shared>, local: Rc<Local>) {
    let door = Rc::new(Door::new(shard, shared, local));
    let mut failures = Seldom::default();
    loop {
        let accepted = listener.accept().await;
        if door.local.draining.get() {
            return;
        }
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                if let Some(count) = failures.count(Instant::now()) {
                    tracing::warn!("accept failed {count} times in a second or more: {e}");
                }
                let freed = is_shortage(&e) && door.handshakes.make_room(Instant::now());
                sleep(if freed { FULL_PAUSE } else { ACCEPT_PAUSE }).await;
                continue;
            }
        };
        let settings = door.shared.settings.load_full();
        let client = Client::new(peer.ip(), &settings.proxies);
        let admission = &door.shared.admission;
        let admitted = match client.is_proxy {
            true => admission.admit_proxy(),
            false => admission.admit(client.address),
        };
        let permit = match admitted {
            Ok(permit) => permit,
            Err(why) => {
                let door = door.clone();
                let refused = async move {
                    door.refuse(stream, client.counted_as(), why.reason(), why.refusal()).await;
                };
                monoio::spawn(refused);
                continue;
            }
        };
        let (place, leave) = loop {
            let (address, now) = (client.counted_as(), Instant::now());
            let entered = match client.is_proxy {
                true => door.handshakes.enter_unshared(address, now),
                false => door.handshakes.enter(address, now),
            };
            match entered {
                Some(entered) => break entered,
                None => sleep(FULL_PAUSE).await,
            }
            if door.local.draining.get() {
                return;
            }
        };
        door.count_handshakes();
        monoio::spawn(door.clone().serve(stream, settings, client, permit, place, leave));
    }
}

/// Whether the process has too much open.
fn is_shortage(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
        || error.kind() == io::ErrorKind::OutOfMemory
}

impl Door {
    /// One connection, up to its promotion or its end.
    async fn serve(
        self: Rc<Self>,
        mut stream: TcpStream,
        settings: Arc<Settings>,
        mut client: Client,
        mut permit: Permit,
        place: Place,
        leave: AbortRegistration,
    ) {
        let limit = Duration::from_millis(settings.config.server.handshake_timeout_ms.into());
        let reading = self.read_request(&mut stream, &settings, &place, &mut client, &mut permit);
        let read = Abortable::new(timeout(limit, reading), leave).await;
        drop(place);
        self.count_handshakes();
        let address = client.counted_as();
        let Head { mut bytes, rest } = match read {
            Err(Aborted) => {
                let why = "the request head is slow and others wait\n";
                return self.send_away(stream, busy(why)).await;
            }
            Ok(Err(_)) => {
                let late = Refusal::new(408, "the request head took too long\n");
                return self.refuse(stream, address, RefusalReason::Timeout, late).await;
            }
            Ok(Ok(Err((reason, refusal)))) => {
                return self.refuse(stream, address, reason, refusal).await;
            }
            Ok(Ok(Ok(None))) => return,
            Ok(Ok(Ok(Some(head)))) => head,
        };
        // Who has taken long to ask is let in by what holds by now.
        let settings = self.shared.settings.load_full();
        let routed = route(&bytes, &settings, client.address);
        match routed {
            Err(refusal) => {
                let reason = match refusal.status {
                    403 => RefusalReason::Origin,
                    404 => RefusalReason::NotFound,
                    _ => RefusalReason::BadRequest,
                };
                self.refuse(stream, address, reason, refusal).await;
            }
            Ok(Answer::HandOver) => {
                bytes.extend_from_slice(&rest);
                self.hand_over(stream, bytes, client, permit).await;
            }
            Ok(Answer::Page(answer)) => {
                drop(permit);
                self.answer(stream, address, answer).await;
            }
            Ok(Answer::Upgrade { endpoint, dialect, talk, answer, shown }) => {
                // Who has to wait for somebody does so without it.
                drop(bytes);
                let credentials = match self.identify(&settings, shown, dialect).await {
                    Ok(credentials) => credentials,
                    Err((reason, refusal)) => {
                        return self.refuse(stream, address, reason, refusal).await;
                    }
                };
                let socket = ringfeed_wire::into_owned_fd(stream);
                self.local.promote(Promoted {
                    socket,
                    endpoint,
                    dialect,
                    talk,
                    answer,
                    rest,
                    permit,
                    credentials,
                });
                self.shared.shards.waker(self.shard).wake();
            }
        }
    }
}
