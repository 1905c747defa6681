//! What the local API asks of the daemon.
//!
//! [`Control`] is the seam between the surfaces and the running node: HTTP, the socket and tests drive it, the node
//! implements it. Everything that a request may not decide (who asks, which files may be read, how large a body is) is
//! settled before it is called.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hyperfabric_protocol::types::{DataType, NodeSignature, PacketPriority};
use hyperfabric_protocol::{NodeId, TransferId};

use super::error::ApiError;
use super::events::FeedItem;
use super::model::{
    Admission, AdmitRequest, Invitation, InviteRequest, Member, NodeRecord, PeerRecord, PingReport,
    Registered, Revoked, Status, Transfer,
};

/// What an operation answers, some time later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ApiError>>;

/// The operations of a running daemon.
pub trait Control: Send + Sync + 'static {
    /// Returns how the daemon is.
    fn status(&self) -> Answer<'_, Status>;

    /// Returns every known node, this peer's own among them.
    fn nodes(&self) -> Answer<'_, Vec<NodeRecord>>;

    /// Returns one node, or [`super::ErrorCode::NotFound`].
    fn node(&self, id: NodeId) -> Answer<'_, NodeRecord>;

    /// Makes this peer host a node, or say something new about one that it hosts.
    fn register(&self, node: NodeSignature) -> Answer<'_, Registered>;

    /// Returns every peer that is known or connected.
    fn peers(&self) -> Answer<'_, Vec<PeerRecord>>;

    /// Sends echoes to a node; one that does not come back in time counts as lost.
    fn ping(&self, ping: Ping) -> Answer<'_, PingReport>;

    /// Begins a transfer and answers once it is in the journal; it goes on without the caller.
    ///
    /// A caller that goes away drops the answer, which gives up the search for a node that is not known.
    fn send(&self, request: SendRequest) -> Answer<'_, TransferId>;

    /// Returns the transfers of both directions: all that have not ended, and the last ones that have.
    fn transfers(&self) -> Answer<'_, Vec<Transfer>>;

    /// Returns one transfer, or [`super::ErrorCode::NotFound`].
    fn transfer(&self, id: TransferId) -> Answer<'_, Transfer>;

    /// Ends a transfer and tells the other peer; answers with what became of it.
    fn cancel(&self, id: TransferId) -> Answer<'_, Transfer>;

    /// Begins a failed or cancelled outgoing transfer again where it stopped.
    fn resume(&self, id: TransferId) -> Answer<'_, Transfer>;

    /// Follows every transfer from now on ([`super::TransferFeed`] has the stream).
    fn transfer_events(&self) -> BoxStream<'static, FeedItem>;

    /// Makes a ticket.
    fn invite(&self, request: InviteRequest) -> Answer<'_, Invitation>;

    /// Makes a certificate for a peer whose key is known.
    fn admit(&self, request: AdmitRequest) -> Answer<'_, Admission>;

    /// Returns the members of the mesh as far as this peer knows them.
    fn members(&self) -> Answer<'_, Vec<Member>>;

    /// Revokes every certificate of a name.
    fn revoke(&self, name: NodeId) -> Answer<'_, Revoked>;

    /// Returns the metrics in Prometheus' text format.
    fn metrics(&self) -> Answer<'_, String>;

    /// Asks the daemon to drain and stop; returns at once.
    fn request_shutdown(&self);
}

/// Echoes to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// To whom.
    pub node: NodeId,
    /// How many, one after the other.
    pub count: u32,
    /// How large, in bytes.
    pub size_bytes: u32,
    /// How long to wait for each.
    pub timeout: Duration,
}

/// A transfer to begin.
#[derive(Debug)]
pub struct SendRequest {
    /// The bytes.
    pub source: SendSource,
    /// The name under which they arrive: one segment, never empty.
    pub name: String,
    /// The node that gets them.
    pub to: NodeId,
    /// What they are.
    pub data_type: DataType,
    /// How urgent they are.
    pub priority: PacketPriority,
    /// After how long the transfer fails if it has not ended.
    pub timeout: Option<Duration>,
    /// For how long to look for a node that is not known.
    pub wait: Duration,
    /// Whether the receiver makes every chunk durable as it arrives.
    pub sync: bool,
}

/// The bytes to send, which the caller has proved to be able to read.
#[derive(Debug)]
pub struct SendSource {
    /// A readable regular file or folder. Its position is shared with the caller: read at offsets, not from there.
    pub file: OwnedFd,
    /// Its absolute path, for opening it again when the transfer is resumed after a restart.
    pub path: PathBuf,
    /// Whether the file was made for this transfer and is to be removed when it has ended.
    pub upload: bool,
}
