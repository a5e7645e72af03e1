//! WebSockets through HAProxy, while nodes come, drain and die.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use super::files::{announce, haproxy};
use super::process::{KEY, PATIENCE, Registry, command, http};

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // HAProxy's master takes its workers with it.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node that takes connections of a proxy on this machine.
struct Node {
    id: &'static str,
    public: SocketAddr,
    internal: SocketAddr,
    process: Running,
}

fn node(id: &'static str, proxy_protocol: &str) -> Node {
    node_with(id, proxy_protocol, &[])
}

/// A node that announces itself, and shares channels with others that do; what they tell who is theirs, each tells by itself.
fn member(id: &'static str, registry: &Registry) -> Node {
    let file = registry.path("node.toml");
    let toml = "[[channels]]\npattern = \"who\"\ndistribution = \"local\"\n[[channels]]\npattern = \"n.*\"\nhistory_size = 100\n";
    std::fs::write(&file, toml).unwrap();
    let sets = [
        format!("cluster.registry={}", registry.url()),
        format!("cluster.key_file={}", registry.path("key").display()),
        "cluster.listen=127.0.0.1:0".into(),
        format!("server.node_id={id}"),
        "server.drain_spread_ms=100".into(),
    ];
    let file = ["--config", file.to_str().unwrap()];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = file.into_iter().chain(sets).collect();
    node_with(id, "off", &args)
}

fn node_with(id: &'static str, proxy_protocol: &str, more: &[&str]) -> Node {
    let proxy_protocol = format!("server.proxy_protocol={proxy_protocol}");
    let sets = [
        "api.listen=127.0.0.1:0",
        "server.shards=1",
        "server.pin=false",
        "server.drain_timeout_ms=1000",
        "server.proxies=127.0.0.1/32",
        &proxy_protocol,
    ];
    let mut command = command();
    command.args(["serve", "--port", "0"]);
    command.args(sets.iter().flat_map(|set| ["--set", set])).args(more);
    let mut child = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(child.0.stderr.take().unwrap());
    let (mut all, mut public) = (String::new(), None);
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the node ended:\n{all}");
        if let Some((_, address)) = line.trim().split_once("connect to ws://") {
            public = address.trim_end_matches("/ws").parse().ok();
        }
        if let Some((_, address)) = line.trim().split_once("metrics at http://") {
            let internal = address.parse().unwrap();
            std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
            return Node { id, public: public.unwrap(), internal, process: child };
        }
        all += &line;
    }
}

impl Node {
    /// Publishes its own id: whoever is connected to it learns to whom that is.
    fn tell(&self) {
        let body = json!({"channel": "who", "data": self.id}).to_string();
        let (status, said) = http(self.internal, "POST", "/api/publish", "", &body);
        assert_eq!(status, 200, "{said}");
    }

    fn url(&self) -> String {
        format!("http://{}", self.public)
    }
}

/// A client that has subscribed to what nodes tell; nobody where there is none behind the proxy.
struct Client(WebSocket<TcpStream>);

