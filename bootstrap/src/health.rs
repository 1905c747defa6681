//! Health and metrics over HTTP, for supervisors and Prometheus: two pages, no secrets, nothing that changes anything.
//!
//! The server is meant for loopback and survives being put on a network: each connection gets one answer, a few seconds and a few kilobytes.

mod metrics;
mod serve;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyperfabric_mesh::clock::Clock;
use hyperfabric_mesh::driver::Handle;
use hyperfabric_protocol::{Fabric, Instant, Now};
use serde::{Deserialize, Serialize};

use crate::counters::Counters;

pub(crate) use serve::{Server, bind};

/// A peer whose event loop does not answer for this long is not healthy.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What `/health` says of a peer that works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Always `ok`.
    pub status: String,
    /// Who the peer is.
    pub peer_id: String,
    /// Its mesh.
    pub mesh: String,
    /// Members connected now.
    pub connections: usize,
    /// Members known, this one among them.
    pub members: usize,
    /// Whole seconds since the start.
    pub uptime_seconds: u64,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

/// What the event loop says of itself.
struct Snapshot {
    now: Now,
    connections: usize,
    members: usize,
    flood_items: usize,
    peers_known: usize,
}

impl Snapshot {
    fn of(fabric: &Fabric, now: Now) -> Self {
        Self {
            now,
            connections: fabric.connected().count(),
            members: fabric.directory().len(),
            flood_items: fabric.flood().len(),
            peers_known: fabric.neighbors().known(),
        }
    }
}

#[derive(Debug)]
struct Shared {
    handle: Handle,
    mesh: String,
    warnings: Vec<String>,
    counters: Arc<Counters>,
    started: Instant,
}

/// Says how a peer is; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter(Arc<Shared>);

impl Reporter {
    pub(crate) fn new(
        handle: Handle,
        mesh: String,
        warnings: Vec<String>,
        counters: Arc<Counters>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let started = clock.now().mono;
        Self(Arc::new(Shared {
            handle,
            mesh,
            warnings,
            counters,
            started,
        }))
    }

    async fn snapshot(&self) -> Option<Snapshot> {
        let asked = self.0.handle.act(|fabric, now| Snapshot::of(fabric, now));
        tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok()?.ok()
    }

    fn uptime(&self, snapshot: &Snapshot) -> Duration {
        snapshot.now.mono.since(self.0.started)
    }

    /// Returns what an operator should look at.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let counters = &self.0.counters;
        let failing = counters.storage_failing.load(Ordering::Relaxed);
        let revoked = counters.revoked.load(Ordering::Relaxed);
        let now = [
            failing.then(|| String::from("the last state change could not be written to the disk")),
            revoked
                .then(|| String::from("this peer's membership was revoked: no member will connect with it")),
        ];
        self.0
            .warnings
            .iter()
            .cloned()
            .chain(now.into_iter().flatten())
            .collect()
    }

    /// Returns `None` when the event loop does not answer in time.
    pub async fn health(&self) -> Option<Health> {
        let snapshot = self.snapshot().await?;
        Some(Health {
            status: String::from("ok"),
            peer_id: self.0.handle.peer_id().to_string(),
            mesh: self.0.mesh.clone(),
            connections: snapshot.connections,
            members: snapshot.members,
            uptime_seconds: self.uptime(&snapshot).as_secs(),
            warnings: self.warnings(),
        })
    }

    /// Returns the Prometheus text; without the event loop's own numbers when it does not answer in time.
    pub async fn metrics(&self) -> String {
        let snapshot = self.snapshot().await;
        metrics::text(self, snapshot.as_ref())
    }
}
