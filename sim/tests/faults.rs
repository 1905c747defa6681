//! Real nodes whose network, processes, clocks and disks fail as a scenario says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hyperfabric_sim::real::{self, Delivery, PlayReport, RealError};
use hyperfabric_sim::scenario::Scenario;

/// The most connections that a peer may hold.
const DEGREE_MAX: u64 = 32;

const EVERYTHING: &str = r#"
intent = "A few peers of which many fail, in every way that there is."
peers = 6
join_within = "1s"
lasts = "16s"
link = { latency = "2ms", latency_max = "6ms", loss = "0.1%" }

[[fault]]
kind = "partition"
at = "4s"
lasts = "3s"
share = "40%"
way = "outward"

[[fault]]
kind = "crash"
at = "5s"
lasts = "3s"
peers = 2

[[fault]]
kind = "slow"
at = "3s"
lasts = "6s"
peers = 1
by = "300ms"

[[fault]]
kind = "clock"
at = "9s"
lasts = "4s"
peers = 1
ahead = "2h"

[[fault]]
kind = "disconnect"
at = "2s"
pairs = 2

[[load]]
kind = "transfers"
at = "3s"
within = "8s"
count = 10
size = "3MiB"

[[load]]
kind = "messages"
at = "3s"
within = "8s"
count = 30

[[load]]
kind = "crowd"
at = "6s"
within = "2s"
peers = 2

[[load]]
kind = "strangers"
at = "4s"
peers = 1
"#;

fn scenario(text: &str) -> Scenario {
    Scenario::parse(text, Path::new("test.toml")).unwrap_or_else(|error| panic!("{error:?}"))
}

fn play(text: &str) -> PlayReport {
    real::play(scenario(text), 1, &|_| {}).unwrap()
}

fn all_ended(of: &Delivery) -> bool {
    of.damaged == 0 && of.arrived + of.errors.values().sum::<usize>() == of.sent
}

#[test]
fn real_nodes_whose_network_processes_disks_and_clocks_fail_lose_nothing_and_agree_in_the_end() {
    let report = play(EVERYTHING);
    assert_eq!(report.violations, [], "{report:#?}");
    assert_eq!(
        (report.peers, report.crashes, report.not_joined),
        (9, 2, 0),
        "{report:#?}"
    );
    assert!(
        all_ended(&report.transfers) && all_ended(&report.messages),
        "{report:#?}"
    );
    assert_eq!(report.transfers.arrived, report.transfers.sent, "{report:#?}");
    assert!(
        report.transfers.sent >= 8 && report.messages.arrived > 10,
        "{report:#?}"
    );
    assert!(report.connections.max <= DEGREE_MAX, "{report:#?}");
    assert!(
        report.datagrams.partitioned > 0 && report.datagrams.lost > 0,
        "{report:#?}"
    );
}

#[test]
fn a_member_that_is_revoked_is_forgotten_by_all_and_what_is_sent_to_it_ends_with_an_error() {
    let report = play(
        r#"
        intent = "One of five is thrown out while files are under way."
        peers = 5
        join_within = "500ms"
        lasts = "8s"
        [[fault]]
        kind = "revoke"
        at = "4s"
        peers = 1
        [[load]]
        kind = "transfers"
        at = "2s"
        within = "4s"
        count = 8
        size = "200kB"
        "#,
    );
    assert_eq!(report.violations, [], "{report:#?}");
    assert!(all_ended(&report.transfers), "{report:#?}");
    // The four that are left.
    assert!(report.connections.mean <= 3.0, "{report:#?}");
}

#[test]
fn what_real_nodes_cannot_carry_out_is_refused_by_its_key() {
    let many = scenario(EVERYTHING).with_peers(3_000);
    let error = real::play(many, 1, &|_| {}).unwrap_err();
    assert!(matches!(error, RealError::Scenario(_)), "{error:?}");
    assert!(error.to_string().contains("peers = 3000"), "{error}");
}

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hyperfabric-sim"))
        .args(arguments)
        .output()
        .unwrap()
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_command_carries_out_a_file_and_says_where_a_bad_one_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let short = "intent = 'Two meet.'\npeers = 2\njoin_within = '100ms'\nlasts = '2s'\n\
        [[load]]\nkind = 'messages'\nat = '1s'\nwithin = '500ms'\ncount = 4\n";
    let good = file(folder.path(), "good.toml", short);
    let output = sim(&["run", "--json", "--scenario", good.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["violations"].as_array().map(Vec::len), Some(0), "{report}");
    assert_eq!(
        report["messages"]["sent"], report["messages"]["arrived"],
        "{report}"
    );

    let error = |arguments: &[&str]| String::from_utf8_lossy(&sim(arguments).stderr).into_owned();
    let bad = file(
        folder.path(),
        "bad.toml",
        &short.replace("count = 4", "cuont = 4"),
    );
    let said = error(&["run", "--scenario", bad.to_str().unwrap()]);
    assert!(said.contains("cuont") && said.contains("line 5"), "{said}");
    let said = error(&["scale", "--scenario", good.to_str().unwrap()]);
    assert!(
        said.contains("messages") && said.contains("[[load]] number 1"),
        "{said}"
    );
    let said = error(&["run", "--scenario", "chrun"]);
    assert!(said.contains("churn, flash-crowd"), "{said}");
}
