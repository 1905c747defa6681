//! The same seed gives the same run: twice, in another process, in another build, however frames travel.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;
use std::time::Duration;

use hyperfabric_sim::conditions::Conditions;
use hyperfabric_sim::scale::{Scale, ScaleConfig};
use hyperfabric_sim::swarm;
use hyperfabric_sim::topology::Shape;
use hyperfabric_sim::world::WorldOptions;
use serde_json::Value;

fn config(seed: u64) -> ScaleConfig {
    ScaleConfig {
        peers: 20,
        seed,
        shape: Shape::Full,
        link: Conditions::default(),
        join_within: Duration::from_secs(10),
        tickets: true,
        limit: Duration::from_secs(100),
    }
}

fn hash(seed: u64, bytes: bool) -> String {
    let options = WorldOptions {
        bytes,
        log: false,
        discovery: true,
        share: !bytes,
    };
    let mut scale = Scale::new(config(seed), options);
    assert!(scale.run(), "the mesh did not come together");
    scale.report().trace_hash
}

#[test]
fn frames_that_are_shared_and_frames_that_travel_as_bytes_give_the_same_run() {
    let shared = hash(5, false);
    assert_eq!(shared, hash(5, true));
    assert_ne!(shared, hash(6, false), "another seed is another run");
}

#[test]
fn another_process_gives_the_same_trace() {
    let output = Command::new(env!("CARGO_BIN_EXE_hyperfabric-sim"))
        .args(["scale", "--peers", "20", "--seed", "5", "--json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["trace_hash"], hash(5, false));
    assert_eq!(report["joined"], true);
    assert!(report["events_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_seed_of_the_swarm_is_replayed_event_for_event() {
    let (first, second) = (swarm::run(3), swarm::run(3));
    assert_eq!(first.trace_hash, second.trace_hash);
    assert_eq!((first.events, first.transfers), (second.events, second.transfers));
}
