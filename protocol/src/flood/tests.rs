//! Flooding: everything arrives everywhere, once, newest first to count, and nobody can drown the others.

use std::collections::BTreeMap;
use std::string::String;
use std::vec;

use super::unchecked::{CHECKS_OUT_MAX, UNCHECKED_BYTES_MAX};
use super::*;
use crate::NodeId;
use crate::cbor::{List, Text};
use crate::cert::{Admitter, CERTIFICATE_VALIDITY, Membership, MeshRoot};
use crate::flood::content::{NodeList, RecordBody};
use crate::frame::{BucketHashes, Buckets, Digest, Forwarding, Summary, Versions};

const START: Now = Now {
    mono: Instant(1_000_000_000),
    wall: UnixMillis(1_800_000_000_000),
};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn root() -> MeshRoot {
    MeshRoot::Closed {
        authority: key(200).peer_id(),
        name: String::from("lab"),
    }
}

fn record(n: u8) -> Vec<u8> {
    let admitter = Admitter {
        key: key(200),
        delegation: None,
    };
    let name = NodeId::new(std::format!("n{n}")).unwrap();
    let serial = crate::Serial([n; 16]);
    let membership = admitter.admit(
        &root(),
        key(n).peer_id(),
        name,
        serial,
        START.wall,
        CERTIFICATE_VALIDITY,
    );
    crate::cbor::to_bytes(&RecordBody {
        membership,
        addresses: List::default(),
        nodes: NodeList::default(),
        bootstrap: None,
        agent: Some(Text(String::from("test"))),
    })
}

/// A net of engines with instant, lossless links, in virtual time.
struct Net {
    now: Now,
    peers: Vec<(SigningKey, Flood)>,
    /// Both ends of each link have the link's number as connection.
    links: BTreeMap<u64, (usize, usize)>,
    /// On which nobody's items arrive.
    silent: Option<u64>,
    frames: u64,
    items: u64,
    violations: Vec<FloodViolation>,
}

impl Net {
    fn new(count: u8) -> Self {
        let peers = (0..count)
            .map(|n| (key(n), Flood::new(key(n).peer_id(), Random::from_seed([n; 32]))))
            .collect();
        Self {
            now: START,
            peers,
            links: BTreeMap::new(),
            silent: None,
            frames: 0,
            items: 0,
            violations: Vec::new(),
        }
    }

    fn publish(&mut self, n: usize) {
        let (key, flood) = &mut self.peers[n];
        let key = key.clone();
        let body = record(u8::try_from(n).unwrap());
        flood.publish(
            self.now,
            &key,
            ItemKind::Record,
            0,
            Duration::from_secs(3600),
            &body,
        );
    }

    fn link(&mut self, a: usize, b: usize) -> u64 {
        let id = self.links.len() as u64;
        self.links.insert(id, (a, b));
        self.peers[a].1.link_up(ConnId(id));
        self.peers[b].1.link_up(ConnId(id));
        id
    }

    fn deliver(&mut self, to: usize, conn: ConnId, from: PeerId, frame: &Frame) {
        let flood = &mut self.peers[to].1;
        match frame {
            Frame::Summary(summary) => flood.handle_summary(self.now, conn, summary),
            Frame::Digest(digest) => flood.handle_digest(self.now, conn, digest),
            Frame::Forwarding(forwarding) => flood.handle_forwarding(conn, forwarding),
            Frame::Items(items) => {
                self.items += items.items.len() as u64;
                if let Err(violation) = flood.handle_items(self.now, conn, from, items) {
                    self.violations.push(violation);
                }
            }
            other => panic!("not a flood frame: {other:?}"),
        }
    }

