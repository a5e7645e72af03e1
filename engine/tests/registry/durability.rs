//! What is stored is there, and what is not is not said to be.

use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::process::{KEY, Registry, command, ringfeed, text};

fn fill(registry: &Registry) {
    for id in ["a", "b"] {
        let node =
            json!({"id": id, "url": "http://h:1", "peer": "[::1]:9802", "weight": 7, "epoch": "e"});
        assert_eq!(registry.ask("POST", "/v1/nodes", &node.to_string()).0, 200);
    }
    assert_eq!(registry.ask("POST", "/v1/nodes/b/heartbeat", r#"{"state":"draining"}"#).0, 200);
    let channel = json!({"name": "news", "allowed_nodes": ["a"], "rule": {"history_size": 5}});
    assert_eq!(registry.ask("PUT", "/v1/channels", &channel.to_string()).0, 200);
}

#[test]
fn a_restart_loses_nothing() {
    let mut registry = Registry::start(&[]);
    fill(&registry);
    let told = |registry: &Registry| {
        let (_, mut nodes) = registry.ask("GET", "/v1/nodes", "");
        for node in nodes["nodes"].as_array_mut().unwrap() {
            node["age_ms"] = json!(0);
        }
        (nodes["nodes"].clone(), registry.ask("GET", "/v1/channels", "").1)
    };
    let before = told(&registry);
    assert_eq!(before.0[1]["state"], "draining");
    let (_, list) = registry.ask("GET", "/v1/nodes", "");
    // Killed: what was answered is in the file already. When it was heard of may be a second old.
    registry.kill_and_restart();
    let after = told(&registry);
    assert_eq!(after.1, before.1);
    for (after, before) in after.0.as_array().unwrap().iter().zip(before.0.as_array().unwrap()) {
        for field in ["id", "url", "peer", "weight", "state", "epoch", "live"] {
            assert_eq!(after[field], before[field], "{field}");
        }
    }
    let (_, again) = registry.ask("GET", "/v1/nodes", "");
    assert!(again["version"].as_u64() > list["version"].as_u64(), "versions go on");
    assert_eq!(
        registry.ask("POST", "/v1/nodes/a/heartbeat", r#"{"epoch":"e","metrics":{"n":1}}"#).0,
        200
    );
    assert!(registry.terminate());
    registry.launch();
    let (_, metrics) = registry.ask("GET", "/v1/nodes?metrics=true", "");
    assert_eq!(metrics["nodes"][0]["metrics"], json!({"n": 1}), "stored when it ended");
}

#[test]
fn copies_are_whole_and_can_be_started_from() {
    let dir = tempfile::tempdir().unwrap();
    let backups = dir.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let registry = Registry::start_in(
        dir,
        &["--backup-dir", backups.to_str().unwrap(), "--backups-kept", "2"],
    );
    fill(&registry);
    std::fs::write(backups.join("registry-of-somebody-else.db"), "").unwrap();
    let mut files = Vec::new();
    for _ in 0..3 {
        let (status, told) = registry.ask("POST", "/v1/backup", r#"{"file":"../../evil.db"}"#);
        assert_eq!(status, 200, "{told}");
        let file = told["file"].as_str().unwrap().to_owned();
        assert!(file.starts_with("registry-2") && !file.contains('/'), "{file}");
        files.push(file);
    }
    let mut there: Vec<String> = std::fs::read_dir(&backups)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there.len(), 3, "two copies, and what is no copy stays: {there:?}");
    assert!(there.contains(&"registry-of-somebody-else.db".to_owned()));
    // From the command line while it runs, into a file that is not there.
    let (db, to) = (registry.path("registry.db"), registry.path("copy.db"));
    let (db, to) = (db.to_str().unwrap(), to.to_str().unwrap());
    let made = ringfeed(&["registry", "backup", "--db", db, "--to", to]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let again = ringfeed(&["registry", "backup", "--db", db, "--to", to]);
    assert!(
        !again.status.success() && text(&again.stderr).contains("exists"),
        "{}",
        text(&again.stderr)
    );
    let second = tempfile::tempdir().unwrap();
    std::fs::rename(to, second.path().join("registry.db")).unwrap();
    let restored = Registry::start_in(second, &[]);
    let (_, channels) = restored.ask("GET", "/v1/channels", "");
    assert_eq!(channels["channels"][0]["rule"], json!({"history_size": 5}));
    assert_eq!(
        restored.ask("GET", "/v1/nodes?all=true", "").1["nodes"].as_array().unwrap().len(),
        2
    );
}

#[test]
fn files_of_others_and_of_later_versions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("registry.db");
    let run = || {
        let mut command = command();
        command.args(["registry", "serve", "--listen", "127.0.0.1:0", "--db"]).arg(&db);
        let output =
            command.env("RINGFEED_REGISTRY_KEY", KEY).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    std::fs::write(&db, "this is a letter and no database, and it is long enough to be looked at")
        .unwrap();
    assert!(run().contains("it is not a registry's file"));
    assert!(std::fs::read_to_string(&db).unwrap().starts_with("this is a letter"));
    std::fs::remove_file(&db).unwrap();
    sql(&db, "CREATE TABLE t (x)");
    assert!(run().contains("it is not a registry's file"));
    std::fs::remove_file(&db).unwrap();
    let mut registry = Registry::start_in(dir, &[]);
    let second = ringfeed_at(&registry);
    assert!(second.contains("another registry uses it"), "{second}");
    assert!(registry.terminate());
    sql(&registry.path("registry.db"), "PRAGMA user_version = 3");
    let newer = ringfeed_at(&registry);
    assert!(newer.contains("newer ringfeed") && newer.contains("version 3"), "{newer}");
}

fn ringfeed_at(registry: &Registry) -> String {
    let mut command = command();
    command.args(["registry", "serve", "--listen", "127.0.0.1:0", "--db"]);
    let output = command
        .arg(registry.path("registry.db"))
        .env("RINGFEED_REGISTRY_KEY", KEY)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    text(&output.stderr)
}

/// Runs statements on a file as another program.
fn sql(db: &std::path::Path, statements: &str) {
    let status = python(db, &format!("db.executescript({statements:?})")).wait().unwrap();
    assert!(status.success());
}

fn python(db: &std::path::Path, body: &str) -> Child {
    let script = format!(
        "import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1], isolation_level=None)\n{body}\n"
    );
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(db).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_file_of_the_first_version_is_taken_over() {
    let mut registry = Registry::start(&["--node-timeout-ms", "60000"]);
    fill(&registry);
    let before = registry.ask("GET", "/v1/nodes?all=true", "").1["nodes"].clone();
    assert!(registry.terminate());
    sql(&registry.path("registry.db"), "DROP TABLE view; PRAGMA user_version = 1");
    registry.launch();
    let after = registry.ask("GET", "/v1/nodes?all=true", "").1["nodes"].clone();
    let ids = |nodes: &serde_json::Value| -> Vec<String> {
        nodes.as_array().unwrap().iter().map(|node| node["id"].to_string()).collect()
    };
    assert_eq!(ids(&before), ids(&after));
}

#[test]
fn while_the_file_is_locked_changes_are_refused_and_heartbeats_are_heard() {
    use std::io::{BufRead as _, BufReader};
    let registry = Registry::start(&["--node-timeout-ms", "60000"]);
    fill(&registry);
    let body = "db.execute('BEGIN IMMEDIATE')\nprint('locked', flush=True)\nsys.stdin.read()";
    let mut other = python(&registry.path("registry.db"), body);
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    let node = json!({"id": "c", "url": "http://h:1", "epoch": "e"}).to_string();
    for (method, target, body) in [
        ("POST", "/v1/nodes", &*node),
        ("DELETE", "/v1/nodes/a", ""),
        ("PUT", "/v1/channels", r#"{"name":"more"}"#),
        ("POST", "/v1/nodes/a/heartbeat", r#"{"state":"draining"}"#),
    ] {
        let (status, told) = registry.ask(method, target, body);
        assert_eq!((status, &told["error"]), (503, &json!("storage")), "{method} {target}: {told}");
        assert!(told["message"].as_str().unwrap().contains("locked by another program"), "{told}");
    }
    let (status, told) = registry.ask(
        "POST",
        "/announce",
        &json!({"id": "d", "url": "http://h:1", "status": "active"}).to_string(),
    );
    assert!(status == 503 && told["error"].as_str().unwrap().contains("locked"), "{told}");
    assert_eq!(
        registry.ask("POST", "/v1/nodes/a/heartbeat", "{}").0,
        200,
        "a sign of life needs no disk"
    );
    registry.wait_line("locked");
    let (_, nodes) = registry.ask("GET", "/v1/nodes", "");
    let states: Vec<_> =
        nodes["nodes"].as_array().unwrap().iter().map(|n| (&n["id"], &n["state"])).collect();
    assert_eq!(states, [(&json!("a"), &json!("active")), (&json!("b"), &json!("draining"))]);
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(registry.ask("POST", "/v1/nodes", &node).0, 200);
    let (_, figures) = registry.ask("GET", "/metrics", "");
    assert!(!figures.as_str().unwrap().contains("store_failures_total 0"), "{figures}");
}

#[test]
fn a_full_disk_takes_nothing_and_nothing_is_said_to_be_stored() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A disk of 600 KiB, in a namespace of the registry's own.
    let script = "mount -t tmpfs -o size=600k tmpfs \"$1\" && shift && exec \"$@\"";
    let isolate = ["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
    let probe = Command::new("unshare").args(isolate).arg(&disk).arg("true").output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: this machine lets nobody mount a disk of their own");
        return;
    }
    let wrapped = [&["unshare"][..], &isolate, &[disk.to_str().unwrap()]].concat();
    let db = disk.join("registry.db");
    let registry = Registry::start_wrapped(dir, &wrapped, &["--db", db.to_str().unwrap()]);
    let mut stored = Vec::new();
    let mut refused = 0;
    for n in 0..120 {
        let nodes: Vec<String> = (0..150).map(|node| format!("{node:064}")).collect();
        let body = json!({"name": format!("c{n:03}"), "allowed_nodes": nodes}).to_string();
        match registry.ask("PUT", "/v1/channels", &body) {
            (200, _) => stored.push(format!("c{n:03}")),
            (503, told) => {
                assert!(told["message"].as_str().unwrap().contains("disk is full"), "{told}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "all of {} had room", stored.len());
    let (_, list) = registry.ask("GET", "/v1/channels", "");
    let listed = |list: &serde_json::Value| -> Vec<String> {
        let channels = list["channels"].as_array().unwrap();
        channels.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&list), stored);
    // What the file has, as the registry would find it after kill -9.
    registry.signal("STOP");
    let after = tempfile::tempdir().unwrap();
    for name in ["registry.db", "registry.db-wal"] {
        let inside = format!("/proc/{}/root{}", registry.pid(), disk.join(name).display());
        std::fs::copy(inside, after.path().join(name)).unwrap();
    }
    registry.signal("CONT");
    let restarted = Registry::start_in(after, &[]);
    assert_eq!(listed(&restarted.ask("GET", "/v1/channels", "").1), stored);
}
