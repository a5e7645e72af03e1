//! A node's place in a registry: announces it, says that it lives, and keeps the lists of nodes and channels as they were told
//! last. It never gives up: while the registry is away what was known stays, and the node is announced again where it was
//! forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::api::{Announcement, ChannelList, Heard, Heartbeat, NodeList, NodeState};
use super::client::{CallError, Client};

/// Pause after the first failure; each further one doubles it, up to the time between heartbeats.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// A node that was replaced is announced again once the registry has not known it so often in a row: by then it has heard of the
/// successor, if that lives.
const SUCCESSOR_HEARTBEATS: u32 = 3;

/// How a node stands with its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It has not been announced yet.
    Joining,
    /// The registry has heard of it lately.
    Member,
    /// The registry does not answer, or not as it should; why.
    Away(CallError),
    /// Another process has announced itself under the same id. This one does not fight over it, and is announced again
    /// once the other one has left.
    Replaced,
}

/// See the module. Dropping it ends it without a word to the registry, which notices after its `node_timeout_ms`.
#[derive(Debug)]
pub struct Membership {
    nodes: watch::Receiver<Arc<NodeList>>,
    channels: watch::Receiver<Arc<ChannelList>>,
    standing: watch::Receiver<Standing>,
    state: watch::Sender<NodeState>,
    metrics: watch::Sender<Option<Box<RawValue>>>,
    leave: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Membership {
    /// Announces a node and says that it lives every `heartbeat`, more or less. Call it inside a tokio runtime. A registry's
    /// `node_timeout_ms` should be three heartbeats or more.
    pub fn start(client: Client, node: Announcement, heartbeat: Duration) -> Membership {
        let (nodes, nodes_seen) = watch::channel(Arc::default());
        let (channels, channels_seen) = watch::channel(Arc::default());
        let (standing, standing_seen) = watch::channel(Standing::Joining);
        let (state, state_wished) = watch::channel(node.state);
        let (metrics, metrics_told) = watch::channel(None);
        let (leave, leaving) = watch::channel(false);
        let life = Life {
            client,
            node,
            heartbeat,
            announced: false,
            unknown: SUCCESSOR_HEARTBEATS,
            nodes,
            nodes_known: None,
            channels,
            told_behind: false,
            standing,
            state: state_wished,
            metrics: metrics_told,
        };
        let task = tokio::spawn(life.run(leaving));
        Membership {
            nodes: nodes_seen,
            channels: channels_seen,
            standing: standing_seen,
            state,
            metrics,
            leave,
            task,
        }
    }

    /// The nodes that live, this one included once it is a member; version 0 and nobody until they are known first.
    pub fn nodes(&self) -> watch::Receiver<Arc<NodeList>> {
        self.nodes.clone()
    }

    /// The channels that this node serves; version 0 until they are known first, or as long as there was never one.
    pub fn channels(&self) -> watch::Receiver<Arc<ChannelList>> {
        self.channels.clone()
    }

    /// How it stands with the registry.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Says at once that the node wants, or does not want, new clients.
    pub fn set_state(&self, state: NodeState) {
        self.state.send_if_modified(|own| std::mem::replace(own, state) != state);
    }

    /// Figures that go with the next heartbeats, an object of at most 64 KiB.
    pub fn set_metrics(&self, metrics: Box<RawValue>) {
        self.metrics.send_replace(Some(metrics));
    }

    /// Tells the registry that the node goes, as far as it listens, and ends.
    pub async fn leave(mut self) {
        self.leave.send_replace(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Life {
    client: Client,
    node: Announcement,
    heartbeat: Duration,
    announced: bool,
    /// How often the registry has not known this node since it was told that another process has taken its place.
    unknown: u32,
    nodes: watch::Sender<Arc<NodeList>>,
    /// Version of the list that was taken whole.
    nodes_known: Option<u64>,
    channels: watch::Sender<Arc<ChannelList>>,
    /// The operator knows that the registry's list of channels is older than this one.
    told_behind: bool,
    standing: watch::Sender<Standing>,
    state: watch::Receiver<NodeState>,
    metrics: watch::Receiver<Option<Box<RawValue>>>,
}

impl Life {
    async fn run(mut self, mut leaving: watch::Receiver<bool>) {
        let mut backoff = RETRY_FIRST;
        loop {
            let (standing, pause) = match self.turn().await {
                Ok(standing) => {
                    backoff = RETRY_FIRST;
                    // Nodes that were started together do not go on asking together.
                    (standing, self.heartbeat.mul_f64(rand::rng().random_range(0.9..1.1)))
                }
                Err(e) => {
                    let pause = backoff.min(self.heartbeat);
                    backoff = pause * 2;
                    (Standing::Away(e), pause.mul_f64(rand::rng().random_range(0.5..1.5)))
                }
            };
            self.stand(standing);
            tokio::select! {
                () = sleep(pause) => {}
                changed = self.state.changed() => if changed.is_err() { return },
                _ = leaving.wait_for(|leaving| *leaving) => break,
            }
        }
        match self.client.leave(&self.node.id, Some(&self.node.epoch)).await {
            Ok(_) => tracing::info!("left the registry at {}", self.client.url()),
            Err(e) => tracing::warn!("the registry was not told that this node goes: {e}"),
        }
    }

    /// Tells how it stands, and the operator where that has changed.
    fn stand(&self, standing: Standing) {
        let url = self.client.url();
        let same =
            |own: &Standing| std::mem::discriminant(own) == std::mem::discriminant(&standing);
        if !same(&self.standing.borrow()) {
            match &standing {
                Standing::Joining => {}
                Standing::Member => tracing::info!("the registry at {url} knows this node"),
                Standing::Away(e) => {
                    tracing::warn!(
                        "the registry at {url} is away, and what it told last holds: {e}"
                    );
                }
                Standing::Replaced => {
                    let id = &self.node.id;
                    tracing::error!(
                        "another process has announced itself as {id}: ids must differ"
                    );
                }
            }
        }
        self.standing.send_replace(standing);
    }

    /// One announcement or heartbeat, and what it says is new.
    async fn turn(&mut self) -> Result<Standing, CallError> {
        let state = *self.state.borrow_and_update();
        self.node.state = state;
        let mut standing = Standing::Member;
        let heard = match self.announced {
            false => Some(self.announce().await?),
            true => {
                let metrics = self.metrics.borrow().clone();
                let word =
                    Heartbeat { epoch: Some(self.node.epoch.clone()), state: Some(state), metrics };
                match self.client.heartbeat(&self.node.id, &word).await {
                    Ok(heard) => Some(heard),
                    // Its successor may have yet to be heard of, by a registry that has just begun.
                    Err(e) if e.is_unknown() && self.unknown < SUCCESSOR_HEARTBEATS => {
                        self.unknown += 1;
                        standing = Standing::Replaced;
                        None
                    }
                    Err(e) if e.is_unknown() => Some(self.announce().await?),
                    Err(e) if e.is_replaced() => {
                        self.unknown = 0;
                        standing = Standing::Replaced;
                        None
                    }
                    Err(e) => return Err(e),
                }
            }
        };
        // Of the nodes any other version is news.
        let nodes = heard.as_ref().map(|heard| heard.nodes_version);
        if nodes.is_none_or(|now| Some(now) != self.nodes_known) {
            self.fetch_nodes().await?;
        }
        self.fetch_channels(heard.map(|heard| heard.channels_version)).await?;
        Ok(standing)
    }

    /// Fetches the channels where the registry has a later version of them. One with an earlier version has lost its file, or
    /// was given an older copy: nobody has taken anything back.
    async fn fetch_channels(&mut self, version: Option<u64>) -> Result<(), CallError> {
        let known = self.channels.borrow().version;
        let is_behind = version.is_some_and(|version| version < known);
        if is_behind && !self.told_behind {
            tracing::warn!(
                "the registry at {} has an older list of channels than it told before, as one has that has lost its file: what it \
                 told before holds until something is changed there",
                self.client.url()
            );
        }
        self.told_behind = is_behind;
        if version.is_none_or(|version| version > known)
            && let Some(list) = self.client.channels(Some(&self.node.id), Some(known)).await?
            && list.version > known
        {
            self.channels.send_replace(Arc::new(list));
        }
        Ok(())
    }

    async fn announce(&mut self) -> Result<Heard, CallError> {
        self.announced = false;
        let told = self.client.announce(&self.node).await?;
        (self.announced, self.unknown) = (true, SUCCESSOR_HEARTBEATS);
        if told.replaced {
            tracing::info!("this process has taken the place of another one of the same id");
        }
        let (nodes_version, channels_version) = (told.nodes_version, told.channels_version);
        Ok(Heard { nodes_version, channels_version })
    }

    async fn fetch_nodes(&mut self) -> Result<(), CallError> {
        let Some(mut list) = self.client.nodes(false, self.nodes_known).await? else {
            return Ok(());
        };
        self.nodes_known = Some(list.version);
        let before = self.nodes.borrow().clone();
        if !list.settled {
            // A registry that has just begun, possibly with an empty file, has yet to hear of the others.
            let there: BTreeSet<_> = list.nodes.iter().map(|node| node.id.clone()).collect();
            let missing = before.nodes.iter().filter(|node| !there.contains(&node.id)).cloned();
            let missing: Vec<_> = missing.collect();
            if !missing.is_empty() {
                self.nodes_known = None;
                list.nodes.extend(missing);
                list.nodes.sort_by(|a, b| a.id.cmp(&b.id));
            }
        }
        self.nodes.send_replace(Arc::new(list));
        Ok(())
    }
}
