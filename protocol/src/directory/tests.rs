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
    let member = Member {
        peer: peer(n),
        name: id(name),
        serial: Serial([serial; 16]),
        not_after: UnixMillis(0),
        admitter: peer(0),
    };
    let body = RecordBody {
        membership: Membership::open(&root, &key, id(name), UnixMillis(0)),
        addresses: List(vec![Address::new(std::format!("/addr/{n}")).unwrap()]),
        nodes: NodeList(nodes.iter().map(node).collect()),
        bootstrap: None,
        agent: None,
    };
    Arc::new(Record::new(member, body, u64::from(n) << 8 | nodes.len() as u64))
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

#[test]
fn only_a_new_address_or_role_is_news_for_who_dials() {
    let learned = |d: &mut Directory| {
        let news = events(d);
        news.iter().filter(|e| matches!(e, Event::Learned { .. })).count()
    };
    let mut d = Directory::new(peer(9));
    let first = record(1, 1, "a", &["a"]);
    d.insert(Arc::clone(&first));
    assert_eq!(learned(&mut d), 1);
    d.insert(record(1, 1, "a", &["a", "a/gpu0"]));
    assert_eq!(learned(&mut d), 0, "its nodes are no news");
    let mut moved = (*first).clone();
    moved.body.addresses = List(vec![Address::new("/addr/moved").unwrap()]);
    d.insert(Arc::new(moved.clone()));
    assert_eq!(learned(&mut d), 1, "its address is");
    moved.body.bootstrap = Some(true);
    d.insert(Arc::new(moved));
    assert_eq!(learned(&mut d), 1, "and what it is for others");
    d.insert(record(9, 1, "me", &["me"]));
    assert_eq!(learned(&mut d), 0, "nobody dials itself");
}

#[test]
fn a_node_that_a_record_names_twice_appears_and_goes_once() {
    let mut d = Directory::new(peer(9));
    d.insert(record(1, 1, "a", &["a", "a"]));
    events(&mut d);
    d.remove(&peer(1));
    assert_eq!(
        events(&mut d),
        [Event::NodeGone(id("a")), Event::Forgotten(peer(1))]
    );
}

#[test]
fn names_that_differ_little_are_spread_over_the_whole_table() {
    // A table of claims is searched by the upper bits: names that fall together make every search a walk.
    let mut buckets = [0_u32; 256];
    for number in 0..4096 {
        let hash = hash_of(&id(&std::format!("rack{}/gpu{}", number / 16, number % 16)));
        buckets[usize::try_from(hash >> 24).unwrap()] += 1;
    }
    assert!(
        buckets.iter().all(|count| (1..=48).contains(count)),
        "{buckets:?}"
    );
}

#[test]
fn every_record_is_listed_once_from_wherever_one_begins() {
    let mut d = Directory::new(peer(9));
    assert!(d.is_empty());
    for n in [1, 2, 3, 200] {
        d.insert(record(n, n, &std::format!("n{n}"), &[]));
    }
    let of = |record: &Record| record.member.peer;
    assert_eq!(d.records().map(of).collect::<Vec<_>>(), [1, 2, 3, 200].map(peer));
    for n in [0, 1, 3, 77, 255] {
        let mut listed: Vec<PeerId> = d.records_from(peer(n)).map(of).collect();
        listed.sort_unstable();
        assert_eq!(listed, [1, 2, 3, 200].map(peer), "from {n}");
    }
    assert_eq!((d.len(), d.is_empty()), (4, false));
}

#[test]
fn directories_that_share_their_tables_say_what_each_of_them_was_told() {
    let sharing = Sharing::default();
    let mut directories = [peer(1), peer(2)].map(|local| Directory::with_sharing(local, Some(&sharing)));
    let name = |n: u8| std::format!("host{n}");
    for n in 10..250 {
        let device = std::format!("{}/gpu0", name(n));
        let record = record(n, n, &name(n), &[&name(n), &device]);
        directories[usize::from(n % 2)].insert(record);
    }
    for n in 10..250 {
        for (which, directory) in directories.iter().enumerate() {
            let told = usize::from(n % 2) == which;
            assert_eq!(directory.host_of(&id(&name(n))), told.then_some(peer(n)), "{n}");
            let device = id(&std::format!("{}/gpu0", name(n)));
            assert_eq!(directory.host_of(&device), told.then_some(peer(n)), "{n}");
            assert_eq!(directory.record(&peer(n)).is_some(), told, "{n}");
        }
    }
}
