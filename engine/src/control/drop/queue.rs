//! Messages that are dropped into Redis, by programs that cannot reach the API: taken from there, published like dropped files,
//! and deleted.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, RedisResult};
use tokio::time::sleep;

use super::file::Format;
use super::round::{Became, Held, Item, next_round, publish_round};
use super::{HELD_BYTES, HELD_FILES, LOG_EVERY, interval, longer};
use crate::bridge::queue::{AtOnce, Left, Queue};
use crate::config::{Config, Distribution};
use crate::control::State;
use crate::control::figures::LogLimit;
use crate::message::Post;

/// A node that says no more that it takes is waited for so much longer than publishing may take.
const LEASE_MS: u64 = 3000;
/// Between two lines in the log about a Redis that cannot be worked on.
const FAILED_EVERY: Duration = Duration::from_secs(30);

/// See the module's description.
#[derive(Debug)]
pub(in crate::control) struct Taking {
    state: Arc<State>,
    /// By which nodes are told apart.
    own: u64,
    queue: Option<Queue>,
    held: Held,
    /// The last entry that was looked at since those were tried.
    after: Option<String>,
    failed_log: LogLimit,
    rejected_log: LogLimit,
    kept_log: LogLimit,
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Done,
    /// Redis could not be worked on.
    Stuck,
}

impl Taking {
    /// `None` where there is no Redis.
    pub(in crate::control) fn new(state: Arc<State>) -> Option<Taking> {
        let is_used = state.shared.config().redis.is_used();
        is_used.then(|| Taking {
            state,
            own: rand::random(),
            queue: None,
            held: Held::default(),
            after: None,
            failed_log: LogLimit::new(),
            rejected_log: LogLimit::new(),
            kept_log: LogLimit::new(),
        })
    }

    /// Publishes what comes until the server drains.
    pub(in crate::control) async fn run(mut self) {
        let mut draining = self.state.draining.subscribe();
        let mut back_off = Duration::ZERO;
        loop {
            let config = self.state.shared.config();
            back_off = match self.look(&config).await {
                Look::Done => interval(&config),
                Look::Stuck => longer(back_off, interval(&config)),
            };
            tokio::select! {
                _ = draining.wait_for(|draining| *draining) => return,
                () = sleep(back_off) => {}
            }
        }
    }

    async fn look(&mut self, config: &Config) -> Look {
        // That Redis is away is told by who always needs it.
        if !config.drop.redis || !self.state.shared.redis.is_up() {
            self.queue = None;
            let figures = &self.state.figures.redis_drop;
            [&figures.failed, &figures.waiting].into_iter().for_each(|figure| figure.set(0));
            return Look::Done;
        }
        let looked = self.try_look(config).await;
        self.state.figures.redis_drop.failed.set(looked.is_err().into());
        looked.err().map_or(Look::Done, |e| {
            (self.queue, self.held) = (None, Held::default());
            if let Some(kept_back) = self.failed_log.due(FAILED_EVERY) {
                tracing::warn!(
                    kept_back,
                    "Redis is not asked for what programs leave there (drop.redis) until it answers again: {e}"
                );
            }
            Look::Stuck
        })
    }

    async fn try_look(&mut self, config: &Config) -> RedisResult<()> {
        let mut queue = match self.queue.take() {
            Some(queue) => queue,
            None => {
                // Checked with the configuration.
                let info = config.redis.connection();
                let info = info.map_err(|why| RedisError::from(std::io::Error::other(why)))?;
                let servers = self.state.shared.redis.servers.load_full();
                Queue::connect(info, &config.redis, self.own, &servers).await?
            }
        };
        let looked = self.publish_all(&mut queue, config).await;
        self.queue = Some(queue);
        looked
    }

