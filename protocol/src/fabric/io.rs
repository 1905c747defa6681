//! What goes into the fabric machine and what comes out of it.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::admission::{Grant, Persist, TicketRecord};
use crate::cbor::DecodeError;
use crate::cert::{Admitter, CertificateError, Member, Membership, MeshRoot};
use crate::flood::content::{self, ItemFault};
use crate::flood::{Checked, FloodViolation, Version};
use crate::frame::{Frame, JoinRefusal};
use crate::neighbors::CloseReason;
use crate::sign::SigningKey;
use crate::transfer::{self, ChunkRanges, Fault, PayloadOrder, Role};
use crate::{Address, ConnId, NodeId, Now, PeerId, Serial, Signed, TransferId};

/// How long a record counts without a newer version. [DIR-4]
pub const RECORD_LIFETIME: Duration = Duration::from_secs(3600);
/// How often a peer publishes its record again.
pub const RECORD_REFRESH: Duration = Duration::from_secs(1200);

/// What a peer starts with.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// Its private key.
    pub key: SigningKey,
    /// Its mesh, when it has one.
    pub root: Option<MeshRoot>,
    /// Its certificate, when it is a member.
    pub membership: Option<Membership>,
    /// Its right to admit others, when it has one.
    pub admitter: Option<Admitter>,
    /// Tickets that it has issued.
    pub tickets: Vec<TicketRecord>,
    /// Names that it has granted.
    pub grants: Vec<Grant>,
    /// Revocations that it knows.
    pub revocations: Vec<Signed>,
    /// A number that no earlier start of the peer has used.
    pub incarnation: u64,
    /// What it runs, for people.
    pub agent: String,
    /// Whether it is a bootstrap peer.
    pub bootstrap: bool,
    /// It keeps at least this many neighbors.
    pub degree_min: usize,
    /// It dials no more than this many.
    pub degree_max: usize,
    /// It has no more connections than this.
    pub connections_max: usize,
    /// It takes part in no more transfers than this at one time, in each direction.
    pub transfers_max: usize,
    /// Seed of its random numbers; secret, because ticket secrets come from it.
    pub seed: [u8; 32],
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Control and small payloads between members.
    Prompt,
    /// Redeeming a ticket.
    Join,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A connection is up.
    Connected {
        /// Names it.
        conn: ConnId,
        /// The other side.
        peer: PeerId,
        /// What it is for.
        purpose: Purpose,
        /// Whether this side dialled.
        dialled: bool,
        /// The address dialled.
        address: Option<Address>,
        /// The membership that the other side showed.
        membership: Option<Arc<[u8]>>,
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        conn: ConnId,
        /// What the other side said, when it closed the connection in words.
        reason: Option<CloseReason>,
    },
    /// None of a peer's addresses answered.
    DialFailed {
        /// The peer.
        peer: PeerId,
        /// What it was dialled for.
        purpose: Purpose,
        /// Whether it answered and refused.
        permanent: bool,
    },
    /// A peer does not let this one in, because its membership was revoked.
    RevokedBy {
        /// The peer.
        peer: PeerId,
    },
    /// A control frame has arrived.
    Frame {
        /// On which connection.
        conn: ConnId,
        /// Its bytes, without the length prefix.
        bytes: Vec<u8>,
    },
    /// A control frame has arrived, and the driver has read its bytes already.
    Decoded {
        /// On which connection.
        conn: ConnId,
        /// What [`Frame::from_bytes`] has made of them.
        frame: Frame,
    },
    /// This peer's own addresses.
    Addresses(Vec<Address>),
    /// A signed item was found elsewhere than on a link.
    Found(Signed),
    /// The sender's data plane has sent every missing chunk.
    PayloadSent {
        /// Which transfer.
        transfer: TransferId,
        /// In which attempt.
        attempt: u32,
        /// BLAKE3 of the payload.
        root: [u8; 32],
    },
    /// The data plane of either side has stopped.
    PayloadFailed {
        /// The other side.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// Which side this is.
        role: Role,
        /// In which attempt.
        attempt: u32,
        /// Why; `None` when only the connection broke.
        fault: Option<Fault>,
    },
    /// Chunks are durable at this receiver.
    ChunksDurable {
        /// The sender.
        peer: PeerId,
        /// Which transfer.
        transfer: TransferId,
        /// Every durable chunk.
        have: ChunkRanges,
    },
    /// The driver has seen a peer break the protocol.
    Violation {
        /// The peer.
        peer: PeerId,
        /// What its connection was for.
        purpose: Purpose,
        /// How.
        violation: Misbehaved,
    },
    /// A job has ended.
    JobDone(JobResult),
}

