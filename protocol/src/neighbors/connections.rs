//! From established to up: Hello, duplicates, restarts, limits, and the end of a connection.

use super::{
    BAN_DURATION, BANS_MAX, CONNECTIONS_PER_PEER_MAX, CloseReason, Conn, DIAL_RACE, Dial, Event,
    HELLO_TIMEOUT, IDLE_TIMEOUT, Neighbors, Peer, Timer, Transmit,
};
use crate::frame::{Frame, Hello};
use crate::{Address, ConnId, Instant, PeerId};

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// This side.
    Local(CloseReason),
    /// The other side, in words.
    Remote(CloseReason),
    /// Nobody: it broke.
    Lost,
}

impl Neighbors {
    pub(super) fn on_connected(
        &mut self,
        now: Instant,
        id: ConnId,
        peer_id: PeerId,
        dialled: bool,
        address: Option<Address>,
    ) {
        if let (true, Some(peer)) = (dialled, self.peers.get_mut(&peer_id)) {
            peer.dial = Dial::Ready;
            peer.proven.clone_from(&address);
        }
        let refusal = self.refusal(now, peer_id);
        if let Some(reason) = refusal {
            self.transmits.push_back(Transmit::Close { conn: id, reason });
            if dialled {
                self.retry_later(now, peer_id);
            }
            return;
        }
        self.conns_seen += 1;
        let hello_due = now.after(HELLO_TIMEOUT);
        let conn = Conn {
            id,
            peer: peer_id,
            dialled,
            address,
            sequence: self.conns_seen,
            hello: None,
            hello_at: now,
            hello_due,
        };
        self.conns.insert(id, conn);
        self.timers.insert((hello_due, Timer::Conn(id)));
        self.filter.add(&peer_id);
        let peer = self.peers.entry(peer_id).or_insert_with(Peer::new);
        peer.conns.push(id);
        let oldest = (peer.conns.len() > CONNECTIONS_PER_PEER_MAX).then(|| peer.conns[0]);
        self.reindex(peer_id);
        // [CONN-1] Both sides speak first.
        self.transmits.push_back(Transmit::Frame {
            conn: id,
            frame: Frame::Hello(self.hello()),
        });
        if let Some(oldest) = oldest {
            self.close(now, oldest, CloseReason::Duplicate);
        }
        self.prune(now, peer_id);
    }

    /// Says why a new connection to `id` cannot be kept, after making room where that is allowed. [CONN-7]
    fn refusal(&mut self, now: Instant, id: PeerId) -> Option<CloseReason> {
        if id == self.config.local {
            return Some(CloseReason::Duplicate);
        }
        if self.bans.contains_key(&id) {
            return Some(CloseReason::Banned);
        }
        // A second connection of a linked peer is let in even when full: it may be the peer's restarted process,
        // and the first one dead.
        if self.linked.contains(&id) || self.linked.len() < self.config.connections_max {
            return None;
        }
        let wanted = self.peers.get(&id).is_some_and(|peer| peer.wants > 0);
        let needed = wanted || (self.bootstraps.contains(&id) && !self.bootstrap_linked());
        match self.newest_unwanted() {
            Some(victim) if needed => {
                self.close_all(now, victim, CloseReason::LimitReached);
                None
            }
            Some(_) | None => Some(CloseReason::LimitReached),
        }
    }

    /// Returns the linked peer that came last of those that nobody wants.
    pub(super) fn newest_unwanted(&self) -> Option<PeerId> {
        let unwanted = |conn: &&Conn| self.peers.get(&conn.peer).is_some_and(|peer| peer.wants == 0);
        self.conns
            .values()
            .filter(unwanted)
            .max_by_key(|conn| conn.sequence)
            .map(|conn| conn.peer)
    }

