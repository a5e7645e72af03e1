//! The spool on disk: publications that Redis is to be given once it can be reached, in order.
//!
//! A directory of *segments*, files that are only appended to: `NUMBER.spool`, from the oldest to the newest. A record is
//!
//! ```text
//! length of body u32 | first 8 bytes of its SHA-256 | body
//! body: version u8 = 1 | instance u64 | number u64 | key: length u8 = 0 or 16, bytes | channel: length u8, bytes | item
//! ```
//!
//! all numbers big-endian. What is written is on the disk before that is said. A segment is read whole and goes whole; one that is
//! being read is not written to any more. What a crash has left of a record at the end of one was never said to be there; it is
//! set aside in a file `NUMBER.broken`, as is anything else that cannot be read. What Redis never stores is in files
//! `NUMBER.refused`, written as segments are: renamed to `NUMBER.spool` it is tried again by the next process.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::{BufMut as _, Bytes};
use ringfeed_protocol::ChannelName;
use sha2::{Digest as _, Sha256};

use super::command::Item;
use super::item::{Reader, put_text};
use super::spooling::{SpoolDone, SpoolOrder, Spooled};
use crate::message::KeyDigest;
use crate::seldom::Seldom;

/// A segment that has so many bytes is full.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Segments that ever are.
const NUMBER_MAX: u64 = 1_000_000_000_000;
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 8;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    /// Held as long as the spool is used.
    _lock: File,
    /// The oldest first.
    segments: VecDeque<Segment>,
    /// Of the newest, if that is still written to.
    writer: Option<File>,
    next: u64,
    bytes_max: u64,
    failed: Seldom,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
}

