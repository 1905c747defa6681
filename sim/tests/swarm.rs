//! A few seeds of the swarm, among them those that have found something once, and the scenarios of this repository.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::Command;

use hyperfabric_sim::debug::{Case, Debugger};
use hyperfabric_sim::run::Run;
use hyperfabric_sim::scenario::Scenario;
use hyperfabric_sim::swarm;
use serde_json::Value;

fn holds(seed: u64) {
    let report = swarm::run(seed);
    assert!(
        report.violations.is_empty(),
        "seed {seed}: {:#?}",
        report.violations
    );
}

fn scenario(name: &str) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name);
    Scenario::read(&path).unwrap()
}

/// Runs a scenario with fewer peers, as this build checks its arithmetic.
fn run(name: &str, peers: usize) {
    let mut scenario = scenario(name);
    scenario.peers = peers;
    let report = Run::new(scenario, 1).unwrap().finish();
    println!("{name}: {} of {} delivered", report.delivered, report.transfers);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    assert_eq!(report.delivered + report.failed, report.transfers);
}

#[test]
fn the_first_seeds_hold() {
    (1..=25).for_each(holds);
}

#[test]
fn a_clock_that_is_set_right_does_not_cost_a_peer_its_own_record() {
    // The news that the old version had ended removed the new one. [DIR-4]
    [69, 813, 879].into_iter().for_each(holds);
}

#[test]
fn a_revocation_from_a_clock_that_was_ahead_counts_once_the_clock_is_right() {
    // It was dated in the future, and nobody took it until then. [FLOOD-13]
    [57, 382, 617].into_iter().for_each(holds);
}

#[test]
fn a_member_whose_certificate_has_run_out_is_gone_for_everyone() {
    // Its record counted for longer, but not for those who came later. [DIR-4]
    [4, 7, 9].into_iter().for_each(holds);
}

#[test]
fn churn_holds() {
    run("churn.toml", 12);
}

#[test]
fn a_regional_partition_heals() {
    run("partition.toml", 16);
}

#[test]
fn a_slow_receiver_holds_up_nobody_but_itself() {
    run("slow-receiver.toml", 12);
}

#[test]
fn what_crosses_a_thin_link_arrives() {
    run("thin-link.toml", 12);
}

#[test]
fn a_seed_can_be_debugged_step_by_step() {
    let case = Case {
        seed: 3,
        scenario: swarm::scenario(3),
    };
    let log = serde_json::to_string(&case).unwrap();
    assert_eq!(
        serde_json::from_str::<Case>(&log).unwrap(),
        case,
        "a log says what was run"
    );
    let mut debugger = Debugger::new(case).unwrap();
    assert!(debugger.command("break PeerUp").unwrap().contains("PeerUp"));
    let stopped = debugger.command("go").unwrap();
    assert!(stopped.contains("PeerUp {"), "{stopped}");
    assert!(debugger.command("peer 0").unwrap().contains("knows"));
    assert!(debugger.command("peer 999").unwrap().contains("there are"));
    assert!(debugger.command("what").unwrap().contains("step [N]"));
    assert_eq!(debugger.command("quit"), None);
}

#[test]
fn the_command_names_the_seeds_that_fail() {
    let output = Command::new(env!("CARGO_BIN_EXE_hyperfabric-sim"))
        .args(["swarm", "--seeds", "4", "--json"])
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["failed"], serde_json::json!([]));
    assert!(output.status.success());
}

#[test]
fn a_file_with_an_unknown_key_is_refused_with_its_name_and_place() {
    let folder = std::env::temp_dir().join(format!("hyperfabric-sim-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("mine.toml");
    std::fs::write(&path, "intent = 'mine.'\npears = 3\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hyperfabric-sim"))
        .args(["scale", "--scenario"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(
        said.contains("mine.toml") && said.contains("pears") && said.contains("line 2"),
        "{said}"
    );
}
