//! Recordings: lines of `<time> <JSON object exactly as received>`, gzip or plain. The help of
//! `loadgen replay` says what they are made of; everything in them is checked before a run.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use flate2::bufread::MultiGzDecoder;
use ringfeed_protocol::channel_name;

use crate::args::TimeUnit;
use crate::feed::Feed;
use crate::report::spoken;

/// How recordings are read and replayed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How<'a> {
    /// In front of each channel.
    pub(crate) prefix: &'a str,
    /// Multiple of real time; 0 is as fast as it goes.
    pub(crate) speed: f64,
    pub(crate) clones: u32,
    /// Of the recording.
    pub(crate) seconds: Option<f64>,
    /// Seconds to which longer waits are shortened.
    pub(crate) max_pause: f64,
    pub(crate) unit: Option<TimeUnit>,
}

/// One recorded message; its text is a range of the shared buffer.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// Of the recording; once it is loaded, when it is due, since the start.
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
    paced: bool,
    clones: u32,
    next: usize,
    clone: u32,
    announcements: Vec<String>,
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

/// Everything that was read so far.
#[derive(Default)]
struct Loading {
    text: Vec<u8>,
    records: Vec<Record>,
    /// (instrument, stream) in order of appearance.
    streams: Vec<(String, String)>,
    warnings: Vec<String>,
}

/// What is odd about a file, and where it first was so.
#[derive(Default)]
struct Odd {
    count: u64,
    first: String,
}

impl Odd {
    fn note(&mut self, first: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = first();
        }
        self.count += 1;
    }

    fn warning(&self, what: &str) -> Option<String> {
        let rest = match self.count {
            0 => return None,
            1 => String::new(),
            count => format!(" ({count} such lines)"),
        };
        Some(format!("warning: {}: {what}{rest}", self.first))
    }
}

impl Loading {
    /// Reads the file of an instrument whose streams are `known` by name.
    fn read(
        &mut self,
        file: &Path,
        instrument: &str,
        known: &mut HashMap<String, u32>,
        unit: Option<TimeUnit>,
    ) -> anyhow::Result<()> {
        let shown = file.display();
        let symbol = instrument.split_once('_').map_or(instrument, |(_, symbol)| symbol);
        let mut lines = open(file).with_context(|| format!("{shown}"))?;
        let (mut nameless, mut disordered) = (Odd::default(), Odd::default());
        let mut line = Vec::new();
        let mut before_ns = 0;
        for number in 1.. {
            line.clear();
            let here = || format!("{shown}, line {number}");
            if lines.read_until(b'\n', &mut line).with_context(here)? == 0 {
                break;
            }
            let (time, json) = split(&line)
                .with_context(|| format!("{}: expected <nanoseconds> <JSON>", here()))?;
            if number == 1 && unit.is_none() {
                check_unit(time).with_context(here)?;
            }
            let at_ns = nanoseconds(time, unit)
                .with_context(|| format!("{}: {time} is too large a time", here()))?;
            let head: Head = serde_json::from_slice(json)
                .with_context(|| format!("{}: expected one JSON object", here()))?;
            let stream = match (head.stream, head.channel) {
                (Some(stream), _) => stream.into_owned(),
                (None, channel) => {
                    let kind = channel.unwrap_or("snapshot".into());
                    let stream = format!("{symbol}@{kind}");
                    nameless.note(|| format!("{}: no \"stream\", so it goes to {stream}", here()));
                    stream
                }
            };
            if at_ns < before_ns {
                let earlier = spoken((before_ns - at_ns) as f64 / 1e9);
                disordered.note(|| format!("{}: {earlier} earlier than the line above", here()));
            }
            before_ns = at_ns;
            let streams = &mut self.streams;
            let stream = *known.entry(stream).or_insert_with_key(|stream| {
                streams.push((instrument.to_owned(), stream.clone()));
                streams.len() as u32 - 1
            });
            let len = u32::try_from(json.len())?;
            self.records.push(Record { at_ns, stream, start: self.text.len(), len });
            self.text.extend_from_slice(json);
        }
        self.warnings.extend(nameless.warning("recordings name the stream of each message"));
        self.warnings.extend(disordered.warning("messages are published in the order of time"));
        Ok(())
    }
}

/// What of a message says where it belongs.
#[derive(serde::Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    stream: Option<Cow<'a, str>>,
    #[serde(borrow)]
    channel: Option<Cow<'a, str>>,
}

