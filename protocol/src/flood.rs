//! The flooding engine: signed items that every peer of an area should have, and the newest version of each.
//!
//! Directory records and revocations ride on it. An item is signed once by its origin, kept as the bytes that
//! were signed, and shared by every link that it goes out on. Three things bring it everywhere: it is forwarded
//! to all links but the one that it came from, in batches; two peers compare their databases, bucket by bucket,
//! when a link comes up; and now and then they compare them again, which repairs whatever was dropped.
//!
//! What an item says is not judged here: [`content::check`] does that as a job, off the network thread.
//! [FLOOD-1..12]

pub mod content;
mod item;
mod unchecked;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

pub use content::{Content, ItemFault, Record, Revocation};
pub use item::{ITEM_BODY_BYTES_MAX, Item, ItemKey, ItemKind};

use unchecked::Unchecked;

use crate::cbor::List;
use crate::cert::CLOCK_SKEW_MAX;
use crate::frame::{DIGEST_ENTRIES_MAX, Digest, DigestEntry, Frame, Items, SUMMARY_BUCKETS, Summary};
use crate::random::Random;
use crate::sign::{Domain, Signed, SigningKey};
use crate::{ConnId, Instant, Now, PeerId, UnixMillis};

/// The most items in one frame.
pub const ITEMS_PER_FRAME_MAX: usize = 64;
/// Frames of items are closed at this size, so that with one more item they stay below the frame limit.
const FRAME_FILL_BYTES: usize = 44 * 1024;
/// How long an item waits for others before it is forwarded: shorter than any link's latency that matters.
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// An origin's next version of an item is accepted this long after the last one. Like OSPF's MinLSArrival.
const MIN_ARRIVAL: Duration = Duration::from_secs(1);
/// How many versions a neighbor may publish too early before it is cut off. Others' items do not count: honest
/// neighbors forward no more than the interval allows.
const EARLY_MAX: u32 = 64;
/// The most items in the database: 100 bytes of index each, and the items' own bytes.
pub const ITEMS_MAX: usize = 200_000;
/// The most items of one kind from one origin: an admitter may have revoked this many members.
pub const ITEMS_PER_ORIGIN_MAX: usize = 10_000;
/// The longest that a version of a record may count: its origin publishes it again long before.
pub const RECORD_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest that a revocation may count: longer than any certificate.
pub const REVOCATION_LIFETIME_MAX: Duration = Duration::from_secs(3 * 366 * 24 * 3600);
/// Summaries of a neighbor that are answered between two looks at its budget: it sends one when a link comes up, and one
/// a minute. Each may cost an answer as large as the database's index.
const SUMMARIES_MAX: u32 = 4;
/// The same for all connections together that do not carry the frames of their peers.
const STRAY_SUMMARIES_MAX: u32 = 16;
/// How often two neighbors compare their databases again.
const COMPARE_INTERVAL: Duration = Duration::from_secs(60);
/// How often expired items are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// How a neighbor broke the rules of flooding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FloodViolation {
    /// An item cannot be read.
    #[error("sent an item that cannot be read")]
    Malformed,
    /// An item's signature is wrong: an honest neighbor would not have forwarded it.
    #[error("sent an item with a wrong signature")]
    Forged,
    /// It publishes without pause.
    #[error("publishes new versions of its items without pause")]
    TooFast,
    /// It publishes more items than anyone may.
    #[error("publishes more items than allowed")]
    TooMany,
}

/// What the engine wants others to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A new version of an item has arrived and is valid.
    Accepted {
        /// Which item.
        key: ItemKey,
        /// What it says.
        content: Box<Content>,
    },
    /// An item has run out.
    Expired(ItemKey),
    /// The network has a newer version of an own item than this peer (which has lost its state or its clock):
    /// publish again.
    Reclaim(ItemKey),
}

/// Items whose signature and content are to be checked.
#[derive(Clone, Debug)]
pub struct CheckJob {
    /// The items, each with the connection that it came from.
    pub items: Vec<(ConnId, Signed)>,
}

/// A checked item.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Where it came from.
    pub from: ConnId,
    /// The item.
    pub signed: Signed,
    /// What it says, or what is wrong with it.
    pub result: Result<(Item, Content), ItemFault>,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    expires: UnixMillis,
    accepted: Instant,
    hash: u64,
    signed: Signed,
}

