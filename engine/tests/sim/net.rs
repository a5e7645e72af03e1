//! The network between clients and shards, and the socket layer over it.
//!
//! [`Net`] holds every connection from both sides; the world moves bytes and tells events. [`SimWire`]
//! is a shard's view of it and keeps to the contract of [`Wire`]; what the shard must keep to is
//! asserted here.
//!
//! To add a fault: a rate in [`Faults`], drawn in [`Net::take`] (sends), [`Net::deliver`] (input) or
//! [`SimWire::adopt`], and counted in `faults`.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use bytes::Bytes;
use ringfeed_wire::{Event, ShortSend, SocketId, Usage, VECTORED_RUNS_MAX, Wire, WireError};

use super::dice::Dice;
use super::ledger::Written;
use super::trace::{Trace, note};

/// Number of a connection, never used again.
pub(crate) type ConnId = usize;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Handed to a shard, not taken yet.
    Offered,
    Open,
    /// The shard did not take it.
    Refused,
    /// Closed by the shard; what it sent may still be read.
    Ended,
}

/// What the client's side has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Alive,
    /// Sends no more, still reads.
    HalfClosed,
    /// Gone: nothing arrives and nothing can be sent.
    Reset,
}

/// How often a socket misbehaves, in 1,000.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// A send is taken in part although there was room.
    pub(crate) short: u32,
    /// A send is not taken at all although there was room.
    pub(crate) refused: u32,
    /// The connection breaks under a send.
    pub(crate) broken: u32,
}

/// What a network must not do: shows that it would be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// A byte in the middle of a send does not arrive.
    LostByte,
    /// A send is called taken and does not arrive.
    LostSend,
    /// A send arrives twice.
    Repeated,
    /// A send is taken in part, and nobody is told.
    Untold,
}

/// One send in so many is sabotaged.
const SABOTAGED: usize = 40;

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) shard: usize,
    pub(crate) socket: Option<SocketId>,
    pub(crate) phase: Phase,
    pub(crate) fate: Fate,
    /// Bytes that fit between the two ends.
    pub(crate) capacity: usize,
    pub(crate) faults: Faults,
    /// Taken from the shard, not read by the client.
    pub(crate) unread: Vec<u8>,
    /// Of what was taken and not looked at by the client: up to which byte of all, and when.
    pub(crate) written: VecDeque<(u64, Written)>,
    taken: u64,
    /// Sent by the client, not arrived.
    pub(crate) upstream: VecDeque<u8>,
    /// Of these, bytes that arrive although receiving is paused.
    pub(crate) under_way: usize,
    pub(crate) paused: bool,
    pub(crate) watched: bool,
    /// The last send was not taken whole.
    pub(crate) blocked: bool,
    /// The next sends take nothing.
    pub(crate) vain_left: u32,
    pub(crate) told_closed: bool,
    /// A fault of the network ended it.
    pub(crate) broke: bool,
    /// When the shard last took bytes from it, in ms.
    pub(crate) heard_ms: u64,
    /// And in which of its turns.
    pub(crate) heard_turn: u64,
    /// The longest time in which it took none, in ms.
    pub(crate) silence_ms: u64,
    /// Events with input that the shard has not taken.
    pub(crate) arriving: u32,
    /// The submission in which it was last sent to.
    submission: u64,
}

#[derive(Debug)]
enum Ready {
    Received(SocketId, Vec<u8>),
    Writable(SocketId),
    Closed(SocketId, bool),
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<ConnId>,
}

/// One shard's table of sockets.
#[derive(Debug, Default)]
pub(crate) struct Side {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Closed, not to be used again yet.
    closing: Vec<u32>,
    events: VecDeque<Ready>,
    /// Handed over, in order, and not taken.
    handed: VecDeque<ConnId>,
    usage: Usage,
}

impl Side {
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }
}

/// See the module's description.
pub(crate) struct Net {
    pub(crate) conns: Vec<Conn>,
    pub(crate) sides: Vec<Side>,
    offered: HashMap<RawFd, ConnId>,
    pub(crate) dice: Dice,
    pub(crate) trace: Rc<Trace>,
    /// Refused adoptions in 1,000.
    pub(crate) adopt_faults: u32,
    pub(crate) now_ms: u64,
    /// Connections with something new to read.
    pub(crate) fresh: Vec<ConnId>,
    /// Grows with every event told and every byte taken.
    pub(crate) activity: u64,
    pub(crate) faults: u64,
    pub(crate) sabotage: Option<Sabotage>,
    /// Turns that the shard which sends has begun.
    pub(crate) turn: u64,
    submissions: u64,
}

