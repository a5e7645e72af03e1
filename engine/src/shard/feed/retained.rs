//! Memory that is in no log any more and that somebody still waits for: half-sent frames of readers that fell
//! behind.

use bytes::Bytes;

/// Chunks that were dropped while somebody held a slice of them.
#[derive(Debug, Default)]
pub struct Retained {
    chunks: Vec<Bytes>,
    /// As of the last sweep, and what came since.
    bytes: usize,
}

impl Retained {
    /// Keeps count of a dropped chunk as long as somebody holds a slice of it.
    pub fn add(&mut self, chunk: Bytes) {
        if !chunk.is_unique() {
            self.bytes += chunk.len();
            self.chunks.push(chunk);
        }
    }

    /// Forgets what nobody holds any more.
    pub fn sweep(&mut self) {
        self.chunks.retain(|chunk| !chunk.is_unique());
        self.bytes = self.chunks.iter().map(Bytes::len).sum();
    }

    /// Bytes that were held at the last sweep, and what came since.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
