//! The sending side of one attempt: missing chunks are read and hashed on workers, a few ahead of the stream.
//!
//! The source is read once: a chunk's value is computed from the buffer that leaves. Chunks that the receiver has
//! from an earlier attempt count into the digest of the whole too; those whose values are not known any more, after a
//! restart of the sender, are read again beside the sending. Memory is bounded by the attempt's budget of buffers,
//! which come back when the stream no longer needs them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::try_join;
use hyperfabric_protocol::TransferId;
use hyperfabric_protocol::transfer::{ChunkRanges, Fault};

use super::buffers::{Buffer, BufferBudget, BufferPool};
use super::hash::{CHUNKS_MAX, ChunkHasher, ChunkValue, Layout, Merger, Root, VALUE_BYTES};
use super::source::{Source, SourceFault};
use super::stream::{ChunkHeader, ChunkSink, StreamHeader, StreamLost};
use crate::workers::{Lane, Running, WorkerError, WorkerPool};

/// Chunks that are read and hashed ahead of the stream.
const READ_AHEAD: usize = 4;

/// Bytes that are read at once: what was just read is hashed while it is still in the core's own cache.
const READ_BYTES: usize = 256 << 10;

/// Buffers of one attempt: those read ahead, and those that the stream still keeps for retransmission.
pub const SEND_BUFFERS: usize = 20;

/// Chunks that one job reads again to learn their values; small enough that other transfers' chunks get a turn.
const REHASH_CHUNKS: u64 = 8;

/// Why an attempt to send has ended early.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection is gone; another attempt may follow.
    #[error(transparent)]
    StreamLost(#[from] StreamLost),
    /// The source cannot be sent any more.
    #[error(transparent)]
    Source(#[from] SourceFault),
    /// The receiver claims chunks that the payload does not have.
    #[error("the receiver claims chunks beyond the end of the payload")]
    FalseClaim,
    /// The payload has more chunks than can be sent.
    #[error("the payload is larger than {CHUNKS_MAX} chunks")]
    TooLarge,
    /// A background job failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl SendError {
    /// What ends the transfer; `None` when another attempt may follow.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::StreamLost(_) => None,
            Self::Source(fault) => Some(fault.fault()),
            Self::FalseClaim => Some(Fault::Violation),
            Self::TooLarge | Self::Worker(_) => Some(Fault::SourceUnreadable),
        }
    }
}

/// What an attempt has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The digest of the whole payload.
    pub root: Root,
    /// Payload bytes that this attempt sent.
    pub bytes: u64,
}

/// A transfer on the sending side; it outlives its attempts and remembers what they have learnt.
#[derive(Debug)]
pub struct Outgoing {
    transfer: TransferId,
    source: Source,
    layout: Layout,
    values: Mutex<Values>,
    sent_bytes: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Values {
    known: ChunkRanges,
    values: Vec<ChunkValue>,
}

/// What sends: shared by all transfers of a process.
#[derive(Clone, Debug)]
pub struct Sender {
    workers: WorkerPool,
    buffers: BufferPool,
}

type ReadJob = Running<Result<ReadChunk, SendError>>;

/// A chunk ready to leave, as one piece or as header and payload.
struct ReadChunk {
    pieces: [Bytes; 2],
    payload_bytes: u64,
}

impl Outgoing {
    /// A transfer of `source`.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] beyond [`CHUNKS_MAX`] chunks.
    pub fn new(transfer: TransferId, source: Source) -> Result<Self, SendError> {
        let layout = Layout::new(source.len());
        Self::with_layout(transfer, source, layout)
    }

    /// A transfer in chunks of another size, for tests.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_layout(transfer: TransferId, source: Source, layout: Layout) -> Result<Self, SendError> {
        if layout.chunks() > CHUNKS_MAX {
            return Err(SendError::TooLarge);
        }
        Ok(Self {
            transfer,
            source,
            layout,
            values: Mutex::new(Values::default()),
            sent_bytes: Arc::default(),
        })
    }

    /// Which transfer.
    pub fn transfer(&self) -> TransferId {
        self.transfer
    }

    /// What is sent.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Payload bytes handed to streams so far, by all attempts.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The counter behind [`Self::sent_bytes`], which outlives the transfer.
    pub fn sent_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent_bytes)
    }

    fn learn(&self, index: u64, value: ChunkValue) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if values.values.is_empty() {
            let chunks = usize::try_from(self.layout.chunks()).unwrap_or(usize::MAX);
            values.values = vec![[0; VALUE_BYTES]; chunks];
        }
        if let Some(place) = values.values.get_mut(at) {
            *place = value;
            values.known.insert(index..index + 1);
        }
    }

    /// The parts of `have` whose values this process has not computed.
    fn unknown_of(&self, have: &ChunkRanges) -> Vec<Range<u64>> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unknown = Vec::new();
        for range in have.ranges() {
            for gap in values.known.missing(range.end) {
                let start = gap.start.max(range.start);
                if start < gap.end {
                    unknown.push(start..gap.end);
                }
            }
        }
        unknown
    }

    fn root(&self) -> Option<Root> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let mut merger = Merger::new(self.layout);
        if values.known.count() == self.layout.chunks() {
            values.values.iter().for_each(|value| merger.push(*value));
        }
        merger.finish()
    }

    fn read_chunk(&self, index: u64, mut buffer: Buffer) -> Result<ReadChunk, SendError> {
        let (offset, len) = (self.layout.offset(index), self.layout.chunk_len(index));
        if let Some(payload) = self.source.in_memory(offset, len) {
            let payload = payload?;
            let value = self.layout.value(index, &payload);
            let header = self.header(index, len, value);
            return Ok(ReadChunk {
                payload_bytes: len as u64,
                pieces: [Bytes::copy_from_slice(&header.to_bytes()), payload],
            });
        }
        let mut hasher = ChunkHasher::new(self.layout, index);
        let mut at = offset;
        for piece in buffer.fill(len).chunks_mut(READ_BYTES) {
            self.source.read_at(at, piece)?;
            hasher.update(piece);
            at += piece.len() as u64;
        }
        let header = self.header(index, len, hasher.finish());
        Ok(ReadChunk {
            payload_bytes: len as u64,
            pieces: [buffer.into_piece(header), Bytes::new()],
        })
    }

    fn header(&self, index: u64, len: usize, value: ChunkValue) -> ChunkHeader {
        self.learn(index, value);
        ChunkHeader {
            index,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            value,
        }
    }

    fn rehash(&self, range: Range<u64>) -> Result<(), SendError> {
        let mut buffer = vec![0; self.layout.chunk_len(range.start)];
        for index in range {
            let len = self.layout.chunk_len(index);
            self.source
                .read_at(self.layout.offset(index), &mut buffer[..len])?;
            self.learn(index, self.layout.value(index, &buffer[..len]));
        }
        Ok(())
    }
}

