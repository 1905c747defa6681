//! What an open incoming transfer has written, synced and claimed, and the jobs that move chunks along these steps.
//!
//! Jobs run on worker threads, finish even when the stream that brought their chunk is gone, and hold the transfer
//! alive meanwhile. Each holds a guard that counts it out again, however it ends.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyperfabric_protocol::transfer::{ChunkRanges, Offer};
use hyperfabric_protocol::{PeerId, TransferId};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::super::buffers::Buffer;
use super::super::hash::{ChunkValue, Layout};
use super::super::stream::ChunkHeader;
use super::{OnDurable, ReceiveError, Violation};
use crate::storage::{RelPath, StorageFile};
use crate::store::{ClaimRun, Store};
use crate::workers::WorkerError;

/// Chunks that have just become durable, and how much is durable in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The new ones.
    pub added: ChunkRanges,
    /// Payload bytes of all durable chunks of the transfer.
    pub bytes: u64,
}

/// An incoming transfer that is open in this process.
pub(super) struct Incoming {
    pub(super) transfer: TransferId,
    pub(super) peer: PeerId,
    pub(super) offer: Offer,
    pub(super) partial: RelPath,
    pub(super) file: Arc<dyn StorageFile>,
    layout: Layout,
    store: Store,
    on_durable: OnDurable,
    state: Mutex<State>,
    notify: Notify,
    /// Tells the stream that is being received that a job has failed, or that its attempt is over.
    stop: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The attempt whose streams are taken; `None` once the transfer is being sealed or was discarded.
    attempt: Option<u32>,
    /// Chunks that are written or on their way: each is taken once, so that a claim always speaks of the bytes there.
    taken: ChunkRanges,
    /// What earlier attempts have taken.
    taken_before: ChunkRanges,
    durable: ChunkRanges,
    written: Vec<(u64, ChunkValue)>,
    /// Bytes taken and not durable yet.
    unsynced_bytes: u64,
    writes: usize,
    /// The attempt whose stream is being received.
    streaming: Option<u32>,
    syncing: bool,
    error: Option<ReceiveError>,
    failed: bool,
    /// Set for good when the transfer is discarded: from then on nothing is claimed, or a claim that was late would be
    /// taken for one of the next transfer of that id.
    discarded: bool,
}

impl Incoming {
    pub(super) fn new(
        of: (TransferId, PeerId, Offer),
        place: (RelPath, Arc<dyn StorageFile>),
        layout: Layout,
        durable: ChunkRanges,
        journal: (Store, OnDurable),
    ) -> Self {
        let (transfer, peer, offer) = of;
        let (partial, file) = place;
        let (store, on_durable) = journal;
        Self {
            transfer,
            peer,
            offer,
            partial,
            file,
            layout,
            store,
            on_durable,
            state: Mutex::new(State {
                taken: durable.clone(),
                durable,
                ..State::default()
            }),
            notify: Notify::new(),
            stop: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn durable(&self) -> ChunkRanges {
        self.state().durable.clone()
    }

    /// Takes streams of this attempt only, from now on; `None` takes none any more.
    pub(super) fn set_attempt(&self, attempt: Option<u32>) {
        let mut state = self.state();
        state.attempt = attempt;
        state.taken_before = state.taken.clone();
        drop(state);
        self.notify.notify_waiters();
        self.stop.notify_waiters();
    }

    /// Begins to receive the stream of an attempt, unless one of the same attempt is being received. That of an earlier
    /// attempt may still be coming to its end.
    pub(super) fn begin_stream(&self, attempt: u32) -> Option<StreamTurn<'_>> {
        let before = self.state().streaming.replace(attempt);
        (before != Some(attempt)).then_some(StreamTurn {
            incoming: self,
            attempt,
        })
    }

    /// Whether the attempt may go on.
    pub(super) fn check(&self, attempt: u32) -> Result<(), ReceiveError> {
        let mut state = self.state();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if state.failed || state.attempt != Some(attempt) {
            return Err(ReceiveError::NotOpen);
        }
        Ok(())
    }

    /// Whether a job has failed.
    pub(super) fn check_failure(&self) -> Result<(), ReceiveError> {
        let mut state = self.state();
        match state.error.take() {
            Some(error) => Err(error),
            None if state.failed => Err(ReceiveError::NotOpen),
            None => Ok(()),
        }
    }

    // [BULK-6] [BULK-8]
    pub(super) fn check_header(&self, header: &ChunkHeader) -> Result<(), Violation> {
        if header.index >= self.layout.chunks() {
            return Err(Violation::ChunkOutOfRange(header.index));
        }
        if header.len as usize != self.layout.chunk_len(header.index) {
            return Err(Violation::ChunkLength(header.index));
        }
        if self.is_repeat(header.index) {
            return Err(Violation::ChunkRepeated(header.index));
        }
        Ok(())
    }

    /// Whether this attempt has brought the chunk before.
    fn is_repeat(&self, index: u64) -> bool {
        let state = self.state();
        state.taken.contains(index) && !state.taken_before.contains(index)
    }

    /// Whether an earlier attempt has brought the chunk: what it wrote may have become durable after the sender was
    /// told what is missing, so that the sender rightly sends it again.
    pub(super) fn is_known(&self, index: u64) -> bool {
        self.state().taken_before.contains(index)
    }

    pub(super) fn unsynced_bytes(&self) -> u64 {
        self.state().unsynced_bytes
    }

    pub(super) fn has_unsynced(&self) -> bool {
        !self.state().written.is_empty()
    }

    /// Resolves at the next change after this call.
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        after_now(&self.notify)
    }

