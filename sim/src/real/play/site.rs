//! One peer of a scenario over all its lives: its folder, disk, wire and clocks stay, and processes come and go.
//!
//! A process that dies takes with it what its disk had not synced ([`LossyStorage`]), and says goodbye to nobody: its
//! wire is cut first.

use std::future::poll_fn;
use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;

use hyperfabric_mesh::clock::Clock;
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::wire::{DATAGRAM_BYTES_MAX, Impaired, Received};
use hyperfabric_mesh::{PeerAddress, Wire};
use hyperfabric_node::node::{Environment, StartNodeError};
use hyperfabric_node::storage::{LossyStorage, Storage};
use hyperfabric_node::store::Store;
use hyperfabric_node::workers::Lag;
use hyperfabric_node::{Node, NodeId};
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::transfer::{Role, TransferEvent};
use hyperfabric_protocol::{Now, PeerId, UnixMillis};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::real::lab::answer;
use crate::real::testbed::{LabError, Testbed, node_config, signature};

/// A clock whose wall time is wrong by as much as a scenario says.
#[derive(Clone)]
pub(super) struct WrongClock {
    right: Arc<dyn Clock>,
    ahead_ms: Arc<AtomicI64>,
}

impl WrongClock {
    fn new(right: Arc<dyn Clock>) -> Self {
        Self {
            right,
            ahead_ms: Arc::default(),
        }
    }

    pub(super) fn set(&self, ahead_ms: i64) {
        self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }
}

impl Clock for WrongClock {
    fn now(&self) -> Now {
        let now = self.right.now();
        let wall = now
            .wall
            .0
            .saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed));
        Now {
            wall: UnixMillis(wall),
            ..now
        }
    }
}

/// What a peer has said.
pub(super) struct Heard {
    pub(super) at: Instant,
    pub(super) place: usize,
    pub(super) event: Event,
}

/// A process.
struct Life {
    node: Node,
    store: Store,
    listener: JoinHandle<()>,
}

/// Why a process does not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartFailed {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Node(#[from] Box<StartNodeError>),
    #[error("it has ended at once")]
    Ended,
}

/// See the module.
pub(super) struct Site {
    pub(super) name: NodeId,
    pub(super) folder: StateFolder,
    pub(super) id: PeerId,
    /// Whom it is told of whenever it starts.
    pub(super) contacts: Vec<PeerAddress>,
    pub(super) lag: Lag,
    pub(super) clock: WrongClock,
    pub(super) wire: Impaired,
    disk: LossyStorage,
    life: Option<Life>,
    /// The end of the last process, which may still hold the wire.
    ending: Option<JoinHandle<()>>,
}

impl Site {
    pub(super) fn new(bed: &Testbed, name: NodeId, folder: StateFolder, seed: u64) -> Result<Self, LabError> {
        Ok(Self {
            name,
            id: folder.key()?.peer_id(),
            folder,
            contacts: Vec::new(),
            lag: Lag::default(),
            clock: WrongClock::new(Arc::clone(&bed.clock)),
            wire: bed.wire(hyperfabric_mesh::wire::Impairment::default(), seed)?,
            disk: LossyStorage::new(),
            life: None,
            ending: None,
        })
    }

    pub(super) fn address(&self) -> Result<PeerAddress, LabError> {
        Ok(PeerAddress {
            socket: self.wire.wire.local_addr().map_err(LabError::Folder)?,
            peer: Some(self.id),
        })
    }

    pub(super) fn node(&self) -> Option<&Node> {
        self.life.as_ref().map(|life| &life.node)
    }

    pub(super) fn store(&self) -> Option<&Store> {
        self.life.as_ref().map(|life| &life.store)
    }

    pub(super) fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.disk.clone())
    }

    /// Waits until the last process has given back the wire, and starts one that is in no mesh yet or hosts no node.
    pub(super) async fn start_bare(
        &mut self,
        bed: &Testbed,
        place: usize,
        tell: &mpsc::Sender<Heard>,
    ) -> Result<Node, StartFailed> {
        self.settle().await;
        empty(&*self.wire.wire).await;
        let journal = self.disk.clone();
        let store = Store::with_backend(move || Ok(journal.journal())).map_err(LabError::Store)?;
        let wire = Arc::clone(&self.wire.wire) as Arc<dyn Wire>;
        let environment = Environment {
            pool: bed.pool.lagging(self.lag.clone()),
            clock: Arc::new(self.clock.clone()),
            ..bed.environment(wire, store.clone(), self.storage())
        };
        let config = node_config(self.folder.clone(), self.contacts.clone());
        let node = Node::start(config, environment).await.map_err(Box::new)?;
        let listener = tokio::spawn(listen(node.clone(), place, tell.clone()));
        self.life = Some(Life {
            node: node.clone(),
            store,
            listener,
        });
        Ok(node)
    }

    /// Starts a process that hosts a node of the peer's name and answers messages.
    pub(super) async fn start(
        &mut self,
        bed: &Testbed,
        place: usize,
        tell: &mpsc::Sender<Heard>,
    ) -> Result<(), StartFailed> {
        let node = self.start_bare(bed, place, tell).await?;
        node.on_data(self.name.clone(), answer());
        // A clock that is far off makes the certificate invalid; the node runs all the same.
        match node.register(signature(&self.name)).await {
            Ok(()) | Err(Some(_)) => Ok(()),
            Err(None) => Err(StartFailed::Ended),
        }
    }

    /// Ends the process without a word; its wire has to be cut before. What the disk had not synced is lost, or not, as
    /// `seed` has it.
    pub(super) fn kill(&mut self, seed: u64) {
        let Some(life) = self.life.take() else { return };
        self.disk.crash_at(0);
        self.disk = self.disk.reboot(seed);
        life.listener.abort();
        self.ending = Some(tokio::spawn(async move { life.node.stop().await }));
    }

    /// Waits until a process that was killed has let go of its wire.
    pub(super) async fn settle(&mut self) {
        if let Some(ending) = self.ending.take() {
            // A panic of the old process is its own affair; what it left is what the next one finds.
            let _ = ending.await;
        }
    }

    /// Ends the process in order.
    pub(super) async fn stop(&mut self) {
        if let Some(life) = self.life.take() {
            life.node.stop().await;
            life.listener.abort();
        }
        self.settle().await;
    }
}

/// Drops what has reached a wire that nobody has read.
async fn empty(wire: &dyn Wire) {
    let (mut buffer, mut meta) = (vec![0; DATAGRAM_BYTES_MAX], [Received::default()]);
    poll_fn(|cx| {
        let mut bufs = [IoSliceMut::new(&mut buffer)];
        while let Poll::Ready(Ok(_)) = wire.poll_recv(cx, &mut bufs, &mut meta) {}
        Poll::Ready(())
    })
    .await;
}

/// Passes on what the checkers want to hear, until the process ends.
async fn listen(node: Node, place: usize, tell: mpsc::Sender<Heard>) {
    let mut events = node.events();
    // A node that is held on to does not end.
    drop(node);
    loop {
        match events.recv().await {
            Ok(event) if matters(&event) => {
                let at = Instant::now();
                if tell.send(Heard { at, place, event }).await.is_err() {
                    return;
                }
            }
            // The journal says what became of transfers of which nothing was heard.
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

fn matters(event: &Event) -> bool {
    match event {
        Event::PeerUp { .. } | Event::NodeAppeared { .. } | Event::Revoked { .. } => true,
        Event::Transfer(TransferEvent::Ended { of, .. }) => of.role == Role::Sender,
        Event::Transfer(TransferEvent::Offered { of, .. }) => of.role == Role::Receiver,
        _ => false,
    }
}
