//! Asking a registry: one request, one answer, both bounded.

use std::error::Error as _;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, Url, redirect, retry};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::api::{
    Announced, Announcement, BackedUp, ChannelList, ChannelPut, ChannelsChanged, ErrorBody, Heard,
    Heartbeat, Left, NodeList,
};
use super::error::clip;
use super::keys::Key;
use super::names::NodeId;
use super::views::{Standpoint, ViewReply};

/// Longest answer of a registry in bytes: a thousand nodes, or some thousands of channels.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Less than a registry keeps a silent connection: whoever sends just when it is closed loses a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest URL of a registry in bytes.
const URL_BYTES_MAX: usize = 2048;
const USER_AGENT: &str = concat!("ringfeed/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Nobody is there.
    #[error("no connection: {0}")]
    NoConnection(String),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// It ended early, or is not HTTP.
    #[error("the answer is broken: {0}")]
    Broken(String),
    /// It is too long.
    #[error("the answer is too long")]
    TooLarge,
}

/// Why a call of the registry came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Whether it was done is not known.
    #[error("{0}")]
    Http(#[from] HttpError),
    /// The registry has refused it.
    #[error("the registry answers {status} {error}: {message}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// Its word for programs.
        error: String,
        /// Its sentence for people.
        message: String,
    },
    /// Something else answers there.
    #[error("this is not the answer of a registry: {0}")]
    NotARegistry(String),
}

impl CallError {
    /// Whether the registry does not know the node.
    pub fn is_unknown(&self) -> bool {
        matches!(self, CallError::Refused { status: 404, error, .. } if error == "not_found")
    }

    /// Whether another process has taken the node's place.
    pub fn is_replaced(&self) -> bool {
        matches!(self, CallError::Refused { error, .. } if error == "replaced")
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// HTTP/1.1 with a key on every request, and without redirects, which would carry it elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: reqwest::Client,
}

impl Http {
    /// With this key.
    pub(super) fn new(key: Option<&Key>) -> Result<Http, HttpError> {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let broken = |_| HttpError::Broken("the key fits no header".into());
            let sensitive = |text: &str| {
                HeaderValue::from_str(text).map(|mut value| {
                    value.set_sensitive(true);
                    value
                })
            };
            // As our registry takes it, and as those of other systems do.
            let bearer = sensitive(&format!("Bearer {}", key.expose())).map_err(broken)?;
            headers.insert(AUTHORIZATION, bearer);
            let name = HeaderName::from_static("x-api-key");
            headers.insert(name, sensitive(key.expose()).map_err(broken)?);
        }
        let builder = || {
            reqwest::Client::builder()
                .user_agent(USER_AGENT)
                .default_headers(headers.clone())
                .redirect(redirect::Policy::none())
                .retry(retry::never())
                .no_proxy()
                .referer(false)
                .http1_only()
                .pool_idle_timeout(IDLE_TIMEOUT)
        };
        // A machine without certificates can still ask without TLS.
        let client = builder().build().or_else(|_| builder().tls_certs_only([]).build());
        Ok(Http { client: client.map_err(|e| HttpError::Broken(cause(&e)))? })
    }

    /// Reads what a URL has, of at most so many bytes. `time` is for all of it.
    pub(super) async fn get(
        &self,
        url: &str,
        bytes_max: usize,
        time: Duration,
    ) -> Result<Reply, HttpError> {
        self.send(Method::GET, url, None, bytes_max, time).await
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<Vec<u8>>,
        bytes_max: usize,
        time: Duration,
    ) -> Result<Reply, HttpError> {
        let deadline = Instant::now() + time;
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let answered =
            async { rest(request.send().await.map_err(|e| failed(&e))?, bytes_max).await };
        timeout_at(deadline, answered).await.unwrap_or(Err(HttpError::Timeout))
    }
}

async fn rest(mut response: Response, bytes_max: usize) -> Result<Reply, HttpError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| failed(&e))? {
        if piece.len() > bytes_max - body.len() {
            return Err(HttpError::TooLarge);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Reply { status: response.status().as_u16(), body })
}

fn failed(e: &reqwest::Error) -> HttpError {
    match e.is_connect() {
        true => HttpError::NoConnection(cause(e)),
        false => HttpError::Broken(cause(e)),
    }
}

/// What lies at the bottom of it: the kernel's word, mostly.
fn cause(e: &reqwest::Error) -> String {
    let (mut text, mut source) = (e.to_string(), e.source());
    while let Some(below) = source {
        text = below.to_string();
        source = below.source();
    }
    clip(&text)
}

