//! One io_uring: its queues, its table of direct descriptors and the life of each slot in it.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use bytes::Bytes;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};

use super::buffers::{Buffers, GROUP};
use super::op::{Op, SLOT_BITS, UserData};
use crate::limits::{INT_BYTES, open_files_limit};
use crate::{ShortSend, Usage, WireConfig, WireError};

/// Completion queue entries per submission queue entry: every socket may complete at once.
const COMPLETIONS_PER_SUBMISSION: u32 = 8;

/// Entries in a row to fetch what one left; more is left to the next turn.
const FETCHES_MAX: usize = 64;
/// Entries in a row without a completion after which nothing is expected of the next.
const IDLE_FETCHES_MAX: usize = 16;

/// Entries in a row that submit nothing before a pause is made between them, and before the ring is
/// given up, which takes one or two seconds.
const VAIN_ENTRIES_AT_ONCE: u32 = 64;
const VAIN_ENTRIES_MAX: u32 = 1064;
const VAIN_ENTRY_PAUSE: Duration = Duration::from_millis(1);

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// What completions mean, once the ring's own bookkeeping is done.
#[derive(Debug)]
pub(super) enum Outcome {
    Short(ShortSend),
    Received { slot: u32, generation: u32, buffer: u16, len: u32 },
    Connected { slot: u32, generation: u32 },
    Writable { slot: u32, generation: u32 },
    Closed { slot: u32, generation: u32, error: i32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Connecting,
    Open,
    /// Waiting for cancelled operations to end.
    Closing,
}

/// A slot of the table. It is free again only when the kernel has no operation on it.
#[derive(Debug, Clone, Copy)]
struct Slot {
    generation: u32,
    state: State,
    receiving: bool,
    polling: bool,
    paused: bool,
}

/// What a ring keeps for one socket.
pub(crate) const SLOT_BYTES: usize = size_of::<Slot>();

const EMPTY: Slot =
    Slot { generation: 0, state: State::Free, receiving: false, polling: false, paused: false };

/// One ring. Fields drop in order: the ring before the memory it was given.
pub(super) struct Ring {
    ring: IoUring,
    buffers: Buffers,
    slots: Vec<Slot>,
    free: Vec<u32>,
    capacity: u32,
    /// Receives to be armed again once buffers are back, first in, first out.
    starved: VecDeque<u32>,
    /// Socket addresses that staged submissions point to; the kernel copies them on submission.
    #[expect(clippy::vec_box, reason = "the kernel is given their addresses: they must not move")]
    addresses: Vec<Box<Address>>,
    one: Box<libc::c_int>,
    /// Completions taken off the queue and not looked at yet.
    completed: VecDeque<cqueue::Entry>,
    /// See `fetch_rest`.
    flag_is_stale: bool,
    /// See `entered_in_vain`.
    vain_entries: u32,
    usage: Usage,
}

impl Ring {
    pub(super) fn new(
        config: &WireConfig,
        wanted: u32,
        event_fd: RawFd,
    ) -> Result<Ring, WireError> {
        let unsupported = |step, hint| move |source| WireError::Unsupported { step, source, hint };
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.submission_entries * COMPLETIONS_PER_SUBMISSION)
            .build(config.submission_entries)
            .map_err(|source| WireError::Unsupported {
                step: "io_uring_setup with DEFER_TASKRUN (Linux 6.1)",
                hint: match source.raw_os_error() {
                    Some(libc::EPERM | libc::ENOSYS) => {
                        "; a container's seccomp profile or the sysctl kernel.io_uring_disabled \
                         may forbid it"
                    }
                    Some(libc::ENOMEM) => "; RLIMIT_MEMLOCK may be too low",
                    _ => "",
                },
                source,
            })?;
        let (limit, _) = open_files_limit().map_err(unsupported("getrlimit", ""))?;
        // The kernel allows a table as large as RLIMIT_NOFILE, for each ring anew.
        let wanted = wanted.min(config.sockets_per_ring_max).min(1 << SLOT_BITS);
        let capacity = u64::from(wanted).min(limit);
        let capacity = u32::try_from(capacity).unwrap_or(wanted);
        let submitter = ring.submitter();
        submitter
            .register_files_sparse(capacity)
            .map_err(unsupported("registering a table of direct descriptors (Linux 5.19)", ""))?;
        submitter.register_eventfd(event_fd).map_err(unsupported("registering an eventfd", ""))?;
        let buffers = Buffers::register(&ring, config.receive_buffers, config.receive_buffer_bytes)
            .map_err(unsupported("registering a provided buffer ring (Linux 5.19)", ""))?;
        Ok(Ring {
            ring,
            buffers,
            slots: Vec::new(),
            free: Vec::new(),
            capacity,
            starved: VecDeque::new(),
            addresses: Vec::new(),
            one: Box::new(1),
            completed: VecDeque::new(),
            flag_is_stale: false,
            vain_entries: 0,
            usage: Usage { rings: 1, ..Usage::default() },
        })
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// A slot that nothing uses; slots are made as they are needed.
    pub(super) fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = u32::try_from(self.slots.len()).ok().filter(|&slot| slot < self.capacity)?;
        self.slots.push(EMPTY);
        Some(slot)
    }

