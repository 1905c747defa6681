//! The task that runs the swarm: answers its events and others' questions, and holds each peer to its budget.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::StreamExt;
use hyperfabric_protocol::flood::Item;
use hyperfabric_protocol::{MeshId, NodeId, Signed};
use libp2p::core::Transport;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance};
use libp2p::kad::{self, QueryId, store::RecordStore};
use libp2p::swarm::{Swarm, SwarmEvent};
use libp2p::{Multiaddr, StreamProtocol, identify};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::behaviour::{self, Behaviour, BehaviourEvent};
use super::muxer::Line;
use super::publish::{Put, Waiting};
use super::transport::{MeshTransport, dialable};
use super::{
    Command, DiscoveryConfig, DiscoveryStats, Found, Publication, RecordCheck, from_libp2p, records,
    to_libp2p,
};
use crate::address::PeerAddress;
use crate::endpoint::TokenBucket;

/// How often the housekeeping below is looked at.
const TICK: Duration = Duration::from_secs(60);
/// The routing table is refreshed this often. Kademlia itself does so 500 ms after a new peer while it knows fewer than 20.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Lookups at once; more find nothing.
const LOOKUPS_MAX: usize = 64;
/// Who may wait for one lookup; more find nothing.
const WAITERS_MAX: usize = 64;
/// Copies of a record that a lookup collects: peers may hold older ones.
const COPIES_MAX: usize = 3;
/// Announcements a second that are passed on for a peer, in the long run. A neighbor forwards those of the whole mesh.
const GOSSIP_PER_SECOND: u32 = 64;
/// Announcements at once: a mesh that starts.
const GOSSIP_BURST: u32 = 1024;
/// Records a second that a peer may store here, in the long run.
pub const PUTS_PER_SECOND: u32 = 1;
/// Records at once: all nodes of a peer.
const PUTS_BURST: u32 = 64;
/// Records that are stored for one peer.
const RECORDS_PER_PEER_MAX: usize = 64;
/// Addresses of a peer that Kademlia is told.
const ADDRESSES_MAX: usize = 8;
/// Incoming substreams of one connection that may be choosing their protocol.
const NEGOTIATING_MAX: usize = 32;
/// Connections are closed by the mesh, never by the swarm for idleness.
const NEVER: Duration = Duration::from_secs(u64::MAX);

/// What reaches the task.
pub(super) struct Inlets {
    pub(super) attached: mpsc::Receiver<Line>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) published: watch::Receiver<Option<Publication>>,
}

/// What a connected peer may still do.
struct Remote {
    address: Multiaddr,
    gossip: TokenBucket,
    puts: TokenBucket,
}

/// A running query for a node's record.
struct Lookup {
    key: kad::RecordKey,
    copies: usize,
    waiters: Vec<oneshot::Sender<bool>>,
}

pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    found: mpsc::Sender<Found>,
    pub(super) mesh: MeshId,
    pub(super) topic: IdentTopic,
    kad_protocol: StreamProtocol,
    check: RecordCheck,
    remotes: BTreeMap<libp2p::PeerId, Remote>,
    lookups: HashMap<QueryId, Lookup>,
    pub(super) own: Option<Publication>,
    /// Whether nobody has heard the own record yet.
    pub(super) unheard: bool,
    pub(super) put: Option<Put>,
    /// The next put, until all is calm.
    pub(super) waiting: Option<Waiting>,
    /// Servers that are not in Kademlia's routing table yet, and where they can be dialled.
    pub(super) unlisted: Vec<(libp2p::PeerId, Vec<PeerAddress>)>,
    refreshed: Instant,
}

/// Runs until the [`super::Discovery`] is dropped.
pub(super) async fn run(config: DiscoveryConfig, inlets: Inlets, found: mpsc::Sender<Found>) {
    let Inlets {
        attached,
        mut commands,
        mut published,
    } = inlets;
    let mut task = Task::new(config, attached, found);
    let mut tick = interval_at(Instant::now() + TICK, TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = task.swarm.select_next_some() => task.event(event),
            changed = published.changed() => match changed {
                Ok(()) => task.publish(published.borrow_and_update().clone()),
                Err(_) => return,
            },
            Some(command) = commands.recv() => task.command(command),
            _ = tick.tick() => task.tick(),
            () = sleep_until(task.waiting.as_ref().map_or_else(Instant::now, |put| put.at)), if task.waiting.is_some() => task.put_when_calm(),
        }
    }
}

