//! Real nodes in one process, over impaired wires: what users run, on the network that a scenario describes.
//!
//! A run has the phases of a mesh's life: peers start with a few contacts each, come to know all, are idle, exchange
//! messages, and move files. What is measured of them is in [`RealReport`]; it comes from the nodes' own handles, from
//! the wires and from the operating system, and what arrived is checked against what was sent, by the simulator itself.

mod lab;
mod links;
mod load;
mod measure;
mod network;
mod play;
mod simulate;
pub mod testbed;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperfabric_mesh::wire::ImpairmentStats;
use hyperfabric_node::node::StartNodeError;
use serde::Serialize;

use crate::scenario::ScenarioError;

pub use lab::observe::{Observation, Schedule, observe};
pub use links::{contacts, impairment, region_links, scenario_links, spread_links, topology_links};
pub use measure::{Percentiles, Usage};
pub use network::LinkTable;
pub use play::{PlayReport, play, play_recorded};
pub use simulate::{
    ConditionsReport, LOAD_MESSAGES_MAX, LoadOptions, LoadReport, NetworkConditions, PAIRS_PER_PEER_MAX,
    SimulationSize, UNDER_WAY_MAX, load_test, simulate_conditions,
};
pub use testbed::LabError;

use lab::Lab;

/// The most peers of a run: each has a socket, and a process some thousand descriptors.
pub const PEERS_MAX: usize = 2_000;

/// What is run.
#[derive(Clone, Debug)]
pub struct RealConfig {
    /// What everything is drawn from that the simulator draws.
    pub seed: u64,
    /// The peers that each peer is told of at its start, by their places; one per peer.
    pub contacts: Vec<Vec<usize>>,
    /// How links behave.
    pub links: LinkTable,
    /// How many messages are sent, each from one random peer to another, and answered.
    pub messages: usize,
    /// How many files are sent, each from one random peer to another.
    pub transfers: usize,
    /// Bytes of a file.
    pub transfer_bytes: usize,
    /// Messages under way at once.
    pub messages_at_once: usize,
    /// Files under way at once.
    pub transfers_at_once: usize,
    /// How long each phase may take.
    pub limit: Duration,
    /// How long peers that know all are left alone before it is measured what they use by themselves: the connections
    /// that meeting took go on ending for a while.
    pub settle: Duration,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RealError {
    /// The number of peers.
    #[error("{0} peers are not between 2 and {PEERS_MAX}")]
    Peers(usize),
    /// The runtime's threads.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    /// A peer could not be made.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A peer did not start.
    #[error("peer {peer} does not start")]
    Start {
        /// Which.
        peer: usize,
        /// Why.
        #[source]
        source: Box<StartNodeError>,
    },
    /// The operating system does not say what was used.
    #[error("cannot read what the process uses")]
    Usage(#[source] std::io::Error),
    /// A peer ended by itself.
    #[error("peer {0} has ended")]
    Ended(usize),
    /// A load test without connections.
    #[error("0 connections carry no messages: ask for at least 1")]
    NoConnections,
    /// So many connections cannot be had.
    #[error("{connections} connections: {peers} peers hold at most {most} with another pair each")]
    Connections {
        /// How many were asked for.
        connections: usize,
        /// Between how many peers.
        peers: usize,
        /// How many they can have.
        most: usize,
    },
    /// A load test sends nothing, or too much.
    #[error("{0} messages are not between 1 and {LOAD_MESSAGES_MAX}")]
    Messages(u64),
    /// The scenario cannot be carried out by real nodes.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
}

/// What is told while a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How much of it is done.
    pub done: usize,
    /// How much there is.
    pub of: usize,
}

/// The phases of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Peers are made and started.
    Start,
    /// Peers that know all others.
    Meet,
    /// Messages that have ended.
    Messages,
    /// Transfers that have ended.
    Transfers,
    /// Seconds of a load test.
    Load,
    /// Seconds of a scenario.
    Scenario,
    /// Seconds after a scenario, until the mesh is quiet.
    Quiet,
}

/// Hears of progress.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

/// What a run has shown.
#[derive(Clone, Debug, Serialize)]
pub struct RealReport {
    /// How many peers ran.
    pub peers: usize,
    /// The seed.
    pub seed: u64,
    /// Peers that knew every member when the phase ended.
    pub know_all: usize,
    /// Messages and transfers that arrived, by those that were sent; 1 when nothing was sent.
    pub delivery_ratio: f64,
    /// Of messages.
    pub messages: Delivery,
    /// Of transfers.
    pub transfers: Delivery,
    /// Seconds that the phases took.
    pub start_seconds: f64,
    /// See [`Self::start_seconds`].
    pub meet_seconds: f64,
    /// See [`Self::start_seconds`].
    pub messages_seconds: f64,
    /// See [`Self::start_seconds`].
    pub transfers_seconds: f64,
    /// Processor seconds of everything.
    pub cpu_seconds: f64,
    /// Processor seconds per second while nothing was asked of the peers.
    pub idle_cpu: f64,
    /// Memory of the process when all knew all and nothing was asked of them yet.
    pub rss_idle_bytes: u64,
    /// What a peer adds to that.
    pub rss_per_peer_bytes: u64,
    /// The most memory that the process had.
    pub rss_peak_bytes: u64,
    /// Connections of a peer before the load.
    pub connections: Spread,
    /// Dials of a peer until all knew all.
    pub dials: Spread,
    /// What became of datagrams.
    pub datagrams: Datagrams,
}

