//! The library's front door: one object that runs a peer, registers its nodes and exchanges data with others.
//!
//! It has the names, options and defaults of the product's API reference and adds nothing to [`Node`] but their
//! meaning: checks before sending, bounds on memory, and trying again. Options that this version does not implement
//! are refused when they are switched on. Files are sent with [`Node::send`], which survives restarts; data in memory
//! does not, and has its answer as its receipt.

mod data;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hyperfabric_protocol::NodeId;
use hyperfabric_protocol::error::{
    BufferOverflowError, HyperFabricError, InvalidNodeError, NodeError, UnsupportedOptionError,
};
use hyperfabric_protocol::fabric::RegisterError;
use hyperfabric_protocol::types::{DEFAULT_BUFFER_SIZE, NodeSignature};
use tokio::sync::Semaphore;

pub use data::{ATTEMPTS_MAX, SendOptions};

use crate::config::{ConfigError, FabricConfig};
use crate::daemon::{self, DaemonError};
use crate::hardware;
use crate::node::{DATA_BYTES_MAX, DataHandler, Environment, Node, NodeConfig, StartNodeError, lock};
use crate::paths::{DataDir, DataDirLock};

/// How the protocol behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HyperFabricOptions {
    /// Learn routes from measurements. Not implemented in this version: refused when on.
    pub enable_ml_routing: bool,
    /// Plan around the physics of quantum processors. Not implemented in this version: refused when on.
    pub enable_quantum_optimization: bool,
    /// Try a request again when its connection is lost. Its handler may then see it twice.
    pub enable_fault_tolerance: bool,
    /// The round trip that requests may take at most, in nanoseconds, unless they say otherwise.
    pub default_latency_constraint_ns: Option<u64>,
    /// How many packets of requests may be in flight; further requests wait.
    pub buffer_pool_size: usize,
    /// Size of a packet, in bytes. A request that fits in one travels beside control frames, a larger one on a
    /// connection of its own.
    pub max_packet_size: usize,
}

impl Default for HyperFabricOptions {
    fn default() -> Self {
        Self {
            enable_ml_routing: false,
            enable_quantum_optimization: false,
            enable_fault_tolerance: true,
            default_latency_constraint_ns: None,
            buffer_pool_size: 1000,
            max_packet_size: DEFAULT_BUFFER_SIZE,
        }
    }
}

impl HyperFabricOptions {
    fn check(&self) -> Result<(), HyperFabricError> {
        for (on, option) in [
            (self.enable_ml_routing, "enable_ml_routing"),
            (self.enable_quantum_optimization, "enable_quantum_optimization"),
        ] {
            if on {
                return Err(UnsupportedOptionError { option }.into());
            }
        }
        Ok(())
    }

    /// The packets that data of `bytes` takes, at least one.
    ///
    /// # Errors
    /// [`BufferOverflowError`] when the pool never has so many.
    fn packets(&self, bytes: usize) -> Result<u32, BufferOverflowError> {
        let capacity_bytes = self
            .buffer_pool_size
            .saturating_mul(self.max_packet_size)
            .min(DATA_BYTES_MAX);
        let packets = bytes.div_ceil(self.max_packet_size.max(1)).max(1);
        match u32::try_from(packets) {
            Ok(count) if bytes <= capacity_bytes && packets <= self.pool() => Ok(count),
            Ok(_) | Err(_) => Err(BufferOverflowError {
                bytes,
                capacity_bytes,
            }),
        }
    }

    fn pool(&self) -> usize {
        self.buffer_pool_size.min(Semaphore::MAX_PERMITS)
    }
}

/// Why the background services do not start.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// The configuration in the data folder cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder, the port or the mesh cannot be used.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The node does not start.
    #[error(transparent)]
    Node(#[from] StartNodeError),
}

/// Where a node comes from at each start.
enum Origin {
    Folder(DataDir),
    Parts(Box<(NodeConfig, Environment)>),
}

/// The node while it runs.
struct Running {
    node: Node,
    _lock: Option<DataDirLock>,
}

struct Shared {
    options: HyperFabricOptions,
    origin: Origin,
    running: RwLock<Option<Running>>,
    /// Starting and stopping take turns.
    turn: tokio::sync::Mutex<()>,
    /// What is registered, for the next start; the fabric bounds how many there are.
    nodes: Mutex<BTreeMap<NodeId, NodeSignature>>,
    /// Who answers, for the next start; as many as the caller sets.
    handlers: Mutex<HashMap<NodeId, DataHandler>>,
    room: Semaphore,
}

/// The main orchestrator: a peer of the fabric with its nodes. Clones share it.
///
/// ```no_run
/// use bytes::Bytes;
/// use hyperfabric_node::{HardwareType, HyperFabricOptions, HyperFabricProtocol, NodeId, NodeSignature, SendOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// // A folder that `hyperfabric init` and `hyperfabric join` have made.
/// let fabric = HyperFabricProtocol::open("/var/lib/hyperfabric", HyperFabricOptions::default())?;
/// fabric.start_background_services().await?;
///
/// let here = NodeId::new("trainer")?;
/// fabric.register_node(NodeSignature::new(here.clone(), HardwareType::NvidiaH100, 400.0, 100)?).await?;
/// fabric.on_data(here.clone(), |request| async move { Ok(request.data) });
///
/// let answer = fabric
///     .send_data(&here, &NodeId::new("storage")?, Bytes::from_static(b"weights"), SendOptions::default())
///     .await?;
/// println!("storage answered {} bytes", answer.len());
/// fabric.stop_background_services().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HyperFabricProtocol(Arc<Shared>);

