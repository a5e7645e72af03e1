//! Links over TLS.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{PATIENCE, TestServer, wait_until};
use crate::fleet::{figure, registry, start_with, wait_members};
use crate::process::Registry;
use crate::strangers::peer_port;

const OPENSSL: &str = "[req]\ndistinguished_name = name\n[name]\n[authority]\nbasicConstraints = critical, CA:TRUE\n\
     [node]\nbasicConstraints = critical, CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";

/// A certificate and its key, signed by an authority or itself one.
fn certificate(dir: &Path, name: &str, authority: Option<&str>) {
    let path = |end: &str| dir.join(end).display().to_string();
    std::fs::write(dir.join("openssl.cnf"), OPENSSL).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]);
    openssl.args(["-days", "2", "-subj", &format!("/CN={name}"), "-config", &path("openssl.cnf")]);
    openssl.args(["-keyout", &path(&format!("{name}.key")), "-out", &path(&format!("{name}.pem"))]);
    match authority {
        None => openssl.args(["-extensions", "authority"]),
        Some(by) => {
            let [pem, key] = ["pem", "key"].map(|end| path(&format!("{by}.{end}")));
            openssl.args(["-extensions", "node", "-CA", &pem, "-CAkey", &key])
        }
    };
    let made = openssl.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// `[cluster]` with the certificate of this name, and the authority `ca` beside it.
fn tls(dir: &Path, name: &str, authority: &str) -> String {
    let path = |end: &str| dir.join(end).display().to_string();
    format!(
        "tls_certificate_file = \"{}\"\ntls_key_file = \"{}\"\ntls_authority_file = \"{}\"\n",
        path(&format!("{name}.pem")),
        path(&format!("{name}.key")),
        path(&format!("{authority}.pem"))
    )
}

fn node(registry: &Registry, id: &str, tls: &str) -> TestServer {
    start_with(registry, id, tls, "")
}

#[test]
fn nodes_with_certificates_share_channels_and_nobody_else_is_linked_with() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for authority in ["ca", "other"] {
        certificate(dir, authority, None);
        certificate(dir, &format!("{authority}-node"), Some(authority));
    }
    let registry = registry();
    let own = tls(dir, "ca-node", "ca");
    let nodes = ["node-0", "node-1"].map(|id| node(&registry, id, &own));
    nodes.iter().for_each(|node| wait_members(node.internal, 2));
    for n in 1..=10 {
        let channel = format!("n.{n}");
        assert_eq!(nodes[0].publish(&channel, json!("a"))["offset"], 1);
        assert_eq!(nodes[1].publish(&channel, json!("b"))["offset"], 2);
    }
    // What a node says that speaks no TLS is answered with nothing but an alert.
    let mut stream = TcpStream::connect(peer_port(&registry, "node-0")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[&b"rfm2"[..], &[7; 40]].concat()).unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.len() < 44, "{got:?}");
    // Nodes that have the key, and no certificate or one that nobody here knows.
    for (id, odd) in [("plain", String::new()), ("foreign", tls(dir, "other-node", "other"))] {
        let refused = |node: &TestServer| figure(node.internal, "refused_total");
        let before: u64 = nodes.iter().map(refused).sum();
        let odd = node(&registry, id, &odd);
        // Of two nodes the one that has drawn the lower number calls.
        let now = || nodes.iter().map(refused).sum::<u64>() + refused(&odd);
        wait_until("refused", now, |now| *now > before);
        assert_eq!(figure(odd.internal, "links"), 0);
        nodes.iter().for_each(|node| assert_eq!(figure(node.internal, "links"), 1));
        drop(odd);
        nodes.iter().for_each(|node| wait_members(node.internal, 2));
    }
}

#[test]
fn certificates_that_are_replaced_are_those_of_the_next_links() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    certificate(dir, "ca", None);
    certificate(dir, "node", Some("ca"));
    let registry = registry();
    let own = tls(dir, "node", "ca");
    let mut nodes = vec![node(&registry, "node-0", &own), node(&registry, "node-1", &own)];
    nodes.iter().for_each(|node| wait_members(node.internal, 2));
    certificate(dir, "ca", None);
    certificate(dir, "node", Some("ca"));
    nodes.push(node(&registry, "node-2", &own));
    nodes.iter().for_each(|node| wait_members(node.internal, 3));
}

/// A node that is to end by itself.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn files_that_are_no_certificates_are_named_as_a_node_starts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for name in ["ca", "a", "b"] {
        certificate(dir, name, Some("ca").filter(|_| name != "ca"));
    }
    std::fs::copy(dir.join("b.key"), dir.join("mixed.key")).unwrap();
    std::fs::copy(dir.join("a.pem"), dir.join("mixed.pem")).unwrap();
    std::fs::write(dir.join("empty.pem"), "").unwrap();
    for (certificate, authority, why) in [
        ("none", "ca", "cluster.tls_certificate_file = "),
        ("a", "empty", "it holds no certificate in PEM form"),
        ("mixed", "ca", "cluster.tls_key_file = "),
    ] {
        let file = dir.join("node.toml");
        let more = tls(dir, certificate, authority);
        std::fs::write(&file, crate::fleet::toml(crate::process::KEY, &more)).unwrap();
        let mut node = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
        node.arg("serve").arg("--config").arg(&file);
        for set in [
            "cluster.registry=http://127.0.0.1:1",
            "server.listen=127.0.0.1:0",
            "api.listen=127.0.0.1:0",
        ] {
            node.args(["--set", set]);
        }
        node.args(["--set", "server.node_id=a"]).stderr(Stdio::piped());
        let mut node = Ends(node.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while node.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{certificate}: the node does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (status, mut said) = (node.0.wait().unwrap(), String::new());
        node.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!status.success() && said.contains(why), "{certificate}: {said}");
    }
}
