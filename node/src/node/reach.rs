//! Finding the peer of a node, and a connection to it.

use std::convert::Infallible;
use std::time::Duration;

use hyperfabric_mesh::Connection;
use hyperfabric_protocol::error::NodeNotFoundError;
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::{NodeId, PeerId};

use super::Node;
use super::sending::StartError;

/// A node that was not found is looked up again after this: peers that know it may have been met meanwhile.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);

impl Node {
    /// Finds the peer that hosts a node, looking for it until `wait` has passed.
    pub(crate) async fn find_host(&self, node: &NodeId, wait: Duration) -> Result<PeerId, StartError> {
        let events = self.events();
        let wanted = node.clone();
        let known = self
            .0
            .handle
            .act(move |fabric, _| fabric.directory().host_of(&wanted))
            .await?;
        let host = match known {
            Some(host) => Some(host),
            None if wait.is_zero() => None,
            None => {
                let wanted = node.clone();
                let appeared = Self::wait_for(events, wait, move |event| match event {
                    Event::NodeAppeared { node_id, peer } if node_id == wanted => Some(peer),
                    _ => None,
                });
                tokio::select! {
                    found = appeared => found,
                    never = self.look_up(node) => match never {},
                }
            }
        };
        match host {
            Some(host) if host == self.peer_id() => Err(StartError::Local(node.clone())),
            Some(host) => Ok(host),
            None => Err(NodeNotFoundError {
                node_id: node.clone(),
            }
            .into()),
        }
    }

    /// Looks a node up beyond the neighbors, again and again; what is found comes as [`Event::NodeAppeared`].
    async fn look_up(&self, node: &NodeId) -> Infallible {
        loop {
            match &self.0.discovery {
                Some(discovery) => discovery.lookup(node).await,
                None => std::future::pending().await,
            };
            tokio::time::sleep(LOOKUP_INTERVAL).await;
        }
    }

    /// Returns the prompt connection to a peer, dialling it when there is none, within `limit`.
    pub(crate) async fn connect(&self, peer: PeerId, limit: Duration) -> Option<Connection> {
        // Before the look at the table, so that no news falls in between.
        let events = self.events();
        if let Some(connection) = self.live_connection(&peer) {
            return Some(connection);
        }
        let connected = self
            .handle()
            .act(move |fabric, now| {
                fabric.want(now, peer);
                fabric.connection(&peer).is_some()
            })
            .await
            .ok()?;
        if connected && let Some(connection) = self.live_connection(&peer) {
            self.unwant(peer).await;
            return Some(connection);
        }
        let up = Self::wait_for(events, limit, move |event| match event {
            Event::PeerUp { peer: up, .. } if up == peer => Some(()),
            _ => None,
        });
        let up = up.await;
        self.unwant(peer).await;
        up?;
        self.handle().connection(&peer)
    }

    /// Takes a wish back; the connection stays as long as the machine keeps it.
    async fn unwant(&self, peer: PeerId) {
        // A node that is shutting down has no wishes.
        let _ = self
            .handle()
            .act(move |fabric, now| fabric.unwant(now, peer))
            .await;
    }

    /// Returns the connection to a peer, unless it has ended or drains and the machine does not know yet.
    fn live_connection(&self, peer: &PeerId) -> Option<Connection> {
        let connection = self.handle().connection(peer)?;
        connection.is_open().then_some(connection)
    }
}
