//! Which proxies are believed when they say for whom they connect, and how they say it: the keys
//! `server.proxies`, `server.proxy_protocol` and `server.forwarded_header`.
//!
//! Pure: bytes in, a client's address out. What others than listed proxies say of addresses is never
//! looked at: anybody can say anything (RFC 7239 section 8.1).

use std::net::IpAddr;

use ipnet::IpNet;
use ppp::{v1, v2};
use ringfeed_protocol::handshake::Refusal;

/// Longest header of version 1, its CRLF included (PROXY protocol, section 2.1).
const V1_BYTES_MAX: usize = 107;
/// Bytes before the length of version 2 and that length itself (section 2.2).
const V2_FIXED_BYTES: usize = 16;
/// Longest header of version 2 that is taken: 52 bytes are needed for IPv6, proxies add some hundred of
/// their own (section 2.2.7). The format allows 64 KiB, which nobody is owed before the handshake.
const V2_BYTES_MAX: usize = 2048;
/// What version 1 begins with.
const V1_PREFIX: &[u8] = b"PROXY ";

/// The networks of `server.proxies`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

/// A network that is none, or is everybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no network of proxies: allowed are networks such as 10.0.0.0/8 and 2001:db8::/32, and single \
     addresses, but not everybody (/0)"
)]
pub struct BadProxyNetwork(String);

impl Proxies {
    /// Reads the networks of the configuration.
    pub fn parse(networks: &[String]) -> Result<Proxies, BadProxyNetwork> {
        let read = |text: &String| {
            let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
            let network = text.parse::<IpNet>().ok().or_else(one);
            let network = network.filter(|network| network.prefix_len() > 0);
            network.ok_or_else(|| BadProxyNetwork(text.clone()))
        };
        networks.iter().map(read).collect::<Result<_, _>>().map(Proxies)
    }

    /// Whether this is the address of a proxy.
    pub fn list(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// For whom a listed proxy asks: the rightmost address of `X-Forwarded-For` that is not itself a listed
    /// proxy. `values` are those of all its header lines, in their order. Where an entry is no address, what
    /// stands left of it was written by nobody who is believed: the one right of it is the last that is known,
    /// and `proxy` where there is none.
    pub fn x_forwarded_for<'a>(
        &self,
        proxy: IpAddr,
        values: impl Iterator<Item = &'a [u8]>,
    ) -> IpAddr {
        let entries = values.flat_map(|value| value.split(|&byte| byte == b','));
        let addresses: Vec<_> = entries.map(forwarded_address).collect();
        self.last_known(proxy, &addresses)
    }

    /// The same of `Forwarded` (RFC 7239) and the nodes that it names with `for`, of which `unknown` and obfuscated
    /// ones are no addresses. A line that cannot be read is refused: where a client wrote its beginning, what a proxy
    /// put behind that could be anything.
    pub fn forwarded<'a>(
        &self,
        proxy: IpAddr,
        values: impl Iterator<Item = &'a [u8]>,
    ) -> Result<IpAddr, Refusal> {
        let mut addresses = Vec::new();
        for value in values {
            let text = "the header Forwarded is malformed (RFC 7239)\n";
            read_forwarded(value, &mut addresses).ok_or_else(|| Refusal::new(400, text))?;
        }
        Ok(self.last_known(proxy, &addresses))
    }

    fn last_known(&self, proxy: IpAddr, addresses: &[Option<IpAddr>]) -> IpAddr {
        let mut client = proxy;
        for address in addresses.iter().rev() {
            let Some(address) = address else { return client };
            client = *address;
            if !self.list(client) {
                return client;
            }
        }
        client
    }
}

/// Reads one line of `Forwarded`: of each element that is not empty the address that it names with `for`, if it
/// does. `None` for what is none (RFC 7239 section 4); addresses with colons are taken without quotes, too.
fn read_forwarded(line: &[u8], addresses: &mut Vec<Option<IpAddr>>) -> Option<()> {
    let mut rest = line;
    loop {
        let (mut is_empty, mut node) = (true, None);
        loop {
            rest = rest.trim_ascii_start();
            let len = rest.iter().take_while(|&&byte| is_token(byte)).count();
            if let (name @ [_, ..], behind) = rest.split_at_checked(len)? {
                rest = behind.strip_prefix(b"=")?;
                let value = read_value(&mut rest)?;
                is_empty = false;
                if name.eq_ignore_ascii_case(b"for") && node.replace(value).is_some() {
                    return None;
                }
            }
            rest = rest.trim_ascii_start();
            match rest.strip_prefix(b";") {
                Some(behind) => rest = behind,
                None => break,
            }
        }
        if !is_empty {
            addresses.push(node.and_then(|node| node_address(&node)));
        }
        if rest.is_empty() {
            return Some(());
        }
        rest = rest.strip_prefix(b",")?;
    }
}

