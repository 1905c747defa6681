//! Discovery between real endpoints on loopback, with a loop that grants every wish to meet a peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use futures::future::join_all;
use hyperfabric_protocol::cbor::{self, List};
use hyperfabric_protocol::cert::{Membership, MeshRoot};
use hyperfabric_protocol::flood::content::{NodeList, RecordBody};
use hyperfabric_protocol::flood::{Item, ItemKind};
use hyperfabric_protocol::sign::Domain;
use hyperfabric_protocol::types::{HardwareType, NodeSignature};
use hyperfabric_protocol::{SigningKey, UnixMillis};
use libp2p::core::Transport;
use libp2p::core::transport::{DialOpts, PortUse, TransportError};
use std::time::Duration;

use super::transport::{MeshTransport, WishError};
use super::*;
use crate::address::PeerAddress;
use crate::connection::CloseReason;
use crate::endpoint::Endpoint;
use crate::endpoint::tests::{Peer, connect, setup, within};
use crate::streams::StreamKind;
use crate::streams::inbox::PromptStreams;
use crate::sync::lock;
use crate::tls::Purpose;

const ITEMS_MAX: usize = 64;

fn root() -> MeshRoot {
    MeshRoot::Open { name: "test".into() }
}

fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

/// What a node's loop has to keep: a dropped receiver would reset streams.
struct Kept {
    connection: Connection,
    _streams: Box<dyn std::any::Any + Send>,
}

#[derive(Clone)]
struct Keeper {
    attacher: Attacher,
    kept: Arc<Mutex<Vec<Kept>>>,
}

impl Keeper {
    async fn keep(&self, connection: Connection) {
        let PromptStreams {
            control,
            libp2p,
            requests,
        } = connection.prompt_streams().unwrap();
        self.attacher.attach(connection.clone(), libp2p).await;
        let _streams = Box::new((control, requests));
        lock(&self.kept).push(Kept { connection, _streams });
    }
}

struct Node {
    endpoint: Endpoint,
    key: SigningKey,
    handle: DiscoveryHandle,
    publication: watch::Sender<Option<Publication>>,
    keeper: Keeper,
    items: mpsc::Receiver<Signed>,
}

async fn serve(peer: Peer, mut discovery: Discovery, keeper: Keeper, items: mpsc::Sender<Signed>) {
    let Peer {
        endpoint,
        mut accepted,
        ..
    } = peer;
    let mut known = BTreeMap::new();
    loop {
        tokio::select! {
            connection = accepted.recv() => keeper.keep(connection.unwrap()).await,
            found = discovery.found() => match found.unwrap() {
                Found::Item(signed) => items.try_send(signed).unwrap(),
                Found::Address { peer, addresses } => {
                    known.insert(peer, PeerAddress::try_from(&addresses[0]).unwrap().socket);
                }
                Found::Wanted { peer } => {
                    let dialled = endpoint.dial(peer, known[&peer], Purpose::Prompt).await;
                    keeper.keep(dialled.unwrap()).await;
                }
            }
        }
    }
}

fn start(seed: u8, server: bool) -> Node {
    let peer = setup(seed).start();
    let discovery = Discovery::start(DiscoveryConfig {
        peer: peer.endpoint.peer(),
        mesh: root().id(),
        server,
        check: Arc::new(|signed| signed.verify(Domain::Item).is_ok()),
        runtime: Handle::current(),
    });
    let keeper = Keeper {
        attacher: discovery.attacher(),
        kept: Arc::default(),
    };
    let (items, items_out) = mpsc::channel(ITEMS_MAX);
    let node = Node {
        endpoint: peer.endpoint.clone(),
        key: SigningKey::from_bytes(&[seed; 32]),
        handle: discovery.handle(),
        publication: discovery.publication.clone(),
        keeper: keeper.clone(),
        items: items_out,
    };
    tokio::spawn(serve(peer, discovery, keeper, items));
    node
}

