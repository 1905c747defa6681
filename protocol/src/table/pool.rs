//! Rows that several tables have in common.
//!
//! With ten thousand tables of ten thousand rows, what counts is how much cold memory a look-up touches. Here it is one
//! bit of the table's own: rows, and the index by which they are found, are everybody's and stay warm. Whoever knows
//! the slot of a row and that no other has its lead need not even search.
//!
//! A row that no table has any more is found no more; its memory is free when the pool is.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering as Memory};

use spin::{Mutex, Once};

use super::{BUCKETS, Row, bucket_of};

/// How many rows the first block has; each further one has twice as many.
const BLOCK_MIN: usize = 1024;
/// Enough blocks for more rows than a slot can name.
const BLOCKS: usize = 24;

/// Where a row is in its pool; by default nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u32);

impl Default for Slot {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

/// A slot that whoever holds the row remembers.
#[derive(Debug)]
pub(crate) struct Place(AtomicU32);

impl Default for Place {
    fn default() -> Self {
        Self(AtomicU32::new(Slot::default().0))
    }
}

impl Place {
    pub(crate) fn get(&self) -> Slot {
        // Relaxed: a slot says nothing that is not looked up again.
        Slot(self.0.load(Memory::Relaxed))
    }

    pub(crate) fn set(&self, slot: Slot) {
        self.0.store(slot.0, Memory::Relaxed);
    }
}

/// What a table knows of a row in a slot without a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It has it.
    Member,
    /// It has none of this key.
    Absent,
    /// Only a search can tell.
    Unknown,
}

#[derive(Debug)]
struct Cell<T> {
    row: T,
    hash: u64,
    /// How many tables have it.
    uses: AtomicU32,
    /// Whether no other row that a table has begins with its lead.
    alone: AtomicBool,
}

type Block<T> = Box<[Once<Cell<T>>]>;

/// The lead of a row, and its slot.
type Entry = (u32, Slot);

/// All rows of all tables that were made with it. Nothing that a table says depends on the order in which they came.
#[derive(Debug)]
struct Shelf<T> {
    blocks: [Once<Block<T>>; BLOCKS],
    index: Mutex<Index>,
}

/// For each bucket its rows in order; of one key those first that came first.
#[derive(Debug, Default)]
struct Index {
    buckets: Vec<Vec<Entry>>,
    len: u32,
}

impl<T: Row> Shelf<T> {
    const fn new() -> Self {
        Self {
            blocks: [const { Once::new() }; BLOCKS],
            index: Mutex::new(Index {
                buckets: Vec::new(),
                len: 0,
            }),
        }
    }

    /// Returns the block of a slot, and the place in it.
    const fn place(slot: Slot) -> (usize, usize) {
        let number = slot.0 as usize + BLOCK_MIN;
        let block = (number.ilog2() - BLOCK_MIN.ilog2()) as usize;
        (block, number - (BLOCK_MIN << block))
    }

    fn cell(&self, slot: Slot) -> Option<&Cell<T>> {
        let (block, place) = Self::place(slot);
        self.blocks.get(block)?.get()?.get(place)?.get()
    }

    fn get(&self, slot: Slot) -> Option<&T> {
        self.cell(slot).map(|cell| &cell.row)
    }

    fn keep(&self, slot: Slot, row: T) {
        let (block, place) = Self::place(slot);
        let cells = self.blocks[block].call_once(|| (0..BLOCK_MIN << block).map(|_| Once::new()).collect());
        cells[place].call_once(|| Cell {
            hash: row.hash(),
            row,
            uses: AtomicU32::new(0),
            alone: AtomicBool::new(false),
        });
    }
}

/// The rows of all tables that were made with it.
///
/// Two different rows of one key and one hash would be taken for each other: with 64 bits that happens to nobody, unless
/// somebody works for it. So it is for simulations, where nobody does.
#[derive(Debug)]
pub(crate) struct Pool<T>(Arc<Shelf<T>>);

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Row> Default for Pool<T> {
    fn default() -> Self {
        Self(Arc::new(Shelf::new()))
    }
}

