//! An ordered table for many small rows: sorted, in buckets by the leading bits of the key.
//!
//! A mesh has one row for every peer in every peer, so a row's memory and the cold cache lines of a look-up are what
//! a large mesh costs. A `BTreeMap` keeps its keys beside the values, 32 bytes and more; here a row is a pointer to
//! what is shared, and its key lies there. Keys are spread evenly (public keys, hashes), so buckets stay short; keys
//! that somebody has ground into one bucket make it a sorted list, slower and still right.

use alloc::vec::Vec;
use core::cmp::Ordering;

/// Rows per bucket, on average, before the number of buckets doubles.
const BUCKET_ROWS: usize = 48;
/// The most leading bits that choose a bucket.
const BITS_MAX: u32 = 16;

/// What a [`Table`] holds.
pub(crate) trait Row {
    /// Returns the leading 32 bits of the key; rows are ordered by it first.
    fn lead(&self) -> u32;
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Table<T> {
    buckets: Vec<Vec<T>>,
    bits: u32,
    len: usize,
}

impl<T: Row> Table<T> {
    pub(crate) const fn new() -> Self {
        Self {
            buckets: Vec::new(),
            bits: 0,
            len: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    fn bucket_of(&self, lead: u32) -> usize {
        // Shifting by all 32 bits is not defined.
        usize::try_from(u64::from(lead) << self.bits >> 32).unwrap_or(0)
    }

    fn find(&self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<(usize, Result<usize, usize>)> {
        let at = self.bucket_of(lead);
        let bucket = self.buckets.get(at)?;
        let order = |row: &T| row.lead().cmp(&lead).then_with(|| by(row));
        Some((at, bucket.binary_search_by(order)))
    }

    /// Returns the row that `by` calls equal, among those with this lead.
    pub(crate) fn get(&self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<&T> {
        let (at, found) = self.find(lead, by)?;
        self.buckets[at].get(found.ok()?)
    }

    /// Puts a row in; returns the one that it replaces.
    pub(crate) fn insert(&mut self, row: T, by: impl Fn(&T) -> Ordering) -> Option<T> {
        if self.buckets.is_empty() {
            self.buckets.push(Vec::new());
        }
        let (at, found) = self.find(row.lead(), by)?;
        let bucket = &mut self.buckets[at];
        match found {
            Ok(index) => Some(core::mem::replace(&mut bucket[index], row)),
            Err(index) => {
                if bucket.len() == bucket.capacity() {
                    // A fifth more, where a vector would double: there is one such bucket for every few rows.
                    bucket.reserve_exact(bucket.len() / 5 + 4);
                }
                bucket.insert(index, row);
                self.len += 1;
                if self.len > BUCKET_ROWS << self.bits && self.bits < BITS_MAX {
                    self.grow();
                }
                None
            }
        }
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<T> {
        let (at, found) = self.find(lead, by)?;
        let index = found.ok()?;
        self.len -= 1;
        Some(self.buckets[at].remove(index))
    }

    fn grow(&mut self) {
        self.bits += 1;
        let shift = 32 - self.bits;
        let mut buckets = Vec::with_capacity(self.buckets.len() * 2);
        for mut low in core::mem::take(&mut self.buckets) {
            let middle = low.partition_point(|row| row.lead() >> shift & 1 == 0);
            let high = low.split_off(middle);
            low.shrink_to_fit();
            buckets.push(low);
            buckets.push(high);
        }
        self.buckets = buckets;
    }

    /// Returns every row, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.buckets.iter().flatten()
    }

    /// Returns the rows from the first one with `lead` or more on, in order.
    pub(crate) fn iter_from(&self, lead: u32) -> impl Iterator<Item = &T> {
        let at = self.bucket_of(lead);
        let rows = self.buckets.iter().skip(at).flatten();
        rows.skip_while(move |row| row.lead() < lead)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    impl Row for (u32, u8, u64) {
        fn lead(&self) -> u32 {
            self.0
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds_in_the_same_order(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![Just(0), Just(u32::MAX), any::<u32>()], 0u8..3, any::<u64>()), 0..2000),
            from in any::<u32>(),
        ) {
            let (mut table, mut map) = (Table::new(), BTreeMap::new());
            for (put, lead, rest, value) in steps {
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
            let all: Vec<_> = table.iter().map(|row| ((row.0, row.1), row.2)).collect();
            prop_assert_eq!(&all, &map.clone().into_iter().collect::<Vec<_>>());
            let some: Vec<_> = table.iter_from(from).map(|row| ((row.0, row.1), row.2)).collect();
            prop_assert_eq!(some, map.range((from, 0)..).map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
            for ((lead, rest), value) in all {
                prop_assert_eq!(table.get(lead, |row| row.1.cmp(&rest)).map(|row| row.2), Some(value));
            }
        }
    }
}
