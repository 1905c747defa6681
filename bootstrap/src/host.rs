//! What a bootstrap peer does beside talking to the network: it keeps state changes, and declines everything that has to do with payload.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyperfabric_mesh::driver::{Handle, Host};
use hyperfabric_mesh::state::StateFolder;
use hyperfabric_mesh::store::Store;
use hyperfabric_mesh::workers::{Lane, WorkerPool};
use hyperfabric_mesh::{BiStream, CloseReason, Connection, EventSender, StreamCode};
use hyperfabric_protocol::PeerId;
use hyperfabric_protocol::admission::Persist;
use hyperfabric_protocol::fabric::{Event, Job, JobResult};
use hyperfabric_protocol::transfer::{self, Fault, PayloadOrder};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::counters::Counters;

/// State changes that may wait for the disk. Beyond it they are reported as not written, which refuses whoever waits for them.
const WRITES_MAX: usize = 256;

pub(crate) struct BootstrapHost {
    writes: mpsc::Sender<Persist>,
    connections_changed: Arc<Notify>,
    counters: Arc<Counters>,
    events: EventSender,
}

/// Where state changes are kept.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) folder: StateFolder,
    pub(crate) store: Store,
    pub(crate) pool: WorkerPool,
}

impl BootstrapHost {
    /// Makes a host, and the task that writes its state changes. The task ends after the host, when everything is written.
    pub(crate) fn new(
        peer: &Handle,
        disk: Disk,
        connections_changed: Arc<Notify>,
        counters: Arc<Counters>,
        events: EventSender,
    ) -> (Self, JoinHandle<()>) {
        let (writes, queue) = mpsc::channel(WRITES_MAX);
        let task = peer
            .runtime()
            .spawn(write_in_order(peer.clone(), disk, queue, Arc::clone(&counters)));
        let host = Self {
            writes,
            connections_changed,
            counters,
            events,
        };
        (host, task)
    }

    fn log(&self, event: &Event) {
        match event {
            Event::PeerUp { peer, restarted, .. } => {
                tracing::debug!(%peer, restarted, "a member is connected");
            }
            Event::PeerMoved { peer, .. } => tracing::debug!(%peer, "a member's connection was replaced"),
            Event::PeerDown { peer } => tracing::debug!(%peer, "a member is not connected any more"),
            Event::PeerUnreachable { peer } => tracing::debug!(%peer, "a peer does not answer"),
            Event::Admitted { peer, name } => tracing::info!(%peer, %name, "admitted a peer"),
            Event::RefusedJoin { peer, refusal } => tracing::info!(%peer, %refusal, "refused a ticket"),
            Event::Joined(member) => {
                tracing::info!(name = %member.name, not_after = member.not_after.0, "this peer's certificate is renewed");
            }
            Event::Revoked { local: true, .. } => {
                tracing::warn!("this peer's own membership was revoked: no member will connect with it");
            }
            Event::Revoked {
                peer,
                name,
                local: false,
                ..
            } => tracing::info!(%peer, %name, "a membership has ended"),
            // The driver logs these.
            Event::Refused { .. }
            | Event::Misbehaved { .. }
            | Event::JoinMisbehaved { .. }
            | Event::Expired { .. } => {}
            Event::NodeAppeared { .. }
            | Event::NodeGone(_)
            | Event::DuplicateNode { .. }
            | Event::JoinRefused(_)
            | Event::JoinBadReply
            | Event::JoinUnreachable
            | Event::JoinEnded
            | Event::Persisted { .. }
            | Event::Transfer(_) => {}
        }
    }

