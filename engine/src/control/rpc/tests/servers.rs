//! Database servers of Debian, each started for one test in a directory of its own, with a socket there and no port.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Who runs a server where the test runs as root, as whom none of them runs: nobody.
const NOBODY: u32 = 65_534;

/// A server that runs, and its directory.
struct Server {
    process: Child,
    dir: tempfile::TempDir,
}

/// A program as whoever servers are run by.
fn program(path: &Path, dir: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        let id = NOBODY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir(dir).stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("rf").tempdir_in("/tmp").unwrap();
    if is_root() {
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    dir
}

/// Runs one that prepares something, to its end.
fn prepare(mut command: Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Server {
    /// Waits until it says that it is ready.
    fn start(mut command: Command, dir: tempfile::TempDir, ready: &str) -> Server {
        let mut process = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap());
        let mut all = String::new();
        loop {
            let from = all.len();
            assert!(said.read_line(&mut all).unwrap() > 0, "{command:?} has ended:\n{all}");
            if all[from..].contains(ready) {
                break;
            }
        }
        // Whoever does not read it stops it in the end.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Server { process, dir }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What it does not write any more is deleted with its directory.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The first of these that is there.
fn find(candidates: impl IntoIterator<Item = PathBuf>, package: &str) -> Option<PathBuf> {
    let found = candidates.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: install the package {package} to try this database");
    }
    found
}

pub(super) struct Postgres(Server);

impl Postgres {
    /// `None`, with a word why, where it is not installed.
    pub(super) fn start() -> Option<Postgres> {
        // Debian has versions beside each other, and none of them in the path.
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let mut versions: Vec<PathBuf> =
            versions.filter_map(|entry| Some(entry.ok()?.path())).collect();
        versions.sort();
        let candidates = versions.iter().rev().map(|version| version.join("bin/postgres"));
        let postgres = find(candidates, "postgresql")?;
        let dir = directory();
        let data = dir.path().join("data");
        let mut initdb = program(&postgres.with_file_name("initdb"), dir.path());
        initdb.args(["--auth=trust", "--username=ringfeed", "--encoding=UTF8", "--no-sync", "-D"]);
        initdb.arg(&data);
        prepare(initdb);
        let mut command = program(&postgres, dir.path());
        command.args(["-F", "-h", "", "-D"]).arg(&data).arg("-k").arg(dir.path());
        Some(Postgres(Server::start(command, dir, "ready to accept connections")))
    }

    pub(super) fn url(&self) -> String {
        format!("postgres://ringfeed@localhost/postgres?host={}", self.0.dir.path().display())
    }
}

pub(super) struct MariaDb(Server);

impl MariaDb {
    /// `None`, with a word why, where it is not installed.
    pub(super) fn start() -> Option<MariaDb> {
        let mariadbd = find([PathBuf::from("/usr/sbin/mariadbd")], "mariadb-server")?;
        let dir = directory();
        let data = format!("--datadir={}", dir.path().join("data").display());
        let mut install = program(Path::new("/usr/bin/mariadb-install-db"), dir.path());
        install.args([
            "--no-defaults",
            &data,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]);
        prepare(install);
        let mut command = program(&mariadbd, dir.path());
        let socket = format!("--socket={}", dir.path().join("socket").display());
        command.args(["--no-defaults", &data, &socket, "--skip-networking", "--skip-grant-tables"]);
        command.args(["--pid-file=pid", "--innodb-flush-log-at-trx-commit=0"]);
        Some(MariaDb(Server::start(command, dir, "ready for connections")))
    }

    pub(super) fn url(&self) -> String {
        format!(
            "mysql://root@localhost/mysql?socket={}",
            self.0.dir.path().join("socket").display()
        )
    }
}
