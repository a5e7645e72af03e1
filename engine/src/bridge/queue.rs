//! The queue in Redis: messages that programs leave there which cannot reach the API, and that nodes take from it and publish.
//!
//! It is a stream. One node at a time takes from it, from its beginning on, so that what is left comes in its order; an entry is deleted
//! once it is published. The taker says again and again that it goes on; when it says so no more, another node begins with what is
//! left. What is never published goes to another stream, with the reason.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, Connection, ConnectionInfo, FromRedisValue, RedisError,
    RedisResult,
};

use super::connection::{at, host};
use super::slots::{self, Place};
use crate::config::Redis;

const TAKE: &str = include_str!("script/take.lua");
const TAKEN: &str = include_str!("script/taken.lua");
const REJECT: &str = include_str!("script/reject.lua");

/// The field of an entry that holds the message.
const MESSAGE: &str = "message";
/// Messages that may be left; beyond it the queue takes none …
pub const QUEUED_MAX: u64 = 100_000;
/// … and bytes of memory of all of them in Redis, as that estimates it.
pub const QUEUED_BYTES_MAX: u64 = 256 << 20;
/// Of a message that is set aside so many bytes are kept.
const REJECTED_BYTES_MAX: usize = 64 << 10;

/// The keys, under one hash tag.
#[derive(Debug, Clone)]
struct Keys {
    queue: String,
    taker: String,
    rejected: String,
}

impl Keys {
    fn new(prefix: &str) -> Keys {
        let key = |end| format!("{prefix}:{{drop}}:{end}");
        Keys { queue: key("q"), taker: key("t"), rejected: key("r") }
    }
}

/// Why a message was not left.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// Redis cannot be reached, or refuses.
    #[error(transparent)]
    Redis(#[from] redis::RedisError),
    /// Nodes have not taken what is there.
    #[error(
        "{0} messages wait there in {1} bytes; allowed are {QUEUED_MAX} and {QUEUED_BYTES_MAX}"
    )]
    Full(u64, u64),
}

/// Where a server of a cluster says that the queue is, which another one has.
pub fn elsewhere(info: &ConnectionInfo, refused: &RedisError) -> Option<ConnectionInfo> {
    let place =
        slots::elsewhere(refused, host(info.addr())).filter(|(host, _)| !host.is_empty())?;
    Some(info.clone().set_addr(at(info.addr(), &place)))
}

/// Leaves a message, the body of a publication, in the queue of the nodes that have this prefix. Returns the id of its entry.
///
/// # Errors
/// It was not left, or that is not known.
pub fn leave(redis: &mut Connection, prefix: &str, message: &str) -> Result<String, LeaveError> {
    let Keys { queue, .. } = Keys::new(prefix);
    let count: u64 = redis::cmd("XLEN").arg(&queue).query(redis)?;
    let bytes = redis::cmd("MEMORY").arg("USAGE").arg(&queue).query::<Option<u64>>(redis)?;
    let bytes = bytes.unwrap_or_default();
    // Programs that leave something at the same moment may each find room for one more.
    if count >= QUEUED_MAX || bytes.saturating_add(message.len() as u64) > QUEUED_BYTES_MAX {
        return Err(LeaveError::Full(count, bytes));
    }
    Ok(redis::cmd("XADD").arg(&queue).arg("*").arg(MESSAGE).arg(message).query(redis)?)
}

/// What was left, as Redis says it: its id, its message, the length of that.
type Entry = (String, Option<Vec<u8>>, u64);

/// What was left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) id: String,
    /// `None` where there is none, or it is too long.
    pub(crate) message: Option<Vec<u8>>,
    /// Bytes of it.
    pub(crate) length: u64,
}

/// How much is taken at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AtOnce {
    pub(crate) messages: usize,
    /// Of all of them, or one that is longer.
    pub(crate) bytes: usize,
    /// Longest message.
    pub(crate) length_max: u64,
}

