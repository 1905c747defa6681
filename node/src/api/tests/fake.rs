//! A daemon that is made up: it remembers what it was asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::stream::BoxStream;
use hyperfabric_protocol::types::{DataType, HardwareType, NodeSignature, PacketPriority};
use hyperfabric_protocol::{NodeId, PeerId, Serial, TransferId};

use crate::api::model::*;
use crate::api::*;

/// What a send asked for, its content read if it is a file.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) order: SendRequest,
    pub(crate) content: Option<Vec<u8>>,
}

#[derive(Default)]
pub(crate) struct FakeControl {
    pub(crate) sent: Mutex<Vec<Sent>>,
    pub(crate) transfers: Mutex<BTreeMap<TransferId, Transfer>>,
    pub(crate) feed: TransferFeed,
    pub(crate) shutdown: AtomicBool,
}

pub(crate) fn id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

pub(crate) fn node_record(name: &str) -> NodeRecord {
    NodeRecord {
        signature: NodeSignature::new(id(name), HardwareType::CpuServer, 10.0, 1_000).unwrap(),
        peer_id: PeerId([1; 32]),
        local: true,
        reachable: true,
        seen_unix_ms: 1,
    }
}

pub(crate) fn transfer(number: u8, state: TransferState) -> Transfer {
    Transfer {
        transfer_id: TransferId([number; 16]),
        direction: Direction::Outgoing,
        state,
        name: "weights.bin".to_owned(),
        path: Some(PathBuf::from("/tmp/weights.bin")),
        source: id("a"),
        destination: id("b"),
        data_type: DataType::Tensor,
        priority: PacketPriority::High,
        bytes: 100,
        done_bytes: 40,
        resumed_bytes: 0,
        sent_bytes: 50,
        rate: 10,
        seconds: 4.0,
        blake3: None,
        route: vec![id("a"), id("b")],
        started_unix_ms: 1,
        skipped: None,
        detail: None,
        error: None,
    }
}

pub(crate) fn status() -> Status {
    Status {
        version: "0".to_owned(),
        peer_id: PeerId([1; 32]),
        name: id("a"),
        mesh: Some("lab".to_owned()),
        open: false,
        admitter: true,
        certificate_expires_unix_ms: Some(1),
        listen: vec!["/ip4/127.0.0.1/udp/1/quic-v1".to_owned()],
        backend: "kernel".to_owned(),
        uptime_seconds: 1.5,
        nodes: 1,
        peers: 2,
        transfers: 3,
        inbox_bytes: 4,
        inbox_free_bytes: 5,
        handshakes_refused: 6,
        warnings: vec![],
    }
}

pub(crate) fn peer() -> PeerRecord {
    PeerRecord {
        peer_id: PeerId([2; 32]),
        name: Some(id("b")),
        connected: true,
        transport: Some("quic".to_owned()),
        address: Some("/ip4/127.0.0.1/udp/2/quic-v1".to_owned()),
        dialled: true,
        connections: 1,
        rtt_us: Some(250),
        loss_ppm: Some(0),
        mtu: Some(1_452),
        sent_bytes: 1,
        received_bytes: 2,
        connected_unix_ms: Some(3),
    }
}

pub(crate) fn member() -> Member {
    Member {
        name: id("b"),
        peer_id: PeerId([2; 32]),
        serial: Serial([3; 16]),
        admitter: false,
        connected: true,
        revoked: false,
        expires_unix_ms: 1,
    }
}

impl FakeControl {
    /// Stores a transfer and tells the followers.
    pub(crate) fn put(&self, transfer: Transfer) {
        self.transfers
            .lock()
            .unwrap()
            .insert(transfer.transfer_id, transfer.clone());
        self.feed.publish(transfer);
    }

    fn find(&self, id: TransferId) -> Result<Transfer, ApiError> {
        let found = self.transfers.lock().unwrap().get(&id).cloned();
        found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "no such transfer"))
    }

    fn set(&self, id: TransferId, state: TransferState) -> Result<Transfer, ApiError> {
        let transfer = Transfer {
            state,
            ..self.find(id)?
        };
        self.put(transfer.clone());
        Ok(transfer)
    }
}

