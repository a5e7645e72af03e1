//! The drop: publications that programs leave in a directory of this machine, or in Redis, when they cannot reach the API.
//!
//! A task looks into each directory again and again, publishes what is there as the API does, in the order of the names, and
//! deletes a file once it is published: each at least once. What is never published is set aside with the reason. Files are
//! looked at on threads that may block, never on the control thread.

mod directory;
mod file;
mod queue;
mod round;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ringfeed_protocol::Dialect;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use self::directory::{Directory, DirectoryError, Found, Listing};
use self::file::{Format, Wrong};
pub(super) use self::queue::Taking;
use self::round::{Became, Held, Item, next_round, publish_round};
use super::State;
use super::figures::LogLimit;
use crate::config::Config;
use crate::counters::Count;

/// Names that are known of one directory at a time; what is behind them comes next.
const LISTED_MAX: usize = 10_000;
/// Files that are held at a time, …
const HELD_FILES: usize = 64;
/// … and bytes of them, beyond which no further one is read.
const HELD_BYTES: usize = 1 << 20;
/// A file that may not be written to its end yet has so long since it was written to last.
const UNFINISHED: Duration = Duration::from_secs(2);
/// Between two looks, at most, while nothing can be published.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// Between two looks at how old what is set aside is.
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// Between two lines in the log about the same kind of thing.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// Files that could neither be published nor set aside, and are left alone.
const STUCK_MAX: usize = 10_000;
/// Where what is set aside goes: in the directory for drops, and in one that other programs use, too.
const REJECTED: &str = "rejected";
const REJECTED_AMONG_OTHERS: &str = "ringfeed_rejected";

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Files, or messages in Redis, that were published, and of these what had been published before, by their keys.
    pub(super) published: Count,
    pub(super) duplicates: Count,
    /// Those that were set aside, and of these those that are deleted.
    pub(super) rejected: Count,
    pub(super) forgotten: Count,
    /// Times one was to be published and could not be yet.
    pub(super) kept: Count,
    /// Those that were there when it was looked last.
    pub(super) waiting: Count,
    /// Directories, or queues, that cannot be worked on.
    pub(super) failed: Count,
}

/// One directory.
#[derive(Debug)]
struct Source {
    /// Where the configuration names it.
    key: &'static str,
    path: String,
    rejected: &'static str,
    format: Format,
    /// Published, and could not be deleted: before that nothing more is.
    undeleted: Vec<String>,
    /// Left alone: they are not to be published and cannot be set aside.
    stuck: HashSet<String>,
    waiting: u64,
    has_failed: bool,
    again: Again,
    held: Held,
    /// Files that were left since those were tried.
    left: HashSet<String>,
    /// Files that were set aside since it was looked how many those are and how old, and when that was.
    aside: u64,
    looked_aside: Option<Instant>,
}

/// When a directory is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    AtOnce,
    InTime,
    /// Later each time.
    BackOff,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Watch {
    state: Arc<State>,
    sources: Vec<Source>,
    failed_log: LogLimit,
    rejected_log: LogLimit,
    kept_log: LogLimit,
}

/// The directories that a configuration names.
fn sources(config: &Config) -> Vec<Source> {
    let source = |key, path: &String, rejected, format| Source {
        key,
        path: path.clone(),
        rejected,
        format,
        undeleted: Vec::new(),
        stuck: HashSet::new(),
        waiting: 0,
        has_failed: false,
        again: Again::AtOnce,
        held: Held::default(),
        left: HashSet::new(),
        aside: 0,
        looked_aside: None,
    };
    let mut sources = Vec::new();
    if !config.drop.dir.is_empty() {
        sources.push(source("drop.dir", &config.drop.dir, REJECTED, Format::Publications));
    }
    if !config.drop.portico_dir.is_empty() {
        let endpoints = config.endpoints.iter().filter(|own| own.dialect == Dialect::Portico);
        let mut prefixes: Vec<String> = endpoints.map(|own| own.channel_prefix.clone()).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let format = Format::Portico(prefixes);
        sources.push(source(
            "drop.portico_dir",
            &config.drop.portico_dir,
            REJECTED_AMONG_OTHERS,
            format,
        ));
    }
    sources
}

/// Between two looks, …
fn interval(config: &Config) -> Duration {
    Duration::from_millis(config.drop.interval_ms.into())
}

/// … and while nothing can be published, where it was so long before.
fn longer(pause: Duration, interval: Duration) -> Duration {
    (2 * pause).clamp(interval, BACK_OFF_MAX.max(interval))
}

impl Source {
    fn directory(&self, config: &Config) -> io::Result<Directory> {
        // Checked with the configuration.
        let owners = config.drop.owners.iter().filter_map(|uid| uid.parse().ok()).collect();
        Directory::new(&self.path, self.rejected, owners)
    }
}

/// Does something with a directory where that may block.
async fn blocking<T: Send + 'static>(
    directory: &Directory,
    what: impl FnOnce(&Directory) -> T + Send + 'static,
) -> io::Result<T> {
    let directory = directory.clone();
    spawn_blocking(move || what(&directory)).await.map_err(io::Error::other)
}

