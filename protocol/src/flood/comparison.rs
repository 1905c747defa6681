//! Comparisons of two databases, bucket by bucket, and who is asked for what they show.
//!
//! A newcomer hears from all its neighbors within a moment that each of them has everything. It asks each for a part of
//! that, and goes on with those who answer first; a neighbor that does not answer holds up its part for two seconds.
//! Whoever compares later finds little that differs. [FLOOD-3] [FLOOD-5] [FLOOD-6]

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::{BATCH_DELAY, Flood, Link, STRAY_SUMMARIES_MAX, SUMMARIES_MAX, Version};
use crate::frame::{
    BucketHashes, Buckets, DIGEST_VERSIONS_MAX, Digest, Frame, SUMMARY_BUCKETS, Summary, Versions,
};
use crate::{ConnId, Instant, Now};

/// How many buckets a comparison may ask for at once without being part of a fill: what a newcomer brings, or what is
/// under way.
const SMALL_BUCKETS: usize = 16;
/// About how many items a neighbor is asked for at once: as many as fill what may be under way on a stream.
const PART_ITEMS: usize = 256;
/// How many parts it may owe: the next one is on its way when the last one is there.
const PARTS_OPEN: usize = 2;
/// How long a neighbor that is asked for a part may be silent before others are asked: longer than most round trips.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take for its parts in all.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// How long after a fill another neighbor's turn comes to be compared with: by then what was under way has arrived, and
/// the two databases are mostly equal.
const OWED_INTERVAL: Duration = Duration::from_secs(1);

/// What a large comparison has come to: one neighbor's share of a fill.
#[derive(Debug)]
struct Share {
    /// In which buckets it had something else.
    differ: Buckets,
    /// What it was asked for, and what of that it has not answered yet, in order.
    asked: Buckets,
    open: VecDeque<Buckets>,
    /// How many items it has, and how many buckets are a part.
    items: usize,
    part: usize,
    until: Instant,
    latest: Instant,
}

/// A large comparison with several neighbors, each of whom is asked for other buckets.
#[derive(Debug, Default)]
pub(super) struct Fill {
    shares: BTreeMap<ConnId, Share>,
    /// How many items they have in all who were asked for each bucket; none before the first share.
    taken: Vec<usize>,
    /// When the next of those who were put off has its turn.
    owed_at: Option<Instant>,
}

impl Fill {
    fn goes_on(&self) -> bool {
        !self.shares.is_empty()
    }

    /// Tells whether a neighbor has been found to have most of what this peer lacks.
    pub(super) fn asks(&self, conn: ConnId) -> bool {
        self.shares.contains_key(&conn)
    }

    /// Gives back what a neighbor has not sent, for others to be asked.
    fn drop_share(&mut self, conn: ConnId) -> bool {
        let Some(share) = self.shares.remove(&conn) else {
            return false;
        };
        for bucket in share.open.iter().flat_map(Buckets::iter) {
            self.taken[usize::from(bucket)] = 0;
        }
        true
    }

    /// Returns what to ask a neighbor for next.
    fn next_part(&mut self, conn: ConnId) -> Option<Buckets> {
        let share = self.shares.get_mut(&conn)?;
        if share.open.len() >= PARTS_OPEN {
            return None;
        }
        self.taken.resize(SUMMARY_BUCKETS, 0);
        // Whoever was asked first may be a newcomer as well, and have little of what is there.
        let taken = &self.taken;
        let is_free = |bucket: &u8| taken[usize::from(*bucket)].saturating_mul(2) <= share.items;
        let own = share
            .differ
            .iter()
            .filter(|bucket| !share.asked.contains(*bucket));
        let part: Buckets = own.filter(is_free).take(share.part).collect();
        if part.is_empty() {
            return None;
        }
        for bucket in part.iter() {
            self.taken[usize::from(bucket)] = share.items.max(1);
        }
        share.asked.extend(&part);
        Some(part)
    }
}

impl Flood {
    /// Starts flooding over a connection, with a comparison of the databases. [FLOOD-3]
    pub fn link_up(&mut self, conn: ConnId) {
        self.links.insert(conn, Link::default());
        self.send_summary(conn, None);
    }

    /// Stops flooding over a connection.
    pub fn link_down(&mut self, now: Now, conn: ConnId) {
        self.links.remove(&conn);
        if self.fill.drop_share(conn) {
            self.ask_for_more(now);
        }
        self.keep_sources();
    }

