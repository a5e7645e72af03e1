//! A registry of its own for each test, and requests to it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for what must come. Never a measure of how fast it has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a log that nobody reads.
const LINES_MAX: usize = 100_000;
pub(crate) const KEY: &str = "0123456789abcdef-registry";

/// A registry that runs, and its directory, which outlives restarts.
pub(crate) struct Registry {
    pub(crate) dir: TempDir,
    pub(crate) address: SocketAddr,
    wrapped: Vec<String>,
    flags: Vec<String>,
    child: Child,
    lines: Receiver<String>,
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGFEED_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end.
pub(crate) fn ringfeed(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Registry {
    pub(crate) fn start(flags: &[&str]) -> Registry {
        Registry::start_in(tempfile::tempdir().unwrap(), flags)
    }

    pub(crate) fn start_in(dir: TempDir, flags: &[&str]) -> Registry {
        Registry::start_wrapped(dir, &[], flags)
    }

    /// By a program that executes it with these arguments in front of it.
    pub(crate) fn start_wrapped(dir: TempDir, wrapped: &[&str], flags: &[&str]) -> Registry {
        let wrapped: Vec<String> = wrapped.iter().map(|&word| word.to_owned()).collect();
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        std::fs::write(dir.path().join("key"), format!("{KEY}\n")).unwrap();
        let (child, address, lines) = launch(&dir, &wrapped, &flags, "127.0.0.1:0");
        Registry { dir, address, wrapped, flags, child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it the hard way and starts it again at the same address, with its file.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.launch();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn launch(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // Connections of before may hold the port for a moment.
        (self.child, self.address, self.lines) = loop {
            let listen = self.address.to_string();
            let launched =
                std::panic::catch_unwind(|| launch(&self.dir, &self.wrapped, &self.flags, &listen));
            match launched {
                Ok(launched) => break launched,
                Err(why) if Instant::now() > deadline => std::panic::resume_unwind(why),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(format!("-{name}")).arg(id).status().unwrap().success());
    }

    /// Ends it as an operator does; whether it ended well.
    pub(crate) fn terminate(&mut self) -> bool {
        self.signal("TERM");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "the registry did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a line of its log.
    pub(crate) fn wait_line(&self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no line of the log says {what:?}"));
            if line.contains(what) {
                return line;
            }
        }
    }

    /// Status and body of a request with the key.
    pub(crate) fn ask(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.ask_with(method, target, &format!("X-API-Key: {KEY}\r\n"), body);
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// The same with these header lines in the place of the key.
    pub(crate) fn ask_with(
        &self,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String) {
        http(self.address, method, target, headers, body)
    }

    /// Asks until the answer is as it must be.
    pub(crate) fn wait(&self, target: &str, what: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, body) = self.ask("GET", target, "");
            if what(&body) {
                return body;
            }
            assert!(Instant::now() < deadline, "{target} stays at {body}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(
    dir: &TempDir,
    wrapped: &[String],
    flags: &[String],
    listen: &str,
) -> (Child, SocketAddr, Receiver<String>) {
    let at = |name| dir.path().join(name);
    let mut command = match wrapped {
        [] => command(),
        [program, words @ ..] => {
            let mut outer = Command::new(program);
            outer.args(words).arg(env!("CARGO_BIN_EXE_ringfeed"));
            outer
        }
    };
    command.args(["registry", "serve"]);
    if !flags.iter().any(|flag| flag == "--listen") {
        command.args(["--listen", listen]);
    }
    if !flags.iter().any(|flag| flag == "--db") {
        command.arg("--db").arg(at("registry.db"));
    }
    if !flags.iter().any(|flag| flag == "--key-file") {
        command.arg("--key-file").arg(at("key"));
    }
    let mut child = command.args(flags).stderr(Stdio::piped()).spawn().unwrap();
    let (told, lines) = bounded(LINES_MAX);
    let log = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            let _ = told.send(line);
        }
    });
    let mut all = String::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                if let Some((_, address)) = line.split_once("listens at http://") {
                    return (child, address.trim().parse().unwrap(), lines);
                }
                all += &line;
                all += "\n";
            }
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the registry ended:\n{all}");
            }
        }
    }
}

/// One request over a connection of its own.
pub(crate) fn http(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let _ = write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{headers}\r\n{body}"
    );
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}
