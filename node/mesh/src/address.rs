//! Where a peer can be dialled, as text: `/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3…`, or plain `192.0.2.1:4001`.
//!
//! Also lists what a wildcard bind can be reached at. Names (DNS) and relayed addresses are not among them: this is what one datagram
//! can be sent to.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyperfabric_protocol::{Address, PeerId};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// The most addresses that [`reachable`] lists.
pub const REACHABLE_MAX: usize = 16;

/// Why a text is not an address that can be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither a multiaddr nor `ADDRESS:PORT`.
    #[error(
        "not an address: expected /ip4/192.0.2.1/udp/4001/quic-v1, /ip6/…, or ADDRESS:PORT with [brackets] around IPv6"
    )]
    Syntax,
    /// A multiaddr, but not of QUIC over UDP on an IP address.
    #[error("address is of an unsupported kind: expected /ip4 or /ip6, then /udp/PORT/quic-v1")]
    Unsupported,
    /// The part after `/p2p/` is not the id of an ed25519 key.
    #[error("address names a peer whose key is not ed25519")]
    Peer,
}

/// A socket address and, where it is known, who answers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// The UDP address; never IPv4-mapped.
    pub socket: SocketAddr,
    /// The peer expected there.
    pub peer: Option<PeerId>,
}

impl PeerAddress {
    /// Names a socket without saying who answers there.
    #[must_use]
    pub fn new(socket: SocketAddr) -> Self {
        Self {
            socket: canonical(socket),
            peer: None,
        }
    }

    /// The form in which the protocol's machines carry addresses about.
    #[must_use]
    pub fn to_address(&self) -> Address {
        Address::new(self.to_string()).expect("a printed multiaddr is short printable ASCII")
    }

    fn from_multiaddr(address: &Multiaddr) -> Result<Self, AddressError> {
        let mut parts = address.iter();
        let ip = match parts.next() {
            Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
            Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
            _ => return Err(AddressError::Unsupported),
        };
        let (Some(Protocol::Udp(port)), Some(Protocol::QuicV1)) = (parts.next(), parts.next()) else {
            return Err(AddressError::Unsupported);
        };
        let peer = match parts.next() {
            None => None,
            Some(Protocol::P2p(peer)) => {
                let peer = PeerId::from_multihash(&peer.to_bytes()).map_err(|_| AddressError::Peer)?;
                Some(peer)
            }
            Some(_) => return Err(AddressError::Unsupported),
        };
        // What follows the peer is a route through it (p2p-circuit), not a socket.
        if parts.next().is_some() {
            return Err(AddressError::Unsupported);
        }
        Ok(Self {
            socket: canonical(SocketAddr::new(ip, port)),
            peer,
        })
    }
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with('/') {
            let address = text.parse().map_err(|_| AddressError::Syntax)?;
            return Self::from_multiaddr(&address);
        }
        let socket = text.parse().map_err(|_| AddressError::Syntax)?;
        Ok(Self::new(socket))
    }
}

impl TryFrom<&Address> for PeerAddress {
    type Error = AddressError;

    fn try_from(address: &Address) -> Result<Self, AddressError> {
        address.as_str().parse()
    }
}

impl From<PeerAddress> for Multiaddr {
    fn from(address: PeerAddress) -> Self {
        let mut out = Self::from(address.socket.ip());
        out.push(Protocol::Udp(address.socket.port()));
        out.push(Protocol::QuicV1);
        if let Some(peer) = address.peer {
            let peer = libp2p::PeerId::from_bytes(&peer.to_multihash())
                .expect("an ed25519 multihash is a libp2p peer id");
            out.push(Protocol::P2p(peer));
        }
        out
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Multiaddr::from(*self).to_string())
    }
}

/// The address as people know it: an IPv4 address that a dual-stack socket reports as `::ffff:a.b.c.d` is IPv4.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Lists the sockets under which a peer bound to `bound` can be reached: itself, or for a wildcard the interfaces' addresses of its family
/// (both for `[::]`), without link-local ones, which mean nothing to another host. Loopback comes last; at most [`REACHABLE_MAX`].
///
/// # Errors
/// When the system does not list its interfaces.
pub fn reachable(bound: SocketAddr) -> io::Result<Vec<SocketAddr>> {
    if !bound.ip().is_unspecified() {
        return Ok(vec![canonical(bound)]);
    }
    let mut out: Vec<SocketAddr> = if_addrs::get_if_addrs()?
        .into_iter()
        .filter(|interface| !interface.is_link_local())
        .map(|interface| interface.ip())
        .filter(|ip| bound.is_ipv6() || ip.is_ipv4())
        .map(|ip| SocketAddr::new(ip, bound.port()))
        .collect();
    out.sort_by_key(|socket| (socket.ip().is_loopback(), *socket));
    out.dedup();
    out.truncate(REACHABLE_MAX);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn addresses_keep_their_meaning_as_text() {
        for text in [
            "/ip4/192.0.2.1/udp/4001/quic-v1".to_owned(),
            format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{ID}"),
            format!("/ip6/2001:db8::1/udp/4001/quic-v1/p2p/{ID}"),
        ] {
            let address: PeerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.to_address().as_str(), text);
        }
    }

    #[test]
    fn plain_addresses_and_mapped_ones_become_canonical() {
        let plain: PeerAddress = "192.0.2.1:4001".parse().unwrap();
        let mapped: PeerAddress = "[::ffff:192.0.2.1]:4001".parse().unwrap();
        assert_eq!(plain, mapped);
        assert_eq!(plain.to_string(), "/ip4/192.0.2.1/udp/4001/quic-v1");
    }

    #[test]
    fn what_cannot_be_dialled_is_refused_with_the_reason() {
        let circuit = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{ID}/p2p-circuit/p2p/{ID}");
        let rsa = "/ip4/192.0.2.1/udp/1/quic-v1/p2p/QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC";
        for (text, expected) in [
            ("", AddressError::Syntax),
            ("localhost:1", AddressError::Syntax),
            ("/ip4/192.0.2.1/udp", AddressError::Syntax),
            ("/dns/a.example/udp/1/quic-v1", AddressError::Unsupported),
            ("/ip4/192.0.2.1/tcp/1", AddressError::Unsupported),
            ("/ip4/192.0.2.1/udp/1", AddressError::Unsupported),
            (&circuit, AddressError::Unsupported),
            (rsa, AddressError::Peer),
        ] {
            assert_eq!(text.parse::<PeerAddress>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_wildcard_lists_interfaces_and_a_plain_address_itself() {
        let bound = "127.0.0.1:7".parse().unwrap();
        assert_eq!(reachable(bound).unwrap(), vec![bound]);
        let all = reachable("0.0.0.0:7".parse().unwrap()).unwrap();
        assert!(all.iter().all(|socket| socket.is_ipv4() && socket.port() == 7));
        assert!(all.contains(&bound));
    }
}
