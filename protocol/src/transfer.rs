//! Transfers: who sends what to whom, which of it has arrived, and how it ended.
//!
//! Payload bytes never come here, only ids, lengths and digests: the driver moves chunks, and this machine says
//! when. It survives lost connections (offer again, send what is missing) and restarts of either side (the
//! receiver's journal says what it has). Both ends always reach an end: delivered, or a named [`Fault`].
//! [XFER-1..19]

pub mod limits;
mod machine;
mod offer;
mod ranges;

pub use machine::{
    Ended, Input, Job, JobResult, Output, PayloadOrder, Prepared, Role, Subject, TransferError,
    TransferEvent, TransferInfo, TransferState, Transfers, Violation,
};
pub use offer::{CHUNK_BYTES, FILE_NAME_BYTES_MAX, Fault, Offer, PayloadKind};
pub use ranges::{ChunkRanges, RANGES_MAX};
