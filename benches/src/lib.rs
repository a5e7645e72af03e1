//! What the micro-benchmarks share: a shard whose socket layer takes everything and does nothing,
//! so that what is measured is ringfeed's own code.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringfeed_engine::config::{Config, Sources};
use ringfeed_engine::ids::ShardId;
use ringfeed_engine::message::{QUEUE_BATCHES, Request, Shards, StoredPayload, Waker, queues};
use ringfeed_engine::settings::Settings;
use ringfeed_engine::shard::door::Admission;
use ringfeed_engine::shard::{Credentials, Environment, Local, Promoted, Shard, Shared};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::frame::{Opcode, write_client};
use ringfeed_protocol::{ChannelName, Dialect};
use ringfeed_wire::{Event, ShortSend, SocketId, Usage, Wire, WireError};

/// A socket layer that takes every send whole and receives nothing; or that takes nothing and calls
/// every socket writable all the same, as a kernel does that is short of memory.
#[derive(Debug)]
pub struct NullWire {
    event_fd: File,
    usage: Usage,
    switch: Rc<Switch>,
    short: Vec<ShortSend>,
    writable: VecDeque<SocketId>,
}

/// What a [`NullWire`] shares with whoever watches it.
#[derive(Debug, Default)]
pub struct Switch {
    /// Take nothing.
    pub refuse: Cell<bool>,
    /// Sends tried.
    pub sends: Cell<u64>,
    /// The socket that was taken in last, …
    newest: Cell<Option<SocketId>>,
    /// … and which of the sends was the last one to it.
    pub to_newest: Cell<u64>,
}

impl NullWire {
    /// One with no sockets.
    pub fn new(switch: Rc<Switch>) -> io::Result<NullWire> {
        Ok(NullWire {
            event_fd: File::open("/dev/null")?,
            usage: Usage::default(),
            switch,
            short: Vec::new(),
            writable: VecDeque::new(),
        })
    }

    fn tried(&mut self, socket: SocketId, tag: u32, bytes: usize) {
        self.usage.sends += 1;
        self.usage.bytes_out += bytes as u64;
        self.switch.sends.set(self.usage.sends);
        if self.switch.newest.get() == Some(socket) {
            self.switch.to_newest.set(self.usage.sends);
        }
        if self.switch.refuse.get() {
            self.short.push(ShortSend { tag, sent: 0, broken: false });
        }
    }
}

impl Wire for NullWire {
    fn adopt(&mut self, _: OwnedFd) -> Result<SocketId, WireError> {
        self.usage.sockets += 1;
        // Far fewer sockets than a slot number holds.
        let socket = SocketId::new(self.usage.sockets as u32, 0);
        self.switch.newest.set(Some(socket));
        Ok(socket)
    }
    fn connect(&mut self, _: SocketAddr, _: Option<IpAddr>) -> Result<SocketId, WireError> {
        Err(WireError::Full(0))
    }
    fn send(&mut self, socket: SocketId, tag: u32, bytes: &Bytes) {
        self.tried(socket, tag, bytes.len());
    }
    fn send_vectored(&mut self, socket: SocketId, tag: u32, runs: &[Bytes]) {
        self.tried(socket, tag, runs.iter().map(Bytes::len).sum());
    }
    fn submit(&mut self, short: &mut Vec<ShortSend>) -> io::Result<()> {
        short.append(&mut self.short);
        Ok(())
    }
    fn next_event(&mut self) -> Option<Event<'_>> {
        self.writable.pop_front().map(Event::Writable)
    }
    fn watch_writable(&mut self, id: SocketId) {
        self.writable.push_back(id);
    }
    fn receive(&mut self, _: SocketId, _: bool) {}
    fn close(&mut self, _: SocketId) {}
    fn arm(&mut self) -> io::Result<bool> {
        Ok(true)
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }
    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }
    fn usage(&self) -> Usage {
        self.usage
    }
}

/// One shard with subscribers, driven turn by turn.
pub struct Stage {
    shard: Shard<NullWire>,
    shared: Arc<Shared>,
    local: Rc<Local>,
    channels: Vec<ChannelName>,
    switch: Rc<Switch>,
}