    /// Publishes what is there, if no other node does.
    async fn publish_all(&mut self, queue: &mut Queue, config: &Config) -> RedisResult<()> {
        if self.held.begins() {
            self.after = None;
        }
        let mut held = std::mem::take(&mut self.held);
        let figures = &self.state.figures.redis_drop;
        let lease_ms = u64::from(config.api.timeout_ms) + LEASE_MS;
        let at_once = AtOnce {
            messages: HELD_FILES,
            bytes: HELD_BYTES,
            length_max: config.api.body_bytes_max.into(),
        };
        while !self.state.is_draining() {
            let (waiting, left) = queue.take(self.after.as_deref(), lease_ms, at_once).await?;
            figures.waiting.set(waiting);
            let Some(last) = left.last() else { break };
            self.after = Some(last.id.clone());
            let mut items = self.read(queue, left, config).await?;
            while !items.is_empty() {
                let round = next_round(&mut items, &held.channels);
                let (mut done, mut refused) = (Vec::new(), Vec::new());
                for (id, became) in publish_round(&self.state, round, &mut held.channels).await {
                    match became {
                        Became::Published { duplicate } => {
                            figures.duplicates.add(duplicate.into());
                            done.push(id);
                        }
                        Became::Kept(e) => self.kept(&id, e.message()),
                        Became::Refused(e) => refused.push((id, e)),
                    }
                }
                figures.published.add(done.len() as u64);
                if !done.is_empty() && !queue.taken(&done, lease_ms).await? {
                    // It took so long that another node has begun with what is there.
                    return Ok(());
                }
                for (id, e) in refused {
                    self.set_aside(queue, &id, e.message(), config).await?;
                }
            }
        }
        if self.after.is_some() {
            queue.let_go().await?;
        }
        held.ends(interval(config));
        self.held = held;
        Ok(())
    }

    /// What messages are to publish. Those that say nothing are set aside.
    async fn read(
        &self,
        queue: &mut Queue,
        left: Vec<Left>,
        config: &Config,
    ) -> RedisResult<Vec<Item>> {
        let mut items = Vec::new();
        for Left { id, message, length } in left {
            match posts(&id, message.as_deref(), length, config) {
                Ok(posts) => items.push(Item { name: id, posts }),
                Err(why) => self.set_aside(queue, &id, &why, config).await?,
            }
        }
        Ok(items)
    }

    async fn set_aside(
        &self,
        queue: &mut Queue,
        id: &str,
        why: &str,
        config: &Config,
    ) -> RedisResult<()> {
        let age = Duration::from_secs(config.drop.rejected_age_s.into());
        let forgotten = queue.reject(id, why, config.drop.rejected_max, age).await?;
        let figures = &self.state.figures.redis_drop;
        figures.rejected.add(1);
        figures.forgotten.add(forgotten);
        if let Some(kept_back) = self.rejected_log.due(LOG_EVERY) {
            tracing::warn!(
                kept_back,
                forgotten,
                "the message {id} that was left in Redis is not published, and set aside: {why}"
            );
        }
        Ok(())
    }

    fn kept(&self, id: &str, why: &str) {
        self.state.figures.redis_drop.kept.add(1);
        if let Some(kept_back) = self.kept_log.due(LOG_EVERY) {
            tracing::warn!(
                kept_back,
                "the message {id} that was left in Redis is tried again: {why}"
            );
        }
    }
}

/// What a message publishes, or why it never does.
fn posts(
    id: &str,
    message: Option<&[u8]>,
    length: u64,
    config: &Config,
) -> Result<Vec<Post>, String> {
    let Some(message) = message else {
        return Err(match length {
            0 => "the entry has no field \"message\"".into(),
            _ => format!(
                "it has {length} bytes; allowed are {} (api.body_bytes_max)",
                config.api.body_bytes_max
            ),
        });
    };
    let remembers = config.limits.idempotency_ms > 0;
    let posts = Format::Publications.posts("", message, &format!("redis-{id}"), remembers);
    let posts = posts.map_err(|wrong| wrong.error.message().to_owned())?;
    for Post { channel, .. } in &posts {
        // It would come to those of one node, whichever that is.
        if config.distribution(channel) == Distribution::Local {
            return Err(format!(
                "'{channel}' is a channel of each node by itself (no rule is about it, or one with distribution = \"local\"): \
                 publish over a node's API"
            ));
        }
    }
    Ok(posts)
}
