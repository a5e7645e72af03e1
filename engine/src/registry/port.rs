//! The registry's connections: bounds how many there are and how long they may do nothing, and serves HTTP/1.1 on them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{sleep, timeout};

use super::error::clip;
use super::guard::Peer;
use super::hold::Registry;
use crate::control::Patient;

/// Largest head of a request in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a connection may be silent, and how long an answer may wait to be read.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// Pause after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long what is in progress is still served once the registry is told to end.
const LAST_ANSWERS_TIME: Duration = Duration::from_secs(5);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
    Content-Length: 92\r\nConnection: close\r\n\r\n\
    {\"error\":\"busy\",\"message\":\"all connections of the registry are in use (--connections-max)\"}\n";

/// What is known of a connection beside its task.
struct Seat {
    began: Instant,
    /// Since when nothing is asked over it, in milliseconds since it began; [`Seat::ASKED`] while something is.
    idle_ms: AtomicU64,
    /// Told when another one gets its place.
    leave: Notify,
}

impl Seat {
    const ASKED: u64 = u64::MAX;

    fn new() -> Seat {
        Seat { began: Instant::now(), idle_ms: AtomicU64::new(0), leave: Notify::new() }
    }

    fn asked(&self) {
        self.idle_ms.store(Seat::ASKED, Ordering::Relaxed);
    }

    fn answered(&self) {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(Seat::ASKED - 1);
        self.idle_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Since when nothing is asked over it; `None` while something is.
    fn idle_since(&self) -> Option<Instant> {
        let idle_ms = self.idle_ms.load(Ordering::Relaxed);
        (idle_ms != Seat::ASKED).then(|| self.began + Duration::from_millis(idle_ms))
    }
}

/// Ends the connection over which nothing was asked for longest: so who says nothing keeps nobody away who has a key. Whether
/// there is one.
fn make_room(seats: &mut HashMap<Id, Arc<Seat>>) -> bool {
    let idle = seats.iter().filter_map(|(id, seat)| Some((seat.idle_since()?, *id)));
    let seat = idle.min_by_key(|(since, _)| *since).and_then(|(_, id)| seats.remove(&id));
    seat.as_ref().inspect(|seat| seat.leave.notify_one()).is_some()
}

/// Serves until `ending` is true, and what is in progress then.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    registry: Arc<Registry>,
    mut ending: watch::Receiver<bool>,
) {
    let (mut connections, mut seats) = (JoinSet::new(), HashMap::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next_with_id() => {
                let id = ended.map_or_else(|e| e.id(), |(id, ())| id);
                seats.remove(&id);
                continue;
            }
            _ = ending.wait_for(|ending| *ending) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                if seats.len() >= registry.options.connections_max && !make_room(&mut seats) {
                    registry.figures.connections_refused.inc();
                    refuse(stream);
                    continue;
                }
                let seat = Arc::new(Seat::new());
                let (ending, registry) = (ending.clone(), registry.clone());
                let served = connection(stream, seat.clone(), router.clone(), ending, registry);
                seats.insert(connections.spawn(served).id(), seat);
            }
            Err(e) => {
                tracing::warn!("the registry's accept failed: {e}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(LAST_ANSWERS_TIME, ended).await;
}

/// Tells a connection to come back, as far as its socket takes that at once.
fn refuse(stream: TcpStream) {
    let _ = stream.try_write(FULL);
}

async fn connection(
    stream: TcpStream,
    seat: Arc<Seat>,
    router: Router,
    mut ending: watch::Receiver<bool>,
    registry: Arc<Registry>,
) {
    let Ok(peer) = stream.peer_addr() else { return };
    let _ = stream.set_nodelay(true);
    registry.figures.connections.inc();
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        let (method, path) = (request.method().clone(), clip(request.uri().path()));
        let (answered, seat) = (router.call(request), &seat);
        seat.asked();
        async move {
            let response = answered.await;
            seat.answered();
            let response = response?;
            tracing::debug!("{method} {path} from {peer}: {}", response.status().as_u16());
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(Patient::new(bytes::Bytes::new(), stream, IDLE_TIME));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, service);
    let mut served = pin!(served);
    let told = async { drop(ending.wait_for(|ending| *ending).await) };
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = told => None,
        () = seat.leave.notified() => {
            tracing::debug!("{peer} gave its place to another");
            registry.figures.connections.dec();
            return;
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("{peer}: {}", clip(&e.to_string()));
    }
    registry.figures.connections.dec();
}
