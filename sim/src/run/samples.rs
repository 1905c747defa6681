//! Samples over time, never more of them than a plot can show.

use std::time::Duration;

/// The most samples that are kept: as many as a plot can show. Of more, every second one is dropped.
pub const SAMPLES_MAX: usize = 200;

/// Takes samples, less often the longer the run.
#[derive(Debug)]
pub(crate) struct Samples<S> {
    every: Duration,
    next: Duration,
    last: Option<Duration>,
    kept: Vec<S>,
}

impl<S: Clone> Samples<S> {
    /// Takes one at once, and then as often as is said, or less often.
    pub(crate) const fn new(every: Duration) -> Self {
        Self {
            every,
            next: Duration::ZERO,
            last: None,
            kept: Vec::new(),
        }
    }

    pub(crate) fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// Whether nothing was taken since.
    pub(crate) fn ends_before(&self, now: Duration) -> bool {
        self.last.is_none_or(|last| last < now)
    }

    pub(crate) fn add(&mut self, now: Duration, sample: S) {
        if self.kept.len() >= SAMPLES_MAX {
            let mut keep = false;
            self.kept.retain(|_| {
                keep = !keep;
                keep
            });
            self.every *= 2;
        }
        self.next = now + self.every;
        self.last = Some(now);
        self.kept.push(sample);
    }

    pub(crate) fn all(&self) -> Vec<S> {
        self.kept.clone()
    }
}
