//! The flooding engine: signed items that every peer of an area should have, and the newest version of each.
//!
//! Directory records and revocations ride on it. An item is signed once by its origin, kept as the bytes that
//! were signed, and shared by every link that it goes out on. Three things bring it everywhere: it is forwarded
//! to all links but the one that it came from, in batches; two peers compare their databases, bucket by bucket,
//! when a link comes up; and now and then they compare them again, which repairs whatever was dropped.
//!
//! What an item says is not judged here: [`content::check`] does that as a job, off the network thread.
//! [FLOOD-1..14]

mod comparison;
pub mod content;
mod copies;
mod exchange;
mod item;
mod replaced;
mod unchecked;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::time::Duration;

pub use content::{Content, ItemFault, Record, Revocation};
pub use item::{ITEM_BODY_BYTES_MAX, Item, ItemKey, ItemKind, Version, hash_of};

use comparison::Fill;
use copies::Samples;
use replaced::Replaced;
use unchecked::Unchecked;

use crate::cert::CLOCK_SKEW_MAX;
use crate::frame::{Frame, Items, SUMMARY_BUCKETS};
use crate::random::Random;
use crate::sharing::Sharing;
use crate::sign::{Domain, Signed, SigningKey};
use crate::table::{self, Row, Status, Table};
use crate::{ConnId, Instant, Now, PeerId, UnixMillis};

/// The most items in one frame.
pub const ITEMS_PER_FRAME_MAX: usize = 64;
/// How long an item waits for others before it is sent: shorter than any link's latency that matters.
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// How long a batch of forwarded items goes out after the one before. News out of a quiet mesh waits for
/// [`BATCH_DELAY`] at every hop and no longer; while much happens, as when hundreds join in a second, frames are fewer
/// and fuller, and most of what would go back to those who have it is not sent.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// An item that was replaced is replaced again this long after that at the earliest. Like OSPF's MinLSArrival.
const MIN_ARRIVAL: Duration = Duration::from_secs(1);
/// How many versions a neighbor may publish too early before it is cut off. Others' items do not count: honest
/// neighbors forward no more than the interval allows.
const EARLY_MAX: u32 = 64;
/// The most items in the database: 20 bytes of index each, and the items' own bytes.
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
        content: Content,
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
    pub items: Vec<(ConnId, Arc<Version>)>,
}

/// A checked item.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Where it came from.
    pub from: ConnId,
    /// The item.
    pub version: Arc<Version>,
    /// What it says, or what is wrong with it.
    pub result: Result<Content, ItemFault>,
}

/// A row of the database: 16 bytes, as there is one for every item in every peer.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    version: Arc<Version>,
    /// Beside the pointer, so that a search reads nothing else.
    lead: u32,
}

impl Row for Held {
    const HASHED: bool = true;

    fn lead(&self) -> u32 {
        self.lead
    }

    fn hash(&self) -> u64 {
        self.version.hash()
    }
}

fn order(key: ItemKey) -> impl Fn(&Held) -> Ordering {
    move |held| held.version.key().cmp(&key)
}

/// Where an accepted version came from.
#[derive(Clone, Copy, Debug)]
struct Source {
    conn: ConnId,
    /// Whether this peer has asked for it, in a comparison.
    asked: bool,
}

/// A version that was accepted since the last batch.
#[derive(Debug)]
struct Fresh {
    version: Arc<Version>,
    /// Nobody, for an own one.
    from: Option<Source>,
}

/// A version that is being checked.
#[derive(Clone, Copy, Debug)]
struct Checking {
    sequence: u64,
    asked: bool,
}

#[derive(Debug, Default)]
struct Link {
    /// Who is at the other end, once items have come from there.
    peer: Option<PeerId>,
    /// What a comparison has shown that the neighbor lacks.
    lacking: Vec<Arc<Version>>,
    /// What the neighbor has by now of what is fresh or lacking, by the hashes of the versions.
    echoes: Vec<u64>,
    early: u32,
    /// How many samples in a row it brought late, and whether it was asked not to forward.
    late: u32,
    declined: bool,
    /// Whether it has asked this peer not to forward.
    unwanted: bool,
    /// Summaries that have come since the budgets were renewed.
    summaries: u32,
    /// Buckets that may still be asked for in answer to summaries.
    digests: usize,
    /// Digests to which `lacking` is the answer.
    answers: u32,
    /// Whether a comparison with this neighbor was put off.
    owes: bool,
    /// How many items its last summary was of, where a comparison with it was large.
    items: usize,
    /// Whether it has let this peer wait for an answer: others do not wait for it again.
    slow: bool,
}

