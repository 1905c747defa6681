//! The envelope of what is flooded.

use core::time::Duration;

use crate::cbor::{self, Blob, DecodeError, Decoder, Encoder, Value, wire_map};
use crate::sign::Signed;
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
