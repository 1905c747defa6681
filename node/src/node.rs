//! A running node: the mesh's event loop with transfers, requests and the local API's operations on top.
//!
//! [`Node::start`] takes everything that it depends on (runtime, workers, clock, store, storage, wire), so that a
//! thousand nodes live in one process and tests decide what breaks. The node itself adds no thread.

mod abandoned;
mod board;
mod control;
mod host;
mod rates;
mod reach;
mod request;
mod sending;
mod streams;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use hyperfabric_mesh::clock::Clock;
use hyperfabric_mesh::discovery::{Discovery, DiscoveryConfig, DiscoveryHandle};
use hyperfabric_mesh::driver::{self, DriverConfig, Handle, Stopped};
use hyperfabric_mesh::endpoint::TokenBucket;
use hyperfabric_mesh::gate::MeshGate;
use hyperfabric_mesh::state::{KnownPeer, StateError, StateFolder};
use hyperfabric_mesh::tls::LeafError;
use hyperfabric_mesh::{
    Endpoint, EndpointConfig, EndpointError, EventSender, Events, Leaf, LeafCell, Limits, PeerAddress, Wire,
};
use hyperfabric_protocol::cert::Membership;
use hyperfabric_protocol::fabric::{Event, FabricConfig, Input, RegisterError};
use hyperfabric_protocol::flood::content;
use hyperfabric_protocol::transfer::CHUNK_BYTES;
use hyperfabric_protocol::types::NodeSignature;
use hyperfabric_protocol::{Address, Fabric, NodeId, PeerId, TransferId};
use tokio::sync::{Notify, broadcast};
use tokio::task::AbortHandle;

pub use control::NodeControl;
pub use request::{DATA_BYTES_MAX, DataError, DataHandler, DataRequest};
pub(crate) use request::{Located, REQUEST_TIMEOUT};
pub use sending::{NewTransfer, StartError};

use crate::directory::Directory;
use crate::storage::Storage;
use crate::store::{OutgoingRecord, Store};
use crate::transfer::receive::{Parts, Tuning};
use crate::transfer::{BufferPool, InboxPolicy, Outgoing, ReceiveError, Receiver, Sender};
use crate::workers::WorkerPool;
use board::Board;
use host::NodeHost;
use rates::Rates;

/// Connections come and go in bursts: the address book is written once for all changes of this time.
const ADDRESS_BOOK_DELAY: Duration = Duration::from_secs(5);

/// Who a node is and what it takes.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The peer's folder.
    pub folder: StateFolder,
    /// Peers to meet first; each needs its id.
    pub bootstrap: Vec<PeerAddress>,
    /// Addresses to announce instead of those of the interfaces.
    pub announce: Vec<Address>,
    /// The largest datagram that path MTU discovery tries, in bytes.
    pub mtu_max: u16,
    /// What the inbox takes.
    pub inbox: InboxPolicy,
    /// What others may use up.
    pub limits: Limits,
    /// Transfers at one time, in each direction; further ones wait at their senders.
    pub transfers_max: usize,
}