/// Where a registry is that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the registry's URL is not allowed: {0}")]
pub struct BadUrl(&'static str);

/// A registry, as somebody with a key asks it.
#[derive(Debug, Clone)]
pub struct Client {
    http: Http,
    base: Box<str>,
    time: Duration,
}

impl Client {
    /// A registry at `url` (`http://` or `https://`), which has `time` for each answer.
    pub fn new(url: &str, key: Option<&Key>, time: Duration) -> Result<Client, ClientError> {
        let base = check_url(url)?;
        Ok(Client { http: Http::new(key)?, base: base.into(), time })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.base
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Option<T>, CallError> {
        let url = format!("{}{path}", self.base);
        let not_json = |e: serde_json::Error| CallError::NotARegistry(clip(&e.to_string()));
        let body = body.map(serde_json::to_vec).transpose().map_err(not_json)?;
        let reply = self.http.send(method, &url, body, ANSWER_BYTES_MAX, self.time).await?;
        match reply.status {
            200 => Ok(Some(serde_json::from_slice(&reply.body).map_err(not_json)?)),
            304 => Ok(None),
            status => Err(match serde_json::from_slice::<ErrorBody>(&reply.body) {
                Ok(ErrorBody { error, message }) => {
                    CallError::Refused { status, error: clip(&error), message: clip(&message) }
                }
                Err(_) => CallError::NotARegistry(format!("status {status} without its error")),
            }),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<T, CallError> {
        let answer = self.call(method, path, body).await?;
        answer.ok_or_else(|| CallError::NotARegistry("304 to a question without a version".into()))
    }

    /// Announces a node.
    pub async fn announce(&self, node: &Announcement) -> Result<Announced, CallError> {
        self.ask(Method::POST, "/v1/nodes", Some(node)).await
    }

    /// Says that a node lives.
    pub async fn heartbeat(&self, id: &NodeId, word: &Heartbeat) -> Result<Heard, CallError> {
        self.ask(Method::POST, &format!("/v1/nodes/{id}/heartbeat"), Some(word)).await
    }

    /// Says by which view a process goes, and asks which one counts.
    pub async fn view(&self, id: &NodeId, standpoint: &Standpoint) -> Result<ViewReply, CallError> {
        self.ask(Method::POST, &format!("/v1/nodes/{id}/view"), Some(standpoint)).await
    }

    /// Lets a node go, if it is this process of it, which has ended what it did.
    pub async fn leave(&self, id: &NodeId, epoch: Option<&NodeId>) -> Result<Left, CallError> {
        let query = epoch.map(|epoch| format!("?epoch={epoch}&ended=true")).unwrap_or_default();
        self.ask(Method::DELETE, &format!("/v1/nodes/{id}{query}"), None::<&()>).await
    }

    /// The nodes that live, or all; `None` if they are as in the version that is known.
    pub async fn nodes(
        &self,
        all: bool,
        known: Option<u64>,
    ) -> Result<Option<NodeList>, CallError> {
        let known = known.map(|version| format!("&known={version}")).unwrap_or_default();
        self.call(Method::GET, &format!("/v1/nodes?all={all}{known}"), None::<&()>).await
    }

    /// The channels, of one node or all; `None` if they are as in the version that is known.
    pub async fn channels(
        &self,
        node: Option<&NodeId>,
        known: Option<u64>,
    ) -> Result<Option<ChannelList>, CallError> {
        let node = node.map(|id| format!("node={id}"));
        let known = known.map(|version| format!("known={version}"));
        let query: Vec<String> = node.into_iter().chain(known).collect();
        let path = format!("/v1/channels?{}", query.join("&"));
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// Adds a channel or changes it.
    pub async fn put_channel(&self, channel: &ChannelPut) -> Result<ChannelsChanged, CallError> {
        self.ask(Method::PUT, "/v1/channels", Some(channel)).await
    }

    /// Removes a channel.
    pub async fn remove_channel(&self, name: &str) -> Result<ChannelsChanged, CallError> {
        let query: String =
            form_urlencoded::Serializer::new(String::new()).append_pair("name", name).finish();
        self.ask(Method::DELETE, &format!("/v1/channels?{query}"), None::<&()>).await
    }

    /// Has the registry write a copy of its file.
    pub async fn backup(&self) -> Result<BackedUp, CallError> {
        self.ask(Method::POST, "/v1/backup", Some(&serde_json::Map::new())).await
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Its URL.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// Its key, or what this machine has for TLS.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// The URL of a registry as it is asked, if it may be one.
pub fn check_url(text: &str) -> Result<String, BadUrl> {
    if text.len() > URL_BYTES_MAX {
        return Err(BadUrl("at most 2048 bytes"));
    }
    let url = Url::parse(text).map_err(|_| BadUrl("one such as http://registry:9810"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(BadUrl("http:// and https://, with a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadUrl("no user and no password in it: the key is in a file"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(BadUrl("no ? and no # in it"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
