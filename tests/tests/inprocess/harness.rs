//! A laboratory in one process: a runtime, a worker pool, and peers that are admitted without a network.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hyperfabric_mesh::clock::{Clock, SystemClock};
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::wire::{Impaired, Impairment, ImpairmentHandle};
use hyperfabric_mesh::{KernelWire, Limits, PeerAddress, Wire};
use hyperfabric_node::node::{Environment, NewTransfer, NodeConfig};
use hyperfabric_node::storage::{DiskStorage, Storage};
use hyperfabric_node::store::Store;
use hyperfabric_node::transfer::InboxPolicy;
use hyperfabric_node::workers::WorkerPool;
use hyperfabric_node::{
    DataType, HardwareType, Node, NodeId, NodeSignature, PacketPriority, PeerId, TransferId,
};
use hyperfabric_protocol::Fabric;
use hyperfabric_protocol::fabric::{Event, Input, Job, JobResult};
use hyperfabric_protocol::ticket::Credential;
use hyperfabric_protocol::transfer::TransferEvent;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// How long anything may take; long, because the machine may be busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Errors logged by anybody in this process.
static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Tests take turns.
static TURN: Mutex<()> = Mutex::new(());

struct CollectErrors;

struct Message(String);

impl tracing::field::Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

impl<S: tracing::Subscriber> Layer<S> for CollectErrors {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::ERROR {
            let mut message = Message(format!("{}: ", event.metadata().target()));
            event.record(&mut message);
            lock(&ERRORS).push(message.0);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that failed does not fail the others.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the peers of a test share.
pub(crate) struct Lab {
    pub(crate) pool: WorkerPool,
    pub(crate) clock: Arc<dyn Clock>,
    place: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// Runs a test in a laboratory of its own.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Lab>) -> F) {
    static SUBSCRIBER: OnceLock<()> = OnceLock::new();
    SUBSCRIBER.get_or_init(|| {
        let filter = tracing_subscriber::EnvFilter::try_from_env("HYPERFABRIC_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
        let printed = tracing_subscriber::fmt::layer()
            .with_test_writer()
            .with_filter(filter);
        tracing::subscriber::set_global_default(
            tracing_subscriber::registry().with(CollectErrors).with(printed),
        )
        .unwrap();
    });
    let turn = lock(&TURN);
    lock(&ERRORS).clear();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let lab = Lab {
            pool: WorkerPool::with_available_cores().unwrap(),
            clock: Arc::new(SystemClock::default()),
            place: tempfile::tempdir().unwrap(),
            _turn: turn,
        };
        test(Rc::new(lab)).await;
    });
    drop(runtime);
    let errors = std::mem::take(&mut *lock(&ERRORS));
    assert!(errors.is_empty(), "logged as errors: {errors:#?}");
}

/// A peer that does not run: its folder and its store.
#[derive(Clone)]
pub(crate) struct Seed {
    pub(crate) name: NodeId,
    pub(crate) folder: StateFolder,
    pub(crate) store: Store,
}

/// A peer that runs.
pub(crate) struct Peer {
    pub(crate) seed: Seed,
    pub(crate) node: Node,
    /// The conditions of what it sends.
    pub(crate) network: ImpairmentHandle,
}

pub(crate) fn id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

pub(crate) fn host(name: &NodeId) -> NodeSignature {
    NodeSignature::new(name.clone(), HardwareType::CpuServer, 10.0, 1000).unwrap()
}

impl Lab {
    /// Makes a folder with a key.
    pub(crate) fn seed(&self, name: &str) -> Seed {
        let folder = StateFolder::new(self.place.path().join(name));
        folder.init().unwrap();
        Seed {
            name: id(name),
            folder,
            store: Store::in_memory().unwrap(),
        }
    }

    /// Makes a mesh and its first admitter.
    pub(crate) fn found(&self, name: &str) -> Seed {
        let seed = self.seed(name);
        let wall = self.clock.now().wall;
        seed.folder.create_mesh("lab", seed.name.clone(), wall).unwrap();
        seed
    }

    /// Admits peers by certificates that `founder` signs while it does not run.
    pub(crate) fn admit(&self, founder: &Seed, names: &[String]) -> Vec<Seed> {
        let now = self.clock.now();
        let config = founder.folder.fabric_config(&founder.store, String::new());
        let mut fabric = Fabric::new(now, config.unwrap());
        let root = fabric.admission().root().unwrap().clone();
        let admitted = names.iter().map(|name| {
            let seed = self.seed(name);
            let peer = seed.folder.key().unwrap().peer_id();
            let (membership, _) = fabric.admit(now, peer, seed.name.clone()).unwrap();
            while let Some(job) = fabric.poll_job() {
                let Job::Persist(persist) = job else { continue };
                founder.folder.persist(&founder.store, &persist.changes).unwrap();
                let done = JobResult::Persisted {
                    id: persist.id,
                    ok: true,
                };
                fabric.handle_input(now, Input::JobDone(done));
            }
            let credential = Credential::new(&root, membership, None);
            seed.folder.set_credential(&credential).unwrap();
            seed
        });
        admitted.collect()
    }