    fn step(&mut self) -> bool {
        let mut moved = false;
        for n in 0..self.peers.len() {
            while let Some(job) = self.peers[n].1.poll_job() {
                for (from, version) in job.items {
                    let result = content::check(version.signed(), &root(), self.now.wall);
                    let checked = Checked {
                        from,
                        version,
                        result,
                    };
                    if let Err((_, violation)) = self.peers[n].1.handle_checked(self.now, checked) {
                        self.violations.push(violation);
                    }
                }
            }
            let from = self.peers[n].0.peer_id();
            while let Some((conn, frame)) = self.peers[n].1.poll_transmit() {
                moved = true;
                self.frames += 1;
                if self.silent == Some(conn.0) && matches!(frame, Frame::Items(_)) {
                    continue;
                }
                let (a, b) = self.links[&conn.0];
                self.deliver(if a == n { b } else { a }, conn, from, &frame);
            }
        }
        moved
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.mono.after(time);
        while self.now.mono < end {
            while self.step() {}
            let next = self
                .peers
                .iter()
                .filter_map(|p| p.1.poll_timeout())
                .min()
                .unwrap_or(end);
            let next = next.max(Instant(self.now.mono.0 + 1)).min(end);
            self.now.wall = self.now.wall.after(next.since(self.now.mono));
            self.now.mono = next;
            for (_, flood) in &mut self.peers {
                flood.handle_timeout(self.now);
            }
        }
        while self.step() {}
    }

    /// Links everyone of a group with everyone of it.
    fn mesh(&mut self, group: core::ops::Range<usize>) {
        for a in group.clone() {
            for b in a + 1..group.end {
                self.link(a, b);
            }
        }
    }

    /// Lets everyone of a group publish this often, at the pace that is allowed.
    fn busy(&mut self, group: core::ops::Range<usize>, rounds: usize) {
        for _ in 0..rounds {
            group.clone().for_each(|n| self.publish(n));
            self.run(Duration::from_millis(1200));
        }
    }

    fn knows(&self, peer: usize, origin: usize) -> bool {
        let key = ItemKey {
            origin: self.peers[origin].0.peer_id(),
            kind: ItemKind::Record,
            id: 0,
        };
        self.peers[peer].1.get(&key).is_some()
    }

    fn assert_equal(&self, count: usize) {
        for (_, flood) in &self.peers {
            assert_eq!(flood.len(), count);
            assert_eq!(flood.digest(), self.peers[0].1.digest());
        }
    }
}

#[test]
fn every_item_reaches_every_peer_of_a_ring_and_stops() {
    let mut net = Net::new(12);
    for n in 0..12 {
        net.link(n, (n + 1) % 12);
        net.publish(n);
    }
    net.run(Duration::from_secs(1));
    net.assert_equal(12);
    let frames = net.frames;
    net.run(Duration::from_secs(20));
    assert_eq!(
        net.frames, frames,
        "a quiet mesh must stay quiet between comparisons"
    );
    assert_eq!(net.violations, []);
}

#[test]
fn two_halves_that_meet_exchange_what_the_other_lacks() {
    let mut net = Net::new(8);
    for n in [0, 1, 2, 4, 5, 6] {
        net.link(n, n + 1);
    }
    for n in 0..8 {
        net.publish(n);
    }
    net.run(Duration::from_secs(1));
    assert_eq!(net.peers[0].1.len(), 4);
    net.link(3, 4);
    net.run(Duration::from_secs(1));
    net.assert_equal(8);
}

#[test]
fn the_newest_version_wins_even_when_versions_come_faster_than_allowed() {
    let mut net = Net::new(3);
    net.link(0, 1);
    net.link(1, 2);
    for _ in 0..20 {
        net.publish(0);
        net.run(Duration::from_millis(20));
    }
    net.run(Duration::from_secs(5));
    let key = ItemKey {
        origin: net.peers[0].0.peer_id(),
        kind: ItemKind::Record,
        id: 0,
    };
    let newest = net.peers[0].1.get(&key).unwrap().clone();
    assert_eq!(net.peers[2].1.get(&key), Some(&newest));
    assert_eq!(net.violations, []);
}

#[test]
fn a_neighbor_that_publishes_without_pause_is_named_and_others_are_not() {
    let mut net = Net::new(3);
    net.link(0, 1);
    net.link(1, 2);
    let mut versions = 0;
    let (from, link) = (net.peers[0].0.peer_id(), ConnId(0));
    let key = ItemKey {
        origin: from,
        kind: ItemKind::Record,
        id: 0,
    };
    while net.violations.is_empty() {
        // It does not wait for a batch, as honest peers do.
        net.publish(0);
        let version = net.peers[0].1.get(&key).unwrap().clone();
        net.deliver(1, link, from, &Frame::Items(items(vec![version])));
        net.run(Duration::from_millis(6));
        versions += 1;
        assert!(versions < 1000, "nobody stopped it");
    }
    assert!(net.violations.iter().all(|v| *v == FloodViolation::TooFast));
    assert_eq!(net.violations.len(), 1, "only the direct neighbor may be blamed");
}

