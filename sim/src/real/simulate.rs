//! What a network's conditions do to a mesh, and what a mesh carries under load: two questions that are asked of real nodes
//! with one call each.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyperfabric_node::node::{DataError, DataRequest};
use hyperfabric_node::{DataType, PacketPriority};
use serde::Serialize;
use tokio::task::JoinSet;

use super::lab::{Lab, Running};
use super::load::{End, MESSAGE_BYTES, PROMPT_BYTES_MAX, delivery};
use super::{
    Datagrams, Delivery, LinkTable, OnProgress, Phase, Progress, RealConfig, RealError, RealReport, Usage,
    contacts, run, runtime, spread_links,
};
use crate::conditions::{Conditions, Latency, Loss};
use crate::seed::Seed;
use crate::topology::{Shape, Topology};
use crate::units::{Rate, Share};

/// Messages of a load test, at most: a latency is kept of each.
pub const LOAD_MESSAGES_MAX: u64 = 20_000_000;
/// Pairs for each peer, at most: two peers share a pair, and each holds 32 connections.
pub const PAIRS_PER_PEER_MAX: usize = 12;
/// Pairs for each peer when nobody says how many peers there are to be.
const PAIRS_PER_PEER: usize = 4;
/// Messages under way at once; what is due beyond them is held back, and counted.
pub const UNDER_WAY_MAX: usize = 4_096;
/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(5);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long peers may take to meet, and a message or transfer of [`simulate_conditions`] to arrive.
const LIMIT: Duration = Duration::from_secs(300);
const MESSAGES_AT_ONCE: usize = 8;
/// One transfer at a time: each has the link for itself, so that its rate is that of the link.
const TRANSFERS_AT_ONCE: usize = 1;
const TRANSFER_BYTES: usize = 4 << 20;

/// A network between peers, each pair of which has a latency of its own.
#[derive(Clone, Debug)]
pub struct NetworkConditions {
    /// How far peers are apart, one way.
    pub latency_range: RangeInclusive<Duration>,
    /// The share of datagrams that are lost.
    pub packet_loss_rate: Share,
    /// What each peer can send to another one per second; none is unlimited.
    pub bandwidth_limit: Option<Rate>,
}

impl Default for NetworkConditions {
    /// A local network.
    fn default() -> Self {
        Self {
            latency_range: Duration::from_micros(200)..=Duration::from_millis(1),
            packet_loss_rate: Share(0),
            bandwidth_limit: None,
        }
    }
}

impl NetworkConditions {
    fn links(&self, seed: u64) -> LinkTable {
        let base = Conditions {
            latency: Latency::Constant(*self.latency_range.start()),
            loss: match self.packet_loss_rate.0 {
                0 => Loss::None,
                ppm => Loss::Bernoulli { ppm },
            },
            bytes_per_second: self.bandwidth_limit.map_or(0, |rate| rate.0),
            ..Conditions::default()
        };
        spread_links(Seed(seed), self.latency_range.clone(), base)
    }
}

/// How large a simulation is.
#[derive(Clone, Copy, Debug)]
pub struct SimulationSize {
    /// How many peers.
    pub peers: usize,
    /// What the network is drawn from.
    pub seed: u64,
}

/// What a network's conditions did to a mesh.
#[derive(Clone, Debug, Serialize)]
pub struct ConditionsReport {
    /// The share of datagrams that the wires lost, in parts per million.
    pub lost_ppm: f64,
    /// What a transfer of its own moved in the median, in bytes per second.
    pub transfer_bytes_per_second: f64,
    /// What the run has shown: joining, messages, transfers, memory.
    #[serde(flatten)]
    pub run: RealReport,
}

fn config(size: SimulationSize, links: LinkTable) -> RealConfig {
    let shape = Shape::SmallWorld {
        near: 4,
        rewired_ppm: 100_000,
    };
    let topology = Topology::new(Seed(size.seed), &shape, size.peers, Conditions::default(), 0);
    RealConfig {
        seed: size.seed,
        contacts: contacts(&topology, size.peers),
        links,
        messages: 10 * size.peers,
        transfers: size.peers.div_ceil(2),
        transfer_bytes: TRANSFER_BYTES,
        messages_at_once: MESSAGES_AT_ONCE,
        transfers_at_once: TRANSFERS_AT_ONCE,
        limit: LIMIT,
        settle: Duration::ZERO,
    }
}

