//! What is known of each peer and connection, and the index sets that follow from it.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{ADDRESSES_PER_PEER_MAX, Neighbors, Timer};
use crate::frame::Hello;
use crate::{Address, ConnId, Instant, PeerId};

/// Where a peer stands with being dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dial {
    /// It may be dialled.
    Ready,
    /// It may not be dialled before this.
    Waiting(Instant),
    /// It is being dialled; the driver must have answered by then.
    Flying(Instant),
}

#[derive(Debug)]
pub(super) struct Peer {
    /// What a user said.
    pub(super) given: Vec<Address>,
    /// What the directory says.
    pub(super) learned: Vec<Address>,
    /// The address that worked last.
    pub(super) proven: Option<Address>,
    pub(super) wants: u32,
    /// Dials in a row without a good connection.
    pub(super) failures: u32,
    /// Whether it was a neighbor and should be one again.
    pub(super) lost: bool,
    pub(super) dial: Dial,
    /// In the order in which they were established.
    pub(super) conns: Vec<ConnId>,
    /// The one that carries frames; the peer is up while there is one.
    pub(super) current: Option<ConnId>,
    /// Of the last Hello; kept while the peer is known.
    pub(super) incarnation: Option<u64>,
    pub(super) up_since: Instant,
    /// Whether the next `Up` is that of another process.
    pub(super) restarted: bool,
    /// When an unwanted connection may be closed.
    pub(super) idle_at: Option<Instant>,
    /// Since when it is connected and nobody needs it.
    pub(super) idle_since: Option<Instant>,
    /// When to choose among duplicates again.
    pub(super) settle_at: Option<Instant>,
    /// The peer's entry in the timers.
    timer: Option<Instant>,
    /// The time of its entry among the idle.
    idle_entry: Option<Instant>,
}

impl Peer {
    pub(super) const fn new() -> Self {
        Self {
            given: Vec::new(),
            learned: Vec::new(),
            proven: None,
            wants: 0,
            failures: 0,
            lost: false,
            dial: Dial::Ready,
            conns: Vec::new(),
            current: None,
            incarnation: None,
            up_since: Instant(0),
            restarted: false,
            idle_at: None,
            idle_since: None,
            settle_at: None,
            timer: None,
            idle_entry: None,
        }
    }

    /// Returns every address, the likeliest first.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let mut out: Vec<Address> = Vec::new();
        for address in self.proven.iter().chain(&self.given).chain(&self.learned) {
            if !out.contains(address) && out.len() < ADDRESSES_PER_PEER_MAX {
                out.push(address.clone());
            }
        }
        out
    }

    fn has_address(&self) -> bool {
        self.proven.is_some() || !self.given.is_empty() || !self.learned.is_empty()
    }

    fn due(&self) -> Option<Instant> {
        let dial = match self.dial {
            Dial::Ready => None,
            Dial::Waiting(at) | Dial::Flying(at) => Some(at),
        };
        [dial, self.idle_at, self.settle_at].into_iter().flatten().min()
    }
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) peer: PeerId,
    pub(super) dialled: bool,
    pub(super) address: Option<Address>,
    /// Numbers the connections in the order in which they were established here.
    pub(super) sequence: u64,
    pub(super) hello: Option<Hello>,
    pub(super) hello_at: Instant,
    /// When the Hello must have arrived.
    pub(super) hello_due: Instant,
}

fn set(set: &mut BTreeSet<PeerId>, peer: PeerId, member: bool) {
    if member {
        set.insert(peer);
    } else {
        set.remove(&peer);
    }
}

impl Neighbors {
    /// Brings the index sets and the timer of `id` in line with its entry, and forgets it when nothing is left to
    /// remember. To be called after every change of an entry.
    pub(super) fn reindex(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let flying = matches!(peer.dial, Dial::Flying(_));
        let banned = self.bans.contains_key(&id);
        let ready = peer.dial == Dial::Ready && peer.conns.is_empty() && peer.has_address() && !banned;
        set(&mut self.ready, id, ready);
        set(&mut self.ready_wanted, id, ready && peer.wants > 0);
        set(&mut self.ready_lost, id, ready && peer.lost);
        set(&mut self.flying, id, flying);
        set(&mut self.linked, id, !peer.conns.is_empty());
        // Bootstrap peers hold on to each other: they are what others meet at.
        let idle = peer.idle_since.filter(|_| peer.given.is_empty());
        if idle != peer.idle_entry {
            if let Some(since) = peer.idle_entry {
                self.idle.remove(&(since, id));
            }
            if let Some(since) = idle {
                self.idle.insert((since, id));
            }
            peer.idle_entry = idle;
        }
        let empty = !peer.has_address() && peer.wants == 0 && peer.conns.is_empty() && !flying;
        let due = peer.due().filter(|_| !empty);
        if due != peer.timer {
            if let Some(at) = peer.timer {
                self.timers.remove(&(at, Timer::Peer(id)));
            }
            if let Some(at) = due {
                self.timers.insert((at, Timer::Peer(id)));
            }
            peer.timer = due;
        }
        if empty {
            self.peers.remove(&id);
            self.filter = self.peers.keys().collect();
            self.bootstraps.remove(&id);
        }
    }

    /// Acts on whichever of the peer's deadlines have passed.
    pub(super) fn on_peer_timeout(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.timer = None;
        let settle = peer.settle_at.is_some_and(|at| at <= now);
        let idle = peer.idle_at.is_some_and(|at| at <= now);
        if settle {
            peer.settle_at = None;
        }
        match peer.dial {
            Dial::Waiting(at) if at <= now => peer.dial = Dial::Ready,
            Dial::Flying(at) if at <= now => self.on_dial_failed(now, id, false),
            Dial::Waiting(_) | Dial::Flying(_) | Dial::Ready => {}
        }
        if settle {
            self.settle(now, id);
        }
        if idle {
            self.on_idle(now, id);
        }
        self.reindex(id);
    }
}
