//! Keeping a configuration as the registry's nodes are.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::sleep;

use super::apply::{ApplyError, Target};
use super::render::{Server, Template};
use super::section::{NoSection, replace_backend, servers_of};
use crate::registry::api::NodeList;
use crate::registry::client::{CallError, Client};

/// Why there is no new configuration.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The registry.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The file or HAProxy.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The file has no such section.
    #[error("{0}: {1}")]
    Section(String, #[source] NoSection),
}

/// What became of a look at the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The configuration is another one now, with so many servers that take clients, and so many that do not.
    Written(usize, usize),
    /// It is as it has to be.
    Unchanged,
    /// There are no nodes, and the file was left alone.
    NoNodes,
    /// The registry has begun just now and does not know all nodes yet; the file was left alone.
    NotSettled,
}

/// See the module.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    template: Template,
    /// Only the `backend` section of a file that is there.
    section: bool,
    target: Target,
    /// Version of the list that is in use.
    known: Option<u64>,
    /// Whether HAProxy has yet to be told of what is in the file.
    reload_due: bool,
}

impl Follow {
    /// Writes the file of `target` with the nodes of `client`: all of it, or its `backend` section.
    pub fn new(client: Client, template: Template, section: bool, target: Target) -> Follow {
        Follow { client, template, section, target, known: None, reload_due: false }
    }

    /// The configuration as it would be now, without writing it.
    pub async fn show(&self) -> Result<String, FollowError> {
        let list = self.client.nodes(false, None).await?.unwrap_or_default();
        self.text(&servers(&list))
    }

    fn text(&self, servers: &[Server]) -> Result<String, FollowError> {
        if !self.section {
            return Ok(self.template.whole(servers));
        }
        let before = self.target.read()?.unwrap_or_default();
        let (name, section) = (self.template.backend.to_string(), self.template.backend(servers));
        replace_backend(&before, &name, &section)
            .map_err(|e| FollowError::Section(self.target.file.display().to_string(), e))
    }

    /// Looks once, and writes and reloads if something is other than before. `wait` is for a registry that has begun just now:
    /// nodes are not taken out because it has yet to hear of them.
    pub async fn look(&mut self, wait: bool) -> Result<Outcome, FollowError> {
        let known = self.known.filter(|_| !self.reload_due);
        let Some(list) = self.client.nodes(false, known).await? else {
            return Ok(Outcome::Unchanged);
        };
        let servers = servers(&list);
        if servers.is_empty() {
            self.known = Some(list.version);
            return Ok(Outcome::NoNodes);
        }
        if wait && !list.settled {
            let before = self.target.read()?.unwrap_or_default();
            let there: BTreeSet<&str> = servers.iter().map(|server| server.id().as_str()).collect();
            if !servers_of(&before, &self.template.backend.to_string()).is_subset(&there) {
                return Ok(Outcome::NotSettled);
            }
        }
        let text = self.text(&servers)?;
        let target = self.target.clone();
        let due = self.reload_due;
        // Programs are waited for, which is no work for the thread that also sees to signals.
        let applied = tokio::task::spawn_blocking(move || {
            let changed = target.put(&text).map_err(|e| (false, e))?;
            if changed || due {
                target.reload().map_err(|e| (true, e))?;
            }
            Ok(changed)
        });
        let applied = applied.await.unwrap_or_else(|e| Err((false, ended(&e))));
        match applied {
            Ok(changed) => {
                let draining = servers.iter().filter(|server| server.is_draining()).count();
                (self.known, self.reload_due) = (Some(list.version), false);
                Ok(match changed {
                    true => Outcome::Written(servers.len() - draining, draining),
                    false => Outcome::Unchanged,
                })
            }
            Err((is_written, e)) => {
                self.reload_due |= is_written;
                self.known = None;
                Err(e.into())
            }
        }
    }

    /// Looks every `interval`, more or less, for ever. What fails is logged when it begins and when it is another failure.
    pub async fn watch(mut self, interval: Duration) -> Infallible {
        let mut said = String::new();
        loop {
            let line = match self.look(true).await {
                Ok(Outcome::Written(taking, draining)) => {
                    said.clear();
                    tracing::info!(
                        "HAProxy has {taking} nodes that take clients, and {draining} that drain"
                    );
                    String::new()
                }
                Ok(Outcome::Unchanged) => String::new(),
                Ok(Outcome::NoNodes) => {
                    "there are no nodes; the configuration is left alone".into()
                }
                Ok(Outcome::NotSettled) => {
                    "the registry has just begun; the configuration is left alone until all nodes \
                     could be heard of"
                        .into()
                }
                Err(e) => e.to_string(),
            };
            if !line.is_empty() && line != said {
                tracing::warn!("{line}");
            }
            said = line;
            sleep(interval.mul_f64(rand::rng().random_range(0.9..1.1))).await;
        }
    }
}

fn ended(e: &tokio::task::JoinError) -> ApplyError {
    ApplyError::NotReloaded(e.to_string())
}

fn servers(list: &NodeList) -> Vec<Server> {
    let (servers, skipped) = Server::of(&list.nodes);
    for id in skipped {
        tracing::warn!("node {id} is left out: HAProxy would have to speak TLS to it");
    }
    servers
}
