//! Random scenarios with faults, and what is left of one that fails.

use std::time::Duration;

use serde::Serialize;

use crate::run::{Run, RunReport};
use crate::scenario::{Fault, LinkSpec, Load, Scenario, TopologySpec, Way};
use crate::seed::{Draws, Seed, Stream};
use crate::units::{Bytes, Rate, Share, Span};

/// How often a failing scenario is run again to make it smaller.
const SHRINK_RUNS_MAX: usize = 60;

/// A failing seed, made small.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What came of it as it was drawn.
    pub report: RunReport,
    /// The smallest scenario that was found to fail in the same way, with the same seed.
    pub shrunk: Scenario,
    /// How many runs that took.
    pub runs: usize,
}

const fn span(ms: u64) -> Span {
    Span(Duration::from_millis(ms))
}

/// Draws a scenario.
#[must_use]
pub fn scenario(seed: u64) -> Scenario {
    let mut draws = Seed(seed).stream(Stream::Faults, 1, 0);
    let peers = usize::try_from(draws.between(3, 16)).unwrap_or(3);
    let lasts_ms = draws.between(30_000, 90_000);
    let topology = match draws.below(8) {
        0 => TopologySpec::Ring,
        1 => TopologySpec::Grid,
        2 => TopologySpec::Tree { fanout: 3 },
        3 => TopologySpec::SmallWorld {
            near: 3,
            rewired: Share(200_000),
        },
        4 | 5 => TopologySpec::Geographic {
            hidden: Share(200_000),
        },
        _ => TopologySpec::Full,
    };
    let faults = (0..draws.between(1, 5))
        .map(|_| fault(&mut draws, lasts_ms))
        .collect();
    let loads = (0..draws.between(1, 3))
        .map(|_| load(&mut draws, lasts_ms))
        .collect();
    let mut drawn = Scenario {
        intent: format!("What seed {seed} draws."),
        peers,
        join_within: span(draws.between(0, 10_000)),
        lasts: span(lasts_ms),
        topology,
        link: link(&mut draws),
        connections_max: None,
        between: Vec::new(),
        faults,
        loads,
    };
    add_rarer(&mut drawn, seed, lasts_ms);
    drawn
}

/// Adds what most runs are without, from a stream of its own: what else a seed draws does not depend on it.
fn add_rarer(scenario: &mut Scenario, seed: u64, lasts_ms: u64) {
    let mut draws = Seed(seed).stream(Stream::Faults, 2, 0);
    if draws.below(4) == 0 {
        let at = span(draws.between(2_000, lasts_ms / 2));
        let peers = usize::try_from(draws.between(1, 2)).unwrap_or(1);
        let stay = span(draws.between(2_000, lasts_ms / 3));
        scenario.loads.push(Load::Guests { at, peers, stay });
    }
    if draws.below(4) == 0 {
        let at = span(draws.between(2_000, lasts_ms / 2));
        let peers = usize::try_from(draws.between(1, 2)).unwrap_or(1);
        scenario.loads.push(Load::Twins { at, peers });
    }
    if draws.below(4) == 0 {
        let at = span(draws.between(2_000, lasts_ms / 2));
        scenario.loads.push(Load::Transfers {
            at,
            within: span(draws.between(0, 5_000)),
            count: usize::try_from(draws.between(4, 20)).unwrap_or(4),
            size: Bytes(draws.between(1, 8_000_000)),
            to_one: true,
        });
        // Where peers can reach a few others only, fewer connections would leave some outside.
        if scenario.topology == TopologySpec::Full {
            let max = usize::try_from(draws.between(4, 8)).unwrap_or(4);
            scenario.connections_max = Some(max);
        }
    }
    if draws.below(4) == 0 {
        let at = draws.between(5_000, lasts_ms / 2);
        // Clocks are wrong by seconds and minutes more often than by hours.
        let error = [30_000, 280_000, 900_000][draws.index(3)];
        let (ahead, behind) = if draws.below(2) == 0 {
            (error, 0)
        } else {
            (0, error)
        };
        scenario.faults.push(Fault::Clock {
            at: span(at),
            lasts: span(draws.between(2_000, lasts_ms / 2)),
            peers: usize::try_from(draws.between(1, 2)).unwrap_or(1),
            ahead: span(draws.between(0, ahead)),
            behind: span(draws.between(0, behind)),
            reboots: draws.below(2) == 0,
        });
    }
    if draws.below(4) == 0 {
        scenario.faults.push(Fault::CrashMidway {
            at: span(draws.between(2_000, lasts_ms / 2)),
            lasts: span(draws.between(100, 10_000)),
            peers: usize::try_from(draws.between(1, 4)).unwrap_or(1),
        });
    }
}

