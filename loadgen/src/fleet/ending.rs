//! How connections end: by the server, with code and reason, or for what they sent.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, bail};
use ringfeed_protocol::frame::Opcode;
use ringfeed_wire::ShortSend;

use super::{Fleet, LOOK_AROUND, OPEN_PATIENCE, Standing, State};
use crate::report::{Close, shown};
use crate::tokens::Ending;

/// Reasons that are told apart; all others are counted together.
const KINDS_MAX: usize = 32;

/// Connections that ended early, by code and reason.
#[derive(Debug, Default)]
pub(super) struct Closes(BTreeMap<(Option<u16>, String), u64>);

impl Closes {
    fn count(&mut self, code: Option<u16>, reason: &str) {
        let mut kind = (code, reason.to_owned());
        if self.0.len() >= KINDS_MAX && !self.0.contains_key(&kind) {
            kind = (None, "for other reasons".to_owned());
        }
        *self.0.entry(kind).or_default() += 1;
    }

    pub(super) fn list(&self) -> Vec<Close> {
        let close = |((code, reason), &count): (&(Option<u16>, String), &u64)| Close {
            code: *code,
            reason: reason.clone(),
            count,
        };
        self.0.iter().map(close).collect()
    }
}

impl Fleet {
    /// The server's close frame has come; it is answered.
    pub(super) fn close_came(&mut self, at: usize, body: &[u8]) -> anyhow::Result<()> {
        let code = body.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
        let reason = shown(body.get(2..).unwrap_or_default());
        self.tell(at, Opcode::Close, body.get(..2).unwrap_or_default());
        self.ended(at, code, &reason)?;
        self.conns[at].state = State::Closing;
        Ok(())
    }

    /// The socket is closed.
    pub(super) fn closed(
        &mut self,
        at: usize,
        error: Option<std::io::Error>,
    ) -> anyhow::Result<()> {
        let why = error.map_or("without a close frame".into(), |e| e.to_string());
        self.wire.close(self.conns[at].socket);
        match self.conns[at].state {
            State::Gone => {}
            State::Closing => self.conns[at].state = State::Gone,
            State::Open => self.ended(at, None, &why)?,
            _ if self.control.has_begun() => {
                self.opening = self.opening.saturating_sub(1);
                self.ended(at, None, &format!("before it was open: {why}"))?;
            }
            _ => {
                let address = self.target.address;
                bail!("a connection to {address} could not be opened: {why}");
            }
        }
        Ok(())
    }

    /// What a connection sent is no WebSocket any more: nothing behind it can be understood.
    pub(super) fn torn(&mut self, at: usize, why: &str) -> anyhow::Result<()> {
        self.wire.close(self.conns[at].socket);
        self.ended(at, None, &format!("by loadgen: {why}"))
    }

    /// Counts the end of a connection that was to stay.
    pub(super) fn ended(
        &mut self,
        at: usize,
        code: Option<u16>,
        reason: &str,
    ) -> anyhow::Result<()> {
        if matches!(self.conns[at].state, State::Closing | State::Gone) {
            // Counted already: what came behind its close frame was torn.
            self.conns[at].state = State::Gone;
            return Ok(());
        }
        let close = Close { code, reason: reason.to_owned(), count: 1 };
        let number = self.number(at);
        let conn = &self.conns[at];
        let asked = conn.subscriptions.iter().filter(|s| s.standing == Standing::Asked).count();
        if asked > 0 && !self.control.has_begun() {
            bail!("connection {number} was closed while it subscribed: {}", close.why());
        }
        self.progress.owed.fetch_sub(asked as u64, Ordering::Relaxed);
        let meant = self.manner.may_end;
        for place in 0..conn.subscriptions.len() {
            self.leave(at, place);
            if meant {
                self.had_all(at, place);
            }
        }
        let conn = &mut self.conns[at];
        if matches!(conn.state, State::Open) {
            self.progress.opened.fetch_sub(1, Ordering::Relaxed);
        }
        conn.state = State::Gone;
        conn.stash.clear();
        conn.extra = None;
        self.closes.count(code, reason);
        if meant {
            self.tally.ended += 1;
            self.endings.push(Ending::now(number, code, reason));
            return Ok(());
        }
        self.tally.disconnected += 1;
        self.problem(|_| format!("connection {number} was closed: {}", close.why()));
        Ok(())
    }

    pub(super) fn close_all(
        &mut self,
        short: &mut Vec<ShortSend>,
        bytes: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        self.sends.clear();
        for conn in &mut self.conns {
            conn.state = State::Gone;
            self.wire.close(conn.socket);
        }
        let deadline = Instant::now() + OPEN_PATIENCE;
        while self.wire.usage().sockets > 0 && Instant::now() < deadline {
            if !self.turn(short, bytes)? {
                self.wire.wait(LOOK_AROUND).context("waiting for sockets")?;
            }
        }
        Ok(())
    }
}
