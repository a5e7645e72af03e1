//! A configuration, and what is made of it once so that nobody has to make it for each connection. Replaced as a
//! whole when the configuration is read again.

use std::sync::Arc;

use crate::access::Access;
use crate::config::{Config, ConfigErrors};
use crate::control::rpc::Methods;
use crate::origins::Origins;
use crate::proxies::Proxies;

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// Who may do what, and who vouches for whom.
    pub access: Arc<Access>,
    /// Whose word about clients' addresses counts.
    pub proxies: Arc<Proxies>,
    /// Which pages may connect.
    pub origins: Arc<Origins>,
    /// What clients may call.
    pub methods: Arc<Methods>,
}

impl Settings {
    /// Of a configuration; or all that is wrong with what is made of it.
    pub fn new(config: Config) -> Result<Settings, ConfigErrors> {
        let wrong = |why: String| ConfigErrors(vec![why]);
        let origins = Origins::parse(&config.server.origins)
            .map_err(|e| wrong(format!("server.origins: {e}")))?;
        let proxies = Proxies::parse(&config.server.proxies)
            .map_err(|e| wrong(format!("server.proxies: {e}")))?;
        let access = Access::new(&config)?;
        let methods = Methods::new(&config)?;
        Ok(Settings {
            config: Arc::new(config),
            access: Arc::new(access),
            proxies: Arc::new(proxies),
            origins: Arc::new(origins),
            methods: Arc::new(methods),
        })
    }
}
