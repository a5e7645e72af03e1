//! For whom a connection is: the peer itself, or whom a listed proxy says it connects for.

use std::net::IpAddr;
use std::time::Instant;

use monoio::net::TcpStream;
use ringfeed_protocol::handshake::{Refusal, Request};

use super::Door;
use super::admission::{Permit, counted_as};
use super::head::{self, Head};
use super::places::Place;
use crate::config::{ForwardedHeader, ProxyProtocol};
use crate::counters::RefusalReason;
use crate::proxies::{Proxies, ProxyHeader, read_proxy_header};
use crate::settings::Settings;

/// Whom a connection is for, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client {
    /// In IPv4 where it came as IPv6 that stands for it.
    pub(super) address: IpAddr,
    /// A listed proxy, which has not said for whom it connects or connects for itself: no limit for each
    /// address holds for it.
    pub(super) is_proxy: bool,
}

impl Client {
    pub(super) fn new(address: IpAddr, proxies: &Proxies) -> Client {
        Client { address: address.to_canonical(), is_proxy: proxies.list(address) }
    }

    /// The address under which limits count it.
    pub(super) fn counted_as(&self) -> IpAddr {
        counted_as(self.address)
    }
}

/// An answer, and under what it counts.
pub(super) type NotServed = (RefusalReason, Refusal);

impl Door {
    /// Reads everything up to the end of the head, and learns meanwhile whom the connection is for. `Ok(None)` for one
    /// that ended before. The caller sets a deadline for all of it.
    pub(super) async fn read_request(
        &self,
        stream: &mut TcpStream,
        settings: &Settings,
        place: &Place,
        client: &mut Client,
        permit: &mut Permit,
    ) -> Result<Option<Head>, NotServed> {
        let server = &settings.config.server;
        let mut bytes: Vec<u8> = Vec::with_capacity(head::READ_BYTES);
        let mut relayed = client.is_proxy;
        if client.is_proxy && server.proxy_protocol == ProxyProtocol::Required {
            let header = loop {
                match read_proxy_header(&bytes) {
                    Ok(Some(header)) => break header,
                    Ok(None) => {}
                    Err(refusal) => return Err((RefusalReason::ProxyHeader, refusal)),
                }
                if !head::read_more(stream, place, &mut bytes).await {
                    return Ok(None);
                }
            };
            let ProxyHeader { len, client: behind } = header;
            bytes.drain(..len);
            relayed = behind.is_some();
            if let Some(address) = behind {
                learn(&settings.proxies, address, place, client, permit)?;
            }
        }
        let Some(head) = head::read_head(stream, place, bytes).await? else { return Ok(None) };
        // A head that is no request is refused by who answers it.
        if server.forwarded_header != ForwardedHeader::Off
            && relayed
            && client.is_proxy
            && let Ok(request) = Request::parse_any(&head.bytes)
        {
            let (proxies, proxy) = (&settings.proxies, client.address);
            // The other one is never looked at: a proxy that writes one may hand on what a client wrote into the other.
            let address = match server.forwarded_header {
                ForwardedHeader::Off => proxy,
                ForwardedHeader::XForwardedFor => {
                    proxies.x_forwarded_for(proxy, request.all("x-forwarded-for"))
                }
                ForwardedHeader::Forwarded => proxies
                    .forwarded(proxy, request.all("forwarded"))
                    .map_err(|refusal| (RefusalReason::ProxyHeader, refusal))?,
            };
            learn(&settings.proxies, address, place, client, permit)?;
        }
        Ok(Some(head))
    }
}

/// A proxy has said for whom it connects: that is who is counted from here on.
fn learn(
    proxies: &Proxies,
    address: IpAddr,
    place: &Place,
    client: &mut Client,
    permit: &mut Permit,
) -> Result<(), NotServed> {
    *client = Client::new(address, proxies);
    if client.is_proxy {
        return Ok(());
    }
    place.move_to(client.counted_as(), Instant::now());
    permit.count(client.address).map_err(|why| (why.reason(), why.refusal()))
}
