//! `fluxus`: what the clients of Fluxus speak (`VecturaPubSub`): channels, and methods that are called.
//!
//! Where its server and its published clients disagree, the clients count. Files are refused.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;

use super::object::{Object, quoted};
use super::raw;
use super::talk::{self, Opening, Step, Talk};
use crate::command::{Action, Payload, PayloadKind};
use crate::connection::Incoming;
use crate::error::ErrorCode;
use crate::event::{Event, Publication};
use crate::frame::{self, Opcode};
use crate::node;
use crate::printable::Printable;

/// What all who have said who they are may call themselves.
const USER_ROLE: &str = "ws:user";
/// Who has worked on an answer: a number that clients only show.
const WORKER: u32 = 0;

/// What an answer is to, with what it is about behind it.
mod asked {
    pub(super) const AUTH: &str = "auth";
    pub(super) const SUBSCRIBE: &str = "subscribe:";
    pub(super) const UNSUBSCRIBE: &str = "unsubscribe:";
    pub(super) const PUBLISH: &str = "publish:";
    pub(super) const CALL: &str = "call:";
    pub(super) const OTHER: &str = "other:";
    pub(super) const METHODS: &str = "list_rpc_methods";
    pub(super) const CHANNELS: &str = "list_channels";
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Fluxus {
    number: u32,
    is_user: bool,
    /// Of its own replies.
    ids: u64,
    /// Calls under way, by their ids in JSON: when they were made.
    calls: BTreeMap<String, u64>,
}

impl Fluxus {
    pub(super) fn new() -> Fluxus {
        Fluxus { number: 0, is_user: false, ids: 0, calls: BTreeMap::new() }
    }

    fn reply(&mut self, kind: &str, more: &str, now_ms: u64) -> Step {
        self.ids += 1;
        let unique = (now_ms << 12 | self.ids & 0xfff) & 0xf_ffff_ffff_ffff;
        let capital = kind.get(..1).unwrap_or_default().to_uppercase();
        let rest = kind.get(1..).unwrap_or_default();
        Step::say(&format!(
            "{{\"id\":\"Fxs::{capital}{rest}{unique:013x}\",\"type\":\"{kind}\",{more}}}"
        ))
    }

    fn success(&mut self, message: &str, now_ms: u64) -> Step {
        self.reply("success", &format!("\"message\":{}", quoted(message)), now_ms)
    }

    fn error(&mut self, message: &str, now_ms: u64) -> Step {
        let now = now_ms / 1000;
        let more = format!(
            "\"message\":{},\"_metadata\":{{\"worker_id\":{WORKER},\"timestamp\":{now}}}",
            quoted(message)
        );
        self.reply("error", &more, now_ms)
    }

    fn authenticated(&mut self, roles: &[smol_str::SmolStr], now_ms: u64) -> Step {
        self.is_user = true;
        let own = roles.iter().filter_map(|own| own.strip_prefix("role:"));
        let own = own.filter(|role| *role != USER_ROLE);
        let roles: Vec<_> = [USER_ROLE].into_iter().chain(own).map(quoted).collect();
        let more = format!(
            "\"success\":true,\"message\":\"Autenticado\",\"data\":{{\"roles\":[{}],\"permissions\":[],\
             \"authenticated\":true}},\"_metadata\":{{\"client_fd\":{},\"worker_id\":{WORKER}}}",
            roles.join(","),
            self.number
        );
        self.reply("auth_response", &more, now_ms)
    }

    fn channel(&mut self, message: &Object, now_ms: u64) -> Result<String, Step> {
        let channel = message.text("channel").filter(|channel| !channel.is_empty());
        channel.map(Cow::into_owned).ok_or_else(|| self.error("Nombre de canal requerido", now_ms))
    }

