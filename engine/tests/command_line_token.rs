//! `ringfeed token` as an operator meets it.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const SECRET: &str = "hush-hush-hush-hush-hush-hush-hush";
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys");

/// A configuration with an issuer of each kind, and its directory.
fn config() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let text = format!(
        "[[issuers]]\nissuer = \"pem\"\naudience = [\"me\"]\npublic_key_files = [\"{KEYS}/p256.pub.pem\"]\n\
         [[issuers]]\nissuer = \"hs\"\naudience = [\"me\"]\nsecret_env = \"TOKEN_SECRET\"\nclaims = [\"tier\"]\n\
         [[issuers]]\nissuer = \"away\"\naudience = [\"me\"]\njwks_url = \"https://id.test/keys\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let name = file.to_str().unwrap().to_owned();
    (dir, name)
}

fn token(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGFEED_") {
            command.env_remove(name);
        }
    }
    command.arg("token").args(args).env("TOKEN_SECRET", SECRET);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read its input may be gone.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn made(args: &[&str]) -> String {
    let output = token(args, "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

#[track_caller]
fn refused(args: &[&str], input: &str, part: &str) {
    let output = token(args, input);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}{}", text(&output.stdout));
    assert!(errors.contains(part) && !errors.contains("hush"), "{part:?} is not in {errors}");
}

#[test]
fn a_token_that_was_made_is_taken_and_told() {
    let (_dir, config) = config();
    let made = made(&[
        "make",
        "--config",
        &config,
        "--user",
        "ann",
        "--role",
        "editor",
        "--channel",
        "a",
        "--expires",
        "1h",
        "--claim",
        "tier=gold",
    ]);
    let told = token(&["inspect", "--config", &config, "-"], &format!("{made}\n"));
    let said = text(&told.stdout);
    assert!(told.status.success(), "{said}{}", text(&told.stderr));
    for part in [
        "\"alg\": \"HS256\"",
        "\"sub\": \"ann\"",
        "\"iss\": \"hs\"",
        "\"aud\": \"me\"",
        "\"editor\"",
        "\"tier\": \"gold\"",
        "expires: 2",
        " UTC, in ",
        "issued: 2",
        "accepted: it is the user ann's",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains(SECRET));
    let given = token(&["inspect", "--config", &config, &made], "");
    assert!(given.status.success(), "{}", text(&given.stderr));
    for changed in [&made[..made.len() - 4], &made.replace('.', ",")] {
        refused(&["inspect", "--config", &config, changed], "", "not accepted: ");
    }
    refused(&["inspect", "--config", &config], &"x".repeat(100_000), "allowed are 8192 bytes");
    refused(&["inspect"], &made, "the configuration has no issuers");
}

#[test]
fn a_private_key_signs_in_the_place_of_a_secret() {
    let (_dir, config) = config();
    let key = format!("{KEYS}/p256.pem");
    let base = ["make", "--config", &config, "--user", "ann", "--issuer"];
    let with = |rest: &[&str]| made(&[&base[..], rest].concat());
    let good = with(&["pem", "--key", &key]);
    assert!(token(&["inspect", "--config", &config], &good).status.success());
    let other = with(&["pem", "--key", &format!("{KEYS}/other-p256.pem")]);
    refused(&["inspect", "--config", &config], &other, "not accepted: the token's signature");
    let rsa = with(&["pem", "--key", &format!("{KEYS}/rsa.pem")]);
    refused(&["inspect", "--config", &config], &rsa, "an algorithm that its issuer has a key for");
    let away = with(&["away", "--key", &key, "--kid", "k"]);
    refused(&["inspect", "--config", &config], &away, "looked for at https://id.test/keys");
    refused(&[&base[..], &["pem"]].concat(), "", "this issuer has no secret");
    refused(&[&base[..], &["nobody"]].concat(), "", "no issuer of this name");
    refused(
        &[&base[..], &["pem", "--key", &format!("{KEYS}/p256.pub.pem")]].concat(),
        "",
        "no private key",
    );
    refused(&[&base[..], &["pem", "--key", "/does/not/exist"]].concat(), "", "/does/not/exist");
}

#[test]
fn a_token_for_one_channel_is_told_as_such() {
    let (_dir, config) = config();
    let made = made(&["make", "--config", &config, "--user", "ann", "--claim", "channel=vip"]);
    let told = token(&["inspect", "--config", &config], &made);
    assert!(text(&told.stdout).contains("to subscribe to vip"), "{}", text(&told.stderr));
    refused(&["make", "--config", &config, "--claim", "exp=1"], "", "\"exp\" is given twice");
    refused(&["make", "--config", &config, "--channel", "a b"], "", "channel name holds");
    refused(&["make"], "", "no issuer with a secret");
    assert_eq!(token(&["make", "--expires", "forever"], "").status.code(), Some(2));
}

#[test]
fn keys_that_cannot_be_read_are_told_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    for (missing, part) in [
        ("secret_file = \"/does/not/exist\"", "issuers[0].secret_file: /does/not/exist: "),
        ("public_key_files = [\"/nor/this\"]", "issuers[0].public_key_files: \"/nor/this\": "),
    ] {
        std::fs::write(&file, format!("[[issuers]]\n{missing}\n")).unwrap();
        for command in ["check-config", "serve"] {
            let output = ringfeed(command, &file);
            assert_eq!(output.status.code(), Some(1));
            let errors = text(&output.stderr);
            assert!(errors.contains(part), "{part:?} is not in {errors}");
        }
    }
}

fn ringfeed(command: &str, config: &Path) -> Output {
    let mut ringfeed = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    ringfeed.args([command, "--config"]).arg(config).output().unwrap()
}