impl Node {
    fn peer(&self) -> PeerId {
        self.endpoint.peer()
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    async fn meet(&self, other: &Self) -> Connection {
        let dialled = self
            .endpoint
            .dial(other.peer(), other.address(), Purpose::Prompt)
            .await;
        let connection = dialled.unwrap();
        self.keeper.keep(connection.clone()).await;
        connection
    }

    fn connections(&self, to: &Self) -> Vec<Connection> {
        let kept = lock(&self.keeper.kept);
        let connections = kept.iter().map(|kept| kept.connection.clone());
        connections
            .filter(|connection| connection.peer() == to.peer())
            .collect()
    }

    async fn until(&self, condition: impl Fn(DiscoveryStats) -> bool) {
        within(async {
            while !condition(self.handle.stats().await) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn record(&self, node: &str, sequence: u64) -> Signed {
        let node = NodeSignature::new(name(node), HardwareType::NvidiaH100, 10.0, 1000).unwrap();
        let body = RecordBody {
            membership: Membership::open(&root(), &self.key, name("x"), UnixMillis(0)),
            addresses: List(vec![PeerAddress::new(self.address()).to_address()]),
            nodes: NodeList(vec![node]),
            bootstrap: None,
            agent: None,
        };
        let lifetime = Duration::from_secs(60);
        let body = cbor::to_bytes(&body);
        let item = Item::new(ItemKind::Record, 0, sequence, UnixMillis(1), lifetime, &body);
        self.key.sign(Domain::Item, &cbor::to_bytes(&item))
    }

    fn publish(&self, record: &Signed, names: &[&str]) {
        let nodes = names.iter().map(|text| name(text)).collect();
        let record = record.clone();
        self.publication.send_replace(Some(Publication { record, nodes }));
    }

    /// Waits for `item`, whatever else comes.
    async fn hears(&mut self, item: &Signed) {
        within(async { while self.items.recv().await.unwrap() != *item {} }).await;
    }
}

#[tokio::test]
async fn peers_identify_each_other_and_servers_are_remembered() {
    let (a, b) = (start(1, false), start(2, true));
    a.meet(&b).await;
    a.until(|stats| stats.kad_peers == 1 && stats.gossip_peers == 1 && stats.connections == 1)
        .await;
    b.until(|stats| stats.gossip_peers == 1 && stats.connections == 1)
        .await;
    assert_eq!(
        b.handle.stats().await.kad_peers,
        0,
        "a client is no place for records"
    );
}

#[tokio::test]
async fn an_announcement_reaches_a_third_peer_through_the_second() {
    let (a, b, mut c) = (start(1, false), start(2, false), start(3, false));
    a.meet(&b).await;
    c.meet(&b).await;
    b.until(|stats| stats.gossip_peers == 2).await;
    a.until(|stats| stats.gossip_peers == 1).await;
    let record = a.record("a", 1);
    a.publish(&record, &["a"]);
    c.hears(&record).await;
}

#[tokio::test]
async fn what_nobody_heard_is_announced_to_the_first_who_listens() {
    let (a, mut b) = (start(1, false), start(2, false));
    let record = a.record("a", 1);
    a.publish(&record, &["a"]);
    a.until(|stats| stats.records == 1).await;
    a.meet(&b).await;
    b.hears(&record).await;
}

#[tokio::test]
async fn a_lookup_finds_a_record_and_meets_the_peers_on_the_way() {
    let (a, b, mut c) = (start(1, true), start(2, true), start(3, false));
    let record = a.record("a", 1);
    // Put in vain, and again when the first peer is there.
    a.publish(&record, &["a"]);
    a.until(|stats| stats.records == 1).await;
    a.meet(&b).await;
    b.until(|stats| stats.records == 1 && stats.kad_peers == 1).await;
    c.meet(&b).await;
    c.until(|stats| stats.kad_peers == 1).await;
    assert!(within(c.handle.lookup(&name("a"))).await);
    c.hears(&record).await;
    c.until(|stats| stats.connections == 2).await;
    assert_eq!(
        c.connections(&a).len(),
        1,
        "the wish to meet the first peer was granted"
    );
    assert!(!within(c.handle.lookup(&name("nobody"))).await);
}

#[tokio::test]
async fn a_record_is_stored_only_under_the_names_of_its_nodes() {
    let (a, b) = (start(1, false), start(2, true));
    a.meet(&b).await;
    a.until(|stats| stats.kad_peers == 1).await;
    a.publish(&a.record("a", 1), &["victim", "a"]);
    b.until(|stats| stats.records == 1).await;
    assert!(within(b.handle.lookup(&name("a"))).await);
    assert!(!within(b.handle.lookup(&name("victim"))).await);
}

#[tokio::test]
async fn after_a_simultaneous_dial_the_loser_goes_and_streams_continue_on_the_other() {
    let (a, mut b) = (start(1, true), start(2, true));
    let (mine, theirs) = tokio::join!(a.meet(&b), b.meet(&a));
    for node in [&a, &b] {
        node.until(|stats| stats.connections == 2 && stats.gossip_peers == 1)
            .await;
    }
    theirs.close(CloseReason::Duplicate);
    for node in [&a, &b] {
        node.until(|stats| stats.connections == 1).await;
    }
    let record = a.record("a", 1);
    a.publish(&record, &["a"]);
    b.hears(&record).await;
    assert_eq!(mine.close_cause(), None);
}

#[tokio::test]
async fn what_the_swarm_closes_stays_open_for_others_and_can_be_used_again() {
    let (a, b) = (start(1, true), start(2, true));
    let connection = a.meet(&b).await;
    for node in [&a, &b] {
        node.until(|stats| stats.kad_peers == 1).await;
    }
    for asks in [&b, &a] {
        let disconnect = Command::Disconnect(b.peer());
        assert!(a.handle.0.send(disconnect).await.is_ok());
        a.until(|stats| stats.connections == 0).await;
        within(connection.echo(b"still here")).await.unwrap();
        // The other peer's substream, or this one's wish, brings the same connection back.
        within(asks.handle.lookup(&name("nobody"))).await;
        a.until(|stats| stats.connections == 1).await;
    }
    assert_eq!((a.connections(&b).len(), b.connections(&a).len()), (1, 1));
}

#[tokio::test]
async fn a_thousand_garbage_streams_are_ended_and_cost_the_connection_nothing() {
    let node = start(1, true);
    let attacker = setup(2).start();
    let dialled = attacker
        .endpoint
        .dial(node.peer(), node.address(), Purpose::Prompt)
        .await;
    let connection = dialled.unwrap();
    node.until(|stats| stats.connections == 1).await;
    for _ in 0..20 {
        let streams = (0..50).map(|_| async {
            let mut stream = connection.open_bi(StreamKind::Libp2p).await.unwrap();
            // It may be reset before all is written.
            let _ = stream.send.write_all(&[b'x'; 2000]).await;
            // Its end is what counts: an answer, or a reset.
            let _ = stream.recv.read_to_end(100_000).await;
        });
        within(join_all(streams)).await;
    }
    within(connection.echo(b"still here")).await.unwrap();
    assert_eq!(node.handle.stats().await.connections, 1);
}

#[tokio::test]
async fn the_end_of_discovery_lets_go_of_its_connections() {
    let (a, mut b) = (setup(1).start(), setup(2).start());
    let discovery = Discovery::start(DiscoveryConfig {
        peer: a.endpoint.peer(),
        mesh: root().id(),
        server: true,
        check: Arc::new(|_| true),
        runtime: Handle::current(),
    });
    let (attacher, handle) = (discovery.attacher(), discovery.handle());
    let [mine, theirs] = connect(&a, &mut b, Purpose::Prompt).await;
    let streams = mine.prompt_streams().unwrap();
    attacher.attach(mine, streams.libp2p).await;
    drop((streams.control, streams.requests));
    within(async { while handle.stats().await.connections == 0 {} }).await;
    drop(discovery);
    within(theirs.closed()).await;
    assert_eq!(handle.stats().await, DiscoveryStats::default());
    assert!(!handle.lookup(&name("a")).await);
}

#[tokio::test]
async fn wishes_are_limited_and_tell_addresses_first() {
    let (_attacher, attached) = mpsc::channel(1);
    let (found, mut found_out) = mpsc::channel(FOUND_MAX);
    let mut transport = MeshTransport::new(attached, found).boxed();
    let options = DialOpts {
        role: libp2p::core::Endpoint::Dialer,
        port_use: PortUse::Reuse,
    };
    let wanted = |n: u8| PeerAddress {
        socket: SocketAddr::from(([127, 0, 0, n], 1)),
        peer: Some(SigningKey::from_bytes(&[n; 32]).peer_id()),
    };
    let mut dials = Vec::new();
    let too_many = (1..=u8::MAX).find(|n| match transport.dial(wanted(*n).into(), options) {
        Ok(dial) => {
            dials.push(dial);
            false
        }
        Err(TransportError::Other(error)) => {
            assert_eq!(error.to_string(), WishError::TooMany.to_string());
            true
        }
        Err(error) => panic!("{error}"),
    });
    assert_eq!(too_many, Some(17));
    let poll = |cx: &mut std::task::Context<'_>| {
        assert!(std::pin::Pin::new(&mut transport).poll(cx).is_pending());
        std::task::Poll::Ready(())
    };
    std::future::poll_fn(poll).await;
    let mut told = 0;
    while let Ok(first) = found_out.try_recv() {
        let Found::Address { peer, addresses } = first else {
            panic!("{first:?}")
        };
        assert_eq!(addresses.len(), 1);
        assert_eq!(found_out.try_recv(), Ok(Found::Wanted { peer }));
        told += 1;
    }
    assert_eq!(told, 16);
}
