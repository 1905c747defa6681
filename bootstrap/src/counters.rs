//! What has happened since the start, counted where it happens and read by the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyperfabric_mesh::gate::MeshGate;
use hyperfabric_mesh::{Gate, Purpose, Refusal};
use hyperfabric_protocol::PeerId;

/// Counts from zero, and wraps after 2^64.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What has happened to one bootstrap peer.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Identities let through in handshakes, of those who dialled and of those dialled.
    pub(crate) handshakes_admitted: Counter,
    /// Identities refused in handshakes.
    pub(crate) handshakes_refused: Counter,
    /// Members that were connected.
    pub(crate) peers_up: Counter,
    /// Peers that did not answer at any address when they were dialled.
    pub(crate) peers_unreachable: Counter,
    /// Tickets redeemed.
    pub(crate) joins_admitted: Counter,
    /// Tickets refused.
    pub(crate) joins_refused: Counter,
    /// Peers cut off because they broke the protocol.
    pub(crate) peers_misbehaved: Counter,
    /// The last state change could not be written to the disk.
    pub(crate) storage_failing: AtomicBool,
    /// This peer's own membership was revoked.
    pub(crate) revoked: AtomicBool,
}

/// The mesh's gate, with a count of what it says.
#[derive(Debug)]
pub(crate) struct CountingGate {
    pub(crate) gate: MeshGate,
    pub(crate) counters: Arc<Counters>,
}

impl Gate for CountingGate {
    fn admit(&self, peer: &PeerId, membership: Option<&[u8]>, purpose: Purpose) -> Result<(), Refusal> {
        let verdict = self.gate.admit(peer, membership, purpose);
        match verdict {
            Ok(()) => self.counters.handshakes_admitted.add(),
            Err(_) => self.counters.handshakes_refused.add(),
        }
        verdict
    }
}
