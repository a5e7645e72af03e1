//! The end of a run: faults stop, everything owed must arrive, shards must sleep, and when everybody
//! has left nothing may be held.

use super::client::{Client, Speaks};
use super::judge::Rule;
use super::net::{ConnId, Fate, Faults, Phase};
use super::node::Held;
use super::talk::portico;
use super::trace::note;
use super::world::World;

/// How often shards may take turns in vain, or at all, before things are quiet.
const IDLE_ROUNDS_MAX: u32 = 3000;
const ROUNDS_MAX: u32 = 200_000;
/// Readers who took something are waited for no longer than this.
const PATIENCE_MS: u64 = 3000;

impl World {
    /// Lets everything under way arrive, with no more faults, until shards sleep.
    pub(super) fn settle(&mut self) {
        let (mut idle_rounds, mut activity) = (0, 0);
        for round in 0.. {
            let mut moved = false;
            for conn in self.open.clone() {
                let client = &self.clients[self.owners[conn]];
                let reads = client.link.is_none() || client.reading;
                let waits = !self.net.borrow().conns[conn].unread.is_empty();
                if reads && waits {
                    self.read(conn, usize::MAX);
                    moved = true;
                }
                {
                    let mut net = self.net.borrow_mut();
                    moved |= net.deliver(conn, 16_384);
                    moved |= net.tell_writable(conn, false);
                    moved |= net.tell_closed(conn);
                }
                self.look(conn);
            }
            moved |= self.answer_all();
            moved |= self.tell_one();
            let mut awake = false;
            for shard in 0..self.cluster.count() {
                moved |= self.net.borrow_mut().release_slots(shard);
                if self.cluster.is_awake(shard) {
                    awake = true;
                    self.turn(shard);
                }
            }
            if !awake && !moved && self.to_drain.is_empty() {
                return self.cluster.check_together();
            }
            let now = self.net.borrow().activity;
            idle_rounds = if now == activity { idle_rounds + 1 } else { 0 };
            activity = now;
            if idle_rounds > IDLE_ROUNDS_MAX {
                if (0..self.cluster.count()).any(|shard| self.cluster.has_ended(shard)) {
                    // What others have for it waits until the process ends.
                    return;
                }
                let what = format_args!("a shard takes turns for ever and does nothing in them");
                return self.judge.broken(Rule::Sleeps, what);
            }
            if round > ROUNDS_MAX {
                let what = format_args!("it goes on and on");
                return self.judge.broken(Rule::Settles, what);
            }
        }
    }

    /// Time passes and nothing new happens.
    pub(super) fn rest(&mut self, ms: u64) {
        // As often as a shard's time goes on.
        let steps = (ms / 180).max(1);
        for _ in 0..steps {
            self.pass(ms.div_ceil(steps).max(100));
            self.settle();
        }
    }

    /// Faults end, stalled readers come back; then nothing may be owed.
    pub(super) fn heal(&mut self) {
        note!(self.trace, "faults end");
        self.clear_door();
        (self.healed, self.healed_ms) = (true, self.elapsed.get().as_millis() as u64);
        {
            let mut net = self.net.borrow_mut();
            net.adopt_faults = 0;
            for conn in &mut net.conns {
                (conn.faults, conn.vain_left) = (Faults::default(), 0);
                // What is left would take for ever a few bytes at a time.
                conn.capacity = conn.capacity.max(4096);
            }
        }
        for client in self.clients.iter_mut().filter(|client| client.habit.reads()) {
            client.reading = true;
        }
        self.settle();
        self.check_calls_hold_nothing();
        // Sockets that were called writable in vain are asked again by the tick, and who stopped reading
        // is waited for a moment.
        self.rest(PATIENCE_MS);
        self.check_access();
        if !self.judge.draining {
            let bells = self.ring();
            self.settled(&bells);
            self.check_presence();
            let setup = &self.setup;
            let ages = setup.groups.iter().map(|group| group.window_age_ms).max().unwrap_or(0);
            let heartbeat = setup.heartbeat_interval_ms + setup.heartbeat_timeout_ms;
            let waits = setup.message_timeout_ms.max(setup.outbox_timeout_ms);
            let (close, has_heartbeat) = (setup.close_timeout_ms, setup.heartbeat_interval_ms > 0);
            let long = ages.max(heartbeat).max(waits) + close + 1000;
            self.rest(long.into());
            self.settled(&bells);
            if has_heartbeat {
                self.rest(long.into());
                self.silent_are_gone(u64::from(long));
            }
            // Who was closed at the end of that time has as much time again to say goodbye.
            let patience = u64::from(waits.max(close)) + 1000;
            self.rest(patience);
            self.closings_are_over(patience);
            self.check_access();
            if has_heartbeat {
                self.unread_are_gone();
            }
            self.check_confirmations();
            self.check_presence();
            self.check_timers();
        }
    }

