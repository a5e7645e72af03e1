//! Nodes that are stopped and started again one after the other, while everybody publishes and reads: who is sent away comes
//! back when it is told, to a node that is there.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::Rng as _;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use super::process::NodeProcess;
use super::{PATIENCE, http, wait_until};

/// What is published when all else has come.
const LAST: u64 = u64::MAX;
/// Publications of a publisher that are not answered yet.
const UNDER_WAY_MAX: usize = 4000;
/// How often a publisher looks what is due.
const PACE: Duration = Duration::from_millis(5);

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    pub subscribers: usize,
    /// Each is subscribed to one of these, in turn.
    pub channels: usize,
    pub publishers: usize,
    /// Publications a second, of all publishers.
    pub rate: f64,
    /// `server.drain_spread_ms`
    pub spread: Duration,
    /// How long nothing happens between two restarts.
    pub quiet: Duration,
}

/// So much that it takes seconds.
pub const FEW: Scene = Scene {
    subscribers: 60,
    channels: 20,
    publishers: 3,
    rate: 500.0,
    spread: Duration::from_millis(500),
    quiet: Duration::from_millis(100),
};

/// What docs/BENCHMARKS.md speaks of.
pub const FULL_LOAD: Scene = Scene {
    subscribers: 900,
    channels: 300,
    publishers: 6,
    rate: 5000.0,
    spread: Duration::from_secs(5),
    quiet: Duration::from_secs(2),
};

impl Scene {
    /// What nodes are to be set to.
    pub fn sets(&self) -> [String; 3] {
        [
            format!("server.drain_spread_ms={}", self.spread.as_millis()),
            "server.drain_timeout_ms=10000".into(),
            "server.shards=2".into(),
        ]
    }
}

/// What has become of it.
#[derive(Debug)]
pub struct Outcome {
    /// Publications that were acknowledged, of those that were sent.
    pub acknowledged: usize,
    pub sent: usize,
    pub took: Duration,
    /// The longest time from sending a publication first to its acknowledgement.
    pub slowest: Duration,
    /// Acknowledged publications that did not come to a subscriber of their channel, over all subscribers, …
    pub missed: usize,
    /// … those of subscribers who were always recovered, …
    pub missed_of_recovered: usize,
    /// … and those that nobody told that subscriber of: neither `gap` nor `recovered: false`.
    pub silent: usize,
    /// What came more than once, …
    pub twice: usize,
    /// … and that to subscribers who were not told of another life in between.
    pub silent_twice: usize,
    pub gaps: usize,
    pub unrecovered: usize,
    /// Connections that ended without a word of when to come back.
    pub cut: usize,
    /// When subscribers were to come back, for each restart, since the first one was, …
    pub due: Vec<Vec<Duration>>,
    /// … and when they were back.
    pub returns: Vec<Vec<Duration>>,
}

impl Outcome {
    /// In words.
    fn summary(&self, spread: Duration) -> String {
        let Outcome {
            acknowledged, sent, took, slowest, missed, missed_of_recovered, silent, ..
        } = self;
        let peaks = |all: &[Vec<Duration>]| {
            let peak = |ms| format!("{:.2}", Outcome::peak(all, spread, Duration::from_millis(ms)));
            [500, 250, 100].map(peak).join(", ")
        };
        let returns: Vec<usize> = self.returns.iter().map(Vec::len).collect();
        format!(
            "{acknowledged} of {sent} publications acknowledged, {:.0} a second, the slowest after {slowest:?}; {missed} missed by a \
             subscriber, {missed_of_recovered} of them by one who was always recovered, {silent} silently; {} twice, {} of them \
             silently; {} gaps, {} not recovered, {} cut; {returns:?} came back; peak / mean in windows of 500, 250, 100 ms: told \
             {}, were back {}",
            *sent as f64 / took.as_secs_f64(),
            self.twice,
            self.silent_twice,
            self.gaps,
            self.unrecovered,
            self.cut,
            peaks(&self.due),
            peaks(&self.returns),
        )
    }

    /// Says what it was, and that nobody has missed anything through so many restarts.
    pub fn check_nothing_missed(&self, scene: Scene, restarts: usize) {
        println!("{}", self.summary(scene.spread));
        assert_eq!((self.missed, self.twice, self.cut), (0, 0, 0));
        assert_eq!((self.gaps, self.unrecovered), (0, 0));
        assert_eq!((self.acknowledged, self.returns.len()), (self.sent, restarts));
    }

