//! Refusals: an answer that says why, and an end that lets it arrive.

use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _};
use monoio::net::TcpStream;
use ringfeed_protocol::handshake::Refusal;

use super::READ_BYTES;

pub(super) fn busy(why: &str) -> Refusal {
    Refusal { status: 503, headers: "Retry-After: 5\r\n", text: why.into() }
}

pub(super) async fn refuse(mut stream: TcpStream, refusal: Refusal) {
    let mut answer = Vec::new();
    refusal.write(&mut answer);
    let _ = stream.write_all(answer).await;
    end(stream).await;
}

/// Ends a connection so that what was written arrives: unread bytes would turn the end to a reset.
pub(super) async fn end(mut stream: TcpStream) {
    use monoio::io::AsyncWriteRent as _;
    const DRAIN_READS_MAX: usize = 16;
    let _ = stream.shutdown().await;
    let mut chunk = vec![0; READ_BYTES];
    for _ in 0..DRAIN_READS_MAX {
        let read;
        (read, chunk) = stream.read(chunk).await;
        if !read.is_ok_and(|n| n > 0) {
            return;
        }
    }
}
