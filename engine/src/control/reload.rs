//! Reading the configuration again while the server runs: all of it or nothing.

use std::sync::Arc;

use super::{State, fetched};
use crate::config::{Config, ConfigErrors};
use crate::message::{NotTaken, Request};
use crate::settings::Settings;

/// How the configuration is read again, and what outside the engine goes by it.
pub struct Reload {
    /// Reads and validates it, over the one that holds ([`Config::load_over`]).
    pub read: Box<ReadOver>,
    /// Called with a configuration that holds from now on.
    pub apply: Box<dyn Fn(&Config) + Send + Sync>,
}

/// A configuration over one that holds, and the keys that stay as they are.
pub type ReadOver =
    dyn Fn(&Config) -> Result<(Config, Vec<&'static str>), ConfigErrors> + Send + Sync;

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reload")
    }
}

impl State {
    /// Reads the configuration again. Where anything is wrong with it, all stays as it is.
    pub(super) async fn reload(self: Arc<Self>) {
        let Some(reload) = &self.reload else {
            return tracing::warn!(
                "reload: this server was started with a configuration that is nowhere to read"
            );
        };
        match self.reread(reload) {
            Ok(fixed) => {
                self.figures.reloads.add(1);
                self.reloaded.send_replace(());
                for key in &fixed {
                    tracing::warn!(
                        "reload: {key} has changed; that takes a restart, and until then it stays as it is"
                    );
                }
                self.reconfigure_shards().await;
                tracing::info!("reload: the configuration holds from now on");
            }
            Err(e) => {
                self.figures.reloads_failed.add(1);
                tracing::error!("reload: nothing has changed, the configuration is wrong:\n{e}");
            }
        }
    }

    /// Has shards go by the settings that hold.
    pub(super) async fn reconfigure_shards(&self) {
        for shard in self.shared.shards.ids() {
            // One that has ended needs no telling.
            while let Err(NotTaken::Full(_)) =
                self.shared.shards.request(shard, Request::Reconfigure)
            {
                tokio::time::sleep(super::FULL_PAUSE).await;
            }
        }
    }

    /// Puts a new configuration in the place of the one that holds. Returns the keys that stay as they were.
    fn reread(&self, reload: &Reload) -> Result<Vec<&'static str>, ConfigErrors> {
        let holds = self.shared.config();
        let (config, fixed) = (reload.read)(&holds)?;
        let told = self.told.as_ref().map(|told| told.borrow().clone());
        let (config, wrong) = match &told {
            Some(told) => fetched::keep(&config, &holds, told)?,
            None => (config, None),
        };
        config.check_shares(self.shared.shards.count())?;
        let settings = Settings::new(config)?;
        (reload.apply)(&settings.config);
        self.shared.admission.reconfigure(&settings.config);
        let api = &settings.config.api;
        self.request_rates.set(api.requests_per_second_max, api.requests_burst);
        self.shared.revoked.set_most(settings.config.limits.revocations_max);
        self.shared.rooms.set_most(settings.config.limits.rooms_max);
        if let Some(told) = &told {
            fetched::tell(&self.shared.cluster, &settings.config, told.version, wrong);
        }
        self.shared.settings.store(Arc::new(settings));
        Ok(fixed)
    }
}
