//! The handle to a running driver: what the rest of a process may ask of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyperfabric_protocol::fabric::{Input, JobResult, Misbehaved, Purpose as Use};
use hyperfabric_protocol::frame::{Frame, Tally};
use hyperfabric_protocol::{Address, Fabric, Now, PeerId};
use tokio::sync::{mpsc, oneshot, watch};

use super::Message;
use super::drain::Draining;
use crate::address::PeerAddress;
use crate::connection::{CloseReason, Connection};
use crate::endpoint::{DialError, Endpoint};
use crate::sync::lock;
use crate::tls::Purpose;

/// Dial errors that are remembered, so that a user can be told why a peer is not reached.
const DIAL_ERRORS_MAX: usize = 256;

/// Peers closer than this are on the same host or network.
const NEAR_RTT: Duration = Duration::from_millis(5);
/// In flight towards them at most, in bytes. A receiver's kernel buffer holds about as much: with four times this, one
/// on the same host that was busy for a moment lost thousands of datagrams per GiB.
const NEAR_SEND_WINDOW: u64 = 4 << 20;

/// The driver has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer is shutting down")]
pub struct Stopped;

/// Why there is no connection for a transfer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// The peer is not connected.
    #[error("the peer is not connected")]
    NotConnected,
    /// The dial failed.
    #[error("cannot open a connection for the transfer's bytes")]
    Dial(#[from] DialError),
}

/// A connection for sending, and who uses it.
struct Outgoing {
    connection: Connection,
    /// Cloned by every lease.
    users: Arc<()>,
    /// Whether nobody used it when it was last looked at.
    idle: bool,
}

/// A connection for a transfer's bytes, kept open while the lease lives.
#[derive(Debug)]
pub struct BulkLease {
    connection: Connection,
    _user: Arc<()>,
}

impl std::ops::Deref for BulkLease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Outgoing {
    fn lease(&mut self) -> BulkLease {
        self.idle = false;
        BulkLease {
            connection: self.connection.clone(),
            _user: Arc::clone(&self.users),
        }
    }
}

/// Connections shared between the loop and those who use them.
#[derive(Default)]
pub(super) struct Connections {
    prompt: HashMap<PeerId, Connection>,
    /// Dialled here, for sending.
    bulk: HashMap<PeerId, Outgoing>,
    /// Dialled by the other side.
    bulk_in: HashMap<PeerId, Vec<Connection>>,
    /// Prompt connections that are kept for answers alone.
    pub(super) draining: Draining,
    dial_errors: HashMap<PeerId, DialError>,
    /// Whoever dials for sending holds its peer's turn.
    bulk_dials: HashMap<PeerId, Arc<tokio::sync::Mutex<()>>>,
}

/// What a peer has received beside payloads and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Control frames of prompt and join connections.
    pub control: Tally,
    /// Bytes of the substreams of Kademlia, gossipsub and identify.
    pub libp2p_bytes: u64,
}

struct Shared {
    messages: mpsc::Sender<Message>,
    endpoint: Endpoint,
    control: Mutex<Tally>,
    libp2p: Option<Arc<AtomicU64>>,
    runtime: tokio::runtime::Handle,
    connections: Mutex<Connections>,
    stopped: watch::Receiver<bool>,
}

/// A handle to a peer's event loop; cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.0.endpoint).finish()
    }
}

impl Handle {
    pub(super) fn new(
        messages: mpsc::Sender<Message>,
        endpoint: Endpoint,
        libp2p: Option<Arc<AtomicU64>>,
        runtime: tokio::runtime::Handle,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self(Arc::new(Shared {
            messages,
            endpoint,
            control: Mutex::default(),
            libp2p,
            runtime,
            connections: Mutex::default(),
            stopped,
        }))
    }