fn unit_ns(unit: TimeUnit) -> u64 {
    match unit {
        TimeUnit::Ns => 1,
        TimeUnit::Us => 1_000,
        TimeUnit::Ms => 1_000_000,
        TimeUnit::S => 1_000_000_000,
    }
}

fn nanoseconds(time: u64, unit: Option<TimeUnit>) -> Option<u64> {
    time.checked_mul(unit_ns(unit.unwrap_or(TimeUnit::Ns)))
}

/// Refuses a first time that is one of our days if it counts something else than nanoseconds.
fn check_unit(time: u64) -> anyhow::Result<()> {
    const OUR_DAYS_S: std::ops::Range<u64> = 1_000_000_000..4_000_000_000;
    let units = [
        (TimeUnit::S, "seconds", "s"),
        (TimeUnit::Ms, "milliseconds", "ms"),
        (TimeUnit::Us, "microseconds", "us"),
    ];
    for (unit, name, flag) in units {
        if OUR_DAYS_S.contains(&(time / (1_000_000_000 / unit_ns(unit)))) {
            bail!(
                "the time {time} looks like {name} since 1970, and nanoseconds are expected; \
                 --time-unit {flag} reads it so, --time-unit ns insists"
            );
        }
    }
    Ok(())
}

impl ReplayFeed {
    /// Reads all files into memory. Channels are prefix + stream; where two instruments have a
    /// stream of the same name, prefix + instrument + `.` + stream.
    pub(crate) fn load(files: &[PathBuf], how: &How) -> anyhow::Result<ReplayFeed> {
        let mut instruments: BTreeMap<String, Vec<&PathBuf>> = BTreeMap::new();
        for file in files {
            instruments.entry(instrument(file)).or_default().push(file);
        }
        let mut all = Loading::default();
        for (name, mut files) in instruments {
            files.sort();
            let mut known: HashMap<String, u32> = HashMap::new();
            for file in files {
                all.read(file, &name, &mut known, how.unit)?;
            }
        }
        let Loading { text, mut records, streams, warnings: mut announcements } = all;
        // Stable: messages of one instant stay in the order of their file.
        records.sort_by_key(|record| record.at_ns);
        let Some(start) = records.first().map(|record| record.at_ns) else {
            bail!("the recordings hold no message");
        };
        if let Some(seconds) = how.seconds {
            records.retain(|record| (record.at_ns - start) as f64 <= seconds * 1e9);
        }
        let span = records.last().map_or(0, |record| record.at_ns - start) as f64 / 1e9;
        announcements.extend(schedule(&mut records, how));
        let names = channel_names(&streams, how.prefix)?;
        let count = streams.len() as u32;
        let mut channels = Vec::new();
        for clone in 0..how.clones {
            for name in &names {
                let suffix = if clone == 0 { String::new() } else { format!("#{clone}") };
                channels.push(format!("{name}{suffix}"));
            }
        }
        let lasts = match how.speed {
            0.0 => "published as fast as it goes".to_owned(),
            _ => {
                let last = records.last().map_or(0, |record| record.at_ns);
                format!("published in {}", spoken(last as f64 / 1e9))
            }
        };
        announcements.push(format!(
            "{} messages of {} on {} channels, {lasts}",
            records.len() as u64 * u64::from(how.clones),
            spoken(span),
            channels.len(),
        ));
        let (paced, clones) = (how.speed > 0.0, how.clones);
        Ok(ReplayFeed {
            channels,
            streams: count,
            text,
            records,
            paced,
            clones,
            next: 0,
            clone: 0,
            announcements,
        })
    }

    /// What is to be known before it is published.
    pub(crate) fn announcements(&self) -> &[String] {
        &self.announcements
    }
}

