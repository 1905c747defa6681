//! What is kept per peer: whether it is connected, whose turn it is, and what it has not been told.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::{Output, Remembered, Role, TransferError, Transfers};
use crate::frame::{Abort, Frame};
use crate::transfer::Fault;
use crate::transfer::limits::{ENDED_REMEMBERED_MAX, SENDING_MAX};
use crate::types::PacketPriority;
use crate::{Instant, PeerId, TransferId};

#[derive(Debug, Default)]
pub(super) struct PeerEntry {
    pub(super) up: bool,
    pub(super) wanted: bool,
    pub(super) outgoing: BTreeSet<TransferId>,
    pub(super) incoming: BTreeSet<TransferId>,
    /// Those of `outgoing` that wait for their turn.
    pub(super) queue: BTreeSet<(PacketPriority, u64, TransferId)>,
    /// Those of `outgoing` that have it.
    pub(super) running: BTreeSet<TransferId>,
}

impl PeerEntry {
    fn may_offer(&self) -> bool {
        self.up && self.running.len() < SENDING_MAX && !self.queue.is_empty()
    }
}

impl Transfers {
    pub(super) fn is_up(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|entry| entry.up)
    }

    /// Sends a frame; to a peer that is not connected, none.
    pub(super) fn send(&mut self, peer: PeerId, frame: Frame) {
        if self.is_up(peer) {
            self.outputs.push_back(Output::Frame { peer, frame });
        }
    }

    pub(super) fn send_abort(&mut self, peer: PeerId, transfer: TransferId, fault: Fault) {
        self.send(
            peer,
            Frame::Abort(Abort {
                transfer,
                fault,
                detail: None,
            }),
        );
    }

    /// Asks for a connection while there is something to send, and holds one while something is received.
    pub(super) fn update_want(&mut self, peer: PeerId) {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        let wanted = !entry.outgoing.is_empty() || (entry.up && !entry.incoming.is_empty());
        if wanted != entry.wanted {
            entry.wanted = wanted;
            self.outputs.push_back(if wanted {
                Output::Want { peer }
            } else {
                Output::Unwant { peer }
            });
        }
        if !entry.up && entry.outgoing.is_empty() && entry.incoming.is_empty() {
            self.peers.remove(&peer);
        }
    }

    /// Offers transfers until as many run as may, those to `peer` first.
    pub(super) fn pump(&mut self, now: Instant, peer: PeerId) {
        let running = self.peers.values().map(|entry| entry.running.len()).sum();
        let mut places = self.limit.saturating_sub(running);
        self.pump_to(now, peer, &mut places);
        if places == 0 {
            return;
        }
        // A place that this peer does not need may be what another's transfers wait for.
        let waiting = |(peer, entry): (&PeerId, &PeerEntry)| entry.may_offer().then_some(*peer);
        let waiting: Vec<PeerId> = self.peers.iter().filter_map(waiting).collect();
        for peer in waiting {
            self.pump_to(now, peer, &mut places);
        }
    }

    fn pump_to(&mut self, now: Instant, peer: PeerId, places: &mut usize) {
        while *places > 0
            && let Some(entry) = self.peers.get_mut(&peer)
            && entry.may_offer()
            && let Some((_, _, transfer)) = entry.queue.pop_first()
        {
            entry.running.insert(transfer);
            *places -= 1;
            self.offer(now, transfer);
        }
    }

    pub(super) fn on_peer_up(&mut self, now: Instant, peer: PeerId) {
        let entry = self.peers.entry(peer).or_default();
        let moved = core::mem::replace(&mut entry.up, true);
        let owed: Vec<(TransferId, Role)> = self
            .remembered
            .range(Self::remembered_of(peer))
            .filter(|(_, remembered)| remembered.owed || moved)
            .map(|((_, transfer, role), _)| (*transfer, *role))
            .collect();
        for (transfer, role) in owed {
            // [XFER-12]
            if let Some(remembered) = self.remembered.get_mut(&(peer, transfer, role)) {
                remembered.owed = false;
                let fault = remembered.fault;
                self.send_abort(peer, transfer, fault);
            }
        }
        for transfer in self.outgoing_of(peer) {
            self.on_outgoing_up(now, transfer);
        }
        for transfer in self.incoming_of(peer) {
            self.on_incoming_up(now, (peer, transfer));
        }
        self.update_want(peer);
        self.pump(now, peer);
    }

    pub(super) fn on_peer_down(&mut self, now: Instant, peer: PeerId) {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        if !core::mem::replace(&mut entry.up, false) {
            return;
        }
        for (_, remembered) in self.remembered.range_mut(Self::remembered_of(peer)) {
            remembered.owed |= core::mem::take(&mut remembered.unsure);
        }
        for transfer in self.outgoing_of(peer) {
            self.suspend_outgoing(now, transfer, None);
        }
        for transfer in self.incoming_of(peer) {
            self.on_incoming_down(now, (peer, transfer));
        }
        self.update_want(peer);
    }

    pub(super) fn on_peer_revoked(&mut self, now: Instant, peer: PeerId) {
        for transfer in self.outgoing_of(peer) {
            self.fail_outgoing(now, transfer, TransferError::local(Fault::Revoked));
        }
        for transfer in self.incoming_of(peer) {
            self.fail_incoming((peer, transfer), TransferError::local(Fault::Revoked));
        }
    }

    fn outgoing_of(&self, peer: PeerId) -> Vec<TransferId> {
        self.peers
            .get(&peer)
            .map(|entry| entry.outgoing.iter().copied().collect())
            .unwrap_or_default()
    }

    fn incoming_of(&self, peer: PeerId) -> Vec<TransferId> {
        self.peers
            .get(&peer)
            .map(|entry| entry.incoming.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Tells the peer that a transfer is over, now or when it is back, and remembers it for when that gets lost.
    pub(super) fn tell_ended(&mut self, peer: PeerId, transfer: TransferId, role: Role, fault: Fault) {
        let owed = !self.is_up(peer);
        self.send_abort(peer, transfer, fault);
        let key = (peer, transfer, role);
        let remembered = Remembered {
            fault,
            owed,
            // A sender that was not told offers again and hears it then; a receiver would wait in vain.
            unsure: !owed && role == Role::Sender,
        };
        if self.remembered.insert(key, remembered).is_none() {
            self.remembered_order.push_back(key);
            if self.remembered_order.len() > ENDED_REMEMBERED_MAX
                && let Some(oldest) = self.remembered_order.pop_front()
            {
                self.remembered.remove(&oldest);
            }
        }
    }

    /// The keys of what is remembered for a peer.
    fn remembered_of(peer: PeerId) -> RangeInclusive<(PeerId, TransferId, Role)> {
        (peer, TransferId([0; 16]), Role::Sender)..=(peer, TransferId([0xff; 16]), Role::Receiver)
    }

    pub(super) fn recall(&self, peer: PeerId, transfer: TransferId, role: Role) -> Option<Fault> {
        self.remembered
            .get(&(peer, transfer, role))
            .map(|remembered| remembered.fault)
    }

    pub(super) fn unremember(&mut self, peer: PeerId, transfer: TransferId, role: Role) {
        let key = (peer, transfer, role);
        if self.remembered.remove(&key).is_some() {
            self.remembered_order.retain(|other| *other != key);
        }
    }
}
