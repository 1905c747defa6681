//! Control frames: what two connected peers say to each other beside payloads.
//!
//! A frame is a CBOR array of its type and one map. An unknown type below [`CRITICAL_TYPE`] is skipped, so that
//! old peers can live beside new ones; from there on it is a violation. [FRAME-1..6]

mod tally;

use alloc::sync::Arc;
use alloc::vec::Vec;

pub use tally::Tally;

use crate::cbor::{DecodeError, Decoder, Encoder, List, Text, Value, wire_enum, wire_map};
use crate::cert::Membership;
use crate::flood::{ITEMS_PER_FRAME_MAX, Version};
use crate::neighbors::CloseReason;
use crate::transfer::{ChunkRanges, Fault, Offer};
use crate::{NodeId, TransferId};

/// The largest frame, in bytes, without its length prefix. [FRAME-4]
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Frame types from here on must be understood. [FRAME-2]
pub const CRITICAL_TYPE: u64 = 128;
/// The version of the wire format that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// How many buckets a flood summary has.
pub const SUMMARY_BUCKETS: usize = 256;
/// The most versions in one digest frame: five times as many as a bucket of the largest database has. In a mesh of four
/// thousand a whole comparison is one frame.
pub const DIGEST_VERSIONS_MAX: usize = 4000;
/// The longest explanation in a frame, in bytes.
pub const DETAIL_BYTES_MAX: usize = 512;

wire_map! {
    /// The first frame in each direction of a prompt connection.
    pub struct Hello {
        /// [`PROTOCOL_VERSION`] of the sender.
        0 => pub version: u16,
        /// Feature bits; none are defined yet.
        1 => pub features: u64,
        /// Drawn at random when the peer's process starts: a new one means that the peer was restarted.
        2 => pub incarnation: u64,
        /// What the sender runs, for people.
        3 => pub agent: Text<64>,
    }
}

fn write_hashes(e: &mut Encoder, hashes: &[u64]) {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect();
    e.bytes(&bytes);
}

fn read_hashes(d: &mut Decoder<'_>, most: usize) -> Result<Vec<u64>, DecodeError> {
    let (words, rest) = d.bytes(most * 8)?.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(DecodeError::Invalid("length of hashes"));
    }
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// One 64-bit hash for each bucket of a flood database: [`SUMMARY_BUCKETS`] of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketHashes(pub Vec<u64>);

impl Value for BucketHashes {
    fn encode(&self, e: &mut Encoder) {
        write_hashes(e, &self.0);
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let all = read_hashes(d, SUMMARY_BUCKETS)?;
        if all.len() != SUMMARY_BUCKETS {
            return Err(DecodeError::Invalid("summary length"));
        }
        Ok(Self(all))
    }
}

wire_map! {
    /// What the sender's flood database holds, in short. [FLOOD-3]
    pub struct Summary {
        /// A hash of each bucket.
        0 => pub hashes: BucketHashes,
        /// Whether the sender wants to see the receiver's, should that differ.
        1 => pub answer: Option<bool>,
        /// How many items it holds.
        2 => pub items: u32,
    }
}

/// A set of buckets: one bit for each, the highest of the first byte for the first bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets([u8; SUMMARY_BUCKETS / 8]);

impl Buckets {
    /// Adds a bucket.
    pub const fn insert(&mut self, bucket: u8) {
        self.0[bucket as usize / 8] |= 0x80 >> (bucket % 8);
    }

    /// Tells whether a bucket is in the set.
    #[must_use]
    pub const fn contains(&self, bucket: u8) -> bool {
        self.0[bucket as usize / 8] & (0x80 >> (bucket % 8)) != 0
    }

