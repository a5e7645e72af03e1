//! What all requests share: the fleet in memory, its file, and the order of changes between the two. A change is stored, then
//! taken, then told; where it cannot be stored nothing has changed.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::{Mutex, MutexGuard, RwLock, Semaphore};

use super::api::{Announced, Announcement, ChannelEntry, ChannelsChanged, Heard, NodeState};
use super::error::{ApiError, Code};
use super::figures::Figures;
use super::fleet::{Fleet, Full, Limits, Moment, NotHeard};
use super::names::NodeId;
use super::server::Options;
use super::store::{Later, Store, StoreError};
use super::views::{Standpoint, View, ViewReply};
use crate::clock::Clock;
use crate::config::check_beside;
use crate::seldom::Seldom;

/// How long a change waits for those before it.
const CHANGE_WAIT: Duration = Duration::from_secs(5);
/// The file learns at least so often that the registry is there.
const SAVED_EVERY_MS: u64 = 5000;
/// Most bytes that a node reports of itself.
pub(super) const METRICS_BYTES_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) options: Options,
    pub(super) figures: Figures,
    limits: Limits,
    fleet: Mutex<Fleet>,
    store: Store,
    /// One change at a time, from the file to memory.
    changing: Mutex<()>,
    /// While the next view is on its way to the file nobody is told that the one before it counts: who is left out would go by
    /// that for longer than is waited.
    next_view: RwLock<()>,
    /// When the file was written to by itself last.
    saved_ms: Mutex<u64>,
    /// One copy, and one round over all nodes, at a time.
    pub(super) copying: Semaphore,
    pub(super) collecting: Semaphore,
    complaints: Mutex<Seldom>,
}

fn moment() -> Moment {
    Moment { now: Instant::now(), unix_ms: Clock::Machine.unix_ms() }
}

impl Registry {
    pub(super) fn new(
        options: Options,
        store: Store,
        contents: super::store::Contents,
    ) -> Registry {
        let limits = options.limits();
        Registry {
            options,
            figures: Figures::new(),
            limits,
            fleet: Mutex::new(Fleet::new(limits, contents, moment())),
            store,
            changing: Mutex::default(),
            next_view: RwLock::default(),
            saved_ms: Mutex::default(),
            copying: Semaphore::new(1),
            collecting: Semaphore::new(1),
            complaints: Mutex::default(),
        }
    }

    /// The fleet, and what time it is. Not to be held while waiting for anything else.
    pub(super) async fn fleet(&self) -> (MutexGuard<'_, Fleet>, Moment) {
        let fleet = self.fleet.lock().await;
        (fleet, moment())
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &std::path::Path {
        self.store.path()
    }

    async fn change(&self) -> Result<MutexGuard<'_, ()>, ApiError> {
        let turn = tokio::time::timeout(CHANGE_WAIT, self.changing.lock()).await;
        turn.map_err(|_| ApiError::new(Code::Busy, "the registry's file is slow; try again"))
    }

    /// What the file says to a change. Its refusals are counted, and logged once a second.
    async fn stored<T>(&self, result: Result<T, StoreError>) -> Result<T, ApiError> {
        match result {
            Ok(done) => Ok(done),
            Err(e) => {
                self.complain(&e).await;
                Err(e.into())
            }
        }
    }

    async fn complain(&self, e: &StoreError) {
        self.figures.store_failures.inc();
        if let Some(times) = self.complaints.lock().await.count(Instant::now()) {
            tracing::error!("the registry's file: {e} ({times} since this was said last)");
        }
    }

    /// Takes a node in.
    pub(super) async fn announce(
        &self,
        node: Announcement,
        plain: bool,
    ) -> Result<Announced, ApiError> {
        let _turn = self.change().await?;
        let (fleet, at) = self.fleet().await;
        let stored = fleet.announced(node, plain, at).map_err(|Full| {
            let message = format!(
                "there are {} nodes already (--nodes-max); those gone are forgotten after a while",
                self.limits.nodes_max
            );
            ApiError::new(Code::LimitReached, message)
        })?;
        drop(fleet);
        self.stored(self.store.put_node(&stored).await).await?;
        let (id, url, epoch) =
            (stored.node.id.clone(), stored.node.url.clone(), stored.node.epoch.clone());
        let (mut fleet, at) = self.fleet().await;
        let known = fleet.has(&id, Some(&epoch));
        let replaced = fleet.announce(stored, at);
        if replaced {
            tracing::warn!(
                "node {id} at {url}: another process (epoch {epoch}) has taken its place"
            );
        } else if !known {
            tracing::info!("node {id} at {url} (epoch {epoch}) is there");
        }
        Ok(Announced {
            replaced,
            nodes_version: fleet.nodes_version(at),
            channels_version: fleet.channels_version(),
            node_timeout_ms: millis(self.limits.node_timeout),
        })
    }