#[test]
fn a_forged_item_is_blamed_on_the_neighbor_that_sent_it() {
    let mut net = Net::new(2);
    let link = net.link(0, 1);
    net.run(Duration::from_millis(50));
    let good = key(0).sign(
        Domain::Item,
        &crate::cbor::to_bytes(&Item::new(
            ItemKind::Record,
            0,
            1,
            START.wall,
            Duration::from_secs(9),
            &record(0),
        )),
    );
    let mut bytes = good.as_bytes().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let forged = Signed::from_bytes(bytes).unwrap();
    let frame = Frame::Items(Items::new(List(vec![Version::read(forged).unwrap()])));
    let from = key(0).peer_id();
    net.deliver(1, ConnId(link), from, &frame);
    net.run(Duration::from_millis(50));
    assert_eq!(net.violations, [FloodViolation::Forged]);
    assert!(net.peers[1].1.is_empty());
}

#[test]
fn a_record_of_a_stranger_is_dropped_without_blame() {
    let mut net = Net::new(2);
    net.link(0, 1);
    // Peer 0 publishes a record whose membership is of another key.
    let (signer, flood) = &mut net.peers[0];
    let signer = signer.clone();
    flood.publish(
        START,
        &signer,
        ItemKind::Record,
        0,
        Duration::from_secs(60),
        &record(9),
    );
    net.run(Duration::from_secs(1));
    assert!(net.peers[1].1.is_empty());
    assert_eq!(net.violations, []);
}

#[test]
fn items_expire_and_are_gone_everywhere() {
    let mut net = Net::new(3);
    net.link(0, 1);
    net.link(1, 2);
    net.publish(0);
    net.run(Duration::from_secs(1));
    net.assert_equal(1);
    net.run(Duration::from_secs(3700));
    net.assert_equal(0);
    assert!(core::iter::from_fn(|| net.peers[2].1.poll_event()).any(|e| matches!(e, Event::Expired(_))));
}

#[test]
fn a_peer_that_lost_its_state_publishes_above_its_own_past() {
    let mut net = Net::new(2);
    net.link(0, 1);
    // A past with a clock one minute ahead.
    let ahead = Now {
        mono: START.mono,
        wall: START.wall.after(Duration::from_secs(60)),
    };
    let signer = key(0);
    net.peers[0].1.publish(
        ahead,
        &signer,
        ItemKind::Record,
        0,
        Duration::from_secs(3600),
        &record(0),
    );
    net.run(Duration::from_secs(1));
    net.assert_equal(1);
    net.peers[0].1 = Flood::new(signer.peer_id(), Random::from_seed([77; 32]));
    net.publish(0);
    net.links.insert(1, (0, 1));
    net.peers[0].1.link_up(ConnId(1));
    net.peers[1].1.link_up(ConnId(1));
    net.run(Duration::from_secs(2));
    let reclaim = core::iter::from_fn(|| net.peers[0].1.poll_event()).any(|e| matches!(e, Event::Reclaim(_)));
    assert!(reclaim, "the peer must hear that the mesh knows a newer version");
    net.publish(0);
    net.run(Duration::from_secs(3));
    net.assert_equal(1);
}

#[test]
fn what_a_batch_was_lost_is_repaired_by_the_next_comparison() {
    let mut net = Net::new(2);
    let link = net.link(0, 1);
    net.run(Duration::from_secs(1));
    net.publish(0);
    let now = net.now.mono.after(Duration::from_millis(10));
    net.now.mono = now;
    net.peers[0].1.handle_timeout(net.now);
    let lost = core::iter::from_fn(|| net.peers[0].1.poll_transmit()).count();
    assert!(lost > 0, "the batch on link {link} must exist to be lost");
    net.run(Duration::from_secs(200));
    net.assert_equal(1);
}