    /// Adds those of another set.
    pub fn extend(&mut self, others: &Self) {
        let bytes = self.0.iter_mut().zip(&others.0);
        bytes.for_each(|(byte, other)| *byte |= other);
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// Returns them in order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        let all = *self;
        (0..=u8::MAX).filter(move |bucket| all.contains(*bucket))
    }

    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

impl FromIterator<u8> for Buckets {
    fn from_iter<I: IntoIterator<Item = u8>>(buckets: I) -> Self {
        let mut all = Self::default();
        buckets.into_iter().for_each(|bucket| all.insert(bucket));
        all
    }
}

impl Value for Buckets {
    fn encode(&self, e: &mut Encoder) {
        self.0.encode(e);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Value::decode(d).map(Self)
    }
}

/// Hashes of the versions that a peer has in some buckets, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions(pub Vec<u64>);

impl Value for Versions {
    fn encode(&self, e: &mut Encoder) {
        write_hashes(e, &self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        read_hashes(d, DIGEST_VERSIONS_MAX).map(Self)
    }
}

wire_map! {
    /// Everything that the sender has in some buckets: it asks for the rest of them. [FLOOD-5]
    pub struct Digest {
        /// The buckets.
        0 => pub buckets: Buckets,
        /// Their items, by the hashes of their versions.
        1 => pub versions: Versions,
    }
}

wire_map! {
    /// A batch of flooded items.
    pub struct Items {
        /// Signed [`crate::flood::Item`]s.
        0 => pub items: List<Arc<Version>, ITEMS_PER_FRAME_MAX>,
        /// For items that were asked for: how many Digests are answered with this frame and those before it. [FLOOD-6]
        1 => pub answers: Option<u32>,
    }
}

impl Items {
    /// Makes a batch of news.
    #[must_use]
    pub const fn new(items: List<Arc<Version>, ITEMS_PER_FRAME_MAX>) -> Self {
        Self { items, answers: None }
    }
}

wire_map! {
    /// Whether the sender wants the items that the receiver forwards. [FLOOD-14]
    pub struct Forwarding {
        /// Whether it does; at first everyone does.
        0 => pub wanted: bool,
    }
}

wire_map! {
    /// The sender's last frame: it closes the connection as soon as what was asked on it is answered. [CONN-9]
    pub struct Goodbye {
        /// A [`CloseReason`]'s code.
        0 => pub code: u32,
    }
}

impl Goodbye {
    /// Says why.
    #[must_use]
    pub const fn new(reason: CloseReason) -> Self {
        Self { code: reason.code() }
    }

