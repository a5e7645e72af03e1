//! Nodes of DistributedWebSocket beside this one (`[wsnode]`): what is published here they are told, each in order, with
//! the posts by which they tell each other.
//!
//! The node that something is published on tells them, and no other one: a home does not hand over what other nodes have
//! told it, nor what a node of theirs has posted to all. Nobody waits for them. Whoever cannot be told is told no more:
//! what waits is bounded, in bytes and in time, and counted where it comes to nothing.

mod node;
mod registry;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use rand::Rng as _;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request};
use ringfeed_protocol::any_name;
use ringfeed_protocol::foreign::wsnode::{self, By};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::State;
use super::hooks::SystemNames;
use super::hooks::client::Client;
use super::hooks::failure::Failure;
use crate::counters::Count;
use crate::message::Forward;
use crate::registry::names::NodeUrl;
use crate::seldom::Seldom;
use node::Node;
use registry::Registry;

/// Longest body that a node takes, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 100 * 1024;
/// Bytes that wait for all nodes.
pub(crate) const WAITING_BYTES_MAX: usize = 64 << 20;
/// Nodes that are told.
const NODES_MAX: usize = 64;
/// Of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What waits for a node that cannot be reached waits so long.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to reach it: first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long nodes are told of the last publications, once the shards have ended.
const LAST_TIME: Duration = Duration::from_secs(2);

/// What is counted of it.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Posts that were taken.
    pub(super) sent: Count,
    /// Posts that were answered with another status.
    pub(super) refused: Count,
    /// Posts without an answer: whether they were taken is not known.
    pub(super) failed: Count,
    /// Posts that were never sent: the node could not be reached in time, or too much waited for it.
    pub(super) lost: Count,
    /// Publications that no node takes: too long, or nothing to JavaScript.
    pub(super) unfit: Count,
    /// Nodes that are told.
    pub(super) nodes: Count,
    /// Bytes that wait for them.
    pub(super) waiting_bytes: Count,
    /// Ids of the nodes that are known, as far as they have said them.
    pub(super) ids: ArcSwap<Vec<String>>,
}

/// A node, and what tells it.
struct Told {
    node: Rc<Node>,
    task: AbortHandle,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// See the module's description. Belongs to the control thread.
pub(super) struct Forwarding {
    state: Arc<State>,
    client: Client,
    /// In front of the names of channels.
    prefix: Box<str>,
    any_names: bool,
    own_id: Box<str>,
    key: Box<str>,
    links: Option<Box<str>>,
    listed: Vec<NodeUrl>,
    registry: Option<Registry>,
    interval: Duration,
    told: RefCell<Vec<Told>>,
    /// Something came to its end.
    moved: Notify,
    unfit_log: RefCell<Seldom>,
    lost_log: RefCell<Seldom>,
}

/// What a node answers that has taken a broadcast.
#[derive(Deserialize)]
struct Taken {
    #[serde(rename = "nodeId")]
    node_id: Option<String>,
    /// It hears what is published here by a link of its own.
    #[serde(default)]
    linked: bool,
}

impl Forwarding {
    /// `None` where there are no such nodes.
    ///
    /// # Errors
    /// What keeps it from asking anybody anything.
    pub(super) fn new(state: &Arc<State>) -> Result<Option<Rc<Forwarding>>, String> {
        let config = state.shared.config();
        let Some(endpoint) = config.wsnode_endpoint() else { return Ok(None) };
        let own = &config.wsnode;
        let client = |tls| Client::new(Arc::new(SystemNames), true, tls);
        // A machine without certificates can still ask without TLS.
        let client = client(true).or_else(|_| client(false)).map_err(|e| e.to_string())?;
        let parse = |url: &String| url.parse::<NodeUrl>().map_err(|e| e.to_string());
        Ok(Some(Rc::new(Forwarding {
            state: state.clone(),
            client: client.clone(),
            prefix: (*endpoint.channel_prefix).into(),
            any_names: endpoint.dialect.has_any_names(),
            own_id: (*config.server.node_id).into(),
            key: own.key_text().into(),
            links: config.links().map(Into::into),
            listed: own.nodes.iter().map(parse).collect::<Result<_, _>>()?,
            registry: Registry::new(&config, client)?,
            interval: Duration::from_millis(own.interval_ms.into()),
            told: RefCell::default(),
            moved: Notify::new(),
            unfit_log: RefCell::default(),
            lost_log: RefCell::default(),
        })))
    }

    fn figures(&self) -> &Figures {
        &self.state.figures.forwards
    }

