//! A Redis of a test's own: a real one, which can be stopped, killed and started again.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use redis::{Connection, FromRedisValue};

use crate::common::PATIENCE;

/// Killed when dropped.
pub(crate) struct RedisServer {
    process: Option<Child>,
    dir: tempfile::TempDir,
    options: Vec<String>,
}

impl RedisServer {
    /// With these options on top of those of every test.
    pub(crate) fn start(options: &[&str]) -> RedisServer {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut server = RedisServer { process: None, dir, options };
        server.spawn();
        server
    }

    /// Starts it again, with what it has on its disk.
    pub(crate) fn spawn(&mut self) {
        self.spawn_with(&[]);
    }

    /// The same with more options, this time.
    pub(crate) fn spawn_with(&mut self, options: &[&str]) {
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.options)
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed (package redis-server)");
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        while let Err(e) = self.try_connection() {
            // It answers, even if it refuses.
            if !e.is_io_error() {
                break;
            }
            assert!(Instant::now() < deadline, "{e}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A connection to it, if it takes one.
    pub(crate) fn try_connection(&self) -> redis::RedisResult<Connection> {
        redis::Client::open(self.url())?.get_connection()
    }

    /// Asks it something.
    pub(crate) fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.try_connection().unwrap();
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection).unwrap()
    }

    /// Ends it, at once and without a word.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends it a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// What it has on its disk.
    pub(crate) fn dump(&self) -> PathBuf {
        self.dir.path().join("dump.rdb")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