impl Client {
    fn connect(to: SocketAddr, headers: &[(&'static str, &str)]) -> Option<(Client, String)> {
        let stream = TcpStream::connect(to).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request =
            format!("ws://{to}/ws?protocol=ringfeed.v1").into_client_request().unwrap();
        for &(name, value) in headers {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (socket, response) = tungstenite::client(request, stream).ok()?;
        let cookie =
            response.headers().get("set-cookie").map(|value| value.to_str().unwrap().to_owned());
        let mut client = Client(socket);
        let subscribe = json!({"type": "subscribe", "id": 1, "channel": "who"}).to_string();
        client.0.send(Message::text(subscribe)).ok()?;
        let reply = client.receive()?;
        assert_eq!(reply["type"], "subscribed", "{reply}");
        Some((client, cookie.unwrap_or_default()))
    }

    fn receive(&mut self) -> Option<Value> {
        loop {
            match self.0.read().ok()? {
                Message::Text(text) => return serde_json::from_str(&text).ok(),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// Which of these nodes it is connected to, as the node itself tells.
    fn whose(&mut self, nodes: &[&Node]) -> String {
        nodes.iter().for_each(|node| node.tell());
        let told = self.receive().unwrap_or_else(|| panic!("the connection was lost"));
        told["data"].as_str().unwrap_or_else(|| panic!("{told}")).to_owned()
    }
}

/// Whose the next connections are, until all of several are as they must be.
fn wait_for(proxy: SocketAddr, nodes: &[&Node], what: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let clients: Vec<_> = (0..6).filter_map(|_| Client::connect(proxy, &[])).collect();
        let whose: Vec<String> =
            clients.into_iter().map(|(mut client, _)| client.whose(nodes)).collect();
        if whose.len() == 6 && what(&whose) {
            return;
        }
        assert!(Instant::now() < deadline, "new connections are with {whose:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Says for nodes that they live, as they would themselves, until it is dropped.
struct Beats {
    end: crossbeam_channel::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Beats {
    fn start(registry: SocketAddr, ids: &'static [&'static str]) -> Beats {
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let thread = std::thread::spawn(move || {
            let key = format!("X-API-Key: {KEY}\r\n");
            let pause = Duration::from_millis(200);
            while ended.recv_timeout(pause) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                for id in ids {
                    // Who is not announced, or not any more, is told so, which is no matter here.
                    http(registry, "POST", &format!("/v1/nodes/{id}/heartbeat"), &key, "");
                }
            }
        });
        Beats { end, thread: Some(thread) }
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        let (never, _) = crossbeam_channel::bounded(0);
        drop(std::mem::replace(&mut self.end, never));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// A port that nobody has just now.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// HAProxy with a configuration that `ringfeed haproxy` has written with these arguments.
fn start(registry: &Registry, proxy: SocketAddr, more: &[&str]) -> (Running, Vec<String>) {
    let file = registry.path("haproxy.cfg").to_str().unwrap().to_owned();
    let bind = proxy.to_string();
    let mut args: Vec<String> = ["-o", &file, "--bind", &bind].map(str::to_owned).to_vec();
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    let all: Vec<&str> = ["--once"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let written = haproxy(registry, &all).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let mut command = Command::new("haproxy");
    command.args(["-W", "-db", "-f", &file]).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    std::fs::write(registry.path("pid"), format!("{}\n", running.0.id())).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(proxy).is_err() {
        assert!(Instant::now() < deadline, "HAProxy does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    (running, args)
}

#[test]
fn new_connections_follow_the_nodes_and_those_that_are_there_stay() {
    let registry = Registry::start(&["--node-timeout-ms", "5000"]);
    let _beats = Beats::start(registry.address, &["a", "b"]);
    let proxy = free_port();
    let (a, mut b) = (node("a", "required"), node("b", "required"));
    announce(&registry, "a", &a.url());
    let (_haproxy, args) = start(&registry, proxy, &["--proxy-protocol", "--sticky", "none"]);
    let (mut early, _) = Client::connect(proxy, &[]).unwrap();
    assert_eq!(early.whose(&[&a, &b]), "a");

    let pid = registry.path("pid");
    let watch = [
        &["--watch", "--interval-ms", "100", "--pid-file", pid.to_str().unwrap()][..],
        &args.iter().map(String::as_str).collect::<Vec<_>>(),
    ]
    .concat();
    let watching = haproxy(&registry, &watch).stderr(Stdio::null()).spawn().unwrap();
    let _watching = Running(watching);
    // One more.
    announce(&registry, "b", &b.url());
    wait_for(proxy, &[&a, &b], |whose| whose.iter().any(|id| id == "b"));
    assert_eq!(early.whose(&[&a, &b]), "a", "a reload cuts nobody");
    // One that drains.
    assert_eq!(registry.ask("POST", "/v1/nodes/a/heartbeat", r#"{"state":"draining"}"#).0, 200);
    wait_for(proxy, &[&a, &b], |whose| whose.iter().all(|id| id == "b"));
    assert_eq!(early.whose(&[&a, &b]), "a", "who is there stays");
    // One that is killed, and its registry does not know yet.
    assert_eq!(registry.ask("POST", "/v1/nodes/a/heartbeat", r#"{"state":"active"}"#).0, 200);
    wait_for(proxy, &[&a, &b], |whose| whose.iter().any(|id| id == "a"));
    b.process.0.kill().unwrap();
    b.process.0.wait().unwrap();
    wait_for(proxy, &[&a], |whose| whose.iter().all(|id| id == "a"));
    // And one that has left.
    assert_eq!(registry.ask("DELETE", "/v1/nodes/b", "").0, 200);
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_to_string(registry.path("haproxy.cfg")).unwrap().contains("server b ") {
        assert!(Instant::now() < deadline, "the node stays in the configuration");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(early.whose(&[&a]), "a");
    // Nobody is left: the last ones known stay.
    assert_eq!(registry.ask("DELETE", "/v1/nodes/a", "").0, 200);
    std::thread::yield_now();
    wait_for(proxy, &[&a], |whose| whose.iter().all(|id| id == "a"));
}

#[test]
fn a_client_comes_back_to_its_node_by_its_cookie_until_that_drains() {
    let registry = Registry::start(&["--node-timeout-ms", "5000"]);
    let _beats = Beats::start(registry.address, &["a", "b"]);
    let proxy = free_port();
    let (a, b) = (node("a", "off"), node("b", "off"));
    announce(&registry, "a", &a.url());
    announce(&registry, "b", &b.url());
    let (_haproxy, args) = start(&registry, proxy, &[]);
    let (mut first, cookie) = Client::connect(proxy, &[]).unwrap();
    let own = first.whose(&[&a, &b]);
    let (cookie, flags) = cookie.split_once(';').unwrap_or_else(|| panic!("{cookie:?}"));
    assert!(cookie == format!("RINGFEED_NODE={own}") && flags.to_lowercase().contains("httponly"));
    for _ in 0..6 {
        let (mut again, _) = Client::connect(proxy, &[("cookie", cookie)]).unwrap();
        assert_eq!(again.whose(&[&a, &b]), own);
    }
    let heartbeat = format!("/v1/nodes/{own}/heartbeat");
    assert_eq!(registry.ask("POST", &heartbeat, r#"{"state":"draining"}"#).0, 200);
    let reload = format!("kill -USR2 $(cat {})", registry.path("pid").display());
    let once = [
        &["--once", "--reload", &reload][..],
        &args.iter().map(String::as_str).collect::<Vec<_>>(),
    ]
    .concat();
    let written = haproxy(&registry, &once).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let elsewhere = Client::connect(proxy, &[("cookie", cookie)]);
        if elsewhere.is_some_and(|(mut client, _)| client.whose(&[&a, &b]) != own) {
            break;
        }
        assert!(Instant::now() < deadline, "it is still sent to the node that drains");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(first.whose(&[&a, &b]), own);
}

#[test]
fn nodes_find_each_other_and_haproxy_follows_them() {
    let mut registry = Registry::start(&["--node-timeout-ms", "2000"]);
    let proxy = free_port();
    let (mut a, mut b) = (member("a", &registry), member("b", &registry));
    let ready = |node: &Node| {
        let deadline = Instant::now() + PATIENCE;
        while http(node.internal, "GET", "/ready", "", "").0 != 200 {
            assert!(Instant::now() < deadline, "{} is not ready", node.id);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    [&a, &b].into_iter().for_each(ready);
    let (_haproxy, args) = start(&registry, proxy, &["--sticky", "none"]);
    let pid = registry.path("pid");
    let watch = [
        &["--watch", "--interval-ms", "100", "--pid-file", pid.to_str().unwrap()][..],
        &args.iter().map(String::as_str).collect::<Vec<_>>(),
    ]
    .concat();
    let watching = haproxy(&registry, &watch).stderr(Stdio::null()).spawn().unwrap();
    let _watching = Running(watching);
    let is_there = |whose: &[String], id: &str| whose.iter().any(|own| own == id);
    wait_for(proxy, &[&a, &b], |whose| is_there(whose, "a") && is_there(whose, "b"));
    // A third one comes, and the channels are those of all, whoever is asked.
    let c = member("c", &registry);
    ready(&c);
    wait_for(proxy, &[&a, &b, &c], |whose| is_there(whose, "c"));
    let publish = |node: &Node, data: &str| {
        let body = json!({"channel": "n.1", "data": data}).to_string();
        let deadline = Instant::now() + PATIENCE;
        while http(node.internal, "POST", "/api/publish", "", &body).0 != 200 {
            assert!(Instant::now() < deadline, "{data} is not taken");
        }
    };
    publish(&a, "to all");
    for node in [&a, &b, &c] {
        let history = http(node.internal, "GET", "/api/history?channel=n.1", "", "");
        assert!(history.1.contains("to all"), "{history:?}");
    }
    // The registry dies and comes back with what it had.
    registry.kill_and_restart();
    let deadline = Instant::now() + PATIENCE;
    while registry.ask("GET", "/v1/nodes", "").1["nodes"].as_array().unwrap().len() != 3 {
        assert!(Instant::now() < deadline, "not all nodes are there again");
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_for(proxy, &[&a, &b, &c], |whose| is_there(whose, "a"));
    // One ends well: nobody new is sent to it, and it is gone from the configuration.
    let term = Command::new("kill").arg(a.process.0.id().to_string()).status().unwrap();
    assert!(term.success());
    assert!(a.process.0.wait().unwrap().success());
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_to_string(registry.path("haproxy.cfg")).unwrap().contains("server a ") {
        assert!(Instant::now() < deadline, "the node stays in the configuration");
        std::thread::sleep(Duration::from_millis(50));
    }
    // One dies; what it kept goes on with the last one.
    b.process.0.kill().unwrap();
    b.process.0.wait().unwrap();
    wait_for(proxy, &[&c], |whose| whose.iter().all(|id| id == "c"));
    publish(&c, "alone");
}
