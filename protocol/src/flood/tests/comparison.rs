//! Large comparisons: who is asked for what, once, and what happens to those who do not answer.

use super::*;

/// The last one is a newcomer; the others know each other.
const NEWCOMER: usize = 40;

fn full_mesh() -> Net {
    let mut net = Net::new(u8::try_from(NEWCOMER).unwrap() + 1);
    (0..NEWCOMER).for_each(|n| net.publish(n));
    net.mesh(0..NEWCOMER);
    net.run(Duration::from_secs(20));
    (0..NEWCOMER).for_each(|n| assert_eq!(net.peers[n].1.len(), NEWCOMER));
    net
}

#[test]
fn a_newcomer_of_many_neighbors_gets_every_item_once() {
    // [FLOOD-5]
    let mut net = full_mesh();
    for n in 0..8 {
        net.link(n, NEWCOMER);
    }
    let before = net.items;
    net.run(Duration::from_millis(500));
    assert_eq!(net.peers[NEWCOMER].1.len(), NEWCOMER);
    assert_eq!(net.items - before, NEWCOMER as u64);
    // Afterwards it compares with each of the others, and nothing differs.
    net.run(Duration::from_secs(20));
    assert_eq!(net.items - before, NEWCOMER as u64);
    assert!(net.peers[NEWCOMER].1.links.values().all(|link| !link.owes));
    assert_eq!(net.violations, []);
}

#[test]
fn a_neighbor_that_does_not_answer_holds_a_newcomer_up_for_two_seconds() {
    let mut net = full_mesh();
    let silent = net.link(0, NEWCOMER);
    net.silent = Some(silent);
    net.run(Duration::from_millis(200));
    net.link(1, NEWCOMER);
    net.run(Duration::from_millis(1_700));
    let known = net.peers[NEWCOMER].1.len();
    assert_eq!(known, 0, "nobody else is asked for what the first one owes");
    net.run(Duration::from_millis(300));
    assert_eq!(net.peers[NEWCOMER].1.len(), NEWCOMER);
    assert!(net.peers[NEWCOMER].1.links[&ConnId(silent)].slow);
}

#[test]
fn what_a_neighbor_has_not_sent_before_its_link_went_down_is_asked_of_another() {
    let mut net = full_mesh();
    let first = net.link(0, NEWCOMER);
    net.link(1, NEWCOMER);
    // Summaries arrive, and the digests leave; nobody has answered yet.
    while net.step() {}
    assert_eq!(net.peers[NEWCOMER].1.len(), 0);
    net.peers[NEWCOMER].1.link_down(net.now, ConnId(first));
    net.links.remove(&first);
    net.peers[0].1.link_down(net.now, ConnId(first));
    net.run(Duration::from_millis(100));
    assert_eq!(net.peers[NEWCOMER].1.len(), NEWCOMER);
}

#[test]
fn who_knows_little_does_not_keep_the_rest_from_being_asked_of_who_knows_more() {
    let mut net = full_mesh();
    // Another newcomer, who has got half of it so far.
    let mut half = Net::new(u8::try_from(NEWCOMER).unwrap());
    (0..NEWCOMER / 2).for_each(|n| half.publish(n));
    half.mesh(0..NEWCOMER);
    half.run(Duration::from_secs(20));
    net.peers[0].1 = half.peers.swap_remove(0).1;
    let old: Vec<u64> = net
        .links
        .iter()
        .filter(|(_, ends)| ends.0 == 0)
        .map(|(id, _)| *id)
        .collect();
    for id in old {
        let (_, other) = net.links.remove(&id).unwrap();
        net.peers[other].1.link_down(net.now, ConnId(id));
        net.peers[0].1.link_down(net.now, ConnId(id));
    }
    net.links.insert(9_000, (0, NEWCOMER));
    net.peers[0].1.link_up(ConnId(9_000));
    net.peers[NEWCOMER].1.link_up(ConnId(9_000));
    net.links.insert(9_001, (1, NEWCOMER));
    net.peers[1].1.link_up(ConnId(9_001));
    net.peers[NEWCOMER].1.link_up(ConnId(9_001));
    net.run(Duration::from_millis(200));
    assert_eq!(net.peers[NEWCOMER].1.len(), NEWCOMER);
}

#[test]
fn two_halves_of_a_mesh_that_meet_over_one_link_become_one() {
    let mut net = Net::new(40);
    (0..40).for_each(|n| net.publish(n));
    net.mesh(0..20);
    net.mesh(20..40);
    net.run(Duration::from_secs(20));
    assert_eq!((net.peers[0].1.len(), net.peers[39].1.len()), (20, 20));
    net.link(7, 33);
    net.run(Duration::from_secs(3));
    net.assert_equal(40);
}

#[test]
fn what_was_asked_for_is_kept_from_those_who_are_compared_with_but_for_revocations() {
    // [FLOOD-4]
    let mut flood = Flood::new(key(0).peer_id(), Random::from_seed([0; 32]));
    (0..3).for_each(|n| flood.link_up(ConnId(n)));
    let summary = Summary {
        hashes: BucketHashes(vec![99; SUMMARY_BUCKETS]),
        answer: None,
        items: 500,
    };
    for n in [0, 1] {
        flood.handle_summary(START, ConnId(n), &summary);
    }
    while flood.poll_transmit().is_some() {}
    let revocation = crate::cbor::to_bytes(&Revocation {
        peer: key(9).peer_id(),
        name: NodeId::new("n9").unwrap(),
        serial: crate::Serial([9; 16]),
        not_after: START.wall.after(Duration::from_secs(3600)),
        delegation: None,
    });
    let id = content::revocation_id(&crate::Serial([9; 16]));
    let signed = |by: u8, kind, id, body: &[u8]| {
        let item = Item::new(kind, id, 1, START.wall, Duration::from_secs(600), body);
        key(by).sign(Domain::Item, &crate::cbor::to_bytes(&item))
    };
    let answer = Items {
        answers: Some(0),
        ..items(vec![
            signed(5, ItemKind::Record, 0, &record(5)),
            signed(200, ItemKind::Revocation, id, &revocation),
        ])
    };
    flood
        .handle_items(START, ConnId(0), key(5).peer_id(), &answer)
        .unwrap();
    while let Some(job) = flood.poll_job() {
        for (from, version) in job.items {
            let result = content::check(version.signed(), &root(), START.wall);
            let checked = Checked {
                from,
                version,
                result,
            };
            flood.handle_checked(START, checked).unwrap();
        }
    }
    let mut now = START;
    now.mono = now.mono.after(BATCH_INTERVAL);
    flood.handle_timeout(now);
    let kinds = |(conn, frame): (ConnId, Frame)| match frame {
        Frame::Items(items) => Some((
            conn.0,
            items.items.iter().map(|v| v.key().kind).collect::<Vec<_>>(),
        )),
        _ => None,
    };
    let sent: Vec<_> = core::iter::from_fn(|| flood.poll_transmit())
        .filter_map(kinds)
        .collect();
    let (record, revocation) = (ItemKind::Record, ItemKind::Revocation);
    assert_eq!(sent, [(1, vec![revocation]), (2, vec![record, revocation])]);
}
