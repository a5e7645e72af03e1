//! The internal port: accepts, bounds how many connections there are and how long they may do nothing,
//! and serves HTTP/1.1 on them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
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
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::State;
use super::body::no_room;
use super::budget::Held;
use super::error::clip;
use super::guard::Peer;

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

/// Accepts until the shards have ended, and serves what is in progress then.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>, router: Router) {
    let most = state.shared.config().api.connections_max as usize;
    let table = Rc::new(Table { most, ..Table::default() });
    let mut stopping = state.stopping.subscribe();
    tokio::select! {
        () = accept(listener, &table, &state, &router) => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    let _ = timeout(LAST_ANSWERS_TIME, table.emptied()).await;
}

/// Accepts for ever.
async fn accept(listener: TcpListener, table: &Rc<Table>, state: &Arc<State>, router: &Router) {
    let refusals = Rc::new(Cell::new(0));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                if let Some(others) = state.accept_log.due(LOG_EVERY) {
                    tracing::warn!("the API's accept failed: {e} ({others} more like it)");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match table.admit(state) {
            Some(seat) => {
                state.figures.connections.set(table.len() as u64);
                let (table, state, router) = (table.clone(), state.clone(), router.clone());
                tokio::task::spawn_local(async move {
                    connection(stream, peer, &seat, &state, router).await;
                    table.remove(seat.id);
                    state.figures.connections.set(table.len() as u64);
                });
                // It may have sent its request already: it is looked at before others can push it out.
                tokio::task::yield_now().await;
            }
            None => {
                state.figures.connections_refused.add(1);
                if refusals.get() < REFUSALS_MAX {
                    refusals.set(refusals.get() + 1);
                    let refusals = refusals.clone();
                    tokio::task::spawn_local(async move {
                        let _ = timeout(REFUSAL_TIME, refuse(stream)).await;
                        refusals.set(refusals.get() - 1);
                    });
                }
            }
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

/// The connections that are served.
#[derive(Debug, Default)]
struct Table {
    seats: RefCell<HashMap<u64, Rc<Seat>>>,
    next_id: Cell<u64>,
    most: usize,
    /// Told when one has left.
    left: Notify,
}

/// One of them.
#[derive(Debug)]
struct Seat {
    id: u64,
    /// Since when it has no request; `None` while it has one.
    waiting_since: Cell<Option<Instant>>,
    /// Whether it ever had a request that was not refused.
    served: Cell<bool>,
    /// Told when somebody else needs its place.
    leave: Notify,
}

impl Table {
    fn len(&self) -> usize {
        self.seats.borrow().len()
    }

    fn remove(&self, id: u64) {
        self.seats.borrow_mut().remove(&id);
        self.left.notify_one();
    }

    /// Waits until nobody is left.
    async fn emptied(&self) {
        while self.len() > 0 {
            self.left.notified().await;
        }
    }

    /// A place for one more. If there is none, the connection that has waited longest without a
    /// request leaves, those first that never had one; `None` if all have one.
    fn admit(&self, state: &State) -> Option<Rc<Seat>> {
        let mut seats = self.seats.borrow_mut();
        if seats.len() >= self.most {
            let waiting = seats.values().filter_map(|seat| {
                let since = seat.waiting_since.get()?;
                Some((seat.served.get(), since, seat.id))
            });
            let (_, _, id) = waiting.min()?;
            if let Some(seat) = seats.remove(&id) {
                seat.leave.notify_one();
                state.figures.connections_pushed_out.add(1);
            }
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        let seat = Rc::new(Seat {
            id,
            waiting_since: Cell::new(Some(Instant::now())),
            served: Cell::new(false),
            leave: Notify::new(),
        });
        seats.insert(id, seat.clone());
        Some(seat)
    }
}

/// A request under way on a connection.
struct Busy(Rc<Seat>);

impl Busy {
    fn new(seat: &Rc<Seat>) -> Busy {
        seat.waiting_since.set(None);
        Busy(seat.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.waiting_since.set(Some(Instant::now()));
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    seat: &Rc<Seat>,
    state: &Arc<State>,
    router: Router,
) {
    let (time, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval);
    let socket = SockRef::from(&stream);
    let set = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_send_buffer_size(SEND_BUFFER_BYTES))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive.with_retries(retries)));
    if let Err(e) = set {
        tracing::debug!("API: {peer} is gone already: {e}");
        return;
    }
    let idle = Duration::from_millis(state.shared.config().api.idle_timeout_ms.into());
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        let busy = Busy::new(seat);
        request.extensions_mut().insert(Peer(peer));
        let (state, router) = (state.clone(), router.clone());
        async move {
            let began = Instant::now();
            let (method, path) = (request.method().clone(), clip(request.uri().path()));
            let response = router.call(request).await?;
            let response = Answer::of(response, busy, &state);
            let (status, took) = (response.status(), began.elapsed());
            state.figures.request(status.as_u16(), took);
            tracing::debug!("API: {method} {path} {} {} ms", status.as_u16(), took.as_millis());
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Patient::new(stream, idle)), service);
    let mut served = pin!(served);
    let mut stopping = state.stopping.subscribe();
    let mut stopped = false;
    loop {
        tokio::select! {
            biased;
            () = seat.leave.notified() => {
                return tracing::debug!("API: {peer} gave its place to another");
            }
            _ = stopping.wait_for(|stopping| *stopping), if !stopped => {
                stopped = true;
                // It ends behind the answer that it is owed.
                served.as_mut().graceful_shutdown();
            }
            ended = served.as_mut() => {
                if let Err(e) = ended {
                    tracing::debug!("API: {peer}: {}", clip(&e.to_string()));
                }
                return;
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
    fn of(mut response: Response<Body>, busy: Busy, state: &State) -> Response<Answer> {
        let reserved = response.extensions_mut().remove::<Reserved>().unwrap_or_else(|| {
            let mut held = state.bodies.hold();
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

/// A connection that fails when something waits to be written and the peer has neither read nor sent
/// anything for a while.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while something waits to be written.
    ends: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Patient {
        Patient { stream, patience, ends: None }
    }

    fn wrote<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.ends = None;
            return written;
        }
        let patience = self.patience;
        let ends = self.ends.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(ends.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            let patience = self.patience;
            if let Some(ends) = &mut self.ends {
                ends.as_mut().reset(Instant::now() + patience);
            }
        }
        read
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
