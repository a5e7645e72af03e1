//! Nodes on a network of their own, each in a network namespace, whose wires are cut in every way: nobody is ever told two things
//! of one epoch and offset.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::Message;

use crate::common::process::NodeProcess;
use crate::common::{Client, PATIENCE, http, wait_until};
use crate::fleet::CHANNELS;
use crate::process::{KEY, Registry};

/// Set in the process that has such a network.
const INSIDE: &str = "RINGFEED_TEST_NETWORK";
const NODES: usize = 3;
/// The registry's place behind the nodes.
const REGISTRY: usize = NODES;
const KEPT: [&str; 6] = ["n.0", "n.1", "n.2", "n.3", "n.4", "n.5"];
/// Each node numbers by what it heard for two seconds at most, and new keepers wait for three.
const LONGER_THAN_ANY_WAIT: Duration = Duration::from_secs(6);

/// Runs a test in a process that has a network of its own, which goes with it, however it ends. Where none can be had it says why.
fn isolated(name: &str, test: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let probe = "nsenter --version && ip link add name sw type bridge && ip link add name d type veth peer name c";
    let ways: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
    let mut why = String::new();
    for way in ways {
        match Command::new("unshare").args(way).args(["sh", "-c", probe]).output() {
            Ok(probe) if probe.status.success() => {
                let mut inner = Command::new("unshare");
                inner.args(way).arg(std::env::current_exe().unwrap());
                let name = format!("namespaces::{name}");
                let inner = inner.args(["--exact", &name, "--nocapture"]).env(INSIDE, "1");
                let ended = inner.output().unwrap();
                let said = String::from_utf8_lossy(&ended.stdout);
                let why = String::from_utf8_lossy(&ended.stderr);
                assert!(ended.status.success() && said.contains(" 1 passed"), "{said}\n{why}");
                print!("{said}");
                return;
            }
            Ok(probe) => why = String::from_utf8_lossy(&probe.stderr).into_owned(),
            Err(e) => why = format!("unshare: {e}"),
        }
    }
    let why = why.trim();
    eprintln!(
        "skipped: no network namespaces with unshare, nsenter and ip (util-linux, iproute2) on this machine: {why}"
    );
}

/// Hosts on one switch. The test reaches each by a wire beside it, which is never cut.
struct Network {
    /// Processes that hold the namespaces.
    hosts: Vec<Child>,
}

impl Network {
    fn start() -> Network {
        ip(
            &mut Command::new("ip"),
            "link set dev lo up\nlink add name sw type bridge\nlink set dev sw up\n",
        );
        let mut network = Network { hosts: Vec::new() };
        (0..=REGISTRY).for_each(|number| network.add(number));
        network
    }

    fn add(&mut self, number: usize) {
        let host = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
        let pid = host.id();
        self.hosts.push(host);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let look = || std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        wait_until("namespace", look, |seen| seen.as_ref().is_some_and(|seen| *seen != own));
        let lines = format!(
            "link add name d{number} type veth peer name data netns {pid}
             link set dev d{number} master sw
             link set dev d{number} up
             link add name c{number} type veth peer name ctl netns {pid}
             addr add 10.1.{number}.1/24 dev c{number}
             link set dev c{number} up\n"
        );
        ip(&mut Command::new("ip"), &lines);
        let address = address(number);
        let lines = format!(
            "link set dev lo up
             addr add {address}/24 dev data
             link set dev data up
             addr add 10.1.{number}.2/24 dev ctl
             link set dev ctl up\n"
        );
        self.ip_at(number, &lines);
    }

    /// What a program is executed by in a host.
    fn wrapped(&self, host: usize) -> Vec<String> {
        let pid = self.hosts[host].id().to_string();
        ["nsenter", "--net", "--target", &pid].map(str::to_owned).into()
    }

    fn ip_at(&self, host: usize, lines: &str) {
        let words = self.wrapped(host);
        ip(Command::new(&words[0]).args(&words[1..]).arg("ip"), lines);
    }

    /// The wire from a host to the switch is pulled, or put in again.
    fn wire(&self, host: usize, there: bool) {
        let state = if there { "up" } else { "down" };
        ip(&mut Command::new("ip"), &format!("link set dev d{host} {state}\n"));
    }

    /// Nothing goes from a host to another one, or everything does again. What goes the other way comes.
    fn way(&self, from: usize, to: usize, there: bool) {
        let verb = if there { "del" } else { "add" };
        self.ip_at(from, &format!("route {verb} blackhole {}/32\n", address(to)));
    }

