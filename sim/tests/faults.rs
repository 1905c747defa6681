//! Real nodes whose network, processes, clocks and disks fail as a scenario says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use hyperfabric_sim::conditions::Conditions;
use hyperfabric_sim::real::{
    self, Delivery, LoadOptions, NetworkConditions, PlayReport, RealConfig, RealError,
};
use hyperfabric_sim::scenario::Scenario;
use hyperfabric_sim::seed::Seed;
use hyperfabric_sim::topology::{CustomSpec, Shape, Topology};
use hyperfabric_sim::units::{Rate, Share};

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
        report.transfers.sent >= 8 && report.messages.arrived >= 15,
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

const OFFICE: &str = include_str!("../topologies/office.toml");

#[test]
fn a_topology_file_drives_real_nodes_and_virtual_time_and_who_cannot_be_dialled_is_met_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(folder.path(), "office.toml", OFFICE);
    let good = good.to_str().unwrap();
    let output = sim(&[
        "run",
        "--json",
        "--topology-file",
        good,
        "--messages",
        "40",
        "--transfers",
        "4",
    ]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["peers"], &report["know_all"]),
        (&5.into(), &5.into()),
        "{report}"
    );
    assert_eq!(report["delivery_ratio"], 1.0, "{report}");
    let output = sim(&["scale", "--json", "--topology-file", good]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["peers"], &report["joined"]),
        (&5.into(), &true.into()),
        "{report}"
    );

    let error = |command, text: &str| {
        let bad = file(folder.path(), "bad.toml", text);
        let output = sim(&[command, "--topology-file", bad.to_str().unwrap()]);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let unknown = OFFICE.replace("desk-2\"]", "desk-9\"]");
    let said = error("run", &unknown);
    assert!(
        said.contains("[[way]] number 1") && said.contains("desk-9"),
        "{said}"
    );
    let uneven = OFFICE.replace("[\"15ms\", \"10ms\", \"1ms\"]", "[\"99ms\", \"10ms\", \"1ms\"]");
    let said = error("scale", &uneven);
    assert!(said.contains("cloud") && said.contains("home"), "{said}");
}

