//! What the node does for the event loop: durable jobs, payload bytes, requests, and the news of it all.

use std::sync::{Arc, OnceLock, Weak};

use hyperfabric_mesh::driver::{Handle, Host};
use hyperfabric_mesh::endpoint::TokenBucket;
use hyperfabric_mesh::{
    BiStream, ChunkStream as IncomingStream, CloseCause, CloseReason, Connection, StreamCode, StreamKind,
};
use hyperfabric_protocol::admission::Persist;
use hyperfabric_protocol::fabric::{Event, Input, Job, JobResult, Misbehaved, Purpose};
use hyperfabric_protocol::transfer::{self, ChunkRanges, Fault, PayloadOrder, Role, TransferEvent};
use hyperfabric_protocol::{PeerId, TransferId};

use tokio::sync::mpsc;

use super::streams::{Sink, Stream};
use super::{Inner, lock, request};
use crate::transfer::receive::{Durable, OnDurable, Violation};
use crate::transfer::{Pieces, Prepared, ReceiveError, StreamHeader};
use crate::workers::Lane;

/// An attempt that no Accept names: a transfer that is being prepared takes no streams yet.
const NO_ATTEMPT: u32 = u32::MAX;

/// Failed transfers a second, and at once after a quiet time, that others can put into the log above debug level: offers
/// cost them nothing.
const COMPLAINTS_PER_SECOND: u32 = 1;
const COMPLAINTS_BURST: u32 = 100;

/// State changes that may wait for the disk; further ones count as not written.
const PERSISTS_MAX: usize = 256;

/// The node as the event loop sees it.
pub(super) struct NodeHost {
    inner: Arc<Inner>,
    persists: mpsc::Sender<Persist>,
}

/// Bounds how many failures of transfers are logged.
pub(super) fn complaints() -> TokenBucket {
    let now = tokio::time::Instant::now();
    TokenBucket::new(COMPLAINTS_PER_SECOND, COMPLAINTS_BURST, now)
}

impl NodeHost {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        let (persists, queued) = mpsc::channel(PERSISTS_MAX);
        let runtime = inner.handle.runtime().clone();
        runtime.spawn(write_state(Arc::clone(&inner), queued));
        Self { inner, persists }
    }
}

/// Writes state changes one after the other, so that an older one never overwrites a newer one.
async fn write_state(inner: Arc<Inner>, mut queued: mpsc::Receiver<Persist>) {
    while let Some(persist) = queued.recv().await {
        let (folder, store, id) = (inner.folder.clone(), inner.store.clone(), persist.id);
        let work = move || folder.persist(&store, &persist.changes);
        let ok = match inner.pool.run_on(Lane::Sync, work).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot write the peer's state"
                );
                false
            }
            Err(error) => {
                tracing::error!(%error, "cannot write the peer's state");
                false
            }
        };
        inner.handle.done(JobResult::Persisted { id, ok }).await;
    }
}

/// Makes the callback that tells the machine of durable chunks. It is called on worker threads.
pub(super) fn durable_reporter(late: Arc<OnceLock<Weak<Inner>>>) -> OnDurable {
    Arc::new(move |transfer: TransferId, durable: &Durable| {
        let Some(inner) = late.get().and_then(Weak::upgrade) else {
            return;
        };
        let Some(peer) = lock(&inner.expected).get(&transfer).copied() else {
            return;
        };
        let have = durable.added.clone();
        let runtime = inner.handle.runtime().clone();
        runtime.spawn(async move { inner.tell(Input::ChunksDurable { peer, transfer, have }).await });
    })
}

impl Host for NodeHost {
    fn job(&mut self, peer: &Handle, job: Job) {
        let inner = Arc::clone(&self.inner);
        match job {
            Job::Persist(persist) => {
                let id = persist.id;
                if self.persists.try_send(persist).is_err() {
                    let refused = JobResult::Persisted { id, ok: false };
                    peer.runtime()
                        .spawn(async move { inner.handle.done(refused).await });
                }
            }
            Job::Transfer(job) => {
                peer.runtime().spawn(async move {
                    let result = JobResult::Transfer(inner.transfer_job(job).await);
                    inner.handle.done(result).await;
                });
            }
            // The loop runs checks itself.
            Job::Check { .. } => {}
        }
    }

