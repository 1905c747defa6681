//! The local API's operations on a running node.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::BoxStream;
use hyperfabric_mesh::driver::Stopped;
use hyperfabric_mesh::{Connection, DiscoveryStats, Side};
use hyperfabric_protocol::admission::AdmitError;
use hyperfabric_protocol::cert::MeshRoot;
use hyperfabric_protocol::error::InvalidNodeError;
use hyperfabric_protocol::fabric::{Event, RegisterError, RevokeError};
use hyperfabric_protocol::flood::{Item, ItemKey, ItemKind};
use hyperfabric_protocol::types::NodeSignature;
use hyperfabric_protocol::{Address, Fabric, NodeId, PeerId, TransferId};
use tokio::sync::watch;

use super::Node;
use super::sending::{NewTransfer, StartError};
use crate::api::control::{Answer, Control, Ping, SendRequest};
use crate::api::model::{
    Invitation, InviteRequest, Member, NodeRecord, PeerRecord, PingReport, Registered, Revoked, Status,
    Transfer,
};
use crate::api::{ApiError, ErrorCode, FeedItem};
use crate::hardware;
use crate::storage::RelPath;

/// How long a state change may take to be on disk.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(30);

/// A peer, its name, where it can be dialled, and since when it is connected.
type Known = (PeerId, Option<NodeId>, Option<Address>, Option<u64>);

/// A node as the local API drives it.
pub struct NodeControl {
    node: Node,
    name: NodeId,
    started: tokio::time::Instant,
    shutdown: watch::Sender<bool>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for NodeControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NodeControl").field(&self.node).finish()
    }
}

impl NodeControl {
    /// Drives `node`, whose host is called `name`; `shutdown` becomes true when the API is asked to end the process.
    #[must_use]
    pub fn new(node: Node, name: NodeId, shutdown: watch::Sender<bool>, warnings: Vec<String>) -> Self {
        Self {
            node,
            name,
            started: tokio::time::Instant::now(),
            shutdown,
            warnings,
        }
    }

