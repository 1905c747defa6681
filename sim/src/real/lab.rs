//! Peers that are admitted without a network, and started on impaired wires, each with a temporary folder.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use hyperfabric_mesh::clock::{Clock, SystemClock};
use hyperfabric_mesh::state::{StateError, StateFolder};
use hyperfabric_mesh::wire::{Impaired, Impairment, ImpairmentHandle};
use hyperfabric_mesh::{KernelWire, Limits, PeerAddress, Wire};
use hyperfabric_node::node::{DataHandler, Environment, NodeConfig};
use hyperfabric_node::storage::{DiskStorage, Storage};
use hyperfabric_node::store::{Store, StoreError};
use hyperfabric_node::transfer::InboxPolicy;
use hyperfabric_node::workers::WorkerPool;
use hyperfabric_node::{HardwareType, Node, NodeId, NodeSignature};
use hyperfabric_protocol::cert::{Admitter, CERTIFICATE_VALIDITY, MeshRoot};
use hyperfabric_protocol::ticket::Credential;
use hyperfabric_protocol::{Serial, UnixMillis};

use super::network::Sockets;
use super::{Datagrams, OnProgress, Phase, Progress, RealConfig, RealError, Spread};

/// The mesh's name.
const MESH: &str = "sim";
/// Datagrams stay small enough for every path of the Internet.
const MTU: u16 = 1_452;
/// Transfers of one peer at one time.
const TRANSFERS_MAX: usize = 64;
/// Peers that are started or asked something at once.
const AT_ONCE: usize = 64;
/// How often it is looked whether peers know all others.
const LOOK: Duration = Duration::from_millis(250);

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

/// A peer that does not run yet.
struct Seed {
    name: NodeId,
    folder: StateFolder,
    wire: Impaired,
}

/// A peer that runs.
pub(super) struct RealPeer {
    pub(super) name: NodeId,
    pub(super) node: Node,
    pub(super) storage: Arc<dyn Storage>,
    wire: ImpairmentHandle,
}

/// Peers that do not run yet.
pub(super) struct Lab {
    seeds: Vec<Seed>,
    pool: WorkerPool,
    clock: Arc<dyn Clock>,
    place: tempfile::TempDir,
}

/// Peers that run.
pub(super) struct Running {
    pub(super) peers: Vec<RealPeer>,
    /// Where payloads lie, and the peers' keys.
    pub(super) place: tempfile::TempDir,
}

/// Signs certificates as the first peer.
struct Founder {
    root: MeshRoot,
    admitter: Admitter,
    now: UnixMillis,
}

impl Founder {
    fn admit(&self, folder: &StateFolder, name: &NodeId, number: usize) -> Result<(), LabError> {
        let peer = folder.key()?.peer_id();
        let mut drawn = [0; 10];
        drawn[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let serial = Serial::new(self.now, drawn);
        let valid = CERTIFICATE_VALIDITY;
        let membership = self
            .admitter
            .admit(&self.root, peer, name.clone(), serial, self.now, valid);
        folder.set_credential(&Credential::new(&self.root, membership, None))?;
        Ok(())
    }
}

fn name(peer: usize) -> NodeId {
    NodeId::new(format!("n{peer}")).expect("a letter and digits are a node id")
}

impl Lab {
    /// Makes the peers' keys, certificates and wires.
    pub(super) fn new(config: &RealConfig, on_progress: OnProgress<'_>) -> Result<Self, LabError> {
        let place = tempfile::tempdir().map_err(LabError::Folder)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let now = clock.now().wall;
        let folder = StateFolder::new(place.path().join("n0"));
        folder.init()?;
        let root = folder.create_mesh(MESH, name(0), now)?;
        let admitter = folder.admitter(&folder.key()?)?.ok_or(LabError::NoAdmitter)?;
        let founder = Founder { root, admitter, now };
        let sockets = Sockets::default();
        let mut seeds = Vec::with_capacity(config.contacts.len());
        for peer in 0..config.contacts.len() {
            let folder = StateFolder::new(place.path().join(format!("n{peer}")));
            if peer > 0 {
                folder.init()?;
                founder.admit(&folder, &name(peer), peer)?;
            }
            let kernel = KernelWire::bind((Ipv4Addr::LOCALHOST, 0).into()).map_err(LabError::Port)?;
            let socket = kernel.local_addr().map_err(LabError::Folder)?;
            let runtime = tokio::runtime::Handle::current();
            let seed = config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ peer as u64;
            let wire = Impaired::new(Arc::new(kernel), Impairment::default(), seed, &runtime);
            wire.handle.set_rule(sockets.rule(peer, &config.links));
            sockets.add(socket, peer);
            seeds.push(Seed {
                name: name(peer),
                folder,
                wire,
            });
            on_progress(Progress {
                phase: Phase::Start,
                done: peer,
                of: config.contacts.len(),
            });
        }
        Ok(Self {
            seeds,
            pool: WorkerPool::with_available_cores().map_err(LabError::Workers)?,
            clock,
            place,
        })
    }

