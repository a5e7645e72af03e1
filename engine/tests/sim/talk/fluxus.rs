//! A client of `fluxus`: it subscribes, publishes and calls methods.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::client::{Client, Scene};
use super::super::judge::{self, Rule};
use super::super::link::{Link, Pending, Want};
use super::APPLICATION_SAID;

/// What is said in frames that hold no message.
pub(super) const BINARY: &str = NO_ACTION;
const NO_ACTION: &str = "El mensaje no puede procesarse no action";
/// Where the application knows nothing of it.
const UNKNOWN: &str = "El mensaje no puede procesarse no processor for custom";
const NO_CHANNEL: &str = "Nombre de canal requerido";
/// What the dialect refuses, and how.
pub(super) const BAD: &[(&str, &str)] = &[
    ("", NO_ACTION),
    ("{}", NO_ACTION),
    ("[1]", NO_ACTION),
    ("{\"action\":7}", NO_ACTION),
    ("{\"action\":\"subscribe\"}", NO_CHANNEL),
    ("{\"action\":\"unsubscribe\",\"channel\":\"\"}", NO_CHANNEL),
    ("{\"action\":\"publish\",\"data\":{}}", NO_CHANNEL),
    (
        "{\"action\":\"publish\",\"channel\":\"g0.c0\",\"data\":null}",
        "Datos del mensaje requeridos",
    ),
    ("{\"action\":\"rpc\"}", "El id de la llamada es requerido"),
];

/// What a client knows of its connection.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Calls without a result: whether they were accepted.
    calls: BTreeMap<u64, bool>,
}

/// Something that was said.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    channel: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    message: Option<String>,
    status: Option<&'a str>,
    success: Option<bool>,
}

/// How a command is called: the field with its name, the name, and the field with the channel.
pub(super) fn words(want: Want) -> (&'static str, &'static str, &'static str) {
    let name = match want {
        Want::Subscribe { .. } => "subscribe",
        Want::Unsubscribe => "unsubscribe",
        Want::Publish(_) => "publish",
        Want::Auth { .. } => "authenticate",
        Want::Call(_) => "rpc",
        _ => "custom",
    };
    ("action", name, "channel")
}

/// The id that a call has, in JSON.
pub(super) fn id_of(call: u64) -> String {
    if call.is_multiple_of(2) { format!("\"Fxs::{call}\"") } else { call.to_string() }
}

impl Client {
    /// Returns whether it is something that may be said.
    pub(super) fn fluxus_said(&mut self, text: &str, scene: &mut Scene) -> bool {
        if let Some(number) = judge::direct_in(text.as_bytes()) {
            if let Some(link) = &mut self.link {
                link.direct(number, scene);
            }
            return true;
        }
        if text == APPLICATION_SAID {
            if let Some(link) = &mut self.link {
                link.told_of(text, |want| *want == Want::Other, scene);
            }
            return true;
        }
        let Ok(said) = serde_json::from_str::<Said>(text) else { return false };
        let message = said.message.as_deref().unwrap_or_default();
        match said.kind.unwrap_or_default() {
            "message" => {
                let channel = said.channel.as_deref();
                let channel = channel.and_then(|name| self.channel_named(name, scene));
                let (Some(channel), Some(data)) = (channel, said.data) else { return false };
                self.published(channel, data, scene);
                true
            }
            "success" => self.done(message, scene),
            "rpc_response" => {
                let Some((link, id)) = self.link.as_mut().zip(said.id) else { return false };
                link.called(id.get(), said.status.unwrap_or_default(), said.result, scene)
            }
            "auth_response" => {
                let Some((link, success)) = self.link.as_mut().zip(said.success) else {
                    return false;
                };
                link.told_who_it_is(success, None, scene);
                true
            }
            "error" => {
                let Some(link) = &mut self.link else { return true };
                let bad = |want: &Want| matches!(want, Want::Bad(own) if *own == message);
                match BAD.iter().any(|(_, own)| *own == message) {
                    true => link.told_of(message, bad, scene),
                    false if message == UNKNOWN => {
                        link.told_of(message, |want| *want == Want::Other, scene);
                    }
                    false => link.told_error(message, scene),
                }
                true
            }
            _ => false,
        }
    }

    /// Something with a channel was done.
    fn done(&mut self, message: &str, scene: &mut Scene) -> bool {
        let Some((what, name)) = message.split_once(": ") else { return false };
        let name = name.split_once(" (local: ").map_or(name, |(name, _)| name);
        let Some(channel) = self.channel_named(name, scene) else { return false };
        let Some(link) = &mut self.link else { return true };
        match what {
            "Suscrito al canal" => link.told_subscribed(channel, scene),
            "Desuscrito del canal" => link.told_unsubscribed(channel, false, scene),
            "Mensaje publicado en" => {
                let is_this = |pending: &Pending| matches!(pending.want, Want::Publish(_));
                link.answered(channel, is_this, scene);
            }
            _ => return false,
        }
        true
    }
}

impl Link {
    /// A call was accepted, or has come to an end.
    fn called(
        &mut self,
        id: &str,
        status: &str,
        result: Option<&RawValue>,
        scene: &mut Scene,
    ) -> bool {
        let digits: String = id.chars().filter(char::is_ascii_digit).collect();
        let Some(number) = digits.parse().ok().filter(|&own| id_of(own) == id) else {
            return false;
        };
        let at = self.pending.iter().position(|pending| pending.want == Want::Call(number));
        let was_accepted = self.talk.fluxus.calls.insert(number, true).is_some();
        let fits = match status {
            "accepted" => at.is_some() && !was_accepted,
            "success" => {
                let own = result.is_some_and(|own| own.get() == format!("[{number}]"));
                at.is_some() && was_accepted && own
            }
            "error" => at.is_some() && was_accepted,
            _ => return false,
        };
        if !fits {
            let what = format_args!(
                "{} got {status} for call {id}; accepted before: {was_accepted}, waits: {}",
                self.who,
                at.is_some()
            );
            scene.judge.broken(Rule::Told, what);
        }
        if let Some(at) = at.filter(|_| status != "accepted") {
            self.take(at);
        }
        true
    }
}