    fn both_ways(&self, one: usize, other: usize, there: bool) {
        self.way(one, other, there);
        self.way(other, one, there);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            let _ = host.kill();
            let _ = host.wait();
        }
    }
}

/// A host's on the switch.
fn address(host: usize) -> String {
    format!("10.0.0.{}", host + 1)
}

fn ip(command: &mut Command, lines: &str) {
    let mut child = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{lines}");
}

/// What was told of a place: channel, epoch, offset, and the publication there.
type Told = (String, String, u64, String);

/// What a reader was told, …
#[derive(Default)]
struct Read {
    told: Vec<Told>,
    /// … of which channels and epochs it was told that nothing behind this offset is missing, …
    whole: Vec<(String, String, u64)>,
    /// … and whether that was all until the end, or it was cut off.
    to_the_end: bool,
}

/// Reads until it is told `end` on all channels, or cut off. No offset is left out without a word.
fn read(mut client: Client) -> Read {
    let mut at: HashMap<String, (String, u64)> = HashMap::new();
    for channel in KEPT {
        client.send(json!({"type": "subscribe", "id": 1, "channel": channel}));
    }
    let (mut read, mut ended) = (Read::default(), Vec::new());
    while ended.len() < KEPT.len() {
        let event: Value = match client.socket.read() {
            Ok(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            Ok(_) => continue,
            Err(_) => return read,
        };
        let channel = event["channel"].as_str().unwrap().to_owned();
        let epoch = || event["epoch"].as_str().unwrap().to_owned();
        match event["type"].as_str().unwrap() {
            "subscribed" => {
                at.insert(channel, (epoch(), event["offset"].as_u64().unwrap()));
            }
            "gap" => {
                let [from, to] = ["from", "to"].map(|end| event[end].as_u64().unwrap());
                let (life, before) = at.insert(channel.clone(), (epoch(), to)).unwrap();
                if from > to {
                    read.whole.push((channel, life, before));
                }
            }
            "message" => {
                let (life, before) = at.get_mut(&channel).unwrap();
                let offset = event["offset"].as_u64().unwrap();
                assert_eq!(offset, *before + 1, "{event} behind {life} {before}");
                *before = offset;
                let data = event["data"].as_str().unwrap().to_owned();
                if data == "end" && !ended.contains(&channel) {
                    ended.push(channel.clone());
                }
                read.told.push((channel, life.clone(), offset, data));
            }
            _ => panic!("{event}"),
        }
    }
    read.to_the_end = true;
    read
}

/// By node and channel.
type Counts = [[AtomicUsize; KEPT.len()]; NODES];

#[derive(Default)]
struct Counted {
    stop: AtomicBool,
    taken: Counts,
    refused: Counts,
}

/// Publishes on one channel, until told to stop or cut off; what it was told that it has published.
fn publish(mut client: Client, node: usize, channel: usize, counted: &Counted) -> Vec<Told> {
    let mut own = Vec::new();
    for n in 0.. {
        if counted.stop.load(Ordering::Relaxed) {
            break;
        }
        // At a pace that leaves the machine to the nodes.
        std::thread::sleep(Duration::from_millis(2));
        let data = format!("{node}-{n}");
        let publish = json!({"type": "publish", "id": n, "channel": KEPT[channel], "data": data});
        if client.socket.send(Message::text(publish.to_string())).is_err() {
            break;
        }
        let Ok(Message::Text(reply)) = client.socket.read() else { break };
        let reply: Value = serde_json::from_str(&reply).unwrap();
        if reply["type"] == "published" {
            let epoch = reply["epoch"].as_str().unwrap().to_owned();
            own.push((KEPT[channel].to_owned(), epoch, reply["offset"].as_u64().unwrap(), data));
            counted.taken[node][channel].fetch_add(1, Ordering::Relaxed);
        } else {
            assert_eq!(reply["code"], "busy", "{reply}");
            counted.refused[node][channel].fetch_add(1, Ordering::Relaxed);
        }
    }
    own
}

/// Three nodes and a registry, readers and publishers on each node and channel.
struct Fleet {
    // Ended before the network is.
    nodes: Vec<NodeProcess>,
    _registry: Registry,
    network: Network,
    counted: Arc<Counted>,
    readers: Vec<JoinHandle<Read>>,
    publishers: Vec<JoinHandle<Vec<Told>>>,
}

impl Fleet {
    fn start() -> Fleet {
        let network = Network::start();
        let words = network.wrapped(REGISTRY);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let listen = format!("{}:9810", address(REGISTRY));
        let registry = Registry::start_wrapped(
            tempfile::tempdir().unwrap(),
            &words,
            &["--listen", &listen, "--node-timeout-ms", "2000"],
        );
        let start = |number: usize| {
            let toml = format!(
                "[auth]\nanonymous = true\n[api]\nkeys = [{KEY:?}]\n[cluster]\nkey = {KEY:?}\nlisten = \"{}:9802\"\npatience_ms = 500\n{CHANNELS}",
                address(number)
            );
            let sets = [
                format!("cluster.registry={}", registry.url()),
                format!("server.node_id=node-{number}"),
            ];
            let ports = [9800, 9801].map(|port| SocketAddr::from(([10, 1, number as u8, 2], port)));
            NodeProcess::start_at(ports, &network.wrapped(number), &toml, &sets)
        };
        let nodes: Vec<NodeProcess> = (0..NODES).map(start).collect();
        let mut fleet = Fleet {
            nodes,
            _registry: registry,
            network,
            counted: Arc::default(),
            readers: Vec::new(),
            publishers: Vec::new(),
        };
        (0..NODES).for_each(|node| fleet.wait(node, [NODES as u64, 2, 1]));
        for (number, node) in fleet.nodes.iter().enumerate() {
            let client = node.client();
            fleet.readers.push(std::thread::spawn(move || read(client)));
            for channel in 0..KEPT.len() {
                let (client, counted) = (node.client(), fleet.counted.clone());
                fleet
                    .publishers
                    .push(std::thread::spawn(move || publish(client, number, channel, &counted)));
            }
        }
        fleet.flows(&[0, 1, 2]);
        fleet
    }

    /// Of how many members its view is, with how many it is linked, and whether it can do what it is asked.
    fn look(&self, node: usize) -> [u64; 3] {
        let key = format!("X-API-Key: {KEY}\r\n");
        let (_, text) = http(self.nodes[node].internal, "GET", "/metrics", &key, "");
        ["members", "links", "up"].map(|name| {
            let prefix = format!("ringfeed_cluster_{name} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<f64>().unwrap() as u64
        })
    }

    fn wait(&self, node: usize, wanted: [u64; 3]) {
        wait_until("members, links, up", || self.look(node), |seen| *seen == wanted);
    }

    /// Waits until these have taken something on every channel once more.
    fn flows(&self, nodes: &[usize]) {
        let taken = || {
            let of = |node: &usize| {
                self.counted.taken[*node].each_ref().map(|own| own.load(Ordering::Relaxed))
            };
            nodes.iter().map(of).collect::<Vec<_>>()
        };
        let before = taken();
        wait_until("taken", taken, |now| {
            now.iter().flatten().zip(before.iter().flatten()).all(|(now, before)| *now > before + 1)
        });
    }

    /// Waits until this one has refused something on every channel, and has taken nothing meanwhile.
    fn refuses(&self, node: usize) {
        let sum = |counts: &Counts| counts[node].each_ref().map(|own| own.load(Ordering::Relaxed));
        let refused = || sum(&self.counted.refused);
        let more = |before: [usize; KEPT.len()]| {
            wait_until("refused", refused, |now| {
                now.iter().zip(&before).all(|(now, before)| *now > before + 1)
            });
        };
        // What was under way is answered by then.
        more(refused());
        let taken = sum(&self.counted.taken);
        more(refused());
        assert_eq!(sum(&self.counted.taken), taken);
    }

    /// For longer than anybody waits for anything these take what is published, on every channel.
    fn flows_on(&self, nodes: &[usize]) {
        let until = Instant::now() + LONGER_THAN_ANY_WAIT;
        while Instant::now() < until {
            self.flows(nodes);
        }
    }

    /// Everybody is told the same, and these to the end.
    fn end(mut self, to_the_end: &[usize]) {
        self.counted.stop.store(true, Ordering::Relaxed);
        let own: Vec<Told> =
            self.publishers.drain(..).flat_map(|own| own.join().unwrap()).collect();
        let deadline = Instant::now() + PATIENCE;
        let mut client = self.nodes[to_the_end[0]].client();
        while !to_the_end.iter().all(|&node| self.readers[node].is_finished()) {
            assert!(Instant::now() < deadline, "a reader is not told the end");
            for channel in KEPT {
                client.ask(json!({"type": "publish", "id": 1, "channel": channel, "data": "end"}));
            }
        }
        let mut ever: HashMap<(String, String, u64), String> = HashMap::new();
        let mut lives = HashMap::<String, Vec<String>>::new();
        let mut put = |(channel, epoch, offset, data): Told| {
            let known = lives.entry(channel.clone()).or_default();
            if !known.contains(&epoch) {
                known.push(epoch.clone());
            }
            let first = ever.entry((channel, epoch, offset)).or_insert_with(|| data.clone());
            assert_eq!(*first, data, "two things of one place");
        };
        let published = own.len();
        let (mut messages, mut whole) = (0, Vec::new());
        for (node, reader) in self.readers.drain(..).enumerate() {
            if !reader.is_finished() {
                continue;
            }
            let read = reader.join().unwrap();
            let cut_off = !read.to_the_end && to_the_end.contains(&node);
            assert!(!cut_off, "a reader on node {node} was cut off");
            messages += read.told.len();
            read.told.into_iter().for_each(&mut put);
            whole.extend(read.whole);
        }
        for (channel, epoch, offset, data) in own {
            let silent =
                whole.iter().find(|own| own.0 == channel && own.1 == epoch && own.2 < offset);
            assert_eq!(silent, None, "{data} was taken at {offset}");
            put((channel, epoch, offset, data));
        }
        let lives: usize = lives.values().map(Vec::len).sum();
        println!(
            "{published} published, {messages} messages, {} places, {lives} lives of {} channels",
            ever.len(),
            KEPT.len()
        );
    }
}

#[test]
fn a_node_whose_wire_is_pulled_takes_nothing_while_the_others_go_on() {
    isolated("a_node_whose_wire_is_pulled_takes_nothing_while_the_others_go_on", || {
        let fleet = Fleet::start();
        fleet.network.wire(0, false);
        [1, 2].into_iter().for_each(|node| fleet.wait(node, [2, 1, 1]));
        fleet.flows(&[1, 2]);
        fleet.refuses(0);
        fleet.network.wire(0, true);
        (0..NODES).for_each(|node| fleet.wait(node, [3, 2, 1]));
        fleet.flows(&[0, 1, 2]);
        fleet.end(&[0, 1, 2]);
    });
}

#[test]
fn who_is_cut_off_from_the_registry_alone_goes_on_with_the_others() {
    isolated("who_is_cut_off_from_the_registry_alone_goes_on_with_the_others", || {
        let fleet = Fleet::start();
        fleet.network.both_ways(0, REGISTRY, false);
        fleet.flows_on(&[0, 1, 2]);
        (0..NODES).for_each(|node| fleet.wait(node, [3, 2, 1]));
        // Then from nobody but one who does not hear it.
        fleet.network.both_ways(0, REGISTRY, true);
        fleet.network.way(1, REGISTRY, false);
        fleet.network.way(REGISTRY, 2, false);
        fleet.flows_on(&[0, 1, 2]);
        (0..NODES).for_each(|node| fleet.wait(node, [3, 2, 1]));
        fleet.end(&[0, 1, 2]);
    });
}

#[test]
fn a_way_between_two_nodes_is_cut_and_each_goes_on_with_the_third() {
    isolated("a_way_between_two_nodes_is_cut_and_each_goes_on_with_the_third", || {
        let fleet = Fleet::start();
        for ways in [&[(0, 1), (1, 0)][..], &[(0, 1)], &[(1, 2)]] {
            let (one, other) = ways[0];
            let third = 3 - one - other;
            ways.iter().for_each(|&(from, to)| fleet.network.way(from, to, false));
            fleet.wait(one, [3, 1, 1]);
            fleet.wait(other, [3, 1, 1]);
            fleet.flows(&[third]);
            ways.iter().for_each(|&(from, to)| fleet.network.way(from, to, true));
            (0..NODES).for_each(|node| fleet.wait(node, [3, 2, 1]));
            fleet.flows(&[0, 1, 2]);
        }
        fleet.end(&[0, 1, 2]);
    });
}

#[test]
fn one_node_is_killed_while_another_is_cut_off_and_frozen() {
    isolated("one_node_is_killed_while_another_is_cut_off_and_frozen", || {
        let mut fleet = Fleet::start();
        fleet.network.wire(0, false);
        fleet.nodes[2].kill();
        fleet.refuses(0);
        // It wakes on a network that is whole, and goes by what was before.
        fleet.nodes[0].signal("STOP");
        fleet.network.wire(0, true);
        let until = Instant::now() + LONGER_THAN_ANY_WAIT;
        while Instant::now() < until {
            // It is left alone in no view: the registry alone hears it.
            let [members, ..] = fleet.look(1);
            assert!(members > 1, "{members} members");
        }
        fleet.nodes[0].signal("CONT");
        [0, 1].into_iter().for_each(|node| fleet.wait(node, [2, 1, 1]));
        fleet.flows(&[0, 1]);
        fleet.end(&[0, 1]);
    });
}