    async fn act<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Fabric, hyperfabric_protocol::Now) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        self.node.handle().act(act).await.map_err(|Stopped| unavailable())
    }

    /// Waits until state changes are on disk.
    async fn persisted(
        &self,
        events: tokio::sync::broadcast::Receiver<Event>,
        job: u64,
    ) -> Result<(), ApiError> {
        let ok = Node::wait_for(events, PERSIST_TIMEOUT, move |event| match event {
            Event::Persisted { id, ok } if id == job => Some(ok),
            _ => None,
        });
        match ok.await {
            Some(true) => Ok(()),
            Some(false) | None => Err(ApiError::new(
                ErrorCode::Failed,
                "the state could not be written to the disk",
            )
            .hint("free space in the data folder and try again")),
        }
    }

    async fn try_status(&self) -> Result<Status, ApiError> {
        let facts = self
            .act(|fabric, _| {
                let root = fabric.admission().root().cloned();
                let nodes: usize = fabric.directory().records().map(|r| r.body.nodes.0.len()).sum();
                let not_after = fabric.admission().own().map(|(_, m)| m.not_after.0);
                (
                    root,
                    not_after,
                    fabric.admission().admitter().is_some(),
                    nodes as u64,
                    fabric.connected().count() as u64,
                )
            })
            .await?;
        let (root, certificate_expires_unix_ms, admitter, nodes, peers) = facts;
        let inner = self.node.inner();
        let storage = Arc::clone(&inner.storage);
        let measured = inner
            .pool
            .run(move || {
                let inbox = RelPath::parse(crate::transfer::inbox::INBOX).ok()?;
                Some((storage.bytes_below(&inbox).ok()?, storage.free_bytes().ok()?))
            })
            .await;
        let (inbox_bytes, inbox_free_bytes) = measured.ok().flatten().unwrap_or_default();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer_id: self.node.peer_id(),
            name: self.name.clone(),
            open: root.as_ref().is_some_and(MeshRoot::is_open),
            mesh: root.map(|r| r.name().to_owned()),
            admitter,
            certificate_expires_unix_ms,
            listen: self.node.listen_addresses().unwrap_or_default(),
            backend: "kernel".to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            nodes,
            peers,
            transfers: inner.board.list().iter().filter(|t| !t.state.is_ended()).count() as u64,
            inbox_bytes,
            inbox_free_bytes,
            warnings: self.warnings.clone(),
        })
    }

    async fn try_nodes(&self) -> Result<Vec<NodeRecord>, ApiError> {
        let local = self.node.peer_id();
        self.act(move |fabric, _| {
            let mut nodes = Vec::new();
            for record in fabric.directory().records() {
                let peer = record.member.peer;
                let key = ItemKey {
                    origin: peer,
                    kind: ItemKind::Record,
                    id: 0,
                };
                let item = fabric
                    .flood()
                    .get(&key)
                    .and_then(|signed| Item::unverified(signed).ok());
                for node in &record.body.nodes.0 {
                    nodes.push(NodeRecord {
                        signature: node.clone(),
                        peer_id: peer,
                        local: peer == local,
                        reachable: peer == local || fabric.connection(&peer).is_some(),
                        seen_unix_ms: item.as_ref().map_or(0, |item| item.issued.0),
                    });
                }
            }
            nodes.sort_by(|a, b| a.signature.node_id.cmp(&b.signature.node_id));
            nodes
        })
        .await
    }

    async fn try_register(&self, node: NodeSignature) -> Result<Registered, ApiError> {
        let node_id = node.node_id.clone();
        if !hardware::validate_hardware_compatibility(&node) {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("node {node_id} is not compatible with the fabric's limits"),
            )
            .named("InvalidNodeError")
            .hint("bandwidth_gbps is 1 to 1000; a quantum_qpu needs at least 10 us of coherence time"));
        }
        let created = self
            .act(move |fabric, now| {
                let known = fabric.own_nodes().iter().any(|n| n.node_id == node.node_id);
                fabric.register(now, node).map(|()| !known)
            })
            .await?
            .map_err(|error| register_error(&error))?;
        Ok(Registered { node_id, created })
    }

    async fn try_peers(&self) -> Result<Vec<PeerRecord>, ApiError> {
        let local = self.node.peer_id();
        let known = self
            .act(move |fabric, now| {
                let links: Vec<_> = fabric.neighbors().links().collect();
                let listed = fabric.directory().records().filter(|r| r.member.peer != local);
                let mut peers: Vec<Known> = listed
                    .map(|r| {
                        (
                            r.member.peer,
                            Some(r.member.name.clone()),
                            r.body.addresses.first().cloned(),
                            None,
                        )
                    })
                    .collect();
                for link in links {
                    let since = now
                        .wall
                        .0
                        .saturating_sub(now.mono.since(link.since).as_millis().try_into().unwrap_or(0));
                    match peers.iter_mut().find(|(peer, ..)| *peer == link.peer) {
                        Some(known) => known.3 = Some(since),
                        None => peers.push((link.peer, None, link.address, Some(since))),
                    }
                }
                peers
            })
            .await?;
        let record = |(peer_id, name, address, since): Known| {
            let connection = self.node.handle().connection(&peer_id);
            peer_record(peer_id, name, address, since, connection.as_ref())
        };
        Ok(known.into_iter().map(record).collect())
    }

    async fn try_ping(&self, ping: Ping) -> Result<PingReport, ApiError> {
        let begun = self.node.inner().clock.now().wall;
        let peer = match self.node.find_host(&ping.node, Duration::from_secs(2)).await {
            Ok(peer) => Some(peer),
            Err(StartError::Local(_)) => None,
            Err(error) => return Err(start_error(&error)),
        };
        let mut samples_ns = Vec::new();
        if let Some(peer) = peer {
            let connection = self.node.connect(peer, ping.timeout).await;
            let payload = vec![0x5a; ping.size_bytes as usize];
            for _ in 0..ping.count {
                let echo = match &connection {
                    Some(connection) => tokio::time::timeout(ping.timeout, connection.echo(&payload))
                        .await
                        .ok(),
                    None => None,
                };
                let sample = echo
                    .and_then(Result::ok)
                    .map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                samples_ns.push(sample);
                if connection.is_none() {
                    break;
                }
            }
        } else {
            samples_ns.push(Some(0));
        }
        let mut answered: Vec<u64> = samples_ns.iter().flatten().copied().collect();
        answered.sort_unstable();
        let lost = samples_ns.len() - answered.len();
        #[allow(
            clippy::cast_precision_loss,
            reason = "counts and milliseconds are far below 2^53"
        )]
        let report = PingReport {
            source: self.name.clone(),
            destination: ping.node.clone(),
            latency_ns: answered.get(answered.len() / 2).copied().unwrap_or(0),
            bandwidth_gbps: peer.and_then(|peer| self.node.bandwidth_gbps(&peer)),
            path: vec![self.name.clone(), ping.node],
            packet_loss_rate: lost as f64 / samples_ns.len().max(1) as f64,
            timestamp: begun.0 as f64 / 1e3,
            success: !answered.is_empty(),
            samples_ns,
        };
        Ok(report)
    }

    async fn try_send(&self, request: SendRequest) -> Result<TransferId, ApiError> {
        let new = NewTransfer {
            file: request.source.file,
            path: Some(request.source.path),
            name: request.name,
            to: request.to,
            data_type: request.data_type,
            priority: request.priority,
            timeout: request.timeout,
            wait: request.wait,
            sync: request.sync,
        };
        self.node.send(new).await.map_err(|error| start_error(&error))
    }

    async fn try_invite(&self, request: InviteRequest) -> Result<Invitation, ApiError> {
        let addresses = self.node.handle().reachable().unwrap_or_default();
        let valid = Duration::from_secs(request.expires_seconds);
        let (name, uses) = (request.name.clone(), request.uses);
        let events = self.node.events();
        let (ticket, job) = self
            .act(move |fabric, now| fabric.invite(now, name, valid, uses, addresses))
            .await?
            .map_err(|error| admit_error(&error))?;
        self.persisted(events, job).await?;
        Ok(Invitation {
            ticket: ticket.to_string(),
            name: request.name,
            expires_unix_ms: ticket.0.expires.0,
            uses: request.uses,
        })
    }

    async fn try_members(&self) -> Result<Vec<Member>, ApiError> {
        let local = self.node.peer_id();
        self.act(move |fabric, _| {
            let connected = |peer: &PeerId| *peer == local || fabric.connection(peer).is_some();
            let listed = fabric.directory().records().map(|record| Member {
                name: record.member.name.clone(),
                peer_id: record.member.peer,
                serial: record.member.serial,
                admitter: record
                    .body
                    .membership
                    .delegation
                    .as_ref()
                    .is_some_and(|_| record.member.admitter == record.member.peer),
                connected: connected(&record.member.peer),
                revoked: false,
                expires_unix_ms: record.member.not_after.0,
            });
            let mut members: Vec<Member> = listed.collect();
            for grant in fabric.admission().grants() {
                if !members.iter().any(|m| m.serial == grant.serial) {
                    members.push(Member {
                        name: grant.name.clone(),
                        peer_id: grant.peer,
                        serial: grant.serial,
                        admitter: false,
                        connected: connected(&grant.peer),
                        revoked: false,
                        expires_unix_ms: grant.not_after.0,
                    });
                }
            }
            members.extend(fabric.admission().revocations().map(|revocation| Member {
                name: revocation.name.clone(),
                peer_id: revocation.peer,
                serial: revocation.serial,
                admitter: false,
                connected: false,
                revoked: true,
                expires_unix_ms: revocation.not_after.0,
            }));
            members.sort_by(|a, b| a.name.cmp(&b.name));
            members
        })
        .await
    }

    async fn try_revoke(&self, name: NodeId) -> Result<Revoked, ApiError> {
        let wanted = name.clone();
        let member = self
            .act(move |fabric, now| fabric.revoke(now, &wanted))
            .await?
            .map_err(|error| {
                let code = match &error {
                    RevokeError::NotAnAdmitter => ErrorCode::Refused,
                    RevokeError::UnknownMember(_) => ErrorCode::NotFound,
                    RevokeError::Own => ErrorCode::Usage,
                };
                ApiError::of(code, &error)
            })?;
        Ok(Revoked {
            name,
            serials: vec![member.serial],
        })
    }

    async fn try_metrics(&self) -> Result<String, ApiError> {
        let (records, items, connections) = self
            .act(|fabric, _| {
                (
                    fabric.directory().len(),
                    fabric.flood().len(),
                    fabric.connected().count(),
                )
            })
            .await?;
        let transfers = self.node.inner().board.list();
        let active = transfers.iter().filter(|t| !t.state.is_ended()).count();
        let discovery = match &self.node.inner().discovery {
            Some(discovery) => discovery.stats().await,
            None => DiscoveryStats::default(),
        };
        let mut out = String::new();
        for (name, help, value) in [
            (
                "hyperfabric_peers_connected",
                "Peers with a connection.",
                connections,
            ),
            (
                "hyperfabric_members_known",
                "Members whose records are known.",
                records,
            ),
            ("hyperfabric_flood_items", "Items in the flood database.", items),
            (
                "hyperfabric_transfers_active",
                "Transfers that have not ended.",
                active,
            ),
            (
                "hyperfabric_discovery_kademlia_peers",
                "Peers in Kademlia's routing table.",
                discovery.kad_peers,
            ),
            (
                "hyperfabric_discovery_gossip_peers",
                "Connected peers that listen to announcements.",
                discovery.gossip_peers,
            ),
            (
                "hyperfabric_discovery_connections",
                "Connections that carry libp2p's streams.",
                discovery.connections,
            ),
            (
                "hyperfabric_discovery_records",
                "Records in Kademlia's store.",
                discovery.records,
            ),
        ] {
            out.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
            ));
        }
        Ok(out)
    }

    fn one_transfer(&self, id: TransferId) -> Result<Transfer, ApiError> {
        self.node.inner().board.get(id).ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("transfer {id} is not known"))
                .hint("`hyperfabric transfers` lists those that are")
        })
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a share of a million fits")]
fn peer_record(
    peer_id: PeerId,
    name: Option<NodeId>,
    address: Option<Address>,
    since: Option<u64>,
    connection: Option<&Connection>,
) -> PeerRecord {
    let stats = connection.map(Connection::stats);
    PeerRecord {
        peer_id,
        name,
        connected: connection.is_some(),
        transport: connection.map(|_| "quic".to_owned()),
        address: connection
            .map(|c| c.remote_address().to_string())
            .or_else(|| address.map(|a| a.to_string())),
        dialled: connection.is_some_and(|c| c.side() == Side::Dialled),
        connections: u32::from(connection.is_some()),
        rtt_us: stats
            .as_ref()
            .map(|s| u64::try_from(s.rtt.as_micros()).unwrap_or(u64::MAX)),
        loss_ppm: stats
            .as_ref()
            .map(|s| (s.lost_packets * 1_000_000 / s.sent_packets.max(1)) as u32),
        mtu: stats.as_ref().map(|s| s.mtu),
        sent_bytes: stats.as_ref().map_or(0, |s| s.sent_bytes),
        received_bytes: stats.as_ref().map_or(0, |s| s.received_bytes),
        connected_unix_ms: since.filter(|_| connection.is_some()),
    }
}

