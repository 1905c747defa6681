//! An ordered table for many small rows: sorted, in buckets by the leading bits of the key.
//!
//! A mesh has one row for every peer in every peer, so a row's memory and the cold cache lines of a look-up are what
//! a large mesh costs. A `BTreeMap` keeps its keys beside the values, 32 bytes and more; here a row is a pointer to
//! what is shared, and its key lies there. Keys are spread evenly (public keys, hashes), so buckets stay short; keys
//! that somebody has ground into one bucket make it a sorted list, slower and still right.
//!
//! Each bucket knows a hash of what it holds. In a process of many peers ([`Pool`]) buckets of equal hash are one
//! object: whoever learns something second swaps a pointer, and looks it up in memory that the others keep warm.

mod pool;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;

pub(crate) use pool::Pool;

/// How many buckets a table has: one for each leading byte of the keys.
pub(crate) const BUCKETS: usize = 256;

/// What a [`Table`] holds.
pub(crate) trait Row: Clone {
    /// Returns the leading 32 bits of the key; rows are ordered by it first.
    fn lead(&self) -> u32;

    /// Returns a hash of everything that the row says: rows of one hash may stand for each other.
    fn hash(&self) -> u64;
}

#[derive(Debug)]
struct Bucket<T> {
    /// Nothing, for a bucket that has been empty from the start.
    rows: Option<Arc<Vec<T>>>,
    /// The exclusive or of the rows' hashes.
    hash: u64,
}

