//! Chunks and their BLAKE3 subtree values, and how those merge into the digest that `b3sum` prints.
//!
//! A chunk at its offset is a subtree of the whole payload's BLAKE3 tree, because its size is a power of two and it
//! is aligned: chunks can be hashed on any thread, in any order, by either side, and a second pass over the payload
//! is never needed. The value of the only chunk of a small payload is the digest itself, since a tree of one leaf
//! has no inner node. (BLAKE3 paper, section 2.1.)

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use hyperfabric_protocol::transfer::CHUNK_BYTES;

/// Bytes of a chaining value and of a digest.
pub const VALUE_BYTES: usize = 32;

/// The most chunks that a payload may have: 4 TiB, for which a sender keeps 128 MiB of values.
pub const CHUNKS_MAX: u64 = 1 << 22;

/// The value that stands for one chunk in the digest of the whole.
pub type ChunkValue = [u8; VALUE_BYTES];

/// The digest of a whole payload: plain BLAKE3.
pub type Root = [u8; VALUE_BYTES];

/// How a payload of some length is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    len: u64,
    chunk_bytes: u64,
}

impl Layout {
    /// The layout of a payload of `len` bytes, as it is on the wire.
    pub const fn new(len: u64) -> Self {
        Self {
            len,
            chunk_bytes: CHUNK_BYTES,
        }
    }

    /// A layout with smaller chunks, for tests that need many of them.
    ///
    /// # Panics
    /// When `chunk_bytes` is not a power of two of at least 1024, the leaf size of BLAKE3.
    pub const fn with_chunk_bytes(len: u64, chunk_bytes: u64) -> Self {
        assert!(chunk_bytes.is_power_of_two() && chunk_bytes >= blake3::CHUNK_LEN as u64);
        Self { len, chunk_bytes }
    }

    /// Bytes of the whole payload.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to send.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of every chunk but the last.
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// How many chunks there are.
    pub const fn chunks(&self) -> u64 {
        self.len.div_ceil(self.chunk_bytes)
    }

    /// Where a chunk begins.
    pub const fn offset(&self, index: u64) -> u64 {
        index * self.chunk_bytes
    }

    /// How long a chunk is; 0 beyond the end.
    pub fn chunk_len(&self, index: u64) -> usize {
        let left = self.len.saturating_sub(index.saturating_mul(self.chunk_bytes));
        usize::try_from(left.min(self.chunk_bytes)).unwrap_or(usize::MAX)
    }

    /// The value of the chunk at `index`, which holds `data`.
    pub fn value(&self, index: u64, data: &[u8]) -> ChunkValue {
        let mut hasher = ChunkHasher::new(*self, index);
        hasher.update(data);
        hasher.finish()
    }
}

/// Computes the value of a chunk from its bytes in pieces; pieces of 16 KiB and more keep it at full speed.
#[derive(Clone, Debug)]
pub struct ChunkHasher {
    hasher: Hasher,
    is_whole: bool,
}

impl ChunkHasher {
    /// Begins with the chunk at `index`.
    pub fn new(layout: Layout, index: u64) -> Self {
        let mut hasher = Hasher::new();
        let is_whole = layout.chunks() <= 1;
        if !is_whole {
            hasher.set_input_offset(layout.offset(index));
        }
        Self { hasher, is_whole }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.hasher.update(data);
    }

    /// The value of the bytes taken, of which there must be at least one unless the payload is empty.
    pub fn finish(&self) -> ChunkValue {
        if self.is_whole {
            *self.hasher.finalize().as_bytes()
        } else {
            self.hasher.finalize_non_root()
        }
    }
}

/// Merges the values of all chunks, given in order, into the root; needs memory only for one per level of the tree.
#[derive(Clone, Debug)]
pub struct Merger {
    chunks: u64,
    merged: u64,
    stack: Vec<ChunkValue>,
}

impl Merger {
    /// Begins with the first chunk of a payload.
    pub fn new(layout: Layout) -> Self {
        Self {
            chunks: layout.chunks(),
            merged: 0,
            stack: Vec::new(),
        }
    }

