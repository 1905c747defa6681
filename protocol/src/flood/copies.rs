//! How many copies of an item come in: a peer of many neighbors has some of them leave the forwarding to others.
//!
//! Every neighbor would send every item, and all copies but the first are of no use, except that one of them comes where
//! a neighbor hangs. So a peer counts, for a sample of the items, as which copy each neighbor brings them, and declines
//! those of a neighbor that is always late. What ends a link of the others brings one of those back. This is the pruning
//! and grafting of Plumtree (Leitão, Pereira, Rodrigues, 2007) with three trees for one; comparisons of the databases
//! stand for its announcements. [FLOOD-14]

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Flood, Link};
use crate::ConnId;
use crate::frame::{Forwarding, Frame};

/// How many neighbors are to forward items to a peer: one may hang and another one be slow.
pub(super) const COPIES: usize = 3;
/// One item in this many is a sample: counting has to cost less than it saves.
const SAMPLE: u64 = 8;
/// How many samples are remembered: those of the last second of a mesh in which much happens.
const SAMPLES_MAX: usize = 64;
/// How many samples in a row a neighbor brings late before it is declined.
const LATE_MAX: u32 = 4;

/// The samples of late, and how many copies of each have come.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<(u64, usize)>);

impl Samples {
    /// Counts a copy of an item. Returns as which one it comes, if the item is a sample that is remembered.
    fn count(&mut self, hash: u64, new: bool) -> Option<usize> {
        if !hash.is_multiple_of(SAMPLE) {
            return None;
        }
        if new {
            if self.0.len() >= SAMPLES_MAX {
                self.0.pop_front();
            }
            self.0.push_back((hash, 1));
            return Some(1);
        }
        let sample = self.0.iter_mut().rev().find(|sample| sample.0 == hash)?;
        sample.1 += 1;
        Some(sample.1)
    }
}

impl Flood {
    /// Counts a copy that a neighbor has brought, and declines the neighbor's if they are always late.
    pub(super) fn count_copy(&mut self, conn: ConnId, hash: u64, new: bool) {
        let Some(copy) = self.samples.count(hash, new) else {
            return;
        };
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.late = if copy > COPIES { link.late + 1 } else { 0 };
        if link.late < LATE_MAX || link.declined {
            return;
        }
        if self.links.values().filter(|link| !link.declined).count() > COPIES {
            if let Some(link) = self.links.get_mut(&conn) {
                link.declined = true;
            }
            self.ask(conn, false);
        }
    }

    fn ask(&mut self, conn: ConnId, wanted: bool) {
        let frame = Frame::Forwarding(Forwarding { wanted });
        self.transmits.push_back((conn, frame));
    }

    /// Takes a declined neighbor back when too few are left that forward, and looks for what was missed.
    pub(super) fn keep_sources(&mut self) {
        let (declined, sources): (Vec<(&ConnId, &Link)>, Vec<_>) =
            self.links.iter().partition(|(_, link)| link.declined);
        if sources.len() >= COPIES || declined.is_empty() {
            return;
        }
        let index = usize::try_from(self.random.below(declined.len() as u64)).unwrap_or(0);
        let conn = *declined[index].0;
        if let Some(link) = self.links.get_mut(&conn) {
            link.declined = false;
            link.late = 0;
        }
        self.ask(conn, true);
        self.compare(conn);
    }

    /// Takes note whether a neighbor wants what this peer forwards.
    pub fn handle_forwarding(&mut self, conn: ConnId, forwarding: &Forwarding) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.unwanted = !forwarding.wanted;
        }
    }

    /// Returns those who get the next batch although they decline what this peer forwards: an item that came over the
    /// only link to a part of the mesh must not end here. In order.
    pub(super) fn forced(&mut self) -> Vec<ConnId> {
        let mut unwanted: Vec<ConnId> = self
            .links
            .iter()
            .filter(|(_, link)| link.unwanted)
            .map(|(conn, _)| *conn)
            .collect();
        let open = self.links.len() - unwanted.len();
        while unwanted.len() > COPIES.saturating_sub(open) {
            let index = self.random.below(unwanted.len() as u64);
            unwanted.remove(usize::try_from(index).unwrap_or(0));
        }
        unwanted
    }
}