/// Returns the entries with a lead.
fn with_lead(index: &Index, lead: u32) -> &[Entry] {
    let bucket = index.buckets.get(bucket_of(lead)).map_or(&[][..], Vec::as_slice);
    let first = bucket.partition_point(|(other, _)| *other < lead);
    let same = bucket[first..]
        .iter()
        .take_while(|(other, _)| *other == lead)
        .count();
    &bucket[first..first + same]
}

impl<T: Row> Shelf<T> {
    /// Returns the slots of the rows that `by` calls equal.
    fn equal(&self, index: &Index, lead: u32, by: impl Fn(&T) -> Ordering) -> impl Iterator<Item = Slot> {
        let slots = with_lead(index, lead).iter().map(|(_, slot)| *slot);
        slots.filter(move |slot| self.get(*slot).is_some_and(|row| by(row).is_eq()))
    }

    /// Puts a row into the index.
    fn add(&self, index: &mut Index, row: T, by: impl Fn(&T) -> Ordering) -> Slot {
        let (lead, slot) = (row.lead(), Slot(index.len));
        index.len += 1;
        index.buckets.resize_with(BUCKETS, Vec::new);
        let bucket = &mut index.buckets[bucket_of(lead)];
        let order = |other: &T| other.lead().cmp(&lead).then_with(|| by(other));
        let at = bucket.partition_point(|(_, other)| self.get(*other).is_some_and(|row| order(row).is_le()));
        bucket.insert(at, (lead, slot));
        self.keep(slot, row);
        self.mark_alone(index, lead);
        slot
    }

    /// Takes a row out of the index that no table has any more.
    fn drop_row(&self, slot: Slot) {
        let Some(cell) = self.cell(slot) else { return };
        let mut index = self.index.lock();
        if cell.uses.load(Memory::Relaxed) > 0 {
            return;
        }
        cell.alone.store(false, Memory::Relaxed);
        let lead = cell.row.lead();
        if let Some(bucket) = index.buckets.get_mut(bucket_of(lead)) {
            bucket.retain(|(_, other)| *other != slot);
        }
        self.mark_alone(&index, lead);
    }

    fn mark_alone(&self, index: &Index, lead: u32) {
        let near = with_lead(index, lead);
        let alone = near.len() == 1;
        for cell in near.iter().filter_map(|(_, slot)| self.cell(*slot)) {
            cell.alone.store(alone, Memory::Relaxed);
        }
    }
}

/// The rows of a pool that are a table's own.
#[derive(Debug)]
pub(super) struct Members<T: Row> {
    pool: Pool<T>,
    /// One bit for each slot.
    bits: Vec<u64>,
}

impl<T: Row> Members<T> {
    pub(super) const fn new(pool: Pool<T>) -> Self {
        Self {
            pool,
            bits: Vec::new(),
        }
    }

    fn has(&self, slot: Slot) -> bool {
        let word = self.bits.get(slot.0 as usize / 64).copied().unwrap_or(0);
        word >> (slot.0 % 64) & 1 == 1
    }

    fn take(&mut self, slot: Slot) {
        let word = slot.0 as usize / 64;
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (slot.0 % 64);
        if let Some(cell) = self.pool.0.cell(slot) {
            cell.uses.fetch_add(1, Memory::Relaxed);
        }
    }

    fn give_up(&mut self, slot: Slot) -> Option<T> {
        self.bits[slot.0 as usize / 64] &= !(1 << (slot.0 % 64));
        let cell = self.pool.0.cell(slot)?;
        let row = cell.row.clone();
        if cell.uses.fetch_sub(1, Memory::Relaxed) == 1 {
            self.pool.0.drop_row(slot);
        }
        Some(row)
    }

