//! The receiving side: chunks from a stream, verified, onto the disk, claimed in the journal, into the inbox.
//!
//! One order makes a claim true after any crash: data synced; then the journal that claims it; and for the whole:
//! digest compared, everything synced, the place written down, the rename, its folder synced, the journal that says
//! delivered, and only then an acknowledgement. `prepare` decides on an offer and finds out what is there already
//! (module `prepare`), `receive` is one stream of one attempt (here), `seal` ends it
//! (module `seal`). What has been written but not yet claimed is kept in module `state`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Buf;
use hyperfabric_protocol::transfer::{CHUNK_BYTES, ChunkRanges, Fault};
use hyperfabric_protocol::{PeerId, TransferId, UnixMillis};
use tokio::time::MissedTickBehavior;

use super::buffers::{Buffer, BufferBudget, BufferPool};
use super::hash::Layout;
use super::inbox::{InboxPolicy, Refusal, Reservations};
use super::stream::{CHUNK_HEADER_BYTES, ChunkHeader, ChunkStream, Pieces, StreamLost};
use super::tree::ManifestFault;
use crate::storage::Storage;
use crate::store::{Store, StoreError};
use crate::workers::{Lane, WorkerError, WorkerPool};

mod abandoned;
mod prepare;
mod seal;
mod state;

pub use abandoned::Idle;
pub use prepare::Prepared;
pub use seal::Sealed;
pub use state::Durable;
use state::{Incoming, SyncBatch};

/// Buffers of one attempt: chunks that are being gathered, hashed or written.
pub const RECEIVE_BUFFERS: usize = 12;

/// Sync windows of written and not yet claimed bytes beyond which no more are taken in.
const UNSYNCED_WINDOWS_MAX: u64 = 2;

/// How chunks are cut and how often they are synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// The least bytes between two syncs.
    pub window_min: u64,
    /// The most bytes between two syncs.
    pub window_max: u64,
    /// Payloads of at least this many bytes have their space taken ahead.
    pub allocate_min: u64,
    /// How long written chunks may wait for a sync that their number does not call for.
    pub sync_interval: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            chunk_bytes: CHUNK_BYTES,
            window_min: 8 << 20,
            window_max: 64 << 20,
            allocate_min: 1 << 20,
            sync_interval: Duration::from_secs(1),
        }
    }
}

impl Tuning {
    /// Bytes between two syncs: small enough that a crash costs little, large enough that syncs cost little.
    pub fn window(&self, size: u64) -> u64 {
        (size / 256).clamp(self.window_min, self.window_max)
    }

    fn layout(&self, size: u64) -> Layout {
        Layout::with_chunk_bytes(size, self.chunk_bytes)
    }
}

/// What a sender did that no sender may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The id belongs to another sender's transfer, or to one with another offer.
    #[error("the transfer's id is in use for something else")]
    IdInUse,
    /// A chunk beyond the end of the payload.
    #[error("chunk {0} is out of range")]
    ChunkOutOfRange(u64),
    /// A chunk that is there already, or on its way.
    #[error("chunk {0} was sent twice")]
    ChunkRepeated(u64),
    /// A chunk whose length does not follow from the offer.
    #[error("chunk {0} has a wrong length")]
    ChunkLength(u64),
    /// A chunk whose bytes do not have the announced value.
    #[error("chunk {0} does not have the announced digest")]
    ChunkDigestMismatch(u64),
    /// The stream ended within a chunk.
    #[error("the stream ended within a chunk")]
    Truncated,
    /// The transfer was closed while chunks are missing.
    #[error("the transfer was closed with {0} chunks missing")]
    Incomplete(u64),
}