    /// The index of the chunk whose value is expected next.
    pub fn next_index(&self) -> u64 {
        self.merged
    }

    /// Takes the value of the next chunk.
    pub fn push(&mut self, value: ChunkValue) {
        // Merging is one step late, because the last merge of all makes the root and is done differently.
        while self.stack.len() > self.merged.count_ones() as usize {
            self.merge_top();
        }
        self.stack.push(value);
        self.merged += 1;
    }

    fn merge_top(&mut self) {
        if let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) {
            self.stack
                .push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
    }

    /// The digest of the whole, or `None` when not every chunk's value was given.
    pub fn finish(mut self) -> Option<Root> {
        if self.merged != self.chunks {
            return None;
        }
        while self.stack.len() > 2 {
            self.merge_top();
        }
        match self.stack.as_slice() {
            [] => Some(*blake3::hash(b"").as_bytes()),
            [only] => Some(*only),
            [left, right, ..] => Some(*merge_subtrees_root(left, right, Mode::Hash).as_bytes()),
        }
    }
}

/// Shows a digest the way `b3sum` prints it.
pub fn hex(root: &Root) -> String {
    blake3::Hash::from_bytes(*root).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merged(data: &[u8], layout: Layout) -> Root {
        let mut merger = Merger::new(layout);
        for index in 0..layout.chunks() {
            let start = usize::try_from(layout.offset(index)).unwrap();
            let chunk = &data[start..start + layout.chunk_len(index)];
            merger.push(layout.value(index, chunk));
        }
        merger.finish().unwrap()
    }

    fn check(data: &[u8], layout: Layout) {
        assert_eq!(merged(data, layout), *blake3::hash(data).as_bytes());
    }

    #[test]
    fn chunks_merge_into_the_plain_digest_at_every_edge() {
        let data: Vec<u8> = (0..9u32 << 20).map(|at| (at % 251) as u8).collect();
        let mib = 1 << 20;
        for len in [0, 1, 1_023, 1_024, 1_025, mib - 1, mib, mib + 1] {
            check(&data[..len], Layout::new(len as u64));
        }
        for chunks in [2usize, 3, 4, 5, 7, 8, 9] {
            for len in [chunks * mib - 1, chunks * mib, (chunks * mib + 1).min(data.len())] {
                check(&data[..len], Layout::new(len as u64));
            }
        }
    }

    #[test]
    fn powers_of_two_and_their_neighbors_merge_with_many_chunks() {
        let data: Vec<u8> = (0..300u32 << 10).map(|at| (at % 253) as u8).collect();
        for power in [16usize, 32, 64, 128, 256] {
            for chunks in power - 1..=power + 1 {
                for len in [chunks * 1_024 - 1, chunks * 1_024, chunks * 1_024 + 1] {
                    let layout = Layout::with_chunk_bytes(len as u64, 1_024);
                    check(&data[..len], layout);
                }
            }
        }
    }

    #[test]
    fn an_incomplete_list_has_no_digest() {
        let layout = Layout::with_chunk_bytes(4_096, 1_024);
        let mut merger = Merger::new(layout);
        for _ in 0..3 {
            merger.push([0; 32]);
        }
        assert_eq!(merger.next_index(), 3);
        assert_eq!(merger.finish(), None);
    }

    #[test]
    fn beyond_the_end_there_is_no_chunk() {
        let layout = Layout::new((1 << 20) + 5);
        assert_eq!(layout.chunk_len(1), 5);
        assert_eq!(layout.chunk_len(2), 0);
        assert_eq!(layout.chunk_len(u64::MAX), 0);
    }

    proptest! {
        #[test]
        fn any_payload_in_chunks_of_any_size_has_its_plain_digest(
            data in proptest::collection::vec(any::<u8>(), 0..40_000),
            power in 10u32..15,
        ) {
            let layout = Layout::with_chunk_bytes(data.len() as u64, 1 << power);
            prop_assert_eq!(merged(&data, layout), *blake3::hash(&data).as_bytes());
        }
    }
}