    fn find(&self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<Slot> {
        let index = self.pool.0.index.lock();
        self.pool.0.equal(&index, lead, by).find(|slot| self.has(*slot))
    }

    pub(super) fn status(&self, slot: Slot, is: impl Fn(&T) -> bool) -> Status {
        match self.pool.0.cell(slot).filter(|cell| is(&cell.row)) {
            Some(_) if self.has(slot) => Status::Member,
            Some(cell) if cell.alone.load(Memory::Relaxed) => Status::Absent,
            _ => Status::Unknown,
        }
    }

    pub(super) fn get(&self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<&T> {
        self.pool.0.get(self.find(lead, by)?)
    }

    /// Takes the row in a slot, of whose key this table has none.
    pub(super) fn insert_known(&mut self, slot: Slot) -> Option<&T> {
        self.take(slot);
        self.pool.0.get(slot)
    }

    pub(super) fn insert(&mut self, row: T, by: impl Fn(&T) -> Ordering) -> (Option<T>, Slot) {
        let shelf = Arc::clone(&self.pool.0);
        let mut index = shelf.index.lock();
        let equal: Vec<Slot> = shelf.equal(&index, row.lead(), &by).collect();
        let old = equal.iter().copied().find(|slot| self.has(*slot));
        let hash = row.hash();
        let same = |slot: &Slot| shelf.cell(*slot).is_some_and(|other| other.hash == hash);
        let slot = match equal.iter().copied().find(same) {
            Some(slot) => slot,
            None => shelf.add(&mut index, row, by),
        };
        drop(index);
        if old == Some(slot) {
            return (shelf.get(slot).cloned(), slot);
        }
        self.take(slot);
        (old.and_then(|old| self.give_up(old)), slot)
    }

    pub(super) fn remove(&mut self, lead: u32, by: impl Fn(&T) -> Ordering) -> Option<T> {
        let slot = self.find(lead, by)?;
        self.give_up(slot)
    }

    fn own<'a>(&'a self, entries: &[Entry]) -> impl Iterator<Item = &'a Cell<T>> + use<'a, T> {
        let slots = entries
            .iter()
            .map(|(_, slot)| *slot)
            .filter(|slot| self.has(*slot));
        let slots: Vec<Slot> = slots.collect();
        slots.into_iter().filter_map(|slot| self.pool.0.cell(slot))
    }

    /// Returns the rows with a lead, in order.
    pub(super) fn iter_with(&self, lead: u32) -> impl Iterator<Item = &T> {
        let own = self.own(with_lead(&self.pool.0.index.lock(), lead));
        own.map(|cell| &cell.row)
    }

    /// Returns the rows of a bucket, in order, with their hashes.
    pub(super) fn iter_bucket(&self, bucket: usize) -> impl Iterator<Item = (u64, &T)> {
        let index = self.pool.0.index.lock();
        let own = self.own(index.buckets.get(bucket).map_or(&[][..], Vec::as_slice));
        own.map(|cell| (cell.hash, &cell.row))
    }

    /// Returns the rows from a bucket on, in order.
    pub(super) fn iter_from(&self, bucket: usize) -> impl Iterator<Item = &T> {
        let all = (bucket..BUCKETS).flat_map(|bucket| self.iter_bucket(bucket));
        all.map(|(_, row)| row)
    }
}

impl<T: Row> Drop for Members<T> {
    fn drop(&mut self) {
        let words = (0u32..).zip(core::mem::take(&mut self.bits));
        let slots = words.flat_map(|(word, bits)| {
            (0..64)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| Slot(word * 64 + bit))
        });
        for slot in slots {
            let last = |cell: &Cell<T>| cell.uses.fetch_sub(1, Memory::Relaxed) == 1;
            if self.pool.0.cell(slot).is_some_and(last) {
                self.pool.0.drop_row(slot);
            }
        }
    }
}
