//! What a bootstrap peer is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use hyperfabric_mesh::PeerAddress;
use hyperfabric_mesh::address::AddressError;
use hyperfabric_protocol::{NodeId, PeerId};

/// Members that can be connected at once, unless configured otherwise.
pub const CONNECTIONS_MAX_DEFAULT: usize = 1_024;

/// The largest datagram, unless configured otherwise: what crosses an Ethernet path. A bootstrap peer moves no payload that would gain from
/// larger ones, and the receive buffers grow with it (2,048 datagrams).
const MTU_MAX_DEFAULT: u16 = 1_452;

/// What a bootstrap peer is started with; [`BootstrapConfig::new`] fills in what most need.
#[derive(Clone, Debug)]
pub struct BootstrapConfig {
    /// The peer's folder: key, certificate, state.
    pub data_dir: PathBuf,
    /// The open mesh to take part in, when the folder does not say so already. Without it, the folder must be that of a member.
    pub open: Option<OpenMesh>,
    /// Where to listen. Port 0 is the port of the last start, or at the first start a free one.
    pub listen: SocketAddr,
    /// The addresses to announce instead of those of the interfaces: for a host behind a port forward.
    pub announce: Vec<PeerAddress>,
    /// Peers to meet first, beside those that the folder remembers.
    pub bootstrap: Vec<Contact>,
    /// The largest datagram payload that path MTU discovery tries.
    pub mtu_max: u16,
    /// Where to serve health and metrics over HTTP; nowhere if `None`.
    pub health: Option<SocketAddr>,
    /// What others may use up.
    pub limits: BootstrapLimits,
}

impl BootstrapConfig {
    /// Listens on every interface, serves health on a free port of loopback, and otherwise has the defaults.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            open: None,
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
            announce: Vec::new(),
            bootstrap: Vec::new(),
            mtu_max: MTU_MAX_DEFAULT,
            health: Some(SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0))),
            limits: BootstrapLimits::default(),
        }
    }
}

/// A mesh that everybody can take part in who knows its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenMesh {
    /// The mesh.
    pub mesh: String,
    /// Under which name this peer takes part.
    pub name: NodeId,
}

/// What others may use up of a bootstrap peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapLimits {
    /// Members connected at once. Further ones are told to come later.
    pub connections_max: usize,
    /// Connections from one IPv4 address or IPv6 /64 network, behind which many hosts can share one.
    pub per_address_max: usize,
    /// Tickets shown per second, after a burst of [`BootstrapLimits::joins_burst`].
    pub joins_per_second: u32,
    /// Tickets shown at once after a quiet time.
    pub joins_burst: u32,
    /// Connections that this peer tries to have by dialling, if fewer others come by themselves.
    pub degree_min: usize,
    /// Above this many connections it dials nobody without need.
    pub degree_max: usize,
}

impl Default for BootstrapLimits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX_DEFAULT,
            per_address_max: 256,
            joins_per_second: 4,
            joins_burst: 64,
            degree_min: 8,
            degree_max: 12,
        }
    }
}

/// Why a text does not name a peer to meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContactError {
    /// It is not an address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It does not say who answers there.
    #[error("the address does not name its peer: expected it to end in /p2p/PEER")]
    NoPeer,
}

/// A peer and where it can be dialled; as text `/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub socket: SocketAddr,
}

impl FromStr for Contact {
    type Err = ContactError;

    fn from_str(text: &str) -> Result<Self, ContactError> {
        let PeerAddress { socket, peer } = text.parse()?;
        let peer = peer.ok_or(ContactError::NoPeer)?;
        Ok(Self { peer, socket })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_an_address_that_names_its_peer() {
        let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let contact: Contact = format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{peer}")
            .parse()
            .unwrap();
        assert_eq!(contact.peer.to_string(), peer);
        assert_eq!(contact.socket, "192.0.2.1:4001".parse().unwrap());
        assert_eq!("192.0.2.1:4001".parse::<Contact>(), Err(ContactError::NoPeer));
        assert!(matches!(
            "nonsense".parse::<Contact>(),
            Err(ContactError::Address(_))
        ));
    }
}