fn link(draws: &mut Draws) -> LinkSpec {
    let latency = draws.between(1, 80);
    LinkSpec {
        latency: span(latency),
        latency_max: (draws.below(3) == 0).then(|| span(latency * 3)),
        deviation: None,
        jitter: span(draws.below(20)),
        loss: Share(u32::try_from([0, 1_000, 10_000, 50_000][draws.index(4)]).unwrap_or(0)),
        bursts: (draws.below(5) == 0).then_some(Share(2_000)),
        rate: Rate([1_000_000, 10_000_000, 100_000_000][draws.index(3)]),
        queue: Bytes(1_000_000),
    }
}

fn fault(draws: &mut Draws, lasts_ms: u64) -> Fault {
    let at = span(draws.between(5_000, lasts_ms.saturating_sub(5_000)));
    let lasts = span(draws.between(500, 30_000));
    let peers = usize::try_from(draws.between(1, 3)).unwrap_or(1);
    match draws.below(10) {
        0..=2 => Fault::Partition {
            at,
            lasts,
            share: Share(u32::try_from(draws.between(100_000, 500_000)).unwrap_or(0)),
            region: None,
            way: [Way::Both, Way::Outward, Way::Inward][draws.index(3)],
        },
        3 | 4 => Fault::Crash { at, lasts, peers },
        5 => Fault::Slow {
            at,
            lasts,
            peers,
            by: span(draws.between(10, 1_000)),
        },
        6 => Fault::Clock {
            at,
            lasts,
            peers,
            ahead: span(draws.below(2) * draws.below(7_200_000)),
            behind: span(draws.below(2) * draws.below(7_200_000)),
            reboots: false,
        },
        7 => Fault::Disconnect { at, pairs: 2 * peers },
        8 => Fault::Revoke { at, peers: 1 },
        _ => Fault::Churn {
            at,
            lasts,
            every: span(draws.between(1_000, 5_000)),
            gone: span(draws.between(100, 8_000)),
        },
    }
}

fn load(draws: &mut Draws, lasts_ms: u64) -> Load {
    let at = span(draws.between(2_000, lasts_ms / 2));
    let within = span(draws.between(0, lasts_ms / 2));
    let count = usize::try_from(draws.between(1, 6)).unwrap_or(1);
    match draws.below(6) {
        0 => Load::Crowd {
            at,
            within,
            peers: count,
        },
        1 => Load::Strangers { at, peers: 1 },
        _ => Load::Transfers {
            at,
            within,
            count,
            // Not a whole number of chunks, and sometimes nothing at all.
            size: Bytes(draws.below(5) * draws.below(12_000_000)),
            to_one: false,
        },
    }
}

/// Runs what a seed draws; returns its report.
///
/// # Panics
/// Never: what is drawn can be run.
#[must_use]
pub fn run(seed: u64) -> RunReport {
    let mut run = Run::new(scenario(seed), seed).expect("what is drawn can be run");
    run.finish()
}

/// Runs what a seed draws, and leaves it as it is if it fails.
///
/// # Errors
/// [`Failure`] says what did not hold.
pub fn try_as_drawn(seed: u64) -> Result<RunReport, Box<Failure>> {
    let report = run(seed);
    if report.violations.is_empty() {
        return Ok(report);
    }
    Err(Box::new(Failure {
        seed,
        report,
        shrunk: scenario(seed),
        runs: 0,
    }))
}

