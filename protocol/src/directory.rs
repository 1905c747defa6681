//! The directory: which peers are members, where they can be dialled, and which nodes they host.
//!
//! It is what the accepted records say, indexed. When two peers claim one node id (two admitters granted one name
//! on two sides of a partition), the lower certificate serial wins at every peer alike, and the loser is told.
//! [DIR-1..4]

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::cert::Member;
use crate::flood::Record;
use crate::types::NodeSignature;
use crate::{Address, NodeId, PeerId, Serial};

/// What changes in the directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A peer's addresses are known or have changed.
    Learned {
        /// The peer.
        peer: PeerId,
        /// Where it can be dialled.
        addresses: Vec<Address>,
        /// Whether it is a bootstrap peer.
        bootstrap: bool,
    },
    /// A peer's record is gone.
    Forgotten(PeerId),
    /// A node can now be addressed.
    NodeAppeared {
        /// The node.
        node_id: NodeId,
        /// Who hosts it.
        peer: PeerId,
    },
    /// A node can no longer be addressed.
    NodeGone(NodeId),
    /// This peer's node id belongs to another peer.
    Duplicate {
        /// The id.
        node_id: NodeId,
        /// Whose it is.
        holder: PeerId,
    },
}

/// The directory's state.
#[derive(Debug)]
pub struct Directory {
    local: PeerId,
    records: BTreeMap<PeerId, Record>,
    /// Who claims each node id, the winner first.
    claims: BTreeMap<NodeId, BTreeSet<(Serial, PeerId)>>,
    /// Who holds each granted name, the winner first.
    names: BTreeMap<NodeId, BTreeSet<(Serial, PeerId)>>,
    events: VecDeque<Event>,
}

