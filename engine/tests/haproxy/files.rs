//! What is written, and what is left alone.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use super::process::{Registry, command, text};

/// A registry whose nodes need not say again that they live.
fn registry() -> Registry {
    Registry::start(&["--node-timeout-ms", "3600000"])
}

pub(crate) fn announce(registry: &Registry, id: &str, url: &str) {
    let node = json!({"id": id, "url": url, "epoch": "1"}).to_string();
    let (status, told) = registry.ask("POST", "/v1/nodes", &node);
    assert_eq!(status, 200, "{told}");
}

/// `ringfeed haproxy` with the registry's key and these arguments.
pub(crate) fn haproxy(registry: &Registry, args: &[&str]) -> Command {
    let mut command = command();
    command.args(["haproxy", "--registry", &registry.url(), "--key-file"]);
    command.arg(registry.path("key")).args(args);
    command
}

fn run(registry: &Registry, args: &[&str]) -> Output {
    haproxy(registry, args).output().unwrap()
}

fn accepted(file: &Path) {
    let checked = Command::new("haproxy").args(["-c", "-f"]).arg(file).output().unwrap();
    let said = format!("{}{}", text(&checked.stdout), text(&checked.stderr));
    // A name that cannot be resolved is its own node's matter, and the only thing that is to be complained of.
    let mut lines = said.lines().filter(|line| line.contains("WARNING") || line.contains("ALERT"));
    let warned = lines.any(|line| !line.contains("no-such-name.invalid"));
    assert!(
        checked.status.success() && !warned,
        "{said}\n{}",
        std::fs::read_to_string(file).unwrap()
    );
}

#[test]
fn every_form_of_it_is_accepted_by_haproxy_without_a_warning() {
    let registry = registry();
    announce(&registry, "a", "http://10.0.0.1:9800");
    announce(&registry, "b", "ws://[2001:db8::1]:9800/ws");
    announce(&registry, "c", "http://no-such-name.invalid:9800");
    announce(&registry, "tls", "https://10.0.0.2");
    assert_eq!(registry.ask("POST", "/v1/nodes/b/heartbeat", r#"{"state":"draining"}"#).0, 200);
    let pem = registry.path("cert.pem");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-days",
            "2",
        ])
        .args(["-keyout", "-", "-out", "-"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    std::fs::write(&pem, made.stdout).unwrap();
    let pem = pem.to_str().unwrap();
    for args in [
        &[][..],
        &["--proxy-protocol", "--sticky", "source"],
        &[
            "--sticky",
            "none",
            "--check-path",
            "/node/health",
            "--bind",
            "127.0.0.1:8080",
            "--bind",
            "[::1]:8080",
        ],
        &["--tls-cert", pem, "--stats", "127.0.0.1:8404", "--connections-max", "100"],
    ] {
        let printed = run(&registry, args);
        assert!(printed.status.success(), "{}", text(&printed.stderr));
        assert!(text(&printed.stderr).contains("node tls is left out"));
        let file = registry.path("haproxy.cfg");
        std::fs::write(&file, &printed.stdout).unwrap();
        accepted(&file);
        let config = text(&printed.stdout);
        assert!(config.contains("server a 10.0.0.1:9800") && config.contains("[2001:db8::1]:9800"));
        assert!(!config.contains("server tls"));
        let drains = config.lines().find(|line| line.contains("server b ")).unwrap();
        assert!(drains.ends_with(" disabled"), "{drains}");
    }
}

#[test]
fn a_file_changes_only_to_what_haproxy_accepts_and_never_to_nothing() {
    let registry = registry();
    let file = registry.path("haproxy.cfg");
    let path = file.to_str().unwrap();
    let once = |more: &[&str]| {
        run(&registry, &[&["--once", "-o", path, "--bind", "127.0.0.1:8080"], more].concat())
    };
    let nothing = once(&[]);
    assert!(text(&nothing.stdout).contains("there are no nodes") && !file.exists());
    announce(&registry, "a", "http://10.0.0.1:9800");
    let written = once(&[]);
    assert!(text(&written.stdout).contains("written, with 1 nodes"), "{}", text(&written.stderr));
    accepted(&file);
    assert!(text(&once(&[]).stdout).contains("as it has to be"));
    let before = std::fs::read_to_string(&file).unwrap();
    // The certificate is not there, so HAProxy refuses.
    let refused = once(&["--tls-cert", "/no/such.pem"]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("the old one stays"), "{said}");
    assert!(said.contains("/no/such.pem"), "{said}");
    let missing = once(&["--haproxy", "/no/such/haproxy", "--sticky", "none"]);
    assert!(!missing.status.success() && text(&missing.stderr).contains("/no/such/haproxy"));
    assert_eq!(registry.ask("DELETE", "/v1/nodes/a", "").0, 200);
    assert!(text(&once(&[]).stdout).contains("left alone"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    let names: Vec<_> = std::fs::read_dir(registry.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("haproxy"))
        .collect();
    assert_eq!(names, ["haproxy.cfg"], "nothing is left behind");
    for (args, told) in [
        (&["--backend", "a b"][..], "1 to 64 of"),
        (&["--bind", ":80 ssl crt /etc/x"], "what HAProxy binds to"),
        (&["--check-path", "/x\nserver evil"], "a path of"),
        (&["--stats", "0.0.0.0:8404"], "loopback"),
        (&["--section", "-o", "/no/such.cfg"], "there is no such file"),
        (&["--watch"], "--output"),
    ] {
        let refused = run(&registry, args);
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains(told), "{args:?}: {said}");
    }
}

/// As an operator has it who kept the configuration by hand.
const OWN: &str = "global
    maxconn 100

defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s

frontend own
    bind 127.0.0.1:8080
    default_backend ws_nodes

backend ws_nodes
    balance roundrobin
    server old 127.0.0.1:1 check

# This stays.
backend other
    server b 127.0.0.1:2
";

#[test]
fn one_section_of_somebody_elses_file_is_kept() {
    let registry = registry();
    announce(&registry, "node.1", "http://10.0.0.1:9800");
    let file = registry.path("own.cfg");
    std::fs::write(&file, OWN).unwrap();
    let link = registry.path("link.cfg");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let link = link.to_str().unwrap();
    let section =
        |backend: &str| run(&registry, &["--once", "-o", link, "--section", "--backend", backend]);
    let written = section("ws_nodes");
    assert!(written.status.success(), "{}", text(&written.stderr));
    let now = std::fs::read_to_string(&file).unwrap();
    assert!(std::fs::symlink_metadata(link).unwrap().is_symlink(), "the link stays one");
    let (before, _) = OWN.split_once("backend ws_nodes\n").unwrap();
    let (_, behind) = OWN.split_once("check\n").unwrap();
    assert!(now.starts_with(before) && now.ends_with(behind), "{now}");
    assert!(now.contains("server node.1 10.0.0.1:9800") && !now.contains("server old"), "{now}");
    accepted(&file);
    let missing = section("ws_backend");
    let said = text(&missing.stderr);
    assert!(
        !missing.status.success() && said.contains("its backends are: ws_nodes, other"),
        "{said}"
    );
    // What is wrong elsewhere in it is not put into use.
    std::fs::write(&file, now.replace("maxconn 100", "maxcon 100")).unwrap();
    announce(&registry, "node.2", "http://10.0.0.2:9800");
    let refused = section("ws_nodes");
    assert!(!refused.status.success() && text(&refused.stderr).contains("maxcon"));
    assert!(!std::fs::read_to_string(&file).unwrap().contains("node.2"));
}
