//! The command `run`: real nodes in this process.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use hyperfabric_sim::conditions::{Conditions, Loss};
use hyperfabric_sim::real::{self, Delivery, Phase, PlayReport, Progress, RealConfig, RealReport};
use hyperfabric_sim::report::{play_page, real_page};
use hyperfabric_sim::scenario::Scenario;
use hyperfabric_sim::seed::Seed;
use hyperfabric_sim::topology::{CustomSpec, Shape, Topology};
use hyperfabric_sim::units::{Bytes, Rate, Share, Span};

use super::args::Topology as ShapeArg;
use super::output::{say, write_page};

/// Messages and transfers under way at once: more would measure this machine.
const MESSAGES_AT_ONCE: usize = 32;
const TRANSFERS_AT_ONCE: usize = 8;
const PEERS: u32 = 20;

pub(super) const EXAMPLES: &str = "Examples:
  hyperfabric-sim run --peers 20
  hyperfabric-sim run --peers 200 --topology small-world --latency 10..500ms --loss 1%
  hyperfabric-sim run --peers 50 --topology geographic --loss 0.5% --rate 5MB/s --json
  hyperfabric-sim run --topology-file office.toml --messages 100
  hyperfabric-sim run --scenario churn --peers 20 --html churn.html
  hyperfabric-sim run --scenario my-office.toml --json";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How many peers [default: 20, or as many as the scenario has]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=real::PEERS_MAX as i64))]
    peers: Option<u32>,
    /// A scenario to carry out in real time: a file, or one of churn, flash-crowd, partition, slow-receiver and thin-link
    #[arg(long, value_name = "FILE|NAME", conflicts_with_all = [
        "topology", "latency", "jitter", "loss", "rate", "messages", "transfers", "transfer_size", "limit",
    ])]
    scenario: Option<String>,
    /// Whom peers know at their start; whoever knows another one's address can reach it
    #[arg(long, value_enum, default_value_t = ShapeArg::SmallWorld)]
    topology: ShapeArg,
    /// A topology from a file: nodes, regions and the latencies between them, single links, who can dial whom
    #[arg(long, value_name = "FILE", conflicts_with_all = ["topology", "peers", "latency", "scenario"])]
    topology_file: Option<PathBuf>,
    /// How far peers are apart, one way: a time, or a range of which each pair gets its own, such as 10..500ms [default: 5..50ms]
    #[arg(long, value_name = "TIME")]
    latency: Option<LatencyRange>,
    /// How much the latency of each datagram varies
    #[arg(long, value_name = "TIME", default_value = "0ms")]
    jitter: Span,
    /// The share of datagrams that are lost
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    loss: Share,
    /// What each peer can send to another one per second [default: no limit]
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// How many messages are sent between random peers [default: 5 for each peer]
    #[arg(long, value_name = "NUMBER")]
    messages: Option<usize>,
    /// How many files are sent between random peers [default: one for every second peer]
    #[arg(long, value_name = "NUMBER")]
    transfers: Option<usize>,
    /// How large a file is
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    transfer_size: Bytes,
    /// How long the peers may take to meet, and a message or transfer to arrive
    #[arg(long, value_name = "TIME", default_value = "5min")]
    limit: Span,
    /// How long peers that know everyone are left alone before it is measured what idle ones use
    #[arg(long, value_name = "TIME", default_value = "10s")]
    settle: Span,
    /// What the network is drawn from; real nodes have a mind of their own, so runs differ all the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write what the run showed to this file: numbers, bars or plots over time, and the mesh drawn, in one HTML page
    #[arg(long, value_name = "REPORT.html")]
    html: Option<PathBuf>,
}

