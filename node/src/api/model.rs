//! What the local API and `--json` say: the shapes that others script against.
//!
//! Field names and meanings are a contract; fields are only ever added. Times are milliseconds since 1970 UTC
//! (`_unix_ms`), durations seconds (`_seconds`), sizes bytes. `schema` describes the same shapes to OpenAPI, and a test
//! holds the two together.

use std::path::PathBuf;

use hyperfabric_protocol::types::{DataType, NodeSignature, PacketPriority};
use hyperfabric_protocol::{NodeId, PeerId, Serial, TransferId};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
pub use crate::transfer::tree::SkippedKind;

/// How long a send looks for a name that is not known, in milliseconds, unless told.
pub const WAIT_MS_DEFAULT: u64 = 10_000;
/// The longest that a send over HTTP may look for a name, in milliseconds: a connection that is silent longer is closed.
pub const HTTP_WAIT_MS_MAX: u64 = 100_000;
/// The most echoes that one ping request may ask for.
pub const PING_COUNT_MAX: u32 = 1_000;
/// The largest echo, in bytes.
pub const PING_SIZE_BYTES_MAX: u32 = 64 * 1024;
/// The longest that a ping may wait for one echo, in milliseconds.
pub const PING_TIMEOUT_MS_MAX: u64 = 60_000;
/// The longest that a ticket may be valid, in seconds: a year.
pub const INVITE_SECONDS_MAX: u64 = 366 * 24 * 3600;
/// The most uses of one ticket.
pub const INVITE_USES_MAX: u32 = 65_536;

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Who this peer is.
    pub peer_id: PeerId,
    /// The `node_id` of the host's own node.
    pub name: NodeId,
    /// The mesh's name.
    pub mesh: Option<String>,
    /// Whether the mesh is open: joined by its name, without tickets.
    pub open: bool,
    /// Whether this peer can invite others.
    pub admitter: bool,
    /// When the membership certificate expires.
    pub certificate_expires_unix_ms: Option<u64>,
    /// The multiaddrs at which other peers reach this one.
    pub listen: Vec<String>,
    /// What carries datagrams.
    pub backend: String,
    /// For how long the daemon has been running.
    pub uptime_seconds: f64,
    /// How many nodes are known, this peer's own among them.
    pub nodes: u64,
    /// How many peers are connected.
    pub peers: u64,
    /// How many transfers have not ended.
    pub transfers: u64,
    /// How much the inbox holds.
    pub inbox_bytes: u64,
    /// How much is free on the inbox's file system.
    pub inbox_free_bytes: u64,
    /// How many handshakes this peer has refused since it was started.
    pub handshakes_refused: u64,
    /// What the owner should look at, such as a store that was moved aside or a name that another peer had first.
    pub warnings: Vec<String>,
}

/// A node of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What its peer says about it.
    #[serde(flatten)]
    pub signature: NodeSignature,
    /// The peer that hosts it.
    pub peer_id: PeerId,
    /// Whether this peer hosts it.
    pub local: bool,
    /// Whether its peer is connected, or can be reached over others that are.
    pub reachable: bool,
    /// When its record was last renewed.
    pub seen_unix_ms: u64,
}

/// The answer to the registration of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The node.
    pub node_id: NodeId,
    /// Whether it is new; `false` when it replaced what this peer had said about it before.
    pub created: bool,
}

/// Another peer that this one knows or is connected with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// Who it is.
    pub peer_id: PeerId,
    /// The name that its certificate grants.
    pub name: Option<NodeId>,
    /// Whether there is a connection.
    pub connected: bool,
    /// What carries the connection: `quic`.
    pub transport: Option<String>,
    /// Its address: of the connection, or else the last one that worked.
    pub address: Option<String>,
    /// Whether this peer dialled.
    pub dialled: bool,
    /// How many connections there are, those of transfers among them.
    pub connections: u32,
    /// The round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// Lost packets in a million.
    pub loss_ppm: Option<u32>,
    /// The path's MTU, in bytes.
    pub mtu: Option<u16>,
    /// Bytes sent over its connections.
    pub sent_bytes: u64,
    /// Bytes received over its connections.
    pub received_bytes: u64,
    /// Since when it is connected.
    pub connected_unix_ms: Option<u64>,
}