impl Directory {
    /// Starts empty.
    #[must_use]
    pub const fn new(local: PeerId) -> Self {
        Self {
            local,
            records: BTreeMap::new(),
            claims: BTreeMap::new(),
            names: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes a record in; it replaces the peer's earlier one.
    pub fn insert(&mut self, record: Record) {
        let peer = record.member.peer;
        let old = self.records.remove(&peer);
        let serial = record.member.serial;
        let old_nodes: Vec<NodeId> = old
            .iter()
            .flat_map(|r| r.body.nodes.0.iter().map(|n| n.node_id.clone()))
            .collect();
        let new_nodes: BTreeSet<NodeId> = record.body.nodes.0.iter().map(|n| n.node_id.clone()).collect();
        if let Some(old) = &old {
            remove_claim(&mut self.names, &old.member.name, (old.member.serial, peer));
        }
        self.names
            .entry(record.member.name.clone())
            .or_default()
            .insert((serial, peer));
        let old_serial = old.as_ref().map(|r| r.member.serial);
        for node in old_nodes
            .iter()
            .filter(|n| !new_nodes.contains(*n) || old_serial != Some(serial))
        {
            self.unclaim(node, (old_serial.unwrap_or(serial), peer));
        }
        let learned = Event::Learned {
            peer,
            addresses: record.body.addresses.0.clone(),
            bootstrap: record.body.bootstrap == Some(true),
        };
        let changed = old.as_ref().is_none_or(|o| {
            o.body.addresses != record.body.addresses || o.body.bootstrap != record.body.bootstrap
        });
        self.records.insert(peer, record);
        for node in new_nodes {
            self.claim(node, (serial, peer));
        }
        if changed && peer != self.local {
            self.events.push_back(learned);
        }
    }

    /// Drops a peer's record: it ran out, or its membership ended.
    pub fn remove(&mut self, peer: &PeerId) {
        let Some(old) = self.records.remove(peer) else {
            return;
        };
        remove_claim(&mut self.names, &old.member.name, (old.member.serial, *peer));
        for node in &old.body.nodes.0 {
            self.unclaim(&node.node_id, (old.member.serial, *peer));
        }
        self.events.push_back(Event::Forgotten(*peer));
    }

    fn claim(&mut self, node_id: NodeId, claim: (Serial, PeerId)) {
        let claims = self.claims.entry(node_id.clone()).or_default();
        let before = claims.first().copied();
        claims.insert(claim);
        let after = claims.first().copied();
        if before != after {
            let peer = claim.1;
            self.events.push_back(Event::NodeAppeared {
                node_id: node_id.clone(),
                peer,
            });
        }
        // [DIR-3] The local claim lost, now or because it was published again.
        if let Some((_, holder)) = after
            && holder != self.local
            && claims.iter().any(|(_, peer)| *peer == self.local)
        {
            self.events.push_back(Event::Duplicate { node_id, holder });
        }
    }

    fn unclaim(&mut self, node_id: &NodeId, claim: (Serial, PeerId)) {
        let before = self.claims.get(node_id).and_then(|c| c.first().copied());
        remove_claim(&mut self.claims, node_id, claim);
        let after = self.claims.get(node_id).and_then(|c| c.first().copied());
        match after {
            None if before.is_some() => self.events.push_back(Event::NodeGone(node_id.clone())),
            Some((_, peer)) if before != after => {
                self.events.push_back(Event::NodeAppeared {
                    node_id: node_id.clone(),
                    peer,
                });
            }
            None | Some(_) => {}
        }
    }

    /// Returns who hosts a node. [DIR-2]
    #[must_use]
    pub fn host_of(&self, node_id: &NodeId) -> Option<PeerId> {
        self.claims
            .get(node_id)
            .and_then(|claims| claims.first())
            .map(|(_, peer)| *peer)
    }

    /// Returns everyone who claims a node, the winner first. In an open mesh, where names prove nothing, several
    /// peers may.
    pub fn claimants(&self, node_id: &NodeId) -> impl Iterator<Item = PeerId> {
        self.claims
            .get(node_id)
            .into_iter()
            .flatten()
            .map(|(_, peer)| *peer)
    }

    /// Returns every node that can be addressed.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.claims.keys()
    }

    /// Returns a node's specification, as its host publishes it.
    #[must_use]
    pub fn node(&self, node_id: &NodeId) -> Option<(&NodeSignature, &Record)> {
        let record = self.records.get(&self.host_of(node_id)?)?;
        record
            .body
            .nodes
            .0
            .iter()
            .find(|n| n.node_id == *node_id)
            .map(|node| (node, record))
    }

    /// Returns a peer's record.
    #[must_use]
    pub fn record(&self, peer: &PeerId) -> Option<&Record> {
        self.records.get(peer)
    }

    /// Returns a peer's membership.
    #[must_use]
    pub fn member(&self, peer: &PeerId) -> Option<&Member> {
        self.records.get(peer).map(|record| &record.member)
    }

    /// Returns every record.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Returns how many peers are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Tells whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns who else holds a name that is, contains or lies within `name`.
    #[must_use]
    pub fn name_holder(&self, name: &NodeId, except: &PeerId) -> Option<PeerId> {
        let other =
            |holders: &BTreeSet<(Serial, PeerId)>| holders.iter().map(|(_, p)| *p).find(|p| p != except);
        let mut above = Some(name.as_str());
        while let Some(text) = above {
            let found = NodeId::new(text)
                .ok()
                .and_then(|id| self.names.get(&id).and_then(other));
            if found.is_some() {
                return found;
            }
            above = text.rsplit_once('/').map(|(head, _)| head);
        }
        self.names
            .range(name.clone()..)
            .take_while(|(n, _)| n.as_str().starts_with(name.as_str()))
            .find_map(
                |(n, holders)| {
                    if n.is_within(name) { other(holders) } else { None }
                },
            )
    }

    /// Returns the next change.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

fn remove_claim(
    map: &mut BTreeMap<NodeId, BTreeSet<(Serial, PeerId)>>,
    key: &NodeId,
    claim: (Serial, PeerId),
) {
    if let Some(claims) = map.get_mut(key) {
        claims.remove(&claim);
        if claims.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
