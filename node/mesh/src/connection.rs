//! One encrypted connection to one peer, for one [`Purpose`].
//!
//! The type is a cheap handle; the connection lives as long as one of its clones, or until somebody closes it. It says who the peer is,
//! how the path does, and why it ended; streams are in [`crate::streams`]. What to keep, which of two to drop, and when to dial is not
//! decided here.

mod cause;
mod life;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyperfabric_protocol::fabric::Misbehaved;
use hyperfabric_protocol::{ConnId, PeerId};
use quinn::VarInt;
use tokio::runtime::Handle;

use crate::address::canonical;
use crate::tls::{Admitted, Purpose};

pub use cause::CloseCause;
pub use hyperfabric_protocol::neighbors::CloseReason;
pub(crate) use life::{Asked, Life};

/// Which end dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This peer dialled.
    Dialled,
    /// The other peer dialled.
    Accepted,
}

/// How the path does, since the connection was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// The smoothed round-trip time; an estimate of some 30 ms until a few packets were acknowledged.
    pub rtt: Duration,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that the loss detection gave up on.
    pub lost_packets: u64,
    /// The datagram payload size that the path is known to carry.
    pub mtu: u16,
    /// How many bytes may be in flight.
    pub congestion_window_bytes: u64,
}

/// What the handle and the tasks of a connection share.
pub(crate) struct Core {
    pub(crate) id: ConnId,
    pub(crate) peer: PeerId,
    pub(crate) purpose: Purpose,
    pub(crate) side: Side,
    pub(crate) quic: quinn::Connection,
    pub(crate) runtime: Handle,
    membership: Option<Arc<[u8]>>,
    /// Why this side closed; the first reason counts.
    closed_for: OnceLock<CloseReason>,
    /// How the peer broke the protocol here; the first time counts.
    violation: OnceLock<Misbehaved>,
    /// Set when somebody has taken over the connection's incoming streams.
    pub(crate) streams_taken: AtomicBool,
    pub(crate) life: Arc<Life>,
}

impl Core {
    pub(crate) fn close(&self, reason: CloseReason) {
        if self.quic.close_reason().is_some() {
            return;
        }
        let _ = self.closed_for.set(reason);
        close_quic(&self.quic, reason);
    }

    /// Closes because the peer broke the protocol. The event loop, which looks why its connections end, cuts the peer off.
    pub(crate) fn violated(&self, violation: Misbehaved) {
        tracing::debug!(peer = %self.peer, address = %self.remote_address(), purpose = %self.purpose, "the peer {violation}");
        let _ = self.violation.set(violation);
        self.close(CloseReason::Violation);
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        canonical(self.quic.remote_address())
    }

    fn cause(&self, error: &quinn::ConnectionError) -> CloseCause {
        CloseCause::from_quic(error, self.closed_for.get().copied())
    }
}

/// Closes a connection that has no handle.
pub(crate) fn close_quic(quic: &quinn::Connection, reason: CloseReason) {
    let code = VarInt::from_u32(reason.code());
    quic.close(code, reason.to_string().as_bytes());
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .field("purpose", &self.purpose)
            .field("side", &self.side)
            .field("remote_address", &self.remote_address())
            .finish_non_exhaustive()
    }
}

/// Closes the connection when the last handle is gone, whatever its tasks still hold.
struct Owner(Arc<Core>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close(CloseReason::Idle);
    }
}

/// A connection to a peer that passed the gate; see the module.
#[derive(Clone)]
pub struct Connection(Arc<Owner>);

impl Connection {
    pub(crate) fn new(
        id: ConnId,
        side: Side,
        admitted: Admitted,
        quic: quinn::Connection,
        runtime: Handle,
    ) -> Self {
        Self(Arc::new(Owner(Arc::new(Core {
            id,
            peer: admitted.peer,
            purpose: admitted.purpose,
            side,
            quic,
            runtime,
            membership: admitted.membership,
            closed_for: OnceLock::new(),
            violation: OnceLock::new(),
            streams_taken: AtomicBool::new(false),
            life: Life::new(),
        }))))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.0
    }

    /// True the first time only.
    pub(crate) fn take_streams(&self) -> bool {
        !self.core().streams_taken.swap(true, Ordering::AcqRel)
    }

    /// Its number, unique within the endpoint.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.core().id
    }

    /// Who the other side is, proven by key.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.core().peer
    }

    /// What it is for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.core().purpose
    }

    /// Which end dialled.
    #[must_use]
    pub fn side(&self) -> Side {
        self.core().side
    }

    /// The membership that the peer showed and the gate admitted.
    #[must_use]
    pub fn membership(&self) -> Option<&[u8]> {
        self.core().membership.as_deref()
    }

    /// Where the peer is now; it changes when a dialler's address does. Never IPv4-mapped.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.core().remote_address()
    }

    /// The smoothed round-trip time; see [`ConnectionStats::rtt`].
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.core().quic.rtt()
    }

    /// How the path does.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        let stats = self.core().quic.stats();
        ConnectionStats {
            rtt: stats.path.rtt,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            mtu: stats.path.current_mtu,
            congestion_window_bytes: stats.path.cwnd,
        }
    }

    /// Bounds what may be in flight towards the peer, in bytes.
    pub fn set_send_window(&self, bytes: u64) {
        self.core().quic.set_send_window(bytes);
    }

    /// Closes at once: streams end, unsent data is dropped, the peer is told `reason`. Only the first close counts.
    pub fn close(&self, reason: CloseReason) {
        self.core().close(reason);
    }

    /// Waits until the connection has ended, by whomever, and says why.
    pub async fn closed(&self) -> CloseCause {
        let core = Arc::clone(self.core());
        let error = core.quic.closed().await;
        core.cause(&error)
    }

    /// Whether streams may be opened here: it has not ended, and is not kept for the answers to earlier requests alone.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.core().quic.close_reason().is_none() && !self.core().life.is_draining()
    }

    /// Waits until [`Self::is_open`] is false.
    pub(crate) async fn parted(&self) {
        tokio::select! {
            _ = self.closed() => {}
            () = self.core().life.draining() => {}
        }
    }

    /// How the peer broke the protocol, when this side closed the connection for that.
    #[must_use]
    pub fn violation(&self) -> Option<Misbehaved> {
        self.core().violation.get().cloned()
    }

    /// Waits for the end, without keeping the connection open, and returns its [`Self::violation`].
    pub(crate) fn watch(&self) -> impl Future<Output = Option<Misbehaved>> + Send + use<> {
        let core = Arc::clone(self.core());
        async move {
            core.quic.closed().await;
            core.violation.get().cloned()
        }
    }

    /// Why the connection has ended; none while it lives.
    #[must_use]
    pub fn close_cause(&self) -> Option<CloseCause> {
        let error = self.core().quic.close_reason()?;
        Some(self.core().cause(&error))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.core(), f)
    }
}
