//! The `ringfeed` binary as an operator meets it.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a test waits for what must come. Never a measure of how fast it has to come.
const PATIENCE: Duration = Duration::from_secs(60);

fn ringfeed(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// The same with variables of the environment.
fn ringfeed_with(environment: &[(&str, &str)], args: &[&str]) -> Output {
    command(args).envs(environment.iter().copied()).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    // What is set for the tests themselves means nothing to the server, which would say so.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGFEED_") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl std::ops::Deref for Running {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// A server on free ports, and the addresses it logged: public, internal.
fn serve(extra: &[&str]) -> (Running, String, String, BufReader<ChildStderr>) {
    serve_with(&[], extra)
}

/// The same with variables of the environment.
fn serve_with(
    environment: &[(&str, &str)],
    extra: &[&str],
) -> (Running, String, String, BufReader<ChildStderr>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    command.envs(environment.iter().copied());
    let (child, log, told) = launch(command.args(FREE_PORTS).args(extra));
    let (public, internal) = told.unwrap_or_else(|log| panic!("the server ended:\n{log}"));
    (child, public, internal, log)
}

const FREE_PORTS: [&str; 9] = [
    "serve",
    "--port",
    "0",
    "--set",
    "api.listen=127.0.0.1:0",
    "--set",
    "server.shards=1",
    "--set",
    "server.pin=false",
];

/// Runs a server until it has said where it listens; or all it said, if it ended instead.
fn launch(
    command: &mut Command,
) -> (Running, BufReader<ChildStderr>, Result<(String, String), String>) {
    let mut child = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let (mut said, mut public) = (String::new(), String::new());
    loop {
        let mut line = String::new();
        if log.read_line(&mut line).unwrap() == 0 {
            return (child, log, Err(said));
        }
        if let Some((_, address)) = line.trim().split_once("connect to ws://") {
            public = address.trim_end_matches("/ws").to_owned();
        }
        if let Some((_, address)) = line.trim().split_once("metrics at http://") {
            return (child, log, Ok((public, address.to_owned())));
        }
        said += &line;
    }
}

/// The end of a process that must come to one.
fn ended(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "the server did not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    assert!(status.unwrap().success());
}

#[test]
fn the_printed_defaults_are_a_valid_configuration() {
    let defaults = ringfeed(&["default-config"]);
    assert!(defaults.status.success());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, &defaults.stdout).unwrap();
    let checked = ringfeed(&["check-config", "--config", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

#[test]
fn a_bad_configuration_is_refused_before_any_port_is_opened() {
    let wrong = ["serve", "--set", "server.shards=x", "--set", "nothing.at=all"];
    let refused = ringfeed(&wrong);
    assert_eq!(refused.status.code(), Some(1));
    let errors = text(&refused.stderr);
    assert!(errors.contains("2 problems"), "{errors}");
    assert!(errors.contains("server.shards = \"x\": allowed are 0 to 256"), "{errors}");
    assert!(errors.contains("no such section; known are"), "{errors}");
    let missing = ringfeed(&["check-config", "--config", "/does/not/exist"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/does/not/exist"));
}

#[test]
fn publish_reaches_a_running_server_and_sigterm_ends_it_with_0() {
    let (mut child, _, internal, _log) = serve_with(&[("RINGFEED_API__KEYS", "k")], &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "k\n").unwrap();
    let file = file.to_str().unwrap();
    let publish = |args: &[&str]| {
        let mut all = vec!["publish", "--api", &internal];
        all.extend(args);
        ringfeed(&all)
    };
    let refused = publish(&["news", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("401"), "{}", text(&refused.stderr));
    let published = publish(&["--api-key-file", file, "news", "{\"a\":1}"]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    assert!(text(&published.stdout).contains("\"ack\":\"accepted\""));
    let bad = publish(&["--api-key-file", file, "a b", "plain text"]);
    assert!(text(&bad.stderr).contains("bad_channel"), "{}", text(&bad.stderr));
    signal(&child, "TERM");
    assert_eq!(ended(&mut child).code(), Some(0));
    let gone = publish(&["--api-key-file", file, "news", "1"]);
    assert!(text(&gone.stderr).contains("no server answers"), "{}", text(&gone.stderr));
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    // A peer that never answers would hold the drain for a minute.
    let flags =
        ["--set", "server.close_timeout_ms=60000", "--set", "server.drain_timeout_ms=60000"];
    let (mut child, public, _, mut log) = serve(&flags);
    let mut deaf = std::net::TcpStream::connect(&public).unwrap();
    let handshake =
        ringfeed_protocol::handshake::ClientHandshake::new(&public, "/ws", None, [1; 16]);
    std::io::Write::write_all(&mut deaf, handshake.request()).unwrap();
    std::io::Read::read_exact(&mut deaf, &mut [0; 12]).unwrap();
    signal(&child, "TERM");
    let mut line = String::new();
    while !line.contains("draining") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    signal(&child, "TERM");
    assert_eq!(ended(&mut child).code(), Some(130));
}

#[test]
fn signals_that_ask_for_nothing_end_nothing() {
    let (mut child, _, internal, mut log) = serve(&[]);
    for (name, said) in [
        ("HUP", "reload: the configuration holds from now on"),
        ("USR1", "SIGUSR1 is ignored"),
        ("USR2", "SIGUSR2 is ignored"),
        ("ALRM", "SIGALRM is ignored"),
    ] {
        signal(&child, name);
        let mut line = String::new();
        while !line.contains(said) {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "SIG{name} ended the server");
        }
    }
    let published = ringfeed(&["publish", "--api", &internal, "news", "1"]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn secrets_are_not_taken_from_arguments() {
    for (key, variable) in
        [("api.keys", "RINGFEED_API__KEYS"), ("hooks.secret", "RINGFEED_HOOKS__SECRET")]
    {
        for command in ["check-config", "serve"] {
            let refused = ringfeed(&[command, "--set", &format!(" {key} =hush")]);
            let told = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(1), "{told}");
            assert!(told.contains(&format!("--set {key}: ")) && told.contains(variable), "{told}");
            assert!(!told.contains("hush"), "{told}");
        }
    }
    let set = ["check-config", "--set", "hooks.secret_env=S"];
    assert!(ringfeed_with(&[("S", "hush")], &set).status.success());
    assert_eq!(ringfeed(&["publish", "--api-key", "hush", "a", "1"]).status.code(), Some(2));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    for (content, why) in [("\n", "it is empty"), ("hu sh", "visible ASCII")] {
        std::fs::write(&file, content).unwrap();
        let refused = ringfeed(&["publish", "--api-key-file", file.to_str().unwrap(), "a", "1"]);
        let told = text(&refused.stderr);
        assert!(told.contains(why) && !told.contains("hu sh"), "{told}");
    }
}

#[test]
fn requests_are_logged_with_vv_and_keys_never() {
    let (mut child, _, internal, mut log) =
        serve_with(&[("RINGFEED_API__KEYS", "hush-hush")], &["-vv"]);
    let publish = |key: &str| {
        ringfeed_with(&[("RINGFEED_API_KEY", key)], &["publish", "--api", &internal, "n", "1"])
    };
    assert!(!publish("hush-wrong").status.success());
    assert!(publish("hush-hush").status.success());
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut lines = String::new();
    std::io::Read::read_to_string(&mut log, &mut lines).unwrap();
    for part in [
        "POST /api/publish from 127.0.0.1: no key that fits",
        "API: POST /api/publish 401",
        "API: POST /api/publish 200",
    ] {
        assert!(lines.contains(part), "{part:?} is not in:\n{lines}");
    }
    assert!(!lines.contains("hush"), "{lines}");
}

#[test]
fn a_server_whose_log_goes_nowhere_still_drains() {
    let (mut child, _, _, log) = serve(&[]);
    drop(log);
    signal(&child, "TERM");
    assert_eq!(ended(&mut child).code(), Some(0));
}

/// Refuses io_uring as container runtimes do.
const WITHOUT_IO_URING: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/without_io_uring.py");

#[test]
fn a_kernel_that_refuses_io_uring_is_named_as_the_reason() {
    let output = Command::new(WITHOUT_IO_URING)
        .args([env!("CARGO_BIN_EXE_ringfeed"), "serve", "--port", "0"])
        .args(["--set", "api.listen=127.0.0.1:0", "--set", "server.io=io_uring"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let errors = text(&output.stderr);
    assert!(errors.contains("io_uring is not usable here: io_uring_setup"), "{errors}");
    assert!(errors.contains("seccomp"), "{errors}");
}

#[test]
fn the_example_configurations_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "0123456789abcdef0123456789abcdef";
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples");
    for example in std::fs::read_dir(examples).unwrap() {
        let example = example.unwrap().path();
        let name = example.file_name().unwrap().to_str().unwrap();
        // Their secrets are elsewhere here.
        let text = std::fs::read_to_string(&example).unwrap();
        for place in text.split("\"/etc/ringfeed/").skip(1) {
            std::fs::write(dir.path().join(place.split('"').next().unwrap()), secret).unwrap();
        }
        let text = text.replace("/etc/ringfeed", dir.path().to_str().unwrap());
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
        command.env_clear().env("JWT_SECRET", secret).args(["check-config", "--config"]);
        let output = command.arg(&file).output().unwrap();
        assert!(output.status.success(), "{name}: {}", self::text(&output.stderr));
        assert!(output.stderr.is_empty(), "{name}: {}", self::text(&output.stderr));
    }
}

#[test]
fn the_tuned_configurations_are_valid() {
    for cores in [2, 8, 32, 64] {
        let file = format!("{}/../config/cores-{cores}.toml", env!("CARGO_MANIFEST_DIR"));
        let checked = ringfeed(&["check-config", "--config", &file]);
        assert!(checked.status.success(), "{cores}: {}", text(&checked.stderr));
    }
}

#[test]
fn every_command_has_help_and_unknown_ones_are_refused() {
    for command in
        ["serve", "check-config", "default-config", "publish", "token", "version", "completions"]
    {
        let help = ringfeed(&[command, "--help"]);
        assert!(help.status.success() && text(&help.stdout).contains("Usage:"), "{command}");
    }
    assert_eq!(ringfeed(&["dance"]).status.code(), Some(2));
    assert!(text(&ringfeed(&["version"]).stdout).contains("everything needed is there"));
    assert!(text(&ringfeed(&["openapi"]).stdout).contains("/api/publish"));
}

/// Runs a command with so many bytes of locked memory, which root is otherwise not held to.
fn with_locked_memory(bytes: u32) -> Command {
    let limit = format!("--memlock={bytes}:{bytes}");
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = Command::new(if root { "setpriv" } else { "prlimit" });
    if root {
        command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit"]);
    }
    command.arg(limit);
    command
}

#[test]
fn a_server_that_cannot_make_all_its_rings_ends_before_it_says_that_it_serves() {
    // Each shard makes a ring for its sockets and one for its executor: somewhere between these the first
    // one is granted and a later one is refused, on kernels that count rings as locked memory.
    for kib in [256, 512, 768, 1000, 1200, 1500, 1800, 2200] {
        let mut command = with_locked_memory(kib << 10);
        command.arg(env!("CARGO_BIN_EXE_ringfeed")).args(FREE_PORTS);
        let (mut child, mut log, told) =
            launch(command.args(["--set", "server.shards=2", "--set", "server.io=io_uring"]));
        match told {
            Ok(_) => {
                signal(&child, "TERM");
                let status = ended(&mut child);
                let mut rest = String::new();
                log.read_to_string(&mut rest).unwrap();
                assert_eq!(
                    status.code(),
                    Some(0),
                    "{kib} KiB: it said that it serves, then:\n{rest}"
                );
            }
            Err(said) => {
                assert_eq!(ended(&mut child).code(), Some(1), "{kib} KiB: {said}");
                assert!(said.contains("ocked memory") || said.contains("MEMLOCK"), "{said}");
            }
        }
    }
}

#[test]
fn a_port_that_is_taken_is_told_once_and_first() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = address.port().to_string();
    for (key, flags) in [
        ("server.listen", ["--port", &port, "--set", "api.listen=127.0.0.1:0"]),
        ("api.listen", ["--port", "0", "--set", &format!("api.listen={address}")]),
    ] {
        let refused = ringfeed(&[&["serve"], &flags[..]].concat());
        assert_eq!(refused.status.code(), Some(1));
        let errors = text(&refused.stderr);
        assert!(errors.contains(&format!("{key} = {address}")), "{errors}");
        assert_eq!(errors.matches("Address already in use").count(), 1, "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

#[test]
fn too_few_descriptors_are_told_at_the_start() {
    let mut command = Command::new("prlimit");
    command.args(["--nofile=256:256", env!("CARGO_BIN_EXE_ringfeed")]).args(FREE_PORTS);
    let mut child = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("ulimit -n is 256") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the server ended");
        assert!(!line.contains("metrics at http://"), "it serves without a word about them");
    }
    assert!(line.contains("WARN") && line.contains("`ulimit -n "), "{line}");
    while !line.contains("metrics at http://") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the server ended");
    }
    signal(&child, "TERM");
    assert_eq!(ended(&mut child).code(), Some(0));
}

#[test]
fn names_and_urls_are_addresses_too() {
    let keys = [("RINGFEED_API__KEYS", "0123456789abcdef")];
    let (mut child, public, internal, _log) = serve_with(&keys, &["--host", "localhost"]);
    assert!(public.starts_with("127.0.0.1:") || public.starts_with("[::1]:"), "{public}");
    let port = internal.rsplit(':').next().unwrap();
    for api in [
        format!("localhost:{port}"),
        format!("http://{internal}"),
        format!("http://localhost:{port}/"),
    ] {
        let key = [("RINGFEED_API_KEY", "0123456789abcdef")];
        let published = ringfeed_with(&key, &["publish", "--api", &api, "a", "1"]);
        assert!(published.status.success(), "{api}: {}", text(&published.stderr));
    }
    let https = ringfeed(&["publish", "--api", "https://localhost:1", "a", "1"]);
    assert_eq!(https.status.code(), Some(2));
    assert!(text(&https.stderr).contains("only http:// is spoken"), "{}", text(&https.stderr));
    signal(&child, "TERM");
    assert_eq!(ended(&mut child).code(), Some(0));
}

#[test]
fn check_config_says_what_it_has_checked() {
    let defaults = ringfeed(&["check-config"]);
    assert!(text(&defaults.stdout).contains("built-in defaults"), "{}", text(&defaults.stdout));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, "[server]\nshards = 1\n").unwrap();
    let checked = ringfeed(&["check-config", "--config", file.to_str().unwrap()]);
    assert!(text(&checked.stdout).contains("mine.toml: the configuration is valid"));
    std::fs::write(&file, "[server]\nshards = \n").unwrap();
    let refused = ringfeed(&["check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("mine.toml:2: "), "{}", text(&refused.stderr));
}

#[test]
fn only_our_own_variables_of_the_environment_matter() {
    let check = |name: &[u8], value: &[u8]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
        let (name, value) = (std::ffi::OsStr::from_bytes(name), std::ffi::OsStr::from_bytes(value));
        command.arg("check-config").env(name, value).output().unwrap()
    };
    let foreign = check(b"FOREIGN\xff", b"\xff");
    assert!(foreign.status.success(), "{}", text(&foreign.stderr));
    let ours = check(b"RINGFEED_SERVER__SHARDS", b"\xff");
    assert_eq!(ours.status.code(), Some(1));
    assert!(text(&ours.stderr).contains("RINGFEED_SERVER__SHARDS: its value is not UTF-8"));
    let empty = check(b"RINGFEED_API__KEYS", b"");
    assert_eq!(empty.status.code(), Some(1));
    assert!(
        text(&empty.stderr).contains("it is empty: unset it or give"),
        "{}",
        text(&empty.stderr)
    );
    let stray = check(b"RINGFEED_FOO", b"2");
    assert!(stray.status.success());
    assert!(text(&stray.stderr).contains("RINGFEED_FOO in the environment means nothing"));
}

#[test]
fn who_stops_reading_has_read_enough() {
    for command in ["default-config", "openapi", "version"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringfeed"))
            .arg(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let status = ended(&mut child);
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert!(status.success() && errors.is_empty(), "{command}: {status}: {errors}");
    }
}

/// Reads the log up to a line that holds this; what was said until then.
fn logged(log: &mut BufReader<ChildStderr>, part: &str) -> String {
    let mut said = String::new();
    loop {
        let before = said.len();
        assert!(log.read_line(&mut said).unwrap() > 0, "{part:?} was never said:\n{said}");
        if said[before..].contains(part) {
            return said;
        }
    }
}

#[test]
fn sighup_takes_a_good_configuration_and_refuses_a_bad_one_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringfeed.toml");
    let rules = |subscribe: &str, more: &str| {
        format!(
            "{more}[[channels]]\npattern = \"a\"\nsubscribe = \"{subscribe}\"\n[[channels]]\npattern = \"*\"\n"
        )
    };
    std::fs::write(&file, rules("anyone", "")).unwrap();
    let (mut child, public, internal, mut log) = serve(&["--config", file.to_str().unwrap()]);
    let url = format!("ws://{public}/ws");
    let stream = std::net::TcpStream::connect(&public).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut client, _) = tungstenite::client(url, stream).unwrap();
    let mut ask = |command: &str| {
        client.send(tungstenite::Message::text(command)).unwrap();
    };
    ask(r#"[{"type":"subscribe","channel":"a"},{"type":"subscribe","channel":"b"}]"#);
    let mut next = || client.read().unwrap().into_text().unwrap().to_string();
    assert!(next().contains("subscribed") && next().contains("subscribed"));
    // Half of it would be fine.
    std::fs::write(&file, rules("nobody", "[log]\nlevel = \"loud\"\n")).unwrap();
    signal(&child, "HUP");
    let said = logged(&mut log, "log.level");
    assert!(said.contains("nothing has changed"), "{said}");
    let more = "[server]\nbacklog = 17\n[limits]\nmessages_burst = 7\n";
    std::fs::write(&file, rules("nobody", more)).unwrap();
    signal(&child, "HUP");
    let said = logged(&mut log, "the configuration holds from now on");
    assert!(said.contains("server.backlog has changed; that takes a restart"), "{said}");
    let ended = next();
    assert!(ended.contains(r#""type":"unsubscribed","channel":"a""#), "{ended}");
    let published = ringfeed(&["publish", "b", "1", "--api", &internal]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    assert!(next().contains(r#""channel":"b","offset":1"#), "who is not concerned goes on");
    signal(&child, "TERM");
    drop(client);
    assert!(self::ended(&mut child).success());
}

#[test]
fn instances_are_served_from_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let check = |name: &str| ringfeed(&["check-config", "--config-dir", path, "--instance", name]);
    let none = text(&check("eu").stderr);
    assert!(none.contains("--instance eu: ") && none.contains("there are none"), "{none}");
    for (name, level) in [("eu", "warn"), ("us", "info")] {
        let file = dir.path().join(format!("{name}.toml"));
        std::fs::write(file, format!("[log]\nlevel = \"{level}\"\n")).unwrap();
    }
    std::fs::write(dir.path().join("notes.txt"), "").unwrap();
    std::fs::create_dir(dir.path().join("more")).unwrap();
    std::fs::write(dir.path().join("more/hidden.toml"), "").unwrap();
    let checked = check("eu");
    let said = text(&checked.stdout);
    assert!(checked.status.success() && said.contains("eu.toml: the configuration is valid"));
    let missing = check("asia");
    assert_eq!(missing.status.code(), Some(1));
    let said = text(&missing.stderr);
    assert!(said.contains("has no instance of that name; there are eu, us"), "{said}");
    for name in ["../us", "more/hidden", "/etc/passwd", ".", ""] {
        let refused = check(name);
        assert_eq!(refused.status.code(), Some(2), "{name}");
        assert!(text(&refused.stderr).contains("allowed are ASCII letters"), "{name}");
    }
    let nowhere = ringfeed(&["check-config", "--config-dir", "/nowhere", "--instance", "eu"]);
    assert!(text(&nowhere.stderr).contains("--config-dir /nowhere"));
    let both = ["check-config", "--config", "a.toml", "--instance", "eu"];
    assert_eq!(ringfeed(&both).status.code(), Some(2));

    // It is the file of this instance that SIGHUP reads again, and flags stay stronger.
    let flags = ["--config-dir", path, "--instance", "us", "-v"];
    let (mut child, _, internal, mut log) = serve(&flags);
    let published = ringfeed(&["publish", "b", "1", "--api", &internal]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    std::fs::write(dir.path().join("us.toml"), "[log]\nlevel = \"loud\"\n").unwrap();
    signal(&child, "HUP");
    let said = logged(&mut log, "log.level");
    assert!(said.contains("us.toml:2: log.level"), "{said}");
    signal(&child, "TERM");
    assert!(ended(&mut child).success());
}
