//! Congestion control of bulk connections: CUBIC, with a floor under it that is learnt from what really arrives.
//!
//! CUBIC takes every lost packet for a full queue. On a long path that loses one packet in a hundred by itself, that
//! leaves a few hundred kilobytes per second of a gigabit. So a [`Model`] of the path is kept beside it, in the manner
//! of BBR: the rate at which packets were acknowledged, and the round trip of an empty queue. Their product is what
//! the path holds, and the window never falls below it while few packets are lost. Where the path loses none, or where
//! its round trip is short, CUBIC is above the floor and nothing is different from it.
//!
//! Sources: RFC 9438 (CUBIC, quinn's own), and the BBR drafts of the IETF's congestion control group for the rounds,
//! the filters and the gains.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};

/// Rounds whose fastest is taken for the path's rate: longer than a cycle of gains, so that a probe's result outlives it.
const RATE_ROUNDS: usize = 12;
/// A round trip counts as that of the empty path for this long.
const ROUND_TRIP_LIFE: Duration = Duration::from_secs(10);
/// A sample this close to the shortest one, in parts of 16, shows that the queue was empty.
const ROUND_TRIP_SLACK_16THS: u32 = 1;
/// Rounds with less than a quarter of growth after which the path counts as full.
const FULL_ROUNDS: u32 = 3;
/// Rounds between two probes for more, while probes do no harm.
const PROBE_EVERY_MIN: u32 = 8;
/// The same after probes that have only lost packets.
const PROBE_EVERY_MAX: u32 = 64;
/// A probe that loses this many packets of a thousand more than other rounds has filled a queue.
const PROBE_LOSS_PERMILLE: u64 = 20;
/// A path that loses this many packets of a thousand is being sent too much.
const LOSS_MAX_PERMILLE: u64 = 50;
/// Rounds with fewer bytes say nothing about a share of losses.
const LOSS_BYTES_MIN: u64 = 64 * 1024;

/// Gains are in parts of 16.
const GAIN_START: u64 = 32;
const GAIN_PROBE: u64 = 20;
const GAIN_DRAIN: u64 = 13;
const GAIN_HOLD: u64 = 16;
/// Half of what the path holds: its queue runs empty within a round, whoever filled it.
const GAIN_EMPTY: u64 = 8;

/// Makes the controllers of bulk connections.
#[derive(Clone, Debug, Default)]
pub(super) struct BulkCongestion {
    cubic: Arc<CubicConfig>,
}

impl ControllerFactory for BulkCongestion {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::clone(&self.cubic).build(now, mtu);
        let model = Model::new(now, cubic.initial_window());
        Box::new(FlooredCubic { cubic, model })
    }
}

struct FlooredCubic {
    cubic: Box<dyn Controller>,
    model: Model,
}

impl Controller for FlooredCubic {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        self.model.on_ack(now, sent, bytes, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        self.cubic.on_congestion_event(now, sent, persistent, lost);
        self.model.on_loss(now, lost, persistent);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.cubic.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.model.window(self.cubic.window())
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            cubic: self.cubic.clone_box(),
            model: self.model.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// What the gain of a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The path is not full yet: twice as much each round.
    Start { rounds_without_growth: u32 },
    /// As much as arrives; the number of rounds since the last probe.
    Hold { rounds: u32 },
    /// A quarter more, for one round to send it and one to see whether it arrives.
    Probe { seen: bool },
    /// Less, so that what the probe left in a queue goes.
    Drain,
    /// Much less, so that the round trip of the empty path can be measured again.
    Empty,
}

/// What acknowledgements and losses tell of a path.
#[derive(Clone)]
struct Model {
    phase: Phase,
    /// Bytes per second of the latest rounds.
    rates: VecDeque<u64>,
    /// The fastest rate that was seen when the path was last looked at for growth.
    rate_before: u64,
    /// The shortest round trip and when it was last confirmed.
    round_trip: Option<(Duration, Instant)>,
    /// The shortest one since then, which takes over when it is too old.
    candidate: Option<Duration>,
    round: Round,
    /// Losses of the rounds that do not probe, smoothed.
    loss_permille: u64,
    probe_every: u32,
    initial_window: u64,
}

#[derive(Clone, Copy)]
struct Round {
    began: Instant,
    acked: u64,
    lost: u64,
    marked: bool,
    app_limited: bool,
}

impl Round {
    fn new(began: Instant) -> Self {
        Self {
            began,
            acked: 0,
            lost: 0,
            marked: false,
            app_limited: false,
        }
    }

    fn loss_permille(&self) -> Option<u64> {
        let all = self.acked + self.lost;
        (all >= LOSS_BYTES_MIN).then(|| self.lost * 1_000 / all)
    }
}

impl Model {
    fn new(now: Instant, initial_window: u64) -> Self {
        Self {
            phase: Phase::Start {
                rounds_without_growth: 0,
            },
            rates: VecDeque::with_capacity(RATE_ROUNDS),
            rate_before: 0,
            round_trip: None,
            candidate: None,
            round: Round::new(now),
            loss_permille: 0,
            probe_every: PROBE_EVERY_MIN,
            initial_window,
        }
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        self.measure_round_trip(now, now.saturating_duration_since(sent));
        self.round.acked += bytes;
        self.round.app_limited |= app_limited;
        // Something that was sent in this round has arrived: a round trip has passed.
        if sent >= self.round.began && now > self.round.began {
            self.end_round(now);
        }
    }

