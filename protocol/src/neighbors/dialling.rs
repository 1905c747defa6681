//! Whom to dial, when, and how long to wait after a failure.

use alloc::vec::Vec;
use core::time::Duration;

use super::connections::End;
use super::{
    ADDRESSES_PER_PEER_MAX, BOOTSTRAPS_MAX, CloseReason, DIAL_BACKOFF_MAX, DIAL_BACKOFF_MIN, DIAL_TIMEOUT,
    DIALS_MAX, Dial, Event, IDLE_TIMEOUT, LOST_DIALS_MAX, Neighbors, PEERS_KNOWN_MAX, Peer, REDIAL_DELAY,
    STABLE_AFTER, Transmit,
};
use crate::{Address, Instant, PeerId};

impl Neighbors {
    /// Dials until nobody needs dialling or enough dials are in flight.
    pub(super) fn dial_more(&mut self, now: Instant) {
        while self.flying.len() < DIALS_MAX
            && let Some(id) = self.next_to_dial(now)
        {
            let Some(peer) = self.peers.get_mut(&id) else {
                break;
            };
            peer.dial = Dial::Flying(now.after(DIAL_TIMEOUT));
            let addresses = peer.addresses();
            self.transmits.push_back(Transmit::Dial { peer: id, addresses });
            self.reindex(id);
        }
    }

    /// Chooses a peer to dial: a wanted one, one in the place of a bootstrap peer, a bootstrap peer when there
    /// is none, a lost neighbor, anyone.
    fn next_to_dial(&mut self, now: Instant) -> Option<PeerId> {
        let flying_only = self.flying.iter().filter(|id| !self.linked.contains(id)).count();
        let links = self.linked.len() + flying_only;
        let full = links >= self.config.connections_max;
        if let Some(id) = self.ready_wanted.first().copied()
            && (!full || self.newest_unwanted().is_some())
        {
            return Some(id);
        }
        if full {
            return None;
        }
        if links < self.config.degree_max
            && let Some(id) = self.replaces_bootstrap()
        {
            return Some(id);
        }
        let away = links >= self.config.degree_min && self.stays_away(now);
        if !away && !self.bootstrap_linked() && !self.bootstraps.iter().any(|id| self.flying.contains(id)) {
            let ready: Vec<PeerId> = self.bootstraps.intersection(&self.ready).copied().collect();
            if !ready.is_empty() {
                let at = self.random.below(ready.len() as u64);
                return ready.get(usize::try_from(at).unwrap_or(0)).copied();
            }
        }
        if links < self.config.degree_max
            && let Some(id) = self.ready_lost.first()
        {
            return Some(*id);
        }
        if links < self.config.degree_min {
            self.any_ready()
        } else {
            None
        }
    }

    /// Returns a random peer that can be dialled: the one that follows a random key, as keys are random themselves.
    fn any_ready(&mut self) -> Option<PeerId> {
        if self.ready.is_empty() {
            return None;
        }
        let pivot = PeerId(self.random.bytes());
        self.ready
            .range(pivot..)
            .next()
            .or_else(|| self.ready.first())
            .copied()
    }

    pub(super) fn bootstrap_linked(&self) -> bool {
        self.bootstraps.iter().any(|id| self.linked.contains(id))
    }

    /// Tells whether more neighbors are wanted, and nobody is left to dial for that.
    pub(crate) fn is_hungry(&self) -> bool {
        let flying_only = self.flying.iter().filter(|id| !self.linked.contains(id)).count();
        self.ready.is_empty() && self.linked.len() + flying_only < self.config.degree_min
    }

    /// Takes in a peer that the directory offers, in the place of one that is of no use now.
    pub(super) fn on_candidate(&mut self, id: PeerId, addresses: Vec<Address>) {
        if !self.peers.contains_key(&id) && self.peers.len() >= PEERS_KNOWN_MAX {
            self.forget_one();
        }
        self.learn(id, addresses, false);
    }