pub(super) fn run(args: &RunArgs, json: bool) -> Result<bool> {
    if let Some(file_or_name) = &args.scenario {
        return scenario(file_or_name, args, json);
    }
    let (shape, peers) = match &args.topology_file {
        Some(path) => {
            let custom = CustomSpec::read(path)?.resolve()?;
            let nodes = custom.len();
            (Shape::Custom(Arc::new(custom)), nodes)
        }
        None => (args.topology.shape(), args.peers.unwrap_or(PEERS) as usize),
    };
    let latency = args.latency.unwrap_or(LatencyRange::DEFAULT);
    let base = Conditions {
        jitter: args.jitter.0,
        loss: match args.loss.0 {
            0 => Loss::None,
            ppm => Loss::Bernoulli { ppm },
        },
        bytes_per_second: args.rate.map_or(0, |rate| rate.0),
        ..Conditions::constant(latency.low, 0)
    };
    let seed = Seed(args.seed);
    let topology = Topology::new(seed, &shape, peers, base, 0);
    let links = if args.topology_file.is_some() {
        real::topology_links(&topology, topology.base)
    } else if shape == Shape::Geographic {
        ensure!(
            args.latency.is_none(),
            "--latency and --topology geographic both say how far peers are apart: leave one out"
        );
        real::region_links(&topology, base)
    } else {
        real::spread_links(seed, latency.low..=latency.high, base)
    };
    let config = RealConfig {
        seed: args.seed,
        contacts: real::contacts(&topology, peers),
        links,
        messages: args.messages.unwrap_or(5 * peers),
        transfers: args.transfers.unwrap_or(peers / 2),
        transfer_bytes: usize::try_from(args.transfer_size.0)?,
        messages_at_once: MESSAGES_AT_ONCE,
        transfers_at_once: TRANSFERS_AT_ONCE,
        limit: args.limit.0,
        settle: args.settle.0,
    };
    let shown = Mutex::new(None);
    let report = real::run(&config, &|progress| show(&shown, progress))?;
    let good = report.know_all == report.peers
        && report.delivery_ratio >= 1.0
        && report.messages.damaged + report.transfers.damaged == 0;
    if let Some(path) = &args.html {
        let page = real_page(&report, &config.contacts, &topology.region_names());
        write_page(path, &page)?;
    }
    if json {
        say!("{}", serde_json::to_string(&report)?);
    } else {
        summary(&report)?;
    }
    Ok(good)
}

/// Shows on a terminal what is being done, one line that is written over.
pub(super) fn show(shown: &Mutex<Option<(Phase, usize)>>, progress: Progress) {
    let mut errors = std::io::stderr();
    if !errors.is_terminal() {
        return;
    }
    let percent = progress.done * 100 / progress.of.max(1);
    let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *shown == Some((progress.phase, percent)) {
        return;
    }
    let what = match progress.phase {
        Phase::Start => "peers made and started",
        Phase::Meet => "peers know everyone",
        Phase::Messages => "messages answered",
        Phase::Transfers => "transfers ended",
        Phase::Load => "seconds of load",
        Phase::Scenario => "seconds of the scenario",
        Phase::Quiet => "seconds, at most, until all is quiet",
    };
    // A progress line that cannot be written is not missed.
    let _ = write!(errors, "\r\x1b[K{} of {} {what}", progress.done, progress.of);
    let ended = progress.phase == Phase::Transfers && progress.done == progress.of;
    let _ = if ended { writeln!(errors) } else { errors.flush() };
    *shown = Some((progress.phase, percent));
}

pub(super) fn summary(report: &RealReport) -> Result<()> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    say!("{} peers, seed {}", report.peers, report.seed);
    say!(
        "{:<14} {} of {} know everyone, {:.1} s after the last has started",
        "meeting",
        report.know_all,
        report.peers,
        report.meet_seconds
    );
    say!(
        "{:<14} {:.1} of each on average, {} at most; {:.1} dials, {} at most",
        "connections",
        report.connections.mean,
        report.connections.max,
        report.dials.mean,
        report.dials.max
    );
    delivery("messages", &report.messages, report.messages_seconds)?;
    delivery("transfers", &report.transfers, report.transfers_seconds)?;
    say!(
        "{:<14} {:.2} MiB of each idle peer, {:.0} MiB at most in all",
        "memory",
        mib(report.rss_per_peer_bytes),
        mib(report.rss_peak_bytes)
    );
    say!(
        "{:<14} {:.0} s in all; {:.3} of a processor while idle",
        "processor",
        report.cpu_seconds,
        report.idle_cpu
    );
    let datagrams = report.datagrams;
    say!(
        "{:<14} {} sent, {} lost, {} dropped by full queues",
        "datagrams",
        datagrams.sent,
        datagrams.lost,
        datagrams.overflowed
    );
    Ok(())
}

