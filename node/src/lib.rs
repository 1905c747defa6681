//! A HyperFabric node: the library, and what the `hyperfabric` command is made of.
//!
//! The library has no statics, signal handlers or global subscriber: a thousand nodes live in one process.
#![forbid(unsafe_code)]

pub mod api;
pub mod bootstrap;
pub mod client;
pub mod config;
pub mod daemon;
pub(crate) mod directory;
pub mod hardware;
pub mod hyperfabric;
pub mod node;
pub mod offline;
pub mod paths;
pub mod storage;
pub mod store;
pub mod transfer;

pub use hyperfabric::{HyperFabricOptions, HyperFabricProtocol, SendOptions, ServicesError};
pub use hyperfabric_mesh::workers;
pub use hyperfabric_protocol::error::{
    BufferError, BufferOverflowError, DuplicateNodeError, HyperFabricError, InvalidNodeError,
    LatencyConstraintViolationError, NoRouteFoundError, NodeError, NodeNotFoundError, RequestError,
    RoutingError, UnsupportedOptionError,
};
pub use hyperfabric_protocol::types::{
    DataType, HardwareType, NodeSignature, NodeType, PacketPriority, PingResult, TransferResult,
};
pub use hyperfabric_protocol::{NodeId, PeerId, TransferId};
pub use node::{DataRequest, Node};

/// Compiles the example of the README as a test of documentation.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
