//! The io_uring body of [`Wire`].
//!
//! Sends are inline: `MSG_DONTWAIT` keeps the kernel from parking one, so no buffer is referenced
//! once `io_uring_enter` has returned, and `MSG_WAITALL` turns a short send into a failure, so that
//! `CQE_SKIP_SUCCESS` suppresses the completions of whole sends and of nothing else. Each of the
//! three flags is wrong without the other two.

mod buffers;
mod op;
mod ring;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bytes::Bytes;

use crate::limits::new_event_fd;
use crate::{Event, ShortSend, SocketId, Usage, VECTORED_RUNS_MAX, Wire, WireConfig, WireError};
pub(crate) use op::{SLOT_BITS, SLOT_MASK};
pub(crate) use ring::SLOT_BYTES;
use ring::{Outcome, Ring};

/// The socket layer over one or several io_urings. See [`Wire`].
pub struct UringWire {
    // Rings go first: a ring must be gone before what its submissions point to.
    rings: Vec<Ring>,
    config: WireConfig,
    event_fd: OwnedFd,
    armed: bool,
    /// What staged sends point to, kept until they are submitted.
    held: Vec<Bytes>,
    #[expect(clippy::vec_box, reason = "the kernel is given their addresses: they must not move")]
    vectors: Vec<Box<Vector>>,
    vectors_used: usize,
    ready: VecDeque<(u16, Outcome)>,
    short: Vec<ShortSend>,
    /// The buffer lent out by the last event.
    lent: Option<(u16, u16)>,
}

/// The `msghdr` of one vectored send and what it points to; boxed, so that it does not move.
struct Vector {
    header: libc::msghdr,
    runs: [libc::iovec; VECTORED_RUNS_MAX],
}

impl UringWire {
    /// A wire with its first ring. Fails with a hint where the kernel does not offer what is needed.
    pub fn new(config: WireConfig) -> Result<UringWire, WireError> {
        let failed = |source| WireError::Unsupported { step: "eventfd", source, hint: "" };
        let event_fd = new_event_fd().map_err(failed)?;
        let mut wire = UringWire {
            rings: Vec::new(),
            config,
            event_fd,
            armed: false,
            held: Vec::new(),
            vectors: Vec::new(),
            vectors_used: 0,
            ready: VecDeque::new(),
            short: Vec::new(),
            lent: None,
        };
        wire.add_ring()?;
        Ok(wire)
    }

    fn add_ring(&mut self) -> Result<(), WireError> {
        let taken: u32 = self.rings.iter().map(Ring::capacity).sum();
        let wanted = self.config.sockets_max.saturating_sub(taken);
        if wanted == 0 || self.rings.len() >= 1 << (32 - SLOT_BITS) {
            return Err(WireError::Full(taken));
        }
        let mut ring = Ring::new(&self.config, wanted, self.event_fd.as_raw_fd())?;
        ring.signal_events(self.armed);
        self.rings.push(ring);
        Ok(())
    }

    /// A free slot: ring number and slot.
    fn free_slot(&mut self) -> Result<(usize, u32), WireError> {
        let found = self.rings.iter_mut().enumerate().find_map(|(i, r)| Some((i, r.take_slot()?)));
        if let Some(found) = found {
            return Ok(found);
        }
        self.add_ring()?;
        let last = self.rings.len() - 1;
        self.rings[last].take_slot().map(|slot| (last, slot)).ok_or(WireError::Full(0))
    }

    /// The ring and slot of an id that is not stale.
    fn find(&mut self, id: SocketId) -> Option<(&mut Ring, u32)> {
        let slot = id.index & SLOT_MASK;
        let ring = self.rings.get_mut((id.index >> SLOT_BITS) as usize)?;
        ring.is_current(slot, id.generation).then_some((ring, slot))
    }

    fn hold(&mut self, bytes: &Bytes) {
        let same = |last: &Bytes| last.as_ptr() == bytes.as_ptr() && last.len() == bytes.len();
        if !self.held.last().is_some_and(same) {
            self.held.push(bytes.clone());
        }
    }

    /// Fetches completions: sends that failed into `short`, everything else into `ready`.
    fn reap(&mut self) {
        for (number, ring) in self.rings.iter_mut().enumerate() {
            let (ready, short) = (&mut self.ready, &mut self.short);
            ring.reap(|outcome| match outcome {
                Outcome::Short(send) => short.push(send),
                #[expect(clippy::cast_possible_truncation, reason = "2^12 rings: see `add_ring`")]
                other => ready.push_back((number as u16, other)),
            });
        }
    }

    fn recycle_lent(&mut self) {
        if let Some((ring, buffer)) = self.lent.take() {
            self.rings[usize::from(ring)].recycle(buffer);
        }
    }
}

fn id_of(ring: u16, slot: u32, generation: u32) -> SocketId {
    SocketId { index: u32::from(ring) << SLOT_BITS | slot, generation }
}

