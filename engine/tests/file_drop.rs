//! Messages that are left as files while nothing can be reached, and what a server makes of them.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long a test waits for what must come. Never a measure of how fast it has to come.
const PATIENCE: Duration = Duration::from_secs(60);
const EVERY: &str = "drop.interval_ms=10";

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGFEED_") {
            command.env_remove(name);
        }
    }
    command
}

fn publish(args: &[&str]) -> Output {
    command().arg("publish").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server that does not outlive its test.
struct Server {
    child: Child,
    public: String,
    internal: String,
    // Closed, it would end what is said there.
    _log: Option<BufReader<ChildStderr>>,
    config: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CONFIG: &str = "[[channels]]\npattern = \"*\"\nhistory_size = 100000\n";

/// Runs a server until it says where it listens; or all it said, if it ended instead.
fn launch(flags: &[&str]) -> Result<Server, String> {
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("test.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let mut command = command();
    command.args(["serve", "--port", "0", "--config", file.to_str().unwrap()]);
    for flag in
        ["api.listen=127.0.0.1:0", "server.pin=false", "server.shards=2", EVERY].iter().chain(flags)
    {
        command.args(["--set", flag]);
    }
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let (public, internal) = (String::new(), String::new());
    let mut server = Server { child, public, internal, _log: None, config };
    let mut log = BufReader::new(server.child.stderr.take().unwrap());
    let mut said = String::new();
    loop {
        let mut line = String::new();
        if log.read_line(&mut line).unwrap() == 0 {
            assert_eq!(server.child.wait().unwrap().code(), Some(1), "{said}");
            return Err(said);
        }
        if let Some((_, address)) = line.trim().split_once("connect to ws://") {
            server.public = address.trim_end_matches("/ws").to_owned();
        }
        if let Some((_, address)) = line.trim().split_once("metrics at http://") {
            server.internal = address.to_owned();
            server._log = Some(log);
            return Ok(server);
        }
        said += &line;
    }
}

fn serve(dir: &Path, flags: &[&str]) -> Server {
    let drop = format!("drop.dir={}", dir.to_str().unwrap());
    let flags: Vec<&str> = [drop.as_str()].into_iter().chain(flags.iter().copied()).collect();
    launch(&flags).unwrap_or_else(|log| panic!("the server ended:\n{log}"))
}

impl Server {
    fn http(&self, method: &str, target: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.internal).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// What a channel has, in order.
    fn history(&self, channel: &str) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let target = format!("/api/history?channel={channel}&limit=1000&after={after}");
            let page: Value = serde_json::from_str(&self.http("GET", &target, "")).unwrap();
            let Some(publications) = page["publications"].as_array() else { return all };
            let Some(last) = publications.last() else { return all };
            after = last["offset"].as_u64().unwrap();
            all.extend(publications.iter().map(|own| own["data"].clone()));
        }
    }

    fn metric(&self, line: &str) -> u64 {
        let metrics = self.http("GET", "/metrics", "");
        let value = metrics.lines().find_map(|own| own.strip_prefix(line)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {line} in:\n{metrics}")).parse::<f64>().unwrap() as u64
    }
}

fn wait_until<T: std::fmt::Debug>(look: impl Fn() -> T, what: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if what(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "it stays at {seen:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Names in a directory but those that begin with a dot.
fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

fn dropped(dir: &Path, name: &str, text: &str) {
    let unfinished = dir.join(format!(".{name}"));
    std::fs::write(&unfinished, text).unwrap();
    std::fs::rename(unfinished, dir.join(name)).unwrap();
}

/// An address at which nothing answers.
fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn what_could_not_be_published_is_once_a_server_is_there_in_order_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (drop, api) = (dir.path().to_str().unwrap(), nowhere());
    for data in ["1", "{\"a\": [2]}", "three"] {
        let left = publish(&["--api", &api, "--drop", drop, "orders", data]);
        assert_eq!(left.status.code(), Some(0), "{}", text(&left.stderr));
        let told: Value = serde_json::from_slice(&left.stdout).unwrap();
        assert_eq!(told["ack"], "spooled", "{told}");
        let file = Path::new(told["file"].as_str().unwrap());
        assert_eq!(file.parent(), Some(dir.path()));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o007, 0, "others read it");
    }
    // The variable does as the flag; one that was taken before its answer got lost has its key.
    let left = command()
        .env("RINGFEED_DROP_DIR", drop)
        .args(["publish", "--api", &api, "--key", "k", "orders", "4"])
        .output()
        .unwrap();
    assert!(left.status.success(), "{}", text(&left.stderr));
    let last = names(dir.path()).pop_last().unwrap();
    let again = std::fs::read_to_string(dir.path().join(last)).unwrap();
    let server = serve(dir.path(), &[]);
    let all = [json!(1), json!({"a": [2]}), json!("three"), json!(4)];
    wait_until(|| server.history("orders"), |seen| seen[..] == all);
    wait_until(|| names(dir.path()), BTreeSet::is_empty);
    dropped(dir.path(), "again.json", &again);
    wait_until(|| names(dir.path()), BTreeSet::is_empty);
    assert_eq!(server.history("orders"), all);
    assert_eq!(server.metric("ringfeed_drop_files_total{outcome=\"published\"}"), 5);
    assert_eq!(server.metric("ringfeed_drop_duplicates_total"), 1);
    // With a server there nothing is left.
    let published = publish(&["--api", &server.internal, "--drop", drop, "orders", "5"]);
    assert!(text(&published.stdout).contains("\"ack\":\"accepted\""));
    assert_eq!(server.history("orders").len(), 5);
}

#[test]
fn what_is_refused_is_not_left_and_what_has_no_answer_is() {
    let dir = tempfile::tempdir().unwrap();
    let drop = dir.path().to_str().unwrap();
    let answering = |answer: &'static str| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // All of it, or closing would take the answer with it.
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let done = publish(&["--api", &address, "--drop", drop, "a", "1"]);
        answers.join().unwrap();
        done
    };
    for (answer, code, left) in [
        ("HTTP/1.1 400 Bad Request\r\n\r\n{\"error\":\"bad_command\"}", 1, 0),
        ("HTTP/1.1 401 Unauthorized\r\n\r\n{}", 1, 0),
        ("HTTP/1.1 200 OK\r\n\r\n{\"ack\":\"accepted\"}", 0, 0),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"busy\"}", 0, 1),
        ("", 0, 2),
    ] {
        let done = answering(answer);
        assert_eq!(done.status.code(), Some(code), "{answer}: {}", text(&done.stderr));
        assert_eq!(names(dir.path()).len(), left, "{answer}");
    }
    // What a server would set aside is refused while somebody is there to be told.
    let bad = publish(&["--api", &nowhere(), "--drop", drop, "a b", "1"]);
    assert_eq!(bad.status.code(), Some(1));
    let nothing = publish(&["--api", &nowhere(), "--drop", "/does/not/exist", "a", "1"]);
    let told = text(&nothing.stderr);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(told.contains("no server answers") && told.contains("/does/not/exist"), "{told}");
    assert_eq!(publish(&["--key", "", "a", "1"]).status.code(), Some(2));
    let help = text(&publish(&["--help"]).stdout);
    assert!(help.contains("Exit status: 0 published, queued or spooled; 1 refused"), "{help}");
    assert_eq!(names(dir.path()).len(), 2);
}