impl Net {
    pub(crate) fn new(shards: usize, dice: Dice, trace: Rc<Trace>, adopt_faults: u32) -> Net {
        Net {
            conns: Vec::new(),
            sides: (0..shards).map(|_| Side::default()).collect(),
            offered: HashMap::new(),
            dice,
            trace,
            adopt_faults,
            now_ms: 0,
            fresh: Vec::new(),
            activity: 0,
            faults: 0,
            sabotage: None,
            turn: 0,
            submissions: 0,
        }
    }

    /// A connection whose handshake is done, and the descriptor that stands for it.
    pub(crate) fn connect(
        &mut self,
        shard: usize,
        capacity: usize,
        faults: Faults,
    ) -> (ConnId, OwnedFd) {
        let socket: OwnedFd = File::open("/dev/null").expect("a descriptor is to be had").into();
        let id = self.conns.len();
        self.conns.push(Conn {
            shard,
            socket: None,
            phase: Phase::Offered,
            fate: Fate::Alive,
            capacity,
            faults,
            unread: Vec::new(),
            written: VecDeque::new(),
            taken: 0,
            upstream: VecDeque::new(),
            under_way: 0,
            paused: false,
            watched: false,
            blocked: false,
            vain_left: 0,
            told_closed: false,
            broke: false,
            heard_ms: self.now_ms,
            heard_turn: 0,
            silence_ms: 0,
            arriving: 0,
            submission: 0,
        });
        self.offered.insert(socket.as_raw_fd(), id);
        (id, socket)
    }

    /// So many shards more; returns the number of the first.
    pub(crate) fn add_sides(&mut self, shards: usize) -> usize {
        let first = self.sides.len();
        self.sides.extend((0..shards).map(|_| Side::default()));
        first
    }

    /// A connection is its shard's to take.
    pub(crate) fn hand_over(&mut self, conn: ConnId) {
        self.sides[self.conns[conn].shard].handed.push_back(conn);
    }

    /// Connections that the shard has dropped without taking them: it takes them in order.
    fn refuse_before(&mut self, shard: usize, conn: ConnId) {
        while let Some(earlier) = self.sides[shard].handed.pop_front().filter(|own| *own != conn) {
            self.conns[earlier].phase = Phase::Refused;
        }
    }

    /// Delivers up to `most` bytes of what a client has sent. Returns whether any were.
    pub(crate) fn deliver(&mut self, id: ConnId, most: usize) -> bool {
        let conn = &mut self.conns[id];
        let Some(socket) = conn.socket else { return false };
        let mut count = conn.upstream.len().min(most);
        if conn.paused {
            count = count.min(conn.under_way);
            conn.under_way -= count;
        }
        if count == 0 || conn.told_closed || conn.fate == Fate::Reset {
            return false;
        }
        let bytes: Vec<u8> = conn.upstream.drain(..count).collect();
        note!(self.trace, "s{} <- c{id}: {count} bytes arrive", conn.shard);
        conn.arriving += 1;
        self.sides[conn.shard].events.push_back(Ready::Received(socket, bytes));
        true
    }

    /// Tells the shard that a socket it watches takes bytes again, if it does (or lies, `in_vain`).
    pub(crate) fn tell_writable(&mut self, id: ConnId, in_vain: bool) -> bool {
        let conn = &mut self.conns[id];
        let Some(socket) = conn.socket.filter(|_| conn.watched) else { return false };
        let room = conn.unread.len() < conn.capacity || conn.fate == Fate::Reset;
        if !room && !in_vain {
            return false;
        }
        conn.watched = false;
        self.activity += 1;
        if in_vain {
            self.faults += 1;
            conn.vain_left = 1;
        }
        note!(
            self.trace,
            "s{} <- c{id}: writable{}",
            conn.shard,
            if in_vain { " in vain" } else { "" }
        );
        self.sides[conn.shard].events.push_back(Ready::Writable(socket));
        true
    }

    /// Tells the shard that the peer is gone, if it is and the shard can see it.
    pub(crate) fn tell_closed(&mut self, id: ConnId) -> bool {
        let conn = &mut self.conns[id];
        let Some(socket) = conn.socket.filter(|_| !conn.told_closed) else { return false };
        let seen = match conn.fate {
            Fate::Alive => false,
            Fate::HalfClosed => conn.upstream.is_empty() && !conn.paused,
            Fate::Reset => !conn.paused,
        };
        if seen {
            conn.told_closed = true;
            self.activity += 1;
            let reset = conn.fate == Fate::Reset;
            note!(self.trace, "s{} <- c{id}: peer gone, reset {reset}", conn.shard);
            self.sides[conn.shard].events.push_back(Ready::Closed(socket, reset));
        }
        seen
    }

