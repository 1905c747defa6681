//! What goes out on the links: comparisons of databases, and batches of items.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{
    ANSWER_INTERVAL, BATCH_DELAY, Flood, Held, ITEMS_PER_FRAME_MAX, ItemKey, Link, STRAY_SUMMARIES_MAX,
    SUMMARIES_MAX, Tick, Version, order,
};
use crate::cbor::List;
use crate::frame::{DIGEST_ENTRIES_MAX, Digest, DigestEntry, Frame, Items, SUMMARY_BUCKETS, Summary};
use crate::table::Table;
use crate::{ConnId, Now};

/// Frames of items are closed at this size, so that with one more item they stay below the frame limit.
const FRAME_FILL_BYTES: usize = 44 * 1024;
/// How many items that neighbors have sent are remembered until the next batch, so as not to send them back; what is
/// forgotten travels once more.
const ECHOES_MAX: usize = 16 * 1024;

/// A version in short: the origin's lead, the item's id, and the sequence. The kind is left out, because ids of
/// different kinds that are equal do not come with equal sequences.
pub(super) type Echo = (u32, u64, u64);

fn echo(version: &Version) -> Echo {
    (version.lead(), version.key().id, version.sequence())
}

impl Flood {
    /// Starts flooding over a connection, with a comparison of the databases. [FLOOD-3]
    pub fn link_up(&mut self, now: Now, conn: ConnId) {
        self.links.insert(conn, Link::default());
        self.send_summary(now, conn);
    }

    /// Stops flooding over a connection.
    pub fn link_down(&mut self, conn: ConnId) {
        self.links.remove(&conn);
    }

