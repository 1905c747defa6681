//! Finding peers and records beyond the neighbors: Kademlia, gossipsub and identify of libp2p.
//!
//! libp2p's swarm runs in one task, on connections that it neither dials nor closes: they belong to the mesh, and its substreams are their
//! kind-0 streams. What it finds comes out of a bounded channel and is a hint: whoever reads it checks the
//! signed items, and decides whether a wish to meet a peer is granted. Inside an area flooding does the work; nothing here is needed for
//! two neighbors to agree.

mod behaviour;
mod muxer;
mod publish;
mod records;
mod swarm;
#[cfg(test)]
mod tests;
mod transport;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hyperfabric_protocol::{Address, MeshId, NodeId, PeerId, Signed};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use self::muxer::Line;

pub use self::behaviour::QUERY_TIMEOUT;
pub use self::swarm::PUTS_PER_SECOND;
use crate::connection::Connection;
use crate::streams::inbox::Streams;

/// How much may have been found and not yet been looked at. Beyond it finds are dropped: items come again when neighbors compare their
/// databases, and a peer that is still wanted is asked for again.
pub const FOUND_MAX: usize = 256;
/// Connections that may wait to be attached; those who attach wait beyond it.
pub const ATTACHED_QUEUE_MAX: usize = 64;
/// Questions that may wait for the swarm; those who ask wait beyond it.
const COMMANDS_MAX: usize = 64;

/// Judges whether a record may be stored for others: signature, membership, names. Takes some hundred microseconds.
pub type RecordCheck = Arc<dyn Fn(&Signed) -> bool + Send + Sync>;

/// What discovery is made of.
pub struct DiscoveryConfig {
    /// Who this peer is. Its key is not needed: connections and items are authenticated elsewhere.
    pub peer: PeerId,
    /// The mesh whose peers and records are looked for.
    pub mesh: MeshId,
    /// Whether to store records for others, and to answer their queries: bootstrap peers, and those that others can dial.
    pub server: bool,
    /// Keeps records of strangers, and of peers under a name that is not theirs, out of Kademlia. Called on the network thread, at most
    /// [`PUTS_PER_SECOND`] times a second and peer, and for what lookups find.
    pub check: RecordCheck,
    /// Where the swarm runs.
    pub runtime: Handle,
}

/// What discovery has found or wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A flooded item, unverified.
    Item(Signed),
    /// Where a peer may be dialled, as others say.
    Address {
        /// The peer.
        peer: PeerId,
        /// Where.
        addresses: Vec<Address>,
    },
    /// A query needs a connection to a peer, for a short while.
    Wanted {
        /// The peer.
        peer: PeerId,
    },
}

/// How discovery does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryStats {
    /// Peers in Kademlia's routing table.
    pub kad_peers: usize,
    /// Connected peers that listen to announcements.
    pub gossip_peers: usize,
    /// Connections that carry libp2p's streams.
    pub connections: usize,
    /// Records stored for others and for this peer.
    pub records: usize,
}

/// This peer's record, and the names under which it is to be found.
#[derive(Clone)]
struct Publication {
    record: Signed,
    nodes: Vec<NodeId>,
}

enum Command {
    Lookup {
        name: NodeId,
        found: oneshot::Sender<bool>,
    },
    Stats(oneshot::Sender<DiscoveryStats>),
    #[cfg(test)]
    Disconnect(PeerId),
}

/// Discovery in the hands of the peer's event loop; ends when it is dropped.
pub struct Discovery {
    found: mpsc::Receiver<Found>,
    attached: Attacher,
    commands: mpsc::Sender<Command>,
    publication: watch::Sender<Option<Publication>>,
}

impl Discovery {
    /// Starts the swarm's task.
    #[must_use]
    pub fn start(config: DiscoveryConfig) -> Self {
        let (found, found_out) = mpsc::channel(FOUND_MAX);
        let (attached, attached_out) = mpsc::channel(ATTACHED_QUEUE_MAX);
        let (commands, commands_out) = mpsc::channel(COMMANDS_MAX);
        let (publication, published) = watch::channel(None);
        let inlets = swarm::Inlets {
            attached: attached_out,
            commands: commands_out,
            published,
        };
        config.runtime.clone().spawn(swarm::run(config, inlets, found));
        Self {
            found: found_out,
            attached: Attacher {
                lines: attached,
                received: Arc::default(),
            },
            commands,
            publication,
        }
    }

    /// Hands connections over to discovery.
    #[must_use]
    pub fn attacher(&self) -> Attacher {
        self.attached.clone()
    }

    /// The bytes that the swarm has received so far, counted on and on.
    #[must_use]
    pub fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.attached.received)
    }

    /// What others may ask of discovery.
    #[must_use]
    pub fn handle(&self) -> DiscoveryHandle {
        DiscoveryHandle(self.commands.clone())
    }

    /// Waits for the next find; none once the swarm has ended. Cancel-safe.
    pub async fn found(&mut self) -> Option<Found> {
        self.found.recv().await
    }

    /// Announces this peer's record now, and makes it known under the names of its nodes. The latest record is kept and announced again
    /// when the first listener comes.
    pub fn publish(&self, record: Signed, nodes: Vec<NodeId>) {
        self.publication.send_replace(Some(Publication { record, nodes }));
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").finish_non_exhaustive()
    }
}

/// Hands connections over to discovery; cheap to clone.
#[derive(Clone, Debug)]
pub struct Attacher {
    lines: mpsc::Sender<Line>,
    received: Arc<AtomicU64>,
}

impl Attacher {
    /// Lets discovery use a prompt connection: it opens kind-0 streams, and takes those that the peer opens from `streams`. Each
    /// connection is attached once, and let go when it has ended.
    pub async fn attach(&self, connection: Connection, streams: Streams) {
        // After the end of discovery the streams are dropped, and the peer's kind-0 streams are reset.
        let line = Line::new(connection, streams, Arc::clone(&self.received));
        let _ = self.lines.send(line).await;
    }
}

/// What others may ask of discovery; cheap to clone.
#[derive(Clone)]
pub struct DiscoveryHandle(mpsc::Sender<Command>);

impl DiscoveryHandle {
    /// Looks a node's record up in Kademlia. Returns whether one was found; it comes out as [`Found::Item`]. Takes as long as the query,
    /// at most [`QUERY_TIMEOUT`].
    pub async fn lookup(&self, name: &NodeId) -> bool {
        let (found, answer) = oneshot::channel();
        let command = Command::Lookup {
            name: name.clone(),
            found,
        };
        self.0.send(command).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// How discovery does; all zero once it has ended.
    pub async fn stats(&self) -> DiscoveryStats {
        let (stats, answer) = oneshot::channel();
        if self.0.send(Command::Stats(stats)).await.is_err() {
            return DiscoveryStats::default();
        }
        answer.await.unwrap_or_default()
    }
}

impl fmt::Debug for DiscoveryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiscoveryHandle")
    }
}

fn to_libp2p(peer: PeerId) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).expect("an ed25519 multihash is a libp2p peer id")
}

/// None for keys that are not ed25519, which no peer of a mesh has.
fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_multihash(&peer.to_bytes()).ok()
}
