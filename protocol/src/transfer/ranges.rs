//! Sets of chunks as sorted, disjoint ranges: small for what arrives in order, bounded for what does not.

use alloc::vec::Vec;
use core::ops::Range;

use crate::cbor::{DecodeError, Decoder, Encoder, Value};

/// The most ranges on the wire. A set with more is cut: the chunks left out are sent once more. [XFER-16]
pub const RANGES_MAX: usize = 1024;

/// A set of chunk indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkRanges(Vec<Range<u64>>);

impl ChunkRanges {
    /// Makes an empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns the ranges, ascending, disjoint and not adjacent.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Returns how many chunks are in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }

    /// Tells whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells whether `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: u64) -> bool {
        let at = self.0.partition_point(|r| r.end <= index);
        self.0.get(at).is_some_and(|r| r.start <= index)
    }

    /// Adds a range, merging it with those that it touches.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|r| r.end < range.start);
        let last = self.0.partition_point(|r| r.start <= range.end);
        let mut merged = range;
        if first < last {
            merged.start = merged.start.min(self.0[first].start);
            merged.end = merged.end.max(self.0[last - 1].end);
        }
        self.0.splice(first..last, [merged]);
    }

    /// Returns the ranges below `end` that are not in the set.
    #[must_use]
    pub fn missing(&self, end: u64) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        let mut at = 0;
        for range in &self.0 {
            if range.start >= end {
                break;
            }
            if at < range.start {
                out.push(at..range.start);
            }
            at = range.end;
        }
        if at < end {
            out.push(at..end);
        }
        out
    }

    /// Returns how many bytes of a payload of `size` bytes the set covers, with chunks of
    /// [`CHUNK_BYTES`](super::CHUNK_BYTES).
    #[must_use]
    pub fn bytes(&self, size: u64) -> u64 {
        let end = |index: u64| index.saturating_mul(super::CHUNK_BYTES).min(size);
        self.0.iter().map(|r| end(r.end) - end(r.start)).sum()
    }
}

impl FromIterator<Range<u64>> for ChunkRanges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(iter: I) -> Self {
        let mut out = Self::new();
        for range in iter {
            out.insert(range);
        }
        out
    }
}

impl Value for ChunkRanges {
    fn encode(&self, e: &mut Encoder) {
        let ranges = &self.0[..self.0.len().min(RANGES_MAX)];
        e.array(ranges.len() * 2);
        for range in ranges {
            e.u64(range.start);
            e.u64(range.end);
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let len = d.array(RANGES_MAX * 2)?;
        if len % 2 != 0 {
            return Err(DecodeError::Invalid("chunk ranges"));
        }
        let mut out: Vec<Range<u64>> = Vec::new();
        for _ in 0..len / 2 {
            let range = d.u64()?..d.u64()?;
            if range.is_empty() || out.last().is_some_and(|last| last.end >= range.start) {
                return Err(DecodeError::Invalid("chunk ranges"));
            }
            out.push(range);
        }
        Ok(Self(out))
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

#[cfg(test)]
mod tests;
