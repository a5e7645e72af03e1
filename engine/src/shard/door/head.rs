//! Reading a request head.

use monoio::buf::IoBufMut as _;
use monoio::io::AsyncReadRent as _;
use monoio::net::TcpStream;
use ringfeed_protocol::handshake::{HEAD_BYTES_MAX, HeadEnd, Refusal};

use super::places::Place;

/// What a connection without a head holds for it. Most heads are smaller: browsers send about 600
/// bytes, programs 200.
pub(super) const READ_BYTES: usize = 1024;

/// A head and what came behind it.
pub(super) struct Head {
    /// The head, whole.
    pub(super) bytes: Vec<u8>,
    /// Bytes of the first frames.
    pub(super) rest: Vec<u8>,
}

/// Reads a head. `Ok(None)` for a connection that ended before. The caller sets a deadline for all
/// of it: no trickle of bytes extends it.
pub(super) async fn read_head(
    stream: &mut TcpStream,
    place: &Place,
) -> Result<Option<Head>, Refusal> {
    let mut bytes: Vec<u8> = Vec::with_capacity(READ_BYTES);
    let mut end = HeadEnd::default();
    loop {
        if bytes.len() == bytes.capacity() {
            // [`HeadEnd`] refuses what is longer than a head may be.
            bytes.reserve_exact(bytes.len().min(HEAD_BYTES_MAX));
        }
        let from = bytes.len();
        place.set_waits(true);
        let (read, buffer) = stream.read(bytes.slice_mut(from..)).await;
        place.set_waits(false);
        bytes = buffer.into_inner();
        if !read.is_ok_and(|n| n > 0) {
            return Ok(None);
        }
        if let Some(len) = end.find(&bytes)? {
            let rest = bytes.split_off(len);
            return Ok(Some(Head { bytes, rest }));
        }
    }
}
