//! PostgreSQL. Every statement runs in a transaction of its own, one that only reads in a `READ ONLY` one, which also limits
//! its time.

use ringfeed_protocol::CallError;
use sqlx::postgres::{PgArguments, PgConnection, PgRow, PgValueRef, Postgres};
use sqlx::query::Query;
use sqlx::types::{Json, JsonRawValue};
use sqlx::{Executor as _, Row as _, TypeInfo as _, ValueRef as _};
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time};
use tokio::time::Instant;

use super::answer::{self, Answer};
use super::{Ran, Trouble, bound, end, left_ms};
use crate::control::rpc::params::Value;
use crate::control::rpc::statement::Statement;

pub(super) async fn run(
    connection: &mut PgConnection,
    statement: &Statement,
    values: &[Value],
    deadline: Instant,
    answer: &mut Answer,
) -> Ran {
    let how = if statement.write { "READ WRITE" } else { "READ ONLY" };
    let limit = left_ms(deadline);
    let begin = format!("BEGIN {how}; SET LOCAL statement_timeout = {limit}");
    if let Err(e) = connection.execute(&*begin).await {
        return Ran { result: Err(e.into()), clean: false };
    }
    let result = rows(connection, statement, values, answer).await;
    end(connection, statement, result).await
}

async fn rows(
    connection: &mut PgConnection,
    statement: &Statement,
    values: &[Value],
    answer: &mut Answer,
) -> Result<(), Trouble> {
    let mut query = sqlx::query(&statement.sql.text);
    for value in bound(statement, values) {
        let (at, value) = value?;
        if let Value::Text(Some(text)) = value
            && text.contains('\0')
        {
            let name = statement.params.get(at).map_or("", |param| &param.spec.name);
            let why = CallError::bad_params(format_args!("'{name}' must not hold U+0000"));
            return Err(Trouble::Value(why));
        }
        query = bind(query, value);
    }
    if answer.counts() {
        answer.affected(query.execute(connection).await?.rows_affected());
        return Ok(());
    }
    answer.take(query.fetch(connection), cell).await
}

fn bind<'q>(
    query: Query<'q, Postgres, PgArguments>,
    value: &'q Value,
) -> Query<'q, Postgres, PgArguments> {
    match value {
        Value::Int(own) => query.bind(own),
        Value::Float(own) => query.bind(own),
        Value::Text(own) => query.bind(own),
        Value::Bool(own) => query.bind(own),
        Value::Timestamp(own) => query.bind(own),
        Value::Json(own) => query.bind(own.as_deref().map(Json)),
        Value::Bytes(own) => query.bind(own),
    }
}

fn cell(row: &PgRow, at: usize, out: &mut String) -> Result<(), String> {
    let value = row.try_get_raw(at).map_err(|e| e.to_string())?;
    if value.is_null() {
        out.push_str("null");
        return Ok(());
    }
    let of = value.type_info().name().to_owned();
    let broken = |_| of.clone();
    match &*of {
        "BOOL" => answer::plain(row.try_get::<bool, _>(at).map_err(broken)?, out),
        "INT2" => answer::plain(row.try_get::<i16, _>(at).map_err(broken)?, out),
        "INT4" => answer::plain(row.try_get::<i32, _>(at).map_err(broken)?, out),
        "INT8" => answer::plain(row.try_get::<i64, _>(at).map_err(broken)?, out),
        "FLOAT4" => answer::single(row.try_get(at).map_err(broken)?, out),
        "FLOAT8" => answer::float(row.try_get(at).map_err(broken)?, out),
        "NUMERIC" => numeric(&value, out).ok_or(of)?,
        "TEXT" | "VARCHAR" | "CHAR" | "NAME" | "UNKNOWN" | "CITEXT" => {
            answer::string(row.try_get_unchecked(at).map_err(broken)?, out);
        }
        "BYTEA" => answer::bytes(row.try_get(at).map_err(broken)?, out),
        "JSON" | "JSONB" => {
            let json: Json<&JsonRawValue> = row.try_get(at).map_err(broken)?;
            out.push_str(json.0.get());
        }
        "TIMESTAMPTZ" => {
            answer::time(row.try_get::<OffsetDateTime, _>(at).map_err(broken)?, out)?;
        }
        "TIMESTAMP" => {
            answer::local(row.try_get::<PrimitiveDateTime, _>(at).map_err(broken)?, out)?;
        }
        "DATE" => {
            answer::date(row.try_get::<Date, _>(at).map_err(broken)?, out)?;
        }
        "TIME" => {
            answer::clock(row.try_get::<Time, _>(at).map_err(broken)?, out)?;
        }
        "UUID" => uuid(&value, out).ok_or(of)?,
        "VOID" => out.push_str("null"),
        _ => return Err(of),
    }
    Ok(())
}

/// 16 bytes as RFC 9562 writes them.
fn uuid(value: &PgValueRef<'_>, out: &mut String) -> Option<()> {
    let bytes = <[u8; 16]>::try_from(value.as_bytes().ok()?).ok()?;
    let number = format!("{:032x}", u128::from_be_bytes(bytes));
    out.push('"');
    for (i, digit) in number.chars().enumerate() {
        if matches!(i, 8 | 12 | 16 | 20) {
            out.push('-');
        }
        out.push(digit);
    }
    out.push('"');
    Some(())
}

/// A number of any length (`numeric_send` of PostgreSQL: count, weight, sign and scale, then digits to the base of 10,000),
/// as JSON writes it; `null` for what is none.
fn numeric(value: &PgValueRef<'_>, out: &mut String) -> Option<()> {
    let bytes = value.as_bytes().ok()?;
    let mut words = bytes.chunks_exact(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]]));
    let (count, weight, sign, scale) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let digits: Vec<i16> = words.collect();
    if digits.len() != usize::try_from(count).ok()? {
        return None;
    }
    match sign {
        0 => {}
        0x4000 => out.push('-'),
        _ => {
            out.push_str("null");
            return Some(());
        }
    }
    let digit = |place: i32| {
        let at = usize::try_from(i32::from(weight) - place).ok();
        at.and_then(|at| digits.get(at)).copied().unwrap_or(0)
    };
    if weight < 0 {
        out.push('0');
    }
    for place in (0..=i32::from(weight)).rev() {
        if place == i32::from(weight) {
            answer::plain(digit(place), out);
        } else {
            answer::plain(format_args!("{:04}", digit(place)), out);
        }
    }
    if scale > 0 {
        let scale = usize::try_from(scale).ok()?;
        let mut fraction = String::new();
        for place in 1..=i32::try_from(scale.div_ceil(4)).ok()? {
            answer::plain(format_args!("{:04}", digit(-place)), &mut fraction);
        }
        out.push('.');
        out.push_str(fraction.get(..scale)?);
    }
    Some(())
}
