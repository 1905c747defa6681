//! What a bootstrap peer lets in, what it keeps over a restart, and what it says of itself.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_bootstrap::{Bootstrap, BootstrapConfig, Contact, Health, OpenMesh, StartError};
use hyperfabric_mesh::clock::{Clock as _, SystemClock};
use hyperfabric_mesh::state::{StateError, StateFolder};
use hyperfabric_mesh::workers::WorkerPool;
use hyperfabric_mesh::{CloseCause, DialError, PeerAddress, Purpose, Refusal};
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::frame::JoinRefusal;
use hyperfabric_protocol::ticket::Ticket;
use hyperfabric_protocol::{Address, NodeId};
use tokio::runtime::Handle;

use crate::http;
use crate::member::{Member, ONE, eventually};

fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

/// The folder of a peer that has made a mesh.
fn authority() -> (tempfile::TempDir, BootstrapConfig) {
    let place = tempfile::tempdir().unwrap();
    let folder = StateFolder::new(place.path());
    folder.init().unwrap();
    folder
        .create_mesh("lab", name("first"), SystemClock::default().now().wall)
        .unwrap();
    let config = loopback(&place);
    (place, config)
}

fn loopback(place: &tempfile::TempDir) -> BootstrapConfig {
    BootstrapConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..BootstrapConfig::new(place.path())
    }
}

fn start(config: &BootstrapConfig) -> Result<Bootstrap, StartError> {
    let pool = WorkerPool::new(ONE).unwrap();
    Bootstrap::start(
        config.clone(),
        Handle::current(),
        pool,
        Arc::new(SystemClock::default()),
    )
}

fn address(peer: &Bootstrap) -> PeerAddress {
    peer.addresses().unwrap()[0]
}

async fn invite(peer: &Bootstrap, granted: &str) -> Ticket {
    let (granted, addresses) = (
        name(granted),
        vec![PeerAddress::new(address(peer).socket).to_address()],
    );
    let issued = peer
        .handle()
        .act(|fabric, now| fabric.invite(now, granted, Duration::from_secs(3600), 1, addresses))
        .await
        .unwrap();
    issued.unwrap().0
}

