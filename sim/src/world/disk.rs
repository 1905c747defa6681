//! What a peer of the world has made durable.
//!
//! Everything that reaches it is durable at once; worlds with disks that lie belong to the storage tests of the
//! node, which has the code that could be fooled.

use std::collections::BTreeMap;

use hyperfabric_protocol::admission::{Grant, StateChange, TicketRecord};
use hyperfabric_protocol::cert::{Admitter, Membership, MeshRoot};
use hyperfabric_protocol::transfer::{ChunkRanges, Fault, Job, JobResult, Offer, Prepared};
use hyperfabric_protocol::{Address, NodeId, PeerId, Serial, Signed, TransferId};

/// A transfer as its receiver's journal has it.
#[derive(Clone, Debug)]
pub struct Received {
    /// What was offered.
    pub offer: Offer,
    /// Which chunks have arrived.
    pub have: ChunkRanges,
    /// How often each chunk arrived, for the checkers.
    pub arrivals: u64,
    /// Its digest, once it is delivered.
    pub delivered: Option<[u8; 32]>,
}

/// A peer's durable state.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Its mesh.
    pub root: Option<MeshRoot>,
    /// Its certificate.
    pub membership: Option<Membership>,
    /// Its right to admit.
    pub admitter: Option<Admitter>,
    /// Tickets by the hash of their secret.
    pub tickets: BTreeMap<[u8; 32], TicketRecord>,
    /// Granted names.
    pub grants: BTreeMap<NodeId, Grant>,
    /// Revocations by certificate.
    pub revocations: BTreeMap<Serial, Signed>,
    /// Who admitted this peer, and where they can be dialled.
    pub issuers: BTreeMap<PeerId, Vec<Address>>,
    /// Incoming transfers by sender and id.
    pub received: BTreeMap<(PeerId, TransferId), Received>,
    /// What every new transfer is refused with, when it is.
    pub refuses: Option<Fault>,
}

impl Disk {
    /// Writes state changes down.
    pub fn persist(&mut self, changes: &[StateChange]) {
        for change in changes.iter().cloned() {
            match change {
                StateChange::Ticket(ticket) => drop(self.tickets.insert(ticket.secret_hash, ticket)),
                StateChange::TicketGone(hash) => drop(self.tickets.remove(&hash)),
                StateChange::Grant(grant) => drop(self.grants.insert(grant.name.clone(), grant)),
                StateChange::Revocation { serial, item } => drop(self.revocations.insert(serial, item)),
                StateChange::Membership {
                    root,
                    membership,
                    issuer,
                } => {
                    self.root = Some(root);
                    self.membership = Some(membership);
                    self.issuers.extend(issuer);
                }
            }
        }
    }

    /// Stores a chunk.
    pub fn store(&mut self, peer: PeerId, transfer: TransferId, chunk: u64) {
        if let Some(received) = self.received.get_mut(&(peer, transfer)) {
            received.have.insert(chunk..chunk + 1);
            received.arrivals += 1;
        }
    }

    /// Runs a transfer's job.
    pub fn run(&mut self, job: Job) -> JobResult {
        match job {
            Job::Prepare {
                peer,
                transfer,
                offer,
            } => JobResult::Prepared {
                peer,
                transfer,
                result: self.prepare(peer, transfer, offer),
            },
            Job::Seal { peer, transfer, root } => {
                let result = match self.received.get_mut(&(peer, transfer)) {
                    Some(received) if received.have.count() == received.offer.chunks() => {
                        received.delivered = Some(root);
                        Ok(())
                    }
                    Some(_) | None => Err(Fault::Storage),
                };
                JobResult::Sealed {
                    peer,
                    transfer,
                    result,
                }
            }
            Job::Discard { peer, transfer } => {
                if self
                    .received
                    .get(&(peer, transfer))
                    .is_some_and(|r| r.delivered.is_none())
                {
                    self.received.remove(&(peer, transfer));
                }
                JobResult::Discarded { peer, transfer }
            }
        }
    }

    fn prepare(&mut self, peer: PeerId, transfer: TransferId, offer: Offer) -> Result<Prepared, Fault> {
        if let Some(fault) = self.refuses {
            return Err(fault);
        }
        let fresh = Received {
            offer,
            have: ChunkRanges::new(),
            arrivals: 0,
            delivered: None,
        };
        let received = self.received.entry((peer, transfer)).or_insert(fresh);
        Ok(match received.delivered {
            Some(root) => Prepared::Delivered { root },
            None => Prepared::Ready {
                have: received.have.clone(),
            },
        })
    }
}
