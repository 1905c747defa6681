//! A peer as a long-running process: the node, its local API and its files, put together.
//!
//! The `hyperfabric up` command is a thin wrapper around this; what a process owns alone (signals, logging, the
//! runtime's flavour) stays there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_mesh::clock::{Clock, SystemClock};
use hyperfabric_mesh::state::{StateError, StateFolder};
use hyperfabric_mesh::wire::BindError;
use hyperfabric_mesh::{KernelWire, Limits, PeerAddress, Wire};
use hyperfabric_protocol::NodeId;
use hyperfabric_protocol::cert::{CertificateError, Membership};
use hyperfabric_protocol::fabric::Event;
use tokio::sync::watch;

use crate::api::{ApiServeError, ApiServer};
use crate::config::FabricConfig;
use crate::directory::duplicate_warning;
use crate::hardware;
use crate::node::{Environment, Node, NodeConfig, NodeControl, StartNodeError};
use crate::paths::{DataDir, DataDirLock, PathError};
use crate::storage::{DiskStorage, Storage};
use crate::store::{Store, StoreError, Table};
use crate::transfer::InboxPolicy;
use crate::workers::WorkerPool;

/// Where the chosen UDP port is kept.
const LISTEN_PORT: &[u8] = b"listen_port";
/// Where the chosen port of the API is kept.
const API_PORT: &[u8] = b"api_port";
/// How long the API may take to finish its requests when the daemon ends.
pub(crate) const API_DRAIN: Duration = Duration::from_secs(2);

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The peer's state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The UDP port cannot be had.
    #[error("cannot listen on {address}: stop what uses the port, or choose another with --listen")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: BindError,
    },
    /// The peer is in no mesh.
    #[error("this peer is in no mesh: `hyperfabric mesh create` makes one, `hyperfabric join` joins one")]
    NoMesh,
    /// The certificate cannot be used any more, or not yet.
    #[error(
        "this peer cannot take part in its mesh: its {0}; ask for a new ticket, and join with another --data-dir"
    )]
    Membership(CertificateError),
    /// A bootstrap address cannot be used.
    #[error("the bootstrap address {0} cannot be used")]
    Bootstrap(String, #[source] hyperfabric_mesh::address::AddressError),
    /// The inbox's folder cannot be opened.
    #[error("cannot open the data folder")]
    Storage(#[source] std::io::Error),
    /// The worker threads cannot be started.
    #[error("cannot start the worker threads")]
    Workers(#[source] std::io::Error),
    /// The node does not start.
    #[error(transparent)]
    Node(#[from] StartNodeError),
    /// The API does not start.
    #[error(transparent)]
    Api(#[from] ApiServeError),
}

/// What a daemon says once it serves.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Who it is.
    pub peer_id: hyperfabric_protocol::PeerId,
    /// The name of its own node.
    pub name: NodeId,
    /// Where other peers reach it.
    pub listen: Vec<String>,
    /// Where its API is.
    pub api: String,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    node: Node,
    ready: Ready,
    stopping: watch::Sender<bool>,
    api: tokio::task::JoinHandle<()>,
    _lock: DataDirLock,
}

/// Opens the store of a data folder; a damaged one is moved aside, which is returned as a warning.
///
/// # Errors
/// [`StoreError`].
pub fn open_store(folder: &StateFolder) -> Result<(Store, Vec<String>), StoreError> {
    let now = SystemClock::default().now().wall.0 / 1000;
    let opened = Store::open(&folder.store_file(), now)?;
    let mut warnings = Vec::new();
    if let Some(path) = opened.moved_aside {
        let text = format!(
            "the store was damaged and moved to {}: tickets, revocations and transfers in it are not known any more",
            path.display()
        );
        tracing::warn!("{text}");
        warnings.push(text);
    }
    Ok((opened.store, warnings))
}

/// Returns the UDP port that the peer has used before, or picks a free one and keeps it.
///
/// # Errors
/// When the store fails or no port is free.
pub fn listen_port(store: &Store, ip: std::net::IpAddr) -> Result<u16, DaemonError> {
    if let Some(port) = kept_port(store, LISTEN_PORT)? {
        return Ok(port);
    }
    let address = SocketAddr::new(ip, 0);
    let free = std::net::UdpSocket::bind(address).and_then(|socket| socket.local_addr());
    let port = free.map_err(DaemonError::Storage)?.port();
    store.put(Table::Settings, LISTEN_PORT, &port.to_be_bytes())?;
    Ok(port)
}

fn kept_port(store: &Store, key: &[u8]) -> Result<Option<u16>, StoreError> {
    let bytes = store.get(Table::Settings, key)?;
    Ok(bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_be_bytes))
}

fn bind_wire(store: &Store, asked: SocketAddr) -> Result<KernelWire, DaemonError> {
    let kept = kept_port(store, LISTEN_PORT)?;
    let port = match asked.port() {
        0 => kept.unwrap_or(0),
        port => port,
    };
    let address = SocketAddr::new(asked.ip(), port);
    let bind = |address| KernelWire::bind(address).map_err(|source| DaemonError::Bind { address, source });
    let wire = bind(address)?;
    // A port that was asked for is kept too: other peers have written it down, and tickets name it.
    if let Ok(bound) = wire.local_addr()
        && kept != Some(bound.port())
    {
        store.put(Table::Settings, LISTEN_PORT, &bound.port().to_be_bytes())?;
    }
    Ok(wire)
}

fn inbox_policy(config: &FabricConfig) -> InboxPolicy {
    InboxPolicy {
        accept: config.inbox.accept.clone(),
        quota_bytes: config.inbox.quota_bytes,
        min_free_bytes: config.inbox.min_free_bytes,
        abandoned_after: Duration::from_secs(config.inbox.abandoned_after_seconds),
    }
}

fn limits(config: &FabricConfig) -> Limits {
    Limits {
        connections_max: config.limits.connections as usize,
        per_address_max: config.limits.connections_per_address as usize,
        ..Limits::default()
    }
}

/// What the node of a data folder starts from.
pub(crate) struct Prepared {
    pub(crate) config: NodeConfig,
    pub(crate) environment: Environment,
    pub(crate) warnings: Vec<String>,
    pub(crate) lock: DataDirLock,
}

/// Opens a data folder and its port, on the current runtime.
pub(crate) fn prepare(data_dir: &DataDir, config: &FabricConfig) -> Result<Prepared, DaemonError> {
    let folder = StateFolder::new(data_dir.path());
    folder.key()?;
    let lock = data_dir.lock()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    if folder.credential()?.is_none() {
        let mesh = config.mesh.as_deref().ok_or(DaemonError::NoMesh)?;
        let name = config.node_name.clone().unwrap_or_else(hardware::host_name);
        folder.join_open_mesh(mesh, name, clock.now().wall)?;
    }
    if let Some(credential) = folder.credential()? {
        let (bytes, peer) = (credential.0.membership.to_bytes(), folder.key()?.peer_id());
        Membership::verify(&bytes, &credential.root(), &peer, clock.now().wall)
            .map_err(DaemonError::Membership)?;
    }
    let (store, warnings) = open_store(&folder)?;
    let wire = bind_wire(&store, config.listen)?;
    let mut bootstrap = Vec::new();
    for address in &config.bootstrap {
        let parsed: Result<PeerAddress, _> = address.as_str().parse();
        bootstrap.push(parsed.map_err(|error| DaemonError::Bootstrap(address.to_string(), error))?);
    }
    let storage = DiskStorage::open(data_dir.path()).map_err(DaemonError::Storage)?;
    let environment = Environment {
        runtime: tokio::runtime::Handle::current(),
        pool: WorkerPool::with_available_cores().map_err(DaemonError::Workers)?,
        clock,
        wire: Arc::new(wire) as Arc<dyn Wire>,
        store,
        storage: Arc::new(storage) as Arc<dyn Storage>,
    };
    let config = NodeConfig {
        folder,
        bootstrap,
        announce: Vec::new(),
        mtu_max: config.transport.mtu_max,
        inbox: inbox_policy(config),
        limits: limits(config),
        transfers_max: config.limits.transfers as usize,
    };
    Ok(Prepared {
        config,
        environment,
        warnings,
        lock,
    })
}

impl Daemon {
    /// Starts a daemon on the current runtime.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub async fn start(data_dir: &DataDir, config: &FabricConfig) -> Result<Self, DaemonError> {
        let Prepared {
            config: node_config,
            environment,
            warnings,
            lock,
        } = prepare(data_dir, config)?;
        let store = environment.store.clone();
        let node = Node::start(node_config, environment).await?;
        let name = node.name().await.ok_or(DaemonError::NoMesh)?;
        register_host(&node, &name).await;
        let (stopping, stopped) = watch::channel(false);
        let server = bind_api(data_dir, config, &store).await?;
        let ready = Ready {
            peer_id: node.peer_id(),
            name: name.clone(),
            listen: node.listen_addresses().unwrap_or_default(),
            api: format!("http://{}", server.address()),
        };
        let control = NodeControl::new(node.clone(), name, stopping.clone(), warnings);
        let api = tokio::spawn(server.serve(Arc::new(control), stopped));
        tokio::spawn(log_events(node.events()));
        Ok(Self {
            node,
            ready,
            stopping,
            api,
            _lock: lock,
        })
    }

    /// Returns what the daemon says once it serves.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Returns the node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Waits until the API is asked to end the process.
    pub async fn asked_to_stop(&self) {
        let mut stopping = self.stopping.subscribe();
        // An error cannot be: the sender is here.
        let _ = stopping.wait_for(|stop| *stop).await;
    }

    /// Ends the daemon: requests are finished, transfers suspended where they are, connections closed.
    pub async fn stop(self) {
        self.stopping.send_replace(true);
        if tokio::time::timeout(API_DRAIN, self.api).await.is_err() {
            tracing::info!("requests that were still running are abandoned");
        }
        self.node.stop().await;
    }
}

async fn bind_api(
    data_dir: &DataDir,
    config: &FabricConfig,
    store: &Store,
) -> Result<ApiServer, DaemonError> {
    let mut config = config.clone();
    let chosen = config.api_listen.port() != 0;
    if !chosen && let Some(port) = kept_port(store, API_PORT)? {
        let mut kept = config.clone();
        kept.api_listen.set_port(port);
        match ApiServer::bind(data_dir, &kept).await {
            Ok(server) => return Ok(server),
            // Nobody dials the API by a number that they remember: the file says where it is.
            Err(error) => tracing::info!(%error, "the API moves to another port"),
        }
        config.api_listen.set_port(0);
    }
    let server = ApiServer::bind(data_dir, &config).await?;
    if !chosen {
        store.put(Table::Settings, API_PORT, &server.address().port().to_be_bytes())?;
    }
    Ok(server)
}

/// Registers the host and its devices.
async fn register_host(node: &Node, name: &NodeId) {
    for found in hardware::detect_in(std::path::Path::new("/"), name) {
        if !hardware::validate_hardware_compatibility(&found) {
            tracing::warn!(node = %found.node_id, "a detected device does not fit the fabric's limits and is left out");
            continue;
        }
        let id = found.node_id.clone();
        if let Err(Some(error)) = node.register(found).await {
            tracing::warn!(node = %id, %error, "cannot register a node of this host");
        }
    }
}

/// Puts what the owner should know into the log.
async fn log_events(mut events: hyperfabric_mesh::Events) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(Event::PeerUp { peer, restarted, .. }) => tracing::info!(%peer, restarted, "connected"),
            Ok(Event::PeerDown { peer }) => tracing::info!(%peer, "disconnected"),
            Ok(Event::Admitted { peer, name }) => tracing::info!(%peer, %name, "admitted a member"),
            Ok(Event::RefusedJoin { peer, refusal }) => tracing::warn!(%peer, %refusal, "refused a ticket"),
            Ok(Event::Revoked {
                name, local: true, ..
            }) => {
                tracing::warn!(%name, "this peer's membership was revoked");
            }
            Ok(Event::Revoked {
                peer,
                name,
                local: false,
                ..
            }) => tracing::info!(%peer, %name, "a member was revoked"),
            Ok(Event::DuplicateNode { node_id, holder }) => {
                let error = hyperfabric_protocol::error::DuplicateNodeError { node_id, holder };
                tracing::warn!("{}", duplicate_warning(&error));
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
