//! When items were replaced last, so that no origin makes its neighbors pass on version after version. [FLOOD-8]

use alloc::collections::{BTreeMap, VecDeque};

use super::{ItemKey, MIN_ARRIVAL};
use crate::Instant;

/// The items that were replaced a moment ago: one entry for each of the database, at the most.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    at: BTreeMap<ItemKey, Instant>,
    /// The same by time; an entry whose item was replaced again is void.
    order: VecDeque<(Instant, ItemKey)>,
}

impl Replaced {
    /// Takes note of a replacement, and forgets those that do not matter any more.
    pub(super) fn note(&mut self, now: Instant, key: ItemKey) {
        while let Some((at, old)) = self.order.front().copied()
            && at.after(MIN_ARRIVAL) <= now
        {
            self.order.pop_front();
            if self.at.get(&old) == Some(&at) {
                self.at.remove(&old);
            }
        }
        self.at.insert(key, now);
        self.order.push_back((now, key));
    }

    /// Returns until when an item may not be replaced again.
    pub(super) fn until(&self, now: Instant, key: &ItemKey) -> Option<Instant> {
        let until = self.at.get(key)?.after(MIN_ARRIVAL);
        (now < until).then_some(until)
    }
}
