//! What is asked outside: the application over HTTP (`docs/HOOKS.md`), and issuers for their keys.
//!
//! A shard's question comes in, and its answer goes back exactly once, in its time. Questions about one user are asked one
//! after the other, in the order in which they came; different users and different hooks do not wait for each other. A
//! hook that fails is asked no more for a while. What cannot be asked is refused, unless the configuration says otherwise.
//!
//! It all lives on the control thread, in its `LocalSet`. Knows nothing of sessions or channels, nor what keys look like.

pub(crate) mod address;
mod answers;
mod backend;
mod breaker;
mod cache;
pub(super) mod client;
#[cfg(test)]
mod document;
mod endpoint;
mod event;
pub(super) mod failure;
mod figures;
mod keys;
mod order;
mod plain;
mod policy;
pub(super) mod reply;
mod sign;
mod tell;
mod usual;
mod waiting;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::Resolve;
use ringfeed_protocol::ChannelName;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;
use crate::config::{Config, ConnectMethod};
use crate::ids::{ShardId, Ticket};
use crate::message::{Answer, Asked, Question};
use cache::Cache;
use client::Client;
use endpoint::Endpoint;
use event::Stamp;
use failure::Failure;
use keys::Keys;
use order::{Order, Subject, Turn};
use policy::Policy;
use reply::Reply;
use waiting::Waiting;

pub use address::SystemNames;
pub(super) use backend::{Backends, Call};
pub use figures::{Figures, Hook, Outcome, Snapshot};

/// Answers of the application that are remembered.
const CACHED_MAX: usize = 65_536;
/// Of the questions that may wait at a hook, the part that one user may have at all hooks …
const SUBJECT_PART: u32 = 16;
/// … and what one may have in any case.
const SUBJECT_LEAST: u32 = 16;