    fn send_summary(&mut self, now: Now, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.summary_at = now.mono;
            link.digests = (link.digests + SUMMARY_BUCKETS).min(2 * SUMMARY_BUCKETS);
        }
        let summary = Frame::Summary(Summary(self.buckets.clone()));
        self.transmits.push_back((conn, summary));
    }

    /// Compares with every neighbor again.
    pub(super) fn compare_with_all(&mut self, now: Now) {
        let conns: Vec<ConnId> = self.links.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.send_summary(now, conn));
    }

    /// Compares with one neighbor again, drawn at random.
    pub(super) fn compare_again(&mut self, now: Now) {
        let count = self.links.len() as u64;
        if count > 0 {
            let index = usize::try_from(self.random.below(count)).unwrap_or(0);
            if let Some(conn) = self.links.keys().nth(index).copied() {
                self.send_summary(now, conn);
            }
        }
    }

    /// Answers a neighbor's summary with what this peer has in the buckets that differ. [FLOOD-5]
    ///
    /// The first bucket is drawn at random: a newcomer dials those whom it hears of first, and would otherwise always
    /// choose the peers with the lowest keys.
    pub fn handle_summary(&mut self, now: Now, conn: ConnId, summary: &Summary) {
        // Two peers that have just dialled each other may use different connections for a moment.
        let (come, most) = match self.links.get_mut(&conn) {
            Some(link) => (&mut link.summaries, SUMMARIES_MAX),
            None => (&mut self.stray_summaries, STRAY_SUMMARIES_MAX),
        };
        *come += 1;
        if *come > most {
            return;
        }
        // What the other side lacks it says in answer to a summary of this one. [FLOOD-3]
        let quiet = |link: &Link| now.mono.since(link.summary_at) >= ANSWER_INTERVAL;
        if summary.0 != self.buckets && self.links.get(&conn).is_some_and(quiet) {
            self.send_summary(now, conn);
        }
        let start = usize::try_from(self.random.below(SUMMARY_BUCKETS as u64)).unwrap_or(0);
        for index in (start..SUMMARY_BUCKETS).chain(0..start) {
            let theirs = summary.0.get(index).copied().unwrap_or(0);
            // Whoever has nothing in a bucket has nothing to send, and says itself what it lacks.
            if theirs == 0 || self.buckets.get(index) == Some(&theirs) {
                continue;
            }
            let entry = |held: &Held| DigestEntry {
                kind: held.version.key().kind,
                origin: held.version.key().origin,
                id: held.version.key().id,
                sequence: held.version.sequence(),
            };
            let entries = self
                .bucket_items(index)
                .take(DIGEST_ENTRIES_MAX)
                .map(entry)
                .collect();
            let digest = Digest {
                bucket: u8::try_from(index).unwrap_or(u8::MAX),
                entries: List(entries),
            };
            self.transmits.push_back((conn, Frame::Digest(digest)));
        }
    }

    /// Sends a neighbor what its digest shows that it lacks. [FLOOD-6]
    pub fn handle_digest(&mut self, now: Now, conn: ConnId, digest: &Digest) {
        // Each may cost an answer as large as a bucket of the database.
        let Some(link) = self.links.get_mut(&conn).filter(|link| link.digests > 0) else {
            return;
        };
        link.digests -= 1;
        let key = |e: &DigestEntry| ItemKey {
            origin: e.origin,
            kind: e.kind,
            id: e.id,
        };
        let theirs: BTreeMap<ItemKey, u64> = digest.entries.iter().map(|e| (key(e), e.sequence)).collect();
        let lacks = |held: &&Held| {
            let sequence = theirs.get(&held.version.key());
            sequence.is_none_or(|sequence| *sequence < held.version.sequence())
        };
        let lacking: Vec<Arc<Version>> = self
            .bucket_items(usize::from(digest.bucket))
            .filter(lacks)
            .map(|held| Arc::clone(&held.version))
            .collect();
        if let Some(link) = self.links.get_mut(&conn)
            && !lacking.is_empty()
        {
            link.lacking.extend(lacking);
            self.schedule_flush(now);
        }
    }

    fn bucket_items(&self, index: usize) -> impl Iterator<Item = &Held> {
        let first = u8::try_from(index).unwrap_or(u8::MAX);
        self.items
            .iter_from(u32::from(first) << 24)
            .take_while(move |held| held.version.key().origin.0[0] == first)
    }

    /// Queues an accepted version for every neighbor but the one that it came from.
    pub(super) fn forward(&mut self, now: Now, version: &Arc<Version>, from: Option<ConnId>) {
        if !self.links.is_empty() {
            self.fresh.push((Arc::clone(version), from));
            self.schedule_flush(now);
        }
    }

    /// Notes that a neighbor has a version that waits to be sent: no need to send it back.
    pub(super) fn note_echo(&mut self, now: Now, conn: ConnId, version: &Version, accepted: Tick) {
        // What was accepted longer ago than a batch waits does not wait, unless a comparison asked for it.
        let fresh = now.mono.since(accepted.start()) < BATCH_DELAY * 8;
        if self.flush_at.is_some()
            && let Some(link) = self.links.get_mut(&conn)
            && (fresh || !link.lacking.is_empty())
            && link.echoes.len() < ECHOES_MAX
        {
            link.echoes.push(echo(version));
        }
    }

    pub(super) fn schedule_flush(&mut self, now: Now) {
        if self.flush_at.is_none() {
            self.flush_at = Some(now.mono.after(BATCH_DELAY));
        }
    }

    // [FLOOD-4]
    pub(super) fn flush(&mut self) {
        self.flush_at = None;
        let mut fresh = core::mem::take(&mut self.fresh);
        // What was replaced meanwhile is not sent.
        fresh.retain(|(version, _)| is_current(&self.items, version));
        let mut links = core::mem::take(&mut self.links);
        for (conn, link) in &mut links {
            let mut echoes = core::mem::take(&mut link.echoes);
            echoes.sort_unstable();
            let echoed = |version: &Version| echoes.binary_search(&echo(version)).is_ok();
            let mut batch = Vec::with_capacity(fresh.len().min(ITEMS_PER_FRAME_MAX));
            let mut bytes = 0;
            let lacking = core::mem::take(&mut link.lacking);
            // An item that is new and was asked for goes once.
            let asked: BTreeSet<(ItemKey, u64)> = lacking.iter().map(|v| (v.key(), v.sequence())).collect();
            let fresh = fresh
                .iter()
                .filter(|(_, from)| *from != Some(*conn))
                .map(|(version, _)| version)
                .filter(|v| asked.is_empty() || !asked.contains(&(v.key(), v.sequence())));
            let items = &self.items;
            let lacking = lacking.iter().filter(|version| is_current(items, version));
            for version in fresh.chain(lacking).filter(|version| !echoed(version)) {
                bytes += version.signed().as_bytes().len();
                batch.push(Arc::clone(version));
                if batch.len() == ITEMS_PER_FRAME_MAX || bytes >= FRAME_FILL_BYTES {
                    let items = List(core::mem::take(&mut batch));
                    self.transmits.push_back((*conn, Frame::Items(Items { items })));
                    bytes = 0;
                }
            }
            if !batch.is_empty() {
                let items = List(batch);
                self.transmits.push_back((*conn, Frame::Items(Items { items })));
            }
        }
        self.links = links;
    }
}

fn is_current(items: &Table<Held>, version: &Version) -> bool {
    let key = version.key();
    items
        .get(key.origin.lead(), order(key))
        .is_some_and(|held| held.version.sequence() == version.sequence())
}
