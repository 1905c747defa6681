//! What is offered, and how it can fail.

use crate::cbor::{Text, wire_enum, wire_map};
use crate::types::{DataType, PacketPriority};
use crate::{NodeId, UnixMillis};

/// Size of every chunk but the last, in bytes; a power of two, so that each is a BLAKE3 subtree.
pub const CHUNK_BYTES: u64 = 1024 * 1024;
/// The longest file name, in bytes, as on common file systems.
pub const FILE_NAME_BYTES_MAX: usize = 255;

/// What the payload becomes at the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadKind {
    /// One file.
    File,
    /// A folder: a manifest followed by the contents of its files.
    Tree,
}

wire_enum!(PayloadKind { File = 0, Tree = 1 });

wire_map! {
    /// What a sender offers. [XFER-15]
    pub struct Offer {
        /// The node that sends.
        0 => pub source: NodeId,
        /// The node that receives.
        1 => pub destination: NodeId,
        /// The name that the file or folder has.
        2 => pub name: Text<FILE_NAME_BYTES_MAX>,
        /// What it is.
        3 => pub kind: PayloadKind,
        /// Size of the payload in bytes.
        4 => pub size: u64,
        /// What the payload means.
        5 => pub data_type: DataType,
        /// How urgent it is.
        6 => pub priority: PacketPriority,
        /// When the source was last modified; kept at the receiver.
        7 => pub modified: Option<UnixMillis>,
        /// Permission bits of a file, masked to 0o777; kept at the receiver.
        8 => pub mode: Option<u32>,
        /// Whether the receiver makes every chunk durable as it arrives, not a window of them at a time.
        9 => pub sync: Option<bool>,
    }
}

impl Offer {
    /// Returns how many chunks the payload has.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK_BYTES)
    }
}

/// Why a transfer ends without having been delivered. [XFER-17]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Fault {
    /// The receiver's policy takes nothing.
    #[error("the receiver does not accept transfers")]
    NotAccepted,
    /// The receiver does not host the node.
    #[error("the receiver does not host that node")]
    NoSuchNode,
    /// The inbox would exceed its quota.
    #[error("the receiver's inbox quota is reached")]
    QuotaExceeded,
    /// The receiver's disk is full.
    #[error("the receiver's disk is full")]
    NoSpace,
    /// The receiver cannot write to its inbox.
    #[error("the receiver cannot write to its inbox")]
    InboxUnwritable,
    /// The receiver's disk failed.
    #[error("the receiver's storage failed")]
    Storage,
    /// The file name is not acceptable.
    #[error("the receiver refuses the file's name")]
    BadName,
    /// The folder's manifest is not acceptable.
    #[error("the receiver refuses the folder's manifest")]
    BadManifest,
    /// The source was changed while it was sent.
    #[error("the source changed while it was sent")]
    SourceChanged,
    /// The source cannot be read any more.
    #[error("the source cannot be read")]
    SourceUnreadable,
    /// The bytes that arrived are not the bytes that were announced.
    #[error("the bytes received do not match their digest")]
    DigestMismatch,
    /// A peer broke the transfer protocol.
    #[error("the other side broke the protocol")]
    Violation,
    /// A member's certificate was revoked.
    #[error("the membership of one side was revoked")]
    Revoked,
    /// Someone cancelled it.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// It did not end in the time allowed.
    #[error("the transfer did not end in the time allowed")]
    TimedOut,
    /// The other side could not be reached in the time allowed.
    #[error("the other side could not be reached")]
    Unreachable,
    /// Too many transfers at once.
    #[error("the other side has too many transfers at once")]
    Busy,
}

wire_enum!(Fault {
    NotAccepted = 0,
    NoSuchNode = 1,
    QuotaExceeded = 2,
    NoSpace = 3,
    InboxUnwritable = 4,
    Storage = 5,
    BadName = 6,
    BadManifest = 7,
    SourceChanged = 8,
    SourceUnreadable = 9,
    DigestMismatch = 10,
    Violation = 11,
    Revoked = 12,
    Cancelled = 13,
    TimedOut = 14,
    Unreachable = 15,
    Busy = 16,
});

#[cfg(test)]
mod tests;
