//! The error hierarchy that users of the library see.
//!
//! The names are those of the product's API reference. Each operation has its own precise error; these are what
//! they become at the library's border.

use crate::cbor::Text;
use crate::types::InvalidNode;
use crate::{NodeId, PeerId};

/// The longest reason that a handler of requests can give, in bytes.
pub const REASON_BYTES_MAX: usize = 512;

/// Any error of the fabric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HyperFabricError {
    /// About a node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// About a route.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// About a transfer.
    #[error(transparent)]
    Transfer(#[from] crate::transfer::TransferError),
    /// About data that does not fit.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// About a request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An option that this version does not implement is switched on.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedOptionError),
    /// The background services do not run.
    #[error("the fabric is not running: call start_background_services first")]
    NotRunning,
    /// This peer is in no mesh.
    #[error("this peer is not a member of a mesh: `hyperfabric join` a mesh first")]
    NotAMember,
}

/// An option has no implementation in this version; it is refused, so that nobody believes that it acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} is not implemented in this version: leave it off")]
pub struct UnsupportedOptionError {
    /// The option's name.
    pub option: &'static str,
}

/// Any error about the size of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// The data is larger than what holds it.
    #[error(transparent)]
    Overflow(#[from] BufferOverflowError),
}

/// The data exceeds a buffer's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes exceed the capacity of {capacity_bytes}")]
pub struct BufferOverflowError {
    /// Size of the data, in bytes.
    pub bytes: usize,
    /// What fits, in bytes.
    pub capacity_bytes: usize,
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The destination has no handler for data.
    #[error("node {0} does not take data: no handler is registered there")]
    NoHandler(NodeId),
    /// The destination's handler refused.
    #[error("node {node} refused: {}", reason.0)]
    Refused {
        /// The destination.
        node: NodeId,
        /// What its handler says.
        reason: Text<REASON_BYTES_MAX>,
    },
    /// The connection was lost, and the request was not tried again, or not often enough.
    #[error("the connection to node {0} was lost before it answered")]
    Interrupted(NodeId),
    /// The destination turned the stream away, or answered something that is no answer.
    #[error("node {0} did not answer as it should")]
    BadAnswer(NodeId),
    /// The answer did not come in time.
    #[error("node {0} did not answer in time")]
    TimedOut(NodeId),
    /// There is more metadata than a request carries.
    #[error("metadata has more entries, or longer texts, than a request carries")]
    Metadata,
}

/// Any error about a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The id is taken.
    #[error(transparent)]
    Duplicate(#[from] DuplicateNodeError),
    /// No such node is known.
    #[error(transparent)]
    NotFound(#[from] NodeNotFoundError),
    /// The specification is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidNodeError),
}

/// The `node_id` belongs to another peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {node_id} already exists: it belongs to peer {holder}")]
pub struct DuplicateNodeError {
    /// The id that was claimed.
    pub node_id: NodeId,
    /// Whose it is.
    pub holder: PeerId,
}

/// Nobody hosts a node of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {node_id} is not known in this mesh (`hyperfabric nodes` lists those that are)")]
pub struct NodeNotFoundError {
    /// The id that was looked for.
    pub node_id: NodeId,
}

/// The node specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNodeError {
    /// A field is wrong.
    #[error("node {node_id}: {reason}")]
    Field {
        /// The node.
        node_id: NodeId,
        /// The field.
        #[source]
        reason: InvalidNode,
    },
    /// The certificate does not grant this name.
    #[error("node {node_id} lies outside this peer's name {granted}: use {granted} or {granted}/…")]
    OutsideGrant {
        /// The node.
        node_id: NodeId,
        /// What the certificate grants.
        granted: NodeId,
    },
    /// The hardware does not fit the fabric's limits.
    #[error("node {node_id} is not compatible with the fabric's limits")]
    Incompatible {
        /// The node.
        node_id: NodeId,
    },
    /// A peer hosts too many nodes.
    #[error("a peer hosts at most {0} nodes")]
    TooMany(usize),
}

/// Any error about a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// The destination cannot be reached.
    #[error(transparent)]
    NoRouteFound(#[from] NoRouteFoundError),
    /// No path meets the latency budget.
    #[error(transparent)]
    LatencyConstraintViolation(#[from] LatencyConstraintViolationError),
}

/// The destination is known but cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no route to node {destination}: its peer could not be reached at any of its addresses")]
pub struct NoRouteFoundError {
    /// The node.
    pub destination: NodeId,
}

/// The latency budget cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {destination} is {measured_ns} ns away, more than the {constraint_ns} ns allowed")]
pub struct LatencyConstraintViolationError {
    /// The node.
    pub destination: NodeId,
    /// What was asked, in nanoseconds.
    pub constraint_ns: u64,
    /// What was measured, in nanoseconds.
    pub measured_ns: u64,
}
