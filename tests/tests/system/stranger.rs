//! Somebody who dials a running daemon with a certificate that the test has made, and what the test makes it with.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use hyperfabric_mesh::endpoint::MTU_MAX_DEFAULT;
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::{
    DialError, Endpoint, EndpointConfig, Gate, KernelWire, Leaf, LeafCell, Limits, Purpose, Refusal,
};
use hyperfabric_protocol::cert::{Certificate, Membership, MeshRoot};
use hyperfabric_protocol::{NodeId, PeerId, Serial, SigningKey, UnixMillis};
use hyperfabric_tests::{Folder, Peer};

/// Somebody who lets everybody in: what the dialled one proves does not matter here.
struct AnyPeer;

impl Gate for AnyPeer {
    fn admit(&self, _: &PeerId, _: Option<&[u8]>, _: Purpose) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A dialler with a key, and whatever it shows.
pub(crate) struct Stranger {
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
}

impl Stranger {
    pub(crate) fn new(key: &SigningKey, membership: Option<&Membership>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let membership = membership.map(Membership::to_bytes);
        let context = runtime.enter();
        let (endpoint, _) = Endpoint::bind(EndpointConfig {
            wire: Arc::new(KernelWire::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?),
            identity: key.clone(),
            leaf: LeafCell::new(Leaf::generate(key, membership.as_deref())?),
            gate: Arc::new(AnyPeer),
            runtime: runtime.handle().clone(),
            mtu_max: MTU_MAX_DEFAULT,
            limits: Limits::default(),
        })?;
        drop(context);
        Ok(Self { runtime, endpoint })
    }

    /// Dials a daemon and hangs up, or returns why it could not.
    pub(crate) fn dial(&self, to: &Peer, purpose: Purpose) -> Result<Result<(), DialError>> {
        let peer: PeerId = to.ready()?.peer_id.parse()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, to.port()?));
        let dialled = self.runtime.block_on(self.endpoint.dial(peer, address, purpose));
        Ok(dialled.map(|_| ()))
    }
}

pub(crate) fn now() -> Result<UnixMillis> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(UnixMillis(u64::try_from(since.as_millis())?))
}

/// A mesh's authority, with its key.
pub(crate) struct Authority {
    pub(crate) key: SigningKey,
    pub(crate) root: MeshRoot,
}

impl Authority {
    pub(crate) fn new(key: SigningKey, mesh: &str) -> Self {
        let root = MeshRoot::Closed {
            authority: key.peer_id(),
            name: mesh.to_owned(),
        };
        Self { key, root }
    }

    /// Takes the key that `mesh create` has left with the first admitter.
    pub(crate) fn of(founder: &Peer, mesh: &str) -> Result<Self> {
        let file = StateFolder::new(founder.data_dir()).authority_file();
        // A folder reads the key of its own peer only.
        let folder = Folder::new()?;
        let copy = StateFolder::new(folder.path());
        std::fs::copy(file, copy.key_file())?;
        Ok(Self::new(copy.key()?, mesh))
    }

    /// Signs a certificate that counts from `begin` to `end`.
    pub(crate) fn certify(&self, peer: PeerId, begin: UnixMillis, end: UnixMillis) -> Result<Membership> {
        Ok(Membership {
            certificate: self.certificate(peer, begin, end)?.sign(&self.key),
            delegation: None,
        })
    }

    /// Makes a certificate that counts from `begin` to `end`; it is not signed.
    pub(crate) fn certificate(
        &self,
        peer: PeerId,
        begin: UnixMillis,
        end: UnixMillis,
    ) -> Result<Certificate> {
        Ok(Certificate {
            mesh: self.root.id(),
            peer,
            name: NodeId::new("stranger")?,
            serial: Serial::new(now()?, *b"tenoctets!"),
            not_before: begin,
            not_after: end,
        })
    }
}

/// The key and the membership of a peer whose daemon need not run.
pub(crate) fn credential_of(peer: &Peer) -> Result<(SigningKey, Membership)> {
    let folder = StateFolder::new(peer.data_dir());
    let credential = folder.credential()?.context("no certificate")?;
    Ok((folder.key()?, credential.0.membership))
}

/// A day, which is more than clocks may differ.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