    /// How many times the mean rate over the `spread` the largest is, in windows of it of this length; the worst of all restarts.
    pub fn peak(all: &[Vec<Duration>], spread: Duration, window: Duration) -> f64 {
        let peaks = all.iter().map(|returns| {
            let mut counts = BTreeMap::<u128, f64>::new();
            for at in returns {
                *counts.entry(at.as_millis() / window.as_millis()).or_default() += 1.0;
            }
            let mean = returns.len() as f64 * window.as_secs_f64() / spread.as_secs_f64();
            counts.values().fold(0.0, |most: f64, count| most.max(*count)) / mean
        });
        peaks.fold(0.0, f64::max)
    }
}

/// What all threads see.
struct Stage {
    scene: Scene,
    /// Where nodes listen; 0 where none does.
    ports: Vec<AtomicU16>,
    connected: AtomicUsize,
    /// Which restart it is, from 1 on.
    restart: AtomicUsize,
    /// Publishers are to come to an end.
    ends: AtomicBool,
}

type Socket = WebSocket<TcpStream>;

impl Stage {
    fn channel(&self, number: usize) -> String {
        format!("n.{}", number % self.scene.channels)
    }

    /// Connects with one of the nodes that are there.
    fn connect(&self) -> Option<Socket> {
        let first = rand::rng().random_range(0..self.ports.len());
        let places = (0..self.ports.len()).map(|n| (first + n) % self.ports.len());
        let port =
            places.map(|at| self.ports[at].load(Ordering::Acquire)).find(|port| *port > 0)?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect(to).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let request = format!("ws://{to}/ws?protocol=ringfeed.v1").into_client_request().ok()?;
        Some(tungstenite::client(request, stream).ok()?.0)
    }
}

#[derive(Default)]
struct Subscriber {
    at: Option<(Value, u64)>,
    seen: Vec<u64>,
    /// That something may be missing, or that the channel goes on in another life.
    told: bool,
    gaps: usize,
    unrecovered: usize,
    cut: usize,
    due: Vec<(usize, Instant)>,
    returned: Vec<(usize, Instant)>,
}

