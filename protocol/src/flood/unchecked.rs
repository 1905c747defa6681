//! Items whose signature nobody has checked yet: how much of them is kept, and whose turn it is.
//!
//! Whoever is a neighbor can send them as fast as its link carries, and checking takes longer than sending. So their
//! bytes are bounded, each neighbor has its part of the bound, and neighbors take turns at the checks.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

use super::{ITEMS_PER_FRAME_MAX, Version};
use crate::ConnId;

/// Bytes of items that wait for their signature check, are being checked, or are kept back: the records of a mesh of ten
/// thousand peers. Of what the other neighbors leave of it, one may take half, so that none keeps another's items out;
/// more are dropped and come back with the next comparison.
pub(super) const UNCHECKED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Items that are being checked at once: as much as keeps some threads busy, and no more, because whatever else these
/// threads do has to wait behind it.
pub(super) const CHECKS_OUT_MAX: usize = 4 * ITEMS_PER_FRAME_MAX;

/// Unchecked items, by the connection that they came from.
#[derive(Debug)]
pub(super) struct Unchecked {
    bytes: usize,
    of: BTreeMap<ConnId, usize>,
    waiting: BTreeMap<ConnId, VecDeque<Arc<Version>>>,
    /// Whose turn was last.
    served: ConnId,
    /// Items that are being checked.
    out: usize,
}

impl Unchecked {
    pub(super) const fn new() -> Self {
        Self {
            bytes: 0,
            of: BTreeMap::new(),
            waiting: BTreeMap::new(),
            served: ConnId(0),
            out: 0,
        }
    }

    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tells whether nothing is being checked, or waits for that.
    pub(super) fn is_idle(&self) -> bool {
        self.out == 0 && self.waiting.is_empty()
    }

    /// Tells whether items of a connection are being checked, or wait for that.
    pub(super) fn holds(&self, conn: ConnId) -> bool {
        self.of.contains_key(&conn)
    }

    /// Counts an item, unless its connection has too many already.
    pub(super) fn hold(&mut self, conn: ConnId, version: &Version) -> bool {
        let (bytes, own) = (
            version.signed().as_bytes().len(),
            self.of.get(&conn).copied().unwrap_or(0),
        );
        let left = UNCHECKED_BYTES_MAX.saturating_sub(self.bytes - own);
        let fits = own + bytes <= left / 2;
        if fits {
            self.bytes += bytes;
            self.of.insert(conn, own + bytes);
        }
        fits
    }

    /// Counts an item no longer.
    pub(super) fn release(&mut self, conn: ConnId, version: &Version) {
        let Some(own) = self.of.get_mut(&conn) else { return };
        let bytes = version.signed().as_bytes().len().min(*own);
        *own -= bytes;
        self.bytes -= bytes;
        if *own == 0 {
            self.of.remove(&conn);
        }
    }

    /// Lets an item that is counted wait for its check.
    pub(super) fn push(&mut self, conn: ConnId, version: Arc<Version>) {
        self.waiting.entry(conn).or_default().push_back(version);
    }

    /// Takes the next items to check, all of one connection.
    pub(super) fn pop(&mut self) -> Option<Vec<(ConnId, Arc<Version>)>> {
        if self.out >= CHECKS_OUT_MAX {
            return None;
        }
        let after = (Bound::Excluded(self.served), Bound::Unbounded);
        let next = self.waiting.range(after).next().map(|(conn, _)| *conn);
        let conn = next.or_else(|| self.waiting.keys().next().copied())?;
        let queue = self.waiting.get_mut(&conn)?;
        let count = queue.len().min(ITEMS_PER_FRAME_MAX);
        let items: Vec<_> = queue.drain(..count).map(|version| (conn, version)).collect();
        if queue.is_empty() {
            self.waiting.remove(&conn);
        }
        self.served = conn;
        self.out += items.len();
        Some(items)
    }

    /// Takes note that an item was checked.
    pub(super) fn checked(&mut self, conn: ConnId, version: &Version) {
        self.out = self.out.saturating_sub(1);
        self.release(conn, version);
    }
}
