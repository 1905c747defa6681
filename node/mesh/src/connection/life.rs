//! Whether a connection is still in use, drains, or only waits for the end of what was asked on it.
//!
//! Each side counts what it has asked itself, requests and echoes: who asks knows when the answer has come whole, while the
//! answerer would have to guess what is still on its way. When neither side has anything open, nothing can be lost. [CONN-10]

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Default)]
struct State {
    asked: usize,
    draining: bool,
    /// Whether the other side has finished its control stream: it has nothing open any more.
    other_done: bool,
}

/// What the users of a connection share about its end.
#[derive(Debug)]
pub(crate) struct Life(watch::Sender<State>);

impl Life {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::default()))
    }

    /// Counts a request or an echo of this side until the token is dropped; none when the connection drains.
    pub(crate) fn ask(self: &Arc<Self>) -> Option<Asked> {
        let counted = self.0.send_if_modified(|state| {
            state.asked += usize::from(!state.draining);
            !state.draining
        });
        counted.then(|| Asked(Arc::clone(self)))
    }

    /// Lets no further stream begin here.
    pub(crate) fn drain(&self) {
        self.0.send_modify(|state| state.draining = true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.borrow().draining
    }

    /// The other side has finished its control stream.
    pub(crate) fn other_is_done(&self) {
        self.0.send_modify(|state| state.other_done = true);
    }

    async fn until(&self, is: impl FnMut(&State) -> bool) {
        // The sender lives in `self`, so the wait can only end in what it waits for.
        let _ = self.0.subscribe().wait_for(is).await;
    }

    /// Waits until the connection drains.
    pub(crate) async fn draining(&self) {
        self.until(|state| state.draining).await;
    }

    /// Waits until nothing that this side has asked is open.
    pub(crate) async fn answered(&self) {
        self.until(|state| state.asked == 0).await;
    }

    /// Waits until the other side has finished its control stream.
    pub(crate) async fn other_done(&self) {
        self.until(|state| state.other_done).await;
    }
}

/// A request or an echo of this side that is open.
#[derive(Debug)]
pub(crate) struct Asked(Arc<Life>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.asked -= 1);
    }
}
