//! One seed, split into named independent streams.
//!
//! Each thing that draws has a stream of its own, named by [`Stream`] and numbers (a link, a peer). A draw that is added
//! to one shifts no other, so a fault that is left out leaves the keys, the topology and the links of a run as they
//! were: that is what makes shrinking and comparing runs possible. Draws are integers: a floating-point function
//! could round differently in another build.

use std::time::Duration;

use hyperfabric_protocol::random::Random;

/// What a stream of random numbers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// The peers' keys and the seeds of their machines.
    Keys,
    /// Who can reach whom.
    Topology,
    /// Latency and jitter.
    Jitter,
    /// Loss of packets.
    Loss,
    /// What fails, when, and what a crash leaves behind.
    Faults,
    /// Who joins when, and who sends what to whom.
    Load,
}

/// The seed of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// Returns the stream for `what` with these numbers.
    #[must_use]
    pub fn stream(self, what: Stream, a: u64, b: u64) -> Draws {
        let mut state = 0x6a09_e667_f3bc_c908;
        for word in [self.0, what as u64, a, b] {
            state = mix(state ^ mix(word.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        }
        Draws(state)
    }

    /// Returns a key or the seed of a machine: cryptographic, because keys are spread by their first bytes.
    #[must_use]
    pub fn secret(self, a: u64, b: u64) -> [u8; 32] {
        let mut out = [0; 32];
        for (place, word) in [self.0, Stream::Keys as u64, a, b].into_iter().enumerate() {
            out[place * 8..place * 8 + 8].copy_from_slice(&word.to_be_bytes());
        }
        Random::from_seed(out).bytes()
    }
}

/// The finalizer of SplitMix64: every bit of the input changes every bit of the output.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of random numbers (SplitMix64): eight bytes of state, so that every link can have two.
#[derive(Clone, Debug)]
pub struct Draws(u64);

impl Draws {
    /// Draws a 64-bit number.
    pub const fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Draws a number below `bound`; 0 when there is none.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.u64()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Draws an index into something of this length; 0 when it is empty.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// Draws a number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// Draws whether something with this probability, in parts per million, happens.
    pub fn happens(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// Draws a duration below `bound`.
    pub fn duration(&mut self, bound: Duration) -> Duration {
        Duration::from_nanos(self.below(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Draws from a normal distribution with this mean and deviation, as the sum of twelve even draws (Irwin and Hall):
    /// exact in integers, and within six deviations of the mean.
    pub fn normal(&mut self, mean: Duration, deviation: Duration) -> Duration {
        let sum: u64 = (0..12).map(|_| self.below(1 << 20)).sum();
        let scaled = (deviation.as_nanos() * u128::from(sum)) >> 20;
        let above = mean.as_nanos() + scaled;
        let nanos = above.saturating_sub(6 * deviation.as_nanos());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_seed_by_name_and_by_number() {
        let first = |seed: u64, what, a, b| Seed(seed).stream(what, a, b).u64();
        let all = [
            first(1, Stream::Loss, 0, 0),
            first(2, Stream::Loss, 0, 0),
            first(1, Stream::Jitter, 0, 0),
            first(1, Stream::Loss, 1, 0),
            first(1, Stream::Loss, 0, 1),
        ];
        for (n, a) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(a));
        }
        assert_eq!(all[0], first(1, Stream::Loss, 0, 0));
    }

    #[test]
    fn a_draw_from_one_stream_shifts_no_other() {
        let mut faults = Seed(7).stream(Stream::Faults, 0, 0);
        let before = Seed(7).stream(Stream::Load, 0, 0).u64();
        faults.u64();
        assert_eq!(Seed(7).stream(Stream::Load, 0, 0).u64(), before);
    }

    #[test]
    fn draws_have_the_distribution_that_they_promise() {
        let mut draws = Seed(3).stream(Stream::Jitter, 0, 0);
        let hits = (0..1_000_000).filter(|_| draws.happens(10_000)).count();
        assert!(
            (9_500..10_500).contains(&hits),
            "{hits} of a million at one per cent"
        );
        let (mean, deviation) = (Duration::from_millis(50), Duration::from_millis(5));
        let sum: Duration = (0..10_000).map(|_| draws.normal(mean, deviation)).sum();
        let found = sum / 10_000;
        assert!(
            found.abs_diff(mean) < Duration::from_micros(250),
            "a mean of {found:?}"
        );
        let near = (0..10_000)
            .filter(|_| draws.normal(mean, deviation).abs_diff(mean) < deviation)
            .count();
        assert!(
            (6_500..7_200).contains(&near),
            "{near} of 10,000 within one deviation"
        );
        assert!((0..1000).all(|_| (3..=5).contains(&draws.between(3, 5))));
    }
}
