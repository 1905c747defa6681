//! How fast the bytes of transfers went to each peer: measured, never guessed from a congestion window.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use hyperfabric_protocol::PeerId;

use super::lock;

/// A transfer of fewer bytes says more about the round-trip time than about the bandwidth: it ends before the
/// congestion window has opened.
const BYTES_MIN: u64 = 8 << 20;

/// Peers that are remembered; beyond it, all are forgotten, and the next transfer to each is measured again.
const PEERS_MAX: usize = 4096;

/// The rates of the last transfers, in Gbit/s.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<PeerId, f64>>);

impl Rates {
    /// Notes that `peer` has got this many bytes in this time.
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    pub(super) fn note(&self, peer: PeerId, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        if bytes < BYTES_MIN || seconds <= 0.0 {
            return;
        }
        let mut rates = lock(&self.0);
        if rates.len() >= PEERS_MAX && !rates.contains_key(&peer) {
            rates.clear();
        }
        rates.insert(peer, bytes as f64 * 8.0 / seconds / 1e9);
    }

    /// Returns how fast the last transfer to `peer` was that was large enough to tell.
    pub(super) fn gbps(&self, peer: &PeerId) -> Option<f64> {
        lock(&self.0).get(peer).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_measured_is_told_and_the_number_of_peers_is_bounded() {
        let rates = Rates::default();
        let peer = |number: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_le_bytes());
            PeerId(id)
        };
        rates.note(peer(1), BYTES_MIN - 1, Duration::from_secs(1));
        rates.note(peer(1), BYTES_MIN, Duration::ZERO);
        assert_eq!(rates.gbps(&peer(1)), None);
        rates.note(peer(1), 125_000_000, Duration::from_secs(2));
        assert!((rates.gbps(&peer(1)).unwrap() - 0.5).abs() < 1e-9);
        for number in 0..2 * PEERS_MAX {
            rates.note(peer(number), BYTES_MIN, Duration::from_secs(1));
        }
        assert!(lock(&rates.0).len() <= PEERS_MAX);
    }
}