    /// Returns why, when it is a reason for a connection to drain.
    #[must_use]
    pub fn reason(&self) -> Option<CloseReason> {
        CloseReason::from_code(u64::from(self.code)).filter(|reason| reason.drains())
    }
}

wire_map! {
    /// An offer to send bytes.
    pub struct OfferFrame {
        /// Which transfer.
        0 => pub transfer: TransferId,
        /// What is offered.
        1 => pub offer: Offer,
    }
}

wire_map! {
    /// The receiver is ready for the chunks that it does not have.
    pub struct Accept {
        /// Which transfer.
        0 => pub transfer: TransferId,
        /// The chunks that are on the receiver's disk already.
        1 => pub have: ChunkRanges,
        /// Numbers the attempt: chunks on a stream of an earlier one are ignored.
        2 => pub attempt: u32,
    }
}

wire_map! {
    /// Chunks that have become durable at the receiver.
    pub struct Progress {
        /// Which transfer.
        0 => pub transfer: TransferId,
        /// Every durable chunk of the transfer.
        1 => pub durable_bytes: u64,
    }
}

wire_map! {
    /// All chunks were sent; this closes the transfer.
    pub struct Finish {
        /// Which transfer.
        0 => pub transfer: TransferId,
        /// BLAKE3 of the whole payload.
        1 => pub root: [u8; 32],
    }
}

wire_map! {
    /// The receiver has the whole payload, verified, durable and in its place.
    pub struct Delivered {
        /// Which transfer.
        0 => pub transfer: TransferId,
        /// BLAKE3 of what was delivered.
        1 => pub root: [u8; 32],
    }
}

wire_map! {
    /// The transfer is over, without having been delivered.
    pub struct Abort {
        /// Which transfer.
        0 => pub transfer: TransferId,
        /// Why.
        1 => pub fault: Fault,
        /// More about it, for people.
        2 => pub detail: Option<Text<DETAIL_BYTES_MAX>>,
    }
}

wire_map! {
    /// The bearer of a ticket asks for a certificate.
    pub struct JoinRequest {
        /// The ticket's secret.
        0 => pub secret: [u8; 16],
        /// The ticket's name.
        1 => pub name: NodeId,
    }
}

/// Why an issuer does not redeem a ticket, or an admitter does not renew. [JOIN-2]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// No such ticket was issued here.
    #[error("the ticket is not known to its issuer")]
    UnknownTicket,
    /// The ticket has run out.
    #[error("the ticket has expired: ask for a new one")]
    Expired,
    /// The ticket was used by another peer.
    #[error("the ticket was already used: ask for a new one")]
    Used,
    /// The ticket grants another name.
    #[error("the ticket was issued for another name")]
    OtherName,
    /// The name belongs to another peer.
    #[error("the name is taken by another peer")]
    NameTaken,
    /// The issuer may not admit any more.
    #[error("the issuer is not an admitter of the mesh")]
    NotAnAdmitter,
    /// The peer was revoked.
    #[error("this peer was revoked")]
    Revoked,
    /// The issuer could not write down that the ticket was used.
    #[error("the issuer could not record the use of the ticket: try again")]
    Storage,
}

wire_enum!(JoinRefusal {
    UnknownTicket = 0,
    Expired = 1,
    Used = 2,
    OtherName = 3,
    NameTaken = 4,
    NotAnAdmitter = 5,
    Revoked = 6,
    Storage = 7,
});

wire_map! {
    /// The answer to a [`JoinRequest`] or a renewal: one of the two fields.
    pub struct JoinReply {
        /// The membership granted.
        0 => pub membership: Option<Membership>,
        /// Why there is none.
        1 => pub refusal: Option<JoinRefusal>,
    }
}

wire_map! {
    /// A member asks an admitter for a certificate with a later end.
    pub struct RenewRequest {
        /// The membership that it holds.
        0 => pub membership: Membership,
    }
}

/// Declares the frame types with their numbers.
macro_rules! frames {
    ($($(#[$meta:meta])* $code:literal => $variant:ident($ty:ty)),* $(,)?) => {
        /// A control frame.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Frame {
            $($(#[$meta])* $variant($ty),)*
        }

        impl Frame {
            /// The numbers of the types, and their names.
            pub const TYPES: &'static [(u64, &'static str)] = &[$(($code, stringify!($variant)),)*];

            /// Returns the number of the frame's type.
            #[must_use]
            pub const fn code(&self) -> u64 {
                match self {
                    $(Self::$variant(_) => $code,)*
                }
            }

            /// Reads the number of an encoded frame's type, and nothing else of it.
            #[must_use]
            pub fn code_of(bytes: &[u8]) -> Option<u64> {
                let mut d = Decoder::new(bytes);
                if d.array(2).ok()? != 2 {
                    return None;
                }
                d.u64().ok()
            }

            /// Returns the frame's bytes, without the length prefix. [FRAME-1]
            #[must_use]
            pub fn to_bytes(&self) -> Vec<u8> {
                let mut e = Encoder::new();
                e.array(2);
                match self {
                    $(Self::$variant(body) => {
                        e.u64($code);
                        body.encode(&mut e);
                    })*
                }
                e.into_bytes()
            }

            /// Reads a frame; `None` is a frame of a kind that may be skipped.
            ///
            /// # Errors
            /// [`DecodeError`] when the bytes are not a frame, or one that must be understood and is not. [FRAME-6]
            pub fn from_bytes(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
                if bytes.len() > FRAME_BYTES_MAX {
                    return Err(DecodeError::TooLong(FRAME_BYTES_MAX));
                }
                let mut d = Decoder::new(bytes);
                if d.array(2)? != 2 {
                    return Err(DecodeError::Invalid("frame"));
                }
                let frame = match d.u64()? {
                    $($code => Self::$variant(Value::decode(&mut d)?),)*
                    code if code >= CRITICAL_TYPE => return Err(DecodeError::Critical(code)),
                    _ => return Ok(None),
                };
                d.end()?;
                Ok(Some(frame))
            }
        }
    };
}

frames! {
    /// Opens a connection.
    0 => Hello(Hello),
    /// Starts the synchronisation of the flood databases.
    1 => Summary(Summary),
    /// Answers a summary: asks for what is not there.
    2 => Digest(Digest),
    /// Floods.
    3 => Items(Items),
    /// Leaves the connection to what was asked on it.
    4 => Goodbye(Goodbye),
    /// Says whether forwarded items are wanted.
    5 => Forwarding(Forwarding),
    /// Offers a transfer.
    8 => Offer(OfferFrame),
    /// Accepts it.
    9 => Accept(Accept),
    /// Reports on it.
    10 => Progress(Progress),
    /// Closes it, from the sender.
    11 => Finish(Finish),
    /// Closes it, from the receiver.
    12 => Delivered(Delivered),
    /// Ends it without success, from either side.
    13 => Abort(Abort),
    /// Asks for a certificate.
    16 => JoinRequest(JoinRequest),
    /// Answers.
    17 => JoinReply(JoinReply),
    /// Asks for a longer certificate.
    18 => RenewRequest(RenewRequest),
    /// Answers.
    19 => RenewReply(JoinReply),
}

#[cfg(test)]
mod tests;