/// What a node runs on.
#[derive(Clone)]
pub struct Environment {
    /// Where its tasks run.
    pub runtime: tokio::runtime::Handle,
    /// Where it hashes and touches the disk.
    pub pool: WorkerPool,
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// What carries its datagrams.
    pub wire: Arc<dyn Wire>,
    /// Its records.
    pub store: Store,
    /// Its folder for files, with `inbox` and `partial` below.
    pub storage: Arc<dyn Storage>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartNodeError {
    /// Its folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its endpoint does not start.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Its certificate cannot be made.
    #[error("cannot make the peer's TLS certificate")]
    Leaf(#[from] LeafError),
    /// Its inbox cannot be used.
    #[error("cannot use the inbox")]
    Inbox(#[from] ReceiveError),
    /// A first contact has no peer id.
    #[error("the bootstrap address {0} does not name its peer: end it with /p2p/<peer id>")]
    AnonymousBootstrap(SocketAddr),
}

/// What a node's parts share.
pub(crate) struct Inner {
    handle: Handle,
    folder: StateFolder,
    store: Store,
    pool: WorkerPool,
    clock: Arc<dyn Clock>,
    storage: Arc<dyn Storage>,
    receiver: Receiver,
    /// Kademlia and gossipsub; none while the peer is in no mesh.
    discovery: Option<DiscoveryHandle>,
    sender: Sender,
    board: Board,
    /// What is being sent.
    sources: Mutex<HashMap<TransferId, Arc<Outgoing>>>,
    /// Transfers of earlier processes whose destinations are not known yet.
    waiting: Mutex<Vec<OutgoingRecord>>,
    /// The tasks that send.
    sending: Mutex<HashMap<TransferId, AbortHandle>>,
    /// Whose the transfers are that are being received.
    expected: Mutex<HashMap<TransferId, PeerId>>,
    handlers: RwLock<HashMap<NodeId, DataHandler>>,
    requests: request::Budget,
    /// How often failures of incoming transfers may still be logged.
    complaints: Mutex<TokenBucket>,
    rates: Rates,
    /// Told when a peer was connected or is not any more.
    connections_changed: Arc<Notify>,
    events: EventSender,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running node; clones are handles of the same one.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Node").field(&self.0.handle).finish()
    }
}

impl Node {
    /// Starts a node.
    ///
    /// # Errors
    /// [`StartNodeError`].
    pub async fn start(config: NodeConfig, environment: Environment) -> Result<Self, StartNodeError> {
        for peer in &config.bootstrap {
            if peer.peer.is_none() {
                return Err(StartNodeError::AnonymousBootstrap(peer.socket));
            }
        }
        let mut fabric = config.folder.fabric_config(&environment.store, agent())?;
        fabric.transfers_max = config.transfers_max;
        let contacts = config.folder.first_contacts(&environment.store)?;
        let late: Arc<OnceLock<Weak<Inner>>> = Arc::default();
        let buffers = BufferPool::new(usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX));
        let receiver = open_receiver(&config, &environment, &buffers, &late).await?;
        let driver = driver_config(&config, &environment, fabric)?;
        let discovery = driver.discovery.as_ref().map(Discovery::handle);
        let mut made = None;
        let handle = driver::start(driver, |handle| {
            let inner = Arc::new(Inner {
                handle: handle.clone(),
                folder: config.folder.clone(),
                store: environment.store,
                sender: Sender::new(environment.pool.clone(), buffers),
                pool: environment.pool,
                clock: environment.clock,
                storage: environment.storage,
                receiver,
                discovery,
                board: Board::new(config.folder.path().to_owned()),
                sources: Mutex::default(),
                waiting: Mutex::default(),
                sending: Mutex::default(),
                expected: Mutex::default(),
                handlers: RwLock::default(),
                requests: request::Budget::default(),
                complaints: Mutex::new(host::complaints()),
                rates: Rates::default(),
                connections_changed: Arc::default(),
                events: EventSender::default(),
            });
            // Set once, here, before anything can become durable.
            let _ = late.set(Arc::downgrade(&inner));
            made = Some(Arc::clone(&inner));
            NodeHost::new(inner)
        });
        let node = Self(made.expect("start calls the closure once"));
        let named = config.bootstrap.iter().filter_map(|contact| {
            let addresses = vec![PeerAddress::new(contact.socket).to_address()];
            contact.peer.map(|peer| KnownPeer {
                peer,
                addresses,
                bootstrap: true,
            })
        });
        let contacts: Vec<KnownPeer> = contacts.into_iter().chain(named).collect();
        let learn = move |fabric: &mut Fabric, now| {
            for KnownPeer {
                peer,
                addresses,
                bootstrap,
            } in contacts
            {
                fabric.learn(now, peer, addresses, bootstrap);
            }
        };
        // A loop that has ended already says so at the next operation.
        let _ = handle.act(learn).await;
        let after = config.inbox.abandoned_after;
        node.start_housekeeping(&environment.runtime, after);
        node.resume_all().await;
        Ok(node)
    }

    /// Starts what is done now and then.
    fn start_housekeeping(&self, runtime: &tokio::runtime::Handle, abandoned_after: Duration) {
        let inner = || Arc::downgrade(&self.0);
        runtime.spawn(keep_address_book(inner()));
        runtime.spawn(abandoned::keep_looking(inner(), abandoned_after));
    }

    /// Returns who the peer is.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.0.handle.peer_id()
    }

    /// Returns the handle to the event loop.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// Returns the multiaddrs under which others can try to reach this node, with its peer id.
    ///
    /// # Errors
    /// When the system does not list its interfaces.
    pub fn listen_addresses(&self) -> io::Result<Vec<String>> {
        let id = self.peer_id();
        Ok(self
            .0
            .handle
            .reachable()?
            .into_iter()
            .map(|address| format!("{address}/p2p/{id}"))
            .collect())
    }

