//! The registry's connections: bounds how many there are and how long they may do nothing, and serves HTTP/1.1 on them.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
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

/// Serves until `ending` is true, and what is in progress then.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    registry: Arc<Registry>,
    mut ending: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(registry.options.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        match accepted {
            Ok((stream, _)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let served =
                        connection(stream, place, router.clone(), ending.clone(), registry.clone());
                    connections.spawn(served);
                }
                Err(_) => {
                    registry.figures.connections_refused.inc();
                    refuse(stream);
                }
            },
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
    _place: OwnedSemaphorePermit,
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
        let answered = router.call(request);
        async move {
            let response = answered.await?;
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