/// A ping: echoes, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingRequest {
    /// The node to reach.
    pub node: NodeId,
    /// How many echoes, at most [`PING_COUNT_MAX`].
    #[serde(default = "one")]
    pub count: u32,
    /// The size of an echo in bytes, at most [`PING_SIZE_BYTES_MAX`].
    #[serde(default = "ping_size")]
    pub size: u32,
    /// How long to wait for each, at most [`PING_TIMEOUT_MS_MAX`].
    #[serde(default = "ping_timeout_ms")]
    pub timeout_ms: u64,
}

/// What a ping found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PingReport {
    /// The node that asked.
    pub source: NodeId,
    /// The node that was to answer.
    pub destination: NodeId,
    /// The median of the round-trip times; 0 when no echo came back.
    pub latency_ns: u64,
    /// How fast the last transfer to the destination moved its bytes, in Gbit/s; `null` when none large enough to tell
    /// has since the daemon was started.
    pub bandwidth_gbps: Option<f64>,
    /// The nodes that the echoes crossed, both ends included.
    pub path: Vec<NodeId>,
    /// The share of echoes that did not come back, from 0 to 1.
    pub packet_loss_rate: f64,
    /// When the ping began, in seconds since 1970 UTC.
    pub timestamp: f64,
    /// Whether any echo came back.
    pub success: bool,
    /// Each echo's round-trip time in nanoseconds, `null` for one that did not come back.
    pub samples_ns: Vec<Option<u64>>,
}

/// What to send where, besides the bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendOrder {
    /// The absolute path of the file or folder; for an upload, absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The name under which it arrives; by default the last segment of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The node that gets it.
    pub to: NodeId,
    /// What it is.
    #[serde(default = "data_type", rename = "type")]
    pub data_type: DataType,
    /// How urgent it is.
    #[serde(default = "priority")]
    pub priority: PacketPriority,
    /// After how long the transfer fails if it has not ended; without it, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// For how long to look for a node that is not known.
    #[serde(default = "wait_ms")]
    pub wait_ms: u64,
    /// Whether the receiver makes every chunk durable as it arrives, not a window of them at a time.
    #[serde(default)]
    pub sync: bool,
}

/// The answer to a send: the transfer has begun, and goes on without the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The transfer.
    pub transfer_id: TransferId,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From this peer.
    Outgoing,
    /// To this peer.
    Incoming,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferState {
    /// It waits for its turn, for the other peer, or for a connection.
    Waiting,
    /// Bytes move.
    Active,
    /// All bytes are there; the receiver verifies and files them.
    Sealing,
    /// The receiver has it, verified and durable.
    Done,
    /// It ended without success, as its error says.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl TransferState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Active,
        Self::Sealing,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Tells whether nothing will happen any more.
    #[must_use]
    pub fn is_ended(self) -> bool {
        match self {
            Self::Waiting | Self::Active | Self::Sealing => false,
            Self::Done | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// A transfer at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its id: the same at both ends.
    pub transfer_id: TransferId,
    /// Which way it goes.
    pub direction: Direction,
    /// How far it is.
    pub state: TransferState,
    /// The name under which it arrives.
    pub name: String,
    /// Where it lies on this host: the source, or its place in the inbox.
    pub path: Option<PathBuf>,
    /// The node that sends.
    pub source: NodeId,
    /// The node that receives.
    pub destination: NodeId,
    /// What it is.
    #[serde(rename = "type")]
    pub data_type: DataType,
    /// How urgent it is.
    pub priority: PacketPriority,
    /// Its size.
    pub bytes: u64,
    /// How much of it the receiver has made durable, resumed bytes included.
    pub done_bytes: u64,
    /// How much was already there when it was last resumed.
    pub resumed_bytes: u64,
    /// How many bytes of it were handed to the network since it was begun or taken up, those that had to be sent again
    /// included; 0 at the receiver.
    pub sent_bytes: u64,
    /// How fast it is at the moment, in bytes per second.
    pub rate: u64,
    /// For how long it has been going on, or went on, interruptions included.
    pub seconds: f64,
    /// The BLAKE3 of its content, as `b3sum` prints it; known once every byte was read.
    pub blake3: Option<String>,
    /// The nodes that it crosses, both ends included.
    pub route: Vec<NodeId>,
    /// When it was begun.
    pub started_unix_ms: u64,
    /// What lies in the folder and is not sent; `null` for a file, at the receiver, and once the daemon was started
    /// again after the end.
    pub skipped: Option<Skipped>,
    /// What it waits for, or last stumbled over.
    pub detail: Option<String>,
    /// Why it failed.
    pub error: Option<ApiError>,
}

/// What lies in a folder that is sent, and is not sent itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many entries there are.
    pub count: u64,
    /// The first of them, a few at most.
    pub listed: Vec<SkippedEntry>,
}

/// An entry of a folder that is not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedEntry {
    /// Its path in the folder; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// What it is.
    pub kind: SkippedKind,
}

