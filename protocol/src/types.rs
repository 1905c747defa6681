//! The data types that users see, with the names of the product's API reference.
//!
//! Values are checked when they are made and when they are decoded; on the wire they are integers (no floats),
//! in JSON they have the reference's names and units.

mod data;
mod node;
mod results;

pub use data::{DataType, PacketPriority, UnknownName};
pub use node::{HardwareType, InvalidNode, METADATA_ENTRIES_MAX, NodeSignature, NodeType};
pub use results::{PingResult, TransferResult};

/// The slowest link that a node may claim, in Gbit/s.
pub const MIN_BANDWIDTH_GBPS: f64 = 1.0;
/// The fastest link that a node may claim, in Gbit/s.
pub const MAX_BANDWIDTH_GBPS: f64 = 1000.0;
/// The shortest coherence time of a quantum processor that the fabric serves, in microseconds.
pub const QUANTUM_COHERENCE_THRESHOLD_US: f64 = 10.0;
/// Size of a pooled buffer for messages, in bytes.
pub const DEFAULT_BUFFER_SIZE: usize = 65_536;
/// Size of a pooled buffer for large transfers, in bytes; also the size of a transfer's chunks.
pub const LARGE_BUFFER_SIZE: usize = 1_048_576;
