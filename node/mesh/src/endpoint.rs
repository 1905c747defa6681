//! The one QUIC endpoint of a peer: one UDP port for all three purposes, as dialler and as acceptor.
//!
//! It owns the accept loop with its limits, dials with typed errors, and closes so that the port is free afterwards. Connections come out
//! of a bounded channel; who they belong to, and which of two to keep, is decided by whoever reads it.

mod accept;
mod congestion;
mod dial;
mod limits;
mod reset;
mod runtime;
mod transport;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyperfabric_protocol::{ConnId, PeerId, SigningKey};
use quinn::VarInt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::address;
use crate::connection::{CloseReason, Connection};
use crate::sync::lock;
use crate::tls::{Gate, LeafCell, Refusal, Refusals, ServerCrypto};
use crate::wire::{QuinnSocket, Wire};

use self::limits::Ledger;
use self::transport::Transports;

pub use dial::DialError;
pub use limits::{Limits, TokenBucket};
pub use transport::{MTU_MAX_DEFAULT, MTU_MAX_MIN};

/// How long a handshake may take, on either side.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How many accepted connections may wait for the reader of the channel.
pub const ACCEPTED_QUEUE_MAX: usize = 64;

/// How long [`Endpoint::close`] waits for the peers to hear of it.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What an endpoint is made of.
pub struct EndpointConfig {
    /// Carries the datagrams.
    pub wire: Arc<dyn Wire>,
    /// This peer's key.
    pub identity: SigningKey,
    /// The certificate to show; keep a clone to replace it.
    pub leaf: LeafCell,
    /// Decides who may connect.
    pub gate: Arc<dyn Gate>,
    /// Where the endpoint's tasks run.
    pub runtime: Handle,
    /// The largest datagram payload that path MTU discovery tries, and that is received; at least [`MTU_MAX_MIN`].
    pub mtu_max: u16,
    /// What others may use up.
    pub limits: Limits,
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The wire does not work.
    #[error("cannot use the wire")]
    Wire(#[source] io::Error),
    /// The TLS library does not accept the configuration.
    #[error("cannot configure TLS")]
    Tls(#[source] rustls::Error),
}

/// What the endpoint's tasks share.
pub(crate) struct Shared {
    local: PeerId,
    leaf: LeafCell,
    gate: Arc<dyn Gate>,
    runtime: Handle,
    limits: Limits,
    ledger: Arc<Ledger>,
    refusals: Refusals,
    transports: Transports,
    crypto: Arc<ServerCrypto>,
    socket: Arc<QuinnSocket>,
    next_id: AtomicU64,
    dials: AtomicU64,
}

impl Shared {
    fn next_id(&self) -> ConnId {
        ConnId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }
}

struct Inner {
    shared: Arc<Shared>,
    /// Taken when the endpoint is closed: the port is free once nothing of the QUIC stack is left.
    quic: Mutex<Option<quinn::Endpoint>>,
    bound: SocketAddr,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(quic) = lock(&self.quic).take() {
            close_all(&quic);
        }
    }
}

fn close_all(quic: &quinn::Endpoint) {
    let reason = CloseReason::Shutdown;
    let code = VarInt::from_u32(reason.code());
    quic.close(code, reason.to_string().as_bytes());
}

/// A peer's endpoint; see the module. Clones are handles of the same one; it closes when the last is dropped.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

impl Endpoint {
    /// Starts an endpoint on `config.wire`. Accepted connections come out of the receiver.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn bind(config: EndpointConfig) -> Result<(Self, mpsc::Receiver<Connection>), EndpointError> {
        let mtu_max = config
            .mtu_max
            .min(config.wire.capabilities().mtu_max)
            .max(MTU_MAX_MIN);
        let bound = config.wire.local_addr().map_err(EndpointError::Wire)?;
        let crypto =
            ServerCrypto::new(config.leaf.clone(), Arc::clone(&config.gate)).map_err(EndpointError::Tls)?;
        let socket = Arc::new(QuinnSocket::new(config.wire, mtu_max));
        let shared = Arc::new(Shared {
            local: config.identity.peer_id(),
            leaf: config.leaf,
            gate: config.gate,
            runtime: config.runtime.clone(),
            ledger: Arc::new(Ledger::new(&config.limits)),
            refusals: Refusals::default(),
            limits: config.limits,
            transports: Transports::new(mtu_max),
            crypto: Arc::new(crypto),
            socket: Arc::clone(&socket),
            next_id: AtomicU64::new(1),
            dials: AtomicU64::new(0),
        });
        let _context = config.runtime.enter();
        let quic = quinn::Endpoint::new_with_abstract_socket(
            transport::endpoint_config(&config.identity, mtu_max),
            Some(shared.transports.accepting(&shared.crypto)),
            socket,
            Arc::new(runtime::HandleRuntime(config.runtime.clone())),
        )
        .map_err(EndpointError::Wire)?;
        let (accepted, receiver) = mpsc::channel(ACCEPTED_QUEUE_MAX);
        config
            .runtime
            .spawn(accept::run(Arc::clone(&shared), quic.clone(), accepted));
        let inner = Inner {
            shared,
            quic: Mutex::new(Some(quic)),
            bound,
        };
        Ok((Self(Arc::new(inner)), receiver))
    }

    /// Who this endpoint is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.0.shared.local
    }

    /// The address that the wire is bound to, as bound: possibly a wildcard.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.0.bound
    }

    /// The addresses under which others can try to dial this endpoint; see [`address::reachable`].
    ///
    /// # Errors
    /// When the system does not list its interfaces.
    pub fn reachable_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        address::reachable(self.0.bound)
    }

    /// How many accepted connections are open.
    #[must_use]
    pub fn accepted_connections(&self) -> usize {
        self.0.shared.ledger.total()
    }

    /// How often this endpoint has refused a peer in a handshake, whoever dialled, by reason.
    #[must_use]
    pub fn refusals(&self) -> Vec<(Refusal, u64)> {
        self.0.shared.refusals.totals()
    }

    /// How often this endpoint has dialled so far, whatever came of it.
    #[must_use]
    pub fn dials(&self) -> u64 {
        self.0.shared.dials.load(Ordering::Relaxed)
    }

    fn quic(&self) -> Option<quinn::Endpoint> {
        lock(&self.0.quic).clone()
    }

    /// Closes all connections, waits up to [`CLOSE_TIMEOUT`] for the peers to hear of it, and gives the wire back. Idempotent.
    pub async fn close(&self) {
        let Some(quic) = lock(&self.0.quic).take() else {
            return;
        };
        close_all(&quic);
        // A peer that does not answer is its own problem; the port must become free.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, quic.wait_idle()).await;
        drop(quic);
        self.0.shared.socket.detach();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("peer", &self.0.shared.local)
            .field("bound", &self.0.bound)
            .finish_non_exhaustive()
    }
}