    /// Forgets a peer that nobody needs: one that waits after a failure, or one that could be dialled, or a lost one.
    fn forget_one(&mut self) {
        let idle = |(id, peer): &(&PeerId, &Peer)| {
            peer.conns.is_empty() && peer.wants == 0 && peer.given.is_empty() && !self.flying.contains(*id)
        };
        let pivot = PeerId(self.random.bytes());
        let around = || {
            self.peers
                .range(pivot..)
                .chain(self.peers.range(..pivot))
                .filter(idle)
        };
        let waits = around().find(|(_, peer)| !peer.lost && peer.dial != Dial::Ready);
        let stranger = || around().find(|(_, peer)| !peer.lost);
        let victim = waits
            .or_else(stranger)
            .or_else(|| around().next())
            .map(|(id, _)| *id);
        if let Some(id) = victim {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.learned.clear();
            peer.proven = None;
        }
        self.reindex(id);
    }

    pub(super) fn on_learned(&mut self, id: PeerId, addresses: Vec<Address>, bootstrap: bool) {
        if self.has_place(id, bootstrap) {
            self.learn(id, addresses, bootstrap);
        }
    }

    /// Tells whether there is a place for a peer that the directory has learned of, after making one where the draw
    /// says so.
    pub(crate) fn has_place(&mut self, id: PeerId, bootstrap: bool) -> bool {
        let full = self.peers.len() >= PEERS_KNOWN_MAX;
        let known = self.filter.may_hold(&id) && self.peers.contains_key(&id);
        if full && !known && !(bootstrap && self.bootstraps.len() < BOOTSTRAPS_MAX) {
            // Reservoir sampling: whoever comes is as likely to be kept as those who came before.
            self.strangers_seen += 1;
            let seen = PEERS_KNOWN_MAX as u64 + self.strangers_seen;
            if self.random.below(seen) >= PEERS_KNOWN_MAX as u64 {
                return false;
            }
            // A few tries: the whole table is not looked through for every member of a large mesh.
            let pivot = PeerId(self.random.bytes());
            let plain = |id: &&PeerId| {
                let peer = self.peers.get(*id);
                peer.is_some_and(|peer| !peer.lost && peer.wants == 0 && peer.given.is_empty())
            };
            let Some(victim) = self.ready.range(pivot..).take(8).find(plain).copied() else {
                return false;
            };
            self.forget(victim);
        }
        true
    }

    fn learn(&mut self, id: PeerId, mut addresses: Vec<Address>, bootstrap: bool) {
        if id == self.config.local {
            return;
        }
        addresses.truncate(ADDRESSES_PER_PEER_MAX);
        self.filter.add(&id);
        let peer = self.peers.entry(id).or_insert_with(Peer::new);
        let slot = if bootstrap {
            &mut peer.given
        } else {
            &mut peer.learned
        };
        if *slot != addresses {
            *slot = addresses;
            // A peer that moved need not wait for the end of a pause that its old address has earned.
            if matches!(peer.dial, Dial::Waiting(_)) {
                peer.dial = Dial::Ready;
            }
        }
        if !bootstrap {
            // What worked once is dropped when the peer itself says otherwise.
            let known = |address: &Address| peer.learned.contains(address) || peer.given.contains(address);
            if peer.proven.as_ref().is_some_and(|address| !known(address)) && !peer.learned.is_empty() {
                peer.proven = None;
            }
        } else if peer.given.is_empty() {
            self.bootstraps.remove(&id);
        } else if self.bootstraps.len() < BOOTSTRAPS_MAX {
            self.bootstraps.insert(id);
        }
        self.reindex(id);
    }

    pub(super) fn on_want(&mut self, id: PeerId) {
        if id == self.config.local {
            return;
        }
        self.filter.add(&id);
        let peer = self.peers.entry(id).or_insert_with(Peer::new);
        peer.wants = peer.wants.saturating_add(1);
        peer.idle_at = None;
        peer.idle_since = None;
        if matches!(peer.dial, Dial::Waiting(_)) {
            peer.dial = Dial::Ready;
        }
        let hopeless = peer.conns.is_empty() && peer.dial == Dial::Ready && peer.addresses().is_empty();
        self.reindex(id);
        if hopeless {
            self.events.push_back(Event::Unreachable { peer: id });
        }
    }

