//! A stand-in for a node of DistributedWebSocket, which needs more than a test has to run: written anew from what the original
//! does on its port, with none of ringfeed's code. It announces itself, asks who else is there, serves clients that subscribe,
//! and posts each broadcast that comes without `origin` to all other nodes before it delivers it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded};
use dashmap::DashMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

use crate::common::http;

/// `UPDATE_INTERVAL`
const INTERVAL: Duration = Duration::from_millis(100);
/// Of bodies.
const BODY_BYTES_MAX: usize = 100 * 1024;
/// What one client may be behind.
const MESSAGES_MAX: usize = 10_000;

/// A request over HTTP.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    head: String,
    pub(crate) body: String,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut fields = fields.filter(|(own, _)| own.eq_ignore_ascii_case(name));
        fields.next().map(|(_, value)| value.trim())
    }

    fn read(stream: &mut TcpStream) -> Option<Request> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut request = Request { method, path, head, body: String::new() };
        let length = request.header("content-length").map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        request.body = String::from_utf8(body).unwrap();
        Some(request)
    }
}

/// Serves HTTP until it is dropped; then every connection ends.
pub(crate) struct HttpServer {
    pub(crate) address: SocketAddr,
    stopping: Arc<AtomicBool>,
    open: Arc<DashMap<u64, TcpStream>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// `handler` answers with a status and a body, or takes the connection for itself.
    pub(crate) fn start(
        listener: TcpListener,
        handler: impl Fn(&Request, &TcpStream) -> Option<(u16, Value)> + Clone + Send + 'static,
    ) -> HttpServer {
        let address = listener.local_addr().unwrap();
        let (stopping, open) = (Arc::new(AtomicBool::new(false)), Arc::new(DashMap::new()));
        let (stops, all) = (stopping.clone(), open.clone());
        let thread = std::thread::spawn(move || {
            for (number, stream) in (0..).zip(listener.incoming()) {
                let Ok(mut stream) = stream else { continue };
                if stops.load(Ordering::Relaxed) {
                    return;
                }
                all.insert(number, stream.try_clone().unwrap());
                let handler = handler.clone();
                std::thread::spawn(move || {
                    while let Some(request) = Request::read(&mut stream) {
                        let Some((status, body)) = handler(&request, &stream) else { return };
                        let body = body.to_string();
                        let length = body.len();
                        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
                        let _ = stream.write_all(format!("{head}\r\n{body}").as_bytes());
                        if request.header("connection") == Some("close") {
                            let _ = stream.shutdown(Shutdown::Both);
                        }
                    }
                });
            }
        });
        HttpServer { address, stopping, open, thread: Some(thread) }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
        for stream in &*self.open {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What a node knows.
struct Node {
    id: String,
    key: String,
    /// The others, and where they are.
    nodes: ArcSwap<Vec<(String, SocketAddr)>>,
    subscribers: DashMap<String, Vec<Sender<String>>>,
    forwards: AtomicU64,
}

#[derive(Deserialize)]
struct Broadcast {
    channel: Option<String>,
    message: Option<Box<RawValue>>,
    #[serde(rename = "apiKey")]
    api_key: Option<String>,
    origin: Option<String>,
}

impl Node {
    fn answer(self: &Arc<Node>, request: &Request, stream: &TcpStream) -> Option<(u16, Value)> {
        if let Some(key) = request.header("sec-websocket-key") {
            self.serve_client(key, stream);
            return None;
        }
        Some(match (&*request.method, &*request.path) {
            ("POST", "/broadcast") => self.broadcast(&request.body),
            ("GET", "/health") => (200, json!({"nodeId": self.id})),
            _ => (404, json!({"error": "Not found"})),
        })
    }

    fn broadcast(&self, body: &str) -> (u16, Value) {
        if body.len() > BODY_BYTES_MAX {
            return (413, json!({}));
        }
        let Ok(said) = serde_json::from_str::<Broadcast>(body) else { return (400, json!({})) };
        if said.api_key.as_ref() != Some(&self.key) {
            return (401, json!({"error": "Unauthorized"}));
        }
        let falsy = ["null", "false", "0", "\"\""];
        let message = said.message.filter(|message| !falsy.contains(&message.get()));
        let (Some(channel), Some(message)) = (said.channel, message) else {
            return (400, json!({"error": "Channel and message are required"}));
        };
        if said.origin.is_some() {
            self.forwards.fetch_add(1, Ordering::Relaxed);
        } else {
            let (id, key) = (&self.id, &self.key);
            let body = json!({"channel": channel, "message": message, "apiKey": key, "origin": id});
            for (_, node) in &**self.nodes.load() {
                let to = *node;
                let posted = std::panic::catch_unwind(|| post(to, &body));
                drop(posted); // a failure is logged there, and no more
            }
        }
        let (channel, id) = (&channel, &self.id);
        let told = json!({
            "type": "broadcast", "channel": channel, "message": message,
            "timestamp": "2026-01-01T00:00:00.000Z", "nodeId": id,
        });
        let mut subscribers = self.subscribers.entry(channel.clone()).or_default();
        subscribers.retain(|subscriber| subscriber.try_send(told.to_string()).is_ok());
        let n = subscribers.len();
        (200, json!({"success": true, "nodeId": id, "delivered": n, "total": n}))
    }

    fn serve_client(self: &Arc<Node>, key: &str, stream: &TcpStream) {
        let accept = derive_accept_key(key.as_bytes());
        let head = "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade";
        let mut raw = stream.try_clone().unwrap();
        raw.write_all(format!("{head}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes())
            .unwrap();
        let mut writes = WebSocket::from_raw_socket(raw, Role::Server, None);
        let reads = stream.try_clone().unwrap();
        let mut reads = WebSocket::from_raw_socket(reads, Role::Server, None);
        let (told, tells): (Sender<String>, Receiver<String>) = bounded(MESSAGES_MAX);
        let _ = told.send(json!({"type": "connected", "nodeId": self.id}).to_string());
        std::thread::spawn(move || {
            while let Ok(text) = tells.recv()
                && writes.send(Message::text(text)).is_ok()
            {}
        });
        while let Ok(message) = reads.read() {
            let said: Value = message
                .to_text()
                .ok()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default();
            let Some(channel) = said["channel"].as_str().filter(|_| said["type"] == "subscribe")
            else {
                continue;
            };
            self.subscribers.entry(channel.into()).or_default().push(told.clone());
            let _ = told.send(json!({"type": "subscribed", "channel": channel}).to_string());
        }
    }

    /// Announces itself and asks who else is there.
    fn update(&self, own: SocketAddr, registry: SocketAddr) {
        let key = format!("X-API-Key: {}\r\n", self.key);
        let url = format!("http://localhost:{}", own.port());
        let body = json!({"id": self.id, "url": url, "status": "active"}).to_string();
        http(registry, "POST", "/announce", &key, &body);
        let (_, nodes) = http(registry, "GET", "/nodes", &key, "");
        let rows: Vec<Value> = serde_json::from_str(&nodes).unwrap();
        let others = rows.iter().filter(|row| row["id"] != self.id);
        let place = |row: &Value| {
            let at = row["url"].as_str().unwrap().trim_start_matches("http://");
            let at = at.replace("localhost", "127.0.0.1").parse().unwrap();
            (row["id"].as_str().unwrap().to_owned(), at)
        };
        self.nodes.store(Arc::new(others.map(place).collect()));
    }
}

/// A broadcast, as anybody posts it. Status and answer.
pub(crate) fn post(to: SocketAddr, body: &Value) -> (u16, Value) {
    let json = "Content-Type: application/json\r\n";
    let (status, answer) = http(to, "POST", "/broadcast", json, &body.to_string());
    (status, serde_json::from_str(&answer).unwrap_or_default())
}

/// See the module's description. Ends when it is dropped.
pub(crate) struct OldNode {
    node: Arc<Node>,
    server: HttpServer,
    updates: Option<(Sender<()>, JoinHandle<()>)>,
}

impl OldNode {
    pub(crate) fn start(id: &str, key: &str, registry: Option<SocketAddr>) -> OldNode {
        OldNode::start_at(TcpListener::bind("127.0.0.1:0").unwrap(), id, key, registry)
    }

    pub(crate) fn start_at(
        listener: TcpListener,
        id: &str,
        key: &str,
        registry: Option<SocketAddr>,
    ) -> OldNode {
        let node = Arc::new(Node {
            id: id.into(),
            key: key.into(),
            nodes: ArcSwap::default(),
            subscribers: DashMap::new(),
            forwards: AtomicU64::new(0),
        });
        let own = node.clone();
        let server =
            HttpServer::start(listener, move |request, stream| own.answer(request, stream));
        let updates = registry.map(|registry| {
            let (stop, stopped) = bounded(0);
            let (own, address) = (node.clone(), server.address);
            let thread = std::thread::spawn(move || {
                let going = |stopped: &Receiver<()>| {
                    stopped.recv_timeout(INTERVAL).is_err_and(|e| e.is_timeout())
                };
                own.update(address, registry);
                while going(&stopped) {
                    own.update(address, registry);
                }
            });
            (stop, thread)
        });
        OldNode { node, server, updates }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Nodes that it knows of, beside itself.
    pub(crate) fn known(&self) -> usize {
        self.node.nodes.load().len()
    }

    /// Posts of other nodes that it has taken.
    pub(crate) fn forwards(&self) -> u64 {
        self.node.forwards.load(Ordering::Relaxed)
    }
}

impl Drop for OldNode {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.updates.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}
