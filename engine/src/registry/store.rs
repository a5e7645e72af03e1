//! The registry's file: SQLite with a write-ahead log, so that copies can be made while it is written to. It is read once, at
//! the start, and written to from then on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tokio::sync::Mutex;

use super::api::{Announcement, ChannelEntry, NodeState, Weight};
use super::names::NodeId;
use super::views::View;

/// What the tables look like. A file of a newer version is refused, never guessed at.
const SCHEMA_VERSION: i64 = 2;
/// In the head of the file: "RFRG". A file of another program is refused.
const APPLICATION_ID: i64 = 0x5246_5247;
/// How long it is waited for others who use the file.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1000);

const SCHEMA: &str = "
CREATE TABLE nodes (
  id TEXT PRIMARY KEY NOT NULL, url TEXT NOT NULL, peer TEXT, weight INTEGER NOT NULL, state TEXT NOT NULL,
  epoch TEXT NOT NULL, plain INTEGER NOT NULL, created_ms INTEGER NOT NULL, last_seen_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE metrics (id TEXT PRIMARY KEY NOT NULL, reported_ms INTEGER NOT NULL, metrics TEXT NOT NULL) STRICT;
CREATE TABLE channels (name TEXT PRIMARY KEY NOT NULL, allowed_nodes TEXT NOT NULL, rule TEXT) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT;
CREATE TABLE view (number INTEGER PRIMARY KEY NOT NULL, view TEXT NOT NULL) STRICT;
";
/// What the tables of version 1 lack.
const SINCE_1: &str = "CREATE TABLE view (number INTEGER PRIMARY KEY NOT NULL, view TEXT NOT NULL) STRICT; PRAGMA user_version = 2";

/// What keeps the file from being used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its tables are of a later version.
    #[error(
        "{0}: it was written by a newer ringfeed (its tables are version {1}; this one knows {SCHEMA_VERSION}); \
         run that one, or start from a copy of before"
    )]
    Newer(PathBuf, i64),
    /// It is of another program.
    #[error("{0}: it is not a registry's file")]
    Foreign(PathBuf),
    /// Another registry has it.
    #[error("{0}: another registry uses it")]
    InUse(PathBuf),
    /// Something in it is not what a registry writes.
    #[error("{0}: {1} in it is damaged; start from a copy")]
    Damaged(PathBuf, String),
    /// It cannot be opened, read or written.
    #[error("{0}: {1}")]
    Sql(PathBuf, #[source] sqlx::Error),
    /// A file beside it.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

impl StoreError {
    /// For somebody who asks over HTTP: without paths.
    pub(super) fn told(&self) -> &'static str {
        match self {
            StoreError::Sql(_, e) => match primary_code(e) {
                Some(5 | 6) => "the registry's file is locked by another program",
                Some(13) => "the registry's disk is full",
                Some(8) => "the registry's file can only be read",
                _ => "the registry's file cannot be written",
            },
            StoreError::Io(_, e) if e.kind() == io::ErrorKind::StorageFull => {
                "the registry's disk is full"
            }
            _ => "the registry's file cannot be used",
        }
    }
}

/// SQLite's result code, without what it adds to it.
fn primary_code(e: &sqlx::Error) -> Option<u32> {
    let code: u32 = e.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// A node as the file has it.
#[derive(Debug, Clone)]
pub(super) struct StoredNode {
    pub(super) node: Announcement,
    /// Whether it announced itself as nodes of other systems do.
    pub(super) plain: bool,
    pub(super) created_ms: u64,
    pub(super) last_seen_ms: u64,
}

/// What a node reported, as the file has it.
#[derive(Debug, Clone)]
pub(super) struct StoredMetrics {
    pub(super) id: NodeId,
    pub(super) reported_ms: u64,
    pub(super) text: Box<str>,
}

/// All that a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) nodes: Vec<StoredNode>,
    pub(super) metrics: Vec<StoredMetrics>,
    pub(super) channels: Vec<ChannelEntry>,
    pub(super) channels_version: u64,
    pub(super) nodes_version: u64,
    /// When the file was written to last; 0 in a new one.
    pub(super) saved_ms: u64,
    /// The one that counted last.
    pub(super) view: View,
}