fn now<T: Send + 'static>(result: Result<T, ApiError>) -> Answer<'static, T> {
    std::future::ready(result).boxed()
}

fn unknown(name: &NodeId) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("node {name} is not known")).named("NodeNotFoundError")
}

impl Control for FakeControl {
    fn status(&self) -> Answer<'_, Status> {
        now(Ok(status()))
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeRecord>> {
        now(Ok(vec![node_record("a"), node_record("a/gpu0")]))
    }

    fn node(&self, id: NodeId) -> Answer<'_, NodeRecord> {
        now(if id.as_str().starts_with('a') {
            Ok(node_record(id.as_str()))
        } else {
            Err(unknown(&id))
        })
    }

    fn register(&self, node: NodeSignature) -> Answer<'_, Registered> {
        now(Ok(Registered {
            node_id: node.node_id,
            created: true,
        }))
    }

    fn peers(&self) -> Answer<'_, Vec<PeerRecord>> {
        now(Ok(vec![peer()]))
    }

    fn ping(&self, ping: Ping) -> Answer<'_, PingReport> {
        now(Ok(PingReport {
            source: id("a"),
            destination: ping.node.clone(),
            latency_ns: 1_000,
            bandwidth_gbps: None,
            path: vec![id("a"), ping.node],
            packet_loss_rate: 0.0,
            timestamp: 1.0,
            success: true,
            samples_ns: vec![Some(1_000); ping.count as usize],
        }))
    }

    fn send(&self, order: SendRequest) -> Answer<'_, TransferId> {
        if order.to == id("nobody") {
            return now(Err(unknown(&order.to)));
        }
        let mut content = Vec::new();
        let mut file = File::from(order.source.file.try_clone().unwrap());
        // An upload was just written through this very description.
        std::io::Seek::rewind(&mut file).unwrap();
        let content = file.read_to_end(&mut content).is_ok().then_some(content);
        let mut sent = self.sent.lock().unwrap();
        sent.push(Sent { order, content });
        let number = u8::try_from(sent.len()).unwrap();
        self.put(transfer(number, TransferState::Active));
        now(Ok(TransferId([number; 16])))
    }

    fn transfers(&self) -> Answer<'_, Vec<Transfer>> {
        now(Ok(self.transfers.lock().unwrap().values().cloned().collect()))
    }

    fn transfer(&self, id: TransferId) -> Answer<'_, Transfer> {
        now(self.find(id))
    }

    fn cancel(&self, id: TransferId) -> Answer<'_, Transfer> {
        now(self.set(id, TransferState::Cancelled))
    }

    fn resume(&self, id: TransferId) -> Answer<'_, Transfer> {
        now(self.set(id, TransferState::Active))
    }

    fn transfer_events(&self) -> BoxStream<'static, FeedItem> {
        self.feed.subscribe()
    }

    fn invite(&self, request: InviteRequest) -> Answer<'_, Invitation> {
        let InviteRequest {
            name,
            uses,
            expires_seconds,
        } = request;
        now(Ok(Invitation {
            ticket: "hft1-abc".to_owned(),
            name,
            expires_unix_ms: expires_seconds * 1_000,
            uses,
        }))
    }

    fn admit(&self, request: AdmitRequest) -> Answer<'_, Admission> {
        now(Ok(Admission {
            name: request.name,
            peer_id: request.peer_id,
            certificate: "hfc1-".to_owned(),
        }))
    }

    fn members(&self) -> Answer<'_, Vec<Member>> {
        now(Ok(vec![member()]))
    }

    fn revoke(&self, name: NodeId) -> Answer<'_, Revoked> {
        now(Ok(Revoked {
            name,
            serials: vec![Serial([3; 16])],
        }))
    }

    fn metrics(&self) -> Answer<'_, String> {
        now(Ok(
            "# TYPE hyperfabric_peers gauge\nhyperfabric_peers 2\n".to_owned()
        ))
    }

    fn request_shutdown(&self) {
        self.shutdown.store(true, Ordering::SeqCst);
    }
}