impl Sender {
    /// Sends with these workers and buffers.
    pub fn new(workers: WorkerPool, buffers: BufferPool) -> Self {
        Self { workers, buffers }
    }

    /// Sends the chunks that the receiver does not have, and ends the stream; dropping the future ends the attempt.
    ///
    /// # Errors
    /// See [`SendError::fault`] for which of them end the transfer.
    pub async fn send(
        &self,
        outgoing: &Arc<Outgoing>,
        attempt: u32,
        have: &ChunkRanges,
        sink: &mut impl ChunkSink,
    ) -> Result<Sent, SendError> {
        let chunks = outgoing.layout.chunks();
        if have.ranges().last().is_some_and(|last| last.end > chunks) {
            return Err(SendError::FalseClaim);
        }
        self.on_worker(outgoing, |outgoing| Ok(outgoing.source.check_unchanged()?))
            .await?;
        let header = StreamHeader {
            transfer: outgoing.transfer,
            attempt,
        };
        sink.write_all(&mut [Bytes::copy_from_slice(&header.to_bytes())])
            .await?;
        let missing = have.missing(chunks);
        let unknown = outgoing.unknown_of(have);
        let (bytes, ()) = try_join(
            Box::pin(self.send_missing(outgoing, missing, sink)),
            Box::pin(self.rehash(outgoing, unknown)),
        )
        .await?;
        // Only now is it known that no chunk was read from a later state than the others.
        let root = self
            .on_worker(outgoing, |outgoing| {
                outgoing.source.check_unchanged()?;
                outgoing.root().ok_or(SendError::FalseClaim)
            })
            .await?;
        Ok(Sent { root, bytes })
    }

    async fn send_missing(
        &self,
        outgoing: &Arc<Outgoing>,
        missing: Vec<Range<u64>>,
        sink: &mut impl ChunkSink,
    ) -> Result<u64, SendError> {
        let budget = self.buffers.budget(SEND_BUFFERS);
        let mut indexes = missing.into_iter().flatten().peekable();
        let mut ahead: VecDeque<ReadJob> = VecDeque::with_capacity(READ_AHEAD);
        let mut sent = 0;
        loop {
            while ahead.len() < READ_AHEAD
                && indexes.peek().is_some()
                && let Some(buffer) = self.buffer(&budget, ahead.is_empty()).await
                && let Some(index) = indexes.next()
            {
                ahead.push_back(self.start_read(outgoing, index, buffer).await);
            }
            let Some(job) = ahead.pop_front() else {
                break;
            };
            let mut chunk = job.await??;
            let pieces = match &chunk.pieces {
                [_, second] if second.is_empty() => 1,
                _ => 2,
            };
            sink.write_all(&mut chunk.pieces[..pieces]).await?;
            sent += chunk.payload_bytes;
            outgoing
                .sent_bytes
                .fetch_add(chunk.payload_bytes, Ordering::Relaxed);
        }
        sink.finish().await?;
        Ok(sent)
    }

    /// Waits for a buffer only when there is nothing else to do: what is read ahead can be written meanwhile.
    async fn buffer(&self, budget: &BufferBudget, wait: bool) -> Option<Buffer> {
        match budget.try_take() {
            None if wait => Some(budget.take().await),
            found => found,
        }
    }

    async fn start_read(&self, outgoing: &Arc<Outgoing>, index: u64, buffer: Buffer) -> ReadJob {
        let outgoing = Arc::clone(outgoing);
        let slot = self.workers.slot(Lane::Compute).await;
        slot.run(move || outgoing.read_chunk(index, buffer))
    }

    async fn rehash(&self, outgoing: &Arc<Outgoing>, unknown: Vec<Range<u64>>) -> Result<(), SendError> {
        for range in unknown {
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min(start + REHASH_CHUNKS);
                self.on_worker(outgoing, move |outgoing| outgoing.rehash(start..end))
                    .await?;
                start = end;
            }
        }
        Ok(())
    }

    async fn on_worker<T: Send + 'static>(
        &self,
        outgoing: &Arc<Outgoing>,
        work: impl FnOnce(&Outgoing) -> Result<T, SendError> + Send + 'static,
    ) -> Result<T, SendError> {
        let outgoing = Arc::clone(outgoing);
        self.workers.run(move || work(&outgoing)).await?
    }
}
