//! The directory: an index of records, with one winner for every name.

use std::string::String;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::UnixMillis;
use crate::cbor::List;
use crate::cert::{Membership, MeshRoot};
use crate::flood::content::{NodeList, RecordBody};
use crate::types::HardwareType;
use crate::{Address, SigningKey};

fn id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn record(n: u8, serial: u8, name: &str, nodes: &[&str]) -> Arc<Record> {
    let node = |text: &&str| NodeSignature::new(id(text), HardwareType::CpuServer, 10.0, 1000).unwrap();
    let key = SigningKey::from_bytes(&[1; 32]);
    let root = MeshRoot::Open {
        name: String::from("x"),
    };
    Arc::new(Record {
        member: Member {
            peer: peer(n),
            name: id(name),
            serial: Serial([serial; 16]),
            not_after: UnixMillis(0),
            admitter: peer(0),
        },
        body: RecordBody {
            membership: Membership::open(&root, &key, id(name), UnixMillis(0)),
            addresses: List(vec![Address::new(std::format!("/addr/{n}")).unwrap()]),
            nodes: NodeList(nodes.iter().map(node).collect()),
            bootstrap: None,
            agent: None,
        },
        hash: u64::from(n) << 8 | nodes.len() as u64,
    })
}

fn events(directory: &mut Directory) -> Vec<Event> {
    core::iter::from_fn(|| directory.poll_event()).collect()
}

#[test]
fn a_record_makes_its_nodes_addressable_and_its_end_makes_them_vanish() {
    let mut d = Directory::new(peer(9));
    d.insert(record(1, 1, "a", &["a", "a/gpu0"]));
    assert_eq!(d.host_of(&id("a/gpu0")), Some(peer(1)));
    assert!(events(&mut d).contains(&Event::NodeAppeared {
        node_id: id("a"),
        peer: peer(1)
    }));
    d.insert(record(1, 1, "a", &["a"]));
    assert_eq!(d.host_of(&id("a/gpu0")), None);
    assert_eq!(events(&mut d), [Event::NodeGone(id("a/gpu0"))]);
    d.remove(&peer(1));
    assert_eq!(d.host_of(&id("a")), None);
    assert_eq!(
        events(&mut d),
        [Event::NodeGone(id("a")), Event::Forgotten(peer(1))]
    );
}

#[test]
fn of_two_claims_the_lower_serial_wins_in_either_order() {
    for order in [[1, 2], [2, 1]] {
        let mut d = Directory::new(peer(9));
        for n in order {
            d.insert(record(n, n, "a", &["a"]));
        }
        assert_eq!(d.host_of(&id("a")), Some(peer(1)), "order {order:?}");
        d.remove(&peer(1));
        assert_eq!(
            d.host_of(&id("a")),
            Some(peer(2)),
            "the other one gets it when the winner is gone"
        );
    }
}

#[test]
fn the_loser_is_told_who_holds_its_name_and_the_winner_is_not() {
    let mut loser = Directory::new(peer(2));
    loser.insert(record(2, 2, "a", &["a"]));
    loser.insert(record(1, 1, "a", &["a"]));
    assert!(events(&mut loser).contains(&Event::Duplicate {
        node_id: id("a"),
        holder: peer(1)
    }));
    let mut winner = Directory::new(peer(1));
    winner.insert(record(1, 1, "a", &["a"]));
    winner.insert(record(2, 2, "a", &["a"]));
    assert!(
        !events(&mut winner)
            .iter()
            .any(|e| matches!(e, Event::Duplicate { .. }))
    );
}

#[test]
fn a_name_is_held_by_whoever_has_it_or_one_above_or_below_it() {
    let mut d = Directory::new(peer(9));
    d.insert(record(1, 1, "site/a", &[]));
    for taken in ["site", "site/a", "site/a/gpu0"] {
        assert_eq!(d.name_holder(&id(taken), &peer(5)), Some(peer(1)), "{taken}");
    }
    for free in ["site/b", "site/ab", "other"] {
        assert_eq!(d.name_holder(&id(free), &peer(5)), None, "{free}");
    }
    assert_eq!(
        d.name_holder(&id("site/a"), &peer(1)),
        None,
        "a peer does not stand in its own way"
    );
}

#[test]
fn a_peer_that_gets_another_certificate_keeps_its_nodes() {
    let mut d = Directory::new(peer(9));
    d.insert(record(1, 5, "a", &["a"]));
    d.insert(record(1, 7, "b", &["b"]));
    assert_eq!(d.host_of(&id("a")), None);
    assert_eq!(d.host_of(&id("b")), Some(peer(1)));
    assert_eq!(d.name_holder(&id("a"), &peer(5)), None);
}
