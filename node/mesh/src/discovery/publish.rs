//! Keeps this peer's record known: announced by gossip, shown by identify, stored in Kademlia.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use hyperfabric_protocol::{NodeId, Signed};
use libp2p::Multiaddr;
use libp2p::gossipsub::PublishError;
use libp2p::kad::{self, QueryId};
use tokio::time::Instant;

use super::swarm::Task;
use super::{Publication, behaviour, records};
use crate::address::PeerAddress;

/// The record is put again this often, three times within its life.
const PUT_INTERVAL: Duration = Duration::from_secs(20 * 60);
/// A put that reached nobody is tried again no sooner than this.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long no new peer has become known before a put begins: Kademlia refreshes its routing table half a second after a new peer, and
/// asks all whom it hears of.
const CALM: Duration = Duration::from_secs(2);
/// A put waits for calm no longer than this.
const CALM_WAIT_MAX: Duration = Duration::from_secs(60);

/// Servers that may wait for the end of a put.
const UNLISTED_MAX: usize = 64;

/// A put that waits for calm.
pub(super) struct Waiting {
    /// When it begins, unless a new peer becomes known.
    pub(super) at: Instant,
    /// When it begins at the latest.
    latest: Instant,
}

/// The last put of this peer's record.
pub(super) struct Put {
    at: Instant,
    nodes: Vec<NodeId>,
    body: Vec<u8>,
    /// Those of its queries that run.
    queries: HashSet<QueryId>,
    /// Whether somebody else has stored it.
    stored: bool,
}

impl Put {
    pub(super) fn is_running(&self) -> bool {
        !self.queries.is_empty()
    }

    /// Takes the end of a query, if it is one of this put.
    fn ended(&mut self, id: QueryId, stored: bool) {
        self.stored |= self.queries.remove(&id) && stored;
    }
}

impl Task {
    pub(super) fn publish(&mut self, publication: Option<Publication>) {
        self.own = publication;
        self.show_addresses();
        self.announce();
        self.put_if_due();
    }

    /// Lets identify tell others the addresses that the record tells.
    fn show_addresses(&mut self) {
        let record = self
            .own
            .as_ref()
            .and_then(|own| records::decode(own.record.as_bytes()));
        let Some(body) = record.and_then(|(_, item)| records::body(&item)) else {
            return;
        };
        let parsed = body
            .addresses
            .0
            .iter()
            .filter_map(|address| PeerAddress::try_from(address).ok());
        let new: BTreeSet<Multiaddr> = parsed
            .map(|address| PeerAddress::new(address.socket).into())
            .collect();
        let old: BTreeSet<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        for gone in old.difference(&new) {
            self.swarm.remove_external_address(gone);
        }
        for come in new.difference(&old) {
            self.swarm.add_external_address(come.clone());
        }
    }

    pub(super) fn announce(&mut self) {
        let Some(own) = &self.own else { return };
        let topic = self.topic.hash();
        let sent = self
            .swarm
            .behaviour_mut()
            .gossip
            .publish(topic, own.record.as_bytes());
        self.unheard = match sent {
            Ok(_) | Err(PublishError::Duplicate) => false,
            Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot announce this peer's record");
                false
            }
        };
    }

    /// Puts the own record when it says something new, when the last put is old, or when nobody has stored it.
    pub(super) fn put_if_due(&mut self) {
        let Some(own) = &self.own else { return };
        let due = self.put.as_ref().is_none_or(|put| {
            let interval = if put.stored { PUT_INTERVAL } else { RETRY_INTERVAL };
            put.nodes != own.nodes || put.body != content(&own.record) || put.at.elapsed() >= interval
        });
        if due && self.waiting.is_none() {
            let now = Instant::now();
            self.waiting = Some(Waiting {
                at: now + CALM,
                latest: now + CALM_WAIT_MAX,
            });
        }
    }

    /// Begins a put that has waited, if all is calm.
    pub(super) fn put_when_calm(&mut self) {
        let now = Instant::now();
        let refreshes = self.refreshes();
        match &mut self.waiting {
            Some(waiting) if refreshes && now < waiting.latest => waiting.at = now + CALM,
            Some(_) => {
                self.waiting = None;
                self.put_record();
            }
            None => {}
        }
    }

    /// Whether Kademlia is refreshing its routing table.
    fn refreshes(&self) -> bool {
        let mut queries = self.swarm.behaviour().kad.iter_queries();
        queries.any(|query| matches!(query.info(), kad::QueryInfo::Bootstrap { .. }))
    }

    /// Puts the own record under its names.
    fn put_record(&mut self) {
        let Some(Publication { record, nodes }) = self.own.clone() else {
            return;
        };
        let now = Instant::now();
        let mut queries = HashSet::new();
        for name in &nodes {
            let record = kad::Record {
                key: records::key(&self.mesh, name),
                value: record.as_bytes().to_vec(),
                publisher: None,
                expires: Some((now + behaviour::RECORD_TTL).into_std()),
            };
            match self
                .swarm
                .behaviour_mut()
                .kad
                .put_record(record, kad::Quorum::One)
            {
                Ok(id) => {
                    queries.insert(id);
                }
                // The store is full of others' records; neighbors have this one by flooding.
                Err(error) => tracing::debug!(%name, %error, "cannot put this peer's record"),
            }
        }
        self.put = Some(Put {
            at: now,
            body: content(&record),
            nodes,
            queries,
            stored: false,
        });
        self.allow_wishes();
    }

    /// A new peer may store what nobody has stored yet; it also makes Kademlia refresh its routing table.
    pub(super) fn peer_became_known(&mut self) {
        let now = Instant::now();
        let in_vain = |put: &Put| !put.stored && !put.is_running();
        if self.put.as_ref().is_some_and(in_vain) && self.waiting.is_none() {
            self.waiting = Some(Waiting {
                at: now,
                latest: now + CALM_WAIT_MAX,
            });
        }
        if let Some(waiting) = &mut self.waiting {
            waiting.at = (now + CALM).min(waiting.latest);
        }
    }

    /// Takes note of a server and where it can be dialled, after a put that is running: a new peer makes Kademlia refresh its routing
    /// table, and a refresh beside a put would meet all whom it hears of.
    pub(super) fn server_identified(&mut self, name: libp2p::PeerId, addresses: Vec<PeerAddress>) {
        if self.put.as_ref().is_some_and(Put::is_running) && self.unlisted.len() < UNLISTED_MAX {
            self.unlisted.push((name, addresses));
        } else {
            self.list(&name, addresses);
        }
    }

    fn list(&mut self, name: &libp2p::PeerId, addresses: Vec<PeerAddress>) {
        for address in addresses {
            let kad = &mut self.swarm.behaviour_mut().kad;
            kad.add_address(name, PeerAddress::new(address.socket).into());
        }
    }

    /// Takes the end of a put's query.
    pub(super) fn put_ended(&mut self, id: QueryId, stored: bool) {
        let Some(put) = &mut self.put else { return };
        put.ended(id, stored);
        if !put.is_running() {
            for (name, addresses) in std::mem::take(&mut self.unlisted) {
                self.list(&name, addresses);
            }
        }
    }
}

/// What a record says, without the sequence number and the times of its envelope.
fn content(record: &Signed) -> Vec<u8> {
    records::decode(record.as_bytes())
        .map(|(_, item)| item.body.to_vec())
        .unwrap_or_default()
}