    fn publish(&mut self, message: &Object, now_ms: u64) -> Step {
        let channel = match self.channel(message, now_ms) {
            Ok(channel) => channel,
            Err(step) => return step,
        };
        let data = match message.raw("data").unwrap_or("[]") {
            "null" => return self.error("Datos del mensaje requeridos", now_ms),
            // As the original coerces them.
            "true" => "\"1\"".into(),
            "false" => "\"\"".into(),
            raw if raw.starts_with(['"', '{', '[']) => Cow::Borrowed(raw),
            number => Cow::Owned(format!("\"{number}\"")),
        };
        let bytes = Cow::Owned(data.into_owned().into_bytes());
        let payload = Payload { kind: PayloadKind::Json, bytes };
        let id = format!("{}{channel}", asked::PUBLISH);
        Step::ask_as(id, Action::publish(channel, payload, true))
    }

    /// Tells which methods there are; `data` is the result of `server.methods`.
    fn methods(&mut self, data: &str, now_ms: u64) -> Step {
        let listed: Listed = serde_json::from_str(data).unwrap_or_default();
        let each = listed.methods.iter().map(|own| {
            serde_json::json!({
                "name": own.method, "requires_auth": !own.allow_guest, "allowed_roles": own.roles,
                "available_in_worker": true, "description": own.description, "registered_at": null,
            })
        });
        let methods: Vec<_> = each.collect();
        let (total, methods) = (methods.len(), serde_json::Value::from(methods));
        let now = now_ms / 1000;
        let meta = format!("{{\"worker_id\":{WORKER},\"timestamp\":{now}}}");
        let more = format!("\"methods\":{methods},\"total\":{total},\"_metadata\":{meta}");
        self.reply("rpc_methods_list", &more, now_ms)
    }

    /// Tells which channels there are; `data` is the result of `channels.list`.
    fn channels(&mut self, data: &str, now_ms: u64) -> Step {
        let listed: Listed = serde_json::from_str(data).unwrap_or_default();
        let each = listed
            .channels
            .iter()
            .map(|own| serde_json::json!({"name": own.channel, "subscribers": own.subscribers}));
        let channels = serde_json::Value::from(each.collect::<Vec<_>>());
        self.reply("channel_list", &format!("\"channels\":{channels}"), now_ms)
    }

    fn call(&mut self, message: &Object, now_ms: u64) -> Vec<Step> {
        let Some(id) = message.name("id").and(message.raw("id")) else {
            return vec![self.error("El id de la llamada es requerido", now_ms)];
        };
        let now = now_ms / 1000;
        // Without it clients take no result for theirs.
        let accepted = Step::say(&format!(
            "{{\"id\":{id},\"type\":\"rpc_response\",\"status\":\"accepted\",\
             \"_metadata\":{{\"worker_id\":{WORKER},\"timestamp\":{now}}}}}"
        ));
        let Some(method) = message.text("method").filter(|method| !method.is_empty()) else {
            return vec![accepted, failed(id, 500, "Method not specified", now_ms)];
        };
        let seconds = message.raw("timeout").and_then(|seconds| seconds.parse::<u32>().ok());
        // What the original takes for no limit is one that clients have given up on.
        let seconds = seconds.unwrap_or(30);
        let timeout_ms = (seconds > 0).then(|| seconds.saturating_mul(1000));
        let params = message.raw("params").filter(|params| params.starts_with('{'));
        self.calls.insert(id.to_owned(), now_ms);
        let call = Action::Rpc {
            method: Cow::Owned(method.into_owned()),
            params: params.map(|params| Cow::Owned(params.to_owned())),
            timeout_ms,
        };
        vec![accepted, Step::ask_as(format!("{}{id}", asked::CALL), call)]
    }

    fn unknown(&mut self, action: &str, now_ms: u64) -> Step {
        let action = Printable::name(action);
        let text = format!("El mensaje no puede procesarse no processor for {action}");
        self.error(&text, now_ms)
    }

