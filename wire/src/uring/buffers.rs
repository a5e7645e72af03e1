//! The provided buffer ring: receive buffers that belong to the ring, not to a connection, so that
//! an idle connection has none.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// Entries and buffers in one anonymous mapping, registered with one ring.
pub(super) struct Buffers {
    base: NonNull<u8>,
    mapped: usize,
    entries: u16,
    buffer_bytes: u32,
    tail: u16,
    /// Those that we know the kernel has filled and that were not given back.
    taken: u16,
}

impl Buffers {
    /// Maps the memory, registers it and gives every buffer to the kernel. `entries` must be a
    /// power of two. The mapping must outlive the ring: see [`super::Ring`]'s field order.
    pub(super) fn register(ring: &IoUring, entries: u16, buffer_bytes: u32) -> io::Result<Buffers> {
        assert!(entries.is_power_of_two(), "buffer ring sizes are powers of two");
        let mapped = Self::entry_bytes(entries) + usize::from(entries) * buffer_bytes as usize;
        // SAFETY: a fresh anonymous mapping; the result is checked.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut buffers = Buffers { base, mapped, entries, buffer_bytes, tail: 0, taken: entries };
        // SAFETY: the mapping holds `entries` page-aligned entries and stays until `Buffers` drops,
        // which is after the ring is closed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(address as u64, entries, GROUP, 0)?;
        }
        (0..entries).for_each(|id| buffers.recycle(id));
        Ok(buffers)
    }

    fn entry_bytes(entries: u16) -> usize {
        (usize::from(entries) * size_of::<BufRingEntry>()).next_multiple_of(4096)
    }

    fn buffer(&self, id: u16) -> *mut u8 {
        assert!(id < self.entries, "the kernel names a buffer of this ring");
        let offset = Self::entry_bytes(self.entries) + usize::from(id) * self.buffer_bytes as usize;
        // SAFETY: within the mapping, by the assertion and the mapping's size.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// A completion has handed a buffer to us.
    pub(super) fn note_taken(&mut self) {
        self.taken += 1;
    }

    /// Buffers that the kernel has, as far as its completions were looked at.
    pub(super) fn free(&self) -> u16 {
        self.entries - self.taken
    }

    /// The first `len` bytes of a buffer that a completion has handed to us.
    pub(super) fn filled(&mut self, id: u16, len: u32) -> &mut [u8] {
        let len = len.min(self.buffer_bytes) as usize;
        // SAFETY: the kernel has let go of this buffer until it is recycled, it is initialised
        // (anonymous memory), and `&mut self` makes this the only slice into the mapping.
        unsafe { std::slice::from_raw_parts_mut(self.buffer(id), len) }
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn recycle(&mut self, id: u16) {
        let address = self.buffer(id) as u64;
        let entries = self.base.cast::<BufRingEntry>();
        let index = usize::from(self.tail & (self.entries - 1));
        // SAFETY: `index` is below `entries`; the kernel does not read an entry at or above the
        // tail.
        let entry = unsafe { &mut *entries.as_ptr().add(index) };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.taken -= 1;
        // SAFETY: the tail lies in the first entry, is aligned, and is shared with the kernel,
        // which reads it with acquire ordering.
        let tail = unsafe {
            AtomicU16::from_ptr(BufRingEntry::tail(entries.as_ptr().cast_const()).cast_mut())
        };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `register`, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}