impl Task {
    fn new(config: DiscoveryConfig, attached: mpsc::Receiver<Line>, found: mpsc::Sender<Found>) -> Self {
        let transport = MeshTransport::new(attached, found.clone())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed();
        let runtime = config.runtime;
        let swarm_config = libp2p::swarm::Config::with_executor(move |task| {
            runtime.spawn(task);
        });
        let swarm = Swarm::new(
            transport,
            Behaviour::new(config.peer, &config.mesh, config.server),
            to_libp2p(config.peer),
            swarm_config
                .with_idle_connection_timeout(NEVER)
                .with_max_negotiating_inbound_streams(NEGOTIATING_MAX),
        );
        Self {
            swarm,
            found,
            topic: behaviour::topic(&config.mesh),
            kad_protocol: behaviour::kad_protocol(&config.mesh),
            mesh: config.mesh,
            check: config.check,
            remotes: BTreeMap::new(),
            lookups: HashMap::new(),
            own: None,
            unheard: false,
            put: None,
            waiting: None,
            unlisted: Vec::new(),
            refreshed: Instant::now(),
        }
    }

    fn event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id, endpoint, ..
            } => {
                let now = Instant::now();
                self.remotes.entry(peer_id).or_insert_with(|| Remote {
                    address: endpoint.get_remote_address().clone(),
                    gossip: TokenBucket::new(GOSSIP_PER_SECOND, GOSSIP_BURST, now),
                    puts: TokenBucket::new(PUTS_PER_SECOND, PUTS_BURST, now),
                });
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                ..
            } => {
                self.remotes.remove(&peer_id);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.kad_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.gossip_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => self.identified(&peer_id, &info),
            // What is left tells how connections come and go, which is the mesh's business.
            _ => {}
        }
    }

    /// A find that nobody has room for is dropped. Returns whether it was not.
    fn tell(&self, found: Found) -> bool {
        self.found.try_send(found).is_ok()
    }

    fn identified(&mut self, name: &libp2p::PeerId, info: &identify::Info) {
        tracing::debug!(peer = %name, agent = %info.agent_version, observed = %info.observed_addr, "identified");
        let Some(peer) = from_libp2p(name) else { return };
        let kad = &mut self.swarm.behaviour_mut().kad;
        if !info.protocols.contains(&self.kad_protocol) {
            kad.remove_peer(name);
            return;
        }
        let listening = info
            .listen_addrs
            .iter()
            .filter_map(|address| dialable(address, peer));
        let mut addresses: Vec<PeerAddress> = listening.take(ADDRESSES_MAX).collect();
        // A peer that has not said where it listens: one port serves everything, so its connection's other end is where.
        let remote = self
            .remotes
            .get(name)
            .and_then(|remote| dialable(&remote.address, peer));
        if let (true, Some(remote)) = (addresses.is_empty(), remote) {
            addresses.push(remote);
        }
        self.server_identified(*name, addresses);
    }

    fn gossip_event(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => {
                let allowed = self
                    .remotes
                    .get_mut(&propagation_source)
                    .is_some_and(|remote| remote.gossip.take(Instant::now()));
                let item = records::decode(&message.data);
                let verdict = match (&item, allowed) {
                    (None, _) => MessageAcceptance::Reject,
                    (Some(_), false) => MessageAcceptance::Ignore,
                    (Some(_), true) => MessageAcceptance::Accept,
                };
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, verdict);
                if let (Some((signed, _)), true) = (item, allowed) {
                    self.tell(Found::Item(signed));
                }
            }
            gossipsub::Event::Subscribed { .. } if self.unheard => self.announce(),
            _ => {}
        }
    }

    fn kad_event(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest {
                request:
                    kad::InboundRequest::PutRecord {
                        source,
                        record: Some(record),
                        ..
                    },
            } => self.store(source, record),
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                match result {
                    kad::QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(copy))) => {
                        self.looked_up(id, &copy.record);
                    }
                    kad::QueryResult::PutRecord(result) => {
                        self.put_ended(id, result.is_ok());
                    }
                    _ => {}
                }
                if step.last
                    && let Some(lookup) = self.lookups.remove(&id)
                {
                    answer(lookup.waiters, false);
                }
                self.allow_wishes();
            }
            kad::Event::RoutingUpdated {
                is_new_peer: true, ..
            } => self.peer_became_known(),
            _ => {}
        }
    }

    /// Stores a record for others, if it is one, and one of this name.
    fn store(&mut self, source: libp2p::PeerId, mut record: kad::Record) {
        let allowed = self
            .remotes
            .get_mut(&source)
            .is_some_and(|remote| remote.puts.take(Instant::now()));
        let Some((signed, item)) = records::decode(&record.value).filter(|_| allowed) else {
            return;
        };
        if !records::has_name(&self.mesh, &item, &record.key) || !(self.check)(&signed) {
            tracing::debug!(peer = %source, "a record that is not stored");
            return;
        }
        let local = *self.swarm.local_peer_id();
        let store = self.swarm.behaviour_mut().kad.store_mut();
        let superseded = match store.get(&record.key) {
            Some(known) => known.publisher == Some(local) || is_newer(&known.value, &signed, &item),
            None => {
                let theirs = store.records().filter(|known| known.publisher == Some(source));
                theirs.count() >= RECORDS_PER_PEER_MAX
            }
        };
        if !superseded {
            // Who has put it pays for it, whoever it says has published it.
            record.publisher = Some(source);
            // Fails when the store is full: Kademlia has other peers.
            let _ = store.put(record);
        }
        self.tell(Found::Item(signed));
    }

    fn looked_up(&mut self, id: QueryId, record: &kad::Record) {
        let Some(lookup) = self.lookups.get_mut(&id) else {
            return;
        };
        let valid = records::decode(&record.value).filter(|(signed, item)| {
            records::has_name(&self.mesh, item, &lookup.key) && (self.check)(signed)
        });
        if let Some((signed, _)) = valid
            && self.found.try_send(Found::Item(signed)).is_ok()
        {
            answer(std::mem::take(&mut lookup.waiters), true);
        }
        lookup.copies += 1;
        if lookup.copies >= COPIES_MAX
            && let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&id)
        {
            query.finish();
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Lookup { name, found } => self.look_up(&name, found),
            Command::Stats(stats) => {
                // Whoever asked may have gone.
                let _ = stats.send(self.stats());
            }
            #[cfg(test)]
            Command::Disconnect(peer) => {
                let _ = self.swarm.disconnect_peer_id(to_libp2p(peer));
            }
        }
    }

    fn look_up(&mut self, name: &NodeId, found: oneshot::Sender<bool>) {
        let key = records::key(&self.mesh, name);
        let has_room = self.lookups.len() < LOOKUPS_MAX;
        let running = self
            .lookups
            .values_mut()
            .find(|lookup| lookup.key == key && lookup.copies == 0);
        match running {
            Some(lookup) if lookup.waiters.len() < WAITERS_MAX => lookup.waiters.push(found),
            None if has_room => {
                let id = self.swarm.behaviour_mut().kad.get_record(key.clone());
                self.lookups.insert(
                    id,
                    Lookup {
                        key,
                        copies: 0,
                        waiters: vec![found],
                    },
                );
            }
            Some(_) | None => answer(vec![found], false),
        }
        self.allow_wishes();
    }

    /// Lookups and puts may meet peers on their way. Kademlia's own refreshes may not: with them, 60 peers had 53 connections each.
    pub(super) fn allow_wishes(&mut self) {
        let putting = self.put.as_ref().is_some_and(Put::is_running);
        let allowed = putting || !self.lookups.is_empty();
        self.swarm.behaviour_mut().allow_wishes(allowed);
    }

    fn stats(&mut self) -> DiscoveryStats {
        let topic = self.topic.hash();
        let connections = self.swarm.network_info().connection_counters().num_established();
        let behaviour = self.swarm.behaviour_mut();
        DiscoveryStats {
            kad_peers: behaviour.kad.kbuckets().map(|bucket| bucket.num_entries()).sum(),
            gossip_peers: behaviour
                .gossip
                .all_peers()
                .filter(|(_, topics)| topics.contains(&&topic))
                .count(),
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            records: behaviour.kad.store_mut().records().count(),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.store_mut()
            .retain(|_, record| !record.is_expired(now.into_std()));
        if now - self.refreshed >= REFRESH_INTERVAL {
            self.refreshed = now;
            // Fails when no peer is known.
            let _ = kad.bootstrap();
        }
        if self.unheard {
            self.announce();
        }
        self.put_if_due();
    }
}

/// Whether what is stored is by the same peer, and newer.
fn is_newer(stored: &[u8], signed: &Signed, item: &Item) -> bool {
    records::decode(stored).is_some_and(|(known_signed, known)| {
        known_signed.claimed_signer() == signed.claimed_signer() && known.sequence > item.sequence
    })
}

fn answer(waiters: Vec<oneshot::Sender<bool>>, found: bool) {
    for waiter in waiters {
        // Whoever asked may have gone.
        let _ = waiter.send(found);
    }
}