    /// Takes a sign of life. It counts even where the wish that came with it cannot be stored.
    pub(super) async fn hear(
        &self,
        id: &NodeId,
        epoch: Option<&NodeId>,
        state: Option<NodeState>,
        metrics: Option<Box<str>>,
    ) -> Result<Heard, ApiError> {
        let (mut fleet, at) = self.fleet().await;
        let change = fleet.hear(id, epoch, state, at).map_err(|e| not_heard(e, id))?;
        if let Some(metrics) = metrics {
            Self::room_for(fleet.report(id, metrics, at))?;
        }
        drop(fleet);
        if change.is_some() {
            self.set_state(id, epoch, state).await?;
        }
        let (mut fleet, at) = self.fleet().await;
        let nodes_version = fleet.nodes_version(at);
        Ok(Heard { nodes_version, channels_version: fleet.channels_version() })
    }

    /// Says which view counts to a process that says by which it goes, and makes the next one where there is to be one.
    pub(super) async fn stand(
        &self,
        id: &NodeId,
        standpoint: &Standpoint,
    ) -> Result<ViewReply, ApiError> {
        let (mut fleet, at) = self.fleet().await;
        standpoint.check(at.unix_ms).map_err(ApiError::bad_request)?;
        fleet.stands(id, standpoint, at).map_err(|e| not_heard(e, id))?;
        let told = standpoint.knows.as_deref();
        let is_next =
            told.is_some_and(|view| fleet.is_later_view(view)) || fleet.next_view(at).is_some();
        drop(fleet);
        if is_next {
            let _turn = self.change().await?;
            let _quiet = self.next_view.write().await;
            self.make_view(told).await;
        }
        let _told = self.next_view.read().await;
        let (fleet, _) = self.fleet().await;
        let (view, go_by) = (fleet.view().clone(), fleet.who_goes_by_it());
        Ok(ViewReply { view, go_by, node_timeout_ms: millis(self.limits.node_timeout) })
    }

    /// Lets the view count that is to be next, or that a node has told of. Where it cannot be stored, the one that counts goes on
    /// to.
    async fn make_view(&self, told: Option<&View>) {
        let (mut fleet, at) = self.fleet().await;
        let told = told.filter(|view| fleet.is_later_view(view));
        let Some(view) = told.cloned().or_else(|| fleet.next_view(at)) else { return };
        drop(fleet);
        if self.stored(self.store.put_view(&view).await).await.is_err() {
            return;
        }
        let ids: Vec<&str> = view.members.iter().map(|member| member.id.as_str()).collect();
        tracing::info!("view {}: {}", view.number, ids.join(", "));
        let (mut fleet, at) = self.fleet().await;
        match told {
            Some(_) => fleet.take_over_view(view, at),
            None => fleet.set_view(view, at),
        }
    }

    /// Stores that a node wants something else, as it stands once it is its turn.
    async fn set_state(
        &self,
        id: &NodeId,
        epoch: Option<&NodeId>,
        state: Option<NodeState>,
    ) -> Result<(), ApiError> {
        let _turn = self.change().await?;
        let (mut fleet, at) = self.fleet().await;
        // Meanwhile it may have left or been replaced: then there is nothing to change.
        let Ok(Some(stored)) = fleet.hear(id, epoch, state, at) else { return Ok(()) };
        drop(fleet);
        self.stored(self.store.put_node(&stored).await).await?;
        tracing::info!("node {id} is {}", stored.node.state.word());
        let (mut fleet, at) = self.fleet().await;
        fleet.announce(stored, at);
        Ok(())
    }

    /// Takes what a node reports; whether the node is known.
    pub(super) async fn report(&self, id: &NodeId, metrics: Box<str>) -> Result<bool, ApiError> {
        let (mut fleet, at) = self.fleet().await;
        let known = fleet.hear(id, None, None, at).is_ok();
        Self::room_for(fleet.report(id, metrics, at))?;
        Ok(known)
    }

