//! An ordered table for many small rows: sorted, in buckets by the leading bits of the key.
//!
//! A mesh has one row for every peer in every peer, so a row's memory and the cold cache lines of a look-up are what
//! a large mesh costs. A `BTreeMap` keeps its keys beside the values, 32 bytes and more; here a row is a pointer to
//! what is shared, and its key lies there. Keys are spread evenly (public keys, hashes), so buckets stay short; keys
//! that somebody has ground into one bucket make it a sorted list, slower and still right.
//!
//! In a process of many peers the tables have their rows in common ([`Pool`]): a row is there once, and a table is the
//! set of those that are its own, one bit for each.

mod pool;

use alloc::vec::Vec;
use core::cmp::Ordering;

pub(crate) use pool::{Place, Pool, Slot, Status};

use self::pool::Members;

/// How many buckets a table has: one for each leading byte of the keys.
pub(crate) const BUCKETS: usize = 256;

/// What a [`Table`] holds.
pub(crate) trait Row: Clone {
    /// Whether tables of such rows are asked for the hashes of their buckets.
    const HASHED: bool;

    /// Returns the leading 32 bits of the key; rows are ordered by it first.
    fn lead(&self) -> u32;

    /// Returns a hash of everything that the row says: rows of one hash and key may stand for each other.
    fn hash(&self) -> u64;
}

fn bucket_of(lead: u32) -> usize {
    usize::from(lead.to_be_bytes()[0])
}

/// Where a table's rows are.
#[derive(Debug)]
enum Rows<T: Row> {
    /// In buckets of its own; none before the first row.
    Own(Vec<Vec<T>>),
    /// Among those of many tables.
    Shared(Members<T>),
}