    /// Tells nodes of what comes, until the shards have ended and they know all, or the time for that is over.
    pub(super) async fn run(self: Rc<Self>, mut receiver: mpsc::Receiver<Forward>) {
        let mut stopping = self.state.stopping.subscribe();
        // What is published meanwhile waits until it is known for whom it is.
        tokio::select! {
            () = self.refresh() => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
        let follows = spawn_local(self.clone().follow());
        loop {
            tokio::select! {
                Some(forward) = receiver.recv() => self.forward(&forward),
                _ = stopping.wait_for(|stopping| *stopping) => break,
            }
        }
        while let Ok(forward) = receiver.try_recv() {
            self.forward(&forward);
        }
        let done = async {
            while self.told.borrow().iter().any(|told| told.node.is_under_way()) {
                self.moved.notified().await;
            }
        };
        let _ = timeout(LAST_TIME, done).await;
        follows.abort();
        self.told.take();
    }

    /// Looks again and again which nodes there are; tells the registry when this one drains.
    async fn follow(self: Rc<Self>) {
        let mut draining = self.state.draining.subscribe();
        loop {
            let pause = self.interval.mul_f64(rand::rng().random_range(0.9..1.1));
            tokio::select! {
                () = sleep(pause) => self.refresh().await,
                _ = draining.wait_for(|draining| *draining) => break,
            }
        }
        if let Some(registry) = &self.registry {
            registry.announce("draining").await;
        }
    }

    /// Who is to be told from now on.
    async fn refresh(self: &Rc<Self>) {
        let mut nodes: Vec<(Option<String>, NodeUrl)> =
            self.listed.iter().map(|url| (None, url.clone())).collect();
        if let Some(registry) = &self.registry {
            registry.announce("active").await;
            match registry.nodes().await {
                Some(found) => nodes.extend(found),
                // It is away: its nodes are still there.
                None => nodes.extend(self.told.borrow().iter().map(|told| told.node.known())),
            }
        }
        let mut before = self.told.take();
        let mut told: Vec<Told> = Vec::new();
        for (id, url) in nodes {
            let is_own = id.as_deref() == Some(&*self.own_id);
            let Some(to) = node::broadcasts(&url).filter(|_| !is_own) else { continue };
            if let Some(same) = told.iter().find(|told| told.node.is_at(&to)) {
                same.node.called(id);
                continue;
            }
            if told.len() >= NODES_MAX {
                tracing::warn!(
                    "there are more than {NODES_MAX} nodes; the rest is not told of broadcasts"
                );
                break;
            }
            let known = before.iter().position(|told| told.node.is_at(&to));
            let one = known.map(|at| before.swap_remove(at)).unwrap_or_else(|| {
                let node = Rc::new(Node::new(url, to));
                let task = spawn_local(self.clone().tell(node.clone())).abort_handle();
                Told { node, task }
            });
            one.node.called(id);
            // It may be another process by now.
            one.node.set_linked(false, self.figures());
            told.push(one);
        }
        before.iter().for_each(|told| told.node.clear(self.figures()));
        self.figures().nodes.set(told.len() as u64);
        self.told.replace(told);
        self.show_ids();
    }

    fn show_ids(&self) {
        let ids = self.told.borrow().iter().filter_map(|told| told.node.known().0).collect();
        self.figures().ids.store(Arc::new(ids));
    }

    /// Puts a publication into the queue of every node.
    fn forward(&self, forward: &Forward) {
        let shared = &self.state.shared;
        let lost = shared.forwards.get().map_or(0, |forwards| {
            forwards.taken(forward);
            forwards.take_lost()
        });
        if lost > 0 {
            self.figures().lost.add(lost);
            if let Some(times) = self.lost_log.borrow_mut().count(Instant::now().into_std()) {
                tracing::warn!(times, "more is published than nodes of wsnode can be told of");
            }
        }
        if self.told.borrow().is_empty() {
            return;
        }
        let Some(body) = self.body(forward) else {
            self.figures().unfit.add(1);
            if let Some(times) = self.unfit_log.borrow_mut().count(Instant::now().into_std()) {
                tracing::warn!(
                    times,
                    channel = %forward.channel,
                    "nodes of wsnode take no such publication: over 100 KiB, or \"\", 0, false or null"
                );
            }
            return;
        };
        self.told.borrow().iter().for_each(|told| told.node.give(&body, self.figures()));
    }

    /// What is posted; `None` where no node would take it.
    fn body(&self, Forward { channel, payload }: &Forward) -> Option<Bytes> {
        let name = channel.strip_prefix(&*self.prefix)?;
        let name = if self.any_names { any_name::decode(name) } else { name.into() };
        let (key, origin, links) = (&*self.key, &*self.own_id, self.links.as_deref());
        let body = wsnode::write(&name, (payload.kind, &payload.bytes), By { key, origin, links });
        body.filter(|body| body.len() <= BODY_BYTES_MAX).map(Bytes::from)
    }

    /// Posts to a node what waits for it, one after the other. Ends with the node's place in the list.
    async fn tell(self: Rc<Self>, node: Rc<Node>) {
        let mut pause = PAUSE.0;
        loop {
            let (body, until) = node.next(self.figures()).await;
            let answer = self.post(&node, body).await;
            let unsent = matches!(answer, Err(Failure::NoConnection | Failure::NotPublic));
            node.note(&answer);
            if unsent && Instant::now() < until {
                self.moved.notify_one();
                sleep(pause.mul_f64(rand::rng().random_range(0.5..1.0))).await;
                pause = (pause * 2).min(PAUSE.1);
                continue;
            }
            pause = PAUSE.0;
            let figures = self.figures();
            node.done(figures);
            match answer {
                Ok((200..=299, answer)) => {
                    figures.sent.add(1);
                    self.taken(&node, &answer);
                }
                Ok(_) => figures.refused.add(1),
                Err(_) if unsent => figures.lost.add(1),
                // Once more could be once too many.
                Err(_) => figures.failed.add(1),
            }
            self.moved.notify_one();
        }
    }

    fn taken(&self, node: &Node, answer: &[u8]) {
        let Ok(Taken { node_id, linked }) = serde_json::from_slice(answer) else { return };
        if linked {
            node.set_linked(true, self.figures());
        }
        // It may be another process by now.
        if node_id.is_some() && node.known().0 != node_id {
            node.called(node_id);
            self.show_ids();
        }
    }

    async fn post(&self, node: &Node, body: Bytes) -> Result<(u16, Vec<u8>), Failure> {
        let mut request = Request::new(Method::POST, node.to().clone());
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        *request.body_mut() = Some(body.into());
        let reply = self.client.send(request, ANSWER_BYTES_MAX, TIMEOUT).await?;
        Ok((reply.status, reply.body))
    }
}
