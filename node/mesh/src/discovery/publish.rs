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
    pub(super) fn ended(&mut self, id: QueryId, stored: bool) {
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
        if due {
            self.put_record();
        }
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

    /// A new peer may store what nobody has stored yet.
    pub(super) fn put_again_if_in_vain(&mut self) {
        let in_vain = |put: &Put| !put.stored && !put.is_running();
        if self.put.as_ref().is_some_and(in_vain) {
            self.put_record();
        }
    }
}

/// What a record says, without the sequence number and the times of its envelope.
fn content(record: &Signed) -> Vec<u8> {
    records::decode(record.as_bytes())
        .map(|(_, item)| item.body.to_vec())
        .unwrap_or_default()
}
