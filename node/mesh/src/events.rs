//! Who hears of what happens at a peer: any number of listeners, each of which may be behind for a while.
//!
//! Events are shared and not copied into the channel, whose places are there from the start: a peer that nobody listens to pays 32 bytes
//! for each of them, and not those of the largest event. What an event is, the protocol says.

use std::sync::Arc;

use hyperfabric_protocol::fabric::Event;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Events that a slow listener may be behind: a directory of some hundred members is learned in one go.
pub const EVENTS_MAX: usize = 1_024;

/// Tells listeners what has happened; clones tell the same ones.
#[derive(Clone, Debug)]
pub struct EventSender(broadcast::Sender<Arc<Event>>);

impl Default for EventSender {
    fn default() -> Self {
        Self(broadcast::Sender::new(EVENTS_MAX))
    }
}

impl EventSender {
    /// Tells those that listen now; nobody needs to.
    pub fn send(&self, event: &Event) {
        if self.0.receiver_count() > 0 {
            // Whoever listened may have gone meanwhile.
            let _ = self.0.send(Arc::new(event.clone()));
        }
    }

    /// Listens from now on.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        Events(self.0.subscribe())
    }
}

/// What happens at a peer, from when this was made.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Arc<Event>>);

impl Events {
    /// Waits for the next event. Cancel-safe.
    ///
    /// # Errors
    /// [`RecvError::Lagged`] when events were missed, more than [`EVENTS_MAX`] behind, and [`RecvError::Closed`] after the last one.
    pub async fn recv(&mut self) -> Result<Event, RecvError> {
        self.0.recv().await.map(Arc::unwrap_or_clone)
    }

    /// Takes the next event, if it has happened already.
    ///
    /// # Errors
    /// As [`Self::recv`], and [`TryRecvError::Empty`].
    pub fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        self.0.try_recv().map(Arc::unwrap_or_clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperfabric_protocol::PeerId;

    #[tokio::test]
    async fn listeners_hear_what_happens_after_they_began_and_learn_that_they_missed_some() {
        let sender = EventSender::default();
        let down = |peer| Event::PeerDown {
            peer: PeerId([peer; 32]),
        };
        sender.send(&down(0));
        let (mut quick, mut slow) = (sender.subscribe(), sender.subscribe());
        sender.send(&down(1));
        assert_eq!(quick.recv().await.unwrap(), down(1));
        assert!(matches!(quick.try_recv(), Err(TryRecvError::Empty)));
        for _ in 0..EVENTS_MAX {
            sender.send(&down(2));
        }
        assert_eq!(quick.recv().await.unwrap(), down(2));
        assert!(matches!(slow.recv().await, Err(RecvError::Lagged(1))));
        assert_eq!(slow.recv().await.unwrap(), down(2));
        drop(sender);
        while quick.recv().await.is_ok() {}
        assert!(matches!(quick.recv().await, Err(RecvError::Closed)));
    }
}
