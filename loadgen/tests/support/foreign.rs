//! A small WebSocket server that is not ringfeed, and what may be wrong with one.
//!
//! It speaks lines (`SUB channel`, `PUB channel payload`) and as much of `ringfeed.v1` and `raw.v1`
//! as it takes to subscribe and publish.
#![allow(clippy::disallowed_types)] // threads of a test, one for each connection

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

/// What a server sends in place of one message: the subscriber (from 0, in the order of
/// connecting), how many messages it got before or [`WARM_UP`], the channel, and what would be
/// right.
pub type Fault = fn(u64, u64, &str, &str) -> Vec<Message>;

/// In place of a number: a message before those that count.
pub const WARM_UP: u64 = u64::MAX;

/// What it sends in answer to a subscription, in addition to the right answer.
pub type Greeting = fn(&str) -> Vec<Message>;

pub fn right(_: u64, _: u64, _: &str, text: &str) -> Vec<Message> {
    vec![Message::text(text)]
}

pub fn no_greeting(_: &str) -> Vec<Message> {
    Vec::new()
}

/// What a server is like.
#[derive(Clone, Copy)]
pub struct Habits {
    pub fault: Fault,
    pub greeting: Greeting,
    /// The first message of each subscriber that is sent only once a connection has ended.
    pub withholds_from: u64,
    /// Whether it answers who subscribes anew to what it was subscribed to.
    pub renews: bool,
    /// Who comes later is accepted and gets no answer to the handshake.
    pub connections_max: u64,
}

impl Habits {
    pub fn good() -> Habits {
        Habits {
            fault: right,
            greeting: no_greeting,
            withholds_from: u64::MAX,
            renews: true,
            connections_max: u64::MAX,
        }
    }
}

struct Subscriber {
    number: u64,
    out: WebSocket<TcpStream>,
    channels: Vec<String>,
    /// All that it was ever subscribed to.
    known: Vec<String>,
    withheld: Vec<Message>,
    /// Whether messages say channel and offset.
    named: bool,
    /// Messages that are not warm-up so far.
    got: u64,
    /// Subscriptions whose end is answered behind the next message.
    ending: Vec<String>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<Subscriber>,
    offsets: HashMap<String, u64>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

/// Starts a server on a free port; returns its URL. It lives as long as the test.
pub fn serve(fault: Fault, greeting: Greeting) -> String {
    serve_with(Habits { fault, greeting, ..Habits::good() })
}

pub fn serve_with(habits: Habits) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let shared = Shared(Arc::default());
    std::thread::spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming()) {
            let shared = shared.clone();
            let connection = Connection { number, shared, habits };
            std::thread::spawn(move || connection.serve(stream.unwrap()));
        }
    });
    url
}

struct Connection {
    number: u64,
    shared: Shared,
    habits: Habits,
}

impl Connection {
    #[allow(clippy::result_large_err)] // tungstenite's callback
    fn serve(self, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        if self.number >= self.habits.connections_max {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            return;
        }
        let writing = stream.try_clone().unwrap();
        let mut named = false;
        let look = |request: &Request, response: Response| {
            named = request.uri().query().is_some_and(|query| query.contains("ringfeed"));
            Ok(response)
        };
        let Ok(mut input) = tungstenite::accept_hdr(stream, look) else { return };
        self.shared.state().subscribers.push(Subscriber {
            number: self.number,
            out: WebSocket::from_raw_socket(writing, Role::Server, None),
            channels: Vec::new(),
            known: Vec::new(),
            withheld: Vec::new(),
            named,
            got: 0,
            ending: Vec::new(),
        });
        while let Ok(message) = input.read() {
            let Message::Text(text) = message else { continue };
            match text.split_once(' ') {
                Some(("SUB", channel)) => self.subscribe(channel, None),
                Some(("PUB", rest)) => {
                    let (channel, payload) = rest.split_once(' ').unwrap();
                    self.publish(channel, payload);
                    self.acknowledge();
                }
                _ => self.command(&text),
            }
        }
        let mut state = self.shared.state();
        state.subscribers.retain(|s| s.number != self.number);
        for subscriber in &mut state.subscribers {
            for message in subscriber.withheld.drain(..) {
                let _ = subscriber.out.send(message);
            }
        }
    }

