//! A laboratory in one process: a runtime on one thread, on it peers that are made of what the simulator's are made of
//! ([`hyperfabric_sim::real::testbed`]), and a look at what was logged.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::wire::{Impairment, ImpairmentHandle};
use hyperfabric_mesh::{Events, PeerAddress, Wire};
use hyperfabric_node::node::{Environment, NewTransfer, NodeConfig, StartError};
use hyperfabric_node::storage::{DiskStorage, Storage};
use hyperfabric_node::store::Store;
use hyperfabric_node::{DataType, Node, NodeId, NodeSignature, PacketPriority, PeerId, TransferId};
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::transfer::TransferEvent;
use hyperfabric_sim::real::testbed::{Testbed, node_config, signature, wire_seed};
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
    pub(crate) bed: Testbed,
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
            bed: Testbed::new().unwrap(),
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
    signature(name)
}

impl Lab {
    /// Makes a folder with a key.
    pub(crate) fn seed(&self, name: &str) -> Seed {
        Seed {
            name: id(name),
            folder: self.bed.folder(&id(name)).unwrap(),
            store: Store::in_memory().unwrap(),
        }
    }

    /// Makes a mesh and its first admitter.
    pub(crate) fn found(&self, name: &str) -> Seed {
        Seed {
            name: id(name),
            folder: self.bed.found("lab", &id(name)).unwrap().0,
            store: Store::in_memory().unwrap(),
        }
    }

    /// Admits peers by certificates that `founder` signs while it does not run.
    pub(crate) fn admit(&self, founder: &Seed, names: &[String]) -> Vec<Seed> {
        let founder = self.bed.founder(&founder.folder).unwrap();
        let admitted = names.iter().map(|name| {
            let seed = self.seed(name);
            founder.admit(&seed.folder, &seed.name).unwrap();
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
        let random = wire_seed(&seed.folder.key().unwrap().peer_id());
        let impaired = self.bed.wire(impairment, random).unwrap();
        let storage = Arc::new(DiskStorage::open(seed.folder.path()).unwrap()) as Arc<dyn Storage>;
        let wire = impaired.wire as Arc<dyn Wire>;
        let environment = self.bed.environment(wire, seed.store.clone(), storage);
        let config = node_config(seed.folder.clone(), contacts.to_vec());
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
        self.bed.file(name, 0, bytes).unwrap()
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
        self.try_send(path, to).await.unwrap()
    }

    pub(crate) async fn try_send(&self, path: &Path, to: &NodeId) -> Result<TransferId, StartError> {
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
        self.node.send(new).await
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
    events: &mut Events,
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
    events: &mut Events,
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
