//! Giving up incoming transfers whose senders never return, so that their room is free again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Inner;
use crate::store::IncomingRecord;

/// The longest pause between two looks: the system's clock may have been set, and other transfers may have begun.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// The shortest, whatever is configured: each look reads the journal.
const LOOK_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Looks now and then, until the node is gone.
pub(super) async fn keep_looking(inner: Weak<Inner>, after: Duration) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let next = give_up(&strong).await.unwrap_or(after).min(after);
        let ended = strong.handle.ended();
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(next.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX)) => {}
            () = ended => return,
        }
    }
}

/// Gives up what has been abandoned, and returns when more may be.
async fn give_up(inner: &Arc<Inner>) -> Option<Duration> {
    let idle = match inner.receiver.idle(inner.clock.now().wall).await {
        Ok(idle) => idle,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot look for abandoned transfers"
            );
            return None;
        }
    };
    for IncomingRecord {
        transfer,
        peer,
        offer,
        ..
    } in idle.abandoned
    {
        let (name, source) = (offer.name.0.clone(), offer.source.clone());
        let given_up = inner
            .handle
            .act(move |fabric, now| fabric.abandon(now, peer, transfer, offer));
        if given_up.await.unwrap_or(false) {
            tracing::warn!(%transfer, %source, %name, "the sender has not come back: what arrived is removed");
        }
    }
    idle.next
}
