//! The transfer machine: its inputs, outputs and tables.

use crate::frame::Frame;
use crate::transfer::{ChunkRanges, Fault, Offer};
use crate::{NodeId, PeerId, TransferId};

/// Which side of a transfer this peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Role {
    /// It sends.
    Sender,
    /// It receives.
    Receiver,
}