#[test]
fn items_from_the_future_and_from_the_past_are_not_taken() {
    let mut net = Net::new(2);
    net.link(0, 1);
    let signer = key(0);
    let future = Now {
        mono: START.mono,
        wall: START.wall.after(Duration::from_secs(3600)),
    };
    net.peers[0].1.publish(
        future,
        &signer,
        ItemKind::Record,
        0,
        Duration::from_secs(60),
        &record(0),
    );
    net.run(Duration::from_secs(1));
    assert!(net.peers[1].1.is_empty());
    assert_eq!(net.violations, []);
}

#[test]
fn membership_of_the_records_is_really_checked() {
    let body = record(3);
    let item = Item::new(ItemKind::Record, 0, 1, START.wall, Duration::from_secs(9), &body);
    let signed = key(3).sign(Domain::Item, &crate::cbor::to_bytes(&item));
    assert!(content::check(&signed, &root(), START.wall).is_ok());
    let stranger = key(4).sign(Domain::Item, &crate::cbor::to_bytes(&item));
    assert!(matches!(
        content::check(&stranger, &root(), START.wall),
        Err(ItemFault::Membership(_))
    ));
    let open = MeshRoot::Open {
        name: String::from("x"),
    };
    let open_membership = Membership::open(&open, &key(3), NodeId::new("me").unwrap(), START.wall);
    let mut other: RecordBody = crate::cbor::from_bytes(&body).unwrap();
    other.membership = open_membership;
    let item = Item::new(
        ItemKind::Record,
        0,
        1,
        START.wall,
        Duration::from_secs(9),
        &crate::cbor::to_bytes(&other),
    );
    let signed = key(3).sign(Domain::Item, &crate::cbor::to_bytes(&item));
    assert!(matches!(
        content::check(&signed, &root(), START.wall),
        Err(ItemFault::Membership(_))
    ));
}

#[test]
fn what_a_newer_peer_floods_is_skipped_without_blame() {
    let mut net = Net::new(2);
    let link = net.link(0, 1);
    net.run(Duration::from_millis(50));
    let newer = Item::new(
        ItemKind::Other(77),
        0,
        1,
        START.wall,
        Duration::from_secs(9),
        b"?",
    );
    let unreadable = Item::new(ItemKind::Record, 0, 1, START.wall, Duration::from_secs(9), b"?");
    for item in [newer, unreadable] {
        let signed = key(0).sign(Domain::Item, &crate::cbor::to_bytes(&item));
        let frame = Frame::Items(Items::new(List(vec![Version::read(signed).unwrap()])));
        net.deliver(1, ConnId(link), key(0).peer_id(), &frame);
        net.run(Duration::from_millis(50));
    }
    assert_eq!(net.violations, []);
    assert!(net.peers[1].1.is_empty());
}

#[test]
fn a_record_that_claims_to_count_for_years_is_not_taken() {
    let mut net = Net::new(2);
    net.link(0, 1);
    let signer = key(0);
    let years = Duration::from_secs(2 * 366 * 24 * 3600);
    net.peers[0]
        .1
        .publish(START, &signer, ItemKind::Record, 0, years, &record(0));
    net.run(Duration::from_secs(1));
    assert!(net.peers[1].1.is_empty());
    assert_eq!(net.violations, []);
}

#[test]
fn a_leaf_of_a_crowded_hub_is_repaired_by_its_own_comparison() {
    // [FLOOD-3] Found by the swarm: only the one who is asked sends, and the hub asks one of its neighbors a minute.
    let mut net = Net::new(40);
    for n in 1..40 {
        net.link(0, n);
        net.publish(n);
    }
    net.run(Duration::from_secs(2));
    net.assert_equal(39);
    for origin in 1..=5 {
        let origin = net.peers[origin].0.peer_id();
        let kind = ItemKind::Record;
        net.peers[39].1.remove(&ItemKey { origin, kind, id: 0 });
    }
    assert_eq!(net.peers[39].1.len(), 34);
    net.run(Duration::from_secs(80));
    net.assert_equal(39);
}

