//! A running bootstrap peer: puts the pieces together, and takes them apart in the order in which nothing is lost.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyperfabric_mesh::clock::Clock;
use hyperfabric_mesh::discovery::{Discovery, DiscoveryConfig};
use hyperfabric_mesh::driver::{self, DriverConfig, Handle};
use hyperfabric_mesh::gate::MeshGate;
use hyperfabric_mesh::state::{StateError, StateFolder};
use hyperfabric_mesh::store::{Store, StoreError};
use hyperfabric_mesh::tls::LeafError;
use hyperfabric_mesh::wire::BindError;
use hyperfabric_mesh::workers::WorkerPool;
use hyperfabric_mesh::{
    Endpoint, EndpointConfig, EndpointError, EventSender, Leaf, LeafCell, Limits, PeerAddress,
};
use hyperfabric_protocol::cert::{CertificateError, MESH_NAME_BYTES_MAX, Membership, MeshRoot};
use hyperfabric_protocol::fabric::FabricConfig;
use hyperfabric_protocol::{Address, Now, PeerId, UnixMillis, flood};
use tokio::runtime::Handle as Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::book::{self, Keeper};
use crate::config::{BootstrapConfig, OpenMesh};
use crate::counters::{Counters, CountingGate};
use crate::health::{self, Health};
use crate::host::{BootstrapHost, Disk};
use crate::port;

/// What others are told that they talk to.
const AGENT: &str = concat!("hyperfabric-bootstrap/", env!("CARGO_PKG_VERSION"));

/// Connections beyond those of members, so that a full peer still redeems tickets and can say that it is full.
const SPARE_CONNECTIONS: usize = 64;

/// Bulk connections are closed as soon as they are accepted; more of them at once are an attack.
const BULK_PER_PEER_MAX: usize = 1;