/// What is to be done on the network.
#[derive(Clone, Debug, PartialEq)]
pub enum Transmit {
    /// Send a control frame.
    Frame {
        /// On this connection.
        conn: ConnId,
        /// Which; [`Frame::to_bytes`] are its bytes, without the length prefix.
        frame: Frame,
    },
    /// Dial a peer, at whichever of the addresses answers first.
    Dial {
        /// The peer.
        peer: PeerId,
        /// Where.
        addresses: Vec<Address>,
        /// What for.
        purpose: Purpose,
    },
    /// Close a connection.
    Close {
        /// Which.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// Move the bytes of a transfer, or stop.
    Payload(PayloadOrder),
}

/// Heavy or durable work.
#[derive(Clone, Debug)]
pub enum Job {
    /// Check signatures and contents; [`Job::run_check`] does it.
    Check {
        /// The items and where they came from.
        items: Vec<(ConnId, Arc<Version>)>,
        /// The mesh.
        root: MeshRoot,
    },
    /// Write state changes down, durably.
    Persist(Persist),
    /// Prepare, seal or discard an incoming transfer.
    Transfer(transfer::Job),
}

impl Job {
    /// Runs a [`Job::Check`]: pure, some hundred microseconds for each item.
    #[must_use]
    pub fn run_check(items: Vec<(ConnId, Arc<Version>)>, root: &MeshRoot, now: Now) -> JobResult {
        let checked = items
            .into_iter()
            .map(|(from, version)| {
                let result = content::check(version.signed(), root, now.wall);
                Checked {
                    from,
                    version,
                    result,
                }
            })
            .collect();
        JobResult::Checked(checked)
    }

