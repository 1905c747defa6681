//! What an admitter and a joiner do without a daemon.
//!
//! The same fabric machine decides as in the daemon; only its network is missing, or, for joining, lasts no longer
//! than the answer of the ticket's issuer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_mesh::clock::{Clock, SystemClock};
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::{DialError, KernelWire, Limits, Wire};
use hyperfabric_protocol::admission::AdmitError;
use hyperfabric_protocol::cert::{CertificateError, Member, Membership};
use hyperfabric_protocol::fabric::{Event, Input, Job, JobResult};
use hyperfabric_protocol::frame::JoinRefusal;
use hyperfabric_protocol::ticket::{Credential, Ticket};
use hyperfabric_protocol::{Address, Fabric, NodeId, Now, PeerId};
use tokio::sync::broadcast::error::RecvError;

use crate::config::{ConfigError, FabricConfig};
use crate::daemon::{DaemonError, listen_port, open_store};
use crate::node::{Environment, Node, NodeConfig};
use crate::paths::DataDir;
use crate::storage::{DiskStorage, Storage};
use crate::store::Store;
use crate::transfer::InboxPolicy;
use crate::workers::WorkerPool;

/// Why an admitter's command without a daemon fails.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The folder, the store or the port cannot be used.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The peer may not, or the name is taken.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The state could not be written.
    #[error("the state could not be written to the disk")]
    NotWritten,
}

/// Why joining fails.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The folder, the store or the port cannot be used, or the peer is in a mesh already.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The issuer refused.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// The issuer could not be reached.
    #[error("the ticket's issuer could not be reached at {addresses}")]
    Unreachable {
        /// Where it was tried.
        addresses: String,
        /// Why the last dial failed.
        #[source]
        source: Option<DialError>,
    },
    /// The issuer did not answer in time.
    #[error("the ticket's issuer did not answer within {0:?}")]
    TimedOut(Duration),
    /// The issuer ended the connection without an answer.
    #[error("the ticket's issuer ended the connection without an answer: try again")]
    NoAnswer,
    /// The issuer's answer is no certificate for this peer.
    #[error("the ticket's issuer answered with something that is not a certificate for this peer")]
    BadAnswer,
    /// The certificate was made for another peer, or is not valid.
    #[error("this certificate cannot be used here: the {0}")]
    Certificate(#[source] CertificateError),
}

/// An admitter's state, opened without a daemon.
struct Offline {
    folder: StateFolder,
    /// Where the daemon will listen, as far as it is configured.
    listen: SocketAddr,
    store: Store,
    fabric: Fabric,
    now: Now,
    _lock: crate::paths::DataDirLock,
}

impl Offline {
    fn open(data_dir: &DataDir) -> Result<Self, OfflineError> {
        let folder = StateFolder::new(data_dir.path());
        folder.key().map_err(DaemonError::from)?;
        let lock = data_dir.lock().map_err(DaemonError::from)?;
        let (store, _) = open_store(&folder).map_err(DaemonError::from)?;
        let now = SystemClock::default().now();
        let listen = FabricConfig::of(data_dir)?.listen;
        let config = folder
            .fabric_config(&store, String::new())
            .map_err(DaemonError::from)?;
        let fabric = Fabric::new(now, config);
        Ok(Self {
            folder,
            listen,
            store,
            fabric,
            now,
            _lock: lock,
        })
    }