/// Runs real nodes on a network of these conditions, and says what became of messages and transfers.
///
/// # Errors
/// [`RealError`] when the run could not be made. What goes wrong in it is in the report.
pub fn simulate_conditions(
    latency_range: RangeInclusive<Duration>,
    packet_loss_rate: Share,
    bandwidth_limit: Option<Rate>,
    size: SimulationSize,
    on_progress: OnProgress<'_>,
) -> Result<ConditionsReport, RealError> {
    let conditions = NetworkConditions {
        latency_range,
        packet_loss_rate,
        bandwidth_limit,
    };
    let report = run(&config(size, conditions.links(size.seed)), on_progress)?;
    let lost = report.datagrams.lost as f64;
    let median = report.transfers.milliseconds.p50 / 1e3;
    Ok(ConditionsReport {
        lost_ppm: 1e6 * lost / (report.datagrams.sent as f64 + lost).max(1.0),
        transfer_bytes_per_second: if median > 0.0 {
            TRANSFER_BYTES as f64 / median
        } else {
            0.0
        },
        run: report,
    })
}

/// What a load test runs on.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// How many peers; when nothing is said, enough for each to have about eight others to talk to.
    pub peers: Option<usize>,
    /// The network.
    pub conditions: NetworkConditions,
    /// What the network and the bytes are drawn from.
    pub seed: u64,
}

/// What a mesh carried under load.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// How many peers ran.
    pub peers: usize,
    /// Pairs of peers that exchanged messages.
    pub connections: usize,
    /// Of these, connected when the load ended.
    pub connected: usize,
    /// For how long messages were sent, in seconds.
    pub seconds: f64,
    /// Messages asked for each second.
    pub rate_asked: f64,
    /// Messages delivered each second.
    pub rate_achieved: f64,
    /// Messages that were to be sent and were not, because [`UNDER_WAY_MAX`] were under way.
    pub held_back: u64,
    /// Messages that the mesh did not take: each ended with a typed error.
    pub refused: usize,
    /// Messages that were sent, their answers, and how long those took.
    pub messages: Delivery,
    /// Processor seconds each second while messages were sent.
    pub cpu: f64,
    /// Memory of the process when the load ended.
    pub rss_bytes: u64,
    /// The most memory that it had.
    pub rss_peak_bytes: u64,
    /// What became of datagrams.
    pub datagrams: Datagrams,
}

/// Returns distinct pairs of peers, such that no peer has many more than another: each peer with the next one, then each
/// with the one after that, and so on.
fn pairs(peers: usize, connections: usize) -> Vec<(usize, usize)> {
    let all = (1..peers).flat_map(|step| (0..peers).map(move |from| (from, (from + step) % peers)));
    let mut seen = BTreeSet::new();
    all.filter(|(a, b)| seen.insert((*a.min(b), *a.max(b))))
        .take(connections)
        .collect()
}

fn peers_for(connections: usize, asked: Option<usize>) -> Result<usize, RealError> {
    if connections == 0 {
        return Err(RealError::NoConnections);
    }
    let holds = |peers: usize| (peers * peers.saturating_sub(1) / 2).min(PAIRS_PER_PEER_MAX * peers);
    let peers = asked.unwrap_or_else(|| {
        let enough = connections.div_ceil(PAIRS_PER_PEER).max(2);
        let least = (enough..).find(|peers| holds(*peers) >= connections);
        least.unwrap_or(enough)
    });
    if !(2..=super::PEERS_MAX).contains(&peers) {
        return Err(RealError::Peers(peers));
    }
    if connections > holds(peers) {
        return Err(RealError::Connections {
            connections,
            peers,
            most: holds(peers),
        });
    }
    Ok(peers)
}

