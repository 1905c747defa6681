//! The three protocols of the swarm, and how they are tuned.
//!
//! The defaults of libp2p are those of a public network with thousands of strangers. Here neighbors and flooding do the daily work, so
//! that everything below is small and rare.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use hyperfabric_protocol::sign::SIGNED_BYTES_MAX;
use hyperfabric_protocol::{MeshId, PeerId};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, MessageId, ValidationMode};
use libp2p::kad::{self, store::MemoryStore, store::MemoryStoreConfig};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{StreamProtocol, identify, identity};

use super::to_libp2p;

/// How long a Kademlia query may take.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Records that this peer stores, its own among them: 16 MiB at most.
pub(super) const RECORDS_MAX: usize = 1024;
/// How long a stored record lives unless its publisher puts it again.
pub(super) const RECORD_TTL: Duration = Duration::from_secs(60 * 60);
/// Peers that a record is stored at, and that a query converges on. Kademlia's 20 serves networks whose peers come and go by the minute.
const REPLICAS: NonZeroUsize = NonZeroUsize::new(4).expect("4 > 0");
/// Peers of one distance that are known: as many as a query converges on, as in Kademlia. Every place of the 256 distances is kept free
/// in memory, 80 KB for each.
const BUCKET_PEERS_MAX: NonZeroUsize = REPLICAS;
/// Peers that a query asks at once.
const PARALLELISM: NonZeroUsize = NonZeroUsize::new(2).expect("2 > 0");
/// Peers that queries may wait to meet at once.
const WISHES_MAX: u32 = 16;
/// A record, and 20 closer peers with their addresses.
const KAD_PACKET_BYTES_MAX: usize = 64 * 1024;
/// Room for the envelope of a gossiped record.
const GOSSIP_BYTES_MAX: usize = SIGNED_BYTES_MAX + 4096;
/// Messages that wait for a peer that does not read: 2 MiB at most.
const GOSSIP_QUEUE_MAX: usize = 128;
/// How often gossipsub looks after its mesh; announcements do not wait for it.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a message is known as seen.
const SEEN_TIME: Duration = Duration::from_secs(120);

/// See the module.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) kad: kad::Behaviour<MemoryStore>,
    pub(super) gossip:
        gossipsub::Behaviour<gossipsub::IdentityTransform, gossipsub::WhitelistSubscriptionFilter>,
    pub(super) identify: identify::Behaviour,
    wishes: connection_limits::Behaviour,
}

impl Behaviour {
    pub(super) fn new(peer: PeerId, mesh: &MeshId, server: bool) -> Self {
        Self {
            kad: kademlia(peer, mesh, server),
            gossip: gossip(mesh),
            identify: identification(peer),
            wishes: connection_limits::Behaviour::new(wishes(false)),
        }
    }

    /// Lets queries meet peers, or keeps them to those that are connected.
    pub(super) fn allow_wishes(&mut self, allowed: bool) {
        *self.wishes.limits_mut() = wishes(allowed);
    }
}

/// Denied here, a dial costs a peer none of its known addresses; an error of the transport would.
fn wishes(allowed: bool) -> ConnectionLimits {
    ConnectionLimits::default().with_max_pending_outgoing(Some(if allowed { WISHES_MAX } else { 0 }))
}

/// Kademlia's protocol name: meshes do not mix. [DISC-1]
pub(super) fn kad_protocol(mesh: &MeshId) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/hyperfabric/kad/{:.16}/1", mesh.to_string()))
        .expect("the name begins with a slash")
}

/// The topic of records. [DISC-3]
pub(super) fn topic(mesh: &MeshId) -> IdentTopic {
    IdentTopic::new(format!("hyperfabric/{mesh}/records"))
}

fn kademlia(peer: PeerId, mesh: &MeshId, server: bool) -> kad::Behaviour<MemoryStore> {
    let local = to_libp2p(peer);
    let store = MemoryStoreConfig {
        max_records: RECORDS_MAX,
        // The store refuses values of this size itself.
        max_value_bytes: SIGNED_BYTES_MAX + 1,
        max_providers_per_key: 0,
        max_provided_keys: 0,
    };
    let mut config = kad::Config::new(kad_protocol(mesh));
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_replication_factor(REPLICAS)
        .set_kbucket_size(BUCKET_PEERS_MAX)
        .set_parallelism(PARALLELISM)
        .set_max_packet_size(KAD_PACKET_BYTES_MAX)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_record_ttl(Some(RECORD_TTL))
        // The publisher knows its newest version, and puts it itself.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_periodic_bootstrap_interval(None);
    let mut kad = kad::Behaviour::with_config(local, MemoryStore::with_config(local, store), config);
    kad.set_mode(Some(if server {
        kad::Mode::Server
    } else {
        kad::Mode::Client
    }));
    kad
}

fn gossip(
    mesh: &MeshId,
) -> gossipsub::Behaviour<gossipsub::IdentityTransform, gossipsub::WhitelistSubscriptionFilter> {
    let topic = topic(mesh);
    let config = gossipsub::ConfigBuilder::default()
        // Items carry their origin's signature; a second one, or a sequence number, would say nothing more.
        .validation_mode(ValidationMode::Anonymous)
        .message_id_fn(|message| MessageId::new(blake3::hash(&message.data).as_bytes()))
        .validate_messages()
        .max_transmit_size(GOSSIP_BYTES_MAX)
        .connection_handler_queue_len(GOSSIP_QUEUE_MAX)
        .mesh_n(4)
        .mesh_n_low(3)
        .mesh_n_high(8)
        // Who has dialled whom is not told to the swarm.
        .mesh_outbound_min(0)
        .gossip_lazy(3)
        .flood_publish(false)
        .heartbeat_interval(HEARTBEAT)
        .duplicate_cache_time(SEEN_TIME)
        .build()
        .expect("the constants above fit together");
    let only_ours = gossipsub::WhitelistSubscriptionFilter(HashSet::from([topic.hash()]));
    let mut gossip =
        gossipsub::Behaviour::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, only_ours)
            .expect("anonymous messages go with anonymous validation");
    gossip
        .subscribe(&topic)
        .expect("the filter lets this topic through");
    gossip
}

fn identification(peer: PeerId) -> identify::Behaviour {
    let key = identity::ed25519::PublicKey::try_from_bytes(peer.as_bytes())
        .expect("this peer's own key is a point of the curve");
    let config = identify::Config::new("/hyperfabric/id/1".into(), key.into())
        .with_agent_version(concat!("hyperfabric/", env!("CARGO_PKG_VERSION")).into())
        // Kademlia keeps the addresses that are worth keeping.
        .with_cache_size(0);
    identify::Behaviour::new(config)
}
