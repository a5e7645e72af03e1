//! What connections show of who they are, and how the server ended them where that was meant.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use serde::Serialize;

/// What one connection shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// When it connects.
    pub(crate) first: Box<str>,
    /// With `auth`, so long after it was open.
    pub(crate) later: Vec<(Duration, Box<str>)>,
}

/// Reads a line for each connection: its token, and behind spaces `SECONDS:TOKEN`.
pub(crate) fn read(path: &Path, conns: u32) -> anyhow::Result<Vec<Shown>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--tokens {name}"))?;
    let shown: Vec<Shown> = (1..)
        .zip(text.lines())
        .map(|(line, text)| parse(text).with_context(|| format!("--tokens {name}, line {line}")))
        .collect::<anyhow::Result<_>>()?;
    if shown.len() < conns as usize {
        bail!("--tokens {name}: it has {} lines for {conns} connections", shown.len());
    }
    Ok(shown)
}

fn parse(line: &str) -> anyhow::Result<Shown> {
    let mut words = line.split_ascii_whitespace();
    let first = words.next().context("it has no token")?.into();
    let later = words.map(|word| {
        let (seconds, token) = word.split_once(':').context("allowed is SECONDS:TOKEN")?;
        let seconds = seconds.parse().context("the seconds are no number")?;
        let after = Duration::try_from_secs_f64(seconds).context("the seconds are out of range")?;
        Ok((after, token.into()))
    });
    Ok(Shown { first, later: later.collect::<anyhow::Result<_>>()? })
}

/// A connection that the server ended.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ending {
    pub(crate) connection: u32,
    /// Seconds since 1970.
    pub(crate) at: f64,
    /// Of the close frame; `None` where there was none.
    pub(crate) code: Option<u16>,
    pub(crate) reason: String,
}

impl Ending {
    pub(crate) fn now(connection: u32, code: Option<u16>, reason: &str) -> Ending {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Ending { connection, at, code, reason: reason.to_owned() }
    }
}

/// Writes a line of JSON for each.
pub(crate) fn write(path: &Path, endings: &[Ending]) -> anyhow::Result<()> {
    let write = || {
        let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
        for ending in endings {
            serde_json::to_writer(&mut out, ending)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    write().with_context(|| format!("--endings {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_token_and_what_is_shown_later() {
        let shown = parse("a.b.c 1.5:d.e.f 20:g").unwrap();
        assert_eq!(&*shown.first, "a.b.c");
        let later =
            [(Duration::from_millis(1500), "d.e.f".into()), (Duration::from_secs(20), "g".into())];
        assert_eq!(shown.later, later);
        for wrong in ["", "a b", "a x:b", "a -1:b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