/// Sends messages at a rate over so many connections, each between another pair of peers, for some time.
///
/// Messages are sent when they are due, whether or not earlier ones were answered, each over the next connection, to and
/// fro. Each pair wants its connection until the end, so that a rate that leaves it idle does not close it. The time counts
/// from when every pair has exchanged a first message.
///
/// # Errors
/// [`RealError`] when so many connections or messages cannot be had, or a node cannot be made.
pub fn load_test(
    concurrent_connections: usize,
    message_rate: u32,
    duration: Duration,
    options: &LoadOptions,
    on_progress: OnProgress<'_>,
) -> Result<LoadReport, RealError> {
    let messages = u64::from(message_rate).saturating_mul(duration.as_secs().max(1));
    if message_rate == 0 || duration.is_zero() || messages > LOAD_MESSAGES_MAX {
        return Err(RealError::Messages(messages));
    }
    let peers = peers_for(concurrent_connections, options.peers)?;
    let size = SimulationSize {
        peers,
        seed: options.seed,
    };
    let config = config(size, options.conditions.links(options.seed));
    let pairs = pairs(peers, concurrent_connections);
    runtime()?.block_on(async {
        let lab = Lab::new(&config, on_progress)?;
        let lab = lab.start(&config, on_progress).await?;
        lab.meet(config.limit, on_progress).await?;
        let report = Load {
            lab: &lab,
            pairs: &pairs,
            rate: message_rate,
            duration,
        };
        let report = report.run(on_progress).await;
        lab.stop().await;
        report
    })
}

struct Load<'a> {
    lab: &'a Running,
    pairs: &'a [(usize, usize)],
    rate: u32,
    duration: Duration,
}

impl Load<'_> {
    async fn run(&self, on_progress: OnProgress<'_>) -> Result<LoadReport, RealError> {
        self.hold().await;
        let mut first = JoinSet::new();
        for number in 0..self.pairs.len() {
            self.send(number as u64, &mut first);
        }
        // What cannot be reached now shows in the load, too.
        while first.join_next().await.is_some() {}
        let before = Usage::now().map_err(RealError::Usage)?;
        let (mut under_way, mut ends) = (JoinSet::new(), Vec::new());
        let (mut due, mut held_back) = (0, 0);
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        let mut told = 0;
        let mut over = false;
        while !over {
            tokio::select! {
                _ = ticks.tick() => {}
                Some(end) = under_way.join_next(), if !under_way.is_empty() => {
                    ends.extend(end);
                    continue;
                }
            }
            // What was due in the end is sent, however late this look at it is.
            over = begun.elapsed() >= self.duration;
            let passed = begun.elapsed().min(self.duration).as_secs_f64();
            while due < (passed * f64::from(self.rate)) as u64 {
                if under_way.len() < UNDER_WAY_MAX {
                    self.send(due, &mut under_way);
                } else {
                    held_back += 1;
                }
                due += 1;
            }
            if told != passed as usize {
                told = passed as usize;
                on_progress(Progress {
                    phase: Phase::Load,
                    done: told,
                    of: self.duration.as_secs() as usize,
                });
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let after = Usage::now().map_err(RealError::Usage)?;
        let connected = self.pairs.iter().filter(|pair| self.connected(**pair)).count();
        while let Some(end) = under_way.join_next().await {
            ends.extend(end);
        }
        let messages = delivery(ends);
        Ok(LoadReport {
            peers: self.lab.peers.len(),
            connections: self.pairs.len(),
            connected,
            seconds,
            rate_asked: f64::from(self.rate),
            rate_achieved: messages.arrived as f64 / seconds,
            held_back,
            refused: messages.errors.values().sum(),
            cpu: (after.processor - before.processor).as_secs_f64() / seconds,
            rss_bytes: after.rss_bytes,
            rss_peak_bytes: Usage::now().map_err(RealError::Usage)?.rss_peak_bytes,
            datagrams: self.lab.datagrams(),
            messages,
        })
    }

    /// Lets both sides of each pair want their connection: nodes close what nobody wants after a minute, once they have
    /// enough others, and do not take single messages for a wish.
    async fn hold(&self) {
        let both = self.pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
        for (from, to) in both {
            let peer = self.lab.peers[to].node.peer_id();
            let handle = self.lab.peers[from].node.handle();
            // A node that has ended shows in the load.
            let _ = handle.act(move |fabric, now| fabric.want(now, peer)).await;
        }
    }

    fn connected(&self, (a, b): (usize, usize)) -> bool {
        let peer = self.lab.peers[b].node.peer_id();
        self.lab.peers[a].node.handle().connection(&peer).is_some()
    }

    /// Sends one message.
    fn send(&self, number: u64, to_set: &mut JoinSet<End>) {
        let count = self.pairs.len() as u64;
        let pair = self.pairs[(number % count) as usize];
        let (from, to) = if (number / count).is_multiple_of(2) {
            pair
        } else {
            (pair.1, pair.0)
        };
        let mut data = vec![0; MESSAGE_BYTES];
        data[..8].copy_from_slice(&number.to_be_bytes());
        let digest = blake3::hash(&data);
        let node = self.lab.peers[from].node.clone();
        let request = DataRequest {
            source: self.lab.peers[from].name.clone(),
            destination: self.lab.peers[to].name.clone(),
            data_type: DataType::Generic,
            priority: PacketPriority::Medium,
            metadata: Vec::new(),
            data: Bytes::from(data),
        };
        let begun = Instant::now();
        to_set.spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, node.request(request, PROMPT_BYTES_MAX, PATIENCE));
            match answer.await {
                Ok(Ok(answer)) if *answer == digest.as_bytes()[..] => {
                    End::Arrived(begun.elapsed().as_secs_f64() * 1e3)
                }
                Ok(Ok(_)) => End::Damaged,
                Ok(Err(error)) => End::Failed(nameless(&error)),
                Err(_) => End::Failed(format!("no answer within {PATIENCE:?}")),
            }
        });
    }
}

