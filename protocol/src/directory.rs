//! The directory: which peers are members, where they can be dialled, and which nodes they host.
//!
//! It is what the accepted records say, indexed. When two peers claim one node id (two admitters granted one name
//! on two sides of a partition), the lower certificate serial wins at every peer alike, and the loser is told.
//! [DIR-1..4]

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use core::cell::OnceCell;
use core::cmp::Ordering;

use crate::cert::Member;
use crate::flood::Record;
use crate::sharing::Sharing;
use crate::table::{Row, Table};
use crate::types::NodeSignature;
use crate::{NodeId, PeerId, Serial};

/// What changes in the directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A peer's addresses are known or have changed.
    Learned {
        /// The peer.
        peer: PeerId,
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

impl Row for Arc<Record> {
    const HASHED: bool = false;

    fn lead(&self) -> u32 {
        self.member.peer.lead()
    }

    fn hash(&self) -> u64 {
        self.hash
    }
}

fn of_peer(peer: &PeerId) -> impl Fn(&Arc<Record>) -> Ordering {
    let peer = *peer;
    move |record| record.member.peer.cmp(&peer)
}

/// A peer's claim to a node id: 16 bytes, as there is one for every node in every peer.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    record: Arc<Record>,
    /// Of the node id.
    hash: u32,
    /// Which of the record's nodes it is.
    node: u16,
}

impl Claim {
    fn node_id(&self) -> &NodeId {
        &self.record.body.nodes.0[usize::from(self.node)].node_id
    }

    fn rank(&self) -> (Serial, PeerId) {
        (self.record.member.serial, self.record.member.peer)
    }
}

impl Row for Claim {
    const HASHED: bool = false;

    fn lead(&self) -> u32 {
        self.hash
    }

    fn hash(&self) -> u64 {
        // One record has many.
        (self.record.hash ^ u64::from(self.node)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Hashes a node id (FNV-1a, its halves folded): it spreads names over a table, and nothing depends on more.
fn hash_of(node_id: &NodeId) -> u32 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = node_id
        .as_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, step);
    // The last bytes of a name hardly reach the upper bits, by which the table chooses a bucket.
    let mixed = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    u32::try_from(mixed >> 32).unwrap_or(0)
}

type Names = BTreeMap<NodeId, BTreeSet<(Serial, PeerId)>>;

/// The directory's state.
#[derive(Debug)]
pub struct Directory {
    local: PeerId,
    records: Table<Arc<Record>>,
    /// Who claims each node id; of one id the winner comes first.
    claims: Table<Claim>,
    /// Who holds each granted name, the winner first. Made when somebody first asks: only admitters do.
    names: OnceCell<Names>,
    events: VecDeque<Event>,
}

impl Directory {
    /// Starts empty.
    #[must_use]
    pub fn new(local: PeerId) -> Self {
        Self::with_sharing(local, None)
    }

