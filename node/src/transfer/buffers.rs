//! Buffers of one chunk each, used over and over, and a budget of them for each transfer.
//!
//! A buffer has room for a chunk header before the chunk, so that both leave as one piece without a copy. The budget
//! is what bounds a transfer's memory: a sender's buffers come back when the stream has been acknowledged, a
//! receiver's when the disk has them, and whoever finds none waits.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::stream::{CHUNK_HEADER_BYTES, ChunkHeader};

/// Idle buffers that are kept for the next transfer.
const IDLE_MAX: usize = 16;

/// Where buffers come from and go back to; shared by all transfers of a process.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    chunk_bytes: usize,
    idle: Mutex<Vec<Box<[u8]>>>,
}

/// The right of one transfer to use up to a number of buffers at once.
#[derive(Clone, Debug)]
pub struct BufferBudget {
    pool: BufferPool,
    permits: Arc<Semaphore>,
}

/// Room for one chunk and its header.
pub struct Buffer {
    /// `None` only while it is being dropped.
    bytes: Option<Box<[u8]>>,
    filled: usize,
    pool: BufferPool,
    _permit: OwnedSemaphorePermit,
}

impl BufferPool {
    /// A pool of buffers for chunks of `chunk_bytes`.
    pub fn new(chunk_bytes: usize) -> Self {
        Self {
            shared: Arc::new(PoolShared {
                chunk_bytes,
                idle: Mutex::new(Vec::new()),
            }),
        }
    }

    /// A budget of `count` buffers at once.
    pub fn budget(&self, count: usize) -> BufferBudget {
        BufferBudget {
            pool: self.clone(),
            permits: Arc::new(Semaphore::new(count)),
        }
    }

    fn take(&self, permit: OwnedSemaphorePermit) -> Buffer {
        let idle = self
            .shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let fresh = || vec![0; CHUNK_HEADER_BYTES + self.shared.chunk_bytes].into_boxed_slice();
        Buffer {
            bytes: Some(idle.unwrap_or_else(fresh)),
            filled: 0,
            pool: self.clone(),
            _permit: permit,
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").finish_non_exhaustive()
    }
}

impl BufferBudget {
    /// Waits until one more buffer may be used.
    pub async fn take(&self) -> Buffer {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        self.pool.take(permit)
    }

    /// Takes a buffer if one may be used right now.
    pub fn try_take(&self) -> Option<Buffer> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(self.pool.take(permit))
    }
}

impl Buffer {
    /// The chunk's bytes so far.
    pub fn filled(&self) -> &[u8] {
        let bytes = self.bytes.as_deref().unwrap_or_default();
        &bytes[CHUNK_HEADER_BYTES..CHUNK_HEADER_BYTES + self.filled]
    }

    /// Appends to the chunk; what has no room stays out, so check the length first.
    pub fn append(&mut self, data: &[u8]) {
        let start = CHUNK_HEADER_BYTES + self.filled;
        if let Some(room) = self
            .bytes
            .as_deref_mut()
            .and_then(|bytes| bytes.get_mut(start..start + data.len()))
        {
            room.copy_from_slice(data);
            self.filled += data.len();
        }
    }

    /// Room for a chunk of `len` bytes, which counts as filled from now on.
    pub fn fill(&mut self, len: usize) -> &mut [u8] {
        self.filled = len.min(self.pool.shared.chunk_bytes);
        let bytes = self.bytes.as_deref_mut().unwrap_or_default();
        &mut bytes[CHUNK_HEADER_BYTES..CHUNK_HEADER_BYTES + self.filled]
    }

    /// Turns header and chunk into one piece; the buffer comes back when the last clone of it is gone.
    pub fn into_piece(mut self, header: ChunkHeader) -> Bytes {
        if let Some(bytes) = self.bytes.as_deref_mut() {
            bytes[..CHUNK_HEADER_BYTES].copy_from_slice(&header.to_bytes());
        }
        Bytes::from_owner(Piece(self))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("filled", &self.filled)
            .finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self
            .pool
            .shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX
            && let Some(bytes) = self.bytes.take()
        {
            idle.push(bytes);
        }
    }
}

/// A buffer as the bytes of its header and chunk.
struct Piece(Buffer);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        let bytes = self.0.bytes.as_deref().unwrap_or_default();
        &bytes[..CHUNK_HEADER_BYTES + self.0.filled]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_header_and_chunk_and_its_buffer_comes_back_with_the_last_clone() {
        let budget = BufferPool::new(1_024).budget(1);
        let mut buffer = budget.try_take().unwrap();
        assert!(budget.try_take().is_none());
        buffer.append(b"abc");
        buffer.append(&[0; 2_000]);
        assert_eq!(buffer.filled(), b"abc");
        let header = ChunkHeader {
            index: 7,
            len: 3,
            value: [9; 32],
        };
        let piece = buffer.into_piece(header);
        let clone = piece.slice(CHUNK_HEADER_BYTES..);
        let (head, chunk) = piece.split_at(CHUNK_HEADER_BYTES);
        assert_eq!(ChunkHeader::from_bytes(head.try_into().unwrap()), header);
        assert_eq!(chunk, b"abc");
        drop(piece);
        assert!(budget.try_take().is_none());
        drop(clone);
        assert!(budget.try_take().is_some());
    }
}
