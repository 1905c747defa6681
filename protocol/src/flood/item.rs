//! The envelope of what is flooded.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::content::Content;
use crate::cbor::{self, Blob, DecodeError, Decoder, Encoder, Value, wire_map};
use crate::cert::CLOCK_SKEW_MAX;
use crate::sign::Signed;
use crate::table::Place;
use crate::{PeerId, UnixMillis};

/// The largest content of an item, in bytes.
pub const ITEM_BODY_BYTES_MAX: usize = 15 * 1024;

/// What an item is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemKind {
    /// A peer, its addresses and its nodes ([`super::Record`]).
    Record,
    /// The end of a membership ([`super::Revocation`]).
    Revocation,
    /// Something that a newer peer knows of: neither kept nor forwarded, and nobody's fault.
    Other(u64),
}

impl Value for ItemKind {
    fn encode(&self, e: &mut Encoder) {
        e.u64(match self {
            Self::Record => 1,
            Self::Revocation => 2,
            Self::Other(code) => *code,
        });
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(match d.u64()? {
            1 => Self::Record,
            2 => Self::Revocation,
            code => Self::Other(code),
        })
    }
}

/// Which item, whatever its version. Ordered by origin first, so that a bucket is a range. [FLOOD-1]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey {
    /// Who publishes it.
    pub origin: PeerId,
    /// What it is about.
    pub kind: ItemKind,
    /// Which of the origin's items of that kind.
    pub id: u64,
}

wire_map! {
    /// One version of an item, as it is signed. [FLOOD-2]
    pub struct Item {
        /// What it is about.
        0 => pub kind: ItemKind,
        /// Which of the origin's items of that kind.
        1 => pub id: u64,
        /// The version: the higher wins.
        2 => pub sequence: u64,
        /// When this version was made.
        3 => pub issued: UnixMillis,
        /// How long it counts, in seconds.
        4 => pub lifetime_s: u32,
        /// What it says.
        5 => pub body: Blob<ITEM_BODY_BYTES_MAX>,
    }
}

impl Item {
    /// Makes a version.
    #[must_use]
    pub fn new(
        kind: ItemKind,
        id: u64,
        sequence: u64,
        issued: UnixMillis,
        lifetime: Duration,
        body: &[u8],
    ) -> Self {
        let lifetime_s = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        Self {
            kind,
            id,
            sequence,
            issued,
            lifetime_s,
            body: Blob(body.into()),
        }
    }

    /// Reads the envelope without checking the signature.
    ///
    /// # Errors
    /// [`DecodeError`] when it cannot be read.
    pub fn unverified(signed: &Signed) -> Result<Self, DecodeError> {
        cbor::from_bytes(signed.unverified_body())
    }

    /// Returns the item's key, given who signed it.
    #[must_use]
    pub const fn key(&self, origin: PeerId) -> ItemKey {
        ItemKey {
            origin,
            kind: self.kind,
            id: self.id,
        }
    }

    /// Returns when the version stops counting. [FLOOD-11]
    #[must_use]
    pub fn expires(&self) -> UnixMillis {
        self.issued.after(Duration::from_secs(u64::from(self.lifetime_s)))
    }
}

/// One version of an item: the bytes that were signed, and what their envelope says. The signature is not checked.
///
/// It is shared by everything that holds it, so that a batch for ten neighbors is ten pointers.
#[derive(Debug)]
pub struct Version {
    lead: u32,
    sequence: u64,
    key: ItemKey,
    signed: Signed,
    issued: UnixMillis,
    expires: UnixMillis,
    /// The hash of the signed bytes, once somebody has asked for it; 0 before. Most of what arrives is known already
    /// and never hashed.
    hash: AtomicU64,
    /// Where it is among the versions that the peers of a process have in common.
    place: Place,
    /// What a check of this very object has found, and when, for the other peers of a process that share checks.
    vouched: spin::Once<(Content, UnixMillis)>,
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.signed == other.signed
    }
}

impl Eq for Version {}

impl Version {
    /// Reads the envelope of a signed item.
    ///
    /// # Errors
    /// [`DecodeError`] when it cannot be read.
    pub fn read(signed: Signed) -> Result<Arc<Self>, DecodeError> {
        let item = Item::unverified(&signed)?;
        Ok(Arc::new(Self {
            lead: signed.claimed_signer().lead(),
            key: item.key(signed.claimed_signer()),
            sequence: item.sequence,
            issued: item.issued,
            expires: item.expires(),
            hash: AtomicU64::new(0),
            place: Place::default(),
            vouched: spin::Once::new(),
            signed,
        }))
    }

    /// Returns the bytes that were signed.
    #[must_use]
    pub const fn signed(&self) -> &Signed {
        &self.signed
    }

    /// Returns which item it is a version of.
    #[must_use]
    pub const fn key(&self) -> ItemKey {
        self.key
    }

    /// Returns the origin's first 32 bits.
    #[must_use]
    pub const fn lead(&self) -> u32 {
        self.lead
    }

    /// Returns how new it is.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns when it was made.
    #[must_use]
    pub const fn issued(&self) -> UnixMillis {
        self.issued
    }

    /// Returns when it stops counting. [FLOOD-11]
    #[must_use]
    pub const fn expires(&self) -> UnixMillis {
        self.expires
    }

    /// Returns the first eight bytes of BLAKE3 of the signed bytes. [FLOOD-3]
    #[must_use]
    pub fn hash(&self) -> u64 {
        // Relaxed: whoever finds no hash computes the same one.
        let known = self.hash.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        let hash = hash_of(&self.signed);
        self.hash.store(hash, Ordering::Relaxed);
        hash
    }

    /// Returns where it is among the versions that the peers of a process have in common.
    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Notes what a check has found, for others who get the same object.
    pub(super) fn vouch(&self, content: &Content, now: UnixMillis) {
        self.vouched.call_once(|| (content.clone(), now));
    }

    /// Returns what somebody else's check has found, when an own one would find the same now.
    pub(super) fn vouched(&self, now: UnixMillis) -> Option<&Content> {
        let (content, since) = self.vouched.get()?;
        let in_force = match content {
            Content::Record(record) => now.before(CLOCK_SKEW_MAX) <= record.member.not_after,
            Content::Revocation(_) => true,
        };
        (in_force && now >= *since).then_some(content)
    }
}

/// Returns the hash by which a signed item's version is known. [FLOOD-3]
#[must_use]
pub fn hash_of(signed: &Signed) -> u64 {
    let digest = blake3::hash(signed.as_bytes());
    let (head, _) = digest
        .as_bytes()
        .split_first_chunk::<8>()
        .expect("a digest has 32 bytes");
    u64::from_be_bytes(*head)
}

impl Value for Arc<Version> {
    fn encode(&self, e: &mut Encoder) {
        self.signed.encode(e);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Version::read(Signed::decode(d)?)
    }
}