    /// Starts the peers.
    pub(super) async fn start(
        self,
        config: &RealConfig,
        on_progress: OnProgress<'_>,
    ) -> Result<Running, RealError> {
        let addresses = self.addresses()?;
        let of = self.seeds.len();
        let mut peers = Vec::with_capacity(of);
        for (place, (seed, contacts)) in self.seeds.into_iter().zip(&config.contacts).enumerate() {
            let contacts = contacts
                .iter()
                .filter_map(|at| addresses.get(*at))
                .copied()
                .collect();
            let (pool, clock) = (self.pool.clone(), Arc::clone(&self.clock));
            peers.push(start_one(seed, place, contacts, pool, clock).await?);
            on_progress(Progress {
                phase: Phase::Start,
                done: place + 1,
                of,
            });
        }
        Ok(Running {
            peers,
            place: self.place,
        })
    }

    fn addresses(&self) -> Result<Vec<PeerAddress>, LabError> {
        let address = |seed: &Seed| {
            Ok(PeerAddress {
                socket: seed.wire.wire.local_addr().map_err(LabError::Folder)?,
                peer: Some(seed.folder.key()?.peer_id()),
            })
        };
        self.seeds.iter().map(address).collect()
    }
}

async fn start_one(
    seed: Seed,
    place: usize,
    bootstrap: Vec<PeerAddress>,
    pool: WorkerPool,
    clock: Arc<dyn Clock>,
) -> Result<RealPeer, RealError> {
    let opened =
        Store::open(&seed.folder.store_file(), clock.now().wall.0 / 1_000).map_err(LabError::Store)?;
    let disk = DiskStorage::open(seed.folder.path()).map_err(LabError::Folder)?;
    let storage: Arc<dyn Storage> = Arc::new(disk);
    let environment = Environment {
        runtime: tokio::runtime::Handle::current(),
        pool,
        clock,
        wire: seed.wire.wire as Arc<dyn Wire>,
        store: opened.store,
        storage: Arc::clone(&storage),
    };
    let config = NodeConfig {
        folder: seed.folder,
        bootstrap,
        announce: Vec::new(),
        mtu_max: MTU,
        inbox: InboxPolicy {
            min_free_bytes: 0,
            ..InboxPolicy::default()
        },
        limits: Limits::default(),
        transfers_max: TRANSFERS_MAX,
    };
    let start = |source| RealError::Start {
        peer: place,
        source: Box::new(source),
    };
    let node = Node::start(config, environment).await.map_err(start)?;
    let signature = NodeSignature::new(seed.name.clone(), HardwareType::CpuServer, 10.0, 1_000)
        .expect("a plain signature");
    if node.register(signature).await.is_err() {
        return Err(RealError::Ended(place));
    }
    node.on_data(seed.name.clone(), answer());
    Ok(RealPeer {
        name: seed.name,
        node,
        storage,
        wire: seed.wire.handle,
    })
}

/// Answers a message with the digest of what arrived.
fn answer() -> DataHandler {
    Arc::new(|request| {
        let digest = blake3::hash(&request.data);
        Box::pin(async move { Ok(digest.as_bytes().to_vec().into()) })
    })
}

impl Running {
    /// Waits until every peer knows every member, and returns how many do at the end.
    pub(super) async fn meet(
        &self,
        limit: Duration,
        on_progress: OnProgress<'_>,
    ) -> Result<usize, RealError> {
        let (begun, of) = (Instant::now(), self.peers.len());
        let mut waiting: Vec<usize> = (0..of).collect();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !waiting.is_empty() && begun.elapsed() < limit {
            look.tick().await;
            let known: Vec<(usize, usize)> = stream::iter(waiting)
                .map(async |place| Ok::<_, RealError>((place, self.known(place).await?)))
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            waiting = known
                .into_iter()
                .filter(|(_, members)| *members < of)
                .map(|(place, _)| place)
                .collect();
            on_progress(Progress {
                phase: Phase::Meet,
                done: of - waiting.len(),
                of,
            });
        }
        Ok(of - waiting.len())
    }

    async fn known(&self, place: usize) -> Result<usize, RealError> {
        let handle = self.peers[place].node.handle();
        let members = handle.act(|fabric, _| fabric.directory().records().count());
        members.await.map_err(|_| RealError::Ended(place))
    }

    /// Connections and dials of the peers.
    pub(super) async fn degrees(&self) -> Result<(Spread, Spread), RealError> {
        let mut connections = Vec::with_capacity(self.peers.len());
        for (place, peer) in self.peers.iter().enumerate() {
            let connected = peer
                .node
                .handle()
                .act(|fabric, _| fabric.connected().count() as u64);
            connections.push(connected.await.map_err(|_| RealError::Ended(place))?);
        }
        let dials: Vec<u64> = self
            .peers
            .iter()
            .map(|peer| peer.node.handle().endpoint().dials())
            .collect();
        Ok((Spread::of(&connections), Spread::of(&dials)))
    }

    pub(super) fn datagrams(&self) -> Datagrams {
        self.peers.iter().fold(Datagrams::default(), |sum, peer| {
            let stats = peer.wire.stats();
            Datagrams {
                sent: sum.sent + stats.sent,
                lost: sum.lost + stats.lost,
                overflowed: sum.overflowed + stats.overflowed,
                partitioned: sum.partitioned + stats.partitioned,
            }
        })
    }

    pub(super) async fn stop(&self) {
        // Nobody is left to hear of a peer that ended before.
        stream::iter(&self.peers)
            .for_each_concurrent(AT_ONCE, |peer| peer.node.stop())
            .await;
    }
}