    fn command(&mut self, message: &Object, now_ms: u64) -> Vec<Step> {
        let action = message.text("action").unwrap_or_default();
        match &*action {
            "" => vec![self.error("El mensaje no puede procesarse no action", now_ms)],
            "authenticate" => {
                let token = message.text("token").map(|token| Cow::Owned(token.into_owned()));
                // None would ask who it is.
                let token = Some(token.unwrap_or_default());
                vec![Step::ask_as(asked::AUTH, Action::Auth { token })]
            }
            "subscribe" | "unsubscribe" => vec![match self.channel(message, now_ms) {
                Ok(name) if action == "subscribe" => {
                    Step::subscribe(format!("{}{name}", asked::SUBSCRIBE), &name)
                }
                Ok(name) => Step::unsubscribe(format!("{}{name}", asked::UNSUBSCRIBE), &name),
                Err(step) => step,
            }],
            "publish" => vec![self.publish(message, now_ms)],
            "rpc" => self.call(message, now_ms),
            asked::METHODS => vec![ask_for_list(asked::METHODS, "server.methods")],
            asked::CHANNELS => vec![ask_for_list(asked::CHANNELS, "channels.list")],
            "send_file" | "request_file" => {
                let request = message.raw("request_id").unwrap_or("null");
                let why = quoted("Transferencia de archivos no disponible");
                let more = format!("\"request_id\":{request},\"success\":false,\"error\":{why}");
                vec![self.reply("file_response", &more, now_ms)]
            }
            other if talk::may_be_known(other) => {
                let id = format!("{}{other}", asked::OTHER);
                let otherwise = Err(talk::unknown(other, "fluxus"));
                vec![Step::other(id, other, message.with(&[]), otherwise)]
            }
            other => vec![self.unknown(other, now_ms)],
        }
    }

    /// What is refused is told in the words that clients know, where there are any.
    fn refused(&mut self, asked: &str, code: ErrorCode, why: &str, now_ms: u64) -> Step {
        if asked == asked::AUTH {
            let more = format!("\"success\":false,\"error\":{}", quoted(why));
            return self.reply("auth_response", &more, now_ms);
        }
        if let Some(id) = asked.strip_prefix(asked::CALL) {
            self.calls.remove(id);
            let (number, text) = match code {
                ErrorCode::UnknownMethod => (503, "Servicio no disponible temporalmente"),
                ErrorCode::Unauthenticated => (401, "No autenticado"),
                ErrorCode::Forbidden if !self.is_user => (401, "No autenticado"),
                ErrorCode::Forbidden => (403, why),
                _ => (500, why),
            };
            return failed(id, number, text, now_ms);
        }
        if asked == asked::METHODS && code == ErrorCode::UnknownMethod {
            return self.error("Protocolo de RPC no disponible", now_ms);
        }
        let is_list = matches!(asked, asked::METHODS | asked::CHANNELS);
        if let Some(action) = asked.strip_prefix(asked::OTHER).or(is_list.then_some(asked)) {
            return match code {
                ErrorCode::UnknownMethod => self.unknown(action, now_ms),
                ErrorCode::UnknownCommand => self.unknown(action, now_ms),
                ErrorCode::Forbidden if !self.is_user => self.error("No autenticado", now_ms),
                _ => self.error(why, now_ms),
            };
        }
        match code {
            ErrorCode::AlreadySubscribed | ErrorCode::NotSubscribed => self.done(asked, 0, now_ms),
            ErrorCode::Forbidden | ErrorCode::Unauthenticated if !self.is_user => {
                self.error("Channel is only for authenticated users", now_ms)
            }
            ErrorCode::Forbidden if !asked.is_empty() => {
                self.error("User does not have required role", now_ms)
            }
            _ => self.error(why, now_ms),
        }
    }

    /// Something with a channel was done.
    fn done(&mut self, asked: &str, subscribers: u64, now_ms: u64) -> Step {
        let (what, channel) = asked.split_once(':').unwrap_or_default();
        let text = match what {
            "subscribe" => format!("Suscrito al canal: {channel}"),
            "unsubscribe" => format!("Desuscrito del canal: {channel}"),
            _ => format!("Mensaje publicado en: {channel} (local: {subscribers} clientes)"),
        };
        self.success(&text, now_ms)
    }
}

/// What there is, as methods of the engine say it.
#[derive(Debug, Default, Deserialize)]
struct Listed<'a> {
    #[serde(borrow, default)]
    methods: Vec<Method<'a>>,
    #[serde(borrow, default)]
    channels: Vec<Channel<'a>>,
}

#[derive(Debug, Deserialize)]
struct Method<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    description: Cow<'a, str>,
    allow_guest: bool,
    roles: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Channel<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    subscribers: u64,
}

