//! The connections of HTTP, on the internal port and of those that the shards' doors hand over: bounds how many there are
//! and how long they may do nothing, and serves HTTP/1.1 on them.

mod patient;
mod table;

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use axum::response::IntoResponse as _;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::State;
use super::body::no_room;
use super::budget::{Budget, Held};
use super::error::clip;
use super::figures::PortFigures;
use super::guard::Peer;
use crate::shard::door::{Handed, Permit};
pub(crate) use patient::Patient;
use table::{Busy, Seat, Table};

/// Largest head of a request, and most that is read of a connection ahead.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Answers up to so many bytes do not count as held. Larger ones count until the last of these pieces
/// was handed to the connection.
pub(super) const UNCOUNTED_BYTES_MAX: usize = 64 * 1024;
/// Connections that are told to come back later and not served; more are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long one of them may take to read the answer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Pause after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failed accepts are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Send buffer of each connection in the kernel: what a slow reader holds there, and how finely its
/// progress is seen.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// How long what is in progress is still served once the shards have ended.
const LAST_ANSWERS_TIME: Duration = Duration::from_secs(1);
/// A peer that is gone is noticed after 30 s + 3 x 10 s of silence.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Accepts on the internal port until the shards have ended, and serves what is in progress then.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>, router: Router) {
    let (bodies, ending) = (state.bodies.clone(), &state.stopping);
    let port = Port::new("API", |state| &state.figures.api, bodies, ending, router, &state);
    port.serve(accept(listener, &port)).await;
}

/// Serves the connections that the shards' doors hand over, until the server drains.
pub(super) async fn serve_handed(
    handed: mpsc::Receiver<Handed>,
    state: Arc<State>,
    router: Router,
) {
    let (bodies, ending) = (state.public_bodies.clone(), &state.draining);
    let port = Port::new("HTTP", |state| &state.figures.public, bodies, ending, router, &state);
    port.serve(take(handed, &port)).await;
}

/// What is served on one port, and by what bounds.
struct Port {
    /// For the log.
    name: &'static str,
    figures: fn(&State) -> &PortFigures,
    /// What its answers may hold.
    bodies: Budget,
    /// True from when connections end behind the answers that they are owed.
    ending: watch::Receiver<bool>,
    router: Router,
    state: Arc<State>,
    table: Table,
    /// Connections that are being told to come back.
    refusals: Cell<usize>,
}

/// A connection that begins.
struct Begun {
    stream: TcpStream,
    /// What was read of it before.
    read: Bytes,
    /// For whom it is.
    client: IpAddr,
    /// Held as long as it is there.
    permit: Option<Permit>,
}

impl Port {
    fn new(
        name: &'static str,
        figures: fn(&State) -> &PortFigures,
        bodies: Budget,
        ending: &watch::Sender<bool>,
        router: Router,
        state: &Arc<State>,
    ) -> Rc<Port> {
        let table = Table::new(state.shared.config().api.connections_max as usize);
        let (ending, state, refusals) = (ending.subscribe(), state.clone(), Cell::new(0));
        Rc::new(Port { name, figures, bodies, ending, router, state, table, refusals })
    }

    fn figures(&self) -> &PortFigures {
        (self.figures)(&self.state)
    }

