//! Dialling, with an error that says whose fault it was.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyperfabric_protocol::PeerId;
use quinn::ConnectionError;
use tokio::time::timeout;

use super::accept::WELCOME;
use super::{Endpoint, HANDSHAKE_TIMEOUT, Shared, transport};
use crate::address::canonical;
use crate::connection::{CloseCause, CloseReason, Connection, Side};
use crate::tls::{ClientCrypto, Handshake, Purpose, Refusal, SERVER_NAME, SessionCell};

/// CONNECTION_REFUSED of RFC 9000, section 20.1.
const CONNECTION_REFUSED: u64 = 0x2;
/// The alert no_application_protocol as a QUIC error.
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Why a dial failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The other side did not let this peer in.
    #[error("the peer refused: this peer {reason}")]
    Refused {
        /// Its reason.
        reason: Refusal,
    },
    /// This side did not accept who answered.
    #[error("the peer at {address} is not accepted: it {reason}")]
    Untrusted {
        /// Who answered there.
        address: SocketAddr,
        /// The gate's reason, or [`Refusal::WrongPeer`].
        reason: Refusal,
    },
    /// The other side has reached a limit; later may work.
    #[error("the peer at {address} takes no more connections now")]
    Busy {
        /// Where.
        address: SocketAddr,
    },
    /// Nobody answered in time.
    #[error("no answer from {address}")]
    TimedOut {
        /// Where.
        address: SocketAddr,
    },
    /// What answers there does not speak this protocol.
    #[error("{address} does not speak this protocol")]
    NoCommonProtocol {
        /// Where.
        address: SocketAddr,
    },
    /// The peer that answers there let this one in, and broke the protocol with its first byte.
    #[error("the peer at {address} broke the protocol")]
    FalseWelcome {
        /// Where.
        address: SocketAddr,
    },
    /// The address cannot be dialled from this endpoint: port 0, a wildcard, or IPv6 on an IPv4 wire.
    #[error("{address} cannot be dialled from here")]
    Address {
        /// The address.
        address: SocketAddr,
    },
    /// The peer is known without any address that can be dialled.
    #[error("no address of the peer is known")]
    NoAddress,
    /// The peer is this peer.
    #[error("that is this peer itself")]
    Myself,
    /// The connection ended before it was usable.
    #[error("the connection to {address} ended at once")]
    Ended {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: CloseCause,
    },
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    EndpointClosed,
}

impl Endpoint {
    /// Connects to `peer` at `address` and returns once the peer has let this one in.
    ///
    /// # Errors
    /// See [`DialError`]. Dropping the future abandons the attempt.
    pub async fn dial(
        &self,
        peer: PeerId,
        address: SocketAddr,
        purpose: Purpose,
    ) -> Result<Connection, DialError> {
        let address = canonical(address);
        if peer == self.peer() {
            return Err(DialError::Myself);
        }
        let quic = self.quic().ok_or(DialError::EndpointClosed)?;
        let attempt = establish(&self.0.shared, quic, peer, address, purpose);
        timeout(HANDSHAKE_TIMEOUT, attempt)
            .await
            .map_err(|_| DialError::TimedOut { address })?
    }
}

async fn establish(
    shared: &Arc<Shared>,
    endpoint: quinn::Endpoint,
    peer: PeerId,
    address: SocketAddr,
    purpose: Purpose,
) -> Result<Connection, DialError> {
    let crypto = ClientCrypto::new(&shared.leaf, &shared.gate, peer, purpose)
        .expect("the accepting side's configuration uses the same provider");
    let cell = crypto.cell();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config
        .transport_config(shared.transports.dialling(purpose))
        .initial_dst_cid_provider(Arc::new(move || transport::dial_cid(purpose)));
    let fail = |error: &ConnectionError| explain(shared, error, address, &cell);
    let connecting = endpoint
        .connect_with(config, address, SERVER_NAME)
        .map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => DialError::EndpointClosed,
            _ => DialError::Address { address },
        })?;
    // The driver of the connection keeps what it needs; a handle here would delay the end of the endpoint.
    drop(endpoint);
    shared.dials.fetch_add(1, Ordering::Relaxed);
    let quic = connecting.await.map_err(|error| fail(&error))?;
    let negotiated = quic
        .handshake_data()
        .and_then(|data| data.downcast::<Handshake>().ok())
        .and_then(|handshake| handshake.purpose);
    let admitted = cell.admitted();
    let (Some(admitted), true) = (admitted, negotiated == Some(purpose)) else {
        return Err(DialError::NoCommonProtocol { address });
    };
    let mut welcome = quic.accept_uni().await.map_err(|error| fail(&error))?;
    let mut byte = [0];
    let read = welcome.read_exact(&mut byte).await;
    let id = shared.next_id();
    let connection = Connection::new(id, Side::Dialled, admitted, quic, shared.runtime.clone());
    match read {
        Ok(()) if byte == [WELCOME] => Ok(connection),
        Ok(()) => {
            connection.close(CloseReason::Violation);
            Err(DialError::FalseWelcome { address })
        }
        Err(_) => {
            if let Some(error) = connection.core().quic.close_reason() {
                return Err(fail(&error));
            }
            connection.close(CloseReason::Idle);
            Err(DialError::NoCommonProtocol { address })
        }
    }
}

fn explain(shared: &Shared, error: &ConnectionError, address: SocketAddr, cell: &SessionCell) -> DialError {
    if let Some(reason) = cell.refusal() {
        shared.refusals.count(reason);
        tracing::info!(%address, peer = ?cell.claimed(), reason = reason.word(), "refused a dialled peer: it {reason}");
        return DialError::Untrusted { address, reason };
    }
    match CloseCause::from_quic(error, None) {
        CloseCause::Refused(reason) => {
            tracing::info!(%address, reason = reason.word(), "refused by a dialled peer: this peer {reason}");
            DialError::Refused { reason }
        }
        CloseCause::TimedOut => DialError::TimedOut { address },
        CloseCause::Transport {
            code: CONNECTION_REFUSED,
        }
        | CloseCause::ClosedByPeer {
            reason: Some(CloseReason::LimitReached),
            ..
        } => DialError::Busy { address },
        CloseCause::Transport {
            code: NO_APPLICATION_PROTOCOL,
        } => DialError::NoCommonProtocol { address },
        CloseCause::Local(_) => DialError::EndpointClosed,
        cause @ (CloseCause::Reset | CloseCause::ClosedByPeer { .. } | CloseCause::Transport { .. }) => {
            DialError::Ended { address, cause }
        }
    }
}