#[test]
fn a_scenario_with_a_topology_of_its_own_cuts_off_a_region_of_it_and_all_agree_afterwards() {
    let custom = OFFICE
        .replace("[link]", "[topology.link]")
        .replace("[regions]", "[topology.regions]");
    let custom = custom
        .replace("[[node]]", "[[topology.node]]")
        .replace("[[way]]", "[[topology.way]]");
    let text = format!(
        r#"
        intent = "An office is cut off, one way, and comes back."
        peers = 5
        join_within = "500ms"
        lasts = "22s"
        [[fault]]
        kind = "partition"
        at = "3s"
        lasts = "14s"
        region = "office"
        way = "inward"
        [[load]]
        kind = "transfers"
        at = "1s"
        within = "15s"
        count = 8
        size = "300kB"
        [topology]
        shape = "custom"
        {custom}
        "#
    );
    let report = play(&text);
    assert_eq!(report.violations, [], "{report:#?}");
    assert_eq!(report.transfers.arrived, report.transfers.sent, "{report:#?}");
    assert!(report.datagrams.partitioned > 0, "{report:#?}");
    let more = text.replace("peers = 5", "peers = 6");
    let error = Scenario::parse(&more, Path::new("x.toml"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("5 nodes") && error.contains("6 peers"), "{error}");
}

#[test]
fn conditions_that_are_asked_for_are_those_that_the_mesh_meets() {
    let arguments = [
        "--latency",
        "20..40ms",
        "--loss",
        "2%",
        "--bandwidth",
        "40Mbps",
        "--peers",
        "4",
    ];
    let output = sim(&[&["conditions", "--json"], &arguments[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let lost = number(&report["lost_ppm"]);
    assert!((10_000.0..30_000.0).contains(&lost), "{report}");
    assert!(
        number(&report["messages"]["milliseconds"]["p50"]) >= 40.0,
        "{report}"
    );
    let rate = number(&report["transfer_bytes_per_second"]);
    assert!(rate > 50_000.0 && rate <= 5_000_000.0, "{report}");
    let ends = sim(&["conditions", "--latency", "40..20ms"]);
    assert_eq!(ends.status.code(), Some(2), "{ends:?}");
}

#[test]
fn a_load_test_delivers_what_is_asked_over_as_many_connections_and_says_what_it_cost() {
    let arguments = [
        "--connections",
        "12",
        "--rate",
        "100",
        "--duration",
        "3s",
        "--peers",
        "6",
    ];
    let output = sim(&[&["load-test", "--json"], &arguments[..]].concat());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report}");
    let number = |key: &str| report[key].as_f64().unwrap();
    assert_eq!(
        (number("connections"), number("connected")),
        (12.0, 12.0),
        "{report}"
    );
    assert_eq!(report["messages"]["sent"], 300, "{report}");
    assert_eq!(
        report["messages"]["sent"], report["messages"]["arrived"],
        "{report}"
    );
    assert!(
        number("rate_achieved") > 50.0 && number("cpu") > 0.0 && number("rss_bytes") > 1e6,
        "{report}"
    );
    let many = sim(&["load-test", "--connections", "16", "--peers", "6"]);
    let said = String::from_utf8_lossy(&many.stderr).into_owned();
    assert!(said.contains("6 peers hold at most 15"), "{said}");
    for nothing in ["--connections", "--rate"] {
        let refused = sim(&["load-test", nothing, "0"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(
            said.contains(nothing) && said.contains("0 is not in 1.."),
            "{said}"
        );
    }
}

#[test]
fn a_load_that_the_network_cannot_carry_is_counted_as_refused_or_held_back() {
    let thin = NetworkConditions {
        latency_range: Duration::from_millis(5)..=Duration::from_millis(10),
        packet_loss_rate: Share(0),
        bandwidth_limit: Some(Rate(20_000)),
    };
    let options = LoadOptions {
        peers: Some(3),
        conditions: thin,
        seed: 1,
    };
    let report = real::load_test(3, 3_000, Duration::from_secs(3), &options, &|_| {}).unwrap();
    assert!(report.rate_achieved < 2_000.0, "{report:#?}");
    assert!(report.held_back + report.refused as u64 > 0, "{report:#?}");
    let messages = &report.messages;
    assert_eq!(messages.arrived + report.refused, messages.sent, "{report:#?}");
}

#[test]
fn who_knows_only_peers_that_nobody_can_dial_does_not_get_in() {
    let nodes = "[[node]]\nname = 'server'\n[[node]]\nname = 'laptop'\ncount = 2\ndialled_by = 'nobody'\n";
    let spec: CustomSpec = toml::from_str(nodes).unwrap();
    let shape = Shape::Custom(Arc::new(spec.resolve().unwrap()));
    let topology = Topology::new(Seed(1), &shape, 3, Conditions::default(), 0);
    let config = |contacts: [Vec<usize>; 3]| RealConfig {
        seed: 1,
        contacts: contacts.to_vec(),
        links: real::topology_links(&topology, topology.base),
        messages: 0,
        transfers: 0,
        transfer_bytes: 0,
        messages_at_once: 1,
        transfers_at_once: 1,
        limit: Duration::from_secs(6),
        settle: Duration::ZERO,
    };
    // The server dials a laptop that lets nobody in and knows nobody itself.
    let report = real::run(&config([vec![1], vec![], vec![0]]), &|_| {}).unwrap();
    assert_eq!(report.know_all, 0, "{report:#?}");
    assert!(report.datagrams.unasked > 0, "{report:#?}");
    // One laptop knows only the other one.
    let report = real::run(&config([vec![], vec![0], vec![1]]), &|_| {}).unwrap();
    assert_eq!(report.know_all, 0, "{report:#?}");
    assert!(report.datagrams.partitioned > 0, "{report:#?}");
    let report = real::run(&config([vec![], vec![0], vec![0]]), &|_| {}).unwrap();
    assert_eq!(report.know_all, 3, "{report:#?}");
}