/// An item of somebody else each time, signed by nobody.
fn unsigned(number: u32, bytes: usize) -> Signed {
    let item = Item::new(
        ItemKind::Record,
        0,
        1,
        START.wall,
        Duration::from_secs(9),
        &vec![7; bytes],
    );
    let mut origin = [7; 32];
    origin[..4].copy_from_slice(&number.to_be_bytes());
    let bytes = [origin.as_slice(), &[9; 64], &crate::cbor::to_bytes(&item)].concat();
    Signed::from_bytes(bytes).unwrap()
}

fn items(items: Vec<Signed>) -> Items {
    let read = |signed| Version::read(signed).unwrap();
    Items::new(List(items.into_iter().map(read).collect()))
}

#[test]
fn a_neighbor_has_half_of_the_room_for_unchecked_items_and_others_take_turns_with_it() {
    let mut flood = Flood::new(key(0).peer_id(), Random::from_seed([0; 32]));
    let (greedy, modest) = (ConnId(1), ConnId(2));
    flood.link_up(greedy);
    flood.link_up(modest);
    for number in 0..5_000 {
        let item = unsigned(number, 14 * 1024);
        flood
            .handle_items(START, greedy, key(1).peer_id(), &items(vec![item]))
            .unwrap();
    }
    assert!(flood.unchecked.bytes() <= UNCHECKED_BYTES_MAX / 2);
    assert!(flood.unchecked.bytes() > UNCHECKED_BYTES_MAX / 4);
    let item = unsigned(9_999, 14 * 1024);
    flood
        .handle_items(START, modest, key(2).peer_id(), &items(vec![item]))
        .unwrap();
    let first = flood.poll_job().unwrap();
    let second = flood.poll_job().unwrap();
    assert!(first.items.iter().all(|(from, _)| *from == greedy));
    assert!(second.items.iter().all(|(from, _)| *from == modest));
    let mut out = first.items.len() + second.items.len();
    while let Some(job) = flood.poll_job() {
        out += job.items.len();
    }
    assert!(
        out < CHECKS_OUT_MAX + ITEMS_PER_FRAME_MAX,
        "{out} items are being checked"
    );
    // What was checked makes room again.
    let mut jobs = vec![first, second];
    while let Some(job) = jobs.pop() {
        for (from, version) in job.items {
            let result = Err(ItemFault::OutsideGrant);
            let checked = Checked {
                from,
                version,
                result,
            };
            flood.handle_checked(START, checked).unwrap();
        }
        jobs.extend(flood.poll_job());
    }
    assert!(flood.unchecked.bytes() < UNCHECKED_BYTES_MAX / 4);
}

#[test]
fn a_neighbor_whose_own_items_are_refused_without_pause_is_named() {
    let mut net = Net::new(2);
    let link = net.link(0, 1);
    for number in 0..=EARLY_MAX {
        assert_eq!(net.violations, []);
        // Kind 1 has the id 0 only.
        let item = Item::new(
            ItemKind::Record,
            u64::from(number) + 1,
            1,
            net.now.wall,
            Duration::from_secs(9),
            b"x",
        );
        let signed = key(0).sign(Domain::Item, &crate::cbor::to_bytes(&item));
        let from = key(0).peer_id();
        net.deliver(1, ConnId(link), from, &Frame::Items(items(vec![signed])));
        net.step();
    }
    assert_eq!(net.violations, [FloodViolation::TooFast]);
}

#[test]
fn summaries_and_digests_beyond_a_neighbors_budget_are_not_answered() {
    let mut net = Net::new(2);
    net.publish(1);
    let flood = &mut net.peers[1].1;
    flood.link_up(ConnId(1));
    while flood.poll_transmit().is_some() {}
    let summary = Summary {
        hashes: BucketHashes(vec![99; SUMMARY_BUCKETS]),
        answer: None,
        items: 1,
    };
    for _ in 0..100 {
        flood.handle_summary(START, ConnId(1), &summary);
    }
    let answers = core::iter::from_fn(|| flood.poll_transmit()).count();
    assert_eq!(answers, 4);
    for _ in 0..100 {
        flood.handle_summary(START, ConnId(2), &summary);
    }
    let answers = core::iter::from_fn(|| flood.poll_transmit()).count();
    assert_eq!(answers, 16);
    let digest = Digest {
        buckets: Buckets::from_iter([key(1).peer_id().0[0]]),
        versions: Versions::default(),
    };
    let mut answers = 0;
    let mut now = START;
    for _ in 0..1_000 {
        flood.handle_digest(now, ConnId(1), &digest);
        now.mono = now.mono.after(BATCH_DELAY);
        flood.flush(now);
        answers += core::iter::from_fn(|| flood.poll_transmit()).count();
    }
    assert_eq!(answers, SUMMARY_BUCKETS);
}