fn unavailable() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the daemon is shutting down")
}

fn register_error(error: &RegisterError) -> ApiError {
    match error {
        RegisterError::Duplicate(error) => {
            ApiError::of(ErrorCode::Conflict, error).named("DuplicateNodeError")
        }
        RegisterError::Invalid(error @ InvalidNodeError::OutsideGrant { .. }) => {
            ApiError::of(ErrorCode::Refused, error).named("InvalidNodeError")
        }
        RegisterError::Invalid(error) => ApiError::of(ErrorCode::Usage, error).named("InvalidNodeError"),
        RegisterError::NotAMember => ApiError::of(ErrorCode::Refused, error),
    }
}

pub(crate) fn admit_error(error: &AdmitError) -> ApiError {
    match error {
        AdmitError::NotAnAdmitter => ApiError::of(ErrorCode::Refused, error),
        AdmitError::NameTaken { .. } => ApiError::of(ErrorCode::Conflict, error)
            .named("DuplicateNodeError")
            .hint("choose another name, or revoke its holder first"),
        AdmitError::TooManyTickets => ApiError::of(ErrorCode::Busy, error),
        AdmitError::Uses => ApiError::of(ErrorCode::Usage, error),
    }
}

fn start_error(error: &StartError) -> ApiError {
    match error {
        StartError::NotFound(error) => ApiError::of(ErrorCode::NotFound, error).named("NodeNotFoundError"),
        StartError::UnknownTransfer(_) => ApiError::of(ErrorCode::NotFound, error),
        StartError::Local(_) | StartError::Name | StartError::Delivered(_) | StartError::NoPath(_) => {
            ApiError::of(ErrorCode::Usage, error)
        }
        StartError::NotAMember => {
            ApiError::of(ErrorCode::Refused, error).hint("`hyperfabric join TICKET` makes it one")
        }
        StartError::Stopped(_) => unavailable(),
        StartError::Source(_)
        | StartError::Send(_)
        | StartError::Journal(_)
        | StartError::Worker(_)
        | StartError::Random => ApiError::of(ErrorCode::Failed, error),
    }
}