    fn payload(&mut self, peer: &Handle, order: PayloadOrder) {
        match order {
            PayloadOrder::Start {
                peer: to,
                transfer,
                attempt,
                have,
            } => {
                self.stop_sending(transfer);
                let inner = Arc::clone(&self.inner);
                let task = peer
                    .runtime()
                    .spawn(async move { inner.send_payload(to, transfer, attempt, have).await });
                lock(&self.inner.sending).insert(transfer, task.abort_handle());
            }
            PayloadOrder::Stop { transfer } => self.stop_sending(transfer),
            PayloadOrder::Expect {
                peer: from,
                transfer,
                attempt,
                ..
            } => {
                lock(&self.inner.expected).insert(transfer, from);
                if let Err(error) = self.inner.receiver.expect(transfer, from, Some(attempt)) {
                    tracing::debug!(%transfer, %error, "an attempt of a transfer that is not open");
                }
            }
            PayloadOrder::Forget { peer: from, transfer } => {
                // Not open any more is what is wanted.
                drop(self.inner.receiver.expect(transfer, from, None));
            }
            PayloadOrder::Keep { peer: from, transfer } => {
                let now = self.inner.clock.now().wall;
                self.inner.receiver.keep(transfer, from, now);
            }
        }
    }

    fn event(&mut self, peer: &Handle, event: &Event) {
        if let Event::Transfer(event) = event {
            self.inner.board.hear(event, self.inner.clock.now());
            if let TransferEvent::Ended { of, result } = event {
                lock(&self.inner.expected).remove(&of.transfer);
                if of.role == Role::Sender {
                    let (inner, id) = (Arc::clone(&self.inner), of.transfer);
                    let outcome = result
                        .as_ref()
                        .map(|ended| ended.root)
                        .map_err(|error| error.fault);
                    peer.runtime()
                        .spawn(async move { inner.outgoing_ended(id, outcome).await });
                }
            }
        }
        if let Event::PeerUp { .. } | Event::PeerMoved { .. } | Event::PeerDown { .. } = event {
            self.inner.connections_changed.notify_one();
        }
        if let Event::NodeAppeared { .. } = event {
            super::sending::resume_waiting(&self.inner);
        }
        self.inner.emit(event);
    }

    fn bulk(&mut self, peer: &Handle, connection: Connection) {
        peer.remember_bulk(&connection);
        let inner = Arc::clone(&self.inner);
        peer.runtime().spawn(inner.serve_bulk(connection));
    }

    fn request(&mut self, peer: &Handle, from: PeerId, stream: BiStream) {
        peer.runtime()
            .spawn(request::answer(Arc::clone(&self.inner), from, stream));
    }
}

impl NodeHost {
    fn stop_sending(&self, transfer: TransferId) {
        if let Some(task) = lock(&self.inner.sending).remove(&transfer) {
            task.abort();
        }
    }
}

impl Inner {
    async fn transfer_job(&self, job: transfer::Job) -> transfer::JobResult {
        let wall = self.clock.now().wall;
        match job {
            transfer::Job::Prepare {
                peer,
                transfer,
                offer,
            } => {
                let prepared = self
                    .receiver
                    .prepare(transfer, peer, offer, NO_ATTEMPT, wall)
                    .await;
                let result = match prepared {
                    Ok(Prepared::Ready { have }) => Ok(transfer::Prepared::Ready { have }),
                    Ok(Prepared::AlreadyDelivered { root, place }) => {
                        self.board.set_place(transfer, &place);
                        Ok(transfer::Prepared::Delivered { root })
                    }
                    Err(error) => Err(self.report(transfer, &error)),
                };
                transfer::JobResult::Prepared {
                    peer,
                    transfer,
                    result,
                }
            }
            transfer::Job::Seal { peer, transfer, root } => {
                let result = match self.receiver.seal(transfer, peer, root, wall).await {
                    Ok(sealed) => {
                        self.board.set_place(transfer, &sealed.place);
                        Ok(())
                    }
                    Err(error) => Err(self.report(transfer, &error)),
                };
                transfer::JobResult::Sealed {
                    peer,
                    transfer,
                    result,
                }
            }
            transfer::Job::Discard { peer, transfer } => {
                if let Err(error) = self.receiver.discard(transfer, peer).await {
                    tracing::warn!(%transfer, error = &error as &dyn std::error::Error, "cannot discard a transfer");
                }
                transfer::JobResult::Discarded { peer, transfer }
            }
        }
    }

    /// Logs why a step of an incoming transfer failed, and returns what the sender is told.
    fn report(&self, transfer: TransferId, error: &ReceiveError) -> Fault {
        let fault = error.fault().unwrap_or(Fault::Storage);
        let error = error as &dyn std::error::Error;
        if lock(&self.complaints).take(tokio::time::Instant::now()) {
            tracing::warn!(%transfer, %fault, error, "an incoming transfer failed");
        } else {
            tracing::debug!(%transfer, %fault, error, "an incoming transfer failed");
        }
        fault
    }