/// What keeps questions from being asked at all.
#[derive(Debug, thiserror::Error)]
pub enum HooksError {
    /// Of an issuer, where its keys are.
    #[error("the keys of an issuer: {0}")]
    KeysUrl(&'static str),
    /// Of a method.
    #[error("rpc_methods[{0}].url: {1}")]
    MethodUrl(usize, &'static str),
    /// Of a hook.
    #[error("hooks.{0}_url: {1}")]
    Url(&'static str, &'static str),
    /// The machine's certificates.
    #[error("no client for HTTPS: {0}")]
    Client(String),
}

/// An answer that is remembered, and until when.
#[derive(Debug, Clone)]
struct Cached {
    until: Instant,
    answer: Answer,
}

/// What an answer was about.
type CacheKey = (Subject, Hook, ChannelName);

/// What the configuration says.
#[derive(Debug)]
struct Settings {
    /// What its endpoints and issuers are asked with.
    client: Client,
    policy: Policy,
    connect_method: ConnectMethod,
    forward_headers: Vec<String>,
    timeout: Duration,
    waiting_max: u32,
    waiting_bytes_max: u64,
    /// Questions about one user.
    subject_max: u32,
    payload_bytes_max: usize,
    /// In the order of [`Hook::ALL`]; `None` where nobody is asked.
    endpoints: [Option<Rc<Endpoint>>; Hook::ALL.len()],
}

/// Everything that is asked outside. Belongs to the control thread.
pub struct Hooks {
    settings: RefCell<Rc<Settings>>,
    names: Arc<dyn Resolve>,
    order: Rc<Order>,
    cache: RefCell<Cache<CacheKey, Cached>>,
    keys: Keys,
    figures: Arc<Figures>,
    /// No more questions come: nothing is retried.
    closing: watch::Sender<bool>,
}

impl Hooks {
    /// `key_urls` are all URLs that are ever asked for keys; `take_keys` gets one of them and the body that came from
    /// there, up to 1 MiB, each time it was fetched. Bodies it cannot use leave it what it had. What is counted for
    /// `/metrics` is in `figures`, which any thread may read.
    pub fn new(
        config: &Config,
        key_urls: &[String],
        take_keys: impl Fn(&str, &[u8]) + 'static,
        figures: Arc<Figures>,
    ) -> Result<Hooks, HooksError> {
        Hooks::with_names(config, key_urls, take_keys, figures, Arc::new(SystemNames))
    }

    /// The same with something else that resolves names. Addresses that are not public are filtered out here.
    pub fn with_names(
        config: &Config,
        key_urls: &[String],
        take_keys: impl Fn(&str, &[u8]) + 'static,
        figures: Arc<Figures>,
        names: Arc<dyn Resolve>,
    ) -> Result<Hooks, HooksError> {
        let settings = Settings::new(config, key_urls, &names, &figures, None)?;
        let keys = Keys::new(figures.clone(), settings.client.clone(), Box::new(take_keys));
        let hooks = Hooks {
            settings: RefCell::new(Rc::new(settings)),
            names,
            order: Rc::default(),
            cache: RefCell::new(Cache::new(CACHED_MAX)),
            keys,
            figures,
            closing: watch::Sender::new(false),
        };
        hooks.reconfigure(config, key_urls)?;
        Ok(hooks)
    }

    /// Goes by another configuration from now on; on an error by the one before. Questions under way go by the one
    /// they began with. A hook that stays where it was keeps its breaker and its place for requests.
    pub fn reconfigure(&self, config: &Config, key_urls: &[String]) -> Result<(), HooksError> {
        let before = self.settings();
        let urls = key_urls.iter().map(|url| Ok((url.as_str().into(), checked_keys(config, url)?)));
        let urls = urls.collect::<Result<_, HooksError>>()?;
        let settings = Settings::new(config, key_urls, &self.names, &self.figures, Some(&before))?;
        let timeout = Duration::from_millis(config.hooks.attempt_timeout_ms.into());
        self.keys.configure(urls, settings.client.clone(), timeout);
        self.settings.replace(Rc::new(settings));
        // What one application has said is nothing to another one; and what changed is seldom told.
        self.cache.borrow_mut().clear();
        Ok(())
    }

    fn settings(&self) -> Rc<Settings> {
        self.settings.borrow().clone()
    }

    /// Takes questions and answers each exactly once. Returns when no more can come, all are answered and the
    /// application was told of all disconnects, or the time of one question is over. Dropped, it answers what it has.
    /// Must run in a `LocalSet`, and once only.
    pub async fn serve(
        self: Rc<Self>,
        mut receiver: mpsc::Receiver<Asked>,
        answer: impl Fn(ShardId, Ticket, Answer) + Clone + 'static,
    ) {
        let answer: reply::Send = Rc::new(answer);
        let mut tasks = JoinSet::new();
        let mut fresh = JoinSet::new();
        let own = self.clone();
        fresh.spawn_local(async move { own.keys.keep_fresh().await });
        loop {
            tokio::select! {
                asked = receiver.recv() => match asked {
                    Some(asked) => self.take(asked, &answer, &mut tasks),
                    None => break,
                },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
        self.closing.send_replace(true);
        let end = Instant::now() + self.settings().timeout;
        while let Ok(Some(_)) = timeout_at(end, tasks.join_next()).await {}
    }

    /// Takes one question: its place is that in which it came.
    fn take(self: &Rc<Self>, asked: Asked, answer: &reply::Send, tasks: &mut JoinSet<()>) {
        let Asked { shard, ticket, question } = asked;
        let reply = Reply::new(answer.clone(), shard, ticket, &question);
        let own = self.clone();
        if let Question::Keys { url, kid } = question {
            let time = self.settings().timeout;
            let mut closing = self.closing.subscribe();
            tasks.spawn_local(async move {
                tokio::select! {
                    () = own.keys.miss(&url, &kid, time) => {}
                    // Nobody is there any more whom it would let in.
                    _ = closing.wait_for(|&closing| closing) => {}
                }
                reply.send(Answer::Noted);
            });
            return;
        }
        if let Question::Presence(news) = question {
            tasks.spawn_local(async move {
                let heard = own.tell_presence(&news).await;
                reply.send(Answer::Heard(heard));
            });
            return;
        }
        let Some((hook, caller)) = event::subject(&question) else { return };
        let settings = self.settings();
        let subject = Subject::of(caller);
        let waiting = Waiting::enter(
            &self.figures,
            hook,
            event::cost(&question),
            settings.waiting_max,
            settings.waiting_bytes_max,
        );
        let turn = match hook {
            // A user with many connections has as many ends, and asks nothing by them.
            Hook::Disconnect => Some(self.order.turn(subject.clone())),
            _ => self.order.turn_within(subject.clone(), settings.subject_max),
        };
        let Some((waiting, turn)) = waiting.zip(turn) else {
            let dropped = hook == Hook::Disconnect;
            self.figures.of(hook).count(if dropped { Outcome::Dropped } else { Outcome::Busy });
            if let (true, Some(endpoint)) = (dropped, settings.endpoint(hook)) {
                endpoint.complain(&Failure::Busy);
            }
            return reply.send(settings.policy.failed(&question, &Failure::Busy));
        };
        let stamp = Stamp::new();
        if hook == Hook::Disconnect {
            reply.send(Answer::Noted);
            tasks.spawn_local(async move { own.tell(question, stamp, turn, waiting).await });
            return;
        }
        tasks.spawn_local(async move {
            let about = (hook, subject);
            let answer = own.answer(&settings, &question, about, &stamp, turn, waiting).await;
            reply.send(answer);
        });
    }

    /// The answer to a question whose place is `turn`.
    async fn answer(
        &self,
        settings: &Rc<Settings>,
        question: &Question,
        (hook, subject): (Hook, Subject),
        stamp: &Stamp,
        mut turn: Turn,
        waiting: Waiting,
    ) -> Answer {
        let deadline = Instant::now() + settings.timeout;
        let mut result = Err(Failure::Late);
        if timeout_at(deadline, turn.comes()).await.is_ok() {
            let about = (hook, subject);
            result = self.ask(settings, question, about, stamp, waiting, deadline).await;
        }
        result.unwrap_or_else(|failure| {
            let unasked = matches!(
                failure,
                Failure::Late | Failure::BreakerOpen { .. } | Failure::NotConfigured
            );
            if unasked {
                // No request has been counted for it.
                self.figures.of(hook).count(failure.outcome());
            }
            settings.policy.failed(question, &failure)
        })
    }

    async fn ask(
        &self,
        settings: &Rc<Settings>,
        question: &Question,
        (hook, subject): (Hook, Subject),
        stamp: &Stamp,
        waiting: Waiting,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let endpoint = settings.endpoint(hook).ok_or(Failure::NotConfigured)?;
        let key = match question {
            Question::Subscribe { channel, .. } | Question::Publish { channel, .. } => {
                Some((subject, hook, channel.clone()))
            }
            _ => None,
        };
        if let Some(answer) = key.as_ref().and_then(|key| self.remembered(key)) {
            self.figures.of(hook).count(Outcome::Cached);
            return Ok(answer);
        }
        let plain = settings.connect_method == ConnectMethod::Get;
        let event = match question {
            Question::Connect { request, .. } if plain => {
                Some(plain::event(request, &settings.forward_headers))
            }
            question => event::event(question, stamp, &settings.forward_headers),
        };
        let event = event.ok_or_else(|| Failure::BadAnswer("the question is no JSON".into()))?;
        let (answer, cache_s) = match question {
            Question::Connect { caller, .. } => {
                let read = |reply: &_| {
                    let read = if plain { plain::connect } else { answers::connect };
                    read(reply, &caller.identity, Clock::Machine.unix_s())
                };
                let verdict = endpoint.ask(&event, waiting, deadline, read).await?;
                (Answer::Connect(verdict.answer), verdict.cache_s)
            }
            Question::Message { .. } => {
                let verdict = endpoint.ask(&event, waiting, deadline, answers::message).await?;
                (Answer::Message(verdict.answer), verdict.cache_s)
            }
            Question::Subscribe { .. } => {
                let verdict = endpoint.ask(&event, waiting, deadline, answers::subscribe).await?;
                (Answer::Subscribe(verdict.answer), verdict.cache_s)
            }
            Question::Publish { .. } => {
                let read = |reply: &_| answers::publish(reply, settings.payload_bytes_max);
                let verdict = endpoint.ask(&event, waiting, deadline, read).await?;
                (Answer::Publish(verdict.answer), verdict.cache_s)
            }
            Question::Disconnect { .. }
            | Question::Presence(_)
            | Question::Keys { .. }
            | Question::Rpc { .. } => (Answer::Noted, 0),
        };
        // Not where another configuration has come in between.
        let same = Rc::ptr_eq(settings, &self.settings());
        if let (Some(key), true, true) = (key, cache_s > 0, same) {
            let until = Instant::now() + Duration::from_secs(cache_s);
            self.cache.borrow_mut().insert(key, Cached { until, answer: answer.clone() });
        }
        Ok(answer)
    }

    fn remembered(&self, key: &CacheKey) -> Option<Answer> {
        let (now, wall) = (Instant::now(), Clock::Machine.unix_s());
        let fresh = |cached: &Cached| {
            let expired = match &cached.answer {
                Answer::Subscribe(Ok(allowed)) => allowed.expires_at.is_some_and(|at| at <= wall),
                _ => false,
            };
            now < cached.until && !expired
        };
        self.cache.borrow_mut().find(key, fresh).map(|cached| cached.answer)
    }
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// An issuer's URL that may be asked.
fn checked_keys(config: &Config, url: &str) -> Result<Url, HooksError> {
    address::check(url, config.hooks.allow_private_addresses).map_err(HooksError::KeysUrl)?;
    Url::parse(url).map_err(|_| HooksError::KeysUrl("it is no URL"))
}

impl Settings {
    /// What `before` has and this one needs, too, it goes on with.
    fn new(
        config: &Config,
        key_urls: &[String],
        names: &Arc<dyn Resolve>,
        figures: &Arc<Figures>,
        before: Option<&Settings>,
    ) -> Result<Settings, HooksError> {
        let hooks = &config.hooks;
        let mut urls: [Option<Url>; Hook::ALL.len()] = Default::default();
        for (at, hook) in urls.iter_mut().zip(Hook::ALL) {
            let url = hooks.url(hook);
            if !url.is_empty() {
                address::check(url, hooks.allow_private_addresses)
                    .map_err(|why| HooksError::Url(hook.label(), why))?;
                let url = Url::parse(url);
                *at = Some(url.map_err(|_| HooksError::Url(hook.label(), "it is no URL"))?);
            }
        }
        let tls = urls.iter().flatten().any(|url| url.scheme() == "https")
            || key_urls.iter().any(|url| url.starts_with("https:"));
        let client = before.map(|before| &before.client);
        let client = match client.filter(|own| own.was_made_for(hooks.allow_private_addresses, tls))
        {
            Some(client) => client.clone(),
            None => Client::new(names.clone(), hooks.allow_private_addresses, tls)
                .map_err(|e| HooksError::Client(e.without_url().to_string()))?,
        };
        let mut endpoints: [Option<Rc<Endpoint>>; Hook::ALL.len()] = Default::default();
        for ((at, url), hook) in endpoints.iter_mut().zip(urls).zip(Hook::ALL) {
            let before = before.and_then(|before| before.endpoint(hook));
            *at = url.map(|url| {
                Rc::new(Endpoint::new(hook, url, hooks, &client, figures, before.as_deref()))
            });
        }
        Ok(Settings {
            client,
            policy: Policy::new(config),
            connect_method: hooks.connect_method,
            forward_headers: hooks.forward_headers.clone(),
            timeout: Duration::from_millis(hooks.timeout_ms.into()),
            waiting_max: hooks.waiting_max,
            subject_max: (hooks.waiting_max / SUBJECT_PART).max(SUBJECT_LEAST),
            waiting_bytes_max: hooks.waiting_bytes_max,
            payload_bytes_max: usize::try_from(config.limits.message_bytes_max)
                .unwrap_or(usize::MAX),
            endpoints,
        })
    }

    fn endpoint(&self, hook: Hook) -> Option<Rc<Endpoint>> {
        self.endpoints.get(hook as usize)?.clone()
    }
}
