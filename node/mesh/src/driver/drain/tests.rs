//! Real loops on loopback whose connections are closed while requests are open on them.

use std::net::SocketAddr;
use std::sync::Arc;

use hyperfabric_protocol::cert::{Membership, MeshRoot};
use hyperfabric_protocol::fabric::{Event, FabricConfig, Job, Purpose as Use};
use hyperfabric_protocol::transfer::PayloadOrder;
use hyperfabric_protocol::{Address, NodeId, SigningKey};
use tokio::sync::mpsc;

use super::*;
use crate::address::PeerAddress;
use crate::clock::{Clock, SystemClock};
use crate::connection::CloseCause;
use crate::driver::{self, DriverConfig, Host, Message};
use crate::endpoint::tests::{Peer as Raw, connect, setup, within};
use crate::endpoint::{Endpoint, EndpointConfig, Limits};
use crate::gate::MeshGate;
use crate::streams::{BiStream, StreamError, StreamKind};
use crate::tls::{Leaf, LeafCell};
use crate::wire::KernelWire;
use crate::workers::WorkerPool;

const QUESTION: &[u8] = b"question";
const ANSWER: &[u8] = b"answer";
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

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
struct Peer {
    handle: Handle,
    requests: mpsc::Receiver<BiStream>,
}

fn start(key: SigningKey, connections_max: usize) -> Peer {
    let clock = Arc::new(SystemClock::default());
    let root = MeshRoot::Open {
        name: "open".to_owned(),
    };
    let membership = Membership::open(&root, &key, NodeId::new("x").unwrap(), clock.now().wall);
    let leaf = LeafCell::new(Leaf::generate(&key, Some(&membership.to_bytes())).unwrap());
    let gate = MeshGate::new(clock.clone());
    let runtime = tokio::runtime::Handle::current();
    let (endpoint, accepted) = Endpoint::bind(EndpointConfig {
        wire: Arc::new(KernelWire::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()),
        identity: key.clone(),
        leaf: leaf.clone(),
        gate: Arc::new(gate.clone()),
        runtime: runtime.clone(),
        mtu_max: 1_452,
        limits: Limits::default(),
    })
    .unwrap();
    let fabric = FabricConfig {
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
        // Nobody dials but on demand, so that the test decides which connections there are.
        degree_min: 0,
        degree_max: 0,
        connections_max,
        transfers_max: 1,
    };
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
        handle: driver::start(config, |_| Requests(sender)),
        requests,
    }
}

/// Two members, the one with the smaller id first.
fn two() -> [Peer; 2] {
    let mut keys = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    keys.sort_by_key(SigningKey::peer_id);
    keys.map(|key| start(key, 8))
}

impl Peer {
    fn id(&self) -> PeerId {
        self.handle.peer_id()
    }

    fn socket(&self) -> SocketAddr {
        self.handle.endpoint().local_address()
    }

    fn address(&self) -> Address {
        PeerAddress::new(self.socket()).to_address()
    }

