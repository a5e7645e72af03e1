//! Recordings: lines of `<nanoseconds since epoch> <JSON exactly as received>`, gzip or plain.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use flate2::bufread::MultiGzDecoder;
use ringfeed_protocol::channel_name;

use crate::feed::Feed;

/// One recorded message; its text is a range of the shared buffer.
#[derive(Debug, Clone, Copy)]
struct Record {
    at_ns: u64,
    stream: u32,
    start: usize,
    len: u32,
}

/// A recording in memory, replayed once per clone, in order of time.
pub(crate) struct ReplayFeed {
    channels: Vec<String>,
    streams: u32,
    text: Vec<u8>,
    records: Vec<Record>,
    speed: f64,
    clones: u32,
    next: usize,
    clone: u32,
}

/// What an instrument's file is called without its date: `spot_btcusdt_20240808.gz` and
/// `spot_btcusdt_20240809.gz` are one instrument.
fn instrument(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    match stem.rsplit_once('_') {
        Some((rest, date)) if date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit()) => {
            rest.to_owned()
        }
        _ => stem.to_owned(),
    }
}

/// The stream a message belongs to: its `"stream"`, else `<symbol>@<kind>`.
fn stream_of(json: &[u8], symbol: &str) -> anyhow::Result<String> {
    #[derive(serde::Deserialize)]
    struct Head<'a> {
        stream: Option<std::borrow::Cow<'a, str>>,
        channel: Option<std::borrow::Cow<'a, str>>,
    }
    if let Some(rest) = json.strip_prefix(b"{\"stream\":\"")
        && let Some(end) = rest.iter().position(|&b| b == b'"')
    {
        return Ok(String::from_utf8(rest[..end].to_vec())?);
    }
    let head: Head = serde_json::from_slice(json)?;
    Ok(match (head.stream, head.channel) {
        (Some(stream), _) => stream.into_owned(),
        (None, Some(channel)) => format!("{symbol}@{channel}"),
        (None, None) => format!("{symbol}@snapshot"),
    })
}

impl ReplayFeed {
    /// Reads all files into memory. Channels are `prefix` + stream; where two instruments have a
    /// stream of the same name, `prefix` + instrument + `.` + stream.
    pub(crate) fn load(
        files: &[PathBuf],
        prefix: &str,
        speed: f64,
        clones: u32,
        seconds: Option<f64>,
    ) -> anyhow::Result<ReplayFeed> {
        let mut instruments: BTreeMap<String, Vec<&PathBuf>> = BTreeMap::new();
        for file in files {
            instruments.entry(instrument(file)).or_default().push(file);
        }
        let mut text = Vec::new();
        let mut records = Vec::new();
        // (instrument, stream) in order of appearance.
        let mut streams: Vec<(String, String)> = Vec::new();
        for (name, mut files) in instruments {
            files.sort();
            let symbol = name.split_once('_').map_or(name.as_str(), |(_, symbol)| symbol);
            let mut known: HashMap<String, u32> = HashMap::new();
            for file in files {
                let shown = file.display();
                let mut lines = open(file).with_context(|| format!("{shown}"))?;
                let mut line = Vec::new();
                for number in 1.. {
                    line.clear();
                    if lines.read_until(b'\n', &mut line).with_context(|| format!("{shown}"))? == 0
                    {
                        break;
                    }
                    let (at_ns, json) = split(&line).with_context(|| {
                        format!("{shown}, line {number}: expected <nanoseconds> <JSON>")
                    })?;
                    let stream = stream_of(json, symbol)
                        .with_context(|| format!("{shown}, line {number}: not JSON"))?;
                    let stream = *known.entry(stream).or_insert_with_key(|stream| {
                        streams.push((name.clone(), stream.clone()));
                        streams.len() as u32 - 1
                    });
                    let len = u32::try_from(json.len())?;
                    records.push(Record { at_ns, stream, start: text.len(), len });
                    text.extend_from_slice(json);
                }
            }
        }
        if records.is_empty() {
            bail!("the recordings hold no message");
        }
        // Stable: messages of one instant stay in the order of their file.
        records.sort_by_key(|record| record.at_ns);
        let start = records[0].at_ns;
        if let Some(seconds) = seconds {
            records.retain(|record| (record.at_ns - start) as f64 <= seconds * 1e9);
        }
        records.iter_mut().for_each(|record| record.at_ns -= start);
        let names = channel_names(&streams, prefix)?;
        let count = streams.len() as u32;
        let mut channels = Vec::new();
        for clone in 0..clones {
            for name in &names {
                let suffix = if clone == 0 { String::new() } else { format!("#{clone}") };
                channels.push(format!("{name}{suffix}"));
            }
        }
        Ok(ReplayFeed { channels, streams: count, text, records, speed, clones, next: 0, clone: 0 })
    }
}

