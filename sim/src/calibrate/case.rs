//! Situations that both ways of simulating are put in.

use std::time::Duration;

use serde::Serialize;

use crate::conditions::{Conditions, Latency, Loss};
use crate::real::contacts;
use crate::seed::{Seed, Stream};
use crate::topology::{Reach, Shape, Topology};

/// Places between which peers are spread: enough for some hundred different latencies.
const SITES: usize = 24;
/// How far they are apart, one way: so far that a handshake's computing, and the pauses of a busy machine, do not count.
const LATENCY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));
/// What a link carries, in bytes per second: 100 Mbit/s.
const RATE: u64 = 12_500_000;
/// How long starts are apart on average: a machine with two processors computes the handshakes of one newcomer
/// meanwhile, and those of a second one that happens to start with it.
const START_EVERY: Duration = Duration::from_secs(1);
/// How long all are left alone after the last start: beyond the minute after which neighbors have compared their
/// databases and have let idle connections go.
const REST: Duration = Duration::from_secs(90);

/// One situation.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// Whether constants of the world may be set by it.
    pub calibrates: bool,
    /// How many peers.
    pub peers: usize,
    /// Whom they are told of at their start.
    #[serde(skip)]
    pub shape: Shape,
    /// What it is drawn from.
    pub seed: u64,
    /// Packets that are lost, in a million.
    pub loss_ppm: u32,
    /// How long starts are apart on average.
    pub start_every: Duration,
    /// How long all are left alone after the last start.
    pub rest: Duration,
}

/// A case, drawn.
#[derive(Debug)]
pub(super) struct Situation {
    pub(super) topology: Topology,
    /// Whom each peer is told of at its start.
    pub(super) contacts: Vec<Vec<usize>>,
    /// When each starts.
    pub(super) starts: Vec<Duration>,
    pub(super) base: Conditions,
    /// A message round: the median, over all pairs of peers, of the time there and back.
    pub(super) round: Duration,
}

impl Case {
    /// Makes one in which nothing is lost.
    #[must_use]
    pub fn new(name: impl Into<String>, peers: usize, shape: Shape, seed: u64) -> Self {
        Self {
            name: name.into(),
            calibrates: false,
            peers,
            shape,
            seed,
            loss_ppm: 0,
            start_every: START_EVERY,
            rest: REST,
        }
    }

    pub(super) fn situation(&self) -> Situation {
        let base = Conditions {
            loss: match self.loss_ppm {
                0 => Loss::None,
                ppm => Loss::Bernoulli { ppm },
            },
            ..Conditions::constant(LATENCY.0, RATE)
        };
        let seed = Seed(self.seed);
        let mut topology = Topology::new(seed, &self.shape, self.peers, base, 0);
        let contacts = contacts(&topology, self.peers);
        // Whoever knows an address can reach it, as on one network.
        topology.reach = Reach::default();
        if topology.between.is_empty() {
            spread(&mut topology, seed, self.peers, base);
        }
        let mut draws = seed.stream(Stream::Load, 0, 0);
        let within = self.start_every * u32::try_from(self.peers).unwrap_or(u32::MAX);
        let mut starts: Vec<Duration> = (0..self.peers).map(|_| draws.duration(within)).collect();
        starts.sort_unstable();
        let round = round(&topology, self.peers);
        Situation {
            topology,
            contacts,
            starts,
            base,
            round,
        }
    }
}

/// Puts peers at sites that are apart as drawn.
fn spread(topology: &mut Topology, seed: Seed, peers: usize, base: Conditions) {
    let mut draws = seed.stream(Stream::Topology, 3, 0);
    topology.regions = (0..peers).map(|_| draws.index(SITES) as u16).collect();
    let mut between = vec![vec![base; SITES]; SITES];
    for (a, b) in (0..SITES).flat_map(|a| (0..=a).map(move |b| (a, b))) {
        let latency = LATENCY.0 + draws.duration(LATENCY.1 - LATENCY.0);
        between[a][b].latency = Latency::Constant(latency);
        between[b][a] = between[a][b];
    }
    topology.between = between;
}

fn round(topology: &Topology, peers: usize) -> Duration {
    let site = |peer: usize| usize::from(topology.regions[peer]);
    let between = |a: usize, b: usize| topology.between[site(a)][site(b)].latency.mean() * 2;
    let pairs = (0..peers).flat_map(|a| (0..a).map(move |b| (a, b)));
    let mut rounds: Vec<Duration> = pairs.map(|(a, b)| between(a, b)).collect();
    rounds.sort_unstable();
    rounds.get(rounds.len() / 2).copied().unwrap_or_default()
}

/// The cases: the one that calibrates, with `calibrating` peers, and those that judge, with `judging` peers.
#[must_use]
pub fn cases(calibrating: usize, judging: usize, seed: u64) -> Vec<Case> {
    let small_world = Shape::SmallWorld {
        near: 4,
        rewired_ppm: 100_000,
    };
    let first = Case {
        calibrates: true,
        ..Case::new("small-world", calibrating, small_world.clone(), seed)
    };
    let lossy = Case {
        loss_ppm: 10_000,
        ..Case::new("small-world, 1 % lost", judging, small_world, seed + 1)
    };
    vec![
        first,
        lossy,
        Case::new("geographic", judging, Shape::Geographic, seed + 2),
        Case::new("tree", judging, Shape::Tree { fanout: 4 }, seed + 3),
        Case::new("grid", judging, Shape::Grid, seed + 4),
    ]
}