    /// Wants a connection to another one, and returns it.
    async fn meet(&self, other: &Self) -> Connection {
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

    /// Asks on a connection, and returns both ends of the stream when the question has arrived at `other`.
    async fn ask(&self, connection: &Connection, other: &mut Self) -> [BiStream; 2] {
        let mut asked = connection.open_bi(StreamKind::Request).await.unwrap();
        asked.send.write_all(QUESTION).await.unwrap();
        asked.send.finish();
        let mut taken = within(other.requests.recv()).await.unwrap();
        assert_eq!(within(taken.recv.read_to_end(100)).await.unwrap(), QUESTION);
        [asked, taken]
    }
}

async fn until(mut is: impl FnMut() -> bool) {
    let reached = async {
        while !is() {
            tokio::time::sleep(POLL).await;
        }
    };
    within(reached).await;
}

async fn answer([mut asked, mut taken]: [BiStream; 2]) {
    taken.send.write_all(ANSWER).await.unwrap();
    taken.send.finish();
    assert_eq!(within(asked.recv.read_to_end(100)).await.unwrap(), ANSWER);
}

/// Why a connection has ended, whoever said it.
async fn reason(connection: &Connection) -> CloseReason {
    match within(connection.closed()).await {
        CloseCause::Local(reason)
        | CloseCause::ClosedByPeer {
            reason: Some(reason), ..
        } => reason,
        other => panic!("{other}"),
    }
}

/// Dials a second connection from the first peer, as if both had dialled at once, and returns that of the second one
/// which it replaces, at both of its ends.
async fn race(small: &Peer, large: &Peer) -> [Connection; 2] {
    let old = large.meet(small).await;
    let at_small = small.handle.connection(&large.id()).unwrap();
    let dialled = small
        .handle
        .endpoint()
        .dial(large.id(), large.socket(), Purpose::Prompt)
        .await;
    let message = Message::Dialled {
        peer: large.id(),
        purpose: Use::Prompt,
        result: Ok((dialled.unwrap(), large.address())),
    };
    assert!(small.handle.send(message).await);
    [old, at_small]
}

async fn moved(from: &Peer, to: &Peer, old: &Connection) {
    let peer = to.id();
    until(|| from.handle.connection(&peer).is_some_and(|c| c.id() != old.id())).await;
}

#[tokio::test]
async fn requests_both_ways_survive_the_close_of_a_duplicate_and_new_ones_take_the_other_connection() {
    let [mut small, mut large] = two();
    let old = large.meet(&small).await;
    let at_small = small.handle.connection(&large.id()).unwrap();
    let to_small = large.ask(&old, &mut small).await;
    let to_large = small.ask(&at_small, &mut large).await;

    race(&small, &large).await;
    moved(&large, &small, &old).await;
    moved(&small, &large, &at_small).await;
    for connection in [&old, &at_small] {
        assert_eq!(connection.close_cause(), None);
        assert!(!connection.is_open());
        let late = connection.open_bi(StreamKind::Request).await;
        assert_eq!(late.unwrap_err(), StreamError::ConnectionLost);
        assert_eq!(connection.echo(b"late").await, Err(StreamError::ConnectionLost));
    }
    let next = large.handle.connection(&small.id()).unwrap();
    answer(large.ask(&next, &mut small).await).await;

    answer(to_small).await;
    assert_eq!(
        old.close_cause(),
        None,
        "the other side still waits for an answer"
    );
    answer(to_large).await;
    assert_eq!(reason(&old).await, CloseReason::Duplicate);
    assert_eq!(reason(&at_small).await, CloseReason::Duplicate);
}

#[tokio::test]
async fn a_duplicate_on_which_nothing_is_asked_is_gone_at_once() {
    let [small, large] = two();
    let [old, at_small] = race(&small, &large).await;
    assert_eq!(reason(&old).await, CloseReason::Duplicate);
    assert_eq!(reason(&at_small).await, CloseReason::Duplicate);
}

#[tokio::test]
async fn a_request_survives_that_the_other_side_makes_room_for_somebody_else() {
    let mut full = start(SigningKey::from_bytes(&[3; 32]), 1);
    let [asker, wanted] = two();
    let connection = asker.meet(&full).await;
    let asked = asker.ask(&connection, &mut full).await;

    full.meet(&wanted).await;
    let peer = full.id();
    until(|| asker.handle.connection(&peer).is_none()).await;
    assert_eq!((connection.close_cause(), connection.is_open()), (None, false));
    answer(asked).await;
    assert_eq!(reason(&connection).await, CloseReason::LimitReached);
}

#[tokio::test]
async fn whoever_is_cut_off_loses_what_drains_at_once() {
    let [mut small, mut large] = two();
    let old = large.meet(&small).await;
    let at_small = small.handle.connection(&large.id()).unwrap();
    let _open = [
        large.ask(&old, &mut small).await,
        small.ask(&at_small, &mut large).await,
    ];
    race(&small, &large).await;
    moved(&large, &small, &old).await;
    large.handle.cut_off(&small.id(), CloseReason::Revoked);
    assert_eq!(reason(&old).await, CloseReason::Revoked);
}

#[tokio::test]
async fn a_peer_that_never_answers_or_never_lets_go_is_left_when_the_time_is_over() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    for unanswered in [true, false] {
        let [dialled, _accepted] = connect(&a, &mut b, Purpose::Prompt).await;
        let control = dialled.open_control().await.unwrap();
        let _asked = if unanswered {
            dialled.core().life.other_is_done();
            Some(dialled.open_bi(StreamKind::Request).await.unwrap())
        } else {
            None
        };
        within(drain(&dialled, control.sender, CloseReason::Idle, POLL)).await;
        assert_eq!(dialled.close_cause(), Some(CloseCause::Local(CloseReason::Idle)));
    }
}

#[tokio::test]
async fn one_connection_of_a_peer_drains_and_no_more_than_the_bound_in_all() {
    let mut hub = setup(255).start();
    let mut draining = Draining::default();
    let mut peers: Vec<(Raw, Connection)> = Vec::new();
    for seed in 0..=DRAINING_MAX {
        let raw = setup(u8::try_from(seed).unwrap()).start();
        let [dialled, accepted] = connect(&raw, &mut hub, Purpose::Prompt).await;
        assert_eq!(draining.begin(&accepted), seed < DRAINING_MAX, "{seed}");
        peers.push((raw, dialled));
    }
    let (last, ended) = &peers[DRAINING_MAX - 1];
    ended.close(CloseReason::Idle);
    let [_dialled, accepted] = connect(last, &mut hub, Purpose::Prompt).await;
    until(|| draining.begin(&accepted)).await;

    // With room for others, there is none for a second one of the same peer.
    let first = draining.0.remove(0);
    let [_dialled, accepted] = connect(last, &mut hub, Purpose::Prompt).await;
    assert!(!draining.begin(&accepted));
    assert!(draining.begin(&first));
}