    pub(super) fn on_hello(&mut self, now: Instant, id: ConnId, hello: Hello) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (peer_id, sequence) = (conn.peer, conn.sequence);
        if conn.hello.is_some() {
            // [CONN-1]
            return self.ban(now, peer_id, CloseReason::Violation);
        }
        if hello.version == 0 {
            // [CONN-2]
            return self.close(now, id, CloseReason::Incompatible);
        }
        let incarnation = hello.incarnation;
        let known = self.peers.get(&peer_id).and_then(|peer| peer.incarnation);
        let greeted = |conn: &Conn| conn.peer == peer_id && conn.hello.is_some();
        if known.is_some_and(|known| known != incarnation) {
            // [CONN-6] A Hello that was read late, on a connection older than one of the new process.
            let stale = self
                .conns
                .values()
                .any(|other| greeted(other) && other.sequence > sequence);
            if stale {
                return self.close(now, id, CloseReason::Restarted);
            }
            self.go_down(peer_id);
            let older: alloc::vec::Vec<ConnId> = self
                .conns
                .values()
                .filter(|other| greeted(other))
                .map(|other| other.id)
                .collect();
            for other in older {
                self.close(now, other, CloseReason::Restarted);
            }
        }
        let restarted = known.is_some_and(|known| known != incarnation);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.hello = Some(hello);
            conn.hello_at = now;
            self.timers.remove(&(conn.hello_due, Timer::Conn(id)));
        }
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.incarnation = Some(incarnation);
            peer.restarted |= restarted;
        }
        self.settle(now, peer_id);
        self.prune(now, peer_id);
    }

    /// Closes those connections to `id` that this side dialled and that another one replaces. [CONN-4] [CONN-5]
    fn prune(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let conns = || peer.conns.iter().filter_map(|conn| self.conns.get(conn));
        let greeted = || conns().filter(|conn| conn.hello.is_some());
        let yields = id < self.config.local && greeted().any(|conn| !conn.dialled);
        let newest_own = greeted()
            .filter(|conn| conn.dialled)
            .map(|conn| conn.sequence)
            .max();
        let losers: alloc::vec::Vec<ConnId> = conns()
            .filter(|conn| {
                conn.dialled && (yields || newest_own.is_some_and(|newest| conn.sequence < newest))
            })
            .map(|conn| conn.id)
            .collect();
        for conn in losers {
            self.close(now, conn, CloseReason::Duplicate);
        }
    }

    /// Chooses the connection that carries frames, and tells when the choice has changed.
    pub(super) fn settle(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let greeted = || {
            peer.conns
                .iter()
                .filter_map(|conn| self.conns.get(conn))
                .filter(|conn| conn.hello.is_some())
        };
        let newest = greeted().max_by_key(|conn| (conn.hello_at, conn.sequence));
        let own = greeted()
            .filter(|conn| conn.dialled)
            .max_by_key(|conn| conn.sequence);
        let mut settle_at = None;
        let choice = match (newest, own) {
            // The two sides dialled at once, and the other one will close its own connection. When it does not,
            // it has lost ours without our notice, and its own is the one that works.
            (Some(newest), Some(own))
                if !newest.dialled && self.config.local < id && now < newest.hello_at.after(DIAL_RACE) =>
            {
                settle_at = Some(newest.hello_at.after(DIAL_RACE));
                Some(own.id)
            }
            (Some(newest), _) => Some(newest.id),
            // The survivor of a race whose Hello is still on its way: the peer has already spoken elsewhere, and
            // takes frames here, after the Hello that was sent first.
            (None, _) => peer.current.and_then(|_| peer.conns.last().copied()),
        };
        let before = peer.current;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.settle_at = settle_at;
        match (before, choice) {
            (None, Some(conn)) => {
                peer.current = Some(conn);
                peer.up_since = now;
                peer.lost = false;
                peer.idle_since = (peer.wants == 0).then_some(now);
                peer.idle_at = peer.idle_since.map(|since| since.after(IDLE_TIMEOUT));
                let restarted = core::mem::take(&mut peer.restarted);
                self.events.push_back(Event::Up {
                    peer: id,
                    conn,
                    restarted,
                });
            }
            (Some(before), Some(conn)) => {
                if before != conn {
                    peer.current = Some(conn);
                    self.events.push_back(Event::Moved { peer: id, conn });
                }
            }
            (Some(_), None) => self.go_down(id),
            (None, None) => {}
        }
        self.reindex(id);
    }

    fn go_down(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && peer.current.take().is_some()
        {
            peer.idle_at = None;
            peer.idle_since = None;
            self.events.push_back(Event::Down { peer: id });
        }
    }

    pub(super) fn on_disconnected(&mut self, now: Instant, id: ConnId, reason: Option<CloseReason>) {
        self.unlink(now, id, reason.map_or(End::Lost, End::Remote));
    }

    pub(super) fn on_hello_timeout(&mut self, now: Instant, id: ConnId) {
        // [CONN-3]
        self.close(now, id, CloseReason::HelloTimeout);
    }

    /// Closes an unwanted connection beyond the degree that this side dialled.
    pub(super) fn on_idle(&mut self, now: Instant, id: PeerId) {
        let crowded = self.linked.len() > self.config.degree_max;
        let last_bootstrap = self.bootstraps.contains(&id)
            && self.bootstraps.iter().filter(|b| self.linked.contains(b)).count() == 1;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.idle_at = None;
        if peer.wants > 0 || peer.current.is_none() {
            return;
        }
        // The side that accepted cannot know what the other one dialled it for.
        let dialled = peer
            .conns
            .iter()
            .all(|conn| self.conns.get(conn).is_some_and(|conn| conn.dialled));
        if crowded && dialled && !last_bootstrap {
            self.close_all(now, id, CloseReason::Idle);
        } else {
            peer.idle_at = Some(now.after(IDLE_TIMEOUT));
        }
    }

    /// Closes a connection.
    pub(super) fn close(&mut self, now: Instant, id: ConnId, reason: CloseReason) {
        if self.unlink(now, id, End::Local(reason)) {
            self.transmits.push_back(Transmit::Close { conn: id, reason });
        }
    }

    /// Closes every connection to a peer.
    pub(super) fn close_all(&mut self, now: Instant, id: PeerId, reason: CloseReason) {
        while let Some(conn) = self.peers.get(&id).and_then(|peer| peer.conns.first().copied()) {
            self.close(now, conn, reason);
        }
    }

    /// Takes a connection out of the tables; tells whether it was there.
    fn unlink(&mut self, now: Instant, id: ConnId, end: End) -> bool {
        let Some(conn) = self.conns.remove(&id) else {
            return false;
        };
        self.timers.remove(&(conn.hello_due, Timer::Conn(id)));
        let Some(peer) = self.peers.get_mut(&conn.peer) else {
            return true;
        };
        peer.conns.retain(|other| *other != id);
        let was_up = peer.current.is_some();
        if peer.current == Some(id) {
            self.settle(now, conn.peer);
        }
        let gone = self
            .peers
            .get(&conn.peer)
            .is_some_and(|peer| peer.conns.is_empty());
        if gone && (was_up || conn.dialled) {
            self.schedule_after(now, conn.peer, was_up, end);
        }
        self.reindex(conn.peer);
        true
    }

    pub(super) fn on_remove(&mut self, now: Instant, id: PeerId) {
        self.close_all(now, id, CloseReason::Revoked);
        self.bootstraps.remove(&id);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.given.clear();
            peer.learned.clear();
            peer.proven = None;
        }
        self.reindex(id);
    }

    /// Closes every connection to a peer, and refuses it for [`BAN_DURATION`]. [FRAME-5]
    pub(super) fn ban(&mut self, now: Instant, id: PeerId, reason: CloseReason) {
        if let Some(at) = self.bans.remove(&id) {
            self.timers.remove(&(at, Timer::Ban(id)));
        }
        if self.bans.len() >= BANS_MAX
            && let Some((first, at)) = self
                .bans
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(id, at)| (*id, *at))
        {
            self.bans.remove(&first);
            self.timers.remove(&(at, Timer::Ban(first)));
            self.reindex(first);
        }
        let until = now.after(BAN_DURATION);
        self.bans.insert(id, until);
        self.timers.insert((until, Timer::Ban(id)));
        self.close_all(now, id, reason);
        self.reindex(id);
    }
}
