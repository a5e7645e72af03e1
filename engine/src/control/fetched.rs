//! Rules of channels that a registry holds: laid in front of this node's own as it tells them, all of a list or nothing of it.
//! Where anything in a list is wrong, what held before holds on.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::watch;

use super::State;
use crate::config::{Config, ConfigErrors, matches};
use crate::mesh::Figures;
use crate::registry::api::ChannelList;
use crate::settings::Settings;
use crate::shard::Shared;

/// Lines of what is wrong with a list that are logged.
const LINES_MAX: usize = 20;

/// What a registry says of channels, and what was taken of it.
#[derive(Debug)]
pub struct Fetched {
    told: watch::Receiver<Arc<ChannelList>>,
    /// The rules of the list that was looked at last: other systems keep names alone there, which come and go.
    rules: Vec<(String, Map<String, Value>)>,
}

impl Fetched {
    /// Takes what was told already, if the registry `was_heard`. Shards must not run yet.
    pub(crate) fn begin(
        shared: &Shared,
        (told, was_heard): (watch::Receiver<Arc<ChannelList>>, bool),
    ) -> Fetched {
        let mut fetched = Fetched { told, rules: Vec::new() };
        let list = fetched.told.borrow_and_update().clone();
        if !was_heard && shared.config().cluster.channels {
            tracing::warn!(
                "the registry has not said yet which rules of channels it holds: until it does, this node's own hold alone"
            );
        }
        fetched.take(shared, &list);
        fetched
    }

    pub(super) fn told(&self) -> watch::Receiver<Arc<ChannelList>> {
        self.told.clone()
    }

    /// Goes by another list. Returns whether there are other settings.
    fn take(&mut self, shared: &Shared, list: &ChannelList) -> bool {
        let entries = list.channels.iter().filter(|_| shared.config().cluster.channels);
        let rules = entries.filter_map(|entry| Some((entry.name.clone(), entry.rule.clone()?)));
        let before = std::mem::replace(&mut self.rules, rules.collect());
        let figures = &shared.cluster;
        if self.rules == before {
            // Who was set aside is still.
            if figures.rules_set_aside.read() == 0 {
                figures.rules_version.set(list.version);
            }
            return false;
        }
        match shared.config().with_fetched(&list.channels).and_then(Settings::new) {
            Ok(settings) => {
                tell(figures, &settings.config, list.version, None);
                shared.settings.store(Arc::new(settings));
                true
            }
            Err(wrong) => {
                tell(figures, &shared.config(), list.version, Some(wrong));
                false
            }
        }
    }
}

impl State {
    /// Goes by what the registry says, as long as it may say anything.
    pub(super) async fn follow_registry(self: Arc<Self>, mut fetched: Fetched) {
        while fetched.told.changed().await.is_ok() {
            let list = fetched.told.borrow_and_update().clone();
            if fetched.take(&self.shared, &list) {
                self.reloaded.send_replace(());
                self.reconfigure_shards().await;
            }
        }
    }
}

/// A configuration of this node's own with the rules that the registry has told last or, where these do not go with it, with
/// those that hold; then also what is wrong with the others.
pub(super) fn keep(
    config: &Config,
    before: &Config,
    told: &ChannelList,
) -> Result<(Config, Option<ConfigErrors>), ConfigErrors> {
    match config.with_fetched(&told.channels) {
        Ok(config) => Ok((config, None)),
        Err(wrong) => Ok((config.with_fetched_of(before)?, Some(wrong))),
    }
}

/// Tells what has become of a list of this version: it holds, or something is wrong with it.
pub(super) fn tell(figures: &Figures, config: &Config, version: u64, wrong: Option<ConfigErrors>) {
    figures.rules.set(config.fetched_rules().count() as u64);
    figures.rules_set_aside.set(wrong.is_some().into());
    match wrong {
        None => {
            figures.rules_version.set(version);
            tell_held(config);
        }
        Some(wrong) => {
            figures.rules_refused.add(1);
            tell_set_aside(&wrong);
        }
    }
}

fn tell_held(config: &Config) {
    let count = config.fetched_rules().count();
    let own = config.channels.iter().filter(|rule| !rule.fetched);
    let hidden = own.filter(|own| {
        config.fetched_rules().any(|fetched| matches(&fetched.pattern, &own.pattern))
    });
    let hidden: Vec<String> = hidden.map(|own| format!("{:?}", own.pattern)).collect();
    let never = match hidden.is_empty() {
        true => String::new(),
        false => format!("; never reached behind them: {}", hidden.join(", ")),
    };
    tracing::info!("{count} rules of the registry hold before this node's own{never}");
}

fn tell_set_aside(ConfigErrors(wrong): &ConfigErrors) {
    let more = match wrong.len().saturating_sub(LINES_MAX) {
        0 => String::new(),
        more => format!("\nand {more} more"),
    };
    let lines: Vec<&str> = wrong.iter().take(LINES_MAX).map(String::as_str).collect();
    tracing::error!(
        "the registry's list of channels is set aside, and what held before holds on:\n{}{more}",
        lines.join("\n")
    );
}