fn channel_names(streams: &[(String, String)], prefix: &str) -> anyhow::Result<Vec<String>> {
    let mut seen = HashSet::new();
    let shared: HashSet<&str> =
        streams.iter().map(|(_, s)| s.as_str()).filter(|s| !seen.insert(*s)).collect();
    let name = |(instrument, stream): &(String, String)| {
        let name = if shared.contains(stream.as_str()) {
            format!("{prefix}{instrument}.{stream}")
        } else {
            format!("{prefix}{stream}")
        };
        channel_name::check(&name).with_context(|| format!("{name:?}"))?;
        Ok(name)
    };
    streams.iter().map(name).collect()
}

fn open(path: &Path) -> anyhow::Result<BufReader<Box<dyn Read>>> {
    let mut file = BufReader::new(File::open(path)?);
    let gzip = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let reader: Box<dyn Read> =
        if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(BufReader::with_capacity(1 << 16, reader))
}

fn split(line: &[u8]) -> anyhow::Result<(u64, &[u8])> {
    let space = line.iter().position(|&b| b == b' ').context("no space")?;
    let time = std::str::from_utf8(&line[..space])?.parse()?;
    Ok((time, line[space + 1..].trim_ascii()))
}

impl Feed for ReplayFeed {
    fn channels(&self) -> &[String] {
        &self.channels
    }

    fn next(&mut self, payload: &mut Vec<u8>) -> Option<(u32, u64)> {
        let record = self.records.get(self.next)?;
        payload.extend_from_slice(&self.text[record.start..record.start + record.len as usize]);
        let channel = self.clone * self.streams + record.stream;
        let due_ns = if self.speed > 0.0 { (record.at_ns as f64 / self.speed) as u64 } else { 0 };
        self.clone += 1;
        if self.clone == self.clones {
            (self.clone, self.next) = (0, self.next + 1);
        }
        Some((channel, due_ns))
    }

    fn len(&self) -> Option<u64> {
        Some(self.records.len() as u64 * u64::from(self.clones))
    }

    fn is_paced(&self) -> bool {
        self.speed > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// Made up here: two markets with the same stream names, one of them in two gzip files.
    fn files() -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (name, text, gzip) in [
            ("spot_abc_20240102.gz", "4 {\"stream\":\"abc@trade\",\"data\":4}\n", true),
            (
                "spot_abc_20240101.gz",
                "1 {\"lastUpdateId\":1}\n2 {\"stream\":\"abc@trade\",\"data\":2}\n",
                true,
            ),
            ("usdm_abc_20240101", "3 {\"stream\":\"abc@trade\",\"data\":3}\n", false),
            ("other_xyz", "5 {\"channel\":\"l2Book\",\"data\":5}", false),
        ] {
            let path = dir.path().join(name);
            let mut file = File::create(&path).unwrap();
            if gzip {
                let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
                gz.write_all(text.as_bytes()).unwrap();
                gz.finish().unwrap();
            } else {
                file.write_all(text.as_bytes()).unwrap();
            }
            files.push(path);
        }
        (dir, files)
    }

    #[test]
    fn files_are_joined_sorted_named_and_cloned() {
        let (_dir, files) = files();
        let mut feed = ReplayFeed::load(&files, "p.", 2.0, 2, None).unwrap();
        let mut seen = Vec::new();
        let mut payload = Vec::new();
        while let Some((channel, due)) = feed.next(&mut payload) {
            let text = String::from_utf8(std::mem::take(&mut payload)).unwrap();
            seen.push((feed.channels()[channel as usize].clone(), due, text));
        }
        assert_eq!(seen.len() as u64, feed.len().unwrap());
        let names: Vec<&str> = seen.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "p.abc@snapshot",
                "p.abc@snapshot#1",
                "p.spot_abc.abc@trade",
                "p.spot_abc.abc@trade#1",
                "p.usdm_abc.abc@trade",
                "p.usdm_abc.abc@trade#1",
                "p.spot_abc.abc@trade",
                "p.spot_abc.abc@trade#1",
                "p.xyz@l2Book",
                "p.xyz@l2Book#1",
            ]
        );
        assert_eq!((seen[8].1, seen[8].2.as_str()), (2, "{\"channel\":\"l2Book\",\"data\":5}"));
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad");
        std::fs::write(&path, "1 {\"stream\":\"a@b\"}\noops\n").unwrap();
        let error = ReplayFeed::load(&[path], "", 1.0, 1, None).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }
}
