//! One scenario, through the node's event loop on real wires and through the virtual-time world: the same events.
//!
//! A founder `p0` admits `p1` and `p2` by ticket; `p1` sends to `p2`, loses its connection on the way, and delivers
//! after it is back; then `p1` is revoked while it sends again.
//!
//! Each peer's events are compared on their own, in their order, after this normalisation:
//! - Kept: joining, nodes that go, the beginning, interruption, resumption and end of transfers, revocations.
//! - Which nodes are known is compared as a set, at the moment when all three are: the order in which records arrive
//!   depends on who dials first.
//! - Left out: connections that come and go (two peers that dial each other at once make a duplicate, on real wires at
//!   other moments than in the world), progress (how many bytes are durable at a look is a matter of speed), state
//!   on disk (numbered per process). Digests are left out because the world carries no bytes, and how much of a transfer
//!   had arrived before it was resumed, because that is a matter of speed; that some had is kept.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperfabric_mesh::Events;
use hyperfabric_mesh::wire::{Cut, Impairment, Partition};
use hyperfabric_node::{DataType, NodeId, PacketPriority, TransferId};
use hyperfabric_protocol::cbor::Text;
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::transfer::{CHUNK_BYTES, Offer, PayloadKind, TransferEvent};
use hyperfabric_sim::world::{Conditions, PeerIndex, World};
use tokio::sync::broadcast::error::RecvError;

use crate::harness::{Lab, PATIENCE, Peer, Seed, eventually, host, id, next, run};

const HOUR: Duration = Duration::from_secs(3600);
/// Long enough that the connection is lost, and the sender revoked, in the middle.
const CHUNKS: u64 = 48;
/// What the sender's link carries.
const BYTES_PER_SECOND: u64 = 6 << 20;
const NAMES: [&str; 3] = ["p0", "p1", "p2"];

/// What a peer has seen, normalised.
type Story = Vec<String>;

fn normalised(event: &Event) -> Option<String> {
    match event {
        Event::Joined(member) => Some(format!("joined as {}", member.name)),
        Event::Admitted { name, .. } => Some(format!("admitted {name}")),
        Event::NodeGone(node) => Some(format!("node {node} is gone")),
        Event::Revoked { name, local, .. } => Some(format!("revoked {name}, own: {local}")),
        Event::Transfer(event) => match event {
            TransferEvent::Offered { offer, of } => Some(format!("{:?}: offered {}", of.role, offer.name.0)),
            TransferEvent::Started { of, resumed_bytes } => {
                let how = if *resumed_bytes > 0 { "resumed" } else { "started" };
                Some(format!("{:?}: {how}", of.role))
            }
            TransferEvent::Progress { .. } => None,
            TransferEvent::Suspended { of } => Some(format!("{:?}: suspended", of.role)),
            TransferEvent::Ended { of, result } => {
                let end = match result {
                    Ok(_) => "delivered".to_owned(),
                    Err(error) => format!("ended: {:?}", error.fault),
                };
                Some(format!("{:?}: {end}", of.role))
            }
        },
        _ => None,
    }
}

fn is_started(event: &Event) -> bool {
    matches!(event, Event::Transfer(TransferEvent::Started { .. }))
}

fn has_progress(event: &Event) -> bool {
    matches!(event, Event::Transfer(TransferEvent::Progress { durable_bytes, .. }) if *durable_bytes > 0)
}

fn is_ended(event: &Event) -> bool {
    matches!(event, Event::Transfer(TransferEvent::Ended { .. }))
}

fn join_in_the_world(world: &mut World, p0: PeerIndex, name: &str) -> PeerIndex {
    let address = world.address(p0);
    let invited = world.act(p0, |f, now| f.invite(now, id(name), HOUR, 1, vec![address]));
    let peer = world.add();
    world.act(peer, |f, now| f.join(now, invited.unwrap().0));
    assert!(world.run_until(PATIENCE, |w| w.fabric(peer).admission().own().is_some()));
    world.kill(peer);
    world.start(peer);
    world
        .act(peer, |f, now| f.register(now, host(&id(name))))
        .unwrap();
    peer
}