/// Runs what a seed draws, and makes it smaller if it fails.
///
/// # Errors
/// [`Failure`] says what did not hold, and with how little.
pub fn try_seed(seed: u64) -> Result<RunReport, Box<Failure>> {
    try_as_drawn(seed).map_err(|mut failure| {
        if let Some(first) = failure.report.violations.first() {
            (failure.shrunk, failure.runs) = shrink(scenario(seed), seed, first.checker);
        }
        failure
    })
}

/// Tells whether a scenario fails the same checker.
fn fails(scenario: &Scenario, seed: u64, checker: &str) -> bool {
    let Ok(mut run) = Run::new(scenario.clone(), seed) else {
        return false;
    };
    run.finish()
        .violations
        .iter()
        .any(|violation| violation.checker == checker)
}

/// Looks for a smaller scenario that fails in the same way: without a fault or a load, shorter, with fewer peers.
/// Returns it, and how many runs that took.
#[must_use]
pub fn shrink(scenario: Scenario, seed: u64, checker: &str) -> (Scenario, usize) {
    shrink_while(scenario, |candidate| fails(candidate, seed, checker))
}

fn shrink_while(mut scenario: Scenario, fails: impl Fn(&Scenario) -> bool) -> (Scenario, usize) {
    let mut runs = 0;
    loop {
        let mut smaller = false;
        for candidate in candidates(&scenario) {
            if runs == SHRINK_RUNS_MAX {
                return (scenario, runs);
            }
            runs += 1;
            if fails(&candidate) {
                scenario = candidate;
                smaller = true;
                break;
            }
        }
        if !smaller {
            return (scenario, runs);
        }
    }
}

/// Returns scenarios that are a step smaller, the largest steps first.
fn candidates(scenario: &Scenario) -> Vec<Scenario> {
    let mut out = Vec::new();
    for at in 0..scenario.faults.len() {
        let mut smaller = scenario.clone();
        smaller.faults.remove(at);
        out.push(smaller);
    }
    for at in 0..scenario.loads.len() {
        let mut smaller = scenario.clone();
        smaller.loads.remove(at);
        out.push(smaller);
    }
    for peers in [scenario.peers / 2, scenario.peers - 1] {
        if peers >= 2 && peers < scenario.peers {
            let mut smaller = scenario.clone();
            smaller.peers = peers;
            out.push(smaller);
        }
    }
    let last = scenario
        .faults
        .iter()
        .map(|fault| fault.span().0 + fault.span().1)
        .max();
    let shorter = scenario.lasts.0 * 3 / 4;
    if last.is_none_or(|last| last <= shorter) && shorter > Duration::from_secs(5) {
        let mut smaller = scenario.clone();
        smaller.lasts = Span(shorter);
        out.push(smaller);
    }
    for (at, load) in scenario.loads.iter().enumerate() {
        if let Load::Transfers { count, .. } = load
            && *count > 1
        {
            let mut smaller = scenario.clone();
            if let Load::Transfers { count, .. } = &mut smaller.loads[at] {
                *count -= 1;
            }
            out.push(smaller);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_draws_something_that_can_be_run() {
        for seed in 0..2_000 {
            scenario(seed)
                .check()
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        assert_eq!(scenario(5), scenario(5));
        assert_ne!(scenario(5), scenario(6));
    }

    #[test]
    fn what_fails_is_made_as_small_as_it_can_be() {
        let has_crash = |s: &Scenario| s.faults.iter().any(|fault| matches!(fault, Fault::Crash { .. }));
        let fails = |s: &Scenario| s.peers >= 3 && has_crash(s);
        let seed = (0..1_000).find(|seed| {
            let drawn = scenario(*seed);
            fails(&drawn) && drawn.faults.len() >= 4 && drawn.peers > 10 && drawn.loads.len() >= 2
        });
        let (small, runs) = shrink_while(scenario(seed.unwrap()), fails);
        assert_eq!(
            (small.peers, small.faults.len(), small.loads.len()),
            (3, 1, 0),
            "{small:#?}"
        );
        assert!(has_crash(&small) && runs <= SHRINK_RUNS_MAX);
    }
}