impl Wire for UringWire {
    fn adopt(&mut self, socket: OwnedFd) -> Result<SocketId, WireError> {
        let (number, slot) = self.free_slot()?;
        let ring = &mut self.rings[number];
        match ring.adopt(slot, &socket) {
            Ok(generation) =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "at most 2^12 rings")]
                Ok(id_of(number as u16, slot, generation))
            }
            Err(e) => {
                ring.release_slot(slot);
                Err(WireError::Adopt(e))
            }
        }
    }

    fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<SocketId, WireError> {
        let (number, slot) = self.free_slot()?;
        let generation = self.rings[number].connect(slot, to, from);
        #[expect(clippy::cast_possible_truncation, reason = "at most 2^12 rings")]
        Ok(id_of(number as u16, slot, generation))
    }

    fn send(&mut self, id: SocketId, tag: u32, bytes: &Bytes) {
        self.hold(bytes);
        let slot = id.index & SLOT_MASK;
        let Some(ring) = self.rings.get_mut((id.index >> SLOT_BITS) as usize) else { return };
        if !ring.is_current(slot, id.generation) {
            return;
        }
        ring.send(slot, tag, bytes);
    }

    fn send_vectored(&mut self, id: SocketId, tag: u32, runs: &[Bytes]) {
        if let [run] = runs {
            return self.send(id, tag, run);
        }
        if self.find(id).is_none() {
            return;
        }
        let runs = &runs[..runs.len().min(VECTORED_RUNS_MAX)];
        runs.iter().for_each(|run| self.hold(run));
        if self.vectors_used == self.vectors.len() {
            // SAFETY: an all-zero msghdr and all-zero iovecs are valid.
            self.vectors.push(Box::new(unsafe { std::mem::zeroed() }));
        }
        let vector = &mut *self.vectors[self.vectors_used];
        self.vectors_used += 1;
        for (place, run) in vector.runs.iter_mut().zip(runs) {
            place.iov_base = run.as_ptr().cast_mut().cast();
            place.iov_len = run.len();
        }
        vector.header.msg_iov = vector.runs.as_mut_ptr();
        vector.header.msg_iovlen = runs.len() as _;
        let header: *const libc::msghdr = &vector.header;
        let len = runs.iter().map(Bytes::len).sum();
        let slot = id.index & SLOT_MASK;
        let ring = &mut self.rings[(id.index >> SLOT_BITS) as usize];
        ring.send_vectored(slot, tag, header, len);
    }

    fn submit(&mut self, short: &mut Vec<ShortSend>) -> io::Result<()> {
        if self.armed {
            self.armed = false;
            self.rings.iter_mut().for_each(|ring| ring.signal_events(false));
        }
        self.recycle_lent();
        for ring in &mut self.rings {
            ring.enter()?;
        }
        self.reap();
        self.held.clear();
        self.vectors_used = 0;
        short.append(&mut self.short);
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        self.recycle_lent();
        let (id, number, buffer, len) = loop {
            let (number, outcome) = self.ready.pop_front()?;
            let ring = &mut self.rings[usize::from(number)];
            match outcome {
                Outcome::Received { slot, generation, buffer, len } => {
                    if ring.is_current(slot, generation) {
                        break (id_of(number, slot, generation), number, buffer, len);
                    }
                    ring.recycle(buffer);
                }
                Outcome::Connected { slot, generation } if ring.is_current(slot, generation) => {
                    return Some(Event::Connected(id_of(number, slot, generation)));
                }
                Outcome::Writable { slot, generation } if ring.is_current(slot, generation) => {
                    return Some(Event::Writable(id_of(number, slot, generation)));
                }
                // What came before it may still wait: it comes again once somebody reads again.
                Outcome::Closed { slot, .. } if ring.is_paused(slot) => {}
                Outcome::Closed { slot, generation, error }
                    if ring.is_current(slot, generation) =>
                {
                    let error = (error != 0).then(|| io::Error::from_raw_os_error(error));
                    return Some(Event::Closed(id_of(number, slot, generation), error));
                }
                _ => {}
            }
        };
        self.lent = Some((number, buffer));
        Some(Event::Received(id, self.rings[usize::from(number)].filled(buffer, len)))
    }

    fn watch_writable(&mut self, id: SocketId) {
        if let Some((ring, slot)) = self.find(id) {
            ring.watch_writable(slot);
        }
    }

    fn receive(&mut self, id: SocketId, on: bool) {
        if let Some((ring, slot)) = self.find(id) {
            ring.receive(slot, on);
        }
    }

    fn close(&mut self, id: SocketId) {
        if let Some((ring, slot)) = self.find(id) {
            ring.close(slot);
        }
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.recycle_lent();
        self.armed = true;
        for ring in &mut self.rings {
            // Signals first, then a look: what came before the signal was on is seen by the look.
            ring.signal_events(true);
            ring.fetch()?;
        }
        self.reap();
        let waiting = self.rings.iter_mut().any(Ring::has_waiting);
        Ok(self.ready.is_empty() && self.short.is_empty() && !waiting)
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        // Registered with every ring.
        self.event_fd.as_fd()
    }

    fn usage(&self) -> Usage {
        self.rings.iter().map(Ring::usage).fold(Usage::default(), |a, b| Usage {
            sockets: a.sockets + b.sockets,
            rings: a.rings + b.rings,
            enters: a.enters + b.enters,
            sends: a.sends + b.sends,
            bytes_out: a.bytes_out + b.bytes_out,
            bytes_in: a.bytes_in + b.bytes_in,
            short_sends: a.short_sends + b.short_sends,
            buffer_shortages: a.buffer_shortages + b.buffer_shortages,
            completion_overflows: a.completion_overflows + b.completion_overflows,
        })
    }
}
