//! What items say, and whether they may say it.
//!
//! [`check`] is pure and takes the time of some hundred microseconds (three signatures), so it runs as a job.

use alloc::sync::Arc;

use crate::cbor::{self, DecodeError, List, Text, wire_map};
use crate::cert::{CertificateError, Delegation, Member, Membership, MeshRoot};
use crate::flood::{Item, ItemKind, hash_of};
use crate::sign::{Domain, Signed};
use crate::table::Place;
use crate::types::NodeSignature;
use crate::{Address, NodeId, PeerId, Serial, UnixMillis};

/// The most addresses in a record.
pub const ADDRESSES_MAX: usize = 8;
/// The most nodes that a peer hosts.
pub const NODES_PER_PEER_MAX: usize = 32;

wire_map! {
    /// What a peer publishes about itself. [DIR-1]
    pub struct RecordBody {
        /// Its membership.
        0 => pub membership: Membership,
        /// Where it can be dialled.
        1 => pub addresses: List<Address, ADDRESSES_MAX>,
        /// The nodes that it hosts.
        2 => pub nodes: NodeList,
        /// Whether it is a bootstrap peer, which others may keep a connection to beyond their neighbors.
        3 => pub bootstrap: Option<bool>,
        /// What it runs, for people.
        4 => pub agent: Option<Text<64>>,
    }
}

/// The nodes of a record. A type of its own because [`NodeSignature`] holds floats and so has no total equality.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeList(pub alloc::vec::Vec<NodeSignature>);

impl Eq for NodeList {}

impl cbor::Value for NodeList {
    fn encode(&self, e: &mut cbor::Encoder) {
        e.array(self.0.len());
        for node in &self.0 {
            node.encode(e);
        }
    }
    fn decode(d: &mut cbor::Decoder<'_>) -> Result<Self, DecodeError> {
        let list: List<NodeSignature, NODES_PER_PEER_MAX> = cbor::Value::decode(d)?;
        Ok(Self(list.0))
    }
    fn is_absent(&self) -> bool {
        self.0.is_empty()
    }
    fn absent() -> Option<Self> {
        Some(Self::default())
    }
}

wire_map! {
    /// The end of a membership.
    pub struct Revocation {
        /// The peer that is no member any more.
        0 => pub peer: PeerId,
        /// The name that it had.
        1 => pub name: NodeId,
        /// The certificate that no longer counts.
        2 => pub serial: Serial,
        /// When the certificate would have ended; the revocation may be forgotten then.
        3 => pub not_after: UnixMillis,
        /// The revoker's right to do so; absent when it is the authority.
        4 => pub delegation: Option<Signed>,
    }
}

/// A peer's record, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The peer and its verified membership.
    pub member: Member,
    /// What it publishes.
    pub body: RecordBody,
    /// The hash of the item that says so ([`hash_of`]).
    pub hash: u64,
    pub(crate) places: Places,
}

/// Where a record, and its claim to its first node, are among those that the peers of a process have in common.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) record: Place,
    pub(crate) claim: Place,
}

impl Clone for Places {
    /// A copy is another object, which nobody has.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Places {
    /// They say nothing about the record.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Record {
    /// Makes one whose item was checked.
    #[must_use]
    pub fn new(member: Member, body: RecordBody, hash: u64) -> Self {
        Self {
            member,
            body,
            hash,
            places: Places::default(),
        }
    }
}

/// What a valid item says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// About a peer.
    Record(Arc<Record>),
    /// About the end of a membership.
    Revocation(Arc<Revocation>),
}

/// Why an item is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemFault {
    /// The signature is wrong.
    #[error("the item's signature is wrong")]
    Forged,
    /// The content cannot be read.
    #[error("the item cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// The origin is no member.
    #[error("the item's origin {0}")]
    Membership(#[from] CertificateError),
    /// A node lies outside the name that the origin was granted.
    #[error("the item names a node outside its origin's name")]
    OutsideGrant,
    /// The origin may not revoke.
    #[error("the item's origin is not an admitter")]
    NotAnAdmitter,
}

/// Checks an item: signature, form, and whether its origin may say what it says.
///
/// # Errors
/// [`ItemFault`] says what is wrong with it.
pub fn check(signed: &Signed, root: &MeshRoot, now: UnixMillis) -> Result<Content, ItemFault> {
    let body = signed.verify(Domain::Item).map_err(|_| ItemFault::Forged)?;
    let item: Item = cbor::from_bytes(body)?;
    let origin = signed.claimed_signer();
    match item.kind {
        ItemKind::Record => {
            let (member, body) = check_record(&item, root, origin, now)?;
            let hash = hash_of(signed);
            Ok(Content::Record(Arc::new(Record::new(member, body, hash))))
        }
        ItemKind::Revocation => {
            let revocation = check_revocation(&item, root, origin, now)?;
            Ok(Content::Revocation(Arc::new(revocation)))
        }
        ItemKind::Other(_) => Err(DecodeError::Invalid("item kind").into()),
    }
}

fn check_record(
    item: &Item,
    root: &MeshRoot,
    origin: PeerId,
    now: UnixMillis,
) -> Result<(Member, RecordBody), ItemFault> {
    let body: RecordBody = cbor::from_bytes(&item.body)?;
    let member = Membership::verify(&cbor::to_bytes(&body.membership), root, &origin, now)?;
    if item.id != 0 {
        return Err(DecodeError::Invalid("record id").into());
    }
    if body
        .nodes
        .0
        .iter()
        .any(|node| !node.node_id.is_within(&member.name))
    {
        return Err(ItemFault::OutsideGrant);
    }
    Ok((member, body))
}

fn check_revocation(
    item: &Item,
    root: &MeshRoot,
    origin: PeerId,
    now: UnixMillis,
) -> Result<Revocation, ItemFault> {
    let body: Revocation = cbor::from_bytes(&item.body)?;
    let MeshRoot::Closed { authority, .. } = root else {
        return Err(ItemFault::NotAnAdmitter);
    };
    if item.id != revocation_id(&body.serial) {
        return Err(DecodeError::Invalid("revocation id").into());
    }
    match &body.delegation {
        None if origin == *authority => Ok(body),
        Some(signed) if signed.claimed_signer() == *authority => {
            let raw = signed.verify(Domain::Delegation).map_err(|_| ItemFault::Forged)?;
            let delegation: Delegation = cbor::from_bytes(raw)?;
            // [CERT-8] A revocation outlives the delegation that it was made under, so only the start is checked.
            let valid = delegation.admitter == origin
                && delegation.mesh == root.id()
                && delegation.not_before <= now.after(crate::cert::CLOCK_SKEW_MAX)
                && item.issued <= delegation.not_after;
            if valid {
                Ok(body)
            } else {
                Err(ItemFault::NotAnAdmitter)
            }
        }
        None | Some(_) => Err(ItemFault::NotAnAdmitter),
    }
}

/// Returns the id of the item that revokes a certificate.
#[must_use]
pub fn revocation_id(serial: &Serial) -> u64 {
    let digest = blake3::hash(serial.as_bytes());
    let (head, _) = digest
        .as_bytes()
        .split_first_chunk::<8>()
        .expect("a digest has 32 bytes");
    u64::from_be_bytes(*head)
}
