//! From the first packet to subscriptions that stand.

use std::sync::atomic::Ordering;

use anyhow::Context as _;
use bytes::Bytes;
use ringfeed_protocol::frame::{Opcode, write_client};
use ringfeed_protocol::handshake::ClientHandshake;
use ringfeed_wire::SocketId;

use super::{Conn, Fleet, Standing, State, Stream, Subscription};
use crate::plans::{Plan, Speech};
use crate::report::shown;
use crate::target::with_parameter;

pub(super) fn subscribe_command(channel: &str) -> String {
    format!("{{\"type\":\"subscribe\",\"id\":1,\"channel\":\"{channel}\"}}")
}

impl Fleet {
    pub(super) fn open_next(&mut self) -> anyhow::Result<()> {
        let Some(plan) = self.queued.pop_front() else { return Ok(()) };
        let Plan { speech, channels, stalled, .. } = &self.plans[plan as usize];
        let (speech, stalled) = (*speech, *stalled);
        let subscriptions = channels.iter().map(|&channel| Subscription::new(channel)).collect();
        let socket = self.connect(plan)?;
        let at = self.conns.len() as u32;
        self.conns.push(Conn {
            socket,
            state: State::Connecting,
            plan,
            speech,
            stalled,
            subscriptions,
            stash: Vec::new(),
            skipped: 0,
            changed: 0,
            extra: None,
        });
        self.owners.set(socket, at);
        Ok(())
    }

    pub(super) fn connect(&mut self, plan: u32) -> anyhow::Result<SocketId> {
        let number = self.plans[plan as usize].number;
        let from = match self.target.from.len() as u32 {
            0 => None,
            count => Some(self.target.from[(number % count) as usize]),
        };
        self.opening += 1;
        self.wire.connect(self.target.address, from).context("opening a connection")
    }

    pub(super) fn shake(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        let path = match conn.speech.dialect() {
            Some(dialect) => self.target.path_for(dialect.name()),
            None => {
                let own = conn.subscriptions.iter().map(|s| &*self.channels[s.channel as usize]);
                self.target.path.replace("{channels}", &own.collect::<Vec<_>>().join(","))
            }
        };
        let token = &self.plans[conn.plan as usize].shown.first;
        let path = with_parameter(path, "token", token);
        let handshake = ClientHandshake::new(&self.target.host, &path, None, rand::random());
        self.sends.push((conn.socket, Bytes::copy_from_slice(handshake.request())));
        conn.state = State::Shaking(Box::new(handshake));
    }

    /// Reads the answer to the handshake. Returns how many of the newest bytes lie behind it,
    /// `None` while it is not whole.
    pub(super) fn shaken(&mut self, at: usize, bytes: &[u8]) -> anyhow::Result<Option<usize>> {
        let conn = &mut self.conns[at];
        conn.stash.extend_from_slice(bytes);
        let State::Shaking(handshake) = &conn.state else { return Ok(None) };
        let received = handshake
            .receive(&conn.stash)
            .with_context(|| format!("opening a WebSocket: {}", shown(&conn.stash)))?;
        let Some(len) = received else { return Ok(None) };
        let left = conn.stash.len() - len;
        conn.stash.clear();
        Ok(Some(left))
    }

    pub(super) fn opened(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        conn.state = State::Open;
        self.opening -= 1;
        self.progress.opened.fetch_add(1, Ordering::Relaxed);
        self.plan_to_show(at);
        if self.manner.send {
            // Nothing was sent to its user yet.
            for place in 0..self.conns[at].subscriptions.len() {
                self.begins(at, place);
            }
            return;
        }
        let conn = &self.conns[at];
        let mut frames = Vec::new();
        let mut text = |text: &[u8]| write_client(&mut frames, Opcode::Text, text, rand::random());
        let own = conn.subscriptions.iter().map(|s| &*self.channels[s.channel as usize]);
        match conn.speech {
            Speech::Ringfeed => own.for_each(|channel| text(subscribe_command(channel).as_bytes())),
            Speech::Raw => own.for_each(|channel| {
                let command = format!("{{\"action\":\"subscribe\",\"channel\":\"{channel}\"}}");
                text(command.as_bytes());
            }),
            Speech::Templates => {
                self.target.templates.subscribing(own).for_each(|frame| text(&frame));
            }
        }
        if !frames.is_empty() {
            self.sends.push((conn.socket, Bytes::from(frames)));
        }
        if conn.speech != Speech::Ringfeed && !self.manner.warm_up {
            for place in 0..self.conns[at].subscriptions.len() {
                self.conns[at].subscriptions[place].standing = Standing::Believed;
                self.stands(at, place);
            }
        }
    }

    /// A subscription begins where its cursor is: from there on every message counts.
    pub(super) fn begins(&mut self, at: usize, place: usize) {
        let subscription = &mut self.conns[at].subscriptions[place];
        subscription.from = subscription.cursor.next();
        let before = std::mem::replace(&mut subscription.standing, Standing::Stands);
        match before {
            Standing::Asked => self.stands(at, place),
            // It was taken to be behind nothing.
            Standing::Believed => {
                let behind = self.behind(at, place);
                self.settle(at, place, behind);
            }
            Standing::Stands | Standing::Ending => {}
        }
    }

    /// Counts a subscription that stands.
    fn stands(&mut self, at: usize, place: usize) {
        self.progress.standing.fetch_add(1, Ordering::Relaxed);
        self.progress.owed.fetch_sub(1, Ordering::Relaxed);
        let behind = self.behind(at, place);
        let conn = &self.conns[at];
        if conn.stalled {
            if conn.subscriptions.iter().all(|s| s.standing != Standing::Asked) {
                self.wire.receive(conn.socket, false);
            }
        } else {
            self.progress.live(conn.subscriptions[place].channel, 1, behind);
        }
    }

    /// A subscription receives no more, or is not waited for any more.
    pub(super) fn leave(&mut self, at: usize, place: usize) {
        let subscription = &self.conns[at].subscriptions[place];
        if subscription.standing != Standing::Asked && !self.conns[at].stalled {
            let behind = self.behind(at, place);
            self.progress.live(subscription.channel, 1u64.wrapping_neg(), behind.wrapping_neg());
        }
    }

    /// Messages that count and lie behind a subscription's cursor.
    fn behind(&self, at: usize, place: usize) -> u64 {
        let counted_from = self.stream(at, place).map_or(0, Stream::counted_from);
        self.conns[at].subscriptions[place].cursor.next().saturating_sub(counted_from)
    }

    /// A subscription's cursor has moved by so many messages that count.
    pub(super) fn settle(&self, at: usize, place: usize, count: u64) {
        if !self.conns[at].stalled {
            self.progress.settle(self.conns[at].subscriptions[place].channel, count);
        }
    }
}
