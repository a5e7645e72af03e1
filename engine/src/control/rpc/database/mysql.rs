//! MySQL and MariaDB. Statements that only read run in a `READ ONLY` transaction and are stopped by the server. MySQL limits
//! no other statement's time: one that writes is waited for no longer, and its connection is given up.

use sqlx::mysql::{MySql, MySqlArguments, MySqlConnection, MySqlRow};
use sqlx::query::Query;
use sqlx::types::{Json, JsonRawValue};
use sqlx::{Executor as _, Row as _, TypeInfo as _, ValueRef as _};
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time};
use tokio::time::Instant;

use super::answer::{self, Answer};
use super::{Complaint, Ran, Trouble, bound, end, left_ms};
use crate::control::rpc::params::Value;
use crate::control::rpc::statement::Statement;

/// `ER_UNKNOWN_SYSTEM_VARIABLE`
const NO_SUCH_VARIABLE: u16 = 1193;

pub(super) async fn run(
    connection: &mut MySqlConnection,
    statement: &Statement,
    values: &[Value],
    deadline: Instant,
    answer: &mut Answer,
) -> Ran {
    if let Err(e) = begin(connection, statement.write, deadline).await {
        return Ran { result: Err(e.into()), clean: false };
    }
    let result = rows(connection, statement, values, answer).await;
    end(connection, statement, result).await
}

async fn begin(
    connection: &mut MySqlConnection,
    write: bool,
    deadline: Instant,
) -> Result<(), sqlx::Error> {
    let limit_ms = left_ms(deadline);
    let limit = format!("SET SESSION max_execution_time = {limit_ms}");
    if let Err(e) = connection.execute(&*limit).await {
        let number = e
            .as_database_error()
            .and_then(|e| Some(e.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?.number()));
        if number != Some(NO_SUCH_VARIABLE) {
            return Err(e);
        }
        // MariaDB, which counts in seconds.
        let (seconds, rest) = (limit_ms / 1000, limit_ms % 1000);
        let limit = format!("SET SESSION max_statement_time = {seconds}.{rest:03}");
        connection.execute(&*limit).await?;
    }
    let how = if write { "READ WRITE" } else { "READ ONLY" };
    connection.execute(&*format!("START TRANSACTION {how}")).await?;
    Ok(())
}

async fn rows(
    connection: &mut MySqlConnection,
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
    query: Query<'q, MySql, MySqlArguments>,
    value: &'q Value,
) -> Query<'q, MySql, MySqlArguments> {
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

fn cell(row: &MySqlRow, at: usize, out: &mut String) -> Result<(), String> {
    let value = row.try_get_raw(at).map_err(|e| e.to_string())?;
    if value.is_null() {
        out.push_str("null");
        return Ok(());
    }
    let of = value.type_info().name().to_owned();
    let broken = |_| of.clone();
    match &*of {
        "BOOLEAN" => answer::plain(row.try_get::<bool, _>(at).map_err(broken)?, out),
        "FLOAT" => answer::single(row.try_get(at).map_err(broken)?, out),
        "DOUBLE" => answer::float(row.try_get(at).map_err(broken)?, out),
        // It travels as its digits.
        "DECIMAL" => {
            answer::plain(row.try_get_unchecked::<&str, _>(at).map_err(broken)?, out);
        }
        "JSON" => {
            let json: Json<&JsonRawValue> = row.try_get_unchecked(at).map_err(broken)?;
            out.push_str(json.0.get());
        }
        "TIMESTAMP" => {
            answer::time(row.try_get::<OffsetDateTime, _>(at).map_err(broken)?, out)?;
        }
        "DATETIME" => {
            answer::local(row.try_get::<PrimitiveDateTime, _>(at).map_err(broken)?, out)?;
        }
        "DATE" => {
            answer::date(row.try_get::<Date, _>(at).map_err(broken)?, out)?;
        }
        "TIME" => {
            answer::clock(row.try_get::<Time, _>(at).map_err(broken)?, out)?;
        }
        "CHAR" | "VARCHAR" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT" | "ENUM" | "SET" => {
            answer::string(row.try_get_unchecked(at).map_err(broken)?, out);
        }
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => {
            answer::bytes(row.try_get_unchecked(at).map_err(broken)?, out);
        }
        "YEAR" => answer::plain(row.try_get_unchecked::<u16, _>(at).map_err(broken)?, out),
        of if of.ends_with("UNSIGNED") => {
            answer::plain(row.try_get_unchecked::<u64, _>(at).map_err(broken)?, out);
        }
        "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => {
            answer::plain(row.try_get_unchecked::<i64, _>(at).map_err(broken)?, out);
        }
        _ => return Err(of),
    }
    Ok(())
}

/// By its error numbers, where its SQLSTATE says less.
pub(super) fn complaint(number: u16) -> Option<Complaint> {
    Some(match number {
        // ER_QUERY_TIMEOUT, ER_QUERY_INTERRUPTED, and MariaDB's ER_STATEMENT_TIMEOUT.
        3024 | 1317 | 1969 => Complaint::OutOfTime,
        // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
        1792 => Complaint::ReadOnly,
        // ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK
        1205 | 1213 => Complaint::Busy,
        // ER_TRUNCATED_WRONG_VALUE, ER_TRUNCATED_WRONG_VALUE_FOR_FIELD
        1292 | 1366 => Complaint::Value,
        // ER_TOO_MANY_CONNECTIONS
        1040 => Complaint::Gone,
        _ => return None,
    })
}