    pub(super) fn on_unwant(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.wants = peer.wants.saturating_sub(1);
        if peer.wants == 0 && peer.current.is_some() {
            peer.idle_at = Some(now.after(IDLE_TIMEOUT));
            peer.idle_since = Some(now);
        }
        self.reindex(id);
    }

    pub(super) fn on_dial_failed(&mut self, now: Instant, id: PeerId, permanent: bool) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if !matches!(peer.dial, Dial::Flying(_)) {
            return;
        }
        if !peer.given.is_empty() || !peer.learned.is_empty() {
            peer.proven = None;
        }
        peer.dial = Dial::Ready;
        let unreachable = peer.wants > 0 && peer.conns.is_empty();
        if permanent {
            self.pause(now, id);
        } else {
            self.retry_later(now, id);
        }
        if unreachable {
            self.events.push_back(Event::Unreachable { peer: id });
        }
    }

    /// Counts a failure, and pauses twice as long as after the last one.
    pub(super) fn retry_later(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.failures = peer.failures.saturating_add(1);
        if peer.failures >= LOST_DIALS_MAX {
            peer.lost = false;
        }
        let doublings = peer.failures.saturating_sub(1).min(7);
        let pause = (DIAL_BACKOFF_MIN * (1 << doublings)).min(DIAL_BACKOFF_MAX);
        self.wait(now, id, pause);
    }

    /// Pauses as long as a peer deserves that would refuse again.
    fn pause(&mut self, now: Instant, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.failures = peer.failures.saturating_add(1);
            peer.lost = false;
        }
        self.wait(now, id, DIAL_BACKOFF_MAX);
    }

    fn wait(&mut self, now: Instant, id: PeerId, pause: Duration) {
        let until = now.after(self.random.jittered(pause));
        if let Some(peer) = self.peers.get_mut(&id)
            && !matches!(peer.dial, Dial::Flying(_))
        {
            peer.dial = Dial::Waiting(until);
        }
        self.reindex(id);
    }

    /// Decides when to dial a peer again whose last connection has ended.
    pub(super) fn schedule_after(&mut self, now: Instant, id: PeerId, was_up: bool, end: End) {
        if end == End::Remote(CloseReason::Idle) && self.bootstraps.contains(&id) {
            self.on_let_go(now);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let stable = was_up && now.since(peer.up_since) >= STABLE_AFTER;
        let wanted = peer.wants > 0;
        if stable {
            peer.failures = 0;
        }
        match end {
            End::Remote(CloseReason::Idle) if wanted => peer.dial = Dial::Ready,
            End::Remote(CloseReason::Idle)
            | End::Local(CloseReason::Idle | CloseReason::LimitReached)
            | End::Local(CloseReason::Revoked | CloseReason::Violation | CloseReason::Banned)
            | End::Remote(CloseReason::Violation | CloseReason::Banned)
            | End::Local(CloseReason::Incompatible)
            | End::Remote(CloseReason::Incompatible) => self.pause(now, id),
            // The code of a revoked membership is that of an expired one, which may have been renewed meanwhile: the
            // next handshake says which it is, or succeeds. [CONN-8]
            End::Remote(CloseReason::LimitReached | CloseReason::HelloTimeout | CloseReason::Revoked)
            | End::Local(CloseReason::HelloTimeout) => {
                peer.lost = false;
                self.retry_later(now, id);
            }
            End::Lost
            | End::Remote(CloseReason::Shutdown | CloseReason::Duplicate | CloseReason::Restarted)
            | End::Local(CloseReason::Shutdown | CloseReason::Duplicate | CloseReason::Restarted) => {
                peer.lost |= was_up;
                if stable {
                    self.wait(now, id, REDIAL_DELAY);
                } else {
                    self.retry_later(now, id);
                }
            }
        }
    }
}