    /// Follows what happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.0.events.subscribe()
    }

    /// Registers a node that this peer hosts, or replaces its specification.
    ///
    /// # Errors
    /// [`RegisterError`]; `None` when the node is shutting down.
    pub async fn register(&self, node: NodeSignature) -> Result<(), Option<RegisterError>> {
        let registered = self
            .0
            .handle
            .act(move |fabric, now| fabric.register(now, node))
            .await;
        registered.map_err(|Stopped| None)?.map_err(Some)
    }

    /// Returns the name that the peer's certificate grants.
    pub async fn name(&self) -> Option<NodeId> {
        let name = self
            .0
            .handle
            .act(|fabric, _| fabric.admission().own().map(|(_, m)| m.name.clone()))
            .await;
        name.ok().flatten()
    }

    /// Ends the node: transfers are suspended where they are, connections closed, the port freed.
    pub async fn stop(&self) {
        self.0.save_address_book().await;
        for (_, task) in lock(&self.0.sending).drain() {
            task.abort();
        }
        self.0.handle.stop().await;
    }

    /// Waits for an event that `wanted` turns into something, or until `limit` has passed.
    pub(crate) async fn wait_for<T>(
        mut events: Events,
        limit: Duration,
        mut wanted: impl FnMut(Event) -> Option<T>,
    ) -> Option<T> {
        let wait = async {
            loop {
                match events.recv().await {
                    Ok(event) => {
                        if let Some(found) = wanted(event) {
                            return Some(found);
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        };
        tokio::time::timeout(limit, wait).await.ok().flatten()
    }

    /// Returns how fast the last transfer to `peer` moved its bytes, in Gbit/s.
    pub(crate) fn bandwidth_gbps(&self, peer: &PeerId) -> Option<f64> {
        self.0.rates.gbps(peer)
    }

    /// Returns what the local API asks of every peer.
    pub(crate) fn directory(&self) -> Directory {
        Directory {
            handle: self.0.handle.clone(),
            events: self.0.events.clone(),
            announce: Vec::new(),
        }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }
}

/// Opens what receives files.
async fn open_receiver(
    config: &NodeConfig,
    environment: &Environment,
    buffers: &BufferPool,
    late: &Arc<OnceLock<Weak<Inner>>>,
) -> Result<Receiver, ReceiveError> {
    let parts = Parts {
        storage: Arc::clone(&environment.storage),
        store: environment.store.clone(),
        workers: environment.pool.clone(),
        buffers: buffers.clone(),
        policy: config.inbox.clone(),
        tuning: Tuning::default(),
        on_durable: host::durable_reporter(Arc::clone(late)),
    };
    environment.pool.run(move || Receiver::open(parts)).await?
}

/// Binds the endpoint and puts together what the event loop runs on.
fn driver_config(
    config: &NodeConfig,
    environment: &Environment,
    fabric: FabricConfig,
) -> Result<DriverConfig, StartNodeError> {
    let membership = fabric.membership.as_ref().map(Membership::to_bytes);
    let leaf = LeafCell::new(Leaf::generate(&fabric.key, membership.as_deref())?);
    let gate = MeshGate::new(Arc::clone(&environment.clock));
    let (endpoint, accepted) = Endpoint::bind(EndpointConfig {
        wire: Arc::clone(&environment.wire),
        identity: fabric.key.clone(),
        leaf: leaf.clone(),
        gate: Arc::new(gate.clone()),
        runtime: environment.runtime.clone(),
        mtu_max: config.mtu_max,
        limits: config.limits.clone(),
    })?;
    let discovery = fabric.root.clone().map(|root| {
        let clock = Arc::clone(&environment.clock);
        Discovery::start(DiscoveryConfig {
            peer: fabric.key.peer_id(),
            mesh: root.id(),
            server: true,
            check: Arc::new(move |signed| content::check(signed, &root, clock.now().wall).is_ok()),
            runtime: environment.runtime.clone(),
        })
    });
    Ok(DriverConfig {
        fabric,
        endpoint,
        accepted,
        leaf,
        gate,
        clock: Arc::clone(&environment.clock),
        pool: environment.pool.clone(),
        runtime: environment.runtime.clone(),
        announce: config.announce.clone(),
        discovery,
    })
}

impl Inner {
    fn emit(&self, event: &Event) {
        self.events.send(event);
    }

    async fn tell(&self, input: Input) {
        self.handle.input(input).await;
    }

    /// Writes the peers connected now into the address book, so that a restarted peer meets them again at once.
    async fn save_address_book(&self) {
        let connected = self.handle.act(|fabric, _| {
            let known = fabric.connected().map(|(peer, _)| {
                let addresses = fabric
                    .directory()
                    .record(&peer)
                    .map(|r| r.body.addresses.0.clone());
                (peer, addresses.unwrap_or_default())
            });
            known
                .filter(|(_, addresses)| !addresses.is_empty())
                .collect::<Vec<_>>()
        });
        let Ok(peers) = connected.await else { return };
        if peers.is_empty() {
            return;
        }
        let (folder, store) = (self.folder.clone(), self.store.clone());
        let written = self
            .pool
            .run_on(crate::workers::Lane::Sync, move || {
                folder.remember_peers(&store, &peers)
            })
            .await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot write the address book"),
            Err(error) => tracing::warn!(%error, "cannot write the address book"),
        }
    }
}

async fn keep_address_book(inner: Weak<Inner>) {
    let Some((changed, ended)) = inner
        .upgrade()
        .map(|inner| (Arc::clone(&inner.connections_changed), inner.handle.ended()))
    else {
        return;
    };
    let keep = async {
        loop {
            changed.notified().await;
            tokio::time::sleep(ADDRESS_BOOK_DELAY).await;
            let Some(inner) = inner.upgrade() else { return };
            inner.save_address_book().await;
        }
    };
    tokio::select! {
        () = keep => {}
        () = ended => {}
    }
}

/// What this program calls itself to its peers.
fn agent() -> String {
    format!("hyperfabric/{}", env!("CARGO_PKG_VERSION"))
}
