//! The error hierarchy that users of the library see.
//!
//! The names are those of the product's API reference. Each operation has its own precise error; these are what
//! they become at the library's border.

use crate::types::InvalidNode;
use crate::{NodeId, PeerId};

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
