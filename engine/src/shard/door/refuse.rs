//! Refusals: an answer that says why, and an end that lets it arrive.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::Abortable;
use monoio::io::{AsyncReadRent as _, AsyncWriteRent as _, AsyncWriteRentExt as _};
use monoio::net::TcpStream;
use monoio::time::timeout;
use ringfeed_protocol::handshake::Refusal;

use super::Door;
use super::head::READ_BYTES;
use crate::counters::RefusalReason;

/// Connections that linger on one shard; then the one that has longest leaves.
pub(super) const LINGERING_MAX: usize = 256;
/// How long the end of a connection waits for what the peer still sends.
const LINGER: Duration = Duration::from_secs(1);
/// How much of it is read.
const LINGER_READS_MAX: usize = 16;

/// Something that will be better in a moment.
pub(super) fn busy(why: &str) -> Refusal {
    Refusal { status: 503, headers: "Retry-After: 5\r\n".into(), text: why.into() }
}

impl Door {
    /// Tells why and ends the connection.
    pub(super) async fn refuse(
        &self,
        stream: TcpStream,
        address: IpAddr,
        reason: RefusalReason,
        refusal: Refusal,
    ) {
        self.counters.refused.add(reason, 1);
        self.answer(stream, address, written(&refusal)).await;
    }

    /// Tells why and is gone: for those who leave because places are short.
    pub(super) async fn send_away(&self, mut stream: TcpStream, refusal: Refusal) {
        self.counters.refused.add(RefusalReason::BusyHandshakes, 1);
        let _ = timeout(LINGER, stream.write_all(written(&refusal))).await;
    }

    /// Sends the last bytes of a connection and sees that they arrive: bytes that come and are not
    /// read turn the end to a reset, which may overtake them.
    pub(super) async fn answer(&self, mut stream: TcpStream, address: IpAddr, answer: Vec<u8>) {
        let Some((_place, leave)) = self.lingering.enter(address, std::time::Instant::now()) else {
            return;
        };
        let ending = async {
            let (written, _) = stream.write_all(answer).await;
            if written.is_err() || stream.shutdown().await.is_err() {
                return;
            }
            let mut chunk = Vec::with_capacity(READ_BYTES);
            for _ in 0..LINGER_READS_MAX {
                let read;
                (read, chunk) = stream.read(chunk).await;
                if !read.is_ok_and(|n| n > 0) {
                    return;
                }
                chunk.clear();
            }
        };
        let _ = Abortable::new(timeout(LINGER, ending), leave).await;
    }
}

fn written(refusal: &Refusal) -> Vec<u8> {
    let mut answer = Vec::new();
    refusal.write(&mut answer);
    answer
}