    /// Resolves when, after this call, a job fails or the attempt changes: [`Self::check`] says which.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + Unpin {
        after_now(&self.stop)
    }

    /// Waits until no job is under way.
    pub(super) async fn idle(&self) -> Result<(), ReceiveError> {
        loop {
            let changed = self.changed();
            {
                let mut state = self.state();
                if state.writes == 0 && !state.syncing {
                    if let Some(error) = state.error.take() {
                        return Err(error);
                    }
                    if state.failed {
                        return Err(ReceiveError::NotOpen);
                    }
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Gives up what was written and not claimed yet, and everything after it.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.attempt = None;
        state.failed = true;
        state.discarded = true;
        state.written.clear();
        drop(state);
        self.notify.notify_waiters();
        self.stop.notify_waiters();
    }

    /// Waits until no job is under way, whatever became of them.
    pub(super) async fn drained(&self) {
        let _ = self.idle().await;
    }

    fn fail(&self, error: ReceiveError) {
        let mut state = self.state();
        if !state.failed {
            state.failed = true;
            state.error = Some(error);
        }
        drop(state);
        self.stop.notify_waiters();
    }

    /// Takes a chunk: from here on it counts as being written.
    pub(super) fn begin_write(
        self: &Arc<Self>,
        attempt: u32,
        header: ChunkHeader,
    ) -> Result<Write, ReceiveError> {
        self.check(attempt)?;
        let mut state = self.state();
        if state.taken.contains(header.index) {
            return Err(Violation::ChunkRepeated(header.index).into());
        }
        state.taken.insert(header.index..header.index + 1);
        state.unsynced_bytes += u64::from(header.len);
        state.writes += 1;
        Ok(Write {
            incoming: Arc::clone(self),
            header,
            done: false,
        })
    }

    pub(super) fn wants_sync(&self, bytes_min: u64) -> bool {
        let state = self.state();
        !state.syncing && !state.written.is_empty() && self.written_bytes(&state) >= bytes_min
    }

    fn written_bytes(&self, state: &State) -> u64 {
        state.written.len() as u64 * self.layout.chunk_bytes()
    }
}

fn after_now(notify: &Notify) -> Pin<Box<Notified<'_>>> {
    let mut notified = Box::pin(notify.notified());
    notified.as_mut().enable();
    notified
}

/// The right to receive the one stream of an attempt.
pub(super) struct StreamTurn<'a> {
    incoming: &'a Incoming,
    attempt: u32,
}

impl Drop for StreamTurn<'_> {
    fn drop(&mut self) {
        let mut state = self.incoming.state();
        if state.streaming == Some(self.attempt) {
            state.streaming = None;
        }
    }
}

