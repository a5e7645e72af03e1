//! Who asks for a connection: the token that a request shows, and what the application says of it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand::Rng as _;
use ringfeed_protocol::handshake::{Refusal, Request, bearer};
use ringfeed_protocol::printable::Detail;
use ringfeed_protocol::{Dialect, Refused};
use tokio::sync::oneshot;

use super::Door;
use crate::access::token::{Checked, TokenError};
use crate::access::{Admitted, Identity};
use crate::clock::Clock;
use crate::config::{Config, TokenPlace};
use crate::counters::RefusalReason;
use crate::ids::ConnectionId;
use crate::message::{Answer, Caller, ConnectRequest, Denied, Question};
use crate::settings::Settings;
use crate::shard::asks::Awaiting;
use crate::shard::session::Credentials;

/// What stands before a token among the subprotocols, which are all that a page can choose freely.
const SUBPROTOCOL: &str = "bearer.";
/// Whom the application cannot be asked about is told to come again within so many seconds, each within others.
const RETRY_AFTER_S: std::ops::RangeInclusive<u32> = 1..=10;

/// What a request shows of who asks.
#[derive(Debug)]
pub(super) struct Shown {
    token: Option<Box<str>>,
    /// What the application is shown, where it is asked.
    request: Option<Box<ConnectRequest>>,
}

/// Why a request does not become a connection.
pub(super) type NotLetIn = (RefusalReason, Refusal);

impl Shown {
    /// Looks in the places that the configuration names, in their order.
    pub(super) fn of(
        request: &Request,
        protocols: &[&str],
        settings: &Settings,
        address: IpAddr,
    ) -> Shown {
        let config = &settings.config;
        let token = config.auth.token_from.iter().find_map(|place| match place {
            TokenPlace::Header => {
                let token = bearer(request.header("authorization")?)?;
                std::str::from_utf8(token).ok().map(str::trim)
            }
            TokenPlace::Query => request.query_value(&config.auth.token_query),
            TokenPlace::Cookie => cookie(request, &config.auth.token_cookie),
            TokenPlace::Subprotocol => {
                protocols.iter().find_map(|name| name.strip_prefix(SUBPROTOCOL))
            }
            TokenPlace::Message => None,
        });
        let token = token.filter(|token| !token.is_empty()).map(Box::from);
        let asked = settings.access.asks_on_connect;
        let request = asked.then(|| Box::new(connect_request(request, config, address)));
        Shown { token, request }
    }
}

/// What the application is shown of a request.
fn connect_request(request: &Request, config: &Config, address: IpAddr) -> ConnectRequest {
    let hooks = &config.hooks;
    let forwarded = hooks.forward_headers.iter().flat_map(|name| {
        let few = name.eq_ignore_ascii_case("cookie") && !hooks.connect_cookies.is_empty();
        request.all(name).filter_map(move |value| {
            let value = match few {
                true => shown_cookies(value, &hooks.connect_cookies)?,
                false => value.into(),
            };
            Some((name.to_ascii_lowercase().into(), value))
        })
    });
    ConnectRequest {
        address,
        path: request.path.into(),
        query: request.query.into(),
        headers: forwarded.collect(),
    }
}

/// The cookies of these names in one header field; `None` where there are none.
fn shown_cookies(value: &[u8], names: &[String]) -> Option<Box<[u8]>> {
    let pairs = value.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let is_shown = |pair: &&[u8]| {
        let name = pair.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
        names.iter().any(|shown| shown.as_bytes() == name)
    };
    let shown: Vec<&[u8]> = pairs.filter(is_shown).collect();
    (!shown.is_empty()).then(|| shown.join(&b"; "[..]).into())
}

/// Whether a subprotocol is a token and none that could be spoken.
pub(super) fn is_token(protocol: &str, config: &Config) -> bool {
    config.auth.token_from.contains(&TokenPlace::Subprotocol) && protocol.starts_with(SUBPROTOCOL)
}

/// The first cookie of a name (RFC 6265 section 5.4).
fn cookie<'a>(request: &Request<'a>, name: &str) -> Option<&'a str> {
    let lines = request.all("cookie").filter_map(|line| std::str::from_utf8(line).ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().trim_matches('"'))
}

