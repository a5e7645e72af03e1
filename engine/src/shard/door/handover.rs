//! Requests that are no WebSockets' and take more than a page: their connections are handed to the control thread.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use monoio::net::TcpStream;

use super::Door;
use super::admission::Permit;
use super::client::Client;
use super::refuse::busy;
use crate::counters::RefusalReason;

/// Connections that were handed over and not taken yet.
pub const HANDED_MAX: usize = 256;

/// A connection that the control thread serves from its first request on.
#[derive(Debug)]
pub struct Handed {
    /// Its socket.
    pub socket: OwnedFd,
    /// What came of it: the head of the first request, and what was read behind that.
    pub read: Vec<u8>,
    /// For whom it is.
    pub client: IpAddr,
    /// Given back when it ends.
    pub permit: Permit,
}

impl Door {
    /// Hands a connection over, or tells it to come back.
    pub(super) async fn hand_over(
        &self,
        stream: TcpStream,
        read: Vec<u8>,
        client: Client,
        permit: Permit,
    ) {
        let why = match self.shared.handover.get().map(|handover| handover.try_reserve()) {
            _ if self.local.draining.get() => "the server is shutting down\n",
            Some(Ok(place)) => {
                let socket = ringfeed_wire::into_owned_fd(stream);
                return place.send(Handed { socket, read, client: client.address, permit });
            }
            _ => "too many requests wait\n",
        };
        self.refuse(stream, client.counted_as(), RefusalReason::BusyRequests, busy(why)).await;
    }
}
