//! The commands `conditions` and `load-test`: what a network does to real nodes, and what they carry.

use std::sync::Mutex;

use anyhow::Result;
use clap::Args;
use hyperfabric_sim::real::{
    self, ConditionsReport, LoadOptions, LoadReport, NetworkConditions, SimulationSize,
};
use hyperfabric_sim::units::{Rate, Share, Span};

use super::output::say;
use super::run::{LatencyRange, delivery, show, summary};

pub(super) const CONDITIONS_EXAMPLES: &str = "Example:
  hyperfabric-sim conditions --latency 10..500ms --loss 1% --bandwidth 100Mbps";

pub(super) const LOAD_EXAMPLES: &str = "Example:
  hyperfabric-sim load-test --connections 100 --rate 1000 --duration 300s --json";

#[derive(Debug, Args)]
pub(crate) struct ConditionsArgs {
    /// How far peers are apart, one way: a time, or a range of which each pair gets its own
    #[arg(long, value_name = "TIME", default_value = "10..500ms")]
    latency: LatencyRange,
    /// The share of datagrams that are lost
    #[arg(long, value_name = "SHARE", default_value = "1%")]
    loss: Share,
    /// What each peer can send to another one per second, such as 100Mbps or 5MB/s [default: no limit]
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,
    /// How many peers
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=real::PEERS_MAX as i64))]
    peers: u32,
    /// What the network is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// How many connections carry messages, each between another pair of peers; they stay open, however few messages there are
    #[arg(long, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How many messages are sent per second over all connections together
    #[arg(long, default_value_t = 1_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// For how long
    #[arg(long, default_value = "300s", value_name = "TIME")]
    duration: Span,
    /// How many peers [default: enough for each to have about eight others to talk to]
    #[arg(long)]
    peers: Option<usize>,
    /// How far peers are apart, one way
    #[arg(long, value_name = "TIME", default_value = "200us..1ms")]
    latency: LatencyRange,
    /// The share of datagrams that are lost
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    loss: Share,
    /// What each peer can send to another one per second [default: no limit]
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,
    /// What the network is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn conditions(args: &ConditionsArgs, json: bool) -> Result<bool> {
    let shown = Mutex::new(None);
    let size = SimulationSize {
        peers: args.peers as usize,
        seed: args.seed,
    };
    let report = real::simulate_conditions(
        args.latency.low..=args.latency.high,
        args.loss,
        args.bandwidth,
        size,
        &|progress| show(&shown, progress),
    )?;
    let run = &report.run;
    let good = run.know_all == run.peers
        && run.delivery_ratio >= 1.0
        && run.messages.damaged + run.transfers.damaged == 0;
    if json {
        say!("{}", serde_json::to_string(&report)?);
    } else {
        let ConditionsReport {
            lost_ppm,
            transfer_bytes_per_second,
            run,
        } = &report;
        say!(
            "{:<14} {:.2} % of datagrams lost; a transfer moves {:.2} Mbps",
            "network",
            lost_ppm / 1e4,
            8.0 * transfer_bytes_per_second / 1e6
        );
        summary(run)?;
    }
    Ok(good)
}

pub(super) fn load_test(args: &LoadArgs, json: bool) -> Result<bool> {
    let shown = Mutex::new(None);
    let options = LoadOptions {
        peers: args.peers,
        conditions: NetworkConditions {
            latency_range: args.latency.low..=args.latency.high,
            packet_loss_rate: args.loss,
            bandwidth_limit: args.bandwidth,
        },
        seed: args.seed,
    };
    let report = real::load_test(
        args.connections as usize,
        args.rate,
        args.duration.0,
        &options,
        &|progress| show(&shown, progress),
    )?;
    let good = report.messages.arrived == report.messages.sent && report.held_back == 0;
    if json {
        say!("{}", serde_json::to_string(&report)?);
    } else {
        loaded(&report)?;
    }
    Ok(good)
}

fn loaded(report: &LoadReport) -> Result<()> {
    say!(
        "{} peers, {} connections, of which {} stood at the end",
        report.peers,
        report.connections,
        report.connected
    );
    say!(
        "{:<14} {:.0} messages a second were asked for, {:.1} delivered, over {:.0} s",
        "rate",
        report.rate_asked,
        report.rate_achieved,
        report.seconds
    );
    say!(
        "{:<14} {} refused, {} held back because {} were under way",
        "not delivered",
        report.refused,
        report.held_back,
        real::UNDER_WAY_MAX
    );
    delivery("messages", &report.messages, report.seconds)?;
    say!(
        "{:<14} {:.2} of a processor; {} MB, {} MB at most",
        "cost",
        report.cpu,
        report.rss_bytes / 1_000_000,
        report.rss_peak_bytes / 1_000_000
    );
    say!(
        "{:<14} {} sent, {} lost, {} dropped by full queues",
        "datagrams",
        report.datagrams.sent,
        report.datagrams.lost,
        report.datagrams.overflowed
    );
    Ok(())
}
