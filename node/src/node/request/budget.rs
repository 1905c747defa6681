//! How much memory the bodies of incoming requests and of their answers may take: in all, and for one peer.
//!
//! A peer has a share of its own. What exceeds it waits for the same peer's earlier requests, on streams that are not
//! read meanwhile, so that whoever asks too much, or stalls, slows down itself alone. Answers that a peer has not taken
//! yet count towards its share, too: their size is known only when they are there, so they keep the peer's next
//! requests from being read instead of waiting themselves.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hyperfabric_protocol::PeerId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::DATA_BYTES_MAX;
use crate::node::lock;

/// Bodies of requests that may be held at once: two shares, so that beside what any one peer holds there is always
/// room for a request of the largest size.
const BODIES_BYTES_MAX: usize = 2 * SHARE_BYTES;
/// Of those, what one peer may hold: one request of the largest size, or many small ones.
const SHARE_BYTES: usize = DATA_BYTES_MAX;

/// What one peer holds.
struct Share {
    requests: Arc<Semaphore>,
    /// Bytes of answers that it has not taken yet.
    owed: AtomicUsize,
    paid: Notify,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(SHARE_BYTES)),
            owed: AtomicUsize::new(0),
            paid: Notify::new(),
        }
    }
}

impl Share {
    /// Waits until the answers that the peer has not taken leave room for more.
    async fn wait_until_paid(&self) {
        loop {
            let paid = self.paid.notified();
            tokio::pin!(paid);
            paid.as_mut().enable();
            if self.owed.load(Ordering::Acquire) < SHARE_BYTES {
                return;
            }
            paid.await;
        }
    }
}

/// Bounds the memory of requests being received and answered.
pub(crate) struct Budget {
    all: Arc<Semaphore>,
    /// Of the peers that hold or wait for something.
    shares: Mutex<HashMap<PeerId, Arc<Share>>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(BODIES_BYTES_MAX)),
            shares: Mutex::default(),
        }
    }
}

impl Budget {
    fn share(&self, peer: PeerId) -> Arc<Share> {
        let mut shares = lock(&self.shares);
        shares.retain(|_, share| Arc::strong_count(share) > 1);
        Arc::clone(shares.entry(peer).or_default())
    }

    /// Waits for room for a request of `bytes` of a peer, at most [`DATA_BYTES_MAX`].
    pub(super) async fn room(&self, peer: PeerId, bytes: u32) -> Room {
        let share = self.share(peer);
        share.wait_until_paid().await;
        // The peer's own share first: what waits for it must not hold what others need.
        let own = take(&share.requests, bytes).await;
        let all = take(&self.all, bytes).await;
        Room {
            share,
            _permits: (own, all),
        }
    }
}

async fn take(semaphore: &Arc<Semaphore>, bytes: u32) -> OwnedSemaphorePermit {
    let permit = Arc::clone(semaphore).acquire_many_owned(bytes).await;
    permit.expect("the semaphores are never closed")
}

/// Room for the body of a request; given back when dropped.
pub(super) struct Room {
    share: Arc<Share>,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Room {
    /// Gives the request's room back, and counts `bytes` of the answer until the peer has taken it.
    pub(super) fn answer(self, bytes: usize) -> Debt {
        self.share.owed.fetch_add(bytes, Ordering::AcqRel);
        Debt {
            share: self.share,
            bytes,
        }
    }
}

/// An answer that the peer has not taken yet.
pub(super) struct Debt {
    share: Arc<Share>,
    bytes: usize,
}

impl Drop for Debt {
    fn drop(&mut self) {
        self.share.owed.fetch_sub(self.bytes, Ordering::AcqRel);
        self.share.paid.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LARGEST: u32 = DATA_BYTES_MAX as u32;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn a_peer_beyond_its_share_waits_for_itself_and_leaves_room_for_the_largest_request_of_another() {
        let budget = Budget::default();
        let held = budget.room(peer(1), LARGEST).now_or_never().unwrap();
        let mut waiting: Vec<_> = (0..10).map(|_| Box::pin(budget.room(peer(1), LARGEST))).collect();
        for more in &mut waiting {
            assert!(more.as_mut().now_or_never().is_none());
        }
        let other = budget.room(peer(2), LARGEST).now_or_never();
        assert!(other.is_some());
        drop(held);
        assert!(waiting.remove(0).now_or_never().is_some());
    }

    #[test]
    fn answers_that_are_not_taken_keep_the_next_requests_of_that_peer_waiting() {
        let budget = Budget::default();
        let room = budget.room(peer(1), 1).now_or_never().unwrap();
        let debt = room.answer(SHARE_BYTES);
        let mut next = Box::pin(budget.room(peer(1), 1));
        assert!(next.as_mut().now_or_never().is_none());
        assert!(budget.room(peer(2), LARGEST).now_or_never().is_some());
        drop(debt);
        assert!(next.now_or_never().is_some());
    }

    #[test]
    fn a_peer_without_requests_is_forgotten() {
        let budget = Budget::default();
        for n in 0..100 {
            drop(budget.room(peer(n), 1).now_or_never().unwrap());
        }
        assert_eq!(lock(&budget.shares).len(), 1);
    }
}