    /// Packets were lost, or, without any lost bytes, marked by a router whose queue grows (ECN, RFC 3168).
    fn on_loss(&mut self, now: Instant, bytes: u64, persistent: bool) {
        self.round.lost += bytes;
        self.round.marked |= bytes == 0;
        if persistent {
            // Nothing arrived for several round trips: what was learnt may be about another path.
            *self = Self::new(now, self.initial_window);
        }
    }

    fn measure_round_trip(&mut self, now: Instant, sample: Duration) {
        match self.round_trip {
            Some((shortest, _)) if sample > shortest + shortest * ROUND_TRIP_SLACK_16THS / 16 => {
                self.candidate = Some(self.candidate.map_or(sample, |other| other.min(sample)));
            }
            Some((shortest, _)) => {
                self.round_trip = Some((shortest.min(sample), now));
                self.candidate = None;
            }
            None => self.round_trip = Some((sample, now)),
        }
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round::new(now));
        let elapsed = now.duration_since(round.began).as_nanos().max(1);
        let rate = u64::try_from(u128::from(round.acked) * 1_000_000_000 / elapsed).unwrap_or(u64::MAX);
        // A sender that had nothing to send says how fast it was, not how fast the path is.
        if !round.app_limited || rate > self.rate() {
            if self.rates.len() == RATE_ROUNDS {
                self.rates.pop_front();
            }
            self.rates.push_back(rate);
        }
        self.judge_losses(&round);
        self.phase = self.next_phase(now, &round);
    }

    fn judge_losses(&mut self, round: &Round) {
        let loss = match round.loss_permille() {
            // No path marks packets by itself, as it may lose them.
            _ if round.marked => 1_000,
            Some(loss) => loss,
            None => return,
        };
        if let Phase::Probe { seen } = self.phase {
            if !seen {
                return;
            }
            let harmful = loss > self.loss_permille + PROBE_LOSS_PERMILLE;
            self.probe_every = if harmful {
                (self.probe_every * 2).min(PROBE_EVERY_MAX)
            } else {
                PROBE_EVERY_MIN
            };
            return;
        }
        self.loss_permille = (3 * self.loss_permille + loss) / 4;
        if self.loss_permille > LOSS_MAX_PERMILLE {
            // Believe the latest rate only, and a bit less than it: others want the path too, or it has become slower.
            let latest = self.rates.back().copied().unwrap_or(0);
            self.rates.clear();
            self.rates.push_back(latest - latest / 8);
            self.loss_permille = 0;
            self.phase = Phase::Hold { rounds: 0 };
        }
    }

    fn next_phase(&mut self, now: Instant, round: &Round) -> Phase {
        match self.phase {
            Phase::Start {
                rounds_without_growth,
            } => {
                if self.rate() > self.rate_before + self.rate_before / 4 {
                    self.rate_before = self.rate();
                    return Phase::Start {
                        rounds_without_growth: 0,
                    };
                }
                let rounds_without_growth = rounds_without_growth + u32::from(!round.app_limited);
                if rounds_without_growth < FULL_ROUNDS {
                    Phase::Start {
                        rounds_without_growth,
                    }
                } else {
                    Phase::Drain
                }
            }
            Phase::Probe { seen: false } => Phase::Probe { seen: true },
            Phase::Probe { seen: true } => Phase::Drain,
            Phase::Empty => {
                if let Some(candidate) = self.candidate.take() {
                    self.round_trip = Some((candidate, now));
                }
                Phase::Hold { rounds: 0 }
            }
            Phase::Drain => Phase::Hold { rounds: 0 },
            Phase::Hold { rounds } => {
                let old = self
                    .round_trip
                    .is_some_and(|(_, at)| now.duration_since(at) > ROUND_TRIP_LIFE);
                if old {
                    // Only what is measured with an empty queue may take over.
                    self.candidate = None;
                    Phase::Empty
                } else if rounds + 1 >= self.probe_every {
                    Phase::Probe { seen: false }
                } else {
                    Phase::Hold { rounds: rounds + 1 }
                }
            }
        }
    }

    fn rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }

    /// What the path holds, in bytes: rate times round trip, and the part of it that is lost before it arrives.
    fn holds(&self) -> u64 {
        let nanos = self.round_trip.map_or(0, |(shortest, _)| shortest.as_nanos());
        let arriving = u128::from(self.rate()) * nanos / 1_000_000_000;
        u64::try_from(arriving * 1_000 / u128::from(1_000 - self.loss_permille)).unwrap_or(u64::MAX)
    }

    /// The window that follows from the path and from what CUBIC allows.
    fn window(&self, cubic: u64) -> u64 {
        let gain = match self.phase {
            Phase::Start { .. } => GAIN_START,
            Phase::Hold { .. } => GAIN_HOLD,
            Phase::Probe { .. } => GAIN_PROBE,
            Phase::Drain => GAIN_DRAIN,
            Phase::Empty => return cubic.min((self.holds() * GAIN_EMPTY / 16).max(self.initial_window)),
        };
        cubic.max(self.holds().saturating_mul(gain) / 16)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("phase", &self.phase)
            .field("rate", &self.rate())
            .field("round_trip", &self.round_trip.map(|(shortest, _)| shortest))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
