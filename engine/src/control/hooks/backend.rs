//! Methods that the application answers over HTTP. Each has its own breaker and its own place for requests, all that is
//! asked is counted as one hook.

use std::rc::Rc;
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::Resolve;
use reqwest::header::HeaderMap;
use ringfeed_protocol::CallError;
use ringfeed_protocol::printable::Detail;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::address::{self, SystemNames};
use super::answers::Verdict;
use super::client::{Client, Reply};
use super::endpoint::Endpoint;
use super::event::{Event, Stamp};
use super::failure::Failure;
use super::figures::{Figures, Hook};
use super::waiting::Waiting;
use super::{HooksError, figures};
use crate::config::{self, Config};
use crate::message::{Caller, Denied};

/// What is said where the application refuses and does not say why.
const REFUSED: &str = "the application refuses it";

/// A call, as the application is told of it.
pub(in crate::control) struct Call<'a> {
    pub(in crate::control) caller: &'a Caller,
    /// What stands in front of channels' names that the caller knows nothing of.
    pub(in crate::control) prefix: &'a str,
    pub(in crate::control) method: &'a str,
    /// A JSON object.
    pub(in crate::control) params: Option<&'a str>,
}

#[derive(Serialize)]
struct Body<'a> {
    event: &'static str,
    id: &'a str,
    time: u64,
    connection: String,
    user: Option<&'a str>,
    roles: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
    method: &'a str,
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Refusal {
    message: Option<String>,
}

/// All of `[[rpc_methods]]`, in their order.
pub(in crate::control) struct Backends {
    client: Client,
    list: Vec<Rc<Endpoint>>,
    figures: Arc<Figures>,
    waiting_max: u32,
    waiting_bytes_max: u64,
}

impl Backends {
    /// What `before` knows of an application at the same URL is known here, too.
    pub(in crate::control) fn new(
        config: &Config,
        figures: &Arc<Figures>,
        before: Option<&Backends>,
    ) -> Result<Backends, HooksError> {
        let hooks = &config.hooks;
        let mut urls = Vec::new();
        for (i, method) in config.rpc_methods.iter().enumerate() {
            let wrong = |why| HooksError::MethodUrl(i, why);
            address::check(&method.url.0, hooks.allow_private_addresses).map_err(wrong)?;
            urls.push(Url::parse(&method.url.0).map_err(|_| wrong("it is no URL"))?);
        }
        let tls = urls.iter().any(|url| url.scheme() == "https");
        let private = hooks.allow_private_addresses;
        let client = match before.map(|before| &before.client) {
            Some(client) if client.was_made_for(private, tls) => client.clone(),
            _ => {
                let names: Arc<dyn Resolve> = Arc::new(SystemNames);
                Client::new(names, private, tls)
                    .map_err(|e| HooksError::Client(e.without_url().to_string()))?
            }
        };
        let each = urls.into_iter().zip(&config.rpc_methods).map(|(url, method)| {
            let own = config::Hooks {
                attempt_timeout_ms: method.timeout_ms,
                answer_bytes_max: config.rpc.answer_bytes_max,
                ..hooks.clone()
            };
            let mut earlier = before.iter().flat_map(|before| &before.list);
            let earlier = earlier.find(|endpoint| endpoint.is_at(&url));
            let earlier = earlier.map(|endpoint| &**endpoint);
            Rc::new(Endpoint::new(Hook::Rpc, url, &own, &client, figures, earlier))
        });
        let list = each.collect();
        Ok(Backends {
            client,
            list,
            figures: figures.clone(),
            waiting_max: hooks.waiting_max,
            waiting_bytes_max: hooks.waiting_bytes_max,
        })
    }

