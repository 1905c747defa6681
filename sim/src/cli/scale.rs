//! The command `scale`: a mesh of many peers, or a scenario, and what it costs this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hyperfabric_sim::conditions::Conditions;
use hyperfabric_sim::report::{scale_page, scenario_page};
use hyperfabric_sim::run::{Run, RunReport, rss_bytes};
use hyperfabric_sim::scale::{Scale, ScaleConfig, ScaleReport};
use hyperfabric_sim::scenario::Scenario;
use hyperfabric_sim::topology::{CustomSpec, Shape};
use hyperfabric_sim::world::WorldOptions;
use serde::Serialize;

use super::args::ScaleArgs;
use super::output::{say, write_page};

const PEERS: u32 = 1000;
/// Virtual time after which a mesh that has not come together never will.
const LIMIT: Duration = Duration::from_secs(1800);

/// What a run cost this machine.
#[derive(Debug, Serialize)]
struct Cost {
    seconds: f64,
    events_per_second: f64,
    rss_bytes: u64,
}

impl Cost {
    fn of(begin: Instant, events: u64) -> Self {
        let seconds = begin.elapsed().as_secs_f64();
        Self {
            seconds,
            events_per_second: events as f64 / seconds.max(f64::MIN_POSITIVE),
            rss_bytes: rss_bytes().unwrap_or(0),
        }
    }
}

#[derive(Debug, Serialize)]
struct Joined {
    #[serde(flatten)]
    report: ScaleReport,
    #[serde(flatten)]
    cost: Cost,
    /// What the process has, divided by peers and by items.
    rss_bytes_per_peer_and_item: u64,
}

#[derive(Debug, Serialize)]
struct Ran {
    #[serde(flatten)]
    report: RunReport,
    #[serde(flatten)]
    cost: Cost,
}

pub(super) fn run(args: &ScaleArgs, json: bool) -> Result<bool> {
    match &args.scenario {
        Some(file_or_name) => {
            let mut scenario = Scenario::find(file_or_name)?;
            if let Some(peers) = args.peers {
                scenario = scenario.with_peers(peers as usize);
            }
            run_scenario(scenario, args, json)
        }
        None => join(args, json),
    }
}

fn run_scenario(scenario: Scenario, args: &ScaleArgs, json: bool) -> Result<bool> {
    let begin = Instant::now();
    let mut run = Run::new(scenario, args.seed)?;
    if args.html.is_some() {
        run.record();
    }
    let report = run.finish();
    let cost = Cost::of(begin, report.events);
    if let (Some(path), Some(recording)) = (&args.html, run.recording()) {
        write_page(path, &scenario_page(&report, &recording))?;
    }
    let good = report.violations.is_empty();
    let ran = Ran { report, cost };
    if json {
        say!("{}", serde_json::to_string(&ran)?);
        return Ok(good);
    }
    let Ran { report, cost } = ran;
    say!("{}", report.intent);
    say!(
        "{} peers, {:.0} s of virtual time in {:.1} s, {} events ({:.0}/s), trace {}",
        report.peers,
        report.virtual_seconds,
        cost.seconds,
        report.events,
        cost.events_per_second,
        report.trace_hash
    );
    say!(
        "{} transfers: {} delivered, {} ended with an error",
        report.transfers,
        report.delivered,
        report.failed
    );
    for violation in &report.violations {
        say!("VIOLATION {violation:?}");
    }
    Ok(good)
}

/// Who can reach whom, and how many they are.
fn shape(args: &ScaleArgs) -> Result<(Shape, usize)> {
    Ok(match &args.topology_file {
        Some(path) => {
            let custom = CustomSpec::read(path)?.resolve()?;
            if let Some((a, b)) = custom.uneven() {
                bail!(
                    "regions.latency: between {a:?} and {b:?} packets travel longer in one direction than in the \
                     other, which virtual time cannot do: make both the same, or use `run`"
                );
            }
            let nodes = custom.len();
            (Shape::Custom(Arc::new(custom)), nodes)
        }
        None => (args.topology.shape(), args.peers.unwrap_or(PEERS) as usize),
    })
}

fn join(args: &ScaleArgs, json: bool) -> Result<bool> {
    let begin = Instant::now();
    let (shape, peers) = shape(args)?;
    let config = ScaleConfig {
        peers,
        seed: args.seed,
        tickets: matches!(shape, Shape::Full | Shape::Geographic),
        shape,
        link: Conditions::default(),
        join_within: args.join_within.0,
        limit: LIMIT,
    };
    let options = WorldOptions {
        bytes: args.bytes,
        log: false,
        discovery: true,
        share: true,
    };
    let mut scale = Scale::new(config, options);
    if args.html.is_some() {
        scale.record();
    }
    let good = scale.run();
    let report = scale.report();
    let cost = Cost::of(begin, report.events);
    if let (Some(path), Some(recording)) = (&args.html, scale.recording()) {
        write_page(path, &scale_page(&report, &recording, cost.seconds))?;
    }
    let pairs = report.peers as u64 * report.peers as u64;
    let joined = Joined {
        rss_bytes_per_peer_and_item: cost.rss_bytes / pairs,
        report,
        cost,
    };
    if json {
        say!("{}", serde_json::to_string(&joined)?);
        return Ok(good);
    }
    told(&joined, good)?;
    Ok(good)
}

fn told(joined: &Joined, good: bool) -> Result<()> {
    let Joined { report, cost, .. } = joined;
    let outcome = if good {
        "know each other"
    } else {
        "have NOT come together"
    };
    say!(
        "{} peers {outcome} after {:.1} s of virtual time, in {:.1} s",
        report.peers,
        report.virtual_seconds,
        cost.seconds
    );
    say!(
        "{} events, {:.0}/s, trace {}",
        report.events,
        cost.events_per_second,
        report.trace_hash
    );
    say!(
        "a peer knows the others after {:?} ms, and has {:?} connections",
        report.join_ms,
        report.connections
    );
    say!(
        "an item arrives {:.1} times at each peer; {} kB of control frames each; {} MB of memory in all",
        report.arrivals_per_item,
        report.control_bytes_per_peer / 1000,
        cost.rss_bytes / 1_000_000
    );
    Ok(())
}
