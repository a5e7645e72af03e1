//! A directory that files are dropped into: which are there, what is in one, and where those go that are not published.
//!
//! What stands there may be anybody's doing. Nothing is followed, nothing is read that is not a plain file of somebody who
//! may publish so, and nothing is written but into a directory of our own. All of it blocks: never call it on the control
//! thread itself.

use std::collections::BinaryHeap;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is behind the name of a file for the reason why it is not published.
const REASON: &str = ".reason";
/// Bits of a directory's mode: everybody may write to it; only who owns a file may rename or delete it.
const MODE_WORLD_WRITES: u32 = 0o002;
const MODE_STICKY: u32 = 0o1000;

/// A directory, and whose files are taken.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
    /// Where files go that are not published.
    rejected: PathBuf,
    /// Users whose files are taken, besides root and this process's own.
    owners: Vec<u32>,
    own: u32,
}

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    /// It cannot be looked at or into.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// It is something else.
    #[error("{0}: it is no directory")]
    NotDirectory(PathBuf),
    /// It is somebody's who may do there as they like.
    #[error(
        "{path}: it belongs to user {uid}; allowed are root, the user that this server runs as ({own}) and those of drop.owners"
    )]
    Owner { path: PathBuf, uid: u32, own: u32 },
    /// Everybody may do there as they like.
    #[error(
        "{path}: its mode is {mode:04o}, so that everybody may rename and delete what others put there; allowed are directories \
         that not everybody may write to (chmod o-w), or sticky ones (chmod +t)"
    )]
    Mode { path: PathBuf, mode: u32 },
}

/// What was found under a name.
#[derive(Debug)]
pub(super) enum Found {
    /// A file, with what tells it from all others that had its name.
    File { bytes: Vec<u8>, identity: String, modified: Option<SystemTime> },
    /// It is there no more.
    Gone,
    /// It cannot be read at present.
    Later(io::Error),
    /// It is never taken, and why.
    Never(String),
}

/// Names, in order.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) names: Vec<String>,
    /// There are more behind them.
    pub(super) is_cut: bool,
}

impl Directory {
    /// `rejected` is the name of the directory in it that files go to which are not published.
    pub(super) fn new(path: &str, rejected: &str, owners: Vec<u32>) -> io::Result<Directory> {
        let path = PathBuf::from(path);
        // The effective user: who the kernel asks about when files are opened.
        let own = fs::metadata("/proc/self")?.uid();
        Ok(Directory { rejected: path.join(rejected), path, owners, own })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn may_own(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own || self.owners.contains(&uid)
    }

    /// Whether what is there can be believed to be what those have put there who may.
    pub(super) fn check(&self) -> Result<(), DirectoryError> {
        let path = self.path.clone();
        let there = fs::metadata(&path).map_err(|e| DirectoryError::Io(path.clone(), e))?;
        let (uid, mode) = (there.uid(), there.mode() & 0o7777);
        if !there.is_dir() {
            return Err(DirectoryError::NotDirectory(path));
        }
        if !self.may_own(uid) {
            return Err(DirectoryError::Owner { path, uid, own: self.own });
        }
        if mode & MODE_WORLD_WRITES != 0 && mode & MODE_STICKY == 0 {
            return Err(DirectoryError::Mode { path, mode });
        }
        Ok(())
    }

    /// The first `most` names, in the order that `key` says; those that it says nothing of are none of ours.
    pub(super) fn list<K: Ord>(
        &self,
        most: usize,
        key: impl Fn(&str) -> Option<K>,
    ) -> Result<Listing, DirectoryError> {
        let failed = |e| DirectoryError::Io(self.path.clone(), e);
        let mut first: BinaryHeap<(K, String)> = BinaryHeap::new();
        let mut is_cut = false;
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
            let Some(key) = key(&name) else { continue };
            first.push((key, name));
            if first.len() > most {
                first.pop();
                is_cut = true;
            }
        }
        let names = first.into_sorted_vec().into_iter().map(|(_, name)| name).collect();
        Ok(Listing { names, is_cut })
    }