/// Carries out a scenario.
fn scenario(file_or_name: &str, args: &RunArgs, json: bool) -> Result<bool> {
    let mut scenario = Scenario::find(file_or_name)?;
    if let Some(peers) = args.peers {
        scenario = scenario.with_peers(peers as usize);
    }
    let shown = Mutex::new(None);
    let (report, recording) = real::play_recorded(scenario, args.seed, &|progress| show(&shown, progress))?;
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    if let Some(path) = &args.html {
        write_page(path, &play_page(&report, &recording))?;
    }
    let good = report.violations.is_empty();
    if json {
        say!("{}", serde_json::to_string(&report)?);
    } else {
        played(&report)?;
    }
    Ok(good)
}

fn played(report: &PlayReport) -> Result<()> {
    say!("{}", report.intent);
    say!(
        "{} real peers, seed {}, {:.0} s; quiet {:.1} s after everything was mended",
        report.peers,
        report.seed,
        report.seconds,
        report.quiet_seconds
    );
    if report.crashes + report.not_joined > 0 {
        say!(
            "{:<14} {} processes died; {} newcomers did not get in",
            "peers",
            report.crashes,
            report.not_joined
        );
    }
    for (what, of) in [("messages", &report.messages), ("transfers", &report.transfers)] {
        if of.sent > 0 {
            delivery(what, of, report.seconds)?;
        }
    }
    say!(
        "{:<14} {:.1} of each on average, {} at most at any time",
        "connections",
        report.connections.mean,
        report.connections.max
    );
    say!(
        "{:<14} {:.0} s of a processor, {} MB at most",
        "cost",
        report.cpu_seconds,
        report.rss_peak_bytes / 1_000_000
    );
    for violation in &report.violations {
        say!("VIOLATION {violation:?}");
    }
    Ok(())
}

pub(super) fn delivery(what: &str, of: &Delivery, seconds: f64) -> Result<()> {
    let took = of.milliseconds;
    say!(
        "{what:<14} {} of {} arrived in {seconds:.1} s; median {:.0} ms, 90 % {:.0}, 99 % {:.0}, longest {:.0}",
        of.arrived,
        of.sent,
        took.p50,
        took.p90,
        took.p99,
        took.max
    );
    for (error, count) in &of.errors {
        say!("{:<14} {count}: {error}", "");
    }
    if of.damaged > 0 {
        say!("{:<14} {} arrived damaged: this is a bug", "", of.damaged);
    }
    Ok(())
}

/// How far peers are apart, one way: `10..500ms`, or one time.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatencyRange {
    pub(super) low: Duration,
    pub(super) high: Duration,
}

impl LatencyRange {
    /// What holds when nothing was said: a country.
    pub(super) const DEFAULT: Self = Self {
        low: Duration::from_millis(5),
        high: Duration::from_millis(50),
    };
}

impl std::str::FromStr for LatencyRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = |text: &str| {
            let span: Result<hyperfabric_sim::units::Span, _> = text.parse();
            span.map(|span| span.0).map_err(|error| error.to_string())
        };
        let Some((low, high)) = text.split_once("..") else {
            let both = time(text)?;
            return Ok(Self {
                low: both,
                high: both,
            });
        };
        // The unit may be said once, at the end.
        let unit = high.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let bare = low.chars().all(|c| c.is_ascii_digit() || c == '.');
        let low = if bare {
            time(&format!("{low}{unit}"))?
        } else {
            time(low)?
        };
        let high = time(high)?;
        if low > high {
            return Err(format!("{text:?} ends before it begins"));
        }
        Ok(Self { low, high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_say_its_unit_once() {
        let range: LatencyRange = "10..500ms".parse().unwrap();
        assert_eq!((range.low.as_millis(), range.high.as_millis()), (10, 500));
        let range: LatencyRange = "900us..1.5ms".parse().unwrap();
        assert_eq!((range.low.as_micros(), range.high.as_micros()), (900, 1_500));
        let range: LatencyRange = "20ms".parse().unwrap();
        assert_eq!(
            (range.low, range.high),
            (Duration::from_millis(20), Duration::from_millis(20))
        );
        for bad in ["500..10ms", "..5ms", "5", "5..", "a..b"] {
            assert!(bad.parse::<LatencyRange>().is_err(), "{bad}");
        }
    }
}