    /// Who is still there is told by the clock that the server is, and once for each time.
    fn check_timers(&mut self) {
        let pings = |world: &World| -> Vec<(ConnId, u64)> {
            let there = world.held().into_iter().filter_map(|(conn, client)| {
                let link = client.link.as_ref().filter(|link| link.conn == conn)?;
                let told = client.server_pings().filter(|_| client.reading)?;
                (link.close_seen.is_none() && link.close_sent.is_none()).then_some((conn, told))
            });
            there.collect()
        };
        let before = pings(self);
        if before.is_empty() {
            return;
        }
        self.rest(portico::SERVER_PING_MS + 1000);
        for (conn, now) in pings(self) {
            let then = before.iter().find(|(of, _)| *of == conn).map(|(_, then)| *then);
            let times = then.map(|then| now - then);
            if times.is_some_and(|times| !(1..=2).contains(&times)) {
                let what =
                    format_args!("c{conn} was told {times:?} times that the server is there");
                self.judge.broken(Rule::Timers, what);
            }
        }
    }

    /// One more publication on every channel, so that everybody has to get something.
    fn ring(&mut self) -> Vec<Option<u64>> {
        let mut bells = Vec::new();
        for channel in 0..self.setup.channels.len() {
            let home = self.cluster.home(&self.setup.channels[channel].name);
            let numbers = self.publish_to(home, &[channel], None, None);
            self.settle();
            let rung = numbers.first().copied();
            bells.push(rung.filter(|&n| self.judge.publications[n as usize - 1].place.is_some()));
        }
        if !self.waiting.is_empty() {
            // Who took some of it is waited for a moment, and publications are held back meanwhile.
            self.rest(PATIENCE_MS);
        }
        self.newest.fill(None);
        self.listing = true;
        for shard in 0..self.cluster.count() {
            self.waiting.extend(self.cluster.list(shard));
        }
        self.settle();
        if !self.waiting.is_empty() {
            self.judge.broken(Rule::Api, format_args!("a request is not answered"));
        }
        bells
    }

    fn settled(&mut self, bells: &[Option<u64>]) {
        for client in &self.clients {
            let alive = client.link.as_ref().is_some_and(|link| {
                let net = self.net.borrow();
                let conn = &net.conns[link.conn];
                conn.phase == Phase::Open && conn.fate == Fate::Alive
            });
            if alive && client.reading {
                client.settled(bells, &self.newest, &self.setup, &self.judge);
            }
        }
    }

    /// Connections that the shards still hold, with their clients.
    fn held(&self) -> Vec<(ConnId, &Client)> {
        let net = self.net.borrow();
        let open = self.open.iter().filter(|&&conn| net.conns[conn].phase == Phase::Open);
        open.map(|&conn| (conn, &self.clients[self.owners[conn]])).collect()
    }

    fn silent_are_gone(&self, long_ms: u64) {
        let now = self.elapsed.get().as_millis() as u64;
        for (conn, _) in self.held() {
            let heard = self.net.borrow().conns[conn].heard_ms;
            if now - heard > long_ms {
                let what = format_args!("c{conn} has been silent for {} ms", now - heard);
                self.judge.broken(Rule::SilentClosed, what);
            }
        }
    }

    fn closings_are_over(&self, patience_ms: u64) {
        let now = self.elapsed.get().as_millis() as u64;
        for (conn, client) in self.held() {
            let Some(link) = client.link.as_ref().filter(|link| link.conn == conn) else {
                continue;
            };
            // What somebody has shown may expire at any time.
            let began = link.written.map_or(0, |written| written.ms);
            if link.close_seen.is_some() && began + patience_ms > now {
                continue;
            }
            if link.close_seen.is_some() || (link.close_sent.is_some() && client.reading) {
                let what = format_args!("k{}/c{conn} is closing and does not end", client.number);
                self.judge.broken(Rule::CloseEnds, what);
            }
        }
    }

    fn unread_are_gone(&self) {
        for (conn, client) in self.held() {
            let Some(link) = client.link.as_ref().filter(|link| link.conn == conn) else {
                continue;
            };
            let blocked = self.net.borrow().conns[conn].blocked;
            if !client.reading && blocked && link.has_pending() && client.speaks == Speaks::Ringfeed
            {
                let what =
                    format_args!("k{}/c{conn} has not read its replies for long", client.number);
                self.judge.broken(Rule::UnreadClosed, what);
            }
        }
    }

    /// Everybody leaves, or the server does; then nothing may be held.
    pub(super) fn part(&mut self) {
        if self.judge.draining || self.dice.chance(300) {
            self.drain();
            self.settle();
            let timeout = u64::from(self.setup.drain_timeout_ms);
            self.rest(timeout + u64::from(self.setup.close_timeout_ms) + 1000);
            for shard in 0..self.cluster.count() {
                if !self.cluster.has_ended(shard) {
                    self.judge.broken(Rule::CloseEnds, format_args!("s{shard} does not drain"));
                }
            }
            return;
        }
        note!(self.trace, "everybody leaves");
        for conn in self.open.clone() {
            let owner = &self.clients[self.owners[conn]];
            let stuck = !owner.reading || owner.link.as_ref().is_some_and(|link| link.mute);
            let how = if stuck { 3 } else { self.dice.below(4) };
            self.leave_by(conn, how);
        }
        self.settle();
        self.rest(u64::from(self.setup.close_timeout_ms) + 1000);
        self.rest(200);
        if let Some(conn) = self.held().first().map(|(conn, _)| *conn) {
            self.judge.broken(Rule::CloseEnds, format_args!("c{conn} is still held"));
        }
        for shard in 0..self.cluster.count() {
            let held = self.cluster.held(shard);
            if held != Held::default() {
                self.judge.broken(Rule::Baseline, format_args!("s{shard} holds {held:?}"));
            }
        }
    }
}