impl Subscriber {
    fn run(mut self, stage: &Stage, number: usize) -> Subscriber {
        let channel = stage.channel(number);
        let deadline = Instant::now() + 20 * PATIENCE;
        loop {
            let Some(mut socket) = stage.connect() else {
                assert!(Instant::now() < deadline, "nobody is there");
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            match self.read(stage, &channel, &mut socket) {
                None => return self,
                // As every client does that keeps to the protocol.
                Some(Some(back)) => {
                    std::thread::sleep(back.saturating_duration_since(Instant::now()))
                }
                Some(None) => self.cut += 1,
            }
        }
    }

    /// One connection: `None` once the last publication has come; else when it is to come back, if that was said.
    fn read(
        &mut self,
        stage: &Stage,
        channel: &str,
        socket: &mut Socket,
    ) -> Option<Option<Instant>> {
        let mut subscribe = json!({"type": "subscribe", "id": 1, "channel": channel});
        if let Some((epoch, offset)) = &self.at {
            subscribe["recover"] = json!({"epoch": epoch, "offset": offset});
        }
        if socket.send(Message::text(subscribe.to_string())).is_err() {
            return Some(None);
        }
        let (mut counted, mut back) = (false, None);
        while let Some(told) = receive(socket) {
            match told["type"].as_str() {
                Some("subscribed") => {
                    if let Some((epoch, offset)) = &mut self.at {
                        self.returned.push((stage.restart.load(Ordering::Acquire), Instant::now()));
                        if told["recovered"] != true {
                            self.unrecovered += 1;
                            self.told = true;
                            *offset = told["offset"].as_u64().unwrap();
                        }
                        *epoch = told["epoch"].clone();
                    } else {
                        self.at = Some((told["epoch"].clone(), told["offset"].as_u64().unwrap()));
                    }
                    stage.connected.fetch_add(1, Ordering::AcqRel);
                    counted = true;
                }
                Some("gap") => {
                    let to = told["to"].as_u64().unwrap();
                    if told["from"].as_u64().unwrap() <= to
                        || self.at.as_ref().unwrap().0 != told["epoch"]
                    {
                        self.gaps += 1;
                        self.told = true;
                    }
                    self.at = Some((told["epoch"].clone(), to));
                }
                Some("message") => {
                    let (_, at) = self.at.as_mut().unwrap();
                    assert_eq!(told["offset"], *at + 1, "{told}");
                    *at += 1;
                    match told["data"].as_u64().unwrap() {
                        LAST => return None,
                        data => self.seen.push(data),
                    }
                }
                Some("drain") => {
                    let wait = Duration::from_millis(told["reconnect_ms"].as_u64().unwrap());
                    let at = Instant::now() + wait;
                    self.due.push((stage.restart.load(Ordering::Acquire), at));
                    back = Some(at);
                }
                // A node that cannot serve the channel at present.
                Some("error") => {
                    back = Some(Instant::now() + Duration::from_millis(50));
                    break;
                }
                _ => panic!("{told}"),
            }
        }
        if counted {
            stage.connected.fetch_sub(1, Ordering::AcqRel);
        }
        Some(back)
    }
}

fn receive(socket: &mut Socket) -> Option<Value> {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => return serde_json::from_str(&text).ok(),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

struct Publisher {
    number: u64,
    sent: u64,
    /// Not acknowledged yet, and when each was sent first.
    under_way: BTreeMap<u64, Instant>,
    /// To be sent again.
    again: VecDeque<u64>,
    acknowledged: Vec<u64>,
    slowest: Duration,
}

impl Publisher {
    fn run(mut self, stage: &Stage) -> Publisher {
        let began = Instant::now();
        let rate = stage.scene.rate / stage.scene.publishers as f64;
        let deadline = began + 20 * PATIENCE;
        loop {
            let Some(mut socket) = stage.connect() else {
                std::thread::sleep(PACE);
                continue;
            };
            socket.get_ref().set_read_timeout(Some(PACE)).unwrap();
            self.again = self.under_way.keys().copied().collect();
            loop {
                assert!(Instant::now() < deadline, "{} are not answered", self.under_way.len());
                let ends = stage.ends.load(Ordering::Acquire);
                if ends && self.under_way.is_empty() {
                    return self;
                }
                let due = (began.elapsed().as_secs_f64() * rate) as u64;
                if !self.send(stage, &mut socket, if ends { 0 } else { due })
                    || !self.answers(&mut socket)
                {
                    break;
                }
            }
        }
    }

    /// What is to be sent again, and what is due. Whether the connection is good.
    fn send(&mut self, stage: &Stage, socket: &mut Socket, due: u64) -> bool {
        while self.under_way.len() < UNDER_WAY_MAX && self.sent < due {
            self.under_way.insert(self.sent, Instant::now());
            self.again.push_back(self.sent);
            self.sent += 1;
        }
        for n in self.again.drain(..) {
            let data = self.number << 32 | n;
            let key = data.to_string();
            let publish = json!({"type": "publish", "id": n, "channel": stage.channel(data as usize),
                "data": data, "idempotency_key": key});
            if socket.write(Message::text(publish.to_string())).is_err() {
                return false;
            }
        }
        socket.flush().is_ok()
    }

    /// Takes answers for a moment. Whether the connection is good.
    fn answers(&mut self, socket: &mut Socket) -> bool {
        let until = Instant::now() + PACE;
        while Instant::now() < until {
            let told: Value = match socket.read() {
                Ok(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
                Ok(Message::Close(_)) => return false,
                Ok(_) => continue,
                Err(tungstenite::Error::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return true;
                }
                Err(_) => return false,
            };
            match told["type"].as_str() {
                Some("published") => {
                    let n = told["id"].as_u64().unwrap();
                    if let Some(at) = self.under_way.remove(&n) {
                        self.slowest = self.slowest.max(at.elapsed());
                        self.acknowledged.push(self.number << 32 | n);
                    }
                }
                // The node drains: what it has not taken goes elsewhere.
                Some("error") if told["code"] == "draining" => return false,
                Some("error") => self.again.push_back(told["id"].as_u64().unwrap()),
                Some("drain") => {}
                _ => panic!("{told}"),
            }
        }
        true
    }
}

/// Plays it with these nodes: `start` starts the one of a number again, and returns once it serves.
pub fn restart_each(
    scene: Scene,
    mut nodes: Vec<NodeProcess>,
    mut start: impl FnMut(usize) -> NodeProcess,
) -> Outcome {
    let ports = nodes.iter().map(|node| AtomicU16::new(node.public.port())).collect();
    let stage = Stage {
        scene,
        ports,
        connected: AtomicUsize::new(0),
        restart: AtomicUsize::new(0),
        ends: AtomicBool::new(false),
    };
    let all_there = || {
        let connected = || stage.connected.load(Ordering::Acquire);
        wait_until("subscribers", connected, |count| *count == scene.subscribers);
    };
    std::thread::scope(|scope| {
        let subscribers: Vec<_> = (0..scene.subscribers)
            .map(|number| {
                let stage = &stage;
                scope.spawn(move || Subscriber::default().run(stage, number))
            })
            .collect();
        all_there();
        let publishers: Vec<_> = (0..scene.publishers as u64)
            .map(|number| {
                let stage = &stage;
                let (under_way, again) = (BTreeMap::new(), VecDeque::new());
                let (acknowledged, slowest) = (Vec::new(), Duration::ZERO);
                let own = Publisher { number, sent: 0, under_way, again, acknowledged, slowest };
                scope.spawn(move || own.run(stage))
            })
            .collect();
        let began = Instant::now();
        std::thread::sleep(scene.quiet);
        for (at, node) in nodes.iter_mut().enumerate() {
            stage.restart.fetch_add(1, Ordering::AcqRel);
            stage.ports[at].store(0, Ordering::Release);
            node.signal("TERM");
            node.wait();
            *node = start(at);
            stage.ports[at].store(node.public.port(), Ordering::Release);
            all_there();
            std::thread::sleep(scene.quiet);
        }
        let took = began.elapsed();
        stage.ends.store(true, Ordering::Release);
        let publishers: Vec<Publisher> =
            publishers.into_iter().map(|own| own.join().unwrap()).collect();
        for channel in (0..scene.channels).map(|number| stage.channel(number)) {
            let body = json!({"channel": channel, "data": LAST}).to_string();
            let publish = || http(nodes[0].internal, "POST", "/api/publish", "", &body).0;
            wait_until("the last publication", publish, |status| *status == 200);
        }
        let subscribers: Vec<Subscriber> =
            subscribers.into_iter().map(|own| own.join().unwrap()).collect();
        judge(scene, &publishers, &subscribers, took)
    })
}

fn judge(
    scene: Scene,
    publishers: &[Publisher],
    subscribers: &[Subscriber],
    took: Duration,
) -> Outcome {
    let mut acknowledged = vec![Vec::new(); scene.channels];
    for data in publishers.iter().flat_map(|own| &own.acknowledged) {
        acknowledged[*data as usize % scene.channels].push(*data);
    }
    let sum = |of: fn(&Subscriber) -> usize| subscribers.iter().map(of).sum::<usize>();
    let mut outcome = Outcome {
        acknowledged: acknowledged.iter().map(Vec::len).sum(),
        sent: publishers.iter().map(|own| own.sent as usize).sum(),
        took,
        slowest: publishers.iter().map(|own| own.slowest).max().unwrap_or_default(),
        missed: 0,
        missed_of_recovered: 0,
        silent: 0,
        twice: 0,
        silent_twice: 0,
        gaps: sum(|own| own.gaps),
        unrecovered: sum(|own| own.unrecovered),
        cut: sum(|own| own.cut),
        due: by_restart(subscribers.iter().flat_map(|own| &own.due)),
        returns: by_restart(subscribers.iter().flat_map(|own| &own.returned)),
    };
    for (number, Subscriber { seen, told, unrecovered, .. }) in subscribers.iter().enumerate() {
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let twice = seen.len() - sorted.len();
        let expected = &acknowledged[number % scene.channels];
        let missed = expected.iter().filter(|data| sorted.binary_search(data).is_err()).count();
        outcome.missed += missed;
        outcome.twice += twice;
        if *unrecovered == 0 {
            outcome.missed_of_recovered += missed;
        }
        if !told {
            outcome.silent += missed;
            outcome.silent_twice += twice;
        }
    }
    outcome
}

/// Moments since the first one of their restart.
fn by_restart<'a>(moments: impl Iterator<Item = &'a (usize, Instant)>) -> Vec<Vec<Duration>> {
    let mut all = BTreeMap::<usize, Vec<Instant>>::new();
    moments.for_each(|(restart, at)| all.entry(*restart).or_default().push(*at));
    let since_first = |moments: Vec<Instant>| {
        let first = moments.iter().min().copied();
        moments.iter().filter_map(|at| Some(*at - first?)).collect()
    };
    all.into_values().map(since_first).collect()
}