#[test]
fn files_that_say_nothing_are_set_aside_with_the_reason_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{{\"channel\":\"a\",\"text\":\"{}\"}}", "x".repeat(2000));
    let good = r#"{"channel":"a","data":"good"}"#;
    let files = [
        ("1.json", r#"{"channel":"a","data":"#, "EOF"),
        ("2.json", r#"{"channel":"a","data":1,"datum":2}"#, "datum"),
        ("3.json", r#"{"channel":"a b","data":1}"#, "white space"),
        ("4.json", long.as_str(), "allowed are 1024 (api.body_bytes_max)"),
        ("5.json", good, ""),
        ("6.json", "[]", "begins with '{'"),
    ];
    for (name, text, _) in files {
        dropped(dir.path(), name, text);
    }
    std::fs::write(dir.path().join(".7.json"), good).unwrap();
    std::fs::write(dir.path().join("readme"), good).unwrap();
    let server = serve(dir.path(), &["api.body_bytes_max=1024"]);
    wait_until(|| names(dir.path()), |left| *left == ["readme", "rejected"].map(Into::into).into());
    assert_eq!(server.history("a"), [json!("good")]);
    let rejected = dir.path().join("rejected");
    assert_eq!(rejected.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for (name, said, part) in files.into_iter().filter(|(_, _, part)| !part.is_empty()) {
        let reason = std::fs::read_to_string(rejected.join(format!("{name}.reason"))).unwrap();
        assert!(reason.contains(part), "{name}: {reason}");
        assert_eq!(std::fs::read_to_string(rejected.join(name)).unwrap(), said);
    }
    assert_eq!(server.metric("ringfeed_drop_files_total{outcome=\"rejected\"}"), 5);
    drop(server);
    // Only so many are kept, and what goes is counted.
    dropped(dir.path(), "8.json", "{}");
    let server = serve(dir.path(), &["drop.rejected_max=2"]);
    wait_until(|| names(&rejected), |left| left.len() == 4 && left.contains("8.json"));
    assert_eq!(server.metric("ringfeed_drop_files_total{outcome=\"forgotten\"}"), 4);
}

#[test]
fn links_and_pipes_are_set_aside_unread() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = other.path().join("secret.json");
    std::fs::write(&secret, r#"{"channel":"a","data":"secret"}"#).unwrap();
    symlink(&secret, dir.path().join("1.json")).unwrap();
    std::fs::hard_link(&secret, dir.path().join("2.json")).unwrap();
    let pipe = dir.path().join("3.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    dropped(dir.path(), "4.json", r#"{"channel":"a","data":"good"}"#);
    let server = serve(dir.path(), &[]);
    wait_until(|| names(dir.path()), |left| *left == ["rejected"].map(Into::into).into());
    assert_eq!(server.history("a"), [json!("good")]);
    for (name, part) in [("1", "symbolic link"), ("2", "2 names"), ("3", "no plain file")] {
        let reason = dir.path().join(format!("rejected/{name}.json.reason"));
        let reason = std::fs::read_to_string(reason).unwrap();
        assert!(reason.contains(part), "{name}: {reason}");
    }
    assert!(secret.exists());
}

#[test]
fn a_directory_that_is_not_to_be_trusted_or_not_there_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    for (path, part) in [
        (dir.path().to_str().unwrap(), "its mode is 0777"),
        ("/does/not/exist", "No such file"),
        ("/etc/hostname", "no directory"),
    ] {
        let said = launch(&[&format!("drop.dir={path}")]).map(|_| ()).unwrap_err();
        assert!(said.contains("drop.dir: ") && said.contains(part), "{path}: {said}");
    }
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    serve(dir.path(), &[]);
}

#[test]
fn what_is_not_taken_at_present_stays_and_what_is_behind_it_on_its_channel_waits() {
    let dir = tempfile::tempdir().unwrap();
    // One, and one more that the shard may have.
    let server = serve(dir.path(), &["server.shards=1"]);
    let configure = |channels_max: u32| {
        let file = server.config.path().join("test.toml");
        std::fs::write(file, format!("[limits]\nchannels_max = {channels_max}\n{CONFIG}")).unwrap();
        let before = server.metric("ringfeed_reloads_total{outcome=\"taken\"}");
        let told = Command::new("kill").args(["-HUP", &server.child.id().to_string()]).status();
        assert!(told.unwrap().success());
        let taken = || server.metric("ringfeed_reloads_total{outcome=\"taken\"}");
        wait_until(taken, |&now| now > before);
    };
    configure(1);
    for (number, channel) in ["x", "y", "late", "x", "late", "late", "y"].into_iter().enumerate() {
        let said = format!("{{\"channel\":\"{channel}\",\"data\":{number}}}");
        dropped(dir.path(), &format!("{number}.json"), &said);
    }
    wait_until(|| names(dir.path()), |left| *left == [2, 4, 5].map(|n| format!("{n}.json")).into());
    wait_until(|| server.metric("ringfeed_drop_kept_total"), |&kept| kept >= 2);
    assert_eq!(server.metric("ringfeed_drop_failed"), 0);
    assert_eq!(server.metric("ringfeed_drop_files_total{outcome=\"published\"}"), 4);
    assert_eq!(
        (server.history("x"), server.history("y")),
        (vec![json!(0), json!(3)], vec![json!(1), json!(6)])
    );
    configure(1000);
    wait_until(|| names(dir.path()), BTreeSet::is_empty);
    assert_eq!(server.history("late"), [2, 4, 5].map(|n| json!(n)));
}

#[test]
fn ten_thousand_files_keep_nobody_waiting() {
    const FILES: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let said = format!("{{\"channel\":\"a{}\",\"data\":{number}}}", number % 2);
        std::fs::write(dir.path().join(format!("{number:05}.json")), said).unwrap();
    }
    let server = serve(dir.path(), &[]);
    // It comes between them, though they were there before.
    wait_until(|| server.http("GET", "/api/channels", ""), |page| page.contains("\"a0\""));
    server.http("POST", "/api/publish", r#"{"channel":"a0","data":"now"}"#);
    wait_until(|| names(dir.path()).len(), |&left| left == 0);
    let all = server.history("a0");
    let place = all.iter().position(|data| data == "now").unwrap();
    assert!(place < FILES / 2, "behind all of them");
    let numbers = |all: Vec<Value>| all.into_iter().filter_map(|data| data.as_u64());
    assert!(numbers(all).eq((0..FILES as u64).step_by(2)));
    assert!(numbers(server.history("a1")).eq((1..FILES as u64).step_by(2)));
}

#[test]
fn after_a_kill_all_files_that_are_left_come_in_order() {
    const FILES: u64 = 5000;
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), &[]);
    let url = format!("ws://{}/ws?protocol=raw.v1", server.public);
    let stream = TcpStream::connect(&server.public).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut client, _) = tungstenite::client(url, stream).unwrap();
    client.send(r#"{"action":"subscribe","channel":"a"}"#.into()).unwrap();
    wait_until(|| server.http("GET", "/api/channels", ""), |page| page.contains("\"a\""));
    // Written while they come, so that some are left.
    let own = dir.path().to_owned();
    let writes = std::thread::spawn(move || {
        for number in 0..FILES {
            let said =
                format!("{{\"channel\":\"a\",\"data\":{number},\"idempotency_key\":\"{number}\"}}");
            dropped(&own, &format!("{number:05}.json"), &said);
        }
    });
    let mut came = Vec::new();
    while let Ok(message) = client.read() {
        if message.is_text() {
            came.push(message.into_text().unwrap().parse::<u64>().unwrap());
        }
        if came.len() == 100 {
            server.child.kill().unwrap();
        }
    }
    assert!(came.iter().copied().eq(0..came.len() as u64), "in order, each once: {came:?}");
    writes.join().unwrap();
    let left = names(dir.path());
    assert!(!left.is_empty(), "it was to be killed before the end");
    let server = serve(dir.path(), &[]);
    wait_until(|| names(dir.path()), BTreeSet::is_empty);
    let then: Vec<u64> = server.history("a").iter().map(|data| data.as_u64().unwrap()).collect();
    let first = left.first().unwrap().trim_end_matches(".json").parse::<u64>().unwrap();
    assert!(then.iter().copied().eq(first..FILES), "in order, each once");
}
