//! Virtual time against real nodes, as the command `calibrate` has it, with few peers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use hyperfabric_sim::calibrate::{Case, cases, compare, details, table};
use hyperfabric_sim::topology::Shape;

/// How far a busy machine, and the chance of a few peers, may take the two ways apart, as a ratio.
const APART_MAX: f64 = 1.4;
/// The same for times, to which such a machine only adds.
const ROUNDS_APART_MAX: f64 = 2.5;

#[test]
fn virtual_time_and_real_nodes_agree_on_what_a_small_mesh_costs() {
    let case = Case {
        start_every: Duration::from_secs(1),
        rest: Duration::from_secs(8),
        ..Case::new("grid", 9, Shape::Grid, 5)
    };
    let comparison = compare(&case, &|_| {}).unwrap();
    let shown = format!(
        "{}{}",
        table(std::slice::from_ref(&comparison)),
        details(&comparison)
    );
    assert_eq!(
        (comparison.real.know_all, comparison.scale.know_all),
        (9, 9),
        "{shown}"
    );
    for quantity in &comparison.quantities {
        let apart = if quantity.name.starts_with("join") {
            ROUNDS_APART_MAX
        } else {
            APART_MAX
        };
        let ratio = quantity.scale / quantity.real;
        assert!(
            (1.0 / apart..apart).contains(&ratio),
            "{}:\n{shown}",
            quantity.name
        );
    }
    // Newcomers are told of what is there, and are heard of: neither is done without frames.
    for name in ["Hello", "Summary", "Digest", "Items"] {
        let of = |types: &[hyperfabric_sim::calibrate::FrameType]| {
            let found = types.iter().find(|row| row.name == name);
            found.map_or(0.0, |row| row.frames)
        };
        assert!(
            of(&comparison.real.types) > 0.5 && of(&comparison.scale.types) > 0.5,
            "{name}:\n{shown}"
        );
    }
    assert!(comparison.beside.datagrams > comparison.real.frames_per_peer && shown.contains("grid x 9"));
}

#[test]
fn one_case_calibrates_and_those_that_judge_differ_from_it_and_from_each_other() {
    let cases = cases(100, 300, 1);
    let calibrating: Vec<&str> = cases
        .iter()
        .filter(|case| case.calibrates)
        .map(|case| case.name.as_str())
        .collect();
    assert_eq!(calibrating, ["small-world"]);
    for (at, case) in cases.iter().enumerate() {
        assert_eq!(case.peers, if case.calibrates { 100 } else { 300 });
        let alike = |other: &Case| other.seed == case.seed || other.name == case.name;
        assert_eq!(cases.iter().filter(|other| alike(other)).count(), 1, "case {at}");
    }
}