/// Turns times of the recording into times since the start, with long waits shortened. Says what it
/// shortened.
fn schedule(records: &mut [Record], how: &How) -> Vec<String> {
    const TOLD_MAX: usize = 5;
    let mut said = Vec::new();
    let mut shortened = 0;
    let mut before = records.first().map_or(0, |record| record.at_ns);
    let mut due = 0.0;
    for (number, record) in records.iter_mut().enumerate() {
        let pause = if how.speed > 0.0 { (record.at_ns - before) as f64 / how.speed } else { 0.0 };
        before = record.at_ns;
        if pause > how.max_pause * 1e9 {
            shortened += 1;
            if shortened <= TOLD_MAX {
                said.push(format!(
                    "a pause of {} behind message {number} is shortened to {}; --max-pause says to \
                     what",
                    spoken(pause / 1e9),
                    spoken(how.max_pause)
                ));
            }
        }
        due += pause.min(how.max_pause * 1e9);
        record.at_ns = due as u64;
    }
    if shortened > TOLD_MAX {
        said.push(format!("{} more pauses are shortened", shortened - TOLD_MAX));
    }
    said
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

/// Time and payload of a line.
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
        let due_ns = record.at_ns;
        self.clone += 1;
        if self.clone == self.clones {
            (self.clone, self.next) = (0, self.next + 1);
        }
        Some((channel, due_ns))
    }

    fn len(&self) -> Option<u64> {
        Some(self.records.len() as u64 * u64::from(self.clones))
    }

    fn lasts_ns(&self) -> Option<u64> {
        self.records.last().filter(|_| self.paced).map(|record| record.at_ns)
    }

    fn is_paced(&self) -> bool {
        self.paced
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

    fn how(speed: f64, clones: u32) -> How<'static> {
        How { prefix: "p.", speed, clones, seconds: None, max_pause: 60.0, unit: None }
    }

    /// A recording of these lines, or why it is none.
    fn load(text: &str, how: &How) -> Result<ReplayFeed, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x_abc");
        std::fs::write(&path, text).unwrap();
        ReplayFeed::load(&[path], how).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn files_are_joined_sorted_named_and_cloned() {
        let (_dir, files) = files();
        let mut feed = ReplayFeed::load(&files, &how(2.0, 2)).unwrap();
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
    fn what_is_no_recording_is_named_with_its_line() {
        let good = "1 {\"stream\":\"a@b\"}\n";
        for (bad, why) in [
            ("oops\n", "line 2: expected <nanoseconds> <JSON>"),
            ("2 {\"stream\":\"a@b\",\"data\":}\n", "line 2: expected one JSON object"),
            ("2 {\"stream\":\"a@b\"} x\n", "line 2: expected one JSON object"),
            ("2 [1,2]\n", "line 2: expected one JSON object"),
        ] {
            let error = load(&format!("{good}{bad}"), &how(1.0, 1)).err().unwrap();
            assert!(error.contains("x_abc") && error.contains(why), "{error}");
        }
        assert!(load("", &how(1.0, 1)).err().unwrap().contains("no message"));
    }

    #[test]
    fn times_that_are_no_nanoseconds_are_refused_or_converted() {
        let text = "1722988800123 {\"stream\":\"a\"}\n1722988801123 {\"stream\":\"a\"}\n";
        let error = load(text, &how(1.0, 1)).err().unwrap();
        assert!(error.contains("line 1") && error.contains("--time-unit ms"), "{error}");
        let unit = Some(TimeUnit::Ms);
        let feed = load(text, &How { unit, ..how(1.0, 1) }).unwrap();
        assert_eq!(feed.lasts_ns(), Some(1_000_000_000));
        let unit = Some(TimeUnit::Ns);
        assert!(load(text, &How { unit, ..how(1.0, 1) }).is_ok());
    }

    #[test]
    fn what_is_odd_is_told_once_with_its_first_line() {
        let text = "5 {\"stream\":\"a\"}\n3 {\"stream\":\"a\"}\n2 {\"x\":1}\n6 {\"x\":2}\n";
        let feed = load(text, &how(1.0, 1)).unwrap();
        let said = feed.announcements().join("\n");
        for part in ["line 3: no \"stream\", so it goes to abc@snapshot", "line 2: 0.0 s earlier"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(said.matches("(2 such lines)").count(), 2, "{said}");
    }

    #[test]
    fn long_pauses_are_told_and_shortened() {
        const HOUR: u64 = 3_600_000_000_000;
        let line = |at: u64| format!("{at} {{\"stream\":\"a\"}}\n");
        let text = [0, 5, HOUR, HOUR + 7].map(line).concat();
        let feed = load(&text, &how(1.0, 1)).unwrap();
        assert_eq!(feed.lasts_ns(), Some(60_000_000_012));
        let said = feed.announcements().join("\n");
        assert!(said.contains("1 h 0 min behind message 2 is shortened to 1 min"), "{said}");
        assert!(said.contains("4 messages of 1 h 0 min"), "{said}");
        let patient = How { max_pause: f64::INFINITY, ..how(1.0, 1) };
        assert_eq!(load(&text, &patient).unwrap().lasts_ns(), Some(HOUR + 7));
        // What is short enough at this speed is not touched.
        assert_eq!(load(&text, &how(100.0, 1)).unwrap().lasts_ns(), Some((HOUR + 7) / 100));
    }
}