/// What follows within a second.
#[derive(Debug, Default)]
pub(super) struct Later {
    pub(super) seen: Vec<(NodeId, u64)>,
    pub(super) metrics: Vec<StoredMetrics>,
    pub(super) gone: Vec<NodeId>,
    pub(super) gone_metrics: Vec<NodeId>,
    pub(super) nodes_version: u64,
    pub(super) saved_ms: u64,
}

/// The file, open for as long as this lives; no other registry can open it meanwhile.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// `None` after a failure: what a connection holds of a transaction that a full disk has ended half is not to be guessed
    /// at, and the next change begins with a new one.
    connection: Mutex<Option<SqliteConnection>>,
    /// A transaction in a file beside it, which the kernel ends with the process.
    lock: Mutex<SqliteConnection>,
}

fn options(path: &Path) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT);
    options.disable_statement_logging()
}

fn writing(path: &Path) -> SqliteConnectOptions {
    // What was answered as stored is there after a power cut.
    options(path).journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full)
}

fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn uint(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl Store {
    /// Opens a file, or makes it.
    pub(super) async fn open(path: &Path) -> Result<(Store, Contents), StoreError> {
        let lock = lock(path).await?;
        let sql = |e| StoreError::Sql(path.into(), e);
        let options = writing(path).create_if_missing(true);
        let mut connection = options.connect().await.map_err(|e| foreign_or(path, e))?;
        match version(path, &mut connection).await? {
            Version::Known => {}
            Version::First => {
                let mut transaction = connection.begin().await.map_err(sql)?;
                sqlx::raw_sql(SINCE_1).execute(&mut *transaction).await.map_err(sql)?;
                transaction.commit().await.map_err(sql)?;
            }
            Version::Empty => {
                let mut transaction = connection.begin().await.map_err(sql)?;
                sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await.map_err(sql)?;
                let marks = format!(
                    "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}"
                );
                sqlx::raw_sql(&marks).execute(&mut *transaction).await.map_err(sql)?;
                transaction.commit().await.map_err(sql)?;
            }
        }
        let contents = read(path, &mut connection).await?;
        let (connection, lock) = (Mutex::new(Some(connection)), Mutex::new(lock));
        Ok((Store { path: path.into(), connection, lock }, contents))
    }

    /// Makes one change as a whole, or none of it.
    async fn change(
        &self,
        change: impl AsyncFnOnce(&mut SqliteConnection) -> Result<(), sqlx::Error>,
    ) -> Result<(), StoreError> {
        let mut held = self.connection.lock().await;
        // Where this is not waited for to its end, the connection goes, too.
        let connection = match held.take() {
            Some(connection) => Ok(connection),
            None => writing(&self.path).connect().await,
        };
        let changed = async {
            let mut connection = connection?;
            let committed = async {
                let mut transaction = connection.begin().await?;
                change(&mut transaction).await?;
                transaction.commit().await
            };
            match committed.await {
                Ok(()) => Ok(connection),
                Err(e) => {
                    let _ = connection.close_hard().await;
                    Err(e)
                }
            }
        };
        let connection = changed.await.map_err(|e| StoreError::Sql(self.path.clone(), e))?;
        *held = Some(connection);
        Ok(())
    }

    /// Stores a node, in the place of what was there of the same id.
    pub(super) async fn put_node(&self, stored: &StoredNode) -> Result<(), StoreError> {
        let StoredNode { node, plain, created_ms, last_seen_ms } = stored;
        let put = sqlx::query(
            "INSERT OR REPLACE INTO nodes (id, url, peer, weight, state, epoch, plain, created_ms, last_seen_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .bind(node.id.as_str())
        .bind(node.url.as_str())
        .bind(node.peer.as_ref().map(|peer| peer.as_str()))
        .bind(i64::from(node.weight.number()))
        .bind(node.state.word())
        .bind(node.epoch.as_str())
        .bind(i64::from(*plain))
        .bind(int(*created_ms))
        .bind(int(*last_seen_ms));
        self.change(async |connection| put.execute(connection).await.map(drop)).await
    }

    /// Stores the view that counts from now on.
    pub(super) async fn put_view(&self, view: &View) -> Result<(), StoreError> {
        self.change(async |connection| {
            let text = serde_json::to_string(view).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
            sqlx::query("DELETE FROM view").execute(&mut *connection).await?;
            let put = sqlx::query("INSERT INTO view (number, view) VALUES (?1, ?2)");
            put.bind(int(view.number)).bind(text).execute(connection).await.map(drop)
        })
        .await
    }

    /// Removes a node and what it reported.
    pub(super) async fn remove_node(&self, id: &NodeId) -> Result<(), StoreError> {
        self.change(async |connection| {
            for statement in
                ["DELETE FROM nodes WHERE id = ?1", "DELETE FROM metrics WHERE id = ?1"]
            {
                sqlx::query(statement).bind(id.as_str()).execute(&mut *connection).await?;
            }
            Ok(())
        })
        .await
    }

    /// Stores a channel, or removes it, together with the version that the list has then.
    pub(super) async fn put_channel(
        &self,
        name: &str,
        entry: Option<&ChannelEntry>,
        version: u64,
    ) -> Result<(), StoreError> {
        self.change(async |connection| {
            let change = match entry {
                None => sqlx::query("DELETE FROM channels WHERE name = ?1").bind(name),
                Some(entry) => {
                    let json = |e| sqlx::Error::Encode(Box::new(e));
                    let nodes = serde_json::to_string(&entry.allowed_nodes).map_err(json)?;
                    let rule = entry.rule.as_ref().map(serde_json::to_string).transpose();
                    sqlx::query(
                        "INSERT OR REPLACE INTO channels (name, allowed_nodes, rule) VALUES (?1, ?2, ?3)",
                    )
                    .bind(name)
                    .bind(nodes)
                    .bind(rule.map_err(json)?)
                }
            };
            change.execute(&mut *connection).await?;
            put_fact(connection, "channels_version", version).await
        })
        .await
    }

    /// Stores what may be stored late.
    pub(super) async fn flush(&self, later: &Later) -> Result<(), StoreError> {
        self.change(async |connection| {
            for (id, seen_ms) in &later.seen {
                sqlx::query("UPDATE nodes SET last_seen_ms = ?2 WHERE id = ?1")
                    .bind(id.as_str())
                    .bind(int(*seen_ms))
                    .execute(&mut *connection)
                    .await?;
            }
            for StoredMetrics { id, reported_ms, text } in &later.metrics {
                sqlx::query(
                    "INSERT OR REPLACE INTO metrics (id, reported_ms, metrics) VALUES (?1, ?2, ?3)",
                )
                .bind(id.as_str())
                .bind(int(*reported_ms))
                .bind(&**text)
                .execute(&mut *connection)
                .await?;
            }
            for id in &later.gone {
                let gone = sqlx::query("DELETE FROM nodes WHERE id = ?1").bind(id.as_str());
                gone.execute(&mut *connection).await?;
            }
            for id in &later.gone_metrics {
                let gone = sqlx::query("DELETE FROM metrics WHERE id = ?1").bind(id.as_str());
                gone.execute(&mut *connection).await?;
            }
            put_fact(connection, "nodes_version", later.nodes_version).await?;
            put_fact(connection, "saved_ms", later.saved_ms).await
        })
        .await
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves one file with everything in it.
    pub(super) async fn close(self) {
        if let Some(connection) = self.connection.into_inner()
            && let Err(e) = connection.close().await
        {
            tracing::warn!("{}: {e}", self.path.display());
        }
        let _ = self.lock.into_inner().close().await;
    }
}

async fn put_fact(
    connection: &mut SqliteConnection,
    name: &str,
    value: u64,
) -> Result<(), sqlx::Error> {
    let put = sqlx::query("INSERT OR REPLACE INTO facts (name, value) VALUES (?1, ?2)");
    put.bind(name).bind(int(value)).execute(connection).await?;
    Ok(())
}

/// Keeps other registries from the same file. SQLite's own locks come and go with its transactions, so this one is held on a
/// file beside it.
async fn lock(path: &Path) -> Result<SqliteConnection, StoreError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let beside = PathBuf::from(beside);
    let failed = |e: sqlx::Error| match primary_code(&e) {
        Some(5 | 6) => StoreError::InUse(path.into()),
        _ => StoreError::Sql(beside.clone(), e),
    };
    let options = options(&beside).create_if_missing(true).busy_timeout(Duration::ZERO);
    let mut lock = options.connect().await.map_err(failed)?;
    sqlx::raw_sql("BEGIN EXCLUSIVE").execute(&mut lock).await.map_err(failed)?;
    Ok(lock)
}

enum Version {
    Empty,
    First,
    Known,
}

fn foreign_or(path: &Path, e: sqlx::Error) -> StoreError {
    match primary_code(&e) {
        // No SQLite file at all.
        Some(26) => StoreError::Foreign(path.into()),
        _ => StoreError::Sql(path.into(), e),
    }
}

/// Whether the tables are those that this program knows.
async fn version(path: &Path, connection: &mut SqliteConnection) -> Result<Version, StoreError> {
    let failed = |e| foreign_or(path, e);
    let one = |statement| sqlx::query_scalar::<_, i64>(statement);
    let application = one("PRAGMA application_id").fetch_one(&mut *connection).await;
    let application = application.map_err(failed)?;
    let version = one("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let tables = one("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await;
    match (application, version, tables.map_err(failed)?) {
        (0, 0, 0) => Ok(Version::Empty),
        (APPLICATION_ID, SCHEMA_VERSION, _) => Ok(Version::Known),
        (APPLICATION_ID, 1, _) => Ok(Version::First),
        (APPLICATION_ID, newer, _) if newer > SCHEMA_VERSION => {
            Err(StoreError::Newer(path.into(), newer))
        }
        _ => Err(StoreError::Foreign(path.into())),
    }
}

async fn read(path: &Path, connection: &mut SqliteConnection) -> Result<Contents, StoreError> {
    let sql = |e| StoreError::Sql(path.into(), e);
    let damaged = |what: &str| StoreError::Damaged(path.into(), what.to_owned());
    let mut contents = Contents::default();
    let rows = sqlx::query("SELECT * FROM nodes").fetch_all(&mut *connection).await.map_err(sql)?;
    for row in rows {
        contents.nodes.push(node(&row).ok_or_else(|| damaged("a node"))?);
    }
    let rows = sqlx::query("SELECT * FROM metrics").fetch_all(&mut *connection).await;
    for row in rows.map_err(sql)? {
        contents.metrics.push(metrics(&row).ok_or_else(|| damaged("what a node reported"))?);
    }
    let rows = sqlx::query("SELECT * FROM channels").fetch_all(&mut *connection).await;
    for row in rows.map_err(sql)? {
        contents.channels.push(channel(&row).ok_or_else(|| damaged("a channel"))?);
    }
    let view = sqlx::query_scalar::<_, String>("SELECT view FROM view");
    if let Some(text) = view.fetch_optional(&mut *connection).await.map_err(sql)? {
        contents.view = serde_json::from_str(&text).map_err(|_| damaged("the view"))?;
    }
    let rows = sqlx::query("SELECT name, value FROM facts").fetch_all(&mut *connection).await;
    for row in rows.map_err(sql)? {
        let value = uint(row.try_get("value").map_err(sql)?);
        match row.try_get("name").map_err(sql)? {
            "channels_version" => contents.channels_version = value,
            "nodes_version" => contents.nodes_version = value,
            "saved_ms" => contents.saved_ms = value,
            _ => {}
        }
    }
    Ok(contents)
}

fn text(row: &SqliteRow, column: &str) -> Option<String> {
    row.try_get(column).ok()
}

fn number(row: &SqliteRow, column: &str) -> Option<u64> {
    row.try_get(column).ok().map(uint)
}

fn node(row: &SqliteRow) -> Option<StoredNode> {
    let peer: Option<String> = row.try_get("peer").ok()?;
    let state = match text(row, "state")?.as_str() {
        "active" => NodeState::Active,
        "draining" => NodeState::Draining,
        _ => return None,
    };
    let node = Announcement {
        id: text(row, "id")?.parse().ok()?,
        url: text(row, "url")?.parse().ok()?,
        peer: peer.map(|peer| peer.parse()).transpose().ok()?,
        weight: Weight::try_from(number(row, "weight")?).ok()?,
        state,
        epoch: text(row, "epoch")?.parse().ok()?,
    };
    let (created_ms, last_seen_ms) = (number(row, "created_ms")?, number(row, "last_seen_ms")?);
    Some(StoredNode { node, plain: number(row, "plain")? != 0, created_ms, last_seen_ms })
}

fn metrics(row: &SqliteRow) -> Option<StoredMetrics> {
    let text_of = text(row, "metrics")?;
    serde_json::from_str::<serde_json::Map<_, _>>(&text_of).ok()?;
    let (id, reported_ms) = (text(row, "id")?.parse().ok()?, number(row, "reported_ms")?);
    Some(StoredMetrics { id, reported_ms, text: text_of.into() })
}

fn channel(row: &SqliteRow) -> Option<ChannelEntry> {
    let rule: Option<String> = row.try_get("rule").ok()?;
    let rule = rule.map(|rule| serde_json::from_str(&rule)).transpose().ok()?;
    let allowed_nodes = serde_json::from_str(&text(row, "allowed_nodes")?).ok()?;
    Some(ChannelEntry { name: text(row, "name")?, allowed_nodes, rule })
}

/// Writes a consistent copy of a registry's file to a new one, also while a registry uses it. The copy is on the disk
/// and has everything in it when this returns; where it fails, nothing is left. Gives its size in bytes.
pub async fn copy(from: &Path, to: &Path) -> Result<u64, StoreError> {
    let sql = |e| StoreError::Sql(from.into(), e);
    let io = |e| StoreError::Io(to.into(), e);
    if to.symlink_metadata().is_ok() {
        return Err(io(io::ErrorKind::AlreadyExists.into()));
    }
    let directory = to.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    // A directory that nobody else can look into, and that goes if this ends early.
    let partial = tempfile::Builder::new().prefix(".backup-").tempdir_in(directory).map_err(io)?;
    let made = partial.path().join("copy.db");
    let mut connection = options(from).connect().await.map_err(|e| foreign_or(from, e))?;
    if matches!(version(from, &mut connection).await?, Version::Empty) {
        return Err(StoreError::Foreign(from.into()));
    }
    let name = made.to_str().ok_or_else(|| io(io::ErrorKind::InvalidFilename.into()))?;
    sqlx::query("VACUUM INTO ?1").bind(name).execute(&mut connection).await.map_err(sql)?;
    let _ = connection.close().await;
    let (to, directory) = (to.to_owned(), directory.to_owned());
    let settle = move || {
        let file = std::fs::File::open(&made)?;
        file.sync_all()?;
        // Not a rename: a file that is there by now stays.
        std::fs::hard_link(&made, &to)?;
        std::fs::File::open(directory)?.sync_all()?;
        Ok(file.metadata()?.len())
    };
    let settled = tokio::task::spawn_blocking(settle).await.map_err(|e| io(io::Error::other(e)))?;
    settled.map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: String) -> ChannelEntry {
        let rule = serde_json::json!({ "x": "y".repeat(10_000) });
        ChannelEntry { name, allowed_nodes: vec!["*".into()], rule: rule.as_object().cloned() }
    }

    #[tokio::test]
    async fn what_comes_behind_a_full_disk_is_stored_and_not_only_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        let (store, _) = Store::open(&path).await.unwrap();
        let mut stored = Vec::new();
        for round in 0..3 {
            let full = "PRAGMA max_page_count = 40";
            let mut held = store.connection.lock().await;
            if let Some(connection) = &mut *held {
                sqlx::raw_sql(full).execute(connection).await.unwrap();
            }
            drop(held);
            let mut failed = None;
            for n in 0..20 {
                let entry = channel(format!("{round}-{n}"));
                match store.put_channel(&entry.name, Some(&entry), n).await {
                    Ok(()) => stored.push(entry.name),
                    Err(e) => failed = Some(e),
                }
            }
            if round == 0 {
                let told = failed.map(|e| e.told());
                assert_eq!(told, Some("the registry's disk is full"), "{stored:?}");
            }
        }
        // As after kill -9: nothing is closed that would be committed by it.
        let copied = dir.path().join("copy.db");
        copy(&path, &copied).await.unwrap();
        let (_, contents) = Store::open(&copied).await.unwrap();
        let mut there: Vec<String> =
            contents.channels.into_iter().map(|entry| entry.name).collect();
        there.sort();
        stored.sort();
        assert_eq!(there, stored);
    }
}