    /// Returns the peer's endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// Returns what the peer has received so far beside payloads and requests.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let libp2p = self.0.libp2p.as_ref();
        Traffic {
            control: *lock(&self.0.control),
            libp2p_bytes: libp2p.map_or(0, |bytes| bytes.load(Ordering::Relaxed)),
        }
    }

    pub(super) fn count(&self, frame: &[u8]) {
        lock(&self.0.control).add(Frame::code_of(frame), frame.len() as u64);
    }

    /// Returns where the peer's tasks run.
    #[must_use]
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.0.runtime
    }

    /// Returns who the peer is.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.0.endpoint.peer()
    }

    /// Lets the caller use the machine, on the loop, and returns what it returns.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn act<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Fabric, Now) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let message = Message::Act(Box::new(move |fabric, now| {
            // The caller may have given up waiting.
            let _ = sender.send(act(fabric, now));
        }));
        if self.send(message).await {
            receiver.await.map_err(|_| Stopped)
        } else {
            Err(Stopped)
        }
    }

    /// Tells the machine something. Returns whether the loop still runs.
    pub async fn input(&self, input: Input) -> bool {
        self.send(Message::Input(input)).await
    }

    /// Reports the result of a job.
    pub async fn done(&self, result: JobResult) {
        self.input(Input::JobDone(result)).await;
    }

    pub(super) async fn send(&self, message: Message) -> bool {
        self.0.messages.send(message).await.is_ok()
    }

    /// Ends the loop, closes every connection and waits until the port is free.
    pub async fn stop(&self) {
        self.send(Message::Stop).await;
        self.ended().await;
    }

    /// Waits for the end of the loop, without keeping anything of it.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopped = self.0.stopped.clone();
        async move {
            // An error means that the loop is gone, which is what is waited for.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
    }

    /// Returns the addresses under which others can try to dial this peer.
    ///
    /// # Errors
    /// When the system does not list its interfaces.
    pub fn reachable(&self) -> std::io::Result<Vec<Address>> {
        let sockets = self.0.endpoint.reachable_addresses()?;
        Ok(sockets
            .into_iter()
            .map(|socket| PeerAddress::new(socket).to_address())
            .collect())
    }

    pub(super) fn connections(&self) -> MutexGuard<'_, Connections> {
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the prompt connection to a peer.
    #[must_use]
    pub fn connection(&self, peer: &PeerId) -> Option<Connection> {
        self.connections().prompt.get(peer).cloned()
    }

    pub(super) fn remember(&self, peer: PeerId, connection: Connection) {
        let mut connections = self.connections();
        connections.dial_errors.remove(&peer);
        connections.prompt.insert(peer, connection);
    }

    pub(super) fn forget(&self, connection: &Connection) {
        let mut connections = self.connections();
        let peer = connection.peer();
        if connections
            .prompt
            .get(&peer)
            .is_some_and(|c| c.id() == connection.id())
        {
            connections.prompt.remove(&peer);
        }
    }

    pub(super) fn forget_peer(&self, peer: &PeerId) {
        self.connections().prompt.remove(peer);
    }

    pub(super) fn note_dial_error(&self, peer: PeerId, error: DialError) {
        let mut connections = self.connections();
        if connections.dial_errors.len() >= DIAL_ERRORS_MAX {
            connections.dial_errors.clear();
        }
        connections.dial_errors.insert(peer, error);
    }

    /// Returns why the last dial of a peer failed.
    #[must_use]
    pub fn dial_error(&self, peer: &PeerId) -> Option<DialError> {
        self.connections().dial_errors.get(peer).copied()
    }

    /// Returns a connection for sending a transfer's bytes, dialling one if there is none. It is closed some seconds
    /// after the last lease on it is gone. [BULK-1]
    ///
    /// # Errors
    /// [`BulkError`].
    pub async fn bulk(&self, peer: PeerId) -> Result<BulkLease, BulkError> {
        // Transfers to one peer that start together share one connection; those to others do not wait for it.
        let turn = Arc::clone(self.connections().bulk_dials.entry(peer).or_default());
        let _turn = turn.lock().await;
        let prompt = {
            let mut connections = self.connections();
            connections
                .bulk
                .retain(|_, open| open.connection.close_cause().is_none());
            connections
                .bulk_dials
                .retain(|_, turn| Arc::strong_count(turn) > 1);
            if let Some(open) = connections.bulk.get_mut(&peer) {
                return Ok(open.lease());
            }
            connections.prompt.get(&peer).cloned()
        };
        // One port for everything: where the prompt connection leads, the bulk connection leads too.
        let prompt = prompt.ok_or(BulkError::NotConnected)?;
        let dialled = self
            .0
            .endpoint
            .dial(peer, prompt.remote_address(), Purpose::Bulk)
            .await;
        if matches!(dialled, Err(DialError::FalseWelcome { .. })) {
            super::serve::report(self, peer, Use::Prompt, Misbehaved::FalseWelcome).await;
        }
        let connection = dialled?;
        if prompt.rtt() < NEAR_RTT {
            connection.set_send_window(NEAR_SEND_WINDOW);
        }
        let mut open = Outgoing {
            connection,
            users: Arc::default(),
            idle: false,
        };
        let lease = open.lease();
        self.connections().bulk.insert(peer, open);
        Ok(lease)
    }

    /// Closes the connections for sending that nobody has used since the last call.
    pub(super) fn close_idle_bulk(&self) {
        self.connections().bulk.retain(|_, open| {
            let unused = Arc::strong_count(&open.users) == 1;
            if unused && open.idle {
                open.connection.close(CloseReason::Idle);
                return false;
            }
            open.idle = unused;
            true
        });
    }

    /// Remembers a connection that another peer has dialled for sending, so that it can be cut off.
    pub fn remember_bulk(&self, connection: &Connection) {
        let mut connections = self.connections();
        let list = connections.bulk_in.entry(connection.peer()).or_default();
        list.retain(|c| c.close_cause().is_none());
        list.push(connection.clone());
    }

    /// Closes what a peer still has here beside the connections that the machine knows: those for transfers' bytes, both
    /// ways, and those that drain.
    pub(super) fn cut_off(&self, peer: &PeerId, reason: CloseReason) {
        let mut connections = self.connections();
        connections.draining.close(peer, reason);
        let outgoing = connections.bulk.remove(peer).map(|open| open.connection);
        let incoming = connections.bulk_in.remove(peer).unwrap_or_default();
        for connection in incoming.into_iter().chain(outgoing) {
            connection.close(reason);
        }
    }
}