    /// Slots of closed sockets may be used again.
    pub(crate) fn release_slots(&mut self, shard: usize) -> bool {
        let side = &mut self.sides[shard];
        let any = !side.closing.is_empty();
        side.usage.sockets -= side.closing.len() as u64;
        side.free.append(&mut side.closing);
        any
    }

    /// What a socket takes of so many bytes, and whether it breaks.
    fn take(&mut self, id: ConnId, len: usize) -> (usize, bool) {
        let Net { conns, dice, faults, .. } = self;
        let conn = &mut conns[id];
        if conn.fate == Fate::Reset {
            return (0, true);
        }
        let mut count = len.min(conn.capacity.saturating_sub(conn.unread.len()));
        if conn.vain_left > 0 {
            conn.vain_left -= 1;
            return (0, false);
        }
        if dice.chance(conn.faults.short) {
            *faults += 1;
            count = dice.below(count + 1);
        } else if dice.chance(conn.faults.refused) {
            *faults += 1;
            count = 0;
        } else if dice.chance(conn.faults.broken) {
            *faults += 1;
            (conn.fate, conn.broke) = (Fate::Reset, true);
            return (0, true);
        }
        (count, false)
    }
}

#[derive(Debug)]
struct Staged {
    socket: SocketId,
    tag: u32,
    runs: Vec<Bytes>,
}

/// A shard's socket layer over a [`Net`].
pub(crate) struct SimWire {
    net: Rc<RefCell<Net>>,
    shard: usize,
    staged: Vec<Staged>,
    lent: Vec<u8>,
    null: File,
}

impl SimWire {
    pub(crate) fn new(net: Rc<RefCell<Net>>, shard: usize) -> SimWire {
        let null = File::open("/dev/null").expect("a descriptor is to be had");
        SimWire { net, shard, staged: Vec::new(), lent: Vec::new(), null }
    }
}

/// The connection behind an id that is not stale.
fn current(side: &Side, id: SocketId) -> Option<ConnId> {
    let slot = side.slots.get(id.index() as usize)?;
    slot.conn.filter(|_| SocketId::new(id.index(), slot.generation) == id)
}

impl Wire for SimWire {
    fn adopt(&mut self, socket: OwnedFd) -> Result<SocketId, WireError> {
        let net = &mut *self.net.borrow_mut();
        let conn = net.offered.remove(&socket.as_raw_fd()).expect("a descriptor that was offered");
        net.refuse_before(self.shard, conn);
        if net.dice.chance(net.adopt_faults) {
            net.faults += 1;
            net.conns[conn].phase = Phase::Refused;
            note!(net.trace, "s{} does not get c{conn}", self.shard);
            return Err(WireError::Full(0));
        }
        let side = &mut net.sides[self.shard];
        let slot = match side.free.len() {
            0 => {
                side.slots.push(Slot::default());
                (side.slots.len() - 1) as u32
            }
            free => side.free.swap_remove(net.dice.below(free)),
        };
        let place = &mut side.slots[slot as usize];
        place.conn = Some(conn);
        side.usage.sockets += 1;
        let id = SocketId::new(slot, place.generation);
        let state = &mut net.conns[conn];
        (state.socket, state.phase, state.heard_ms) = (Some(id), Phase::Open, net.now_ms);
        note!(net.trace, "s{} takes c{conn} in slot {slot}", self.shard);
        Ok(id)
    }

    fn connect(&mut self, _: SocketAddr, _: Option<IpAddr>) -> Result<SocketId, WireError> {
        unreachable!("a server does not connect")
    }

    fn send(&mut self, socket: SocketId, tag: u32, bytes: &Bytes) {
        self.send_vectored(socket, tag, std::slice::from_ref(bytes));
    }

    fn send_vectored(&mut self, socket: SocketId, tag: u32, runs: &[Bytes]) {
        assert!(runs.len() <= VECTORED_RUNS_MAX, "wire: {} runs in one send", runs.len());
        assert!(runs.iter().any(|run| !run.is_empty()), "wire: a send of nothing");
        self.staged.push(Staged { socket, tag, runs: runs.to_vec() });
    }