#[test]
fn a_busy_crowd_comes_to_get_each_item_a_few_times_and_not_from_everyone() {
    // [FLOOD-14]
    let mut net = Net::new(16);
    net.mesh(0..16);
    let copies = |net: &mut Net| {
        let before = net.items;
        net.busy(0..3, 10);
        (net.items - before) as f64 / (10.0 * 3.0 * 15.0)
    };
    let all = copies(&mut net);
    assert!(
        all > 10.0,
        "each item came {all} times of 15 before anyone has declined"
    );
    net.busy(0..3, 100);
    let few = copies(&mut net);
    assert!((1.0..6.0).contains(&few), "each item came {few} times of 15");
    net.assert_equal(3);
    assert_eq!(net.violations, []);
}

#[test]
fn an_item_that_comes_over_the_only_link_to_a_crowd_spreads_in_it_at_once() {
    // [FLOOD-14] The members of the crowd have declined what the end of that link forwards: it was always late.
    let mut net = Net::new(18);
    net.mesh(0..16);
    net.link(15, 16);
    net.link(16, 17);
    net.busy(0..3, 100);
    let declined = net.peers[15]
        .1
        .links
        .values()
        .filter(|link| link.unwanted)
        .count();
    assert!(declined > 8, "only {declined} have declined");
    net.publish(17);
    net.run(Duration::from_millis(1500));
    (0..18).for_each(|n| assert!(net.knows(n, 17), "peer {n} has not heard of the far end"));
}

#[test]
fn who_loses_the_neighbors_that_forward_takes_others_back_and_misses_nothing() {
    // [FLOOD-14]
    let mut net = Net::new(12);
    net.mesh(0..12);
    net.busy(1..4, 100);
    let mut sources: Vec<ConnId> = Vec::new();
    for (conn, link) in &net.peers[0].1.links {
        if !link.declined {
            sources.push(*conn);
        }
    }
    assert!(sources.len() < 8, "{} forward", sources.len());
    // They are gone, with what they would have forwarded.
    (1..12).for_each(|n| net.publish(n));
    for conn in sources {
        let (a, b) = net.links[&conn.0];
        let now = net.now;
        net.peers[a].1.link_down(now, conn);
        net.peers[b].1.link_down(now, conn);
    }
    net.run(Duration::from_secs(2));
    let open = net.peers[0]
        .1
        .links
        .values()
        .filter(|link| !link.declined)
        .count();
    assert!(
        open >= copies::COPIES.min(net.peers[0].1.links.len()),
        "{open} are left"
    );
    net.busy(1..12, 3);
    let digest = net.peers[5].1.digest();
    assert_eq!(net.peers[0].1.digest(), digest);
}

#[test]
fn a_revocation_goes_to_those_who_decline_what_is_forwarded_too() {
    // [FLOOD-14]
    let mut flood = Flood::new(key(0).peer_id(), Random::from_seed([0; 32]));
    (0..5).for_each(|n| flood.link_up(ConnId(n)));
    flood.handle_forwarding(ConnId(4), &Forwarding { wanted: false });
    while flood.poll_transmit().is_some() {}
    let mut now = START;
    for (kind, receivers) in [(ItemKind::Record, 4), (ItemKind::Revocation, 5)] {
        let item = Item::new(kind, 0, 1, now.wall, Duration::from_secs(600), b"x");
        flood.restore(now, key(1).sign(Domain::Item, &crate::cbor::to_bytes(&item)));
        now.mono = now.mono.after(BATCH_INTERVAL);
        flood.handle_timeout(now);
        let sent = core::iter::from_fn(|| flood.poll_transmit());
        assert_eq!(
            sent.filter(|(_, frame)| matches!(frame, Frame::Items(_))).count(),
            receivers
        );
    }
}

mod comparison;