    /// Asks one of them, by its place in the list. A request that was sent is not sent again.
    pub(in crate::control) async fn ask(
        &self,
        at: usize,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<Box<str>, CallError> {
        let event = event(call).ok_or_else(|| CallError::failed("the call is no JSON"))?;
        let (most, bytes_max) = (self.waiting_max, self.waiting_bytes_max);
        let len = event.body.as_ref().map_or(0, bytes::Bytes::len);
        let waiting = Waiting::enter(&self.figures, Hook::Rpc, len, most, bytes_max);
        let Some((waiting, endpoint)) = waiting.zip(self.list.get(at)) else {
            self.figures.of(Hook::Rpc).count(figures::Outcome::Busy);
            return Err(failed(&Failure::Busy));
        };
        match endpoint.ask(&event, waiting, deadline, result).await {
            Ok(Verdict { answer: Ok(result), .. }) => Ok(result),
            Ok(Verdict { answer: Err(denied), .. }) => Err(refused(denied)),
            Err(failure) => {
                if matches!(failure, Failure::Late | Failure::BreakerOpen { .. }) {
                    // No request has been counted for it.
                    self.figures.of(Hook::Rpc).count(failure.outcome());
                }
                Err(failed(&failure))
            }
        }
    }
}

fn event(Call { caller, method, params, .. }: &Call) -> Option<Event> {
    let stamp = Stamp::new();
    let identity = &caller.identity;
    let roles = identity.attributes.iter().filter_map(|own| own.strip_prefix("role:"));
    let body = Body {
        event: Hook::Rpc.label(),
        id: &stamp.id,
        time: stamp.time,
        connection: caller.connection.to_string(),
        user: identity.user.as_deref(),
        roles: roles.collect(),
        info: identity.info.as_deref().and_then(|info| serde_json::from_str(info).ok()),
        method,
        params: params.and_then(|params| serde_json::from_str(params).ok()),
    };
    let body = serde_json::to_vec(&body).ok()?;
    Some(Event { body: Some(body.into()), headers: HeaderMap::new() })
}

/// What the application says to a call.
fn result(reply: &Reply) -> Result<Verdict<Box<str>>, Failure> {
    let answer = match reply.status {
        200..=299 if reply.body.is_empty() => Ok("null".into()),
        200..=299 => {
            let json = serde_json::from_slice::<&RawValue>(&reply.body);
            let json = json.map_err(|_| Failure::BadAnswer("it is no JSON".into()))?;
            Ok(json.get().into())
        }
        status @ (400 | 401 | 403 | 404 | 409 | 422) => {
            let said = serde_json::from_slice::<Refusal>(&reply.body).ok();
            let text = said.and_then(|said| said.message).filter(|text| !text.is_empty());
            let text = text.map_or_else(|| REFUSED.into(), Detail::new);
            Err(Denied::Refused { status, text })
        }
        429 | 500..=599 => return Err(Failure::Status(reply.status)),
        status => {
            let what = format_args!("status {status} is none that is allowed");
            return Err(Failure::BadAnswer(Detail::new(what)));
        }
    };
    Ok(Verdict { answer, cache_s: 0 })
}

fn refused(denied: Denied) -> CallError {
    match denied {
        Denied::Refused { status: 401 | 403, text } => CallError::Forbidden { detail: text },
        Denied::Refused { status: 400 | 422, text } => CallError::BadParams { detail: text },
        Denied::Refused { text, .. } => CallError::Failed { detail: text },
        Denied::Unavailable(detail) => CallError::Unavailable { detail },
    }
}

fn failed(failure: &Failure) -> CallError {
    match (failure, failure.denied()) {
        (Failure::Timeout | Failure::Slow | Failure::Late, _) => CallError::TimedOut,
        (Failure::BadAnswer(_) | Failure::TooLarge | Failure::Broken, _) => {
            CallError::Failed { detail: "the application answered something wrong".into() }
        }
        (_, Denied::Unavailable(detail)) => CallError::Unavailable { detail },
        (_, Denied::Refused { text, .. }) => CallError::Failed { detail: text },
    }
}

impl std::fmt::Debug for Backends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backends").field("list", &self.list).finish_non_exhaustive()
    }
}