    fn submit(&mut self, short: &mut Vec<ShortSend>) -> io::Result<()> {
        let net = &mut *self.net.borrow_mut();
        net.submissions += 1;
        for Staged { socket, tag, runs } in self.staged.drain(..) {
            let len: usize = runs.iter().map(Bytes::len).sum();
            let side = &mut net.sides[self.shard];
            side.usage.sends += 1;
            side.usage.bytes_out += len as u64;
            let Some(id) = current(side, socket) else {
                note!(net.trace, "s{} sends to a socket that it has closed", self.shard);
                continue;
            };
            assert!(
                net.conns[id].submission != net.submissions,
                "wire: two sends to one socket in one submission (c{id})"
            );
            net.conns[id].submission = net.submissions;
            let (taken, broken) = net.take(id, len);
            net.activity += taken as u64;
            let conn = &mut net.conns[id];
            if conn.unread.is_empty() && taken > 0 {
                net.fresh.push(id);
            }
            if taken > 0 {
                conn.taken += taken as u64;
                let written = Written { turn: net.turn, ms: net.now_ms };
                conn.written.push_back((conn.taken, written));
            }
            let mut left = taken;
            let arrived = conn.unread.len();
            for run in &runs {
                let part = left.min(run.len());
                conn.unread.extend_from_slice(&run[..part]);
                left -= part;
            }
            if let Some(sabotage) = net.sabotage
                && taken > 0
                && net.dice.below(SABOTAGED) == 0
            {
                match sabotage {
                    Sabotage::LostByte => drop(conn.unread.remove(arrived + taken / 2)),
                    Sabotage::LostSend => conn.unread.truncate(arrived),
                    Sabotage::Repeated => conn.unread.extend_from_within(arrived..),
                    Sabotage::Untold => {
                        conn.unread.truncate(arrived + taken / 2);
                        continue;
                    }
                }
            }
            note!(
                net.trace,
                "s{} -> c{id}: {taken} of {len} bytes in {} runs{}",
                self.shard,
                runs.len(),
                if broken { ", broken" } else { "" }
            );
            conn.blocked = taken < len;
            if conn.blocked {
                net.sides[self.shard].usage.short_sends += 1;
                short.push(ShortSend { tag, sent: taken as u32, broken });
            }
        }
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        let net = &mut *self.net.borrow_mut();
        let side = &mut net.sides[self.shard];
        loop {
            match side.events.pop_front()? {
                Ready::Received(id, bytes) => {
                    let Some(conn) = current(side, id) else { continue };
                    let state = &mut net.conns[conn];
                    state.silence_ms = state.silence_ms.max(net.now_ms - state.heard_ms);
                    (state.heard_ms, state.heard_turn) = (net.now_ms, net.turn);
                    state.arriving -= 1;
                    net.activity += 1;
                    side.usage.bytes_in += bytes.len() as u64;
                    self.lent = bytes;
                    return Some(Event::Received(id, &mut self.lent));
                }
                Ready::Writable(id) if current(side, id).is_some() => {
                    return Some(Event::Writable(id));
                }
                Ready::Closed(id, reset) => {
                    let Some(conn) = current(side, id) else { continue };
                    if net.conns[conn].paused {
                        // It is told when it is read again.
                        net.conns[conn].told_closed = false;
                        continue;
                    }
                    let error = reset.then(|| io::ErrorKind::ConnectionReset.into());
                    return Some(Event::Closed(id, error));
                }
                _ => {}
            }
        }
    }

    fn watch_writable(&mut self, id: SocketId) {
        let net = &mut *self.net.borrow_mut();
        if let Some(conn) = current(&net.sides[self.shard], id) {
            net.conns[conn].watched = true;
        }
    }

    fn receive(&mut self, id: SocketId, on: bool) {
        let net = &mut *self.net.borrow_mut();
        let Some(conn) = current(&net.sides[self.shard], id) else { return };
        note!(net.trace, "s{} {} c{conn}", self.shard, if on { "reads" } else { "stops reading" });
        let state = &mut net.conns[conn];
        state.paused = !on;
        state.under_way = if on { 0 } else { net.dice.below(state.upstream.len().min(8192) + 1) };
    }

    fn close(&mut self, id: SocketId) {
        let net = &mut *self.net.borrow_mut();
        let side = &mut net.sides[self.shard];
        let Some(conn) = current(side, id) else { return };
        let slot = &mut side.slots[id.index() as usize];
        slot.conn = None;
        slot.generation = slot.generation.wrapping_add(1);
        side.closing.push(id.index());
        let state = &mut net.conns[conn];
        (state.socket, state.phase) = (None, Phase::Ended);
        net.fresh.push(conn);
        note!(net.trace, "s{} closes c{conn}", self.shard);
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(!self.net.borrow().sides[self.shard].has_events())
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    fn usage(&self) -> Usage {
        self.net.borrow().sides[self.shard].usage
    }
}
