//! Reading a request head.

use monoio::buf::IoBufMut as _;
use monoio::io::AsyncReadRent as _;
use monoio::net::TcpStream;
use ringfeed_protocol::handshake::{HEAD_BYTES_MAX, HeadEnd, Refusal};

use super::client::NotServed;
use super::places::Place;
use crate::counters::RefusalReason;
use crate::proxies::begins_proxy_header;

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

/// Reads what is there; whether anything was.
pub(super) async fn read_more(stream: &mut TcpStream, place: &Place, bytes: &mut Vec<u8>) -> bool {
    if bytes.len() == bytes.capacity() {
        // [`HeadEnd`] refuses what is longer than a head may be.
        bytes.reserve_exact(bytes.len().clamp(READ_BYTES, HEAD_BYTES_MAX));
    }
    let from = bytes.len();
    place.set_waits(true);
    let (read, buffer) = stream.read(std::mem::take(bytes).slice_mut(from..)).await;
    place.set_waits(false);
    *bytes = buffer.into_inner();
    read.is_ok_and(|n| n > 0)
}

/// Reads a head, of which `bytes` have come already. `Ok(None)` for a connection that ended before. The caller
/// sets a deadline for all of it: no trickle of bytes extends it.
pub(super) async fn read_head(
    stream: &mut TcpStream,
    place: &Place,
    mut bytes: Vec<u8>,
) -> Result<Option<Head>, NotServed> {
    let mut end = HeadEnd::default();
    loop {
        if begins_proxy_header(&bytes) {
            let text = "a PROXY protocol header is taken once, from server.proxies alone, and where \
                        server.proxy_protocol requires it\n";
            return Err((RefusalReason::ProxyHeader, Refusal::new(400, text)));
        }
        let found = end.find(&bytes).map_err(|refusal| (RefusalReason::BadRequest, refusal))?;
        if let Some(len) = found {
            let rest = bytes.split_off(len);
            return Ok(Some(Head { bytes, rest }));
        }
        if !read_more(stream, place, &mut bytes).await {
            return Ok(None);
        }
    }
}
