//! Files with SQL statements: `rpc.dir`.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::database::Place;
use super::params::{Param, Spec};
use super::sql::{self, Sql};
use crate::config::file;

/// Largest file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Files in the directory, and statements in one of them.
const FILES_MAX: usize = 1000;
const STATEMENTS_MAX: usize = 1000;
const ROWS_MAX: u32 = 1000;

/// What a statement gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shape {
    /// A list of objects.
    Rows,
    /// The first one; `null` where there is none.
    Row,
    /// The first column of the first one; `null` where there is none.
    Value,
    /// How many rows were written.
    Affected,
}

/// As it stands in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) database: String,
    sql: String,
    #[serde(default)]
    params: Vec<Spec>,
    #[serde(default)]
    write: bool,
    rows_max: Option<u32>,
    timeout_ms: Option<u32>,
    result: Option<Shape>,
    pub(crate) allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    #[serde(default)]
    statement: Vec<Entry>,
}

/// One that can be run.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Number of its database in the configuration's list.
    pub(crate) database: usize,
    pub(crate) sql: Sql,
    pub(crate) params: Vec<Param>,
    pub(crate) write: bool,
    pub(crate) rows_max: u32,
    pub(crate) timeout: Duration,
    pub(crate) shape: Shape,
}

/// Everything that stands in the files of a directory, each with where it was found.
pub(crate) fn read_all(dir: &str, errors: &mut Vec<String>) -> Vec<(String, Entry)> {
    if dir.is_empty() {
        return Vec::new();
    }
    let mut paths = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(found) => {
            let found = found.filter_map(|entry| Some(entry.ok()?.path()));
            paths.extend(found.filter(|path| path.extension().is_some_and(|end| end == "toml")));
        }
        Err(e) => errors.push(format!("rpc.dir = {dir:?}: {e}")),
    }
    paths.sort();
    if paths.len() > FILES_MAX {
        let count = paths.len();
        errors.push(format!("rpc.dir = {dir:?}: there are {count} files; allowed are {FILES_MAX}"));
        paths.clear();
    }
    let mut entries = Vec::new();
    for path in paths {
        match read(&path) {
            Ok(found) => entries.extend(found),
            Err(why) => errors.push(why),
        }
    }
    entries
}

fn read(path: &Path) -> Result<Vec<(String, Entry)>, String> {
    let name = path.to_string_lossy().escape_debug().to_string();
    let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
    if !is_file {
        return Err(format!("{name}: it is not a file"));
    }
    let text = file::read_text(path, FILE_BYTES_MAX).map_err(|e| format!("{name}: {e}"))?;
    let entries = toml::from_str::<Entries>(&text).map_err(|e| {
        let line =
            e.span().map(|span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count());
        let line = line.map_or(String::new(), |line| format!(":{line}"));
        format!("{name}{line}: {}", e.message().escape_debug())
    })?;
    if entries.statement.len() > STATEMENTS_MAX {
        return Err(format!("{name}: allowed are {STATEMENTS_MAX} statements in a file"));
    }
    let place = |entry: &Entry| format!("{name}: {:?}", entry.name);
    Ok(entries.statement.into_iter().map(|entry| (place(&entry), entry)).collect())
}

impl Statement {
    /// Says what is wrong with a statement for a database.
    pub(crate) fn new(entry: Entry, database: usize, place: &Place) -> Result<Statement, String> {
        let mut params = Vec::new();
        for spec in entry.params {
            let param = Param::new(spec).map_err(|why| format!("params: {why}"))?;
            if params.iter().any(|own: &Param| own.spec.name == param.spec.name) {
                return Err(format!("params: there are two {:?}", param.spec.name));
            }
            params.push(param);
        }
        let names: Vec<&str> = params.iter().map(|param| &*param.spec.name).collect();
        let sql = sql::translate(&entry.sql, place.dialect(), &names);
        let sql = sql.map_err(|why| format!("sql: {why}"))?;
        let shape = entry.result.unwrap_or(if entry.write { Shape::Affected } else { Shape::Rows });
        if shape == Shape::Affected && !entry.write {
            return Err(
                "result = \"affected\": only statements with write = true write rows".into()
            );
        }
        if entry.rows_max == Some(0) || entry.timeout_ms == Some(0) {
            return Err("rows_max and timeout_ms: allowed are 1 and more".into());
        }
        let timeout = entry.timeout_ms.map(|ms| Duration::from_millis(ms.into()));
        Ok(Statement {
            database,
            sql,
            params,
            write: entry.write,
            rows_max: entry.rows_max.unwrap_or(ROWS_MAX),
            timeout: timeout.unwrap_or(place.statement_timeout),
            shape,
        })
    }
}