    fn send_summary(&mut self, conn: ConnId, answer: Option<bool>) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.digests = (link.digests + SUMMARY_BUCKETS).min(2 * SUMMARY_BUCKETS);
        }
        let summary = Summary {
            hashes: BucketHashes(self.summary().collect()),
            answer,
            items: u32::try_from(self.items.len()).unwrap_or(u32::MAX),
        };
        self.transmits.push_back((conn, Frame::Summary(summary)));
    }

    /// Begins a comparison with a neighbor, both ways.
    pub(super) fn compare(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.owes = false;
        }
        self.send_summary(conn, Some(true));
    }

    /// Compares with every neighbor again.
    pub(super) fn compare_with_all(&mut self) {
        let conns: Vec<ConnId> = self.links.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.compare(conn));
    }

    /// Compares with one neighbor again, drawn at random.
    pub(super) fn compare_again(&mut self) {
        let count = self.links.len() as u64;
        if count > 0 {
            let index = usize::try_from(self.random.below(count)).unwrap_or(0);
            if let Some(conn) = self.links.keys().nth(index).copied() {
                self.compare(conn);
            }
        }
    }

    /// Compares with one of those who have been put off, drawn at random, and lets the next one wait.
    fn compare_owed(&mut self, now: Now) {
        self.fill.owed_at = None;
        if self.fill.goes_on() {
            return;
        }
        let owed = || self.links.iter().filter(|(_, link)| link.owes);
        let count = owed().count() as u64;
        if count == 0 {
            return;
        }
        let index = usize::try_from(self.random.below(count)).unwrap_or(0);
        if let Some(conn) = owed().nth(index).map(|(conn, _)| *conn) {
            self.compare(conn);
        }
        if count > 1 {
            self.fill.owed_at = Some(now.mono.after(self.random.jittered(OWED_INTERVAL)));
        }
    }

    /// Asks a neighbor, in answer to its summary, for what it has in the buckets that differ. [FLOOD-5]
    pub fn handle_summary(&mut self, now: Now, conn: ConnId, summary: &Summary) {
        // Two peers that have just dialled each other may use different connections for a moment.
        let (come, most) = match self.links.get_mut(&conn) {
            Some(link) => (&mut link.summaries, SUMMARIES_MAX),
            None => (&mut self.stray_summaries, STRAY_SUMMARIES_MAX),
        };
        *come += 1;
        if *come > most || self.summary().eq(summary.hashes.0.iter().copied()) {
            return;
        }
        if summary.answer == Some(true) {
            self.send_summary(conn, None);
        }
        let differ = self.differing(&summary.hashes.0);
        let patient = |link: &&mut Link| differ.len() > SMALL_BUCKETS && !link.slow;
        let Some(link) = self.links.get_mut(&conn).filter(patient) else {
            self.ask_for(conn, &differ);
            return;
        };
        link.items = usize::try_from(summary.items).unwrap_or(usize::MAX);
        if link.items < self.items.len() / 2 {
            // A newcomer who is being told of everybody: what this peer lacks is news, and on its way.
            link.owes = true;
            let at = now.mono.after(self.random.jittered(OWED_INTERVAL));
            self.fill.owed_at.get_or_insert(at);
            return;
        }
        let share = Share {
            differ,
            asked: Buckets::default(),
            open: VecDeque::new(),
            items: link.items,
            part: (PART_ITEMS * SUMMARY_BUCKETS / link.items.max(1)).max(1),
            until: now.mono.after(PATIENCE),
            latest: now.mono.after(PATIENCE_MAX),
        };
        self.fill.drop_share(conn);
        self.fill.shares.insert(conn, share);
        self.ask_next(conn);
        self.end_fill(now);
    }

    /// Returns the buckets in which somebody else has something else.
    fn differing(&self, theirs: &[u64]) -> Buckets {
        let buckets = (0..=u8::MAX).zip(self.summary()).zip(theirs);
        // Whoever has nothing in a bucket has nothing to send, and says itself what it lacks.
        let differ = buckets.filter(|((_, own), theirs)| **theirs != 0 && own != *theirs);
        differ.map(|((bucket, _), _)| bucket).collect()
    }

    /// Asks a neighbor for what it has in some buckets. Returns the buckets of each digest.
    fn ask_for(&mut self, conn: ConnId, buckets: &Buckets) -> Vec<Buckets> {
        let mut digests: Vec<Digest> = Vec::new();
        for bucket in buckets.iter() {
            let hashes = self.bucket_items(bucket).map(|(hash, _)| hash);
            let hashes: Vec<u64> = hashes.take(DIGEST_VERSIONS_MAX).collect();
            let fits = |digest: &&mut Digest| digest.versions.0.len() + hashes.len() <= DIGEST_VERSIONS_MAX;
            match digests.last_mut().filter(fits) {
                Some(digest) => {
                    digest.buckets.insert(bucket);
                    digest.versions.0.extend(hashes);
                }
                None => digests.push(Digest {
                    buckets: Buckets::from_iter([bucket]),
                    versions: Versions(hashes),
                }),
            }
        }
        let asked = digests.iter().map(|digest| digest.buckets).collect();
        let frames = digests.into_iter().map(|digest| (conn, Frame::Digest(digest)));
        self.transmits.extend(frames);
        asked
    }

    /// Asks a neighbor for its next parts.
    fn ask_next(&mut self, conn: ConnId) {
        while let Some(part) = self.fill.next_part(conn) {
            let digests = self.ask_for(conn, &part);
            if let Some(share) = self.fill.shares.get_mut(&conn) {
                share.open.extend(digests);
            }
        }
    }

    /// Asks those who answer for what others have not sent.
    fn ask_for_more(&mut self, now: Now) {
        let conns: Vec<ConnId> = self.fill.shares.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.ask_next(conn));
        self.end_fill(now);
    }

    /// Sends a neighbor what its digest shows that it lacks. [FLOOD-6]
    ///
    /// The first bucket is drawn at random: a newcomer dials those whom it hears of first, and would otherwise always
    /// choose the peers with the lowest keys.
    pub fn handle_digest(&mut self, now: Now, conn: ConnId, digest: &Digest) {
        // Each may cost an answer as large as these buckets of the database.
        let count = digest.buckets.len();
        let Some(link) = self.links.get_mut(&conn).filter(|link| link.digests >= count) else {
            return;
        };
        link.digests -= count;
        let mut theirs = digest.versions.0.clone();
        theirs.sort_unstable();
        let start = u8::try_from(self.random.below(SUMMARY_BUCKETS as u64)).unwrap_or(0);
        let order = (start..=u8::MAX).chain(0..start);
        let lacking: Vec<Arc<Version>> = order
            .filter(|bucket| digest.buckets.contains(*bucket))
            .flat_map(|bucket| self.bucket_items(bucket))
            .filter(|(hash, _)| theirs.binary_search(hash).is_err())
            .map(|(_, held)| Arc::clone(&held.version))
            .collect();
        if let Some(link) = self.links.get_mut(&conn) {
            link.lacking.extend(lacking);
            link.answers += 1;
            self.answer_at.get_or_insert(now.mono.after(BATCH_DELAY));
        }
    }

    /// Takes note that a neighbor has sent something, and how many digests it has answered with that.
    pub(super) fn handle_answers(&mut self, now: Now, conn: ConnId, answers: u32) {
        if let Some(share) = self.fill.shares.get_mut(&conn) {
            share.until = now.mono.after(PATIENCE).min(share.latest);
            let answered = usize::try_from(answers).unwrap_or(usize::MAX);
            share.open.drain(..answered.min(share.open.len()));
        }
        if answers > 0 {
            if let Some(link) = self.links.get_mut(&conn) {
                link.slow = false;
            }
            self.ask_next(conn);
            self.end_fill(now);
        }
    }

    /// Ends a fill when all that it was to bring is there and checked.
    pub(super) fn end_fill(&mut self, now: Now) {
        let shares = &self.fill.shares;
        let ends = |(conn, share): (&ConnId, &Share)| {
            share.open.is_empty() && (!self.unchecked.holds(*conn) || share.latest <= now.mono)
        };
        if shares.is_empty() || !shares.iter().all(ends) {
            return;
        }
        for (conn, share) in core::mem::take(&mut self.fill.shares) {
            if let Some(link) = self.links.get_mut(&conn) {
                link.owes |= share.asked != share.differ;
            }
        }
        self.fill.taken = Vec::new();
        let owed = self.links.iter().filter(|(_, link)| link.owes);
        if let Some((conn, ahead)) = owed.max_by_key(|(_, link)| link.items)
            && ahead.items > self.items.len() + self.items.len() / 8
        {
            // Those who were asked knew little themselves.
            self.compare(*conn);
        }
        let at = now.mono.after(self.random.jittered(OWED_INTERVAL));
        self.fill.owed_at.get_or_insert(at);
    }

    /// Goes on without those who do not answer, and with those who were put off.
    pub(super) fn handle_comparisons(&mut self, now: Now) {
        let shares = self.fill.shares.iter();
        let late: Vec<ConnId> = shares
            .filter(|(_, share)| share.until <= now.mono && !share.open.is_empty())
            .map(|(conn, _)| *conn)
            .collect();
        for conn in &late {
            self.fill.drop_share(*conn);
            if let Some(link) = self.links.get_mut(conn) {
                link.slow = true;
                // What others have sent meanwhile was not forwarded to it.
                link.owes = true;
            }
        }
        if !late.is_empty() {
            self.ask_for_more(now);
            if !self.fill.goes_on() {
                // This peer may know nobody yet.
                self.compare_owed(now);
            }
        }
        if self.fill.owed_at.is_some_and(|at| at <= now.mono) {
            self.compare_owed(now);
        }
    }

    /// Returns when something of that is due.
    pub(super) fn comparison_at(&self) -> Option<Instant> {
        let waiting = self.fill.shares.values().filter(|share| !share.open.is_empty());
        waiting.map(|share| share.until).chain(self.fill.owed_at).min()
    }
}