/// A node's end of the queue.
#[derive(Debug)]
pub(crate) struct Queue {
    connection: MultiplexedConnection,
    keys: Keys,
    /// By which it is known as the taker.
    own: String,
}

impl Queue {
    /// Connects. `own` tells processes apart. Of a cluster, `others` are servers that were known before, one of which is asked
    /// where the one that the configuration names is away.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub(crate) async fn connect(
        info: ConnectionInfo,
        config: &Redis,
        own: u64,
        others: &[Place],
    ) -> RedisResult<Queue> {
        let timeout = Some(Duration::from_millis(config.timeout_ms.into()));
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(timeout)
            .set_response_timeout(timeout);
        let (keys, own) = (Keys::new(&config.prefix), format!("{own:016x}"));
        let connect = async |info: ConnectionInfo| {
            Client::open(info)?.get_multiplexed_async_connection_with_config(&settings).await
        };
        let mut connected =
            connect(info.clone()).await.map(|connection| (connection, info.clone()));
        for other in others {
            if connected.is_err() {
                let there = info.clone().set_addr(at(info.addr(), other));
                let connection = connect(there.clone()).await;
                connected = connection.map(|connection| (connection, there)).or(connected);
            }
        }
        let (mut connection, info) = connected?;
        let asked: RedisResult<u64> =
            redis::cmd("XLEN").arg(&keys.queue).query_async(&mut connection).await;
        if let Err(refused) = asked {
            let info = elsewhere(&info, &refused).ok_or(refused)?;
            connection = connect(info).await?;
        }
        Ok(Queue { connection, keys, own })
    }

    /// Takes what is behind an entry. Returns also how many there are; none come where another node takes.
    pub(crate) async fn take(
        &mut self,
        after: Option<&str>,
        lease_ms: u64,
        at_once: AtOnce,
    ) -> RedisResult<(u64, Vec<Left>)> {
        let mut cmd = script(TAKE, &[&self.keys.queue, &self.keys.taker]);
        let after = after.map_or("-".into(), |id| format!("({id}"));
        cmd.arg(&self.own).arg(lease_ms).arg(after);
        cmd.arg(at_once.messages).arg(at_once.bytes).arg(at_once.length_max);
        let (left, entries) = self.ask::<(u64, Vec<Entry>)>(&cmd).await?;
        let entries = entries.into_iter().map(|(id, message, length)| Left { id, message, length });
        Ok((left, entries.collect()))
    }

    /// Deletes entries, and says that this node goes on taking for so long. Returns whether it may.
    pub(crate) async fn taken(&mut self, ids: &[String], lease_ms: u64) -> RedisResult<bool> {
        let mut cmd = script(TAKEN, &[&self.keys.queue, &self.keys.taker]);
        cmd.arg(&self.own).arg(lease_ms).arg(ids);
        self.ask(&cmd).await
    }

    /// Says that this node takes no more for now.
    pub(crate) async fn let_go(&mut self) -> RedisResult<bool> {
        self.taken(&[], 0).await
    }

    /// Sets an entry aside, with others up to so many and for so long. Returns how many were forgotten.
    pub(crate) async fn reject(
        &mut self,
        id: &str,
        why: &str,
        most: u32,
        age: Duration,
    ) -> RedisResult<u64> {
        let mut cmd = script(REJECT, &[&self.keys.queue, &self.keys.rejected]);
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        cmd.arg(id).arg(why).arg(most).arg(age_ms).arg(REJECTED_BYTES_MAX);
        self.ask(&cmd).await
    }

    async fn ask<T: FromRedisValue>(&mut self, cmd: &Cmd) -> RedisResult<T> {
        cmd.query_async(&mut self.connection).await
    }
}

/// The command that runs a script. All of them may where Redis is full: they make room.
fn script(body: &str, keys: &[&String]) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(format!("#!lua flags=allow-oom\n{body}")).arg(keys.len()).arg(keys);
    cmd
}
