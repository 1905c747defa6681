//! Following transfers: the feed that the node publishes to, and the event stream that clients read.
//!
//! A feed is a ring of bounded size. A reader that is too slow is told that it missed something, and asks for the
//! present state instead; nobody waits for it, and the end of a transfer cannot be missed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{BoxStream, Stream, StreamExt};
use hyperfabric_protocol::TransferId;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};

use super::control::Control;
use super::model::Transfer;

/// How many snapshots a reader may be behind.
const BACKLOG_MAX: usize = 256;
/// How often a stream that has nothing to say shows that it lives.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What a follower of transfers gets.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedItem {
    /// A transfer as it is now.
    Update(Arc<Transfer>),
    /// Some updates were lost, because the follower was too slow.
    Missed,
}

/// Where the node tells how its transfers go.
#[derive(Clone, Debug)]
pub struct TransferFeed(broadcast::Sender<Arc<Transfer>>);

impl Default for TransferFeed {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG_MAX))
    }
}

impl TransferFeed {
    /// Tells every follower how a transfer is; never waits.
    pub fn publish(&self, transfer: Transfer) {
        // An error means that nobody follows.
        drop(self.0.send(Arc::new(transfer)));
    }

    /// Tells whether anybody follows, so that snapshots need not be made for nobody.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Follows from now on.
    #[must_use]
    pub fn subscribe(&self) -> BoxStream<'static, FeedItem> {
        let next = |mut receiver: broadcast::Receiver<Arc<Transfer>>| async move {
            let item = match receiver.recv().await {
                Ok(transfer) => FeedItem::Update(transfer),
                Err(broadcast::error::RecvError::Lagged(_)) => FeedItem::Missed,
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            Some((item, receiver))
        };
        futures::stream::unfold(self.0.subscribe(), next).boxed()
    }
}

/// One client's event stream.
struct Follower {
    control: Arc<dyn Control>,
    feed: BoxStream<'static, FeedItem>,
    /// The only transfer that the client asked for.
    only: Option<TransferId>,
    /// What is to be said before the feed is read again.
    ready: VecDeque<Arc<Transfer>>,
    /// Whether the present state is to be asked for.
    stale: bool,
    ended: bool,
    stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

/// Answers with the present state of the transfers and then with every change. With `only`, the stream ends when that
/// transfer has.
pub(super) fn stream(
    control: Arc<dyn Control>,
    only: Option<TransferId>,
    stopping: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + Send + 'static> {
    // The feed is subscribed to before the present state is asked for, so that nothing falls between the two.
    let feed = control.transfer_events();
    let ready = VecDeque::new();
    let follower = Follower {
        control,
        feed,
        only,
        ready,
        stale: true,
        ended: false,
        stopping,
        _permit: permit,
    };
    let events = futures::stream::unfold(follower, |mut follower| async move {
        let transfer = follower.next().await?;
        let event = Event::default().event("transfer").json_data(&*transfer);
        // A transfer is plain data, so this cannot fail; if it did, an empty comment would do no harm.
        Some((
            Ok(event.unwrap_or_else(|_| Event::default().comment(""))),
            follower,
        ))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

impl Follower {
    async fn next(&mut self) -> Option<Arc<Transfer>> {
        loop {
            if let Some(transfer) = self.ready.pop_front() {
                self.ended = self.only.is_some() && transfer.state.is_ended();
                return Some(transfer);
            }
            if self.ended {
                return None;
            }
            if std::mem::take(&mut self.stale) {
                self.refresh().await;
                continue;
            }
            let item = tokio::select! {
                item = self.feed.next() => item?,
                _ = self.stopping.wait_for(|stopping| *stopping) => return None,
            };
            match item {
                FeedItem::Update(transfer) if self.wants(&transfer) => self.ready.push_back(transfer),
                FeedItem::Update(_) => {}
                FeedItem::Missed => self.stale = true,
            }
        }
    }

    fn wants(&self, transfer: &Transfer) -> bool {
        self.only.is_none_or(|id| transfer.transfer_id == id)
    }

    async fn refresh(&mut self) {
        let present = match self.only {
            Some(id) => self.control.transfer(id).await.map(|transfer| vec![transfer]),
            None => self.control.transfers().await,
        };
        match present {
            Ok(transfers) => self.ready.extend(transfers.into_iter().map(Arc::new)),
            // It was there when the stream was asked for and is forgotten now, or the daemon stops.
            Err(_) => self.ended = true,
        }
    }
}