    /// Writes what the machine wants on the disk.
    fn persist(&mut self) -> Result<(), OfflineError> {
        while let Some(job) = self.fabric.poll_job() {
            let Job::Persist(persist) = job else { continue };
            let written = self.folder.persist(&self.store, &persist.changes);
            let ok = written.is_ok();
            self.fabric.handle_input(
                self.now,
                Input::JobDone(JobResult::Persisted { id: persist.id, ok }),
            );
            written.map_err(|error| OfflineError::Daemon(error.into()))?;
        }
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<Address>, OfflineError> {
        let mut listen = self.listen;
        if listen.port() == 0 {
            listen.set_port(listen_port(&self.store, listen.ip())?);
        }
        let reachable = hyperfabric_mesh::address::reachable(listen);
        let sockets = reachable.map_err(|error| OfflineError::Daemon(DaemonError::Storage(error)))?;
        Ok(sockets
            .into_iter()
            .map(|s| hyperfabric_mesh::PeerAddress::new(s).to_address())
            .collect())
    }
}

/// Issues a ticket; the daemon redeems it once it runs.
///
/// # Errors
/// [`OfflineError`].
pub fn invite(data_dir: &DataDir, name: NodeId, valid: Duration, uses: u32) -> Result<Ticket, OfflineError> {
    let mut offline = Offline::open(data_dir)?;
    let addresses = offline.addresses()?;
    let (ticket, _) = offline.fabric.invite(offline.now, name, valid, uses, addresses)?;
    offline.persist()?;
    Ok(ticket)
}

/// Makes a certificate for a peer whose key is known.
///
/// # Errors
/// [`OfflineError`].
pub fn admit(data_dir: &DataDir, peer: PeerId, name: NodeId) -> Result<Credential, OfflineError> {
    let mut offline = Offline::open(data_dir)?;
    let addresses = offline.addresses()?;
    let (membership, _) = offline.fabric.admit(offline.now, peer, name)?;
    offline.persist()?;
    let root = offline
        .fabric
        .admission()
        .root()
        .ok_or(OfflineError::NotWritten)?;
    Ok(Credential::new(
        root,
        membership,
        Some((offline.fabric.peer_id(), addresses)),
    ))
}

/// Takes a certificate that an admitter has made for this peer by hand.
///
/// # Errors
/// [`JoinError`].
pub fn adopt(data_dir: &DataDir, credential: &Credential) -> Result<Member, JoinError> {
    let folder = StateFolder::new(data_dir.path());
    let key = folder.key().map_err(DaemonError::from)?;
    folder.check_no_mesh().map_err(DaemonError::from)?;
    let bytes = credential.0.membership.to_bytes();
    let wall = SystemClock::default().now().wall;
    let member = Membership::verify(&bytes, &credential.root(), &key.peer_id(), wall)
        .map_err(JoinError::Certificate)?;
    folder.set_credential(credential).map_err(DaemonError::from)?;
    Ok(member)
}

/// Redeems a ticket at its issuer, and returns once the certificate is on the disk.
///
/// # Errors
/// [`JoinError`].
pub async fn join(data_dir: &DataDir, ticket: Ticket, timeout: Duration) -> Result<Member, JoinError> {
    let folder = StateFolder::new(data_dir.path());
    folder.key().map_err(DaemonError::from)?;
    let _lock = data_dir.lock().map_err(DaemonError::from)?;
    folder.check_no_mesh().map_err(DaemonError::from)?;
    let (store, _) = open_store(&folder).map_err(DaemonError::from)?;
    let ipv6 = ticket
        .0
        .addresses
        .iter()
        .all(|address| address.as_str().starts_with("/ip6/"));
    let any = if ipv6 && !ticket.0.addresses.is_empty() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let address: SocketAddr = any.parse().expect("a constant address");
    let wire = KernelWire::bind(address).map_err(|source| DaemonError::Bind { address, source })?;
    let storage = DiskStorage::open(data_dir.path()).map_err(DaemonError::Storage)?;
    let environment = Environment {
        runtime: tokio::runtime::Handle::current(),
        pool: WorkerPool::with_available_cores().map_err(DaemonError::Workers)?,
        clock: Arc::new(SystemClock::default()),
        wire: Arc::new(wire) as Arc<dyn Wire>,
        store,
        storage: Arc::new(storage) as Arc<dyn Storage>,
    };
    let config = NodeConfig {
        folder,
        bootstrap: Vec::new(),
        announce: Vec::new(),
        mtu_max: 1452,
        inbox: InboxPolicy::default(),
        limits: Limits::default(),
        transfers_max: 1,
    };
    let node = Node::start(config, environment)
        .await
        .map_err(DaemonError::from)?;
    let joined = tokio::time::timeout(timeout, redeem(&node, ticket)).await;
    node.stop().await;
    joined.map_err(|_| JoinError::TimedOut(timeout))?
}

/// Redeems a ticket with a node that runs and is in no mesh yet, and returns once the certificate is on its disk. The
/// node has to be started anew to be a member.
///
/// # Errors
/// [`JoinError`].
pub async fn redeem(node: &Node, ticket: Ticket) -> Result<Member, JoinError> {
    let mut events = node.events();
    let issuer = ticket.0.issuer;
    let addresses = ticket
        .0
        .addresses
        .iter()
        .map(Address::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let begun = node
        .handle()
        .act(move |fabric, now| fabric.join(now, ticket))
        .await;
    begun.map_err(|_| JoinError::NoAnswer)?;
    loop {
        match events.recv().await {
            Ok(Event::Joined(member)) => return Ok(member),
            Ok(Event::JoinRefused(refusal)) => return Err(refusal.into()),
            Ok(Event::JoinUnreachable) => {
                return Err(JoinError::Unreachable {
                    addresses,
                    source: node.handle().dial_error(&issuer),
                });
            }
            Ok(Event::JoinBadReply) => return Err(JoinError::BadAnswer),
            Ok(Event::JoinEnded) => return Err(JoinError::NoAnswer),
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err(JoinError::NoAnswer),
        }
    }
}
