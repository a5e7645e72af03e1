//! Sends one request and reads its answer, both bounded.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::Resolve;
use reqwest::{Request, Response, redirect, retry};
use tokio::time::{Instant, timeout_at};

use super::address::{Guarded, NotPublic};
use super::failure::Failure;

/// Connections that are kept without a request, for each host.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Many servers close what is idle for 5 s: whoever sends just then loses a request that must not be sent twice.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Who has not answered by then is not there, and has got nothing: the kernel has asked twice.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const USER_AGENT: &str = concat!("ringfeed/", env!("CARGO_PKG_VERSION"));

/// What came back.
#[derive(Debug)]
pub(in crate::control) struct Reply {
    pub(in crate::control) status: u16,
    pub(in crate::control) body: Vec<u8>,
}

/// Speaks HTTP/1.1 and follows nobody's advice: no redirects, proxies, cookies or compression.
#[derive(Debug, Clone)]
pub(in crate::control) struct Client {
    http: reqwest::Client,
    allow_private: bool,
    tls: bool,
}

impl Client {
    /// With `tls`, the machine's certificates are read.
    pub(in crate::control) fn new(
        names: Arc<dyn Resolve>,
        allow_private: bool,
        tls: bool,
    ) -> reqwest::Result<Client> {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .referer(false)
            .http1_only()
            .dns_resolver(Arc::new(Guarded::new(names, allow_private)))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        if !tls {
            // A machine without certificates can still ask without TLS.
            builder = builder.tls_certs_only([]);
        }
        Ok(Client { http: builder.build()?, allow_private, tls })
    }

    /// Whether it was made so: reading certificates takes time, and another one would have none of its connections.
    pub(super) fn was_made_for(&self, allow_private: bool, tls: bool) -> bool {
        (self.allow_private, self.tls) == (allow_private, tls)
    }

    /// One request, to the last byte of its answer, which may have so many. `timeout` is for all of it, however
    /// slowly it comes.
    pub(in crate::control) async fn send(
        &self,
        request: Request,
        bytes_max: usize,
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let deadline = Instant::now() + timeout;
        let head = timeout_at(deadline, self.http.execute(request)).await;
        let response = head.map_err(|_| Failure::Timeout)?.map_err(|e| failure(&e))?;
        let rest = timeout_at(deadline, Client::rest(response, bytes_max)).await;
        rest.unwrap_or(Err(Failure::Slow))
    }

    async fn rest(mut response: Response, bytes_max: usize) -> Result<Reply, Failure> {
        let bytes_max_u64 = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        if response.content_length().is_some_and(|bytes| bytes > bytes_max_u64) {
            return Err(Failure::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| failure(&e))? {
            if piece.len() > bytes_max - body.len() {
                return Err(Failure::TooLarge);
            }
            body.extend_from_slice(&piece);
        }
        Ok(Reply { status: response.status().as_u16(), body })
    }
}

/// Which failure it was. What it says is dropped: it may name the URL.
fn failure(e: &reqwest::Error) -> Failure {
    let mut source = e.source();
    while let Some(cause) = source {
        if cause.is::<NotPublic>() {
            return Failure::NotPublic;
        }
        source = cause.source();
    }
    if e.is_connect() { Failure::NoConnection } else { Failure::Broken }
}