/// Why a bootstrap peer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something in the data folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The peer is in no mesh.
    #[error(
        "{} is not the folder of a mesh's member: run `hyperfabric mesh create` or `hyperfabric join` with it first, or name an open mesh",
        .0.display()
    )]
    NotAMember(PathBuf),
    /// The certificate does not count.
    #[error("this peer's certificate cannot be used: join the mesh again")]
    Certificate(#[source] CertificateError),
    /// The name of the open mesh is empty or too long.
    #[error("the name of a mesh has 1 to {MESH_NAME_BYTES_MAX} bytes")]
    MeshName,
    /// The port that others know is taken.
    #[error(
        "port {port}, under which others know this peer, is in use: stop the other program, or choose a new port to listen on"
    )]
    KeptPort {
        /// The port.
        port: u16,
    },
    /// The port asked for cannot be used.
    #[error(transparent)]
    Listen(BindError),
    /// The socket does not work.
    #[error("cannot use the UDP socket")]
    Socket(#[source] io::Error),
    /// The TLS certificate cannot be made.
    #[error("cannot make a TLS certificate")]
    Leaf(#[from] LeafError),
    /// The endpoint cannot be made.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The health endpoint cannot listen.
    #[error("cannot serve health on {address}")]
    Health {
        /// Where.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self::State(error.into())
    }
}

/// A running bootstrap peer. It runs on its runtime until [`Bootstrap::stop`] is called, also when this value is dropped.
#[derive(Debug)]
pub struct Bootstrap {
    handle: Handle,
    mesh: String,
    announce: Vec<PeerAddress>,
    events: EventSender,
    health: health::Reporter,
    server: Option<health::Server>,
    keeper: Keeper,
    writer: JoinHandle<()>,
}

impl Bootstrap {
    /// Starts a peer on `runtime`. Reads and repairs its store on the calling thread, which takes some milliseconds.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        config: BootstrapConfig,
        runtime: Runtime,
        pool: WorkerPool,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let now = clock.now();
        let (disk, warnings) = open(&config, &pool, now)?;
        let fabric = fabric_config(&disk, &config, now)?;
        let root = fabric.root.as_ref();
        let mesh = root.map_or_else(String::new, |root| root.name().to_owned());

        let counters = Arc::new(Counters::default());
        let gate = MeshGate::new(Arc::clone(&clock));
        gate.set_root(fabric.root.clone());
        let shown = fabric.membership.as_ref().map(Membership::to_bytes);
        let leaf = LeafCell::new(Leaf::generate(&fabric.key, shown.as_deref())?);
        let _context = runtime.enter();
        let (endpoint, accepted) = Endpoint::bind(EndpointConfig {
            wire: Arc::new(port::bind(&disk.folder, &disk.store, config.listen)?),
            identity: fabric.key.clone(),
            leaf: leaf.clone(),
            gate: Arc::new(CountingGate {
                gate: gate.clone(),
                counters: Arc::clone(&counters),
            }),
            runtime: runtime.clone(),
            mtu_max: config.mtu_max,
            limits: limits(&config),
        })?;
        let listener = config.health.map(health::bind).transpose()?;
        let contacts = contacts(&disk, &config)?;
        let remembered = contacts.iter().filter(|contact| !contact.2);
        let book = remembered.map(|contact| (contact.0, contact.1.clone())).collect();

        let discovery = discovery(&fabric, &runtime, &clock);
        let changed = Arc::new(Notify::new());
        let events = EventSender::default();
        let heard = events.clone();
        let mut writer = None;
        let driver = DriverConfig {
            fabric,
            endpoint,
            accepted,
            leaf,
            gate,
            clock: Arc::clone(&clock),
            pool,
            runtime: runtime.clone(),
            announce: config.announce.iter().map(plain).collect(),
            discovery,
        };
        let handle = driver::start(driver, |peer| {
            let (host, task) = BootstrapHost::new(
                peer,
                disk.clone(),
                Arc::clone(&changed),
                Arc::clone(&counters),
                heard,
            );
            writer = Some(task);
            host
        });
        let writer = writer.expect("the driver asks for its host before it returns");
        let greeter = handle.clone();
        runtime.spawn(async move { book::learn(&greeter, contacts).await });
        let health = health::Reporter::new(handle.clone(), mesh.clone(), warnings, counters, clock);
        tracing::info!(peer = %handle.peer_id(), %mesh, address = %handle.endpoint().local_address(), "the bootstrap peer runs");
        Ok(Self {
            mesh,
            announce: config.announce,
            events,
            server: listener.map(|listener| health::Server::start(&runtime, listener, health.clone())),
            health,
            keeper: Keeper::start(handle.clone(), disk, book, changed),
            writer,
            handle,
        })
    }

    /// Returns who the peer is.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.handle.peer_id()
    }

    /// Returns the name of the peer's mesh.
    #[must_use]
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// Returns the handle of the peer's event loop: to issue tickets, to list members, to revoke.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns the sender of everything that happens, to be followed.
    #[must_use]
    pub fn events(&self) -> &EventSender {
        &self.events
    }

    /// Returns the addresses to give to others; each names this peer.
    ///
    /// # Errors
    /// When the system does not list its interfaces.
    pub fn addresses(&self) -> io::Result<Vec<PeerAddress>> {
        let sockets = if self.announce.is_empty() {
            self.handle.endpoint().reachable_addresses()?
        } else {
            self.announce.iter().map(|at| at.socket).collect()
        };
        let named = |socket| PeerAddress {
            peer: Some(self.peer_id()),
            ..PeerAddress::new(socket)
        };
        Ok(sockets.into_iter().map(named).collect())
    }

    /// Returns where health and metrics are served.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(health::Server::address)
    }

    /// Returns the addresses to announce instead of those of the interfaces; none unless they were given.
    #[must_use]
    pub fn announced(&self) -> &[PeerAddress] {
        &self.announce
    }

    /// Returns what says how the peer is, also after this value was moved.
    #[must_use]
    pub fn reporter(&self) -> health::Reporter {
        self.health.clone()
    }

    /// Returns what `/health` says; `None` when the event loop does not answer in time.
    pub async fn health(&self) -> Option<Health> {
        self.health.health().await
    }

    /// Ends the peer: saves the address book, tells the connected peers, waits until everything is on the disk, and gives its ports and its
    /// store back.
    pub async fn stop(self) {
        if let Some(server) = self.server {
            server.stop().await;
        }
        self.keeper.stop().await;
        self.handle.stop().await;
        if let Err(error) = self.writer.await {
            tracing::error!(%error, "the last state changes were not written");
        }
        tracing::info!("the bootstrap peer has ended");
    }
}

