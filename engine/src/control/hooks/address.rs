//! Where may be asked: URLs of the configuration, and the addresses that their names resolve to.
//!
//! An address is checked by the resolver that hands it to the connection, so that a name cannot mean one address when it is
//! looked at and another one when it is connected to. Redirects are not followed, so nobody but the operator names hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Longest URL in bytes.
const URL_BYTES_MAX: usize = 2048;

/// Where a URL leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// To this machine, as the URL says itself.
    Loopback,
    /// Anywhere else.
    Elsewhere,
}

/// Whether a URL may be asked. The error does not repeat it: it may hold a key.
pub(crate) fn check(url: &str, allow_private: bool) -> Result<Place, &'static str> {
    if url.len() > URL_BYTES_MAX {
        return Err("allowed are at most 2048 bytes");
    }
    let url = Url::parse(url).map_err(|_| "it is no URL such as https://app.example.org/hook")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("allowed are http:// and https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a user and a password are not allowed in it: requests are signed instead");
    }
    // `host_str` is normalised: 0x7f.1 has become 127.0.0.1.
    let host = url.host_str().ok_or("it has no host")?;
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => Ok(Place::Loopback),
        Ok(ip) if allow_private || is_public(ip) => Ok(Place::Elsewhere),
        Ok(_) => Err("its address is not public; allowed with allow_private_addresses = true"),
        Err(_) if is_localhost(host) => Ok(Place::Loopback),
        Err(_) => Ok(Place::Elsewhere),
    }
}

/// RFC 6761, section 6.3: it is this machine, and nobody is asked for it.
fn is_localhost(name: &str) -> bool {
    name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
}

/// Whether an address is one of the public internet: no address of a machine, a link, a private network, a
/// multicast group or a document, nor a way around that (RFC 6890 and the registries it began).
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = a == 0
        || ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local() // 169.254.169.254 tells machines in clouds their credentials
        || ip.is_multicast()
        || ip.is_documentation()
        || a >= 240 // reserved, and broadcast
        || (a == 100 && (64..128).contains(&b)) // shared by carriers, RFC 6598
        || (a == 192 && b == 0 && c == 0) // protocol assignments
        || (a == 192 && b == 88 && c == 99) // relays of 6to4
        || (a == 198 && (b == 18 || b == 19)) // benchmarks
        || ip == Ipv4Addr::new(168, 63, 129, 16); // Azure's own services, behind a public address
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments @ [a, b, c, ..] = ip.segments();
    if let Some(ip) = ip.to_ipv4_mapped() {
        return is_public_v4(ip);
    }
    let embedded = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    if segments.starts_with(&[0x64, 0xff9b, 0, 0, 0, 0]) {
        let [.., high, low] = segments;
        return is_public_v4(embedded(high, low));
    }
    if a == 0x2002 {
        return is_public_v4(embedded(b, c));
    }
    // Protocol assignments (Teredo, ORCHID and others), and documentation twice.
    let special = (a == 0x2001 && (b < 0x200 || b == 0xdb8)) || (a == 0x3fff && b < 0x1000);
    // All that is given out lies in 2000::/3: ::/8, fc00::/7, fe80::/10 and ff00::/8 do not.
    a & 0xe000 == 0x2000 && !special
}

/// None of the addresses of a name may be connected to.
#[derive(Debug, thiserror::Error)]
#[error("the name resolves to no public address")]
pub(super) struct NotPublic;

/// Lets through only addresses that may be connected to.
pub(super) struct Guarded {
    inner: Arc<dyn Resolve>,
    allow_private: bool,
}

impl Guarded {
    pub(super) fn new(inner: Arc<dyn Resolve>, allow_private: bool) -> Guarded {
        Guarded { inner, allow_private }
    }
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        if is_localhost(name.as_str()) {
            let own = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
            let own = own.map(|ip| SocketAddr::new(ip, 0));
            return Box::pin(std::future::ready(Ok(Box::new(own.into_iter()) as Addrs)));
        }
        let (found, allow_private) = (self.inner.resolve(name), self.allow_private);
        Box::pin(async move {
            let fit = found.await?.filter(|address| allow_private || is_public(address.ip()));
            let fit: Vec<SocketAddr> = fit.collect();
            if fit.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(fit.into_iter()) as Addrs)
        })
    }
}

/// What the machine itself makes of names.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNames;

impl Resolve for SystemNames {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2001:10::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "2002:a9fe:a9fe::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "5f00::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
            "2002:808:808::",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn loopback_is_what_a_url_says_itself_and_nothing_else() {
        for url in [
            "http://127.0.0.1:3000/a",
            "http://127.1/",
            "http://2130706433/",
            "http://[::1]/",
            "https://localhost/",
            "http://LOCALHOST.:1/",
        ] {
            assert_eq!(check(url, false), Ok(Place::Loopback), "{url}");
        }
        for url in ["https://example.org/", "http://8.8.8.8/", "http://localhost.example.org/"] {
            assert_eq!(check(url, false), Ok(Place::Elsewhere), "{url}");
        }
        for url in ["http://0.0.0.0/", "http://[::ffff:127.0.0.1]/", "http://10.0.0.1/"] {
            assert!(check(url, false).is_err(), "{url}");
            assert_eq!(check(url, true), Ok(Place::Elsewhere), "{url}");
        }
    }
}
