//! The gate that a peer's driver keeps: membership of its mesh, checked inside every handshake.
//!
//! It holds a snapshot of what the fabric machine knows (the mesh, the revocations), because handshakes happen on
//! their own and must not wait for the machine.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use hyperfabric_protocol::cert::{CertificateError, Membership, MeshRoot};
use hyperfabric_protocol::neighbors::{BAN_DURATION, BANS_MAX};
use hyperfabric_protocol::{Instant, PeerId, Serial};

use crate::clock::Clock;
use crate::tls::{Gate, Purpose, Refusal};

#[derive(Default)]
struct State {
    root: Option<MeshRoot>,
    revoked: HashSet<Serial>,
    /// Until when peers are kept out that broke the protocol.
    banned: HashMap<PeerId, Instant>,
}

/// Lets members of one mesh in.
#[derive(Clone)]
pub struct MeshGate {
    state: Arc<RwLock<State>>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for MeshGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MeshGate")
    }
}

impl MeshGate {
    /// Makes a gate that lets nobody in until it knows its mesh.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Arc::default(),
            clock,
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Tells the gate its mesh.
    pub fn set_root(&self, root: Option<MeshRoot>) {
        self.write().root = root;
    }

    /// Keeps a peer out, on every kind of connection, for as long as the machine does.
    pub fn ban(&self, peer: PeerId) {
        let now = self.clock.now().mono;
        let mut state = self.write();
        if state.banned.len() >= BANS_MAX {
            state.banned.retain(|_, until| *until > now);
        }
        // As the machine does: the ban that ends first is lifted.
        if state.banned.len() >= BANS_MAX
            && let Some(first) = state
                .banned
                .iter()
                .min_by_key(|(_, until)| **until)
                .map(|(id, _)| *id)
        {
            state.banned.remove(&first);
        }
        state.banned.insert(peer, now.after(BAN_DURATION));
    }

    /// Tells the gate that a certificate no longer counts.
    pub fn revoke(&self, serial: Serial) {
        self.write().revoked.insert(serial);
    }
}

impl Gate for MeshGate {
    fn admit(&self, peer: &PeerId, membership: Option<&[u8]>, purpose: Purpose) -> Result<(), Refusal> {
        let state = self
            .state
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = self.clock.now();
        if state.banned.get(peer).is_some_and(|until| *until > now.mono) {
            return Err(Refusal::Banned);
        }
        if purpose == Purpose::Join {
            return Ok(());
        }
        let root = state.root.as_ref().ok_or(Refusal::NotAMember)?;
        let shown = membership.ok_or(Refusal::NotAMember)?;
        let member = Membership::verify(shown, root, peer, now.wall).map_err(|error| match error {
            CertificateError::NotAMember => Refusal::NotAMember,
            CertificateError::OtherMesh => Refusal::OtherMesh,
            CertificateError::Expired => Refusal::Expired,
            CertificateError::NotYetValid => Refusal::NotYetValid,
            CertificateError::Forged => Refusal::Forged,
            CertificateError::WrongPeer => Refusal::WrongPeer,
            CertificateError::Revoked => Refusal::Revoked,
            CertificateError::Malformed(_) => Refusal::Malformed,
        })?;
        if state.revoked.contains(&member.serial) {
            Err(Refusal::Revoked)
        } else {
            Ok(())
        }
    }
}
