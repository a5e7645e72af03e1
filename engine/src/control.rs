//! The control thread: the HTTP API, metrics and signals, on tokio, where well-kept libraries do the
//! work and nothing can stall a shard.

mod api;
mod body;
mod budget;
mod channels;
mod drop;
pub(crate) mod error;
mod fetched;
mod figures;
mod forwards;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod history;
pub mod hooks;
mod ingest;
mod metrics;
mod port;
mod presence;
mod public;
mod publish;
mod questions;
mod reload;
mod rooms;
pub mod rpc;
mod signals;
mod stats;
mod users;

use std::io;
use std::net::{IpAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::callers::Caller;
use crate::ids::ShardId;
use crate::message::{Asked, Forwards, NotTaken, Request};
use crate::rates::Rates;
use crate::registry::api::ChannelList;
use crate::shard::Shared;
use crate::shard::door::HANDED_MAX;
use budget::Budget;
use figures::{Figures, LogLimit};
use guard::Requester;
use signals::Signals;

pub use api::openapi;
pub use error::error_words;
pub use fetched::Fetched;
pub(crate) use forwards::WAITING_BYTES_MAX;
pub(crate) use port::Patient;
pub use reload::{ReadOver, Reload};

/// Payload bytes of publications that were handed to one shard and not answered yet.
const SHARD_BYTES_MAX: u64 = 16 << 20;
/// What comes to the port of the WebSockets may hold so large a part of `api.bodies_bytes_max`, beside that: who has no
/// key yet takes nothing from those who have one.
pub(crate) const PUBLIC_BODIES_PART: u64 = 4;
/// How long to wait before a full shard is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// What every request handler sees.
#[derive(Debug)]
struct State {
    shared: Arc<Shared>,
    started: Instant,
    started_at: SystemTime,
    draining: watch::Sender<bool>,
    /// Changes when there are new settings.
    reloaded: watch::Sender<()>,
    /// The shards have ended: only what is in progress is still served.
    stopping: watch::Sender<bool>,
    runtime: Handle,
    /// Bytes of requests and large answers.
    bodies: Budget,
    /// The same of those that come to the port of the WebSockets.
    public_bodies: Budget,
    /// Bytes under way to each shard.
    to_shards: Vec<Budget>,
    /// Ingest streams that may still be opened.
    streams: Arc<Semaphore>,
    figures: Figures,
    /// `None` where there is nothing to read again.
    reload: Option<Reload>,
    /// What a registry says of channels, where there is one.
    told: Option<watch::Receiver<Arc<ChannelList>>>,
    /// Requests, for each who asks.
    request_rates: Rates<Requester>,
    /// Wrong keys, by the address they come from.
    wrong_keys: Rates<IpAddr>,
    /// Programs of this machine, where they need no key.
    local: Arc<Caller>,
    refused_log: LogLimit,
    accept_log: LogLimit,
    dropped_log: LogLimit,
    /// What is counted of questions that are asked outside.
    hooks: Arc<hooks::Figures>,
    /// What is counted of calls.
    rpc: rpc::Figures,
}

/// The running control thread.
pub struct Control {
    state: Arc<State>,
    thread: JoinHandle<()>,
}

impl Control {
    /// Starts the thread on a listener that is open already.
    pub fn start(
        listener: TcpListener,
        shared: Arc<Shared>,
        asked: mpsc::Receiver<Asked>,
        reload: Option<Reload>,
        fetched: Option<Fetched>,
    ) -> io::Result<Control> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Caught before anybody is told that the server runs.
        let (listener, signals) = {
            let _context = runtime.enter();
            (tokio::net::TcpListener::from_std(listener)?, Signals::catch()?)
        };
        let config = shared.config();
        let api = &config.api;
        let state = Arc::new(State {
            started: Instant::now(),
            started_at: SystemTime::now(),
            draining: watch::Sender::new(false),
            reloaded: watch::Sender::new(()),
            stopping: watch::Sender::new(false),
            runtime: runtime.handle().clone(),
            bodies: Budget::new(api.bodies_bytes_max),
            public_bodies: Budget::new(api.bodies_bytes_max / PUBLIC_BODIES_PART),
            to_shards: shared.shards.ids().map(|_| Budget::new(SHARD_BYTES_MAX)).collect(),
            streams: Arc::new(Semaphore::new((api.connections_max as usize / 2).max(1))),
            figures: Figures::new(),
            request_rates: Rates::new(api.requests_per_second_max, api.requests_burst),
            wrong_keys: Rates::new(guard::WRONG_KEYS.0, guard::WRONG_KEYS.1),
            local: Arc::new(Caller::of_everything("local".into())),
            reload,
            told: fetched.as_ref().map(Fetched::told),
            refused_log: LogLimit::new(),
            accept_log: LogLimit::new(),
            dropped_log: LogLimit::new(),
            hooks: Arc::default(),
            rpc: rpc::Figures::default(),
            shared,
        });
        let forwards = state.shared.config().wsnode.is_used().then(|| {
            let (forwards, receiver) = Forwards::new();
            // Set once, as below.
            let _ = state.shared.forwards.set(forwards);
            receiver
        });
        let watch = drop::Watch::new(state.clone())?;
        let taking = drop::Taking::new(state.clone());
        let own = state.clone();
        let (handover, handed) = mpsc::channel(HANDED_MAX);
        // Set once: each control thread has shards of its own.
        let _ = own.shared.handover.set(handover);
        let (ready, started) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let (router, public) = (api::router(own.clone()), public::router(&own));
            let tasks = tokio::task::LocalSet::new();
            runtime.block_on(tasks.run_until(async move {
                let hooks = match own.hooks() {
                    Ok(hooks) => hooks,
                    Err(e) => return drop(ready.send(Err(io::Error::other(e)))),
                };
                let rpc = match rpc::Rpc::new(own.clone()) {
                    Ok(rpc) => Rc::new(rpc),
                    Err(e) => return drop(ready.send(Err(io::Error::other(e)))),
                };
                let forwarding = match forwards::Forwarding::new(&own) {
                    Ok(forwarding) => forwarding.zip(forwards),
                    Err(e) => return drop(ready.send(Err(io::Error::other(e)))),
                };
                let _ = ready.send(Ok(()));
                if let Some(watch) = watch {
                    tokio::spawn(watch.run());
                }
                if let Some(taking) = taking {
                    tokio::spawn(taking.run());
                }
                tokio::task::spawn_local(own.clone().answer_questions(hooks, rpc, asked));
                if let Some(fetched) = fetched {
                    tokio::spawn(own.clone().follow_registry(fetched));
                }
                let handled = tokio::spawn(signals.handle(own.clone()));
                let api = port::serve(listener, own.clone(), router);
                let forwards = async {
                    if let Some((forwarding, receiver)) = forwarding {
                        forwarding.run(receiver).await;
                    }
                };
                tokio::join!(api, port::serve_handed(handed, own.clone(), public), forwards);
                handled.abort();
            }));
        })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Control { state, thread })
    }

    /// Begins the graceful drain.
    pub fn drain(&self) {
        self.state.drain();
    }

    /// Ends the thread, once the shards have ended. Requests that it has are still answered.
    pub fn stop(self) {
        self.state.stopping.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

impl State {
    fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns at once; each shard is told as soon as it takes requests.
    fn drain(self: &Arc<Self>) {
        if self.draining.send_replace(true) {
            return;
        }
        self.shared.draining.store(true, Ordering::Relaxed);
        tracing::info!("draining: no new connections, clients are told to come back later");
        for shard in self.shared.shards.ids() {
            self.runtime.spawn(self.clone().drain_shard(shard));
        }
    }

    async fn drain_shard(self: Arc<Self>, shard: ShardId) {
        // One that has ended needs no telling.
        while let Err(NotTaken::Full(_)) = self.shared.shards.request(shard, Request::Drain) {
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    use ringfeed_protocol::{Epoch, Offset, Position};
    use serde_json::json;

    use super::*;
    use crate::callers::{Callers, KeyHash};
    use crate::config::{Config, Scope, Sources};
    use crate::message::{Ack, ChannelPage, Inbox, QUEUE_BATCHES, Receipt, Shards, Waker, queues};
    use crate::settings::Settings;
    use crate::shard::door::Admission;

    /// How long a test waits for what must come.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// The control thread before one shard that does nothing: its queue is here.
    fn start(flags: &[&str]) -> (Control, SocketAddr, Arc<Shared>, Inbox) {
        let flags = flags.iter().map(|&flag| flag.into()).collect();
        let config = Config::load(&Sources { flags, ..Sources::default() }).unwrap();
        let waker = Waker::new(File::options().write(true).open("/dev/null").unwrap());
        let (end, inbox) = queues(waker, QUEUE_BATCHES);
        let settings = Settings::new(config).unwrap();
        let shards = Shards::new(vec![end], [1, 2]);
        let (shared, asked) = Shared::new(settings, shards, Admission::new(1, 0));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let control = Control::start(listener, shared.clone(), asked, None, None).unwrap();
        (control, address, shared, inbox)
    }

    fn request(to: SocketAddr, line: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(to).unwrap();
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn answer(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The last line of JSON in an answer.
    fn last_json(answer: &str) -> serde_json::Value {
        let lines = answer.lines().rev();
        lines.flat_map(serde_json::from_str).find(serde_json::Value::is_object).unwrap()
    }

    /// The next request that was handed to the shard.
    fn next(inbox: &Inbox) -> Request {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(request) = inbox.control.take().and_then(|mut batch| batch.pop()) {
                return request;
            }
            assert!(Instant::now() < deadline, "nothing was handed to the shard");
            std::thread::yield_now();
        }
    }

    /// Answers a batch as a shard does that publishes all of it.
    fn accept(request: Request) {
        let Request::PublishBatch { items, reply } = request else { panic!("{request:?}") };
        let position = Position { epoch: Epoch(1), offset: Offset(1) };
        let position = Some(position);
        let receipt = Receipt { position, ack: Ack::Accepted, subscribers: 1, duplicate: false };
        reply.send(items.into_iter().map(|item| (item.0, Ok(receipt))).collect()).unwrap();
    }

    #[test]
    fn a_stream_that_meets_a_busy_shard_says_nothing_of_what_is_behind() {
        let (control, address, _, _inbox) = start(&["api.timeout_ms=10"]);
        let good = "{\"channel\":\"a\",\"data\":1}";
        let body = format!("\n[]\n{good}\n[]\n\n{good}\n");
        let answer = answer(request(address, "POST /api/ingest", &body));
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let last = last_json(&answer);
        assert_eq!((&last["lines"], &last["refused"]), (&json!(2), &json!(1)), "{answer}");
        assert_eq!(last["errors"].as_array().unwrap().len(), 1, "{answer}");
        assert_eq!((&last["end"], &last["error"]), (&json!("failed"), &json!("busy")), "{answer}");
        control.stop();
    }

    #[test]
    fn a_stream_whose_shard_ends_tells_up_to_where_it_was_published() {
        let (control, address, _, inbox) = start(&[]);
        let body = "{\"channel\":\"a\",\"data\":1}\n".repeat(1000);
        let stream = request(address, "POST /api/ingest", &body);
        let first = next(&inbox);
        let Request::PublishBatch { items, .. } = &first else { panic!("{first:?}") };
        let count = items.len();
        accept(first);
        // What comes behind goes without an answer.
        drop(next(&inbox));
        let answer = answer(stream);
        let last = last_json(&answer);
        assert_eq!((&last["lines"], &last["accepted"]), (&json!(count), &json!(count)), "{answer}");
        assert_eq!((&last["refused"], &last["error"]), (&json!(0), &json!("draining")), "{answer}");
        control.stop();
    }

    #[test]
    fn a_stream_goes_by_the_settings_that_hold_by_now() {
        let (control, address, shared, inbox) = start(&[]);
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let line = "{\"channel\":\"a\",\"data\":1}\n";
        let head = "POST /api/ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000";
        write!(stream, "{head}\r\n\r\n{line}").unwrap();
        accept(next(&inbox));
        let flags = vec!["api.body_bytes_max=1024".into()];
        let config = Config::load(&Sources { flags, ..Sources::default() }).unwrap();
        shared.settings.store(Arc::new(Settings::new(config).unwrap()));
        // More of the line may come, so that only its length so far is against it.
        stream.write_all(&[b'x'; 2000]).unwrap();
        let mut answer = Vec::new();
        let told = "longer than 1024 bytes (api.body_bytes_max)";
        while !String::from_utf8_lossy(&answer).contains(told) {
            let mut part = [0; 1024];
            let n = stream.read(&mut part).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..n]);
        }
        drop(stream);
        control.stop();
    }

    #[test]
    fn a_stream_goes_by_the_keys_that_hold_by_now() {
        let key = |scope, channel: &str| {
            let caller =
                Caller { name: "k".into(), scopes: vec![scope], channels: vec![channel.into()] };
            vec![(KeyHash::of(b"a-key"), caller)]
        };
        let other = (KeyHash::of(b"other-key"), Caller::of_everything("o".into()));
        for (given, then, accepted, end, error) in [
            ("a-key", key(Scope::Publish, "*"), 2, "complete", json!(null)),
            ("a-key", key(Scope::Publish, "b"), 1, "complete", json!(null)),
            ("a-key", key(Scope::Stats, "*"), 1, "failed", json!("forbidden")),
            ("a-key", vec![other.clone()], 1, "failed", json!("unauthorized")),
            ("a-key", Vec::new(), 1, "failed", json!("unauthorized")),
            ("", vec![other], 1, "failed", json!("unauthorized")),
        ] {
            let flags: &[&str] = if given.is_empty() { &[] } else { &["api.keys=a-key"] };
            let (control, address, shared, inbox) = start(flags);
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let line = "{\"channel\":\"a\",\"data\":1}\n";
            let length = 2 * line.len();
            write!(
                stream,
                "POST /api/ingest HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                 X-API-Key: {given}\r\nContent-Length: {length}\r\n\r\n{line}"
            )
            .unwrap();
            accept(next(&inbox));
            let mut said = Vec::new();
            while !said.ends_with(b"}\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                said.extend_from_slice(&byte);
            }
            let mut config = Config::clone(&shared.config());
            config.callers = Callers::new(then.clone());
            shared.settings.store(Arc::new(Settings::new(config).unwrap()));
            stream.write_all(line.as_bytes()).unwrap();
            if accepted == 2 {
                accept(next(&inbox));
            }
            let last = last_json(&answer(stream));
            assert_eq!((&last["end"], &last["error"]), (&json!(end), &error), "{then:?}: {last}");
            assert_eq!(last["accepted"], accepted, "{then:?}: {last}");
            control.stop();
        }
    }

    #[test]
    fn a_request_has_one_time_for_all_it_asks() {
        let (control, address, _, inbox) = start(&["api.timeout_ms=100"]);
        let stream = request(address, "GET /api/channels", "");
        // Each page comes at once, and there is always another one.
        let answered = std::thread::spawn(|| answer(stream));
        let deadline = Instant::now() + PATIENCE;
        while !answered.is_finished() {
            assert!(Instant::now() < deadline, "it is asked for pages for ever");
            let Some(batch) = inbox.control.take() else { continue };
            for request in batch {
                let Request::ListChannels { from, reply } = request else { panic!("{request:?}") };
                let _ = reply.send(ChannelPage { rows: Vec::new(), next: Some(from + 1) });
            }
        }
        let answer = answered.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        control.stop();
    }

    #[test]
    fn a_shard_that_has_ended_takes_nothing_and_says_so() {
        let (control, address, _, inbox) = start(&["api.timeout_ms=600000"]);
        drop(inbox);
        for (line, body) in [
            ("POST /api/publish", "{\"channel\":\"a\",\"data\":1}"),
            ("GET /api/history?channel=a", ""),
            ("GET /api/channels", ""),
        ] {
            let answer = answer(request(address, line, body));
            assert!(answer.starts_with("HTTP/1.1 503 "), "{line}: {answer}");
            assert_eq!(last_json(&answer)["error"], "draining", "{line}: {answer}");
        }
        control.stop();
    }

    #[test]
    fn what_is_in_progress_when_the_shards_have_ended_is_answered() {
        let (control, address, _, inbox) = start(&[]);
        let mut idle = TcpStream::connect(address).unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        idle.read_exact(&mut [0; 12]).unwrap();
        let entry = "{\"channel\":\"a\",\"data\":1}";
        let stream = request(address, "POST /api/publish", entry);
        let asked = next(&inbox);
        let stopped = std::thread::spawn(|| control.stop());
        // Who asks nothing is closed at once.
        idle.read_to_end(&mut Vec::new()).unwrap();
        accept(asked);
        let answer = answer(stream);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        stopped.join().unwrap();
    }

    #[test]
    fn a_shard_that_takes_nothing_does_not_hold_the_control_thread() {
        let (control, address, shared, _inbox) = start(&[]);
        while shared.shards.request(ShardId(0), Request::Drain).is_ok() {}
        control.drain();
        let answer = answer(request(address, "GET /ready", ""));
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        control.stop();
    }

    #[test]
    fn a_shard_that_does_not_answer_is_handed_so_many_bytes_and_no_more() {
        let (control, address, _, inbox) = start(&["api.timeout_ms=600000"]);
        let entry = format!("{{\"channel\":\"a\",\"text\":\"{}\"}}", "x".repeat(1000));
        let body = format!("{{\"publications\":[{}]}}", vec![entry; 3900].join(","));
        let _waiting: Vec<_> = (0..8).map(|_| request(address, "POST /api/batch", &body)).collect();
        let deadline = Instant::now() + PATIENCE;
        let nearly_all = (SHARD_BYTES_MAX - (512 << 10)) as f64;
        loop {
            let stats = answer(request(address, "GET /api/stats", ""));
            let (_, stats) = stats.split_once("\r\n\r\n").unwrap();
            let stats: serde_json::Value = serde_json::from_str(stats).unwrap();
            // All bodies were read: what is not handed over waits for room.
            let read = stats["api"]["body_bytes"].as_f64().unwrap() > 7.5 * body.len() as f64;
            if read && stats["api"]["bytes_under_way"].as_f64().unwrap() > nearly_all {
                break;
            }
            assert!(Instant::now() < deadline, "{stats}");
            std::thread::sleep(Duration::from_millis(10));
        }
        // Kept, so that none of them is answered.
        let queued: Vec<Request> = std::iter::from_fn(|| inbox.control.take()).flatten().collect();
        let bytes = queued.iter().map(|request| {
            let Request::PublishBatch { items, .. } = request else { panic!("{request:?}") };
            items.iter().map(|(_, post)| post.payload.bytes.len() as u64).sum::<u64>()
        });
        let bytes: Vec<u64> = bytes.collect();
        assert!(bytes.iter().all(|&bytes| bytes <= 256 << 10), "{bytes:?}");
        let sum: u64 = bytes.iter().sum();
        assert!((SHARD_BYTES_MAX / 2..=SHARD_BYTES_MAX).contains(&sum), "{sum} bytes are queued");
        control.stop();
    }
}
