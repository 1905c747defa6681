//! Real nodes on a bad network, as the command `run` has them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Mutex;
use std::time::Duration;

use hyperfabric_sim::conditions::{Conditions, Loss};
use hyperfabric_sim::real::{self, Phase, RealConfig, RealError};
use hyperfabric_sim::seed::Seed;
use hyperfabric_sim::topology::{Shape, Topology};

/// The most connections that a peer may hold.
const DEGREE_MAX: u64 = 32;

fn config(peers: usize, shape: &Shape, base: Conditions) -> RealConfig {
    let topology = Topology::new(Seed(4), shape, peers, base, 0);
    let latency = Duration::from_millis(5)..=Duration::from_millis(40);
    RealConfig {
        seed: 4,
        contacts: real::contacts(&topology, peers),
        links: real::spread_links(Seed(4), latency, base),
        messages: 40,
        transfers: 8,
        transfer_bytes: (1 << 20) + 1,
        messages_at_once: 8,
        transfers_at_once: 4,
        limit: Duration::from_secs(120),
        settle: Duration::ZERO,
    }
}

#[test]
fn peers_that_know_a_neighbor_on_a_lossy_line_meet_all_and_exchange_messages_and_files() {
    let base = Conditions {
        loss: Loss::Bernoulli { ppm: 10_000 },
        ..Conditions::default()
    };
    let phases = Mutex::new(Vec::new());
    let report = real::run(&config(12, &Shape::Line, base), &|progress| {
        let mut phases = phases.lock().unwrap();
        if phases.last() != Some(&progress.phase) {
            phases.push(progress.phase);
        }
    })
    .unwrap();
    assert_eq!(report.know_all, 12, "{report:#?}");
    assert_eq!(
        (report.messages.arrived, report.transfers.arrived),
        (40, 8),
        "{report:#?}"
    );
    assert_eq!(report.delivery_ratio, 1.0);
    assert_eq!(report.messages.damaged + report.transfers.damaged, 0);
    assert!(
        report.connections.max <= DEGREE_MAX && report.dials.mean > 0.0,
        "{report:#?}"
    );
    assert!(report.datagrams.lost > 0, "the network was not bad");
    // Each pair is at least 5 ms apart, one way.
    assert!(report.messages.milliseconds.p50 >= 10.0, "{report:#?}");
    let all = [Phase::Start, Phase::Meet, Phase::Messages, Phase::Transfers];
    assert_eq!(*phases.lock().unwrap(), all);
}

#[test]
fn a_network_that_carries_nothing_is_reported_and_not_waited_for_without_end() {
    let dead = Conditions {
        loss: Loss::Bernoulli { ppm: 1_000_000 },
        ..Conditions::default()
    };
    let config = RealConfig {
        messages: 3,
        transfers: 2,
        limit: Duration::from_secs(3),
        ..config(3, &Shape::Full, dead)
    };
    let report = real::run(&config, &|_| {}).unwrap();
    assert_eq!((report.know_all, report.delivery_ratio), (0, 0.0), "{report:#?}");
    let ended = |of: &real::Delivery| of.errors.values().sum::<usize>();
    assert_eq!(
        (ended(&report.messages), ended(&report.transfers)),
        (3, 2),
        "{report:#?}"
    );
}

#[test]
fn one_peer_is_no_mesh() {
    let alone = RealConfig {
        contacts: vec![Vec::new()],
        ..config(2, &Shape::Full, Conditions::default())
    };
    assert!(matches!(real::run(&alone, &|_| {}), Err(RealError::Peers(1))));
}