    /// Puts together what a peer runs on, with a wire of its own.
    pub(crate) fn parts(
        &self,
        seed: &Seed,
        contacts: &[PeerAddress],
        impairment: Impairment,
    ) -> (NodeConfig, Environment, ImpairmentHandle) {
        let kernel = KernelWire::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let wire_seed = u64::from_be_bytes(seed.folder.key().unwrap().peer_id().0[..8].try_into().unwrap());
        let impaired = Impaired::new(Arc::new(kernel), impairment, wire_seed, &runtime);
        let environment = Environment {
            runtime,
            pool: self.pool.clone(),
            clock: Arc::clone(&self.clock),
            wire: impaired.wire as Arc<dyn Wire>,
            store: seed.store.clone(),
            storage: Arc::new(DiskStorage::open(seed.folder.path()).unwrap()) as Arc<dyn Storage>,
        };
        let config = NodeConfig {
            transfers_max: 64,
            folder: seed.folder.clone(),
            bootstrap: contacts.to_vec(),
            announce: Vec::new(),
            mtu_max: 1452,
            inbox: InboxPolicy {
                min_free_bytes: 0,
                ..InboxPolicy::default()
            },
            limits: Limits::default(),
        };
        (config, environment, impaired.handle)
    }

    /// Starts a peer, without registering a node.
    pub(crate) async fn start(&self, seed: &Seed, contacts: &[PeerAddress], impairment: Impairment) -> Peer {
        let (config, environment, network) = self.parts(seed, contacts, impairment);
        Peer {
            seed: seed.clone(),
            node: Node::start(config, environment).await.unwrap(),
            network,
        }
    }

    /// Starts a peer that hosts a node of its name.
    pub(crate) async fn host(&self, seed: &Seed, contacts: &[PeerAddress], impairment: Impairment) -> Peer {
        let peer = self.start(seed, contacts, impairment).await;
        peer.node.register(host(&seed.name)).await.unwrap();
        peer
    }

    /// Writes a file of `bytes` bytes that look random and returns where it lies, and its digest.
    pub(crate) fn file(&self, name: &str, bytes: usize) -> (PathBuf, blake3::Hash) {
        let mut content = vec![0; bytes];
        blake3::Hasher::new()
            .update(name.as_bytes())
            .finalize_xof()
            .fill(&mut content);
        let path = self.place.path().join(name);
        std::fs::write(&path, &content).unwrap();
        (path, blake3::hash(&content))
    }
}

impl Peer {
    pub(crate) fn id(&self) -> PeerId {
        self.node.peer_id()
    }

    /// Returns where it listens, for others to meet it.
    pub(crate) fn address(&self) -> PeerAddress {
        PeerAddress {
            socket: self.node.handle().endpoint().local_address(),
            peer: Some(self.id()),
        }
    }

    /// Returns the names of the nodes that it knows, sorted.
    pub(crate) async fn knows(&self) -> Vec<String> {
        let nodes = self.node.handle().act(|fabric, _| {
            let names = fabric.directory().records().flat_map(|r| &r.body.nodes.0);
            names.map(|node| node.node_id.to_string()).collect::<Vec<_>>()
        });
        let mut nodes = nodes.await.unwrap();
        nodes.sort();
        nodes
    }

    pub(crate) async fn is_connected_to(&self, other: PeerId) -> bool {
        let connected = self
            .node
            .handle()
            .act(move |fabric, _| fabric.connection(&other).is_some());
        connected.await.unwrap()
    }

    /// Begins to send a file.
    pub(crate) async fn send(&self, path: &Path, to: &NodeId) -> TransferId {
        let new = NewTransfer {
            file: std::fs::File::open(path).unwrap().into(),
            path: Some(path.to_owned()),
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
            to: to.clone(),
            data_type: DataType::Generic,
            priority: PacketPriority::Medium,
            timeout: None,
            wait: PATIENCE,
            sync: false,
        };
        self.node.send(new).await.unwrap()
    }
}

/// Waits until `condition` holds; fails after `limit`, saying what was waited for.
pub(crate) async fn eventually(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let mut look = tokio::time::interval(POLL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let held = tokio::time::timeout(limit, async {
        while !condition().await {
            look.tick().await;
        }
    });
    assert!(held.await.is_ok(), "waited {limit:?} for {what}");
}

/// Waits for what should come.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Waits for an event that `wanted` turns into something.
pub(crate) async fn next<T>(
    events: &mut Receiver<Event>,
    what: &str,
    mut wanted: impl FnMut(Event) -> Option<T>,
) -> T {
    let wait = async {
        loop {
            match events.recv().await {
                Ok(event) => {
                    if let Some(found) = wanted(event) {
                        return found;
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => panic!("the node has ended before {what}"),
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("waited for {what}"))
}

/// Waits for the end of a transfer.
pub(crate) async fn ended(
    events: &mut Receiver<Event>,
    transfer: TransferId,
) -> Result<[u8; 32], hyperfabric_protocol::transfer::Fault> {
    next(events, "the end of a transfer", |event| match event {
        Event::Transfer(TransferEvent::Ended { of, result }) if of.transfer == transfer => {
            Some(result.map(|ended| ended.root).map_err(|error| error.fault))
        }
        _ => None,
    })
    .await
}