    /// Takes connections until the shards have ended, and serves what is in progress then.
    async fn serve(&self, taking: impl Future<Output = ()>) {
        let mut stopping = self.state.stopping.subscribe();
        tokio::select! {
            () = taking => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
        let _ = timeout(LAST_ANSWERS_TIME, self.table.emptied()).await;
    }

    /// Gives a connection a place and serves it there, or tells it to come back.
    async fn admit(self: &Rc<Self>, begun: Begun) {
        match self.table.admit(self.figures()) {
            Some(seat) => {
                let port = self.clone();
                tokio::task::spawn_local(async move {
                    connection(begun, &seat, &port).await;
                    port.table.remove(seat.id, port.figures());
                });
                // It may have sent its request already: it is looked at before others can push it out.
                tokio::task::yield_now().await;
            }
            None => {
                self.figures().connections_refused.add(1);
                if self.refusals.get() < REFUSALS_MAX {
                    self.refusals.set(self.refusals.get() + 1);
                    let port = self.clone();
                    tokio::task::spawn_local(async move {
                        let _ = timeout(REFUSAL_TIME, refuse(begun.stream)).await;
                        port.refusals.set(port.refusals.get() - 1);
                    });
                }
            }
        }
    }
}

/// Accepts for ever.
async fn accept(listener: TcpListener, port: &Rc<Port>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let client = peer.ip();
                port.admit(Begun { stream, read: Bytes::new(), client, permit: None }).await;
            }
            Err(e) => {
                if let Some(others) = port.state.accept_log.due(LOG_EVERY) {
                    tracing::warn!("the API's accept failed: {e} ({others} more like it)");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes what is handed over until no shard is there any more.
async fn take(mut handed: mpsc::Receiver<Handed>, port: &Rc<Port>) {
    while let Some(Handed { socket, read, client, permit }) = handed.recv().await {
        let stream = std::net::TcpStream::from(socket);
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        match stream {
            Ok(stream) => {
                port.admit(Begun { stream, read: read.into(), client, permit: Some(permit) }).await;
            }
            Err(e) => tracing::debug!("HTTP: {client} cannot be served: {e}"),
        }
    }
}

/// Tells a connection to come back, and waits for it to have read that.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let body =
        "{\"error\":\"busy\",\"message\":\"all connections are in use (api.connections_max)\"}";
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with something unread would be a reset, which may overtake the answer.
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// Serves one connection to its end.
async fn connection(begun: Begun, seat: &Rc<Seat>, port: &Rc<Port>) {
    let Begun { stream, read, client, permit: _permit } = begun;
    let name = port.name;
    let (time, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval);
    let socket = SockRef::from(&stream);
    let set = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_send_buffer_size(SEND_BUFFER_BYTES))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive.with_retries(retries)));
    if let Err(e) = set {
        tracing::debug!("{name}: {client} is gone already: {e}");
        return;
    }
    let idle = Duration::from_millis(port.state.shared.config().api.idle_timeout_ms.into());
    let router = TowerToHyperService::new(port.router.clone());
    let service = service_fn(|mut request: Request<Incoming>| {
        let busy = Busy::new(seat);
        request.extensions_mut().insert(Peer(client));
        let (port, router) = (port.clone(), router.clone());
        async move {
            let began = Instant::now();
            let (method, path) = (request.method().clone(), clip(request.uri().path()));
            let response = router.call(request).await?;
            let response = Answer::of(response, busy, &port.bodies);
            let (status, took) = (response.status(), began.elapsed());
            port.figures().request(status.as_u16(), took);
            tracing::debug!("{name}: {method} {path} {} {} ms", status.as_u16(), took.as_millis());
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Patient::new(read, stream, idle)), service);
    let mut served = pin!(served);
    let mut ending = port.ending.clone();
    let mut ends = false;
    loop {
        tokio::select! {
            biased;
            () = seat.leave.notified() => {
                return tracing::debug!("{name}: {client} gave its place to another");
            }
            // A request that came with the connection is begun before the connection is told to end.
            ended = served.as_mut() => {
                if let Err(e) = ended {
                    tracing::debug!("{name}: {client}: {}", clip(&e.to_string()));
                }
                return;
            }
            _ = ending.wait_for(|ending| *ending), if !ends => {
                ends = true;
                // It ends behind the answer that it is owed.
                served.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The body of an answer: keeps its connection busy and its bytes counted until it was handed over.
struct Answer {
    body: Body,
    /// Of a piece too large for the connection: what is left.
    left: Bytes,
    _busy: Busy,
    _reserved: Reserved,
}

/// Memory for an answer, in its extensions: taken before what it tells of was done.
#[derive(Debug, Clone)]
pub(super) struct Reserved {
    _held: Arc<Held>,
}

impl Reserved {
    pub(super) fn new(held: Held) -> Reserved {
        Reserved { _held: Arc::new(held) }
    }
}

impl Answer {
    /// Answers that would take too much of the memory for bodies become a 503.
    fn of(mut response: Response<Body>, busy: Busy, bodies: &Budget) -> Response<Answer> {
        let reserved = response.extensions_mut().remove::<Reserved>().unwrap_or_else(|| {
            let mut held = bodies.hold();
            let len = response.body().size_hint().exact().unwrap_or(0) as usize;
            if len > UNCOUNTED_BYTES_MAX && !held.try_grow_to(len) {
                response = no_room().into_response();
            }
            Reserved::new(held)
        });
        busy.0.served.set(busy.0.served.get() || response.status().as_u16() < 400);
        response.map(|body| Answer { body, left: Bytes::new(), _busy: busy, _reserved: reserved })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.left.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.left = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let len = self.left.len().min(UNCOUNTED_BYTES_MAX);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Some(exact) = hint.exact() {
            hint.set_exact(exact + self.left.len() as u64);
        }
        hint
    }
}
