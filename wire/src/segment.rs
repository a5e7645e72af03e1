//! Append-only memory whose filled part is shared while the rest is still being written.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

use bytes::Bytes;

/// A run of memory of fixed capacity. One owner appends; anybody may hold slices of what is there.
///
/// Invariant: bytes below `len` are initialised and never change again; only the owner of the
/// `Segment` (it is not `Clone`) writes, and only at or above `len`.
#[derive(Debug)]
pub struct Segment {
    memory: Arc<Memory>,
    len: usize,
}

#[derive(Debug)]
struct Memory(Box<[UnsafeCell<MaybeUninit<u8>>]>);

// SAFETY: by the invariant of `Segment`, a byte is written by one owner before any slice over it
// exists and is only read afterwards.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

struct Slice {
    memory: Arc<Memory>,
    start: usize,
    end: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        let part = &self.memory.0[self.start..self.end];
        // SAFETY: `start..end` lay below `len` when the slice was made: initialised and unchanging.
        unsafe { std::slice::from_raw_parts(part.as_ptr().cast(), part.len()) }
    }
}

impl Segment {
    /// An empty segment that holds up to `capacity` bytes.
    pub fn new(capacity: usize) -> Segment {
        let memory = Box::<[u8]>::new_uninit_slice(capacity);
        let memory =
            // SAFETY: UnsafeCell<T> has the layout of T, and the box is given up before it is made anew.
            unsafe { Box::from_raw(Box::into_raw(memory) as *mut [UnsafeCell<MaybeUninit<u8>>]) };
        Segment { memory: Arc::new(Memory(memory)), len: 0 }
    }

    /// Bytes filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends all of `bytes`, or nothing if they do not fit.
    #[must_use]
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(place) = self.memory.0.get(self.len..).and_then(|free| free.get(..bytes.len()))
        else {
            return false;
        };
        // SAFETY: `place` is `bytes.len()` bytes at or above `len`, which nobody reads or writes
        // but this owner; `bytes` cannot overlap it, because no slice reaches beyond `len`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                UnsafeCell::raw_get(place.as_ptr()).cast(),
                bytes.len(),
            );
        }
        self.len += bytes.len();
        true
    }

    /// Empties the segment for use from the start. `false` if somebody still holds a slice of it.
    pub fn reset(&mut self) -> bool {
        let unshared = Arc::get_mut(&mut self.memory).is_some();
        if unshared {
            self.len = 0;
        }
        unshared
    }

    /// The filled bytes `start..end`, shared.
    ///
    /// # Panics
    /// If the range is not within what is filled.
    pub fn slice(&self, start: usize, end: usize) -> Bytes {
        assert!(start <= end && end <= self.len, "a slice lies within what is filled");
        Bytes::from_owner(Slice { memory: self.memory.clone(), start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_outlive_the_segment_and_do_not_change() {
        let mut segment = Segment::new(10);
        assert!(segment.append(b"hello"));
        let hello = segment.slice(0, 5);
        assert!(segment.append(b"world"));
        assert!(!segment.append(b"!"));
        let all = segment.slice(3, 8);
        drop(segment);
        assert_eq!((&hello[..], &all[..]), (&b"hello"[..], &b"lowor"[..]));
    }

    #[test]
    fn a_segment_is_emptied_only_when_nobody_holds_any_of_it() {
        let mut segment = Segment::new(4);
        assert!(segment.append(b"abcd"));
        let slice = segment.slice(1, 2);
        assert!(!segment.reset());
        drop(slice);
        assert!(segment.reset() && segment.is_empty() && segment.append(b"efgh"));
    }

    #[test]
    #[should_panic(expected = "within what is filled")]
    fn unfilled_memory_is_never_shared() {
        Segment::new(10).slice(0, 1);
    }
}