    async fn send_payload(
        self: Arc<Self>,
        peer: PeerId,
        transfer: TransferId,
        attempt: u32,
        have: ChunkRanges,
    ) {
        let source = lock(&self.sources).get(&transfer).cloned();
        let input = match source {
            Some(source) => match self.try_send_payload(peer, &source, attempt, &have).await {
                Ok(root) => Input::PayloadSent {
                    transfer,
                    attempt,
                    root,
                },
                Err(fault) => Input::PayloadFailed {
                    peer,
                    transfer,
                    role: Role::Sender,
                    attempt,
                    fault,
                },
            },
            None => {
                let fault = Some(Fault::SourceUnreadable);
                Input::PayloadFailed {
                    peer,
                    transfer,
                    role: Role::Sender,
                    attempt,
                    fault,
                }
            }
        };
        self.tell(input).await;
    }

    async fn try_send_payload(
        &self,
        peer: PeerId,
        source: &Arc<crate::transfer::Outgoing>,
        attempt: u32,
        have: &ChunkRanges,
    ) -> Result<[u8; 32], Option<Fault>> {
        let transfer = source.transfer();
        let connection = self.handle.bulk(peer).await.map_err(|error| {
            tracing::debug!(%transfer, %peer, error = &error as &dyn std::error::Error, "no connection for the bytes");
            None
        })?;
        // The peer may close this connection before the prompt one: its reason ends the transfer all the same.
        let end = || match connection.close_cause() {
            Some(CloseCause::ClosedByPeer {
                reason: Some(CloseReason::Revoked),
                ..
            }) => Some(Fault::Revoked),
            _ => None,
        };
        let opened = connection.open_uni(StreamKind::Chunks).await;
        let stream = opened.map_err(|_| end())?;
        let mut sink = Sink(stream);
        let begun = self.clock.now().mono;
        match self.sender.send(source, attempt, have, &mut sink).await {
            Ok(sent) => {
                self.rates
                    .note(peer, sent.bytes, self.clock.now().mono.since(begun));
                Ok(sent.root)
            }
            Err(error) => {
                sink.0.reset(StreamCode::Cancelled);
                let fault = error.fault().or_else(end);
                tracing::info!(%transfer, error = &error as &dyn std::error::Error, "the bytes stopped");
                Err(fault)
            }
        }
    }

    /// Takes the chunk streams and requests of a connection that another peer has dialled.
    async fn serve_bulk(self: Arc<Self>, connection: Connection) {
        let Some(mut streams) = connection.bulk_streams() else {
            return;
        };
        let peer = connection.peer();
        let runtime = self.handle.runtime().clone();
        loop {
            tokio::select! {
                Some(stream) = streams.chunks.recv() => {
                    runtime.spawn(Arc::clone(&self).receive_payload(peer, stream));
                }
                Some(stream) = streams.requests.recv() => {
                    runtime.spawn(request::answer(Arc::clone(&self), peer, *stream));
                }
                _ = connection.closed() => return,
            }
        }
    }

    async fn receive_payload(self: Arc<Self>, peer: PeerId, stream: IncomingStream) {
        let opened = Pieces::open(Stream(stream.recv)).await;
        let Ok(Some((StreamHeader { transfer, attempt }, mut pieces))) = opened else {
            return;
        };
        let received = self.receiver.receive(transfer, peer, attempt, &mut pieces).await;
        let Err(error) = received else { return };
        if matches!(error, ReceiveError::NotOpen) {
            return;
        }
        if let ReceiveError::Violation(violation) = &error {
            tracing::warn!(%peer, %transfer, %violation, "a sender broke the protocol");
            let violation = match violation {
                Violation::ChunkDigestMismatch(_) => Misbehaved::ChunkDigest,
                Violation::IdInUse
                | Violation::ChunkOutOfRange(_)
                | Violation::ChunkRepeated(_)
                | Violation::ChunkLength(_)
                | Violation::Truncated
                | Violation::Incomplete(_) => Misbehaved::PayloadFormat,
            };
            let fault = error.fault();
            self.tell(Input::PayloadFailed {
                peer,
                transfer,
                role: Role::Receiver,
                attempt,
                fault,
            })
            .await;
            let purpose = Purpose::Prompt;
            self.tell(Input::Violation {
                peer,
                purpose,
                violation,
            })
            .await;
            return;
        }
        let fault = error.fault();
        if fault.is_some() {
            self.report(transfer, &error);
        }
        self.tell(Input::PayloadFailed {
            peer,
            transfer,
            role: Role::Receiver,
            attempt,
            fault,
        })
        .await;
    }
}
