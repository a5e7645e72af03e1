//! Which methods there are, who may call them, and what is behind each: made of a configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringfeed_protocol::CallError;
use ringfeed_protocol::printable::{Detail, Printable};
use serde_json::{Value, json};

use super::database::Place;
use super::params::Param;
use super::statement::{self, Statement};
use crate::access::{Identity, Who};
use crate::config::{Config, ConfigErrors, check_method, matches, wrong_who};

/// Methods of the engine itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builtin {
    Ping,
    ClientInfo,
    ServerStats,
    ChannelsList,
    ServerMethods,
}

/// What is behind a method.
#[derive(Debug, Clone)]
pub(crate) enum Behind {
    Builtin(Builtin),
    Sql(Arc<Statement>),
    /// An entry of `[[rpc_methods]]`, by its number.
    Http(usize),
}

/// One method, or all whose names fit a pattern.
#[derive(Debug, Clone)]
pub(crate) struct Method {
    description: String,
    allow: Vec<Who>,
    /// How long it may take.
    pub(crate) timeout: Duration,
    pub(crate) behind: Behind,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Methods {
    named: BTreeMap<String, Method>,
    /// In the order of the configuration.
    patterns: Vec<(String, Method)>,
    /// Which one is called by a message of a type.
    types: BTreeMap<String, String>,
    /// In the order of the configuration.
    pub(crate) places: Vec<Place>,
}

impl Methods {
    /// Of a configuration, and of the files it leads to; or all that is wrong with them.
    pub fn new(config: &Config) -> Result<Methods, ConfigErrors> {
        let mut errors = Vec::new();
        let mut methods = Methods::default();
        methods.add_builtin(config);
        methods.add_backends(config, &mut errors);
        for (i, database) in config.databases.iter().enumerate() {
            match Place::new(database) {
                Ok(place) => methods.places.push(place),
                Err(why) => errors.push(format!("databases[{i}].url: {why}")),
            }
        }
        if errors.is_empty() {
            methods.add_statements(config, &mut errors);
        }
        if errors.is_empty() { Ok(methods) } else { Err(ConfigErrors(errors)) }
    }

    fn add_builtin(&mut self, config: &Config) {
        let rpc = &config.rpc;
        if !rpc.builtin {
            return;
        }
        for (name, description, allow, builtin) in [
            ("ping", "Answers, with the time of the server", &rpc.allow_ping, Builtin::Ping),
            ("client.info", "Who this connection is", &rpc.allow_client_info, Builtin::ClientInfo),
            (
                "server.stats",
                "What the server has done and holds",
                &rpc.allow_server_stats,
                Builtin::ServerStats,
            ),
            (
                "channels.list",
                "Channels that have subscribers or history",
                &rpc.allow_channels_list,
                Builtin::ChannelsList,
            ),
            (
                "server.methods",
                "Methods that have a name of their own",
                &rpc.allow_server_methods,
                Builtin::ServerMethods,
            ),
        ] {
            let timeout = Duration::from_millis(rpc.timeout_ms_max.into());
            let (allow, behind) = (whom(allow), Behind::Builtin(builtin));
            let method = Method { description: description.into(), allow, timeout, behind };
            self.named.insert(name.into(), method);
        }
    }

    fn add_backends(&mut self, config: &Config, errors: &mut Vec<String>) {
        for (i, own) in config.rpc_methods.iter().enumerate() {
            let method = Method {
                description: own.description.clone(),
                allow: whom(&own.allow),
                timeout: Duration::from_millis(own.timeout_ms.into()),
                behind: Behind::Http(i),
            };
            let types = own.types.iter().map(|kind| (kind.clone(), own.name.clone()));
            self.types.extend(types);
            if own.name.contains('*') {
                self.patterns.push((own.name.clone(), method));
            } else if self.named.insert(own.name.clone(), method).is_some() {
                errors.push(format!("rpc_methods[{i}].name = {:?}: there is one before", own.name));
            }
        }
    }

