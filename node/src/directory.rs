//! The local API's operations on what every peer has: the directory, the members and their admission.
//!
//! A node and a bootstrap peer answer them alike; what only a node can do is in `node/control`.

use std::time::Duration;

use hyperfabric_mesh::driver::{Handle, Stopped};
use hyperfabric_mesh::{Connection, EventSender, Events, Side};
use hyperfabric_protocol::admission::AdmitError;
use hyperfabric_protocol::cert::MeshRoot;
use hyperfabric_protocol::error::DuplicateNodeError;
use hyperfabric_protocol::fabric::{Event, RevokeError};
use hyperfabric_protocol::flood::{Item, ItemKey, ItemKind};
use hyperfabric_protocol::ticket::Credential;
use hyperfabric_protocol::types::NodeSignature;
use hyperfabric_protocol::{Address, Fabric, NodeId, PeerId};

use crate::api::model::{
    Admission, AdmitRequest, Invitation, InviteRequest, Member, NodeRecord, PeerRecord, Revoked, Status,
};
use crate::api::{ApiError, ErrorCode};
use crate::node::Node;

/// How long a state change may take to be on disk.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(30);

/// A peer, its name, where it can be dialled, and since when it is connected.
type Known = (PeerId, Option<NodeId>, Option<Address>, Option<u64>);

/// A peer's event loop as the local API drives it.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) handle: Handle,
    pub(crate) events: EventSender,
    /// What tickets name instead of the addresses of the interfaces.
    pub(crate) announce: Vec<Address>,
}

impl Directory {
    pub(crate) async fn act<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Fabric, hyperfabric_protocol::Now) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        self.handle.act(act).await.map_err(|Stopped| unavailable())
    }

    /// Waits until state changes are on disk.
    async fn persisted(&self, events: Events, job: u64) -> Result<(), ApiError> {
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

    /// Returns how the peer is; what it moves and stores is for the caller to add.
    pub(crate) async fn status(
        &self,
        name: NodeId,
        started: tokio::time::Instant,
    ) -> Result<Status, ApiError> {
        let facts = self.act(|fabric, _| {
            let root = fabric.admission().root().cloned();
            let nodes = fabric.directory().nodes().count();
            let not_after = fabric.admission().own().map(|(_, m)| m.not_after.0);
            (
                root,
                not_after,
                fabric.admission().admitter().is_some(),
                nodes as u64,
                fabric.connected().count() as u64,
                lost_claims(fabric),
            )
        });
        let (root, certificate_expires_unix_ms, admitter, nodes, peers, lost) = facts.await?;
        let peer_id = self.handle.peer_id();
        let listen = self.addresses().into_iter();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer_id,
            name,
            open: root.as_ref().is_some_and(MeshRoot::is_open),
            mesh: root.map(|r| r.name().to_owned()),
            admitter,
            certificate_expires_unix_ms,
            listen: listen.map(|address| format!("{address}/p2p/{peer_id}")).collect(),
            backend: "kernel".to_owned(),
            uptime_seconds: started.elapsed().as_secs_f64(),
            nodes,
            peers,
            transfers: 0,
            inbox_bytes: 0,
            inbox_free_bytes: 0,
            handshakes_refused: self
                .handle
                .endpoint()
                .refusals()
                .iter()
                .map(|(_, count)| count)
                .sum(),
            warnings: lost.iter().map(duplicate_warning).collect(),
        })
    }

    /// Returns every known node.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeRecord>, ApiError> {
        let local = self.handle.peer_id();
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
                // [DIR-3] Who has lost a name to another peer claims it in vain.
                let held = |node: &&NodeSignature| fabric.directory().host_of(&node.node_id) == Some(peer);
                for node in record.body.nodes.0.iter().filter(held) {
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

    /// Returns every other peer that is known or connected.
    pub(crate) async fn peers(&self) -> Result<Vec<PeerRecord>, ApiError> {
        let local = self.handle.peer_id();
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
            let connection = self.handle.connection(&peer_id);
            peer_record(peer_id, name, address, since, connection.as_ref())
        };
        Ok(known.into_iter().map(record).collect())
    }

    /// Makes a ticket.
    pub(crate) async fn invite(&self, request: InviteRequest) -> Result<Invitation, ApiError> {
        let addresses = self.addresses();
        let valid = Duration::from_secs(request.expires_seconds);
        let (name, uses) = (request.name.clone(), request.uses);
        let events = self.events.subscribe();
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

    /// Returns the members of the mesh as far as this peer knows them.
    pub(crate) async fn members(&self) -> Result<Vec<Member>, ApiError> {
        let local = self.handle.peer_id();
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

    /// Revokes every certificate of a name.
    pub(crate) async fn revoke(&self, name: NodeId) -> Result<Revoked, ApiError> {
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

    fn addresses(&self) -> Vec<Address> {
        if self.announce.is_empty() {
            self.handle.reachable().unwrap_or_default()
        } else {
            self.announce.clone()
        }
    }

    /// Makes a certificate for a peer whose key is known.
    pub(crate) async fn admit(&self, request: AdmitRequest) -> Result<Admission, ApiError> {
        let AdmitRequest { peer_id, name } = request;
        let addresses = self.addresses();
        let (events, wanted) = (self.events.subscribe(), name.clone());
        let admitted = self.act(move |fabric, now| {
            let (membership, job) = fabric.admit(now, peer_id, wanted)?;
            Ok((
                fabric.admission().root().cloned(),
                fabric.peer_id(),
                membership,
                job,
            ))
        });
        let (root, issuer, membership, job) = admitted.await?.map_err(|error| admit_error(&error))?;
        self.persisted(events, job).await?;
        let root = root.ok_or_else(|| admit_error(&AdmitError::NotAnAdmitter))?;
        let certificate = Credential::new(&root, membership, Some((issuer, addresses)));
        Ok(Admission {
            name,
            peer_id,
            certificate: certificate.to_string(),
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

pub(crate) fn unavailable() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the daemon is shutting down")
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

/// Finds one of the known nodes.
/// The nodes of this peer whose names belong to other peers.
fn lost_claims(fabric: &Fabric) -> Vec<DuplicateNodeError> {
    let lost = fabric.own_nodes().iter().filter_map(|node| {
        let holder = fabric.directory().host_of(&node.node_id)?;
        (holder != fabric.peer_id()).then(|| DuplicateNodeError {
            node_id: node.node_id.clone(),
            holder,
        })
    });
    lost.collect()
}

/// Tells the owner of a peer that lost a name what can be done about it.
pub(crate) fn duplicate_warning(error: &DuplicateNodeError) -> String {
    format!(
        "DuplicateNodeError: {error}; to be reached, join under another name, with a new ticket (an open mesh needs \
         none) and another --data-dir"
    )
}

pub(crate) fn find_node(nodes: Vec<NodeRecord>, id: NodeId) -> Result<NodeRecord, ApiError> {
    nodes
        .into_iter()
        .find(|node| node.signature.node_id == id)
        .ok_or_else(|| {
            let error = hyperfabric_protocol::error::NodeNotFoundError { node_id: id };
            ApiError::of(ErrorCode::NotFound, &error).named("NodeNotFoundError")
        })
}
