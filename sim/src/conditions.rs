//! How links behave, and what QUIC makes of it. The same words serve the virtual-time world and impaired wires.

use std::time::Duration;

use crate::seed::Draws;

/// How long packets travel, one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Always as long.
    Constant(Duration),
    /// Evenly spread between the two.
    Uniform(Duration, Duration),
    /// Spread around a mean.
    Normal {
        /// The mean.
        mean: Duration,
        /// The standard deviation.
        deviation: Duration,
    },
}

impl Latency {
    /// Returns the mean.
    #[must_use]
    pub fn mean(self) -> Duration {
        match self {
            Self::Constant(latency) | Self::Normal { mean: latency, .. } => latency,
            Self::Uniform(low, high) => (low + high) / 2,
        }
    }

    /// Draws one packet's latency.
    pub fn draw(self, draws: &mut Draws) -> Duration {
        match self {
            Self::Constant(latency) => latency,
            Self::Uniform(low, high) => low + draws.duration(high.saturating_sub(low)),
            Self::Normal { mean, deviation } => draws.normal(mean, deviation),
        }
    }
}

/// Which packets are lost. Probabilities are in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// None.
    None,
    /// Each on its own.
    Bernoulli {
        /// With this probability.
        ppm: u32,
    },
    /// In bursts (Gilbert and Elliott): a packet finds the link good or bad, and may turn it into the other.
    Bursts {
        /// The probability that a packet turns a good link bad.
        worsens_ppm: u32,
        /// The probability that a packet turns a bad link good.
        mends_ppm: u32,
        /// The probability that a good link loses a packet.
        good_ppm: u32,
        /// The probability that a bad one does.
        bad_ppm: u32,
    },
}

/// The state of [`Loss`] on one link, in one direction.
#[derive(Clone, Debug)]
pub struct LossState {
    draws: Draws,
    bad: bool,
}

impl LossState {
    /// Starts good.
    #[must_use]
    pub const fn new(draws: Draws) -> Self {
        Self { draws, bad: false }
    }

    /// Draws whether the next packet is lost.
    pub fn loses(&mut self, loss: Loss) -> bool {
        match loss {
            Loss::None => false,
            Loss::Bernoulli { ppm } => self.draws.happens(ppm),
            Loss::Bursts {
                worsens_ppm,
                mends_ppm,
                good_ppm,
                bad_ppm,
            } => {
                let turns = if self.bad { mends_ppm } else { worsens_ppm };
                self.bad ^= self.draws.happens(turns);
                self.draws.happens(if self.bad { bad_ppm } else { good_ppm })
            }
        }
    }
}

/// How a link behaves, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// How long packets travel.
    pub latency: Latency,
    /// What is added to that, evenly spread from nothing to this.
    pub jitter: Duration,
    /// What is lost.
    pub loss: Loss,
    /// Bytes per second, for control and payload each.
    pub bytes_per_second: u64,
    /// What may wait for its turn on the link; more is lost.
    pub queue_bytes_max: u64,
}

/// What a router keeps: 100 ms at the default rate.
const QUEUE_BYTES: u64 = 10_000_000;

impl Conditions {
    /// A link without jitter and loss.
    #[must_use]
    pub const fn constant(latency: Duration, bytes_per_second: u64) -> Self {
        Self {
            latency: Latency::Constant(latency),
            jitter: Duration::ZERO,
            loss: Loss::None,
            bytes_per_second,
            queue_bytes_max: QUEUE_BYTES,
        }
    }

    /// Returns how long it takes to put bytes on the link.
    #[must_use]
    pub fn transmission(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Default for Conditions {
    /// 10 ms and 100 MB/s.
    fn default() -> Self {
        Self::constant(Duration::from_millis(10), 100_000_000)
    }
}

/// After how much silence a connection is lost, at the side that hears nothing. [QUIC-12]
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a connection says that it is alive. [QUIC-12]
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// What of a datagram carries data.
pub const PACKET_BYTES: u64 = 1_200;
/// The least that QUIC waits before it sends a packet again (RFC 9002, max_ack_delay).
const ACK_DELAY: Duration = Duration::from_millis(25);

/// Returns how much later than without loss the last of some packets arrives, or `None` when the connection does not
/// live to see that.
///
/// QUIC sends a lost packet again after about one and a half round trips, and again after twice as long, and so on
/// (RFC 9002, 6.2); the stream waits for it.
pub fn retransmission(state: &mut LossState, loss: Loss, bytes: u64, latency: Duration) -> Option<Duration> {
    if loss == Loss::None {
        return Some(Duration::ZERO);
    }
    let first = latency * 3 + ACK_DELAY;
    let mut worst = Duration::ZERO;
    for _ in 0..bytes.div_ceil(PACKET_BYTES).max(1) {
        let (mut wait, mut delay) = (first, Duration::ZERO);
        while state.loses(loss) {
            delay += wait;
            wait *= 2;
            if delay > IDLE_TIMEOUT {
                return None;
            }
        }
        worst = worst.max(delay);
    }
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Seed, Stream};

    fn state() -> LossState {
        LossState::new(Seed(5).stream(Stream::Loss, 0, 0))
    }

    #[test]
    fn bursts_lose_as_much_as_their_formula_says_and_in_a_row() {
        let loss = Loss::Bursts {
            worsens_ppm: 10_000,
            mends_ppm: 90_000,
            good_ppm: 0,
            bad_ppm: 500_000,
        };
        let mut state = state();
        let lost: Vec<bool> = (0..1_000_000).map(|_| state.loses(loss)).collect();
        // A tenth of the packets find a bad link, which loses half of them.
        let share = lost.iter().filter(|l| **l).count();
        assert!((47_000..53_000).contains(&share), "{share} of a million");
        let pairs = lost.windows(2).filter(|pair| pair[0] && pair[1]).count();
        assert!(pairs > share / 3, "{pairs} pairs among {share}: not in bursts");
    }

    #[test]
    fn a_lost_packet_costs_round_trips_and_a_lossy_link_its_connection() {
        let latency = Duration::from_millis(50);
        let quarter = Loss::Bernoulli { ppm: 250_000 };
        let mut links = state();
        let delays: Vec<_> = (0..10_000)
            .filter_map(|_| retransmission(&mut links, quarter, 100, latency))
            .collect();
        assert!(delays.iter().all(|d| d.is_zero() || *d >= latency * 3));
        let late = delays.iter().filter(|d| !d.is_zero()).count();
        assert!(
            (2_300..2_700).contains(&late),
            "{late} of 10,000 at a loss of a quarter"
        );
        let nothing = Loss::Bernoulli { ppm: 1_000_000 };
        assert_eq!(retransmission(&mut state(), nothing, 100, latency), None);
        assert_eq!(
            retransmission(&mut state(), Loss::None, 100, latency),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn latencies_lie_where_they_should() {
        let mut draws = Seed(5).stream(Stream::Jitter, 0, 0);
        let (low, high) = (Duration::from_millis(10), Duration::from_millis(30));
        let uniform = Latency::Uniform(low, high);
        assert!((0..1000).all(|_| (low..high).contains(&uniform.draw(&mut draws))));
        assert_eq!(uniform.mean(), Duration::from_millis(20));
    }
}