#[derive(Debug, Default)]
struct Link {
    /// Who is at the other end, once items have come from there.
    peer: Option<PeerId>,
    pending: BTreeSet<ItemKey>,
    early: u32,
    /// Summaries that have come since the budgets were renewed.
    summaries: u32,
    /// Digests that may still come in answer to summaries.
    digests: usize,
}

/// The engine's state.
#[derive(Debug)]
pub struct Flood {
    local: PeerId,
    items: BTreeMap<ItemKey, Entry>,
    buckets: Vec<u64>,
    expiry: BTreeSet<(UnixMillis, ItemKey)>,
    links: BTreeMap<ConnId, Link>,
    checking: BTreeMap<ItemKey, u64>,
    deferred: BTreeMap<ItemKey, (Instant, ConnId, Signed)>,
    /// Sequences of own items that the network has seen and this peer has not.
    floors: BTreeMap<ItemKey, u64>,
    flush_at: Option<Instant>,
    compare_at: Instant,
    expire_at: Instant,
    stray_summaries: u32,
    unchecked: Unchecked,
    transmits: VecDeque<(ConnId, Frame)>,
    events: VecDeque<Event>,
    random: Random,
}

impl Flood {
    /// Starts with an empty database.
    #[must_use]
    pub fn new(local: PeerId, random: Random) -> Self {
        Self {
            local,
            items: BTreeMap::new(),
            buckets: alloc::vec![0; SUMMARY_BUCKETS],
            expiry: BTreeSet::new(),
            links: BTreeMap::new(),
            checking: BTreeMap::new(),
            deferred: BTreeMap::new(),
            floors: BTreeMap::new(),
            flush_at: None,
            compare_at: Instant(0),
            expire_at: Instant(0),
            stray_summaries: 0,
            unchecked: Unchecked::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            random,
        }
    }

    /// Signs and floods an own item, newer than any earlier version. Returns the signed bytes.
    pub fn publish(
        &mut self,
        now: Now,
        key: &SigningKey,
        kind: ItemKind,
        id: u64,
        lifetime: Duration,
        body: &[u8],
    ) -> Signed {
        let item_key = ItemKey {
            origin: self.local,
            kind,
            id,
        };
        let known = self.items.get(&item_key).map_or(0, |entry| entry.sequence);
        let floor = self.floors.remove(&item_key).unwrap_or(0);
        // The wall clock as a floor lets a peer that has lost its state still be newer than its own past.
        let sequence = known.max(floor).saturating_add(1).max(now.wall.0);
        let item = Item::new(kind, id, sequence, now.wall, lifetime, body);
        let signed = key.sign(Domain::Item, &crate::cbor::to_bytes(&item));
        self.store(now, item_key, &item, signed.clone(), None);
        signed
    }

    /// Puts an item back that a store has kept; it was checked when it was first accepted.
    pub fn restore(&mut self, now: Now, signed: Signed) {
        if let Ok(item) = Item::unverified(&signed) {
            let key = item.key(signed.claimed_signer());
            if item.expires() > now.wall && self.items.get(&key).is_none_or(|e| e.sequence < item.sequence) {
                self.store(now, key, &item, signed, None);
            }
        }
    }

    /// Starts flooding over a connection, with a comparison of the databases. [FLOOD-3]
    pub fn link_up(&mut self, conn: ConnId) {
        let link = Link {
            digests: SUMMARY_BUCKETS,
            ..Link::default()
        };
        self.links.insert(conn, link);
        self.transmits
            .push_back((conn, Frame::Summary(Summary(self.buckets.clone()))));
    }

    /// Stops flooding over a connection.
    pub fn link_down(&mut self, conn: ConnId) {
        self.links.remove(&conn);
    }

    /// Returns an item's bytes.
    #[must_use]
    pub fn get(&self, key: &ItemKey) -> Option<&Signed> {
        self.items.get(key).map(|entry| &entry.signed)
    }

