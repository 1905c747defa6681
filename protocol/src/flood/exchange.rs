//! What goes out on the links: items in batches, those that are new and those that a comparison has shown to be lacking.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{
    BATCH_DELAY, BATCH_INTERVAL, Flood, Fresh, Held, ITEMS_PER_FRAME_MAX, ItemKind, Source, Version, order,
};
use crate::cbor::List;
use crate::frame::{Frame, Items};
use crate::table::{Status, Table};
use crate::{ConnId, Instant, Now, PeerId};

/// Frames of items are closed at this size, so that with one more item they stay below the frame limit.
const FRAME_FILL_BYTES: usize = 44 * 1024;
/// How many items that neighbors have sent are remembered until the next batch, so as not to send them back; what is
/// forgotten travels once more.
const ECHOES_MAX: usize = 16 * 1024;

impl Flood {
    /// Returns the items of a bucket, with the hashes of their versions.
    pub(super) fn bucket_items(&self, bucket: u8) -> impl Iterator<Item = (u64, &Held)> {
        self.items.iter_bucket(usize::from(bucket))
    }

    /// Queues an accepted version for every neighbor but the one that it came from.
    pub(super) fn forward(&mut self, now: Now, version: &Arc<Version>, from: Option<Source>) {
        if !self.links.is_empty() {
            let version = Arc::clone(version);
            self.fresh.push(Fresh { version, from });
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
            fresh.retain(|fresh| is_current(&self.items, &fresh.version));
        }
        let forced = if forwards { self.forced() } else { Vec::new() };
        let mut links = core::mem::take(&mut self.links);
        for (conn, link) in &mut links {
            let mut lacking = core::mem::take(&mut link.lacking);
            lacking.retain(|version| is_current(&self.items, version));
            let answers = core::mem::take(&mut link.answers);
            if !forwards && answers == 0 {
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
            // It has most of what others were asked for, and says what it lacks of that when its turn comes.
            let compares = link.owes || self.fill.asks(*conn);
            let skips = |fresh: &&Fresh| {
                let waits = compares && fresh.version.key().kind != ItemKind::Revocation;
                let is_source = |from: Source| from.conn == *conn || from.asked && waits;
                fresh.from.is_some_and(is_source)
            };
            let new = fresh
                .iter()
                .filter(|fresh| !skips(fresh))
                .map(|fresh| &fresh.version)
                .filter(|version| open || goes_to_all(version, local))
                // An item that is new and was asked for goes once.
                .filter(|version| !has(version) && asked.binary_search(&version.hash()).is_err());
            send_items(&mut self.transmits, *conn, new, None);
            if answers > 0 {
                send_items(&mut self.transmits, *conn, lacking.iter(), Some(answers));
            }
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

/// Queues items for a connection, in frames; where they were asked for, the last one says how many digests are answered.
fn send_items<'a>(
    transmits: &mut VecDeque<(ConnId, Frame)>,
    conn: ConnId,
    items: impl Iterator<Item = &'a Arc<Version>>,
    answers: Option<u32>,
) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut send = |batch: &mut Vec<Arc<Version>>, answers| {
        let items = List(core::mem::take(batch));
        transmits.push_back((conn, Frame::Items(Items { items, answers })));
    };
    for version in items {
        if batch.len() == ITEMS_PER_FRAME_MAX || bytes >= FRAME_FILL_BYTES {
            send(&mut batch, answers.map(|_| 0));
            bytes = 0;
        }
        bytes += version.signed().as_bytes().len();
        batch.push(Arc::clone(version));
    }
    if !batch.is_empty() || answers.is_some() {
        send(&mut batch, answers);
    }
}

fn is_current(items: &Table<Held>, version: &Arc<Version>) -> bool {
    let is = |held: &Held| Arc::ptr_eq(&held.version, version);
    match items.status(version.place().get(), is) {
        Status::Member => true,
        Status::Absent => false,
        Status::Unknown => {
            let held = items.get(version.lead(), order(version.key()));
            held.is_some_and(|held| held.version.sequence() == version.sequence())
        }
    }
}
