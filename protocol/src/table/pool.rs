//! Buckets that several tables have in common.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashTable;
use spin::Mutex;

/// Below this many buckets nobody looks for those that no table has any more.
const PURGE_MIN: usize = 4096;

/// Buckets by their keys, which are hashes themselves. Nothing depends on the order in which they lie.
#[derive(Debug)]
struct Shelf<T> {
    buckets: HashTable<(u64, Arc<Vec<T>>)>,
    purge_at: usize,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            buckets: HashTable::new(),
            purge_at: PURGE_MIN,
        }
    }
}

/// The buckets of all tables that were made with it, by what they hold.
///
/// Two different buckets of one hash would be taken for each other: with 64 bits and a million of them that happens
/// once in some ten million runs, unless somebody works for it. So it is for simulations, where nobody does.
#[derive(Debug)]
pub(crate) struct Pool<T>(Arc<Mutex<Shelf<T>>>);

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Two buckets of one table may hold the same hash, but not the same rows.
const fn key(bucket: usize, hash: u64) -> u64 {
    hash ^ (bucket as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl<T> Pool<T> {
    /// Returns the bucket that somebody has brought into this state before.
    pub(super) fn find(&self, bucket: usize, hash: u64) -> Option<Arc<Vec<T>>> {
        let key = key(bucket, hash);
        let shelf = self.0.lock();
        let found = shelf.buckets.find(key, |(other, _)| *other == key);
        found.map(|(_, rows)| Arc::clone(rows))
    }

    /// Keeps a bucket for others.
    pub(super) fn keep(&self, bucket: usize, hash: u64, rows: &Arc<Vec<T>>) {
        let mut shelf = self.0.lock();
        if shelf.buckets.len() >= shelf.purge_at {
            shelf.buckets.retain(|(_, rows)| Arc::strong_count(rows) > 1);
            shelf.purge_at = (shelf.buckets.len() * 2).max(PURGE_MIN);
        }
        let key = key(bucket, hash);
        shelf
            .buckets
            .insert_unique(key, (key, Arc::clone(rows)), |(key, _)| *key);
    }
}
