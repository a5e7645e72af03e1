//! What all commands that need a configuration have in common.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use ringfeed_engine::access::token::Issuers;
use ringfeed_engine::config::{self, Config, ConfigErrors, Sources};
use ringfeed_engine::settings::Settings;

#[derive(Debug, Clone, Args)]
pub(super) struct ConfigArgs {
    /// TOML file; `ringfeed default-config` prints one. Without it the built-in defaults hold.
    #[arg(long, env = "RINGFEED_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// One of several servers on this machine: its configuration is NAME.toml in --config-dir.
    #[arg(long, value_name = "NAME", conflicts_with = "config", value_parser = instance_name)]
    instance: Option<String>,
    /// Directory with the configurations of all instances.
    #[arg(long, value_name = "DIR", default_value = "/etc/ringfeed", requires = "instance")]
    config_dir: PathBuf,
    /// Address that clients connect to, or a name of this machine: the host of server.listen.
    #[arg(long, value_name = "ADDRESS", value_parser = resolve_host)]
    host: Option<IpAddr>,
    /// Port that clients connect to: the port of server.listen.
    #[arg(short, long)]
    port: Option<u16>,
    /// Set a key, as in --set server.shards=2. May be repeated; stronger than file and environment.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
}

impl ConfigArgs {
    /// Finds the file of an instance, once: from then on the configuration is there.
    pub(super) fn find(&mut self) -> anyhow::Result<()> {
        let Some(name) = &self.instance else { return Ok(()) };
        let file = self.config_dir.join(format!("{name}.toml"));
        if !file.is_file() {
            let dir = self.config_dir.display();
            let names =
                instances(&self.config_dir).with_context(|| format!("--config-dir {dir}"))?;
            let there = match names.is_empty() {
                true => "there are none, which would be files NAME.toml".into(),
                false => format!("there are {}", names.join(", ")),
            };
            bail!("--instance {name}: {dir} has no instance of that name; {there}");
        }
        self.config = Some(file);
        Ok(())
    }
}

/// The names of all instances in a directory.
fn instances(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "toml")
            && instance_name(name).is_ok()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A name is no path, and no option by mistake.
fn instance_name(name: &str) -> Result<String, String> {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.starts_with(['.', '-']) || !name.bytes().all(in_name) {
        let allowed =
            "allowed are ASCII letters, digits and any of -_., the first a letter, a digit or _";
        return Err(allowed.into());
    }
    Ok(name.into())
}

/// Where this command line says that the configuration is.
pub(super) fn sources(args: &ConfigArgs) -> Sources<'_> {
    let mut sources = Sources {
        file: args.config.as_deref(),
        environment: std::env::vars_os().collect(),
        flags: args.sets.clone(),
    };
    if args.host.is_some() || args.port.is_some() {
        // What is configured otherwise fills in the half that was not given.
        let listen = sources.listen().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9800)));
        let host = args.host.unwrap_or(listen.ip());
        let port = args.port.unwrap_or(listen.port());
        sources.flags.push(format!("server.listen={}", SocketAddr::new(host, port)));
    }
    sources
}

/// Reads the configuration.
pub(super) fn load(sources: &Sources) -> anyhow::Result<Config> {
    for flag in &sources.flags {
        let path = flag.split('=').next().unwrap_or_default().trim();
        if let Some((section, key)) = path.split_once('.').filter(|_| config::is_secret(path)) {
            let variable = format!("RINGFEED_{section}__{key}").to_uppercase();
            bail!(
                "--set {path}: everybody on this machine can read arguments, so that secrets are not taken from \
                 them; allowed are {variable} in the environment, and a file (--config)"
            );
        }
    }
    Config::load(sources).map_err(problems)
}

/// Reads the keys that the configuration leads to.
pub(super) fn issuers(config: &Config) -> anyhow::Result<Issuers> {
    Issuers::from_config(config).map_err(problems)
}

/// What a server goes by: with the keys that the configuration leads to.
pub(super) fn settings(config: Config) -> anyhow::Result<Settings> {
    Settings::new(config).map_err(problems)
}

fn problems(errors: ConfigErrors) -> anyhow::Error {
    let problems = match errors.0.len() {
        1 => "a problem".into(),
        count => format!("{count} problems"),
    };
    anyhow::anyhow!("the configuration has {problems}:\n{errors}")
}

pub(super) fn warn_of_strays(sources: &Sources, warn: impl Fn(String)) {
    for name in sources.strays() {
        warn(format!(
            "{name} in the environment means nothing; keys are set by RINGFEED_SECTION__KEY"
        ));
    }
}

/// The address of `--host`, which may be a name; IPv4 where a name has both.
fn resolve_host(host: &str) -> Result<IpAddr, String> {
    let found = (host.trim_matches(['[', ']']), 0).to_socket_addrs().map_err(|e| e.to_string())?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| "this name has no address".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_no_path() {
        for name in ["a", "Feed-2", "eu.west", "_x", "7"] {
            assert_eq!(instance_name(name).unwrap(), name);
        }
        for name in
            ["", ".", "..", "../a", "a/b", "/etc/passwd", "-v", ".a", "a b", "a\0", "\u{e9}"]
        {
            instance_name(name).unwrap_err();
        }
    }

    #[test]
    fn a_name_of_this_machine_is_a_host() {
        assert!(resolve_host("localhost").unwrap().is_loopback());
        assert_eq!(resolve_host("::1").unwrap(), resolve_host("[::1]").unwrap());
        resolve_host("no such name").unwrap_err();
    }
}