fn send_in_the_world(world: &mut World, from: PeerIndex, number: u8) {
    let offer = Offer {
        source: id("p1"),
        destination: id("p2"),
        name: Text(format!("payload{number}")),
        kind: PayloadKind::File,
        size: CHUNKS * CHUNK_BYTES,
        data_type: DataType::Generic,
        priority: PacketPriority::Medium,
        modified: None,
        mode: None,
        sync: None,
    };
    let transfer = TransferId([number; 16]);
    world
        .act(from, |f, now| f.send(now, transfer, offer, None, false))
        .unwrap();
}

/// The scenario in virtual time.
fn in_the_world() -> BTreeMap<&'static str, Story> {
    let mut world = World::new(
        1,
        Conditions::constant(Duration::from_millis(5), BYTES_PER_SECOND),
    );
    let p0 = world.add_admitter("lab", "p0");
    world.act(p0, |f, now| f.register(now, host(&id("p0")))).unwrap();
    let p1 = join_in_the_world(&mut world, p0, "p1");
    let p2 = join_in_the_world(&mut world, p0, "p2");
    let peers = [p0, p1, p2];
    let knows = |world: &World, peer: PeerIndex| {
        let mut names: Vec<String> = world
            .fabric(peer)
            .directory()
            .records()
            .flat_map(|r| &r.body.nodes.0)
            .map(|n| n.node_id.to_string())
            .collect();
        names.sort();
        names
    };
    assert!(world.run_until(PATIENCE, |w| peers.iter().all(|p| knows(w, *p) == NAMES)));
    let known_at = world.log().len();

    let happened = |world: &World, from: usize, peer: PeerIndex, what: fn(&Event) -> bool| {
        world.log()[from..]
            .iter()
            .any(|(_, p, event)| *p == peer && what(event))
    };
    send_in_the_world(&mut world, p1, 1);
    assert!(world.run_until(PATIENCE, |w| happened(w, known_at, p1, has_progress)));
    world.partition(p1, p2, true);
    world.run(Duration::from_secs(12));
    world.partition(p1, p2, false);
    assert!(world.run_until(2 * PATIENCE, |w| {
        [p1, p2].iter().all(|p| happened(w, known_at, *p, is_ended))
    }));
    let second = world.log().len();
    send_in_the_world(&mut world, p1, 2);
    assert!(world.run_until(PATIENCE, |w| happened(w, second, p1, has_progress)));
    world.act(p0, |f, now| f.revoke(now, &id("p1"))).unwrap();
    assert!(world.run_until(PATIENCE, |w| {
        [p1, p2].iter().all(|p| happened(w, second, *p, is_ended))
    }));
    world.run(Duration::from_secs(1));

    let story = |peer: PeerIndex| {
        let line = |(at, (_, p, event)): (usize, &(_, PeerIndex, Event))| {
            let known = (at + 1 == known_at).then(|| format!("knows {NAMES:?}"));
            let told = (*p == peer).then(|| normalised(event)).flatten();
            [told, known].into_iter().flatten().collect::<Vec<_>>()
        };
        world.log().iter().enumerate().flat_map(line).collect()
    };
    NAMES.into_iter().zip(peers.map(story)).collect()
}

type Shared = Arc<Mutex<Story>>;

/// Writes down what a node sees.
fn record(peer: &Peer, story: &Shared) {
    let (mut events, story) = (peer.node.events(), Arc::clone(story));
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                Ok(event) => story.lock().unwrap().extend(normalised(&event)),
                Err(RecvError::Lagged(_)) => panic!("events were missed"),
                Err(RecvError::Closed) => return,
            }
        }
    });
}

async fn join(lab: &Lab, p0: &Peer, name: &str, story: &Shared, conditions: Impairment) -> Peer {
    let address = p0.address().to_address();
    let wanted = id(name);
    let mut events = p0.node.events();
    let (ticket, job) = p0
        .node
        .handle()
        .act(move |f, now| f.invite(now, wanted, HOUR, 1, vec![address]))
        .await
        .unwrap()
        .unwrap();
    next(&mut events, "the ticket on disk", |event| {
        matches!(event, Event::Persisted { id, ok: true } if id == job).then_some(())
    })
    .await;
    let seed: Seed = lab.seed(name);
    let joiner = lab.start(&seed, &[], Impairment::default()).await;
    record(&joiner, story);
    let mut events = joiner.node.events();
    joiner
        .node
        .handle()
        .act(move |f, now| f.join(now, ticket))
        .await
        .unwrap();
    next(&mut events, "the membership", |event| {
        matches!(event, Event::Joined(_)).then_some(())
    })
    .await;
    joiner.node.stop().await;
    let peer = lab.host(&seed, &[], conditions).await;
    record(&peer, story);
    peer
}

