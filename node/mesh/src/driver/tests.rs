//! Loops on loopback for tests: members of one mesh that connect when they are told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_protocol::cert::{Membership, MeshRoot};
use hyperfabric_protocol::fabric::{Event, FabricConfig, Job};
use hyperfabric_protocol::transfer::PayloadOrder;
use hyperfabric_protocol::{Address, NodeId, PeerId, SigningKey};
use tokio::sync::mpsc;

use super::{DriverConfig, Handle, Host, start as start_loop};
use crate::address::PeerAddress;
use crate::clock::{Clock, SystemClock};
use crate::connection::Connection;
use crate::endpoint::tests::within;
use crate::endpoint::{Endpoint, EndpointConfig, Limits};
use crate::gate::MeshGate;
use crate::streams::BiStream;
use crate::tls::{Leaf, LeafCell};
use crate::wire::KernelWire;
use crate::workers::WorkerPool;

/// How often a condition is looked at.
pub(in crate::driver) const POLL: Duration = Duration::from_millis(5);

/// Passes requests on, for the test to answer them when it likes.
struct Requests(mpsc::Sender<BiStream>);

impl Host for Requests {
    fn job(&mut self, _: &Handle, _: Job) {}
    fn payload(&mut self, _: &Handle, _: PayloadOrder) {}
    fn event(&mut self, _: &Handle, _: &Event) {}
    fn bulk(&mut self, _: &Handle, _: Connection) {}
    fn request(&mut self, _: &Handle, _: PeerId, stream: BiStream) {
        self.0.try_send(stream).unwrap();
    }
}

/// A member of an open mesh.
pub(in crate::driver) struct Peer {
    pub(in crate::driver) handle: Handle,
    pub(in crate::driver) requests: mpsc::Receiver<BiStream>,
}

/// What a member of an open mesh starts with, who dials on demand only.
pub(in crate::driver) fn config(key: SigningKey) -> FabricConfig {
    let root = MeshRoot::Open {
        name: "open".to_owned(),
    };
    let wall = SystemClock::default().now().wall;
    let membership = Membership::open(&root, &key, NodeId::new("x").unwrap(), wall);
    FabricConfig {
        seed: key.peer_id().0,
        key,
        root: Some(root),
        membership: Some(membership),
        admitter: None,
        tickets: Vec::new(),
        grants: Vec::new(),
        revocations: Vec::new(),
        incarnation: 1,
        agent: "test".to_owned(),
        bootstrap: false,
        degree_min: 0,
        degree_max: 0,
        connections_max: 8,
        transfers_max: 1,
    }
}

pub(in crate::driver) fn start(fabric: FabricConfig) -> Peer {
    let clock = Arc::new(SystemClock::default());
    let shown = fabric.membership.as_ref().map(Membership::to_bytes);
    let leaf = LeafCell::new(Leaf::generate(&fabric.key, shown.as_deref()).unwrap());
    let gate = MeshGate::new(clock.clone());
    let runtime = tokio::runtime::Handle::current();
    let (endpoint, accepted) = Endpoint::bind(EndpointConfig {
        wire: Arc::new(KernelWire::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()),
        identity: fabric.key.clone(),
        leaf: leaf.clone(),
        gate: Arc::new(gate.clone()),
        runtime: runtime.clone(),
        mtu_max: 1_452,
        limits: Limits::default(),
    })
    .unwrap();
    let (sender, requests) = mpsc::channel(16);
    let config = DriverConfig {
        fabric,
        endpoint,
        accepted,
        leaf,
        gate,
        clock,
        pool: WorkerPool::with_available_cores().unwrap(),
        runtime,
        announce: Vec::new(),
        discovery: None,
    };
    Peer {
        handle: start_loop(config, |_| Requests(sender)),
        requests,
    }
}

impl Peer {
    pub(in crate::driver) fn id(&self) -> PeerId {
        self.handle.peer_id()
    }

    pub(in crate::driver) fn socket(&self) -> SocketAddr {
        self.handle.endpoint().local_address()
    }

    pub(in crate::driver) fn address(&self) -> Address {
        PeerAddress::new(self.socket()).to_address()
    }

    /// Wants a connection to another one, and returns it.
    pub(in crate::driver) async fn meet(&self, other: &Self) -> Connection {
        let (peer, at) = (other.id(), other.address());
        let wish = self.handle.act(move |fabric, now| {
            fabric.learn(now, peer, vec![at], false);
            fabric.want(now, peer);
        });
        wish.await.unwrap();
        self.connected(other).await;
        other.connected(self).await;
        self.handle.connection(&peer).unwrap()
    }

    async fn connected(&self, other: &Self) {
        let peer = other.id();
        until(|| self.handle.connection(&peer).is_some()).await;
    }
}

pub(in crate::driver) async fn until(mut is: impl FnMut() -> bool) {
    let reached = async {
        while !is() {
            tokio::time::sleep(POLL).await;
        }
    };
    within(reached).await;
}