/// Names an error without its node, so that equal ones are counted together.
fn nameless(error: &DataError) -> String {
    match error {
        DataError::NotFound(_) => "a node is not known".to_owned(),
        DataError::Unreachable(_) => "a node cannot be reached".to_owned(),
        DataError::TimedOut(_) => "a node did not answer in time".to_owned(),
        DataError::NoHandler(_) | DataError::Refused { .. } => "a node refused".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_distinct_and_spread_evenly() {
        for (peers, connections) in [(25, 100), (2, 1), (5, 10), (6, 15), (40, 480)] {
            let pairs = pairs(peers, connections);
            let distinct: BTreeSet<_> = pairs.iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            assert_eq!((pairs.len(), distinct.len()), (connections, connections));
            let of = |peer: usize| pairs.iter().filter(|(a, b)| *a == peer || *b == peer).count();
            let (least, most) = (
                (0..peers).map(of).min().unwrap(),
                (0..peers).map(of).max().unwrap(),
            );
            assert!(most - least <= 2, "{peers} peers: {least} to {most}");
        }
    }

    #[test]
    fn there_are_as_many_peers_as_the_connections_need_and_no_more_connections_than_they_hold() {
        assert_eq!(peers_for(100, None).unwrap(), 25);
        assert_eq!(peers_for(1, None).unwrap(), 2);
        assert_eq!(peers_for(6, None).unwrap(), 4);
        assert_eq!(peers_for(480, Some(40)).unwrap(), 40);
        for (connections, peers) in [(481, 40), (7, 4)] {
            let error = peers_for(connections, Some(peers)).unwrap_err();
            assert!(matches!(error, RealError::Connections { .. }), "{error:?}");
        }
        for peers in [None, Some(40)] {
            let error = peers_for(0, peers).unwrap_err();
            assert!(matches!(error, RealError::NoConnections), "{error:?}");
        }
        assert!(matches!(peers_for(5, Some(1)), Err(RealError::Peers(1))));
    }
}
