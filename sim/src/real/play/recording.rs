//! What a scenario on real nodes looked like over time, for people.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{LOOK, Play};
use crate::real::Usage;
use crate::real::play::check::{Seen, View};
use crate::run::samples::Samples;
use crate::run::{FaultSpan, Recording, Sample, TransferSpan};

/// What is kept while a scenario goes on.
pub(super) struct Recorder {
    samples: Samples<Sample>,
    /// When each fault began first and ended last.
    struck: BTreeMap<usize, (Duration, Duration)>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            samples: Samples::new(LOOK),
            struck: BTreeMap::new(),
        }
    }
}

impl Recorder {
    pub(super) fn note_begin(&mut self, fault: usize, now: Duration) {
        self.struck.entry(fault).or_insert((now, now));
    }

    pub(super) fn note_end(&mut self, fault: usize, now: Duration) {
        if let Some((_, until)) = self.struck.get_mut(&fault) {
            *until = now;
        }
    }
}

/// Something that was sent: when, and when it ended and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begun: Instant,
    pub(super) ended: Option<(Instant, bool)>,
}

impl Play {
    /// Takes a sample of what the running members have said of themselves, when one is due.
    pub(super) fn sample(&mut self, seen: &[Seen], last: bool) {
        let now = self.passed();
        let samples = &mut self.recorder.samples;
        let due = samples.is_due(now) || (last && samples.ends_before(now));
        if !due {
            return;
        }
        let mean = |sum: usize| sum as f64 / seen.len().max(1) as f64;
        let known = seen.iter().map(|seen| seen.known);
        let connections = seen.iter().map(|seen| seen.neighbors);
        let sent = self.sites.iter().map(|site| site.wire.handle.stats().sent);
        let sample = Sample {
            at: now,
            payload_bytes: None,
            control_bytes: None,
            datagrams: Some(sent.sum()),
            running: seen.len(),
            known_mean: mean(known.clone().sum()),
            known_min: known.min().unwrap_or(0),
            connections_mean: mean(connections.clone().sum()),
            connections_max: connections.max().unwrap_or(0),
            rss_bytes: Usage::now().ok().map(|usage| usage.rss_bytes),
        };
        samples.add(now, sample);
    }

    /// Returns what was recorded. `views` is what members know in the end.
    pub(super) fn recording(&self, views: &[View]) -> Recording {
        let span = |span: Span| TransferSpan {
            from: span.begun.saturating_duration_since(self.begun),
            ended: span
                .ended
                .map(|(at, good)| (at.saturating_duration_since(self.begun), good)),
        };
        let fault = |(number, (from, until)): (&usize, &(Duration, Duration))| {
            Some(FaultSpan {
                fault: self.scenario.faults.get(*number)?.clone(),
                from: *from,
                until: *until,
            })
        };
        let lines_are_ways = self.topology.ways().is_some();
        Recording {
            samples: self.recorder.samples.all(),
            faults: self.recorder.struck.iter().filter_map(fault).collect(),
            transfers: self.ledger.transfer_spans().map(span).collect(),
            messages: self.ledger.message_spans().map(span).collect(),
            regions: self
                .topology
                .region_names()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            lines: if lines_are_ways {
                self.topology.pairs()
            } else {
                lines(views)
            },
            lines_are_ways,
        }
    }
}

/// Who is connected with whom, as either side has it.
fn lines(views: &[View]) -> Vec<(usize, usize)> {
    let places: BTreeMap<_, _> = views.iter().map(|view| (view.id, view.place)).collect();
    let of_view = |view: &View| -> Vec<(usize, usize)> {
        let others = view.connected.iter().filter_map(|id| places.get(id).copied());
        others
            .map(|other| (view.place.min(other), view.place.max(other)))
            .collect()
    };
    let mut lines: Vec<_> = views.iter().flat_map(of_view).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}
