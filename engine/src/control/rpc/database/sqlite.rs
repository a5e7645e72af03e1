//! SQLite. Connections for statements that only read are opened so; what has run out of time is stopped by the handler that
//! SQLite asks while it works.

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Executor as _, Row as _, TypeInfo as _, ValueRef as _};
use tokio::time::Instant;

use super::answer::{self, Answer};
use super::{Complaint, Ran, Trouble, bound, end};
use crate::control::rpc::params::Value;
use crate::control::rpc::statement::Statement;

/// Steps of SQLite's machine between two looks at the clock.
const STEPS: i32 = 1000;

pub(super) async fn run(
    connection: &mut SqliteConnection,
    statement: &Statement,
    values: &[Value],
    deadline: Instant,
    answer: &mut Answer,
) -> Ran {
    let until = deadline.into_std();
    match connection.lock_handle().await {
        Ok(mut handle) => {
            handle.set_progress_handler(STEPS, move || std::time::Instant::now() < until);
        }
        Err(e) => return Ran { result: Err(e.into()), clean: false },
    }
    let Ran { result, clean } = transact(connection, statement, values, answer).await;
    let clean = match connection.lock_handle().await {
        Ok(mut handle) => {
            handle.remove_progress_handler();
            clean
        }
        Err(_) => false,
    };
    Ran { result, clean }
}

/// What is told as failed was not done, also where a statement that writes gives more than may be told.
async fn transact(
    connection: &mut SqliteConnection,
    statement: &Statement,
    values: &[Value],
    answer: &mut Answer,
) -> Ran {
    if !statement.write {
        return Ran { result: rows(connection, statement, values, answer).await, clean: true };
    }
    if let Err(e) = connection.execute("BEGIN IMMEDIATE").await {
        return Ran { result: Err(e.into()), clean: true };
    }
    let result = rows(connection, statement, values, answer).await;
    end(connection, statement, result).await
}

async fn rows(
    connection: &mut SqliteConnection,
    statement: &Statement,
    values: &[Value],
    answer: &mut Answer,
) -> Result<(), Trouble> {
    let mut query = sqlx::query(&statement.sql.text);
    for value in bound(statement, values) {
        query = bind(query, value?.1);
    }
    if answer.counts() {
        answer.affected(query.execute(connection).await?.rows_affected());
        return Ok(());
    }
    answer.take(query.fetch(connection), cell).await
}

fn bind<'q>(
    query: Query<'q, Sqlite, SqliteArguments<'q>>,
    value: &'q Value,
) -> Query<'q, Sqlite, SqliteArguments<'q>> {
    match value {
        Value::Int(own) => query.bind(own),
        Value::Float(own) => query.bind(own),
        Value::Text(own) => query.bind(own),
        Value::Bool(own) => query.bind(own),
        Value::Timestamp(own) => query.bind(own),
        Value::Json(own) => query.bind(own.as_ref().map(|json| json.get())),
        Value::Bytes(own) => query.bind(own),
    }
}

/// A value has a type, whatever its column says.
fn cell(row: &SqliteRow, at: usize, out: &mut String) -> Result<(), String> {
    let value = row.try_get_raw(at).map_err(|e| e.to_string())?;
    if value.is_null() {
        out.push_str("null");
        return Ok(());
    }
    let of = value.type_info().name().to_owned();
    let broken = |_| of.clone();
    match &*of {
        "INTEGER" => answer::plain(row.try_get_unchecked::<i64, _>(at).map_err(broken)?, out),
        "REAL" => answer::float(row.try_get_unchecked(at).map_err(broken)?, out),
        "TEXT" => answer::string(row.try_get_unchecked(at).map_err(broken)?, out),
        "BLOB" => answer::bytes(row.try_get_unchecked(at).map_err(broken)?, out),
        _ => return Err(of),
    }
    Ok(())
}

/// By its result codes (<https://sqlite.org/rescode.html>), of which the lowest byte is the primary one.
pub(super) fn complaint(code: &str) -> Complaint {
    match code.parse::<u32>().unwrap_or(0) & 0xff {
        5 | 6 => Complaint::Busy,
        8 => Complaint::ReadOnly,
        9 => Complaint::OutOfTime,
        14 => Complaint::Gone,
        18 | 20 => Complaint::Value,
        19 => Complaint::Constraint,
        _ => Complaint::Other,
    }
}