impl Spool {
    /// Opens a spool, and makes it if there is none. Also tells how many publications of which channels are in it.
    ///
    /// # Errors
    /// The kernel's, and where another process uses it.
    pub(super) fn open(
        dir: &Path,
        bytes_max: u64,
    ) -> io::Result<(Spool, BTreeMap<ChannelName, u32>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        let lock = options().create(true).truncate(false).open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process uses it"));
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
        let (mut numbers, mut next) = (Vec::new(), 0);
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.split('.').next()?.parse::<u64>().ok());
            let Some(number) = number.filter(|&number| number < NUMBER_MAX) else { continue };
            // What was set aside keeps its number.
            next = next.max(number + 1);
            if name.to_str() == Some(&file_name(number, "spool")) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let (segments, writer) = (VecDeque::new(), None);
        let dir = dir.to_owned();
        let failed = Seldom::default();
        let mut spool = Spool { dir, _lock: lock, segments, writer, next, bytes_max, failed };
        let mut channels = BTreeMap::new();
        for number in numbers {
            let records = spool.repair(number)?;
            if records.is_empty() {
                fs::remove_file(spool.path(number, "spool"))?;
                continue;
            }
            let bytes = fs::metadata(spool.path(number, "spool"))?.len();
            spool.segments.push_back(Segment { number, bytes });
            for record in records {
                *channels.entry(record.channel).or_default() += 1;
            }
        }
        Ok((spool, channels))
    }

    /// Bytes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Does what is wanted of it.
    pub(super) fn serve(&mut self, order: SpoolOrder) -> SpoolDone {
        match order {
            SpoolOrder::Write(records) => {
                let (written, error) = match self.write(&records) {
                    Ok(written) if written < records.len() => {
                        (written, Some(io::Error::other("redis.spool_bytes_max is reached")))
                    }
                    Ok(written) => (written, None),
                    Err((written, e)) => (written, Some(e)),
                };
                if let Some(e) = error {
                    self.complain(records.len() - written, &e);
                }
                SpoolDone::Written(written)
            }
            SpoolOrder::Read => SpoolDone::Read(self.read()),
            SpoolOrder::SetAside(records) => {
                if let Err(e) = self.set_aside(&records) {
                    let count = records.len();
                    tracing::error!("{count} publications that Redis never stores are lost: {e}");
                }
                SpoolDone::SetAside
            }
            SpoolOrder::Forget => {
                self.forget();
                SpoolDone::Forgotten
            }
        }
    }

    fn complain(&mut self, lost: usize, error: &io::Error) {
        if let Some(times) = self.failed.count(Instant::now()) {
            let dir = self.dir.display();
            tracing::error!(
                times,
                "redis.spool_dir = {dir}: {lost} publications not kept: {error}"
            );
        }
    }

    /// Appends records. Returns how many are on the disk: not all where there is no room for more.
    fn write(&mut self, records: &[Spooled]) -> Result<usize, (usize, io::Error)> {
        let mut written = 0;
        while written < records.len() {
            let mut room = self.bytes_max.saturating_sub(self.bytes());
            let in_segment = match (&self.writer, self.segments.back()) {
                (Some(_), Some(segment)) => segment.bytes,
                _ => 0,
            };
            let mut piece = Vec::new();
            let mut count = 0;
            for record in &records[written..] {
                let before = piece.len();
                encode(&mut piece, record);
                let bytes = (piece.len() - before) as u64;
                if bytes > room {
                    piece.truncate(before);
                    break;
                }
                (room, count) = (room - bytes, count + 1);
                if in_segment + piece.len() as u64 >= SEGMENT_BYTES {
                    break;
                }
            }
            if count == 0 {
                break;
            }
            self.append(&piece).map_err(|e| (written, e))?;
            written += count;
        }
        Ok(written)
    }

    /// Appends to the newest segment.
    fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.writer.is_none() {
            let number = self.next;
            let file = options().create_new(true).open(self.path(number, "spool"))?;
            self.next += 1;
            if let Err(e) = File::open(&self.dir).and_then(|dir| dir.sync_all()) {
                let _ = fs::remove_file(self.path(number, "spool"));
                return Err(e);
            }
            self.segments.push_back(Segment { number, bytes: 0 });
            self.writer = Some(file);
        }
        let (Some(file), Some(segment)) = (&mut self.writer, self.segments.back_mut()) else {
            return Err(io::Error::other("there is no segment"));
        };
        let written = file.write_all(piece).and_then(|()| file.sync_data());
        let written = written.and_then(|()| match file.metadata()?.nlink() {
            0 => Err(io::Error::other("somebody has deleted it")),
            _ => Ok(()),
        });
        if let Err(e) = written {
            // What is there of it was not said to be there; nothing is written behind it.
            let _ = file.set_len(segment.bytes);
            self.writer = None;
            if segment.bytes == 0
                && let Some(Segment { number, .. }) = self.segments.pop_back()
            {
                let _ = fs::remove_file(self.path(number, "spool"));
            }
            return Err(e);
        }
        segment.bytes += piece.len() as u64;
        if segment.bytes >= SEGMENT_BYTES {
            self.writer = None;
        }
        Ok(())
    }

    /// All of the oldest segment that can be read.
    fn read(&mut self) -> Vec<Spooled> {
        while let Some(&Segment { number, .. }) = self.segments.front() {
            if self.segments.len() == 1 {
                self.writer = None;
            }
            match self.repair(number) {
                Ok(records) if !records.is_empty() => return records,
                Ok(_) => self.forget(),
                Err(e) => {
                    // The others do not wait for it. If it is still there, the next process tries it.
                    let path = self.path(number, "spool");
                    tracing::error!("{}: what waits there cannot be read: {e}", path.display());
                    self.segments.pop_front();
                }
            }
        }
        Vec::new()
    }

    /// The oldest segment goes.
    fn forget(&mut self) {
        let Some(Segment { number, .. }) = self.segments.pop_front() else { return };
        let path = self.path(number, "spool");
        if let Err(e) = fs::remove_file(&path) {
            // Read by the next process it would be published once more, when Redis knows it no more.
            let emptied = OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(0));
            let emptied = if emptied.is_ok() { ", and was emptied" } else { "" };
            tracing::error!("{}: it is stored and cannot be deleted{emptied}: {e}", path.display());
        }
    }

    /// Keeps records where they are not read.
    fn set_aside(&mut self, records: &[Spooled]) -> io::Result<()> {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| encode(&mut bytes, record));
        let path = self.path(self.next, "refused");
        self.next += 1;
        let mut file = options().create_new(true).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    }

    /// The records of a segment. What cannot be read is set aside.
    fn repair(&self, number: u64) -> io::Result<Vec<Spooled>> {
        let path = self.path(number, "spool");
        let bytes = Bytes::from(fs::read(&path)?);
        let (records, valid) = parse(&bytes);
        if valid < bytes.len() {
            let (aside, count) = (self.path(number, "broken"), bytes.len() - valid);
            let kept = options().create(true).truncate(true).open(&aside).and_then(|mut file| {
                file.write_all(&bytes[valid..])?;
                file.sync_all()
            });
            // Of a crash in the middle of a write it is nothing that anybody was told of.
            let kept = kept.map_or_else(|e| format!("lost: {e}"), |()| "set aside".to_owned());
            OpenOptions::new().write(true).open(&path)?.set_len(valid as u64)?;
            let (path, aside) = (path.display(), aside.display());
            tracing::error!("{path}: its last {count} bytes cannot be read; {aside}: {kept}");
        }
        Ok(records)
    }

    fn path(&self, number: u64, what: &str) -> PathBuf {
        self.dir.join(file_name(number, what))
    }
}