impl Door {
    /// Finds out who asks. Takes as long as somebody else does who has to be asked, and no longer than the
    /// configuration gives them.
    pub(super) async fn identify(
        &self,
        settings: &Settings,
        Shown { token, request }: Shown,
        dialect: Dialect,
    ) -> Result<Credentials, NotLetIn> {
        let access = &settings.access;
        let mut found = Credentials::default();
        if let Some(token) = &token {
            match self.check_token(settings, token).await {
                Ok(admitted) => found.admitted = Some(Box::new(admitted)),
                Err(e) => {
                    self.counters.tokens_refused.add(1);
                    return self.turn_away(settings, 401, e.to_string());
                }
            }
        }
        if let Some(request) = request {
            return self.ask_application(settings, request, found).await;
        }
        if found.admitted.is_some() || access.takes_anonymous {
            return Ok(found);
        }
        let by_message = settings.config.auth.token_from.contains(&TokenPlace::Message);
        if by_message && dialect.has_auth() {
            found.must_authenticate = true;
            return Ok(found);
        }
        self.turn_away(settings, 401, "a token is needed".into())
    }

    async fn check_token(&self, settings: &Settings, token: &str) -> Result<Admitted, TokenError> {
        let check = || {
            let keys = self.shared.remote_keys.load();
            settings.access.issuers.check(token, Clock::Machine.unix_s(), &keys)
        };
        match check() {
            Err(TokenError::UnknownKey { url, kid }) => {
                self.ask(settings, Question::Keys { url, kid }).await;
                check()
            }
            checked => checked,
        }
        .map(Checked::into_admitted)
    }

    async fn ask_application(
        &self,
        settings: &Settings,
        request: Box<ConnectRequest>,
        mut found: Credentials,
    ) -> Result<Credentials, NotLetIn> {
        let number = rand::random::<u64>();
        let identity = found.admitted.as_ref().map(|admitted| admitted.identity.clone());
        let identity: Identity = identity.unwrap_or_default();
        let connection = ConnectionId { shard: self.shard, number };
        let caller = Caller { connection, identity: identity.into() };
        found.number = Some(number);
        match self.ask(settings, Question::Connect { caller, request }).await {
            Some(Answer::Connect(Ok(admitted))) => {
                // It goes on from what the token says; channels are what both name.
                let named = found.admitted.take().map(|token| token.channels);
                let mut admitted = admitted;
                admitted.channels.extend(named.into_iter().flatten());
                if admitted.identity.user.is_none() && !settings.access.takes_anonymous {
                    return self.turn_away(settings, 401, "the application names no user".into());
                }
                found.admitted = Some(admitted);
                Ok(found)
            }
            Some(Answer::Connect(Err(Denied::Refused { status, text }))) => {
                let text = text.to_string();
                if status >= 500 {
                    let refusal = Refusal::new(status, format!("{text}\n"));
                    return Err((RefusalReason::Unavailable, refusal));
                }
                let said = if text.is_empty() { "the application refuses it".into() } else { text };
                self.turn_away(settings, status, said)
            }
            Some(Answer::Connect(Err(Denied::Unavailable(why)))) => Err(come_again(why)),
            _ => Err(come_again("the application did not answer in time")),
        }
    }

    /// Asks the control thread and waits for the answer, which the shard hands on: nobody wakes this thread's
    /// executor from another one.
    async fn ask(&self, settings: &Settings, question: Question) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        let time = Duration::from_millis(settings.config.hooks.timeout_ms.into());
        let at = (self.shard, Instant::now());
        let asks = &self.local.asks;
        let asked = asks.ask(&self.shared.questions, at, time, question, Awaiting::Door(reply));
        if asked.is_err() {
            self.counters.questions_refused.add(1);
            return None;
        }
        answer.await.ok()
    }

    /// Refuses, before the upgrade or right behind it.
    fn turn_away(
        &self,
        settings: &Settings,
        status: u16,
        why: String,
    ) -> Result<Credentials, NotLetIn> {
        if settings.config.auth.refuse_after_upgrade {
            let refused = Refused::Unauthenticated { detail: Detail::new(why) };
            return Ok(Credentials { refused: Some(refused), ..Credentials::default() });
        }
        let headers = if status == 401 { "WWW-Authenticate: Bearer\r\n" } else { "" };
        let refusal = Refusal { status, headers: headers.into(), text: format!("{why}\n") };
        Err((RefusalReason::Unauthenticated, refusal))
    }
}

fn come_again(why: &str) -> NotLetIn {
    let seconds = rand::rng().random_range(RETRY_AFTER_S);
    let headers = format!("Retry-After: {seconds}\r\n").into();
    let text = format!("{why}; come again in {seconds} s\n");
    (RefusalReason::Unavailable, Refusal { status: 503, headers, text })
}
