//! Discovery beyond the neighbors.

use hyperfabric_protocol::{Address, NodeId, PeerId, Signed};
use tokio::sync::mpsc;

use crate::connection::Connection;
use crate::streams::BiStream;

/// What discovery has found.
#[derive(Clone, Debug)]
pub enum Found {
    /// A signed item.
    Item(Signed),
    /// Where a peer can be dialled.
    Address {
        /// The peer.
        peer: PeerId,
        /// Where.
        addresses: Vec<Address>,
    },
    /// A peer that discovery would like to talk to.
    Wanted {
        /// The peer.
        peer: PeerId,
    },
}

/// A discovery service.
#[derive(Debug)]
pub enum Discovery {}

/// Hands connections to discovery.
#[derive(Clone, Debug)]
pub enum Attacher {}

impl Discovery {
    /// Returns a handle for attaching connections.
    #[must_use]
    pub fn attacher(&self) -> Attacher {
        match *self {}
    }

    /// Waits for the next finding.
    pub async fn found(&mut self) -> Option<Found> {
        match *self {}
    }

    /// Publishes a record.
    pub fn publish(&self, _record: Signed, _nodes: Vec<NodeId>) {
        match *self {}
    }
}

impl Attacher {
    /// Attaches a connection.
    pub async fn attach(&self, _connection: Connection, _streams: mpsc::Receiver<BiStream>) {
        match *self {}
    }
}