    /// Gives back a slot that never held a socket.
    pub(super) fn release_slot(&mut self, slot: u32) {
        let place = self.slot(slot);
        *place = Slot { generation: place.generation.wrapping_add(1), ..EMPTY };
        self.free.push(slot);
    }

    fn slot(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    /// Whether `generation` of the slot is in use and not being closed.
    pub(super) fn is_current(&self, slot: u32, generation: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|s| {
            s.generation == generation && matches!(s.state, State::Open | State::Connecting)
        })
    }

    fn user_data(&self, op: Op, slot: u32, tag: u32) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low bits tell one life of a slot from the next"
        )]
        let generation = self.slots[slot as usize].generation as u8;
        UserData { op, slot, generation, tag }.pack()
    }

    /// Puts an entry on the submission queue, making room by entering the kernel if it is full.
    fn push(&mut self, entry: &Entry) {
        loop {
            // SAFETY: whoever stages an entry keeps what it points to until it is submitted; see
            // `UringWire::held`, `UringWire::vectors` and `Ring::addresses`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            if let Err(e) = self.flush() {
                // The queue is full and the kernel takes nothing: nothing can go on.
                panic!("io_uring_enter failed with a full submission queue: {e}");
            }
        }
    }

    /// Enters the kernel once: submits what is staged, runs its deferred work, and takes the
    /// completions, so that the queue has room again.
    fn flush(&mut self) -> io::Result<()> {
        let staged = u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX);
        self.usage.enters += 1;
        // IORING_ENTER_GETEVENTS: with DEFER_TASKRUN completions are only made in here.
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument is passed; what the entries point to is alive (see `push`).
        let entered = unsafe { self.ring.submitter().enter::<()>(staged, 0, GETEVENTS, None) };
        let before = self.completed.len();
        self.completed.extend(self.ring.completion());
        let gained = self.completed.len() > before;
        match entered.map_err(|e| (e.raw_os_error(), e)) {
            Ok(submitted) if submitted > 0 || staged == 0 || gained => {
                self.vain_entries = 0;
                Ok(())
            }
            Err((Some(libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) if gained => {
                self.vain_entries = 0;
                Ok(())
            }
            Ok(_) => self.entered_in_vain(io::ErrorKind::WouldBlock.into()),
            Err((Some(libc::EINTR | libc::EBUSY | libc::EAGAIN), e)) => self.entered_in_vain(e),
            Err((_, e)) => Err(e),
        }
    }

    /// The kernel is short of memory, or has completions that must be taken first: it may be asked
    /// again, but not for ever.
    fn entered_in_vain(&mut self, error: io::Error) -> io::Result<()> {
        self.vain_entries += 1;
        match self.vain_entries {
            0..VAIN_ENTRIES_AT_ONCE => std::thread::yield_now(),
            VAIN_ENTRIES_AT_ONCE..VAIN_ENTRIES_MAX => std::thread::sleep(VAIN_ENTRY_PAUSE),
            count => {
                let why = format!("{count} entries in a row submitted nothing: {error}");
                return Err(io::Error::new(error.kind(), why));
            }
        }
        Ok(())
    }

    /// Submits all that is staged and what waits to be armed again; skips the kernel if it has
    /// nothing.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        // No more than can be served: where thousands send at once, arming all of them again only to have most of them
        // turned away costs far more than what is received.
        let mut room = self.buffers.free();
        while room > 0
            && let Some(slot) = self.starved.pop_front()
        {
            let Slot { state, receiving, paused, .. } = *self.slot(slot);
            if state == State::Open && !receiving && !paused {
                self.start_receiving(slot);
                room -= 1;
            }
        }
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if !idle {
            self.flush()?;
            while !self.ring.submission().is_empty() {
                self.flush()?;
            }
            self.fetch_rest()?;
        }
        self.addresses.clear();
        Ok(())
    }

    /// Runs the kernel's deferred work whether or not anything is staged.
    pub(super) fn fetch(&mut self) -> io::Result<()> {
        self.flush()?;
        self.fetch_rest()
    }

    /// Since Linux 6.13 one entry runs no more than 20 pieces of deferred work and leaves the rest,
    /// which no eventfd announces again. That some is left is what the flag says, but the kernel may
    /// set it late, when the work is done already, and then it stays until there is other work: after
    /// some entries that bring nothing it is not believed any more.
    fn fetch_rest(&mut self) -> io::Result<()> {
        let mut idle = 0;
        self.flag_is_stale = false;
        for _ in 0..FETCHES_MAX {
            if !self.ring.submission().taskrun() {
                break;
            }
            let before = self.completed.len();
            self.flush()?;
            idle = if self.completed.len() == before { idle + 1 } else { 0 };
            if idle > IDLE_FETCHES_MAX {
                self.flag_is_stale = true;
                break;
            }
        }
        Ok(())
    }

    /// Whether the next `enter` has something to do that no completion will announce.
    pub(super) fn has_waiting(&mut self) -> bool {
        let queue = self.ring.submission();
        let left_over = queue.taskrun() && !self.flag_is_stale;
        !self.starved.is_empty() || !queue.is_empty() || left_over || queue.cq_overflow()
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    pub(super) fn signal_events(&mut self, on: bool) {
        let queue = self.ring.completion();
        if on { queue.enable_eventfd() } else { queue.disable_eventfd() }
    }

    pub(super) fn adopt(&mut self, slot: u32, socket: &impl AsFd) -> io::Result<u32> {
        let fd = socket.as_fd().as_raw_fd();
        self.ring.submitter().register_files_update(slot, &[fd])?;
        self.slot(slot).state = State::Open;
        self.usage.sockets += 1;
        self.start_receiving(slot);
        Ok(self.slot(slot).generation)
    }

    fn start_receiving(&mut self, slot: u32) {
        self.slot(slot).receiving = true;
        let entry = opcode::RecvMulti::new(types::Fixed(slot), GROUP)
            .build()
            .user_data(self.user_data(Op::Receive, slot, 0));
        self.push(&entry);
    }

    /// A chain: make the socket in its slot, set its options, bind it if asked, connect it. Only
    /// the last step completes on success, and only the failing one on failure.
    pub(super) fn connect(&mut self, slot: u32, to: SocketAddr, from: Option<IpAddr>) -> u32 {
        self.slot(slot).state = State::Connecting;
        self.usage.sockets += 1;
        // A chain must not be split over two submissions.
        const CHAIN: usize = 5;
        let queue = self.ring.submission();
        let room = queue.capacity() - queue.len();
        drop(queue);
        if room < CHAIN && self.flush().is_err() {
            // The next `enter` meets the same error and reports it.
        }
        let link = Flags::IO_LINK | Flags::SKIP_SUCCESS;
        let data = self.user_data(Op::Connect, slot, 0);
        let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let place = types::DestinationSlot::try_from_slot_target(slot).ok();
        let socket = opcode::Socket::new(domain, libc::SOCK_STREAM, 0).file_index(place).build();
        self.push(&socket.user_data(data).flags(link));
        self.push_option(slot, libc::IPPROTO_TCP, libc::TCP_NODELAY, data);
        if let Some(from) = from {
            // The port is chosen by connect, which knows the destination.
            self.push_option(slot, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, data);
            let (address, len) = self.hold_address(SocketAddr::new(from, 0));
            let bind = opcode::Bind::new(types::Fixed(slot), address, len).build();
            self.push(&bind.user_data(data).flags(link));
        }
        let (address, len) = self.hold_address(to);
        let connect = opcode::Connect::new(types::Fixed(slot), address, len).build();
        self.push(&connect.user_data(data));
        self.slot(slot).generation
    }

    fn push_option(&mut self, slot: u32, level: i32, name: i32, data: u64) {
        let one: *const libc::c_int = &*self.one;
        let entry = opcode::SetSockOpt::new(
            types::Fixed(slot),
            level.unsigned_abs(),
            name.unsigned_abs(),
            one.cast(),
            INT_BYTES,
        )
        .build()
        .user_data(data)
        .flags(Flags::IO_LINK | Flags::SKIP_SUCCESS);
        self.push(&entry);
    }

    fn hold_address(&mut self, address: SocketAddr) -> (*const libc::sockaddr, libc::socklen_t) {
        let held = Box::new(Address::from(address));
        let pointer = held.as_ptr();
        self.addresses.push(held);
        pointer
    }

    pub(super) fn send(&mut self, slot: u32, tag: u32, bytes: &Bytes) {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.usage.sends += 1;
        self.usage.bytes_out += u64::from(len);
        let entry = opcode::Send::new(types::Fixed(slot), bytes.as_ptr(), len)
            .flags(SEND_FLAGS)
            .build()
            .flags(Flags::SKIP_SUCCESS)
            .user_data(self.user_data(Op::Send, slot, tag));
        self.push(&entry);
    }

    pub(super) fn send_vectored(
        &mut self,
        slot: u32,
        tag: u32,
        header: *const libc::msghdr,
        len: usize,
    ) {
        self.usage.sends += 1;
        self.usage.bytes_out += len as u64;
        let entry = opcode::SendMsg::new(types::Fixed(slot), header)
            .flags(SEND_FLAGS.unsigned_abs())
            .build()
            .flags(Flags::SKIP_SUCCESS)
            .user_data(self.user_data(Op::Send, slot, tag));
        self.push(&entry);
    }

    pub(super) fn watch_writable(&mut self, slot: u32) {
        if self.slot(slot).polling {
            return;
        }
        self.slot(slot).polling = true;
        // POLLOUT is a small positive constant.
        let entry = opcode::PollAdd::new(types::Fixed(slot), libc::POLLOUT as u32)
            .build()
            .user_data(self.user_data(Op::Poll, slot, 0));
        self.push(&entry);
    }

    pub(super) fn receive(&mut self, slot: u32, on: bool) {
        let Slot { state, receiving, paused, .. } = *self.slot(slot);
        if state != State::Open || paused != on {
            return;
        }
        self.slot(slot).paused = !on;
        if on && !receiving {
            self.start_receiving(slot);
        } else if !on && receiving {
            self.push_cancel(slot, Op::Receive);
        }
    }

    pub(super) fn is_paused(&mut self, slot: u32) -> bool {
        self.slot(slot).paused
    }

    pub(super) fn close(&mut self, slot: u32) {
        let before = self.slot(slot).state;
        self.slot(slot).state = State::Closing;
        let Slot { receiving, polling, .. } = *self.slot(slot);
        let connecting = before == State::Connecting;
        // Closing does not cancel: pending operations hold the socket. Cancel, await, close. By user
        // data, which the kernel finds by hash; by descriptor it would look at every pending operation
        // of the ring.
        for (pending, op) in
            [(receiving, Op::Receive), (polling, Op::Poll), (connecting, Op::Connect)]
        {
            if pending {
                self.push_cancel(slot, op);
            }
        }
        if connecting {
            // Its completion arrives as Op::Connect; until then the slot counts as polled.
            self.slot(slot).polling = true;
        } else if !receiving && !polling {
            self.push_close(slot);
        }
    }

    fn push_cancel(&mut self, slot: u32, op: Op) {
        let target = self.user_data(op, slot, 0);
        let data = self.user_data(Op::Other, slot, 0);
        let entry = opcode::AsyncCancel::new(target).build().user_data(data);
        self.push(&entry);
    }

    fn push_close(&mut self, slot: u32) {
        let entry = opcode::Close::new(types::Fixed(slot)).build().user_data(self.user_data(
            Op::Close,
            slot,
            0,
        ));
        self.push(&entry);
    }

    pub(super) fn recycle(&mut self, buffer: u16) {
        self.buffers.recycle(buffer);
    }

    pub(super) fn filled(&mut self, buffer: u16, len: u32) -> &mut [u8] {
        self.buffers.filled(buffer, len)
    }

    /// Looks at every completion there is, also those the kernel had to keep in its overflow list.
    pub(super) fn reap(&mut self, mut tell: impl FnMut(Outcome)) {
        loop {
            while let Some(entry) = self.completed.pop_front() {
                self.complete(&entry, &mut tell);
            }
            if !self.ring.submission().cq_overflow() {
                return;
            }
            self.usage.completion_overflows += 1;
            if self.flush().is_err() {
                return;
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry, tell: &mut impl FnMut(Outcome)) {
        let Some(UserData { op, slot, generation, tag }) = UserData::unpack(entry.user_data())
        else {
            return;
        };
        if op == Op::Other {
            return;
        }
        let Some(&Slot { generation: current, state, .. }) = self.slots.get(slot as usize) else {
            return;
        };
        #[expect(clippy::cast_possible_truncation, reason = "compares the bits that travel")]
        let stale = current as u8 != generation;
        assert!(!stale, "a slot is not used again before its operations have ended");
        let (result, flags, generation) = (entry.result(), entry.flags(), current);
        let more = cqueue::more(flags);
        match op {
            Op::Send => {
                let sent = u32::try_from(result).unwrap_or(0);
                let broken = result < 0 && result != -libc::EAGAIN;
                self.usage.short_sends += 1;
                tell(Outcome::Short(ShortSend { tag, sent, broken }));
            }
            Op::Receive => {
                self.slot(slot).receiving = more;
                if let Some(buffer) = cqueue::buffer_select(flags) {
                    self.buffers.note_taken();
                    if result > 0 && state == State::Open {
                        let len = result.unsigned_abs();
                        self.usage.bytes_in += u64::from(len);
                        tell(Outcome::Received { slot, generation, buffer, len });
                    } else {
                        self.recycle(buffer);
                    }
                }
                if !more && state == State::Open {
                    self.receive_ended(slot, result, tell);
                }
            }
            Op::Poll => {
                self.slot(slot).polling = false;
                if state == State::Open {
                    tell(Outcome::Writable { slot, generation });
                }
            }
            Op::Connect => match state {
                State::Connecting if result >= 0 => {
                    self.slot(slot).state = State::Open;
                    tell(Outcome::Connected { slot, generation });
                    self.start_receiving(slot);
                }
                State::Connecting => {
                    self.slot(slot).state = State::Open;
                    tell(Outcome::Closed { slot, generation, error: -result });
                }
                _ => self.slot(slot).polling = false,
            },
            Op::Close => {
                self.usage.sockets -= 1;
                self.release_slot(slot);
                return;
            }
            Op::Other => {}
        }
        let Slot { receiving, polling, .. } = *self.slot(slot);
        let ended = matches!(op, Op::Receive | Op::Poll | Op::Connect) && !more;
        if state == State::Closing && ended && !receiving && !polling {
            self.push_close(slot);
        }
    }

    /// A multishot receive has ended on an open socket: by the peer, for want of a buffer, by our
    /// own pause, or because the kernel wants it armed anew.
    fn receive_ended(&mut self, slot: u32, result: i32, tell: &mut impl FnMut(Outcome)) {
        let Slot { generation, paused, .. } = *self.slot(slot);
        match -result {
            0 => tell(Outcome::Closed { slot, generation, error: 0 }),
            libc::ENOBUFS => {
                self.usage.buffer_shortages += 1;
                self.starved.push_back(slot);
            }
            libc::ECANCELED if paused => {}
            error if error > 0 && error != libc::ECANCELED => {
                tell(Outcome::Closed { slot, generation, error });
            }
            _ => self.starved.push_back(slot),
        }
    }
}

/// What the kernel's types for lengths and families make of constants that fit them.
#[expect(clippy::cast_possible_truncation, reason = "small constants")]
mod narrow {
    pub(super) const V4_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    pub(super) const V6_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    pub(super) const AF_INET: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;
    pub(super) const AF_INET6: libc::sa_family_t = libc::AF_INET6 as libc::sa_family_t;
}
use narrow::{AF_INET, AF_INET6, V4_BYTES, V6_BYTES};

/// A socket address as the kernel reads it.
union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    family: libc::sa_family_t,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        match address {
            SocketAddr::V4(a) => Address {
                v4: libc::sockaddr_in {
                    sin_family: AF_INET,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                    sin_zero: [0; 8],
                },
            },
            SocketAddr::V6(a) => Address {
                v6: libc::sockaddr_in6 {
                    sin6_family: AF_INET6,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: a.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                    sin6_scope_id: a.scope_id(),
                },
            },
        }
    }
}

impl Address {
    fn as_ptr(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        // SAFETY: every variant begins with the family.
        let v4 = unsafe { self.family } == AF_INET;
        let len = if v4 { V4_BYTES } else { V6_BYTES };
        (std::ptr::from_ref(self).cast(), len)
    }
}