    fn room_for(kept: bool) -> Result<(), ApiError> {
        let message = "as many nodes report figures as there may be nodes (--nodes-max)";
        kept.then_some(()).ok_or_else(|| ApiError::new(Code::LimitReached, message))
    }

    /// Lets a node go, if it is of this epoch.
    pub(super) async fn leave(
        &self,
        id: &NodeId,
        epoch: Option<&NodeId>,
        ended: bool,
    ) -> Result<bool, ApiError> {
        let _turn = self.change().await?;
        let (mut fleet, _) = self.fleet().await;
        if !fleet.has(id, epoch) {
            return Ok(epoch.is_none() && fleet.let_go_unheard(id));
        }
        drop(fleet);
        self.stored(self.store.remove_node(id).await).await?;
        let (mut fleet, at) = self.fleet().await;
        fleet.leave(id, ended, at);
        tracing::info!("node {id} has left");
        Ok(true)
    }

    /// Changes a channel to what `change` makes of it; `None` removes it.
    pub(super) async fn set_channel(
        &self,
        name: &str,
        change: impl FnOnce(Option<&ChannelEntry>) -> Option<ChannelEntry>,
    ) -> Result<ChannelsChanged, ApiError> {
        let _turn = self.change().await?;
        let (fleet, at) = self.fleet().await;
        let entry = change(fleet.channel(name));
        if entry.as_ref() == fleet.channel(name) {
            return Ok(ChannelsChanged { changed: false, version: fleet.channels_version() });
        }
        if entry.is_some() && !fleet.has_room_for_channel(name) {
            let most = self.limits.channels_max;
            let message = format!("there are {most} channels already (--channels-max)");
            return Err(ApiError::new(Code::LimitReached, message));
        }
        if let Some(entry) = entry.as_ref().filter(|entry| entry.rule.is_some()) {
            let others: Vec<&ChannelEntry> =
                fleet.rules().filter(|other| other.name != name).collect();
            check_beside(entry, &others).map_err(ApiError::bad_request)?;
        }
        let version = fleet.next_channels_version(at);
        drop(fleet);
        self.stored(self.store.put_channel(name, entry.as_ref(), version).await).await?;
        self.fleet().await.0.set_channel(name, entry, version);
        Ok(ChannelsChanged { changed: true, version })
    }

    /// Stores what may be stored late. Whoever could not be stored is tried again with the next ones.
    pub(super) async fn flush(&self) {
        let _turn = self.changing.lock().await;
        let mut saved_ms = self.saved_ms.lock().await;
        let (mut fleet, at) = self.fleet().await;
        let later = fleet.take_later(at);
        drop(fleet);
        let Later { seen, metrics, gone, gone_metrics, .. } = &later;
        let nothing = seen.is_empty() && metrics.is_empty() && gone.is_empty();
        let recent = at.unix_ms.saturating_sub(*saved_ms) < SAVED_EVERY_MS;
        if nothing && gone_metrics.is_empty() && recent {
            return;
        }
        for id in gone {
            tracing::info!("node {id} has not been heard of for so long that it is forgotten");
        }
        let stored = self.store.flush(&later).await;
        match &stored {
            Ok(()) => *saved_ms = at.unix_ms,
            Err(e) => self.complain(e).await,
        }
        self.fleet().await.0.settle(&later, stored.is_ok());
    }

    /// The last of it.
    pub(super) async fn close(self) {
        self.flush().await;
        self.store.close().await;
    }
}

fn not_heard(why: NotHeard, id: &NodeId) -> ApiError {
    match why {
        NotHeard::Unknown => {
            ApiError::new(Code::NotFound, format!("there is no node {id}: announce it"))
        }
        NotHeard::Replaced => {
            ApiError::new(Code::Replaced, format!("another process has announced itself as {id}"))
        }
    }
}

/// What a node reports, checked: an object that is not too long.
pub(super) fn metrics_text(metrics: &RawValue) -> Result<Box<str>, ApiError> {
    let text = metrics.get();
    if text.len() > METRICS_BYTES_MAX {
        let message = format!("metrics have {} bytes; allowed are {METRICS_BYTES_MAX}", text.len());
        return Err(ApiError::new(Code::TooLarge, message));
    }
    if !text.starts_with('{') {
        return Err(ApiError::bad_request("metrics are no object"));
    }
    Ok(text.into())
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