/// A token or a quoted string (RFC 9110 section 5.6), as it is meant.
fn read_value(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let Some(quoted) = rest.strip_prefix(b"\"") else {
        let in_value = |byte: u8| is_token(byte) || b":[]".contains(&byte);
        let len = rest.iter().take_while(|&&byte| in_value(byte)).count();
        let (value, behind) = rest.split_at_checked(len).filter(|_| len > 0)?;
        *rest = behind;
        return Some(value.to_vec());
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter();
    loop {
        match bytes.next()? {
            b'"' => break,
            b'\\' => value.push(*bytes.next()?),
            &byte => value.push(byte),
        }
    }
    *rest = bytes.as_slice();
    Some(value)
}

/// Characters of a token (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The address of a node (RFC 7239 section 6), whose port may be obfuscated.
fn node_address(node: &[u8]) -> Option<IpAddr> {
    let colon = node.iter().rposition(|&byte| byte == b':');
    let port = colon.and_then(|at| node.split_at_checked(at));
    let host = port.filter(|(_, port)| port.starts_with(b":_")).map_or(node, |(host, _)| host);
    forwarded_address(host)
}

/// An entry of `X-Forwarded-For`: an address, which some proxies write with a port.
fn forwarded_address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let bare = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    let address = match bare.parse::<IpAddr>() {
        Ok(address) if bare.len() == entry.len() || address.is_ipv6() => address,
        Ok(_) => return None,
        Err(_) => entry.parse::<std::net::SocketAddr>().ok()?.ip(),
    };
    Some(address.to_canonical())
}

/// What a header of the PROXY protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Bytes of the header.
    pub len: usize,
    /// For whom the proxy connects; `None` where it connects for itself (a check, `LOCAL`) or does not say
    /// (`UNKNOWN`, a Unix socket).
    pub client: Option<IpAddr>,
}

/// Whether bytes begin like a header of the PROXY protocol, so that no request can.
pub fn begins_proxy_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_PREFIX) || bytes.starts_with(v2::PROTOCOL_PREFIX)
}

/// Reads the header at the start of `bytes`; `None` while it is not whole. What can never become one is refused
/// as soon as it shows.
pub fn read_proxy_header(bytes: &[u8]) -> Result<Option<ProxyHeader>, Refusal> {
    let begins = |prefix: &[u8]| prefix.starts_with(bytes) || bytes.starts_with(prefix);
    let header = match bytes {
        [] => Ok(None),
        _ if begins(V1_PREFIX) => read_v1(bytes),
        _ if begins(v2::PROTOCOL_PREFIX) => read_v2(bytes),
        _ => Err(
            "this address is a proxy (server.proxies) and has to begin with a PROXY protocol header",
        ),
    };
    header.map_err(|why| Refusal::new(400, format!("{why}\n")))
}

fn read_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, &'static str> {
    let line = bytes.get(..V1_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = line.iter().position(|&byte| byte == b'\n') else {
        let wrong = "the PROXY protocol header of version 1 has more than 107 bytes";
        return if line.len() < V1_BYTES_MAX { Ok(None) } else { Err(wrong) };
    };
    let wrong = "the PROXY protocol header of version 1 is malformed";
    let len = end + 1;
    let line = line.get(..len).unwrap_or_default();
    let header = v1::Header::try_from(line).map_err(|_| wrong)?;
    if header.header.len() != len {
        return Err(wrong);
    }
    let client = match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    };
    Ok(Some(ProxyHeader { len, client: client.as_ref().map(IpAddr::to_canonical) }))
}

