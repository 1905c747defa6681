//! What real nodes in this process share and are made of: threads, clock, a temporary folder, keys and certificates, wires.
//!
//! Runs of the simulator and tests of whole nodes stand on it. Members are admitted by a [`Founder`], who signs their
//! certificates without a network. It deliberately starts no node: who does so decides what it runs on.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyperfabric_mesh::clock::{Clock, SystemClock};
use hyperfabric_mesh::state::{StateError, StateFolder};
use hyperfabric_mesh::wire::{Impaired, Impairment};
use hyperfabric_mesh::{KernelWire, Limits, PeerAddress, Wire};
use hyperfabric_node::node::{Environment, NodeConfig};
use hyperfabric_node::storage::Storage;
use hyperfabric_node::store::{Store, StoreError};
use hyperfabric_node::transfer::InboxPolicy;
use hyperfabric_node::workers::WorkerPool;
use hyperfabric_node::{HardwareType, NodeId, NodeSignature};
use hyperfabric_protocol::cert::{Admitter, CERTIFICATE_VALIDITY, MeshRoot};
use hyperfabric_protocol::ticket::Credential;
use hyperfabric_protocol::{PeerId, Serial};

/// Datagrams stay small enough for every path of the Internet.
const MTU: u16 = 1_452;
/// Transfers of one peer at one time.
const TRANSFERS_MAX: usize = 64;

/// Why a peer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is no place for the peers' keys.
    #[error("cannot make a temporary folder")]
    Folder(#[source] std::io::Error),
    /// A peer's folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// A peer's journal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A peer's port.
    #[error("cannot take a port on loopback: every peer needs one, and a descriptor (see `ulimit -n`)")]
    Port(#[source] hyperfabric_mesh::wire::BindError),
    /// The first peer is no admitter.
    #[error("the first peer cannot admit others")]
    NoAdmitter,
    /// The threads that hash and write.
    #[error("cannot start the worker threads")]
    Workers(#[source] std::io::Error),
}

/// What the nodes of one process share.
#[derive(Clone)]
pub struct Testbed {
    /// Where they hash and write.
    pub pool: WorkerPool,
    /// What they read the time from.
    pub clock: Arc<dyn Clock>,
    place: Arc<tempfile::TempDir>,
}

/// Signs certificates of a mesh, as one of its admitters does, without a network and without a journal.
pub struct Founder {
    root: MeshRoot,
    admitter: Admitter,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Testbed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Testbed").field(&self.place.path()).finish()
    }
}

impl std::fmt::Debug for Founder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Founder").field(&self.root).finish()
    }
}

impl Testbed {
    /// Makes the threads and the folder, which is gone with the last handle.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn new() -> Result<Self, LabError> {
        Ok(Self {
            pool: WorkerPool::with_available_cores().map_err(LabError::Workers)?,
            clock: Arc::new(SystemClock::default()),
            place: Arc::new(tempfile::tempdir().map_err(LabError::Folder)?),
        })
    }

    /// Returns the temporary folder.
    #[must_use]
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// Makes a peer's folder, with a key.
    ///
    /// # Errors
    /// [`LabError::State`].
    pub fn folder(&self, name: &NodeId) -> Result<StateFolder, LabError> {
        let folder = StateFolder::new(self.place().join(name.as_str()));
        folder.init()?;
        Ok(folder)
    }

    /// Makes a mesh and the folder of its first admitter.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn found(&self, mesh: &str, name: &NodeId) -> Result<(StateFolder, Founder), LabError> {
        let folder = self.folder(name)?;
        folder.create_mesh(mesh, name.clone(), self.clock.now().wall)?;
        let founder = self.founder(&folder)?;
        Ok((folder, founder))
    }

    /// Returns who signs as the admitter whose folder this is.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn founder(&self, folder: &StateFolder) -> Result<Founder, LabError> {
        let admitter = folder.admitter(&folder.key()?)?.ok_or(LabError::NoAdmitter)?;
        let credential = folder.credential()?.ok_or(LabError::NoAdmitter)?;
        Ok(Founder {
            root: credential.root(),
            admitter,
            clock: Arc::clone(&self.clock),
        })
    }

    /// Puts together what a node runs on.
    #[must_use]
    pub fn environment(&self, wire: Arc<dyn Wire>, store: Store, storage: Arc<dyn Storage>) -> Environment {
        Environment {
            runtime: tokio::runtime::Handle::current(),
            pool: self.pool.clone(),
            clock: Arc::clone(&self.clock),
            wire,
            store,
            storage,
        }
    }

    /// Takes a port on loopback and puts an impaired wire over it. Its random choices follow from `seed`.
    ///
    /// # Errors
    /// [`LabError::Port`].
    pub fn wire(&self, impairment: Impairment, seed: u64) -> Result<Impaired, LabError> {
        let kernel = KernelWire::bind((Ipv4Addr::LOCALHOST, 0).into()).map_err(LabError::Port)?;
        let runtime = tokio::runtime::Handle::current();
        Ok(Impaired::new(Arc::new(kernel), impairment, seed, &runtime))
    }

    /// Writes a file of bytes that look random and follow from `seed` and `name`; returns where it lies, and its digest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, seed: u64, bytes: usize) -> std::io::Result<(PathBuf, blake3::Hash)> {
        let mut content = vec![0; bytes];
        blake3::Hasher::new()
            .update(&seed.to_be_bytes())
            .update(name.as_bytes())
            .finalize_xof()
            .fill(&mut content);
        let path = self.place().join(name);
        std::fs::write(&path, &content)?;
        Ok((path, blake3::hash(&content)))
    }
}

impl Founder {
    /// Makes a peer with this folder a member.
    ///
    /// # Errors
    /// [`LabError::State`].
    pub fn admit(&self, folder: &StateFolder, name: &NodeId) -> Result<(), LabError> {
        let peer = folder.key()?.peer_id();
        let now = self.clock.now().wall;
        let (drawn, _) = peer
            .0
            .split_first_chunk()
            .expect("a peer id is longer than a serial number");
        let serial = Serial::new(now, *drawn);
        let valid = CERTIFICATE_VALIDITY;
        let membership = self
            .admitter
            .admit(&self.root, peer, name.clone(), serial, now, valid);
        folder.set_credential(&Credential::new(&self.root, membership, None))?;
        Ok(())
    }
}

/// Returns the configuration of a node on loopback that takes whatever is sent to it.
#[must_use]
pub fn node_config(folder: StateFolder, bootstrap: Vec<PeerAddress>) -> NodeConfig {
    NodeConfig {
        folder,
        bootstrap,
        announce: Vec::new(),
        mtu_max: MTU,
        inbox: InboxPolicy {
            min_free_bytes: 0,
            ..InboxPolicy::default()
        },
        limits: Limits::default(),
        transfers_max: TRANSFERS_MAX,
    }
}

/// Returns a plain node to be hosted under a name.
///
/// # Panics
/// Never: its values are within their ranges.
#[must_use]
pub fn signature(name: &NodeId) -> NodeSignature {
    NodeSignature::new(name.clone(), HardwareType::CpuServer, 10.0, 1_000).expect("a plain signature")
}

/// Returns the seed of a peer's wire.
#[must_use]
pub fn wire_seed(peer: &PeerId) -> u64 {
    u64::from_be_bytes(peer.0[..8].try_into().expect("eight of 32 bytes"))
}