impl<T: Row> Rows<T> {
    const fn both(&self) -> (&[Vec<T>], Option<&Members<T>>) {
        match self {
            Self::Own(buckets) => (buckets.as_slice(), None),
            Self::Shared(members) => (&[], Some(members)),
        }
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table<T: Row> {
    rows: Rows<T>,
    /// For each bucket the exclusive or of its rows' hashes; none before the first row.
    hashes: Vec<u64>,
    len: usize,
}

impl<T: Row> Table<T> {
    /// Makes an empty table, which shares its rows with the others of `pool`.
    pub(crate) fn new(pool: Option<Pool<T>>) -> Self {
        Self {
            rows: pool.map_or(Rows::Own(Vec::new()), |pool| Rows::Shared(Members::new(pool))),
            hashes: Vec::new(),
            len: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Returns the hash of a bucket: of those rows whose lead begins with this byte.
    pub(crate) fn hash_of(&self, bucket: usize) -> u64 {
        self.hashes.get(bucket).copied().unwrap_or(0)
    }

    /// Returns the row that `by` calls equal, among those with this lead.
    pub(crate) fn get(&self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<&T> {
        match &self.rows {
            Rows::Own(buckets) => {
                let bucket = buckets.get(bucket_of(lead))?;
                bucket.get(find(bucket, lead, by).ok()?)
            }
            Rows::Shared(members) => members.get(lead, by),
        }
    }

    /// Says what is known without a search of the row in a slot of the pool, when `is` says that it is the one.
    pub(crate) fn status(&self, slot: Slot, is: impl Fn(&T) -> bool) -> Status {
        match &self.rows {
            Rows::Own(_) => Status::Unknown,
            Rows::Shared(members) => members.status(slot, is),
        }
    }

    /// Puts the row in a slot of the pool in, when that needs no search. Returns whether it did.
    pub(crate) fn insert_known(&mut self, slot: Slot, is: impl Fn(&T) -> bool) -> bool {
        if self.status(slot, is) != Status::Absent {
            return false;
        }
        let Rows::Shared(members) = &mut self.rows else {
            return false;
        };
        let Some(row) = members.insert_known(slot) else {
            return false;
        };
        let (at, hash) = (bucket_of(row.lead()), if T::HASHED { row.hash() } else { 0 });
        self.len += 1;
        self.change_hash(at, hash, None);
        true
    }

    /// Puts a row in; returns the one that it replaces, and where it is in the pool.
    pub(crate) fn insert(&mut self, row: T, by: impl Fn(&T) -> Ordering) -> (Option<T>, Slot) {
        let at = bucket_of(row.lead());
        let hash = if T::HASHED { row.hash() } else { 0 };
        let (old, slot) = match &mut self.rows {
            Rows::Own(buckets) => {
                if buckets.is_empty() {
                    buckets.resize_with(BUCKETS, Vec::new);
                }
                (put(&mut buckets[at], row, by), Slot::default())
            }
            Rows::Shared(members) => members.insert(row, by),
        };
        self.len += usize::from(old.is_none());
        self.change_hash(at, hash, old.as_ref());
        (old, slot)
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<T> {
        let at = bucket_of(lead);
        let old = match &mut self.rows {
            Rows::Own(buckets) => {
                let bucket = buckets.get_mut(at)?;
                let index = find(bucket, lead, by).ok()?;
                bucket.remove(index)
            }
            Rows::Shared(members) => members.remove(lead, by)?,
        };
        self.len -= 1;
        self.change_hash(at, 0, Some(&old));
        Some(old)
    }

    fn change_hash(&mut self, at: usize, hash: u64, old: Option<&T>) {
        if T::HASHED {
            if self.hashes.is_empty() {
                self.hashes.resize(BUCKETS, 0);
            }
            self.hashes[at] ^= hash ^ old.map_or(0, Row::hash);
        }
    }

    /// Returns every row, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.iter_from(0)
    }

    /// Returns the rows from the first one with `lead` or more on, in order.
    pub(crate) fn iter_from(&self, lead: u32) -> impl Iterator<Item = &T> {
        let (own, shared) = self.rows.both();
        let own = own.iter().skip(bucket_of(lead)).flatten();
        let shared = shared
            .into_iter()
            .flat_map(move |members| members.iter_from(bucket_of(lead)));
        own.chain(shared).skip_while(move |row| row.lead() < lead)
    }

    /// Returns the rows of a bucket, in order, with their hashes.
    pub(crate) fn iter_bucket(&self, bucket: usize) -> impl Iterator<Item = (u64, &T)> {
        let (own, shared) = self.rows.both();
        let own = own.get(bucket).into_iter().flatten().map(|row| (row.hash(), row));
        own.chain(
            shared
                .into_iter()
                .flat_map(move |members| members.iter_bucket(bucket)),
        )
    }

    /// Returns the rows with this lead, in order.
    pub(crate) fn iter_with(&self, lead: u32) -> impl Iterator<Item = &T> {
        let (own, shared) = self.rows.both();
        let own = own.get(bucket_of(lead)).map_or(&[][..], |rows| rows);
        let first = own.partition_point(|row| row.lead() < lead);
        let own = own[first..].iter().take_while(move |row| row.lead() == lead);
        own.chain(
            shared
                .into_iter()
                .flat_map(move |members| members.iter_with(lead)),
        )
    }
}

fn find<T: Row>(rows: &[T], lead: u32, by: impl Fn(&T) -> Ordering) -> Result<usize, usize> {
    rows.binary_search_by(|row| row.lead().cmp(&lead).then_with(|| by(row)))
}

/// Puts a row into a bucket; returns the one that it replaces.
fn put<T: Row>(rows: &mut Vec<T>, row: T, by: impl Fn(&T) -> Ordering) -> Option<T> {
    match find(rows, row.lead(), by) {
        Ok(index) => Some(core::mem::replace(&mut rows[index], row)),
        Err(index) => {
            if rows.len() == rows.capacity() {
                // A fifth more, where a vector would double: there is one such bucket for every few rows.
                rows.reserve_exact(rows.len() / 5 + 4);
            }
            rows.insert(index, row);
            None
        }
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
        const HASHED: bool = true;
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
                prop_assert_eq!(replaced.0.map(|row| row.2), map.insert((lead, rest), value));
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
    fn tables_of_a_pool_have_equal_rows_once_and_find_them_by_their_slots() {
        let pool = Pool::default();
        let rows: Vec<Triple> = (0..5000u32).map(|n| (n << 19, 0, u64::from(n))).collect();
        let (mut up, mut down) = (Table::new(Some(pool.clone())), Table::new(Some(pool)));
        let key = |other: &Triple| other.1.cmp(&0);
        for row in &rows {
            let (replaced, slot) = up.insert(*row, key);
            assert_eq!(replaced, None);
            assert_eq!(up.status(slot, |other| other == row), Status::Member);
            assert_eq!(down.status(slot, |other| other == row), Status::Absent);
            assert_eq!(down.status(slot, |_| false), Status::Unknown);
            assert!(down.insert_known(slot, |other| other == row));
            assert!(!down.insert_known(slot, |other| other == row));
        }
        assert_eq!((up.len(), down.len()), (rows.len(), rows.len()));
        assert!((0..BUCKETS).all(|bucket| up.hash_of(bucket) == down.hash_of(bucket)));
        for (a, b) in up.iter().zip(down.iter()) {
            assert!(core::ptr::eq(a, b));
        }
    }

    #[test]
    fn of_two_rows_of_one_lead_none_is_taken_without_a_search_until_the_other_is_gone() {
        let pool = Pool::default();
        let mut tables: Vec<Table<Triple>> = (0..3).map(|_| Table::new(Some(pool.clone()))).collect();
        let key = |other: &Triple| other.1.cmp(&0);
        let (_, first) = tables[0].insert((5, 0, 1), key);
        let (_, second) = tables[1].insert((5, 0, 2), key);
        assert_eq!(tables[2].status(first, |_| true), Status::Unknown);
        assert!(!tables[2].insert_known(second, |_| true));
        // The newer version replaces the older one where that was, and nobody has the older one any more.
        assert_eq!(tables[0].insert((5, 0, 2), key), (Some((5, 0, 1)), second));
        assert_eq!(tables[0].status(second, |_| true), Status::Member);
        assert_eq!(tables[2].status(second, |_| true), Status::Absent);
        assert_eq!(tables[2].status(first, |_| true), Status::Unknown);
        // One that is gone everywhere comes back in another slot.
        tables.truncate(0);
        let mut again = Table::new(Some(pool));
        let (replaced, third) = again.insert((5, 0, 2), key);
        assert_eq!((replaced, again.len(), again.iter().count()), (None, 1, 1));
        assert_ne!(third, second);
        assert_eq!(again.remove(5, key), Some((5, 0, 2)));
        assert_eq!((again.len(), again.get(5, key)), (0, None));
    }
}