fn read_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, &'static str> {
    let Some(&[high, low]) = bytes.get(V2_FIXED_BYTES - 2..V2_FIXED_BYTES) else { return Ok(None) };
    let len = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if len > V2_BYTES_MAX {
        return Err("the PROXY protocol header of version 2 has more than 2048 bytes");
    }
    let Some(whole) = bytes.get(..len) else { return Ok(None) };
    let wrong = "the PROXY protocol header of version 2 is malformed";
    let header = v2::Header::try_from(whole).map_err(|_| wrong)?;
    let client: Option<IpAddr> = match (header.command, header.protocol, header.addresses) {
        (v2::Command::Local, ..) => None,
        (_, v2::Protocol::Datagram, _) => return Err(wrong),
        (_, _, v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
        (_, _, v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
        (_, _, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    };
    Ok(Some(ProxyHeader { len, client: client.as_ref().map(IpAddr::to_canonical) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(networks: &[&str]) -> Proxies {
        let networks: Vec<String> = networks.iter().map(|&network| network.to_owned()).collect();
        Proxies::parse(&networks).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn v2_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        header.extend(body);
        header
    }

    #[test]
    fn proxies_are_listed_by_network_also_where_ipv4_comes_as_ipv6() {
        let listed = proxies(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]);
        for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "::ffff:10.1.2.3", "2001:db8::1"]
        {
            assert!(listed.list(address(inside)), "{inside}");
        }
        for outside in ["11.0.0.0", "192.0.2.8", "2001:db9::1", "::10.0.0.1", "::1"] {
            assert!(!listed.list(address(outside)), "{outside}");
        }
        assert!(!proxies(&[]).list(address("10.0.0.1")));
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxy_is_the_client() {
        let listed = proxies(&["10.0.0.0/8"]);
        let table: [(&[&str], &str); 17] = [
            (&[], "10.0.0.1"),
            (&["1.2.3.4"], "1.2.3.4"),
            (&["  1.2.3.4\t"], "1.2.3.4"),
            // What clients put in front is not believed.
            (&["9.9.9.9, 1.2.3.4"], "1.2.3.4"),
            (&["9.9.9.9", "1.2.3.4"], "1.2.3.4"),
            (&["10.9.9.9, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
            (&["9.9.9.9,1.2.3.4", "10.0.0.2,10.0.0.3"], "1.2.3.4"),
            (&["10.0.0.9"], "10.0.0.9"),
            // Where it is malformed the last good one counts.
            (&["1.2.3.4, unknown"], "10.0.0.1"),
            (&["1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["1.2.3.4,"], "10.0.0.1"),
            (&["", "1.2.3.4"], "1.2.3.4"),
            (&["1.2.3.4\u{0}"], "10.0.0.1"),
            (&["1.2.3.4:5678"], "1.2.3.4"),
            (&["[2001:db8::1]:80, 10.0.0.2"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["::ffff:10.0.0.2, [1.2.3.4]"], "10.0.0.1"),
        ];
        for (values, client) in table {
            let values = values.iter().map(|value| value.as_bytes());
            let got = listed.x_forwarded_for(address("10.0.0.1"), values.clone());
            assert_eq!(got, address(client), "{:?}", values.collect::<Vec<_>>());
        }
        assert_eq!(
            listed.x_forwarded_for(address("10.0.0.1"), [&b"1.2.3.\xff"[..]].into_iter()),
            address("10.0.0.1")
        );
    }

    #[test]
    fn forwarded_says_the_same_as_rfc_7239_has_it() {
        let listed = proxies(&["10.0.0.0/8"]);
        let table: [(&[&str], &str); 27] = [
            (&[], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&["for=1.2.3.4"], "1.2.3.4"),
            (&["For=\"1.2.3.4\""], "1.2.3.4"),
            (&["for=1.2.3.4;proto=https;by=203.0.113.43"], "1.2.3.4"),
            (&["proto=https; FOR=1.2.3.4 ; host=\"a,b;for=9.9.9.9\""], "1.2.3.4"),
            (&[" for=\"1.2.3.4:5678\"\t"], "1.2.3.4"),
            (&["for=1.2.3.4:5678"], "1.2.3.4"),
            (&["for=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=\"[2001:db8:cafe::17]\""], "2001:db8:cafe::17"),
            (&["for=[2001:db8:cafe::17]"], "2001:db8:cafe::17"),
            (&["for=\"[2001:db8::1]:_port\""], "2001:db8::1"),
            (&["for=\"1.2.3.4:_p\""], "1.2.3.4"),
            (&["for=\"1\\.2.3\\.4\""], "1.2.3.4"),
            (&["for=\"[::ffff:1.2.3.4]\""], "1.2.3.4"),
            // What clients put in front is not believed, on one line or several.
            (&["for=9.9.9.9, for=1.2.3.4"], "1.2.3.4"),
            (&["for=9.9.9.9", "for=1.2.3.4"], "1.2.3.4"),
            (&["for=9.9.9.9,for=1.2.3.4,for=10.0.0.2", "for=10.0.0.3"], "1.2.3.4"),
            (&["for=10.0.0.9"], "10.0.0.9"),
            (&["for=1.2.3.4,, ,"], "1.2.3.4"),
            (&["for=1.2.3.4;;"], "1.2.3.4"),
            // Who is not named is not known, and nobody left of them is.
            (&["for=1.2.3.4, for=unknown"], "10.0.0.1"),
            (&["for=1.2.3.4, for=_hidden, for=10.0.0.2"], "10.0.0.2"),
            (&["for=1.2.3.4, for=\"_SEVKISEK:_p\""], "10.0.0.1"),
            (&["for=1.2.3.4, for=\"unknown:80\""], "10.0.0.1"),
            (&["for=1.2.3.4", "proto=https"], "10.0.0.1"),
            (&["for=1.2.3.4", "for=\"1.2.3.4:99999\""], "10.0.0.1"),
        ];
        for (values, client) in table {
            let bytes = values.iter().map(|value| value.as_bytes());
            let got = listed.forwarded(address("10.0.0.1"), bytes);
            assert_eq!(got, Ok(address(client)), "{values:?}");
        }
    }

    #[test]
    fn a_forwarded_that_hides_what_a_proxy_has_put_behind_it_is_refused() {
        let listed = proxies(&["10.0.0.0/8"]);
        for begun in ["for=\"", "for=9.9.9.9;x=\"", "for=9.9.9.9, x=\"\\", "x", "for", "=", "x y=1"]
        {
            for added in ["for=1.2.3.4", "for=\"1.2.3.4:80\"", "for=\"[2001:db8::1]\";proto=https"]
            {
                let line = format!("{begun}, {added}");
                let got = listed.forwarded(address("10.0.0.1"), [line.as_bytes()].into_iter());
                assert_eq!(got.map_err(|refusal| refusal.status), Err(400), "{line}");
            }
        }
        for bad in ["for=1.2.3.4;for=1.2.3.4", "for=", "for =1.2.3.4", "for= 1.2.3.4", "for=a/b"] {
            let got = listed.forwarded(address("10.0.0.1"), [bad.as_bytes()].into_iter());
            assert_eq!(got.map_err(|refusal| refusal.status), Err(400), "{bad}");
        }
    }

    #[test]
    fn headers_in_pieces_say_the_same() {
        let v4: [u8; 12] = [1, 2, 3, 4, 127, 0, 0, 1, 0, 80, 1, 187];
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let mut mapped = [0; 36];
        mapped[10..16].copy_from_slice(&[0xff, 0xff, 1, 2, 3, 4]);
        let with_tlvs = [&v4[..], &[4, 0, 200], &[0; 200]].concat();
        let table: [(Vec<u8>, Option<&str>); 12] = [
            (b"PROXY TCP4 1.2.3.4 127.0.0.1 80 443\r\n".to_vec(), Some("1.2.3.4")),
            (b"PROXY TCP6 2001:db8::1 ::1 80 443\r\n".to_vec(), Some("2001:db8::1")),
            (b"PROXY TCP6 ::ffff:1.2.3.4 ::1 80 443\r\n".to_vec(), Some("1.2.3.4")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:f::f ffff::f 65535 65535\r\n".to_vec(), None),
            (v2_header(1, 0x11, &v4), Some("1.2.3.4")),
            (v2_header(1, 0x11, &with_tlvs), Some("1.2.3.4")),
            (v2_header(1, 0x21, &v6), Some("2001:db8::1")),
            (v2_header(1, 0x21, &mapped), Some("1.2.3.4")),
            (v2_header(0, 0x11, &v4), None),
            (v2_header(0, 0x00, &[]), None),
            (v2_header(1, 0x31, &[b'x'; 216]), None),
        ];
        for (header, client) in table {
            let bytes = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            for cut in 0..header.len() {
                assert_eq!(read_proxy_header(&bytes[..cut]), Ok(None), "{cut} of {header:?}");
            }
            for cut in header.len()..=bytes.len() {
                let expected = ProxyHeader { len: header.len(), client: client.map(address) };
                assert_eq!(read_proxy_header(&bytes[..cut]), Ok(Some(expected)), "{header:?}");
            }
            assert!(begins_proxy_header(&header));
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_shows() {
        let long = format!("PROXY TCP4 {}", "1".repeat(200));
        let v4 = [0; 12];
        let mut version_one = v2_header(1, 0x11, &v4);
        version_one[12] = 0x11;
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"P ",
            b"proxy TCP4 ",
            b"\x16\x03\x01",
            b"\n",
            b"\r\n\r\nG",
            b"PROXY TCP4 1.2.3.4 127.0.0.1 80\r\n",
            b"PROXY TCP4 1.2.3.4 127.0.0.1 80 443\n",
            b"PROXY TCP4 1.2.3.4 127.0.0.1 80 443 \r\n",
            b"PROXY TCP4 1.2.3.4\r127.0.0.1 80 443\r\n",
            b"PROXY TCP4 1.2.3.256 127.0.0.1 80 443\r\n",
            b"PROXY TCP4 ::1 ::1 80 443\r\n",
            b"PROXY TCP5 1.2.3.4 127.0.0.1 80 443\r\n",
            b"PROXY TCP4 1.2.3.4 127.0.0.1 80 65536\r\n",
            b"PROXY TCP4 \xff\r\n",
            b"PROXY \r\n",
            long.as_bytes(),
            &version_one,
            &v2_header(2, 0x11, &v4),
            &v2_header(1, 0x41, &v4),
            &v2_header(1, 0x12, &v4),
            &v2_header(1, 0x21, &v4),
            &v2_header(1, 0x11, &[0; 11]),
            &v2_header(1, 0x11, &[0; 2048])[..16],
        ] {
            let got = read_proxy_header(bad).map_err(|refusal| refusal.status);
            assert_eq!(got, Err(400), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
