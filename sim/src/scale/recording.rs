//! What the joining of a mesh looked like over time, for people. It is kept only for who asks, and shifts nothing.

use std::time::Duration;

use super::{LOOK, Scale};
use crate::run::recording::connections;
use crate::run::rss_bytes;
use crate::run::samples::Samples;

/// The mesh at one time.
#[derive(Clone, Debug)]
pub struct ScaleSample {
    /// When.
    pub at: Duration,
    /// Peers that have started.
    pub started: usize,
    /// Of these, those that have come to know as many as had started before them.
    pub joined: usize,
    /// Those that know everyone.
    pub complete: usize,
    /// What has happened so far.
    pub events: u64,
    /// Bytes of control frames that peers have received so far.
    pub control_bytes: u64,
    /// Connections of a peer, on average.
    pub connections_mean: f64,
    /// Connections of the one who has the most.
    pub connections_max: usize,
    /// Memory of this process, where the operating system says.
    pub rss_bytes: Option<u64>,
}

/// Frames of a type that peers have received.
#[derive(Clone, Copy, Debug)]
pub struct FrameCount {
    /// The type.
    pub name: &'static str,
    /// How many.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A mesh over time, and at its end.
#[derive(Clone, Debug)]
pub struct ScaleRecording {
    /// In order, the last moment among them.
    pub samples: Vec<ScaleSample>,
    /// One for each type of which there were any.
    pub frames: Vec<FrameCount>,
    /// The region of each peer, where peers have regions.
    pub regions: Vec<String>,
    /// Pairs of peers: the ways that there are, or who was connected in the end where everyone has a way to everyone.
    pub lines: Vec<(usize, usize)>,
    /// Whether lines are ways.
    pub lines_are_ways: bool,
}

impl Scale {
    /// Keeps a recording from now on.
    pub fn record(&mut self) {
        self.samples = Some(Samples::new(LOOK));
    }

    /// Takes a sample when one is due, and in the end. `complete` know everyone.
    pub(super) fn sample(&mut self, complete: usize, over: bool) {
        let now = Duration::from_nanos(self.world.now().mono.0);
        let due = |samples: &Samples<ScaleSample>| samples.is_due(now) || (over && samples.ends_before(now));
        if !self.samples.as_ref().is_some_and(due) {
            return;
        }
        let running = self.world.peers().filter_map(|peer| self.world.running(peer));
        let connected: Vec<usize> = running.map(|fabric| fabric.connected().count()).collect();
        let sample = ScaleSample {
            at: now,
            started: self.world.len(),
            joined: self.joined_at.iter().flatten().count(),
            complete,
            events: self.world.events(),
            control_bytes: self.world.control().bytes(),
            connections_mean: connected.iter().sum::<usize>() as f64 / connected.len().max(1) as f64,
            connections_max: connected.into_iter().max().unwrap_or(0),
            rss_bytes: rss_bytes(),
        };
        if let Some(samples) = &mut self.samples {
            samples.add(now, sample);
        }
    }

    /// Returns what was recorded, when [`Self::record`] was called before.
    #[must_use]
    pub fn recording(&self) -> Option<ScaleRecording> {
        let samples = self.samples.as_ref()?.all();
        let control = self.world.control();
        let frames = control
            .types()
            .filter(|(_, frames, _)| *frames > 0)
            .map(|(name, frames, bytes)| FrameCount { name, frames, bytes });
        let lines_are_ways = self.topology.ways().is_some();
        let regions = self.topology.region_names();
        Some(ScaleRecording {
            samples,
            frames: frames.collect(),
            regions: regions.into_iter().map(str::to_owned).collect(),
            lines: if lines_are_ways {
                self.topology.pairs()
            } else {
                connections(&self.world)
            },
            lines_are_ways,
        })
    }
}