    fn add_statements(&mut self, config: &Config, errors: &mut Vec<String>) {
        for (at, entry) in statement::read_all(&config.rpc.dir, errors) {
            if let Err(why) = check_method(&entry.name, false) {
                errors.push(format!("{at}: name: {why}"));
                continue;
            }
            errors.extend(wrong_who(&entry.allow).map(|wrong| format!("{at}: allow{wrong}")));
            let own = config.databases.iter().position(|own| own.name == entry.database);
            let Some((database, place)) = own.and_then(|own| Some((own, self.places.get(own)?)))
            else {
                let known: Vec<&str> = config.databases.iter().map(|own| &*own.name).collect();
                let known = known.join(", ");
                errors.push(format!(
                    "{at}: database = {:?}: there is none; [[databases]] has: {known}",
                    entry.database
                ));
                continue;
            };
            let (name, description) = (entry.name.clone(), entry.description.clone());
            let allow = whom(&entry.allow);
            match Statement::new(entry, database, place) {
                Ok(statement) => {
                    let timeout = statement.timeout;
                    let behind = Behind::Sql(Arc::new(statement));
                    let method = Method { description, allow, timeout, behind };
                    if self.named.insert(name, method).is_some() {
                        errors.push(format!("{at}: there is a method of this name before"));
                    }
                }
                Err(why) => errors.push(format!("{at}: {why}")),
            }
        }
    }

    /// The method of a name, whoever may call it.
    pub(crate) fn find(&self, name: &str) -> Option<&Method> {
        let mut fitting = self.patterns.iter().filter(|(pattern, _)| matches(pattern, name));
        self.named.get(name).or_else(|| Some(&fitting.next()?.1))
    }

    /// The name of the method that is called by a message of a type that no dialect knows.
    pub(crate) fn of_type(&self, kind: &str) -> Option<&str> {
        self.types.get(kind).map(|name| &**name)
    }

    /// The method that somebody calls, if there is one and they may.
    pub(crate) fn find_for(&self, name: &str, caller: &Identity) -> Result<&Method, CallError> {
        let unknown = || CallError::Unknown { method: Detail::new(Printable::name(name)) };
        let method = self.find(name).ok_or_else(unknown)?;
        if !method.allow.iter().any(|who| who.fits(caller)) {
            let detail =
                Detail::new(format_args!("{} may not be called by you", Printable::name(name)));
            return Err(CallError::Forbidden { detail });
        }
        Ok(method)
    }

    /// Which methods there are, as generated clients read it.
    pub(crate) fn listing(&self, server: &str, date: &str) -> Value {
        let mut listing = self.listed();
        if let Some(listing) = listing.as_object_mut() {
            listing.extend([("server".into(), server.into()), ("date".into(), date.into())]);
            listing.insert("type".into(), "rpc".into());
        }
        listing
    }

    /// Those with a name of their own, not those that fit a pattern.
    pub(crate) fn listed(&self) -> Value {
        let stranger = Identity::default();
        let each = self.named.iter().map(|(name, method)| {
            let params: Vec<Value> = match &method.behind {
                Behind::Sql(statement) => statement.params.iter().map(described).collect(),
                Behind::Builtin(_) | Behind::Http(_) => Vec::new(),
            };
            json!({
                "method": name,
                "description": method.description,
                "params": params,
                "allow_guest": method.allow.iter().any(|who| who.fits(&stranger)),
                "roles": method.allow.iter().filter_map(Who::role).collect::<Vec<_>>(),
            })
        });
        let methods: Vec<Value> = each.collect();
        json!({ "methods": methods })
    }
}

/// Those of a list, which was looked at before.
fn whom(list: &[String]) -> Vec<Who> {
    list.iter().filter_map(|text| Who::parse(text).ok()).collect()
}

fn described(param: &Param) -> Value {
    let spec = &param.spec;
    let mut limits = serde_json::Map::new();
    for (key, value) in [
        ("max_length", spec.max_length.map(|most| json!(most))),
        ("min", spec.min.as_ref().map(|own| json!(own))),
        ("max", spec.max.as_ref().map(|own| json!(own))),
    ] {
        limits.extend(value.map(|value| (key.to_owned(), value)));
    }
    let mut described = json!({
        "name": spec.name,
        "type": spec.r#type.name(),
        "description": spec.description,
        "default": spec.default,
        "required": spec.required,
        "example": spec.example,
        "validation": limits,
        "injected": false,
    });
    if let (Some(allowed), Some(object)) = (&spec.r#enum, described.as_object_mut()) {
        object.insert("enum".into(), json!(allowed));
    }
    described
}