impl<T> Bucket<T> {
    fn rows(&self) -> &[T] {
        self.rows.as_ref().map_or(&[], |rows| rows)
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table<T> {
    buckets: Vec<Bucket<T>>,
    len: usize,
    pool: Option<Pool<T>>,
}

impl<T: Row> Table<T> {
    /// Makes an empty table, which shares its buckets with the others of `pool`.
    pub(crate) fn new(pool: Option<Pool<T>>) -> Self {
        Self {
            buckets: Vec::new(),
            len: 0,
            pool,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Returns the hash of a bucket: of those rows whose lead begins with this byte.
    pub(crate) fn hash_of(&self, bucket: usize) -> u64 {
        self.buckets.get(bucket).map_or(0, |bucket| bucket.hash)
    }

    fn find(&self, lead: u32, by: impl Fn(&T) -> Ordering) -> (usize, Result<usize, usize>) {
        let at = usize::from(lead.to_be_bytes()[0]);
        let rows = self.buckets.get(at).map_or(&[][..], Bucket::rows);
        let order = |row: &T| row.lead().cmp(&lead).then_with(|| by(row));
        (at, rows.binary_search_by(order))
    }

    /// Returns the row that `by` calls equal, among those with this lead.
    pub(crate) fn get(&self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<&T> {
        let (at, found) = self.find(lead, by);
        self.buckets.get(at)?.rows().get(found.ok()?)
    }

    /// Puts a row in; returns the one that it replaces.
    pub(crate) fn insert(&mut self, row: T, by: impl Fn(&T) -> Ordering) -> Option<T> {
        if self.buckets.is_empty() {
            let empty = || Bucket { rows: None, hash: 0 };
            self.buckets.resize_with(BUCKETS, empty);
        }
        let (at, found) = self.find(row.lead(), by);
        let old = found.ok().map(|index| self.buckets[at].rows()[index].clone());
        let hash = self.buckets[at].hash ^ row.hash() ^ old.as_ref().map_or(0, Row::hash);
        self.len += usize::from(old.is_none());
        self.change(at, hash, |rows| match found {
            Ok(index) => rows[index] = row,
            Err(index) => {
                if rows.len() == rows.capacity() {
                    // A fifth more, where a vector would double: there is one such bucket for every few rows.
                    rows.reserve_exact(rows.len() / 5 + 4);
                }
                rows.insert(index, row);
            }
        });
        old
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<T> {
        let (at, found) = self.find(lead, by);
        let index = found.ok()?;
        let old = self.buckets[at].rows()[index].clone();
        let hash = self.buckets[at].hash ^ old.hash();
        self.len -= 1;
        self.change(at, hash, |rows| drop(rows.remove(index)));
        Some(old)
    }

    /// Brings a bucket into the state with this hash: the one that another table has, or what `edit` makes of it.
    fn change(&mut self, at: usize, hash: u64, edit: impl FnOnce(&mut Vec<T>)) {
        let bucket = &mut self.buckets[at];
        bucket.hash = hash;
        if let Some(rows) = self.pool.as_ref().and_then(|pool| pool.find(at, hash)) {
            bucket.rows = Some(rows);
            return;
        }
        let rows = bucket.rows.get_or_insert_default();
        edit(Arc::make_mut(rows));
        if let Some(pool) = &self.pool {
            pool.keep(at, hash, rows);
        }
    }

    /// Returns every row, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.buckets.iter().flat_map(Bucket::rows)
    }

    /// Returns the rows from the first one with `lead` or more on, in order.
    pub(crate) fn iter_from(&self, lead: u32) -> impl Iterator<Item = &T> {
        let at = usize::from(lead.to_be_bytes()[0]);
        let start = self
            .buckets
            .get(at)
            .map_or(0, |bucket| bucket.rows().partition_point(|row| row.lead() < lead));
        self.buckets.iter().skip(at).flat_map(Bucket::rows).skip(start)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    type Triple = (u32, u8, u64);

    impl Row for Triple {
        fn lead(&self) -> u32 {
            self.0
        }
        fn hash(&self) -> u64 {
            let digest = blake3::hash(std::format!("{self:?}").as_bytes());
            u64::from_be_bytes(digest.as_bytes()[..8].try_into().unwrap())
        }
    }

    fn check(
        tables: &mut [Table<Triple>],
        steps: &[(bool, u32, u8, u64)],
        from: u32,
    ) -> Result<(), TestCaseError> {
        let mut maps = std::vec![BTreeMap::new(); tables.len()];
        for (number, (put, lead, rest, value)) in steps.iter().copied().enumerate() {
            let which = number % tables.len();
            let (table, map) = (&mut tables[which], &mut maps[which]);
            if put {
                let replaced = table.insert((lead, rest, value), |row| row.1.cmp(&rest));
                prop_assert_eq!(replaced.map(|row| row.2), map.insert((lead, rest), value));
            } else {
                let first = map.range((lead, 0)..).next().map(|(key, _)| *key);
                let (lead, rest) = first.unwrap_or((lead, rest));
                let gone = table.remove(lead, |row| row.1.cmp(&rest));
                prop_assert_eq!(gone.map(|row| row.2), map.remove(&(lead, rest)));
            }
            prop_assert_eq!(table.len(), map.len());
        }
        for (table, map) in tables.iter().zip(&maps) {
            let all: Vec<_> = table.iter().map(|row| ((row.0, row.1), row.2)).collect();
            prop_assert_eq!(&all, &map.clone().into_iter().collect::<Vec<_>>());
            let some: Vec<_> = table.iter_from(from).map(|row| ((row.0, row.1), row.2)).collect();
            prop_assert_eq!(
                some,
                map.range((from, 0)..).map(|(k, v)| (*k, *v)).collect::<Vec<_>>()
            );
            for ((lead, rest), value) in all {
                prop_assert_eq!(
                    table.get(lead, |row| row.1.cmp(&rest)).map(|row| row.2),
                    Some(value)
                );
            }
            let hashes = (0..BUCKETS).fold(0, |sum, bucket| sum ^ table.hash_of(bucket));
            prop_assert_eq!(hashes, table.iter().fold(0, |sum, row| sum ^ row.hash()));
        }
        Ok(())
    }

    fn steps() -> impl Strategy<Value = Vec<(bool, u32, u8, u64)>> {
        let lead = prop_oneof![Just(0), Just(u32::MAX), 0u32..4, any::<u32>()];
        prop::collection::vec((any::<bool>(), lead, 0u8..3, 0u64..3), 0..2000)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds_in_the_same_order(steps in steps(), from in any::<u32>()) {
            check(&mut [Table::new(None)], &steps, from)?;
        }

        #[test]
        fn tables_that_share_their_buckets_do_not_see_each_others_changes(steps in steps(), from in any::<u32>()) {
            let pool = Pool::default();
            let table = || Table::new(Some(pool.clone()));
            check(&mut [table(), table(), table()], &steps, from)?;
        }
    }

    #[test]
    fn equal_tables_share_every_bucket_whatever_order_they_were_filled_in() {
        let pool = Pool::default();
        let rows: Vec<Triple> = (0..1024u32).map(|n| (n << 22, 0, u64::from(n))).collect();
        let (mut up, mut down) = (Table::new(Some(pool.clone())), Table::new(Some(pool)));
        for (first, last) in rows.iter().zip(rows.iter().rev()) {
            assert!(up.insert(*first, |other| other.1.cmp(&0)).is_none());
            assert!(down.insert(*last, |other| other.1.cmp(&0)).is_none());
        }
        for (a, b) in up.buckets.iter().zip(&down.buckets) {
            let (a, b) = (a.rows.as_ref().unwrap(), b.rows.as_ref().unwrap());
            assert!(Arc::ptr_eq(a, b));
        }
    }
}