impl Watch {
    /// Looks at the directories. `None` where there are none; an error where one is not to be used.
    pub(super) fn new(state: Arc<State>) -> io::Result<Option<Watch>> {
        let config = state.shared.config();
        let sources = sources(&config);
        for source in &sources {
            let checked = source.directory(&config)?.check();
            checked.map_err(|e| io::Error::other(format!("{}: {e}", source.key)))?;
            tracing::info!("publishing files that are dropped into {}", source.path);
        }
        let watch = || Watch {
            state,
            sources,
            failed_log: LogLimit::new(),
            rejected_log: LogLimit::new(),
            kept_log: LogLimit::new(),
        };
        Ok((!config.drop.dir.is_empty() || !config.drop.portico_dir.is_empty()).then(watch))
    }

    /// Publishes what is dropped until the server drains.
    pub(super) async fn run(mut self) {
        let mut draining = self.state.draining.subscribe();
        let mut back_off = Duration::ZERO;
        loop {
            let mut sources = std::mem::take(&mut self.sources);
            for source in &mut sources {
                self.look(source).await;
            }
            let figures = &self.state.figures.drop;
            figures.waiting.set(sources.iter().map(|source| source.waiting).sum());
            figures.failed.set(sources.iter().filter(|source| source.has_failed).count() as u64);
            let any = |again| sources.iter().any(|source| source.again == again);
            let interval = interval(&self.state.shared.config());
            back_off = match any(Again::BackOff) {
                true => longer(back_off, interval),
                false => interval,
            };
            let pause = if any(Again::AtOnce) { Duration::ZERO } else { back_off };
            self.sources = sources;
            tokio::select! {
                _ = draining.wait_for(|draining| *draining) => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Publishes what is in a directory, and sees to what was set aside there.
    async fn look(&self, source: &mut Source) {
        let config = self.state.shared.config();
        source.again = Again::BackOff;
        let looked = match source.directory(&config) {
            Ok(directory) => self.publish_all(source, &directory).await.map(|()| directory),
            Err(e) => Err(e),
        };
        let looked = match looked {
            Ok(directory) => self.forget(source, &directory, &config).await,
            Err(e) => Err(e),
        };
        if looked.is_err() {
            source.held = Held::default();
        }
        source.has_failed = looked.is_err() || !source.stuck.is_empty();
        if let Err(e) = looked
            && let Some(kept_back) = self.failed_log.due(LOG_EVERY)
        {
            tracing::error!(kept_back, "{}: dropped files are not published: {e}", source.key);
        }
    }

    async fn publish_all(&self, source: &mut Source, directory: &Directory) -> io::Result<()> {
        // What was published before goes first, or it would be published again.
        let undeleted = std::mem::take(&mut source.undeleted);
        self.delete(source, directory, undeleted).await?;
        let (format, stuck) = (source.format.clone(), source.stuck.clone());
        let list = move |directory: &Directory| -> Result<Listing, DirectoryError> {
            directory.check()?;
            directory.list(LISTED_MAX, |name| {
                let order = format.order(name).filter(|_| !stuck.contains(name));
                order.map(|order| order.into_owned())
            })
        };
        let listed = blocking(directory, list).await?;
        let Listing { names, is_cut } = listed.map_err(io::Error::other)?;
        let mut names: VecDeque<String> = names.into();
        source.waiting = names.len() as u64;
        if source.held.begins() {
            source.left.clear();
        }
        names.retain(|name| !source.left.contains(name));
        let mut published = false;
        while !names.is_empty() && !self.state.is_draining() {
            let items = self.take(source, directory, &mut names).await?;
            published |= self.publish(source, directory, items).await?;
        }
        source.held.ends(interval(&self.state.shared.config()));
        source.again = if is_cut && published { Again::AtOnce } else { Again::InTime };
        Ok(())
    }

    /// Reads some of the files. What is never to be published is set aside.
    async fn take(
        &self,
        source: &mut Source,
        directory: &Directory,
        names: &mut VecDeque<String>,
    ) -> io::Result<Vec<Item>> {
        let config = self.state.shared.config();
        let bytes_max = u64::from(config.api.body_bytes_max);
        let next: Vec<String> = names.iter().take(HELD_FILES).cloned().collect();
        let read = move |directory: &Directory| {
            let (mut found, mut bytes) = (Vec::new(), 0);
            for name in next {
                let one = directory.read(&name, bytes_max);
                if let Found::File { bytes: own, .. } = &one {
                    bytes += own.len();
                }
                found.push((name, one));
                if bytes > HELD_BYTES {
                    break;
                }
            }
            found
        };
        let found = blocking(directory, read).await?;
        names.drain(..found.len().min(names.len()));
        let mut items = Vec::new();
        for (name, found) in found {
            match found {
                Found::Gone => {}
                Found::Later(e) => self.kept(&name, &e.to_string()),
                Found::Never(why) => self.set_aside(source, directory, name, why).await?,
                Found::File { bytes, identity, modified } => {
                    let remembers = config.limits.idempotency_ms > 0;
                    match source.format.posts(&name, &bytes, &identity, remembers) {
                        Ok(posts) => items.push(Item { name, posts }),
                        // It is whole when it is looked at next, or it never will be.
                        Err(Wrong { may_be_unfinished: true, .. }) if is_young(modified) => {}
                        Err(Wrong { error, .. }) => {
                            let why = error.message().to_owned();
                            self.set_aside(source, directory, name, why).await?;
                        }
                    }
                }
            }
        }
        Ok(items)
    }

    /// Publishes files, those of one channel one after the other. Returns whether any was.
    async fn publish(
        &self,
        source: &mut Source,
        directory: &Directory,
        items: Vec<Item>,
    ) -> io::Result<bool> {
        let mut queue = items;
        let mut published = false;
        source.left.extend(queue.iter().map(|item| item.name.clone()));
        while !queue.is_empty() {
            let round = next_round(&mut queue, &source.held.channels);
            let mut done = Vec::new();
            let outcomes = publish_round(&self.state, round, &mut source.held.channels).await;
            for (name, became) in outcomes {
                match became {
                    Became::Published { duplicate } => {
                        self.state.figures.drop.duplicates.add(duplicate.into());
                        done.push(name);
                    }
                    Became::Kept(e) => self.kept(&name, e.message()),
                    Became::Refused(e) => {
                        self.set_aside(source, directory, name, e.message().into()).await?;
                    }
                }
            }
            published |= !done.is_empty();
            source.left.retain(|name| !done.contains(name));
            self.state.figures.drop.published.add(done.len() as u64);
            self.delete(source, directory, done).await?;
        }
        Ok(published)
    }

    /// Deletes what was published. What cannot be deleted is remembered, and nothing is published before it is.
    async fn delete(
        &self,
        source: &mut Source,
        directory: &Directory,
        names: Vec<String>,
    ) -> io::Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let delete = move |directory: &Directory| {
            let failed = |name: String| Some((directory.delete(&name).err()?, name));
            names.into_iter().filter_map(failed).collect::<Vec<_>>()
        };
        let failed = blocking(directory, delete).await?;
        let why = failed.first().map(|(e, name)| {
            let path = directory.path().join(name);
            let why = format!("{path:?} was published and cannot be deleted: {e}");
            io::Error::new(e.kind(), why)
        });
        source.undeleted.extend(failed.into_iter().map(|(_, name)| name));
        why.map_or(Ok(()), Err)
    }

    async fn set_aside(
        &self,
        source: &mut Source,
        directory: &Directory,
        name: String,
        why: String,
    ) -> io::Result<()> {
        let (moved, reason) = (name.clone(), why.clone());
        let moved = blocking(directory, move |own| own.set_aside(&moved, &reason)).await?;
        self.state.figures.drop.rejected.add(1);
        source.aside += 1;
        let path = directory.path().join(&name);
        if let Some(kept_back) = self.rejected_log.due(LOG_EVERY) {
            let rejected = source.rejected;
            match &moved {
                Ok(()) => {
                    tracing::warn!(
                        kept_back,
                        "{path:?} is not published, and now in {rejected}/: {why}"
                    );
                }
                Err(e) => {
                    tracing::error!(kept_back, "{path:?} is not published ({why}) and stays: {e}");
                }
            }
        }
        if moved.is_err() && source.stuck.len() < STUCK_MAX {
            source.stuck.insert(name);
        }
        Ok(())
    }

    fn kept(&self, name: &str, why: &str) {
        self.state.figures.drop.kept.add(1);
        if let Some(kept_back) = self.kept_log.due(LOG_EVERY) {
            tracing::warn!(kept_back, "the dropped file {name:?} is tried again: {why}");
        }
    }

    /// Deletes of what was set aside what is too much or too old.
    async fn forget(
        &self,
        source: &mut Source,
        directory: &Directory,
        config: &Config,
    ) -> io::Result<()> {
        let is_time = source.looked_aside.is_none_or(|at| at.elapsed() >= FORGET_EVERY);
        if source.aside == 0 && !is_time {
            return Ok(());
        }
        let most = config.drop.rejected_max as usize;
        let age = Duration::from_secs(config.drop.rejected_age_s.into());
        let forgotten = blocking(directory, move |own| own.forget(most, age)).await??;
        (source.aside, source.looked_aside) = (0, Some(Instant::now()));
        self.state.figures.drop.forgotten.add(forgotten);
        if forgotten > 0 {
            tracing::warn!(
                "{forgotten} files that were set aside in {} are deleted (drop.rejected_max, drop.rejected_age_s)",
                directory.path().display()
            );
        }
        Ok(())
    }
}

/// Whether a file was written to just now.
fn is_young(modified: Option<SystemTime>) -> bool {
    // What was written in the future is not waited for.
    modified
        .and_then(|at| SystemTime::now().duration_since(at).ok())
        .is_some_and(|own| own < UNFINISHED)
}