/// What `send` says when its transfer is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// The transfer.
    pub transfer_id: TransferId,
    /// Its size.
    pub bytes: u64,
    /// How long it took, interruptions included.
    pub seconds: f64,
    /// The BLAKE3 of its content, as `b3sum` prints it.
    pub blake3: Option<String>,
    /// The nodes that it crossed, both ends included.
    pub route: Vec<NodeId>,
    /// How much was already there when it was last resumed.
    pub resumed_bytes: u64,
    /// What lies in the folder and was not sent; `null` for a file, and when the daemon was started again after the end.
    pub skipped: Option<Skipped>,
}

/// A ticket to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The name that it grants.
    pub name: NodeId,
    /// For how long it is valid, at most [`INVITE_SECONDS_MAX`].
    #[serde(default = "day_seconds")]
    pub expires_seconds: u64,
    /// How often it can be used, at most [`INVITE_USES_MAX`].
    #[serde(default = "one")]
    pub uses: u32,
}

/// A ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// What `hyperfabric join` takes. Whoever has it can join.
    pub ticket: String,
    /// The name that it grants.
    pub name: NodeId,
    /// When it expires.
    pub expires_unix_ms: u64,
    /// How often it can be used.
    pub uses: u32,
}

/// A peer to admit by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmitRequest {
    /// The peer's key.
    pub peer_id: PeerId,
    /// The name that it gets.
    pub name: NodeId,
}

/// A peer's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The name that it grants.
    pub name: NodeId,
    /// Whom it is for.
    pub peer_id: PeerId,
    /// What `hyperfabric join` takes at that peer; of no use to anybody else.
    pub certificate: String,
}

/// A member of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The name that its certificate grants.
    pub name: NodeId,
    /// Who it is.
    pub peer_id: PeerId,
    /// Its certificate's serial.
    pub serial: Serial,
    /// Whether it can invite others.
    pub admitter: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When its certificate expires.
    pub expires_unix_ms: u64,
}

/// Whom to revoke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// The member's name.
    pub name: NodeId,
}

/// Who was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The member's name.
    pub name: NodeId,
    /// The serials that no peer accepts any more.
    pub serials: Vec<Serial>,
}

/// The answer to a request that has nothing to tell but that it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always `true`.
    pub done: bool,
}

fn one() -> u32 {
    1
}
fn ping_size() -> u32 {
    64
}
fn ping_timeout_ms() -> u64 {
    5_000
}
fn wait_ms() -> u64 {
    WAIT_MS_DEFAULT
}
fn day_seconds() -> u64 {
    24 * 3600
}
fn data_type() -> DataType {
    DataType::Generic
}
fn priority() -> PacketPriority {
    PacketPriority::Medium
}