impl Control for NodeControl {
    fn status(&self) -> Answer<'_, Status> {
        self.try_status().boxed()
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeRecord>> {
        self.try_nodes().boxed()
    }

    fn node(&self, id: NodeId) -> Answer<'_, NodeRecord> {
        async move {
            let nodes = self.try_nodes().await?;
            nodes
                .into_iter()
                .find(|node| node.signature.node_id == id)
                .ok_or_else(|| {
                    let error = hyperfabric_protocol::error::NodeNotFoundError { node_id: id };
                    ApiError::of(ErrorCode::NotFound, &error).named("NodeNotFoundError")
                })
        }
        .boxed()
    }

    fn register(&self, node: NodeSignature) -> Answer<'_, Registered> {
        self.try_register(node).boxed()
    }

    fn peers(&self) -> Answer<'_, Vec<PeerRecord>> {
        self.try_peers().boxed()
    }

    fn ping(&self, ping: Ping) -> Answer<'_, PingReport> {
        self.try_ping(ping).boxed()
    }

    fn send(&self, request: SendRequest) -> Answer<'_, TransferId> {
        self.try_send(request).boxed()
    }

    fn transfers(&self) -> Answer<'_, Vec<Transfer>> {
        async move { Ok(self.node.inner().board.list()) }.boxed()
    }

    fn transfer(&self, id: TransferId) -> Answer<'_, Transfer> {
        async move { self.one_transfer(id) }.boxed()
    }

    fn cancel(&self, id: TransferId) -> Answer<'_, Transfer> {
        async move {
            self.one_transfer(id)?;
            self.node.cancel(id).await.map_err(|Stopped| unavailable())?;
            self.one_transfer(id)
        }
        .boxed()
    }

    fn resume(&self, id: TransferId) -> Answer<'_, Transfer> {
        async move {
            self.node.resume(id).await.map_err(|error| start_error(&error))?;
            self.one_transfer(id)
        }
        .boxed()
    }

    fn transfer_events(&self) -> BoxStream<'static, FeedItem> {
        self.node.inner().board.feed().subscribe()
    }

    fn invite(&self, request: InviteRequest) -> Answer<'_, Invitation> {
        self.try_invite(request).boxed()
    }

    fn members(&self) -> Answer<'_, Vec<Member>> {
        self.try_members().boxed()
    }

    fn revoke(&self, name: NodeId) -> Answer<'_, Revoked> {
        self.try_revoke(name).boxed()
    }

    fn metrics(&self) -> Answer<'_, String> {
        self.try_metrics().boxed()
    }

    fn request_shutdown(&self) {
        self.shutdown.send_replace(true);
    }
}
