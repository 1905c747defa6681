//! Commands, options and their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hyperfabric_sim::topology::Shape;
use hyperfabric_sim::units::Span;

#[cfg(feature = "real")]
use super::calibrate::{CalibrateArgs, EXAMPLES as CALIBRATE_EXAMPLES};
#[cfg(feature = "real")]
use super::run::{EXAMPLES as RUN_EXAMPLES, RunArgs};
#[cfg(feature = "real")]
use super::simulate::{CONDITIONS_EXAMPLES, ConditionsArgs, LOAD_EXAMPLES, LoadArgs};

/// Runs many peers of a mesh in one process, real ones or in virtual time, and breaks their network on purpose.
#[derive(Debug, Parser)]
#[command(name = "hyperfabric-sim", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Print JSON: one object
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 everything held, 1 something did not, 2 wrong usage.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[cfg(feature = "real")]
    /// Run real nodes on a bad network, and let them exchange messages and files
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    #[cfg(feature = "real")]
    /// Hold virtual time against real nodes in the same situations
    #[command(after_help = CALIBRATE_EXAMPLES)]
    Calibrate(CalibrateArgs),
    #[cfg(feature = "real")]
    /// Say what a network of some conditions does to real nodes
    #[command(after_help = CONDITIONS_EXAMPLES)]
    Conditions(ConditionsArgs),
    #[cfg(feature = "real")]
    /// Send messages between real nodes at a rate, over many connections, and say what arrives
    #[command(after_help = LOAD_EXAMPLES)]
    LoadTest(LoadArgs),
    /// Let many peers join a mesh, or run a scenario, and say what that takes
    #[command(after_help = SCALE_EXAMPLES)]
    Scale(ScaleArgs),
    /// Run random scenarios with faults, and make those small that fail
    Swarm(SwarmArgs),
    /// Run what one seed of the swarm draws, and make it small if it fails
    Replay {
        /// The seed
        seed: u64,
    },
    /// Go through a run step by step
    Debug {
        /// A seed of the swarm, or a log that it has written
        log: String,
    },
}

const SCALE_EXAMPLES: &str = "Examples:
  hyperfabric-sim scale --peers 1000 --seed 7 --json
  hyperfabric-sim scale --peers 100 --topology grid --html grid.html
  hyperfabric-sim scale --scenario sim/scenarios/churn.toml --seed 3
  hyperfabric-sim scale --scenario sim/scenarios/partition.toml --html partition.html";

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// How many peers [default: 1000, or as many as the scenario has]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) peers: Option<u32>,
    /// What everything is drawn from; the same seed gives the same run
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// A scenario to run: a file, or one of churn, flash-crowd, partition, slow-receiver and thin-link
    #[arg(long, value_name = "FILE|NAME", conflicts_with_all = ["topology", "join_within", "bytes"])]
    pub(crate) scenario: Option<String>,
    /// Write what was seen to this file: numbers, plots over time and the mesh drawn, in one HTML page
    #[arg(long, value_name = "REPORT.html")]
    pub(crate) html: Option<PathBuf>,
    /// Who can reach whom
    #[arg(long, value_enum, default_value_t = Topology::Full)]
    pub(crate) topology: Topology,
    /// A topology from a file: nodes, regions and the latencies between them, single links, who can dial whom
    #[arg(long, value_name = "FILE", conflicts_with_all = ["topology", "peers", "scenario"])]
    pub(crate) topology_file: Option<PathBuf>,
    /// Over how long the starts of the peers are spread
    #[arg(long, default_value = "10s", value_name = "TIME")]
    pub(crate) join_within: Span,
    /// Encode every frame and read it again, instead of sharing it
    #[arg(long)]
    pub(crate) bytes: bool,
}

/// The shapes that need no further words.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Topology {
    Full,
    Line,
    Ring,
    Grid,
    Tree,
    SmallWorld,
    Geographic,
}

impl Topology {
    pub(crate) const fn shape(self) -> Shape {
        match self {
            Self::Full => Shape::Full,
            Self::Line => Shape::Line,
            Self::Ring => Shape::Ring,
            Self::Grid => Shape::Grid,
            Self::Tree => Shape::Tree { fanout: 4 },
            Self::SmallWorld => Shape::SmallWorld {
                near: 4,
                rewired_ppm: 100_000,
            },
            Self::Geographic => Shape::Geographic,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct SwarmArgs {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    pub(crate) seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    pub(crate) from: u64,
    /// Stop at the first seed that fails, and leave it as it is
    #[arg(long)]
    pub(crate) fail_fast: bool,
    /// Where to write a log of each failing seed, made small, for `debug`
    #[arg(long, value_name = "DIR")]
    pub(crate) logs: Option<PathBuf>,
}