impl Stage {
    /// `subscribers` connections, each on `each` of `channels` channels in turn.
    ///
    /// # Errors
    /// When descriptors run out: each connection is promoted with one.
    pub fn new(subscribers: u32, channels: u32, each: u32) -> io::Result<Stage> {
        let flags = ["limits.subscriptions_per_connection_max=10000", "heartbeat.interval_ms=0"];
        let sources = Sources { flags: flags.map(String::from).to_vec(), ..Sources::default() };
        let config = Config::load(&sources).map_err(io::Error::other)?;
        let settings = Settings::new(config).map_err(io::Error::other)?;
        let switch = Rc::new(Switch::default());
        let wire = NullWire::new(switch.clone())?;
        let (end, inbox) = queues(Waker::new(File::create("/dev/null")?), QUEUE_BATCHES);
        let shards = Shards::new(vec![end], [1, 2]);
        // Nobody is asked anything.
        let (shared, _) = Shared::new(settings, shards, Admission::new(u32::MAX, 0));
        let local = Rc::new(Local::default());
        let shard = Shard::new(
            ShardId(0),
            wire,
            shared.clone(),
            inbox,
            local.clone(),
            Environment::machine(),
        );
        let mut stage = Stage { shard, shared, local, channels: Vec::new(), switch };
        for _ in 0..channels {
            stage.add_channel()?;
        }
        let mut next = (0..stage.channels.len()).cycle();
        for _ in 0..subscribers {
            stage.connect(next.by_ref().take(each as usize))?;
        }
        stage.settle()?;
        Ok(stage)
    }

    /// One channel more.
    ///
    /// # Errors
    /// When it has no name.
    pub fn add_channel(&mut self) -> io::Result<()> {
        let name = format!("bench.c{}", self.channels.len());
        self.channels.push(ChannelName::new(&name).map_err(io::Error::other)?);
        Ok(())
    }

    /// One connection more, on these channels.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn connect(&mut self, channels: impl Iterator<Item = usize>) -> io::Result<()> {
        let mut rest = Vec::new();
        for at in channels {
            let command =
                format!("{{\"type\":\"subscribe\",\"channel\":\"{}\"}}", self.channels[at]);
            write_client(&mut rest, Opcode::Text, command.as_bytes(), [0; 4]);
        }
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let permit = self.shared.admission.admit(address).map_err(io::Error::other)?;
        self.local.promote(Promoted {
            socket: File::open("/dev/null")?.into(),
            endpoint: 0,
            dialect: Dialect::Ringfeed,
            talk: None,
            answer: Vec::new(),
            rest,
            permit,
            credentials: Credentials::default(),
        });
        if self.turn()? {
            self.settle()?;
        }
        Ok(())
    }

    /// Hands the shard publications of one payload, to its channels in turn from `first` on.
    pub fn publish(&mut self, first: usize, count: usize, payload: &Bytes) {
        for i in first..first + count {
            let payload = StoredPayload { kind: PayloadKind::Json, bytes: payload.clone() };
            let channel = self.channels[i % self.channels.len()].clone();
            let (origin, by, ask) = (None, None, None);
            let request = Request::Publish { origin, channel, payload, by, ask };
            assert!(self.shared.shards.request(ShardId(0), request).is_ok(), "the queue has room");
        }
    }

    /// What its socket layer takes, and how often it was asked.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// One turn. Returns whether there is more to do at once.
    ///
    /// # Errors
    /// Those of the socket layer: here none.
    pub fn turn(&mut self) -> io::Result<bool> {
        self.shard.turn()
    }

    /// Turns until nothing is left to do.
    ///
    /// # Errors
    /// Those of the socket layer: here none.
    pub fn settle(&mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_with_many_subscribers_does_not_keep_others_waiting() {
        let many = 5_000;
        let mut stage = Stage::new(many, 1, 1).unwrap();
        stage.add_channel().unwrap();
        stage.connect([1].into_iter()).unwrap();
        stage.settle().unwrap();
        let payload = Bytes::from_static(b"1");
        let before = stage.switch().sends.get();
        stage.publish(0, 1, &payload);
        stage.turn().unwrap();
        stage.publish(1, 1, &payload);
        stage.settle().unwrap();
        let sends = stage.switch().to_newest.get() - before;
        assert!((1..u64::from(many) / 2).contains(&sends), "it was number {sends}");
        assert_eq!(stage.switch().sends.get() - before, u64::from(many) + 1);
    }
}
