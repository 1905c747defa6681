//! What operations return.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{NodeId, TransferId};

/// The result of a ping between two nodes.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PingResult {
    /// The node that asked.
    pub source: NodeId,
    /// The node that answered.
    pub destination: NodeId,
    /// Median round trip of the answered packets, in nanoseconds.
    pub latency_ns: u64,
    /// How fast the last transfer to the destination moved its bytes, in Gbit/s; `None` when there was none to judge by.
    pub bandwidth_gbps: Option<f64>,
    /// The peers that the packets crossed, by the names of their own nodes, source and destination included.
    pub path: Vec<NodeId>,
    /// Share of packets without an answer, 0.0 to 1.0.
    pub packet_loss_rate: f64,
    /// When the ping ended, in seconds since 1970.
    pub timestamp: f64,
    /// Whether at least one packet was answered.
    pub success: bool,
}

impl PingResult {
    /// Returns the latency in milliseconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a latency of 2^53 ns is 104 days")]
    pub fn latency_ms(&self) -> f64 {
        self.latency_ns as f64 / 1e6
    }

    /// Returns the latency in microseconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a latency of 2^53 ns is 104 days")]
    pub fn latency_us(&self) -> f64 {
        self.latency_ns as f64 / 1e3
    }
}

/// The result of a finished transfer.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TransferResult {
    /// Which transfer.
    pub transfer_id: TransferId,
    /// Size of the payload, in bytes.
    pub bytes: u64,
    /// From the command to the receiver's final acknowledgement, in seconds.
    pub seconds: f64,
    /// BLAKE3 of the payload in hexadecimal, as `b3sum` prints it.
    pub blake3: String,
    /// The peers that the payload crossed, by the names of their own nodes.
    pub route: Vec<NodeId>,
    /// Bytes that an earlier attempt had already delivered, and that were not sent again.
    pub resumed_bytes: u64,
}
