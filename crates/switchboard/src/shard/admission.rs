//! Admission: the bounds on connections, in all and per client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ipnet::IpNet;

use crate::config::Config;
use crate::ws::Request;

/// Number of sockets accepted beyond `max_connections`, so that a connection over the bound can
/// be told so, and health check and metrics answer on a full server. Beyond these the oldest of
/// them gives way.
pub(crate) const SPARE_SOCKETS: usize = 64;

/// Counts the sockets of all shards.
#[derive(Debug)]
pub(crate) struct Admission {
    sockets: AtomicUsize,
    sockets_max: AtomicUsize,
    /// Number of sockets by address, of those that came while `max_connections_per_ip` was not 0.
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    per_ip_max: AtomicUsize,
    trusted_proxies: RwLock<Vec<IpNet>>,
}

/// Permit of a socket, which counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    /// The client's address as far as it is known.
    address: IpAddr,
    /// Set once it counts toward its address's bound.
    is_counted: bool,
}

/// Error if the client's address has `max_connections_per_ip` already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Admission {
    pub(crate) fn new(config: &Config) -> Admission {
        Admission {
            sockets: AtomicUsize::new(0),
            sockets_max: config.max_connections.into(),
            per_ip: Mutex::default(),
            per_ip_max: config.max_connections_per_ip.into(),
            trusted_proxies: config.trusted_proxies.clone().into(),
        }
    }

    /// Applies new bounds; sockets above them stay.
    pub(super) fn configure(&self, config: &Config) {
        self.sockets_max.store(config.max_connections, Ordering::Relaxed);
        self.per_ip_max.store(config.max_connections_per_ip, Ordering::Relaxed);
        let mut proxies = self.trusted_proxies.write().unwrap_or_else(PoisonError::into_inner);
        proxies.clone_from(&config.trusted_proxies);
    }

    /// Admits a socket; `None` if even the spare places are taken.
    pub(super) fn admit(admission: &Arc<Admission>, peer: IpAddr) -> Option<Permit> {
        let had = admission.sockets.fetch_add(1, Ordering::Relaxed);
        let permit = Permit {
            admission: Arc::clone(admission),
            address: peer.to_canonical(),
            is_counted: false,
        };
        let max = admission.sockets_max.load(Ordering::Relaxed);
        // The permit is made first, so that it is dropped, and the count corrected, if this fails.
        (had < max + SPARE_SOCKETS).then_some(permit)
    }

    /// Admits a socket although the spare places are taken, after another one of the same shard
    /// gave way. If there was none, the shard now has one socket too many, and that one is the next
    /// to give way.
    pub(super) fn admit_one_more(admission: &Arc<Admission>, peer: IpAddr) -> Permit {
        admission.sockets.fetch_add(1, Ordering::Relaxed);
        let admission = Arc::clone(admission);
        Permit { admission, address: peer.to_canonical(), is_counted: false }
    }

    /// Returns the number of sockets now.
    pub(crate) fn sockets(&self) -> usize {
        self.sockets.load(Ordering::Relaxed)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let proxies = self.trusted_proxies.read().unwrap_or_else(PoisonError::into_inner);
        proxies.iter().any(|net| net.contains(&address))
    }
}

impl Permit {
    /// Returns true if the server is full, so that this socket may only be told so.
    pub(super) fn is_over(&self) -> bool {
        self.admission.sockets() > self.admission.sockets_max.load(Ordering::Relaxed)
    }

    /// Returns true if the address is a proxy that may speak for others.
    pub(super) fn is_trusted_proxy(&self) -> bool {
        self.admission.trusts(self.address)
    }

    /// Returns the client's address as far as it is known.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Replaces the address by the address of the client for which a trusted proxy speaks.
    pub(super) fn speaks_for(&mut self, address: IpAddr) {
        debug_assert!(!self.is_counted, "an address is known before it is counted");
        self.address = address.to_canonical();
    }

    /// Takes the client's address from the headers that proxies wrote into the request.
    pub(super) fn follow_forwarded(&mut self, request: &Request) {
        if !self.is_trusted_proxy() {
            return;
        }
        let standard =
            request.forwarded.as_deref().map(|header| self.client_by(&forwarded(header)));
        let common = request.x_forwarded_for.as_deref();
        let common = common.map(|header| self.client_by(&x_forwarded_for(header)));
        match (standard, common) {
            // A proxy writes one of the two headers and passes the other on as its client sent
            // it. If they differ one may be forged, so the address stays the proxy's own.
            (Some(client), Some(other)) if client != other => {}
            (Some(client), _) | (None, Some(client)) => self.speaks_for(client),
            (None, None) => {}
        }
    }