/// Why a step of an incoming transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection is gone; another attempt may follow.
    #[error(transparent)]
    StreamLost(#[from] StreamLost),
    /// A later attempt has taken over, or the transfer is not open.
    #[error("the transfer is not open for this attempt")]
    NotOpen,
    /// The transfer was cancelled meanwhile.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// The offer is not accepted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The payload has more chunks than can be received.
    #[error("the payload is too large")]
    TooLarge,
    /// The transfer was offered before with another size, name or time: the source is not what it was. [XFER-5]
    #[error("the offer differs from the one that began the transfer")]
    OfferChanged,
    /// The sender broke the rules.
    #[error("the sender broke the protocol")]
    Violation(#[from] Violation),
    /// All chunks are there and right, and the whole is not what was announced.
    #[error("the whole payload does not have the announced digest")]
    RootMismatch,
    /// The folder's manifest is not acceptable.
    #[error("the folder's manifest is not acceptable")]
    Manifest(#[source] ManifestFault),
    /// So many files have the name that no further number was tried.
    #[error("too many files have this name")]
    NoFreeName,
    /// The disk failed.
    #[error("the partial file or the inbox failed")]
    Storage(#[from] io::Error),
    /// The journal failed.
    #[error("the journal of transfers failed")]
    Journal(#[from] StoreError),
    /// A background job failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl ReceiveError {
    /// What ends the transfer; `None` when another attempt may follow.
    pub fn fault(&self) -> Option<Fault> {
        Some(match self {
            Self::StreamLost(_) | Self::NotOpen => return None,
            Self::Cancelled => Fault::Cancelled,
            Self::Refused(refusal) => refusal.fault(),
            Self::TooLarge => Fault::NoSpace,
            Self::OfferChanged => Fault::SourceChanged,
            Self::Violation(Violation::ChunkDigestMismatch(_)) | Self::RootMismatch => Fault::DigestMismatch,
            Self::Violation(_) => Fault::Violation,
            Self::Manifest(_) => Fault::BadManifest,
            Self::NoFreeName => Fault::BadName,
            Self::Storage(error) => storage_fault(error.kind()),
            Self::Journal(error) => storage_fault(error.io_kind().unwrap_or(io::ErrorKind::Other)),
            Self::Worker(_) => Fault::Storage,
        })
    }
}

fn storage_fault(kind: io::ErrorKind) -> Fault {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Fault::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Fault::InboxUnwritable,
        _ => Fault::Storage,
    }
}

/// Told of chunks that have become durable, from a worker thread.
pub type OnDurable = Arc<dyn Fn(TransferId, &Durable) + Send + Sync>;

/// What a receiver works with.
#[derive(Clone)]
pub struct Parts {
    /// Where files go.
    pub storage: Arc<dyn Storage>,
    /// The journal.
    pub store: Store,
    /// The threads.
    pub workers: WorkerPool,
    /// The buffers.
    pub buffers: BufferPool,
    /// What is taken.
    pub policy: InboxPolicy,
    /// How chunks are cut and synced.
    pub tuning: Tuning,
    /// Told of durable chunks.
    pub on_durable: OnDurable,
}

/// All incoming transfers of a node; clones share them.
#[derive(Clone)]
pub struct Receiver {
    shared: Arc<Shared>,
}

struct Shared {
    storage: Arc<dyn Storage>,
    store: Store,
    workers: WorkerPool,
    buffers: BufferPool,
    policy: RwLock<InboxPolicy>,
    tuning: Tuning,
    on_durable: OnDurable,
    reservations: Mutex<Reservations>,
    /// Transfers that this process has prepared and that have not ended.
    open: Mutex<HashMap<TransferId, Arc<Incoming>>>,
    preparing: Mutex<HashSet<TransferId>>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

impl Shared {
    fn reservations(&self) -> MutexGuard<'_, Reservations> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<TransferId, Arc<Incoming>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn preparing(&self) -> MutexGuard<'_, HashSet<TransferId>> {
        self.preparing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policy(&self) -> InboxPolicy {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Receiver {
    /// Changes what is taken from now on.
    pub fn set_policy(&self, policy: InboxPolicy) {
        *self.shared.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Chunks of an open transfer that are durable; `None` when it is not open.
    pub fn durable(&self, transfer: TransferId) -> Option<ChunkRanges> {
        let incoming = self.shared.open().get(&transfer).cloned()?;
        Some(incoming.durable())
    }

    /// Takes streams of this attempt of an open transfer from now on, and of no other; `None` takes none.
    ///
    /// # Errors
    /// [`ReceiveError::NotOpen`] when `peer` has no such transfer open.
    pub fn expect(
        &self,
        transfer: TransferId,
        peer: PeerId,
        attempt: Option<u32>,
    ) -> Result<(), ReceiveError> {
        self.find(transfer, peer)?.set_attempt(attempt);
        Ok(())
    }

    /// Notes that a transfer has ended, and that what arrived of it is kept for a later attempt: the next offer that
    /// needs its room gets it.
    pub fn keep(&self, transfer: TransferId, peer: PeerId, now: UnixMillis) {
        self.shared.reservations().set_idle(transfer, peer, now);
    }

    /// Receives one stream of an attempt, to its end.
    ///
    /// Whatever way it ends, chunks that arrived whole are synced and claimed before it returns; when the future is
    /// dropped, the next `prepare` or `seal` does that. Once a job has failed nothing more is claimed, and this returns
    /// without waiting for the jobs beside it.
    ///
    /// # Errors
    /// See [`ReceiveError::fault`] for which of them end the transfer; [`Self::discard`] it then.
    pub async fn receive<S: ChunkStream>(
        &self,
        transfer: TransferId,
        peer: PeerId,
        attempt: u32,
        pieces: &mut Pieces<S>,
    ) -> Result<(), ReceiveError> {
        let incoming = self.find(transfer, peer)?;
        incoming.check(attempt)?;
        // [BULK-2] Each stream has buffers of its own, so an attempt has one at a time.
        let _turn = incoming.begin_stream(attempt).ok_or(ReceiveError::NotOpen)?;
        let mut stream = Attempt {
            workers: &self.shared.workers,
            budget: self.shared.buffers.budget(RECEIVE_BUFFERS),
            window: match incoming.offer.sync {
                Some(true) => self.shared.tuning.chunk_bytes,
                Some(false) | None => self.shared.tuning.window(incoming.layout().len()),
            },
            sync_interval: self.shared.tuning.sync_interval,
            incoming: &incoming,
            attempt,
            gather: Gather::next_header(),
        };
        let received = stream.run(pieces).await;
        drop(stream);
        let settled = self.settle(&incoming).await;
        match received {
            // A job's failure says more than the loss of the stream that followed it.
            Err(error) if error.fault().is_some() => Err(error),
            other => settled.and(other),
        }
    }

    /// Waits until nothing of a transfer is under way, and claims all that was written.
    async fn settle(&self, incoming: &Arc<Incoming>) -> Result<(), ReceiveError> {
        loop {
            incoming.check_failure()?;
            incoming.idle().await?;
            if !incoming.has_unsynced() {
                return Ok(());
            }
            start_sync(&self.shared.workers, incoming, 0).await;
        }
    }

    // [BULK-7]
    fn find(&self, transfer: TransferId, peer: PeerId) -> Result<Arc<Incoming>, ReceiveError> {
        self.shared
            .open()
            .get(&transfer)
            .filter(|incoming| incoming.peer == peer)
            .cloned()
            .ok_or(ReceiveError::NotOpen)
    }
}

/// Starts a sync when at least `bytes_min` written bytes wait for one and none is running.
async fn start_sync(workers: &WorkerPool, incoming: &Arc<Incoming>, bytes_min: u64) {
    if !incoming.wants_sync(bytes_min) {
        return;
    }
    let slot = workers.slot(Lane::Sync).await;
    // Taken only now, so that dropping this future while it waits leaves nothing half begun.
    if let Some(batch) = SyncBatch::take(incoming, bytes_min) {
        slot.spawn(move || batch.run());
    }
}

/// One stream of an attempt, as it arrives.
struct Attempt<'a> {
    workers: &'a WorkerPool,
    budget: BufferBudget,
    window: u64,
    sync_interval: Duration,
    incoming: &'a Arc<Incoming>,
    attempt: u32,
    gather: Gather,
}

/// Where in the stream the next byte belongs.
enum Gather {
    Header {
        bytes: [u8; CHUNK_HEADER_BYTES],
        filled: usize,
    },
    Chunk {
        header: ChunkHeader,
        buffer: Buffer,
    },
}

impl Gather {
    fn next_header() -> Self {
        Self::Header {
            bytes: [0; CHUNK_HEADER_BYTES],
            filled: 0,
        }
    }
}

impl Attempt<'_> {
    async fn run<S: ChunkStream>(&mut self, pieces: &mut Pieces<S>) -> Result<(), ReceiveError> {
        let mut tick = tokio::time::interval(self.sync_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Before the first look, so that no end falls between the two.
        let incoming = self.incoming;
        let mut stopped = incoming.stopped();
        self.incoming.check(self.attempt)?;
        loop {
            while let Some(piece) = pieces.buffered() {
                if let Some(chunk) = self.take_in(piece) {
                    self.next_chunk(chunk).await?;
                }
            }
            tokio::select! {
                biased;
                // A job has failed, or another attempt has begun: whatever the sender does or leaves undone meanwhile.
                () = &mut stopped => {
                    stopped = incoming.stopped();
                    self.incoming.check(self.attempt)?;
                }
                more = pieces.fill() => {
                    if !more? {
                        break;
                    }
                }
                _ = tick.tick() => {
                    start_sync(self.workers, self.incoming, 1).await;
                }
            }
        }
        match self.gather {
            Gather::Header { filled: 0, .. } => Ok(()),
            Gather::Header { .. } | Gather::Chunk { .. } => Err(Violation::Truncated.into()),
        }
    }

    /// Copies what the current header or chunk lacks; returns what was completed by it.
    fn take_in(&mut self, piece: &mut bytes::Bytes) -> Option<Whole> {
        match &mut self.gather {
            Gather::Header { bytes, filled } => {
                let taken = piece.len().min(CHUNK_HEADER_BYTES - *filled);
                piece.copy_to_slice(&mut bytes[*filled..*filled + taken]);
                *filled += taken;
                (*filled == CHUNK_HEADER_BYTES).then(|| Whole::Header(ChunkHeader::from_bytes(bytes)))
            }
            Gather::Chunk { header, buffer } => {
                let len = header.len as usize;
                let taken = piece.len().min(len - buffer.filled().len());
                buffer.append(&piece[..taken]);
                piece.advance(taken);
                (buffer.filled().len() == len).then_some(Whole::Chunk)
            }
        }
    }

    async fn next_chunk(&mut self, whole: Whole) -> Result<(), ReceiveError> {
        match whole {
            Whole::Header(header) => {
                self.incoming.check(self.attempt)?;
                self.incoming.check_header(&header)?;
                let buffer = self.budget.take().await;
                self.gather = Gather::Chunk { header, buffer };
                Ok(())
            }
            Whole::Chunk => {
                let Gather::Chunk { header, buffer } =
                    std::mem::replace(&mut self.gather, Gather::next_header())
                else {
                    unreachable!("only a chunk can be completed as a chunk")
                };
                if self.incoming.is_known(header.index) {
                    return Ok(());
                }
                self.store(header, buffer).await
            }
        }
    }

    /// Hands a whole chunk to a worker, unless the disk is too far behind: then it waits, and so does the sender.
    async fn store(&self, header: ChunkHeader, buffer: Buffer) -> Result<(), ReceiveError> {
        start_sync(self.workers, self.incoming, self.window).await;
        let limit = self.window * UNSYNCED_WINDOWS_MAX;
        while self.incoming.unsynced_bytes() + u64::from(header.len) > limit {
            let changed = self.incoming.changed();
            self.incoming.check(self.attempt)?;
            if self.incoming.unsynced_bytes() + u64::from(header.len) <= limit {
                break;
            }
            start_sync(self.workers, self.incoming, 1).await;
            changed.await;
        }
        let slot = self.workers.slot(Lane::Compute).await;
        let write = self.incoming.begin_write(self.attempt, header)?;
        slot.spawn(move || write.run(&buffer));
        Ok(())
    }
}

/// What bytes from the stream have completed.
enum Whole {
    Header(ChunkHeader),
    Chunk,
}
