//! The accept loop: turns first packets into connections, within limits, and says in the log who was refused and why.

use std::sync::Arc;

use hyperfabric_protocol::PeerId;
use hyperfabric_protocol::fabric::Misbehaved;
use quinn::{Incoming, ServerConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use super::limits::{Entry, HANDSHAKES_BEFORE_RETRY, HANDSHAKES_MAX, LimitHit};
use super::{HANDSHAKE_TIMEOUT, Shared, transport};
use crate::address::canonical;
use crate::connection::{CloseCause, CloseReason, Connection, Side, close_quic};
use crate::tls::{Admitted, Handshake, Purpose, Refusal};

/// [QUIC-3] The byte on the acceptor's first stream: the dialler is let in. Until then its handshake has succeeded on its own side only.
pub(super) const WELCOME: u8 = 1;

/// Why an accepted connection did not come about.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("the peer {0}")]
    Refused(Refusal),
    #[error("the handshake failed")]
    Handshake(#[source] quinn::ConnectionError),
    #[error("the handshake took too long")]
    TimedOut,
    #[error(transparent)]
    Limit(#[from] LimitHit),
    #[error("too many join connections per second")]
    JoinRate,
    #[error("the connection id announced another purpose")]
    FalseMark,
    #[error("the handshake ended without an identity")]
    NoIdentity,
    #[error("nobody takes accepted connections")]
    NoReader,
}

/// Runs until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>, endpoint: quinn::Endpoint, accepted: mpsc::Sender<Connection>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let configs =
        Purpose::ALL.map(|purpose| Arc::new(shared.transports.accepting_for(&shared.crypto, purpose)));
    while let Some(incoming) = endpoint.accept().await {
        let remote = canonical(incoming.remote_address());
        let busy = HANDSHAKES_MAX - handshakes.available_permits();
        if busy >= HANDSHAKES_BEFORE_RETRY && !incoming.remote_address_validated() {
            // Cannot fail: an address that is not validated may be asked to retry.
            let _ = incoming.retry();
            continue;
        }
        if let Some(hit) = shared.ledger.is_full_for(&shared.limits, remote.ip()) {
            if shared.ledger.may_log() {
                tracing::info!(address = %remote, "turned a connection away: {hit}");
            }
            incoming.refuse();
            continue;
        }
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let marked = transport::marked_purpose(&incoming.orig_dst_cid());
        let config = configs[marked.unwrap_or(Purpose::Prompt) as usize].clone();
        let attempt = Attempt {
            shared: Arc::clone(&shared),
            marked,
            config,
            accepted: accepted.clone(),
        };
        shared.runtime.spawn(attempt.run(incoming, permit));
    }
}

/// One first packet on its way to a connection.
struct Attempt {
    shared: Arc<Shared>,
    marked: Option<Purpose>,
    config: Arc<ServerConfig>,
    accepted: mpsc::Sender<Connection>,
}

impl Attempt {
    async fn run(self, incoming: Incoming, permit: OwnedSemaphorePermit) {
        let remote = canonical(incoming.remote_address());
        let shared = Arc::clone(&self.shared);
        let ledger = &shared.ledger;
        let mut claimed = None;
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let result = self.establish(incoming, deadline, &mut claimed).await;
        drop(permit);
        let result = match result {
            Ok((connection, entry)) => self.deliver(connection, entry).await,
            Err(error) => Err(error),
        };
        let Err(error) = result else { return };
        if let AcceptError::Refused(refusal) = error {
            shared.refusals.count(refusal);
        }
        let peer = claimed.map_or_else(|| "unknown".to_owned(), |peer: PeerId| peer.to_string());
        match error {
            AcceptError::Refused(refusal) if ledger.may_log() => {
                tracing::warn!(address = %remote, %peer, reason = refusal.word(), "refused a peer: it {refusal}");
            }
            AcceptError::Refused(refusal) => {
                tracing::debug!(address = %remote, %peer, reason = refusal.word(), "refused a peer");
            }
            AcceptError::Handshake(source) => match CloseCause::from_quic(&source, None) {
                CloseCause::Refused(refusal) if ledger.may_log() => {
                    tracing::info!(address = %remote, %peer, reason = refusal.word(), "a dialler refused this peer: it {refusal}");
                }
                _ => tracing::debug!(address = %remote, %peer, error = %source, "a handshake failed"),
            },
            other if ledger.may_log() => {
                tracing::info!(address = %remote, %peer, "turned a connection away: {other}");
            }
            other => tracing::debug!(address = %remote, %peer, "turned a connection away: {other}"),
        }
    }

    async fn establish(
        &self,
        incoming: Incoming,
        deadline: Instant,
        claimed: &mut Option<PeerId>,
    ) -> Result<(Connection, Entry), AcceptError> {
        let ip = incoming.remote_address().ip();
        let mut connecting = incoming
            .accept_with(Arc::clone(&self.config))
            .map_err(AcceptError::Handshake)?;
        let data = timeout_at(deadline, connecting.handshake_data())
            .await
            .map_err(|_| AcceptError::TimedOut)?
            .map_err(AcceptError::Handshake)?;
        let cell = data
            .downcast::<Handshake>()
            .map_err(|_| AcceptError::NoIdentity)?
            .cell;
        let outcome = timeout_at(deadline, connecting).await;
        *claimed = cell.claimed();
        let quic = outcome
            .map_err(|_| AcceptError::TimedOut)?
            .map_err(|error| match cell.refusal() {
                Some(refusal) => AcceptError::Refused(refusal),
                None => AcceptError::Handshake(error),
            })?;
        let admitted = cell.admitted().ok_or(AcceptError::NoIdentity)?;
        match self.count(ip, &admitted) {
            Ok(entry) => {
                let id = self.shared.next_id();
                let runtime = self.shared.runtime.clone();
                let connection = Connection::new(id, Side::Accepted, admitted, quic, runtime);
                Ok((connection, entry))
            }
            // A member is to be cut off; a stranger who came to join has nothing to lose.
            Err(AcceptError::FalseMark) if admitted.purpose != Purpose::Join => {
                let id = self.shared.next_id();
                let runtime = self.shared.runtime.clone();
                let connection = Connection::new(id, Side::Accepted, admitted, quic, runtime);
                connection.core().violated(Misbehaved::FalseMark);
                // An endpoint without a reader is closing.
                let _ = timeout_at(deadline, self.accepted.send(connection)).await;
                Err(AcceptError::FalseMark)
            }
            Err(error) => {
                let reason = match error {
                    AcceptError::FalseMark => CloseReason::Violation,
                    _ => CloseReason::LimitReached,
                };
                close_quic(&quic, reason);
                Err(error)
            }
        }
    }

    /// Checks what can only be checked once peer and purpose are known.
    fn count(&self, ip: std::net::IpAddr, admitted: &Admitted) -> Result<Entry, AcceptError> {
        if self.marked.is_some_and(|marked| marked != admitted.purpose) {
            return Err(AcceptError::FalseMark);
        }
        if admitted.purpose == Purpose::Join && !self.shared.ledger.take_join() {
            return Err(AcceptError::JoinRate);
        }
        let ledger = &self.shared.ledger;
        Ok(ledger.enter(&self.shared.limits, ip, admitted.peer, admitted.purpose)?)
    }

    /// Tells the dialler that it is let in, and the reader of the channel that there is a connection.
    async fn deliver(self, connection: Connection, entry: Entry) -> Result<(), AcceptError> {
        let quic = connection.core().quic.clone();
        // Counts until the end of the connection, without a handle that would keep it open.
        let ended = quic.clone();
        self.shared.runtime.spawn(async move {
            ended.closed().await;
            drop(entry);
        });
        let delivery = async {
            let mut welcome = quic.open_uni().await.map_err(AcceptError::Handshake)?;
            // Fails only when the connection is gone already, which its reader will see.
            let _ = welcome.write_all(&[WELCOME]).await;
            let _ = welcome.finish();
            let sent = self.accepted.send(connection).await;
            sent.map_err(|_| AcceptError::NoReader)
        };
        let delivered = timeout(HANDSHAKE_TIMEOUT, delivery).await;
        delivered.unwrap_or(Err(AcceptError::NoReader))
    }
}
