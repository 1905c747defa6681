//! Every transfer ends, once, verified or with a typed error, and "verified" is true.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::transfer::{Fault, Role, TransferEvent};
use hyperfabric_protocol::{Instant, PeerId, TransferId};

use super::{Asked, Check, Findings};
use crate::world::{PeerIndex, World};

const NAME: &str = "transfers";
const CHUNK: u64 = 1 << 20;
/// How long two connected peers may leave all transfers from one to the other where they are.
const STANDSTILL: Duration = Duration::from_secs(100);

#[derive(Debug)]
struct Account {
    from: PeerIndex,
    to: PeerIndex,
    size: u64,
    /// How often its sender's process has ended it, since it was given to it last.
    ended: u32,
    delivered: bool,
}

/// The checker.
#[derive(Debug, Default)]
pub struct TransfersEnd {
    transfers: BTreeMap<TransferId, Account>,
    /// Since when a peer is connected with another one.
    up: BTreeMap<(PeerIndex, PeerId), Instant>,
    /// When a transfer of a peer to another one has moved last, or was given to it.
    moved: BTreeMap<(PeerIndex, PeerId), Instant>,
}

impl TransfersEnd {
    /// Keeps account of what lets transfers go on.
    fn note(&mut self, at: Instant, peer: PeerIndex, event: &Event) {
        match event {
            Event::PeerUp { peer: who, .. } => drop(self.up.insert((peer, *who), at)),
            Event::PeerDown { peer: who } => drop(self.up.remove(&(peer, *who))),
            Event::Transfer(
                TransferEvent::Progress { of, .. } | TransferEvent::Ended { of, result: Ok(_) },
            ) if of.role == Role::Sender => {
                self.moved.insert((peer, of.peer), at);
            }
            _ => {}
        }
    }

    /// Tells whether two peers were connected for long, and nothing moved from one to the other.
    fn stood_still(&self, at: Instant, from: PeerIndex, to: PeerId) -> bool {
        let long_ago = |since: Option<&Instant>| since.is_some_and(|since| since.after(STANDSTILL) < at);
        long_ago(self.up.get(&(from, to))) && long_ago(self.moved.get(&(from, to)))
    }
}

impl Account {
    /// Says what is wrong with a transfer that somebody calls delivered.
    fn lie(&self, world: &World, transfer: TransferId, root: &[u8; 32]) -> Option<String> {
        let sender = world.peer_id(self.from);
        let Some(received) = world.disk(self.to).received.get(&(sender, transfer)) else {
            return Some("the receiver's disk has nothing of it".to_owned());
        };
        let chunks = self.size.div_ceil(CHUNK);
        let present = (0..chunks).filter(|chunk| received.have.contains(*chunk)).count() as u64;
        // The first bytes of a payload's digest are the transfer's id, in every world.
        let right = root[..16] == *transfer.as_bytes() && root[16..].iter().all(|byte| *byte == 0);
        if received.delivered.as_ref() != Some(root) {
            Some("the receiver's disk does not say so".to_owned())
        } else if present != chunks {
            Some(format!("{present} of {chunks} chunks are on the receiver's disk"))
        } else if !right {
            Some("its digest is that of other bytes".to_owned())
        } else {
            None
        }
    }
}

impl Check for TransfersEnd {
    fn asked(&mut self, world: &World, asked: Asked) {
        match asked {
            Asked::Send {
                from,
                to,
                transfer,
                size,
            } => {
                let account = self.transfers.entry(transfer).or_insert(Account {
                    from,
                    to,
                    size,
                    ended: 0,
                    delivered: false,
                });
                account.ended = 0;
                self.moved.insert((from, world.peer_id(to)), world.now().mono);
            }
            Asked::Crashed(peer) => self.up.retain(|(from, _), _| *from != peer),
            Asked::Member(_)
            | Asked::Stranger(_)
            | Asked::Guest { .. }
            | Asked::Twin { .. }
            | Asked::Revoked(_) => {}
        }
    }

    fn event(&mut self, world: &World, at: Instant, peer: PeerIndex, event: &Event, to: &mut Findings) {
        self.note(at, peer, event);
        let Event::Transfer(TransferEvent::Ended { of, result }) = event else {
            return;
        };
        let stuck = of.role == Role::Sender && self.stood_still(at, peer, of.peer);
        let Some(account) = self.transfers.get_mut(&of.transfer) else {
            return to.add(
                NAME,
                at,
                Some(peer),
                format!("transfer {} ended and was never asked for", of.transfer),
            );
        };
        let right_peer = match of.role {
            Role::Sender => account.from,
            Role::Receiver => account.to,
        };
        if right_peer != peer {
            to.add(
                NAME,
                at,
                Some(peer),
                format!("transfer {} ended at a stranger to it", of.transfer),
            );
        }
        if of.role == Role::Sender {
            account.ended += 1;
            if account.ended > 1 {
                to.add(
                    NAME,
                    at,
                    Some(peer),
                    format!("transfer {} ended twice", of.transfer),
                );
            }
        }
        if let Err(error) = result
            && matches!(error.fault, Fault::TimedOut | Fault::Unreachable)
            && stuck
        {
            let what = format!(
                "transfer {} came to a standstill between connected peers",
                of.transfer
            );
            to.add(NAME, at, Some(peer), what);
        }
        if let Ok(ended) = result {
            account.delivered = true;
            if let Some(why) = account.lie(world, of.transfer, &ended.root) {
                to.add(
                    NAME,
                    at,
                    Some(peer),
                    format!("transfer {} counts as delivered, but {why}", of.transfer),
                );
            }
        } else if account.delivered && of.role == Role::Receiver {
            to.add(
                NAME,
                at,
                Some(peer),
                format!("transfer {} failed after it was delivered", of.transfer),
            );
        }
    }

    fn end(&mut self, world: &World, to: &mut Findings) {
        for (transfer, account) in self.transfers.iter().filter(|(_, account)| account.ended == 0) {
            // A sender whose process is gone has nobody to tell.
            if let Some(fabric) = world.running(account.from) {
                let state = fabric
                    .transfers()
                    .transfers()
                    .find(|t| t.of.transfer == *transfer)
                    .map(|t| t.state);
                let what = format!("transfer {transfer} has not ended; it is {state:?}");
                to.add(NAME, world.now().mono, Some(account.from), what);
            }
        }
    }
}
