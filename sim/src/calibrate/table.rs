//! What is compared, and the one table of it.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::{Comparison, Observed};

/// How far virtual time may be off, in percent of what real nodes show.
pub const TOLERANCE_PERCENT: f64 = 15.0;

/// Something that both ways of simulating have shown.
#[derive(Clone, Debug, Serialize)]
pub struct Quantity {
    /// What it is.
    pub name: &'static str,
    /// With real nodes.
    pub real: f64,
    /// In virtual time.
    pub scale: f64,
    /// By how much virtual time is above, in percent of what real nodes show.
    pub difference_percent: f64,
    /// Whether that is within [`TOLERANCE_PERCENT`].
    pub holds: bool,
}

impl Quantity {
    fn new(name: &'static str, real: f64, scale: f64) -> Self {
        let difference_percent = (scale - real) / real * 100.0;
        Self {
            name,
            real,
            scale,
            difference_percent,
            holds: difference_percent.abs() <= TOLERANCE_PERCENT,
        }
    }
}

pub(super) fn quantities(real: &Observed, scale: &Observed) -> Vec<Quantity> {
    vec![
        Quantity::new("messages per peer", real.frames_per_peer, scale.frames_per_peer),
        Quantity::new(
            "control bytes per peer",
            real.control_bytes_per_peer,
            scale.control_bytes_per_peer,
        ),
        Quantity::new(
            "join in rounds, median",
            real.join_rounds_p50,
            scale.join_rounds_p50,
        ),
        Quantity::new(
            "join in rounds, 90 %",
            real.join_rounds_p90,
            scale.join_rounds_p90,
        ),
    ]
}

/// Returns how many rounds half, and nine in ten, of those took at most who had somebody to come to know.
pub(super) fn rounds(joins: &[Option<Duration>], round: Duration) -> (f64, f64) {
    let mut took: Vec<Duration> = joins.iter().skip(1).flatten().copied().collect();
    took.sort_unstable();
    let at = |percent: usize| {
        let join = took.get(took.len().saturating_sub(1) * percent / 100);
        join.map_or(f64::NAN, |join| join.as_secs_f64() / round.as_secs_f64())
    };
    (at(50), at(90))
}

/// Prints comparisons as one table, with what is not compared below it.
#[must_use]
pub fn table(comparisons: &[Comparison]) -> String {
    let mut out = format!(
        "{:<34} {:<24} {:>10} {:>10} {:>8}\n",
        "case", "quantity", "real", "scale", "differs"
    );
    for comparison in comparisons {
        let case = &comparison.case;
        let purpose = if case.calibrates { "calibrates" } else { "judges" };
        let name = format!("{} x {} ({purpose})", case.name, case.peers);
        for quantity in &comparison.quantities {
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "{name:<34} {:<24} {:>10.1} {:>10.1} {:>+7.1}% {}",
                quantity.name,
                quantity.real,
                quantity.scale,
                quantity.difference_percent,
                if quantity.holds { "ok" } else { "NOT ok" }
            );
        }
    }
    out.push_str("\nnot compared, for each peer:\n");
    for comparison in comparisons {
        let Comparison {
            case,
            real,
            scale,
            beside,
            ..
        } = comparison;
        let _ = writeln!(
            out,
            "{} x {}, seed {}: a round is {:.0} ms; know all {} and {}; dials {:.1} and {:.1}; connections {:.1} and {:.1}; \
             {:.0} kB of libp2p, {:.0} datagrams",
            case.name,
            case.peers,
            case.seed,
            comparison.round_ms,
            real.know_all,
            scale.know_all,
            real.dials_per_peer,
            scale.dials_per_peer,
            real.connections_per_peer,
            scale.connections_per_peer,
            beside.libp2p_bytes / 1_000.0,
            beside.datagrams
        );
    }
    out
}

/// Prints frames and bytes of each type, for each peer and both ways.
#[must_use]
pub fn details(comparison: &Comparison) -> String {
    let mut out = String::new();
    let row = |of: &Observed, name: &str| {
        let found = of.types.iter().find(|row| row.name == name);
        found.map_or((0.0, 0.0), |row| (row.frames, row.bytes))
    };
    let mut names: Vec<&str> = Vec::new();
    for observed in [&comparison.real, &comparison.scale] {
        for row in &observed.types {
            if !names.contains(&row.name) {
                names.push(row.name);
            }
        }
    }
    for name in names {
        let (real, scale) = (row(&comparison.real, name), row(&comparison.scale, name));
        let _ = writeln!(
            out,
            "  {name:<12} frames {:>9.1} {:>9.1}   bytes {:>11.0} {:>11.0}",
            real.0, scale.0, real.1, scale.1
        );
    }
    out
}
