//! The registry that nodes of DistributedWebSocket ask, as they ask it: either version of it, or `ringfeed registry`.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Request, Url};
use serde_json::{Value, json};

use super::NODES_MAX;
use crate::config::Config;
use crate::control::hooks::client::Client;
use crate::registry::client::check_url;
use crate::registry::names::NodeUrl;

/// Of an answer, in bytes: more nodes than are told.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// See the module's description.
pub(super) struct Registry {
    client: Client,
    base: String,
    key: HeaderValue,
    id: String,
    /// Where nodes reach this one, if the registry is to know.
    own_url: Option<String>,
}

impl Registry {
    /// `None` where there is none.
    ///
    /// # Errors
    /// What is wrong with what the configuration says of it.
    pub(super) fn new(config: &Config, client: Client) -> Result<Option<Registry>, String> {
        let own = &config.wsnode;
        if own.registry.is_empty() {
            return Ok(None);
        }
        let base = check_url(&own.registry).map_err(|e| format!("wsnode.registry: {e}"))?;
        let mut key = HeaderValue::from_bytes(&own.key.0)
            .map_err(|_| "wsnode.key fits no header".to_owned())?;
        key.set_sensitive(true);
        let own_url = Some(own.url.clone()).filter(|url| !url.is_empty());
        let id = config.server.node_id.clone();
        Ok(Some(Registry { client, base, key, id, own_url }))
    }

    /// Says that this node is there; nothing where it is not to be known.
    pub(super) async fn announce(&self, status: &str) {
        let Some(url) = &self.own_url else { return };
        let (id, node) = (&self.id, format!("/nodes/{}", self.id));
        // That in PHP has the first, that in Node.js the others, of which the second is for nodes that it knows.
        let ways = [
            ("/announce", json!({"id": id, "url": url, "status": status})),
            (&*format!("{node}/heartbeat"), json!({})),
            ("/nodes", json!({"id": id, "url": url})),
        ];
        let mut answered = Ok((404, Vec::new()));
        for (path, body) in ways {
            answered = self.ask(Method::POST, path, Some(&body)).await;
            if !matches!(answered, Ok((404, _))) {
                break;
            }
        }
        match answered {
            Ok((200..=299, _)) => {}
            Ok((status, _)) => {
                self.complain("this node is not announced", &format!("status {status}"))
            }
            Err(why) => self.complain("this node is not announced", &why),
        }
    }

    /// The nodes that it lists as active; `None` where it does not say.
    pub(super) async fn nodes(&self) -> Option<Vec<(Option<String>, NodeUrl)>> {
        let why = match self.ask(Method::GET, "/nodes", None).await {
            Ok((200, body)) => match serde_json::from_slice::<Vec<Value>>(&body) {
                Ok(rows) => return Some(self.listed(&rows)),
                Err(_) => "the answer is no list".into(),
            },
            Ok((status, _)) => format!("status {status}"),
            Err(why) => why,
        };
        self.complain("the nodes are those that were known before", &why);
        None
    }

    fn listed(&self, rows: &[Value]) -> Vec<(Option<String>, NodeUrl)> {
        let text = |row: &Value, field: &str| row.get(field)?.as_str().map(str::to_owned);
        let active =
            rows.iter().filter(|row| text(row, "status").is_none_or(|own| own == "active"));
        let (mut nodes, mut left_out) = (Vec::new(), None);
        for row in active {
            match text(row, "url").map(|url| url.parse::<NodeUrl>()) {
                Some(Ok(url)) => nodes.push((text(row, "id"), url)),
                Some(Err(e)) => left_out = left_out.or(Some(e.to_string())),
                None => left_out = left_out.or(Some("it has no url".into())),
            }
            // This one may be among them.
            if nodes.len() > NODES_MAX + 1 {
                break;
            }
        }
        if let Some(why) = left_out {
            self.complain("one node or more is left out", &why);
        }
        nodes
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Vec<u8>), String> {
        let url = Url::parse(&format!("{}{path}", self.base)).map_err(|e| e.to_string())?;
        let mut request = Request::new(method, url);
        request.headers_mut().insert(HeaderName::from_static("x-api-key"), self.key.clone());
        if let Some(body) = body {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
            *request.body_mut() = Some(body.to_string().into());
        }
        let reply = self.client.send(request, ANSWER_BYTES_MAX, TIMEOUT).await;
        reply.map(|reply| (reply.status, reply.body)).map_err(|e| e.to_string())
    }

    fn complain(&self, what: &str, why: &str) {
        tracing::warn!(registry = self.base, "wsnode: {what}: {why}");
    }
}