    /// Returns the first address, going back along the chain of proxies, that is not a trusted one.
    fn client_by(&self, hops: &[Option<IpAddr>]) -> IpAddr {
        let mut client = self.address;
        // The last entry was written by the proxy that is connected to us, the one before by
        // the proxy before it. An entry by an untrusted hop may be forged and is not read.
        for hop in hops.iter().rev() {
            match hop {
                Some(address) if self.admission.trusts(client) => client = address.to_canonical(),
                _ => break,
            }
        }
        client
    }

    /// Counts the socket toward its address's bound.
    pub(super) fn count(&mut self) -> Result<(), TooMany> {
        let max = self.admission.per_ip_max.load(Ordering::Relaxed);
        if max == 0 || self.is_counted {
            return Ok(());
        }
        let mut per_ip = self.admission.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_ip.entry(bucket(self.address)).or_default();
        if *count >= max {
            return Err(TooMany);
        }
        *count += 1;
        self.is_counted = true;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.sockets.fetch_sub(1, Ordering::Relaxed);
        if !self.is_counted {
            return;
        }
        let mut per_ip = self.admission.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let address = bucket(self.address);
        if let Some(count) = per_ip.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                per_ip.remove(&address);
            }
        }
    }
}

/// Returns the address that counts for one subscriber: an IPv4 address, or an IPv6 /64, as RFC 6177
/// gives each site at least that.
fn bucket(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Returns the addresses in X-Forwarded-For, first hop first; `None` for a hop that names no
/// address.
fn x_forwarded_for(header: &str) -> Vec<Option<IpAddr>> {
    header.split(',').map(|hop| read_address(hop.trim())).collect()
}

/// Returns the `for=` addresses in Forwarded (RFC 7239 section 4), first hop first; `None` for
/// a hop that names no address.
fn forwarded(header: &str) -> Vec<Option<IpAddr>> {
    header
        .split(',')
        .map(|hop| {
            let pair = hop.split(';').find_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                name.trim().eq_ignore_ascii_case("for").then_some(value)
            })?;
            read_address(pair.trim().trim_matches('"'))
        })
        .collect()
}

/// Parses `1.2.3.4`, `1.2.3.4:5`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:5`.
fn read_address(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']')?.0.parse().ok();
    }
    text.parse().ok().or_else(|| text.rsplit_once(':')?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max: usize, per_ip: usize) -> Arc<Admission> {
        Arc::new(Admission::new(&Config {
            max_connections: max,
            max_connections_per_ip: per_ip,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            ..Config::default()
        }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_dropped_permit_makes_room() {
        let admission = admission(1, 1);
        let mut first = Admission::admit(&admission, ip("1.1.1.1")).unwrap();
        assert!(!first.is_over());
        assert_eq!(first.count(), Ok(()));
        let mut second = Admission::admit(&admission, ip("1.1.1.1")).unwrap();
        assert!(second.is_over());
        assert_eq!(second.count(), Err(TooMany));
        drop(first);
        assert!(!second.is_over());
        assert_eq!(second.count(), Ok(()));
        drop(second);
        assert_eq!(admission.sockets(), 0);
        assert!(admission.per_ip.lock().unwrap().is_empty());
    }

    #[test]
    fn beyond_the_spare_places_nobody_comes_in() {
        let admission = admission(2, 0);
        let inside: Vec<_> = (0..2 + SPARE_SOCKETS)
            .map(|_| Admission::admit(&admission, ip("1.1.1.1")).unwrap())
            .collect();
        assert!(Admission::admit(&admission, ip("1.1.1.1")).is_none());
        assert_eq!(admission.sockets(), inside.len());
    }

    #[test]
    fn forwarded_addresses_count_only_from_trusted_proxies() {
        let admission = admission(9, 0);
        for (peer, hops, client) in [
            ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
            ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
            ("10.0.0.1", "6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
            ("9.9.9.9", "1.2.3.4", "9.9.9.9"),
            ("::ffff:10.0.0.1", "[2001:db8::1]:4000", "2001:db8::1"),
        ] {
            let permit = Admission::admit(&admission, ip(peer)).unwrap();
            assert_eq!(permit.client_by(&x_forwarded_for(hops)), ip(client), "{peer} for {hops}");
        }
    }

    #[test]
    fn the_examples_of_rfc_7239_are_read() {
        assert_eq!(
            forwarded(
                "for=\"[2001:db8:cafe::17]:4711\", For=192.0.2.60;proto=http;by=203.0.113.43"
            ),
            [Some(ip("2001:db8:cafe::17")), Some(ip("192.0.2.60"))]
        );
        assert_eq!(forwarded("for=_hidden, for=unknown, by=1.1.1.1"), [None, None, None]);
    }

    #[test]
    fn an_ipv6_site_is_one_address() {
        assert_eq!(bucket(ip("2001:db8:1:2:3::4")), bucket(ip("2001:db8:1:2::9")));
        assert_ne!(bucket(ip("2001:db8:1:2::")), bucket(ip("2001:db8:1:3::")));
    }
}
