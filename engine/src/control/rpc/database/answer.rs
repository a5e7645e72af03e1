//! What a statement gives, as JSON: written while rows come, and no longer than it may be.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{Stream, StreamExt as _};
use sqlx::{Column as _, Row};
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time};

use super::Trouble;
use crate::control::rpc::statement::{Shape, Statement};

/// See the module's description.
pub(super) struct Answer {
    shape: Shape,
    rows_max: u32,
    bytes_max: usize,
    rows: u32,
    text: String,
}

/// One value of a row: writes it, or says of which type it is where there is no form for it.
pub(super) type Cell<R> = fn(&R, usize, &mut String) -> Result<(), String>;

impl Answer {
    pub(super) fn new(statement: &Statement, bytes_max: usize) -> Answer {
        let text = if statement.shape == Shape::Rows { "[".into() } else { String::new() };
        Answer { shape: statement.shape, rows_max: statement.rows_max, bytes_max, rows: 0, text }
    }

    /// Whether rows are of no interest.
    pub(super) fn counts(&self) -> bool {
        self.shape == Shape::Affected
    }

    pub(super) fn affected(&mut self, count: u64) {
        let _ = write!(self.text, "{{\"affected\":{count}}}");
    }

    /// Takes rows until there is no more, or enough.
    pub(super) async fn take<R: Row>(
        &mut self,
        mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
        cell: Cell<R>,
    ) -> Result<(), Trouble>
    where
        usize: sqlx::ColumnIndex<R>,
    {
        while let Some(row) = rows.next().await {
            let row = row?;
            if self.rows > 0 && self.shape != Shape::Rows {
                // Of others nothing is shown; what a statement does it does with all.
                continue;
            }
            self.rows += 1;
            if self.rows > self.rows_max {
                return Err(Trouble::Rows(self.rows_max));
            }
            self.row(&row, cell)?;
            if self.text.len() >= self.bytes_max {
                return Err(Trouble::Bytes(self.bytes_max));
            }
        }
        Ok(())
    }

    fn row<R: Row>(&mut self, row: &R, cell: Cell<R>) -> Result<(), Trouble>
    where
        usize: sqlx::ColumnIndex<R>,
    {
        let columns = row.columns();
        let unfit = |at: usize, of: String| {
            let name = columns.get(at).map_or("", |column| column.name());
            Trouble::Type(name.into(), of)
        };
        if self.shape == Shape::Value {
            if columns.is_empty() {
                self.text.push_str("null");
                return Ok(());
            }
            return cell(row, 0, &mut self.text).map_err(|of| unfit(0, of));
        }
        self.text.push_str(if self.rows > 1 { ",{" } else { "{" });
        for (at, column) in columns.iter().enumerate() {
            if self.rows == 1 && columns.iter().take(at).any(|own| own.name() == column.name()) {
                return Err(Trouble::Twice(column.name().into()));
            }
            if at > 0 {
                self.text.push(',');
            }
            string(column.name(), &mut self.text);
            self.text.push(':');
            cell(row, at, &mut self.text).map_err(|of| unfit(at, of))?;
        }
        self.text.push('}');
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Box<str>, Trouble> {
        match self.shape {
            Shape::Rows => self.text.push(']'),
            Shape::Row | Shape::Value if self.rows == 0 => self.text.push_str("null"),
            Shape::Row | Shape::Value | Shape::Affected => {}
        }
        if self.text.len() > self.bytes_max {
            return Err(Trouble::Bytes(self.bytes_max));
        }
        Ok(self.text.into())
    }
}

/// A string, escaped.
pub(super) fn string(text: &str, out: &mut String) {
    // A string is always JSON.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// A number; `null` for what is none, and for what has no end.
pub(super) fn float(number: f64, out: &mut String) {
    out.push_str(&serde_json::to_string(&number).unwrap_or_default());
}

/// A number of four bytes, with as many digits as it has.
pub(super) fn single(number: f32, out: &mut String) {
    out.push_str(&serde_json::to_string(&number).unwrap_or_default());
}

/// Anything that is written as it is displayed.
pub(super) fn plain(what: impl std::fmt::Display, out: &mut String) {
    let _ = write!(out, "{what}");
}

pub(super) fn bytes(bytes: &[u8], out: &mut String) {
    out.push('"');
    out.push_str(&STANDARD.encode(bytes));
    out.push('"');
}

/// RFC 3339.
pub(super) fn time(time: OffsetDateTime, out: &mut String) -> Result<(), String> {
    let text = time.format(&Rfc3339).map_err(|_| "a time beyond the year 9999".to_owned())?;
    string(&text, out);
    Ok(())
}

/// The same without an offset.
pub(super) fn local(time: PrimitiveDateTime, out: &mut String) -> Result<(), String> {
    part(time, out, |text| text)
}

/// The day alone.
pub(super) fn date(date: Date, out: &mut String) -> Result<(), String> {
    part(date.midnight(), out, |text| text.split_once('T').map_or(text, |(date, _)| date))
}

/// The time of day alone.
pub(super) fn clock(clock: Time, out: &mut String) -> Result<(), String> {
    let time = PrimitiveDateTime::new(OffsetDateTime::UNIX_EPOCH.date(), clock);
    part(time, out, |text| text.split_once('T').map_or(text, |(_, clock)| clock))
}

fn part(
    time: PrimitiveDateTime,
    out: &mut String,
    of: impl Fn(&str) -> &str,
) -> Result<(), String> {
    let text = time.assume_utc().format(&Rfc3339);
    let text = text.map_err(|_| "a time beyond the year 9999".to_owned())?;
    string(of(text.trim_end_matches('Z')), out);
    Ok(())
}