/// Opens the folder, and says what was wrong with it.
fn open(config: &BootstrapConfig, pool: &WorkerPool, now: Now) -> Result<(Disk, Vec<String>), StartError> {
    let folder = StateFolder::new(&config.data_dir);
    if let Some(open) = &config.open {
        take_part(&folder, open, now.wall)?;
    }
    // Asked before the store is made, so that a mistyped folder stays as it is.
    folder.key()?;
    let opened = Store::open(&folder.store_file(), now.wall.0 / 1_000)?;
    let warnings = opened.moved_aside.as_deref().map(damaged);
    let disk = Disk {
        folder,
        store: opened.store,
        pool: pool.clone(),
    };
    Ok((disk, warnings.into_iter().collect()))
}

fn damaged(aside: &std::path::Path) -> String {
    let warning = format!(
        "the store was damaged and a new one was started: tickets, grants and revocations before it are not known here; the damaged file is {}",
        aside.display()
    );
    tracing::error!("{warning}");
    warning
}

/// An address as the machine carries it: who answers there is said elsewhere.
fn plain(at: &PeerAddress) -> Address {
    PeerAddress::new(at.socket).to_address()
}

/// Makes the folder that of a member of an open mesh, unless it is one.
fn take_part(folder: &StateFolder, open: &OpenMesh, now: UnixMillis) -> Result<(), StartError> {
    if open.mesh.is_empty() || open.mesh.len() > MESH_NAME_BYTES_MAX {
        return Err(StartError::MeshName);
    }
    if !folder.key_file().exists() {
        folder.init()?;
    }
    let wanted = MeshRoot::Open {
        name: open.mesh.clone(),
    };
    match folder.credential()? {
        Some(credential) if credential.root() == wanted => Ok(()),
        Some(credential) => Err(StateError::AlreadyMember(credential.root().name().to_owned()).into()),
        None => folder
            .join_open_mesh(&open.mesh, open.name.clone(), now)
            .map(drop)
            .map_err(Into::into),
    }
}

/// Puts together what the machine starts with, and makes sure that others will let it in.
fn fabric_config(disk: &Disk, config: &BootstrapConfig, now: Now) -> Result<FabricConfig, StartError> {
    let fabric = disk.folder.fabric_config(&disk.store, AGENT.to_owned())?;
    let (Some(root), Some(membership)) = (&fabric.root, &fabric.membership) else {
        return Err(StartError::NotAMember(disk.folder.path().to_owned()));
    };
    Membership::verify(&membership.to_bytes(), root, &fabric.key.peer_id(), now.wall)
        .map_err(StartError::Certificate)?;
    let limits = &config.limits;
    Ok(FabricConfig {
        bootstrap: true,
        degree_min: limits.degree_min,
        degree_max: limits.degree_max,
        connections_max: limits.connections_max,
        ..fabric
    })
}

fn limits(config: &BootstrapConfig) -> Limits {
    let BootstrapConfig { limits, .. } = config;
    Limits {
        connections_max: limits.connections_max.saturating_add(SPARE_CONNECTIONS),
        per_address_max: limits.per_address_max,
        bulk_per_peer_max: BULK_PER_PEER_MAX,
        join_per_second: limits.joins_per_second,
        join_burst: limits.joins_burst,
        ..Limits::default()
    }
}

/// Lists who is to be met, where, and whether a connection to one of them is always kept.
fn contacts(disk: &Disk, config: &BootstrapConfig) -> Result<Vec<(PeerId, Vec<Address>, bool)>, StateError> {
    let known = disk.folder.first_contacts(&disk.store)?;
    let named = config.bootstrap.iter().map(|contact| {
        (
            contact.peer,
            vec![PeerAddress::new(contact.socket).to_address()],
            true,
        )
    });
    Ok(known
        .into_iter()
        .map(|known| (known.peer, known.addresses, known.bootstrap))
        .chain(named)
        .collect())
}

/// Starts Kademlia and gossipsub in the role of a server: it stores records for the others and answers their queries.
fn discovery(fabric: &FabricConfig, runtime: &Runtime, clock: &Arc<dyn Clock>) -> Option<Discovery> {
    let root = fabric.root.clone()?;
    let (mesh, clock) = (root.id(), Arc::clone(clock));
    Some(Discovery::start(DiscoveryConfig {
        peer: fabric.key.peer_id(),
        mesh,
        server: true,
        check: Arc::new(move |signed| flood::content::check(signed, &root, clock.now().wall).is_ok()),
        runtime: runtime.clone(),
    }))
}
