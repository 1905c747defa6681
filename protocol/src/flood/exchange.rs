//! What goes out on the links: comparisons of databases, and batches of items.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{
    ANSWER_INTERVAL, BATCH_DELAY, BATCH_INTERVAL, Flood, Held, ITEMS_PER_FRAME_MAX, ItemKind, Link,
    STRAY_SUMMARIES_MAX, SUMMARIES_MAX, Version, order,
};
use crate::cbor::List;
use crate::frame::{DIGEST_VERSIONS_MAX, Digest, Frame, Items, SUMMARY_BUCKETS, Summary, Versions};
use crate::table::Table;
use crate::{ConnId, Instant, Now, PeerId};

/// Frames of items are closed at this size, so that with one more item they stay below the frame limit.
const FRAME_FILL_BYTES: usize = 44 * 1024;
/// How many items that neighbors have sent are remembered until the next batch, so as not to send them back; what is
/// forgotten travels once more.
const ECHOES_MAX: usize = 16 * 1024;

impl Flood {
    /// Starts flooding over a connection, with a comparison of the databases. [FLOOD-3]
    pub fn link_up(&mut self, now: Now, conn: ConnId) {
        self.links.insert(conn, Link::default());
        self.send_summary(now, conn);
    }

    /// Stops flooding over a connection.
    pub fn link_down(&mut self, now: Now, conn: ConnId) {
        self.links.remove(&conn);
        self.keep_sources(now);
    }

    pub(super) fn send_summary(&mut self, now: Now, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.summary_at = now.mono;
            link.digests = (link.digests + SUMMARY_BUCKETS).min(2 * SUMMARY_BUCKETS);
        }
        let summary = Frame::Summary(Summary(self.summary()));
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
        if summary.0 != self.summary() && self.links.get(&conn).is_some_and(quiet) {
            self.send_summary(now, conn);
        }
        let start = usize::try_from(self.random.below(SUMMARY_BUCKETS as u64)).unwrap_or(0);
        for index in (start..SUMMARY_BUCKETS).chain(0..start) {
            let theirs = summary.0.get(index).copied().unwrap_or(0);
            // Whoever has nothing in a bucket has nothing to send, and says itself what it lacks.
            if theirs == 0 || self.items.hash_of(index) == theirs {
                continue;
            }
            let hashes = self.bucket_items(index).map(|held| held.version.hash());
            let digest = Digest {
                bucket: u8::try_from(index).unwrap_or(u8::MAX),
                versions: Versions(hashes.take(DIGEST_VERSIONS_MAX).collect()),
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
        let mut theirs = digest.versions.0.clone();
        theirs.sort_unstable();
        let lacking: Vec<Arc<Version>> = self
            .bucket_items(usize::from(digest.bucket))
            .filter(|held| theirs.binary_search(&held.version.hash()).is_err())
            .map(|held| Arc::clone(&held.version))
            .collect();
        if let Some(link) = self.links.get_mut(&conn)
            && !lacking.is_empty()
        {
            link.lacking.extend(lacking);
            self.answer_at.get_or_insert(now.mono.after(BATCH_DELAY));
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
            let paced = self
                .forwarded_at
                .map_or(Instant(0), |at| at.after(BATCH_INTERVAL));
            let at = now.mono.after(BATCH_DELAY).max(paced);
            self.forward_at.get_or_insert(at);
        }
    }

    /// Notes that a neighbor has versions: no need to send them back.
    pub(super) fn note_copies(&mut self, conn: ConnId, copies: &[&Arc<Version>]) {
        let waits = !self.fresh.is_empty() || !self.checking.is_empty();
        if let Some(link) = self.links.get_mut(&conn)
            && (waits || !link.lacking.is_empty())
        {
            let room = ECHOES_MAX.saturating_sub(link.echoes.len());
            let hashes = copies.iter().map(|version| version.hash());
            link.echoes.extend(hashes.take(room));
        }
        for version in copies {
            self.count_copy(conn, version.hash(), false);
        }
    }

    /// Sends what neighbors lack, and what is fresh when that is due. [FLOOD-4]
    pub(super) fn flush(&mut self, now: Now) {
        self.answer_at = None;
        let forwards = self.forward_at.is_some_and(|at| at <= now.mono);
        let mut fresh = Vec::new();
        if forwards {
            self.forward_at = None;
            self.forwarded_at = Some(now.mono);
            fresh = core::mem::take(&mut self.fresh);
            // What was replaced meanwhile is not sent.
            fresh.retain(|(version, _)| is_current(&self.items, version));
        }
        let forced = if forwards { self.forced() } else { Vec::new() };
        let mut links = core::mem::take(&mut self.links);
        for (conn, link) in &mut links {
            let mut lacking = core::mem::take(&mut link.lacking);
            lacking.retain(|version| is_current(&self.items, version));
            if !forwards && lacking.is_empty() {
                continue;
            }
            link.echoes.sort_unstable();
            let has = |version: &Version| link.echoes.binary_search(&version.hash()).is_ok();
            lacking.retain(|version| !has(version));
            let mut asked: Vec<u64> = lacking.iter().map(|version| version.hash()).collect();
            asked.sort_unstable();
            // [FLOOD-14]
            let open = !link.unwanted || forced.contains(conn);
            let local = self.local;
            let new = fresh
                .iter()
                .filter(|(_, from)| *from != Some(*conn))
                .map(|(version, _)| version)
                .filter(|version| open || goes_to_all(version, local))
                // An item that is new and was asked for goes once.
                .filter(|version| !has(version) && asked.binary_search(&version.hash()).is_err());
            send_items(&mut self.transmits, *conn, new.chain(&lacking));
            if self.fresh.is_empty() {
                link.echoes.clear();
            } else {
                // What has just been sent need not be forwarded as well.
                let room = ECHOES_MAX.saturating_sub(link.echoes.len());
                link.echoes.extend(asked.into_iter().take(room));
            }
        }
        self.links = links;
    }
}

/// Tells whether an item goes to those, too, who decline what is forwarded: own ones, and revocations, because those who
/// are always early may be early so as to keep one back.
fn goes_to_all(version: &Version, local: PeerId) -> bool {
    version.key().origin == local || version.key().kind == ItemKind::Revocation
}

/// Queues items for a connection, in frames.
fn send_items<'a>(
    transmits: &mut VecDeque<(ConnId, Frame)>,
    conn: ConnId,
    items: impl Iterator<Item = &'a Arc<Version>>,
) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut send = |batch: &mut Vec<Arc<Version>>| {
        let items = List(core::mem::take(batch));
        transmits.push_back((conn, Frame::Items(Items { items })));
    };
    for version in items {
        bytes += version.signed().as_bytes().len();
        batch.push(Arc::clone(version));
        if batch.len() == ITEMS_PER_FRAME_MAX || bytes >= FRAME_FILL_BYTES {
            send(&mut batch);
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        send(&mut batch);
    }
}

fn is_current(items: &Table<Held>, version: &Version) -> bool {
    let key = version.key();
    items
        .get(key.origin.lead(), order(key))
        .is_some_and(|held| held.version.sequence() == version.sequence())
}