/// How something that each peer has is spread over the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The most of any peer.
    pub max: u64,
}

impl Spread {
    pub(crate) fn of(numbers: &[u64]) -> Self {
        let sum: u64 = numbers.iter().sum();
        Self {
            mean: sum as f64 / numbers.len().max(1) as f64,
            max: numbers.iter().copied().max().unwrap_or(0),
        }
    }
}

/// What became of messages or of transfers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Delivery {
    /// How many were sent.
    pub sent: usize,
    /// How many arrived, and were what had been sent.
    pub arrived: usize,
    /// How long those took, in milliseconds.
    pub milliseconds: Percentiles,
    /// What the others ended with, and how often; every one has a typed error.
    pub errors: std::collections::BTreeMap<String, usize>,
    /// How many arrived and were not what had been sent. Anything but 0 is a bug.
    pub damaged: usize,
}

/// What became of datagrams on all wires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Datagrams {
    /// Sent.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped by a full queue.
    pub overflowed: u64,
    /// Cut off by a partition.
    pub partitioned: u64,
    /// Let in by nobody: what arrived at a peer that cannot be dialled, and was no answer.
    pub unasked: u64,
}

impl Datagrams {
    /// Adds what became of those of one wire.
    fn with(self, stats: ImpairmentStats) -> Self {
        Self {
            sent: self.sent + stats.sent,
            lost: self.lost + stats.lost,
            overflowed: self.overflowed + stats.overflowed,
            partitioned: self.partitioned + stats.partitioned,
            unasked: self.unasked + stats.unasked,
        }
    }
}

/// Runs `config` to its end.
///
/// # Errors
/// [`RealError`] when the run could not be made. What goes wrong in it is in the report.
pub fn run(config: &RealConfig, on_progress: OnProgress<'_>) -> Result<RealReport, RealError> {
    let peers = config.contacts.len();
    if !(2..=PEERS_MAX).contains(&peers) {
        return Err(RealError::Peers(peers));
    }
    runtime()?.block_on(run_in_runtime(config, on_progress))
}

fn runtime() -> Result<tokio::runtime::Runtime, RealError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(2)
        .build()
        .map_err(RealError::Runtime)
}

async fn run_in_runtime(config: &RealConfig, on_progress: OnProgress<'_>) -> Result<RealReport, RealError> {
    let peers = config.contacts.len();
    let before = Usage::now().map_err(RealError::Usage)?;
    let begun = Instant::now();
    let lab = Lab::new(config, on_progress)?;
    let lab = Arc::new(lab.start(config, on_progress).await?);
    let start_seconds = begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let know_all = lab.meet(config.limit, on_progress).await?;
    let meet_seconds = begun.elapsed().as_secs_f64();
    let idle = measure::idle(config.settle).await.map_err(RealError::Usage)?;
    let (connections, dials) = lab.degrees().await?;

    let begun = Instant::now();
    let messages = load::messages(&lab, config, on_progress).await;
    let messages_seconds = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let transfers = load::transfers(&lab, config, on_progress).await;
    let transfers_seconds = begun.elapsed().as_secs_f64();

    let datagrams = lab.datagrams();
    lab.stop().await;
    let after = Usage::now().map_err(RealError::Usage)?;
    let sent = messages.sent + transfers.sent;
    let arrived = messages.arrived + transfers.arrived;
    Ok(RealReport {
        peers,
        seed: config.seed,
        know_all,
        delivery_ratio: if sent == 0 {
            1.0
        } else {
            arrived as f64 / sent as f64
        },
        messages,
        transfers,
        start_seconds,
        meet_seconds,
        messages_seconds,
        transfers_seconds,
        cpu_seconds: (after.processor - before.processor).as_secs_f64(),
        idle_cpu: idle.share,
        rss_idle_bytes: idle.rss_bytes,
        rss_per_peer_bytes: idle.rss_bytes.saturating_sub(before.rss_bytes) / peers as u64,
        rss_peak_bytes: after.rss_peak_bytes,
        connections,
        dials,
        datagrams,
    })
}
