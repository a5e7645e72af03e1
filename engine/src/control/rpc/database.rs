//! Databases, and statements run on them. Values are bound, never written into a statement; that a statement only reads and
//! when it has to stop is the database's own doing, not a matter of how its text looks.

mod answer;
mod mysql;
mod postgres;
mod sqlite;

use std::str::FromStr as _;
use std::time::Duration;

use ringfeed_protocol::CallError;
use sqlx::mysql::{MySqlConnectOptions, MySqlPool};
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{ConnectOptions as _, Executor as _};
use tokio::time::{Instant, timeout_at};

use super::params::Value;
use super::sql::Dialect;
use super::statement::Statement;
use crate::config;
use answer::Answer;

/// Why there is nothing, for a caller: none of it is the database's own text.
const NO_CONNECTION: &str = "no connection to the database is free";
const NOT_REACHED: &str = "the database cannot be reached";
const BUSY: &str = "the database is busy";

/// How long a database may take to stop what has run out of time. Then its connection is given up.
const STOP_TIME: Duration = Duration::from_millis(500);

/// Where a database is, as the configuration says it. Does not show it.
#[derive(Clone)]
pub(crate) struct Place {
    options: Options,
    config: config::Database,
    pub(crate) statement_timeout: Duration,
}

#[derive(Clone)]
enum Options {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>),
    MySql(Box<MySqlConnectOptions>),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Place {
    /// What is wrong with a URL is told without it.
    pub(crate) fn new(config: &config::Database) -> Result<Place, &'static str> {
        const ALLOWED: &str =
            "it is no URL of a database; allowed are sqlite:PATH, postgres://… and mysql://…";
        let url = match config.url.is_empty() {
            true => format!("sqlite:{}.db", config.name),
            false => String::from_utf8(config.url.0.clone()).map_err(|_| ALLOWED)?,
        };
        let timeout = Duration::from_millis(config.statement_timeout_ms.into());
        let options = match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => {
                let options = SqliteConnectOptions::from_str(&url).map_err(|_| ALLOWED)?;
                // It waits for others who write no longer than a statement may take.
                let options = options.busy_timeout(timeout).disable_statement_logging();
                Options::Sqlite(Box::new(options))
            }
            Some("postgres" | "postgresql") => {
                let options = PgConnectOptions::from_str(&url).map_err(|_| ALLOWED)?;
                Options::Postgres(Box::new(options.disable_statement_logging()))
            }
            Some("mysql" | "mariadb") => {
                let options = MySqlConnectOptions::from_str(&url).map_err(|_| ALLOWED)?;
                Options::MySql(Box::new(options.disable_statement_logging()))
            }
            _ => return Err(ALLOWED),
        };
        Ok(Place { options, config: config.clone(), statement_timeout: timeout })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self.options {
            Options::Sqlite(_) => Dialect::Sqlite,
            Options::Postgres(_) => Dialect::Postgres,
            Options::MySql(_) => Dialect::MySql,
        }
    }

    /// Whether its connections are as good for the other one.
    pub(crate) fn is_same(&self, other: &Place) -> bool {
        self.config == other.config
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }
}

/// Connections to a database, made when they are needed.
#[derive(Debug)]
pub(crate) struct Database {
    name: String,
    pools: Pools,
}

#[derive(Debug)]
enum Pools {
    /// Statements that only read have connections that cannot write.
    Sqlite {
        read: SqlitePool,
        write: SqlitePool,
    },
    Postgres(PgPool),
    MySql(MySqlPool),
}

/// What keeps a statement from giving anything.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}")]
    Sql(#[from] sqlx::Error),
    #[error("it was not stopped in time, and its connection is given up")]
    NotStopped,
    #[error("it gives more than {0} rows")]
    Rows(u32),
    #[error("what it gives is longer than {0} bytes")]
    Bytes(usize),
    #[error("its column {0:?} is of type {1}, which has no form in JSON: cast it")]
    Type(String, String),
    #[error("two of its columns are called {0:?}")]
    Twice(String),
    #[error("{0}")]
    Value(CallError),
}

/// What a database has against a statement, as far as callers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complaint {
    OutOfTime,
    Busy,
    Value,
    Constraint,
    ReadOnly,
    Gone,
    Other,
}

impl Database {
    pub(crate) fn new(place: &Place) -> Database {
        let config = &place.config;
        let acquire = Duration::from_millis(config.acquire_timeout_ms.into());
        let pools = match &place.options {
            Options::Sqlite(options) => {
                let read = (**options).clone().read_only(true).pragma("query_only", "ON");
                let write = (**options).clone().create_if_missing(true);
                Pools::Sqlite {
                    read: pool(config.pool_max, acquire).connect_lazy_with(read),
                    // SQLite has one that writes at a time.
                    write: pool(1, acquire).connect_lazy_with(write),
                }
            }
            Options::Postgres(options) => Pools::Postgres(
                pool(config.pool_max, acquire).connect_lazy_with((**options).clone()),
            ),
            Options::MySql(options) => {
                Pools::MySql(pool(config.pool_max, acquire).connect_lazy_with((**options).clone()))
            }
        };
        Database { name: config.name.clone(), pools }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a statement with values for all of its parameters. The result is JSON of at most so many bytes.
    pub(crate) async fn run(
        &self,
        statement: &Statement,
        values: &[Value],
        deadline: Instant,
        bytes_max: usize,
    ) -> Result<Box<str>, Trouble> {
        let mut answer = Answer::new(statement, bytes_max);
        match &self.pools {
            Pools::Sqlite { read, write } => {
                let pool = if statement.write { write } else { read };
                let mut own = acquire(pool, deadline).await?;
                let run = sqlite::run(&mut own, statement, values, deadline, &mut answer);
                settle(timeout_at(deadline + STOP_TIME, run).await, own)?;
            }
            Pools::Postgres(pool) => {
                let mut own = acquire(pool, deadline).await?;
                let run = postgres::run(&mut own, statement, values, deadline, &mut answer);
                settle(timeout_at(deadline + STOP_TIME, run).await, own)?;
            }
            Pools::MySql(pool) => {
                let mut own = acquire(pool, deadline).await?;
                let run = mysql::run(&mut own, statement, values, deadline, &mut answer);
                settle(timeout_at(deadline + STOP_TIME, run).await, own)?;
            }
        }
        answer.finish()
    }
}

fn pool<DB: sqlx::Database>(most: u32, acquire: Duration) -> PoolOptions<DB> {
    PoolOptions::new().max_connections(most).acquire_timeout(acquire)
}

async fn acquire<DB: sqlx::Database>(
    pool: &sqlx::Pool<DB>,
    deadline: Instant,
) -> Result<PoolConnection<DB>, Trouble> {
    let acquired = timeout_at(deadline, pool.acquire()).await;
    Ok(acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut))?)
}

