//! Room at bootstrap peers: they let those go that need them least, and those stay away for a while. [CONN-11]
//!
//! Every peer keeps a connection to a bootstrap peer while it can, because that is where parts of a mesh meet that have
//! lost each other. A mesh of more peers than that one can hold would leave newcomers outside for ever, so it keeps some
//! room. Parts still meet: whoever loses a bootstrap peer to a fault dials it until it is back, those that were let go
//! come back one by one, and each of them first connects to a peer drawn from all that it has heard of, so that what
//! met at the bootstrap peer hangs together without it.
//!
//! It leaves out how many neighbors somebody else has, which no frame says: who has too few comes back soon.

use super::{BOOTSTRAP_PAUSE, CloseReason, Neighbors, ROOM_SHARE, ROOM_STAY, ROOM_STAY_MIN, Timer};
use crate::{Instant, PeerId};

impl Neighbors {
    /// Closes what has been idle longest while this bootstrap peer is nearly full.
    pub(super) fn make_room(&mut self, now: Instant) {
        if !self.config.bootstrap {
            return;
        }
        let max = self.config.connections_max;
        let room = max.div_ceil(ROOM_SHARE);
        let mut due = None;
        while self.linked.len() > max - room
            && let Some((since, id)) = self.idle.first().copied()
        {
            // The less room is left, the shorter is the stay.
            let left = u32::try_from(max.saturating_sub(self.linked.len())).unwrap_or(u32::MAX);
            let stay = ROOM_STAY * left / u32::try_from(room).unwrap_or(u32::MAX);
            let at = since.after(stay.max(ROOM_STAY_MIN));
            if at > now {
                due = Some(at);
                break;
            }
            self.close_all(now, id, CloseReason::Idle);
        }
        if due != self.room_at {
            if let Some(at) = self.room_at {
                self.timers.remove(&(at, Timer::Room));
            }
            if let Some(at) = due {
                self.timers.insert((at, Timer::Room));
            }
            self.room_at = due;
        }
    }

    /// Notes that a bootstrap peer has let this one go.
    pub(super) fn on_let_go(&mut self, now: Instant) {
        if let Some(at) = self.return_at {
            self.timers.remove(&(at, Timer::Return));
        }
        let at = now.after(self.random.jittered(BOOTSTRAP_PAUSE));
        self.timers.insert((at, Timer::Return));
        self.return_at = Some(at);
        self.mingles = true;
    }

    /// Tells whether enough neighbors make up for a bootstrap peer now.
    pub(super) fn stays_away(&self, now: Instant) -> bool {
        self.return_at.is_some_and(|at| now < at)
    }

    /// Returns a random peer to dial in the place of a bootstrap peer, once for each time that one has let go.
    pub(super) fn replaces_bootstrap(&mut self) -> Option<PeerId> {
        if !self.mingles {
            return None;
        }
        let pivot = PeerId(self.random.bytes());
        let around = self.ready.range(pivot..).chain(self.ready.range(..pivot));
        let id = around.copied().find(|id| !self.bootstraps.contains(id))?;
        self.mingles = false;
        Some(id)
    }
}
