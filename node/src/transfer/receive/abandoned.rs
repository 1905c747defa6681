//! Which unfinished transfers have had nothing new for too long.
//!
//! The journal says what is unfinished, the partial file when it was last written to; both outlive a restart. Whether a
//! transfer is really given up is the machine's decision, which knows whether its sender is connected.

use std::time::Duration;

use hyperfabric_protocol::UnixMillis;

use super::prepare::partial_path;
use super::{ReceiveError, Receiver, Shared};
use crate::store::{IncomingRecord, IncomingState};
use crate::workers::Lane;

/// The unfinished transfers, by how long nothing has come of them.
#[derive(Debug, Default)]
pub struct Idle {
    /// Those of which nothing has come for long enough.
    pub abandoned: Vec<IncomingRecord>,
    /// How long it takes until the next one may be among them; `None` when there is no other.
    pub next: Option<Duration>,
}

impl Receiver {
    /// Lists the unfinished transfers of which nothing has come for as long as the policy says.
    ///
    /// # Errors
    /// When the disk or the journal fails.
    pub async fn idle(&self, now: UnixMillis) -> Result<Idle, ReceiveError> {
        let shared = self.shared.clone();
        self.shared
            .workers
            .run_on(Lane::Sync, move || shared.idle(now))
            .await?
    }
}

impl Shared {
    fn idle(&self, now: UnixMillis) -> Result<Idle, ReceiveError> {
        let limit = self.policy().abandoned_after;
        let mut idle = Idle::default();
        for record in self.store.incoming_all()? {
            if matches!(record.state, IncomingState::Delivered(_)) {
                continue;
            }
            let written = self.storage.metadata(&partial_path(record.transfer))?;
            let written = written.map_or(0, |found| found.modified.0 / 1_000_000);
            let last = record.started.0.max(u64::try_from(written).unwrap_or(0));
            // A clock that was set back makes nothing older.
            let since = Duration::from_millis(now.0.saturating_sub(last));
            match limit.checked_sub(since) {
                None | Some(Duration::ZERO) => idle.abandoned.push(record),
                Some(left) => idle.next = Some(idle.next.map_or(left, |next| next.min(left))),
            }
        }
        Ok(idle)
    }
}