/// A chunk on its way to the disk.
pub(super) struct Write {
    incoming: Arc<Incoming>,
    header: ChunkHeader,
    done: bool,
}

impl Write {
    /// Hashes, compares and writes; on a worker.
    pub(super) fn run(mut self, buffer: &Buffer) {
        let index = self.header.index;
        let layout = self.incoming.layout;
        // [BULK-4]
        let result = if layout.value(index, buffer.filled()) == self.header.value {
            self.incoming
                .file
                .write_at(layout.offset(index), buffer.filled())
                .map_err(ReceiveError::Storage)
        } else {
            Err(Violation::ChunkDigestMismatch(index).into())
        };
        match result {
            Ok(()) => {
                let mut state = self.incoming.state();
                if !state.discarded {
                    state.written.push((index, self.header.value));
                }
            }
            Err(error) => self.incoming.fail(error),
        }
        self.done = true;
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.done {
            self.incoming.fail(WorkerError::Panicked.into());
        }
        self.incoming.state().writes -= 1;
        self.incoming.notify.notify_waiters();
    }
}

/// Written chunks on their way to being durable.
pub(super) struct SyncBatch {
    incoming: Arc<Incoming>,
    chunks: Vec<(u64, ChunkValue)>,
    done: bool,
}

impl SyncBatch {
    /// Takes what is written, if it is at least `bytes_min` and no other sync is running.
    pub(super) fn take(incoming: &Arc<Incoming>, bytes_min: u64) -> Option<Self> {
        let mut state = incoming.state();
        let nothing = state.discarded || state.written.is_empty();
        if state.syncing || nothing || incoming.written_bytes(&state) < bytes_min {
            return None;
        }
        state.syncing = true;
        Some(Self {
            incoming: Arc::clone(incoming),
            chunks: std::mem::take(&mut state.written),
            done: false,
        })
    }

    /// Syncs, then claims, then tells; on a worker.
    pub(super) fn run(mut self) {
        match self.sync_and_claim() {
            Ok(durable) => {
                (self.incoming.on_durable)(self.incoming.transfer, &durable);
            }
            // What a failed sync covered must be considered lost: the transfer cannot go on with this file.
            Err(error) => self.incoming.fail(error),
        }
        self.done = true;
    }

    fn sync_and_claim(&mut self) -> Result<Durable, ReceiveError> {
        let incoming = &self.incoming;
        incoming.file.sync_data()?;
        let runs = claim_runs(&mut self.chunks);
        incoming.store.claim(incoming.transfer, &runs)?;
        let added: ChunkRanges = runs
            .iter()
            .map(|run| run.first..run.first + run.values.len() as u64)
            .collect();
        let bytes = payload_bytes(&added, incoming.layout);
        let mut state = incoming.state();
        added
            .ranges()
            .iter()
            .for_each(|range| state.durable.insert(range.clone()));
        state.unsynced_bytes = state.unsynced_bytes.saturating_sub(bytes);
        Ok(Durable {
            added,
            bytes: payload_bytes(&state.durable, incoming.layout),
        })
    }
}

impl Drop for SyncBatch {
    fn drop(&mut self) {
        if !self.done {
            self.incoming.fail(WorkerError::Panicked.into());
        }
        self.incoming.state().syncing = false;
        self.incoming.notify.notify_waiters();
    }
}

/// Groups neighboring chunks, so that a claim is a few rows and not one for each chunk.
pub(super) fn claim_runs(chunks: &mut [(u64, ChunkValue)]) -> Vec<ClaimRun> {
    chunks.sort_unstable_by_key(|(index, _)| *index);
    let mut runs: Vec<ClaimRun> = Vec::new();
    for (index, value) in chunks.iter() {
        match runs.last_mut() {
            Some(run) if run.first + run.values.len() as u64 == *index => run.values.push(*value),
            _ => runs.push(ClaimRun {
                first: *index,
                values: vec![*value],
            }),
        }
    }
    runs
}

pub(super) fn payload_bytes(chunks: &ChunkRanges, layout: Layout) -> u64 {
    let end = |index: u64| layout.offset(index).min(layout.len());
    chunks
        .ranges()
        .iter()
        .map(|range| end(range.end) - end(range.start))
        .sum()
}