impl std::fmt::Debug for HyperFabricProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HyperFabricProtocol")
            .field("options", &self.0.options)
            .field("running", &self.node().is_ok())
            .finish()
    }
}

impl HyperFabricProtocol {
    /// Makes the protocol over a node that starts from `config` in `environment`.
    ///
    /// # Errors
    /// [`UnsupportedOptionError`] when an option without an implementation is on.
    pub fn new(
        options: HyperFabricOptions,
        config: NodeConfig,
        environment: Environment,
    ) -> Result<Self, HyperFabricError> {
        Self::with_origin(options, Origin::Parts(Box::new((config, environment))))
    }

    /// Makes the protocol over the peer whose data folder is `data_dir`, with the configuration in it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn open(
        data_dir: impl Into<std::path::PathBuf>,
        options: HyperFabricOptions,
    ) -> Result<Self, HyperFabricError> {
        Self::with_origin(options, Origin::Folder(DataDir::at(data_dir)))
    }

    fn with_origin(options: HyperFabricOptions, origin: Origin) -> Result<Self, HyperFabricError> {
        options.check()?;
        Ok(Self(Arc::new(Shared {
            room: Semaphore::new(options.pool()),
            options,
            origin,
            running: RwLock::default(),
            turn: tokio::sync::Mutex::default(),
            nodes: Mutex::default(),
            handlers: Mutex::default(),
        })))
    }

    /// Returns how the protocol behaves.
    #[must_use]
    pub fn options(&self) -> &HyperFabricOptions {
        &self.0.options
    }

    /// Starts the peer: it meets others, keeps the topology, notices faults, and takes transfers and requests. Nodes
    /// and handlers of an earlier start are there again. Does nothing when it runs.
    ///
    /// # Errors
    /// [`ServicesError`].
    pub async fn start_background_services(&self) -> Result<(), ServicesError> {
        let _turn = self.0.turn.lock().await;
        if self.node().is_ok() {
            return Ok(());
        }
        let (config, environment, lock_held) = match &self.0.origin {
            Origin::Folder(data_dir) => {
                let config = FabricConfig::of(data_dir)?;
                let prepared = daemon::prepare(data_dir, &config)?;
                (prepared.config, prepared.environment, Some(prepared.lock))
            }
            Origin::Parts(parts) => (parts.0.clone(), parts.1.clone(), None),
        };
        let node = Node::start(config, environment).await?;
        for (id, handler) in lock(&self.0.handlers).iter() {
            node.on_data(id.clone(), Arc::clone(handler));
        }
        let registered: Vec<NodeSignature> = lock(&self.0.nodes).values().cloned().collect();
        for signature in registered {
            let id = signature.node_id.clone();
            if let Err(Some(error)) = node.register(signature).await {
                tracing::warn!(node = %id, %error, "cannot register a node again");
                lock(&self.0.nodes).remove(&id);
            }
        }
        let running = Running {
            node,
            _lock: lock_held,
        };
        *self.0.running.write().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Ok(())
    }

    /// Stops the peer: transfers are suspended where they are, connections closed, the port freed. Does nothing when
    /// it does not run.
    pub async fn stop_background_services(&self) {
        let _turn = self.0.turn.lock().await;
        let running = self
            .0
            .running
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(running) = running {
            running.node.stop().await;
        }
    }

    /// Returns the running node, for what goes beyond this interface: files, events, addresses.
    ///
    /// # Errors
    /// [`HyperFabricError::NotRunning`].
    pub fn node(&self) -> Result<Node, HyperFabricError> {
        let running = self.0.running.read().unwrap_or_else(PoisonError::into_inner);
        running
            .as_ref()
            .map(|running| running.node.clone())
            .ok_or(HyperFabricError::NotRunning)
    }

    /// Registers a node of this peer. Returns true for a new one, false when this peer had it already and its
    /// specification was replaced.
    ///
    /// # Errors
    /// `DuplicateNodeError` when another peer has it, `InvalidNodeError` when the specification is refused or lies
    /// outside the name of this peer's certificate, [`HyperFabricError::NotAMember`], and
    /// [`HyperFabricError::NotRunning`].
    pub async fn register_node(&self, signature: NodeSignature) -> Result<bool, HyperFabricError> {
        let node = self.node()?;
        let node_id = signature.node_id.clone();
        let invalid = |error: InvalidNodeError| HyperFabricError::Node(NodeError::Invalid(error));
        signature.validate().map_err(|reason| {
            invalid(InvalidNodeError::Field {
                node_id: node_id.clone(),
                reason,
            })
        })?;
        if !hardware::validate_hardware_compatibility(&signature) {
            return Err(invalid(InvalidNodeError::Incompatible { node_id }));
        }
        let kept = signature.clone();
        let registered = node
            .handle()
            .act(move |fabric, now| {
                let known = fabric.own_nodes().iter().any(|n| n.node_id == signature.node_id);
                fabric.register(now, signature).map(|()| !known)
            })
            .await
            .map_err(|_| HyperFabricError::NotRunning)?;
        match registered {
            Ok(new) => {
                lock(&self.0.nodes).insert(node_id, kept);
                Ok(new)
            }
            Err(RegisterError::Duplicate(error)) => Err(NodeError::Duplicate(error).into()),
            Err(RegisterError::Invalid(error)) => Err(invalid(error)),
            Err(RegisterError::NotAMember) => Err(HyperFabricError::NotAMember),
        }
    }
}

#[cfg(test)]
mod tests;