    fn count(&self, event: &Event) {
        match event {
            Event::PeerUp { .. } => self.counters.peers_up.add(),
            Event::PeerUnreachable { .. } => self.counters.peers_unreachable.add(),
            Event::Admitted { .. } => self.counters.joins_admitted.add(),
            Event::RefusedJoin { .. } => self.counters.joins_refused.add(),
            Event::Misbehaved { .. } | Event::JoinMisbehaved { .. } => self.counters.peers_misbehaved.add(),
            Event::Revoked { local: true, .. } => self.counters.revoked.store(true, Ordering::Relaxed),
            Event::Joined(_) => self.counters.revoked.store(false, Ordering::Relaxed),
            Event::PeerMoved { .. }
            | Event::PeerDown { .. }
            | Event::Refused { .. }
            | Event::Expired { .. }
            | Event::Revoked { .. }
            | Event::NodeAppeared { .. }
            | Event::NodeGone(_)
            | Event::DuplicateNode { .. }
            | Event::JoinRefused(_)
            | Event::JoinBadReply
            | Event::JoinUnreachable
            | Event::JoinEnded
            | Event::Persisted { .. }
            | Event::Transfer(_) => {}
        }
    }
}

impl Host for BootstrapHost {
    fn job(&mut self, peer: &Handle, job: Job) {
        match job {
            Job::Persist(persist) => {
                if let Err(unwritten) = self.writes.try_send(persist) {
                    let id = unwritten.into_inner().id;
                    tracing::warn!(id, "too many state changes wait for the disk");
                    report(peer, JobResult::Persisted { id, ok: false });
                }
            }
            Job::Transfer(job) => report(peer, JobResult::Transfer(decline(&job))),
            // The driver runs these.
            Job::Check { .. } => {}
        }
    }

    fn payload(&mut self, _peer: &Handle, _order: PayloadOrder) {
        // No transfer gets as far as its payload, because every one is declined.
    }

    fn event(&mut self, _peer: &Handle, event: &Event) {
        self.log(event);
        self.count(event);
        self.events.send(event);
        if matches!(
            event,
            Event::PeerUp { .. } | Event::PeerMoved { .. } | Event::PeerDown { .. }
        ) {
            self.connections_changed.notify_one();
        }
    }

    fn bulk(&mut self, _peer: &Handle, connection: Connection) {
        tracing::debug!(peer = %connection.peer(), "closing a connection for payload: a bootstrap peer takes none");
        connection.close(CloseReason::LimitReached);
    }

    fn request(&mut self, _peer: &Handle, from: PeerId, stream: BiStream) {
        tracing::debug!(peer = %from, "declined a request: a bootstrap peer hosts no node");
        stream.refuse(StreamCode::Cancelled);
    }
}

/// Says no to a transfer, at whatever stage.
fn decline(job: &transfer::Job) -> transfer::JobResult {
    match *job {
        transfer::Job::Prepare { peer, transfer, .. } => transfer::JobResult::Prepared {
            peer,
            transfer,
            result: Err(Fault::NotAccepted),
        },
        transfer::Job::Seal { peer, transfer, .. } => transfer::JobResult::Sealed {
            peer,
            transfer,
            result: Err(Fault::NotAccepted),
        },
        transfer::Job::Discard { peer, transfer } => transfer::JobResult::Discarded { peer, transfer },
    }
}

/// The loop must not wait for a place in its own queue.
fn report(peer: &Handle, result: JobResult) {
    let peer = peer.clone();
    peer.runtime()
        .clone()
        .spawn(async move { peer.done(result).await });
}

/// Writes one change after the other: an older state of a ticket written after a newer one would give its last use back.
async fn write_in_order(
    peer: Handle,
    disk: Disk,
    mut queue: mpsc::Receiver<Persist>,
    counters: Arc<Counters>,
) {
    while let Some(Persist { id, changes }) = queue.recv().await {
        let Disk { folder, store, pool } = disk.clone();
        let written = pool
            .run_on(Lane::Sync, move || folder.persist(&store, &changes))
            .await;
        let ok = match written {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot write state to the disk"
                );
                false
            }
            Err(error) => {
                tracing::error!(%error, "cannot write state to the disk");
                false
            }
        };
        counters.storage_failing.store(!ok, Ordering::Relaxed);
        peer.done(JobResult::Persisted { id, ok }).await;
    }
}
