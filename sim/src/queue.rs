//! The queue of what happens next, in total order: by time, then by the order in which it was scheduled.
//!
//! A hierarchical calendar: eight levels of 256 days each, one level for each byte of a 64-bit time in nanoseconds. An
//! entry lies in the level of the highest byte in which its time differs from the present's, and moves down as the present
//! comes nearer; a day with few entries is sorted at once and served from there. Every operation touches a few
//! entries whatever the length, where a binary heap of a million touches twenty cold lines of cache.
//!
//! Entries hold no sequence: days are filled, split and sorted without ever swapping entries of one time, so they
//! leave in the order in which they came. Times before the present are allowed and come first.

/// Levels of the calendar, one for each byte of a time.
const LEVELS: usize = 8;
/// Days of a level.
const DAYS: usize = 256;
/// A day with at most this many entries is sorted; a longer one is split first. Measured: 64 to 256 are alike.
const RUN_MAX: usize = 128;
/// The run in service is split again beyond this many, because an insertion into it moves its entries.
const RUN_SPLIT: usize = 1024;

/// An entry: when, and the caller's number for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it is due.
    pub time: u64,
    /// What it is.
    pub item: u32,
}

/// One level: its days, and which of them have entries.
#[derive(Debug)]
struct Level {
    days: Vec<Vec<Entry>>,
    occupied: [u64; DAYS / 64],
}

impl Level {
    fn new() -> Self {
        Self {
            days: vec![Vec::new(); DAYS],
            occupied: [0; DAYS / 64],
        }
    }

    fn push(&mut self, day: usize, entry: Entry) {
        self.occupied[day / 64] |= 1 << (day % 64);
        self.days[day].push(entry);
    }

    fn first(&self) -> Option<usize> {
        let word = self.occupied.iter().position(|word| *word != 0)?;
        Some(word * 64 + self.occupied[word].trailing_zeros() as usize)
    }

    fn take(&mut self, day: usize) -> Vec<Entry> {
        self.occupied[day / 64] &= !(1 << (day % 64));
        std::mem::take(&mut self.days[day])
    }
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    levels: Vec<Level>,
    /// The entries that are due before `limit`, the next one last.
    run: Vec<Entry>,
    /// The beginning of the day that is in service.
    base: u64,
    /// The end of what `run` serves; `None` while it serves everything up to the end of time.
    limit: Option<u64>,
    len: usize,
    /// Storage of emptied days, so that a steady queue allocates nothing.
    spare: Vec<Vec<Entry>>,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    /// Makes an empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self {
            levels: (0..LEVELS).map(|_| Level::new()).collect(),
            run: Vec::new(),
            base: 0,
            limit: Some(0),
            len: 0,
            spare: Vec::new(),
        }
    }

    /// Returns how many entries wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Schedules an item, after all that were scheduled for the same time before.
    pub fn push(&mut self, time: u64, item: u32) {
        self.len += 1;
        let entry = Entry { time, item };
        if self.limit.is_some_and(|limit| time >= limit) {
            self.file(entry);
            return;
        }
        let at = self.run.partition_point(|other| other.time > time);
        self.run.insert(at, entry);
        if self.run.len() > RUN_SPLIT {
            self.split_run();
        }
    }

    /// Puts an entry into the day that it belongs to. Its time is not before `base`.
    fn file(&mut self, entry: Entry) {
        let differs = entry.time ^ self.base;
        let level = (63 - (differs | 1).leading_zeros() as usize) / 8;
        let day = (entry.time >> (8 * level)) as usize % DAYS;
        let slot = &mut self.levels[level].days[day];
        if slot.capacity() == 0
            && let Some(spare) = self.spare.pop()
        {
            *slot = spare;
        }
        self.levels[level].push(day, entry);
    }

    /// Files the run's entries again, below the level that it was taken from. Does nothing when they are all due at
    /// one time, because that cannot be split.
    fn split_run(&mut self) {
        let (Some(last), Some(first)) = (self.run.first(), self.run.last()) else {
            return;
        };
        // Entries of the past cannot be filed: the calendar begins at its base.
        if first.time == last.time || first.time < self.base {
            return;
        }
        self.base = first.time;
        self.limit = Some(first.time);
        let run = std::mem::take(&mut self.run);
        for entry in run.into_iter().rev() {
            self.file(entry);
        }
    }

    /// Takes the next entry.
    pub fn pop(&mut self) -> Option<Entry> {
        if self.run.is_empty() {
            self.refill();
        }
        let entry = self.run.pop()?;
        self.len -= 1;
        Some(entry)
    }

    /// Looks at the next entry.
    pub fn peek(&mut self) -> Option<Entry> {
        if self.run.is_empty() {
            self.refill();
        }
        self.run.last().copied()
    }

    /// Brings the next day into service.
    fn refill(&mut self) {
        while self.len > 0 {
            let Some((level, day)) = self
                .levels
                .iter()
                .enumerate()
                .find_map(|(n, l)| Some((n, l.first()?)))
            else {
                return;
            };
            let mut entries = self.levels[level].take(day);
            let shift = 8 * level;
            // All higher bytes are those of the base: a lower level only holds the base's own day of the next one.
            let above = if shift + 8 >= 64 {
                0
            } else {
                self.base >> (shift + 8) << (shift + 8)
            };
            self.base = above | (day as u64) << shift;
            self.limit = self.base.checked_add(1 << shift);
            if level == 0 || entries.len() <= RUN_MAX {
                // Descending and stable for equal times once reversed: the next one is popped from the end.
                entries.reverse();
                entries.sort_by_key(|entry| std::cmp::Reverse(entry.time));
                let empty = std::mem::replace(&mut self.run, entries);
                self.keep(empty);
                return;
            }
            self.limit = Some(self.base);
            for entry in entries.drain(..) {
                self.file(entry);
            }
            self.keep(entries);
        }
    }

    fn keep(&mut self, storage: Vec<Entry>) {
        if storage.capacity() > 0 && self.spare.len() < DAYS {
            self.spare.push(storage);
        }
    }
}

#[cfg(test)]
mod tests;
