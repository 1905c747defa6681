//! What a run looked like over time, for people: samples of the mesh, and when faults held and transfers ended.
//!
//! It is kept only for who asks, and changes nothing in the run: the hash over its events stays the same.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::Instant;

use super::samples::Samples;
use super::{LOOK, Run};
use crate::scenario::Fault;
use crate::world::{PeerIndex, World};

/// The mesh at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// Payload bytes that transfers have received so far, in virtual time.
    pub payload_bytes: Option<u64>,
    /// Bytes of control frames that peers have received so far, in virtual time.
    pub control_bytes: Option<u64>,
    /// Datagrams that wires have sent so far, of real nodes.
    pub datagrams: Option<u64>,
    /// Members that run.
    pub running: usize,
    /// Members that a running member knows, on average.
    pub known_mean: f64,
    /// Members that the one knows who knows the fewest.
    pub known_min: usize,
    /// Connections of a running member, on average.
    pub connections_mean: f64,
    /// Connections of the one who has the most.
    pub connections_max: usize,
    /// Memory of this process, where the operating system says.
    pub rss_bytes: Option<u64>,
}

/// A fault, and when it held.
#[derive(Clone, Debug)]
pub struct FaultSpan {
    /// What was wrong.
    pub fault: Fault,
    /// From when on.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
}

/// A transfer or a message, as its sender's user saw it.
#[derive(Clone, Copy, Debug)]
pub struct TransferSpan {
    /// When it was given to its sender.
    pub from: Duration,
    /// When it ended, and whether its payload had arrived.
    pub ended: Option<(Duration, bool)>,
}

/// A run over time.
#[derive(Clone, Debug)]
pub struct Recording {
    /// In order, the first and the last moment among them.
    pub samples: Vec<Sample>,
    /// In the order of the scenario.
    pub faults: Vec<FaultSpan>,
    /// In any order.
    pub transfers: Vec<TransferSpan>,
    /// In any order; real nodes send them.
    pub messages: Vec<TransferSpan>,
    /// The region of each peer, where peers have regions.
    pub regions: Vec<String>,
    /// Pairs of peers: the ways that there are, or who was connected in the end where everyone has a way to everyone.
    pub lines: Vec<(usize, usize)>,
    /// Whether lines are ways.
    pub lines_are_ways: bool,
}

/// What is kept while a run goes on.
#[derive(Debug)]
pub(super) struct Recorder {
    samples: Samples<Sample>,
    /// When each fault began first and ended last.
    pub(super) struck: BTreeMap<usize, (Instant, Instant)>,
}

/// Returns the memory of this process, where the operating system says (proc(5)).
#[must_use]
pub fn rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

const fn since_begin(at: Instant) -> Duration {
    Duration::from_nanos(at.0)
}

impl Run {
    /// Keeps a recording from now on.
    pub fn record(&mut self) {
        self.recorder = Some(Recorder {
            samples: Samples::new(LOOK),
            struck: BTreeMap::new(),
        });
        self.take_sample();
    }

    /// Takes a sample, when one is due.
    pub(super) fn sample(&mut self) {
        let now = since_begin(self.world.now().mono);
        if self.recorder.as_ref().is_some_and(|it| it.samples.is_due(now)) {
            self.take_sample();
        }
    }

    /// Takes a sample of how it ends.
    pub(super) fn last_sample(&mut self) {
        let now = since_begin(self.world.now().mono);
        if self
            .recorder
            .as_ref()
            .is_some_and(|it| it.samples.ends_before(now))
        {
            self.take_sample();
        }
    }

    fn take_sample(&mut self) {
        let members: Vec<_> = self
            .members
            .iter()
            .filter_map(|peer| self.world.running(*peer))
            .collect();
        let known = members.iter().map(|fabric| fabric.directory().len());
        let connected = members.iter().map(|fabric| fabric.connected().count());
        let mean = |sum: usize| sum as f64 / members.len().max(1) as f64;
        let sample = Sample {
            at: since_begin(self.world.now().mono),
            payload_bytes: Some(self.world.ledger().received),
            control_bytes: Some(self.world.control().bytes()),
            datagrams: None,
            running: members.len(),
            known_mean: mean(known.clone().sum()),
            known_min: known.min().unwrap_or(0),
            connections_mean: mean(connected.clone().sum()),
            connections_max: connected.max().unwrap_or(0),
            rss_bytes: rss_bytes(),
        };
        if let Some(recorder) = &mut self.recorder {
            recorder.samples.add(sample.at, sample);
        }
    }

    /// Notes that a fault begins.
    pub(super) fn note_begin(&mut self, fault: usize) {
        let now = self.world.now().mono;
        if let Some(recorder) = &mut self.recorder {
            recorder.struck.entry(fault).or_insert((now, now));
        }
    }

    /// Notes that a fault ends.
    pub(super) fn note_end(&mut self, fault: usize) {
        let now = self.world.now().mono;
        let recorder = self.recorder.as_mut();
        if let Some((_, until)) = recorder.and_then(|recorder| recorder.struck.get_mut(&fault)) {
            *until = now;
        }
    }

    /// Returns what was recorded, when [`Self::record`] was called before.
    #[must_use]
    pub fn recording(&self) -> Option<Recording> {
        let recorder = self.recorder.as_ref()?;
        let fault = |(number, (from, until)): (&usize, &(Instant, Instant))| {
            Some(FaultSpan {
                fault: self.scenario.faults.get(*number)?.clone(),
                from: since_begin(*from),
                until: since_begin(*until),
            })
        };
        let transfers = self.sent.values().map(|sent| TransferSpan {
            from: since_begin(sent.begun),
            ended: sent
                .ended
                .zip(sent.over)
                .map(|(at, good)| (since_begin(at), good)),
        });
        let lines_are_ways = self.topology.ways().is_some();
        Some(Recording {
            samples: recorder.samples.all(),
            faults: recorder.struck.iter().filter_map(fault).collect(),
            transfers: transfers.collect(),
            messages: Vec::new(),
            regions: self
                .topology
                .region_names()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            lines: if lines_are_ways {
                self.topology.pairs()
            } else {
                connections(&self.world)
            },
            lines_are_ways,
        })
    }
}

/// Returns who is connected with whom.
pub(crate) fn connections(world: &World) -> Vec<(usize, usize)> {
    let of_peer = |peer: PeerIndex| {
        let fabric = world.running(peer)?;
        let others = fabric.connected().filter_map(|(id, _)| world.peer_of(&id));
        Some(others.map(move |other| (peer.0, other.0)))
    };
    let both = world.peers().filter_map(of_peer).flatten();
    // Each side has the connection.
    both.filter(|(a, b)| a < b).collect()
}
