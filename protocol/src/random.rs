//! Seeded random numbers: the only randomness that the machines have.
//!
//! The driver seeds a peer from the operating system, the simulator from its scenario, so that a run can be
//! repeated. Secrets (ticket secrets, transfer ids) come from here too, hence a cryptographic generator.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A ChaCha20 generator with the few draws that the machines need.
#[derive(Clone)]
pub struct Random(ChaCha20Rng);

impl core::fmt::Debug for Random {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Random")
    }
}

impl Random {
    /// Makes the generator from 32 bytes that nobody else knows.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }

    /// Draws a 64-bit number.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws a number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-32 for every bound used here (list lengths, milliseconds).
        self.u64() % bound.max(1)
    }

    /// Draws `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    /// Draws a duration between 75 % and 125 % of `base`, so that peers do not act in step.
    pub fn jittered(&mut self, base: core::time::Duration) -> core::time::Duration {
        let ns = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX);
        let quarter = ns / 4;
        core::time::Duration::from_nanos(ns - quarter + self.below(quarter.saturating_mul(2).max(1)))
    }
}
