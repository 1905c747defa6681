//! How much every table and queue of a peer holds, for whoever watches that nothing grows without bound.

use super::Fabric;

/// How many entries each table and queue has. The queues that are drained after every input are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Sizes {
    /// Connections of any purpose.
    pub connections: usize,
    /// Peers with a prompt connection.
    pub neighbors: usize,
    /// Peers known by address.
    pub known: usize,
    /// Peers that are refused.
    pub bans: usize,
    /// Dials in flight.
    pub dials: usize,
    /// Items of the flood database.
    pub items: usize,
    /// Versions that came too early.
    pub deferred: usize,
    /// Items whose signature is being checked.
    pub checking: usize,
    /// Items that wait for the next batch, over all neighbors.
    pub batched: usize,
    /// Records.
    pub records: usize,
    /// Tickets that were issued.
    pub tickets: usize,
    /// Names that were granted.
    pub grants: usize,
    /// Revocations in force.
    pub revocations: usize,
    /// State changes that are not on disk yet.
    pub persisting: usize,
    /// Outgoing transfers.
    pub outgoing: usize,
    /// Incoming transfers.
    pub incoming: usize,
    /// Ended transfers whose other side may not know.
    pub remembered: usize,
}

impl Fabric {
    /// Returns how much every table and queue holds.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let (known, bans, dials) = self.neighbors.sizes();
        let (deferred, checking, batched) = self.flood.sizes();
        let (tickets, grants, revocations, persisting) = self.admission.sizes();
        let (outgoing, incoming, remembered) = self.transfers.sizes();
        Sizes {
            connections: self.conns.len(),
            neighbors: self.up.len(),
            known,
            bans,
            dials,
            items: self.flood.len(),
            deferred,
            checking,
            batched,
            records: self.directory.len(),
            tickets,
            grants,
            revocations,
            persisting,
            outgoing,
            incoming,
            remembered,
        }
    }
}