async fn health(peer: &Bootstrap) -> Health {
    let (status, body) = http::get(peer.health_address().unwrap(), "/health").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn a_peer_joins_by_ticket_and_then_connects_and_health_says_so() {
    let (_place, config) = authority();
    let peer = start(&config).unwrap();
    eventually("it knows itself", async || health(&peer).await.members == 1).await;
    let alone = health(&peer).await;
    assert_eq!(
        (alone.status.as_str(), alone.mesh.as_str(), alone.connections),
        ("ok", "lab", 0)
    );
    assert_eq!(alone.peer_id, peer.peer_id().to_string());

    let mut member = Member::stranger(7);
    member.join(invite(&peer, "gpu").await).await;
    let joined = member.event(|event| matches!(event, Event::Joined(_))).await;
    assert!(matches!(joined, Event::Joined(member) if member.name == name("gpu")));
    member.learn(address(&peer)).await;
    member.event(|event| matches!(event, Event::PeerUp { .. })).await;
    eventually("the connection shows", async || {
        let health = health(&peer).await;
        health.connections == 1 && health.members == 2
    })
    .await;
    let (status, metrics) = http::get(peer.health_address().unwrap(), "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "hyperfabric_bootstrap_connections 1",
        "hyperfabric_bootstrap_joins_admitted_total 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in {metrics}");
    }
    peer.stop().await;
    member.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_port_the_grants_and_the_address_book() {
    let (place, config) = authority();
    let peer = start(&config).unwrap();
    let before = address(&peer);
    let ticket = invite(&peer, "gpu").await;
    let mut member = Member::stranger(7);
    member.join(ticket.clone()).await;
    member.event(|event| matches!(event, Event::Joined(_))).await;
    member.learn(before).await;
    eventually("the member's record is here", async || {
        health(&peer).await.members == 2
    })
    .await;
    peer.stop().await;

    let folder = StateFolder::new(place.path());
    {
        let store = hyperfabric_mesh::store::Store::open(&folder.store_file(), 0)
            .unwrap()
            .store;
        let known = folder.first_contacts(&store).unwrap();
        assert_eq!(
            known.iter().map(|k| k.peer).collect::<Vec<_>>(),
            [member.handle.peer_id()]
        );
    }
    let peer = start(&config).unwrap();
    assert_eq!(address(&peer), before);
    let mut second = Member::stranger(8);
    second.join(ticket).await;
    let refused = second.event(|event| matches!(event, Event::JoinRefused(_))).await;
    assert_eq!(refused, Event::JoinRefused(JoinRefusal::Used));
    eventually("the member is back", async || {
        health(&peer).await.connections == 1
    })
    .await;
    peer.stop().await;

    let _squatter = UdpSocket::bind(before.socket).unwrap();
    let error = start(&config).unwrap_err();
    assert!(
        matches!(error, StartError::KeptPort { port } if port == before.socket.port()),
        "{error}"
    );
    member.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_damaged_store_is_moved_aside_and_health_warns() {
    let (place, config) = authority();
    let peer = start(&config).unwrap();
    assert_eq!(health(&peer).await.warnings, Vec::<String>::new());
    peer.stop().await;
    std::fs::write(place.path().join("state.redb"), b"no database").unwrap();
    let peer = start(&config).unwrap();
    let warnings = health(&peer).await.warnings;
    assert!(
        matches!(&warnings[..], [warning] if warning.contains("state.redb.corrupt-")),
        "{warnings:?}"
    );
    assert_eq!(peer.health().await.unwrap().warnings, warnings);
    peer.stop().await;
}

#[tokio::test]
async fn a_stranger_and_a_member_of_another_mesh_are_refused_and_counted() {
    let (_place, config) = authority();
    let peer = start(&config).unwrap();
    let stranger = Member::stranger(7);
    let foreigner = Member::open("elsewhere", 8);
    for (member, expected) in [(&stranger, Refusal::NotAMember), (&foreigner, Refusal::OtherMesh)] {
        // In TLS 1.3 the dialler may be let in before it hears of the refusal.
        let refusal = match member.dial(address(&peer), Purpose::Prompt).await {
            Err(DialError::Refused { reason }) => Some(reason),
            Err(DialError::Untrusted { .. }) => None,
            Err(error) => panic!("{error}"),
            Ok(connection) => match connection.closed().await {
                CloseCause::Refused(refusal) => Some(refusal),
                cause => panic!("{cause}"),
            },
        };
        assert!(refusal.is_none_or(|refusal| refusal == expected), "{refusal:?}");
    }
    assert_eq!(health(&peer).await.connections, 0);
    for member in [stranger, foreigner] {
        member.stop().await;
    }
    peer.stop().await;
}

#[tokio::test]
async fn members_cannot_leave_payload_with_it() {
    let place = tempfile::tempdir().unwrap();
    let open = OpenMesh {
        mesh: "lab".to_owned(),
        name: name("first"),
    };
    let peer = start(&BootstrapConfig {
        open: Some(open),
        ..loopback(&place)
    })
    .unwrap();
    let member = Member::open("lab", 7);
    let bulk = member.dial(address(&peer), Purpose::Bulk).await.unwrap();
    assert!(matches!(bulk.closed().await, CloseCause::ClosedByPeer { .. }));
    member.stop().await;
    peer.stop().await;
}

#[tokio::test]
async fn two_bootstrap_peers_of_an_open_mesh_meet() {
    let (first_place, second_place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |text| {
        Some(OpenMesh {
            mesh: "lab".to_owned(),
            name: name(text),
        })
    };
    let first = start(&BootstrapConfig {
        open: open("first"),
        ..loopback(&first_place)
    })
    .unwrap();
    let contact: Contact = address(&first).to_string().parse().unwrap();
    let config = BootstrapConfig {
        open: open("second"),
        bootstrap: vec![contact],
        ..loopback(&second_place)
    };
    let second = start(&config).unwrap();
    eventually("they know each other", async || {
        let (one, two) = (health(&first).await, health(&second).await);
        one.connections == 1 && two.connections == 1 && one.members == 2 && two.members == 2
    })
    .await;
    second.stop().await;
    // The folder knows its mesh, and nothing else is needed to go on.
    let again = start(&BootstrapConfig {
        open: None,
        bootstrap: Vec::new(),
        ..config.clone()
    })
    .unwrap();
    eventually("the first is found again", async || {
        health(&again).await.connections == 1
    })
    .await;
    again.stop().await;
    let other = BootstrapConfig {
        open: Some(OpenMesh {
            mesh: "other".to_owned(),
            name: name("x"),
        }),
        ..config
    };
    assert!(matches!(
        start(&other),
        Err(StartError::State(StateError::AlreadyMember(_)))
    ));
    first.stop().await;
}

#[tokio::test]
async fn a_folder_without_a_key_or_a_mesh_is_named_and_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let config = loopback(&place);
    assert!(matches!(
        start(&config),
        Err(StartError::State(StateError::NotInitialised(_)))
    ));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    StateFolder::new(place.path()).init().unwrap();
    assert!(matches!(start(&config), Err(StartError::NotAMember(_))));
}

#[tokio::test]
async fn announced_addresses_replace_those_of_the_interfaces() {
    let (_place, mut config) = authority();
    config.announce = vec!["203.0.113.7:4001".parse().unwrap()];
    let peer = start(&config).unwrap();
    let expected = format!("/ip4/203.0.113.7/udp/4001/quic-v1/p2p/{}", peer.peer_id());
    assert_eq!(address(&peer).to_string(), expected);
    let published = async || {
        let own = |fabric: &mut hyperfabric_protocol::Fabric, _| {
            let record = fabric.directory().record(&fabric.peer_id())?;
            Some((record.body.addresses.0.clone(), record.body.bootstrap))
        };
        let announced = Address::new("/ip4/203.0.113.7/udp/4001/quic-v1").unwrap();
        peer.handle().act(own).await.unwrap() == Some((vec![announced], Some(true)))
    };
    eventually("the record carries it", published).await;
    peer.stop().await;
}

#[tokio::test]
async fn the_health_server_bounds_its_clients() {
    let (_place, config) = authority();
    let peer = start(&config).unwrap();
    let at = peer.health_address().unwrap();
    assert_eq!(http::get(at, "/elsewhere").await.0, 404);
    assert_eq!(http::get_as(at, "/health", "mesh.example.org").await.0, 403);
    let flood = http::flood(at, 4 * 1024 * 1024).await;
    assert!(
        flood < 2 * 1024 * 1024,
        "the server read on: {flood} bytes were taken"
    );
    assert_eq!(health(&peer).await.status, "ok");
    peer.stop().await;
}