/// What came of a statement, and whether its connection is as it was before.
struct Ran {
    result: Result<(), Trouble>,
    clean: bool,
}

/// The values of a statement in the order in which it binds them, each with the number of its parameter.
fn bound<'a>(
    statement: &'a Statement,
    values: &'a [Value],
) -> impl Iterator<Item = Result<(usize, &'a Value), Trouble>> {
    statement.sql.binds.iter().map(|&at| {
        let missing = || Trouble::Value(CallError::failed("a value is missing"));
        values.get(at).map(|value| (at, value)).ok_or_else(missing)
    })
}

/// Ends the transaction of a statement.
async fn end<C>(connection: &mut C, statement: &Statement, result: Result<(), Trouble>) -> Ran
where
    for<'c> &'c mut C: sqlx::Executor<'c>,
{
    let end = if statement.write && result.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = connection.execute(end).await;
    let clean = ended.is_ok();
    // What could not be committed was not done.
    let result = result.and_then(|()| Ok(ended.map(drop)?));
    Ran { result, clean }
}

/// A connection that may be in the middle of something serves nobody any more.
fn settle<DB: sqlx::Database>(
    ran: Result<Ran, tokio::time::error::Elapsed>,
    connection: PoolConnection<DB>,
) -> Result<(), Trouble> {
    let Ran { result, clean } =
        ran.unwrap_or(Ran { result: Err(Trouble::NotStopped), clean: false });
    if !clean {
        drop(connection.detach());
    }
    result
}

/// Milliseconds until then, one at least: none would be no limit.
fn left_ms(deadline: Instant) -> u128 {
    deadline.saturating_duration_since(Instant::now()).as_millis().max(1)
}

impl Trouble {
    /// What the caller is told.
    pub(crate) fn told(&self) -> CallError {
        match self {
            Trouble::NotStopped => CallError::TimedOut,
            Trouble::Rows(most) => {
                CallError::failed(format_args!("there are more than {most} rows"))
            }
            Trouble::Bytes(most) => {
                CallError::failed(format_args!("the result is longer than {most} bytes"))
            }
            Trouble::Type(..) | Trouble::Twice(_) => CallError::failed("the statement failed"),
            Trouble::Value(error) => error.clone(),
            Trouble::Sql(error) => match complaint(error) {
                Complaint::OutOfTime => CallError::TimedOut,
                Complaint::Busy => CallError::Unavailable { detail: BUSY },
                Complaint::Value => {
                    CallError::bad_params("a value is none that the statement can take")
                }
                Complaint::Constraint => CallError::failed("it would break a rule of the database"),
                Complaint::ReadOnly => CallError::failed("the statement may only read"),
                Complaint::Gone if matches!(error, sqlx::Error::PoolTimedOut) => {
                    CallError::Unavailable { detail: NO_CONNECTION }
                }
                Complaint::Gone => CallError::Unavailable { detail: NOT_REACHED },
                Complaint::Other => CallError::failed("the statement failed"),
            },
        }
    }

    /// Whether the operator has to know: it is not the caller's doing.
    pub(crate) fn is_ours(&self) -> bool {
        !matches!(self.told(), CallError::BadParams { .. })
    }
}

fn complaint(error: &sqlx::Error) -> Complaint {
    let Some(error) = error.as_database_error() else {
        return match error {
            sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Configuration(_) => Complaint::Gone,
            _ => Complaint::Other,
        };
    };
    if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        return sqlite::complaint(error.code().as_deref().unwrap_or_default());
    }
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
        && let Some(complaint) = mysql::complaint(error.number())
    {
        return complaint;
    }
    of_sqlstate(error.code().as_deref().unwrap_or_default())
}

/// By the classes of ISO/IEC 9075, and what PostgreSQL has besides (its manual, appendix A).
fn of_sqlstate(code: &str) -> Complaint {
    match code {
        "57014" => Complaint::OutOfTime,
        "25006" => Complaint::ReadOnly,
        "55P03" | "40001" | "40P01" => Complaint::Busy,
        code => match code.get(..2) {
            Some("22") => Complaint::Value,
            Some("23") => Complaint::Constraint,
            Some("08" | "28" | "53" | "57") => Complaint::Gone,
            _ => Complaint::Other,
        },
    }
}