    /// What is under a name, if it has at most `bytes_max`.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> Found {
        let mut options = OpenOptions::new();
        // A link is not followed, and nobody is waited for at the other end of a pipe.
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let opened = options.open(self.path.join(name)).and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        let (file, metadata) = match opened {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Found::Gone,
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                return Found::Never("it is a symbolic link; those are not followed".into());
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Found::Never(format!(
                    "the user that the server runs as ({}) may not read it",
                    self.own
                ));
            }
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return not_plain(),
            Err(e) => return Found::Later(e),
        };
        if let Some(refused) = self.refused(&metadata, bytes_max) {
            return refused;
        }
        let mut bytes = Vec::new();
        match file.take(bytes_max + 1).read_to_end(&mut bytes) {
            Err(e) => Found::Later(e),
            // It has grown meanwhile.
            Ok(_) if bytes.len() as u64 > bytes_max => too_large(bytes.len() as u64, bytes_max),
            Ok(_) => Found::File {
                bytes,
                identity: format!(
                    "file-{:x}-{:x}-{:x}.{:x}",
                    metadata.dev(),
                    metadata.ino(),
                    metadata.mtime(),
                    metadata.mtime_nsec()
                ),
                modified: metadata.modified().ok(),
            },
        }
    }

    fn refused(&self, metadata: &Metadata, bytes_max: u64) -> Option<Found> {
        let (uid, names, len) = (metadata.uid(), metadata.nlink(), metadata.len());
        if !metadata.is_file() {
            return Some(not_plain());
        }
        if !self.may_own(uid) {
            return Some(Found::Never(format!(
                "it belongs to user {uid}; allowed are root, the user that the server runs as ({}) and those of drop.owners",
                self.own
            )));
        }
        if names > 1 {
            // Whoever may link to a file need not be allowed to read it.
            return Some(Found::Never(format!(
                "it has {names} names (hard links); allowed is one"
            )));
        }
        (len > bytes_max).then(|| too_large(len, bytes_max))
    }

    /// Deletes a file. One that is there no more is deleted.
    pub(super) fn delete(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Sets aside what is never published, with the reason beside it.
    pub(super) fn set_aside(&self, name: &str, why: &str) -> io::Result<()> {
        self.open_rejected()?;
        let reason = self.rejected.join(format!("{name}{REASON}"));
        // First, so that whatever is there has its reason, by which it is found again.
        File::create(&reason).and_then(|mut file| writeln!(file, "{why}"))?;
        let moved = fs::rename(self.path.join(name), self.rejected.join(name));
        if moved.is_err() {
            let _ = fs::remove_file(reason);
        }
        moved
    }

    /// Makes the directory for what is set aside, or sees that it is ours: what is written there would else go wherever
    /// somebody wants it.
    fn open_rejected(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.rejected) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
        let there = fs::symlink_metadata(&self.rejected)?;
        let is_ours = there.is_dir() && (there.uid() == self.own || there.uid() == 0);
        if is_ours && there.mode() & 0o022 == 0 {
            return Ok(());
        }
        let path = self.rejected.display();
        Err(io::Error::other(format!(
            "{path}: it must be a directory of the user that the server runs as ({}) that nobody else may write to",
            self.own
        )))
    }

    /// Deletes of what was set aside all but the newest `most`, and what is older than `age`. Returns how many.
    pub(super) fn forget(&self, most: usize, age: Duration) -> io::Result<u64> {
        let entries = match fs::read_dir(&self.rejected) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut aside: Vec<(SystemTime, String)> = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string().ok();
            // The reason was written when it was set aside.
            let Some(name) = name.as_deref().and_then(|name| name.strip_suffix(REASON)) else {
                continue;
            };
            let Ok(modified) = entry.metadata().and_then(|own| own.modified()) else { continue };
            aside.push((modified, name.to_owned()));
        }
        aside.sort_unstable();
        let (now, too_many) = (SystemTime::now(), aside.len().saturating_sub(most));
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|since| since > age);
        let goes =
            aside.iter().enumerate().filter(|(place, own)| *place < too_many || is_old(own.0));
        let mut forgotten = 0;
        for (_, (_, name)) in goes {
            let file = self.rejected.join(name);
            // A directory with something in it stays: whose it is nobody knows.
            let gone = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
            if gone.is_ok() || fs::symlink_metadata(&file).is_err() {
                fs::remove_file(self.rejected.join(format!("{name}{REASON}")))?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}

fn not_plain() -> Found {
    Found::Never("it is no plain file".into())
}

fn too_large(len: u64, bytes_max: u64) -> Found {
    Found::Never(format!("it has {len} bytes; allowed are {bytes_max} (api.body_bytes_max)"))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn directory(dir: &Path) -> Directory {
        Directory::new(dir.to_str().unwrap(), "rejected", vec![4_000_000]).unwrap()
    }

    #[test]
    fn a_directory_where_everybody_does_as_they_like_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let own = directory(dir.path());
        for (mode, good) in [(0o755, true), (0o770, true), (0o1777, true), (0o777, false)] {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let checked = own.check();
            assert_eq!(checked.is_ok(), good, "{mode:o}: {checked:?}");
            if let Err(e) = checked {
                let told = e.to_string();
                assert!(told.contains("0777") && told.contains("chmod +t"), "{told}");
            }
        }
        let nothing = directory(&dir.path().join("nothing")).check().unwrap_err();
        assert!(nothing.to_string().contains("nothing: No such file"), "{nothing}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(directory(&file).check().unwrap_err().to_string().contains("no directory"));
    }

    #[test]
    fn only_plain_files_with_one_name_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let own = directory(dir.path());
        let path = |name: &str| dir.path().join(name);
        fs::write(path("plain"), "1234").unwrap();
        symlink("/etc/hostname", path("link")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        fs::write(path("one"), "").unwrap();
        fs::hard_link(path("one"), path("two")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(made.success());
        assert!(matches!(own.read("plain", 4), Found::File { bytes, .. } if bytes == b"1234"));
        assert!(matches!(own.read("nothing", 4), Found::Gone));
        for (name, part) in [
            ("plain", "it has 4 bytes; allowed are 3"),
            ("link", "symbolic link"),
            ("dangling", "symbolic link"),
            ("directory", "no plain file"),
            ("two", "2 names"),
            ("socket", "no plain file"),
            ("pipe", "no plain file"),
        ] {
            match own.read(name, 3) {
                Found::Never(why) => assert!(why.contains(part), "{name}: {why}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn files_of_others_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let own = directory(dir.path());
        fs::write(dir.path().join("a"), "1").unwrap();
        // Only root may give files away.
        if own.own != 0 {
            return;
        }
        let give = |uid| std::os::unix::fs::chown(dir.path().join("a"), Some(uid), None).unwrap();
        give(4_000_001);
        match own.read("a", 10) {
            Found::Never(why) => assert!(why.contains("belongs to user 4000001"), "{why}"),
            other => panic!("{other:?}"),
        }
        give(4_000_000);
        assert!(matches!(own.read("a", 10), Found::File { .. }), "drop.owners has them");
    }

    #[test]
    fn what_is_set_aside_has_its_reason_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let own = directory(dir.path());
        assert_eq!(own.forget(0, Duration::ZERO).unwrap(), 0, "nothing ever was");
        let rejected = dir.path().join("rejected");
        for (name, age_s) in [("a", 300), ("b", 200), ("c", 100)] {
            symlink("nowhere", dir.path().join(name)).unwrap();
            own.set_aside(name, "it is a link").unwrap();
            let reason = File::options().append(true).open(rejected.join(format!("{name}.reason")));
            let then = SystemTime::now() - Duration::from_secs(age_s);
            reason.unwrap().set_modified(then).unwrap();
        }
        assert_eq!(fs::read_to_string(rejected.join("a.reason")).unwrap(), "it is a link\n");
        assert_eq!(own.forget(3, Duration::from_secs(250)).unwrap(), 1);
        assert_eq!(own.forget(1, Duration::from_secs(250)).unwrap(), 1);
        let mut left: Vec<_> =
            fs::read_dir(&rejected).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["c", "c.reason"]);
    }

    #[test]
    fn nothing_is_set_aside_into_somebody_elses_directory() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = directory(dir.path());
        fs::write(dir.path().join("a"), "1").unwrap();
        symlink(other.path(), dir.path().join("rejected")).unwrap();
        let refused = own.set_aside("a", "why").unwrap_err();
        assert!(refused.to_string().contains("must be a directory of the user"), "{refused}");
        assert!(fs::read_dir(other.path()).unwrap().next().is_none());
        assert!(dir.path().join("a").exists());
    }

    #[test]
    fn names_are_listed_in_order_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["3.json", "1.json", ".4.json", "2.json", "readme"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let own = directory(dir.path());
        let key = |name: &str| {
            (name.ends_with(".json") && !name.starts_with('.')).then(|| name.to_owned())
        };
        let listing = own.list(10, key).unwrap();
        assert_eq!((listing.names.len(), listing.is_cut), (3, false));
        let listing = own.list(2, key).unwrap();
        assert_eq!((listing.names, listing.is_cut), (vec!["1.json".into(), "2.json".into()], true));
    }
}