    /// As servers do that are asked for it by what a publication looks like.
    fn acknowledge(&self) {
        let mut state = self.shared.state();
        let own = state.subscribers.iter_mut().find(|s| s.number == self.number).unwrap();
        let _ = own.out.send(Message::text("OK"));
    }

    fn command(&self, text: &str) {
        let command: Value = serde_json::from_str(text).unwrap();
        let channel = command["channel"].as_str().unwrap();
        match command["type"].as_str().or(command["action"].as_str()) {
            Some("subscribe") => self.subscribe(channel, command.get("id")),
            Some("publish") => {
                // Byte for byte, which a parsed value is not.
                let (_, data) = text.split_once("\"data\":").unwrap();
                self.publish(channel, data.strip_suffix('}').unwrap());
            }
            _ => self.unsubscribe(channel),
        }
    }

    /// Answered late, as by a server that has much to do; a second one in the meantime is wrong.
    fn unsubscribe(&self, channel: &str) {
        let mut state = self.shared.state();
        let own = state.subscribers.iter_mut().find(|s| s.number == self.number).unwrap();
        if own.ending.iter().any(|ending| ending == channel) {
            let error = json!({"type": "error", "id": 2, "code": "not_subscribed"});
            let _ = own.out.send(Message::text(error.to_string()));
        } else {
            own.ending.push(channel.to_owned());
        }
    }

    fn subscribe(&self, channel: &str, id: Option<&Value>) {
        let mut state = self.shared.state();
        let offset = state.offsets.get(channel).copied().unwrap_or(0);
        let own = state.subscribers.iter_mut().find(|s| s.number == self.number).unwrap();
        if own.known.iter().any(|known| known == channel) && !self.habits.renews {
            return;
        }
        own.known.push(channel.to_owned());
        own.channels.push(channel.to_owned());
        if let Some(id) = id {
            let answer = json!({
                "type": "subscribed", "id": id, "channel": channel,
                "epoch": "00c0ffee00c0ffee", "offset": offset
            });
            let _ = own.out.send(Message::text(answer.to_string()));
        }
        for message in (self.habits.greeting)(channel) {
            let _ = own.out.send(message);
        }
    }

    fn publish(&self, channel: &str, payload: &str) {
        let mut state = self.shared.state();
        let offset = state.offsets.entry(channel.to_owned()).or_default();
        *offset += 1;
        let head = format!("\"type\":\"message\",\"channel\":\"{channel}\",\"offset\":{offset}");
        let text = format!("{{{head},\"data\":{payload}}}");
        let warm_up = payload.starts_with("{\"warmup\"");
        for subscriber in &mut state.subscribers {
            if !subscriber.channels.iter().any(|own| own == channel) {
                continue;
            }
            let right = if subscriber.named { &text } else { payload };
            let number = if warm_up { WARM_UP } else { subscriber.got };
            subscriber.got += u64::from(!warm_up);
            let messages = (self.habits.fault)(subscriber.number, number, channel, right);
            if !warm_up && number >= self.habits.withholds_from {
                subscriber.withheld.extend(messages);
                continue;
            }
            for message in messages {
                let _ = subscriber.out.send(message);
            }
            if let Some(at) = subscriber.ending.iter().position(|ending| ending == channel) {
                subscriber.ending.remove(at);
                subscriber.channels.retain(|own| own != channel);
                let answer = json!({"type": "unsubscribed", "id": 2, "channel": channel});
                let _ = subscriber.out.send(Message::text(answer.to_string()));
            }
        }
    }
}