    /// Starts empty; shares what it can with the others of a process.
    #[must_use]
    pub fn with_sharing(local: PeerId, sharing: Option<&Sharing>) -> Self {
        Self {
            local,
            records: Table::new(sharing.map(|sharing| sharing.records.clone())),
            claims: Table::new(sharing.map(|sharing| sharing.claims.clone())),
            names: OnceCell::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes a record in; it replaces the peer's earlier one.
    pub fn insert(&mut self, record: Arc<Record>) {
        let peer = record.member.peer;
        // Its origin's own and the one that was checked are two objects.
        let is = |other: &Arc<Record>| other.hash == record.hash;
        let old = if self.records.insert_known(record.places.record.get(), is) {
            None
        } else {
            let (old, slot) = self.records.insert(Arc::clone(&record), of_peer(&peer));
            record.places.record.set(slot);
            old
        };
        if let Some(names) = self.names.get_mut() {
            if let Some(old) = &old {
                forget_name(names, old);
            }
            note_name(names, &record);
        }
        let rank = (record.member.serial, peer);
        let goes = |old: &Record, node_id: &NodeId| {
            old.member.serial != rank.0 || !record.body.nodes.0.iter().any(|n| n.node_id == *node_id)
        };
        if let Some(old) = &old {
            for node in old.body.nodes.0.iter().filter(|n| goes(old, &n.node_id)) {
                self.unclaim(&node.node_id, (old.member.serial, peer));
            }
        }
        for node in 0..record.body.nodes.0.len() {
            self.claim(&record, node);
        }
        let changed = old.as_ref().is_none_or(|o| {
            o.body.addresses != record.body.addresses || o.body.bootstrap != record.body.bootstrap
        });
        if changed && peer != self.local {
            self.events.push_back(Event::Learned {
                peer,
                bootstrap: record.body.bootstrap == Some(true),
            });
        }
    }

    /// Drops a peer's record: it ran out, or its membership ended.
    pub fn remove(&mut self, peer: &PeerId) {
        let Some(old) = self.records.remove(peer.lead(), of_peer(peer)) else {
            return;
        };
        if let Some(names) = self.names.get_mut() {
            forget_name(names, &old);
        }
        for node in &old.body.nodes.0 {
            self.unclaim(&node.node_id, (old.member.serial, *peer));
        }
        self.events.push_back(Event::Forgotten(*peer));
    }

    fn claims_of(&self, node_id: &NodeId) -> impl Iterator<Item = &Claim> {
        self.claims_with(hash_of(node_id), node_id)
    }

    fn claims_with(&self, hash: u32, node_id: &NodeId) -> impl Iterator<Item = &Claim> {
        self.claims
            .iter_with(hash)
            .filter(move |claim| claim.node_id() == node_id)
    }

    fn claim(&mut self, record: &Arc<Record>, node: usize) {
        let is = |other: &Claim| other.record.hash == record.hash && other.node == 0;
        if node == 0 && self.claims.insert_known(record.places.claim.get(), is) {
            // Nobody else of the process claims it.
            let node_id = record.body.nodes.0[0].node_id.clone();
            let peer = record.member.peer;
            return self.events.push_back(Event::NodeAppeared { node_id, peer });
        }
        let claim = Claim {
            record: Arc::clone(record),
            hash: hash_of(&record.body.nodes.0[node].node_id),
            node: u16::try_from(node).unwrap_or(u16::MAX),
        };
        let (node_id, rank) = (claim.node_id().clone(), claim.rank());
        if self.claims_with(claim.hash, &node_id).next().is_none() {
            // Most names have one claimant, who comes once.
            let (_, slot) = self.claims.insert(claim, |other| {
                (other.node_id(), other.rank()).cmp(&(&node_id, rank))
            });
            if node == 0 {
                record.places.claim.set(slot);
            }
            let peer = rank.1;
            return self.events.push_back(Event::NodeAppeared { node_id, peer });
        }
        let before = self.claims_of(&node_id).next().map(Claim::rank);
        self.claims.insert(claim, |other| {
            (other.node_id(), other.rank()).cmp(&(&node_id, rank))
        });
        let after = self.claims_of(&node_id).next().map(Claim::rank);
        // [DIR-3] The local claim lost, now or because it was published again.
        let lost = after
            .filter(|(_, holder)| *holder != self.local)
            .filter(|_| self.claims_of(&node_id).any(|claim| claim.rank().1 == self.local));
        if before != after {
            self.events.push_back(Event::NodeAppeared {
                node_id: node_id.clone(),
                peer: rank.1,
            });
        }
        if let Some((_, holder)) = lost {
            self.events.push_back(Event::Duplicate { node_id, holder });
        }
    }

    fn unclaim(&mut self, node_id: &NodeId, rank: (Serial, PeerId)) {
        let before = self.claims_of(node_id).next().map(Claim::rank);
        self.claims.remove(hash_of(node_id), |other| {
            (other.node_id(), other.rank()).cmp(&(node_id, rank))
        });
        let after = self.claims_of(node_id).next().map(Claim::rank);
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
        self.claimants(node_id).next()
    }

    /// Returns everyone who claims a node, the winner first. In an open mesh, where names prove nothing, several
    /// peers may.
    pub fn claimants(&self, node_id: &NodeId) -> impl Iterator<Item = PeerId> {
        self.claims_of(node_id).map(|claim| claim.rank().1)
    }

    /// Returns every node that can be addressed, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        // Several peers may claim one.
        let nodes: BTreeSet<&NodeId> = self.claims.iter().map(Claim::node_id).collect();
        nodes.into_iter()
    }

    /// Returns a node's specification, as its host publishes it.
    #[must_use]
    pub fn node(&self, node_id: &NodeId) -> Option<(&NodeSignature, &Record)> {
        let record = self.record(&self.host_of(node_id)?)?;
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
        self.records
            .get(peer.lead(), of_peer(peer))
            .map(|record| &**record)
    }

    /// Returns a peer's membership.
    #[must_use]
    pub fn member(&self, peer: &PeerId) -> Option<&Member> {
        self.record(peer).map(|record| &record.member)
    }

    /// Returns every record.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|record| &**record)
    }

    /// Returns the records from a key on, around the end: members at random, when the key is.
    pub fn records_from(&self, key: PeerId) -> impl Iterator<Item = &Record> {
        let some = self.records.iter_from(key.lead()).chain(self.records.iter());
        some.take(self.records.len()).map(|record| &**record)
    }

    /// Returns how many peers are known.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.records.len()
    }

    /// Tells whether nobody is known.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records.len() == 0
    }

    /// Returns who else holds a name that is, contains or lies within `name`.
    #[must_use]
    pub fn name_holder(&self, name: &NodeId, except: &PeerId) -> Option<PeerId> {
        let names = self.names.get_or_init(|| {
            let mut names = Names::new();
            for record in self.records.iter() {
                note_name(&mut names, record);
            }
            names
        });
        let other =
            |holders: &BTreeSet<(Serial, PeerId)>| holders.iter().map(|(_, p)| *p).find(|p| p != except);
        let mut above = Some(name.as_str());
        while let Some(text) = above {
            let found = NodeId::new(text)
                .ok()
                .and_then(|id| names.get(&id).and_then(other));
            if found.is_some() {
                return found;
            }
            above = text.rsplit_once('/').map(|(head, _)| head);
        }
        names
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

fn note_name(names: &mut Names, record: &Record) {
    let member = &record.member;
    names
        .entry(member.name.clone())
        .or_default()
        .insert((member.serial, member.peer));
}

fn forget_name(names: &mut Names, record: &Record) {
    let member = &record.member;
    if let Some(holders) = names.get_mut(&member.name) {
        holders.remove(&(member.serial, member.peer));
        if holders.is_empty() {
            names.remove(&member.name);
        }
    }
}

#[cfg(test)]
mod tests;