    /// Returns how many items the database has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Tells whether the database is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns a digest of the whole database: equal databases have equal digests.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.buckets.iter().enumerate().fold(0, |acc, (i, hash)| {
            acc ^ hash.rotate_left(u32::try_from(i % 64).unwrap_or(0))
        })
    }

    /// Drops an item: its origin was revoked.
    pub fn remove(&mut self, key: &ItemKey) {
        if let Some(entry) = self.items.remove(key) {
            self.buckets[bucket(key)] ^= entry.hash;
            self.expiry.remove(&(entry.expires, *key));
        }
    }

    /// Answers a neighbor's summary with what this peer has in the buckets that differ. [FLOOD-5]
    pub fn handle_summary(&mut self, conn: ConnId, summary: &Summary) {
        // Two peers that have just dialled each other may use different connections for a moment.
        let (come, most) = match self.links.get_mut(&conn) {
            Some(link) => (&mut link.summaries, SUMMARIES_MAX),
            None => (&mut self.stray_summaries, STRAY_SUMMARIES_MAX),
        };
        *come += 1;
        if *come > most {
            return;
        }
        let differing: Vec<usize> = (0..SUMMARY_BUCKETS)
            .filter(|i| summary.0.get(*i) != self.buckets.get(*i))
            .collect();
        for index in differing {
            let entries = self
                .bucket_items(index)
                .take(DIGEST_ENTRIES_MAX)
                .map(|(key, entry)| DigestEntry {
                    kind: key.kind,
                    origin: key.origin,
                    id: key.id,
                    sequence: entry.sequence,
                })
                .collect();
            let bucket = u8::try_from(index).unwrap_or(u8::MAX);
            self.transmits.push_back((
                conn,
                Frame::Digest(Digest {
                    bucket,
                    entries: List(entries),
                }),
            ));
        }
    }

    /// Sends a neighbor what its digest shows that it lacks. [FLOOD-6]
    pub fn handle_digest(&mut self, now: Now, conn: ConnId, digest: &Digest) {
        // Each may cost an answer as large as a bucket of the database.
        let Some(link) = self.links.get_mut(&conn).filter(|link| link.digests > 0) else {
            return;
        };
        link.digests -= 1;
        let theirs: BTreeMap<ItemKey, u64> = digest
            .entries
            .iter()
            .map(|e| {
                (
                    ItemKey {
                        origin: e.origin,
                        kind: e.kind,
                        id: e.id,
                    },
                    e.sequence,
                )
            })
            .collect();
        let lacking: Vec<ItemKey> = self
            .bucket_items(usize::from(digest.bucket))
            .filter(|(key, entry)| theirs.get(key).is_none_or(|sequence| *sequence < entry.sequence))
            .map(|(key, _)| *key)
            .collect();
        if let Some(link) = self.links.get_mut(&conn) {
            link.pending.extend(lacking);
            self.schedule_flush(now);
        }
    }

    /// Takes in a batch of items from a neighbor.
    ///
    /// # Errors
    /// [`FloodViolation`] when the neighbor must be cut off.
    pub fn handle_items(
        &mut self,
        now: Now,
        conn: ConnId,
        peer: PeerId,
        items: &Items,
    ) -> Result<(), FloodViolation> {
        if let Some(link) = self.links.get_mut(&conn) {
            link.peer = Some(peer);
        }
        for signed in items.items.iter() {
            let item = Item::unverified(signed).map_err(|_| FloodViolation::Malformed)?;
            let key = item.key(signed.claimed_signer());
            if let Some(link) = self.links.get_mut(&conn) {
                // The neighbor has this version: no need to send it back.
                if self.items.get(&key).is_some_and(|e| e.sequence == item.sequence) {
                    link.pending.remove(&key);
                }
            }
            self.consider(now, conn, peer, key, &item, signed.clone())?;
        }
        Ok(())
    }

    fn consider(
        &mut self,
        now: Now,
        conn: ConnId,
        peer: PeerId,
        key: ItemKey,
        item: &Item,
        signed: Signed,
    ) -> Result<(), FloodViolation> {
        // [FLOOD-7] Too old, or from a clock that is too far ahead: not wrong, but not taken either.
        let lifetime_max = match item.kind {
            ItemKind::Record => RECORD_LIFETIME_MAX,
            ItemKind::Revocation => REVOCATION_LIFETIME_MAX,
            ItemKind::Other(_) => return Ok(()),
        };
        let too_long = item.expires().since(item.issued) > lifetime_max;
        if too_long || item.expires() <= now.wall || item.issued > now.wall.after(CLOCK_SKEW_MAX) {
            return Ok(());
        }
        let known = self.items.get(&key).map(|entry| (entry.sequence, entry.accepted));
        let newest = known
            .map_or(0, |(s, _)| s)
            .max(self.checking.get(&key).copied().unwrap_or(0));
        if item.sequence <= newest {
            return Ok(());
        }
        let too_early = known.is_some_and(|(_, accepted)| now.mono < accepted.after(MIN_ARRIVAL));
        if too_early || self.checking.contains_key(&key) {
            // [FLOOD-8] Kept back, the newest version only, so that the last word of a burst still arrives.
            let due = known
                .map_or(now.mono, |(_, accepted)| accepted)
                .after(MIN_ARRIVAL);
            let newer = self
                .deferred
                .get(&key)
                .is_none_or(|(_, _, s)| Item::unverified(s).is_ok_and(|i| i.sequence < item.sequence));
            if newer
                && self.unchecked.hold(conn, &signed)
                && let Some((_, from, older)) = self.deferred.insert(key, (due, conn, signed))
            {
                self.unchecked.release(from, &older);
            }
            return self.count_early(conn, key.origin == peer);
        }
        if known.is_none() && !self.has_room(&key, peer)? {
            return Ok(());
        }
        if self.items.len() < ITEMS_MAX && self.unchecked.hold(conn, &signed) {
            self.checking.insert(key, item.sequence);
            self.unchecked.push(conn, signed);
        }
        Ok(())
    }

    fn count_early(&mut self, conn: ConnId, own: bool) -> Result<(), FloodViolation> {
        if let (true, Some(link)) = (own, self.links.get_mut(&conn)) {
            link.early += 1;
            if link.early > EARLY_MAX {
                return Err(FloodViolation::TooFast);
            }
        }
        Ok(())
    }

    // [FLOOD-12]
    fn has_room(&self, key: &ItemKey, peer: PeerId) -> Result<bool, FloodViolation> {
        let first = ItemKey { id: 0, ..*key };
        let last = ItemKey { id: u64::MAX, ..*key };
        let full = self.items.range(first..=last).take(ITEMS_PER_ORIGIN_MAX).count() == ITEMS_PER_ORIGIN_MAX;
        if full && key.origin == peer {
            Err(FloodViolation::TooMany)
        } else {
            Ok(!full)
        }
    }

    /// Takes the result of a check back. [FLOOD-10]
    ///
    /// # Errors
    /// The connection that brought a forged item, with the violation.
    pub fn handle_checked(&mut self, now: Now, checked: Checked) -> Result<(), (ConnId, FloodViolation)> {
        let Checked { from, signed, result } = checked;
        self.unchecked.checked(from, &signed);
        let unverified_key = Item::unverified(&signed).map(|item| item.key(signed.claimed_signer()));
        if let Ok(key) = unverified_key {
            self.checking.remove(&key);
        }
        match result {
            Ok((item, content)) => {
                let key = item.key(signed.claimed_signer());
                if self
                    .items
                    .get(&key)
                    .is_some_and(|entry| entry.sequence >= item.sequence)
                {
                    return Ok(());
                }
                if key.origin == self.local && key.kind == ItemKind::Record {
                    // [FLOOD-9] An own item from before a loss of state.
                    self.floors.insert(key, item.sequence);
                    self.events.push_back(Event::Reclaim(key));
                    return Ok(());
                }
                self.store(now, key, &item, signed, Some(from));
                let content = Box::new(content);
                self.events.push_back(Event::Accepted { key, content });
                Ok(())
            }
            Err(ItemFault::Forged) => Err((from, FloodViolation::Forged)),
            // What a newer peer says may be unreadable here: the signature is right, so nobody is to blame, but for
            // somebody who lets this peer check such items of its own without pause.
            Err(
                ItemFault::Malformed(_)
                | ItemFault::Membership(_)
                | ItemFault::OutsideGrant
                | ItemFault::NotAnAdmitter,
            ) => {
                let link = self.links.get(&from);
                let own = link.is_some_and(|link| link.peer == Some(signed.claimed_signer()));
                self.count_early(from, own).map_err(|violation| (from, violation))
            }
        }
    }

    fn store(&mut self, now: Now, key: ItemKey, item: &Item, signed: Signed, from: Option<ConnId>) {
        self.remove(&key);
        let hash = signed_hash(&signed);
        self.buckets[bucket(&key)] ^= hash;
        self.expiry.insert((item.expires(), key));
        let entry = Entry {
            sequence: item.sequence,
            expires: item.expires(),
            accepted: now.mono,
            hash,
            signed,
        };
        self.items.insert(key, entry);
        for (conn, link) in &mut self.links {
            if Some(*conn) != from {
                link.pending.insert(key);
            }
        }
        self.schedule_flush(now);
    }

    fn schedule_flush(&mut self, now: Now) {
        if self.flush_at.is_none() {
            self.flush_at = Some(now.mono.after(BATCH_DELAY));
        }
    }

    fn bucket_items(&self, index: usize) -> impl Iterator<Item = (&ItemKey, &Entry)> {
        let first = u8::try_from(index).unwrap_or(u8::MAX);
        let mut origin = [0; 32];
        origin[0] = first;
        let start = ItemKey {
            origin: PeerId(origin),
            kind: ItemKind::Record,
            id: 0,
        };
        self.items
            .range(start..)
            .take_while(move |(key, _)| key.origin.0[0] == first)
    }

    // [FLOOD-4]
    fn flush(&mut self) {
        self.flush_at = None;
        for (conn, link) in &mut self.links {
            let mut batch: Vec<Signed> = Vec::new();
            let mut bytes = 0;
            for key in core::mem::take(&mut link.pending) {
                let Some(entry) = self.items.get(&key) else {
                    continue;
                };
                bytes += entry.signed.as_bytes().len();
                batch.push(entry.signed.clone());
                if batch.len() == ITEMS_PER_FRAME_MAX || bytes >= FRAME_FILL_BYTES {
                    let items = List(core::mem::take(&mut batch));
                    self.transmits.push_back((*conn, Frame::Items(Items { items })));
                    bytes = 0;
                }
            }
            if !batch.is_empty() {
                self.transmits
                    .push_back((*conn, Frame::Items(Items { items: List(batch) })));
            }
        }
    }

    fn release_deferred(&mut self, now: Now) {
        let due: Vec<ItemKey> = self
            .deferred
            .iter()
            .filter(|(key, (at, _, _))| *at <= now.mono && !self.checking.contains_key(key))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let Some((_, conn, signed)) = self.deferred.remove(&key) else {
                continue;
            };
            let Ok(item) = Item::unverified(&signed) else {
                continue;
            };
            if self
                .items
                .get(&key)
                .is_none_or(|entry| entry.sequence < item.sequence)
            {
                self.checking.insert(key, item.sequence);
                self.unchecked.push(conn, signed);
            } else {
                self.unchecked.release(conn, &signed);
            }
        }
    }

    fn expire(&mut self, now: Now) {
        while let Some((expires, key)) = self.expiry.first().copied() {
            if expires > now.wall {
                break;
            }
            self.remove(&key);
            self.events.push_back(Event::Expired(key));
        }
    }

    fn compare_again(&mut self) {
        let count = self.links.len() as u64;
        if count > 0 {
            let index = usize::try_from(self.random.below(count)).unwrap_or(0);
            if let Some((conn, link)) = self.links.iter_mut().nth(index) {
                let conn = *conn;
                link.digests = (link.digests + SUMMARY_BUCKETS).min(2 * SUMMARY_BUCKETS);
                self.transmits
                    .push_back((conn, Frame::Summary(Summary(self.buckets.clone()))));
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.flush_at.is_some_and(|at| at <= now.mono) {
            self.flush();
        }
        self.release_deferred(now);
        if self.expire_at <= now.mono {
            self.expire_at = now.mono.after(EXPIRY_INTERVAL);
            self.expire(now);
            self.stray_summaries = 0;
            for link in self.links.values_mut() {
                link.early = 0;
                link.summaries = 0;
            }
        }
        if self.compare_at <= now.mono {
            if self.compare_at != Instant(0) {
                self.compare_again();
            }
            self.compare_at = now.mono.after(self.random.jittered(COMPARE_INTERVAL));
        }
    }

    /// Returns the next frame to send, with its connection.
    pub fn poll_transmit(&mut self) -> Option<(ConnId, Frame)> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the next batch of items to check.
    pub fn poll_job(&mut self) -> Option<CheckJob> {
        self.unchecked.pop().map(|items| CheckJob { items })
    }

    /// Returns when [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deferred = self
            .deferred
            .iter()
            .filter(|(key, _)| !self.checking.contains_key(key))
            .map(|(_, (at, _, _))| *at);
        deferred
            .chain(self.flush_at)
            .chain([self.compare_at, self.expire_at])
            .min()
    }
}

fn bucket(key: &ItemKey) -> usize {
    usize::from(key.origin.0[0])
}

fn signed_hash(signed: &Signed) -> u64 {
    let digest = blake3::hash(signed.as_bytes());
    let (head, _) = digest
        .as_bytes()
        .split_first_chunk::<8>()
        .expect("a digest has 32 bytes");
    u64::from_be_bytes(*head)
}

const _: () = assert!(SUMMARY_BUCKETS == 256, "a bucket is one byte of the origin's key");

#[cfg(test)]
mod tests;
