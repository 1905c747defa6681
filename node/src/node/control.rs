//! The local API's operations on a running node.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::BoxStream;
use hyperfabric_mesh::driver::Stopped;
use hyperfabric_mesh::{DiscoveryStats, Refusal};
use hyperfabric_protocol::error::InvalidNodeError;
use hyperfabric_protocol::fabric::RegisterError;
use hyperfabric_protocol::types::NodeSignature;
use hyperfabric_protocol::{NodeId, TransferId};
use tokio::sync::watch;

use super::Node;
use super::sending::{NewTransfer, StartError};
use crate::api::control::{Answer, Control, Ping, SendRequest};
use crate::api::model::{
    Admission, AdmitRequest, Invitation, InviteRequest, Member, NodeRecord, PeerRecord, PingReport,
    Registered, Revoked, Status, Transfer,
};
use crate::api::{ApiError, ErrorCode, FeedItem};
use crate::directory::{Directory, find_node, unavailable};
use crate::hardware;
use crate::storage::RelPath;

/// A node as the local API drives it.
pub struct NodeControl {
    node: Node,
    directory: Directory,
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
            directory: node.directory(),
            node,
            name,
            started: tokio::time::Instant::now(),
            shutdown,
            warnings,
        }
    }

    async fn try_status(&self) -> Result<Status, ApiError> {
        let status = self.directory.status(self.name.clone(), self.started).await?;
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
            transfers: inner.board.list().iter().filter(|t| !t.state.is_ended()).count() as u64,
            inbox_bytes,
            inbox_free_bytes,
            warnings: [self.warnings.clone(), status.warnings].concat(),
            ..status
        })
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
            .directory
            .act(move |fabric, now| {
                let known = fabric.own_nodes().iter().any(|n| n.node_id == node.node_id);
                fabric.register(now, node).map(|()| !known)
            })
            .await?
            .map_err(|error| register_error(&error))?;
        Ok(Registered { node_id, created })
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

    async fn try_metrics(&self) -> Result<String, ApiError> {
        let (records, items, connections) = self
            .directory
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
        out.push_str(&refusal_metrics(&self.node.handle().endpoint().refusals()));
        Ok(out)
    }

    fn one_transfer(&self, id: TransferId) -> Result<Transfer, ApiError> {
        self.node.inner().board.get(id).ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("transfer {id} is not known"))
                .hint("`hyperfabric transfers` lists those that are")
        })
    }
}

fn refusal_metrics(refusals: &[(Refusal, u64)]) -> String {
    let name = "hyperfabric_handshakes_refused_total";
    let mut out = format!(
        "# HELP {name} Handshakes that this peer has refused, whoever dialled.\n# TYPE {name} counter\n"
    );
    for (reason, count) in refusals {
        out.push_str(&format!("{name}{{reason=\"{}\"}} {count}\n", reason.word()));
    }
    out
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

fn start_error(error: &StartError) -> ApiError {
    match error {
        StartError::NotFound(error) => ApiError::of(ErrorCode::NotFound, error).named("NodeNotFoundError"),
        StartError::UnknownTransfer(_) => ApiError::of(ErrorCode::NotFound, error),
        StartError::Local(_)
        | StartError::Name
        | StartError::Delivered(_)
        | StartError::NoPath(_)
        | StartError::Upload(_) => ApiError::of(ErrorCode::Usage, error),
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
        self.directory.nodes().boxed()
    }

    fn node(&self, id: NodeId) -> Answer<'_, NodeRecord> {
        async move { find_node(self.directory.nodes().await?, id) }.boxed()
    }

    fn register(&self, node: NodeSignature) -> Answer<'_, Registered> {
        self.try_register(node).boxed()
    }

    fn peers(&self) -> Answer<'_, Vec<PeerRecord>> {
        self.directory.peers().boxed()
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
        self.directory.invite(request).boxed()
    }

    fn admit(&self, request: AdmitRequest) -> Answer<'_, Admission> {
        self.directory.admit(request).boxed()
    }

    fn members(&self) -> Answer<'_, Vec<Member>> {
        self.directory.members().boxed()
    }

    fn revoke(&self, name: NodeId) -> Answer<'_, Revoked> {
        self.directory.revoke(name).boxed()
    }

    fn metrics(&self) -> Answer<'_, String> {
        self.try_metrics().boxed()
    }

    fn request_shutdown(&self) {
        self.shutdown.send_replace(true);
    }
}