fn ask_for_list(asked: &'static str, method: &'static str) -> Step {
    let (method, params, timeout_ms) = (Cow::Borrowed(method), None, None);
    Step::ask_as(asked, Action::Rpc { method, params, timeout_ms })
}

/// A call without a result, as all clients understand it. `id` is JSON.
fn failed(id: &str, code: u16, message: &str, now_ms: u64) -> Step {
    let (message, now) = (quoted(message), now_ms / 1000);
    Step::say(&format!(
        "{{\"id\":{id},\"type\":\"rpc_response\",\"status\":\"error\",\"error\":{{\"code\":{code},\
         \"message\":{message}}},\"_metadata\":{{\"worker_id\":{WORKER},\"timestamp\":{now}}}}}"
    ))
}

/// A `message` of the server `origin`, which it also publishes in Redis.
pub(crate) fn message(
    channel: &str,
    (kind, bytes): (PayloadKind, &[u8]),
    seconds: u64,
    publisher: u32,
    origin: &str,
) -> Vec<u8> {
    let (channel, origin) = (quoted(channel), quoted(origin));
    let mut body = format!("{{\"type\":\"message\",\"channel\":{channel},\"data\":").into_bytes();
    raw::write_json(&mut body, kind, bytes);
    let meta = format!(
        ",\"_metadata\":{{\"timestamp\":{seconds},\"publisher\":{publisher},\"origin_server\":{origin}}}}}"
    );
    body.extend_from_slice(meta.as_bytes());
    body
}

/// The frame of a publication, of a channel whose name is `shown`.
pub(crate) fn write_publication(out: &mut Vec<u8>, shown: &str, publication: &Publication) {
    let (seconds, number) =
        publication.meta.map_or((0, 0), |meta| (meta.time_ms / 1000, meta.number));
    let payload = (publication.kind, publication.bytes);
    let body = message(shown, payload, seconds, number, node::name());
    frame::write_server(out, Opcode::Text, &body);
}

impl Talk for Fluxus {
    /// Neither side greets.
    fn open(&mut self, opening: &Opening, _now_ms: u64) -> Vec<Step> {
        self.number = opening.number;
        self.is_user = opening.user.is_some();
        Vec::new()
    }

    fn message(&mut self, message: &Incoming, now_ms: u64) -> Vec<Step> {
        let object = match *message {
            Incoming::Text(text) => Object::parse(text),
            _ => None,
        };
        self.command(&object.unwrap_or_default(), now_ms)
    }

    fn event(&mut self, event: &Event, now_ms: u64) -> Vec<Step> {
        let step = match event {
            Event::Connected { id, user, attributes, .. } => {
                self.is_user |= user.is_some();
                if id.is_none() {
                    return Vec::new();
                }
                self.authenticated(attributes, now_ms)
            }
            Event::Subscribed { id: Some(asked), .. }
            | Event::Unsubscribed { id: Some(asked), .. } => self.done(asked, 0, now_ms),
            Event::Published { id: Some(asked), subscribers, .. } => {
                self.done(asked, *subscribers, now_ms)
            }
            Event::Result { id: asked::METHODS, data } => self.methods(data, now_ms),
            Event::Result { id: asked::CHANNELS, data } => self.channels(data, now_ms),
            Event::Result { id, data } => {
                let Some(id) = id.strip_prefix(asked::CALL) else { return Vec::new() };
                let began_ms = self.calls.remove(id).unwrap_or(now_ms);
                let (took, now) = (now_ms.saturating_sub(began_ms), now_ms / 1000);
                Step::say(&format!(
                    "{{\"id\":{id},\"type\":\"rpc_response\",\"status\":\"success\",\"result\":{data},\
                     \"_metadata\":{{\"execution_time\":{took},\"timestamp\":{now}}}}}"
                ))
            }
            // What the application says to an action of its own is what is sent.
            Event::Reply { data, .. } if *data != "null" => Step::say(data),
            Event::Direct { kind, bytes, .. } => Step::payload(*kind, bytes),
            Event::Error { id, code, message } => {
                self.refused(id.unwrap_or_default(), *code, message, now_ms)
            }
            _ => return Vec::new(),
        };
        vec![step]
    }
}