/// Cuts two peers off from each other until both have noticed.
async fn lose_each_other(p1: &Peer, p2: &Peer, slow: Impairment, events: [&mut Events; 2]) {
    let remotes = [p2.address().socket].into();
    p1.network.set(Impairment {
        partition: Partition::Remotes {
            remotes,
            cut: Cut::Both,
        },
        ..slow.clone()
    });
    for events in events {
        next(events, "the suspension", |event| {
            matches!(event, Event::Transfer(TransferEvent::Suspended { .. })).then_some(())
        })
        .await;
    }
    p1.network.set(slow);
}

/// The scenario on sockets.
async fn on_wires(lab: &Lab) -> BTreeMap<&'static str, Story> {
    let slow = Impairment {
        rate_bytes_per_s: NonZeroU64::new(BYTES_PER_SECOND),
        queue_bytes_max: 256 << 10,
        ..Impairment::default()
    };
    let stories: [Shared; 3] = Default::default();
    let founder = lab.found("p0");
    let p0 = lab.host(&founder, &[], Impairment::default()).await;
    record(&p0, &stories[0]);
    let p1 = join(lab, &p0, "p1", &stories[1], slow.clone()).await;
    let p2 = join(lab, &p0, "p2", &stories[2], Impairment::default()).await;
    for (peer, story) in [&p0, &p1, &p2].into_iter().zip(&stories) {
        eventually("a peer to know all nodes", PATIENCE, async || {
            peer.knows().await == NAMES
        })
        .await;
        story.lock().unwrap().push(format!("knows {NAMES:?}"));
    }

    let bytes = usize::try_from(CHUNKS * CHUNK_BYTES).unwrap();
    let (mut at_p1, mut at_p2) = (p1.node.events(), p2.node.events());
    let (path, _) = lab.file("payload1", bytes);
    p1.send(&path, &id("p2")).await;
    next(&mut at_p1, "progress", |event| has_progress(&event).then_some(())).await;
    lose_each_other(&p1, &p2, slow, [&mut at_p1, &mut at_p2]).await;
    for events in [&mut at_p1, &mut at_p2] {
        next(events, "the delivery", |event| is_ended(&event).then_some(())).await;
    }
    let (path, _) = lab.file("payload2", bytes);
    p1.send(&path, &id("p2")).await;
    next(&mut at_p1, "the second start", |event| {
        is_started(&event).then_some(())
    })
    .await;
    next(&mut at_p1, "progress", |event| has_progress(&event).then_some(())).await;
    let revoked: NodeId = id("p1");
    p0.node
        .handle()
        .act(move |f, now| f.revoke(now, &revoked))
        .await
        .unwrap()
        .unwrap();
    for events in [&mut at_p1, &mut at_p2] {
        next(events, "the end by revocation", |event| {
            is_ended(&event).then_some(())
        })
        .await;
    }
    eventually("everybody to have heard", PATIENCE, async || {
        [&stories[0], &stories[2]]
            .iter()
            .all(|s| s.lock().unwrap().iter().any(|line| line.starts_with("revoked")))
    })
    .await;
    for peer in [&p0, &p1, &p2] {
        peer.node.stop().await;
    }
    let told = stories.map(|story| story.lock().unwrap().clone());
    NAMES.into_iter().zip(told).collect()
}

#[test]
fn one_scenario_yields_the_same_events_on_wires_and_in_virtual_time() {
    run(|lab| async move {
        let (world, wires) = (in_the_world(), on_wires(&lab).await);
        for name in NAMES {
            println!("{name}: {:#?}", wires[name]);
            assert_eq!(wires[name], world[name], "{name}: on wires, and in the world");
        }
        // And it is the scenario that was meant.
        let sender = &wires["p1"];
        for line in [
            "joined as p1",
            "Sender: suspended",
            "Sender: resumed",
            "Sender: delivered",
        ] {
            assert!(sender.iter().any(|l| l == line), "no {line:?} in {sender:#?}");
        }
        assert!(wires["p2"].iter().any(|l| l == "Receiver: ended: Revoked"));
    });
}
