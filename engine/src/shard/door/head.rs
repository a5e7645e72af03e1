//! Reading a request head before a deadline.

use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _};
use monoio::net::TcpStream;
use monoio::time::{Instant, timeout_at};
use ringfeed_protocol::handshake::{HEAD_BYTES_MAX, Refusal, Request};

use super::READ_BYTES;
use super::admission::Permit;
use super::refuse::end;
use super::route::route;
use crate::shard::{Promoted, Shared};

/// Reads the head and answers it, all before the deadline: no trickle of bytes extends it. `None` for a connection that ended or was served a plain answer.
pub(super) async fn shake(
    mut stream: TcpStream,
    permit: Permit,
    deadline: Instant,
    shared: &Shared,
) -> Result<Option<Promoted>, (TcpStream, Refusal)> {
    let mut head: Vec<u8> = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let Ok((read, returned)) = timeout_at(deadline, stream.read(chunk)).await else {
            let text = "the request head took too long\n";
            return Err((stream, Refusal::new(408, text)));
        };
        chunk = returned;
        match read {
            Ok(0) | Err(_) => return Ok(None),
            Ok(n) => head.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
        match Request::parse(&head) {
            Err(refusal) => return Err((stream, refusal)),
            Ok(None) if head.len() >= HEAD_BYTES_MAX + READ_BYTES => return Ok(None),
            Ok(None) => {}
            Ok(Some((request, len))) => {
                let mut answer = Vec::new();
                let routed = match route(&request, shared, &mut answer) {
                    Ok(routed) => routed,
                    Err(refusal) => return Err((stream, refusal)),
                };
                let rest = head.get(len..).unwrap_or_default().to_vec();
                let written = timeout_at(deadline, stream.write_all(answer)).await;
                if !written.is_ok_and(|(written, _)| written.is_ok()) {
                    return Ok(None);
                }
                let Some((endpoint, dialect)) = routed else {
                    let _ = timeout_at(deadline, end(stream)).await;
                    return Ok(None);
                };
                let socket = ringfeed_wire::into_owned_fd(stream);
                return Ok(Some(Promoted { socket, endpoint, dialect, rest, permit }));
            }
        }
    }
}
