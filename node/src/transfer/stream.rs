//! The bytes of a payload on a stream: a stream header, then chunk after chunk, each with its own header.
//!
//! The two traits are all that the pipelines know of a connection, so that they run over QUIC streams, over relayed
//! ones and over pipes in memory alike. Integers are big-endian. What a header means for a transfer (is the index in
//! range, is the length right) is decided by the receiver, which knows the offer.

use std::future::Future;
use std::io;

use bytes::{Buf, Bytes};
use hyperfabric_protocol::TransferId;

use super::hash::{ChunkValue, VALUE_BYTES};

/// Bytes of [`StreamHeader`]: transfer id and attempt.
pub const STREAM_HEADER_BYTES: usize = 20;

/// Bytes of [`ChunkHeader`]: index, length and chaining value.
pub const CHUNK_HEADER_BYTES: usize = 44;

/// Pieces that are asked of a stream at once.
pub const BATCH_PIECES: usize = 64;

/// The stream ended before its time: the connection is gone, or the other side reset it.
#[derive(Debug, thiserror::Error)]
#[error("the stream was lost")]
pub struct StreamLost(#[source] pub io::Error);

/// Where a sender writes.
pub trait ChunkSink: Send {
    /// Writes all pieces, in order, taking them; waits while the stream has no room.
    fn write_all(&mut self, pieces: &mut [Bytes]) -> impl Future<Output = Result<(), StreamLost>> + Send;

    /// Says that nothing more follows.
    fn finish(&mut self) -> impl Future<Output = Result<(), StreamLost>> + Send;
}

/// Where a receiver reads.
pub trait ChunkStream: Send {
    /// Waits for bytes, puts the pieces that are there into `batch` in order, and says how many; 0 is the end.
    ///
    /// Must be cancel safe: no bytes are lost when the future is dropped.
    fn read_batch(&mut self, batch: &mut [Bytes]) -> impl Future<Output = Result<usize, StreamLost>> + Send;
}

/// What a stream of chunks begins with. [BULK-2]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// The transfer that the chunks belong to.
    pub transfer: TransferId,
    /// The attempt, as the receiver numbered it when it accepted.
    pub attempt: u32,
}

impl StreamHeader {
    /// Its bytes on the stream.
    pub fn to_bytes(self) -> [u8; STREAM_HEADER_BYTES] {
        let mut bytes = [0; STREAM_HEADER_BYTES];
        bytes[..16].copy_from_slice(&self.transfer.0);
        bytes[16..].copy_from_slice(&self.attempt.to_be_bytes());
        bytes
    }

    fn from_bytes(mut bytes: &[u8]) -> Self {
        let mut transfer = [0; 16];
        bytes.copy_to_slice(&mut transfer);
        Self {
            transfer: TransferId(transfer),
            attempt: bytes.get_u32(),
        }
    }
}

/// What each chunk begins with. [BULK-3]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Which chunk.
    pub index: u64,
    /// Bytes that follow.
    pub len: u32,
    /// The value that the sender computed.
    pub value: ChunkValue,
}

impl ChunkHeader {
    /// Its bytes on the stream.
    pub fn to_bytes(self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.index.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_be_bytes());
        bytes[12..].copy_from_slice(&self.value);
        bytes
    }

    /// Reads it back.
    pub fn from_bytes(bytes: &[u8; CHUNK_HEADER_BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        let (index, len) = (rest.get_u64(), rest.get_u32());
        let mut value = [0; VALUE_BYTES];
        rest.copy_to_slice(&mut value);
        Self { index, len, value }
    }
}

/// A stream whose pieces are handed out one by one.
#[derive(Debug)]
pub struct Pieces<S> {
    stream: S,
    batch: Vec<Bytes>,
    next: usize,
    filled: usize,
}

impl<S: ChunkStream> Pieces<S> {
    /// Reads what a stream of chunks begins with; `None` when it ends before that.
    ///
    /// # Errors
    /// [`StreamLost`].
    pub async fn open(stream: S) -> Result<Option<(StreamHeader, Self)>, StreamLost> {
        let mut pieces = Self::headless(stream);
        let mut header = [0; STREAM_HEADER_BYTES];
        let mut filled = 0;
        while filled < STREAM_HEADER_BYTES {
            let Some(piece) = pieces.buffered() else {
                if !pieces.fill().await? {
                    return Ok(None);
                }
                continue;
            };
            let taken = piece.len().min(STREAM_HEADER_BYTES - filled);
            piece
                .split_to(taken)
                .copy_to_slice(&mut header[filled..filled + taken]);
            filled += taken;
        }
        Ok(Some((StreamHeader::from_bytes(&header), pieces)))
    }

    /// Takes a stream whose header was read already.
    pub fn headless(stream: S) -> Self {
        Self {
            stream,
            batch: vec![Bytes::new(); BATCH_PIECES],
            next: 0,
            filled: 0,
        }
    }

    /// The piece at the front, never empty; whoever uses bytes of it splits them off.
    pub fn buffered(&mut self) -> Option<&mut Bytes> {
        while self.next < self.filled && self.batch[self.next].is_empty() {
            self.next += 1;
        }
        self.batch[..self.filled].get_mut(self.next)
    }

    /// Waits for more pieces, once the buffered ones are used up; `false` at the end of the stream. Cancel safe.
    ///
    /// # Errors
    /// [`StreamLost`].
    pub async fn fill(&mut self) -> Result<bool, StreamLost> {
        self.next = 0;
        self.filled = 0;
        self.filled = self.stream.read_batch(&mut self.batch).await?;
        Ok(self.filled > 0)
    }
}