    /// The result of a [`Job::Check`] that could not be run: nothing is taken, and nobody is to blame.
    #[must_use]
    pub fn refuse(items: Vec<(ConnId, Arc<Version>)>) -> JobResult {
        let fault = DecodeError::Invalid("item that cannot be checked");
        let refused = items.into_iter().map(|(from, version)| Checked {
            from,
            version,
            result: Err(ItemFault::Malformed(fault)),
        });
        JobResult::Checked(refused.collect())
    }
}

/// What a job has found or done.
#[derive(Clone, Debug)]
pub enum JobResult {
    /// Of [`Job::Check`].
    Checked(Vec<Checked>),
    /// Of [`Job::Persist`].
    Persisted {
        /// The job's number.
        id: u64,
        /// Whether everything is on disk.
        ok: bool,
    },
    /// Of [`Job::Transfer`].
    Transfer(transfer::JobResult),
}

/// How a peer broke the protocol. Always the peer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaved {
    /// A control frame cannot be read.
    #[error("sent a frame that cannot be read: {0}")]
    Frame(#[source] DecodeError),
    /// A control frame is larger than allowed.
    #[error("sent a frame larger than allowed")]
    OversizedFrame,
    /// A frame came before Hello.
    #[error("sent a frame before its hello")]
    OutOfOrder,
    /// A frame that has no place on this connection.
    #[error("sent a frame that does not belong on this connection")]
    OutOfPlace,
    /// The rules of flooding.
    #[error("{0}")]
    Flood(#[source] FloodViolation),
    /// The rules of transfers.
    #[error("{0}")]
    Transfer(#[source] transfer::Violation),
    /// A transfer offered in the name of a node that is not the peer's.
    #[error("sent in the name of a node that is not its own")]
    ForeignSource,
    /// Bytes of a transfer that do not match what was announced for them.
    #[error("sent bytes that do not match their digest")]
    ChunkDigest,
    /// A payload stream that does not follow the format.
    #[error("sent a malformed payload stream")]
    PayloadFormat,
    /// Streams that say nothing.
    #[error("opens streams without using them")]
    SilentStreams,
    /// More than one control stream, or one from the side that opens none.
    #[error("opened a second control stream")]
    SecondControlStream,
    /// A control stream that ends within a frame.
    #[error("ended its control stream within a frame")]
    TruncatedFrame,
    /// A first packet that announces another purpose than the handshake.
    #[error("announced another purpose than its connection has")]
    FalseMark,
    /// A connection that does not begin with the welcome.
    #[error("began a connection with something else than the welcome")]
    FalseWelcome,
    /// More join requests on a connection than the one that it is for.
    #[error("asked to join more than once on one connection")]
    JoinRepeated,
}

/// What users and the rest of the process should know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A peer is connected.
    PeerUp {
        /// The peer.
        peer: PeerId,
        /// The connection.
        conn: ConnId,
        /// Whether it was restarted since it was last connected.
        restarted: bool,
    },
    /// A peer's connection was replaced by another.
    PeerMoved {
        /// The peer.
        peer: PeerId,
        /// The connection that counts now.
        conn: ConnId,
    },
    /// A peer is not connected any more.
    PeerDown {
        /// The peer.
        peer: PeerId,
    },
    /// A peer that is needed does not answer at any address.
    PeerUnreachable {
        /// The peer.
        peer: PeerId,
    },
    /// A connected peer may not be here.
    Refused {
        /// The peer.
        peer: PeerId,
        /// Why.
        error: CertificateError,
    },
    /// A peer broke the protocol and was cut off.
    Misbehaved {
        /// The peer.
        peer: PeerId,
        /// How.
        violation: Misbehaved,
    },
    /// A peer that came to join broke the protocol: its connection was closed, and it may try again.
    JoinMisbehaved {
        /// The peer.
        peer: PeerId,
        /// How.
        violation: Misbehaved,
    },
    /// A connected peer's membership has run out.
    Expired {
        /// The peer.
        peer: PeerId,
    },
    /// A node can be addressed.
    NodeAppeared {
        /// The node.
        node_id: NodeId,
        /// Its host.
        peer: PeerId,
    },
    /// A node cannot be addressed any more.
    NodeGone(NodeId),
    /// A node id of this peer belongs to another peer.
    DuplicateNode {
        /// The id.
        node_id: NodeId,
        /// Whose it is.
        holder: PeerId,
    },
    /// This peer is a member, or has a longer certificate.
    Joined(Member),
    /// The ticket was refused.
    JoinRefused(JoinRefusal),
    /// The issuer answered nonsense.
    JoinBadReply,
    /// The issuer does not answer.
    JoinUnreachable,
    /// The connection to the issuer has ended.
    JoinEnded,
    /// A peer was admitted by this one.
    Admitted {
        /// The peer.
        peer: PeerId,
        /// Its name.
        name: NodeId,
    },
    /// A peer was not admitted by this one.
    RefusedJoin {
        /// The peer.
        peer: PeerId,
        /// Why.
        refusal: JoinRefusal,
    },
    /// A membership has ended.
    Revoked {
        /// Whose.
        peer: PeerId,
        /// Under which name.
        name: NodeId,
        /// Which certificate.
        serial: Serial,
        /// Whether it is this peer's.
        local: bool,
    },
    /// State changes are on disk, or could not be written.
    Persisted {
        /// The job's number.
        id: u64,
        /// Whether they are.
        ok: bool,
    },
    /// About a transfer.
    Transfer(transfer::TransferEvent),
}