fn file_name(number: u64, what: &str) -> String {
    format!("{number:012}.{what}")
}

/// What is published may be private.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn encode(out: &mut Vec<u8>, Spooled { channel, instance, item }: &Spooled) {
    let mut body = Vec::with_capacity(64 + channel.len() + item.bytes.len());
    body.put_u8(VERSION);
    body.put_u64(*instance);
    body.put_u64(item.number);
    let key = item.key.as_ref().map_or(&[][..], |KeyDigest(key)| key);
    // 0 or 16.
    body.put_u8(key.len() as u8);
    body.put_slice(key);
    put_text(&mut body, channel);
    body.put_slice(&item.bytes);
    // Publications are far shorter than 4 GiB.
    out.put_u32(body.len() as u32);
    out.put_slice(&Sha256::digest(&body)[..CHECK_BYTES]);
    out.put_slice(&body);
}

/// Records as far as they are whole, and how far that is.
fn parse(bytes: &Bytes) -> (Vec<Spooled>, usize) {
    let mut records = Vec::new();
    let mut rest = Reader(bytes.clone());
    let mut valid = 0;
    while let Some(record) = record(&mut rest) {
        records.push(record);
        valid = bytes.len() - rest.0.len();
    }
    (records, valid)
}

fn record(rest: &mut Reader) -> Option<Spooled> {
    let length = usize::try_from(rest.u32()?).ok()?;
    let check = rest.take(CHECK_BYTES)?;
    let body = rest.take(length)?;
    if Sha256::digest(&body)[..CHECK_BYTES] != check[..] {
        return None;
    }
    let mut body = Reader(body);
    if body.u8()? != VERSION {
        return None;
    }
    let (instance, number) = (body.u64()?, body.u64()?);
    let key = match body.u8()? {
        0 => None,
        length => Some(KeyDigest(body.take(length.into())?[..].try_into().ok()?)),
    };
    let channel = body.channel()?;
    Some(Spooled { channel, instance, item: Item { number, bytes: body.0, key } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spooled(number: u64) -> Spooled {
        let channel = ChannelName::new(if number.is_multiple_of(3) { "a" } else { "b" }).unwrap();
        let key = number.is_multiple_of(2).then_some(KeyDigest([7; 16]));
        let bytes = Bytes::from(format!("payload {number}"));
        Spooled { channel, instance: 9, item: Item { number, bytes, key } }
    }

    fn numbers(records: &[Spooled]) -> Vec<u64> {
        records.iter().map(|record| record.item.number).collect()
    }

    fn write(spool: &mut Spool, from: u64, to: u64) -> usize {
        let records: Vec<Spooled> = (from..to).map(spooled).collect();
        spool.write(&records).unwrap()
    }

    #[test]
    fn what_is_written_is_read_in_order_also_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it");
        let (mut spool, channels) = Spool::open(&path, 1 << 30).unwrap();
        assert!(channels.is_empty());
        assert_eq!(write(&mut spool, 0, 5), 5);
        assert_eq!(numbers(&spool.read()), [0, 1, 2, 3, 4]);
        // It is being read: what comes now stands elsewhere.
        assert_eq!(write(&mut spool, 5, 7), 2);
        assert_eq!(numbers(&spool.read()), [0, 1, 2, 3, 4]);
        let in_use = Spool::open(&path, 1 << 30).unwrap_err();
        assert_eq!(in_use.to_string(), "another process uses it");
        drop(spool);
        let (mut spool, channels) = Spool::open(&path, 1 << 30).unwrap();
        let counts: Vec<_> = channels.iter().map(|(name, count)| (&**name, *count)).collect();
        assert_eq!(counts, [("a", 3), ("b", 4)]);
        assert_eq!(write(&mut spool, 7, 8), 1);
        let mut all = Vec::new();
        loop {
            let records = spool.read();
            if records.is_empty() {
                break;
            }
            for (record, number) in records.iter().zip(all.len() as u64..) {
                assert_eq!(format!("{record:?}"), format!("{:?}", spooled(number)));
            }
            all.extend(numbers(&records));
            spool.forget();
        }
        assert_eq!(all, (0..8).collect::<Vec<_>>());
        assert_eq!((spool.bytes(), fs::read_dir(&path).unwrap().count()), (0, 1));
    }

    #[test]
    fn it_is_bounded_and_goes_in_segments() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, _) = Spool::open(dir.path(), 3 << 20).unwrap();
        let large = |number| {
            let mut record = spooled(number);
            record.item.bytes = Bytes::from(vec![b'x'; 300_000]);
            record
        };
        let records: Vec<Spooled> = (0..100).map(large).collect();
        let written = spool.write(&records).unwrap();
        assert_eq!(written, (3 << 20) / 300_080);
        assert!(spool.segments.len() == 3 && spool.bytes() <= 3 << 20);
        assert_eq!(spool.write(&records[..1]).unwrap(), 0);
        // What is shorter still has room, and what was read and went makes some.
        assert_eq!(spool.write(&[spooled(100)]).unwrap(), 1);
        let first = spool.read().len();
        spool.forget();
        assert_eq!(spool.write(&records).unwrap(), first);
    }

    #[test]
    fn what_a_crash_has_left_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, _) = Spool::open(dir.path(), 1 << 30).unwrap();
        // Of one length.
        spool.write(&[1, 3, 5].map(spooled)).unwrap();
        let path = spool.path(0, "spool");
        drop(spool);
        let whole = fs::read(&path).unwrap();
        let record = whole.len() / 3;
        for cut in [1, record - 1, record + 5] {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut spool, _) = Spool::open(dir.path(), 1 << 30).unwrap();
            let left = spool.read().len();
            assert_eq!(left, 2 - usize::from(cut > record), "{cut}");
            let aside = dir.path().join("000000000000.broken");
            assert!(!fs::read(&aside).unwrap().is_empty());
            assert_eq!(fs::metadata(&aside).unwrap().mode() & 0o777, 0o600);
            drop(spool);
            let mut broken = whole.clone();
            broken[record + cut] ^= 1;
            fs::write(&path, &broken).unwrap();
            let (mut spool, _) = Spool::open(dir.path(), 1 << 30).unwrap();
            assert!(spool.read().len() < 3);
        }
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut bytes = Vec::new();
        (0..3).for_each(|number| encode(&mut bytes, &spooled(number)));
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut other = bytes.clone();
                other[at] ^= flip;
                let (records, valid) = parse(&other.into());
                assert!(records.len() < 3 && valid < bytes.len());
            }
        }
    }

    #[test]
    fn what_others_do_in_the_directory_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["5.spool", "18446744073709551615.spool", "+7.spool", "000000000003.refused"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let (mut spool, channels) = Spool::open(dir.path(), 1 << 30).unwrap();
        assert!(channels.is_empty());
        // Numbers of what was set aside are not used again.
        assert_eq!((write(&mut spool, 0, 1), spool.segments[0].number), (1, 8));
        spool.set_aside(&[spooled(7)]).unwrap();
        assert!(fs::exists(dir.path().join("000000000009.refused")).unwrap());
        // A file that is gone is not written to any more, and not waited for.
        fs::remove_file(spool.path(8, "spool")).unwrap();
        assert!(spool.write(&[spooled(1)]).is_err());
        assert_eq!(write(&mut spool, 2, 3), 1);
        assert_eq!(numbers(&spool.read()), [2]);
    }

    #[test]
    fn a_disk_that_is_full_takes_nothing_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, _) = Spool::open(dir.path(), 1 << 30).unwrap();
        write(&mut spool, 0, 2);
        // A file that cannot be written to stands for the disk.
        spool.writer = Some(File::open(spool.path(0, "spool")).unwrap());
        let (written, _) = spool.write(&[spooled(2)]).unwrap_err();
        assert_eq!(written, 0);
        assert_eq!(write(&mut spool, 3, 4), 1);
        assert_eq!(numbers(&spool.read()), [0, 1]);
        spool.forget();
        assert_eq!(numbers(&spool.read()), [3]);
    }
}