/// The engine's state.
#[derive(Debug)]
pub struct Flood {
    local: PeerId,
    items: Table<Held>,
    /// Whether the checks of other peers of this process count.
    shares_checks: bool,
    /// No item ends before this: the whole database is looked through only then.
    expires: UnixMillis,
    links: BTreeMap<ConnId, Link>,
    /// What was accepted since the last batch, and from whom.
    fresh: Vec<Fresh>,
    replaced: Replaced,
    samples: Samples,
    checking: BTreeMap<ItemKey, Checking>,
    deferred: BTreeMap<ItemKey, (Instant, ConnId, Arc<Version>)>,
    /// Sequences of own items that the network has seen and this peer has not.
    floors: BTreeMap<ItemKey, u64>,
    /// When what is fresh is forwarded, and when what a comparison has asked for is sent.
    forward_at: Option<Instant>,
    answer_at: Option<Instant>,
    forwarded_at: Option<Instant>,
    fill: Fill,
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
        Self::with_sharing(local, random, None)
    }

    /// Starts with an empty database, which shares what it can with the others of a process.
    #[must_use]
    pub fn with_sharing(local: PeerId, random: Random, sharing: Option<&Sharing>) -> Self {
        Self {
            local,
            items: Table::new(sharing.map(|sharing| sharing.items.clone())),
            shares_checks: sharing.is_some(),
            expires: UnixMillis(u64::MAX),
            links: BTreeMap::new(),
            fresh: Vec::new(),
            replaced: Replaced::default(),
            samples: Samples::default(),
            checking: BTreeMap::new(),
            deferred: BTreeMap::new(),
            floors: BTreeMap::new(),
            forward_at: None,
            answer_at: None,
            forwarded_at: None,
            fill: Fill::default(),
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
        let known = self.held(&item_key).map_or(0, |held| held.version.sequence());
        let floor = self.floors.remove(&item_key).unwrap_or(0);
        // The wall clock as a floor lets a peer that has lost its state still be newer than its own past.
        let sequence = known.max(floor).saturating_add(1).max(now.wall.0);
        let item = Item::new(kind, id, sequence, now.wall, lifetime, body);
        let signed = key.sign(Domain::Item, &crate::cbor::to_bytes(&item));
        let version = Version::read(signed.clone()).expect("what was just encoded can be read");
        self.store(now, version, None);
        signed
    }

    /// Puts in order what was accepted by a clock that was wrong. [FLOOD-13]
    ///
    /// Own items that are dated in the future are published again, because nobody takes them before that has come, and
    /// end when they would have ended; those of others are dropped, because they keep newer ones with a right date out.
    /// What the wrong clock has refused comes back with a comparison.
    pub fn handle_clock_set(&mut self, now: Now, key: &SigningKey) {
        let limit = now.wall.after(CLOCK_SKEW_MAX);
        let dated = self.items.iter().filter(|held| held.version.issued() > limit);
        let dated: Vec<Arc<Version>> = dated.map(|held| Arc::clone(&held.version)).collect();
        for version in dated {
            if version.key().origin != self.local {
                self.remove(&version.key());
                self.events.push_back(Event::Expired(version.key()));
            } else if let Ok(item) = Item::unverified(version.signed()) {
                let lifetime = version.expires().since(now.wall);
                self.publish(now, key, item.kind, item.id, lifetime, &item.body);
            }
        }
        self.compare_with_all();
    }

    /// Puts an item back that a store has kept; it was checked when it was first accepted.
    pub fn restore(&mut self, now: Now, signed: Signed) {
        if let Ok(version) = Version::read(signed) {
            let newer = |held: &Held| held.version.sequence() < version.sequence();
            if version.expires() > now.wall && self.held(&version.key()).is_none_or(newer) {
                self.store(now, version, None);
            }
        }
    }

    fn held(&self, key: &ItemKey) -> Option<&Held> {
        self.items.get(key.origin.lead(), order(*key))
    }

    /// Returns an item's bytes.
    #[must_use]
    pub fn get(&self, key: &ItemKey) -> Option<&Signed> {
        self.held(key).map(|held| held.version.signed())
    }

    /// Returns how many items the database has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.items.len()
    }

    /// Tells whether the database is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.items.len() == 0
    }

    /// Returns a digest of the whole database: equal databases have equal digests.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.summary().enumerate().fold(0, |acc, (i, hash)| {
            acc ^ hash.rotate_left(u32::try_from(i % 64).unwrap_or(0))
        })
    }

    fn summary(&self) -> impl Iterator<Item = u64> {
        (0..SUMMARY_BUCKETS).map(|bucket| self.items.hash_of(bucket))
    }

    /// Returns how many versions came too early, how many items are being checked, and how many wait for a batch.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let lacking = self.links.values().map(|link| link.lacking.len()).sum::<usize>();
        (
            self.deferred.len(),
            self.checking.len(),
            self.fresh.len() + lacking,
        )
    }

    /// Drops an item: its origin was revoked.
    pub fn remove(&mut self, key: &ItemKey) {
        self.items.remove(key.origin.lead(), order(*key));
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
        // The signature of a copy that came from somebody else was checked, and its hash is known.
        let has = |version: &&Arc<Version>| self.known(version) == Some(version.sequence());
        let copies: Vec<&Arc<Version>> = items.items.iter().filter(has).collect();
        self.note_copies(conn, &copies);
        // What others have checked is accepted at once, but not before what has to be checked.
        let mut vouched = self.shares_checks && self.unchecked.is_idle();
        let asked = items.answers.is_some();
        let source = Source { conn, asked };
        let mut copies = copies.into_iter().peekable();
        for version in items.items.iter() {
            if copies.next_if(|copy| Arc::ptr_eq(copy, version)).is_none() {
                self.consider(now, source, peer, version, &mut vouched)?;
            }
        }
        self.handle_answers(now, conn, items.answers.unwrap_or(0));
        Ok(())
    }

    /// Returns the sequence of the version that the database has of a version's item.
    fn known(&self, version: &Arc<Version>) -> Option<u64> {
        // Most of what arrives is known, and in one process it is the very same object.
        match self.status(version) {
            Status::Member => Some(version.sequence()),
            Status::Absent => None,
            Status::Unknown => self.held(&version.key()).map(|held| held.version.sequence()),
        }
    }

    fn status(&self, version: &Arc<Version>) -> Status {
        let is = |held: &Held| Arc::ptr_eq(&held.version, version);
        self.items.status(version.place().get(), is)
    }

    fn consider(
        &mut self,
        now: Now,
        source: Source,
        peer: PeerId,
        version: &Arc<Version>,
        vouched: &mut bool,
    ) -> Result<(), FloodViolation> {
        let (conn, key) = (source.conn, version.key());
        let known = self.known(version);
        // [FLOOD-7] Too old, or from a clock that is too far ahead: not wrong, but not taken either.
        let lifetime_max = match key.kind {
            ItemKind::Record => RECORD_LIFETIME_MAX,
            ItemKind::Revocation => REVOCATION_LIFETIME_MAX,
            ItemKind::Other(_) => return Ok(()),
        };
        let too_long = version.expires().since(version.issued()) > lifetime_max;
        if too_long || version.expires() <= now.wall || version.issued() > now.wall.after(CLOCK_SKEW_MAX) {
            return Ok(());
        }
        let checking = self.checking.get(&key).map(|checking| checking.sequence);
        if checking == Some(version.sequence()) {
            self.note_copies(conn, &[version]);
        }
        if version.sequence() <= known.max(checking).unwrap_or(0) {
            return Ok(());
        }
        let early = self.replaced.until(now.mono, &key);
        if early.is_some() || checking.is_some() {
            // [FLOOD-8] Kept back, the newest version only, so that the last word of a burst still arrives.
            let due = early.unwrap_or(now.mono.after(MIN_ARRIVAL));
            let newer = self
                .deferred
                .get(&key)
                .is_none_or(|(_, _, other)| other.sequence() < version.sequence());
            if newer
                && self.unchecked.hold(conn, version)
                && let Some((_, from, older)) = self.deferred.insert(key, (due, conn, Arc::clone(version)))
            {
                self.unchecked.release(from, &older);
            }
            return self.count_early(conn, key.origin == peer);
        }
        if known.is_none() && !self.has_room(&key, peer)? {
            return Ok(());
        }
        if self.items.len() >= ITEMS_MAX {
            return Ok(());
        }
        self.count_copy(conn, version.hash(), true);
        if *vouched && let Some(content) = version.vouched(now.wall) {
            self.accept(now, source, Arc::clone(version), content.clone());
            return Ok(());
        }
        *vouched = false;
        if self.unchecked.hold(conn, version) {
            let checking = Checking {
                sequence: version.sequence(),
                asked: source.asked,
            };
            self.checking.insert(key, checking);
            self.unchecked.push(conn, Arc::clone(version));
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
        let full = match key.kind {
            // Each peer has one.
            ItemKind::Record => false,
            ItemKind::Revocation | ItemKind::Other(_) => {
                let same = |held: &&Held| {
                    let other = held.version.key();
                    other.origin == key.origin && other.kind == key.kind
                };
                let lead = key.origin.lead();
                self.items
                    .iter_with(lead)
                    .filter(same)
                    .take(ITEMS_PER_ORIGIN_MAX)
                    .count()
                    == ITEMS_PER_ORIGIN_MAX
            }
        };
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
        let outcome = self.take_checked(now, checked);
        self.end_fill(now);
        outcome
    }

    fn take_checked(&mut self, now: Now, checked: Checked) -> Result<(), (ConnId, FloodViolation)> {
        let Checked {
            from,
            version,
            result,
        } = checked;
        let key = version.key();
        self.unchecked.checked(from, &version);
        let asked = self.checking.remove(&key).is_some_and(|checking| checking.asked);
        match result {
            Ok(content) => {
                if self.shares_checks {
                    version.vouch(&content, now.wall);
                }
                let known = self.held(&key).map(|held| held.version.sequence());
                if known.is_none_or(|sequence| sequence < version.sequence()) {
                    self.accept(now, Source { conn: from, asked }, version, content);
                }
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
                let own = link.is_some_and(|link| link.peer == Some(key.origin));
                self.count_early(from, own).map_err(|violation| (from, violation))
            }
        }
    }

    fn accept(&mut self, now: Now, from: Source, version: Arc<Version>, content: Content) {
        let key = version.key();
        if key.origin == self.local && key.kind == ItemKind::Record {
            // [FLOOD-9] An own item from before a loss of state.
            self.floors.insert(key, version.sequence());
            self.events.push_back(Event::Reclaim(key));
            return;
        }
        self.store(now, version, Some(from));
        self.events.push_back(Event::Accepted { key, content });
    }

    fn store(&mut self, now: Now, version: Arc<Version>, from: Option<Source>) {
        let key = version.key();
        self.expires = self.expires.min(version.expires());
        self.forward(now, &version, from);
        let is = |held: &Held| Arc::ptr_eq(&held.version, &version);
        if self.items.insert_known(version.place().get(), is) {
            return;
        }
        let held = Held {
            lead: version.lead(),
            version: Arc::clone(&version),
        };
        let (old, slot) = self.items.insert(held, order(key));
        version.place().set(slot);
        if old.is_some() {
            self.replaced.note(now.mono, key);
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
            let Some((_, conn, version)) = self.deferred.remove(&key) else {
                continue;
            };
            let newer = |held: &Held| held.version.sequence() < version.sequence();
            if self.held(&key).is_none_or(newer) {
                let checking = Checking {
                    sequence: version.sequence(),
                    asked: false,
                };
                self.checking.insert(key, checking);
                self.unchecked.push(conn, version);
            } else {
                self.unchecked.release(conn, &version);
            }
        }
    }

    fn expire(&mut self, now: Now) {
        if self.expires > now.wall {
            return;
        }
        let ended = |held: &&Held| held.version.expires() <= now.wall;
        let mut gone: Vec<(UnixMillis, ItemKey)> = self
            .items
            .iter()
            .filter(ended)
            .map(|held| (held.version.expires(), held.version.key()))
            .collect();
        gone.sort_unstable();
        for (_, key) in gone {
            self.remove(&key);
            self.events.push_back(Event::Expired(key));
        }
        let next = self.items.iter().map(|held| held.version.expires()).min();
        self.expires = next.unwrap_or(UnixMillis(u64::MAX));
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now.mono);
        if due(self.forward_at) || due(self.answer_at) {
            self.flush(now);
        }
        self.handle_comparisons(now);
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
            .chain(self.forward_at)
            .chain(self.answer_at)
            .chain(self.comparison_at())
            .chain([self.compare_at, self.expire_at])
            .min()
    }
}

const _: () = assert!(
    SUMMARY_BUCKETS == table::BUCKETS,
    "a bucket is the first byte of the origin's key"
);

#[cfg(test)]
mod tests;
