//! A member with the mesh crate's driver and nothing behind it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_mesh::clock::{Clock as _, SystemClock};
use hyperfabric_mesh::driver::{self, DriverConfig, Handle, Host};
use hyperfabric_mesh::gate::MeshGate;
use hyperfabric_mesh::workers::WorkerPool;
use hyperfabric_mesh::{
    BiStream, Connection, DialError, Endpoint, EndpointConfig, KernelWire, Leaf, LeafCell, Limits,
    PeerAddress, Purpose,
};
use hyperfabric_protocol::cert::{Membership, MeshRoot};
use hyperfabric_protocol::fabric::{Event, FabricConfig, Job, JobResult};
use hyperfabric_protocol::ticket::Ticket;
use hyperfabric_protocol::transfer::PayloadOrder;
use hyperfabric_protocol::{NodeId, PeerId, SigningKey};
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;

/// Long enough for a loaded machine; no test waits for it in vain.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Threads of a pool in a test.
pub(crate) const ONE: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN;
const EVENTS_MAX: usize = 1024;

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, waiting).await.is_ok(),
        "not within {DEADLINE:?}: {what}"
    );
}

struct Listener(mpsc::Sender<Event>);

impl Host for Listener {
    fn job(&mut self, peer: &Handle, job: Job) {
        if let Job::Persist(persist) = job {
            let peer = peer.clone();
            let result = JobResult::Persisted {
                id: persist.id,
                ok: true,
            };
            peer.runtime()
                .clone()
                .spawn(async move { peer.done(result).await });
        }
    }
    fn payload(&mut self, _: &Handle, _: PayloadOrder) {}
    fn event(&mut self, _: &Handle, event: &Event) {
        self.0.try_send(event.clone()).unwrap();
    }
    fn bulk(&mut self, _: &Handle, _: Connection) {}
    fn request(&mut self, _: &Handle, _: PeerId, _: BiStream) {}
}

/// A peer that a test plays with.
pub(crate) struct Member {
    pub(crate) handle: Handle,
    events: mpsc::Receiver<Event>,
}

impl Member {
    /// A peer that is in no mesh.
    pub(crate) fn stranger(seed: u8) -> Self {
        Self::start(
            SigningKey::from_bytes(&[seed; 32]),
            None,
            &WorkerPool::new(ONE).unwrap(),
        )
    }

    /// A peer of an open mesh.
    pub(crate) fn open(mesh: &str, seed: u8) -> Self {
        Self::open_in(mesh, seed, &WorkerPool::new(ONE).unwrap())
    }

    /// As [`Member::open`], on shared threads.
    pub(crate) fn open_in(mesh: &str, seed: u8, pool: &WorkerPool) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let root = MeshRoot::Open {
            name: mesh.to_owned(),
        };
        let name = NodeId::new(format!("member{seed}")).unwrap();
        let membership = Membership::open(&root, &key, name, SystemClock::default().now().wall);
        Self::start(key, Some((root, membership)), pool)
    }

    fn start(key: SigningKey, member: Option<(MeshRoot, Membership)>, pool: &WorkerPool) -> Self {
        let clock = Arc::new(SystemClock::default());
        let (root, membership) = member.unzip();
        let shown = membership.as_ref().map(Membership::to_bytes);
        let leaf = LeafCell::new(Leaf::generate(&key, shown.as_deref()).unwrap());
        let gate = MeshGate::new(clock.clone());
        gate.set_root(root.clone());
        let (endpoint, accepted) = Endpoint::bind(EndpointConfig {
            wire: Arc::new(KernelWire::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()),
            identity: key.clone(),
            leaf: leaf.clone(),
            gate: Arc::new(gate.clone()),
            runtime: Runtime::current(),
            mtu_max: 1_452,
            limits: Limits::default(),
        })
        .unwrap();
        let seed = key.peer_id().0;
        let fabric = FabricConfig {
            key,
            root,
            membership,
            admitter: None,
            tickets: Vec::new(),
            grants: Vec::new(),
            revocations: Vec::new(),
            incarnation: 1,
            agent: "test".to_owned(),
            bootstrap: false,
            // One connection, to the bootstrap peer, is enough.
            degree_min: 1,
            degree_max: 1,
            connections_max: 8,
            transfers_max: 1,
            seed,
        };
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let config = DriverConfig {
            fabric,
            endpoint,
            accepted,
            leaf,
            gate,
            clock,
            pool: pool.clone(),
            runtime: Runtime::current(),
            announce: Vec::new(),
            discovery: None,
        };
        Self {
            handle: driver::start(config, |_| Listener(sender)),
            events,
        }
    }

    /// Redeems a ticket.
    pub(crate) async fn join(&self, ticket: Ticket) {
        self.handle
            .act(|fabric, now| fabric.join(now, ticket))
            .await
            .unwrap();
    }

    /// Hears where a bootstrap peer is.
    pub(crate) async fn learn(&self, address: PeerAddress) {
        let (peer, at) = (
            address.peer.unwrap(),
            PeerAddress::new(address.socket).to_address(),
        );
        self.handle
            .act(move |fabric, now| fabric.learn(now, peer, vec![at], true))
            .await
            .unwrap();
    }

    /// Dials behind the machine's back.
    pub(crate) async fn dial(&self, address: PeerAddress, purpose: Purpose) -> Result<Connection, DialError> {
        self.handle
            .endpoint()
            .dial(address.peer.unwrap(), address.socket, purpose)
            .await
    }

    /// Waits for an event.
    pub(crate) async fn event(&mut self, is: impl Fn(&Event) -> bool) -> Event {
        let mut seen = Vec::new();
        let waiting = async {
            loop {
                let event = self.events.recv().await.expect("the member runs");
                if is(&event) {
                    return event;
                }
                seen.push(event);
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        waited.unwrap_or_else(|_| panic!("an expected event did not come, but {seen:?}"))
    }

    pub(crate) async fn stop(self) {
        self.handle.stop().await;
    }
}
