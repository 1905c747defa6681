//! Peers that are admitted without a network, and started on impaired wires, each with a temporary folder.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::wire::{Impaired, Impairment, ImpairmentHandle};
use hyperfabric_mesh::{PeerAddress, Wire};
use hyperfabric_node::node::DataHandler;
use hyperfabric_node::storage::{DiskStorage, Storage};
use hyperfabric_node::store::Store;
use hyperfabric_node::{Node, NodeId};

pub(super) mod observe;

use super::network::Sockets;
use super::testbed::{LabError, Testbed, node_config, signature};
use super::{Datagrams, OnProgress, Phase, Progress, RealConfig, RealError, Spread};

/// The mesh's name.
const MESH: &str = "sim";
/// Peers that are started or asked something at once.
const AT_ONCE: usize = 64;
/// How often it is looked whether peers know all others.
const LOOK: Duration = Duration::from_millis(250);

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
    bed: Testbed,
}

/// Peers that run.
pub(super) struct Running {
    pub(super) peers: Vec<RealPeer>,
    /// Where payloads lie, and the peers' keys.
    pub(super) bed: Testbed,
}

fn name(peer: usize) -> NodeId {
    NodeId::new(format!("n{peer}")).expect("a letter and digits are a node id")
}

impl Lab {
    /// Makes the peers' keys, certificates and wires.
    pub(super) fn new(config: &RealConfig, on_progress: OnProgress<'_>) -> Result<Self, LabError> {
        let bed = Testbed::new()?;
        let (first, founder) = bed.found(MESH, &name(0))?;
        let mut first = Some(first);
        let sockets = Sockets::default();
        let mut seeds = Vec::with_capacity(config.contacts.len());
        for peer in 0..config.contacts.len() {
            let folder = match first.take() {
                Some(folder) => folder,
                None => {
                    let folder = bed.folder(&name(peer))?;
                    founder.admit(&folder, &name(peer))?;
                    folder
                }
            };
            let seed = config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ peer as u64;
            let wire = bed.wire(Impairment::default(), seed)?;
            wire.handle.set_rule(sockets.rule(peer, &config.links));
            sockets.add(wire.wire.local_addr().map_err(LabError::Folder)?, peer);
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
        Ok(Self { seeds, bed })
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
            peers.push(start_one(seed, place, contacts, &self.bed).await?);
            on_progress(Progress {
                phase: Phase::Start,
                done: place + 1,
                of,
            });
        }
        Ok(Running { peers, bed: self.bed })
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
    bed: &Testbed,
) -> Result<RealPeer, RealError> {
    let now = bed.clock.now().wall.0 / 1_000;
    let opened = Store::open(&seed.folder.store_file(), now).map_err(LabError::Store)?;
    let disk = DiskStorage::open(seed.folder.path()).map_err(LabError::Folder)?;
    let storage: Arc<dyn Storage> = Arc::new(disk);
    let environment = bed.environment(
        seed.wire.wire as Arc<dyn Wire>,
        opened.store,
        Arc::clone(&storage),
    );
    let config = node_config(seed.folder, bootstrap);
    let start = |source| RealError::Start {
        peer: place,
        source: Box::new(source),
    };
    let node = Node::start(config, environment).await.map_err(start)?;
    if node.register(signature(&seed.name)).await.is_err() {
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
pub(super) fn answer() -> DataHandler {
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
        let stats = self.peers.iter().map(|peer| peer.wire.stats());
        stats.fold(Datagrams::default(), Datagrams::with)
    }

    pub(super) async fn stop(&self) {
        // Nobody is left to hear of a peer that ended before.
        stream::iter(&self.peers)
            .for_each_concurrent(AT_ONCE, |peer| peer.node.stop())
            .await;
    }
}
